"""Real sandboxes for the attacks: every test here runs on each backend that this machine has."""

from __future__ import annotations

import pytest

from sandbox.backends import proved_maker
from sandlot.sandbox.contract import MakeSandbox


@pytest.fixture(scope="session", params=["bubblewrap"])
def make_box(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> MakeSandbox:
    return proved_maker(tmp_path_factory.mktemp("state"))
