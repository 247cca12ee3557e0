"""`sandlot bench`: what the computer buys a model, over task sets and arms."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandlot.cli import options
from sandlot.cli.outcome import Interrupted, drive, say
from sandlot.core.errors import ConfigError

if TYPE_CHECKING:
    from sandlot.bench.plan import BenchPlan, Estimate
    from sandlot.bench.runner import Progress
    from sandlot.bench.store import BenchDirectory
    from sandlot.settings import Settings
    from sandlot.tasks.base import LoadedSet

_HELP = """Measure what a computer buys a model: the same items from its head and in the sandbox.

Names of shipped task sets (sandlot tasks), TOML files of your own, or files of problems. The run
directory keeps every trajectory and score; --resume goes on with it whatever ended it.

Exit codes: 0 every episode has a score; 1 some have none; 2 a flag, set or file cannot be used;
4 no sandbox can be had; 130 Ctrl-C (everything finished is kept)."""


def bench(
    sets: Annotated[
        list[str] | None, typer.Argument(metavar="TASKSET…", help="Task sets, by name or path.")
    ] = None,
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    mode: Annotated[
        str | None, typer.Option("--mode", metavar="MODE", help="llm, sandbox or both. [both]")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option("--arms", metavar="ARM,…", help="Arms by name, in place of --mode."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show items, tokens, money and what they can show.")
    ] = False,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, metavar="K", help="Of each item. [by set]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="The first N items of a set.")
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("-c", "--concurrency", min=1, metavar="N", help="Episodes at once. [8]"),
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="DIR", help="Go on with a run.")
    ] = None,
    retry: Annotated[
        str | None,
        typer.Option("--retry", metavar="CLASS,…", help="On resuming, only failures like these."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume although settings differ; they are recorded.")
    ] = False,
    attempts: Annotated[
        int | None,
        typer.Option("--attempts", min=1, metavar="N", help="At an episode that fails. [2]"),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="Of an episode, waiting included. [2h]"),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost",
            min=0.0,
            metavar="USD",
            help="Start nothing more beyond it; inf: no limit.",
        ),
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option("--prices", metavar="FILE", help="TOML: prices by model, USD a million."),
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", metavar="MODEL", help="For sets that a judge scores.")
    ] = None,
    reference: Annotated[
        bool, typer.Option(help="The published package's score beside ours, where installed.")
    ] = True,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol", metavar="v1|v3", help="Settings as the paper had them. [paper: v3]"
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", metavar="NAME", help="local, or ray: over a cluster.")
    ] = "local",
    network: options.Network = None,
    private_hosts: options.PrivateHosts = None,
    deny_hosts: options.DenyHosts = None,
    egress_bytes: options.EgressBytes = None,
    egress_connections: options.EgressConnections = None,
    credentials: options.Credentials = None,
    image: options.Image = None,
    backend: options.Backend = None,
    engine: options.Engine = None,
    runtime: options.Runtime = None,
    memory: options.Memory = None,
    cpus: options.Cpus = None,
    processes: options.Processes = None,
    disk: options.Disk = None,
    open_files: options.OpenFiles = None,
    file_size: options.FileSize = None,
    wall_time: options.WallTime = None,
    accept_unenforced: options.AcceptUnenforced = None,
    timeout: options.Timeout = None,
    max_turns: options.MaxTurns = None,
    max_tokens: options.MaxTokens = None,
    time_limit: options.TimeLimit = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    reply_tokens: options.ReplyTokens = None,
    extra_body: options.ExtraBody = None,
    profile: options.Profile = None,
    tool_calls: options.ToolCalls = None,
    display: options.Display = None,
    as_json: options.Json = False,
    runs: options.Runs = None,
) -> None:
    values = locals()
    given = options.setting_arguments(values)
    old = find_bench(resume, given) if resume is not None else None
    made = _plan(values, given, old)
    if plan:
        show_plan(made, as_json=as_json)
        return
    perform(made, old, as_json=as_json)


bench.__doc__ = _HELP


def find_bench(name: str, given: Mapping[str, Any]) -> BenchDirectory:
    """The bench run of a path or name, or the newest for `last`."""
    from sandlot.bench.store import BenchDirectory
    from sandlot.settings import resolve

    runs = Path(resolve({"runs": given.get("runs")}).runs)
    return BenchDirectory.open(options.find_run(name, runs).path)


def _plan(
    values: Mapping[str, Any], given: Mapping[str, Any], old: BenchDirectory | None
) -> BenchPlan:
    from sandlot.bench.arms import arms_of
    from sandlot.bench.plan import BenchPlan, read_prices
    from sandlot.settings import parse_duration, resolve

    before: Mapping[str, Any] = old.manifest if old is not None else {}
    settings = resolve({**settings_before(before), **given})
    if settings.model is None:
        raise ConfigError("no model is named: pass -m openai/NAME, -m anthropic/NAME or -m local")
    words = tuple(values["sets"] or before.get("words", ()))
    version = values["protocol"] or before.get("protocol") or ("v3" if "paper" in words else "")
    words, settings, adapt = _by_protocol(version, words, settings)
    if not words:
        raise ConfigError("what is to be measured? Write: sandlot bench TASKSET -m MODEL")
    chosen = values["arms"] or values["mode"] or ",".join(before.get("arms", ())) or "both"
    deadline, max_cost = values["deadline"], values["max_cost"]
    return BenchPlan(
        sets=tuple(map(adapt, _sets(words, settings))),
        arms=arms_of(chosen),
        settings=settings,
        repeats=values["repeats"] or before.get("repeats"),
        limit=values["limit"] or before.get("limit"),
        concurrency=values["concurrency"] or before.get("concurrency") or 8,
        attempts=values["attempts"] or before.get("attempts") or 2,
        deadline_s=before.get("deadline_s", 7200.0)
        if deadline is None
        else parse_duration(deadline),
        max_cost_usd=before.get("max_cost_usd") if max_cost is None else _finite(max_cost),
        prices=read_prices(Path(settings.prices)) if settings.prices else {},
        reference=values["reference"],
        retry=tuple(word.strip() for word in (values["retry"] or "").split(",") if word.strip()),
        force=values["force"],
        executor=values["executor"],
        name=before.get("name") or " ".join(Path(word).stem for word in words),
        words=tuple(map(_lasting, words)),
        protocol=version,
    )


def _finite(limit: float) -> float | None:
    return None if limit == float("inf") else limit


def _by_protocol(
    version: str, words: tuple[str, ...], settings: Settings
) -> tuple[tuple[str, ...], Settings, Callable[[LoadedSet], LoadedSet]]:
    """The paper's sets for the word `paper`, its settings where the user set none, its judging."""
    if not version:
        return words, settings, lambda loaded: loaded
    from sandlot.bench.paper import protocol

    asked = protocol(version)
    settings, overridden = asked.settled(settings)
    for line in overridden:
        say(f"not as in the paper ({version}): {line}")
    named = tuple(name for word in words for name in (asked.sets if word == "paper" else (word,)))
    return named, settings, asked.judged_as_published


