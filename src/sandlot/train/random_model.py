"""Small models of random weights, with tokenizers of their own made from the tasks they are for.

A model of a million weights can hold a few hundred tokens of a conversation in mind and no more.
So whatever the template, the tools and the loop write around each message is one token of its
tokenizer: the text stays what every other model is given, only the count of tokens shrinks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sandlot.agent.prompts import Profile, first_messages
from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Message, Task, TextPart, ToolCall
from sandlot.tools import default_tools
from sandlot.train.chat import ToolForm
from sandlot.train.config import RandomModel
from sandlot.train.lessons import lessons_of
from sandlot.train.sources import Tasks

ARCHITECTURES = ("llama", "qwen2", "qwen3")
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
SAMPLED_TASKS = 400
"""So many tasks, with what clerks do on them, are the text that a tokenizer is made from."""

TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'Tools, as JSON:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\nCall one with its name and arguments, as JSON in <tool_call></tool_call>.' }}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {%- if not loop.first or message.content %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Turns between `<|im_start|>` and `<|im_end|>`, calls as JSON between tags, as of Qwen models."""


def make_random(
    wanted: RandomModel, tasks: Tasks, *, dtype: str, seed: int, profile: Profile
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer; the same arguments give the same weights.

    Args:
        tasks: what the tokenizer is made from.
        dtype: name of a torch type.
        profile: whose prompts and form of tool calls become single tokens.
    Raises:
        ConfigError: an architecture that is not known, or sizes that do not fit together.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if wanted.architecture not in ARCHITECTURES:
        raise unknown_name("model.random.architecture", wanted.architecture, ARCHITECTURES)
    if min(wanted.layers, wanted.heads, wanted.hidden) < 1 or wanted.hidden % (2 * wanted.heads):
        raise ConfigError(
            f"model.random: hidden is {wanted.hidden}; it must be heads ({wanted.heads}) times an "
            "even number, and there must be a layer"
        )
    tokenizer = make_tokenizer(tasks, vocabulary=wanted.vocabulary, profile=profile)
    width = wanted.hidden // wanted.heads
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": wanted.hidden,
        "intermediate_size": 3 * wanted.hidden,
        "num_hidden_layers": wanted.layers,
        "num_attention_heads": wanted.heads,
        "num_key_value_heads": wanted.heads,
        "head_dim": width,
        "max_position_embeddings": 32_768,
        "initializer_range": wanted.initializer_range,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(wanted.architecture, **sizes)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval(), tokenizer


def make_tokenizer(tasks: Tasks, *, vocabulary: int, profile: Profile) -> Any:
    """A byte-level BPE of at most `vocabulary` tokens, with a chat template.

    What stands around each message (`_spans`) is one token each.
    """
    plain = _wrapped(_bpe([], 256 + 3), ())
    spans = _spans(plain, profile)
    texts = list(_texts(tasks))
    rest = vocabulary - len(spans)
    if rest < 256 + 3:
        raise ConfigError(
            f"model.random.vocabulary is {vocabulary}; bytes and signs alone need "
            f"{256 + 3 + len(spans)}"
        )
    return _wrapped(_bpe(texts, rest), spans)


_WORDS = r" ?[^\s]*[^\s.,:;?!]|[.,:;?!]+|\s"
"""Words with the space before them, marks at their end apart; so a word is the same token in a
prompt, a file and a command."""


def _bpe(texts: Sequence[str], size: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, START, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def _wrapped(bpe: Any, spans: Sequence[str]) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    made.add_tokens([AddedToken(span, normalized=False) for span in spans])
    made.chat_template = TEMPLATE
    return made


def _texts(tasks: Tasks) -> Iterator[str]:
    """Prompts, files, truths, and what clerks write on them."""
    some = tasks.all(SAMPLED_TASKS) if tasks.fixed else tasks.fresh(1, SAMPLED_TASKS)
    for task in some:
        yield f"{task.prompt}\n{task.target}\n"
        for data in task.input_files.values():
            yield data[:4000].decode("utf-8", "replace")
    try:
        lessons = lessons_of(tasks.source.generator)
    except ConfigError:
        return
    for _, _, commands in (*lessons.clerks(some, 1), *lessons.drills(SAMPLED_TASKS, 1)):
        yield from (f"{command}\n" for command in commands)


# --- what stands around messages -----------------------------------------------------------------

_MARK = "qqq"
_CALL = "call_0"


def _spans(tokenizer: Any, profile: Profile) -> tuple[str, ...]:
    """The texts that are the same in every conversation, found by writing one down."""
    from sandlot.train.chat import TemplateFormat

    form: ToolForm = profile.tool_calls  # type: ignore[assignment]  # checked by TemplateFormat
    chat = TemplateFormat(tokenizer, form)
    tools = tuple(tool.spec for tool in default_tools())
    asked = first_messages(profile, Task("", _MARK))

    def said(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    def call(name: str, **arguments: str) -> Message:
        return Message.assistant("", ToolCall(_CALL, name, json.dumps(arguments)))

    opening = said(chat.render(asked, tools))
    acted = call("execute_bash", command=_MARK)
    reply = said(chat.write(acted, tools))
    result = Message.tool(_CALL, TextPart(_MARK), TextPart("\n[turns left: 7]"))
    after = said(chat.render([*asked, acted, result], tools))[len(opening) + len(reply) :]
    before_result, _, rest = after.partition(_MARK)
    ended = tuple(
        part.removesuffix(END)
        for part in (*reply.split(_MARK), said(chat.write(call("submit"), tools)))
    )
    found = (*opening.split(_MARK), *ended, before_result, *rest.split("7", 1))
    return tuple(dict.fromkeys(span for span in found if len(span) > 1))
