"""The guest keeps the contract as process 1, and its other side believes nothing it says."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.guests import GuestSandbox
from sandlot.core.errors import DeathCause, SandboxDied, SandboxFileError
from sandlot.sandbox import contract, guest, guest_session
from sandlot.sandbox.base import Sandbox, base_environment
from sandlot.sandbox.contract import CHECKS, Check, small_policy
from sandlot.sandbox.guest_session import GUEST_COMMAND, GuestSession, ProcessStream
from sandlot.sandbox.policy import Policy
from waiting import comes_true

# What only a backend can keep: filters, limits of the whole, and what changed since the image.
_BACKENDS_OWN = {
    "nothing inside can gain privileges",
    "a seccomp filter is in force",
    "deleted and replaced parts of the image come back so",
    "a fork goes on from files, directory and variables, and both go their own way",
    "every limit of the policy has a row that says how it is kept",
    "a limit that was asked for is kept or refused by name",
    "a sandbox ends when its wall time is over, and says so",
    "a new user namespace is refused",
    "a new host name by /proc is refused",
    "a core pattern is refused",
    "a change of the swappiness is refused",
    "tracing the init is refused",  # proved below: gdb's status says nothing
}
GUEST_CHECKS = [check for check in CHECKS if check.name not in _BACKENDS_OWN]


def make_guest(policy: Policy) -> Sandbox:
    return GuestSandbox(policy)


@pytest.mark.sandbox
@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name, marks=[pytest.mark.slow] if check.slow else [])
        for check in GUEST_CHECKS
    ],
)
async def test_the_guest_keeps_the_contract(check: Check) -> None:
    await check.run(make_guest)


# --- The guest alone ------------------------------------------------------------------------------


@pytest.fixture
async def box() -> AsyncIterator[GuestSandbox]:
    async with GuestSandbox(small_policy()) as started:
        yield started


def test_the_guest_is_written_for_python_3_8() -> None:
    ast.parse(inspect.getsource(guest), feature_version=(3, 8))


def test_the_guest_imports_only_what_every_python_has() -> None:
    tree = ast.parse(inspect.getsource(guest))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    assert named <= sys.stdlib_module_names
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not top & {"ctypes", "json", "signal", "socket", "subprocess", "tarfile", "threading"}


@pytest.mark.sandbox
async def test_a_python_of_another_version_gets_the_source(box: GuestSandbox) -> None:
    program = guest_session._program(b"\0\0\r\n")
    assert program.startswith(b"s")
    assert guest_session._program(importlib.util.MAGIC_NUMBER).startswith(b"m")
    other = tuple(word.replace("e.MAGIC_NUMBER[:4]", 'b"old\\n"') for word in GUEST_COMMAND)
    async with GuestSandbox(small_policy(), command=other) as second:
        assert (await second.exec("echo hi")).stdout == "hi\n"
        assert second.session.pid == 1


@pytest.mark.sandbox
async def test_nothing_inside_reads_or_traces_the_guest(box: GuestSandbox) -> None:
    assert box.session.undumpable
    script = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())\n"
        "for name in ('fd/0', 'mem', 'environ'):\n"
        "    try:\n"
        "        print(name, len(os.listdir('/proc/1/fd')), len(open('/proc/1/' + name).read()))\n"
        "    except OSError as error:\n"
        "        print('refused')\n"
    )
    await box.write_file("look.py", script.encode())
    assert (await box.exec("python3 look.py")).stdout == "-1 1\nrefused\nrefused\nrefused\n"


@pytest.mark.sandbox
async def test_signals_from_inside_do_not_end_the_guest(box: GuestSandbox) -> None:
    await box.exec("kept=1; for n in $(seq 1 64); do kill -$n 1; done; kill -9 1")
    assert (await box.exec("echo $kept")).stdout == "1\n"


@pytest.mark.sandbox
async def test_orphans_are_reaped(box: GuestSandbox) -> None:
    await box.exec("for n in $(seq 30); do ( setsid sh -c 'sleep 0.05; echo >> ended' & ); done")
    zombies = "grep -l '^State:.Z' /proc/[0-9]*/status"
    line = f"until [ $(wc -l < ended) = 30 ]; do :; done; while {zombies}; do :; done; echo none"
    found = await box.exec(f"touch ended; {line}", 15)
    assert found.stdout.endswith("none\n")


@pytest.mark.sandbox
async def test_children_do_not_inherit_the_guests_pipes(box: GuestSandbox) -> None:
    found = await box.exec("python3 -c \"import os; print(sorted(os.listdir('/proc/self/fd')))\"")
    assert found.stdout == "['0', '1', '2', '3']\n"


@pytest.mark.sandbox
async def test_a_shell_whose_folder_was_removed_goes_on(box: GuestSandbox) -> None:
    result = await box.exec("rm -rf /dev/shm/.sandlot-* /dev/shm/* /tmp/* /run/*; echo gone")
    assert (result.exit_code, result.stdout, result.timed_out) == (0, "gone\n", False)
    assert (await box.exec("echo on; false")).stdout == "on\n"


@pytest.mark.sandbox
async def test_a_full_disk_does_not_stop_the_shell(box: GuestSandbox) -> None:
    result = await box.exec("head -c 2M /dev/zero > /dev/shm/fill")
    assert "No space left" in result.stderr
    assert (await box.exec(f": {'x' * 100_000}; echo on; false")).stdout == "on\n"


@pytest.mark.sandbox
async def test_a_long_command_that_is_cancelled_while_it_is_sent_leaves_the_shell(
    box: GuestSandbox,
) -> None:
    for pause in (0.0, 0.0005, 0.002, 0.01):
        running = asyncio.ensure_future(box.exec(f": {'x' * 3_000_000}; sleep 20"))
        await asyncio.sleep(pause)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)
        assert (await box.exec("echo on")).stdout == "on\n"


@pytest.mark.sandbox
async def test_lower_descriptor_limits_do_not_wedge_the_shell() -> None:
    async with GuestSandbox(small_policy(open_files=16)) as box:
        assert (await box.exec("ulimit -n; cat <(echo piped)")).stdout == "16\npiped\n"
        assert (await box.exec("(exit 3)")).exit_code == 3


@pytest.mark.sandbox
async def test_what_runs_is_killed_first_when_memory_is_short(box: GuestSandbox) -> None:
    assert (await box.exec("cat /proc/self/oom_score_adj")).stdout == "500\n"


@pytest.mark.sandbox
async def test_the_end_of_the_stream_ends_everything_inside() -> None:
    marker = f"41{time.monotonic_ns() % 10**9}"
    async with GuestSandbox(small_policy()) as box:
        await box.exec(f"( setsid sleep {marker} & )")
        assert await comes_true(lambda: contract._host_sees(marker)), "nothing would be proved"
        process = box.process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 5)
        with pytest.raises(SandboxDied, match="first process ended"):
            await box.exec("true")
    assert not contract._host_sees(marker)


@pytest.mark.sandbox
async def test_a_guest_that_is_an_ordinary_child_ends_its_tree_too(tmp_path: Path) -> None:
    marker = f"42{time.monotonic_ns() % 10**9}"
    process = await asyncio.create_subprocess_exec(*GUEST_COMMAND, stdin=-1, stdout=-1)
    policy = replace(small_policy(), working_dir=str(tmp_path))
    died: asyncio.Future[SandboxDied] = asyncio.get_running_loop().create_future()
    session = GuestSession(
        ProcessStream(process),
        policy,
        base_environment(policy),
        spool_dir=tmp_path,
        died=died,
        output_dir=str(tmp_path / "output"),
        control_dirs=[str(tmp_path)],
    )
    await session.start()
    await session.exec(f"( setsid sleep {marker} & ); sleep {marker} &")
    result = await session.exec("( setsid sleep 50.5 & ); sleep 50", 0.4)
    assert result.timed_out
    assert await comes_true(lambda: contract._host_sees(marker)), "nothing would be proved"
    result = await session.exec("seq 100000")
    assert result.stdout_file == str(tmp_path / "output/0003.stdout")
    await session.close()
    await asyncio.wait_for(process.wait(), 5)
    assert not contract._host_sees(marker)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".sandlot")]


@pytest.mark.sandbox
async def test_a_guest_that_is_killed_is_a_typed_death() -> None:
    async with GuestSandbox(small_policy()) as box:
        running = asyncio.ensure_future(box.exec("sleep 20"))
        await asyncio.sleep(0.2)
        assert box.process is not None
        box.process.kill()
        with pytest.raises(SandboxDied) as caught:
            await asyncio.wait_for(running, 5)
        assert caught.value.cause is DeathCause.KILLED
        with pytest.raises(SandboxDied):
            await box.read_file("x")


@pytest.mark.sandbox
async def test_a_stopped_guest_is_found_by_the_second_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guest_session, "_GRACE_S", 0.3)
    async with GuestSandbox(small_policy()) as box:
        inner = await _first_process_of(box)
        os.kill(inner, 19)
        try:
            with pytest.raises(SandboxDied) as caught:
                await asyncio.wait_for(box.exec("true", 0.3), 5)
        finally:
            os.kill(inner, 18)
        assert caught.value.cause is DeathCause.UNRESPONSIVE


async def _first_process_of(box: GuestSandbox) -> int:
    assert box.process is not None
    pid = box.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


@pytest.mark.sandbox
async def test_a_hundred_megabytes_pass_while_a_command_floods(box: GuestSandbox) -> None:
    data = os.urandom(1 << 20) * 100
    flood = asyncio.ensure_future(box.exec("yes", 3))
    await asyncio.sleep(0.2)
    await box.write_file("/tmp/big", data)
    assert await box.read_file("/tmp/big") == data
    flood.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await flood


@pytest.mark.sandbox
async def test_a_write_that_fails_half_way_is_refused_and_the_session_lives() -> None:
    async with GuestSandbox(small_policy()) as box:
        await box.exec("mkdir full && mount -t tmpfs none full 2>/dev/null; ls -l /dev/full")
        with pytest.raises(SandboxFileError, match="not a regular file"):
            await box.write_file("/dev/full", b"x" * 3_000_000)
        with pytest.raises(SandboxFileError):
            await box.write_file("/proc/self/oom_score_adj", b"x" * 3_000_000)
        await box.write_file("after", b"1")
        assert await box.read_file("after") == b"1"


@pytest.mark.sandbox
async def test_a_flood_of_statuses_does_not_hide_the_true_one(box: GuestSandbox) -> None:
    flood = 'for f in /proc/$$/fd/1?; do [ -w $f ] && [ -p $f ] && (yes "x 0" >$f &) ; done'
    await box.exec(flood)
    for _ in range(3):
        with contextlib.suppress(SandboxDied):  # its own input was flooded as well: typed
            result = await asyncio.wait_for(box.exec("(exit 4)", 3), 10)
            assert result.exit_code == 4 or result.timed_out or result.shell_restarted


_CGROUP_FILES = {
    "v2": {
        "memory.peak": "1000\n",
        "memory.current": "700\n",
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\nthrottled_usec 30\n",
        "pids.current": "4\n",
        "memory.events": "low 0\noom 3\noom_kill 2\n",
    },
    "v1": {
        "memory/memory.max_usage_in_bytes": "1000\n",
        "memory/memory.usage_in_bytes": "700\n",
        "cpuacct/cpuacct.usage": "2500000999\n",
        "cpu/cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 30999\n",
        "pids/pids.current": "4\n",
        "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    },
}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_meters_read_both_versions_of_cgroups(version: str, tmp_path: Path) -> None:
    for name, text in _CGROUP_FILES[version].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    meters = guest.Meters(str(tmp_path))
    names = ("peak", "memory", "cpu", "throttled", "processes", "kills")
    assert [meters.read(name) for name in names] == [1000, 700, 2_500_000, 30, 4, 2]
    meter = guest.Meter(meters)
    for name in ("memory.peak", "memory/memory.max_usage_in_bytes"):
        if (tmp_path / name).exists():
            (tmp_path / name).write_text("1500\n")
    assert meter.results() == (1500, 0, 0, 0)


def test_meters_without_cgroups_know_nothing(tmp_path: Path) -> None:
    assert guest.Meters(str(tmp_path)).read("cpu") is None
    assert guest.Meter(guest.Meters(str(tmp_path))).results() == (None, None, None, None)


# --- Trees ----------------------------------------------------------------------------------------


@pytest.mark.sandbox
async def test_a_packed_tree_comes_back_as_it_was(box: GuestSandbox, tmp_path: Path) -> None:
    make = (
        "mkdir -p t/d; cd t; echo 1 > d/f; chmod 4751 d/f; ln d/f hard; ln -s d/f soft; mkfifo p; "
        "touch -d @1000000 d; head -c 3000000 /dev/urandom > big; sha256sum big > sum; "
        "touch $'bad\\xff' $'new\\nline'; ln -s /etc dirlink; cd .."
    )
    look = "cd t; find . -printf '%p %y %m %n %l %s\\n' | sort; sha256sum -c sum; cd .."
    await box.exec(make)
    before = await box.exec(look)
    await box.session.pack(["/testbed/t"], tmp_path / "tree")
    await box.exec("rm -r t; mkdir -p t/d/f t/big/x; echo other > t/soft; echo no > gone")
    await box.session.unpack(tmp_path / "tree", ["/testbed/gone", "/testbed/none"])
    after = await box.exec(look)
    assert (after.stdout, after.exit_code) == (before.stdout, 0)
    assert (await box.exec("stat -c %Y t/d; ls gone")).stdout == "1000000\n"


@pytest.mark.sandbox
async def test_an_exact_snapshot_brings_deletions_back_without_a_list(tmp_path: Path) -> None:
    image = "mkdir -p /opt/a/sub $'/opt/bad\\xff'; echo i > /opt/a/one; echo i > /opt/a/sub/two; "
    image += "echo i > /opt/kept; echo i > $'/opt/bad\\xff/x'"
    async with GuestSandbox(small_policy()) as box:
        await box.exec(image)
        await box.exec("rm /opt/a/one; rm -r /opt/a/sub; echo n > /opt/a/sub; rm /opt/bad*/x")
        changed = ["/opt", "/opt/a", "/opt/a/sub", "/opt/bad\udcff", "/tmp/.sandlot/x"]
        await box.session.snapshot(tmp_path / "state", changed, exact=True)
    async with GuestSandbox(small_policy()) as box:
        await box.exec(image)
        await box.session.restore(tmp_path / "state")
        found = await box.exec("cd /opt; find . -type f | sort; cat a/sub; ls -d bad*")
        assert found.stdout == "./a/sub\n./kept\nn\nbad\ufffd\n"


@pytest.mark.sandbox
async def test_what_was_held_still_for_packing_goes_on(box: GuestSandbox, tmp_path: Path) -> None:
    await box.exec("echo x > beat; while :; do echo x >> beat; sleep 0.01; done &")
    await box.session.pack(["/testbed"], tmp_path / "tree")
    size = (await box.stat("beat")).size_bytes
    waiting = f"until [ $(stat -c %s beat) -gt {size} ]; do sleep 0.01; done; echo alive"
    assert (await box.exec(waiting, 15)).stdout == "alive\n"


@pytest.mark.sandbox
async def test_a_sparse_file_without_end_does_not_fill_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_session, "_PACK_SLACK", 0)
    async with GuestSandbox(small_policy(disk_bytes=1 << 20)) as box:
        await box.exec("truncate -s 10G sparse")
        with pytest.raises(SandboxFileError, match="more than"):
            await asyncio.wait_for(box.snapshot(tmp_path / "state"), 10)
        assert list(tmp_path.iterdir()) == []
        assert (await box.exec("echo on")).stdout == "on\n"


@pytest.mark.sandbox
async def test_a_snapshot_that_is_cut_short_changes_nothing(
    box: GuestSandbox, tmp_path: Path
) -> None:
    await box.write_file("big", os.urandom(400_000))
    await box.snapshot(tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(whole[: len(whole) // 2])
    await box.exec("kept=1; echo later > later")
    with pytest.raises(SandboxFileError, match="damaged"):
        await box.restore(tmp_path / "state")
    assert (await box.exec("echo $kept; cat later")).stdout == "1\nlater\n"


# --- The forwarder --------------------------------------------------------------------------------


@pytest.mark.sandbox
async def test_connections_to_the_proxy_port_reach_the_socket(tmp_path: Path) -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.write_eof()
        writer.close()

    server = await asyncio.start_unix_server(upper, tmp_path / "proxy")
    async with server, GuestSandbox(small_policy(), proxy_socket=tmp_path / "proxy") as box:
        ask = (
            "import socket\n"
            "for n in range(20):\n"
            "    s = socket.create_connection(('127.0.0.1', 3128)); s.sendall(b'x' * 300000)\n"
            "    s.shutdown(1); d = b''\n"
            "    while True:\n"
            "        more = s.recv(65536)\n"
            "        if not more: break\n"
            "        d += more\n"
            "    assert d == b'X' * 300000, len(d)\n"
        )
        await box.write_file("ask.py", ask.encode())
        result = await box.exec("python3 ask.py && echo done")
        assert (result.stdout, result.stderr) == ("done\n", "")


@pytest.mark.sandbox
async def test_a_proxy_that_is_not_there_ends_a_connection_at_once(tmp_path: Path) -> None:
    async with GuestSandbox(small_policy(), proxy_socket=tmp_path / "none") as box:
        result = await box.exec("exec 3<>/dev/tcp/127.0.0.1/3128; cat <&3; echo end", 5)
        assert (result.stdout, result.timed_out) == ("end\n", False)


# --- A guest that lies ----------------------------------------------------------------------------


class LyingStream:
    """The other side of a stream, played by a test."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.closed = False
        self._coming: asyncio.Queue[bytes] = asyncio.Queue()
        self.say(b"old\n")
        self._answers = [
            (guest.HELLO, 0, guest.join_fields((b"3.8.0", 1, 0, 0, 1))),
            (guest.OK, 1, guest.join_fields((7,))),
        ]

    def say(self, data: bytes) -> None:
        self._coming.put_nowait(data)

    def frame(self, kind: int, ident: int, body: bytes) -> None:
        self.say(guest.HEADER.pack(kind, ident, len(body)) + body)

    async def read(self) -> bytes:
        return await self._coming.get()

    async def write(self, data: bytes) -> None:
        self.sent += data
        if self._answers:
            self.frame(*self._answers.pop(0))

    async def close(self) -> None:
        self.closed = True