def settings_before(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the user of an earlier run had set; a ceiling that was lifted is left out of TOML."""
    from sandlot.settings import SECRET_SETTINGS

    sources: Mapping[str, str] = manifest.get("sources", {})
    kept: Mapping[str, Any] = manifest.get("settings", {})
    asked = (name for name, source in sources.items() if source != "default")
    return {name: kept.get(name, "none") for name in asked if name not in SECRET_SETTINGS}


def _sets(words: Sequence[str], settings: Settings) -> tuple[Any, ...]:
    from sandlot.tasks.registry import load_sets

    return tuple(
        loaded
        for word in words
        for loaded in load_sets(
            word, cache=settings.cache_dir / "tasks", environ=os.environ, progress=say
        )
    )


def _lasting(word: str) -> str:
    """A path that still leads there from another folder."""
    return str(Path(word).resolve()) if Path(word).exists() else word


def perform(plan: BenchPlan, old: BenchDirectory | None, *, as_json: bool) -> None:
    """Run the plan before the user's eyes and leave with the exit code of its end."""
    from sandlot.bench.runner import BenchWatch, run_bench

    view = choose_bar(plan.settings.display)
    last: list[Progress] = []
    where: list[BenchDirectory] = []

    def progress(state: Progress) -> None:
        last[:] = [state]
        view.show(state)

    def opened(directory: BenchDirectory) -> None:
        where.append(directory)
        view.note(f"run: {directory.path}")

    watch = BenchWatch(view.note, progress, opened)
    try:
        directory = drive(lambda: run_bench(plan, watch, resume=old))
    except Interrupted:
        view.close()
        for begun in where:
            say(f"everything finished is kept; go on with: sandlot bench --resume {begun.path}")
        raise
    finally:
        view.close()
    show_end(directory, last[0], plan.settings.display, as_json=as_json)
    scored = sum(arm.scored for arm in last[0].arms.values())
    if scored < last[0].total:
        raise typer.Exit(1)


def show_end(directory: BenchDirectory, state: Progress, display: str, *, as_json: bool) -> None:
    """The report, beside the records and here; as JSON only what the run came to."""
    from sandlot.cli.report import report

    if not as_json:
        report([directory.path], display=display)
        print(f"run: {directory.path}")
        return
    arms = {
        name: {"mean": None if arm.mean is None else round(arm.mean, 6), "scored": arm.scored}
        for name, arm in state.arms.items()
    }
    shown = {
        "directory": str(directory.path),
        "done": state.done,
        "total": state.total,
        "failed": state.failed,
        "arms": arms,
        "tokens": state.tokens,
        "cost_usd": None if state.cost_usd is None else round(state.cost_usd, 6),
    }
    print(json.dumps(shown))


# Before a run.


def show_plan(plan: BenchPlan, *, as_json: bool) -> None:
    from sandlot.bench.plan import conditions_of, estimate
    from sandlot.core.codec import to_json

    rows = estimate(plan, conditions_of(plan, os.environ))
    if as_json:
        print(json.dumps([to_json(row) for row in rows]))
        return
    print(
        f"{'set':20} {'arm':24} {'items':>6} {'runs':>6} {'tokens':>12} {'USD':>9}  smallest gain"
    )
    for row in rows:
        print(_plan_line(row))
    costs = [row.cost_usd for row in rows]
    money = "unknown" if None in costs else f"${sum(cost or 0.0 for cost in costs):.2f}"
    tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
    print(f"{sum(row.episodes for row in rows)} episodes, about {tokens:,} tokens, money: {money}")
    print(
        "Tokens are guesses before a run: documents, question and the turns that are usual. The "
        "smallest gain\nis what so many items show in four of five such experiments."
    )


def _plan_line(row: Estimate) -> str:
    tokens = f"{row.prompt_tokens + row.completion_tokens:,}"
    money = "unknown" if row.cost_usd is None else f"{row.cost_usd:.2f}"
    return (
        f"{row.task_set:20} {row.arm:24} {row.items:6} {row.repeats:>5}x {tokens:>12} {money:>9}  "
        f"{row.smallest_gain:.3f}"
    )


# While it runs.


class Bar:
    """Lines on stderr, at most one every few seconds."""

    every_s = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._ended = False

    def show(self, state: Progress) -> None:
        whole = state.done == state.total
        if self._ended or not (whole or self._clock() >= self._next):
            return
        self._ended = whole and not state.running
        self._next = self._clock() + self.every_s
        say(progress_line(state))

    def note(self, text: str) -> None:
        say(text)

    def close(self) -> None: ...


class SilentBar(Bar):
    def show(self, state: Progress) -> None: ...


class RichBar(Bar):
    """One line that is written over."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.status import Status

        super().__init__()
        self._console = Console(stderr=True)
        self._status = Status("", console=self._console)
        self._status.start()

    def show(self, state: Progress) -> None:
        from rich.text import Text

        self._status.update(Text(progress_line(state)))

    def note(self, text: str) -> None:
        from rich.text import Text

        from sandlot.cli.text import clean

        self._console.print(Text(clean(text)), highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._status.stop()


def choose_bar(display: str) -> Bar:
    if display == "none":
        return SilentBar()
    rich = display == "rich" or (display == "auto" and sys.stderr.isatty())
    return RichBar() if rich and os.environ.get("TERM") != "dumb" else Bar()


def progress_line(state: Progress) -> str:
    """How far it is: `12/40 done, 1 failed; llm 0.50 (6), sandbox 0.67 (5); …`."""
    means = ", ".join(
        f"{name} {'–' if arm.mean is None else format(arm.mean, '.2f')} ({arm.scored})"
        for name, arm in state.arms.items()
    )
    parts = [
        f"{state.done}/{state.total} done" + (f", {state.failed} failed" if state.failed else ""),
        means,
        f"{state.running} running" + (f" of {state.limit}" if state.running else ""),
        f"{state.per_minute:.1f}/min",
        f"{state.tokens:,} tokens",
    ]
    if state.cost_usd is not None:
        parts.append(f"${state.cost_usd:.2f}")
    if state.left_s is not None and state.done < state.total:
        parts.append(f"{_duration(state.left_s)} left")
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}h{minute:02}m" if hours else f"{minute}m{second:02}s"
