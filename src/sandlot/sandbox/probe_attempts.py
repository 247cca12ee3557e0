"""What `sandlot doctor` tries inside a sandbox: each attempt goes past one limit or at one wall.

An attempt must do no harm where the promise does not hold: what it writes, allocates, forks and
prints is bounded by the attempt itself, to little more than the limit that it is meant to meet.
Commands use bash and the core utilities only, so that they run in every image.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandlot.core.errors import DeathCause, SandboxDied, SandboxFileError
from sandlot.sandbox.base import ExecResult, Sandbox
from sandlot.sandbox.policy import MIB, Limits, Network, NetworkMode, Policy

SETTLED_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What an attempt saw. `kept` is None where it could not be tried; then `evidence` is why."""

    kept: bool | None
    evidence: str


@dataclass(frozen=True, slots=True)
class Setup:
    """What every sandbox of a probe is opened with; see `registry.open_sandbox`.

    `engine_image` is the image for backends that cannot show the machine's own files. It has to be
    on this machine already, for a probe neither builds nor fetches.
    """

    cache: Path
    state: Path
    environ: Mapping[str, str]
    image: str = "host"
    engine_image: str | None = None
    engine: str | None = None
    runtime: str | None = None


@dataclass(frozen=True, slots=True)
class Bench:
    """What attempts need besides the sandbox: a host folder of their own, and an owner to kill.

    `owner` is the argv of a process that reads an order (JSON) on its standard input, starts a
    sandbox of the backend, runs `sleep MARKER` in it, prints `ready` and waits; see `probe_owner`.
    What it leaves has `patience_s` to go by itself, and again once reaping was asked for.
    """

    folder: Path
    backend: str
    setup: Setup
    owner: tuple[str, ...] = ()
    patience_s: float = 5.0


