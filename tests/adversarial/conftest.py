"""Real sandboxes for the attacks: every test here runs on each backend that this machine has."""

from __future__ import annotations

import pytest

from sandbox.backends import proved_maker
from sandbox.podman import podman, podman_image, podman_service
from sandlot.sandbox.contract import MakeSandbox

__all__ = ["podman", "podman_image", "podman_service"]


@pytest.fixture(scope="session")
def bubblewrap(tmp_path_factory: pytest.TempPathFactory) -> MakeSandbox:
    return proved_maker(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session", params=["bubblewrap", "podman"])
def make_box(request: pytest.FixtureRequest) -> MakeSandbox:
    make: MakeSandbox = request.getfixturevalue(request.param)
    return make
