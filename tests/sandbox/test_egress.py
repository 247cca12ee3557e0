"""The egress proxy against servers on loopback. Names are example names; nothing is looked up."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import random
import socket
from contextlib import suppress
from pathlib import Path

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.proxy_world import (
    OPEN,
    PUBLIC,
    World,
    connect,
    echo,
    get,
    hello,
    status,
    world,
)
from sandlot.core.errors import SandboxError
from sandlot.core.types import EgressRecord
from sandlot.sandbox.egress import EgressProxy, ProxyLimits
from sandlot.sandbox.egress_names import address_refusal, host_matches
from sandlot.sandbox.egress_tls import NotTls, read_client_hello
from sandlot.sandbox.policy import Network, NetworkMode
from waiting import comes_true

# What passes and what does not


async def test_plain_request_to_an_allowed_name_is_forwarded_in_origin_form() -> None:
    async with world(Network(NetworkMode.ALLOW, ("example.org",))) as w:
        answer = await w.say(get("http://Example.org/a?b=c", "Connection: close"))
        assert status(answer) == 200
        assert b"GET /a?b=c HTTP/1.1\r\n" in answer
        assert b"Host: example.org\r\n" in answer
        (record,) = w.records()
        assert (record.host, record.port, record.verdict) == ("example.org", 80, "allowed")
        assert record.bytes_sent > 0
        assert record.bytes_received > len(b"HTTP/1.1 200 OK")


async def test_tunnel_to_an_allowed_name_carries_bytes_both_ways_and_counts_them() -> None:
    async with world(serve=echo) as w:
        reader, writer = await w.open()
        first = hello("example.org")
        writer.write(connect("example.org"))
        assert status(await reader.readuntil(b"\r\n\r\n")) == 200
        writer.write(first + b"x" * 300_000)
        writer.write_eof()
        got = await reader.read()
        writer.close()
        assert got == first + b"x" * 300_000
        found: list[EgressRecord] = []
        assert await comes_true(lambda: bool(found.extend(w.records()) or found))
        assert found == [EgressRecord("example.org", 443, "allowed", len(got), len(got))]


async def test_client_may_send_its_tls_hello_along_with_the_connect() -> None:
    async with world(serve=echo) as w:
        reader, writer = await w.open()
        writer.write(connect("example.org") + hello("example.org") + b"more")
        writer.write_eof()
        assert (await reader.read()).endswith(hello("example.org") + b"more")
        writer.close()


async def test_refusal_says_which_host_and_what_can_be_reached() -> None:
    async with world(Network(NetworkMode.ALLOW, ("good.example",))) as w:
        answer = await w.say(get("http://bad.example/"))
        assert status(answer) == 403
        assert b"bad.example:80 is refused: this computer reaches only good.example" in answer
        assert w.dialled == []
        assert w.records() == [EgressRecord("bad.example", 80, "not allowed")]


async def test_refused_tunnel_names_its_reason_where_clients_show_it() -> None:
    async with world(Network(NetworkMode.PACKAGES)) as w:
        answer = await w.say(connect("bad.example"))
        assert answer.startswith(b"HTTP/1.1 403 Sandbox network: not allowed\r\n")


async def test_refused_head_request_gets_a_head_only() -> None:
    async with world(Network(NetworkMode.PACKAGES)) as w:
        answer = await w.say(get("http://bad.example/").replace(b"GET", b"HEAD", 1))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("host", "pattern", "expected"),
    [
        ("a.example.org", "*.example.org", True),
        ("a.b.example.org", "*.example.org", True),
        ("example.org", "*.example.org", False),
        ("evilexample.org", "*.example.org", False),
        ("example.org", "EXAMPLE.org", True),
        ("example.org.evil.net", "example.org", False),
    ],
)
def test_wildcard_means_names_below(host: str, pattern: str, expected: bool) -> None:
    assert host_matches(host, pattern) is expected


@pytest.mark.parametrize(
    ("network", "allowed", "refused"),
    [
        (Network(NetworkMode.PACKAGES), ["index.example"], ["other.example"]),
        (Network(NetworkMode.ALLOW, ("packages", "*.a.example")), ["index.example", "x.a.example"],
         ["a.example", "other.example"]),
        (Network(NetworkMode.OPEN), ["index.example", "other.example"], []),
        (Network(NetworkMode.NONE), [], ["index.example"]),
    ],
)  # fmt: skip
async def test_each_mode_lets_its_names_through(
    network: Network, allowed: list[str], refused: list[str]
) -> None:
    async with world(network, packages=frozenset({"Index.example"})) as w:
        for host in allowed:
            assert status(await w.say(get(f"http://{host}/", "Connection: close"))) == 200
        for host in refused:
            assert status(await w.say(get(f"http://{host}/"))) == 403


@pytest.mark.parametrize(
    "network",
    [
        Network(NetworkMode.OPEN, denied_hosts=("*.bad.example", "exact.example")),
        Network(NetworkMode.ALLOW, ("*.example",), denied_hosts=("*.bad.example", "Exact.example")),
        Network(NetworkMode.PACKAGES, denied_hosts=("*.bad.example", "exact.example")),
        Network(NetworkMode.ALLOW, ("*.example",), ("*.example",), ("packages",)),
    ],
)
async def test_denied_hosts_are_refused_whatever_allows_them(network: Network) -> None:
    packages = frozenset({"a.bad.example", "exact.example"})
    async with world(network, packages=packages) as w:
        for request in (connect("a.bad.example"), get("http://EXACT.example./")):
            answer = await w.say(request)
            assert status(answer) == 403
            assert b"is on the list of denied hosts" in answer
        assert [r.verdict for r in w.records()] == ["denied", "denied"]
        assert w.dialled == []


async def test_a_trailing_dot_does_not_make_another_name() -> None:
    async with world(Network(NetworkMode.ALLOW, ("example.org",))) as w:
        assert status(await w.say(get("http://example.org./", "Connection: close"))) == 200


@pytest.mark.parametrize("port", [22, 25, 8080, 0, 65536, 99999])
async def test_other_ports_are_refused(port: int) -> None:
    async with world() as w:
        assert status(await w.say(connect("example.org", port))) == 403
        assert [r.verdict for r in w.records()] == ["port not allowed"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "93.184.216.34",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "example.0x7f",
        "1.2.3.4.",
        "017700000001",
        "127.0.0.1.",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1%25eth0]",
    ],
)
async def test_addresses_are_refused_in_every_notation(host: str) -> None:
    async with world() as w:
        assert status(await w.say(connect(host))) == 403
        assert status(await w.say(get(f"http://{host}/"))) == 403
        records = w.records()
        assert {r.verdict for r in records} == {"address instead of name"}
        assert {r.host for r in records} == {host.removesuffix(".")}
        assert w.dialled == []


# Addresses behind names


@pytest.mark.parametrize(
    ("address", "reason", "reason_when_private_is_fine"),
    [
        ("93.184.216.34", None, None),
        ("2606:2800:220:1:248:1893:25c8:1946", None, None),
        ("::ffff:93.184.216.34", None, None),
        ("10.0.0.1", "private address", None),
        ("172.16.3.4", "private address", None),
        ("192.168.1.1", "private address", None),
        ("100.64.0.1", "private address", None),
        ("192.0.0.8", "private address", None),
        ("fd12::1", "private address", None),
        ("::ffff:10.0.0.1", "private address", None),
        ("64:ff9b::a00:1", "private address", None),
        ("64:ff9b::5db8:d822", None, None),
        ("2002:5db8:d822::1", None, None),
        ("2606:2800::5efe:5db8:d822", None, None),
        ("2606:2800::5efe:a00:1", "private address", None),
        ("2606:2800::200:5efe:a00:1", "private address", None),
        ("::ffff:100.64.0.1", "private address", None),
        ("2002:6440:1::", "private address", None),
        ("2002:a00:1::", "private address", None),
        *(
            (address, "forbidden address", "forbidden address")
            for address in (
                "127.0.0.1",
                "127.9.9.9",
                "0.0.0.0",
                "0.1.2.3",
                "169.254.169.254",
                "224.0.0.1",
                "255.255.255.255",
                "240.0.0.1",
                "100.100.100.200",
                "168.63.129.16",
                "::",
                "::1",
                "::7f00:1",
                "::ffff:127.0.0.1",
                "::ffff:169.254.169.254",
                "64:ff9b::7f00:1",
                "64:ff9b:1::1",
                "2002:7f00:1::",
                "2001::1",
                "fe80::1",
                "fe80::1%1",
                "2606:2800:220:1:248:1893:25c8:1946%eth0",
                "fd12::1%eth0",
                "::ffff:100.100.100.200",
                "::ffff:0.0.0.0",
                "64:ff9b::a9fe:a9fe",
                "2002:a9fe:a9fe::1",
                "2001:0:a00:1::1",
                "2606:2800::5efe:7f00:1",
                "2606:2800::5efe:a9fe:a9fe",
                "ff02::1%2",
                "fec0::1",
                "ff02::1",
                "fd00:ec2::254",
            )
        ),
    ],
)
def test_address_rule(
    address: str, reason: str | None, reason_when_private_is_fine: str | None
) -> None:
    assert address_refusal(ipaddress.ip_address(address), False) == reason
    assert address_refusal(ipaddress.ip_address(address), True) == reason_when_private_is_fine


async def test_name_that_leads_to_a_private_address_is_refused_unless_it_may() -> None:
    async def private(host: str, port: int) -> list[str]:
        return ["10.1.2.3"]

    network = Network(NetworkMode.OPEN, (), ("*.inside.example", "packages"))
    async with world(network, resolve=private, packages=frozenset({"index.example"})) as w:
        answer = await w.say(get("http://outside.example/"))
        assert status(answer) == 403
        assert b"outside.example is refused: it resolves to a private address" in answer
        for host in ("a.inside.example", "index.example"):
            assert status(await w.say(get(f"http://{host}/", "Connection: close"))) == 200
        assert w.dialled == [("10.1.2.3", 80)] * 2


async def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    async def mixed(host: str, port: int) -> list[str]:
        return [PUBLIC, "127.0.0.1"]

    async with world(resolve=mixed) as w:
        assert status(await w.say(get("http://example.org/"))) == 403
        assert w.dialled == []


async def test_rebinding_name_is_dialled_at_the_address_that_was_checked() -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]

    async def rebinding(host: str, port: int) -> list[str]:
        return answers.pop(0)

    async with world(resolve=rebinding) as w:
        assert status(await w.say(get("http://example.org/", "Connection: close"))) == 200
        assert w.dialled == [(PUBLIC, 80)]
        assert len(answers) == 1


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "a.localhost", "metadata.google.internal", "metadata.goog",
     "instance-data", "ip6-localhost"],
)  # fmt: skip
async def test_local_and_metadata_names_are_refused_without_a_lookup(host: str) -> None:
    async def never(host: str, port: int) -> list[str]:
        raise AssertionError("it was looked up")

    async with world(resolve=never) as w:
        assert status(await w.say(connect(host))) == 403
        assert [r.verdict for r in w.records()] == ["local name"]


async def test_local_name_that_may_be_private_meets_the_rule_for_addresses() -> None:
    async def loopback(host: str, port: int) -> list[str]:
        return ["::ffff:127.0.0.1"]

    network = Network(NetworkMode.OPEN, (), ("localhost",))
    async with world(network, resolve=loopback) as w:
        assert status(await w.say(connect("localhost"))) == 403
        assert [r.verdict for r in w.records()] == ["forbidden address"]


async def test_name_that_does_not_resolve_is_a_502() -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    async with world(resolve=nowhere) as w:
        assert status(await w.say(connect("example.org"))) == 502
        assert [r.verdict for r in w.records()] == ["does not resolve"]


async def test_second_address_is_tried_and_none_answering_is_a_502() -> None:
    async def two(host: str, port: int) -> list[str]:
        return [PUBLIC, "1.1.1.1"]

    tried: list[str] = []

    async def dead(address: str, port: int) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    listener = socket.create_server(("127.0.0.1", 0))
    proxy = EgressProxy(listener, OPEN, frozenset(), resolve=two, dial=dead)
    w = World(proxy, listener.getsockname()[1])
    await proxy.start()
    try:
        assert status(await w.say(connect("example.org"))) == 502
        assert tried == [PUBLIC, "1.1.1.1"]
        assert [r.verdict for r in w.records()] == ["unreachable"]
    finally:
        await proxy.close()


# Requests that two readers could read in two ways


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: 3\r\n"
        b"Content-Length: 4\r\n\r\nabcd",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: +3\r\n\r\nabc",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: 3,4\r\n\r\nabc",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: 0x3\r\n\r\nabc",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: -1\r\n\r\nabc",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\n"
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\n"
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\n"
        b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\n"
        b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\n"
        b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\n Folded: first\r\nHost: example.org\r\n\r\n",
        b"GET http://example.org/\x00a HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1 x\r\nHost: example.org\r\n\r\n",
        b"GET  http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET http://example.org:80:80/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        get("http://example.org/", host="example.org:81"),
        get("http://example.org/", "X: a\x00b"),
        get("http://example.org#@other.example/", host="other.example"),
        get("http://example.org/", host="example.org, other.example"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: example.org\r\n\r\n",
        get("ftp://example.org/"),
        get("//example.org/", host="example.org"),
        b"CONNECT http://example.org:443/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"CONNECT example.org:443@other.example HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        get("http://example.org/", host="other.example"),
        get("http://example.org/", "Host: example.org"),
        get("http://example.org/", "Bad Name: x"),
        get("http://example.org/", "X: a\rb"),
        get("http://user:word@example.org/"),
        get("https://example.org/"),
        get("http://example.org\\@other.example/", host="example.org"),
        b"GET /path HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\nContent-Length: 3\r\n\r\nabc",
        b"CONNECT example.org HTTP/1.1\r\nHost: example.org\r\n\r\n",
        b"CONNECT a:b:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        connect("-example.org"),
        connect("a..example.org"),
        connect("a" * 254),
        hello("example.org"),
        b"\0\0\0\0\r\n\r\n",
    ],
)
async def test_ambiguous_or_broken_request_is_refused_and_goes_nowhere(
    request_bytes: bytes,
) -> None:
    async with world() as w:
        assert status(await w.say(request_bytes)) in (400, 403, 501)
        assert w.dialled == []


@pytest.mark.parametrize(
    ("framing", "body", "arrives"),
    [
        ("Content-Length: 3", b"abc", b"abc"),
        ("Content-Length: 3\r\nContent-Length: 3", b"abc", b"abc"),
        (
            "Transfer-Encoding: chunked",
            b"3;ext=1\r\nabc\r\n0\r\nX: t\r\n\r\n",
            b"3\r\nabc\r\n0\r\n\r\n",
        ),
        ("Transfer-Encoding: Chunked", b"03\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
    ],
)
async def test_body_arrives_in_one_plain_framing_and_what_follows_is_judged(
    framing: str, body: bytes, arrives: bytes
) -> None:
    """Extensions, trailers and repeated lengths are where two readers come to differ."""
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(len(arrives)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        seen.append(await reader.read())

    async with world(Network(NetworkMode.ALLOW, ("a.example",)), serve=note) as w:
        head = f"POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n{framing}\r\n\r\n"
        answer = await w.say(head.encode() + body + get("http://bad.example/"))
        assert [b" 200 " in answer, b" 403 " in answer] == [True, True]
        head_sent, _, rest = seen[0].partition(b"\r\n\r\n")
        assert rest == arrives
        assert head_sent.lower().count(b"content-length") <= 1
        assert seen[1] == b""


@pytest.mark.parametrize(
    "body",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"fffffffffffffffffffff\r\nabc",
        b"3 \x0b\r\nabc\r\n0\r\n\r\n",
    ],
)
async def test_chunk_that_breaks_its_own_framing_ends_the_connection(body: bytes) -> None:
    async with world(Network(NetworkMode.ALLOW, ("a.example",)), serve=echo) as w:
        head = b"POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n"
        answer = await w.say(head + body + get("http://a.example/second"))
        assert b"second" not in answer
        assert len(w.dialled) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nX-Injected: 1\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nX-Injected: 1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX-Injected: 1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n"
        b"0\r\n\r\nX-Injected: 1",
    ],
)
async def test_answer_cannot_bring_along_the_answer_to_the_next_request(answer: bytes) -> None:
    async def two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with world(serve=two) as w:
        got = await w.say(
            get("http://a.example/1") + get("http://b.example/2", "Connection: close")
        )
        assert b"X-Injected" not in got
        assert len(w.dialled) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\nraw",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabcd",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
    ],
)
async def test_answer_that_switches_or_contradicts_itself_is_a_502(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with world(serve=serve) as w:
        upgrade = ("Connection: upgrade", "Upgrade: h2c")
        assert status(await w.say(get("http://example.org/", *upgrade))) == 502


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000, 2_000_000])
@pytest.mark.parametrize("framing", ["length", "chunks", "end"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_body_of_every_framing_and_size_arrives_whole(
    size: int, framing: str, version: bytes
) -> None:
    body = random.Random(size).randbytes(size)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part)
        for start in range(0, size, 7001)
        if (part := body[start : start + 7001])
    )
    raw = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body,
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        "end": b"HTTP/1.0 200 OK\r\n\r\n" + body,
    }[framing]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        assert await reader.readexactly(length) == body
        writer.write(raw)
        await writer.drain()

    async with world(serve=serve) as w:
        head = b"PUT http://example.org/ HTTP/%b\r\nHost: example.org\r\nContent-Length: %d\r\n" % (
            version,
            size,
        )
        answer = await w.say(head + b"Connection: close\r\n\r\n" + body)
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(answer)
        client.receive_data(b"")
        assert isinstance(client.next_event(), h11.Response)
        got = bytearray()
        while isinstance(event := client.next_event(), h11.Data):
            got += event.data
        assert isinstance(event, h11.EndOfMessage)
        assert got == body
        (record,) = w.records()
        assert record.bytes_received == len(raw)
        assert record.bytes_sent >= size


async def test_answer_shorter_than_its_length_is_not_passed_off_as_whole() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel")

    async with world(serve=cut) as w:
        got = await w.say(get("http://example.org/") + get("http://example.org/second"))
        assert got.endswith(b"\r\n\r\nhel")
        assert len(w.dialled) == 1


async def test_folded_header_arrives_as_one_line() -> None:
    async with world() as w:
        answer = await w.say(get("http://example.org/", "X-A: one\r\n two", "Connection: close"))
        assert b"X-A: one two\r\n" in answer


async def test_hop_by_hop_headers_stay_on_their_hop() -> None:
    async with world() as w:
        answer = await w.say(
            get(
                "http://example.org/",
                "Proxy-Authorization: Basic c2VjcmV0",
                "Proxy-Connection: keep-alive",
                "Connection: close, X-Own",
                "X-Own: 1",
                "TE: trailers",
                "Upgrade: h2c",
                "X-Kept: 2",
            )
        )
        sent = answer.partition(b"\r\n\r\n")[2]
        assert b"X-Kept: 2" in sent
        for word in (b"c2VjcmV0", b"Proxy-", b"X-Own", b"trailers", b"h2c", b"keep-alive"):
            assert word not in sent


async def test_pipelined_requests_are_each_judged_and_answered_in_order() -> None:
    async with world(Network(NetworkMode.ALLOW, ("a.example", "b.example"))) as w:
        answer = await w.say(
            get("http://a.example/1") + get("http://b.example/2") + get("http://c.example/3")
            + get("http://a.example/4")
        )  # fmt: skip
        assert [answer.count(word) for word in (b"GET /1", b"GET /2", b"/3", b"/4")] == [1, 1, 0, 0]
        assert answer.index(b"GET /1") < answer.index(b"GET /2") < answer.index(b" 403 ")
        assert [r.verdict for r in w.records()] == ["allowed", "allowed", "not allowed"]


async def test_bytes_after_a_body_are_the_next_request_and_not_smuggled_along() -> None:
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(3))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        seen.append(await reader.read())

    async with world(Network(NetworkMode.ALLOW, ("a.example",)), serve=note) as w:
        post = b"POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc"
        answer = await w.say(post + get("http://bad.example/"))
        assert b" 204 " in answer
        assert b" 403 " in answer
        assert len(seen) == 2
        assert b"bad.example" not in b"".join(seen)


async def test_chunked_upload_and_chunked_answer_pass() -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" in head.lower()
        body = await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body.upper())

    async with world(serve=upper) as w:
        answer = await w.say(
            b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        )
        assert answer.endswith(b"5\r\nHELLO\r\n0\r\n\r\n")


async def test_waiting_client_is_told_to_continue() -> None:
    async def length(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"expect" not in head.lower()
        assert await reader.readexactly(3) == b"abc"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with world(serve=length) as w:
        reader, writer = await w.open()
        writer.write(
            b"PUT http://example.org/ HTTP/1.1\r\nHost: example.org\r\nContent-Length: 3\r\n"
            b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert status(await reader.readuntil(b"\r\n\r\n")) == 100
        writer.write(b"abc")
        assert status(await reader.read()) == 200
        writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 400_000 + b"\r\n\r\n",
    ],
)
async def test_other_end_that_speaks_no_http_is_a_502(answer: bytes) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with world(serve=nonsense) as w:
        got = await w.say(get("http://example.org/"))
        assert status(got) == 502
        assert b"example.org gave no valid answer" in got


async def test_answer_that_comes_before_the_body_ended_is_passed_on() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    async with world(serve=refuse) as w:
        head = b"POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\n"
        size = 8_000_000
        answer = await w.say(head + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        assert status(answer) == 413


async def test_answer_cut_short_is_not_passed_off_as_whole() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")

    async with world(serve=cut) as w:
        got = await w.say(get("http://example.org/"))
        assert not got.endswith(b"0\r\n\r\n")


# TLS names


def test_server_name_is_read_from_a_hello() -> None:
    found = read_client_hello(hello("Example.org", extra=b"\0\x0b\0\x02\x01\0"))
    assert found is not None
    assert found.server_name == "example.org"


def test_hello_without_a_name_has_none() -> None:
    found = read_client_hello(hello(None))
    assert found is not None
    assert found.server_name is None


def test_real_client_s_hello_is_read() -> None:
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(incoming, outgoing, server_hostname="www.example.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    found = read_client_hello(outgoing.read())
    assert found is not None
    assert found.server_name == "www.example.org"


def test_every_beginning_of_a_hello_asks_for_more() -> None:
    whole = hello("example.org")
    assert all(read_client_hello(whole[:size]) is None for size in range(len(whole)))


def test_hello_split_over_records_is_put_together() -> None:
    message = hello("example.org")[5:]
    parts = [message[:3], message[3:50], message[50:]]
    data = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in parts)
    found = read_client_hello(data)
    assert found is not None
    assert found.server_name == "example.org"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x02",
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        b"\x16\x03\x01\0\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\0\x05\x01\0\0\x01x",
        b"".join(b"\x16\x03\x01\0\x01" + bytes([byte]) for byte in hello("a.example")[5:]),
        hello("a.example", extra=hello("b.example")[-18:]),
        hello(""),
    ],
)
def test_broken_hello_is_refused(data: bytes) -> None:
    with pytest.raises(NotTls):
        read_client_hello(data)


@given(st.binary(max_size=400), st.integers(0, 80), st.binary(max_size=3))
def test_odd_bytes_are_a_hello_or_none_or_refused(tail: bytes, cut: int, patch: bytes) -> None:
    whole = hello("example.org")
    for data in (tail, whole[:cut] + patch + whole[cut + len(patch) :], whole[:cut] + tail):
        try:
            found = read_client_hello(data)
        except NotTls:
            continue
        assert found is None or found.server_name is None or found.server_name.isascii()


@pytest.mark.parametrize(
    ("first", "verdict"),
    [(hello("other.example"), "TLS name does not match"), (b"GET / HTTP/1.1\r\n", "not TLS")],
)
async def test_tunnel_for_another_name_or_for_no_tls_ends_before_a_byte_passes(
    first: bytes, verdict: str
) -> None:
    async with world(serve=echo) as w:
        answer = await w.say(connect("example.org") + first)
        assert b"example" not in answer
        assert [(r.verdict, r.bytes_sent) for r in w.records()] == [(verdict, 0)]


# Ceilings and ends


async def test_huge_header_is_refused() -> None:
    async with world(limits=ProxyLimits(header_bytes=4096)) as w:
        answer = await w.say(get("http://example.org/", "X: " + "y" * 200_000))
        assert status(answer) == 431
        assert w.dialled == []


async def test_dripping_header_ends_at_its_deadline() -> None:
    async with world(limits=ProxyLimits(header_s=0.15)) as w:
        reader, writer = await w.open()
        read = asyncio.create_task(reader.read())
        for _ in range(100):
            if read.done():
                break
            writer.write(b"G")
            await asyncio.sleep(0.02)
        assert read.done()
        await asyncio.gather(read, return_exceptions=True)  # a reset is an end too
        writer.close()


async def test_silent_tunnel_ends() -> None:
    async with world(serve=echo, limits=ProxyLimits(idle_s=0.5)) as w:
        reader, writer = await w.open()
        writer.write(connect("example.org") + hello("example.org"))
        async with asyncio.timeout(5):
            assert (await reader.read()).endswith(hello("example.org"))
        writer.close()


async def test_connections_beyond_the_ceiling_wait_for_a_place() -> None:
    async with world(limits=ProxyLimits(connections=1)) as w:
        _, first = await w.open()
        await asyncio.sleep(0.02)
        second = asyncio.create_task(w.say(get("http://example.org/", "Connection: close")))
        await asyncio.sleep(0.05)
        assert not second.done()
        first.close()
        assert status(await second) == 200


async def test_flood_of_requests_keeps_counts_and_not_records() -> None:
    limits = ProxyLimits(records=3)
    async with world(Network(NetworkMode.PACKAGES), limits=limits) as w:
        for number in range(12):
            await w.say(connect(f"h{number % 8}.example"))
        records = w.records()
        assert len(records) == 3 + 3 + 1
        assert records[-1] == EgressRecord("(other hosts)", 0, "not allowed")
        assert w.records() == []


async def test_close_in_the_middle_of_a_transfer_leaves_nothing() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"z" * 65536)
            await writer.drain()

    before = asyncio.all_tasks()
    async with world(serve=endless) as w:
        reader, writer = await w.open()
        writer.write(connect("example.org") + hello("example.org"))
        await reader.readexactly(500_000)
        _, idle = await w.open()
        await asyncio.sleep(0.01)
        await w.proxy.close()
        await w.proxy.close()
        (record,) = w.records()
        assert record.bytes_received >= 400_000
        with pytest.raises(OSError):
            await w.open()
        writer.close()
        idle.close()
        with pytest.raises(SandboxError, match="closed"):
            await w.proxy.start()
    assert await comes_true(lambda: asyncio.all_tasks() == before)


async def test_one_busy_tunnel_does_not_starve_another_request() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) == b"G":
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            return
        while True:
            writer.write(b"z" * 262144)
            await writer.drain()

    async with world(serve=serve) as w:
        reader, writer = await w.open()
        writer.write(connect("example.org") + hello("example.org"))

        async def swallow() -> None:
            while await reader.read(262144):
                pass

        swallowing = asyncio.create_task(swallow())
        async with asyncio.timeout(3):
            answer = await w.say(get("http://example.org/", "Connection: close"))
        assert status(answer) == 200
        swallowing.cancel()
        await asyncio.gather(swallowing, return_exceptions=True)
        writer.close()


# Budgets and the audit


async def tunnel(w: World, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An open tunnel to an echoing server, after a greeting and that data came back."""
    reader, writer = await w.open()
    sent = hello("example.org") + data
    writer.write(connect("example.org") + sent)
    assert status(await reader.readuntil(b"\r\n\r\n")) == 200
    assert await reader.readexactly(len(sent)) == sent
    return reader, writer