@contextlib.asynccontextmanager
async def lied_to(tmp_path: Path) -> AsyncIterator[tuple[GuestSession, LyingStream]]:
    stream = LyingStream()
    died: asyncio.Future[SandboxDied] = asyncio.get_running_loop().create_future()
    session = GuestSession(stream, small_policy(), {}, spool_dir=tmp_path, died=died)
    try:
        yield session, stream
    finally:
        await session.close()


def _done(*fields: bytes | int | None) -> bytes:
    return guest.join_fields(fields)


_GOOD = (0, 0, 0, 0, b"", 0, b"", None, None, None, None)
LIES: dict[str, tuple[int, int, bytes]] = {
    "an unknown id": (guest.OK, 99, b""),
    "an unknown kind": (250, 2, b""),
    "a kind that was not asked for": (guest.DATA, 2, b"x"),
    "a second hello": (guest.HELLO, 0, b""),
    "output of a stream that is none": (guest.OUTPUT, 2, b"\x09x"),
    "output without a stream": (guest.OUTPUT, 2, b""),
    "more output than was asked for": (guest.OUTPUT, 2, b"\0" + bytes(9000)),
    "an end with too few fields": (guest.DONE, 2, _done(0, 0)),
    "an end with too many fields": (guest.DONE, 2, _done(*_GOOD, 1)),
    "an end that is not fields": (guest.DONE, 2, b"\xff\xff\xff\xffxx"),
    "half a length": (guest.DONE, 2, b"\0\0"),
    "a status that is no number": (guest.DONE, 2, _done(b"-1", *_GOOD[1:])),
    "a status of a thousand digits": (guest.DONE, 2, _done(b"9" * 1000, *_GOOD[1:])),
    "an error that makes no sense": (guest.ERROR, 2, b"\0\0\0\1x"),
    "an error with a number that is none": (guest.ERROR, 2, _done(b"x", b"y")),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_lie_ends_the_session_at_once(lie: tuple[int, int, bytes], tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.exec("true", 5))
        await asyncio.sleep(0.01)
        stream.frame(*lie)
        with pytest.raises(SandboxDied, match="broke the protocol") as caught:
            await asyncio.wait_for(running, 2)
        assert caught.value.cause is DeathCause.UNRESPONSIVE
        with pytest.raises(SandboxDied, match="broke the protocol"):
            await session.read_file("x")


async def test_a_frame_that_says_it_is_huge_is_not_waited_for(tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.exec("true", 5))
        await asyncio.sleep(0.01)
        stream.say(guest.HEADER.pack(guest.DONE, 2, guest.FRAME_BYTES + 1))
        with pytest.raises(SandboxDied, match="broke the protocol"):
            await asyncio.wait_for(running, 2)


async def test_a_stream_that_ends_in_mid_frame_is_a_death(tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.exec("true", 5))
        await asyncio.sleep(0.01)
        stream.say(guest.HEADER.pack(guest.DONE, 2, 100) + b"half")
        stream.say(b"")
        with pytest.raises(SandboxDied) as caught:
            await asyncio.wait_for(running, 3)
        assert caught.value.cause is DeathCause.KILLED


async def test_frames_in_pieces_and_together_are_the_same(tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.exec("true", 5))
        await asyncio.sleep(0)
        end = guest.join_fields((0, 0, 0, 2, b"", 0, b"", None, None, None, None))
        frames = guest.HEADER.pack(guest.OUTPUT, 2, 3) + b"\0hi"
        frames += guest.HEADER.pack(guest.DONE, 2, len(end)) + end
        for byte in frames:
            stream.say(bytes((byte,)))
        result = await asyncio.wait_for(running, 3)
        assert (result.exit_code, result.stdout, result.truncated) == (0, "hi", False)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc/passwd", b"a\0b"])
async def test_a_listed_name_that_leads_elsewhere_is_a_lie(name: bytes, tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        into = tmp_path / "into"
        into.mkdir()
        running = asyncio.ensure_future(session.collect(["out"], into))
        await asyncio.sleep(0.01)
        stream.frame(guest.OK, 2, guest.join_fields((b"directory", 0, 0o755)))
        await asyncio.sleep(0.01)
        stream.frame(guest.OK, 3, guest.join_fields((1, 1, name, b"file", 1, 0o644)))
        with pytest.raises(SandboxDied, match="broke the protocol"):
            await asyncio.wait_for(running, 2)
        assert os.listdir(tmp_path) == ["into"]


async def test_a_folder_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_session, "_MOST_ENTRIES", 3)
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.list_dir("out"))
        for number in range(4):
            await asyncio.sleep(0.01)
            page = guest.join_fields((10**9, 1, b"%d" % number, b"file", 1, 0o644))
            stream.frame(guest.OK, 2 + number, page)
        with pytest.raises(SandboxFileError, match="more than 3 entries"):
            await asyncio.wait_for(running, 2)


