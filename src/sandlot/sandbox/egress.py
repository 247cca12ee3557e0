"""The egress proxy: the one way out of a sandbox's network namespace.

One proxy serves one sandbox. It accepts on a socket that already listens inside (so the listener
itself says which sandbox speaks), takes names only, resolves them on the host, refuses addresses
that are not public, and dials the very address that it checked. It carries HTTP and TLS and
nothing else. What it cannot see: what travels inside TLS, to a name that is allowed.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

import h11

from sandlot.core.errors import SandboxError
from sandlot.core.types import EgressRecord
from sandlot.sandbox.policy import Network, NetworkMode

PackageHosts = frozenset[str]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Dial = Callable[[str, int], Awaitable[socket.socket]]
AddressRule = Callable[[Address, bool], str | None]
"""Why an address must not be dialled, or None. The flag says that the name may be private."""

ALLOWED = "allowed"
NOT_ALLOWED = "not allowed"
NOT_A_NAME = "address instead of name"
PORT_NOT_ALLOWED = "port not allowed"
DOES_NOT_RESOLVE = "does not resolve"
PRIVATE_ADDRESS = "private address"
FORBIDDEN_ADDRESS = "forbidden address"
UNREACHABLE = "unreachable"
BAD_ANSWER = "no valid answer"
MALFORMED = "malformed request"
UNFINISHED = "unfinished"
NOT_TLS = "not TLS"
WRONG_TLS_NAME = "TLS name does not match"
NO_TOKEN = "no valid token"

_CHUNK_BYTES = 64 * 1024
_SMALL_BUFFER, _LARGE_BUFFER = 16 * 1024, 128 * 1024
_HELLO_BYTES, _HELLO_RECORDS = 16 * 1024, 16
_ADDRESSES_TRIED = 4
_UNRECOGNISED_NAME_ALERT = b"\x15\x03\x03\x00\x02\x02\x70"


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """Deadlines in seconds and ceilings of one proxy.

    `header_s` bounds the whole of a request's head (and of a TLS hello), however slowly it drips;
    `header_bytes` is checked between reads, so a head may be longer by one read (64 KiB);
    a connection without traffic for `idle_s` ends after at most twice that time. Beyond `records`
    single records, requests are only counted by host, port and verdict.
    """

    header_s: float = 20.0
    resolve_s: float = 15.0
    dial_s: float = 15.0
    idle_s: float = 300.0
    header_bytes: int = 32 * 1024
    connections: int = 256
    lookups: int = 8
    records: int = 1000


class NotTls(ValueError):
    """Bytes that do not begin a TLS connection."""


class _Refusal(Exception):
    """A request that ends here; `advice` is the text that the model reads.

    `asked` is what stood in the place of a name, where that was no name.
    """

    def __init__(self, status: int, verdict: str, advice: str, asked: str = "") -> None:
        super().__init__(advice)
        self.asked = asked
        self.status = status
        self.verdict = verdict
        self.advice = advice


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a request wants to go. `path` is None for a tunnel."""

    host: str
    port: int
    path: str | None = None


@dataclass(slots=True)
class _Tally:
    """What is known so far about one request; becomes its record."""

    host: str = ""
    port: int = 0
    verdict: str = ""
    sent: int = 0
    received: int = 0

    def add_sent(self, count: int) -> None:
        self.sent += count

    def add_received(self, count: int) -> None:
        self.received += count


@dataclass(slots=True)
class _Ledger:
    """Records in a bounded space, whatever the sandbox asks for."""

    limit: int
    single: list[EgressRecord] = field(default_factory=list)
    merged: dict[tuple[str, int, str], tuple[int, int]] = field(default_factory=dict)

    def add(self, tally: _Tally) -> None:
        if len(self.single) < self.limit:
            self.single.append(_record(tally.host, tally.port, tally.verdict, tally))
            return
        key = (tally.host, tally.port, tally.verdict)
        if key not in self.merged and len(self.merged) >= self.limit:
            key = ("(other hosts)", 0, tally.verdict)
        sent, received = self.merged.get(key, (0, 0))
        self.merged[key] = (sent + tally.sent, received + tally.received)

    def drain(self) -> list[EgressRecord]:
        merged = [EgressRecord(*key, *counts) for key, counts in self.merged.items()]
        records = self.single + merged
        self.single, self.merged = [], {}
        return records


