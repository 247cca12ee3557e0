"""How many episodes run at once: halved when the server or the machine is overrun, then regrown."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PAUSE_S = 5.0
"""After a halving nothing more is inferred for so long: what was under way still comes back."""
_LOAD_PER_CORE = 24.0
_FREE_SHARE = 0.06


@dataclass(frozen=True, slots=True)
class Host:
    """The state of this machine: runnable processes a core (one minute), share of memory free."""

    load_per_core: float
    memory_free: float

    @property
    def overrun(self) -> str | None:
        """Why nothing more should be started here, or None."""
        if self.memory_free < _FREE_SHARE:
            return f"{self.memory_free:.0%} of the memory is free"
        if self.load_per_core > _LOAD_PER_CORE:
            return f"{self.load_per_core:.0f} processes wait for each core"
        return None


def read_host() -> Host:
    """As the kernel tells; what it does not tell counts as plenty."""
    try:
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        load = 0.0
    try:
        lines = dict(
            line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if line
        )
        free = int(lines["MemAvailable"].split()[0]) / int(lines["MemTotal"].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        free = 1.0
    return Host(load, free)


class Throttle:
    """The number of episodes that may run at once, between 1 and `ceiling`.

    A reply that had to wait for a retry halves it, and so does a failed model or an overrun host,
    at most once every few seconds. Each `limit` replies in a row without waiting add one, so that
    it doubles about once in the time that all running episodes take for a reply each, times the
    limit. Not thread-safe: the run's own loop alone calls it.
    """

    def __init__(
        self,
        ceiling: int,
        *,
        clock: Callable[[], float],
        host: Callable[[], Host] = read_host,
    ) -> None:
        self.ceiling = ceiling
        self.limit = ceiling
        self.halvings = 0
        self._clock = clock
        self._host = host
        self._smooth = 0
        self._quiet_until = float("-inf")
        self._host_checked = float("-inf")

    def replied(self, waited_s: float) -> None:
        """A reply came, after so many seconds of waiting for retries."""
        if waited_s > 0:
            self._halve()
            return
        self._smooth += 1
        if self._smooth >= self.limit and self.limit < self.ceiling:
            self.limit += 1
            self._smooth = 0

    def failed(self) -> None:
        """The model gave up on a reply."""
        self._halve()

    def look_at_host(self) -> str | None:
        """Halve where the machine is overrun; says why. Looks at most once every few seconds."""
        if self._clock() < self._host_checked + _PAUSE_S:
            return None
        self._host_checked = self._clock()
        why = self._host().overrun
        if why is not None:
            self._halve()
        return why

    def _halve(self) -> None:
        self._smooth = 0
        if self._clock() < self._quiet_until:
            return
        self._quiet_until = self._clock() + _PAUSE_S
        if self.limit > 1:
            self.limit = max(1, self.limit // 2)
            self.halvings += 1
