"""What one sandbox's requests have used: a record of each, in bounded space, and two budgets."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandlot.core.types import EgressRecord
from sandlot.sandbox.egress_verdict import ALLOWED, BYTES_SPENT, CONNECTIONS_SPENT, Refusal


@dataclass(slots=True)
class Budget:
    """Bytes both ways and connections that are left; None for no ceiling."""

    bytes_left: int | None = None
    connections_left: int | None = None

    def check_bytes(self) -> None:
        """Raises `Refusal` where nothing is left."""
        if self.bytes_left is not None and self.bytes_left <= 0:
            raise _spent(BYTES_SPENT, "bytes")

    def take_bytes(self, count: int) -> None:
        """Raises `Refusal` where that is more than is left; then nothing is left."""
        if self.bytes_left is None:
            return
        enough = count <= self.bytes_left
        self.bytes_left = self.bytes_left - count if enough else 0
        if not enough:
            raise _spent(BYTES_SPENT, "bytes")

    def take_connection(self) -> None:
        if self.connections_left is None:
            return
        if self.connections_left == 0:
            raise _spent(CONNECTIONS_SPENT, "connections")
        self.connections_left -= 1


def _spent(verdict: str, what: str) -> Refusal:
    return Refusal(403, verdict, f"this computer has used up the {what} that its network allows.")


@dataclass(slots=True, eq=False)
class Tally:
    """What is known so far about one request; becomes its record, or several (`Ledger.drain`)."""

    budget: Budget
    host: str = ""
    port: int = 0
    verdict: str = ""
    sent: int = 0
    received: int = 0
    told: tuple[int, int] | None = None

    def add_sent(self, count: int) -> None:
        self.budget.take_bytes(count)
        self.sent += count

    def add_received(self, count: int) -> None:
        self.budget.take_bytes(count)
        self.received += count

    @property
    def has_news(self) -> bool:
        """Whether the records made so far leave something out."""
        return self.told != (self.sent, self.received)

    def record(self) -> EgressRecord:
        """The bytes since the last record."""
        sent, received = self.told or (0, 0)
        self.told = self.sent, self.received
        return EgressRecord(
            self.host, self.port, self.verdict, self.sent - sent, self.received - received
        )


@dataclass(slots=True)
class Ledger:
    """Records in a bounded space, whatever the sandbox asks for.

    Beyond `limit` single records, requests are only counted by host, port and verdict.
    """

    limit: int
    single: list[EgressRecord] = field(default_factory=list)
    merged: dict[tuple[str, int, str], tuple[int, int]] = field(default_factory=dict)
    running: set[Tally] = field(default_factory=set)

    def begin(self, tally: Tally) -> None:
        """An allowed request that moves bytes from now on."""
        self.running.add(tally)

    def end(self, tally: Tally) -> None:
        """Record a request, save where a drain has told everything about it already."""
        self.running.discard(tally)
        if tally.verdict and (tally.has_news or tally.verdict != ALLOWED):
            self._add(tally.record())

    def drain(self) -> list[EgressRecord]:
        """What ended since the last drain, and what each running request has moved since then."""
        for tally in self.running:
            if tally.has_news:
                self._add(tally.record())
        merged = [EgressRecord(*key, *counts) for key, counts in self.merged.items()]
        records = self.single + merged
        self.single, self.merged = [], {}
        return records

    def _add(self, record: EgressRecord) -> None:
        if len(self.single) < self.limit:
            self.single.append(record)
            return
        key = (record.host, record.port, record.verdict)
        if key not in self.merged and len(self.merged) >= self.limit:
            key = ("(other hosts)", 0, record.verdict)
        sent, received = self.merged.get(key, (0, 0))
        self.merged[key] = (sent + record.bytes_sent, received + record.bytes_received)
