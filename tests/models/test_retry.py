"""Which failures are waited out, and for how long."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandlot.core.errors import ModelError
from sandlot.models.retry import (
    RetryPolicy,
    TransientError,
    Waiter,
    is_passing,
    retry_after_s,
    with_retries,
)

NOW_S = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": formatdate(NOW_S + 40, usegmt=True)}, 40.0),
        ({"retry-after": formatdate(NOW_S - 40, usegmt=True)}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_as_seconds_milliseconds_or_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_s(headers, NOW_S) == seconds


def test_waits_double_up_to_the_cap_and_jitter_shortens_them_by_half_at_most() -> None:
    policy = RetryPolicy(first_s=1.0, cap_s=5.0)
    assert [policy.delay_s(n, None, 0.0) for n in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert policy.delay_s(1, None, 1.0) == 1.0


@given(st.integers(0, 1000), st.floats(0, 1e9), st.floats(0, 0.999))
def test_no_wait_is_ever_longer_than_the_cap(retry: int, wish_s: float, jitter: float) -> None:
    assert RetryPolicy().delay_s(retry, wish_s, jitter) <= 120.0


def test_only_states_that_may_pass_are_retried() -> None:
    assert all(is_passing(status) for status in (408, 409, 429, 500, 503, 522, 529))
    assert not any(is_passing(status) for status in (400, 401, 403, 404, 422, 501))


async def test_waiting_is_measured_by_the_clock_not_by_what_was_planned() -> None:
    now = [0.0]
    failures = [TransientError("busy"), TransientError("busy")]

    async def sleep(seconds: float) -> None:
        now[0] += seconds + 0.25  # a busy machine wakes up late

    async def attempt() -> str:
        now[0] += 5.0  # working time is not waiting
        if failures:
            raise failures.pop()
        return "done"

    waiter = Waiter(sleep, lambda: now[0], lambda: 0.0)
    done = await with_retries(attempt, RetryPolicy(first_s=1.0), waiter)
    assert (done.value, done.retries, done.waiting_s) == ("done", 2, 3.5)


async def test_an_error_that_will_not_pass_is_raised_at_once() -> None:
    tries = []

    async def sleep(seconds: float) -> None:
        raise AssertionError("nothing to wait for")

    async def attempt() -> None:
        tries.append(1)
        raise ModelError("no such model", status=404)

    with pytest.raises(ModelError, match=r"^no such model$"):
        await with_retries(attempt, RetryPolicy(), Waiter(sleep, lambda: 0.0, lambda: 0.0))
    assert len(tries) == 1
