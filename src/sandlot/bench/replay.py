"""Running a record's commands again, and branching off from it with another model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sandlot.agent.calls import NOT_RUN, carry_out, raw_arguments, same_observation
from sandlot.agent.files import lay_out, upload_inputs
from sandlot.agent.prompts import Profile, profile_names
from sandlot.api import check_input, open_computer, policy_of, relocated, settle_backend
from sandlot.bench.arms import ARMS, tools_of
from sandlot.bench.plan import BenchPlan, conditions_of
from sandlot.bench.records import Episode
from sandlot.bench.store import BenchDirectory
from sandlot.core.codec import from_json
from sandlot.core.errors import ConfigError, RecordError, SandboxDied
from sandlot.core.events import (
    MessageAdded,
    ReplyReceived,
    RolloutContinued,
    RolloutStarted,
    ToolFinished,
    decode_event,
)
from sandlot.core.jsonl import JsonlWriter, read_jsonl
from sandlot.core.store import RunDirectory
from sandlot.core.types import ImagePart, JsonObject, Part, TextPart, ToolResult, Trajectory, Turn
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.policy import Policy
from sandlot.settings import Settings
from sandlot.tasks.base import LoadedSet, TaskSet
from sandlot.tools import default_tools
from sandlot.tools.base import Observation, Tool, ToolContext


@dataclass(frozen=True, slots=True)
class Difference:
    """The first observation that did not come again. `call` counts from 0 within the turn."""

    turn: int
    call: int
    tool: str
    arguments: str
    recorded: str
    now: str

    def unified(self) -> str:
        """A unified diff from the recorded text to the new one."""
        lines = difflib.unified_diff(
            self.recorded.splitlines(), self.now.splitlines(), "recorded", "now", lineterm=""
        )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Replayed:
    """How far it went: `calls` were carried out again, `not_run` were not run in the record."""

    turns: int
    calls: int
    not_run: int
    difference: Difference | None


async def replay(
    trajectory: Trajectory,
    *,
    sandbox: Sandbox,
    tools: Sequence[Tool],
    profile: Profile,
    until: int | None = None,
    on_turn: Callable[[Turn], None] = lambda turn: None,
) -> Replayed:
    """Carry out the recorded calls in a sandbox that is not started yet, and close it.

    Stops at the first observation that is not the recorded one, or before turn `until`. The model
    is not asked, and pictures are shown as to a model that can see where the record has any.

    Raises:
        SandboxUnavailable, PolicyNotEnforceable: the sandbox cannot be started.
        InputError: the task's input files cannot be uploaded.
    """
    by_name = {tool.spec.name: tool for tool in tools}
    context = ToolContext(sandbox, profile.observation_chars, _saw_images(trajectory))
    turns = calls = not_run = 0
    async with sandbox:
        await lay_out(sandbox, profile, enter=True)
        await upload_inputs(sandbox, trajectory.task, profile.input_dir)
        for turn in trajectory.turns[:until]:
            on_turn(turn)
            for number, result in enumerate(turn.tool_results):
                if result.message.text.startswith(NOT_RUN):
                    not_run += 1
                    continue
                now = await _again(turn, result, by_name, context)
                calls += 1
                if not same_observation(result, now):
                    return Replayed(turns, calls, not_run, _difference(turn, number, now))
            turns += 1
    return Replayed(turns, calls, not_run, None)


async def _again(
    turn: Turn, result: ToolResult, tools: dict[str, Tool], context: ToolContext
) -> Observation:
    raw = raw_arguments(turn.reply, result.call)
    try:
        return await carry_out(result.call, raw, tools, context)
    except SandboxDied as exc:
        return Observation.of(f"[{exc}]", ok=False)


def _saw_images(trajectory: Trajectory) -> bool:
    return any(isinstance(part, ImagePart) for item in trajectory.messages for part in item.parts)


def _difference(turn: Turn, number: int, now: Observation) -> Difference:
    result = turn.tool_results[number]
    parts = [part for part in result.message.parts if not _is_count_down(part)]
    recorded, repeated = _shown(parts), _shown(now.parts)
    if recorded == repeated and result.ok != now.ok:
        recorded += f"\n[the call {'worked' if result.ok else 'failed'}]"
        repeated += f"\n[the call {'worked' if now.ok else 'failed'}]"
    return Difference(
        turn.index, number, result.call.name, result.call.arguments, recorded, repeated
    )


def _is_count_down(part: Part) -> bool:
    """What a rollout adds to the last observation of a turn."""
    return isinstance(part, TextPart) and part.text.strip().startswith("[turns left:")


def _shown(parts: Sequence[Part]) -> str:
    return "".join(
        part.text if isinstance(part, TextPart) else f"[picture, {len(part.data):,} bytes]"
        for part in parts
        if isinstance(part, TextPart | ImagePart)
    )


# What a record stood on.


@dataclass(frozen=True, slots=True)
class Scene:
    """A recorded rollout with all that a sandbox for it is made of.

    `whole` is whether it had all tools and kept its files, as a run that goes on has; `continued`
    whether it went on after an end, perhaps in another sandbox than before.
    """

    trajectory: Trajectory
    settings: Settings
    policy: Policy
    profile: Profile
    tools: tuple[Tool, ...]
    whole: bool = True
    continued: bool = False

    async def replay(
        self,
        environ: Mapping[str, str],
        note: Callable[[str], None],
        *,
        until: int | None = None,
        on_turn: Callable[[Turn], None] = lambda turn: None,
    ) -> Replayed:
        """`replay` in a fresh sandbox such as the record had.

        Raises:
            ConfigError: the record had no sandbox.
            InputError, SandboxError, ImageError: no such sandbox can be had here.
        """
        trajectory = self.trajectory
        if trajectory.mode == "llm":
            raise ConfigError(f"{trajectory.id} had no sandbox: there are no commands to repeat")
        check_input(Path(trajectory.task.input_dir) if trajectory.task.input_dir else None)
        settings, _ = await settle_backend(self.settings, environ, note)
        box, _ = await open_computer(settings, self.policy, environ, note)
        try:
            return await replay(
                trajectory,
                sandbox=box,
                tools=self.tools,
                profile=relocated(self.profile, box),
                until=until,
                on_turn=on_turn,
            )
        finally:
            await box.close()


def scene_of_run(directory: RunDirectory, settings: Settings, environ: Mapping[str, str]) -> Scene:
    """The scene of a single run; `settings` are its own (`api.resume_arguments`), resolved.

    Raises:
        RecordError: the run or its manifest is damaged.
        ConfigError: a limit or secret of the run cannot be had.
    """
    profile = from_json(Profile, directory.manifest.get("profile", {}))
    policy = replace(policy_of(settings, environ=environ), working_dir=profile.working_dir)
    continued = any("continue" in word for word in directory.manifest.get("continued", ()))
    return Scene(
        directory.trajectory(), settings, policy, profile, default_tools(), continued=continued
    )


def scene_of_episode(
    bench: BenchDirectory,
    stem: str,
    settings: Settings,
    environ: Mapping[str, str],
    scratch: Path,
) -> Scene:
    """The scene of an episode, named as its files are; `scratch` is a folder for its while.

    Raises:
        ConfigError: the run has no such episode.
        RecordError: the run is damaged.
    """
    episode = _episode(bench, stem)
    record = bench.manifest.get("sets", {}).get(episode.task_set, {}).get("row")
    if record is None or episode.arm not in ARMS:
        raise RecordError(f"{bench.path}: the manifest holds no set and arm of {stem}")
    row, arm = from_json(TaskSet, record), ARMS[episode.arm]
    plan = BenchPlan(sets=(LoadedSet(row, (), ""),), arms=(arm,), settings=settings)
    condition = conditions_of(plan, environ)[row.name, arm.name]
    tools = tools_of(arm, condition.profile, row, scratch / "forgetting.state")
    return Scene(
        bench.trajectory(episode),
        condition.settings,
        condition.policy,
        condition.profile,
        tuple(tools),
        whole=arm.tools is None and not arm.forgets,
    )


def _episode(bench: BenchDirectory, stem: str) -> Episode:
    stems = {episode.stem: episode for episode in bench.episodes()}
    if stem not in stems:
        some = ", ".join(sorted(stems)[:4]) or "none"
        more = " …" if len(stems) > 4 else ""
        raise ConfigError(
            f"{bench.path} has no episode {stem!r} (it has {len(stems)}: {some}{more})"
        )
    return stems[stem]


# Branching.


def branch(
    trajectory: Trajectory,
    record: Path,
    turn: int,
    *,
    model: str,
    parent: Path,
    now: datetime,
) -> RunDirectory:
    """A new run directory whose record is the old one up to, and without, a turn.

    A resumption of it goes on from there. The first event's metadata names the run that it
    branched from, the turn, and how many branches lie between it and a run of its own.

    Raises:
        ConfigError: as `check_branch`.
        RecordError: the directory cannot be made.
    """
    check_branch(trajectory, turn)
    directory = RunDirectory.create(parent, f"{trajectory.task.id} from turn {turn}", now)
    origin = {
        "branched_from": trajectory.id,
        "branch_turn": turn,
        "branch_model": trajectory.model,
        "branches": int(trajectory.metadata.get("branches", 0)) + 1,
    }
    writer = JsonlWriter(directory.trajectory_path)
    try:
        for entry in _before(record, turn):
            if entry.get("event") == RolloutStarted.kind:
                entry |= {"rollout_id": directory.path.name, "model": model}
                entry["metadata"] = {**trajectory.metadata, **origin}
            writer.append(entry)
        writer.sync()
    finally:
        writer.close()
    created = now.astimezone(UTC).isoformat(timespec="seconds")
    return directory.with_manifest({"created": created})


def check_branch(trajectory: Trajectory, turn: int) -> None:
    """Refuse a turn from which nothing can go on.

    Raises:
        ConfigError: there is no such turn, the model had submitted before it, or no sandbox.
    """
    if trajectory.mode == "llm":
        raise ConfigError(f"{trajectory.id} had no sandbox; there is nothing to branch from")
    count = len(trajectory.turns)
    if not 0 <= turn <= count:
        raise ConfigError(f"--from {turn}: {trajectory.id} has turns 0 to {count - 1}")
    before = trajectory.turns[:turn]
    if any(result.call.name == "submit" and result.ok for result in _results(before)):
        raise ConfigError(f"--from {turn}: the model had submitted before that turn")


def _results(turns: Sequence[Turn]) -> Iterator[ToolResult]:
    for turn in turns:
        yield from turn.tool_results


def _before(record: Path, turn: int) -> list[JsonObject]:
    """The lines of a record that tell what was said and done before a turn."""
    kept: list[JsonObject] = []
    beyond = False
    for entry in read_jsonl(record):
        event = decode_event(entry)
        if isinstance(event, RolloutContinued) and event.how == "restart":
            kept, beyond = kept[:1], False
        elif isinstance(event, ReplyReceived) and event.turn.index >= turn:
            beyond = True  # a new start may still follow, after which turns count anew
        elif isinstance(event, RolloutStarted | MessageAdded | ReplyReceived | ToolFinished):
            kept += () if beyond else (entry,)
    return kept


def profile_word(directory: RunDirectory) -> str | None:
    """The name of a run's profile where it is a shipped one, for going on with another model."""
    name = directory.manifest.get("profile", {}).get("name")
    return name if name in profile_names() else None