class _Peer:
    """HTTP/1.1 spoken by h11 over a non-blocking socket, with its bytes counted."""

    def __init__(
        self,
        sock: socket.socket,
        http: h11.Connection,
        on_sent: Callable[[int], None] | None = None,
        on_received: Callable[[int], None] | None = None,
    ) -> None:
        self.sock = sock
        self.http = http
        self._on_sent = on_sent
        self._on_received = on_received
        self.asked_head = False

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        if data:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
            if self._on_sent:
                self._on_sent(len(data))

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        loop = asyncio.get_running_loop()
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            data = await loop.sock_recv(self.sock, _CHUNK_BYTES)
            if self._on_received:
                self._on_received(len(data))
            self.http.receive_data(data)


class EgressProxy:
    """Accepts on `listener` from `start` to `close`, which also closes the listener.

    The listener is a TCP or a Unix socket. With a `token`, only requests that bear it (as the
    password of the user `sandlot`, by `Proxy-Authorization: Basic`) are served.
    `resolve` turns a name into addresses, `dial` connects a non-blocking socket to one of them;
    both are handed in by tests, as is `address_rule`.
    """

    def __init__(
        self,
        listener: socket.socket,
        network: Network,
        packages: PackageHosts,
        *,
        token: str | None = None,
        resolve: Resolve | None = None,
        dial: Dial | None = None,
        address_rule: AddressRule | None = None,
        allowed_ports: frozenset[int] = frozenset({80, 443}),
        limits: ProxyLimits | None = None,
    ) -> None:
        self._listener = listener
        self._network = network
        self._packages = frozenset(name.lower() for name in packages)
        self._password = None if token is None else base64.b64encode(f"sandlot:{token}".encode())
        self._limits = limits or ProxyLimits()
        self._resolve = resolve or resolve_on_host
        self._dial = dial or dial_address
        self._address_rule = address_rule or address_refusal
        self._ports = allowed_ports
        self._ledger = _Ledger(self._limits.records)
        self._lookups = asyncio.Semaphore(self._limits.lookups)
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._closed = False
        self._retry: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to accept.

        Raises:
            SandboxError: the proxy was closed before.
        """
        if self._closed:
            raise SandboxError("the egress proxy was closed; build a new one on a new listener")
        self._listener.setblocking(False)
        self._watch()

    def drain_records(self) -> list[EgressRecord]:
        """Records of the requests that ended since the last call; an open tunnel is not among them.

        Bytes are those that passed between the proxy and the other host.
        """
        return self._ledger.drain()

    async def close(self) -> None:
        """End every connection and the listener. Safe to call twice."""
        self._closed = True
        self._unwatch()
        if self._retry is not None:
            self._retry.cancel()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    # Accepting by a reader callback instead of `sock_accept`: a cancelled `sock_accept` can lose
    # a connection that the kernel already gave it.

    def _watch(self) -> None:
        if not self._accepting and not self._closed:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            self._accepting = True

    def _unwatch(self) -> None:
        if self._accepting:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._accepting = False

    def _accept(self) -> None:
        if len(self._connections) >= self._limits.connections:
            self._unwatch()  # further ones wait in the kernel's backlog until one ends
            return
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            self._pause()
            return
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._connections.add(task)
        task.add_done_callback(lambda done: self._ended(done, sock))

    def _pause(self) -> None:
        """Out of descriptors or memory: try again in a moment instead of spinning."""
        self._unwatch()
        self._retry = asyncio.get_running_loop().call_later(0.2, self._watch)

    def _ended(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        # A task that is cancelled before its first step never reaches its own `finally`.
        sock.close()
        self._connections.discard(task)
        self._watch()
        if not task.cancelled() and (error := task.exception()):
            asyncio.get_running_loop().call_exception_handler(
                {"message": "egress connection failed", "exception": error, "task": task}
            )

    async def _serve(self, sock: socket.socket) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)
        client = _Peer(sock, http)
        with suppress(OSError, TimeoutError, h11.ProtocolError):  # the client left or broke off
            while await self._one_request(client):
                http.start_next_cycle()

    async def _one_request(self, client: _Peer) -> bool:
        """Serve one request; True when the connection can carry another."""
        try:
            return await self._recorded_request(client, _Tally())
        except _Refusal as refusal:
            await self._refuse(client, refusal)
            return False

    async def _recorded_request(self, client: _Peer, tally: _Tally) -> bool:
        try:
            request = await self._read_request(client)
            if request is None:
                return False
            tally.verdict = UNFINISHED
            return await self._serve_request(client, request, tally)
        except _Refusal as refusal:
            tally.verdict = refusal.verdict
            tally.host = tally.host or refusal.asked
            raise
        finally:
            if tally.verdict:
                self._ledger.add(tally)

    async def _read_request(self, client: _Peer) -> h11.Request | None:
        try:
            async with asyncio.timeout(self._limits.header_s):
                event = await client.next_event()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            raise _Refusal(status, MALFORMED, f"bad request: {error}.") from error
        if not isinstance(event, h11.Request):
            return None
        client.asked_head = event.method == b"HEAD"
        return event

    async def _serve_request(self, client: _Peer, request: h11.Request, tally: _Tally) -> bool:
        target = read_target(request)
        tally.host, tally.port = target.host, target.port
        self._check_token(request)
        upstream = await self._reach(target)
        with closing(upstream):
            tally.verdict = ALLOWED
            if target.path is None:
                await self._tunnel(client, upstream, target.host, tally)
                return False
            return await self._forward(client, request, upstream, target, tally)

    def _check_token(self, request: h11.Request) -> None:
        if self._password is None:
            return
        shown = [value for name, value in request.headers if name == b"proxy-authorization"]
        scheme, _, password = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        right = hmac.compare_digest(password.strip(), self._password)
        if scheme.lower() != b"basic" or not right:
            raise _Refusal(407, NO_TOKEN, "this proxy serves one sandbox, by its token only.")

    async def _refuse(self, client: _Peer, refusal: _Refusal) -> None:
        if client.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._answer(client, refusal)
        await _linger(client.sock)

    async def _answer(self, client: _Peer, refusal: _Refusal) -> None:
        body = f"sandlot egress proxy: {refusal.advice}\n".encode("ascii", "replace")
        headers = [
            ("Content-Type", "text/plain; charset=us-ascii"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        if refusal.status == 407:
            headers.append(("Proxy-Authenticate", 'Basic realm="sandlot"'))
        # curl, pip and git show the reason phrase of a refused tunnel, and never its body.
        reason = f"Sandbox network: {refusal.verdict}".encode()
        await client.send(h11.Response(status_code=refusal.status, headers=headers, reason=reason))
        if not client.asked_head:
            await client.send(h11.Data(data=body))
        await client.send(h11.EndOfMessage())

    async def _reach(self, target: _Target) -> socket.socket:
        """A connection to an address of the target that was checked.

        Raises:
            _Refusal: the policy forbids it, or nothing answers there.
        """
        where = f"{target.host}:{target.port}"
        if target.port not in self._ports:
            ports = ", ".join(str(port) for port in sorted(self._ports))
            raise _Refusal(
                403, PORT_NOT_ALLOWED, f"{where} is refused: only ports {ports} can be reached."
            )
        if not self._allows(target.host):
            raise _Refusal(403, NOT_ALLOWED, f"{where} is refused: {self._reachable()}.")
        addresses = await self._addresses(target)
        for address in addresses:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._limits.dial_s):
                    return await self._dial(address, target.port)
        raise _Refusal(502, UNREACHABLE, f"{where} is allowed but did not accept a connection.")

    def _allows(self, host: str) -> bool:
        if self._network.mode is NetworkMode.OPEN:
            return True
        if self._network.mode is NetworkMode.PACKAGES:
            return host in self._packages
        if self._network.mode is NetworkMode.ALLOW:
            return self._listed(host, self._network.hosts)
        return False

    def _listed(self, host: str, patterns: Iterable[str]) -> bool:
        """Whether one of the patterns (the word `packages` among them) names the host."""
        return any(
            host in self._packages if pattern == "packages" else host_matches(host, pattern)
            for pattern in patterns
        )

    def _reachable(self) -> str:
        if self._network.mode is NetworkMode.PACKAGES:
            return "this computer reaches only the package registries (pip, apt, npm)"
        names = ", ".join(self._network.hosts[:20]) or "no host"
        return f"this computer reaches only {names}"

    async def _addresses(self, target: _Target) -> list[str]:
        """The addresses that will be dialled, every one of them checked."""
        found: Sequence[str] = ()
        with suppress(OSError, TimeoutError, UnicodeError):  # all mean: no address
            async with asyncio.timeout(self._limits.resolve_s), self._lookups:
                found = await self._resolve(target.host, target.port)
        if not found:
            raise _Refusal(502, DOES_NOT_RESOLVE, f"{target.host} does not resolve to an address.")
        addresses = list(dict.fromkeys(found))[:_ADDRESSES_TRIED]
        may_be_private = self._listed(target.host, self._network.private_hosts)
        for address in addresses:
            reason = self._address_rule(ipaddress.ip_address(address), may_be_private)
            if reason is not None:
                raise _Refusal(403, reason, f"{target.host} is refused: it resolves to a {reason}.")
        return addresses

    async def _tunnel(
        self, client: _Peer, upstream: socket.socket, host: str, tally: _Tally
    ) -> None:
        await client.next_event()  # the request's end, so that h11 lets the protocol switch
        await client.send(
            h11.Response(status_code=200, headers=[], reason=b"Connection established")
        )
        early, _ = client.http.trailing_data
        try:
            async with asyncio.timeout(self._limits.header_s):
                hello = await _read_hello(client.sock, early, host)
        except NotTls as error:
            verdict = str(error)
            if verdict == WRONG_TLS_NAME:
                await asyncio.get_running_loop().sock_sendall(client.sock, _UNRECOGNISED_NAME_ALERT)
            raise _Refusal(403, verdict, f"{host} is refused: {verdict}.") from error
        await asyncio.get_running_loop().sock_sendall(upstream, hello)
        tally.add_sent(len(hello))
        await _relay(client.sock, upstream, tally, self._limits.idle_s)

    async def _forward(
        self,
        client: _Peer,
        request: h11.Request,
        upstream_sock: socket.socket,
        target: _Target,
        tally: _Tally,
    ) -> bool:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.header_bytes)
        upstream = _Peer(upstream_sock, http, tally.add_sent, tally.add_received)
        try:
            await upstream.send(_forwarded_request(request, target))
            await self._copy_body(client, upstream)
            response = await self._read_response(upstream)
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            raise _Refusal(
                502, BAD_ANSWER, f"{target.host} gave no valid answer ({type(error).__name__})."
            ) from error
        await client.send(response)
        await self._copy_body(upstream, client)
        return client.http.our_state is h11.DONE and client.http.their_state is h11.DONE

    async def _read_response(self, upstream: _Peer) -> h11.Response:
        while True:
            async with asyncio.timeout(self._limits.idle_s):
                event = await upstream.next_event()
            if isinstance(event, h11.Response):
                return _forwarded_response(event)
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection ended before a response")

    async def _copy_body(self, source: _Peer, sink: _Peer) -> None:
        """Copy one message's body; trailers are dropped."""
        while True:
            async with asyncio.timeout(self._limits.idle_s):
                event = await source.next_event()
                if isinstance(event, h11.Data):
                    await sink.send(h11.Data(data=event.data))
                    continue
                await sink.send(h11.EndOfMessage())
                return


