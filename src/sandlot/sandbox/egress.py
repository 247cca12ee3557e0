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
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import h11

from sandlot.core.errors import ConfigError, SandboxError
from sandlot.core.types import EgressRecord
from sandlot.sandbox.egress_http import (
    Peer,
    Target,
    copy_request_body,
    copy_response_body,
    forwarded_request,
    forwarded_response,
    read_inner_target,
    read_target,
)
from sandlot.sandbox.egress_ledger import Budget, Ledger, Tally
from sandlot.sandbox.egress_names import (
    AddressRule,
    Dial,
    Resolve,
    address_refusal,
    dial_address,
    resolve_on_host,
)
from sandlot.sandbox.egress_rules import Rules
from sandlot.sandbox.egress_stream import SocketStream, Stream, linger, relay
from sandlot.sandbox.egress_tls import UNRECOGNISED_NAME_ALERT, NotTls, TlsStream, read_hello
from sandlot.sandbox.egress_verdict import (
    ALLOWED,
    BAD_ANSWER,
    DOES_NOT_RESOLVE,
    MALFORMED,
    NO_HANDSHAKE,
    NO_TOKEN,
    UNFINISHED,
    UNREACHABLE,
    WRONG_TLS_NAME,
    Refusal,
)
from sandlot.sandbox.policy import Network

if TYPE_CHECKING:
    from sandlot.sandbox.credentials import CredentialWall

PackageHosts = frozenset[str]
_Serve = Callable[[Peer, h11.Request, Tally], Awaitable[bool]]
"""Serves one request; True when its connection can carry another."""

_ADDRESSES_TRIED = 4


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


