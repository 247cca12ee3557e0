"""Asking again: which failures pass, how long to wait for them, and when to give up."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

from sandlot.core.errors import ModelError

T = TypeVar("T")

_PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))


class TransientError(ModelError):
    """A failure that may pass by itself. `retry_after_s` is the server's own wish, in seconds."""

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to wait, all times in seconds.

    Waits double from `first_s` to `cap_s` and are shortened by up to half at random, so that
    many rollouts do not come back at the same moment. A server's `Retry-After` is kept to, up to
    `retry_after_cap_s`. `budget_s` bounds the waiting for one reply in all.
    """

    max_retries: int = 6
    first_s: float = 0.5
    cap_s: float = 30.0
    retry_after_cap_s: float = 120.0
    budget_s: float = 300.0

    def delay_s(self, retry: int, wish_s: float | None, jitter: float) -> float:
        """The wait before retry number `retry` (from 0); `jitter` in [0, 1)."""
        own = min(self.cap_s, self.first_s * 2.0 ** min(retry, 30)) * (1.0 - jitter / 2.0)
        if wish_s is None:
            return own
        return max(own, min(wish_s, self.retry_after_cap_s))


@dataclass(frozen=True, slots=True)
class Retried(Generic[T]):
    """A value, and what it took: retries and the seconds spent waiting for them."""

    value: T
    retries: int
    waiting_s: float


@dataclass(frozen=True, slots=True)
class Waiter:
    """The clock, the sleep and the dice that retries need, handed in for tests."""

    sleep: Callable[[float], Awaitable[None]]
    clock: Callable[[], float]
    jitter: Callable[[], float]


async def with_retries(
    attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, waiter: Waiter
) -> Retried[T]:
    """Await `attempt` until it succeeds or retrying makes no more sense.

    Raises:
        ModelError: the last failure, with the number of retries; any other error at once.
    """
    retries, waited_s = 0, 0.0
    while True:
        try:
            return Retried(await attempt(), retries, waited_s)
        except TransientError as exc:
            delay_s = policy.delay_s(retries, exc.retry_after_s, waiter.jitter())
            if retries >= policy.max_retries or waited_s + delay_s > policy.budget_s:
                raise _gave_up(exc, retries, waited_s) from exc.__cause__
        started = waiter.clock()
        await waiter.sleep(delay_s)
        waited_s += waiter.clock() - started
        retries += 1


def is_passing(status: int) -> bool:
    """Whether an HTTP status speaks of a state that may pass."""
    return status in _PASSING or 520 <= status <= 599


def retry_after_s(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """The seconds that a server asks to wait, from `retry-after-ms` or `Retry-After`.

    The latter is a number of seconds or a date (RFC 9110, section 10.2.3). What cannot be read
    and what lies in the past counts as no wish. `now_s` is in seconds since the epoch.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or not value:
        return seconds
    try:
        moment = parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    ahead_s = moment - (time.time() if now_s is None else now_s)
    return ahead_s if ahead_s >= 0 else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < float("inf") else None


def _gave_up(exc: TransientError, retries: int, waited_s: float) -> ModelError:
    tried = f" (gave up after {retries} retries and {waited_s:.1f} s of waiting)" if retries else ""
    return ModelError(f"{exc}{tried}", status=exc.status)
