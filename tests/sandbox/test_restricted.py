"""The backend `restricted`, as whoever runs the tests: root gives it an id of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.test_seccomp import ALLOW, verdict
from sandlot.core.errors import (
    DeathCause,
    ImageError,
    PolicyNotEnforceable,
    SandboxDied,
    SandboxFileError,
    SandboxUnavailable,
    SandlotError,
)
from sandlot.sandbox import landlock, restricted, restricted_ground, restricted_lease
from sandlot.sandbox.base import ExecResult
from sandlot.sandbox.contract import CHECKS, Check, ContractViolation
from sandlot.sandbox.host import find_bwrap
from sandlot.sandbox.hostconfig import HostConfig
from sandlot.sandbox.policy import MIB, Limits, Mount, Network, NetworkMode, Policy
from sandlot.sandbox.restricted import RestrictedSandbox, open_restricted
from sandlot.sandbox.restricted_filter import build_restricted_filter, call_numbers
from waiting import becomes_true

ROOT = Path(__file__).parents[2]
ATTEMPTS = Path(__file__).with_name("restricted_attempts.py")
NOTIFY = 0x7FC00000
ABIS = (landlock.abi(), 5, 2, 1)
QUIET = Policy(network=Network(NetworkMode.NONE))

needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
pytestmark = [pytest.mark.sandbox, needs_landlock]


@asynccontextmanager
async def started(
    state: Path, policy: Policy = QUIET, *, most_abi: int | None = None
) -> AsyncIterator[RestrictedSandbox]:
    box = await open_restricted(
        policy, "host", state, HostConfig(), lambda _: None, most_abi=most_abi
    )
    async with box:
        yield box


def processes_below(base: str) -> list[int]:
    """Processes that work in a private folder; only root or their user sees them."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if (os.readlink(f"/proc/{name}/cwd") + "/").startswith(base + "/"):
                    found.append(int(name))
    return found


# --- attempts -----------------------------------------------------------------------------------


@contextmanager
def an_open_neighbour() -> Iterator[tuple[Path, int, Callable[[], None]]]:
    """A folder that modes leave open to everybody, with servers; only the walls stand before it."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="sandlot-test-"))
    folder.chmod(0o777)
    (folder / ".ssh").mkdir(mode=0o777)
    for path in (folder / "secret", folder / ".ssh" / "id"):
        path.write_text("of the host")
        path.chmod(0o666)
    before = (folder / "secret").stat()
    servers = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    abstract = socket.socket(socket.AF_UNIX)
    servers[1].bind(str(folder / "stream"))
    datagrams.bind(str(folder / "datagrams"))
    abstract.bind(f"\0sandlot-test-{os.getpid()}")
    for path in (folder / "stream", folder / "datagrams"):
        path.chmod(0o777)
    for server in (servers[1], abstract):
        server.listen()

    def check_untouched() -> None:
        after = (folder / "secret").stat()
        assert (folder / "secret").read_text() == "of the host"
        assert (after.st_mode, after.st_mtime, after.st_uid) == (
            before.st_mode,
            before.st_mtime,
            before.st_uid,
        )
        assert not (folder / "new").exists()
        for server in (*servers, abstract):
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()

    try:
        yield folder, servers[0].getsockname()[1], check_untouched
    finally:
        for sock in (*servers, datagrams, abstract):
            sock.close()
        shutil.rmtree(folder)


async def attempts(state: Path, most_abi: int) -> dict[str, str]:
    with an_open_neighbour() as (folder, port, check_untouched):
        policy = Policy(network=Network(NetworkMode.PACKAGES))
        async with started(state, policy, most_abi=most_abi) as box:
            await box.write_file("attempts.py", ATTEMPTS.read_bytes())
            proxy = "$(echo $http_proxy | sed 's/.*://')"
            words = f"{folder} {os.getpid()} {port} {proxy}"
            result = await box.exec(f"python3 attempts.py {words}", 60)
        assert result.exit_code == 0, result.stderr
        check_untouched()
    return dict(json.loads(line) for line in result.stdout.splitlines())


@pytest.mark.parametrize("abi", sorted({abi for abi in ABIS if abi <= landlock.abi()}))
def test_every_attempt_on_the_machine_is_refused(tmp_path: Path, abi: int) -> None:
    """An older kernel's Landlock sees less; the filter and the supervisor stand in for the rest."""
    came = asyncio.run(attempts(tmp_path, abi))
    had = {name: what for name, what in came.items() if not what.startswith("refused")}
    if os.uname().machine != "x86_64":
        had = {name: what for name, what in had.items() if "call" not in what}
    assert had == {}
    assert len(came) > 50


