"""HTTP at the egress proxy: requests read strictly and written anew, bodies passed on.

h11 reads and writes every head and every chunk. Only bodies whose end needs no reading (by length,
or by the end of the connection) go around its parser, at the speed of a plain relay.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass

import h11

from sandlot.sandbox.egress_names import read_name
from sandlot.sandbox.egress_stream import Stream
from sandlot.sandbox.egress_verdict import malformed

_SMALL_BUFFER, _LARGE_BUFFER = 16 * 1024, 128 * 1024
_NO_BODY = (204, 304)
_Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]
_ABSOLUTE = re.compile(r"http://([^/?#\\]*)([/?][^#]*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"([^:\[\]@]+|\[[^\[\]]*\])(?::(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request wants to go. `path` is None for a tunnel."""

    host: str
    port: int
    path: str | None = None


def read_target(request: h11.Request) -> Target:
    """Where a proxy request leads: `CONNECT host:port` or `METHOD http://host[:port]/path`.

    Raises:
        Refusal: any other form, an address in any notation, or a head that two readers could
            understand in two ways.
    """
    headers = [name for name, _ in request.headers]
    text = request.target.decode("ascii", "replace")
    if request.method == b"CONNECT":
        if b"content-length" in headers or b"transfer-encoding" in headers:
            raise malformed("a CONNECT request has no body")
        host, port = _read_authority(text, None)
        return Target(host, port)
    if b"content-length" in headers and b"transfer-encoding" in headers:
        raise malformed("a request has either Content-Length or Transfer-Encoding, not both")
    match = _ABSOLUTE.fullmatch(text)
    if match is None:
        raise malformed("this is a proxy: use CONNECT host:443, or GET http://host/path")
    host, port = _read_authority(match[1], 80)
    _check_host_header(request, host, port, 80)
    path = match[2] or "/"
    return Target(host, port, path if path.startswith("/") else "/" + path)


def read_inner_target(request: h11.Request, tunnel: Target) -> Target:
    """Where a request inside a tunnel leads that ends at the proxy: to the tunnel's host, always.

    Raises:
        Refusal: another host, another form than `METHOD /path`, or a head with two readings.
    """
    headers = [name for name, _ in request.headers]
    if b"content-length" in headers and b"transfer-encoding" in headers:
        raise malformed("a request has either Content-Length or Transfer-Encoding, not both")
    path = request.target.decode("ascii", "replace")
    if not path.startswith("/") or request.method in (b"CONNECT", b"TRACE"):
        raise malformed("only METHOD /path is served here, and no CONNECT or TRACE")
    _check_host_header(request, tunnel.host, tunnel.port, 443)
    return Target(tunnel.host, tunnel.port, path)


def _check_host_header(request: h11.Request, host: str, port: int, usual: int) -> None:
    for name, value in request.headers:
        if name == b"host" and _read_authority(value.decode("ascii", "replace"), usual) != (
            host,
            port,
        ):
            raise malformed("the Host header names another host than the request line")


def _read_authority(text: str, default_port: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if match is None or (match[2] is None and default_port is None):
        raise malformed("the request names no host and port that can be read")
    port = int(match[2]) if match[2] else default_port
    assert port is not None
    return read_name(match[1]), port


_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authorization proxy-authenticate te trailer"
    b" upgrade proxy-authentication-info".split()
)
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host"))
CONNECTION_HEADERS = _HOP_BY_HOP | _FRAMING | {b"expect"}
"""Headers that only the two ends of a connection may set."""


def _end_to_end(
    message: h11.Request | h11.Response, *also_drop: bytes
) -> list[tuple[bytes, bytes]]:
    """Headers without those that concern one connection only, named by `Connection` included."""
    named = {
        word.strip().lower()
        for name, value in message.headers
        if name == b"connection"
        for word in value.split(b",")
    }
    named -= _FRAMING  # these must not be dropped because a sender says so
    drop = _HOP_BY_HOP | named | set(also_drop)
    return [
        (name, value) for name, value in message.headers.raw_items() if name.lower() not in drop
    ]