def address_refusal(address: Address, may_be_private: bool) -> str | None:
    """Why an address must not be dialled, or None.

    `may_be_private` lifts the rule for private ranges only: this machine, its link (where cloud
    metadata lives), multicast and reserved ranges stay refused.
    """
    address = _unwrapped(address)
    if _within(address, _NEVER) or address.is_multicast or address.is_unspecified:
        return FORBIDDEN_ADDRESS
    if address.is_loopback or address.is_link_local:
        return FORBIDDEN_ADDRESS
    private = not address.is_global or _within(address, _PRIVATE)
    return PRIVATE_ADDRESS if private and not may_be_private else None


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(word) for word in text.split())


# This host, broadcast, and the addresses where clouds serve metadata outside the link-local
# range; then translation prefixes, through which an address may lead anywhere.
_NEVER = _networks(
    "0.0.0.0/8 240.0.0.0/4 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32"
    " fd00:ec2::254/128 fd20:ce::254/128 64:ff9b:1::/48 2001::/32 fec0::/10 ::/96"
)
# Ranges that some Python releases count as global.
_PRIVATE = _networks("100.64.0.0/10 192.0.0.0/24 192.88.99.0/24 fc00::/7 3fff::/20 5f00::/16")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _within(
    address: Address, networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only carries it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


async def resolve_on_host(host: str, port: int) -> list[str]:
    """The addresses of a name, as this machine's resolver orders them. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


async def dial_address(address: str, port: int) -> socket.socket:
    """A non-blocking socket connected to an address (never a name). Raises `OSError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"(?:\d+|0x[0-9a-f]*)")
_ABSOLUTE = re.compile(r"http://([^/?#\\]*)([/?][^#]*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"([^:\[\]@]+|\[[^\[\]]*\])(?::(\d{1,5}))?")


def host_matches(host: str, pattern: str) -> bool:
    """Whether a name is the pattern, or below it where the pattern is `*.name`."""
    pattern = pattern.lower().rstrip(".")
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def read_target(request: h11.Request) -> _Target:
    """Where a proxy request leads: `CONNECT host:port` or `METHOD http://host[:port]/path`.

    Raises:
        _Refusal: any other form, an address in any notation, or a head that two readers could
            understand in two ways.
    """
    headers = [name for name, _ in request.headers]
    text = request.target.decode("ascii", "replace")
    if request.method == b"CONNECT":
        if b"content-length" in headers or b"transfer-encoding" in headers:
            raise _malformed("a CONNECT request has no body")
        host, port = _read_authority(text, None)
        return _Target(host, port)
    if b"content-length" in headers and b"transfer-encoding" in headers:
        raise _malformed("a request has either Content-Length or Transfer-Encoding, not both")
    match = _ABSOLUTE.fullmatch(text)
    if match is None:
        raise _malformed("this is a proxy: use CONNECT host:443, or GET http://host/path")
    host, port = _read_authority(match[1], 80)
    _check_host_header(request, host, port)
    path = match[2] or "/"
    return _Target(host, port, path if path.startswith("/") else "/" + path)


def _check_host_header(request: h11.Request, host: str, port: int) -> None:
    for name, value in request.headers:
        if name == b"host" and _read_authority(value.decode("ascii", "replace"), 80) != (
            host,
            port,
        ):
            raise _malformed("the Host header names another host than the request line")


def _read_authority(text: str, default_port: int | None) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(text)
    if match is None or (match[2] is None and default_port is None):
        raise _malformed("the request names no host and port that can be read")
    port = int(match[2]) if match[2] else default_port
    assert port is not None
    return _read_name(match[1]), port


def _read_name(text: str) -> str:
    """A host name in lower case, without its last dot.

    A name whose last label is a number is an address to some resolver (127.1, 2130706433,
    0x7f.1), so it is none here.
    """
    name = text.lower().removesuffix(".")
    if name.startswith("[") or _NUMBER.fullmatch(name.rpartition(".")[2]):
        asked = name[:64]
        raise _Refusal(
            403,
            NOT_A_NAME,
            f"{asked} is refused: this computer reaches hosts by name only, never by address.",
            asked,
        )
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise _malformed("the host is not a host name")
    return name


def _malformed(what: str) -> _Refusal:
    return _Refusal(400, MALFORMED, f"bad request: {what}.")


_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authorization proxy-authenticate te trailer"
    b" upgrade proxy-authentication-info".split()
)


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
    # Framing and routing must not be dropped because a sender says so.
    named -= {b"content-length", b"transfer-encoding", b"host"}
    drop = _HOP_BY_HOP | named | set(also_drop)
    return [
        (name, value) for name, value in message.headers.raw_items() if name.lower() not in drop
    ]


def _forwarded_request(request: h11.Request, target: _Target) -> h11.Request:
    authority = target.host if target.port == 80 else f"{target.host}:{target.port}"
    headers = [
        (b"Host", authority.encode()),
        *_end_to_end(request, b"host", b"expect"),
        (b"Connection", b"close"),
    ]
    assert target.path is not None
    return h11.Request(method=request.method, target=target.path.encode(), headers=headers)


def _forwarded_response(response: h11.Response) -> h11.Response:
    chunked = any(name == b"transfer-encoding" for name, _ in response.headers)
    dropped = (b"transfer-encoding", b"content-length") if chunked else ()
    headers = _end_to_end(response, *dropped)
    return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)


async def _read_hello(sock: socket.socket, data: bytes, host: str) -> bytes:
    """The client's first bytes, up to a whole TLS hello that is meant for `host`.

    A hello that hides its name (ECH) shows another one outside, and is refused.

    Raises:
        NotTls: they are something else (the message is a verdict).
    """
    loop = asyncio.get_running_loop()
    while (hello := read_client_hello(data)) is None:
        more = await loop.sock_recv(sock, _CHUNK_BYTES)
        if not more:
            raise NotTls(NOT_TLS)
        data += more
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


async def _relay(left: socket.socket, right: socket.socket, tally: _Tally, idle_s: float) -> None:
    """Copy both ways until both ends closed, one failed, or nothing moved for `idle_s`."""
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
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
    """Copy one way until the source ends, then say so to the sink.

    The buffer starts small and grows while it fills: idle tunnels cost little memory.
    """
    loop = asyncio.get_running_loop()
    buffer = bytearray(_SMALL_BUFFER)
    while size := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(sink, memoryview(buffer)[:size])
        count(size)
        if size == len(buffer) < _LARGE_BUFFER:
            buffer = bytearray(2 * size)
        # Both calls return at once while data flows; without this one tunnel starves the rest.
        await asyncio.sleep(0)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


async def _linger(sock: socket.socket) -> None:
    """Let the client read our last words: unread input at close would reset the connection."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(1.0):
            for _ in range(64):
                if not await loop.sock_recv(sock, _CHUNK_BYTES):
                    return


def _record(host: str, port: int, verdict: str, tally: _Tally) -> EgressRecord:
    return EgressRecord(host, port, verdict, tally.sent, tally.received)