async def test_names_and_sizes_of_the_machines_files_are_seen_and_that_is_said(
    tmp_path: Path,
) -> None:
    with an_open_neighbour() as (folder, _, _):
        async with started(tmp_path) as box:
            result = await box.exec(f"stat -c %s {folder}/secret")
            row = next(row for row in box.enforcement if row.promise == "files")
    assert result.stdout == "11\n"
    assert not row.holds
    assert "names and sizes" in row.note


async def test_what_runs_inside_has_no_rights_to_lose(tmp_path: Path) -> None:
    async with started(tmp_path) as box:
        status = (await box.exec("cat /proc/self/status; id -u")).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    names = ["CapEff", "CapPrm", "CapInh", "CapAmb", *(["CapBnd"] if os.geteuid() == 0 else [])]
    assert {fields[name].strip("0") for name in names} == {""}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp_filters"] == "2"


async def test_root_gives_each_sandbox_an_id_of_its_own(tmp_path: Path) -> None:
    if restricted_ground.survey().uid is None:
        pytest.skip("this user cannot give a sandbox an id of its own")
    async with started(tmp_path) as one, started(tmp_path) as two:
        ids = {(await box.exec("id -u")).stdout for box in (one, two)}
    assert len(ids) == 2
    assert "0\n" not in ids


# --- what works ---------------------------------------------------------------------------------


@pytest.mark.parametrize("abi", sorted({landlock.abi(), 1}))
async def test_own_files_keep_modes_and_times_and_own_processes_can_be_killed(
    tmp_path: Path, abi: int
) -> None:
    script = """\
        echo 'echo ran' >tool; chmod 755 tool; ./tool
        touch -d '2001-02-03 UTC' old; stat -c '%a %Y' old; mkdir -p a/b; mv old a/b/; ls a/b
        sleep 60 & kill $!; wait $!; echo $?
        python3 -c "import subprocess as s; p = s.Popen(['sleep', '60']); p.kill(); print(p.wait())"
        python3 -c "import os; os.abort()"; echo $?"""
    async with started(tmp_path, most_abi=abi) as box:
        result = await box.exec(textwrap.dedent(script), 20)
    lines = [line for line in result.stdout.splitlines() if not line.startswith("[")]
    assert lines == ["ran", "644 981158400", "old", "143", "-9", "134"]


async def test_the_only_way_out_is_the_proxy_and_it_wants_the_token(tmp_path: Path) -> None:
    ask = (
        "import os, socket, urllib.parse as u; p = u.urlsplit(os.environ['http_proxy']);"
        "s = socket.create_connection((p.hostname, p.port), 3);"
        "s.sendall(b'CONNECT example.org:443 HTTP/1.1\\r\\nHost: example.org:443\\r\\n\\r\\n');"
        "print(s.recv(100).split()[1].decode())"
    )
    request = "import urllib.request as r; print(r.urlopen('http://example.org/').status)"
    policy = Policy(network=Network.parse("allow:example.com"))
    async with started(tmp_path, policy) as box:
        bare = await box.exec(f'python3 -c "{ask}"')
        with_token = await box.exec(f'python3 -c "{request}"')
        records = box.egress()
    assert bare.stdout == "407\n", bare.stderr
    assert "403" in with_token.stderr
    assert "not allowed" in {record.verdict for record in records}


async def test_without_a_network_no_socket_can_be_made(tmp_path: Path) -> None:
    async with started(tmp_path) as box:
        result = await box.exec("python3 -c 'import socket; socket.socket()'; env | grep -i proxy")
    assert "Address family not supported" in result.stderr
    assert result.stdout == ""


async def test_paths_of_other_backends_are_moved_into_the_private_folder(tmp_path: Path) -> None:
    async with started(tmp_path) as box:
        await box.write_file("/testbed/input/a.txt", b"one")
        await box.write_file("/tmp/b.txt", b"two")
        shown = await box.exec("pwd; cat input/a.txt $TMPDIR/b.txt; cd; pwd")
        with pytest.raises(SandboxFileError):
            await box.write_file("/etc/sandlot-attempt", b"")
        moved = box.relocated("/testbed/output/answer.txt")
        assert box.relocated(moved) == moved
        assert box.relocated("/usr/bin/python3") == "/usr/bin/python3"
    assert shown.stdout == f"{box.base}/testbed\nonetwo{box.base}/root\n"
    assert moved == f"{box.base}/testbed/output/answer.txt"


