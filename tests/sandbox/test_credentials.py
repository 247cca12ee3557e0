"""Credentials at the wall, against TLS servers on loopback whose authority is made here."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandbox.proxy_world import World, get, status, world
from sandlot.core.errors import ConfigError, MissingExtra
from sandlot.core.types import EgressRecord
from sandlot.sandbox.credentials import (
    CertificateAuthority,
    CredentialWall,
    inside_files_and_environment,
    server_context,
)
from sandlot.sandbox.egress import EgressProxy
from sandlot.sandbox.hostconfig import CA_BUNDLE
from sandlot.sandbox.policy import Credential, Network, NetworkMode
from waiting import comes_true

SECRET = "Bearer s3cr3t"
API, OTHER = "api.example", "other.example"
NETWORK = Network(
    NetworkMode.OPEN,
    denied_hosts=("no.wild.example",),
    credentials=(
        Credential(API, SECRET),
        Credential(API, "k3y", "x-api-key"),
        Credential("*.wild.example", SECRET),
    ),
)


class Wide:
    """The world outside: one server for every name, what it was sent, and the way to it."""

    def __init__(self, proxied: World, wall: CredentialWall, outside: bytes) -> None:
        self.proxied = proxied
        self.wall = wall
        self.outside = outside

    async def ask(
        self, host: str, request: bytes, ca_pem: bytes | None = None, alpn: str = ""
    ) -> bytes:
        """What comes back for bytes sent through TLS in a tunnel to a host."""
        trusted = ca_pem or self.wall.ca_pem
        return await asyncio.to_thread(_ask, self.proxied.port, host, request, trusted, alpn)


def _ask(port: int, host: str, request: bytes, ca_pem: bytes, alpn: str) -> bytes:
    context = ssl.create_default_context(cadata=ca_pem.decode())
    if sys.version_info >= (3, 12):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if alpn:
        context.set_alpn_protocols([alpn])
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        head = sock.recv(4096)
        if b" 200 " not in head.split(b"\r\n")[0]:
            return head
        with context.wrap_socket(sock, server_hostname=host) as tls:
            tls.sendall(request)
            parts = []
            while part := tls.recv(65536):
                parts.append(part)
            return b"".join(parts)


async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the head and the body that it was sent."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
    sent = head + await reader.readexactly(size)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
    await writer.drain()


@asynccontextmanager
async def wide(network: Network = NETWORK, *, trusts: bool = True) -> AsyncIterator[Wide]:
    now = datetime.now(UTC)
    outside = CertificateAuthority([API, OTHER], now)
    upstream = ssl.create_default_context(
        cadata=(outside.certificate_pem if trusts else foreign(now)).decode()
    )
    wall = CredentialWall(network.credentials, now, upstream)
    # The server shows the same certificate for every name: it is made for the host with secrets.
    tls = server_context(*outside.issue(API))
    async with world(network, serve=repeat, wall=wall, tls=tls) as proxied:
        yield Wide(proxied, wall, outside.certificate_pem)


def foreign(now: datetime) -> bytes:
    return CertificateAuthority(["nobody.example"], now).certificate_pem


def inner(*headers: str, host: str = API, line: str = "GET /a?b HTTP/1.1") -> bytes:
    return "\r\n".join([line, f"Host: {host}", *headers, "", ""]).encode()


async def test_secret_is_added_for_its_host_and_replaces_what_came_from_inside() -> None:
    async with wide() as w:
        sent = inner("Authorization: mine", "AUTHORIZATION: too", "X-Api-Key: x", "X-Kept: 1")
        answer = await w.ask(API, sent.replace(b"X-Kept", b"Connection: close\r\nX-Kept"))
        assert status(answer) == 200
        arrived = answer.partition(b"\r\n\r\n")[2]
        assert arrived.startswith(b"GET /a?b HTTP/1.1\r\nHost: api.example\r\n")
        assert arrived.count(b"authorization: Bearer s3cr3t\r\n") == 1
        assert arrived.count(b"x-api-key: k3y\r\n") == 1
        assert arrived.lower().count(b"authorization") == arrived.lower().count(b"api-key") == 1
        assert b"X-Kept: 1\r\n" in arrived
        (record,) = w.proxied.records()
        assert (record.host, record.port, record.verdict) == (API, 443, "allowed")
        assert record.bytes_sent > 0
        assert record.bytes_received > 0


async def test_a_connection_carries_several_requests_and_their_bodies() -> None:
    async with wide() as w:
        post = inner("Content-Length: 3", line="POST / HTTP/1.1") + b"abc"
        answer = await w.ask(API, post + inner("Connection: close"))
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.count(SECRET.encode()) == 2
        assert b"\r\n\r\nabc" in answer
        assert [r.verdict for r in w.proxied.records()] == ["allowed", "allowed"]


async def test_other_hosts_are_tunnels_that_the_proxy_does_not_open() -> None:
    network = Network(NetworkMode.OPEN, credentials=(Credential(OTHER, SECRET),))
    async with wide(network) as w:
        request = inner("Connection: close")
        answer = await w.ask(API, request, ca_pem=w.outside)
        assert answer.partition(b"\r\n\r\n")[2] == request
        with pytest.raises(ssl.SSLError):
            await w.ask(API, request, ca_pem=w.wall.ca_pem)


async def test_plain_request_to_the_host_goes_without_the_secret() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(head) + head)

    now = datetime.now(UTC)
    wall = CredentialWall(NETWORK.credentials, now, ssl.create_default_context())
    async with world(NETWORK, serve=serve, wall=wall) as w:
        answer = await w.say(get(f"http://{API}/", "Connection: close"))
        assert status(answer) == 200
        assert b"s3cr3t" not in answer
        assert b"k3y" not in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        inner(host=OTHER),
        inner(host=f"{API}:8443"),
        inner("Host: other.example"),
        inner(line=f"GET https://{API}/ HTTP/1.1"),
        inner(line=f"GET https://{OTHER}/ HTTP/1.1"),
        inner(line=f"CONNECT {OTHER}:443 HTTP/1.1"),
        inner(line="TRACE / HTTP/1.1"),
        inner(line="OPTIONS * HTTP/1.1"),
        inner("Content-Length: 3", "Transfer-Encoding: chunked", line="POST / HTTP/1.1"),
        inner("X: a\rb"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01 no HTTP\r\n\r\n",
    ],
)
async def test_request_inside_that_is_not_plainly_for_the_host_goes_nowhere(
    request_bytes: bytes,
) -> None:
    async with wide() as w:
        answer = await w.ask(API, request_bytes)
        assert 400 <= status(answer) < 600
        assert b"s3cr3t" not in answer
        assert w.proxied.dialled == []
        assert {r.verdict for r in w.proxied.records()} == {"malformed request"}


async def test_host_with_a_certificate_that_does_not_verify_gets_no_request() -> None:
    async with wide(trusts=False) as w:
        answer = await w.ask(API, inner())
        assert status(answer) == 502
        assert b"has no valid TLS" in answer
        assert [r.verdict for r in w.proxied.records()] == ["TLS handshake failed"]


async def test_denied_host_stays_denied_with_a_credential() -> None:
    async with wide() as w:
        assert status(await w.ask("no.wild.example", inner())) == 403


async def test_client_that_does_not_trust_the_wall_leaves_a_record() -> None:
    async with wide() as w:
        with pytest.raises(ssl.SSLError):
            await w.ask(API, inner(), ca_pem=w.outside)
        found: list[EgressRecord] = []
        assert await comes_true(lambda: bool(found.extend(w.proxied.records()) or found))
        assert [r.verdict for r in found] == ["TLS handshake failed"]
        assert w.proxied.dialled == []


async def test_client_that_offers_more_than_http_1_gets_http_1() -> None:
    async with wide() as w:
        assert status(await w.ask(API, inner("Connection: close"), alpn="http/1.1")) == 200


async def test_byte_budget_holds_behind_the_wall() -> None:
    network = Network(NetworkMode.OPEN, max_bytes=20_000, credentials=(Credential(API, SECRET),))
    async with wide(network) as w:
        post = inner("Content-Length: 40000", line="POST / HTTP/1.1") + bytes(40_000)
        answer = await w.ask(API, post)
        assert status(answer) == 403
        assert [r.verdict for r in w.proxied.records()] == ["byte budget spent"]


def test_proxy_without_a_wall_refuses_a_policy_with_credentials() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, pytest.raises(ConfigError, match="wall"):
        EgressProxy(listener, NETWORK, frozenset())


@pytest.mark.parametrize(
    ("header", "secret"),
    [("host", "x"), ("Content-Length", "1"), ("connection", "x"), ("ä", "x"), ("x-a", " x")],
)
def test_header_that_no_request_could_carry_is_refused_at_once(header: str, secret: str) -> None:
    credential = Credential(API, secret, header)
    with pytest.raises(ConfigError, match="cannot be sent as header"):
        CredentialWall([credential], datetime.now(UTC), ssl.create_default_context())


# The authority


def test_authority_certifies_nothing_but_its_hosts() -> None:
    """OpenSSL itself refuses a certificate that the constraints do not cover."""
    now = datetime.now(UTC)
    authority = CertificateAuthority(["*.good.example", "one.example"], now)
    for host, good in [
        ("a.good.example", True),
        ("one.example", True),
        ("bad.example", False),
        ("xone.example", False),
    ]:
        if good:
            shake_hands(authority, host)
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
                shake_hands(authority, host)


def shake_hands(authority: CertificateAuthority, host: str) -> None:
    client = ssl.create_default_context(cadata=authority.certificate_pem.decode())
    server = server_context(*authority.issue(host))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert ends[0].version()


def test_authority_lives_days_not_years_and_is_one_of_a_kind() -> None:
    from cryptography import x509

    now = datetime.now(UTC)
    one, two = (CertificateAuthority([API], now).certificate_pem for _ in range(2))
    assert one != two
    found = x509.load_pem_x509_certificate(one)
    assert found.not_valid_after_utc - now <= timedelta(days=7)
    assert b"PRIVATE" not in one


def test_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(MissingExtra, match=r"sandlot\[credentials\]"):
        CertificateAuthority([API], datetime.now(UTC))


def test_trust_is_the_machine_s_bundle_and_the_wall_s_authority() -> None:
    trust = inside_files_and_environment(b"OURS\n", b"MACHINE")
    assert trust.files == {CA_BUNDLE: b"MACHINE\nOURS\n"}
    assert set(trust.environment.values()) == {CA_BUNDLE}
    assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"} <= set(trust.environment)


def test_secret_does_not_show_in_what_is_printed(tmp_path: Path) -> None:
    wall = CredentialWall(NETWORK.credentials, datetime.now(UTC), ssl.create_default_context())
    assert "s3cr3t" not in repr(wall) + repr(NETWORK)
