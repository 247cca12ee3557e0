"""The harness's side of the launcher: requests out, descriptors back, a deadline on each."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandlot.core.errors import SandboxUnavailable

_PACKET_BYTES = 1 << 20
_SEND_BUFFER_BYTES = 1 << 20


class LauncherReply(OSError):
    """The launcher refused or failed a request, with the system's error number.

    `lost` where there was no answer at all: the channel is not in step any more.
    """

    lost = False


class LauncherLost(LauncherReply):
    """No answer came."""

    lost = True


def settle(future: asyncio.Future[None]) -> None:
    """Mark as done once: a reader may be called again before it is taken away."""
    if not future.done():
        future.set_result(None)


class Channel:
    """One request's own socket: messages and descriptors both ways."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._sock = sock

    async def receive(self, within_s: float = 30.0) -> tuple[dict[str, Any], list[int]]:
        """The next answer and its descriptors (the caller closes them).

        Raises:
            LauncherReply: an error answer, none in time, or a launcher that is gone.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._sock, settle, ready)
        try:
            await asyncio.wait_for(ready, within_s)
        except TimeoutError as exc:
            raise LauncherLost(62, f"the launcher did not answer within {within_s:g} s") from exc
        finally:
            loop.remove_reader(self._sock)
        return self._take()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises LauncherLost: the other end is gone."""
        try:
            self._sock.send(json.dumps(message).encode())
        except OSError as exc:
            raise LauncherLost(exc.errno, f"the launcher's child cannot be asked: {exc}") from exc

    async def ask(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], list[int]]:
        self.send(message)
        return await self.receive()

    def close(self) -> None:
        self._sock.close()

    def _take(self) -> tuple[dict[str, Any], list[int]]:
        data, ancillary, _flags, _address = self._sock.recvmsg(
            _PACKET_BYTES, socket.CMSG_SPACE(16 * 4), socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % 4])
        if not data:
            raise LauncherLost(5, "the launcher's child ended without an answer")
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise LauncherReply(answer["errno"], answer["error"])
        return answer, list(fds)


class Launcher:
    """The running helper process. Ends with its socket, and takes every sandbox with it.

    `prefix` is put before its command line: a program that starts it elsewhere and becomes it.
    """

    def __init__(self, lease_dir: Path, lock: int, prefix: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = Path(__file__).with_name("launcher.py")
        with theirs:
            self._process = subprocess.Popen(
                [
                    *prefix,
                    sys.executable,
                    "-I",
                    "-S",
                    str(script),
                    str(theirs.fileno()),
                    str(lease_dir),
                    str(lock),
                ],
                pass_fds=[theirs.fileno(), lock],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
            )
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._sock = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def request(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> Channel:
        """Send a request; the answer comes on the channel that is returned."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            rights = array.array("i", [theirs.fileno(), *fds])
            try:
                self._sock.sendmsg(
                    [json.dumps(message).encode()],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                )
            except OSError as exc:
                ours.close()
                raise SandboxUnavailable("the sandbox launcher is gone") from exc
        return Channel(ours)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a request that has no answer. A launcher that is gone shows at the next one."""
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps(message).encode())

    @contextlib.asynccontextmanager
    async def asking(
        self, message: Mapping[str, Any], fds: Sequence[int] = (), within_s: float = 30.0
    ) -> AsyncIterator[tuple[dict[str, Any], list[int]]]:
        channel = self.request(message, fds)
        try:
            yield await channel.receive(within_s)
        finally:
            channel.close()

    async def run_mapped(
        self,
        argv: Sequence[str],
        folder: Path,
        *,
        stdin: int,
        stdout: int,
        userns: int | None = None,
    ) -> tuple[int, str]:
        """Run a host program inside the id map, in `folder`; returns (exit status, its stderr)."""
        read_end, write_end = os.pipe()
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fds = [folder_fd, stdin, stdout, write_end] + ([] if userns is None else [userns])
            channel = self.request({"op": "run", "argv": list(argv)}, fds)
        finally:
            os.close(folder_fd)
            os.close(write_end)
        try:
            complaint = await asyncio.to_thread(_read_all, read_end)
            answer, _ = await channel.receive()
            return int(answer["exit"]), complaint
        finally:
            channel.close()

    async def close(self) -> None:
        self._sock.close()
        await asyncio.to_thread(self._process.wait)

    def abandon(self) -> None:
        """End one that was never asked for anything, or never became the launcher."""
        self._sock.close()
        self._process.kill()
        self._process.wait()


def _read_all(fd: int) -> str:
    with os.fdopen(fd, "rb") as file:
        said = file.read(64 * 1024)
        while file.read(64 * 1024):  # a closed pipe would kill a program that complains much
            pass
        return said.decode("utf-8", "replace")
