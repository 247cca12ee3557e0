"""The egress proxy against a plain asyncio relay and a direct connection, on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from measure import Row, Sample, ratio

from sandlot.sandbox.egress import EgressProxy
from sandlot.sandbox.policy import Network, NetworkMode

_PEERS = str(Path(__file__).with_name("peers.py"))
_BYTES = 256 * 1024 * 1024
_ROUTES = ("direct", "relay", "proxy")


async def proxy(n: int) -> list[Row]:
    async with _server() as port, _relay(port) as relay, _proxy(port) as tunnel:
        ports = {"direct": port, "relay": relay, "proxy": tunnel}
        opens = {route: await _fetch(ports[route], route, "opens", n) for route in _ROUTES}
        pings = {route: await _fetch(ports[route], route, "pings", 20 * n) for route in _ROUTES}
        speeds = {kind: await _speeds(ports, kind, n) for kind in ("bytes", "length", "chunks")}
    return [
        _row("proxy: connection to first byte", opens, "ms"),
        _row("proxy: one byte there and back", pings, "ms"),
        _row("proxy: throughput", speeds["bytes"], "GB/s"),
        _row("proxy: throughput, plain HTTP", speeds["length"], "GB/s"),
        _row("proxy: throughput, plain HTTP in chunks", speeds["chunks"], "GB/s"),
    ]


async def _speeds(ports: dict[str, int], kind: str, n: int) -> dict[str, list[float]]:
    """Transfers by every route in turn, so that a noisy minute hits them alike."""
    found: dict[str, list[float]] = {route: [] for route in _ROUTES}
    for _ in range(n):
        for route in _ROUTES:
            took = await _fetch(ports[route], route, kind, _BYTES)
            found[route].append(_BYTES / 1e6 / took[0])  # MB a millisecond is GB a second
    return found


def _row(name: str, found: dict[str, list[float]], unit: str) -> Row:
    value, floor = Sample.of(found["proxy"], unit), Sample.of(found["relay"], unit)
    direct = Sample.of(found["direct"], unit)
    detail = {"direct": direct, "over_relay": round(value.median - floor.median, 3)}
    return Row(name, value, floor, "plain asyncio relay", "", None, ratio(value, floor), detail)


async def _fetch(port: int, route: str, kind: str, count: int) -> list[float]:
    tunnel = "tunnel" if route == "proxy" else "plain"
    words = [sys.executable, "-I", "-S", _PEERS, "fetch", str(port), tunnel, kind, str(count)]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the client failed on route {route}")
    found: list[float] = json.loads(said)
    return found


@asynccontextmanager
async def _server() -> AsyncIterator[int]:
    words = [sys.executable, "-I", "-S", _PEERS, "serve"]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _relay(port: int) -> AsyncIterator[int]:
    """What any proxy in this event loop must at least do: two streams and two copies."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def _proxy(port: int) -> AsyncIterator[int]:
    """The proxy in mode `open`, every name leading to the measurement's own server."""

    async def public(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    async def dial(address: str, _port: int) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return sock

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    network = Network(NetworkMode.OPEN)
    made = EgressProxy(listener, network, frozenset(), resolve=public, dial=dial)
    await made.start()
    try:
        yield listener.getsockname()[1]
    finally:
        await made.close()
