"""The shipped double behaves as the contract says, so that tests on it mean something."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sandlot.core.errors import DeathCause, InputError, SandboxDied, SandboxError, SandboxFileError
from sandlot.core.types import SkippedFile
from sandlot.sandbox.base import ExecResult
from sandlot.sandbox.contract import CHECKS, Check
from sandlot.sandbox.fake import FakeSandbox
from sandlot.sandbox.policy import Limits, Policy


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if not check.needs], ids=lambda check: check.name
)
async def test_the_contract_holds_without_a_shell(check: Check) -> None:
    await check.run(
        lambda policy: FakeSandbox({"true": "", "echo alive": "alive\n"}, policy=policy)
    )


async def test_commands_give_what_was_told() -> None:
    result = ExecResult(2, "", "no\n", 0.5)
    async with FakeSandbox({"a": "A\n", "b": result}) as box:
        assert (await box.exec("a")).stdout == "A\n"
        assert await box.exec("b") is result
        missing = await box.exec("c d")
    assert missing.exit_code == 127
    assert "c: command not found" in missing.stderr
    assert box.commands == ["a", "b", "c d"]


async def test_a_function_may_answer_and_an_error_is_raised() -> None:
    async with FakeSandbox(lambda command: command.upper()) as box:
        assert (await box.exec("x")).stdout == "X"
    async with FakeSandbox({"die": SandboxDied(DeathCause.DISK_FULL)}) as box:
        with pytest.raises(SandboxDied):
            await box.exec("die")
        with pytest.raises(SandboxDied, match="disk_full"):
            await box.read_file("x")


async def test_concurrent_commands_run_one_after_the_other() -> None:
    order: list[str] = []

    async def answer(command: str) -> str:
        order.append(f"start {command}")
        await asyncio.sleep(0)
        order.append(f"end {command}")
        return ""

    async with FakeSandbox(answer) as box:
        await asyncio.gather(box.exec("1"), box.exec("2"))
    assert order == ["start 1", "end 1", "start 2", "end 2"]


async def test_a_command_that_takes_too_long_is_timed_out() -> None:
    async def hang(command: str) -> str:
        await asyncio.sleep(60)
        return ""

    async with FakeSandbox(hang) as box:
        assert (await box.exec("x", 0.01)).timed_out


async def test_a_death_ends_the_running_command() -> None:
    async def hang(command: str) -> str:
        await asyncio.sleep(60)
        return ""

    async with FakeSandbox(hang) as box:
        running = asyncio.create_task(box.exec("x"))
        await asyncio.sleep(0.01)
        box.die(DeathCause.KILLED)
        with pytest.raises(SandboxDied, match="killed"):
            await running


async def test_use_before_the_start_is_an_error() -> None:
    with pytest.raises(SandboxError, match="has not been started"):
        await FakeSandbox().exec("x")


async def test_links_are_resolved_inside() -> None:
    box = FakeSandbox(files={"/etc/passwd": "inside"})
    box.link("/testbed/abs", "/etc/passwd")
    box.link("/testbed/up", "../../../../etc")
    box.link("/testbed/loop", "loop")
    async with box:
        assert await box.read_file("abs") == b"inside"
        assert await box.read_file("up/passwd") == b"inside"
        assert await box.read_file("/../../etc/passwd") == b"inside"
        assert (await box.stat("abs")).kind == "link"
        with pytest.raises(SandboxFileError, match="too many links"):
            await box.read_file("loop")
        await box.write_file("up/new", b"n")
        await box.write_file("abs", b"changed")
        assert await box.read_file("/etc/new") == b"n"
        assert await box.read_file("/etc/passwd") == b"changed"


async def test_files_are_refused_with_a_reason() -> None:
    box = FakeSandbox(files={"/f": "12345"})
    box.special("/pipe", "fifo")
    async with box:
        for path in ("/pipe", "/testbed", "/none", "/f/x", "", "/f/", "a\0b"):
            with pytest.raises(SandboxFileError):
                await box.read_file(path)
        with pytest.raises(SandboxFileError, match="at most 4"):
            await box.read_file("/f", limit_bytes=4)
        with pytest.raises(SandboxFileError, match="exists already"):
            await box.write_file("/f", b"", exclusive=True)
        for path in ("/testbed", "/pipe", "/f/x"):
            with pytest.raises(SandboxFileError):
                await box.write_file(path, b"")


async def test_an_existing_file_keeps_its_mode() -> None:
    box = FakeSandbox()
    box.put("/run.sh", "a", mode=0o755)
    async with box:
        await box.write_file("/run.sh", b"b")
        assert (await box.stat("/run.sh")).mode & 0o777 == 0o755


async def test_the_disk_limit_bites() -> None:
    async with FakeSandbox(policy=Policy(limits=Limits(disk_bytes=100_000))) as box:
        await box.write_file("a", bytes(60_000))
        with pytest.raises(SandboxFileError, match="no space left"):
            await box.write_file("b", bytes(50_000))
        await box.write_file("a", bytes(100_000))


async def test_long_output_is_cut_and_saved() -> None:
    policy = Policy(limits=Limits(capture_bytes=100))
    async with FakeSandbox({"x": "a" * 5000}, policy=policy) as box:
        result = await box.exec("x")
        assert result.truncated
        assert len(result.stdout) < 200
        assert await box.read_file(result.stdout_file or "") == b"a" * 5000


async def test_a_folder_goes_in_and_comes_out_again(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "sub/a b").write_bytes(b"\0\xff\r\n")
    os.symlink("sub/a b", source / "link")
    async with FakeSandbox() as box:
        assert await box.upload(source, "/testbed/input") == 2
        assert (await box.stat("/testbed/input/link")).kind == "link"
        box.special("/testbed/input/pipe", "fifo")
        box.link("/testbed/input/gone", "/nowhere")
        files, skipped = await box.collect(["/testbed/input", "/missing"], tmp_path / "out")
    assert [file.path for file in files] == ["link", "sub/a b"]
    assert (tmp_path / "out/link").read_bytes() == b"\0\xff\r\n"
    assert SkippedFile("gone", "a link that leads nowhere") in skipped
    assert SkippedFile("pipe", "not a regular file but a fifo") in skipped


async def test_a_link_that_leads_out_of_the_uploaded_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("s")
    os.symlink("../secret", tmp_path / "in/link")
    async with FakeSandbox() as box:
        with pytest.raises(InputError, match="leads out"):
            await box.upload(tmp_path / "in", "/testbed/input")
        with pytest.raises(InputError, match="no such file"):
            await box.upload(tmp_path / "missing", "/testbed/input")


async def test_collecting_keeps_to_its_limits(tmp_path: Path) -> None:
    policy = Policy(limits=Limits(collect_bytes=5, collect_files=2))
    box = FakeSandbox(policy=policy, files={f"/o/{n}": "123" for n in range(3)})
    async with box:
        files, skipped = await box.collect(["/o"], tmp_path)
    assert len(files) == 1
    assert len(skipped) == 2


async def test_a_kept_state_comes_back_whole(tmp_path: Path) -> None:
    box = FakeSandbox(files={"/a/b": b"\xff"})
    box.link("/l", "/a")
    box.special("/p", "fifo")
    async with box:
        await box.snapshot(tmp_path / "state")
    async with FakeSandbox() as other:
        await other.restore(tmp_path / "state")
        assert await other.read_file("/l/b") == b"\xff"
        assert [entry.kind for entry in await other.list_dir("/")] == [
            "directory", "link", "fifo", "directory", "directory", "directory"
        ]  # fmt: skip


async def test_a_damaged_state_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("{}")
    async with FakeSandbox() as box:
        with pytest.raises(SandboxError, match="not a kept state"):
            await box.restore(tmp_path / "state")