async def test_open_tunnel_is_in_the_audit_and_no_byte_is_told_twice() -> None:
    async with world(serve=echo) as w:
        size = len(hello("example.org"))
        reader, writer = await tunnel(w, b"x" * 1000)
        assert w.records() == [
            EgressRecord("example.org", 443, "allowed", size + 1000, size + 1000)
        ]
        assert w.records() == []
        writer.write(b"y" * 10)
        await reader.readexactly(10)
        assert w.records() == [EgressRecord("example.org", 443, "allowed", 10, 10)]
        writer.close()
        await w.proxy.close()
        assert w.records() == []


async def test_tunnel_that_was_told_of_adds_only_its_last_bytes_at_its_end() -> None:
    async with world(serve=echo) as w:
        reader, writer = await tunnel(w, b"")
        assert len(w.records()) == 1
        writer.write(b"z" * 7)
        writer.write_eof()
        assert await reader.read() == b"z" * 7
        writer.close()
        found: list[EgressRecord] = []
        assert await comes_true(lambda: bool(found.extend(w.records()) or found))
        assert found == [EgressRecord("example.org", 443, "allowed", 7, 7)]


async def test_byte_budget_closes_a_tunnel_and_refuses_what_comes_after() -> None:
    async with world(Network(NetworkMode.OPEN, max_bytes=100_000), serve=echo) as w:
        reader, writer = await tunnel(w, b"x" * 10_000)
        writer.write(b"y" * 200_000)
        with suppress(ConnectionError):  # a reset is an end too
            assert len(await reader.read()) <= 80_000
        writer.close()
        answer = await w.say(get("http://example.org/"))
        assert status(answer) == 403
        assert b"has used up the bytes that its network allows" in answer
        records = w.records()
        assert [r.verdict for r in records] == ["byte budget spent"] * 2
        assert sum(r.bytes_sent + r.bytes_received for r in records) <= 100_000