Body = Callable[[Sandbox, Bench], Awaitable[Seen]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """`promise` is a name of `policy.PROMISES` or one of the contract's own (`timeout`, …)."""

    promise: str
    what: str
    body: Body
    policy: Policy


def small(**limits: object) -> Policy:
    """Limits that are quickly reached; no network."""
    values: dict[str, object] = {
        "memory_bytes": 256 * MIB,
        "disk_bytes": 32 * MIB,
        "processes": 64,
        "open_files": 128,
        "flood_bytes": 8 * MIB,
    }
    return Policy(
        limits=Limits(**{**values, **limits}),  # type: ignore[arg-type]
        network=Network(NetworkMode.NONE),
    )


def last_words(result: ExecResult) -> str:
    """The end of what a command said, for evidence."""
    words = (result.stderr.strip() or result.stdout.strip())[-120:]
    return words or f"exit status {result.exit_code}"


async def lives(box: Sandbox) -> bool:
    """Whether the sandbox answers. Raises SandboxDied where it is gone."""
    return (await box.exec("echo lives", SETTLED_S)).stdout == "lives\n"


async def _afterwards(box: Sandbox, kept: bool, evidence: str) -> Seen:
    if await lives(box):
        return Seen(kept, f"{evidence}; the sandbox lives")
    return Seen(False, f"{evidence}; the sandbox does not answer any more")


# --- walls --------------------------------------------------------------------------------------


async def files(box: Sandbox, bench: Bench) -> Seen:
    """A file of the host, by path, by the root of other processes, by a link, by the interface."""
    secret = secrets.token_hex(16)
    canary = bench.folder / "canary"
    canary.write_text(secret)
    name = shlex.quote(str(canary))
    command = (
        f"for f in {name} /proc/1/root{name} /proc/self/root{name} /proc/$PPID/root{name};"
        f' do cat "$f"; echo changed >>"$f"; done 2>/dev/null; ln -s {name} way-out'
    )
    result = await box.exec(command, SETTLED_S)
    shown = secret in result.stdout
    for path in (str(canary), "way-out"):
        try:
            shown = shown or secret.encode() in await box.read_file(path)
        except SandboxFileError:
            continue  # as it should be: there is no such file inside
    changed = canary.read_text() != secret
    ways = "by path, /proc, a link and the file interface"
    if shown or changed:
        return Seen(False, f"a file of the host was {'changed' if changed else 'read'} ({ways})")
    return await _afterwards(box, True, f"a file of the host was not to be found ({ways})")


async def ids(box: Sandbox, _: Bench) -> Seen:
    """The capabilities inside, against those that reach the machine."""
    result = await box.exec("id -u; grep CapEff /proc/self/status")
    mask = int(result.stdout.split("CapEff:")[1].split()[0], 16)
    powers = [name for bit, name in _MACHINE_POWERS.items() if mask >> bit & 1]
    uid = result.stdout.split()[0]
    if powers:
        return Seen(False, f"user {uid} inside holds {', '.join(powers)}")
    return Seen(True, f"user {uid} inside holds no power over the machine (CapEff {mask:x})")


# Bits of capabilities(7) that reach beyond the sandbox's own files and processes.
_MACHINE_POWERS = {
    2: "CAP_DAC_READ_SEARCH",
    12: "CAP_NET_ADMIN",
    16: "CAP_SYS_MODULE",
    17: "CAP_SYS_RAWIO",
    19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN",
    22: "CAP_SYS_BOOT",
    25: "CAP_SYS_TIME",
    38: "CAP_PERFMON",
    39: "CAP_BPF",
}
_REFUSED = ("not permitted", "denied", "must be superuser", "Invalid argument")


async def system_calls(box: Sandbox, _: Bench) -> Seen:
    """New namespaces and a mount. What is mounted has a type that does not exist."""
    tried = {
        "a user namespace": "unshare -U true",
        "a mount namespace": "unshare -m true",
        "a mount": "mount -t sandlot-none none /tmp",
    }
    for what, command in tried.items():
        result = await box.exec(command, SETTLED_S)
        if result.exit_code == 127:
            return Seen(None, f"the image has no {command.split()[0]}")
        if result.exit_code == 0 or not any(word in result.stderr for word in _REFUSED):
            return Seen(False, f"{what} was not refused: {last_words(result)}")
    status = await box.exec("grep -E 'NoNewPrivs|Seccomp:' /proc/self/status", SETTLED_S)
    words = " ".join(status.stdout.split())
    on = "NoNewPrivs: 1" in words and "Seccomp: 2" in words
    return Seen(on, f"{', '.join(tried)} refused; {words or 'no status to read'}")


# --- limits -------------------------------------------------------------------------------------


async def memory(box: Sandbox, _: Bench) -> Seen:
    """Twice the limit, held in one process's memory."""
    limit = box.policy.limits.memory_bytes or 0
    much = f"head -c {2 * limit} /dev/zero | tail -c {2 * limit} >/dev/null"
    asked = f"{2 * limit // MIB} MiB at a limit of {limit // MIB} MiB"
    try:
        result = await box.exec(f'{much}; echo "${{PIPESTATUS[1]}}"', 20)
    except SandboxDied as death:
        if death.cause is DeathCause.OUT_OF_MEMORY:
            return Seen(True, f"{asked}: the sandbox died, told apart as {death.cause.value}")
        return Seen(False, f"{asked}: the sandbox died, not told apart ({death})")
    if result.stdout.strip() == "0":
        return Seen(False, f"{asked}: were held")
    # Where the shell itself was killed it prints nothing, and its own status tells.
    status = int(result.stdout.strip() or result.exit_code or 0)
    return await _afterwards(box, status != 0, f"{asked}: the command ended with status {status}")


async def cpus(box: Sandbox, _: Bench) -> Seen:
    """Two busy loops for about a second and a half, against the CPU time that they got."""
    limit = box.policy.limits.cpus or 0.0
    busy = (
        "(until=$((SECONDS+2)); while ((SECONDS<until)); do :; done) & "
        "(until=$((SECONDS+2)); while ((SECONDS<until)); do :; done) & wait"
    )
    timed = f'TIMEFORMAT="%R %U %S"; time {{ {busy}; }}'
    result = await box.exec(f"bash -c {shlex.quote(timed)}", 15)
    real, user, system = (float(word.replace(",", ".")) for word in result.stderr.split()[-3:])
    share = (user + system) / real
    evidence = f"two busy loops got {share:.2f} CPUs at a limit of {limit:g}"
    if result.throttled_s is not None:
        evidence += f", held back for {result.throttled_s:.1f} s"
    if result.throttled_s == 0 and share <= limit:
        return Seen(None, f"the machine is too busy to tell: {evidence}")
    return Seen(share <= limit * 1.5, evidence)


async def processes(box: Sandbox, _: Bench) -> Seen:
    limit = box.policy.limits.processes or 0
    count = limit + 40
    forks = f"n=0; while [ $n -lt {count} ]; do sleep 3 & n=$((n+1)); done; echo all"
    result = await box.exec(f"sh -c '{forks}'", 2)
    everything = "all" in result.stdout
    evidence = f"{count} processes at a limit of {limit}: "
    evidence += "all began" if everything else last_words(result).splitlines()[-1]
    return await _afterwards(box, not everything, evidence)


async def disk(box: Sandbox, _: Bench) -> Seen:
    limit = box.policy.limits.disk_bytes or 0
    result = await box.exec(f"head -c {2 * limit} /dev/zero >fill; stat -c %s fill", 30)
    full = "No space left on device" in result.stderr
    said = "No space left on device" if full else last_words(result)
    written = result.stdout.strip()
    evidence = f"{2 * limit // MIB} MiB at a limit of {limit // MIB} MiB: {said} after {written} B"
    return await _afterwards(box, full and int(written or 0) <= limit, evidence)


async def open_files(box: Sandbox, _: Bench) -> Seen:
    limit = box.policy.limits.open_files or 0
    opening = (
        f"for ((n=0; n<{limit + 50}; n++)); do exec {{fd}}</dev/null || exit 9; done; echo all"
    )
    result = await box.exec(f"bash -c {shlex.quote(opening)}", SETTLED_S)
    refused = "Too many open files" in result.stderr and "all" not in result.stdout
    said = "Too many open files" if refused else last_words(result)
    return await _afterwards(box, refused, f"{limit + 50} at a limit of {limit}: {said}")


async def file_size(box: Sandbox, _: Bench) -> Seen:
    limit = box.policy.limits.file_bytes or 0
    result = await box.exec(f"head -c {2 * limit} /dev/zero >big; stat -c %s big", 10)
    size = int(result.stdout.split()[-1]) if result.stdout.strip() else 0
    evidence = (
        f"one file of {2 * limit // 1024} KiB at a limit of {limit // 1024} KiB: {size} bytes"
    )
    return await _afterwards(box, size <= limit, evidence)


async def wall_time(box: Sandbox, _: Bench) -> Seen:
    limit = box.policy.limits.wall_s or 0.0
    try:
        result = await box.exec(f"sleep {limit + 3}", limit + 3)
    except SandboxDied as death:
        told = death.cause is DeathCause.TIME_LIMIT
        return Seen(told, f"a command of {limit + 3:g} s at {limit:g} s of life: {death}")
    return Seen(
        False, f"a command of {result.duration_s:.1f} s at {limit:g} s of life went through"
    )


async def output(box: Sandbox, _: Bench) -> Seen:
    limits = box.policy.limits
    result = await box.exec(f"yes | head -c {4 * limits.flood_bytes}", 20)
    stopped = result.flooded and len(result.stdout) <= limits.capture_bytes + 1024
    evidence = (
        f"stopped after {result.stdout_bytes / MIB:.1f} MiB at {limits.flood_bytes // MIB} MiB, "
        f"{len(result.stdout) // 1024} KiB kept"
    )
    return await _afterwards(box, stopped, evidence)


# --- time ---------------------------------------------------------------------------------------


async def stubborn_loop(box: Sandbox, _: Bench) -> Seen:
    result = await box.exec("trap '' INT TERM HUP QUIT; while :; do :; done", 0.5)
    stopped = result.timed_out and result.duration_s < 4
    evidence = f"stopped after {result.duration_s:.2f} s at a timeout of 0.5 s"
    return await _afterwards(box, stopped, evidence)


async def daemons(box: Sandbox, _: Bench) -> Seen:
    """A child that left its session and its parent, and beats for three seconds at most."""
    beat = "for n in $(seq 150); do echo >>beat; sleep 0.02; done"
    await box.exec(f"(setsid bash -c '{beat}' >/dev/null 2>&1 &); sleep 9", 0.4)
    first, second = [(await box.exec("wc -l <beat; sleep 0.2", SETTLED_S)).stdout for _ in range(2)]
    gone = first == second and first.strip().isdigit()
    still = "is gone" if gone else f"still beats ({first.strip()}, then {second.strip()})"
    return Seen(gone, f"a double-forked daemon of a command that timed out {still}")


ATTEMPTS = (
    Attempt("files", "a file of the host", files, small()),
    Attempt("ids", "power over the machine", ids, small()),
    Attempt("system calls", "namespaces and mounts", system_calls, small()),
    Attempt("memory", "twice the limit", memory, small(memory_bytes=128 * MIB)),
    Attempt("cpus", "busy loops", cpus, small(cpus=0.1)),
    Attempt("processes", "forks past the limit", processes, small()),
    Attempt("disk", "twice the limit", disk, small()),
    Attempt("open files", "descriptors past the limit", open_files, small()),
    Attempt("file size", "twice the limit", file_size, small(file_bytes=MIB)),
    Attempt("wall time", "a life past its end", wall_time, small(wall_s=1.0)),
    Attempt("output", "a flood", output, small()),
    Attempt("timeout", "a loop that ignores signals", stubborn_loop, small()),
    Attempt("timeout", "a daemon", daemons, small()),
)
