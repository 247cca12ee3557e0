"""Control groups and meters: on folders that only look like the kernel's, then on real ones.

Real ones are version 1 here; `scripts/cgroup2-vm.sh` runs this file on version 2, as root and as an
ordinary user, with SANDLOT_REQUIRE_CGROUPS=2.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.cgroups import Cgroup, CgroupRoot, open_root
from sandlot.sandbox.contract import MakeSandbox, opened, small_policy
from sandlot.sandbox.delegation import (
    LEAF,
    delegated_folder,
    divide,
    own_folder,
    scope_folder,
    scope_prefix,
)
from sandlot.sandbox.host import _start_in_scope
from sandlot.sandbox.meters import CommandGauge, MemoryWatchdog, Use
from sandlot.sandbox.policy import MIB, Limits
from waiting import becomes_true

REQUIRED = os.environ.get("SANDLOT_REQUIRE_CGROUPS")
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
    root = open_root("x", unified, systemd=unified / "none")
    assert root is not None
    assert root.version == 2
    assert set(root.tops) == {"memory", "pids", "cpu"}
    for folder in (unified, unified / "sandlot-x"):
        assert words(folder / "cgroup.subtree_control") == {"+memory", "+pids", "+cpu"}


def test_version_2_without_a_process_controller_is_not_used(unified: Path) -> None:
    (unified / "cgroup.controllers").write_text("cpu memory\n")
    assert open_root("x", unified, systemd=unified / "none") is None
    assert not (unified / "sandlot-x").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to everything")
def test_a_tree_that_only_root_may_write_to_is_not_used(unified: Path) -> None:
    unified.chmod(0o555)
    try:
        assert open_root("x", unified, systemd=unified / "none") is None
    finally:
        unified.chmod(0o755)


def test_a_machine_without_control_groups_has_none(tmp_path: Path) -> None:
    assert open_root("x", tmp_path / "missing", systemd=tmp_path / "none") is None


def test_a_kernel_that_refuses_a_write_leaves_no_groups(unified: Path) -> None:
    (unified / "cgroup.subtree_control").mkdir()  # opening it for writing fails, as EBUSY would
    assert open_root("x", unified, systemd=unified / "none") is None


def test_version_2_limits_are_written_with_swap_off(unified: Path) -> None:
    root = open_root("x", unified, systemd=unified / "none")
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


# --- delegation ---------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A version 2 group below the top, that was delegated to us."""
    folder = tmp_path / "user.slice/mine"
    folder.mkdir(parents=True)
    (folder / "cgroup.type").write_text("domain\n")
    (folder / "cgroup.controllers").write_text("cpu memory pids\n")
    (folder / "cgroup.subtree_control").write_text("\n")
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return folder


def living_in(tmp_path: Path, path: str) -> Path:
    """What /proc/self is for a process of that group."""
    proc = tmp_path / "proc-self"
    proc.mkdir()
    (proc / "cgroup").write_text(f"5:memory:/else\n0::{path}\n")
    return proc


def test_the_own_group_is_found_below_the_mount(tmp_path: Path, own: Path) -> None:
    assert own_folder(tmp_path, living_in(tmp_path, "/user.slice/mine")) == own


@pytest.mark.parametrize("path", ["/somewhere/else", "/../user.slice/mine"])
def test_a_group_outside_of_what_is_mounted_is_not_found(
    tmp_path: Path, own: Path, path: str
) -> None:
    assert own_folder(tmp_path, living_in(tmp_path, path)) is None


def test_without_systemd_a_group_that_we_may_write_to_was_delegated(
    tmp_path: Path, own: Path
) -> None:
    proc = living_in(tmp_path, "/user.slice/mine")
    assert delegated_folder(tmp_path, systemd=False, proc=proc) == own


def test_a_group_of_systemd_must_be_marked_as_given_away(tmp_path: Path, own: Path) -> None:
    """Every group of a user's manager can be written to by that user, also where it is not ours."""
    proc = living_in(tmp_path, "/user.slice/mine")
    assert delegated_folder(tmp_path, systemd=True, proc=proc) is None
    try:
        os.setxattr(own, "user.delegate", b"1")
    except OSError as exc:
        pytest.skip(f"no attributes in {tmp_path}: {exc.strerror}")
    assert delegated_folder(tmp_path, systemd=True, proc=proc) == own


