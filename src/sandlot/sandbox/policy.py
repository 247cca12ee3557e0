"""What a sandbox may use and reach: one object, the same for every backend."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sandlot.core.errors import ConfigError, PolicyNotEnforceable

MIB = 1024 * 1024
GIB = 1024 * MIB
NAMED_LISTS = frozenset({"packages"})
# As the flags, the promises and the messages call them.
_WORD = {
    "memory_bytes": "memory",
    "cpus": "cpus",
    "processes": "processes",
    "disk_bytes": "disk",
    "open_files": "open files",
    "file_bytes": "file size",
    "wall_s": "wall time",
    "command_timeout_s": "command time",
    "network": "network",
}
_CEILINGS = tuple(name for name in _WORD if name != "network")
# Below these no shell starts, and the error would be a riddle.
_LEAST = {"memory_bytes": 8 * MIB, "processes": 6, "open_files": 16, "disk_bytes": 64 * 1024}


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one sandbox. Sizes in bytes, times in seconds, `None` for no ceiling of ours.

    `disk_bytes` bounds everything written inside (the upper layer, /tmp included), `file_bytes` a
    single file, `wall_s` the life of the sandbox from its start: then it dies of `time_limit`.
    `capture_bytes` bounds what is kept in host memory of each output stream of a command (half
    from its start, half from its end); `saved_bytes` bounds the whole that is saved in a file
    inside; a command that prints more than `flood_bytes` is stopped.
    """

    memory_bytes: int | None = 4 * GIB
    cpus: float | None = None
    processes: int | None = 1024
    disk_bytes: int | None = 2 * GIB
    open_files: int | None = 4096
    file_bytes: int | None = None
    wall_s: float | None = None
    command_timeout_s: float = 120.0
    capture_bytes: int = 128 * 1024
    saved_bytes: int = 32 * MIB
    flood_bytes: int = 4 * GIB
    collect_bytes: int = GIB
    collect_files: int = 10_000

    def __post_init__(self) -> None:
        for name in _CEILINGS:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"the limit on {_WORD[name]} must be above zero, found {value}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                unit = " bytes" if name.endswith("_bytes") else ""
                raise ConfigError(
                    f"the limit on {_WORD[name]} is too small to start a shell: "
                    f"at least {least:,}{unit}, found {value:,}"
                )


