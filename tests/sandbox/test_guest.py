"""The guest keeps the contract as process 1, and its other side believes nothing it says."""

from __future__ import annotations

import pytest

from sandbox.guests import GuestSandbox
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import CHECKS, Check
from sandlot.sandbox.policy import Policy

# What only a backend can keep: a filter, no new privileges, and what changed since the image.
_BACKENDS_OWN = {
    "nothing inside can gain privileges",
    "a seccomp filter is in force",
    "deleted and replaced parts of the image come back so",
}
GUEST_CHECKS = [check for check in CHECKS if check.name not in _BACKENDS_OWN]


def make_guest(policy: Policy) -> Sandbox:
    return GuestSandbox(policy)


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name, marks=[pytest.mark.slow] if check.slow else [])
        for check in GUEST_CHECKS
    ],
)
async def test_the_guest_keeps_the_contract(check: Check) -> None:
    await check.run(make_guest)
