"""What `sandlot doctor` tries at the network's wall.

Only addresses of this machine are dialled, or none at all: foreign ones are tried only where the
sandbox has no route to anywhere, and asked of the proxy only after its rule said no to them.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import ipaddress
import shlex
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.egress_names import address_refusal
from sandlot.sandbox.egress_verdict import ALLOWED
from sandlot.sandbox.policy import Network, NetworkMode, Policy
from sandlot.sandbox.probe_attempts import Attempt, Bench, Seen, lives, small

_SIOCGIFADDR = 0x8915
_ANSWER_S = 3.0
METADATA = ("169.254.169.254", "fd00:ec2::254")
PRIVATE = ("10.255.255.254", "192.168.255.254", "172.31.255.254")


@dataclass(slots=True)
class Listener:
    """A listener of ours on one address of this machine, and who came."""

    address: str
    port: int
    visitors: int = 0


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses, loopback first; read from the kernel, nothing is sent."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # an interface without an address
            found.append(socket.inet_ntoa(answer[20:24]))
    others = [address for address in found if not address.startswith("127.")]
    return ["127.0.0.1", *others[:3]]


@asynccontextmanager
async def listeners() -> AsyncIterator[list[Listener]]:
    """One on each address of this machine, for as long as the block runs."""
    opened: list[tuple[asyncio.Server, Listener]] = []
    try:
        for address in own_addresses():
            opened += [await _listen(address)]
        yield [listener for _, listener in opened]
    finally:
        for server, _ in opened:
            server.close()


async def _listen(address: str) -> tuple[asyncio.Server, Listener]:
    listener = Listener(address, 0)

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listener.visitors += 1
        writer.close()

    server = await asyncio.start_server(greet, address, 0)
    listener.port = server.sockets[0].getsockname()[1]
    return server, listener


async def dial(box: Sandbox, address: str, port: int) -> bool:
    """Whether a connection from inside succeeded."""
    opening = f"exec 3<>/dev/tcp/{address}/{port}"
    result = await box.exec(f"bash -c {shlex.quote(opening)}", _ANSWER_S)
    return result.exit_code == 0


async def this_machine(box: Sandbox, _: Bench) -> Seen:
    """Listeners of ours on the host's loopback and on its other addresses."""
    async with listeners() as places:
        through = [place for place in places if await dial(box, place.address, place.port)]
        await asyncio.sleep(0.05)  # a visitor is counted by the loop, after the dial
        through += [place for place in places if place.visitors and place not in through]
    names = ", ".join(place.address for place in places)
    if through:
        return Seen(False, f"{', '.join(place.address for place in through)} was reached")
    return Seen(await lives(box), f"listeners on {names} were not reached")


async def has_routes(box: Sandbox) -> bool | None:
    """Whether anything leads out of the sandbox's network; None where that cannot be told."""
    tables = await box.exec("cat /proc/net/route && echo -- && cat /proc/net/ipv6_route", _ANSWER_S)
    four, mark, six = tables.stdout.partition("--\n")
    if tables.exit_code != 0 or not mark or not four.startswith("Iface"):
        return None
    devices = [line.split()[0] for line in four.splitlines()[1:] if line.strip()]
    devices += [line.split()[-1] for line in six.splitlines() if line.strip()]
    return any(device != "lo" for device in devices)


async def far_addresses(box: Sandbox, _: Bench) -> Seen:
    """Private and metadata addresses, only where no packet can leave."""
    routes = await has_routes(box)
    if routes is None:
        return Seen(None, "the sandbox's routes cannot be read, and nothing foreign is dialled")
    if routes:
        return Seen(None, "the sandbox has routes, and only this machine's addresses are dialled")
    for address in (*PRIVATE, *METADATA):
        if await dial(box, address, 80):
            return Seen(False, f"{address} was reached")
    names = ", ".join((*PRIVATE, *METADATA))
    return Seen(await lives(box), f"no route leads out; {names} are unreachable")


@dataclass(frozen=True, slots=True)
class _Proxy:
    host: str
    port: int
    header: str = ""


