"""Many sandboxes, ill treated for a while: `python bench/soak.py --seconds 600`.

Workers open sandboxes, run commands in them with random (seeded) timeouts, floods, kills, cancelled
calls and file operations, and close them. Every answer is checked. At the end nothing may be left:
no process, control group, file, loop device or descriptor, and the harness's memory must be flat.
The program is the harness: what it leaks shows in its own process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from computer import descendants, find_place, open_files
from measure import MIB, Row, Sample

from sandlot.core.errors import SandboxDied, SandboxFileError
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.policy import Limits, Network, Policy
from sandlot.sandbox.registry import list_leases, open_sandbox

MOST_ALIVE = 40
GROWTH_BYTES = 8 * MIB
"""How much the fitted line of the harness's memory may rise over the measured time."""
_WARM_UP = 0.3
_SAMPLE_S = 0.5
_ANSWER_S = 60.0

POLICY = Policy(
    Limits(
        memory_bytes=128 * MIB,
        processes=64,
        disk_bytes=16 * MIB,
        open_files=256,
        command_timeout_s=10.0,
        capture_bytes=16 * 1024,
        saved_bytes=1 * MIB,
        flood_bytes=2 * MIB,
    ),
    Network.parse("none"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how many at least, and with what seed. `alive` is how many run at once."""

    seconds: float
    sandboxes: int
    commands: int
    alive: int = 12
    seed: int = 1
    backend: str = "bubblewrap"
    engine: str | None = None


@dataclass(slots=True)
class Tally:
    """What happened so far. `wrong` are answers that were not what was asked for."""

    sandboxes: int = 0
    commands: int = 0
    alive: int = 0
    done: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    """(seconds since the start, resident bytes, open descriptors)"""

    def blame(self, what: str) -> None:
        if len(self.wrong) < 50:
            self.wrong.append(what[:300])


class Wrong(Exception):
    """An answer that breaks the contract."""


def expect(kept: bool, what: object) -> None:
    if not kept:
        raise Wrong(str(what))


# --- what is done to a sandbox --------------------------------------------------------------------

Act = Callable[[Sandbox, random.Random], Awaitable[None]]


async def echo(box: Sandbox, chance: random.Random) -> None:
    word = f"{chance.getrandbits(40):x}"
    result = await box.exec(f"echo {word}")
    expect((result.stdout, result.exit_code) == (f"{word}\n", 0), result)


async def status(box: Sandbox, chance: random.Random) -> None:
    number = chance.randrange(256)
    expect((await box.exec(f"(exit {number})")).exit_code == number, number)


async def job(box: Sandbox, chance: random.Random) -> None:
    await box.exec(f"sleep {chance.randrange(1, 60)} &")


async def daemon(box: Sandbox, chance: random.Random) -> None:
    await box.exec("(setsid sh -c \"trap '' TERM HUP INT; sleep 100\" &)")


async def late(box: Sandbox, chance: random.Random) -> None:
    result = await box.exec("echo on; sleep 20", chance.uniform(0.02, 0.4))
    expect(result.timed_out and result.stdout in ("", "on\n"), result)


async def stubborn(box: Sandbox, chance: random.Random) -> None:
    result = await box.exec("trap '' INT TERM; while :; do :; done", chance.uniform(0.02, 0.2))
    expect(result.timed_out, result)
    await box.exec("trap - INT TERM")


async def forks(box: Sandbox, chance: random.Random) -> None:
    await box.exec("for i in {1..100}; do sleep 20 & done 2>/dev/null; wait", 0.3)


async def large(box: Sandbox, chance: random.Random) -> None:
    size = chance.randrange(20_000, 400_000)
    result = await box.exec(f"head -c {size} /dev/zero")
    expect(result.stdout_bytes == size and result.truncated, (size, result.stdout_bytes))


async def flood(box: Sandbox, chance: random.Random) -> None:
    expect((await box.exec("yes")).flooded, "a flood that was not stopped")


async def leave(box: Sandbox, chance: random.Random) -> None:
    result = await box.exec("exit 3")
    expect(result.exit_code == 3 and result.shell_restarted, result)


async def kill_shell(box: Sandbox, chance: random.Random) -> None:
    await box.exec("kill -9 $$", 5)


async def stop_shell(box: Sandbox, chance: random.Random) -> None:
    await box.exec("kill -STOP $$", 0.1)


async def kill_all(box: Sandbox, chance: random.Random) -> None:
    await box.exec("kill -9 -1", 5)


async def cancel(box: Sandbox, chance: random.Random) -> None:
    call = asyncio.ensure_future(box.exec("echo lost; sleep 10"))
    await asyncio.sleep(chance.uniform(0, 0.05))
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    await echo(box, chance)


async def files(box: Sandbox, chance: random.Random) -> None:
    data = chance.randbytes(chance.randrange(0, 100_000))
    name = f"deep/er/{chance.randrange(20)}"
    await box.write_file(name, data)
    expect(await box.read_file(name) == data, f"{name} holds something else")


async def collect(box: Sandbox, chance: random.Random) -> None:
    await box.exec("mkdir -p out && date > out/date && ln -sf /etc/hostname out/link")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        collected, _ = await box.collect(["out"], Path(folder))
        expect("date" in [file.path for file in collected], collected)


async def full_disk(box: Sandbox, chance: random.Random) -> None:
    await box.exec("head -c 40M /dev/zero > fill; rm -f fill")
    await box.write_file("after", b"1")


async def kill_from_outside(box: Sandbox, chance: random.Random) -> None:
    pid = first_process(box)
    if pid is None:
        return
    call = asyncio.ensure_future(box.exec("sleep 5", 20))
    await asyncio.sleep(chance.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(SandboxDied):
        expect(call is None, f"a killed sandbox answered {await call}")
    await box.exec("echo gone")


def first_process(box: Sandbox) -> int | None:
    """Its id on the host; None for a backend that does not say it."""
    inner: Any = getattr(box, "_inner", None)
    return None if inner is None else inner._fds.get("init_pid")


ACTS: tuple[tuple[int, Act], ...] = (
    (600, echo), (80, status), (60, job), (10, daemon), (50, late), (10, stubborn), (4, forks),
    (40, large), (8, flood), (15, leave), (10, kill_shell), (3, stop_shell), (3, kill_all),
    (30, cancel), (60, files), (20, collect), (8, full_disk), (5, kill_from_outside),
)  # fmt: skip
_MAY_KILL = (kill_all, kill_from_outside, kill_shell, forks)


# --- the run --------------------------------------------------------------------------------------


async def run(plan: Plan, state: Path) -> Tally:
    """Keep `alive` workers busy until the time is over."""
    tally = Tally()
    began = time.monotonic()
    place = find_place(state)

    async def make() -> Sandbox:
        return await open_sandbox(
            plan.backend,
            policy=POLICY,
            image=place.image,
            cache=place.cache,
            state=state,
            environ=_environ(state),
            progress=lambda _: None,
            engine=plan.engine,
        )

    def over() -> bool:
        return time.monotonic() - began > plan.seconds

    async def worker() -> None:
        while not over():
            tally.sandboxes += 1
            chance = random.Random(f"{plan.seed}/{tally.sandboxes}")
            each = plan.commands / plan.sandboxes
            await _life(make, chance, round(each * chance.uniform(0.5, 1.5)), tally, over)

    watch = asyncio.ensure_future(_watch(tally, began))
    try:
        await asyncio.gather(*(worker() for _ in range(plan.alive)))
    finally:
        watch.cancel()
    return tally


async def _life(
    make: Callable[[], Awaitable[Sandbox]],
    chance: random.Random,
    commands: int,
    tally: Tally,
    over: Callable[[], bool],
) -> None:
    """One sandbox from its start to its close, with up to `commands` acts in between."""
    box = await make()
    tally.alive += 1
    try:
        await box.start()
        for _ in range(commands):
            if over() or not await _act(box, chance, tally):
                break
    except SandboxDied as died:
        tally.deaths[died.cause.value] += 1
        tally.blame(f"died in its start: {died}")
    finally:
        began = time.monotonic()
        await asyncio.wait_for(box.close(), _ANSWER_S)
        tally.alive -= 1
        if time.monotonic() - began > 10:
            tally.blame(f"a close took {time.monotonic() - began:.1f} s")


async def _act(box: Sandbox, chance: random.Random, tally: Tally) -> bool:
    """Do one thing; False where it cost the sandbox its life."""
    weights = [weight for weight, _ in ACTS]
    act = chance.choices([act for _, act in ACTS], weights)[0]
    name = getattr(act, "__name__", "act")
    tally.done[name] += 1
    tally.commands += 1
    began = time.perf_counter()
    try:
        await asyncio.wait_for(act(box, chance), _ANSWER_S)
    except SandboxDied as died:
        tally.deaths[died.cause.value] += 1
        if act not in _MAY_KILL:
            tally.blame(f"{name} cost the sandbox its life: {died}")
        return False
    except (Wrong, SandboxFileError, TimeoutError) as exc:
        tally.blame(f"{name}: {type(exc).__name__} {exc}")
    if act is echo:
        tally.latencies_ms.append((time.perf_counter() - began) * 1e3)
        del tally.latencies_ms[:-5000]  # bounded: the harness's own memory is what is measured
    return True


async def _watch(tally: Tally, began: float) -> None:
    while True:
        tally.samples.append((time.monotonic() - began, resident_bytes(), open_files()))
        await asyncio.sleep(_SAMPLE_S)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _environ(state: Path) -> dict[str, str]:
    """Leases in a folder of this run alone, so that what is left there is ours."""
    return {**os.environ, "XDG_RUNTIME_DIR": str(state)}


# --- what is left ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Census:
    """What this harness holds of each kind."""

    processes: int
    cgroups: int
    mounts: int
    loops: int
    files: int
    descriptors: int

    @classmethod
    def take(cls, state: Path, cgroups: Iterable[str] = ()) -> Census:
        """`cgroups` are folders that this run made, now or before."""
        gc.collect()
        mine = str(state)
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        loops = [path for path in backing if mine in _text(path)]
        return cls(
            len(descendants(os.getpid())),
            sum(Path(name).is_dir() for name in cgroups),
            sum(mine in line for line in mounts),
            len(loops),
            sum(1 for path in state.rglob("*") if path.is_file() or path.is_fifo()),
            open_files(),
        )

    def more_than(self, before: Census) -> dict[str, int]:
        now, then = asdict(self), asdict(before)
        return {name: now[name] - then[name] for name in now if now[name] > then[name]}


def _cgroups(state: Path) -> set[str]:
    """The groups that the leases of this run name."""
    leases = list_leases(state, _environ(state))
    return {group for lease in leases for group in lease.cgroups}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


async def _settled(state: Path, before: Census, cgroups: set[str]) -> dict[str, int]:
    """What is left once the last processes had a moment to end."""
    left: dict[str, int] = {}
    for _ in range(50):
        left = Census.take(state, cgroups).more_than(before)
        if not left:
            break
        await asyncio.sleep(0.1)
    return left


# --- the report -----------------------------------------------------------------------------------


def growth(samples: list[tuple[float, int, int]]) -> tuple[float, float]:
    """(bytes a second of the fitted line after the warm-up, its rise over that time in bytes)."""
    if len(samples) < 4:
        return 0.0, 0.0
    start = samples[-1][0] * _WARM_UP
    points = [(t, float(size)) for t, size, _ in samples if t >= start]
    fit = statistics.linear_regression([t for t, _ in points], [size for _, size in points])
    return fit.slope, fit.slope * (points[-1][0] - points[0][0])


def report(plan: Plan, tally: Tally, left: dict[str, int], took_s: float) -> dict[str, Any]:
    slope, rise = growth(tally.samples)
    enough = tally.commands >= plan.commands and tally.sandboxes >= plan.sandboxes
    return {
        "plan": asdict(plan),
        "took_s": round(took_s, 1),
        "sandboxes": tally.sandboxes,
        "commands": tally.commands,
        "enough": enough,
        "acts": dict(tally.done.most_common()),
        "deaths": dict(tally.deaths),
        "wrong": tally.wrong,
        "left": left,
        "resident_mib": [round(size / MIB, 1) for _, size, _ in tally.samples[:: _every(tally)]],
        "descriptors": [count for _, _, count in tally.samples[:: _every(tally)]],
        "slope_bytes_per_s": round(slope, 1),
        "rise_bytes": round(rise),
        "rise_allowed_bytes": GROWTH_BYTES,
        "echo_ms": asdict(Sample.of(tally.latencies_ms or [0.0], "ms")),
        "held": not tally.wrong and not left and rise <= GROWTH_BYTES,
    }


def _every(tally: Tally) -> int:
    return max(1, len(tally.samples) // 20)


def row(found: dict[str, Any]) -> Row:
    """The line of the table."""
    plan = found["plan"]
    detail = {name: found[name] for name in ("sandboxes", "commands", "deaths", "left", "took_s")}
    detail["rise of the harness's memory, MiB"] = round(found["rise_bytes"] / MIB, 2)
    detail["descriptors, most"] = max(found["descriptors"], default=0)
    return Row(
        f"soak on {plan['backend']}: what is left",
        Sample.of([float(sum(found["left"].values()))], "things"),
        None,
        "",
        f"0 left, memory within {GROWTH_BYTES // MIB} MiB, no wrong answer",
        bool(found["held"] and found["enough"]),
        detail=detail,
    )


async def soak(plan: Plan, state: Path) -> dict[str, Any]:
    """Run it in `state`, a folder of its own; the result is for JSON and for `row`."""
    before = Census.take(state)
    began = time.monotonic()
    mine: set[str] = set()
    run_task = asyncio.ensure_future(run(plan, state))
    while not run_task.done():
        mine |= _cgroups(state)
        await asyncio.wait({run_task}, timeout=2)
    tally = run_task.result()
    left = await _settled(state, before, mine)
    return report(plan, tally, left, time.monotonic() - began)


def _plan() -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(description="Ill treat many sandboxes for a while.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--sandboxes", type=int, default=200)
    parser.add_argument("--commands", type=int, default=20_000)
    parser.add_argument("--alive", type=int, default=12, help=f"at once, at most {MOST_ALIVE}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="bubblewrap")
    parser.add_argument("--engine", help="address of a container engine")
    parser.add_argument("--json", type=Path, help="where the result is written")
    given = parser.parse_args()
    if not 0 < given.alive <= MOST_ALIVE:
        parser.error(f"--alive must be between 1 and {MOST_ALIVE}")
    names = ("seconds", "sandboxes", "commands", "alive", "seed", "backend", "engine")
    return Plan(**{name: getattr(given, name) for name in names}), given.json


def main() -> int:
    plan, target = _plan()
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sandlot-soak-", dir=base) as folder:
        found = asyncio.run(soak(plan, Path(folder)))
    text = json.dumps(found, indent=1)
    if target is not None:
        target.write_text(text + "\n")
    print(text)
    return 0 if found["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
