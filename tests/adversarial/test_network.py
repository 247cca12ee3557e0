"""Code inside reaches for what the policy does not give, directly and through the proxy.

Only this machine's loopback is ever dialled: names are resolved by a resolver of the test, and
every connection that the proxy makes goes to a server of the test, whatever address it asked for.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sandbox.proxy_world import PUBLIC, echo, hello, world
from sandlot.sandbox.contract import MakeSandbox, opened, small_policy
from sandlot.sandbox.egress import ProxyLimits
from sandlot.sandbox.policy import Limits, Network, NetworkMode, Policy
from waiting import comes_true

from .attack import python, tiny_policy, until_said, usable

ALLOWED = Network(NetworkMode.ALLOW, hosts=("good.example", "*.wild.example"))


# --- Without the proxy ----------------------------------------------------------------------------


@asynccontextmanager
async def visited() -> AsyncIterator[tuple[int, list[str]]]:
    """A listener on every loopback address of this machine, and who came."""
    met: list[str] = []

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(repr(writer.get_extra_info("peername")))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        six = await asyncio.start_server(greet, "::1", port)
    except OSError:
        six = None
    async with server:
        yield port, met
    if six is not None:
        six.close()


WAYS_TO_LOOPBACK = {
    "its address": "127.0.0.1",
    "another of its addresses": "127.9.9.9",
    "its IPv6 address": "::1",
    "its address inside an IPv6 one": "::ffff:127.0.0.1",
    "the address of nobody": "0.0.0.0",
    "the IPv6 address of nobody": "::",
    "its name": "localhost",
    "its address as one number": "2130706433",
    "its address in base eight": "0177.0.0.1",
    "its address in base sixteen": "0x7f.1",
    "its address cut short": "127.1",
    "the name of an engine's host": "host.containers.internal",
}


@pytest.fixture(scope="session")
def reached(make_box: MakeSandbox) -> dict[str, tuple[str, list[str]]]:
    """For each way, what the inside says and who came to the listener, from one sandbox."""
    reach = (
        "import socket\ntry:\n"
        " for place in socket.getaddrinfo({address!r}, {port}, type=socket.SOCK_STREAM):\n"
        "  s = socket.socket(place[0], place[1])\n  s.settimeout(2)\n"
        "  s.connect(place[4]); print('REACHED')\nexcept OSError: print('refused')"
    )

    async def try_all() -> dict[str, tuple[str, list[str]]]:
        found = {}
        async with visited() as (port, met), opened(make_box, tiny_policy()) as box:
            for way, address in WAYS_TO_LOOPBACK.items():
                result = await box.exec(python(reach.format(address=address, port=port)), 10)
                found[way] = (result.stdout, list(met))
                met.clear()
        return found

    return asyncio.run(try_all())


@pytest.mark.sandbox
@pytest.mark.parametrize("way", WAYS_TO_LOOPBACK)
def test_the_hosts_loopback_is_not_reached(
    way: str, reached: dict[str, tuple[str, list[str]]]
) -> None:
    assert reached[way] == ("refused\n", [])


@pytest.mark.sandbox
async def test_there_is_no_way_to_any_other_network(make_box: MakeSandbox) -> None:
    """Without a route nothing can be sent: private ranges and metadata need not be dialled."""
    show = "tail -n +2 /proc/net/route; grep -v ' lo$' /proc/net/ipv6_route; ls /sys/class/net"
    async with opened(make_box, tiny_policy()) as box:
        found = (await box.exec(f"{show} 2>/dev/null")).stdout.split()
        assert [word for word in found if word != "lo"] == []


@pytest.mark.sandbox
async def test_datagrams_do_not_reach_the_host(make_box: MakeSandbox) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears:
        ears.bind(("127.0.0.1", 0))
        ears.setblocking(False)
        port = ears.getsockname()[1]
        send = (
            "import socket\ns = socket.socket(2, 2)\ns.setsockopt(1, 6, 1)\n"
            "for a in ('127.0.0.1', '127.255.255.255', '255.255.255.255', '224.0.0.1'):\n"
            f" try: s.sendto(b'x', (a, {port}))\n except OSError: pass"
        )
        async with opened(make_box, tiny_policy()) as box:
            await box.exec(python(send), 10)
        with pytest.raises(BlockingIOError):
            ears.recv(10)


@pytest.mark.sandbox
async def test_sockets_without_a_file_are_not_shared_with_the_host(make_box: MakeSandbox) -> None:
    name = f"sandlot-attack-{os.getpid()}"
    met: list[object] = []

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        writer.close()

    server = await asyncio.start_unix_server(greet, f"\0{name}")
    async with server, opened(make_box, tiny_policy()) as box:
        seen = (await box.exec("cat /proc/net/unix")).stdout
        await box.exec(python(f"import socket\nsocket.socket(1).connect(chr(0) + {name!r})"))
    assert name not in seen
    assert met == []


@pytest.mark.sandbox
async def test_one_sandbox_does_not_reach_the_listener_of_another(make_box: MakeSandbox) -> None:
    listen = (
        "import socket\ns = socket.create_server(('', 4567))\nprint('ready', flush=True)\n"
        "while True:\n c, a = s.accept()\n print('MET', flush=True)"
    )
    reach = (
        "import socket\nfor a in ('127.0.0.1', '0.0.0.0', 'sandlot', socket.gethostname()):\n"
        " try: socket.create_connection((a, 4567), 1)\n except OSError: pass"
    )
    async with opened(make_box, tiny_policy()) as one, opened(make_box, tiny_policy()) as other:
        await one.exec(f"{python(listen)} > met 2>&1 & sleep 0.6")
        await other.exec(python(reach), 10)
        await usable(one)
        assert await one.read_file("met") == b"ready\n"


@pytest.mark.sandbox
async def test_addresses_are_refused_by_the_proxy_of_a_real_sandbox(make_box: MakeSandbox) -> None:
    """In every notation, before anything is resolved or dialled."""
    ask = (
        "import os, socket, sys, urllib.parse\nfor host in sys.argv[2:]:\n"
        " proxy = urllib.parse.urlsplit(os.environ['http_proxy'])\n"
        " s = socket.create_connection((proxy.hostname, proxy.port), 5)\n s.settimeout(5)\n"
        " word = f'{proxy.username}:{proxy.password}'\n import base64\n"
        " token = base64.b64encode(word.encode()).decode()\n"
        " s.sendall(f'CONNECT {host}:{sys.argv[1]} HTTP/1.1\\r\\nHost: {host}\\r\\n"
        "Proxy-Authorization: Basic {token}\\r\\n\\r\\n'.encode())\n"
        " print(s.recv(100).split(b' ')[1].decode())\n"
    )
    hosts = "127.0.0.1 [::1] [::ffff:127.0.0.1] 2130706433 0x7f000001 0177.0.0.1 127.1 0 localhost"
    policy = Policy(
        Limits(processes=64, disk_bytes=32 << 20), Network(NetworkMode.ALLOW, ("good.invalid",))
    )
    async with visited() as (port, met), opened(make_box, policy) as box:
        result = await box.exec(f"{python(ask)} {port} {hosts}", 20)
        assert result.stdout.split() == ["403"] * 9, result
        assert met == []
        verdicts = {record.verdict for record in box.egress()}
        assert verdicts <= {"address instead of name", "not allowed", "port not allowed"}


@pytest.mark.sandbox
async def test_idle_connections_to_the_proxy_do_not_use_up_the_harness(
    make_box: MakeSandbox,
) -> None:
    """One sandbox opens a thousand; another, and the harness itself, still get their own."""
    hold = (
        "import os, socket, time, urllib.parse\n"
        "proxy = urllib.parse.urlsplit(os.environ['http_proxy'])\nheld = []\ntry:\n"
        " for _ in range(1000):\n"
        "  held.append(socket.create_connection((proxy.hostname, proxy.port), 1))\n"
        "except OSError: pass\nprint(len(held), flush=True)\ntime.sleep(20)"
    )
    policy = Policy(
        Limits(processes=64, disk_bytes=32 << 20, open_files=2048),
        Network(NetworkMode.ALLOW, ("good.invalid",)),
    )
    before = len(os.listdir("/proc/self/fd"))
    async with opened(make_box, policy) as box:
        held = await box.exec(until_said(python(hold)), 20)
        assert int(held.stdout) > 0
        assert len(os.listdir("/proc/self/fd")) - before < 350
        async with opened(make_box, small_policy()) as other:
            await usable(other)
        await usable(box)
    assert await comes_true(lambda: len(os.listdir("/proc/self/fd")) <= before + 8)


# --- Names, at the proxy --------------------------------------------------------------------------


def connect(host: str, port: int = 443) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


NOTATIONS = [
    "127.0.0.1", "127.1", "127.000.000.001", "2130706433", "0x7f000001", "0x7f.1", "017700000001",
    "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]",
    "[fe80::1%25lo]", "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376",
    "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]", "100.100.100.200",
    "192.168.0.1", "10.0.0.1", "172.16.0.1", "127.0.0.1.", "1.1.1.1", "good.example.127.0.0.1",
    "127.0.0.1%00.good.example", "\u0661\u0662\u0667.0.0.1", "\uff11\uff12\uff17.1",
    "good.example@127.0.0.1", "127.0.0.1#good.example", "127.0.0.1\\good.example",
    "good.example\t127.0.0.1", "good.example/../127.0.0.1", "", ".", "..", "*", "-",
]  # fmt: skip


@pytest.mark.parametrize("mode", [NetworkMode.OPEN, NetworkMode.ALLOW])
@pytest.mark.parametrize("host", NOTATIONS)
async def test_nothing_that_is_an_address_is_dialled(host: str, mode: NetworkMode) -> None:
    hosts = ("good.example",) if mode is NetworkMode.ALLOW else ()
    async with world(Network(mode, hosts=hosts)) as w:
        for request in (
            connect(host),
            f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("utf-8", "replace"),
        ):
            answer = await w.say(request)
            assert answer.split(b" ")[1] in (b"400", b"403"), answer
        assert w.dialled == []


FORBIDDEN = {
    "this machine": "127.0.0.1",
    "this machine by IPv6": "::1",
    "this machine inside an IPv6 address": "::ffff:127.0.0.1",
    "this machine by an old form": "::127.0.0.1",
    "nobody": "0.0.0.0",
    "nobody by IPv6": "::",
    "metadata": "169.254.169.254",
    "metadata inside an IPv6 address": "::ffff:169.254.169.254",
    "metadata through a translator": "64:ff9b::a9fe:a9fe",
    "metadata through another translator": "64:ff9b:1::a9fe:a9fe",
    "metadata through a tunnel": "2002:a9fe:a9fe::1",
    "metadata through another tunnel": "2001:0:a9fe:a9fe::1",
    "metadata of one cloud": "fd00:ec2::254",
    "metadata of another": "100.100.100.200",
    "metadata of a third": "168.63.129.16",
    "the link": "fe80::1",
    "many at once": "224.0.0.1",
    "many at once by IPv6": "ff02::1",
    "everybody": "255.255.255.255",
    "a private range": "10.1.2.3",
    "another private range": "172.20.0.1",
    "the usual home network": "192.168.1.1",
    "a provider's own range": "100.64.0.1",
    "a private range of IPv6": "fd12::1",
    "an old private range of IPv6": "fec0::1",
    "a private range inside a tunnel": "2002:0a01:0203::1",
    "what is reserved": "240.0.0.1",
    "what is for documents": "192.0.2.1",
}


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN.keys())
async def test_an_allowed_name_does_not_lead_there(address: str) -> None:
    async def leads(host: str, port: int) -> list[str]:
        return [address]

    async def among_others(host: str, port: int) -> list[str]:
        return [PUBLIC, address]

    for resolve in (leads, among_others):
        async with world(ALLOWED, resolve=resolve) as w:
            assert (await w.say(connect("good.example"))).split(b" ")[1] == b"403"
            assert w.dialled == []


async def test_a_name_that_changes_its_mind_is_dialled_as_it_was_checked() -> None:
    """Rebinding: public when it is checked, this machine when it is dialled."""
    asked = 0

    async def rebinds(host: str, port: int) -> list[str]:
        nonlocal asked
        asked += 1
        return [PUBLIC] if asked == 1 else ["127.0.0.1"]

    async with world(ALLOWED, resolve=rebinds) as w:
        request = b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n"
        both = await w.say(request + request)
        assert w.dialled == [(PUBLIC, 80)]
        assert both.count(b"HTTP/1.1 200") == 1
        assert both.count(b"HTTP/1.1 403") == 1


@pytest.mark.parametrize("port", [0, 1, 22, 25, 53, 81, 3128, 5432, 6379, 8080, 8443, 65535, 65616])
async def test_other_ports_of_an_allowed_name_are_refused(port: int) -> None:
    async with world(ALLOWED) as w:
        answer = await w.say(connect("good.example", port))
        assert answer.split(b" ")[1] in (b"400", b"403")
        assert w.dialled == []


LOOKALIKES = [
    "evil.example", "good.example.evil.example", "evilgood.example", "xgood.example",
    "wild.example", "evil-wild.example", "a.wild.example.evil.example", "good.example%2eevil",
    "good\u3002example", "gооd.example", "good.example\u200b", "good.exam\u00adple",
    "GOOD.EXAMPLE.X",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOKALIKES)
async def test_a_name_that_only_looks_allowed_is_refused(host: str) -> None:
    async with world(ALLOWED) as w:
        assert (await w.say(connect(host))).split(b" ")[1] in (b"400", b"403")
        assert w.dialled == []


# --- Another protocol or another name behind an allowed one ---------------------------------------

TLS_TRICKS = {
    "another name": hello("evil.example"),
    "a name below it": hello("good.example.evil.example"),
    "a name above it": hello("example"),
    "two names": hello("good.example", extra=b"\0\0\0\x11\0\x0f\0\0\x0cevil.example"),
    "the name of an address": hello("127.0.0.1"),
    "an empty name": hello(""),
    "no TLS but HTTP": b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "no TLS but a shell's greeting": b"SSH-2.0-OpenSSH_9.2\r\n",
    "no TLS but mail": b"EHLO evil\r\n",
    "TLS of an old form": b"\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10" + bytes(40),
    "a hello that lies about its length": b"\x16\x03\x01\x40\x00" + bytes(64),
    "a hello without an end": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(20),
    "records of one byte": b"".join(b"\x16\x03\x01\0\x01" + bytes([b]) for b in bytes(64)),
}


@pytest.mark.parametrize("first", TLS_TRICKS.values(), ids=TLS_TRICKS.keys())
async def test_a_tunnel_carries_only_tls_for_its_own_name(first: bytes) -> None:
    arrived = bytearray()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            arrived.extend(data)

    async with world(ALLOWED, serve=keep) as w:
        reader, writer = await w.open()
        writer.write(connect("good.example"))
        assert b" 200 " in await reader.readline()
        writer.write(first)
        if writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
    assert bytes(arrived) == b""


SMUGGLED = b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"
_POST = b"POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\n"
SMUGGLING = {
    "two lengths": _POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED),
    "a length and chunks": _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
                           b"0\r\n\r\n",
    "a length with a sign": _POST + b"Content-Length: +0\r\n\r\n",
    "a length in base sixteen": _POST + b"Content-Length: 0x0\r\n\r\n",
    "a length with a comma": _POST + b"Content-Length: 0, 9\r\n\r\n",
    "chunks by another name": _POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": _POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"
                    b"0\r\n\r\n",
    "chunks after a vertical tab": _POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": _POST + b"Content-Length : 5\r\n\r\n",
    "a folded header": _POST + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n",
    "a bare line feed": b"POST http://good.example/ HTTP/1.1\nHost: good.example\n"
                        b"Content-Length: 0\n\n",
    "a bare carriage return": _POST + b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    "a zero byte in a header": _POST + b"X: \0\r\nContent-Length: 0\r\n\r\n",
    "a line in the request line": b"GET http://good.example/%0d%0aHost:%20evil.example HTTP/1.1\r\n"
                                  b"Host: good.example\r\n\r\n",
    "another host in the header": b"GET http://good.example/ HTTP/1.1\r\n"
                                  b"Host: evil.example\r\n\r\n",
    "two hosts": b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n"
                 b"Host: evil.example\r\n\r\n",
    "a chunk with an odd size": _POST + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a chunk size with a sign": _POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "another protocol": b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n"
                        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "the next version's greeting": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "the oldest version": b"GET http://good.example/\r\n",
    "a header that removes the host": b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n"
                                      b"Connection: Host, Content-Length\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("request_bytes", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_no_request_for_another_host_rides_along(request_bytes: bytes) -> None:
    """Whatever reaches the server are whole requests for the allowed host, and no other."""
    arrived = bytearray()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        while data := await reader.read(65536):
            arrived.extend(data)

    async with world(ALLOWED, serve=keep, limits=ProxyLimits(header_s=1.0, idle_s=1.0)) as w:
        await w.say(request_bytes + SMUGGLED)
        hosts = {record.host for record in w.records() if record.verdict == "allowed"}
    assert hosts <= {"good.example"}
    assert b"evil.example" not in bytes(arrived).replace(b"%20evil.example", b"")
    lowered = bytes(arrived).lower()
    assert lowered.count(b"\r\nhost:") == lowered.count(b"http/1.1\r\n")
    assert b"upgrade" not in lowered


async def test_an_answer_that_is_split_does_not_answer_the_next_request() -> None:
    """A server that answers twice at once fills the place of another's answer."""

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
        writer.write(one + b"a" + one + b"EVIL")
        await writer.drain()

    async with world(ALLOWED, serve=twice) as w:
        request = b"GET http://good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n"
        answers = await w.say(
            request + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        assert b"EVIL" not in answers


async def test_a_tunnel_that_is_cut_by_a_reset_leaves_the_proxy_in_order() -> None:
    async with world(ALLOWED, serve=echo) as w:
        for _ in range(20):
            reader, writer = await w.open()
            writer.write(connect("good.example") + hello("good.example"))
            await reader.readline()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        assert b" 403 " in await w.say(connect("evil.example"))


async def test_records_of_refused_requests_hold_no_text_of_the_attacker_beyond_a_bound() -> None:
    async with world(ALLOWED) as w:
        for n in range(3):
            await w.say(connect(f"[{n}{'a' * 5000}]"))
        assert all(len(record.host) <= 300 for record in w.records())