def forwarded_request(
    request: h11.Request, target: Target, *, tls: bool = False, add: Iterable[tuple[str, str]] = ()
) -> h11.Request:
    """The request as the other host gets it; headers in `add` replace those of the same name."""
    usual = 443 if tls else 80
    authority = target.host if target.port == usual else f"{target.host}:{target.port}"
    added = [(name.lower().encode(), value.encode()) for name, value in add]
    headers = [
        (b"Host", authority.encode()),
        *_end_to_end(request, b"host", b"expect", *(name for name, _ in added)),
        *added,
        (b"Connection", b"close"),
    ]
    assert target.path is not None
    return h11.Request(method=request.method, target=target.path.encode(), headers=headers)


def forwarded_response(response: h11.Response) -> h11.Response:
    chunked = any(name == b"transfer-encoding" for name, _ in response.headers)
    dropped = (b"transfer-encoding", b"content-length") if chunked else ()
    headers = _end_to_end(response, *dropped)
    return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)


class Peer:
    """HTTP/1.1 spoken by h11 over a stream."""

    def __init__(self, stream: Stream, http: h11.Connection) -> None:
        self.stream = stream
        self.http = http
        self.asked_head = False
        self._buffer = bytearray(_SMALL_BUFFER)

    def release(self) -> None:
        """Give back the buffer: the stream goes on without this speaker."""
        self._buffer = bytearray()

    def begin_again(self, http: h11.Connection, early: bytes) -> None:
        """Speak about the next request, whose first bytes were read already."""
        self.http = http
        if early:
            http.receive_data(early)

    async def send(self, event: h11.Event) -> None:
        parts = self.http.send_with_data_passthrough(event)
        if parts:
            await self.stream.sendall(parts[0] if len(parts) == 1 else b"".join(parts))

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            self.http.receive_data(await self.receive())  # type: ignore[arg-type]

    async def receive(self) -> memoryview:
        """The next bytes, empty at the end; they are valid until the next call."""
        if self.http.our_role is h11.SERVER and self.http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        size = await self.stream.recv_into(self._buffer)
        data = memoryview(self._buffer)[:size]
        if size == len(self._buffer) < _LARGE_BUFFER:
            self._buffer = bytearray(2 * size)
        return data


async def copy_request_body(source: Peer, sink: Peer, request: h11.Request, idle_s: float) -> bytes:
    """Copy a request's body; returns what was read of the bytes behind it."""
    headers = dict(request.headers)
    if b"transfer-encoding" in headers:
        return await _copy_events(source, sink, idle_s)
    return await _copy_raw(source, sink, int(headers.get(b"content-length", 0)), idle_s)


async def copy_response_body(
    source: Peer, sink: Peer, response: h11.Response, idle_s: float
) -> None:
    """Copy a response's body to the client that asked for it."""
    headers = dict(response.headers)
    if sink.asked_head or response.status_code in _NO_BODY:
        await sink.send(h11.EndOfMessage())
    elif b"transfer-encoding" in headers:
        await _copy_events(source, sink, idle_s)
    else:
        length = headers.get(b"content-length")
        await _copy_raw(source, sink, None if length is None else int(length), idle_s)


async def _copy_events(source: Peer, sink: Peer, idle_s: float) -> bytes:
    """Copy a body in chunks, framed anew; trailers are dropped."""
    while True:
        async with asyncio.timeout(idle_s):
            event: _Event = await source.next_event()
            data = []
            while isinstance(event, h11.Data):  # small chunks that came together go on as one
                data.append(event.data)
                event = source.http.next_event()
            await sink.send(h11.Data(data=b"".join(data)))
            if event is not h11.NEED_DATA:
                await sink.send(h11.EndOfMessage())
                return source.http.trailing_data[0]
        await asyncio.sleep(0)


async def _copy_raw(source: Peer, sink: Peer, left: int | None, idle_s: float) -> bytes:
    """Copy `left` bytes (None: all until the end) around h11's reader, by h11's writer."""
    piece = memoryview(source.http.trailing_data[0])
    while left is None or left > 0:
        async with asyncio.timeout(idle_s):
            piece = piece or await source.receive()
            if not piece:
                break
            part = piece[:left]
            await sink.send(h11.Data(data=part))  # type: ignore[arg-type]
        piece = piece[len(part) :]
        left = None if left is None else left - len(part)
        # Both calls return at once while data flows: let the other connections have a turn.
        await asyncio.sleep(0)
    if left:
        raise h11.RemoteProtocolError("the body ended before its announced length")
    await sink.send(h11.EndOfMessage())
    return bytes(piece)
