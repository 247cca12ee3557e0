"""The rollout: one loop for users' tasks, benchmark items, served requests and training.

It knows a model, a sandbox and tools only by their contracts, and whoever watches only as a
sink of events. Messages are only ever appended, so that a server's prefix cache always hits.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import anyio

from sandlot.agent.budget import Budget, billed_tokens
from sandlot.agent.calls import (
    NOT_RUN,
    carry_out,
    raw_arguments,
    same_observation,
    sendable,
)
from sandlot.agent.control import Control
from sandlot.agent.files import collect_outputs, lay_out, upload_inputs
from sandlot.agent.prompts import Profile, first_messages, load_profile
from sandlot.core.codec import to_json
from sandlot.core.errors import (
    ContextOverflow,
    ModelError,
    SandboxDied,
    SandboxError,
)
from sandlot.core.events import (
    LIVE_ONLY,
    EgressSeen,
    Event,
    EventSink,
    FilesCollected,
    MessageAdded,
    ModelCalled,
    ModelDelta,
    ReplyReceived,
    RolloutContinued,
    RolloutStarted,
    RolloutStopped,
    SandboxMeasured,
    SandboxStarted,
    ToolFinished,
    ToolStarted,
    fold,
)
from sandlot.core.types import (
    Message,
    Role,
    SandboxMeter,
    StopReason,
    Task,
    TextPart,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)
from sandlot.models.base import Completion, Model, OnDelta, Sampling, ToolSpec
from sandlot.sandbox.base import Sandbox
from sandlot.tools import default_tools
from sandlot.tools.base import Observation, Tool, ToolContext

_SHELTER_S = 15.0  # how long a cancelled rollout may take to bring its files out
_NO_CALL = (
    "Your reply called no tool, so nothing happened. Go on with a tool call; when the answer is "
    "in place, call submit."
)
_CUT = "Your reply was cut off at its length limit. Be brief, and go on with a tool call."
_FILES_GONE = (
    "(The computer is a fresh one: files, packages and processes from before are gone, except "
    "the given input files{kept}.)"
)


_ENDED_BY_US = (StopReason.SANDBOX_DIED, StopReason.MODEL_ERROR, StopReason.CANCELLED)
MakeSandbox = Callable[[], Sandbox | Awaitable[Sandbox]]


def ignore(event: Event, /) -> None:
    """The sink of a rollout that nobody watches."""


@dataclass(frozen=True, slots=True)
class _Stop:
    reason: StopReason
    detail: str = ""


async def run_rollout(
    task: Task,
    *,
    model: Model,
    sandbox: Sandbox | None = None,
    tools: Sequence[Tool] | None = None,
    client_tools: Sequence[ToolSpec] = (),
    profile: Profile | None = None,
    budget: Budget | None = None,
    sampling: Sampling | None = None,
    sink: EventSink = ignore,
    control: Control | None = None,
    output_dir: Path | None = None,
    history: Trajectory | None = None,
    continuation: Sequence[Message] = (),
    replay: bool = False,
    keep_state: Path | None = None,
    restore_state: Path | None = None,
    spare: MakeSandbox | None = None,
    stream: bool = False,
    rollout_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trajectory:
    """Let a model work on a task until exactly one stop reason holds, and return the record.

    Args:
        sandbox: not yet started; the rollout starts and closes it. None: the model answers from
            its head in one reply.
        client_tools: tools that the caller carries out: a call of one ends the rollout.
        output_dir: host folder for the declared outputs, collected whatever the stop reason.
        history: a recorded trajectory that goes on, with the `continuation` messages, or, with
            `replay`, from where it was interrupted after its commands were run again.
        spare: builds an unstarted sandbox for a replay that must start over; without it that
            goes on in the sandbox in which the commands were repeated.
        keep_state, restore_state: host files for the sandbox's state after and before.

    Raises:
        SandboxUnavailable, PolicyNotEnforceable: before anything was done.
        InputError: the task's input files cannot be uploaded.
        asyncio.CancelledError: after everything was collected, recorded and closed.
    """
    profile = profile or load_profile("llm" if sandbox is None else "general")
    offered = () if sandbox is None else default_tools() if tools is None else tuple(tools)
    rollout = _Rollout(
        task=task,
        model=model,
        sandbox=sandbox,
        tools={tool.spec.name: tool for tool in offered},
        client_tools=tuple(client_tools),
        profile=profile,
        budget=budget or Budget(max_turns=profile.max_turns),
        sampling=_sampling(sampling, profile),
        sink=sink,
        control=control or Control(),
        output_dir=output_dir,
        history=history,
        continuation=tuple(continuation),
        replay=replay,
        keep_state=keep_state,
        restore_state=restore_state,
        spare=spare,
        stream=stream,
        rollout_id=rollout_id or uuid.uuid4().hex[:12],
        metadata=metadata or {},
        clock=clock,
    )
    return await rollout.play()


def _sampling(sampling: Sampling | None, profile: Profile) -> Sampling:
    """The caller's settings; the profile fills in what the caller left open."""
    given = sampling or Sampling()
    return replace(
        given,
        temperature=profile.temperature if given.temperature is None else given.temperature,
        reply_tokens=profile.reply_tokens if given.reply_tokens is None else given.reply_tokens,
    )


