"""Every backend keeps the contract: each check is a test for each backend that can run it."""

from __future__ import annotations

import pytest

from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import (
    CAPABILITIES,
    CHECKS,
    Check,
    ContractViolation,
    MakeSandbox,
    equal,
    opened,
    refused,
    require,
    run_contract,
    small_policy,
)
from sandlot.sandbox.fake import FakeSandbox
from sandlot.sandbox.policy import Policy

FAKE_CHECKS = [check for check in CHECKS if not check.needs]


def make_fake(policy: Policy) -> Sandbox:
    return FakeSandbox(policy=policy)


def _params(checks: list[Check] | tuple[Check, ...]) -> list[object]:
    return [
        pytest.param(check, id=check.name, marks=[pytest.mark.slow] if check.slow else [])
        for check in checks
    ]


@pytest.mark.parametrize("check", _params(FAKE_CHECKS))
async def test_fake_keeps_the_contract(check: Check) -> None:
    await check.run(make_fake)


@pytest.mark.sandbox
@pytest.mark.parametrize("check", _params(CHECKS))
async def test_bubblewrap_keeps_the_contract(check: Check, bubblewrap: MakeSandbox) -> None:
    await check.run(bubblewrap)


def test_checks_have_names_of_their_own_and_known_needs() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert len(CHECKS) >= 75
    assert all(check.needs <= CAPABILITIES for check in CHECKS)


async def test_a_backend_that_forgets_files_breaks_the_contract() -> None:
    class Forgetful(FakeSandbox):
        async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
            await super().write_file(path, data[:-1], exclusive=exclusive)

    outcomes = await run_contract(lambda policy: Forgetful(policy=policy), set())
    broken = {outcome.name for outcome in outcomes if outcome.problem}
    assert "every byte value survives" in broken
    assert "closing twice does nothing" not in broken


async def test_checks_beyond_the_capabilities_are_skipped_with_the_reason() -> None:
    outcomes = await run_contract(make_fake, set(), slow=False)
    skipped = {outcome.name: outcome.skipped for outcome in outcomes if outcome.skipped}
    assert skipped["plain variables survive"] == "needs shell"
    assert skipped["a hundred megabytes go in and out byte for byte"] == "slow"


async def test_the_parts_of_checks_raise_violations() -> None:
    with pytest.raises(ContractViolation, match="broken"):
        require(False, "broken")
    with pytest.raises(ContractViolation, match="expected 1, found 2"):
        equal(2, 1, "number")
    async with opened(make_fake, small_policy()) as box:
        with pytest.raises(ContractViolation, match="expected KeyError"):
            await refused(box.write_file("a", b""), KeyError, what="a write")
