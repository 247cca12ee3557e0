"""Chat formats: a conversation as the token ids that a model's own chat template gives.

What the policy sampled enters as it was sampled. Between one sampled reply and the next only the
bridge is rendered: the template's text from the end of the reply's turn, over the new messages,
to the next generation prompt. It is taken from a conversation of stand-ins, so a template that
rewrites history (Qwen3 drops earlier thinking) never changes what was sampled.

    opening  reply  bridge  reply  bridge ...
    template ids    template ids   template
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from sandlot.core.errors import ConfigError, ModelError
from sandlot.core.types import Message, Role, TextPart, ToolCall
from sandlot.models import hermes
from sandlot.models.base import ToolSpec
from sandlot.models.local import describe_tools, text_messages
from sandlot.models.openai_wire import encode_tools, part_text
from sandlot.models.text_form import FORMS
from sandlot.train.base import SAMPLED_IDS, Ids

ToolForm = Literal["native", "text", "fenced"]
_TOOL_FORMS = ("native", "text", "fenced")
_FIXED_DATE = "26 Jul 2024"
_PYTHON_TAG = "<|python_tag|>"
# Llama 3 ends a reply that calls a tool of its own kind by another token than its other turns.
_MORE_ENDS = {"<|eot_id|>": ("<|eom_id|>",)}
_NAME = re.compile(r"[^A-Za-z0-9_-]")
CACHED_IDS = 4_000_000
_DECODER = json.JSONDecoder(strict=False)
_PROBE_TOOL = ToolSpec(
    "probe_tool",
    "Probes.",
    {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
)
_PROBE_CALL = ToolCall("call_0", "probe_tool", '{"text": "a b"}')


def load_tokenizer(where: Path) -> Any:
    """The transformers tokenizer of a model folder or of a GGUF file.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    import transformers

    folder, file = (where.parent, where.name) if where.suffix == ".gguf" else (where, None)
    if not where.exists():
        raise ConfigError(f"{where}: no such model folder or GGUF file")
    arguments = {"gguf_file": file} if file else {}
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, **arguments
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{where}: the tokenizer cannot be read: {error}") from error