@pytest.mark.skipif(os.getuid() == 0, reason="root may write to everything")
def test_a_group_below_one_that_is_closed_to_us_was_delegated(tmp_path: Path, own: Path) -> None:
    proc = living_in(tmp_path, "/user.slice/mine")
    own.parent.chmod(0o555)
    try:
        assert delegated_folder(tmp_path, systemd=True, proc=proc) == own
    finally:
        own.parent.chmod(0o755)


def test_a_harness_that_moved_into_its_leaf_finds_its_group_again(
    tmp_path: Path, own: Path
) -> None:
    (own / LEAF).mkdir()
    proc = living_in(tmp_path, f"/user.slice/mine/{LEAF}")
    assert delegated_folder(tmp_path, systemd=False, proc=proc) == own


def test_the_top_of_the_tree_is_nobodys_to_be_delegated(tmp_path: Path) -> None:
    proc = living_in(tmp_path, "/")
    assert delegated_folder(tmp_path, systemd=False, proc=proc) is None


def test_dividing_moves_our_processes_to_a_leaf_first(own: Path) -> None:
    assert divide(own) == ("memory", "pids", "cpu")
    assert (own / LEAF / "cgroup.procs").read_text() == str(os.getpid())
    assert words(own / "cgroup.subtree_control") == {"+memory", "+pids", "+cpu"}


