"""What a container is asked to be: its body for the engine, its request for the stage, its rows."""

from __future__ import annotations

import base64
import json
import platform
import resource
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from sandlot.sandbox.policy import MIB, Enforcement, Limits, NetworkMode, Policy
from sandlot.sandbox.seccomp import build_filter, denied_calls

WALLS_DIR = "/run/sandlot-walls"
MOUNTS_DIR = "/run/sandlot-mounts"
PROXY_DIR = "/run/sandlot-proxy"
PROXY_SOCKET = f"{PROXY_DIR}/proxy"
STAGE_COMMAND = ("python3", "-I", "-S", "-u", "-c")
# Numbers as in the kernel's own list (uapi `capability.h`).
CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "SYS_CHROOT": 18,
    "MKNOD": 27,
    "AUDIT_WRITE": 29,
    "SETFCAP": 31,
}
_NEEDED_BY_WALLS = ("mount", "umount2", "pivot_root", "unshare")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_GUEST_TASKS = 12  # threads of the guest, which count as processes
_GUEST_FILES = 1024
_MANY_FILES, _MANY_PROCESSES = 65536, 8192
_DISK_SHARE = 0.75  # of the memory: what is written inside lies in it


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself, as far as it decides how a promise is kept."""

    backend: str
    machine: str
    rootless: bool
    memory: bool
    cpus: bool
    processes: bool
    local: bool
    runtime: str = ""


def read_facts(backend: str, info: Mapping[str, Any], *, local: bool) -> EngineFacts:
    """From the answer to `/info`; `local` says that the engine sees this machine's files."""
    machine = str(info.get("Architecture") or platform.machine())
    options = " ".join(str(option) for option in info.get("SecurityOptions") or [])
    desktop = "Docker Desktop" in str(info.get("OperatingSystem"))
    rootless = "rootless" in options or bool(info.get("Rootless"))
    # Version 1 gives an ordinary user no groups of its own, whatever the engine says of itself.
    groups = not (rootless and str(info.get("CgroupVersion")) == "1")
    return EngineFacts(
        backend=backend,
        machine=_MACHINES.get(machine, machine),
        rootless=rootless,
        memory=groups and bool(info.get("MemoryLimit")),
        cpus=groups and bool(info.get("CpuCfsQuota") or info.get("CPUCfsQuota")),
        processes=groups and bool(info.get("PidsLimit")),
        local=local and not desktop,
        runtime=str(info.get("DefaultRuntime") or ""),
    )


@dataclass(frozen=True, slots=True)
class Form:
    """What a first container of an image could do here.

    `walls` says that it could make its own user namespace and disk; `reason` why it could not.
    """

    python: str
    walls: bool
    reason: str = ""


def container_body(
    image: str,
    policy: Policy,
    facts: EngineFacts,
    *,
    labels: Mapping[str, str],
    environment: Mapping[str, str],
    binds: Sequence[tuple[str, str, bool]],
    seccomp: str | None,
    runtime: str | None,
) -> dict[str, Any]:
    """The body of a create request. `seccomp` is a profile (or its path) in place of the engine's
    own; `binds` are host path, path inside, and whether it may be written."""
    host = {
        "AutoRemove": True,
        "NetworkMode": "none",
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "SecurityOpt": ["no-new-privileges"] + ([f"seccomp={seccomp}"] if seccomp else []),
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        "IpcMode": "private",
        "ShmSize": shared_memory_bytes(policy.limits),
        "Ulimits": _ulimits(policy.limits, facts),
        "Mounts": [_bind(*bind) for bind in binds],
        "Tmpfs": {WALLS_DIR: "size=64k,mode=0755"},
        **_resources(policy.limits, facts),
    }
    if runtime is not None:
        host["Runtime"] = runtime
    return {
        "Image": image,
        "Entrypoint": [*STAGE_COMMAND, stage_source()],  # then the image's own two do not count
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": dict(labels),
        "Hostname": "sandlot",
        "User": "0:0",
        "WorkingDir": "/",
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "StopTimeout": 0,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _bind(source: str, target: str, writable: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": not writable}


def stage_request(
    policy: Policy,
    facts: EngineFacts,
    *,
    walls: bool,
    files: Mapping[str, bytes],
    mounts: Sequence[tuple[str, str]],
    command: Sequence[str],
) -> bytes:
    """What `engine_stage` reads from its stdin."""
    limits = policy.limits
    rlimits = {}
    if walls and limits.processes is not None and not facts.processes:
        rlimits["RLIMIT_NPROC"] = limits.processes + _GUEST_TASKS
    if limits.memory_bytes is not None and not facts.memory:
        rlimits["RLIMIT_DATA"] = limits.memory_bytes
    request = {
        "walls": walls,
        "disk_bytes": disk_bytes(limits) or 0,
        "files": {path: base64.b64encode(data).decode() for path, data in files.items()},
        "mounts": list(mounts),
        "working_dir": policy.working_dir,
        "rlimits": rlimits,
        "capabilities": list(CAPABILITIES.values()),
        "filter": base64.b64encode(build_filter(facts.machine)).decode(),
        "command": list(command),
    }
    data = json.dumps(request).encode()
    return struct.pack("!I", len(data)) + data


@cache
def stage_source() -> str:
    """The program's text without its comments' weight: it is an argument of limited length."""
    return resources.files("sandlot.sandbox").joinpath("engine_stage.py").read_text("utf-8")


def wall_profile() -> str:
    """The engine's filter while the stage builds: the deny list, less what the stage needs.

    The stage then loads the whole list itself; the kernel never lets a filter be taken off.
    """
    names = [name for name in denied_calls() if name not in _NEEDED_BY_WALLS]
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        }
    )