async def test_byte_budget_cuts_a_plain_answer_and_counts_over_all_connections() -> None:
    async def large(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n" + bytes(30_000))
        await writer.drain()

    async with world(Network(NetworkMode.OPEN, max_bytes=70_000), serve=large) as w:
        request = get("http://example.org/", "Connection: close")
        sizes = [len(await w.say(request)) for _ in range(3)]
        assert min(sizes[:2]) > 30_000
        assert sizes[2] < 30_000
        assert [r.verdict for r in w.records()] == ["allowed", "allowed", "byte budget spent"]


async def test_one_tunnel_that_spends_the_budget_ends_the_others_at_their_next_byte() -> None:
    async with world(Network(NetworkMode.OPEN, max_bytes=50_000), serve=echo) as w:
        quiet_reader, quiet = await tunnel(w, b"")
        loud_reader, loud = await tunnel(w, b"")
        loud.write(b"x" * 60_000)
        quiet.write(b"later")
        for reader in (loud_reader, quiet_reader):
            with suppress(ConnectionError):
                await reader.read()
        assert {r.verdict for r in w.records()} == {"byte budget spent"}
        loud.close()
        quiet.close()


async def test_connection_budget_counts_what_is_dialled_over_the_whole_life() -> None:
    network = Network(NetworkMode.OPEN, denied_hosts=("bad.example",), max_connections=2)
    async with world(network) as w:
        await w.say(get("http://bad.example/"))
        both = get("http://a.example/") + get("http://b.example/", "Connection: close")
        assert (await w.say(both)).count(b" 200 ") == 2
        assert status(await w.say(get("http://a.example/"))) == 403
        refused = await w.say(connect("a.example"))
        assert refused.startswith(b"HTTP/1.1 403 Sandbox network: connection budget spent\r\n")
        verdicts = [r.verdict for r in w.records()]
        assert verdicts == ["denied", "allowed", "allowed"] + ["connection budget spent"] * 2
        assert len(w.dialled) == 2


# Who may use it


def bearing(*passwords: str, scheme: str = "Basic") -> list[str]:
    """The header that shows a password of the user `sandlot`, once for each."""
    words = [base64.b64encode(f"sandlot:{word}".encode()).decode() for word in passwords]
    return [f"Proxy-Authorization: {scheme} {word}" for word in words]


async def test_request_that_bears_the_token_is_served_and_the_token_stays_here() -> None:
    async with world(token="t0ken") as w:
        for scheme in ("Basic", "bAsIc"):
            words = [*bearing("t0ken", scheme=scheme), "Connection: close"]
            answer = await w.say(get("http://example.org/", *words))
            assert status(answer) == 200
            assert b"authorization" not in answer.lower()


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearing("other"),
        bearing("t0ken", "other"),
        bearing("t0ken", "t0ken"),
        bearing("t0ken", scheme="Bearer"),
        ["Proxy-Authorization: Basic"],
        ["Proxy-Authorization: Basic t0ken"],
        ["Authorization: Basic c2FuZGxvdDp0MGtlbg=="],
    ],
)
async def test_request_without_the_token_gets_407_and_a_record(headers: list[str]) -> None:
    async with world(token="t0ken") as w:
        lines = "".join(f"{line}\r\n" for line in headers)
        for request in (connect("example.org")[:-2] + f"{lines}\r\n".encode(),
                        get("http://example.org/", *headers)):  # fmt: skip
            answer = await w.say(request)
            assert status(answer) == 407
            assert b"Proxy-Authenticate: Basic" in answer
        assert w.dialled == []
        assert [(r.host, r.verdict) for r in w.records()] == [("example.org", "no valid token")] * 2


async def test_proxy_serves_on_a_unix_socket(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "proxy"))
    listener.listen()
    proxy = EgressProxy(listener, Network(NetworkMode.NONE), frozenset(), token="t0ken")
    await proxy.start()
    try:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "proxy"))
        writer.write(get("http://example.org/", *bearing("t0ken")))
        assert status(await reader.read()) == 403
        writer.close()
        await writer.wait_closed()
    finally:
        await proxy.close()