def test_our_children_move_along(own: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        (own / "cgroup.procs").write_text(f"{child.pid}\n")
        divide(own)
        child.kill()
    assert (own / LEAF / "cgroup.procs").read_text() == str(child.pid)


@pytest.mark.parametrize("stranger", [os.getppid(), 0])
def test_a_group_that_holds_others_is_left_alone(own: Path, stranger: int) -> None:
    """The shell that started us stays where its owner put it; 0 is one that we cannot see."""
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n{stranger}\n")
    with pytest.raises(OSError, match="not ours"):
        divide(own)
    assert not (own / LEAF).exists()
    assert words(own / "cgroup.subtree_control") == set()


def test_a_group_that_passes_its_controllers_on_already_is_taken_as_it_is(own: Path) -> None:
    (own / "cgroup.subtree_control").write_text("memory pids cpu\n")
    assert divide(own) == ("memory", "pids", "cpu")
    assert not (own / LEAF).exists()


def test_without_a_memory_controller_nothing_is_divided(own: Path) -> None:
    (own / "cgroup.controllers").write_text("cpu pids\n")
    with pytest.raises(OSError, match="controllers"):
        divide(own)


def test_a_division_that_the_kernel_refuses_is_undone(own: Path) -> None:
    (own / "cgroup.subtree_control").unlink()
    (own / "cgroup.subtree_control").symlink_to(own)  # opens for no writing
    (own / "cgroup.procs").write_text("")
    with pytest.raises(OSError, match="directory"):
        divide(own)
    assert not (own / LEAF).exists()


def test_no_scope_is_asked_for_where_no_systemd_listens(tmp_path: Path) -> None:
    assert scope_prefix("x", uid=0, root=tmp_path) == ()
    assert scope_prefix("x", uid=1000, root=tmp_path) == ()


def test_a_scope_is_asked_of_the_users_own_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemd-run"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for listens in ("run/systemd/private", "run/user/1000/systemd/private"):
        (tmp_path / listens).parent.mkdir(parents=True)
        (tmp_path / listens).touch()
    root, user = (scope_prefix("x", uid=uid, root=tmp_path) for uid in (0, 1000))
    assert {"--scope", "Delegate=yes", "--unit=sandlot-x.scope"} <= set(root) & set(user)
    assert "--user" in user
    assert "--user" not in root
    assert "XDG_RUNTIME_DIR=/run/user/1000" in user


async def test_a_scope_is_known_by_its_name_and_a_refusal_by_the_end_of_the_process(
    tmp_path: Path,
) -> None:
    scope = tmp_path / "app.slice/sandlot-x.scope"
    scope.mkdir(parents=True)
    proc = living_in(tmp_path, "/app.slice/sandlot-x.scope")
    assert await scope_folder("x", tmp_path, proc, lambda: True) == scope
    assert await scope_folder("x", tmp_path, proc, lambda: False) is None


async def test_where_systemd_refuses_the_launcher_starts_without_it(tmp_path: Path) -> None:
    """As where its bus is closed to us: systemd-run ends at once, and the sandboxes do without."""
    lock = os.open(tmp_path / "lease.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    launcher, groups = await _start_in_scope(tmp_path, lock, ("/bin/false",))
    try:
        assert launcher.running()
        if groups is not None:  # root of a machine of systemd's falls back to the top
            groups.remove()
    finally:
        await launcher.close()
        os.close(lock)
    assert not launcher.running()


# --- meters -------------------------------------------------------------------------------------


def test_a_gauge_without_a_group_knows_nothing() -> None:
    gauge = CommandGauge(None)
    gauge.begin()
    assert gauge.end() == gauge.life() == Use()
    assert gauge.memory_bytes() is None
    gauge.close()


def test_version_1_meters_are_differences_and_the_peak_starts_anew(tmp_path: Path) -> None:
    files = {
        "memory.max_usage_in_bytes": "9000",
        "memory.usage_in_bytes": "4000",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1",
        "cpuacct.usage": "2000000000",
        "cpu.stat": "nr_periods 1\nnr_throttled 1\nthrottled_time 500000000",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    gauge = CommandGauge(Cgroup(1, dict.fromkeys(("memory", "cpu", "cpuacct"), tmp_path)))
    gauge.begin()
    assert (tmp_path / "memory.max_usage_in_bytes").read_text().startswith("0")
    (tmp_path / "memory.max_usage_in_bytes").write_text("5000\n")
    (tmp_path / "memory.oom_control").write_text("oom_kill 3\n")
    (tmp_path / "cpuacct.usage").write_text("3500000000\n")
    (tmp_path / "cpu.stat").write_text("throttled_time 750000000\n")
    assert gauge.end() == Use(5000, 1.5, 0.25, 2)
    assert gauge.life() == Use(9000, 3.5, 0.75, 3)
    assert gauge.memory_bytes() == 4000
    gauge.close()


def test_without_a_fresh_mark_only_a_new_record_is_a_commands_peak(tmp_path: Path) -> None:
    """Before Linux 6.12 version 2 keeps one mark for the whole life, which none may lower."""
    peak = tmp_path / "memory.peak"
    peak.write_text("9000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1\n")
    gauge = CommandGauge(Cgroup(2, {"memory": tmp_path, "pids": tmp_path}))
    gauge._memory._own.close()  # type: ignore[attr-defined]  # as an older kernel refuses it
    gauge.begin()
    assert gauge.end().memory_peak_bytes is None
    gauge.begin()
    peak.write_text("9500\n")
    assert gauge.end().memory_peak_bytes == 9500
    gauge.close()


def test_a_gauge_of_a_group_that_is_gone_reads_none(tmp_path: Path) -> None:
    gauge = CommandGauge(Cgroup(1, {"memory": tmp_path / "gone"}))
    gauge.begin()
    assert gauge.end() == Use()
    gauge.close()


class Killed:
    """Stands for the processes of a sandbox, and takes the folder of each that is killed away."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.pids: list[int] = []

    def kill(self, pids: Sequence[int]) -> None:
        self.pids += pids
        for pid in pids:
            (self.proc / str(pid) / "statm").unlink()
            (self.proc / str(pid) / "smaps_rollup").unlink(missing_ok=True)


class Sums:
    """A /proc of processes with given private and shared memory, and a watchdog over it."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path
        self.processes = Killed(tmp_path / "proc")
        self.files = 0
        self.written: Callable[[], int] = lambda: self.files * MIB
        self.exhausted = asyncio.Event()
        (tmp_path / "proc").mkdir()

    def add(self, pid: int, *, resident: int, private: int | None, shared: int = 0) -> None:
        folder = self.root / "proc" / str(pid)
        folder.mkdir()
        page = os.sysconf("SC_PAGE_SIZE")
        (folder / "statm").write_text(f"1 {resident * MIB // page} 0 0 0 0 0\n")
        if private is not None:
            rollup = f"0-1 ---p 0 00:00 0 [rollup]\nPss_Anon: {private * 1024} kB\n"
            rollup += f"Pss_Shmem: {shared * 1024} kB\n"
            (folder / "smaps_rollup").write_text(rollup)

    async def watch(self, limit: int, until: Callable[[], bool] | None = None) -> MemoryWatchdog:
        """Over a tenth of a second, or until something happened."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        watchdog = MemoryWatchdog(
            fd,
            self.processes,
            limit * MIB,
            files_bytes=self.written,
            spared=lambda: {1, 2},
            exhausted=self.exhausted.set,
            period_s=0.005,
        )
        watchdog.start()
        for _ in range(20 if until is None else 1000):
            if until is not None and until():
                break
            await asyncio.sleep(0.005)
        await watchdog.close()
        await watchdog.close()
        os.close(fd)
        return watchdog


async def test_the_watchdog_kills_the_largest_and_then_lets_be(tmp_path: Path) -> None:
    sums = Sums(tmp_path)
    sums.add(2, resident=90, private=90)  # the shell
    sums.add(7, resident=30, private=30)
    sums.add(8, resident=40, private=10, shared=30)
    watchdog = await sums.watch(130)
    assert sums.processes.pids == [8]
    assert watchdog.kills == 1
    assert not sums.exhausted.is_set()


async def test_pages_that_forks_share_count_once(tmp_path: Path) -> None:
    sums = Sums(tmp_path)
    for pid in range(10, 20):
        sums.add(pid, resident=50, private=5)
    assert (await sums.watch(100)).kills == 0


async def test_files_in_memory_count_and_those_that_are_mapped_do_not_twice(
    tmp_path: Path,
) -> None:
    sums = Sums(tmp_path)
    sums.add(7, resident=60, private=10, shared=50)
    sums.files = 55
    assert (await sums.watch(70)).kills == 0
    sums.files = 65
    assert (await sums.watch(70)).kills == 1


async def test_memory_that_stays_above_the_limit_ends_the_sandbox(tmp_path: Path) -> None:
    sums = Sums(tmp_path)
    sums.add(2, resident=90, private=90)
    await sums.watch(50, sums.exhausted.is_set)
    assert sums.exhausted.is_set()
    assert sums.processes.pids == []


async def test_a_look_that_fails_is_tried_again(tmp_path: Path) -> None:
    """A host that is out of descriptors for a moment must not lose its watchdog."""
    sums = Sums(tmp_path)
    sums.add(7, resident=60, private=60)
    failures = iter([OSError(24, "Too many open files")] * 3)

    def written() -> int:
        for failure in failures:
            raise failure
        return 0

    sums.written = written
    assert (await sums.watch(50)).kills == 1


async def test_a_process_that_may_not_be_read_closely_counts_what_is_not_of_files(
    tmp_path: Path,
) -> None:
    sums = Sums(tmp_path)
    sums.add(7, resident=60, private=None)
    assert (await sums.watch(50)).kills == 1


# --- real groups --------------------------------------------------------------------------------


def group_of(box: Sandbox) -> Cgroup:
    """The group that holds a sandbox; skips where none may be made."""
    group = box._inner.cgroup  # type: ignore[attr-defined]
    if group is None and not REQUIRED:
        pytest.skip("no control group may be made here")
    assert isinstance(group, Cgroup)
    if REQUIRED:
        assert group.version == int(REQUIRED)
    return group


@pytest.mark.sandbox
async def test_limits_that_a_group_holds_are_recorded_as_held(bubblewrap: MakeSandbox) -> None:
    async with opened(bubblewrap, small_policy(cpus=0.5)) as box:
        group = group_of(box)
        held = {row.promise: row.means for row in box.enforcement if row.holds}
        for promise in ("memory", "processes", "cpus"):
            assert held[promise].startswith(f"cgroup v{group.version}")


@pytest.mark.sandbox
async def test_a_command_above_the_memory_limit_is_killed_and_said_so(
    bubblewrap: MakeSandbox,
) -> None:
    async with opened(bubblewrap, small_policy(memory_bytes=64 * MIB)) as box:
        group_of(box)
        fill = "X=1; head -c 200m /dev/zero | tail -n 1 | wc -c"
        result = await box.exec(fill)
        assert result.memory_kills >= 1
        assert result.memory_peak_bytes is not None
        assert result.memory_peak_bytes > 48 * MIB
        after = await box.exec("echo $X")
        assert (after.stdout, after.memory_kills) == ("1\n", 0)


@pytest.mark.sandbox
async def test_processes_above_the_limit_are_refused(bubblewrap: MakeSandbox) -> None:
    async with opened(bubblewrap, small_policy(processes=16)) as box:
        group = group_of(box)
        many = "sh -c 'for n in $(seq 40); do sleep 2 & done; wait' 2>&1 | tail -n 1"
        assert "fork" in (await box.exec(many, timeout_s=15)).stdout.lower()
        assert (group.processes() or 99) <= 16


@pytest.mark.sandbox
async def test_a_command_above_the_cpu_limit_is_held_back(bubblewrap: MakeSandbox) -> None:
    """So small a share that it is the limit that holds it back, on a busy machine too."""
    async with opened(bubblewrap, small_policy(cpus=0.1)) as box:
        group_of(box)
        result = await box.exec("timeout 2 sh -c 'while :; do :; done'")
        assert result.cpu_s is not None
        assert result.throttled_s is not None
        assert result.cpu_s < 0.5 * result.duration_s
        assert result.throttled_s > 0.1
        assert ((await box.stats()).throttled_s or 0) >= result.throttled_s  # the start counts


@pytest.mark.sandbox
async def test_each_command_has_meters_of_its_own(bubblewrap: MakeSandbox) -> None:
    async with opened(bubblewrap) as box:
        group = group_of(box)
        large = await box.exec("head -c 60m /dev/zero | tail -n 1 | wc -c")
        small = await box.exec("true")
        assert large.memory_peak_bytes is not None
        assert large.memory_peak_bytes > 60 * MIB
        if small.memory_peak_bytes is None:  # before Linux 6.12
            assert group.version == 2
        else:
            assert small.memory_peak_bytes < 60 * MIB
        assert large.cpu_s is not None
        assert small.cpu_s is not None
        assert 0 <= small.cpu_s < large.cpu_s
        assert ((await box.stats()).memory_peak_bytes or 0) >= large.memory_peak_bytes


@pytest.mark.sandbox
async def test_a_sandbox_leaves_no_group_and_the_last_of_them_no_top(
    bubblewrap: MakeSandbox,
) -> None:
    async with opened(bubblewrap) as box:
        folders = set(group_of(box).folders.values())
        assert all(folder.is_dir() for folder in folders)
    assert not any(folder.parent.exists() for folder in folders)


HARNESS = """
import asyncio, os, sys
from pathlib import Path
from sandbox.backends import maker
from sandlot.sandbox.contract import opened

async def main():
    async with opened(maker(Path(sys.argv[1]))) as box:
        group = box._inner.cgroup
        print(*(group.folders.values() if group else ()), flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.sandbox
def test_groups_are_gone_soon_after_their_harness_was_killed(
    bubblewrap: MakeSandbox, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    words = [sys.executable, "-c", HARNESS, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as harness:
        assert harness.stdout is not None
        folders = [Path(word) for word in harness.stdout.readline().split()]
        harness.send_signal(signal.SIGKILL)
    if not folders and not REQUIRED:
        pytest.skip("no control group may be made here")
    assert folders
    gone = becomes_true(lambda: not any(folder.parent.exists() for folder in folders), 30)
    assert gone, [folder for folder in folders if folder.exists()]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may make a group at the top")
def test_root_makes_groups_at_the_top_where_no_systemd_runs(tmp_path: Path) -> None:
    root = open_root(f"test-{os.getpid()}", systemd=tmp_path / "none")
    if root is None and not REQUIRED:
        pytest.skip("no control group may be made here")
    assert root is not None
    group = root.create("one", replace(LIMITS, processes=20))
    try:
        enter = "".join(f"echo 0 >{procs}; " for procs in group.procs)
        gauge = CommandGauge(group)
        gauge.begin()
        ended = subprocess.run(
            ["sh", "-c", enter + "head -c 200m /dev/zero | tail -n 1"],
            capture_output=True,
            check=False,
        )
        assert len(ended.stdout) == 0
        assert gauge.end().memory_kills >= 1
        gauge.close()
    finally:
        assert asyncio.run(group.remove())
        root.remove()
    assert not any(top.exists() for top in root.tops.values())


@pytest.mark.sandbox
async def test_without_a_group_the_watchdog_holds_the_sum(
    bubblewrap: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the processes is below the limit, and all of them together are not."""
    monkeypatch.setattr("sandlot.sandbox.host.open_root", lambda _lease: None)
    monkeypatch.setattr("sandlot.sandbox.host.launcher_prefix", lambda _lease: ())
    hoard = "python3 -c 'x = bytes(range(1, 200)) * 250_000; import time; time.sleep(3)'"
    async with opened(bubblewrap, small_policy(memory_bytes=100 * MIB)) as box:
        assert box._inner.cgroup is None  # type: ignore[attr-defined]
        result = await box.exec(f"for n in 1 2 3; do {hoard} & done; wait; echo still here")
        assert result.memory_kills >= 1
        assert result.stdout.endswith("still here\n")
        assert (result.memory_peak_bytes, result.cpu_s) == (None, None)
