"""Code inside prepares what the host collects, lists, uploads over and stores."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Coroutine
from pathlib import Path

import pytest

from sandlot.cli.live import PlainView
from sandlot.core.codec import to_json
from sandlot.core.errors import SandboxDied, SandboxError, SandboxFileError
from sandlot.core.events import FilesCollected
from sandlot.core.types import CollectedFile, SkippedFile
from sandlot.sandbox.base import FileInfo, Sandbox
from sandlot.sandbox.contract import MakeSandbox, canary, opened, small_policy, untouched
from sandlot.sandbox.policy import MIB, Policy

from .attack import holds, python, usable

pytestmark = pytest.mark.sandbox

_MOST_BYTES = 4 * MIB


def policy() -> Policy:
    return small_policy(
        memory_bytes=256 * MIB,
        processes=64,
        disk_bytes=64 * MIB,
        collect_bytes=_MOST_BYTES,
        collect_files=200,
        command_timeout_s=10.0,
    )


def stored_bytes(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


CONTENTS = {
    "a file of 10 GB of nothing": "truncate -s 10G out/f",
    "a file of 8 EB of nothing": "truncate -s 7E out/f",
    "many files of nothing": "for i in {1..300}; do truncate -s 1G out/f$i; done",
    "a file with a little in each hole": (
        "for i in {1..100}; do printf x | dd of=out/f bs=1 seek=$((i * 100000000)) conv=notrunc; "
        "done 2>/dev/null"
    ),
    "one file by many names": "head -c 1M /dev/zero > out/f; "
                              "for i in {1..500}; do ln out/f out/l$i; done",
    "devices": "for n in '8 0' '1 1' '1 5' '5 1' '10 200'; do mknod out/b${n// /-} b $n; "
               "mknod out/c${n// /-} c $n; done; true",
    "a FIFO and a socket": "mkfifo out/p; " + python(
        "import socket; socket.socket(1).bind('out/s')"
    ),
    "links to devices": "ln -s /dev/zero out/z; ln -s /dev/urandom out/r; ln -s /dev/tty out/t; "
                        "ln -s /dev/stdin out/i; ln -s /dev/full out/u; ln -s /dev/ptmx out/m",
    "links to files of the kernel": "ln -s /proc/kmsg out/a; ln -s /proc/kcore out/b; "
                                    "ln -s /proc/self/mem out/c; ln -s /proc/1/environ out/d; "
                                    "ln -s /proc/sys/kernel/hostname out/e; ln -s /proc/kallsyms "
                                    "out/f; ln -s /proc/1/root out/g; ln -s /proc/1/fd out/h",
    "a ring of links": "ln -s b out/a; ln -s a out/b; ln -s . out/c; ln -s .. out/d; ln -s / out/e",
    "a link of 4000 bytes": "ln -s $(printf 'a/%.0s' {1..2000}) out/l",
    "a very deep folder": "cd out; for i in {1..500}; do mkdir d && cd d; done; echo deep > f",
    "a folder with too many names": python(
        "import os\nos.chdir('out')\ntry:\n for i in range(1_000_000):\n"
        "  os.close(os.open(str(i), os.O_CREAT))\n  if i > 30_000: break\nexcept OSError: pass"
    ),
    "a file that nobody may read": "echo x > out/f; chmod 000 out/f; chmod 000 out",
    "a program with a set-uid bit": "cp /bin/sh out/sh; chmod 6777 out/sh",
    "a program with capabilities": "cp /bin/sh out/sh; setcap cap_sys_admin+ep out/sh; true",
    "files of another owner": "echo x > out/f; chown 12345:54321 out/f",
    "times of another age": "touch -d '9999-12-31' out/f; touch -d '0001-01-01' out/g; true",
}  # fmt: skip


@pytest.mark.parametrize("make_it", CONTENTS.values(), ids=CONTENTS.keys())
async def test_what_is_collected_is_plain_files_within_the_limits(
    make_it: str, make_box: MakeSandbox, tmp_path: Path
) -> None:
    with canary() as path:
        async with opened(make_box, policy()) as box:
            await box.exec(f"mkdir -p out\n{make_it}")
            began = time.monotonic()
            collected, skipped = await asyncio.wait_for(box.collect(["out"], tmp_path), 25)
            assert time.monotonic() - began < 25
            await usable(box)
        assert len(collected) <= 201
        assert stored_bytes(tmp_path) <= 2 * _MOST_BYTES
        plain(tmp_path, path.read_text())
        for name in [found.path for found in collected] + [found.path for found in skipped]:
            assert not Path(name).is_absolute()
            assert ".." not in Path(name).parts
        untouched(path)


def plain(folder: Path, secret: str) -> None:
    """Folders and regular files without links, odd modes or anything of the host."""
    for found in folder.rglob("*"):
        assert found.is_dir() or found.is_file()
        assert not found.is_symlink()
        assert found.lstat().st_nlink == 1 or found.is_dir()
        assert not found.lstat().st_mode & 0o6000
        assert not os.listxattr(found)
        if found.is_file() and found.stat().st_size < MIB:
            assert secret.encode() not in found.read_bytes()


NAMES = {
    "bytes that are no text": b"bad\xff\xfename",
    "a new line": b"one\ntwo",
    "an escape for a terminal": b"\x1b]0;owned\x07\x1b[2Jclean",
    "a carriage return": b"report.txt\rEVIL",
    "a back space": b"safe\x08\x08\x08\x08evil",
    "text that runs the other way": "gpj.\u202etxt".encode(),
    "text that cannot be seen": "a\u200bb\ufeff".encode(),
    "an option": b"--help",
    "a home": b"~root",
    "a drive": b"C:\\evil",
    "a climb with the other slash": b"..\\..\\evil",
    "dots": b"...",
    "blanks": b"  ",
    "a name of 255 bytes": b"n" * 255,
    "a variable": b"$(id)`id`${HOME}",
    "a glob": b"*?[a-z]",
    "markup": b"<img src=x onerror=alert(1)>",
    "a table": b"| a | b |",
    "a marker of an archive": b"sandlot-state.json",
}


Taken = tuple[list[FileInfo], list[CollectedFile], list[SkippedFile], Path]


@pytest.fixture(scope="session")
def taken(make_box: MakeSandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Taken]:
    """Each odd name alone in a folder, listed and collected from one sandbox."""

    async def take() -> dict[str, Taken]:
        found = {}
        async with opened(make_box, policy()) as box:
            for number, (kind, name) in enumerate(NAMES.items()):
                code = f"import os\nos.mkdir('o{number}')\n"
                code += f"open(b'o{number}/' + {name!r}, 'w').write('kept')"
                await box.exec(python(code))
                into = tmp_path_factory.mktemp("taken")
                listed = await box.list_dir(f"o{number}")
                found[kind] = (listed, *await box.collect([f"o{number}"], into), into)
        return found

    return asyncio.run(take())


@pytest.mark.parametrize("kind", NAMES)
def test_an_odd_name_is_collected_shown_and_recorded_or_skipped(
    kind: str, taken: dict[str, Taken], tmp_path: Path
) -> None:
    listed, collected, skipped, into = taken[kind]
    names = [found.path for found in collected] + [found.path for found in skipped]
    assert [os.fsencode(entry.path) for entry in listed] == [NAMES[kind]]
    assert [os.fsencode(path) for path in names] == [NAMES[kind]]
    for path in into.iterdir():
        assert path.read_text() == "kept"
    event = FilesCollected(tuple(collected), tuple(skipped), answer=None)
    json.dumps(to_json(event), ensure_ascii=False).encode("utf-8", "surrogatepass")
    shown = tmp_path / "shown"
    with shown.open("w", encoding="utf-8") as out:
        PlainView(out)(event)
    assert set(shown.read_bytes()) & {0x1B, 0x08, 0x0D} == set()


async def test_a_folder_that_turns_into_a_link_while_it_is_collected_does_not_lead_out(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    with canary() as path:
        flip = (
            f"mkdir -p out/d; echo x > out/d/{path.name}; (cd out; while :; do mv d e; "
            f"ln -s {path.parent} d; rm d; mv e d; done) >/dev/null 2>&1 &"
        )
        async with opened(make_box, policy()) as box:
            await box.exec(flip)
            for number in range(15):
                into = tmp_path / str(number)
                into.mkdir()
                await asyncio.wait_for(box.collect(["out"], into), 15)
                plain(into, path.read_text())
        untouched(path)


async def test_a_listing_of_very_many_names_answers_in_time(make_box: MakeSandbox) -> None:
    """Each page once read and sorted the whole folder: a large one held the harness for hours."""
    fill = (
        "import os\nos.mkdir('many')\nos.chdir('many')\ntry:\n for i in range(30_000):\n"
        "  os.close(os.open('n' * 200 + str(i), os.O_CREAT))\nexcept OSError: pass\n"
        "print(len(os.listdir()))"
    )
    limits = {"disk_bytes": 512 * MIB, "memory_bytes": 512 * MIB, "command_timeout_s": 20.0}
    async with opened(make_box, small_policy(**limits)) as box:
        count = int((await box.exec(python(fill))).stdout)
        assert count >= 10_000
        with contextlib.suppress(SandboxFileError):  # a backend may refuse what is too much
            entries = await asyncio.wait_for(box.list_dir("many"), 20)
            assert len(entries) == count


# --- Paths that reach further than the inside itself ----------------------------------------------

KERNEL_FILES = ["/proc/sys/kernel/hostname", "/proc/sys/user/max_net_namespaces",
                "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_pattern",
                "/proc/sysrq-trigger", "/proc/1/mem", "/proc/1/oom_score_adj"]  # fmt: skip


@pytest.mark.parametrize("target", KERNEL_FILES)
async def test_the_file_api_does_not_change_the_kernels_settings(
    target: str, make_box: MakeSandbox
) -> None:
    """What serves files has rights that the inside has not; a link must not lend them."""
    before = _text(target) if target.startswith("/proc/sys/") else ""
    async with opened(make_box, policy()) as box:
        await box.exec(f"ln -s {target} link")
        for path in (target, "link"):
            with contextlib.suppress(SandboxError):
                await box.write_file(path, b"0\n")
        for path in (target, "link"):
            with contextlib.suppress(SandboxFileError):
                found = await box.read_file(path, limit_bytes=4096)
                assert os.uname().nodename.encode() != found.strip()
        if target != "/proc/1/mem":
            await usable(box)
    if before:
        assert _text(target) == before
    async with opened(make_box, policy()) as other:
        await usable(other)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


async def test_the_place_of_saved_output_cannot_be_planted_to_stop_other_sandboxes(
    make_box: MakeSandbox,
) -> None:
    """The harness writes long output to a file inside, whose name can be guessed."""
    setting = "/proc/sys/user/max_net_namespaces"
    plant = (
        f"mkdir -p /tmp/.sandlot; for i in {{1..40}}; do n=$(printf %04d $i); for s in stdout "
        f"stderr; do ln -sf {setting} /tmp/.sandlot/$n.$s; ln -sf {setting} /tmp/.sandlot/$i.$s; "
        "done; done; cat " + setting
    )
    async with opened(make_box, policy()) as box:
        before = (await box.exec(plant)).stdout
        result = await box.exec("printf '0\\n'; yes '' | head -c 100000")
        assert result.truncated
        assert (await box.exec(f"cat {setting}")).stdout == before
        async with opened(make_box, policy()) as other:
            await usable(other)


PATHS = {
    "half a character": "\ud800",
    "a path of two million bytes": "a/" * 1_000_000,
    "a name of ten thousand bytes": "a" * 10_000,
    "a zero byte": "a\0b",
    "nothing": "",
    "a climb": "../" * 500 + "etc/passwd",
    "bytes that are no text": "\udcff",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
async def test_a_path_that_cannot_be_is_a_typed_error_and_the_next_one_works(
    path: str, make_box: MakeSandbox, tmp_path: Path
) -> None:
    """The model chooses paths; one of two million bytes once broke every later call."""
    async with opened(make_box, policy()) as box:
        for call in _calls(box, path, tmp_path):
            with contextlib.suppress(SandboxFileError):
                await asyncio.wait_for(asyncio.ensure_future(call), 10)
        await box.write_file("after", b"1")
        assert await box.read_file("after") == b"1"


def _calls(box: Sandbox, path: str, folder: Path) -> list[Coroutine[object, object, object]]:
    return [
        box.read_file(path, limit_bytes=MIB),
        box.write_file(path, b"x"),
        box.stat(path),
        box.list_dir(path),
        box.collect([path], folder),
    ]


async def test_a_snapshot_of_odd_names_depths_and_holes_comes_back(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    build = (
        "mkdir -p s; cd s; truncate -s 10G hole; mkfifo p; ln -s /etc/shadow l; "
        "for i in {1..200}; do mkdir d && cd d; done; echo deep > f; cd /testbed/s; "
        + python("import os\nopen(b'bad\\xff\\n\\x1b', 'w').write('kept')")
    )
    check = "cd /testbed/s; stat -c %s hole; readlink l; find . -name f | wc -l; ls | wc -l"
    async with opened(make_box, policy()) as box:
        await box.exec(build)
        before = (await box.exec(check)).stdout
        try:
            await asyncio.wait_for(box.snapshot(tmp_path / "kept"), 30)
        except SandboxFileError:  # a backend that reads holes as bytes says that it is too much
            await usable(box)
            return
        assert (tmp_path / "kept").lstat().st_blocks * 512 < 64 * MIB
        await asyncio.wait_for(box.restore(tmp_path / "kept"), 30)
        assert (await box.exec(check)).stdout == before


async def test_a_shell_that_lies_while_it_is_stored_harms_only_itself(
    make_box: MakeSandbox, tmp_path: Path
) -> None:
    lie = (
        "export() { echo 'while :; do :; done'; }; pwd() { printf '/tmp\\n/evil; touch x'; }; "
        "declare() { :; }; builtin() { :; }"
    )
    async with opened(make_box, policy()) as box:
        await box.exec(lie)
        with contextlib.suppress(SandboxError):
            await asyncio.wait_for(box.snapshot(tmp_path / "kept"), 25)
        if (tmp_path / "kept").exists():
            with contextlib.suppress(SandboxError):
                await asyncio.wait_for(box.restore(tmp_path / "kept"), 40)
        with contextlib.suppress(SandboxDied):
            await usable(box)
    async with opened(make_box, policy()) as other:
        await usable(other)


async def test_a_promise_on_disk_is_stated(make_box: MakeSandbox) -> None:
    async with opened(make_box, policy()) as box:
        assert any(row.promise == "disk" for row in box.enforcement)
        assert holds(box, "files")
