"""Podman keeps the contract: each check is a test, in a container of a private service."""

from __future__ import annotations

import pytest

from sandlot.sandbox.contract import CHECKS, Check, MakeSandbox

_PARAMS = [
    pytest.param(check, id=check.name, marks=[pytest.mark.slow] if check.slow else [])
    for check in CHECKS
]


@pytest.mark.sandbox
@pytest.mark.parametrize("check", _PARAMS)
async def test_podman_keeps_the_contract(check: Check, podman: MakeSandbox) -> None:
    await check.run(podman)
