"""A client of the Engine API, as Docker and Podman serve it: JSON, streams, one hijacked attach.

Every call has a deadline. What an engine answers is read as data of an untrusted size.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandlot.core.errors import ConfigError, SandboxError, SandboxUnavailable

if TYPE_CHECKING:
    import httpx2

CALL_S = 60.0
_CONNECT_S = 10.0
_ANSWER_BYTES = 32 * 1024 * 1024
_LINE_BYTES = 1024 * 1024
_FRAME_BYTES = 64 * 1024 * 1024
_ERRORS_KEPT = 4096
_READ_BYTES = 256 * 1024
_VARIABLES = {"docker": "DOCKER_HOST", "podman": "CONTAINER_HOST"}


class EngineLost(SandboxUnavailable):
    """The engine cannot be reached, does not answer in time, or is no engine."""


class EngineRefusal(SandboxError):
    """The engine answered with an error; `status` is its HTTP status."""

    def __init__(self, what: str, status: int, reason: str) -> None:
        super().__init__(f"the engine refused to {what} (status {status}): {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where an engine listens: `socket` is a path, or `url` the base of a TCP address."""

    text: str
    socket: str | None = None
    url: str = "http://engine"


def parse_address(text: str) -> EngineAddress:
    """Read `unix:///path`, a bare path, `tcp://host:port` or `http(s)://host:port`.

    Raises:
        ConfigError: anything else.
    """
    scheme, _, rest = text.partition("://")
    if text.startswith("/"):
        return EngineAddress(f"unix://{text}", socket=text)
    if scheme == "unix" and rest.startswith("/"):
        return EngineAddress(text, socket=rest)
    if scheme in ("tcp", "http", "https") and rest.strip("/"):
        protocol = "http" if scheme == "tcp" else scheme
        return EngineAddress(text, url=f"{protocol}://{rest.rstrip('/')}")
    hint = " Forward it first: ssh -L /path/engine.sock:REMOTE_SOCKET" if scheme == "ssh" else ""
    raise ConfigError(
        f"engine address {text!r} is not known; write unix:///path or tcp://host:port.{hint}"
    )


def find_address(backend: str, asked: str | None, environ: Mapping[str, str]) -> EngineAddress:
    """The address that was asked for, else that of the environment, else the first socket there.

    Raises:
        SandboxUnavailable: no engine's socket exists.
        ConfigError: an address that cannot be read.
    """
    chosen = asked or environ.get(_VARIABLES[backend])
    if chosen:
        return parse_address(chosen)
    places = _usual_sockets(backend, environ)
    for place in places:
        if place.exists():
            return parse_address(str(place))
    start = "podman system service --time=0 &" if backend == "podman" else "start its service"
    raise SandboxUnavailable(
        f"no socket of {backend} was found (looked at {', '.join(map(str, places))}). "
        f"Start the engine ({start}), or name its address with --engine"
    )


def _usual_sockets(backend: str, environ: Mapping[str, str]) -> list[Path]:
    own = [Path(environ["XDG_RUNTIME_DIR"])] if environ.get("XDG_RUNTIME_DIR") else []
    name = "podman/podman.sock" if backend == "podman" else "docker.sock"
    shared = Path("/run") / name if backend == "podman" else Path("/var/run") / name
    personal = [folder / name for folder in own]
    return [shared, *personal] if os.getuid() == 0 else [*personal, shared]


