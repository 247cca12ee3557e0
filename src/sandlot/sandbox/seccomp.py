"""The system-call filter: a deny list in classic BPF, generated here for each architecture.

Denied calls fail with EPERM; `clone3` fails with ENOSYS, so that the C library falls back to
`clone`, whose flags a filter can see. Calls of a foreign architecture or of the x32 table end the
process. Call numbers are those of the kernel's own tables (uapi `unistd_64.h`, `unistd.h`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from sandlot.core.errors import SandboxUnavailable

_LD_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink; vsock would leave the network namespace
_NR_OFFSET, _ARCH_OFFSET, _ARG0_OFFSET, _ARG1_OFFSET = 0, 4, 16, 24
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag, time namespaces included
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETLEASE = 1024  # on a file of a mount it would hold up every program of the host that opens it
_X32_BIT = 0x40000000


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    clone: int
    ioctl: int
    fcntl: int
    sockets: tuple[int, int]
    denied: Mapping[str, int]


_COMMON = {  # identical on every architecture: numbers above 424
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "open_tree_attr": 467,
}
_CLONE3 = 435
_X86_64 = {
    "ptrace": 101,
    "syslog": 103,
    "vhangup": 153,
    "pivot_root": 155,
    "acct": 163,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "swapoff": 168,
    "reboot": 169,
    "init_module": 175,
    "delete_module": 176,
    "quotactl": 179,
    "clock_settime": 227,
    "kexec_load": 246,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "move_pages": 279,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "kcmp": 312,
    "finit_module": 313,
    "kexec_file_load": 320,
    "bpf": 321,
    "userfaultfd": 323,
    "io_setup": 206,  # its requests come out of one count for the whole machine
}
_AARCH64 = {
    "ptrace": 117,
    "syslog": 116,
    "vhangup": 58,
    "pivot_root": 41,
    "acct": 89,
    "settimeofday": 170,
    "mount": 40,
    "umount2": 39,
    "swapon": 224,
    "swapoff": 225,
    "reboot": 142,
    "init_module": 105,
    "delete_module": 106,
    "quotactl": 60,
    "clock_settime": 112,
    "kexec_load": 104,
    "add_key": 217,
    "request_key": 218,
    "keyctl": 219,
    "unshare": 97,
    "move_pages": 239,
    "perf_event_open": 241,
    "fanotify_init": 262,
    "open_by_handle_at": 265,
    "setns": 268,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "kcmp": 272,
    "finit_module": 273,
    "kexec_file_load": 294,
    "bpf": 280,
    "userfaultfd": 282,
    "io_setup": 0,
}
_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, 56, 16, 72, (41, 53), {**_X86_64, **_COMMON}),
    "aarch64": _Architecture(0xC00000B7, 220, 29, 25, (198, 199), {**_AARCH64, **_COMMON}),
}


def denied_calls() -> tuple[str, ...]:
    """The names of what every architecture denies, for engines that take names."""
    return (*_X86_64, *_COMMON)


@cache
def build_filter(machine: str, *, allow_ptrace: bool = False) -> bytes:
    """The filter as an array of `struct sock_filter`, for `bwrap --seccomp`.

    Raises:
        SandboxUnavailable: an architecture without a table.
    """
    arch = _ARCHITECTURES.get(machine)
    if arch is None:
        raise SandboxUnavailable(
            f"no system-call table for {machine!r} (have: {', '.join(_ARCHITECTURES)})"
        )
    denied = [nr for name, nr in arch.denied.items() if not (allow_ptrace and name == "ptrace")]
    code = [_op(_LD_ABS, k=_ARCH_OFFSET), _op(_JEQ, 1, 0, arch.audit), _op(_RET, k=_KILL)]
    code.append(_op(_LD_ABS, k=_NR_OFFSET))
    if machine == "x86_64":
        code += [_op(_JGE, 0, 1, _X32_BIT), _op(_RET, k=_KILL)]
    code += [_op(_JEQ, 0, 1, _CLONE3), _op(_RET, k=_ERRNO | _ENOSYS)]
    for number in sorted(denied):
        code += [_op(_JEQ, 0, 1, number), _op(_RET, k=_ERRNO | _EPERM)]
    code += _deny_flags(arch.clone, _ARG0_OFFSET, _op(_JSET, 0, 1, _NEW_NAMESPACES))
    for request in (_TIOCSTI, _TIOCLINUX):
        code += _deny_flags(arch.ioctl, _ARG1_OFFSET, _op(_JEQ, 0, 1, request))
    code += _deny_flags(arch.fcntl, _ARG1_OFFSET, _op(_JEQ, 0, 1, _F_SETLEASE))
    for number in arch.sockets:
        code += _only_families(number)
    code.append(_op(_RET, k=_ALLOW))
    return b"".join(code)


def _deny_flags(call: int, argument: int, test: bytes) -> list[bytes]:
    """Deny one call where `test` holds of the low word of an argument."""
    return [
        _op(_JEQ, 0, 4, call),
        _op(_LD_ABS, k=argument),
        test,
        _op(_RET, k=_ERRNO | _EPERM),
        _op(_LD_ABS, k=_NR_OFFSET),
    ]


def _only_families(call: int) -> list[bytes]:
    """Deny socket(2) or socketpair(2) for every family that no namespace of ours contains."""
    known = [_op(_JEQ, len(_FAMILIES) - n, 0, family) for n, family in enumerate(_FAMILIES)]
    return [
        _op(_JEQ, 0, len(known) + 3, call),
        _op(_LD_ABS, k=_ARG0_OFFSET),
        *known,
        _op(_RET, k=_ERRNO | _EAFNOSUPPORT),
        _op(_LD_ABS, k=_NR_OFFSET),
    ]


def _op(code: int, jump_true: int = 0, jump_false: int = 0, k: int = 0) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, k)
