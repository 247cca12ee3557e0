"""TLS at the egress proxy: the name in a client's hello, and TLS spoken over a stream."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from sandlot.sandbox.egress_stream import CHUNK_BYTES, SocketStream, Stream
from sandlot.sandbox.egress_verdict import NOT_TLS, WRONG_TLS_NAME

UNRECOGNISED_NAME_ALERT = b"\x15\x03\x03\x00\x02\x02\x70"
_HELLO_BYTES, _HELLO_RECORDS = 16 * 1024, 16
_Result = TypeVar("_Result")


class NotTls(ValueError):
    """Bytes that do not begin a TLS connection; the message is a verdict."""


async def read_hello(stream: Stream, data: bytes, host: str) -> bytes:
    """The client's first bytes, up to a whole TLS hello that is meant for `host`.

    A hello that hides its name (ECH) shows another one outside: that one has to match.

    Raises:
        NotTls: they are something else (the message is a verdict).
    """
    buffer = bytearray(_HELLO_BYTES)
    while (hello := read_client_hello(data)) is None:
        size = await stream.recv_into(buffer)
        if not size:
            raise NotTls(NOT_TLS)
        data += buffer[:size]
    if hello.server_name is not None and hello.server_name != host:
        raise NotTls(WRONG_TLS_NAME)
    return data


@dataclass(frozen=True, slots=True)
class ClientHello:
    """The part of a TLS ClientHello that matters here, in lower case."""

    server_name: str | None


def read_client_hello(data: bytes) -> ClientHello | None:
    """The ClientHello at the start of a TLS stream, or None where more bytes are needed.

    Raises:
        NotTls: the bytes cannot be the start of one, or it breaks its own lengths.
    Source: RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3.
    """
    body = _handshake_body(data)
    if body is None:
        return None
    try:
        return ClientHello(_server_name(_Reader(body)))
    except (IndexError, UnicodeDecodeError) as error:
        raise NotTls(NOT_TLS) from error


def _handshake_body(data: bytes) -> bytes | None:
    """The first handshake message, put together from its records; None where it is not whole.

    Few records are taken: a hello in slivers, parsed again at each read, would cost us time.
    """
    message = b""
    position = 0
    for _ in range(_HELLO_RECORDS):
        header = data[position : position + 5]
        _check_record_start(header)
        length = int.from_bytes(header[3:5])
        message += data[position + 5 : position + 5 + length]
        _check_handshake_start(message)
        position += 5 + length
        if len(header) < 5 or len(data) < position:
            return None
        if len(message) >= 4 and len(message) - 4 >= int.from_bytes(message[1:4]):
            return message[4 : 4 + int.from_bytes(message[1:4])]
    raise NotTls(NOT_TLS)


def _check_record_start(header: bytes) -> None:
    if header[:1] not in (b"", b"\x16") or header[1:2] not in (b"", b"\x03"):
        raise NotTls(NOT_TLS)
    if len(header) == 5 and not 0 < int.from_bytes(header[3:5]) <= 16384:
        raise NotTls(NOT_TLS)


def _check_handshake_start(message: bytes) -> None:
    too_long = len(message) >= 4 and int.from_bytes(message[1:4]) > _HELLO_BYTES
    if message[:1] not in (b"", b"\x01") or too_long:
        raise NotTls(NOT_TLS)


class _Reader:
    """Takes length-prefixed fields from bytes; IndexError where they end early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position == len(self._data)

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise IndexError("field ends beyond its message")
        start, self._position = self._position, end
        return self._data[start:end]

    def field(self, length_bytes: int) -> bytes:
        return self.take(int.from_bytes(self.take(length_bytes)))


def _server_name(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version, random
    hello.field(1)  # session
    hello.field(2)  # cipher suites
    hello.field(1)  # compression methods
    if hello.at_end:
        return None
    extensions = _Reader(hello.field(2))
    names: list[str] = []
    while not extensions.at_end:
        kind = int.from_bytes(extensions.take(2))
        content = extensions.field(2)
        if kind == 0:
            names.append(_only_host_name(_Reader(content)))
    if not hello.at_end or len(names) > 1:
        raise IndexError("more than one server name, or bytes after the extensions")
    return names[0] if names else None


def _only_host_name(content: _Reader) -> str:
    entries = _Reader(content.field(2))
    kind = entries.take(1)
    name = entries.field(2).decode("ascii").lower()
    if kind != b"\0" or not entries.at_end or not content.at_end or not name:
        raise IndexError("a server name list holds exactly one host name")
    return name.removesuffix(".")


class TlsStream:
    """TLS over a stream, for one task that reads and writes by turns.

    Made by `accept` and `connect`, which return after the handshake.
    """

    def __init__(self, below: SocketStream, early: bytes = b"") -> None:
        self.below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(early)
        self._buffer = bytearray(CHUNK_BYTES)
        self._tls: ssl.SSLObject

    @classmethod
    async def accept(cls, below: SocketStream, context: ssl.SSLContext, early: bytes) -> TlsStream:
        """The server's end; `early` are bytes of the client that were read already.

        Raises:
            OSError: no handshake (`ssl.SSLError` is one).
        """
        made = cls(below, early)
        made._tls = context.wrap_bio(made._incoming, made._outgoing, server_side=True)
        await made._run(made._tls.do_handshake)
        return made

    @classmethod
    async def connect(cls, below: SocketStream, context: ssl.SSLContext, host: str) -> TlsStream:
        """The client's end, towards a host whose certificate `context` checks. Raises `OSError`."""
        made = cls(below)
        made._tls = context.wrap_bio(made._incoming, made._outgoing, server_hostname=host)
        await made._run(made._tls.do_handshake)
        return made

    async def recv_into(self, buffer: bytearray | memoryview) -> int:
        """0 at the announced end; an end without TLS's own farewell is an `ssl.SSLError`."""
        try:
            return await self._run(lambda: cast(int, self._tls.read(len(buffer), buffer)))
        except ssl.SSLZeroReturnError:
            return 0

    async def sendall(self, data: bytes | bytearray | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[await self._run(partial(self._tls.write, left)) :]

    async def end(self) -> None:
        """Say that nothing more comes."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it wants the other side's farewell, which nobody waits for
        await self._flush()
        await self.below.end()

    async def _run(self, step: Callable[[], _Result]) -> _Result:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.below.sendall(self._outgoing.read())

    async def _fill(self) -> None:
        size = await self.below.recv_into(self._buffer)
        if size:
            self._incoming.write(memoryview(self._buffer)[:size])
        else:
            self._incoming.write_eof()
