"""What a harness's sandboxes share: which bubblewrap is run, and leases that outlive nobody."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox.host import _verified, _write_lease, list_leases, reap, runtime_dir


def test_another_program_in_the_wheels_place_is_not_run(tmp_path: Path) -> None:
    program = tmp_path / "bwrap"
    program.write_bytes(b"#!/bin/sh\necho trust me\n")
    with pytest.raises(SandboxUnavailable, match="not the program that sandlot was released with"):
        _verified(program)


def test_a_lease_lives_as_long_as_its_lock_and_is_reaped_after(tmp_path: Path) -> None:
    folder = tmp_path / "lease"
    folder.mkdir()
    lock = _write_lease(folder, None)
    assert [lease.alive for lease in list_leases(tmp_path)] == [True]
    assert asyncio.run(reap(tmp_path)) == []
    os.close(lock)
    assert [lease.alive for lease in list_leases(tmp_path)] == [False]
    (removed,) = asyncio.run(reap(tmp_path))
    assert str(os.getpid()) in removed
    assert not folder.exists()


def test_leases_prefer_the_users_runtime_folder_and_fall_back_to_state(tmp_path: Path) -> None:
    chosen = runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}, tmp_path / "state")
    assert chosen == tmp_path / "sandlot"
    assert chosen.stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sandlot").symlink_to(tmp_path / "elsewhere")
    chosen = runtime_dir({"XDG_RUNTIME_DIR": str(tmp_path)}, tmp_path / "state")
    assert chosen != tmp_path / "sandlot"