async def test_a_fork_goes_on_in_a_folder_of_its_own(tmp_path: Path) -> None:
    async with started(tmp_path) as box:
        await box.exec("mkdir d; echo one >d/f; chmod 750 d/f; ln -s $PWD/d/f link; export A=$PWD")
        twin = await box.fork()
        try:
            await box.exec("echo changed >d/f")
            seen = await twin.exec("cat link; stat -c %a d/f; echo $A; pwd")
        finally:
            await twin.close()
    folder = f"{twin.base}/testbed"  # type: ignore[attr-defined]
    assert seen.stdout == f"one\n750\n{folder}\n{folder}\n"


# --- limits -------------------------------------------------------------------------------------


async def test_a_full_folder_ends_the_sandbox(tmp_path: Path) -> None:
    policy = replace(QUIET, limits=Limits(disk_bytes=8 * MIB))
    async with started(tmp_path, policy) as box:
        with pytest.raises(SandboxDied) as death:
            await box.exec("for n in 1 2 3; do head -c 4M /dev/zero >f$n; done; sleep 20", 30)
    assert death.value.cause is DeathCause.DISK_FULL


async def test_one_file_stays_below_the_limit(tmp_path: Path) -> None:
    policy = replace(QUIET, limits=Limits(file_bytes=MIB))
    async with started(tmp_path, policy) as box:
        await box.exec("head -c 4M /dev/zero >f")
        assert (await box.stat("f")).size_bytes == MIB


async def test_the_largest_process_ends_where_the_sum_is_too_large(tmp_path: Path) -> None:
    hold = "python3 -c 'import time; b = bytearray(80 * 2**20); time.sleep(20)'"
    policy = replace(QUIET, limits=Limits(memory_bytes=128 * MIB))
    async with started(tmp_path, policy) as box:
        result = await box.exec(f"{hold} & {hold} & wait -n; echo $?", 15)
        assert (await box.exec("echo alive")).stdout == "alive\n"
    assert "137" in result.stdout


async def test_processes_are_bounded(tmp_path: Path) -> None:
    if restricted_ground.survey().uid is None and os.geteuid() == 0:
        pytest.skip("the kernel does not count processes of root")
    policy = replace(QUIET, limits=Limits(processes=24))
    async with started(tmp_path, policy) as box:
        bomb = "for n in $(seq 400); do sleep 3 & done; echo unbounded"
        result = await box.exec(bomb, 3)
    assert "Resource temporarily unavailable" in result.stderr or result.timed_out
    assert "unbounded" not in result.stdout or "Resource" in result.stderr


async def test_what_was_asked_for_and_does_not_hold_is_refused(tmp_path: Path) -> None:
    asked = replace(QUIET, asked=frozenset({"memory_bytes"}))
    with pytest.raises(PolicyNotEnforceable, match="--accept-unenforced memory"):
        async with started(tmp_path, asked):
            pass
    with pytest.raises(PolicyNotEnforceable, match="mounted folders"):
        async with started(tmp_path, replace(QUIET, mounts=(Mount("/usr", "/data"),))):
            pass
    assert not (tmp_path / "restricted").exists()


async def test_it_says_at_the_start_what_does_not_hold(tmp_path: Path) -> None:
    said: list[str] = []
    box = await open_restricted(QUIET, "host", tmp_path, HostConfig(), said.append)
    async with box:
        weak = {row.promise for row in box.enforcement if not row.holds}
    assert {"files", "memory", "disk"} <= weak
    assert all(promise in said[0] for promise in weak)


async def test_any_image_but_the_machines_own_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="--image host"):
        await open_restricted(QUIET, "science", tmp_path, HostConfig(), lambda _: None)


# --- the end ------------------------------------------------------------------------------------

