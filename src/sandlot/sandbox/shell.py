"""The persistent bash, driven by the host through pipes; no program of ours runs inside.

The control folder is a host folder that the sandbox sees read-only at CONTROL_DIR. For each
command the host puts there the command's text and two named pipes, and writes one line to the
shell that sources the text with its output on those pipes and then reports the exit status on a
third. So output is attributed to its command, and the end of a command does not wait for children
that keep its pipes.

The shell is an *interactive* bash without a terminal: SIGINT then throws it back to its prompt with
variables, functions, directory and job table intact. A real-time signal whose trap resets INT and
raises it makes that work although the command has set `trap '' INT`.

A `sh` that is process 1 starts the shell and starts it again when it ends. Whatever arrives on the
status pipe may be forged by the command: it can only lie about its own status.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandlot.core.errors import DeathCause, SandboxDied
from sandlot.sandbox.output import OutputStream
from sandlot.sandbox.policy import Limits
from sandlot.sandbox.processes import ProcessTree

CONTROL_DIR = "/run/sandlot"
_ABORT_SIGNAL = signal.SIGRTMAX - 5
_GRACE_S = 1.0
_START_S = 20.0
_STATUS_LINE_BYTES = 256
_STATUS_READ_BYTES = 4096
_STATUS_PAUSE_S = 0.02  # after lines that nobody waits for: a flood costs 200 kB/s of reading
_LATE_STREAMS = 64

KEEPER = f"""\
while read -r _ <&3; do
  bash --noprofile --norc --noediting -i -s 3<&- 2>/dev/null
  echo "exit $?" >{CONTROL_DIR}/status
done
"""
_SETUP = """\
set +H +o history; PS1= PS2= PROMPT_COMMAND=; unset HISTFILE MAILCHECK TMOUT
shopt -s expand_aliases checkwinsize
__sandlot_status() { return "$1"; }
trap 'trap - INT; kill -INT $$' RTMAX-5
"""


@dataclass(frozen=True, slots=True)
class ShellRun:
    """A command's outcome before its streams are turned into text. See `ExecResult`."""

    exit_code: int | None
    timed_out: bool
    flooded: bool
    shell_restarted: bool
    stdout: OutputStream
    stderr: OutputStream


