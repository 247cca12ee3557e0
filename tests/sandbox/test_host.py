"""What a harness's sandboxes share: which bubblewrap is run, and leases that outlive nobody."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox.host import _verified, _write_lease, list_leases, reap, runtime_dir
from sandlot.sandbox.idmap import detect


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


_NESTING = """
import json, os, sys
from sandlot.sandbox import launcher

outer = launcher.make_user_namespace(json.loads(sys.argv[1]))
if os.fork() == 0:
    launcher.setns(outer, launcher.CLONE_NEWUSER, "enter the id map")
    launcher.become_inner_root()
    before = os.getpid(), os.getppid()
    launcher.nest_user_namespace()
    print((os.getpid(), os.getppid()) == before, open("/proc/self/uid_map").read().split())
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        print("alone", flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.sandbox
def test_what_becomes_bubblewrap_keeps_its_parent_and_is_alone() -> None:
    """bubblewrap dies with its parent: one that ended on the way took the sandbox with it."""
    idmap = detect(os.getuid(), getpass.getuser())
    if idmap.kind == "single":
        pytest.skip("this user has no range of ids, so no map is nested")
    done = subprocess.run(
        [sys.executable, "-c", _NESTING, json.dumps(asdict(idmap))],
        capture_output=True,
        text=True,
        timeout=30,
    )
    rows = ["0", "0", "1", "1", "1", "65535"]
    assert done.stdout == f"True {rows}\nalone\n", done.stderr
