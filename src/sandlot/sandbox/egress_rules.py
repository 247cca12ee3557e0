"""Which hosts the policy lets through the egress proxy."""

from __future__ import annotations

from collections.abc import Iterable

from sandlot.sandbox.egress_http import Target
from sandlot.sandbox.egress_names import host_matches, is_local_name
from sandlot.sandbox.egress_verdict import (
    DENIED,
    LOCAL_NAME,
    NOT_ALLOWED,
    PORT_NOT_ALLOWED,
    Refusal,
)
from sandlot.sandbox.policy import Network, NetworkMode


class Rules:
    """The names and ports of a policy; `packages` is the content of the named list."""

    def __init__(
        self, network: Network, packages: Iterable[str], allowed_ports: frozenset[int]
    ) -> None:
        self._network = network
        self._packages = frozenset(name.lower() for name in packages)
        self._ports = allowed_ports

    def check(self, target: Target) -> None:
        """Raises `Refusal` where the policy forbids it; denials beat everything."""
        where = f"{target.host}:{target.port}"
        if target.port not in self._ports:
            ports = ", ".join(str(port) for port in sorted(self._ports))
            raise Refusal(
                403, PORT_NOT_ALLOWED, f"{where} is refused: only ports {ports} can be reached."
            )
        if self._listed(target.host, self._network.denied_hosts):
            raise Refusal(403, DENIED, f"{where} is refused: it is on the list of denied hosts.")
        if not self._allows(target.host):
            raise Refusal(403, NOT_ALLOWED, f"{where} is refused: {self._reachable()}.")
        if is_local_name(target.host) and not self.may_be_private(target.host):
            raise Refusal(403, LOCAL_NAME, f"{where} is refused: it names the machine itself.")

    def may_be_private(self, host: str) -> bool:
        return self._listed(host, self._network.private_hosts)

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
