"""Control groups, on folders that only look like the kernel's."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sandlot.sandbox.cgroups import Cgroup, CgroupRoot, open_root
from sandlot.sandbox.policy import MIB, Limits

LIMITS = Limits(memory_bytes=64 * MIB, processes=7, cpus=1.5)


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    """A version 2 tree, as root sees it."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    return tmp_path


@pytest.fixture
def split(tmp_path: Path) -> CgroupRoot:
    """The tops of a version 1 tree, where two controllers share a folder."""
    tops = {
        "memory": tmp_path / "memory/sandlot-x",
        "pids": tmp_path / "pids/sandlot-x",
        "cpu": tmp_path / "cpu,cpuacct/sandlot-x",
        "cpuacct": tmp_path / "cpu,cpuacct/sandlot-x",
    }
    for top in set(tops.values()):
        top.mkdir(parents=True)
    return CgroupRoot(1, tops)


def words(path: Path) -> set[str]:
    return set(path.read_text().split())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_version_2_passes_only_the_wanted_controllers_down(unified: Path) -> None:
    root = open_root("x", unified)
    assert root is not None
    assert root.version == 2
    assert set(root.tops) == {"memory", "pids", "cpu"}
    for folder in (unified, unified / "sandlot-x"):
        assert words(folder / "cgroup.subtree_control") == {"+memory", "+pids", "+cpu"}


def test_version_2_without_a_process_controller_is_not_used(unified: Path) -> None:
    (unified / "cgroup.controllers").write_text("cpu memory\n")
    assert open_root("x", unified) is None
    assert not (unified / "sandlot-x").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to everything")
def test_a_tree_that_only_root_may_write_to_is_not_used(unified: Path) -> None:
    unified.chmod(0o555)
    try:
        assert open_root("x", unified) is None
    finally:
        unified.chmod(0o755)


def test_a_machine_without_control_groups_has_none(tmp_path: Path) -> None:
    assert open_root("x", tmp_path / "missing") is None


def test_a_kernel_that_refuses_a_write_leaves_no_groups(unified: Path) -> None:
    (unified / "cgroup.subtree_control").mkdir()  # opening it for writing fails, as EBUSY would
    assert open_root("x", unified) is None


def test_version_2_limits_are_written_with_swap_off(unified: Path) -> None:
    root = open_root("x", unified)
    assert root is not None
    group = root.create("one", LIMITS)
    assert contents(unified / "sandlot-x/one") == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "pids.max": "7",
        "cpu.max": "150000 100000",
    }
    assert group.procs == [str(unified / "sandlot-x/one/cgroup.procs")]


def test_version_1_limits_go_to_the_folder_of_their_controller(split: CgroupRoot) -> None:
    group = split.create("one", LIMITS)
    assert contents(group.folders["memory"]) == {
        "memory.limit_in_bytes": str(64 * MIB),
        "memory.memsw.limit_in_bytes": str(64 * MIB),
    }
    assert contents(group.folders["pids"]) == {"pids.max": "7"}
    assert contents(group.folders["cpu"]) == {
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
    }
    assert len(group.procs) == 3  # cpu and cpuacct are one folder


def test_a_limit_that_is_left_off_writes_nothing(split: CgroupRoot) -> None:
    group = split.create("one", Limits(memory_bytes=None, processes=None, cpus=None))
    assert [contents(folder) for folder in set(group.folders.values())] == [{}, {}, {}]


def test_a_limit_without_its_controller_is_not_written(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    group = CgroupRoot(2, {"memory": top, "pids": top}).create("one", LIMITS)
    assert "cpu.max" not in contents(top / "one")
    assert group.controls("memory")
    assert not group.controls("cpu")


def test_a_tiny_share_of_a_processor_is_raised_to_what_the_kernel_accepts(
    split: CgroupRoot,
) -> None:
    group = split.create("one", Limits(cpus=0.001))
    assert contents(group.folders["cpu"])["cpu.cfs_quota_us"] == "1000"


def test_a_name_in_use_is_refused(split: CgroupRoot) -> None:
    split.create("one", Limits())
    with pytest.raises(FileExistsError):
        split.create("one", Limits())


def test_version_2_meters_are_read_in_seconds_and_bytes(tmp_path: Path) -> None:
    group = Cgroup(2, dict.fromkeys(("memory", "pids", "cpu"), tmp_path))
    (tmp_path / "memory.events").write_text("low 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n")
    (tmp_path / "memory.peak").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (tmp_path / "pids.current").write_text("3\n")
    assert group.oom_kills() == 2
    assert (group.memory_peak_bytes(), group.memory_bytes()) == (5000, 4000)
    assert group.cpu_s() == 1.5
    assert group.processes() == 3


def test_version_1_meters_are_read_in_seconds_and_bytes(tmp_path: Path) -> None:
    group = Cgroup(1, dict.fromkeys(("memory", "pids", "cpuacct"), tmp_path))
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    (tmp_path / "memory.max_usage_in_bytes").write_text("5000\n")
    (tmp_path / "memory.usage_in_bytes").write_text("4000\n")
    (tmp_path / "cpuacct.usage").write_text("2500000000\n")
    assert group.oom_kills() == 1
    assert (group.memory_peak_bytes(), group.memory_bytes()) == (5000, 4000)
    assert group.cpu_s() == 2.5


@pytest.mark.parametrize("version", [1, 2])
def test_a_meter_that_is_missing_or_broken_is_unknown_not_zero(
    tmp_path: Path, version: int
) -> None:
    (tmp_path / "pids.current").write_text("max\n")
    for folders in ({}, dict.fromkeys(("memory", "pids", "cpu", "cpuacct"), tmp_path)):
        group = Cgroup(version, folders)
        assert group.memory_peak_bytes() is None
        assert group.memory_bytes() is None
        assert group.cpu_s() is None
        assert group.processes() is None
        assert group.oom_kills() == 0


async def test_a_group_is_removed_from_every_controller(split: CgroupRoot) -> None:
    group = split.create("one", Limits(memory_bytes=None, processes=None))
    assert await group.remove()
    assert not any(folder.exists() for folder in group.folders.values())
    assert await group.remove()  # gone already
    split.remove()
    assert not any(top.exists() for top in split.tops.values())


async def test_a_busy_group_is_tried_until_its_last_process_is_gone(split: CgroupRoot) -> None:
    group = split.create("one", Limits(memory_bytes=None, processes=None))
    process = group.folders["memory"] / "busy"
    process.mkdir()  # rmdir of the group fails, as with a process in it
    asyncio.get_running_loop().call_later(0.02, process.rmdir)
    assert await group.remove()
    assert not group.folders["memory"].exists()


async def test_a_group_that_stays_busy_is_given_up(split: CgroupRoot) -> None:
    group = split.create("one", Limits(memory_bytes=None, processes=None))
    (group.folders["pids"] / "busy").mkdir()
    assert not await group.remove(within_s=0.02)
    assert group.folders["pids"].exists()
    assert not group.folders["memory"].exists()