async def find_proxy(box: Sandbox) -> _Proxy | None:
    """The proxy as programs inside find it."""
    said = await box.exec('echo "${http_proxy:-$HTTP_PROXY}"', _ANSWER_S)
    url = urlsplit(said.stdout.strip())
    if not url.hostname or not url.port:
        return None
    header = ""
    if url.username is not None:
        words = f"{unquote(url.username)}:{unquote(url.password or '')}"
        header = f"Proxy-Authorization: Basic {base64.b64encode(words.encode()).decode()}"
    return _Proxy(url.hostname, url.port, header)


async def ask_proxy(box: Sandbox, proxy: _Proxy, target: str) -> str:
    """The first line of the proxy's answer to a CONNECT."""
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *filter(None, [proxy.header]), ""]
    asking = (
        f"exec 3<>/dev/tcp/{proxy.host}/{proxy.port} && "
        f"printf '%s\\r\\n' {shlex.join(lines)} >&3 && head -n 1 <&3"
    )
    result = await box.exec(f"bash -c {shlex.quote(asking)}", _ANSWER_S)
    return result.stdout.strip() or "no answer"


def unruled() -> list[str]:
    """Addresses that the proxy's own rule would let pass, even for a name that may be private."""
    return [text for text in METADATA if not address_refusal(ipaddress.ip_address(text), True)] + [
        text for text in PRIVATE if not address_refusal(ipaddress.ip_address(text), False)
    ]


def own_name() -> str | None:
    """A name that leads to this machine and nowhere else, by an address that is not public."""
    name = socket.gethostname().lower()
    try:
        found = {str(row[4][0]) for row in socket.getaddrinfo(name, 443, socket.AF_INET)}
    except OSError:
        return None
    own = set(own_addresses())
    safe = all(text.startswith("127.") or text in own for text in found)
    closed = all(address_refusal(ipaddress.ip_address(text), False) for text in found)
    return name if safe and closed else None


async def through_proxy(box: Sandbox, _: Bench) -> Seen:
    """Addresses of this machine first; foreign ones only if those were refused by rule."""
    proxy = await find_proxy(box)
    if proxy is None:
        return Seen(None, "no proxy is named inside")
    async with listeners() as places:
        own = [f"{place.address}:{place.port}" for place in places]
        own += [f"{place.address}:443" for place in places] + ["localhost:443"]
        own += [f"{name}:443" for name in [await asyncio.to_thread(own_name)] if name]
        bad = await _not_refused(box, proxy, own)
        visitors = sum(place.visitors for place in places)
    if bad or visitors:
        return Seen(False, bad or f"{visitors} connections reached a listener of this machine")
    if loose := unruled():
        return Seen(False, f"the proxy's rule would let {', '.join(loose)} pass")
    far = [f"{address}:80" for address in (*PRIVATE, METADATA[0], "2852039166", "0xa9fea9fe")]
    far.append(f"[{METADATA[1]}]:80")
    if bad := await _not_refused(box, proxy, far):
        return Seen(False, bad)
    dialled = [record for record in box.egress() if record.verdict == ALLOWED]
    if dialled:
        return Seen(False, f"the proxy recorded {dialled[0].host} as {ALLOWED}")
    return Seen(await lives(box), f"refused by rule, none dialled: {', '.join((*own, *far))}")


async def other_name(box: Sandbox, _: Bench) -> Seen:
    """A name that the rule does not hold, refused before it is looked up."""
    proxy = await find_proxy(box)
    if proxy is None:
        return Seen(None, "no proxy is named inside")
    target = "elsewhere.invalid:443"
    bad = await _not_refused(box, proxy, [target])
    return Seen(not bad and await lives(box), bad or f"{target} was refused")


async def _not_refused(box: Sandbox, proxy: _Proxy, targets: list[str]) -> str:
    """The first answer that is no refusal, or nothing."""
    for target in targets:
        answer = await ask_proxy(box, proxy, target)
        if answer.split()[1:2] not in (["403"], ["400"]):
            return f"CONNECT {target}: {answer}"
    return ""


def _with(network: Network) -> Policy:
    return replace(small(), network=network)


ATTEMPTS = (
    Attempt("network", "this machine's addresses", this_machine, small()),
    Attempt("network", "private and metadata addresses", far_addresses, small()),
    # The widest rule: what is refused is refused for its address.
    Attempt("network", "through the proxy", through_proxy, _with(Network(NetworkMode.OPEN))),
    Attempt(
        "network",
        "a name beyond the rule",
        other_name,
        _with(Network(NetworkMode.ALLOW, ("sandlot.invalid",))),
    ),
)
