"""Real sandboxes for the tests of this folder."""

from __future__ import annotations

import pytest

from sandbox.backends import proved_maker
from sandlot.sandbox.contract import MakeSandbox


@pytest.fixture(scope="session")
def bubblewrap(tmp_path_factory: pytest.TempPathFactory) -> MakeSandbox:
    return proved_maker(tmp_path_factory.mktemp("state"))
