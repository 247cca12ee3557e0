"""What happens in a rollout, as frozen events; a trajectory is the fold over them.

Events marked *live* are for whoever watches and are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

from sandlot.core.codec import from_json, to_json
from sandlot.core.errors import RecordError
from sandlot.core.types import (
    CollectedFile,
    EgressRecord,
    JsonObject,
    Message,
    SandboxMeter,
    SkippedFile,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)


@dataclass(frozen=True, slots=True)
class RolloutStarted:
    """The first event of every record. `metadata` is the caller's (seed, repeat, group, arm)."""

    kind: ClassVar[str] = "rollout_started"
    rollout_id: str
    task: Task
    mode: Literal["llm", "sandbox"]
    model: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxStarted:
    """`enforcement` is the list of promises with the means that hold them on this machine."""

    kind: ClassVar[str] = "sandbox_started"
    backend: str
    duration_s: float
    enforcement: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class MessageAdded:
    """A message that no model wrote: system, user, a reminder, or one from the control channel.

    `origin` is `prompt`, `reminder`, `control` or `continuation`.
    """

    kind: ClassVar[str] = "message_added"
    message: Message
    origin: str = "prompt"


@dataclass(frozen=True, slots=True)
class ModelCalled:
    """Live: a request went out."""

    kind: ClassVar[str] = "model_called"
    turn: int


@dataclass(frozen=True, slots=True)
class ModelDelta:
    """Live: a piece of a streamed reply."""

    kind: ClassVar[str] = "model_delta"
    turn: int
    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class ReplyReceived:
    """The model's reply of one turn; its tool results follow as `ToolFinished`."""

    kind: ClassVar[str] = "reply_received"
    turn: Turn


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """Live: a tool call begins."""

    kind: ClassVar[str] = "tool_started"
    turn: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolFinished:
    kind: ClassVar[str] = "tool_finished"
    turn: int
    result: ToolResult


@dataclass(frozen=True, slots=True)
class EgressSeen:
    kind: ClassVar[str] = "egress_seen"
    record: EgressRecord


@dataclass(frozen=True, slots=True)
class SandboxMeasured:
    """What the sandbox had used when the rollout ended."""

    kind: ClassVar[str] = "sandbox_measured"
    meter: SandboxMeter


@dataclass(frozen=True, slots=True)
class FilesCollected:
    kind: ClassVar[str] = "files_collected"
    files: tuple[CollectedFile, ...]
    skipped: tuple[SkippedFile, ...] = ()
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class RolloutStopped:
    """The last event of a finished rollout. A later `RolloutContinued` reopens it."""

    kind: ClassVar[str] = "rollout_stopped"
    stop_reason: StopReason
    detail: str = ""
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class RolloutContinued:
    """A stopped or interrupted rollout goes on.

    `how` is `continue` (new messages follow) or `resume` (the recorded commands were executed
    again) or `restart` (they gave something else; what was recorded before does not count).
    """

    kind: ClassVar[str] = "rollout_continued"
    how: Literal["continue", "resume", "restart"]
    detail: str = ""


Event = (
    RolloutStarted
    | SandboxStarted
    | MessageAdded
    | ModelCalled
    | ModelDelta
    | ReplyReceived
    | ToolStarted
    | ToolFinished
    | EgressSeen
    | SandboxMeasured
    | FilesCollected
    | RolloutStopped
    | RolloutContinued
)

LIVE_ONLY = (ModelCalled, ModelDelta, ToolStarted)
_KINDS: dict[str, type] = {
    cls.kind: cls
    for cls in (
        RolloutStarted,
        SandboxStarted,
        MessageAdded,
        ModelCalled,
        ModelDelta,
        ReplyReceived,
        ToolStarted,
        ToolFinished,
        EgressSeen,
        SandboxMeasured,
        FilesCollected,
        RolloutStopped,
        RolloutContinued,
    )
}


class EventSink(Protocol):
    """Whatever listens to a rollout: a recorder, a terminal view, a live viewer."""

    def __call__(self, event: Event, /) -> None: ...


def encode_event(event: Event, at: float) -> JsonObject:
    """The JSON record of an event; `at` is seconds since the Unix epoch."""
    return {"event": event.kind, "at": round(at, 6), **to_json(event)}


def decode_event(record: Mapping[str, Any]) -> Event | None:
    """The event of a record, or None for a kind that this version does not know."""
    cls = _KINDS.get(str(record.get("event")))
    if cls is None:
        return None
    event: Event = from_json(cls, record)
    return event