class NetworkMode(StrEnum):
    NONE = "none"
    PACKAGES = "packages"
    ALLOW = "allow"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret that the proxy adds to requests for one host and that never enters the sandbox.

    `header` is the header's name and `secret` its whole value (`Bearer …`).
    """

    host: str
    secret: str = field(repr=False)
    header: str = "authorization"

    def __post_init__(self) -> None:
        _check_host(self.host)
        clean = self.secret and self.secret.isprintable() and self.header.replace("-", "").isalnum()
        if not clean:
            raise ConfigError(
                f"the credential for {self.host!r} needs a header name and a secret of one line"
            )


@dataclass(frozen=True, slots=True)
class Network:
    """Which names the egress proxy lets through.

    `hosts` are exact names, `*.name` patterns or named lists (mode `allow`; `packages` is a named
    list). `denied_hosts` are refused whatever else allows them. `private_hosts` are names that may
    resolve to a private address (`packages` may stand here too); every other name that does is
    refused. `max_bytes` bounds what all connections of a sandbox carry together, both ways, and
    `max_connections` how many it may open in its life. `credentials` are added at the wall.
    """

    mode: NetworkMode = NetworkMode.PACKAGES
    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    denied_hosts: tuple[str, ...] = ()
    max_bytes: int | None = None
    max_connections: int | None = None
    credentials: tuple[Credential, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_connections"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                word = name.removeprefix("max_")
                raise ConfigError(f"the network's {word} must be above zero, found {value}")
        if self.mode is NetworkMode.NONE and self.credentials:
            raise ConfigError(
                "network 'none' lets no request out, so its credentials cannot be used; "
                "allow their hosts, or leave the credentials out"
            )
        both = set(self.hosts) & set(self.denied_hosts)
        if both:
            raise ConfigError(f"network: {sorted(both)[0]!r} is both allowed and denied")
        for item in self.credentials:
            self._check_use(item.host)

    def _check_use(self, host: str) -> None:
        """A credential that no request could carry is a mistake."""
        lists = any(pattern in NAMED_LISTS for pattern in self.hosts)
        named = any(_covers(pattern, host) for pattern in self.hosts)
        out_of_reach = self.mode is NetworkMode.ALLOW and not (lists or named)
        if out_of_reach or any(_covers(pattern, host) for pattern in self.denied_hosts):
            raise ConfigError(
                f"network: {host!r} has a credential but cannot be reached; "
                f"allow it (allow:{host}) or leave the credential out"
            )

    @classmethod
    def parse(
        cls,
        text: str,
        private_hosts: tuple[str, ...] = (),
        denied_hosts: tuple[str, ...] = (),
    ) -> Network:
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
        for host in (*hosts, *private_hosts, *denied_hosts):
            _check_host(host)
        return cls(NetworkMode(mode), hosts, private_hosts, denied_hosts)


@dataclass(frozen=True, slots=True)
class Mount:
    """A host folder shown inside, read-only unless `writable`."""

    source: str
    target: str
    writable: bool = False

    def __post_init__(self) -> None:
        parts = self.target.split("/")
        top = parts[1] if len(parts) > 1 else ""
        if not self.target.startswith("/") or ".." in parts or top in ("", "proc", "dev", "sys"):
            raise ConfigError(
                f"mount target {self.target!r} is not a folder that can be laid over inside; "
                "name an absolute path like /data, not below /proc, /dev or /sys"
            )
        if not os.path.isdir(self.source):
            raise ConfigError(f"mount source {self.source!r} is not a folder of this machine")


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything a sandbox is allowed. `asked` names the limits that the user set by hand:

    those are enforced or refused; the others fall back to the strongest form that holds.
    `accepted` names promises (of `Enforcement`) that the user takes unenforced, or `all`.
    """

    limits: Limits = field(default_factory=Limits)
    network: Network = field(default_factory=Network)
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/testbed"
    asked: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Enforcement:
    """How one promise is kept on this machine.

    Where it does not hold, `means` is `none` or names what is done as a best effort, and
    `accepted` says whether the user took it so (`Policy.accepted`).
    """

    promise: str
    means: str
    holds: bool
    note: str = ""
    accepted: bool = False


PROMISES = (
    "files",
    "ids",
    "system calls",
    "network",
    "memory",
    "cpus",
    "processes",
    "disk",
    "open files",
    "file size",
    "wall time",
    "output",
)


def settle_enforcement(policy: Policy, rows: Iterable[Enforcement]) -> tuple[Enforcement, ...]:
    """The rows as they are recorded: each exception that the user accepted is marked.

    Raises:
        PolicyNotEnforceable: limits that were asked for do not hold and were not accepted.
    """
    asked = {_WORD.get(name, name) for name in policy.asked}
    settled = [
        replace(row, accepted=not row.holds and bool({row.promise, "all"} & policy.accepted))
        for row in rows
    ]
    refused = [
        row for row in settled if row.promise in asked and not row.holds and not row.accepted
    ]
    if refused:
        names = ",".join(row.promise for row in refused)
        reasons = "; ".join(f"{row.promise}: {row.note}" for row in refused if row.note)
        raise PolicyNotEnforceable(
            f"the limit on {names.replace(',', ', ')} was asked for, but this machine cannot "
            f"enforce it{f' ({reasons})' if reasons else ''}. Leave it out, or accept that with "
            f"--accept-unenforced {shlex.quote(names)}"
        )
    return tuple(settled)


def _covers(pattern: str, host: str) -> bool:
    return host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def _check_host(host: str) -> None:
    name = host.removeprefix("*.")
    bad = not name or "/" in name or ":" in name or name.replace(".", "").isdigit() or "*" in name
    if bad:
        raise ConfigError(
            f"network host {host!r} is not a host name; write it like example.org or *.example.org"
        )
