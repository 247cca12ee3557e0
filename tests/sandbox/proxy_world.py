"""An egress proxy on loopback whose every name leads to one server on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sandlot.core.types import EgressRecord
from sandlot.sandbox.credentials import CredentialWall
from sandlot.sandbox.egress import EgressProxy, ProxyLimits
from sandlot.sandbox.egress_names import Resolve, dial_address
from sandlot.sandbox.policy import Network, NetworkMode

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OPEN = Network(NetworkMode.OPEN)
PUBLIC = "93.184.216.34"


def hello(name: str | None, *, extra: bytes = b"") -> bytes:
    """A small but complete TLS ClientHello record."""
    extensions = extra
    if name is not None:
        entry = b"\0" + len(name).to_bytes(2) + name.encode()
        names = len(entry).to_bytes(2) + entry
        extensions += b"\0\0" + len(names).to_bytes(2) + names
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += len(extensions).to_bytes(2) + extensions
    message = b"\x01" + len(body).to_bytes(3) + body
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


@dataclass
class World:
    """A proxy on loopback whose every name leads to one server on loopback."""

    proxy: EgressProxy
    port: int
    dialled: list[tuple[str, int]] = field(default_factory=list)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def say(self, data: bytes) -> bytes:
        """Send bytes and read until the proxy closes."""
        reader, writer = await self.open()
        try:
            writer.write(data)
            async with asyncio.timeout(5):
                return await reader.read()
        finally:
            writer.close()

    def records(self) -> list[EgressRecord]:
        return self.proxy.drain_records()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers an HTTP request with the head that arrived, as the body."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def world(
    network: Network = OPEN,
    *,
    serve: Serve = greet,
    packages: frozenset[str] = frozenset(),
    resolve: Resolve | None = None,
    limits: ProxyLimits | None = None,
    token: str | None = None,
    wall: CredentialWall | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[World]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def public(host: str, port: int) -> list[str]:
        return [PUBLIC]

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    server_port = server.sockets[0].getsockname()[1]

    async def dial(address: str, port: int) -> socket.socket:
        made.dialled.append((address, port))
        return await dial_address("127.0.0.1", server_port)

    listener = socket.create_server(("127.0.0.1", 0))
    proxy = EgressProxy(
        listener,
        network,
        packages,
        token=token,
        wall=wall,
        resolve=resolve or public,
        dial=dial,
        limits=limits,
    )
    made = World(proxy, listener.getsockname()[1])
    await proxy.start()
    try:
        yield made
    finally:
        await proxy.close()
        server.close()
        await server.wait_closed()


def get(url: str, *headers: str, host: str | None = None) -> bytes:
    host = host or url.split("/")[2]
    lines = [f"GET {url} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def connect(host: str, port: int = 443) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])
