"""What a review once broke, each as the attack that did it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
from pathlib import Path

import pytest

from sandlot.core.errors import PolicyNotEnforceable, SandboxDied, SandlotError
from sandlot.sandbox.contract import MakeSandbox, opened, small_policy
from sandlot.sandbox.policy import Enforcement, Policy, settle_enforcement

sandboxed = pytest.mark.sandbox


def test_a_limit_that_was_asked_for_and_cannot_be_kept_is_refused_by_name() -> None:
    rows = [Enforcement("memory", "watchdog", holds=False), Enforcement("disk", "tmpfs", True)]
    settle_enforcement(Policy(), rows)
    settle_enforcement(Policy(asked=frozenset({"disk_bytes"})), rows)
    with pytest.raises(PolicyNotEnforceable, match="memory"):
        settle_enforcement(Policy(asked=frozenset({"memory_bytes"})), rows)


@sandboxed
async def test_a_full_command_pipe_ends_its_sandbox_and_not_the_event_loop(
    make_box: MakeSandbox,
) -> None:
    """A blocking write there once stopped every sandbox of the harness for ever."""
    async with opened(make_box, small_policy()) as box, opened(make_box) as neighbour:
        await box.exec(
            "exec 2>/dev/null; p=$$; (exec 9>/proc/$p/fd/0; sleep 0.2; echo sleep 30 >&9; "
            "head -c 300000 /dev/zero | tr '\\0' '#' >&9) & "
        )
        await asyncio.sleep(1.0)
        beat = asyncio.ensure_future(neighbour.exec("echo alive", 5))
        try:
            async with asyncio.timeout(20):
                await box.exec("echo mine", 1)
        except SandboxDied:
            pass  # it harmed itself, typed and in time; that is allowed
        assert (await beat).stdout == "alive\n"


@sandboxed
async def test_a_flood_of_the_status_pipe_neither_wedges_nor_starves(
    make_box: MakeSandbox,
) -> None:
    async with opened(make_box) as box:
        await box.exec("yes forged 0 >/run/sandlot/status &")
        began = asyncio.get_running_loop().time()
        try:
            await box.exec("echo on", 3)
        except SandboxDied:
            pass
        assert asyncio.get_running_loop().time() - began < 15


@sandboxed
async def test_a_kept_layer_cannot_lead_a_mount_point_to_the_host(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    """bubblewrap follows links on the way to a mount point, and the host lies at /oldroot."""
    prey = tmp_path / "prey"
    prey.mkdir(mode=0o777)
    prey.chmod(0o777)
    async with opened(make_box) as box:
        await box.snapshot(tmp_path / "kept")
    forged = _with_link(tmp_path / "kept", "./root/upper/run", f"/oldroot{prey}")
    async with opened(make_box) as box:
        with contextlib.suppress(SandlotError):
            await box.restore(forged)
            await box.exec("touch /run/evil")
    assert not list(prey.iterdir())


@sandboxed
async def test_a_folder_named_work_is_kept(make_box: MakeSandbox, tmp_path: Path) -> None:
    async with opened(make_box) as box:
        await box.exec("mkdir -p work/deep && echo kept >work/deep/file")
        await box.snapshot(tmp_path / "kept")
    async with opened(make_box) as box:
        await box.restore(tmp_path / "kept")
        assert await box.read_file("/testbed/work/deep/file") == b"kept\n"


def _with_link(source: Path, name: str, target: str) -> Path:
    """The kept sandbox with one member replaced by a link."""
    forged = source.with_name("forged")
    with tarfile.open(source, "r:") as old, tarfile.open(forged, "w:") as new:
        first = old.next()
        assert first is not None
        data = old.extractfile(first)
        assert data is not None
        new.addfile(first, io.BytesIO(data.read()))
        for member in old:
            if not member.name.startswith(name) and member.name != first.name:
                content = old.extractfile(member) if member.isreg() else None
                new.addfile(member, content)
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, target
        new.addfile(link)
    return forged


@sandboxed
async def test_variables_too_large_to_be_kept_are_refused_and_not_cut(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    """A cut list of exports would be run as a script at the restore."""
    async with opened(make_box) as box:
        await box.exec(
            "for i in {1..40}; do export BIG$i=$(head -c 30000 /dev/zero | tr '\\0' x); done"
        )
        with pytest.raises(SandlotError, match="too large"):
            await box.snapshot(tmp_path / "kept")
    assert not list(tmp_path.iterdir())
