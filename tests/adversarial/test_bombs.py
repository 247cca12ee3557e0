"""Code inside uses up what it can. The limits are in place first, and each bomb bounds itself too.

What only control groups can hold (`enforcement` says so) is asserted where they are; elsewhere a
bomb must still leave its neighbour and the harness alive and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest

from sandlot.core.errors import SandboxDied, SandboxFileError
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, opened
from sandlot.sandbox.policy import MIB

from .attack import ANSWER_S, asked_policy, holds, python, tiny, tiny_policy, usable, usable_or_dead

pytestmark = pytest.mark.sandbox

_MOST = "300 << 20"  # what a bomb takes where nothing holds it

BOMBS = {
    "forks": ":(){ :|:& };:",
    "forks that ignore signals": "trap '' TERM HUP INT; b() { b & b & wait; }; b",
    "sleeping children": "for i in {1..500}; do sleep 30 & done; wait",
    "daemons": "for i in {1..300}; do (setsid sleep 30 &) ; done; sleep 60",
    "threads": python(
        "import threading, time\nfor _ in range(2000):\n"
        " threading.Thread(target=time.sleep, args=(20,), daemon=True).start()"
    ),
    "memory of the shell": "x=x; while :; do x=$x$x; done",
    "memory of a child": "head -c 1G /dev/zero | tail | wc -c",
    "memory of many children": "for i in 1 2 3 4; do head -c 1G /dev/zero | tail & done; wait",
    "memory of files without a name": python(
        f"import os\nfd = os.memfd_create('m')\nfor _ in range(({_MOST}) >> 20):\n"
        " os.write(fd, b'x' * (1 << 20))"
    ),
    "memory of shared segments": python(
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n"
        f"for _ in range(({_MOST}) >> 22):\n i = libc.shmget(0, 1 << 22, 0o1600)\n"
        " p = libc.shmat(i, None, 0)\n ctypes.memset(p, 1, 1 << 22)\n"
        " libc.shmdt(ctypes.c_void_p(p))"
    ),
    "memory of pipes": python(
        "import fcntl, os, time\nheld = []\nfor _ in range(100):\n r, w = os.pipe2(os.O_NONBLOCK)\n"
        " fcntl.fcntl(w, 1031, 1 << 20)\n held.append(os.write(w, b'x' * (1 << 20)))\ntime.sleep(1)"
    ),
    "memory of sockets": python(
        "import socket\nheld = []\nfor _ in range(100):\n a, b = socket.socketpair()\n"
        " a.setblocking(False); a.setsockopt(1, 7, 1 << 24)\n held += [a, b]\n try:\n"
        "  while True: a.send(b'x' * 65536)\n except BlockingIOError: pass"
    ),
    "memory of message queues": python(
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor _ in range(2000):\n"
        " q = libc.msgget(0, 0o1600)\n for _ in range(2):\n"
        "  libc.msgsnd(q, b'\\1' * 8192, ctypes.c_size_t(8000), 0o4000)"
    ),
    "memory of page tables": python(
        "import mmap\nm = mmap.mmap(-1, 200 << 30)\nfor i in range(0, 40000):\n m[i << 21] = 1"
    ),
    "memory that is locked": python(
        "import ctypes, mmap\nm = mmap.mmap(-1, 100 << 20)\n"
        "ctypes.CDLL(None).mlockall(7)\nm[:] = bytes(100 << 20)"
    ),
    "timers and signals that wait": python(
        "import ctypes, os, signal\nlibc = ctypes.CDLL(None)\n"
        "signal.pthread_sigmask(0, range(34, 60))\n"
        "for _ in range(20000): libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p()))\n"
        "for _ in range(20000): libc.sigqueue(os.getpid(), 40, None)"
    ),
    "locks of one file": python(
        "import fcntl\nf = open('locked', 'w')\nfor i in range(0, 100000, 2):\n"
        " fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, i)"
    ),
    "shared memory": "cat /dev/zero > /dev/shm/fill",
    "disk": "cat /dev/zero > /testbed/fill",
    "disk under /tmp": "cat /dev/zero > /tmp/fill",
    "disk in the home": "cat /dev/zero > /root/fill",
    "disk that is reserved": "fallocate -l 10G fill || truncate -s 10G fill && "
                             "dd if=/dev/zero of=fill bs=1M seek=20 conv=notrunc",
    "disk of deleted files": "exec 9> gone; rm gone; cat /dev/zero >&9",
    "disk by holes": "for i in {1..200}; do head -c 1M /dev/zero > h$i; truncate -s 1G h$i; done",
    "attributes of files": python(
        "import os\nopen('f', 'w')\ndone = 0\nfor i in range(5000):\n try:\n"
        "  os.setxattr('f', f'user.{i}', b'x' * 60000)\n except OSError: break"
    ),
    "inodes": "mkdir n; cd n; i=0; while :; do : > $i; i=$((i+1)); done",
    "hard links": "mkdir h; : > h/0; for i in {1..3000}; do ln h/0 h/$i; done",
    "links to links": "ln -s 0 l0; for i in {1..3000}; do ln -s l$((i-1)) l$i; done; cat l3000",
    "open files": "for i in {10..2000}; do eval \"exec $i</dev/null\" || break; done",
    "pipes": "for i in {10..2000}; do eval \"exec $i<> <(:)\" || break; done",
    "watches of files": python(
        "import ctypes, time\nlibc = ctypes.CDLL(None)\nfor _ in range(1000): libc.inotify_init()\n"
        "time.sleep(1)"
    ),
    "deep folders": "for i in {1..3000}; do mkdir d && cd d || break; done",
    "output": "yes",
    "output without newlines": "cat /dev/zero",
    "output on both streams": "yes & yes >&2",
    "output in single bytes": python("import os\nwhile True: os.write(1, b'x')"),
    "output of many at once": "for i in {1..20}; do yes $i & done; wait",
    "zombies": "python3 -c 'import os\nwhile os.fork(): pass' || for i in {1..500}; do (: &); done",
    "busy loops": "for i in {1..16}; do (while :; do :; done) & done; wait",
    "busy kernel": "for i in 1 2; do (while :; do cat /proc/*/stat; done >/dev/null)& done; wait",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
async def test_a_bomb_stays_inside_its_limits(bomb: str, make_box: MakeSandbox) -> None:
    async with tiny(make_box) as neighbour, tiny(make_box) as box:
        await usable_or_dead(box, bomb)
        await kept_limits(box)
        await usable(neighbour)


async def kept_limits(box: Sandbox) -> None:
    with contextlib.suppress(SandboxDied):
        used = await box.stats()
        if holds(box, "processes"):
            assert (used.processes or 0) <= 64 + 16  # a backend's own come on top
        if holds(box, "disk"):
            assert (used.disk_bytes or 0) <= 33 * MIB
        if holds(box, "memory"):
            assert (used.memory_peak_bytes or 0) <= 65 * MIB


async def test_limits_that_every_machine_holds_may_be_asked_for(make_box: MakeSandbox) -> None:
    async with opened(make_box, asked_policy()) as box:
        await usable(box)


@pytest.mark.parametrize("bomb", ["disk", "memory of a child", "output", "open files"])
async def test_a_bomb_in_the_background_leaves_the_next_command_its_answer(
    bomb: str, make_box: MakeSandbox
) -> None:
    async with tiny(make_box) as box:
        began = time.monotonic()
        with contextlib.suppress(SandboxDied):
            await box.exec(f"( {BOMBS[bomb]} ) > /dev/null 2>&1 & echo begun")
            for _ in range(5):
                await usable(box)
        assert time.monotonic() - began < ANSWER_S


async def test_busy_loops_leave_a_neighbour_its_turn(make_box: MakeSandbox) -> None:
    async with tiny(make_box) as neighbour, tiny(make_box) as box:
        await box.exec("for i in {1..30}; do (timeout 6 bash -c 'while :; do :; done' &) ; done")
        for _ in range(3):
            await usable(neighbour)


async def test_a_flood_of_a_background_job_is_read_slowly_and_dropped(
    make_box: MakeSandbox,
) -> None:
    async with tiny(make_box) as box:
        await box.exec("yes & yes >&2 & echo begun")
        began, used = time.monotonic(), time.process_time()
        for _ in range(10):
            await usable(box)
            await asyncio.sleep(0.1)
        assert time.process_time() - used < 0.9 * (time.monotonic() - began)


async def test_after_a_full_disk_removing_files_makes_room(make_box: MakeSandbox) -> None:
    async with tiny(make_box) as box:
        if not holds(box, "disk"):
            pytest.skip("the size of the disk is not enforced here")
        filled = await box.exec("head -c 200M /dev/zero > fill; ls -l fill >/dev/null; echo full")
        assert filled.stdout == "full\n"
        assert "No space left" in filled.stderr
        assert (await box.stat("fill")).size_bytes <= 33 * MIB
        await box.exec("rm fill")
        await box.write_file("after", b"x" * MIB)
        await usable(box)


async def test_a_full_disk_does_not_stop_commands_or_reports(make_box: MakeSandbox) -> None:
    async with tiny(make_box) as box:
        fill = "timeout 2 head -c 200M /dev/zero"
        await box.exec(f"{fill} > fill 2>/dev/null; {fill} > /tmp/fill 2>/dev/null")
        result = await asyncio.wait_for(
            box.exec("seq 20000; exit_code() { return 4; }; exit_code"), 10
        )
        assert result.exit_code == 4
        assert result.stdout.endswith("20000\n")


async def test_a_full_disk_refuses_the_file_api_by_a_typed_error(make_box: MakeSandbox) -> None:
    async with tiny(make_box) as box:
        if not holds(box, "disk"):
            pytest.skip("the size of the disk is not enforced here")
        with pytest.raises(SandboxFileError):
            await box.write_file("large", b"x" * (64 * MIB))
        await box.exec("rm -f large")
        await usable(box)


async def test_one_sandbox_cannot_use_up_the_harnesss_own_descriptors(
    make_box: MakeSandbox,
) -> None:
    """Each background job keeps the pipe of its command open: their number must stop somewhere."""
    async with tiny(make_box) as box:
        await usable(box)
        before = len(os.listdir("/proc/self/fd"))
        with contextlib.suppress(SandboxDied):
            for _ in range(150):
                await box.exec("(sleep 5 &) 2>/dev/null", 2)
        assert len(os.listdir("/proc/self/fd")) - before <= 140


async def test_output_that_is_kept_is_given_back_by_the_harness(make_box: MakeSandbox) -> None:
    """Jobs that hold their pipes once kept the whole of what their commands had printed."""
    policy = tiny_policy(capture_bytes=2 * MIB)
    async with opened(make_box, policy) as box:
        await box.exec("head -c 2M /dev/zero; sleep 60 &")
        before = _resident_bytes()
        for _ in range(30):
            await box.exec("head -c 2M /dev/zero; sleep 60 &")
        assert _resident_bytes() - before < 24 * MIB


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