class EngineClient:
    """Calls of one engine. Safe for many tasks at once; `close` ends its connections."""

    def __init__(self, address: EngineAddress, environ: Mapping[str, str] | None = None) -> None:
        import httpx2

        self.address = address
        context = _tls(address, environ or {})
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=16)
        transport = httpx2.AsyncHTTPTransport(
            uds=address.socket, verify=context, limits=limits, trust_env=False
        )
        base = address.url
        if context is not True and base.startswith("http://"):
            base = "https://" + base.removeprefix("http://")
        timeout = httpx2.Timeout(None, connect=_CONNECT_S)
        self._http = httpx2.AsyncClient(
            transport=transport, base_url=base, timeout=timeout, trust_env=False
        )

    async def call(
        self,
        what: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        deadline_s: float = CALL_S,
    ) -> Any:
        """One request; returns the answer's JSON (None where it is empty).

        `what` says in an error what the engine was asked to do.

        Raises:
            EngineRefusal: an answer that is an error.
            EngineLost: no answer.
        """
        async with (
            self._guarded(what, deadline_s),
            self._http.stream(method, path, params=query, json=body) as answer,
        ):
            data = await _read_bounded(answer, _ANSWER_BYTES)
            return _parsed(what, answer.status_code, data)

    async def lines(
        self,
        what: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | None = None,
        deadline_s: float = CALL_S,
    ) -> AsyncIterator[dict[str, Any]]:
        """A request whose answer is a sequence of JSON objects (pulls, imports)."""
        headers = {"Content-Type": "application/x-tar"} if content is not None else None
        async with (
            self._guarded(what, deadline_s),
            self._http.stream(
                method, path, params=query, content=content, headers=headers
            ) as answer,
        ):
            if answer.status_code >= 400:
                _parsed(what, answer.status_code, await _read_bounded(answer, _LINE_BYTES))
            async for found in _objects(answer):
                yield found

    async def attach(self, container: str) -> AttachedStream:
        """Stdin, stdout and stderr of a container, from before its start."""
        what = "attach to a container"
        query = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
        async with self._guarded(what, CALL_S), AsyncExitStack() as stack:
            answer = await stack.enter_async_context(
                self._http.stream(
                    "POST", f"/containers/{container}/attach", params=query, headers=headers
                )
            )
            if answer.status_code != 101:
                _parsed(what, answer.status_code, await _read_bounded(answer, _LINE_BYTES))
                raise EngineRefusal(what, answer.status_code, "no raw stream was offered")
            return AttachedStream(answer.extensions["network_stream"], stack.pop_all())
        raise AssertionError("unreachable: the block above returns or raises")

    async def close(self) -> None:
        await self._http.aclose()

    @asynccontextmanager
    async def _guarded(self, what: str, deadline_s: float) -> AsyncIterator[None]:
        """The deadline, and words for what the transport raises."""
        import httpx2

        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError as exc:
            raise EngineLost(
                f"the engine at {self.address.text} did not {what} within {deadline_s:g} s; "
                "see whether it is overloaded, or restart it"
            ) from exc
        except httpx2.ConnectError as exc:
            raise EngineLost(_unreachable(self.address, exc)) from exc
        except httpx2.RemoteProtocolError as exc:
            raise EngineLost(
                f"{self.address.text} does not answer as a container engine does ({exc}); "
                "name the socket of Docker's or Podman's API with --engine"
            ) from exc
        except (httpx2.TransportError, OSError) as exc:
            raise EngineLost(
                f"the engine at {self.address.text} went away while it was asked to {what} "
                f"({exc or type(exc).__name__})"
            ) from exc


