"""`sandlot doctor`: each promise tried on this machine, for each backend that starts here.

A promise counts as kept only if the backend says that it holds *and* the attempt to break it
failed. What a backend calls a best effort is never called kept, however the attempt went.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path

from sandlot.core.errors import ConfigError, SandlotError
from sandlot.sandbox import (
    probe_attempts,
    probe_machine,
    probe_network,
    probe_owner,
    registry,
)
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.choose import ENGINE_REMEDY, NAMESPACE_REMEDY, ORDER, reach_engine
from sandlot.sandbox.policy import Enforcement, Policy
from sandlot.sandbox.probe_attempts import Attempt, Bench, Seen, small
from sandlot.sandbox.probe_attempts import Setup as Setup

MACHINE = "machine"
ENGINES = ("podman", "docker")
BACKENDS = ("bubblewrap", *ENGINES, "restricted")
_NO_IMAGE = "host"  # an engine refuses it, and its refusal says what to name instead
ATTEMPTS = (*probe_attempts.ATTEMPTS, *probe_network.ATTEMPTS, *probe_owner.ATTEMPTS)
_START_S, _ATTEMPT_S, _CLOSE_S = 60.0, 60.0, 20.0
# Promises of the contract that no row of `enforcement` speaks of.
_MEANS = {
    "timeout": "signals of the host, then SIGKILL to every descendant",
    "leavings": "lease with a lock; the sandbox ends with its owner",
}
_REPORT = "do not run hostile code here; report this with the output of `sandlot doctor --json`"
_START_REMEDY = {
    "bubblewrap": NAMESPACE_REMEDY,
    "podman": ENGINE_REMEDY,
    "docker": ENGINE_REMEDY,
    "restricted": "Linux 5.13 or newer with Landlock; see the row of the machine",
}
_GROUPS = (
    "run as root, or where systemd delegates control groups: "
    "`systemd-run --user --scope -p Delegate=yes sandlot …`"
)
_PROMISE_REMEDY = dict.fromkeys(("memory", "cpus", "processes"), _GROUPS)
_STRONGER = "use --backend bubblewrap, podman or docker where that can be"


class Result(StrEnum):
    KEPT = "kept"
    NOT_KEPT = "not kept"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Finding:
    """One promise of one backend (or one part of the machine), as it was found.

    `because` qualifies a result that is not `kept`: `best effort: …`, or why it was not tried.
    `means` is how the backend says that it enforces the promise; `evidence` what was tried and
    seen; `remedy` what would change the result.
    """

    backend: str
    promise: str
    result: Result
    means: str = ""
    evidence: str = ""
    because: str = ""
    remedy: str = ""

    @property
    def verdict(self) -> str:
        return f"{self.result.value} ({self.because})" if self.because else self.result.value


Open = Callable[[str, Policy], Awaitable[Sandbox]]
Trying = Callable[[str], None]


def backends() -> tuple[str, ...]:
    """Those that are tried when none is named: ours, then other packages'."""
    others = {point.name for point in entry_points(group="sandlot.sandboxes")}
    return (*BACKENDS, *sorted(others - {*BACKENDS, "fake"}))


def first_that_starts(found: Iterable[Finding]) -> str | None:
    """The backend that is used where none is named."""
    started = {one.backend for one in found if one.promise == "start" and one.result is Result.KEPT}
    return next((name for name in ORDER if name in started), None)


async def probe(
    names: Sequence[str],
    setup: Setup,
    *,
    trying: Trying = lambda _: None,
    open_box: Open | None = None,
    attempts: Iterable[Attempt] = ATTEMPTS,
) -> AsyncIterator[Finding]:
    """The machine, then each backend in turn. Nothing outside this machine is contacted."""
    trying("the machine")
    for finding in machine():
        yield finding
    for name in names:
        async for finding in probe_backend(
            name, setup, trying=trying, open_box=open_box, attempts=attempts
        ):
            yield finding


def machine() -> Iterator[Finding]:
    for part in probe_machine.parts():
        result = Result.KEPT if part.ok else Result.NOT_KEPT
        remedy = "" if part.ok else part.remedy
        yield Finding(MACHINE, part.name, result, evidence=part.found, remedy=remedy)


