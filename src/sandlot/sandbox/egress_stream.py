"""Bytes between two sockets: counted streams, the relay of a tunnel, and a gentle end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from sandlot.sandbox.egress_ledger import Tally

CHUNK_BYTES = 64 * 1024
_SMALL_BUFFER, _LARGE_BUFFER = 16 * 1024, 128 * 1024
Count = Callable[[int], None]


class Stream(Protocol):
    """Ordered bytes both ways; every call raises `OSError` where the other side broke off."""

    async def recv_into(self, buffer: bytearray | memoryview) -> int: ...

    async def sendall(self, data: bytes | bytearray | memoryview) -> None: ...

    async def end(self) -> None: ...


class SocketStream:
    """A non-blocking socket; the counts are called before a byte passes on, and may refuse it."""

    def __init__(
        self, sock: socket.socket, on_sent: Count | None = None, on_received: Count | None = None
    ) -> None:
        self.sock = sock
        self._on_sent = on_sent
        self._on_received = on_received

    async def recv_into(self, buffer: bytearray | memoryview) -> int:
        size = await asyncio.get_running_loop().sock_recv_into(self.sock, buffer)
        if self._on_received:
            self._on_received(size)
        return size

    async def sendall(self, data: bytes | bytearray | memoryview) -> None:
        if self._on_sent:
            self._on_sent(len(data))
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def end(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


async def relay(left: socket.socket, right: socket.socket, tally: Tally, idle_s: float) -> None:
    """Copy both ways until both ends closed, one failed, or nothing moved for `idle_s`.

    Raises:
        Refusal: a count refused to let more pass.
    """
    pumps = {
        asyncio.create_task(_pump(left, right, tally.add_sent)),
        asyncio.create_task(_pump(right, left, tally.add_received)),
    }
    running = set(pumps)
    try:
        while running:
            before = tally.sent + tally.received
            done, running = await asyncio.wait(
                running, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED
            )
            idle = not done and before == tally.sent + tally.received
            if idle or any(pump.exception() for pump in done):
                break
    finally:
        for pump in pumps:
            pump.cancel()
        results = await asyncio.gather(*pumps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(
            result, OSError | asyncio.CancelledError
        ):
            raise result


async def _pump(source: socket.socket, sink: socket.socket, count: Count) -> None:
    """Copy one way until the source ends, then say so to the sink.

    The buffer starts small and grows while it fills: idle tunnels cost little memory.
    """
    loop = asyncio.get_running_loop()
    buffer = bytearray(_SMALL_BUFFER)
    while size := await loop.sock_recv_into(source, buffer):
        count(size)
        await loop.sock_sendall(sink, memoryview(buffer)[:size])
        if size == len(buffer) < _LARGE_BUFFER:
            buffer = bytearray(2 * size)
        # Both calls return at once while data flows; without this one tunnel starves the rest.
        await asyncio.sleep(0)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


async def linger(stream: Stream) -> None:
    """Let the client read our last words: unread input at close would reset the connection."""
    with suppress(OSError, TimeoutError):
        await stream.end()
        buffer = bytearray(CHUNK_BYTES)
        async with asyncio.timeout(1.0):
            for _ in range(64):
                if not await stream.recv_into(buffer):
                    return
