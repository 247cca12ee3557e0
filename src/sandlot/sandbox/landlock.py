"""Landlock by the kernel's own interface: files, TCP ports, signals, for this thread and its heirs.

Only the standard library is used, and nothing of this package: the supervisor of the backend
`restricted` loads this file in a Python without any installed package. Numbers are those of the
kernel's uapi header `linux/landlock.h`; system calls have one number on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK = 1 << 6, 1 << 7, 1 << 8, 1 << 9
MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2

READ = READ_FILE | READ_DIR
"""Read files and list folders."""
RUN = READ | EXECUTE
"""What a folder of programs needs."""
DEVICE = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
"""Use a device such as /dev/null."""
OWN = (RUN | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK) | (
    MAKE_FIFO | MAKE_SYM | REFER
)
"""Everything in a folder but devices."""

_SINCE = {
    2: "moving and linking files between folders (refused altogether)",
    3: "truncate by path (refused by the system-call filter instead)",
    4: "TCP ports (kept by the system-call filter alone)",
    5: "commands to devices (no device but /dev/null and its like can be opened)",
    6: "signals to processes outside (the supervisor passes on those to processes inside)",
}

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The version of the kernel's Landlock, 0 where there is none."""
    version: int = _libc.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)
    )
    return max(0, version)


def lacking(version: int) -> tuple[str, ...]:
    """What Landlock of this version does not see, and what is done about each."""
    return tuple(text for since, text in _SINCE.items() if version < since)


def confine(rules: Iterable[tuple[str, int]], version: int) -> None:
    """Confine the calling thread and all that it starts, for ever.

    Each rule gives rights below one path; a path that is not there is left out. No TCP port may be
    bound or connected to, no signal leaves, no abstract Unix socket outside is reached, as far as
    `version` knows these.

    Raises:
        OSError: the kernel refused.
    """
    handled = _handled(version)
    ruleset = _create(handled, version)
    try:
        for path, access in rules:
            _allow(ruleset, path, access & handled)
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        restrict = (ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint32(0))
        _check(_libc.syscall(*restrict), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _handled(version: int) -> int:
    handled = MAKE_SYM * 2 - 1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        if version >= since:
            handled |= right
    return handled


def _create(handled: int, version: int) -> int:
    net = _BIND_TCP | _CONNECT_TCP if version >= 4 else 0
    scope = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if version >= 6 else 0
    length = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", handled, net, scope)[:length]
    fd: int = _libc.syscall(
        ctypes.c_long(_CREATE_RULESET),
        attributes,
        ctypes.c_size_t(length),
        ctypes.c_uint32(0),
    )
    return _check(fd, "landlock_create_ruleset")


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _OF_FILES
        attributes = struct.pack("=Qi", access, fd)
        call = (ctypes.c_long(_ADD_RULE), ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH))
        _check(_libc.syscall(*call, attributes, ctypes.c_uint32(0)), f"landlock rule for {path}")
    finally:
        os.close(fd)


def _check(value: int, what: str) -> int:
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return value