def fold(events: Iterable[Event], start: Trajectory | None = None) -> Trajectory:
    """Build the trajectory that the events tell, on top of `start` where one goes on.

    Raises:
        RecordError: without `start`, the events do not begin with `RolloutStarted`.
    """
    trajectory = start
    for event in events:
        if isinstance(event, RolloutStarted):
            trajectory = _begin(event)
        elif trajectory is None:
            raise RecordError("a trajectory must begin with a rollout_started event")
        else:
            trajectory = _step(trajectory, event)
    if trajectory is None:
        raise RecordError("the trajectory holds no events")
    return trajectory


def _begin(event: RolloutStarted) -> Trajectory:
    return Trajectory(
        id=event.rollout_id,
        task=event.task,
        mode=event.mode,
        model=event.model,
        messages=(),
        turns=(),
        stop_reason=None,
        metadata=event.metadata,
    )


def _step(trajectory: Trajectory, event: Event) -> Trajectory:
    match event:
        case MessageAdded(message):
            return replace(trajectory, messages=(*trajectory.messages, message))
        case ReplyReceived(turn):
            messages = (*trajectory.messages, turn.reply)
            return replace(trajectory, messages=messages, turns=(*trajectory.turns, turn))
        case ToolFinished(_, result):
            return _add_result(trajectory, result)
        case SandboxStarted(backend, _, enforcement):
            return replace(trajectory, backend=backend, enforcement=enforcement)
        case SandboxMeasured(meter):
            return replace(trajectory, meter=meter)
        case EgressSeen(record):
            return replace(trajectory, egress=(*trajectory.egress, record))
        case FilesCollected(files, skipped, answer):
            return replace(trajectory, files=files, skipped_files=skipped, answer=answer)
        case RolloutStopped(reason, detail, duration_s):
            return replace(
                trajectory, stop_reason=reason, stop_detail=detail, duration_s=duration_s
            )
        case RolloutContinued("restart"):
            return replace(_forgotten(trajectory), messages=(), turns=(), egress=())
        case RolloutContinued():
            return replace(trajectory, stop_reason=None, stop_detail="", duration_s=None)
        case _:
            return trajectory


def unfold(trajectory: Trajectory) -> Iterator[Event]:
    """Events that `fold` makes the same trajectory of; how long the sandbox took to start is lost.

    Raises:
        RecordError: its messages do not hold the replies and results of its turns.
    """
    yield RolloutStarted(
        trajectory.id, trajectory.task, trajectory.mode, trajectory.model, trajectory.metadata
    )
    if trajectory.backend is not None:
        yield SandboxStarted(trajectory.backend, 0.0, trajectory.enforcement)
    yield from _conversation(trajectory)
    yield from map(EgressSeen, trajectory.egress)
    if trajectory.meter is not None:
        yield SandboxMeasured(trajectory.meter)
    if trajectory.files or trajectory.skipped_files or trajectory.answer is not None:
        yield FilesCollected(trajectory.files, trajectory.skipped_files, trajectory.answer)
    if trajectory.stop_reason is not None:
        yield RolloutStopped(trajectory.stop_reason, trajectory.stop_detail, trajectory.duration_s)


def _conversation(trajectory: Trajectory) -> Iterator[Event]:
    messages = list(trajectory.messages)
    origin = "prompt"
    for turn in trajectory.turns:
        try:
            here = messages.index(turn.reply)
        except ValueError:
            raise RecordError(f"the reply of turn {turn.index} is not among the messages") from None
        yield from (MessageAdded(message, origin) for message in messages[:here])
        yield ReplyReceived(replace(turn, tool_results=()))
        yield from (ToolFinished(turn.index, result) for result in turn.tool_results)
        results = [result.message for result in turn.tool_results]
        after = here + 1 + len(results)
        if messages[here + 1 : after] != results:
            raise RecordError(f"the results of turn {turn.index} do not follow its reply")
        messages, origin = messages[after:], "reminder"
    yield from (MessageAdded(message, origin) for message in messages)


def _forgotten(trajectory: Trajectory) -> Trajectory:
    """Without what the end of a rollout tells: it does not count once it starts over."""
    return replace(
        trajectory,
        stop_reason=None,
        stop_detail="",
        answer=None,
        files=(),
        skipped_files=(),
        duration_s=None,
    )


def _add_result(trajectory: Trajectory, result: ToolResult) -> Trajectory:
    if not trajectory.turns:
        raise RecordError("a tool_finished event comes before any reply")
    *earlier, last = trajectory.turns
    turn = replace(last, tool_results=(*last.tool_results, result))
    return replace(
        trajectory, messages=(*trajectory.messages, result.message), turns=(*earlier, turn)
    )
