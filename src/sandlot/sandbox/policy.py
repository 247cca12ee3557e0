"""What a sandbox may use and reach: one object, the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sandlot.core.errors import ConfigError

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one sandbox. Sizes in bytes, times in seconds, `None` for no ceiling of ours.

    `disk_bytes` bounds everything written inside (the upper layer, /tmp included).
    `capture_bytes` bounds what is kept in host memory of each output stream of a command (half
    from its start, half from its end); `saved_bytes` bounds the whole that is saved in a file
    inside; a command that prints more than `flood_bytes` is stopped.
    """

    memory_bytes: int | None = 4 * GIB
    cpus: float | None = None
    processes: int | None = 1024
    disk_bytes: int | None = 2 * GIB
    open_files: int | None = 4096
    command_timeout_s: float = 120.0
    capture_bytes: int = 128 * 1024
    saved_bytes: int = 32 * MIB
    flood_bytes: int = 4 * GIB
    collect_bytes: int = GIB
    collect_files: int = 10_000

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "cpus", "processes", "disk_bytes", "open_files"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"limit {name} must be above zero, found {value}")
        if self.command_timeout_s <= 0:
            raise ConfigError(f"command_timeout_s must be above zero: {self.command_timeout_s}")


class NetworkMode(StrEnum):
    NONE = "none"
    PACKAGES = "packages"
    ALLOW = "allow"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Network:
    """Which names the egress proxy lets through.

    `hosts` are exact names or `*.name` patterns (mode `allow`; `packages` may stand among them).
    `private_hosts` are names that may resolve to a private address (`packages` may stand here
    too); every other name that does is refused.
    """

    mode: NetworkMode = NetworkMode.PACKAGES
    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, private_hosts: tuple[str, ...] = ()) -> Network:
        """Read `none`, `packages`, `open` or `allow:HOST,HOST`.

        Raises:
            ConfigError: another word, an empty host list, or a host that is a URL or an address.
        """
        mode, _, rest = text.partition(":")
        if mode not in list(NetworkMode) or (rest and mode != NetworkMode.ALLOW):
            raise ConfigError(
                f"network {text!r} is not known (have: none, packages, open, allow:HOST,…)"
            )
        hosts = tuple(part.strip().lower() for part in rest.split(",") if part.strip())
        if mode == NetworkMode.ALLOW and not hosts:
            raise ConfigError("network 'allow:' names no host; write allow:HOST,HOST or none")
        for host in (*hosts, *private_hosts):
            _check_host(host)
        return cls(NetworkMode(mode), hosts, private_hosts)


@dataclass(frozen=True, slots=True)
class Mount:
    """A host folder shown inside, read-only unless `writable`."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything a sandbox is allowed. `asked` names the limits that the user set by hand:

    those are enforced or refused; the others fall back to the strongest form that holds.
    """

    limits: Limits = field(default_factory=Limits)
    network: Network = field(default_factory=Network)
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/testbed"
    asked: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Enforcement:
    """How one promise is kept on this machine.

    Where it does not hold, `means` is `none` or names what is done as a best effort.
    """

    promise: str
    means: str
    holds: bool
    note: str = ""


def _check_host(host: str) -> None:
    name = host.removeprefix("*.")
    bad = not name or "/" in name or ":" in name or name.replace(".", "").isdigit() or "*" in name
    if bad:
        raise ConfigError(
            f"network host {host!r} is not a host name; write it like example.org or *.example.org"
        )
