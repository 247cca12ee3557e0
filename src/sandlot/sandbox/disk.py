"""Where files written inside lie: in memory, or in a sparse image with a file system of its own.

Both have a hard size, at which a write fails with `No space left on device`. Memory is faster to
set up, but files there count as memory; an image costs about 10 ms and needs root for its mount.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from enum import Enum
from pathlib import Path

from sandlot.core.errors import SandboxUnavailable
from sandlot.sandbox.policy import GIB, MIB, Enforcement, Limits

_MAKE_S = 60.0
_INODE_BYTES = 16 * 1024  # of the image's size for each inode


class Disk(Enum):
    MEMORY = "tmpfs of that size"
    IMAGE = "sparse image with a file system of that size"


def choose_disk(limits: Limits, folder: Path, *, by_root: bool) -> Disk:
    """An image where files in memory would crowd out the sandbox's own memory or the machine's.

    `folder` is where the image would lie.
    """
    size = limits.disk_bytes
    if size is None or not by_root or not _can_mount_images():
        return Disk.MEMORY
    fits = size <= machine_memory() // 4
    if limits.memory_bytes is not None:
        fits = fits and size <= limits.memory_bytes // 2
    return Disk.MEMORY if fits or free_bytes(folder) < size else Disk.IMAGE


def tmpfs_bytes(limits: Limits, *, counted: bool) -> int | None:
    """The size of the tmpfs that holds the upper layer.

    Where its files are `counted` to the memory limit, half of that at most: filling it must be an
    error of the command, not a lack of memory.
    """
    if limits.disk_bytes is None or limits.memory_bytes is None or not counted:
        return limits.disk_bytes
    return min(limits.disk_bytes, limits.memory_bytes // 2)


def disk_row(disk: Disk, limits: Limits, *, counted: bool) -> Enforcement:
    """How the limit on disk is kept. A tmpfs beyond the machine's memory cannot be filled first."""
    size = tmpfs_bytes(limits, counted=counted)
    if disk is Disk.IMAGE or size is None or limits.disk_bytes is None:
        return Enforcement("disk", disk.value, True)
    if size > machine_memory():
        note = f"this machine has {machine_memory() / GIB:.0f} GiB of memory to hold files in"
        return Enforcement("disk", disk.value, False, note)
    note = "files count as memory" if counted else "files are held in memory"
    if size < limits.disk_bytes:
        note += f": {size / MIB:,.0f} MiB of the {limits.disk_bytes / MIB:,.0f} MiB"
    return Enforcement("disk", disk.value, True, note)


async def make_image(folder: Path, size: int) -> int:
    """A descriptor of a nameless sparse file of `size` bytes that holds an empty ext4.

    It has no name, so that nothing is left of it however its owners end.

    Raises:
        SandboxUnavailable: it cannot be made in `folder`.
    """
    fd = _nameless_file(folder)
    words = ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode"]
    words += ["-E", "lazy_itable_init=1,nodiscard", "-i", str(_INODE_BYTES)]
    try:
        os.truncate(fd, size - size % 4096)
        process = await asyncio.create_subprocess_exec(
            *words,
            f"/proc/self/fd/{fd}",
            pass_fds=[fd],
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, complaint = await asyncio.wait_for(process.communicate(), _MAKE_S)
        except TimeoutError:
            complaint = f"not done within {_MAKE_S:g} s".encode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise SandboxUnavailable(
                f"no disk image of {size / MIB:.0f} MiB can be made in {folder}: "
                f"{complaint.decode(errors='replace').strip()[-300:]}"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _nameless_file(folder: Path) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without such files: make one and take its name away
        fd, name = tempfile.mkstemp(dir=folder)
        os.unlink(name)
        return fd


def _can_mount_images() -> bool:
    return os.access("/dev/loop-control", os.R_OK | os.W_OK) and bool(shutil.which("mkfs.ext4"))


def machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
