"""A person's terminal in a sandbox: `script` makes the pseudo-terminal inside, we relay bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import anyio

from sandlot.core.errors import SandboxError
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.bubblewrap import BubblewrapSandbox
from sandlot.sandbox.shell import CONTROL_DIR

_CHUNK = 64 * 1024
_PAUSE_S = 0.2
_END_OF_FILE = b"\x04"  # Ctrl-D, which a terminal turns into the end of the input
_FOR_EVER_S = 10.0 * 365 * 24 * 3600


async def terminal(sandbox: Sandbox, term: str = "xterm-256color") -> int:
    """Attach this process's terminal until the shell inside ends; returns its exit status.

    What is inside is hostile and writes to the terminal as any program run in it would.
    Raises SandboxError: a backend without terminals, or no `script` inside.
    """
    if not isinstance(sandbox, BubblewrapSandbox):
        raise SandboxError(f"backend {sandbox.backend!r} has no terminal")
    if (await sandbox.exec("command -v script")).exit_code != 0:
        raise SandboxError("the image has no `script` (package bsdutils), which makes the terminal")
    control = sandbox.control_folder
    ends = _open_pipes(control)
    size = _window()
    inner = f"stty rows {size.lines} columns {size.columns}; exec bash"
    command = (
        f"TERM={shlex.quote(term)} script -qefc {shlex.quote(inner)} /dev/null "
        f"<{CONTROL_DIR}/terminal.in >{CONTROL_DIR}/terminal.out 2>&1"
    )
    try:
        with _raw_mode(), _relay(*ends):
            result = await sandbox.exec(command, _FOR_EVER_S)
            await asyncio.sleep(0)  # the relay's last turn
        return result.exit_code or 0
    finally:
        for fd in ends:
            os.close(fd)
        for name in ("terminal.in", "terminal.out"):
            (control / name).unlink(missing_ok=True)


def _open_pipes(control: Path) -> tuple[int, int]:
    """(where our input goes, where its output comes from), both opened for reading and writing:

    so neither opening waits for the other side, and neither sees an end too early.
    """
    fds = []
    for name, mode in (("terminal.in", 0o644), ("terminal.out", 0o622)):
        os.mkfifo(control / name)
        (control / name).chmod(mode)
        fds.append(os.open(control / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    return fds[0], fds[1]


def _window() -> os.terminal_size:
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stdin.fileno())
    return os.terminal_size((80, 24))


@contextlib.contextmanager
def _raw_mode() -> Iterator[None]:
    """Keys go through as they are, Ctrl-C included; the settings come back at the end."""
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _relay(into: int, out_of: int) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def show() -> None:
        with contextlib.suppress(BlockingIOError):
            _write_all(sys.stdout.fileno(), os.read(out_of, _CHUNK))

    typist = asyncio.ensure_future(_type(sys.stdin.fileno(), into))
    loop.add_reader(out_of, show)
    try:
        yield
        show()
    finally:
        loop.remove_reader(out_of)
        typist.cancel()


async def _type(keys: int, into: int) -> None:
    """Pass on what is typed; after the end of the input, ask the shell to end until it does."""
    while data := await _read_keys(keys):
        while data:
            try:
                data = data[os.write(into, data) :]
            except BlockingIOError:
                await asyncio.sleep(_PAUSE_S)
    while True:  # one end of file can be taken by a program that runs before the shell reads
        with contextlib.suppress(BlockingIOError):
            os.write(into, _END_OF_FILE)
        await asyncio.sleep(_PAUSE_S)


async def _read_keys(keys: int) -> bytes:
    with contextlib.suppress(PermissionError):  # a regular file cannot be waited for: it is ready
        await anyio.wait_readable(keys)
    return os.read(keys, 1024)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            continue
