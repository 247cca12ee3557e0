"""Code inside attacks the host through files: links, mounts, /proc, archives and stored state."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from sandlot.core.errors import (
    InputError,
    RecordError,
    SandboxDied,
    SandboxError,
    SandboxFileError,
)
from sandlot.sandbox.contract import (
    MakeSandbox,
    canary,
    no_canary,
    opened,
    small_policy,
    untouched,
)
from sandlot.sandbox.policy import MIB, Mount, Policy

pytestmark = pytest.mark.sandbox


def tiny_policy() -> Policy:
    return small_policy(
        memory_bytes=128 * MIB, processes=64, disk_bytes=64 * MIB, collect_files=500
    )


# --- Reading the host -----------------------------------------------------------------------------

HOST_PATHS = {
    "the harness's home": "{home}",
    "the old root of pivot_root": "/oldroot{canary} /newroot{canary} /.old{canary}",
    "roots of every process": "$(for p in /proc/[0-9]*; do echo $p/root{canary}; done)",
    "working directories of every process":
        "$(for p in /proc/[0-9]*; do echo $p/cwd{canary}; done)",
    "open files of every process": "$(ls -d /proc/[0-9]*/fd/* 2>/dev/null)",
    "mapped files of every process": "$(ls -d /proc/[0-9]*/map_files/* 2>/dev/null)",
    "folders of open descriptors":
        "$(for f in /proc/[0-9]*/fd/*; do echo $f{canary} $f/..{canary}; done)",
    "a climb out of the root": "$(for i in {{1..60}}; do printf ../; done){canary}",
    "the upper layers": "/run/user/*/sandlot/*/* /tmp/sandlot*/*/*",
}  # fmt: skip


@pytest.mark.parametrize("where", HOST_PATHS.values(), ids=HOST_PATHS.keys())
async def test_no_path_inside_shows_a_file_of_the_host(where: str, make_box: MakeSandbox) -> None:
    with canary() as path:
        paths = where.format(canary=path, home=Path.home() / ".bash_history")
        secret = path.read_text()
        async with opened(make_box, tiny_policy()) as box:
            loop = (
                f'for f in {paths}; do [ -f "$f" ] && timeout 1 head -c 4096 "$f"; done 2>/dev/null'
            )
            assert secret not in (await box.exec(loop, 15)).stdout
        untouched(path)


async def test_the_mount_table_names_no_folder_of_the_user(make_box: MakeSandbox) -> None:
    async with opened(make_box, tiny_policy()) as box:
        found = (await box.exec("cat /proc/self/mountinfo /proc/1/mountinfo /proc/mounts")).stdout
    assert str(Path.home() / "Documents") not in found
    assert " /host" not in found


async def test_hard_links_to_files_outside_the_layer_are_refused(make_box: MakeSandbox) -> None:
    async with opened(make_box, tiny_policy()) as box:
        result = await box.exec(
            "ln /proc/1/exe exe; ln /proc/self/environ env; ln /dev/null null; ls"
        )
        assert result.stdout == ""


async def test_a_read_only_mount_stays_read_only(make_box: MakeSandbox) -> None:
    with canary() as path:
        policy = small_policy()
        policy = Policy(policy.limits, policy.network, (Mount(str(path.parent), "/mnt/in"),))
        async with opened(make_box, policy) as box:
            assert (await box.read_file(f"/mnt/in/{path.name}")).decode() == path.read_text()
            await box.exec(
                f"echo bad > /mnt/in/{path.name}; touch /mnt/in/new; rm -rf /mnt/in/*; "
                "mount -o remount,rw /mnt/in; umount /mnt/in; chmod 000 /mnt/in"
            )
            with contextlib.suppress(SandboxFileError):
                await box.write_file(f"/mnt/in/{path.name}", b"bad")
            with contextlib.suppress(SandboxFileError):
                await box.write_file("/mnt/in/new", b"bad")
        untouched(path)


async def test_a_link_inside_a_writable_mount_does_not_lead_the_api_out(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    with canary() as path:
        tmp_path.chmod(0o777)
        policy = small_policy()
        policy = Policy(policy.limits, policy.network, (Mount(str(tmp_path), "/mnt/rw", True),))
        async with opened(make_box, policy) as box:
            await box.exec(f"ln -s {path} /mnt/rw/out; ln -s ../{path.parent.name} /mnt/rw/up")
            await no_canary(box.read_file("/mnt/rw/out"), "a link in a mount")
            await no_canary(box.read_file(f"/mnt/rw/up/{path.name}"), "a link in a mount")
            with contextlib.suppress(SandboxFileError):
                await box.write_file("/mnt/rw/out", b"bad")
        untouched(path)


# --- Confusing the file API -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/1/mem", "/proc/kcore", "/dev/mem",
                                  "/proc/kmsg", "/dev/tty", "/dev/ptmx", "/dev/full",
                                  "/proc/self/pagemap", "/proc/sysrq-trigger", "/dev/stdin",
                                  "/proc/self/fd/0", "/proc/self/attr/current"])  # fmt: skip
async def test_odd_files_of_the_kernel_answer_or_are_refused_at_once(
    path: str, make_box: MakeSandbox
) -> None:
    async with opened(make_box, tiny_policy()) as box:
        with contextlib.suppress(SandboxFileError):
            found = await asyncio.wait_for(box.read_file(path, limit_bytes=MIB), 5)
            assert len(found) <= MIB
        with contextlib.suppress(SandboxFileError):
            await asyncio.wait_for(box.stat(path), 5)
        await box.write_file("after", b"1")
        assert await box.read_file("after") == b"1"


async def test_a_file_that_grows_while_it_is_read_is_bounded(make_box: MakeSandbox) -> None:
    async with opened(make_box, tiny_policy()) as box:
        await box.exec("(timeout 8 yes > grows) >/dev/null 2>&1 &")
        for _ in range(10):
            with contextlib.suppress(SandboxFileError):
                found = await asyncio.wait_for(box.read_file("grows", limit_bytes=4096), 5)
                assert len(found) <= 4096


async def test_a_file_that_shrinks_while_it_is_read_is_no_crash(make_box: MakeSandbox) -> None:
    flip = "(while :; do truncate -s 5M f; truncate -s 0 f; done) >/dev/null 2>&1 &"
    async with opened(make_box, tiny_policy()) as box:
        await box.exec(flip)
        for _ in range(20):
            with contextlib.suppress(SandboxFileError):
                assert len(await asyncio.wait_for(box.read_file("f"), 5)) <= 5 * MIB


async def test_a_file_that_turns_into_a_fifo_never_hangs(make_box: MakeSandbox) -> None:
    flip = "(while :; do rm -f f; mkfifo f; rm -f f; echo x > f; done) >/dev/null 2>&1 &"
    async with opened(make_box, tiny_policy()) as box:
        await box.exec(flip)
        for number in range(40):
            with contextlib.suppress(SandboxFileError):
                if number % 2:
                    await asyncio.wait_for(box.write_file("f", b"w"), 5)
                else:
                    await asyncio.wait_for(box.read_file("f"), 5)


async def test_a_folder_that_changes_while_it_is_collected_stays_bounded(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    loop = "while :; do touch a b c; mkdir -p d/e; rm -rf d a; done"
    churn = f"mkdir out; (cd out; {loop}) >/dev/null 2>&1 &"
    async with opened(make_box, tiny_policy()) as box:
        await box.exec(churn)
        for number in range(10):
            into = tmp_path / str(number)
            into.mkdir()
            await asyncio.wait_for(box.collect(["out"], into), 15)
            assert all(not found.is_symlink() for found in into.rglob("*"))


async def test_a_folder_that_holds_ten_thousand_names_is_collected_to_its_limit(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    async with opened(make_box, tiny_policy()) as box:
        await box.exec("mkdir out; cd out; seq 10000 | xargs touch", 15)
        collected, skipped = await asyncio.wait_for(box.collect(["out"], tmp_path), 20)
    assert len(collected) <= 500
    assert skipped


async def test_a_planted_name_in_the_target_folder_is_not_followed(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    """A second collect into the same folder meets what the first one brought."""
    async with opened(make_box, tiny_policy()) as box:
        await box.exec("mkdir -p one/a two; echo 1 > one/a/f; echo 2 > two/a")
        await box.collect(["one"], tmp_path)
        with contextlib.suppress(InputError, SandboxFileError):
            await box.collect(["two"], tmp_path)
    assert (tmp_path / "a" / "f").read_text() == "1\n"


async def test_a_saved_output_replaced_by_a_fifo_or_a_folder_does_not_hang(
    make_box: MakeSandbox,
) -> None:
    async with opened(make_box, tiny_policy()) as box:
        first = (await box.exec("seq 50000")).stdout_file
        assert first is not None
        folder = os.path.dirname(first)
        for plant in (f"rm -f {first}; mkfifo {first}", f"rm -rf {folder}; mkfifo {folder}",
                      f"rm -rf {folder}; ln -s /proc/1/root {folder}"):  # fmt: skip
            await box.exec(plant)
            result = await asyncio.wait_for(box.exec("seq 60000"), 10)
            assert result.truncated
            assert result.exit_code == 0


async def test_image_files_changed_inside_stay_as_they_were_for_others(
    make_box: MakeSandbox,
) -> None:
    async with opened(make_box, tiny_policy()) as box:
        before = await box.read_file("/etc/passwd")
        await box.exec("echo evil::0:0::/:/bin/sh >> /etc/passwd; rm -rf /etc/skel /usr/bin/yes")
    assert b"evil" not in Path("/etc/passwd").read_bytes()
    async with opened(make_box, tiny_policy()) as box:
        assert await box.read_file("/etc/passwd") == before
        assert (await box.exec("command -v yes")).exit_code == 0


async def test_set_uid_files_and_device_nodes_never_land_on_the_host(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    async with opened(make_box, tiny_policy()) as box:
        await box.exec("mkdir out; cp /bin/sh out/sh; chmod 6755 out/sh; mknod out/disk b 8 0")
        collected, _ = await box.collect(["out"], tmp_path)
    assert [file.path for file in collected] == ["sh"]
    assert (tmp_path / "sh").stat().st_mode & 0o6000 == 0


# --- Stored state ---------------------------------------------------------------------------------


def _hostile_archives(target: Path) -> dict[str, bytes]:
    link_out = tarfile.TarInfo("upper/testbed/l")
    link_out.type, link_out.linkname = tarfile.SYMTYPE, str(target.parent)
    through = tarfile.TarInfo(f"upper/testbed/l/{target.name}")
    through.size = 3
    absolute = tarfile.TarInfo(str(target))
    absolute.size = 3
    climbing = tarfile.TarInfo("../" * 30 + str(target).lstrip("/"))
    climbing.size = 3
    hard = tarfile.TarInfo("upper/testbed/h")
    hard.type, hard.linkname = tarfile.LNKTYPE, str(target)
    return {
        "a member below a link": _tar(link_out, through),
        "an absolute name": _tar(absolute),
        "a climbing name": _tar(climbing),
        "a hard link to the host": _tar(hard),
    }


def _tar(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        state = json.dumps({"working_dir": "/testbed", "environment": {}}).encode()
        head = tarfile.TarInfo("sandlot-state.json")
        head.size = len(state)
        archive.addfile(head, io.BytesIO(state))
        for member in members:
            archive.addfile(member, io.BytesIO(b"bad") if member.size else None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    ["a member below a link", "an absolute name", "a climbing name", "a hard link to the host"],
)
async def test_a_hostile_state_file_never_writes_the_host(
    kind: str, make_box: MakeSandbox, tmp_path: Path
) -> None:
    with canary() as path:
        state = tmp_path / "state"
        state.write_bytes(_hostile_archives(path)[kind])
        async with opened(make_box, tiny_policy()) as box:
            with contextlib.suppress(SandboxError, InputError, RecordError):
                await asyncio.wait_for(box.restore(state), 15)
            with contextlib.suppress(SandboxDied):
                await box.exec("echo bad | tee h l/* >/dev/null")
                await no_canary(box.read_file("h"), "a file of the state")
        untouched(path)


async def test_state_of_hostile_files_is_saved_without_touching_the_host(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    with canary() as path:
        async with opened(make_box, tiny_policy()) as box:
            await box.exec(
                f"ln -s {path} l; ln -s {path.parent} d; mkfifo p; mkdir -p x/{'y/' * 40}; "
                "touch $'new\\nline' $'bad\\xff'; truncate -s 1G sparse; export LONG=$(seq 9999)"
            )
            with contextlib.suppress(SandboxError):
                await asyncio.wait_for(box.snapshot(tmp_path / "state"), 60)
        assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 200 * MIB
        untouched(path)