DAEMON = "(setsid sh -c 'trap \"\" TERM HUP INT; sleep 300' >/dev/null 2>&1 &); sleep 300 & "
HARNESS = """\
import asyncio, sys
from pathlib import Path
from sandlot.sandbox.host import find_bwrap
from sandlot.sandbox.hostconfig import HostConfig
from sandlot.sandbox.policy import Network, NetworkMode, Policy
from sandlot.sandbox.restricted import open_restricted

async def main():
    policy = Policy(network=Network(NetworkMode.NONE))
    state = Path(sys.argv[1])
    box = await open_restricted(policy, "host", state, HostConfig(), lambda _: None)
    await box.start()
    await box.exec(sys.argv[2])
    print(box.base, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def a_harness(state: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, "-c", HARNESS, str(state), DAEMON]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as harness:
        try:
            assert harness.stdout is not None
            yield harness, harness.stdout.readline().strip()
        finally:
            harness.kill()


async def test_a_close_ends_daemons_and_removes_folders_of_any_mode(tmp_path: Path) -> None:
    async with started(tmp_path) as box:
        base = str(box.base)
        await box.exec(DAEMON + "mkdir -p locked/in; echo x >locked/in/f; chmod 0 locked/in locked")
        deep = "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')"
        await box.exec(f'python3 -c "{deep}"')
        assert processes_below(base)
    assert not processes_below(base)
    assert not os.path.exists(base)
    assert restricted_lease.all_leases(tmp_path) == []


def test_nothing_is_left_of_a_harness_that_was_killed(tmp_path: Path) -> None:
    with a_harness(tmp_path) as (harness, base):
        assert processes_below(base)
        harness.kill()
        assert becomes_true(lambda: not os.path.exists(base))
    assert not processes_below(base)

    def cleared() -> bool:
        restricted_lease.reap(tmp_path)
        return restricted_lease.all_leases(tmp_path) == []

    assert becomes_true(cleared)  # its supervisor holds the lease for a moment more


def test_reaping_ends_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    with a_harness(tmp_path) as (harness, base):
        supervisors = [
            int(name)
            for name in os.listdir("/proc")
            if name.isdigit() and _parent(name) == harness.pid
        ]
        os.kill(harness.pid, signal.SIGSTOP)
        for pid in supervisors:
            os.kill(pid, signal.SIGKILL)
        harness.kill()
        harness.wait()
        assert becomes_true(
            lambda: not any(lease.alive for lease in restricted_lease.all_leases(tmp_path))
        )
        assert len(restricted_lease.reap(tmp_path)) == 1
    assert becomes_true(lambda: not processes_below(base))
    assert not os.path.exists(base)


def _parent(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


async def test_a_guest_that_is_stopped_from_inside_goes_on(tmp_path: Path) -> None:
    async with started(tmp_path) as box:
        await box.exec("kill -STOP $PPID")
        assert (await box.exec("echo alive", 5)).stdout == "alive\n"


async def test_a_guest_that_is_killed_from_inside_is_a_typed_death(tmp_path: Path) -> None:
    async with started(tmp_path) as box:
        with pytest.raises(SandboxDied):
            await box.exec("kill -9 $PPID; sleep 5")
        with pytest.raises(SandboxDied):
            await box.exec("echo more")


# --- the contract -------------------------------------------------------------------------------

NEEDS_A_ROOT_OF_ITS_OWN = {
    "the user is 0 inside",
    "missing parent folders are made",
    "links inside are followed inside",
    "a folder under a name with dots stays inside",
    "a link to the host never lists or describes the host",
    "an upload counts its files and lands under the target",
    "deleted and replaced parts of the image come back so",
    "files, directory and exported variables come back in a fresh sandbox",
    "a fork goes on from files, directory and variables, and both go their own way",
    "the host's name and processes are not seen",
    "there is no network interface but lo",
    "the usual devices work",
    "there are no disks, memory or terminals in /dev",
    "a socket is refused at once",
}


class Moved:
    """Commands written for `/testbed`, `/root` and `/tmp`, run where these folders really are."""

    def __init__(self, box: RestrictedSandbox) -> None:
        self._box = box

    def __getattr__(self, name: str) -> Any:
        return getattr(self._box, name)

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        base = str(self._box.base)
        there = rf"(?<![\w/.])(?!{re.escape(base)})/(?=(testbed|root|tmp)\b)"
        moved = re.sub(there, f"{base}/", command)
        result = await self._box.exec(moved, timeout_s)
        out, err = result.stdout.replace(base, ""), result.stderr.replace(base, "")
        return replace(result, stdout=out, stderr=err)

    async def fork(self) -> Moved:
        twin = await self._box.fork()
        assert isinstance(twin, RestrictedSandbox)
        return Moved(twin)

    async def __aenter__(self) -> Moved:
        await self._box.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._box.close()


@pytest.mark.slow
async def test_the_contract_holds_but_for_what_a_root_of_its_own_gives(tmp_path: Path) -> None:
    async def make(policy: Policy) -> Any:
        return Moved(await open_restricted(policy, "host", tmp_path, HostConfig(), lambda _: None))

    few = asyncio.Semaphore(4)
    broken: dict[str, str] = {}

    async def run(check: Check) -> None:
        async with few:
            try:
                await asyncio.wait_for(check.run(make), 60)
            except (ContractViolation, SandlotError, OSError, TimeoutError) as exc:
                broken[check.name] = str(exc)

    await asyncio.gather(*(run(check) for check in CHECKS if not check.slow))
    assert {name: broken[name] for name in broken.keys() - NEEDS_A_ROOT_OF_ITS_OWN} == {}
    assert restricted_lease.all_leases(tmp_path) == []


# --- where namespaces are denied ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("uid", ["0", "1000"])
def test_the_demo_runs_where_no_namespace_can_be_made(tmp_path: Path, uid: str) -> None:
    """A bubblewrap that forbids nested ones stands for the machine that denies them."""
    denying = [find_bwrap(), "--unshare-user", "--disable-userns", "--unshare-pid"]
    denying += ["--uid", uid, "--gid", uid, "--cap-drop", "ALL", "--die-with-parent"]
    denying += ["--bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run", "--"]
    if subprocess.run([*denying, "true"], check=False, capture_output=True).returncode:
        pytest.skip("bubblewrap cannot run here, so nothing can deny what it may do")
    for part in ("scripts", "demo"):
        shutil.copytree(ROOT / part, tmp_path / part)
    script = tmp_path / "script.jsonl"
    command = "grep -c WARN input/station.log > output/answer.txt"
    calls: list[dict[str, Any]] = [
        {"name": "execute_bash", "arguments": {"command": command}},
        {"name": "submit", "arguments": {}},
    ]
    lines = [json.dumps({"tool_calls": [call]}) for call in calls]
    script.write_text("\n".join(lines))
    result = subprocess.run(
        [*denying, sys.executable, str(tmp_path / "scripts/demo.py"), f"scripted:{script}"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(restricted.__file__).parents[2]),
            "HOME": str(tmp_path),
            "XDG_RUNTIME_DIR": str(tmp_path),
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "no sandbox can be had on this machine" in said
    assert "not enforced: files" in said
    assert "which is right" in said
    manifest = tomllib.loads(next(tmp_path.glob("runs/*/run.toml")).read_text())
    assert manifest["backend"]["name"] == "restricted"
    assert {"files", "memory", "disk"} <= {
        row["promise"] for row in manifest["sandbox"]["promises"] if not row["holds"]
    }
    assert not list(tmp_path.glob(".local/state/sandlot/restricted/*"))


# --- the filter ---------------------------------------------------------------------------------


def test_the_filter_hands_over_only_what_the_supervisor_answers() -> None:
    program = build_restricted_filter(
        "x86_64", inet=True, own_id=False, signals=True, truncate=True
    )
    calls = call_numbers("x86_64")
    handed = {name for name, nr in calls.items() if verdict(program, nr, 1, 1) == NOTIFY}
    assert handed >= {"connect", "chmod", "fchmodat", "fchmodat2", "utimensat", "kill", "tgkill"}
    assert verdict(program, calls["utimensat"], 3, 0) == ALLOW
    assert verdict(program, calls["utimensat"], 3, 1 << 32) == NOTIFY
    assert verdict(program, calls["prlimit64"], 0) == ALLOW
    assert verdict(program, calls["socket"], 2, 1 | 0o2000000, 0) == ALLOW
    assert verdict(program, calls["socket"], 2, 2) != ALLOW
    assert verdict(program, calls["sendto"], 3, 0, 0, 0x20000000) != ALLOW
    assert verdict(program, calls["sendto"], 3, 0, 0, 0x4000) == ALLOW
    assert verdict(program, 0) == ALLOW


def test_a_sandbox_with_its_own_id_changes_its_modes_itself() -> None:
    program = build_restricted_filter(
        "aarch64", inet=False, own_id=True, signals=False, truncate=False
    )
    calls = call_numbers("aarch64")
    arm = 0xC00000B7
    assert verdict(program, calls["fchmodat"], 1, 1, arch=arm) == ALLOW
    assert verdict(program, calls["kill"], 1, 1, arch=arm) == ALLOW
    assert verdict(program, calls["socket"], 2, 1, arch=arm) == 0x00050000 | 97


@pytest.mark.parametrize(("abi", "gaps"), [(7, 0), (5, 1), (1, 5)])
def test_each_version_of_landlock_says_what_it_lacks(abi: int, gaps: int) -> None:
    rows = restricted_ground.enforcement_of(Policy(), restricted_ground.Ground(abi, None))
    assert len(landlock.lacking(abi)) == gaps
    assert all(text in rows[0].note for text in landlock.lacking(abi))


def test_a_kernel_without_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="needs Landlock"):
        restricted_ground.survey()