class Shell:
    """One persistent bash. The caller queues: one `run` at a time.

    `died` is a future that the sandbox completes with its `SandboxDied`.
    """

    def __init__(
        self,
        control: Path,
        spool_dir: Path,
        commands_fd: int,
        keeper_fd: int,
        limits: Limits,
        died: asyncio.Future[SandboxDied],
    ) -> None:
        self._control = control
        self._spool_dir = spool_dir
        self._commands_fd = commands_fd
        self._keeper_fd = keeper_fd
        self._limits = limits
        self._died = died
        self._loop = asyncio.get_running_loop()
        # The inside can fill both pipes; a write that waited would stop every sandbox of the loop.
        os.set_blocking(commands_fd, False)
        os.set_blocking(keeper_fd, False)
        self._status_pause: asyncio.TimerHandle | None = None
        self._pid = 0
        self._tree: ProcessTree | None = None
        self._last_status = 0
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._partial = b""
        self._late: list[OutputStream] = []
        self._working_dir = "/"
        (control / "keeper").write_text(KEEPER)
        (control / "setup").write_text(_SETUP)
        os.mkfifo(control / "status")
        (control / "status").chmod(0o666)
        self._status_fd = os.open(control / "status", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self._status_fd, self._read_status)

    @property
    def pid(self) -> int:
        """The shell's process id inside."""
        return self._pid

    def watch(self, tree: ProcessTree) -> None:
        self._tree = tree

    async def begin(self, working_dir: str) -> None:
        """Start a bash. Raises SandboxDied when none answers in time."""
        self._tell(self._keeper_fd, b"start\n")
        line = f". {CONTROL_DIR}/setup; cd -- {shlex.quote(working_dir)}"
        answer = self._expect()
        report = f'builtin printf "{answer.name} %s\\n" "$$" >{CONTROL_DIR}/status'
        self._write(f"{line}; {report}\n")
        self._pid = await self._within(answer.future, _START_S, "the shell did not start")
        self._working_dir = working_dir

    async def run(self, command: str, timeout_s: float) -> ShellRun:
        """Run one command to its end, its timeout, its flood limit or the shell's own end."""
        tree = self._living_tree()
        self._late = [stream for stream in self._late if stream.open]
        answer, exited, flood = self._expect(), self._expect_exit(), self._loop.create_future()
        stdout, stderr = (self._open_stream(answer.name, end, flood) for end in ("o", "e"))
        before = {1, self._pid} if tree.only(self._pid) else tree.pids()
        self._working_dir = tree.working_dir(self._pid) or self._working_dir
        restarted, status = False, None
        try:
            self._send(answer.name, command)
            await asyncio.wait(
                {answer.future, exited, flood, self._died},
                timeout=timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._died.done():
                raise self._died.result()
            if answer.future.done():
                status = self._last_status = answer.future.result()
            elif exited.done():
                status, restarted = exited.result(), True
                await self._replace()
            else:
                restarted = await self._abort(before, exited)
        except asyncio.CancelledError:
            await asyncio.shield(self._abort(before, exited))
            raise
        finally:
            self._settle(answer.name, stdout, stderr)
        timed_out = status is None and not flood.done()
        return ShellRun(status, timed_out, flood.done(), restarted, stdout, stderr)

    def close(self) -> None:
        self._loop.remove_reader(self._status_fd)
        if self._status_pause is not None:
            self._status_pause.cancel()
        for fd in (self._status_fd, self._commands_fd, self._keeper_fd):
            os.close(fd)
        for stream in self._late:
            stream.close()
        self._late = []
        for future in self._waiting.values():
            future.cancel()
        self._waiting = {}

    # --- one command ----------------------------------------------------------------------------

    def _send(self, name: str, command: str) -> None:
        text = self._control / f"{name}.c"
        text.write_bytes(_encode(command) + b"\n")
        here = f"{CONTROL_DIR}/{name}"
        # `||` keeps `set -e` from ending the shell where $? of the last command is given back.
        prefix = f"__sandlot_status {self._last_status} || " if self._last_status else ""
        self._write(
            f"{prefix}{{ . {here}.c; }} </dev/null >{here}.o 2>{here}.e; "
            f'builtin printf "{name} %s\\n" "$?" >{CONTROL_DIR}/status\n'
        )

    def _open_stream(self, name: str, end: str, flood: asyncio.Future[None]) -> OutputStream:
        path = self._control / f"{name}.{end}"
        os.mkfifo(path)
        path.chmod(0o622)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

        def stop() -> None:
            if not flood.done():
                flood.set_result(None)

        return OutputStream(
            fd,
            capture_bytes=self._limits.capture_bytes,
            saved_bytes=self._limits.saved_bytes,
            flood_bytes=self._limits.flood_bytes,
            spool_dir=self._spool_dir,
            on_flood=stop,
        )

    def _settle(self, name: str, *streams: OutputStream) -> None:
        self._waiting.pop(name, None)
        for stream in streams:
            stream.finish()
            self._late.append(stream)
        for stream in self._late[:-_LATE_STREAMS]:
            stream.close()  # who still writes there meets a broken pipe: descriptors are finite
        self._late = self._late[-_LATE_STREAMS:]
        for end in ("c", "o", "e"):
            (self._control / f"{name}.{end}").unlink(missing_ok=True)

    # --- interruption ---------------------------------------------------------------------------

    async def _abort(self, before: set[int], exited: asyncio.Future[int]) -> bool:
        """End the running command and all its processes; True if the shell had to be replaced."""
        tree = self._living_tree()
        self._last_status = 0
        tree.kill([self._pid], signal.SIGCONT)
        tree.kill([self._pid], _ABORT_SIGNAL)
        await self._kill_descendants(before)
        answer = self._expect()
        self._write(f'builtin printf "{answer.name} 0\\n" >{CONTROL_DIR}/status\n')
        watched: set[asyncio.Future[Any]] = {answer.future, exited, self._died}
        await asyncio.wait(watched, timeout=_GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        self._waiting.pop(answer.name, None)
        if self._died.done():
            raise self._died.result()
        if answer.future.done():
            await self._kill_descendants(before)  # what a loop began before it was thrown out
            return False
        if not exited.done():
            tree.kill([self._pid])
            await self._within(exited, 5.0, "the shell could not be killed")
        await self._kill_descendants(before)
        await self._replace()
        return True

    async def _kill_descendants(self, before: set[int]) -> None:
        """Kill until none is left; stop them first, so that a fork bomb cannot outrun it.

        Raises SandboxDied: something keeps appearing; the sandbox is not to be trusted any more.
        """
        tree = self._living_tree()
        deadline = self._loop.time() + 5.0
        while victims := tree.descendants_since(before, self._pid):
            if len(victims) > 8:
                tree.kill(victims, signal.SIGSTOP)
            tree.kill(victims)
            if self._loop.time() > deadline:
                raise SandboxDied(DeathCause.UNRESPONSIVE, "processes outlive SIGKILL")
            await asyncio.sleep(0.001)

    async def _replace(self) -> None:
        if self._tree is not None:
            self._tree.forget(self._pid)
        self._last_status = 0
        await self.begin(self._working_dir)

    # --- the status pipe ------------------------------------------------------------------------

    def _expect(self) -> _Answer:
        name = secrets.token_hex(6)
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting[name] = future
        return _Answer(name, future)

    def _expect_exit(self) -> asyncio.Future[int]:
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting["exit"] = future
        return future

    def _read_status(self) -> None:
        """Parse `NAME NUMBER` lines. The other side is hostile: anything else is ignored."""
        try:
            data = self._partial + os.read(self._status_fd, _STATUS_READ_BYTES)
        except BlockingIOError:
            return
        *lines, rest = data.split(b"\n")
        self._partial = rest[:_STATUS_LINE_BYTES]
        useless = len(rest) > _STATUS_LINE_BYTES
        for line in lines:
            name, _, number = line[:_STATUS_LINE_BYTES].decode("ascii", "replace").partition(" ")
            future = self._waiting.get(name)
            if future is not None and not future.done() and number.isdigit() and len(number) < 10:
                future.set_result(int(number))
            else:
                useless = True
        if useless:
            self._loop.remove_reader(self._status_fd)
            self._status_pause = self._loop.call_later(_STATUS_PAUSE_S, self._listen)

    def _listen(self) -> None:
        self._loop.add_reader(self._status_fd, self._read_status)

    def _write(self, line: str) -> None:
        """The shell reads a line only when it is idle, so an honest pipe always has room."""
        self._tell(self._commands_fd, _encode(line))

    def _tell(self, fd: int, data: bytes) -> None:
        try:
            written = os.write(fd, data)
        except (BrokenPipeError, BlockingIOError) as exc:
            raise SandboxDied(
                DeathCause.UNRESPONSIVE, "the shell's input is full or closed"
            ) from exc
        if written < len(data):
            raise SandboxDied(DeathCause.UNRESPONSIVE, "the shell's input is full")

    async def _within(self, future: asyncio.Future[int], seconds: float, complaint: str) -> int:
        watched: set[asyncio.Future[Any]] = {future, self._died}
        await asyncio.wait(watched, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            return future.result()
        if self._died.done():
            raise self._died.result()
        raise SandboxDied(DeathCause.UNRESPONSIVE, complaint)

    def _living_tree(self) -> ProcessTree:
        if self._died.done():
            raise self._died.result()
        if self._tree is None:
            raise SandboxDied(DeathCause.START_FAILED, "the sandbox was not started")
        return self._tree


def _encode(command: str) -> bytes:
    """Bytes that came in as surrogate escapes go out as they were; half a character becomes `?`."""
    try:
        return command.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return command.encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Answer:
    name: str
    future: asyncio.Future[int]