class TemplateFormat:
    """A `ChatFormat` over a transformers tokenizer and a chat template.

    Args:
        tool_form: `native` lets the template write tools, calls and results (calls are read in
            the forms of Hermes and Qwen, or of Llama 3); `text` writes them as `models.hermes`
            does, `fenced` as `models.fenced` does.
        template: jinja text in place of the tokenizer's own template.
        template_args: further variables of the template (`enable_thinking`, `date_string`).
        stop_tokens: further tokens that end a reply, beside the end of turn and the tokenizer's
            end of sequence.
        describe: writes the tools for `text` and `fenced`; None does it as the served model does.

    Raises:
        ConfigError: the template cannot be used for training; says what to give instead.
    """

    def __init__(
        self,
        tokenizer: Any,
        tool_form: ToolForm = "native",
        *,
        template: str | None = None,
        template_args: Mapping[str, Any] | None = None,
        stop_tokens: Sequence[str] = (),
        describe: Callable[[Sequence[ToolSpec]], str] | None = None,
    ) -> None:
        if tool_form not in _TOOL_FORMS:
            raise ConfigError(f"tool_form {tool_form!r}: use native, text or fenced")
        self.tokenizer = tokenizer
        self._form: ToolForm = tool_form
        self._template = _Template.of(tokenizer, template, template_args or {})
        self._describe = describe or _DESCRIBE[tool_form]
        self._cache = _Cache(CACHED_IDS)
        self._joins_users = self._calls_as_json = False
        try:
            self._end_text, self._end_id = self._find_end_of_turn()
            self._opens_thinking = self._generation_prompt().rstrip().endswith("<think>")
            self.stop_ids = self._find_stops(stop_tokens)
            self._closers = self._find_closers()
            self._check_bridge()
            if tool_form == "native":
                self._check_native()
        except ModelError as error:
            raise ConfigError(f"{error}; give another template (model.template)") from error

    @property
    def end_of_turn(self) -> int:
        """The id that ends a reply in this template."""
        return self._end_id

    # Messages to ids.

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Ids:
        first = next(
            (index for index, item in enumerate(messages) if item.role is Role.ASSISTANT),
            len(messages),
        )
        known = _tools_key(tools)
        ids = list(self._opening(messages[:first], tools, known))
        index = first
        while index < len(messages):
            reply, index = messages[index], index + 1
            begin = index
            while index < len(messages) and messages[index].role is not Role.ASSISTANT:
                index += 1
            ids.extend(self._reply_ids(reply, tools, known))
            if ids[-1] not in self._closers:
                ids.append(self._end_id)
            ids.extend(self._bridge(reply, messages[begin:index], tools, known))
        return tuple(ids)

    def write(self, reply: Message, tools: Sequence[ToolSpec]) -> Ids:
        """The ids of a reply that nobody sampled, as the template writes it, end of turn included.

        Raises:
            ConfigError: the template does not write a reply where its generation prompt ends.
        """
        return self._canonical(reply, tools, _tools_key(tools))

    def _canonical(self, reply: Message, tools: Sequence[ToolSpec], known: str) -> Ids:
        key = ("write", known, _message_key(reply))
        return self._cache.get(key, lambda: self._written(reply, tools))

    def _opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec], known: str) -> Ids:
        key = ("open", known, *map(_message_key, messages))
        return self._cache.get(key, lambda: self._encode(self._open_text(messages, tools)))

    def _open_text(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str:
        plain = self._plain(messages, tools, opening=True)
        return self._template.render(plain, self._native(tools), prompt=True)

    def _reply_ids(self, reply: Message, tools: Sequence[ToolSpec], known: str) -> Sequence[int]:
        sampled: Sequence[int] | None = reply.extra.get(SAMPLED_IDS)
        if sampled is not None:
            return sampled or (self._end_id,)
        return self._canonical(reply, tools, known)

    def _written(self, reply: Message, tools: Sequence[ToolSpec]) -> Ids:
        prompt, text = self._reply_text(reply, tools)
        if text is None:
            raise ConfigError(
                "the chat template does not write a reply where its generation prompt ends, so "
                "replies that were not sampled cannot be put into tokens; give another template "
                "(model.template)"
            )
        before = self._encode(prompt)
        together = self._encode(prompt + text)
        if together[: len(before)] == before:
            return together[len(before) :]
        return self._encode(text)

    def _reply_text(
        self, reply: Message, tools: Sequence[ToolSpec], *, anywhere: bool = False
    ) -> tuple[str, str | None]:
        """A generation prompt and what follows it in the template's rendering of a reply.

        None where the rendering does not begin with the prompt; `anywhere` gives what follows
        their common beginning.
        """
        asked = self._plain((Message.user("."),), tools, opening=True)
        answered = [*asked, *self._plain((reply,), tools)]
        prompt = self._template.render(asked, self._native(tools), prompt=True)
        whole = self._template.render(answered, self._native(tools), prompt=False)
        start = _common(prompt, whole)
        if start < len(prompt) and not anywhere:
            return prompt, None
        end = whole.rfind(self._end_text)
        return prompt, whole[start : end if end >= start else None] + self._end_text

    def _bridge(
        self, reply: Message, new: Sequence[Message], tools: Sequence[ToolSpec], known: str
    ) -> Ids:
        calls = tuple((call.id, call.name) for call in reply.tool_calls)
        key = ("bridge", known, calls, *map(_message_key, new))
        return self._cache.get(key, lambda: self._bridge_ids(reply, new, tools))

    def _bridge_ids(self, reply: Message, new: Sequence[Message], tools: Sequence[ToolSpec]) -> Ids:
        text = self._bridge_text(reply, new, tools)
        first, *ids = self._encode(text)
        if first != self._end_id:
            raise ConfigError(_MERGES.format(token=self._end_text))
        return tuple(ids)

    def _bridge_text(
        self, reply: Message, new: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> str:
        """From the end-of-turn token of a stand-in for `reply` to the next generation prompt."""
        marker = _marker(new)
        asked = self._plain((Message.user("."),), tools, opening=True)
        follow = self._plain(new, tools, calls=reply.tool_calls)
        problem: ModelError | None = None
        for stand_in in _stand_ins(marker, reply.tool_calls if self._form == "native" else ()):
            try:
                whole = self._template.render(
                    [*asked, stand_in, *follow], self._native(tools), prompt=True
                )
            except ModelError as error:  # some templates refuse several calls in one reply
                problem = problem or error
                continue
            end = whole.find(self._end_text, whole.rfind(marker))
            if marker in whole and end >= 0:
                return whole[end:]
        if problem is not None:
            raise problem
        raise ConfigError(
            "the chat template does not show an earlier reply and its end, so a conversation "
            "cannot be continued; give another template (model.template)"
        )

    def _plain(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        *,
        opening: bool = False,
        calls: Sequence[ToolCall] = (),
    ) -> list[dict[str, Any]]:
        """Messages as the template gets them; the opening names the tools of the text forms."""
        if self._form == "native":
            names = {call.id: call.name for call in calls}
            return [_native_message(message, names) for message in messages]
        listing = self._describe(tools) if opening and tools else ""
        rendered = text_messages(messages, listing, FORMS[self._form])
        return _joined(rendered) if self._joins_users else rendered

    def _native(self, tools: Sequence[ToolSpec]) -> list[dict[str, Any]] | None:
        return encode_tools(tools) if tools and self._form == "native" else None

    def _encode(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    # Ids to a message.

    def read(self, ids: Sequence[int], tools: Sequence[ToolSpec], *, cut: bool = False) -> Message:
        """The message of sampled ids. Its calls have no ids yet (`agent.calls.sendable`).

        cut: the reply ended at its length limit: it calls nothing, since half a command must not
            run.
        """
        kept = list(ids)
        said = kept[:-1] if kept and kept[-1] in self.stop_ids else kept
        text = self.tokenizer.decode(
            said, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        text = "<think>\n" + text if self._opens_thinking else text
        message = _talk(text) if cut else self._parse(text, tools)
        return replace(message, extra={**message.extra, SAMPLED_IDS: kept})

    def _parse(self, text: str, tools: Sequence[ToolSpec]) -> Message:
        if self._form != "native":
            return FORMS[self._form].read(text, tools, _no_id)
        if self._calls_as_json:
            return _parse_json_calls(text)
        return hermes.parse_message(text, _no_id)

    # What the template is like, found out once.

    def _generation_prompt(self) -> str:
        user = [{"role": "user", "content": "."}]
        with_prompt = self._template.render(user, None, prompt=True)
        if with_prompt == self._template.render(user, None, prompt=False):
            raise ConfigError(
                "the chat template has no generation prompt (add_generation_prompt changes "
                "nothing), so a reply cannot be told from what was given; give another template "
                "(model.template)"
            )
        return with_prompt

    def _find_end_of_turn(self) -> tuple[str, int]:
        marker = _marker(())
        talk = [{"role": "user", "content": "."}, {"role": "assistant", "content": marker}]
        whole = self._template.render(talk, None, prompt=False)
        _, found, tail = whole.rpartition(marker)
        ids = self._encode(tail.lstrip()) if found else ()
        special = set(self.tokenizer.all_special_ids) | {
            key for key, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        if not ids or ids[0] not in special:
            raise ConfigError(
                f"the chat template ends a reply with {tail[:40]!r}, which is no special token of "
                "the tokenizer, so nothing tells where a sampled reply ends; give another "
                "template (model.template), or a tokenizer that knows its special tokens"
            )
        text = str(self.tokenizer.convert_ids_to_tokens(ids[0]))
        if self._encode("a" + text + "a") != (*self._encode("a"), ids[0], *self._encode("a")):
            raise ConfigError(_MERGES.format(token=text))
        return text, ids[0]

    def _find_stops(self, more: Sequence[str]) -> frozenset[int]:
        names = [*more, *_MORE_ENDS.get(self._end_text, ())]
        stops = {self._end_id}
        if isinstance(self.tokenizer.eos_token_id, int):
            stops.add(self.tokenizer.eos_token_id)
        for name in names:
            ids = self._encode(name)
            if len(ids) == 1:
                stops.add(ids[0])
            elif name in more:
                raise ConfigError(f"stop token {name!r} is no single token of the tokenizer")
        return frozenset(stops)

    def _find_closers(self) -> frozenset[int]:
        """What may stand where a turn ends; any other stop is followed by the end of turn."""
        others = _MORE_ENDS.get(self._end_text, ())
        ids = [self.tokenizer.convert_tokens_to_ids(token) for token in others]
        return (self.stop_ids & frozenset(ids)) | {self._end_id}

    def _check_bridge(self) -> None:
        new = Message.user("probe text")
        if "probe text" not in self._bridge_text(Message.assistant("."), [new], ()):
            raise ConfigError(
                "the chat template leaves out a user message that follows a reply; give another "
                "template (model.template)"
            )
        if self._form == "native":
            return
        try:  # the results of one reply's calls are user messages here
            self._bridge_text(Message.assistant("."), [new, new], ())
        except ModelError:
            self._joins_users = True

    def _check_native(self) -> None:
        tools = [_PROBE_TOOL]
        if _PROBE_TOOL.name not in self._open_text([Message.user(".")], tools):
            raise ConfigError(_NO_TOOLS.format(what="does not show tools"))
        reply = Message.assistant("", _PROBE_CALL)
        try:
            result = Message.tool(_PROBE_CALL.id, TextPart("probe result"))
            bridge = self._bridge_text(reply, [result], tools)
            _, text = self._reply_text(reply, tools, anywhere=True)
        except ModelError as error:
            raise ConfigError(
                _NO_TOOLS.format(what=f"refuses a tool's result ({error})")
            ) from error
        if "probe result" not in bridge:
            raise ConfigError(_NO_TOOLS.format(what="leaves out the results of tools"))
        said = (text or "").removesuffix(self._end_text)
        self._calls_as_json = "<tool_call>" not in said
        if not _same_call(self._parse(said, tools)):
            raise ConfigError(_NO_TOOLS.format(what="writes tool calls in a form not read here"))


_DESCRIBE: dict[str, Callable[[Sequence[ToolSpec]], str]] = {
    "native": lambda tools: "",
    "text": lambda tools: describe_tools(tools, roomy=True),
    "fenced": FORMS["fenced"].render_tools,
}
_NO_TOOLS = (
    'the chat template {what}; set model.tool_form = "text" (or "fenced"), or give a template that '
    "knows tools (model.template)"
)
_MERGES = (
    "the tokenizer does not keep the end of turn {token!r} a token of its own beside other text, "
    "so turns cannot be put into tokens one by one; mark it as a special token of the tokenizer "
    "or give a template that ends a turn with one (model.template)"
)


@dataclass(frozen=True, slots=True)
class _Template:
    """The jinja template of a tokenizer, with its errors as ours."""

    tokenizer: Any
    text: str
    variables: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Any, given: str | None, variables: Mapping[str, Any]) -> _Template:
        text = given if given is not None else tokenizer.chat_template
        if isinstance(text, dict):
            text = text.get("tool_use") or text.get("default")
        if not text:
            raise ConfigError(
                "the tokenizer has no chat template; give one (model.template: jinja, as in "
                "the file chat_template.jinja of a chat model)"
            )
        # The date of the day would make each day's prompts another's; this is Llama's own default.
        dated = "strftime_now" in text and "date_string" in text
        fixed = {"date_string": _FIXED_DATE} if dated else {}
        return cls(tokenizer, text, {**fixed, **variables})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        prompt: bool,
    ) -> str:
        """Raises:
        ModelError: the template refuses the conversation.
        ConfigError: the template itself is broken.
        """
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=self.text,
                add_generation_prompt=prompt,
                tokenize=False,
                **self.variables,
            )
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template is broken at line {error.lineno}: {error}"
            ) from error
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template refuses the conversation: {error}") from error
        return str(text)


@dataclass(slots=True)
class _Cache:
    """Ids by key, the longest unused first to go once more than `limit` ids are held."""

    limit: int
    held: int = 0
    entries: OrderedDict[tuple[Any, ...], Ids] = field(default_factory=OrderedDict)

    def get(self, key: tuple[Any, ...], make: Callable[[], Ids]) -> Ids:
        found = self.entries.get(key)
        if found is not None:
            self.entries.move_to_end(key)
            return found
        ids = make()
        self.entries[key] = ids
        self.held += len(ids)
        while self.held > self.limit and len(self.entries) > 1:
            self.held -= len(self.entries.popitem(last=False)[1])
        return ids


def _joined(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """User messages in a row as one, for templates in which the roles must alternate."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"] == "user":
            joined[-1]["content"] += "\n" + message["content"]
        else:
            joined.append(dict(message))
    return joined


def _common(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _tools_key(tools: Sequence[ToolSpec]) -> str:
    return json.dumps([(tool.name, tool.description, tool.parameters) for tool in tools])


def _message_key(message: Message) -> tuple[Any, ...]:
    """All of a message that a rendering may depend on."""
    calls = tuple((call.id, call.name, call.arguments) for call in message.tool_calls)
    written = message.extra.get(hermes.AS_WRITTEN), message.extra.get(hermes.CONTENT_AS_SENT)
    text = "".join(part_text(part) for part in message.parts)
    return message.role.value, text, calls, message.tool_call_id, message.reasoning, *written


def _talk(text: str) -> Message:
    thought, said = hermes.split_reasoning(text)
    extra = {} if thought is None else {hermes.AS_WRITTEN: text}
    parts = (TextPart(said),) if said else ()
    return Message(Role.ASSISTANT, parts, reasoning=thought, extra=extra)


def _marker(messages: Sequence[Message]) -> str:
    """A word that stands in none of the messages."""
    texts = [message.text for message in messages]
    words = (f"stand-in-{number}" for number in count())
    return next(word for word in words if not any(word in text for text in texts))


def _stand_ins(marker: str, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Replies that say `marker` last, the likest first: some templates take one call at most."""
    wire = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": _safe_name(call.name), "arguments": {"text": marker}},
        }
        for call in calls
    ]
    plain: dict[str, Any] = {"role": "assistant", "content": marker}
    shorter = [wire, wire[:1]] if len(wire) > 1 else [wire] if wire else []
    return [*({**plain, "tool_calls": some} for some in shorter), plain]


