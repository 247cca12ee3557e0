"""What this machine lets the backend `restricted` do: its Landlock, an id, a Python, and limits."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import secrets
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox import landlock
from sandlot.sandbox.policy import Enforcement, Policy
from sandlot.sandbox.restricted_filter import call_numbers

_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_READABLE = ("/proc", "/sys/devices/system/cpu")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_OWN_IDS = ((0x70000000, 1 << 24), (40_000, 20_000))  # first and number, tried in this order
_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID = 0, 6, 7


@dataclass(frozen=True, slots=True)
class Ground:
    """What this machine allows: the Landlock version, and a user id of the sandbox's own or None.

    `abi` may be set lower than the kernel's, to try what an older kernel would hold.
    """

    abi: int
    uid: int | None

    @property
    def own_id(self) -> bool:
        return self.uid is not None

    @property
    def brokers_signals(self) -> bool:
        return self.abi < 6 and not self.own_id


def survey(*, most_abi: int | None = None) -> Ground:
    """Raises SandboxUnavailable: a kernel without Landlock, or an architecture without a table."""
    call_numbers(platform.machine())
    found = landlock.abi() if sys.platform == "linux" else 0
    if found == 0:
        raise SandboxUnavailable(
            "backend 'restricted' needs Landlock, which this kernel lacks or has switched off "
            "(Linux 5.13 or newer; `landlock` must stand in /sys/kernel/security/lsm)"
        )
    return Ground(found if most_abi is None else min(found, most_abi), own_id())


def enforcement_of(policy: Policy, ground: Ground) -> list[Enforcement]:
    """Each promise as this backend keeps it; most of those of other backends do not hold."""
    limits = policy.limits
    open_to = "files of /usr and /etc, names and sizes of all files, and command lines are seen"
    files = "; ".join((open_to, *landlock.lacking(ground.abi)))
    rows = [
        Enforcement("files", f"Landlock ABI {ground.abi}, one writable folder", False, files),
        _ids(ground),
        Enforcement("system calls", "two seccomp filters, no capabilities, no_new_privs", True),
        Enforcement(
            "network",
            f"seccomp: no socket but TCP to the egress proxy, {policy.network.mode.value}",
            True,
            "no namespace: addresses and open connections of this machine can be listed",
        ),
    ]
    if limits.memory_bytes is not None:
        means = "rlimit for each process, watchdog for the sum"
        rows.append(Enforcement("memory", means, False, "best effort, looked at 4 times a second"))
    if limits.cpus is not None:
        rows.append(Enforcement("cpus", "none", False))
    if limits.processes is not None:
        note = "" if ground.own_id else "counted with all other processes of this user"
        if not ground.own_id and os.geteuid() == 0:
            note = "the kernel does not count those of root"
        rows.append(Enforcement("processes", "rlimit of the user id", ground.own_id, note))
    if limits.disk_bytes is not None:
        note = "best effort: measured about once a second, then the sandbox ends"
        rows.append(Enforcement("disk", "watchdog, rlimit for each file", False, note))
    if limits.open_files is not None:
        rows.append(Enforcement("open files", "rlimit for each process", True))
    if limits.file_bytes is not None:
        rows.append(Enforcement("file size", "rlimit for each process", True))
    if limits.wall_s is not None:
        rows.append(Enforcement("wall time", "timer of the host", True))
    rows.append(Enforcement("output", "bounded while read", True))
    return rows


def _ids(ground: Ground) -> Enforcement:
    if ground.own_id:
        return Enforcement("ids", "a user id that nobody else has", True)
    if os.geteuid() == 0:
        note = (
            "it runs as root without capabilities: modes of files that it can read may be changed"
        )
        return Enforcement("ids", "none", False, note)
    return Enforcement("ids", "none", False, "it runs as this user")


def own_id() -> int | None:
    """A user id that nobody has, where this process may take one."""
    if os.geteuid() != 0 or not _may_change_ids():
        return None
    for first, number in _OWN_IDS:
        if _mapped("uid_map", first, number) and _mapped("gid_map", first, number):
            for _ in range(100):
                candidate = first + secrets.randbelow(number)
                try:
                    pwd.getpwuid(candidate)
                except KeyError:
                    return candidate
    return None


def _may_change_ids() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    needed = sum(1 << capability for capability in (_CAP_CHOWN, _CAP_SETGID, _CAP_SETUID))
    try:
        groups = Path("/proc/self/setgroups").read_text().strip()
    except OSError:
        groups = "allow"
    return effective & needed == needed and groups == "allow"


def _mapped(name: str, first: int, number: int) -> bool:
    for line in Path(f"/proc/self/{name}").read_text().splitlines():
        inside, _, count = map(int, line.split())
        if inside <= first and first + number <= inside + count:
            return True
    return False


def find_python() -> tuple[str, tuple[str, ...]]:
    """A Python for the guest, and the folders beyond /usr that it is made of.

    Raises:
        SandboxUnavailable: none that a confined process could run.
    """
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
    if found is not None and os.path.realpath(found).startswith(("/usr/", "/bin/")):
        return found, ()
    own = os.path.realpath(sys.executable)
    folders = (sys.base_prefix, sys.base_exec_prefix)
    if all(is_public(Path(folder)) for folder in folders):
        return own, folders
    raise SandboxUnavailable(
        "backend 'restricted' needs a python3 in /usr/bin or /usr/local/bin for its guest "
        "(found none). On Debian or Ubuntu: apt-get install python3"
    )


def is_public(folder: Path) -> bool:
    """Whether every user may pass through to it."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


def rules_of(reading: Sequence[str], ground: Ground) -> list[tuple[str, int]]:
    rules = [(path, landlock.RUN) for path in (*_PROGRAMS, *reading)]
    rules += [(path, landlock.READ) for path in _READABLE]
    rules += [(f"/dev/{name}", landlock.DEVICE) for name in _DEVICES]
    if os.geteuid() != 0 or ground.own_id:
        return [*rules, ("/etc", landlock.RUN)]
    return [*rules, ("/etc", landlock.READ_DIR), *((path, landlock.READ) for path in _public_etc())]


def _public_etc() -> list[str]:
    """The files of /etc that every user may read: root without an id of its own owns the others."""
    found = []
    for folder, _, names in os.walk("/etc"):
        if not os.lstat(folder).st_mode & stat.S_IXOTH:
            continue
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
                found.append(path)
    return found


def rlimits_of(policy: Policy, ground: Ground) -> dict[str, int]:
    limits = policy.limits
    values = {"RLIMIT_CORE": 0, "RLIMIT_MSGQUEUE": 0}
    if limits.open_files is not None:
        values["RLIMIT_NOFILE"] = limits.open_files
    sizes = [size for size in (limits.file_bytes, limits.disk_bytes) if size is not None]
    if sizes:
        values["RLIMIT_FSIZE"] = min(sizes)
    if limits.memory_bytes is not None:
        values["RLIMIT_DATA"] = limits.memory_bytes
    if limits.processes is not None:
        others = 0 if ground.own_id else _threads_of_this_user()
        values["RLIMIT_NPROC"] = limits.processes + others
    return values


def _threads_of_this_user() -> int:
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count
