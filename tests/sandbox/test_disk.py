"""Where written files lie, and how much of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandlot.sandbox import disk
from sandlot.sandbox.contract import MakeSandbox, alive, opened, small_policy
from sandlot.sandbox.disk import Disk, choose_disk, disk_row, make_image, tmpfs_bytes
from sandlot.sandbox.policy import GIB, MIB, Limits
from waiting import comes_true


@pytest.fixture
def with_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_can_mount_images", lambda: True)
    monkeypatch.setattr(disk, "machine_memory", lambda: 16 * GIB)


@pytest.mark.usefixtures("with_loop")
@pytest.mark.parametrize(
    ("size", "memory", "by_root", "chosen"),
    [
        (64 * MIB, 512 * MIB, True, Disk.MEMORY),
        (300 * MIB, 512 * MIB, True, Disk.IMAGE),
        (300 * MIB, 512 * MIB, False, Disk.MEMORY),
        (5 * GIB, None, True, Disk.IMAGE),
        (3 * GIB, None, True, Disk.MEMORY),
        (None, 512 * MIB, True, Disk.MEMORY),
        (1 << 60, None, True, Disk.MEMORY),
    ],
)
def test_an_image_is_taken_where_files_would_crowd_out_memory_and_the_disk_has_room(
    size: int | None,
    memory: int | None,
    by_root: bool,
    chosen: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 100 * GIB)
    limits = Limits(disk_bytes=size, memory_bytes=memory)
    assert choose_disk(limits, tmp_path, by_root=by_root) is chosen


def test_files_that_count_as_memory_get_half_of_it_and_the_row_says_so() -> None:
    limits = Limits(disk_bytes=2 * GIB, memory_bytes=1 * GIB)
    assert tmpfs_bytes(limits, counted=True) == 512 * MIB
    assert tmpfs_bytes(limits, counted=False) == 2 * GIB
    row = disk_row(Disk.MEMORY, limits, counted=True)
    assert row.holds
    assert "512 MiB of the 2,048 MiB" in row.note


def test_a_tmpfs_beyond_the_machines_memory_does_not_hold() -> None:
    row = disk_row(Disk.MEMORY, Limits(disk_bytes=1 << 60, memory_bytes=None), counted=False)
    assert not row.holds
    assert "GiB of memory" in row.note


async def test_an_image_is_sparse_and_leaves_no_name_behind(tmp_path: Path) -> None:
    if not os.path.exists("/usr/sbin/mkfs.ext4") and not os.path.exists("/sbin/mkfs.ext4"):
        pytest.skip("mkfs.ext4 (package e2fsprogs) is not installed")
    fd = await make_image(tmp_path, GIB)
    try:
        status = os.fstat(fd)
        assert status.st_size == GIB
        assert status.st_blocks * 512 < 16 * MIB
        assert list(tmp_path.iterdir()) == []
        assert os.pread(fd, 2, 1024 + 0x38) == b"\x53\xef", "the magic number of ext4"
    finally:
        os.close(fd)


@pytest.mark.sandbox
async def test_a_disk_in_an_image_is_filled_without_a_death_and_is_gone_with_the_sandbox(
    bubblewrap: MakeSandbox,
) -> None:
    policy = small_policy(disk_bytes=300 * MIB, memory_bytes=128 * MIB)
    before = used_loops()
    async with opened(bubblewrap, policy) as box:
        if not any(row.means == Disk.IMAGE.value for row in box.enforcement):
            pytest.skip("no disk images here: they need root and loop devices")
        result = await box.exec("head -c 400M /dev/zero > fill; stat -c %s fill", 60)
        assert "No space left on device" in result.stderr
        assert int(result.stdout) > 250 * MIB
        await alive(box)
        await box.exec("rm fill; echo kept > kept")
        async with await box.fork() as twin:
            assert (await twin.exec("cat kept")).stdout == "kept\n"
        assert used_loops() > before, "the image was mounted by a loop device"
    # The kernel frees the device a moment after the last mount.
    assert await comes_true(lambda: used_loops() <= before), used_loops() - before


def used_loops() -> set[str]:
    return {path.parts[3] for path in Path("/sys/block").glob("loop*/loop/backing_file")}
