"""Host names and the addresses behind them: which ones are names, and where they may lead."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence

from sandlot.sandbox.egress_verdict import (
    FORBIDDEN_ADDRESS,
    NOT_A_NAME,
    PRIVATE_ADDRESS,
    Refusal,
    malformed,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Dial = Callable[[str, int], Awaitable[socket.socket]]
AddressRule = Callable[[Address, bool], str | None]
"""Why an address must not be dialled, or None. The flag says that the name may be private."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"(?:\d+|0x[0-9a-f]*)")
# Names of this machine and of the services where clouds hand out their machines' credentials.
# Their addresses are refused too; the name says it without a lookup, and whatever it leads to.
_LOCAL_NAMES = (
    "localhost",
    "*.localhost",
    "localhost.localdomain",
    "ip6-localhost",
    "ip6-loopback",
    "metadata",
    "*.metadata.google.internal",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.tencentyun.com",
)


def read_name(text: str) -> str:
    """A host name in lower case, without its last dot.

    A name whose last label is a number is an address to some resolver (127.1, 2130706433,
    0x7f.1), so it is none here.

    Raises:
        Refusal: an address in any notation, or no host name.
    """
    name = text.lower().removesuffix(".")
    if name.startswith("[") or _NUMBER.fullmatch(name.rpartition(".")[2]):
        asked = name[:64]
        raise Refusal(
            403,
            NOT_A_NAME,
            f"{asked} is refused: this computer reaches hosts by name only, never by address.",
            asked,
        )
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise malformed("the host is not a host name")
    return name


def host_matches(host: str, pattern: str) -> bool:
    """Whether a name is the pattern, or below it where the pattern is `*.name`."""
    pattern = pattern.lower().rstrip(".")
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def is_local_name(host: str) -> bool:
    return any(host_matches(host, pattern) for pattern in _LOCAL_NAMES)


def address_refusal(address: Address, may_be_private: bool) -> str | None:
    """Why an address must not be dialled, or None.

    `may_be_private` lifts the rule for private ranges only: this machine, its link (where cloud
    metadata lives), multicast and reserved ranges stay refused.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return FORBIDDEN_ADDRESS  # it means one link of this machine, whatever its bits say
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
# Interface identifiers of ISATAP (RFC 5214 section 6.1), which carry an IPv4 address as well.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def _within(
    address: Address, networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
) -> bool:
    return any(address in network for network in networks if network.version == address.version)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that only carries it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64 or int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
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