@dataclass(slots=True)
class _Rollout:
    task: Task
    model: Model
    sandbox: Sandbox | None
    tools: Mapping[str, Tool]
    client_tools: tuple[ToolSpec, ...]
    profile: Profile
    budget: Budget
    sampling: Sampling
    sink: EventSink
    control: Control
    output_dir: Path | None
    history: Trajectory | None
    continuation: tuple[Message, ...]
    replay: bool
    keep_state: Path | None
    restore_state: Path | None
    spare: MakeSandbox | None
    stream: bool
    rollout_id: str
    metadata: Mapping[str, Any]
    clock: Callable[[], float]
    events: list[Event] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    turns: int = 0  # index of the next turn
    turns_used: int = 0
    tokens_used: int = 0
    reminded: int = 0
    waited_s: float = 0.0
    started: float = 0.0
    last_text: str = ""
    stop: _Stop | None = None
    collected: bool = False

    async def play(self) -> Trajectory:
        self.started = self.clock()
        self._adopt_history()
        async with AsyncExitStack() as stack:
            try:
                await self._finish(await self._work(stack))
            except asyncio.CancelledError:
                with anyio.move_on_after(_SHELTER_S, shield=True):
                    await self._finish(_Stop(StopReason.CANCELLED, "cancelled from outside"))
                if not self.collected:
                    self.stop = _Stop(StopReason.CANCELLED, "cancelled before its files came out")
                self._say_stopped()
                raise
        return fold(self.events, self.history)

    async def _work(self, stack: AsyncExitStack) -> _Stop:
        if self.history is None:
            self._say_started()
        try:
            if self.sandbox is not None:
                await self._start_sandbox(self.sandbox, stack)
            pending = await self._open_conversation(stack)
            return await self._converse(pending)
        except SandboxDied as exc:
            return _Stop(StopReason.SANDBOX_DIED, str(exc))

    # The loop.

    async def _converse(self, pending: Turn | None) -> _Stop:
        """Turns until something ends the rollout; `pending` is a turn not wholly answered yet."""
        if pending is not None and (stop := await self._settle(pending)):
            return stop
        while True:
            if stop := await self._between_steps() or self._over_budget():
                return stop
            for text in self.control.take_messages():
                self._emit(MessageAdded(Message.user(text), "control"))
            try:
                turn = await self._ask()
            except ContextOverflow as exc:
                return _Stop(StopReason.CONTEXT_FULL, str(exc))
            except ModelError as exc:
                return _Stop(StopReason.MODEL_ERROR, str(exc))
            if stop := await self._settle(turn) or self._spend(turn):
                return stop

    async def _ask(self) -> Turn:
        """One reply, recorded as a turn."""
        index = self.turns
        self._emit(ModelCalled(index))
        specs = (*(tool.spec for tool in self.tools.values()), *self.client_tools)
        began = self.clock()
        completion = await self.model.complete(
            self.messages, specs, self.sampling, self._on_delta(index)
        )
        took = self.clock() - began
        self.waited_s += completion.waiting_s
        turn = _turn(index, completion, max(took - completion.waiting_s, 0.0))
        self.turns += 1
        self.turns_used += 1
        self._emit(ReplyReceived(turn))
        return turn

    async def _settle(self, turn: Turn) -> _Stop | None:
        """Answer every call of a reply that has no answer yet, in order, or remind."""
        unoffered = self.sandbox is None and not self.client_tools  # such calls can only be talk
        if not turn.reply.tool_calls or unoffered:
            return self._answered(turn) or self._remind(turn)
        self.reminded = 0
        theirs = {spec.name for spec in self.client_tools}
        calls = [call for call in turn.reply.tool_calls if call.name not in theirs]
        submitted, stop = _is_submitted(turn), None
        for number, call in enumerate(calls):
            if number < len(turn.tool_results):
                continue
            stop = stop or await self._between_steps()
            why = "already submitted" if submitted else stop.reason.value if stop else None
            observation = await self._answer(turn, call, why, last=number == len(calls) - 1)
            submitted = submitted or observation.submitted
        if submitted:
            return _Stop(StopReason.SUBMITTED)
        if len(calls) < len(turn.reply.tool_calls):
            return _Stop(StopReason.CLIENT_TOOL_CALL)
        return stop

    async def _answer(
        self, turn: Turn, call: ToolCall, why_not: str | None, *, last: bool
    ) -> Observation:
        self._emit(ToolStarted(turn.index, call))
        began = self.clock()
        if why_not is not None:
            observation = Observation.of(f"{NOT_RUN}{why_not}", ok=False)
        else:
            observation = await self._carry_out(turn.reply, call)
        parts = observation.parts
        if last and not observation.submitted and why_not is None:
            parts = (*parts, TextPart(f"\n{self._turns_left()}"))
        message = Message.tool(call.id, *parts)
        took = self.clock() - began
        result = ToolResult(call, message, observation.ok, took, observation.command)
        self._emit(ToolFinished(turn.index, result))
        self._report_egress(turn.index)
        return observation

    async def _carry_out(self, reply: Message, call: ToolCall) -> Observation:
        assert self.sandbox is not None
        context = ToolContext(self.sandbox, self.profile.observation_chars, self.model.sees_images)
        return await carry_out(call, raw_arguments(reply, call), self.tools, context)

    def _answered(self, turn: Turn) -> _Stop | None:
        """A reply without a call is the answer where no tools are or in a conversation."""
        cut = turn.finish_reason == "length"
        self.last_text = turn.reply.text
        if self.sandbox is None:
            return _Stop(StopReason.ANSWERED, "the reply was cut off at its limit" if cut else "")
        if self.profile.conversation and turn.reply.text.strip() and not cut:
            return _Stop(StopReason.ANSWERED)
        return None

    def _remind(self, turn: Turn) -> _Stop | None:
        if self.reminded >= self.budget.reminders:
            detail = f"{self.reminded + 1} replies in a row called no tool"
            return _Stop(StopReason.NO_TOOL_CALL, detail)
        self.reminded += 1
        text = _CUT if turn.finish_reason == "length" else _NO_CALL
        self._emit(MessageAdded(Message.user(f"{text} {self._turns_left()}"), "reminder"))
        return None

    def _turns_left(self) -> str:
        return f"[turns left: {max(self.budget.max_turns - self.turns_used, 0)}]"

    # What ends it.

    async def _between_steps(self) -> _Stop | None:
        if self.control.paused:
            began = self.clock()
            await self.control.wait_while_paused()
            self.waited_s += self.clock() - began
        if self.control.stop_reason is not None:
            return _Stop(StopReason.CANCELLED, self.control.stop_reason)
        limit = self.budget.time_limit_s
        worked = self.clock() - self.started - self.waited_s
        if limit is not None and worked >= limit:
            return _Stop(StopReason.TIME_LIMIT, f"{worked:.0f} s of work; the limit is {limit:g} s")
        return None

    def _over_budget(self) -> _Stop | None:
        if self.turns_used >= self.budget.max_turns:
            return _Stop(StopReason.MAX_TURNS, f"{self.turns_used} turns")
        limit = self.budget.max_tokens
        if limit is not None and self.tokens_used >= limit:
            detail = f"{self.tokens_used:,} tokens used; the limit is {limit:,}"
            return _Stop(StopReason.TOKEN_BUDGET, detail)
        return None

    def _spend(self, turn: Turn) -> _Stop | None:
        """Count a turn's tokens; None unless the context is full or the count is not known."""
        billed = billed_tokens(turn.usage)
        if billed is None and self.budget.max_tokens is not None:
            return _Stop(
                StopReason.TOKEN_BUDGET,
                f"turn {turn.index}: the server reports no token counts, so a limit of "
                f"{self.budget.max_tokens:,} tokens cannot be kept; run without it",
            )
        self.tokens_used += billed or 0
        holds = self.profile.context_tokens
        if holds is None or billed is None or billed < holds:
            return None
        return _Stop(
            StopReason.CONTEXT_FULL,
            f"turn {turn.index}: prompt {turn.usage.prompt_tokens or 0:,} + reply "
            f"{turn.usage.completion_tokens or 0:,} = {billed:,} tokens; "
            f"the profile {self.profile.name!r} holds {holds:,}",
        )

    # Before the first turn.

    def _adopt_history(self) -> None:
        if self.history is None:
            return
        self.messages.extend(self.history.messages)
        self.turns = len(self.history.turns)

    async def _start_sandbox(self, sandbox: Sandbox, stack: AsyncExitStack) -> None:
        began = self.clock()
        await stack.enter_async_context(sandbox)
        enforcement = tuple(to_json(item) for item in sandbox.enforcement)
        self._emit(SandboxStarted(sandbox.backend, self.clock() - began, enforcement))
        if self.restore_state is not None:
            await sandbox.restore(self.restore_state)
        await lay_out(sandbox, self.profile, self.restore_state is None)
        await upload_inputs(sandbox, self.task, self.profile.input_dir)
        if self._earlier_outputs():
            assert self.output_dir is not None
            await sandbox.upload(self.output_dir, self.profile.output_dir)

    def _earlier_outputs(self) -> bool:
        """Whether this goes on in a fresh sandbox from outputs that were collected before."""
        fresh = self.history is not None and not self.replay and self.restore_state is None
        folder = self.output_dir
        return fresh and folder is not None and folder.is_dir() and any(folder.iterdir())

    async def _open_conversation(self, stack: AsyncExitStack) -> Turn | None:
        """Bring the messages to where the next turn begins; returns a turn left half answered."""
        if self.history is None:
            self._add_prompts()
            return None
        if self.replay:
            return await self._run_again(self.history, stack)
        self._emit(RolloutContinued("continue"))
        self._close_open_calls(self.history)
        self._add_continuation()
        return None

    def _add_prompts(self) -> None:
        for message in first_messages(self.profile, self.task):
            self._emit(MessageAdded(message, "prompt"))

    def _close_open_calls(self, history: Trajectory) -> None:
        """A call that nobody answered would make every later request invalid."""
        answered = {message.tool_call_id for message in (*history.messages, *self.continuation)}
        for turn in history.turns[-1:]:
            for call in turn.reply.tool_calls:
                if call.id not in answered:
                    message = Message.tool(call.id, TextPart(f"{NOT_RUN}interrupted"))
                    self._emit(ToolFinished(turn.index, ToolResult(call, message, False, 0.0)))

    def _add_continuation(self) -> None:
        fresh = self.sandbox is not None and self.restore_state is None
        notice = _FILES_GONE.format(
            kept=" and your output files" if self._earlier_outputs() else ""
        )
        for message in self.continuation:
            if fresh and message.role is Role.USER:
                message = replace(message, parts=(TextPart(notice + "\n\n"), *message.parts))
                fresh = False
            self._emit(MessageAdded(message, "continuation"))

    async def _run_again(self, history: Trajectory, stack: AsyncExitStack) -> Turn | None:
        """Repeat the recorded commands; go on if they tell the same, else start over."""
        difference = await self._difference(history)
        if difference is not None:
            await self._start_over(difference, stack)
            return None
        self._emit(RolloutContinued("resume", f"{len(history.turns)} turns repeated"))
        self.turns_used = len(history.turns)
        self.tokens_used = sum(billed_tokens(turn.usage) or 0 for turn in history.turns)
        self.waited_s -= history.duration_s or 0.0
        last = history.turns[-1]
        self.reminded = _trailing_reminders(history)
        return last if history.messages[-1].role in (Role.ASSISTANT, Role.TOOL) else None

    async def _start_over(self, why: str, stack: AsyncExitStack) -> None:
        """Forget what was recorded; the repeated commands left their traces in the sandbox."""
        self._emit(RolloutContinued("restart", why))
        if self.sandbox is not None and self.spare is not None:
            await self.sandbox.close()
            made = self.spare()
            self.sandbox = await made if inspect.isawaitable(made) else made
            await self._start_sandbox(self.sandbox, stack)
        later = self.messages[len(first_messages(self.profile, self.task)) :]
        said_later = [message for message in later if _is_from_a_person(message)]
        self.messages.clear()
        self.turns = 0
        self._add_prompts()
        for message in said_later:
            self._emit(MessageAdded(message, "continuation"))

    async def _difference(self, history: Trajectory) -> str | None:
        """The first recorded observation that does not come again, in words."""
        if not history.turns:
            return "no reply was recorded"
        for turn in history.turns:
            for result in turn.tool_results:
                if result.message.text.startswith(NOT_RUN):
                    continue
                again = await self._carry_out(turn.reply, result.call)
                if not same_observation(result, again):
                    return f"turn {turn.index}: {result.call.name} gave something else"
        return None

    # After the last turn.

    async def _finish(self, stop: _Stop) -> None:
        """Bring the outputs out and say why it ended. May be called again after a cancellation."""
        self.stop = self.stop or stop
        if not self.collected:
            found = await self._collect()
            self.collected = True
            self._emit(found)
            await self._measure()
        if self.keep_state is not None and self.sandbox is not None:
            try:
                await self.sandbox.snapshot(self.keep_state)
            except SandboxError as exc:
                self.stop = replace(
                    self.stop, detail=f"{self.stop.detail} (state not kept: {exc})".strip()
                )
        self._say_stopped()

    async def _measure(self) -> None:
        if self.sandbox is None:
            return
        with suppress(SandboxError):  # a sandbox that died has nothing left to read
            used = await self.sandbox.stats()
            meter = SandboxMeter(
                used.memory_peak_bytes, used.cpu_s, used.throttled_s, used.disk_bytes
            )
            self._emit(SandboxMeasured(meter))

    async def _collect(self) -> FilesCollected:
        if self.sandbox is None:
            return FilesCollected((), answer=self.last_text or None)
        found, broken = await collect_outputs(self.sandbox, self.profile, self.output_dir)
        finished = self.stop is not None and self.stop.reason not in _ENDED_BY_US
        if isinstance(broken, SandboxDied) and finished:
            # What the model left is unknown: that is no end of its own making.
            self.stop = _Stop(StopReason.SANDBOX_DIED, f"at the collection of its files: {broken}")
        if found.answer is None and self.profile.conversation and self.last_text:
            found = replace(found, answer=self.last_text)
        return found

    def _say_started(self) -> None:
        mode: Literal["llm", "sandbox"] = "llm" if self.sandbox is None else "sandbox"
        name = self.model.name
        self._emit(RolloutStarted(self.rollout_id, self.task, mode, name, self.metadata))

    def _say_stopped(self) -> None:
        if self.stop is None or any(isinstance(event, RolloutStopped) for event in self.events):
            return
        self._emit(RolloutStopped(self.stop.reason, self.stop.detail, self.clock() - self.started))

    # Telling.

    def _emit(self, event: Event) -> None:
        match event:
            case MessageAdded(message):
                self.messages.append(message)
            case ReplyReceived(turn):
                self.messages.append(turn.reply)
            case ToolFinished(_, result):
                self.messages.append(result.message)
            case _:
                pass
        if not isinstance(event, LIVE_ONLY):
            self.events.append(event)
        self.sink(event)

    def _report_egress(self, turn: int) -> None:
        if self.sandbox is not None:
            for record in self.sandbox.egress():
                self._emit(EgressSeen(replace(record, turn=turn)))

    def _on_delta(self, turn: int) -> OnDelta | None:
        if not self.stream:
            return None
        return lambda text, reasoning: self._emit(ModelDelta(turn, text, reasoning))


def _turn(index: int, completion: Completion, model_s: float) -> Turn:
    return Turn(
        index=index,
        reply=sendable(completion.message, index),
        usage=completion.usage,
        finish_reason=completion.finish_reason,
        model_s=model_s,
        waiting_s=completion.waiting_s,
        tokens=completion.tokens,
    )


def _is_from_a_person(message: Message) -> bool:
    """A later user message that is no reminder of ours: it must outlive a new start."""
    return message.role is Role.USER and not message.text.startswith((_NO_CALL, _CUT))


def _is_submitted(turn: Turn) -> bool:
    return any(result.ok and result.call.name == "submit" for result in turn.tool_results)


def _trailing_reminders(history: Trajectory) -> int:
    """How many reminders in a row end the record."""
    count = 0
    for turn in reversed(history.turns):
        if turn.reply.tool_calls:
            break
        count += 1
    return count - (1 if count and history.messages[-1].role is Role.ASSISTANT else 0)