class AttachedStream:
    """The two directions of an attached container, with the engine's frames taken off.

    A frame is eight bytes (stream, three zeros, length as a big-endian number) and its data; what
    arrives is handed on piece by piece, so that no claimed length costs memory. The last of what
    the container wrote to stderr is kept in `errors`.
    """

    def __init__(self, raw: Any, stack: AsyncExitStack) -> None:
        self._raw = raw
        self._stack = stack
        self._buffer = bytearray()
        self._ahead = b""
        self._left = 0
        self._kind = 1
        self._closed = False
        self.errors = bytearray()

    async def read(self) -> bytes:
        """The next bytes of the container's stdout; empty at the end.

        Raises:
            OSError: the connection broke, or carries something that is no frame.
        """
        if self._ahead:
            piece, self._ahead = self._ahead, b""
            return piece
        while True:
            if self._left and self._buffer:
                piece = self._take_piece()
                if self._kind == 1:
                    return piece
                self.errors = (self.errors + piece)[-_ERRORS_KEPT:]
            elif not self._left and len(self._buffer) >= 8:
                self._begin_frame()
            elif not await self._fill():
                return b""

    async def read_line(self, limit: int) -> bytes:
        """Stdout up to its first line's end or `limit`; what came after it is read later."""
        line = b""
        while b"\n" not in line and len(line) < limit:
            piece = await self.read()
            if not piece:
                break
            line += piece
        line, _, self._ahead = line.partition(b"\n")
        return line

    async def write(self, data: bytes) -> None:
        import httpx2

        try:
            await self._raw.write(data)
        except httpx2.TransportError as exc:
            raise ConnectionResetError(f"the engine took no more input ({exc})") from exc
        except Exception as exc:
            raise _as_broken(exc) from exc

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._stack.aclose()

    def _take_piece(self) -> bytes:
        piece = bytes(self._buffer[: self._left])
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        return piece

    def _begin_frame(self) -> None:
        kind, length = struct.unpack(">B3xI", self._buffer[:8])
        del self._buffer[:8]
        if kind > 2 or length > _FRAME_BYTES:
            raise ConnectionAbortedError(f"the engine sent a frame of kind {kind}, {length} bytes")
        self._kind, self._left = max(kind, 1), length

    async def _fill(self) -> bool:
        try:
            data = await self._raw.read(_READ_BYTES)
        except Exception as exc:
            raise _as_broken(exc) from exc
        self._buffer += data
        return bool(data)


def _as_broken(exc: Exception) -> Exception:
    """What a dead connection raises comes from three libraries; each kind means the same."""
    known = ("httpx2", "httpcore2", "anyio")
    if type(exc).__module__.split(".")[0] in known:
        return ConnectionResetError(f"the engine's stream broke ({type(exc).__name__})")
    return exc


def _tls(address: EngineAddress, environ: Mapping[str, str]) -> ssl.SSLContext | bool:
    """Client certificates as Docker's own command reads them; True is the library's default."""
    folder = environ.get("DOCKER_CERT_PATH")
    if address.socket or not (environ.get("DOCKER_TLS_VERIFY") and folder):
        return True
    try:
        context = ssl.create_default_context(cafile=os.path.join(folder, "ca.pem"))
        context.load_cert_chain(os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem"))
    except OSError as exc:
        raise ConfigError(f"the certificates in DOCKER_CERT_PATH={folder} fail: {exc}") from exc
    return context


def _unreachable(address: EngineAddress, exc: Exception) -> str:
    if address.socket is None:
        return f"no engine answers at {address.text} ({exc}); see whether it runs there"
    path = Path(address.socket)
    try:
        there = path.exists()
    except PermissionError:
        there = True
    if not there:
        return f"the engine's socket {path} does not exist; start the engine, or name its address"
    if not os.access(path, os.W_OK):
        return (
            f"the engine's socket {path} may not be used by this user; "
            "join the group that owns it, or use a rootless engine"
        )
    return f"nobody listens on the engine's socket {path}; start the engine"


async def _read_bounded(answer: httpx2.Response, limit: int) -> bytes:
    data = bytearray()
    async for part in answer.aiter_bytes():
        data += part
        if len(data) > limit:
            raise EngineLost(f"the engine answered with more than {limit} bytes")
    return bytes(data)


def _parsed(what: str, status: int, data: bytes) -> Any:
    try:
        found = json.loads(data) if data.strip() else None
    except ValueError:
        found = data.decode("utf-8", "replace")
    if status >= 400:
        reason = found.get("message", found) if isinstance(found, dict) else found
        raise EngineRefusal(what, status, str(reason)[:2000])
    return found


async def _objects(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """JSON objects, each in a line or simply one after the other, as engines send them."""
    text = ""
    decoder = json.JSONDecoder()
    async for part in answer.aiter_text():
        text = (text + part).lstrip()
        while text:
            try:
                found, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            if isinstance(found, dict):
                yield found
        if len(text) > _LINE_BYTES:
            raise EngineLost("the engine sent a line without end")