async def test_a_file_that_gives_more_than_it_said_is_cut(tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.collect(["f"], tmp_path))
        await asyncio.sleep(0.01)
        stream.frame(guest.OK, 2, guest.join_fields((b"file", 5, 0o644)))
        await asyncio.sleep(0.01)
        stream.frame(guest.OK, 3, guest.join_fields((5, 0, b"0123456789")))
        collected, _ = await asyncio.wait_for(running, 2)
        assert [(file.path, file.size_bytes) for file in collected] == [("f", 5)]
        assert (tmp_path / "f").read_bytes() == b"01234"


async def test_more_of_a_tree_than_there_was_credit_for_is_a_lie(tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.pack(["/x"], tmp_path / "tree"))
        await asyncio.sleep(0.01)
        frame = guest.HEADER.pack(guest.DATA, 2, guest.CHUNK_BYTES) + bytes(guest.CHUNK_BYTES)
        stream.say(frame * 40)
        with pytest.raises(SandboxDied, match="broke the protocol"):
            await asyncio.wait_for(running, 2)


async def test_the_owners_cause_of_death_comes_first(tmp_path: Path) -> None:
    async with lied_to(tmp_path) as (session, stream):
        await session.start()
        running = asyncio.ensure_future(session.exec("true", 5))
        await asyncio.sleep(0.01)
        stream.say(b"")
        await asyncio.sleep(0.05)
        session._died.set_result(SandboxDied(DeathCause.OUT_OF_MEMORY, "the limit was reached"))
        with pytest.raises(SandboxDied, match="out_of_memory"):
            await asyncio.wait_for(running, 2)
