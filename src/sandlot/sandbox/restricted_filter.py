"""The second system-call filter of the backend `restricted`, stacked on the one of `seccomp`.

It stands in for what namespaces would do. Sockets: only TCP over IPv4 can be made, none can listen,
and each `connect` is handed to the supervisor, which answers with a connection of its own to the
egress proxy or with a refusal; Unix sockets are refused whole, for Landlock (to ABI 7) does not
bound whom they reach, and a user's service manager listens on one. What changes other processes of
the same user (limits, priorities, shared System V objects) is refused.

Landlock does not bound changes of times, modes, owners and extended attributes. Times by path are
handed to the supervisor too, attributes are refused; where the sandbox has no user id of its own,
modes by path are handed over and changes of owners refused. Call numbers are those of the kernel's
own tables (uapi `unistd_64.h`, `unistd.h`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox.seccomp import (
    _ALLOW,
    _ARCH_OFFSET,
    _ARCHITECTURES,
    _ARG0_OFFSET,
    _EAFNOSUPPORT,
    _EPERM,
    _ERRNO,
    _JEQ,
    _JSET,
    _KILL,
    _LD_ABS,
    _NR_OFFSET,
    _RET,
    _op,
)

_AND = 0x54
_NOTIFY = 0x7FC00000
_EACCES, _ENOSYS, _EOPNOTSUPP = 13, 38, 95
_AF_UNIX, _AF_INET = 1, 2
_STREAM, _SEQPACKET, _TYPE_MASK = 1, 5, 0xF
_TCP = 6
_MSG_FASTOPEN = 0x20000000  # sendto(2) with it connects, and Landlock does not see it
_F_SETOWN, _F_SETOWN_EX = 8, 15
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902

# name: (x86_64, aarch64); None where the architecture has no such call
_NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "chroot": (161, 51),
    "inotify_add_watch": (254, 27),
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utimensat": (280, 88),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
_SHARED = (
    "shmget",
    "shmat",
    "shmctl",
    "semget",
    "semop",
    "semctl",
    "semtimedop",
    "msgget",
    "msgsnd",
    "msgrcv",
    "msgctl",
    "mq_open",
    "mq_unlink",
)
_DENIED = {
    **dict.fromkeys(_SHARED, _EACCES),
    **dict.fromkeys(("bind", "listen"), _EACCES),
    **dict.fromkeys(
        (
            "migrate_pages",
            "process_madvise",
            "process_mrelease",
            "pidfd_getfd",
            "chroot",
            "inotify_add_watch",
        ),
        _EPERM,
    ),
}
_ATTRIBUTES = (
    "setxattr",
    "lsetxattr",
    "fsetxattr",
    "removexattr",
    "lremovexattr",
    "fremovexattr",
    "setxattrat",
    "removexattrat",
)
_UNSEEN = {  # by Landlock, on files that modes leave open to all
    **dict.fromkeys(_ATTRIBUTES, _EOPNOTSUPP),
    **dict.fromkeys(("utime", "utimes", "futimesat"), _ENOSYS),
    "file_setattr": _EPERM,
}
_OTHERS_FILES = dict.fromkeys(("chown", "lchown", "fchown", "fchownat"), _EPERM)
_OTHERS_PROCESSES = dict.fromkeys(
    ("pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo"), _EPERM
)
_ONLY_ITSELF = (
    "sched_setparam",
    "sched_setscheduler",
    "sched_setaffinity",
    "sched_setattr",
)


def call_numbers(machine: str) -> dict[str, int]:
    """The system calls of this filter by name, without those that the architecture lacks.

    Raises:
        SandboxUnavailable: an architecture without a table.
    """
    if machine not in _ARCHITECTURES:
        raise SandboxUnavailable(
            f"no system-call table for {machine!r} (have: {', '.join(_ARCHITECTURES)})"
        )
    column = 0 if machine == "x86_64" else 1
    found = {name: numbers[column] for name, numbers in _NUMBERS.items()}
    return {name: number for name, number in found.items() if number is not None}


@cache
def build_restricted_filter(
    machine: str, *, inet: bool, own_id: bool, signals: bool, truncate: bool
) -> bytes:
    """The filter as an array of `struct sock_filter`, for a listener.

    Args:
        inet: TCP sockets can be made, and `connect` is handed to the supervisor.
        own_id: the sandbox has a user id that nobody else has.
        signals: `kill` and its kin are handed to the supervisor (no Landlock scope for signals).
        truncate: Landlock does not see truncate(2), so that it is refused.
    """
    calls = call_numbers(machine)
    denied = {**_DENIED, **_UNSEEN}
    handed = {"connect"} if inet else set()
    if not own_id:
        denied |= _OTHERS_FILES
        handed |= {"chmod", "fchmodat", "fchmodat2"}
    if signals:
        denied |= _OTHERS_PROCESSES
        handed |= {"kill", "tkill", "tgkill"}
    if truncate:
        denied["truncate"] = _EPERM
    code = [_op(_LD_ABS, k=_ARCH_OFFSET), _op(_JEQ, 1, 0, _ARCHITECTURES[machine].audit)]
    code += [_op(_RET, k=_KILL), _op(_LD_ABS, k=_NR_OFFSET)]
    for name, number in denied.items():
        if name in calls:
            code += _on(calls[name], [_error(number)])
    for name in sorted(handed & calls.keys()):
        code += _on(calls[name], [_op(_RET, k=_NOTIFY)])
    code += _sockets(calls, inet)
    code += _on(calls["fcntl"], _refuse_values(1, (_F_SETOWN, _F_SETOWN_EX)))
    code += _on(calls["ioctl"], _refuse_values(1, (_FIOSETOWN, _SIOCSPGRP)))
    code += _on(calls["utimensat"], _hand_over_paths())
    if not own_id:
        code += _others_of_this_user(calls)
    code.append(_op(_RET, k=_ALLOW))
    return b"".join(code)


def _others_of_this_user(calls: Mapping[str, int]) -> list[bytes]:
    """What the kernel lets a user change of all his processes, Landlock or not."""
    code: list[bytes] = []
    for name in _ONLY_ITSELF:
        code += _on(calls[name], _require(0, (0,)))
    code += _on(calls["setpriority"], _require(0, (0,)) + _require(1, (0,)))
    code += _on(calls["ioprio_set"], _require(0, (1,)) + _require(1, (0,)))
    return code + _on(calls["prlimit64"], [*_load(0), _op(_JEQ, 1, 0, 0), _op(_RET, k=_NOTIFY)])


def _sockets(calls: Mapping[str, int], inet: bool) -> list[bytes]:
    if inet:
        family = [*_load(0), _op(_JEQ, 1, 0, _AF_INET), _error(_EAFNOSUPPORT)]
        kind = [*_load(1), _op(_AND, k=_TYPE_MASK), _op(_JEQ, 1, 0, _STREAM), _error(_EACCES)]
        socket = [*family, *kind, *_require(2, (0, _TCP))]
    else:
        socket = [_error(_EAFNOSUPPORT)]
    pair = [*_load(0), _op(_JEQ, 1, 0, _AF_UNIX), _error(_EAFNOSUPPORT)]
    # A datagram socket of a pair could be connected anew, to any Unix socket.
    pair += [*_load(1), _op(_AND, k=_TYPE_MASK)]
    pair += [_op(_JEQ, 2, 0, _STREAM), _op(_JEQ, 1, 0, _SEQPACKET), _error(_EACCES)]
    code = _on(calls["socket"], socket) + _on(calls["socketpair"], pair)
    for name, argument in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        flag = [*_load(argument), _op(_JSET, 0, 1, _MSG_FASTOPEN), _error(_EPERM)]
        code += _on(calls[name], flag)
    return code


def _on(call: int, body: list[bytes]) -> list[bytes]:
    """Run `body` for one call; if it does not return, the call is allowed by this filter."""
    return [_op(_JEQ, 0, len(body) + 1, call), *body, _op(_RET, k=_ALLOW)]


def _require(argument: int, values: tuple[int, ...]) -> list[bytes]:
    tests = [_op(_JEQ, len(values) - n, 0, value) for n, value in enumerate(values)]
    return [*_load(argument), *tests, _error(_EPERM)]


def _refuse_values(argument: int, values: tuple[int, ...]) -> list[bytes]:
    tests = [_op(_JEQ, len(values) - n, 0, value) for n, value in enumerate(values)]
    return [*_load(argument), *tests, _op(_RET, k=_ALLOW), _error(_EPERM)]


def _hand_over_paths() -> list[bytes]:
    """utimensat(2) without a path is about a descriptor that is open already."""
    low, high = _ARG0_OFFSET + 8, _ARG0_OFFSET + 12
    return [
        _op(_LD_ABS, k=low),
        _op(_JEQ, 0, 2, 0),
        _op(_LD_ABS, k=high),
        _op(_JEQ, 1, 0, 0),
        _op(_RET, k=_NOTIFY),
    ]


def _load(argument: int) -> list[bytes]:
    return [_op(_LD_ABS, k=_ARG0_OFFSET + 8 * argument)]


def _error(number: int) -> bytes:
    return _op(_RET, k=_ERRNO | number)