class EgressProxy:
    """Accepts on `listener` from `start` to `close`, which also closes the listener.

    The listener is a TCP or a Unix socket. With a `token`, only requests that bear it (as the
    password of the user `sandlot`, by `Proxy-Authorization: Basic`) are served. The `wall` keeps
    the credentials of the policy and is needed where it has some.
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
        wall: CredentialWall | None = None,
        resolve: Resolve | None = None,
        dial: Dial | None = None,
        address_rule: AddressRule | None = None,
        allowed_ports: frozenset[int] = frozenset({80, 443}),
        limits: ProxyLimits | None = None,
    ) -> None:
        self._listener = listener
        if network.credentials and wall is None:
            raise ConfigError(
                "this network policy has credentials, but its proxy was given no wall to keep them"
            )
        self._wall = wall
        self._rules = Rules(network, packages, allowed_ports)
        self._password = None if token is None else base64.b64encode(f"sandlot:{token}".encode())
        self._limits = limits or ProxyLimits()
        self._resolve = resolve or resolve_on_host
        self._dial = dial or dial_address
        self._address_rule = address_rule or address_refusal
        self._ledger = Ledger(self._limits.records)
        self._budget = Budget(network.max_bytes, network.max_connections)
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
        """What was asked since the last call; each byte stands in one record only.

        A request or tunnel that still runs is among them, with its bytes since the last call.
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
        with suppress(OSError, TimeoutError, h11.ProtocolError):  # the client left or broke off
            await self._converse(Peer(SocketStream(sock), self._server()), self._serve_request)

    async def _converse(self, client: Peer, serve: _Serve) -> None:
        """Serve the requests of one connection, one after the other."""
        while await self._one_request(client, serve):
            pass

    async def _one_request(self, client: Peer, serve: _Serve) -> bool:
        """Serve one request; True when the connection can carry another."""
        try:
            return await self._recorded_request(client, serve, Tally(self._budget))
        except Refusal as refusal:
            await self._refuse(client, refusal)
            return False

    async def _recorded_request(self, client: Peer, serve: _Serve, tally: Tally) -> bool:
        try:
            request = await self._read_request(client)
            if request is None:
                return False
            tally.verdict = UNFINISHED
            return await serve(client, request, tally)
        except Refusal as refusal:
            tally.verdict = refusal.verdict
            tally.host = tally.host or refusal.asked
            raise
        finally:
            self._ledger.end(tally)

    async def _read_request(self, client: Peer) -> h11.Request | None:
        try:
            async with asyncio.timeout(self._limits.header_s):
                event = await client.next_event()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            raise Refusal(status, MALFORMED, f"bad request: {error}.") from error
        if not isinstance(event, h11.Request):
            return None
        client.asked_head = event.method == b"HEAD"
        return event

    def _server(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)

    async def _serve_request(self, client: Peer, request: h11.Request, tally: Tally) -> bool:
        target = read_target(request)
        tally.host, tally.port = target.host, target.port
        self._check_token(request)
        self._rules.check(target)
        self._budget.check_bytes()
        if target.path is None and self._wall is not None and self._wall.guards(target.host):
            await self._end_tunnel_here(client, target, tally, self._wall)
            return False
        with closing(await self._reach(target)) as upstream:
            self._begin(tally)
            if target.path is None:
                await self._tunnel(client, upstream, target.host, tally)
                return False
            stream = SocketStream(upstream, tally.add_sent, tally.add_received)
            return await self._forward(
                client, request, stream, target.host, forwarded_request(request, target)
            )

    def _begin(self, tally: Tally) -> None:
        tally.verdict = ALLOWED
        self._ledger.begin(tally)

    def _check_token(self, request: h11.Request) -> None:
        if self._password is None:
            return
        shown = [value for name, value in request.headers if name == b"proxy-authorization"]
        scheme, _, password = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        right = hmac.compare_digest(password.strip(), self._password)
        if scheme.lower() != b"basic" or not right:
            raise Refusal(407, NO_TOKEN, "this proxy serves one sandbox, by its token only.")

    async def _refuse(self, client: Peer, refusal: Refusal) -> None:
        if client.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            async with asyncio.timeout(self._limits.header_s):
                await self._answer(client, refusal)
        await linger(client.stream)

    async def _answer(self, client: Peer, refusal: Refusal) -> None:
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

    async def _reach(self, target: Target) -> socket.socket:
        """A connection to an address of the target that was checked.

        Raises:
            Refusal: the addresses are forbidden, nothing answers there, or the budget is spent.
        """
        addresses = await self._addresses(target)
        self._budget.take_connection()
        for address in addresses:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._limits.dial_s):
                    return await self._dial(address, target.port)
        where = f"{target.host}:{target.port}"
        raise Refusal(502, UNREACHABLE, f"{where} is allowed but did not accept a connection.")

    async def _addresses(self, target: Target) -> list[str]:
        """The addresses that will be dialled, every one of them checked."""
        found: Sequence[str] = ()
        with suppress(OSError, TimeoutError, UnicodeError):  # all mean: no address
            async with asyncio.timeout(self._limits.resolve_s), self._lookups:
                found = await self._resolve(target.host, target.port)
        if not found:
            raise Refusal(502, DOES_NOT_RESOLVE, f"{target.host} does not resolve to an address.")
        addresses = list(dict.fromkeys(found))[:_ADDRESSES_TRIED]
        may_be_private = self._rules.may_be_private(target.host)
        for address in addresses:
            reason = self._address_rule(ipaddress.ip_address(address), may_be_private)
            if reason is not None:
                raise Refusal(403, reason, f"{target.host} is refused: it resolves to a {reason}.")
        return addresses

    async def _open_tunnel(self, client: Peer, host: str) -> bytes:
        """Say that the tunnel stands; the client's first bytes, a TLS hello for that host."""
        await client.next_event()  # the request's end, so that h11 lets the protocol switch
        await client.send(
            h11.Response(status_code=200, headers=[], reason=b"Connection established")
        )
        early, _ = client.http.trailing_data
        try:
            async with asyncio.timeout(self._limits.header_s):
                return await read_hello(client.stream, early, host)
        except NotTls as error:
            verdict = str(error)
            if verdict == WRONG_TLS_NAME:
                await client.stream.sendall(UNRECOGNISED_NAME_ALERT)
            raise Refusal(403, verdict, f"{host} is refused: {verdict}.") from error

    async def _tunnel(self, client: Peer, upstream: socket.socket, host: str, tally: Tally) -> None:
        hello = await self._open_tunnel(client, host)
        await SocketStream(upstream, tally.add_sent).sendall(hello)
        assert isinstance(client.stream, SocketStream)
        sock = client.stream.sock
        client.release()
        await relay(sock, upstream, tally, self._limits.idle_s)

    async def _end_tunnel_here(
        self, client: Peer, target: Target, tally: Tally, wall: CredentialWall
    ) -> None:
        """Be the TLS server for a host that has credentials, and serve the requests inside.

        Each of these is recorded by itself, so the tunnel as such is not.
        """
        hello = await self._open_tunnel(client, target.host)
        assert isinstance(client.stream, SocketStream)
        try:
            async with asyncio.timeout(self._limits.header_s):
                context = wall.server_context(target.host)
                stream = await TlsStream.accept(client.stream, context, hello)
        except (OSError, TimeoutError) as error:
            raise Refusal(403, NO_HANDSHAKE, f"{target.host}: {NO_HANDSHAKE}.") from error
        tally.verdict = ""
        serve = partial(self._serve_inside, target, wall)
        await self._converse(Peer(stream, self._server()), serve)
        await stream.end()

    async def _serve_inside(
        self,
        tunnel: Target,
        wall: CredentialWall,
        client: Peer,
        request: h11.Request,
        tally: Tally,
    ) -> bool:
        tally.host, tally.port = tunnel.host, tunnel.port
        target = read_inner_target(request, tunnel)
        self._budget.check_bytes()
        with closing(await self._reach(target)) as upstream:
            below = SocketStream(upstream, tally.add_sent, tally.add_received)
            try:
                async with asyncio.timeout(self._limits.dial_s):
                    stream = await TlsStream.connect(below, wall.upstream, target.host)
            except (OSError, TimeoutError) as error:
                raise Refusal(
                    502, NO_HANDSHAKE, f"{target.host} has no valid TLS ({error})."
                ) from error
            self._begin(tally)
            secret = forwarded_request(request, target, tls=True, add=wall.headers(target.host))
            return await self._forward(client, request, stream, target.host, secret)

    async def _forward(
        self, client: Peer, request: h11.Request, stream: Stream, host: str, rewritten: h11.Request
    ) -> bool:
        """Pass one request and its response; True when the client's connection can go on."""
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=self._limits.header_bytes)
        upstream = Peer(stream, http)
        behind = None
        try:
            await upstream.send(rewritten)
            with suppress(ConnectionError):  # who refuses a body answers before its end
                behind = await copy_request_body(client, upstream, request, self._limits.idle_s)
            response = await self._read_response(upstream)
        except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
            raise Refusal(
                502, BAD_ANSWER, f"{host} gave no valid answer ({type(error).__name__})."
            ) from error
        async with asyncio.timeout(self._limits.idle_s):
            await client.send(forwarded_response(response))
        await copy_response_body(upstream, client, response, self._limits.idle_s)
        if behind is None:
            await linger(client.stream)
        if behind is None or client.http.our_state is not h11.DONE:
            return False
        client.begin_again(self._server(), behind)
        return True

    async def _read_response(self, upstream: Peer) -> h11.Response:
        while True:
            async with asyncio.timeout(self._limits.idle_s):
                event = await upstream.next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the connection ended before a response")
