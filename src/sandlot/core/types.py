"""The nouns that cross every seam. Frozen, and writable to JSON and back by `core.codec`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

JsonObject = dict[str, Any]

ToolCallForm = Literal["auto", "native", "text", "fenced"]
"""How tools are offered: by the server's API, or as text in tags or fenced blocks."""

TOOL_CALLS: tuple[str, ...] = get_args(ToolCallForm)


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture's encoded bytes, for a model that can see."""

    data: bytes
    media_type: str
    type: Literal["image"] = "image"


@dataclass(frozen=True, slots=True)
class FilePart:
    """A reference to a file inside the sandbox; its bytes are not part of the message."""

    path: str
    media_type: str | None = None
    type: Literal["file"] = "file"


Part = TextPart | ImagePart | FilePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as the model wrote it: `arguments` is its raw text and may be invalid JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    `extra` holds the provider's own fields of a reply (reasoning text or blocks, signatures);
    a model adapter sends them back as its provider wants and nobody else reads them.
    """

    role: Role
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @classmethod
    def system(cls, text: str) -> Message:
        return cls(Role.SYSTEM, (TextPart(text),))

    @classmethod
    def user(cls, text: str) -> Message:
        return cls(Role.USER, (TextPart(text),))

    @classmethod
    def assistant(cls, text: str, *tool_calls: ToolCall, reasoning: str | None = None) -> Message:
        parts = (TextPart(text),) if text else ()
        return cls(Role.ASSISTANT, parts, tool_calls, reasoning=reasoning)

    @classmethod
    def tool(cls, call_id: str, *parts: Part) -> Message:
        return cls(Role.TOOL, parts, tool_call_id=call_id)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server reported them; `None` means it did not say, never 0."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One problem.

    `input_files` maps a path relative to the profile's input folder to its bytes;
    `input_dir` names a host folder to upload instead (paths of the host, never shown to a model).
    `target` is the truth and never enters the sandbox.
    """

    id: str
    prompt: str
    input_files: Mapping[str, bytes] = field(default_factory=dict)
    input_dir: str | None = None
    target: Any = None
    domain: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class StopReason(StrEnum):
    """Why a rollout ended: exactly one for each rollout."""

    SUBMITTED = "submitted"
    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    TOKEN_BUDGET = "token_budget"
    CONTEXT_FULL = "context_full"
    TIME_LIMIT = "time_limit"
    NO_TOOL_CALL = "no_tool_call"
    CLIENT_TOOL_CALL = "client_tool_call"
    MODEL_ERROR = "model_error"
    SANDBOX_DIED = "sandbox_died"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class CommandMeter:
    """What one command did, as the sandbox measured it. Times in seconds, sizes in bytes.

    Peak, CPU and throttling are None where the sandbox has no such meter; `memory_kills` counts
    processes that were killed at the memory limit.
    """

    exit_code: int | None
    duration_s: float
    timed_out: bool = False
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    truncated: bool = False
    shell_restarted: bool = False
    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    throttled_s: float | None = None
    memory_kills: int = 0


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The answer to one tool call. `ok` is False where the call itself was unusable."""

    call: ToolCall
    message: Message
    ok: bool
    duration_s: float
    command: CommandMeter | None = None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """Token ids of one reply, recorded where they were sampled (training and audits)."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One model reply and the results of its tool calls, in the order of the calls."""

    index: int
    reply: Message
    usage: Usage
    finish_reason: str
    model_s: float
    waiting_s: float
    tool_results: tuple[ToolResult, ...] = ()
    tokens: TokenRecord | None = None


@dataclass(frozen=True, slots=True)
class CollectedFile:
    """A file copied out of the sandbox. `path` is relative to the folder it was collected into."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that was not copied out, and why (a device, a limit, a link that leads nowhere)."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class EgressRecord:
    """One request through the egress proxy. `verdict` is `allowed` or the reason of the refusal."""

    host: str
    port: int
    verdict: str
    bytes_sent: int = 0
    bytes_received: int = 0
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class SandboxMeter:
    """What a sandbox used over its life; None where nothing there counts it. Bytes, seconds."""

    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    throttled_s: float | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The record of one rollout, as folded from its events (`core.events.fold`).

    `enforcement` says how each promise of the policy was kept (fields of `Enforcement`).
    """

    id: str
    task: Task
    mode: Literal["llm", "sandbox"]
    model: str
    messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
    stop_reason: StopReason | None
    stop_detail: str = ""
    answer: str | None = None
    files: tuple[CollectedFile, ...] = ()
    skipped_files: tuple[SkippedFile, ...] = ()
    egress: tuple[EgressRecord, ...] = ()
    backend: str | None = None
    enforcement: tuple[Mapping[str, Any], ...] = ()
    meter: SandboxMeter | None = None
    duration_s: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One scorer's verdict on one trajectory.

    `value` is in [0, 1], or None (missing) with the reason in `missing`: a failure of ours is
    never a wrong answer of the model's.
    """

    task_id: str
    scorer: str
    scorer_version: str
    value: float | None
    missing: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
