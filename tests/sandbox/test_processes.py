"""What the host sees of a sandbox's processes while they come and go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandlot.sandbox.processes import ProcessTree


class Relay(ProcessTree):
    """Processes of which each ends as it is looked at, and has begun the next one before."""

    def __init__(self, root: Path, runners: int) -> None:
        self._folder = root / "proc"
        self._runners = runners
        self._begin(101)
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        super().__init__(fd)
        os.close(fd)

    def _begin(self, pid: int) -> None:
        place = self._folder / str(pid)
        place.mkdir(parents=True)
        (place / "stat").write_text(f"{pid} (sh) S 1 0 0")

    def _status(self, pid: int) -> tuple[str, int] | None:
        if self._runners:
            self._runners -= 1
            self._begin(pid + 1)
            shutil.rmtree(self._folder / str(pid))
        return super()._status(pid)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    tree = Relay(tmp_path, runners=3)
    yield tree
    tree.close()


def test_a_process_that_ends_while_it_is_looked_at_hides_no_child(relay: Relay) -> None:
    assert relay.descendants_since({1, 7}, 7) == [104]


def test_what_runs_on_under_another_number_is_counted(relay: Relay) -> None:
    assert relay.pids() == {104}


def test_a_relay_without_end_is_not_waited_for(tmp_path: Path) -> None:
    tree = Relay(tmp_path, runners=10**6)
    assert tree.pids() == set()
    tree.close()