def disk_bytes(limits: Limits) -> int | None:
    """The disk's size. It lies in memory, so a part of that limit is its upper bound."""
    if limits.disk_bytes is None or limits.memory_bytes is None:
        return limits.disk_bytes
    return min(limits.disk_bytes, int(limits.memory_bytes * _DISK_SHARE))


def shared_memory_bytes(limits: Limits) -> int:
    """Small beside the memory limit, which it counts to: filling it must not end the sandbox."""
    most = 64 * MIB
    return most if limits.memory_bytes is None else min(most, limits.memory_bytes // 8)


def _resources(limits: Limits, facts: EngineFacts) -> dict[str, int]:
    """Only what the engine can limit: some refuse the container over the rest."""
    found: dict[str, int] = {}
    if limits.memory_bytes is not None and facts.memory:
        found |= {"Memory": limits.memory_bytes, "MemorySwap": limits.memory_bytes}
    if limits.processes is not None and facts.processes:
        found["PidsLimit"] = limits.processes + _GUEST_TASKS
    if limits.cpus is not None and facts.cpus:
        found["NanoCpus"] = int(limits.cpus * 1e9)
    return found


def _ulimits(limits: Limits, facts: EngineFacts) -> list[dict[str, Any]]:
    """The shell's own limit on open files is set by the guest, which needs more than the least.

    Both counts are always named to an engine of this machine: its own defaults may be more than it
    is allowed to give.
    """
    files = None if limits.open_files is None else max(limits.open_files, _GUEST_FILES)
    values = {"core": 0, "fsize": limits.file_bytes, "nofile": files}
    if facts.local:
        values["nofile"] = files or _at_most(_MANY_FILES, resource.RLIMIT_NOFILE)
        values["nproc"] = _at_most(_MANY_PROCESSES, resource.RLIMIT_NPROC)
    return [
        {"Name": name, "Soft": value, "Hard": value}
        for name, value in values.items()
        if value is not None
    ]


def _at_most(wanted: int, kind: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def enforcement(policy: Policy, facts: EngineFacts, form: Form) -> list[Enforcement]:
    """One row for each promise that the policy makes."""
    limits, engine = policy.limits, f"container of {facts.backend}"
    rows = [
        Enforcement("files", f"{engine}, mount namespace", True),
        _ids(facts, form),
        Enforcement("system calls", "seccomp, capabilities, no_new_privs", True),
        Enforcement("network", f"network namespace, {policy.network.mode.value}", True),
    ]
    group = "cgroup of the engine"
    if limits.memory_bytes is not None:
        note = "files written inside count too" if facts.memory else "of each process alone"
        means = group if facts.memory else "rlimit for each process"
        rows.append(Enforcement("memory", means, facts.memory, note))
    if limits.processes is not None:
        rows.append(_processes(facts, form, group))
    if limits.cpus is not None:
        rows.append(Enforcement("cpus", group if facts.cpus else "none", facts.cpus))
    if limits.disk_bytes is not None:
        rows.append(_disk(limits, form))
    if limits.open_files is not None:
        rows.append(Enforcement("open files", "rlimit for each process", True))
    if limits.file_bytes is not None:
        rows.append(Enforcement("file size", "rlimit for each process", True))
    if limits.wall_s is not None:
        rows.append(Enforcement("wall time", "timer of the host", True))
    rows.append(Enforcement("output", "bounded while read", True))
    return rows


def _ids(facts: EngineFacts, form: Form) -> Enforcement:
    if form.walls:
        return Enforcement("ids", "user namespace in the container", True)
    if facts.rootless:
        return Enforcement("ids", "user namespace of the rootless engine", True)
    return Enforcement("ids", "capabilities alone", False, f"no user namespace: {form.reason}")


def _processes(facts: EngineFacts, form: Form, group: str) -> Enforcement:
    if facts.processes:
        return Enforcement("processes", group, True)
    if form.walls and facts.rootless:
        return Enforcement("processes", "rlimit in its own user namespace", True)
    return Enforcement("processes", "none", False, "the engine has no process limit here")


def _disk(limits: Limits, form: Form) -> Enforcement:
    if not form.walls:
        return Enforcement("disk", "none", False, f"the image's layer grows freely: {form.reason}")
    size, asked = disk_bytes(limits), limits.disk_bytes
    note = "" if size == asked else f"{size} bytes, for it lies in the memory"
    return Enforcement("disk", "tmpfs of that size below an overlay", True, note)


def network_is_open(policy: Policy) -> bool:
    return policy.network.mode is not NetworkMode.NONE