async def probe_backend(
    name: str,
    setup: Setup,
    *,
    trying: Trying = lambda _: None,
    open_box: Open | None = None,
    attempts: Iterable[Attempt] = ATTEMPTS,
) -> AsyncIterator[Finding]:
    """The first row says whether it starts; where it does not, that is the only one."""
    if name in ENGINES:
        setup = replace(setup, image=setup.engine_image or _NO_IMAGE)
    trying(f"{name}: start")
    opening = open_box or _opener(setup)
    start, rows = await _start(name, opening)
    yield start
    if start.result is not Result.KEPT:
        return
    if not any(row.holds for row in rows):
        yield Finding(
            name, "everything else", Result.NOT_TRIED, because="it says that it isolates nothing"
        )
        return
    with tempfile.TemporaryDirectory(prefix="sandlot-doctor-") as folder:
        bench = Bench(Path(folder), name, setup, probe_owner.OWNER)
        for attempt in attempts:
            trying(f"{name}: {attempt.promise}, {attempt.what}")
            yield await _tried(name, attempt, opening, bench)


def _opener(setup: Setup) -> Open:
    reached: set[str] = set()

    async def opening(name: str, policy: Policy) -> Sandbox:
        if name in ENGINES and name not in reached:
            # Both take the same address; at one that the other engine serves, this one is not.
            await reach_engine(name, setup.engine, setup.environ)
            reached.add(name)
        return await registry.open_sandbox(
            name,
            policy=policy,
            image=setup.image,
            cache=setup.cache,
            state=setup.state,
            environ=setup.environ,
            progress=lambda _: None,
            engine=setup.engine,
            runtime=setup.runtime if name in ENGINES else None,
        )

    return opening


async def _start(name: str, opening: Open) -> tuple[Finding, tuple[Enforcement, ...]]:
    """The real start with the real command line, timed, and one command."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(_START_S):
            box = await opening(name, small())
        ready = time.monotonic()
        async with _opened(box):
            started = time.monotonic()
            result = await box.exec("echo $((6 * 7))", 20)
            answered = time.monotonic()
            rows = box.enforcement
    except (SandlotError, TimeoutError) as exc:
        return _no_start(name, exc), ()
    took = [f"{1000 * (b - a):.0f} ms" for a, b in pairwise((began, ready, started, answered))]
    said = f"made ready in {took[0]}, started in {took[1]}, first command after {took[2]}"
    if result.stdout != "42\n" and name != "fake":
        return Finding(name, "start", Result.NOT_KEPT, evidence=f"it printed {result.stdout!r}"), ()
    return Finding(name, "start", Result.KEPT, evidence=said), rows


def _no_start(name: str, exc: Exception) -> Finding:
    reason = str(exc) or f"no answer within {_START_S:g} s"
    remedy = "" if isinstance(exc, ConfigError) else _START_REMEDY.get(name, "")
    return Finding(name, "start", Result.NOT_TRIED, because=reason, remedy=remedy)


class _opened:  # noqa: N801  used like a function
    """A started sandbox that is closed at the end, each within a deadline."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box

    async def __aenter__(self) -> Sandbox:
        try:
            async with asyncio.timeout(_START_S):
                await self._box.start()
        except BaseException:
            await self._box.close()
            raise
        return self._box

    async def __aexit__(self, *exc: object) -> None:
        async with asyncio.timeout(_CLOSE_S):
            await self._box.close()


async def _tried(name: str, attempt: Attempt, opening: Open, bench: Bench) -> Finding:
    row: Enforcement | None = None
    try:
        async with _opened(await opening(name, attempt.policy)) as box:
            row = _row(box, attempt.promise)
            async with asyncio.timeout(_ATTEMPT_S):
                seen = await attempt.body(box, bench)
    except TimeoutError:
        seen = Seen(False, f"it did not end within {_ATTEMPT_S:g} s")
    except (SandlotError, OSError, ValueError, IndexError) as exc:
        # Values and indexes: an answer from inside that has not the form that was asked for.
        seen = Seen(False, f"{type(exc).__name__}: {exc}")
    return judge(name, attempt, row, seen)


def _row(box: Sandbox, promise: str) -> Enforcement | None:
    return next((row for row in box.enforcement if row.promise == promise), None)


def judge(name: str, attempt: Attempt, row: Enforcement | None, seen: Seen) -> Finding:
    """What an attempt and the backend's own word make together."""
    means = _MEANS.get(attempt.promise, "") if row is None else row.means
    evidence = f"{attempt.what}: {seen.evidence}"
    result, because, remedy = Result.KEPT, "", ""
    if row is not None and not row.holds:
        result = Result.NOT_KEPT
        because = "nothing enforces it" if row.means == "none" else f"best effort: {row.means}"
        remedy = _STRONGER if name == "restricted" else _PROMISE_REMEDY.get(row.promise, _STRONGER)
    elif seen.kept is None:
        result, because, evidence = Result.NOT_TRIED, seen.evidence, attempt.what
    elif not seen.kept:
        result, remedy = Result.NOT_KEPT, _REPORT
    return Finding(name, attempt.promise, result, means, evidence, because, remedy)