def _safe_name(name: str) -> str:
    return _NAME.sub("_", name)[:64] or "unnamed"


def _native_message(message: Message, call_names: Mapping[str, str]) -> dict[str, Any]:
    text = "".join(part_text(part) for part in message.parts)
    wire: dict[str, Any] = {"role": message.role.value, "content": text}
    if message.role is Role.TOOL:
        called = message.tool_call_id or ""
        wire |= {"tool_call_id": called, "name": _safe_name(call_names.get(called, ""))}
    if message.role is not Role.ASSISTANT:
        return wire
    if message.reasoning:
        wire["reasoning_content"] = message.reasoning
    if message.tool_calls:
        wire["tool_calls"] = [_native_call(call) for call in message.tool_calls]
    return wire


def _native_call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        arguments = {"malformed_arguments": call.arguments}
    function = {"name": _safe_name(call.name), "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


# Reading.


def _no_id() -> str:
    return ""


def _parse_json_calls(text: str) -> Message:
    """A message in Llama 3's form: the reply is a JSON object of `name` and `parameters`.

    Several objects may follow each other, by `;` or white space. A reply that begins like such
    an object and is none is a malformed call; text after the last object stays text.
    """
    thought, rest = hermes.split_reasoning(text)
    rest = rest.strip().removeprefix(_PYTHON_TAG).lstrip()
    calls: list[ToolCall] = []
    while rest.startswith("{"):
        value, end = _decode(rest)
        call = _json_call(value)
        if call is None and '"name"' not in rest[:end]:
            break
        calls.append(call or _malformed(rest[:end]))
        rest = rest[end:].lstrip(" \t\r\n;")
    if not calls and thought is None:
        return Message.assistant(text)
    said = Message.assistant(rest.strip(), *calls, reasoning=thought)
    return replace(said, extra={hermes.AS_WRITTEN: text})


def _decode(text: str) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None, len(text)


def _json_call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    if not value.keys() <= {"name", "parameters", "arguments", "type", "id"}:
        return None
    arguments = value.get("parameters", value.get("arguments", {}))
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall("", value["name"], raw)


def _malformed(raw: str) -> ToolCall:
    found = re.search(r'"name"\s*:\s*"([A-Za-z0-9_.-]{1,64})"', raw)
    return ToolCall("", found.group(1) if found else hermes.MALFORMED_NAME, raw)


def _same_call(message: Message) -> bool:
    """Whether the probe's call came back from its own rendering."""
    if len(message.tool_calls) != 1 or message.tool_calls[0].name != _PROBE_CALL.name:
        return False
    try:
        return bool(
            json.loads(message.tool_calls[0].arguments) == json.loads(_PROBE_CALL.arguments)
        )
    except ValueError:
        return False
