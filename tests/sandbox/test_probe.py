"""What `doctor` tries must be able to fail: each attempt meets a sandbox that breaks a promise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.backends import REQUIRED, image_cache
from sandbox.podman import PodmanService
from sandlot.core.errors import DeathCause, SandboxDied, SandboxUnavailable
from sandlot.core.types import EgressRecord
from sandlot.sandbox import probe_machine, probe_network, probe_owner
from sandlot.sandbox.base import ExecResult, Sandbox
from sandlot.sandbox.fake import FakeSandbox, Response
from sandlot.sandbox.policy import MIB, PROMISES, Enforcement, Policy
from sandlot.sandbox.probe import ATTEMPTS, Finding, Result, judge, probe, probe_backend
from sandlot.sandbox.probe_attempts import Attempt, Bench, Seen, Setup, small
from sandlot.sandbox.probe_network import METADATA, PRIVATE
from waiting import comes_true

NO_ROUTES = (
    "Iface\tDestination\tGateway\n--\n"
    "00000000000000000000000000000001 80 00 00 00 00000000 00000001 00000000 80200001       lo\n"
)
PROXY = "http://127.0.0.1:3128\n"


class BareComputer(FakeSandbox):
    """Commands run on the host, with no wall, no limit and no mercy for nobody; files are real."""

    backend = "bare"

    def __init__(self, folder: Path, policy: Policy) -> None:
        super().__init__(policy=policy)
        self.folder = folder

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        return tuple(Enforcement(name, "a claim", True) for name in PROMISES)

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        out, err = self.folder / "out", self.folder / "err"
        began = asyncio.get_running_loop().time()
        with out.open("wb") as stdout, err.open("wb") as stderr:
            shell = await asyncio.create_subprocess_exec(
                "bash", "-c", command, cwd=self.folder, stdout=stdout, stderr=stderr
            )
            try:
                await asyncio.wait_for(shell.wait(), timeout_s or 20)
                status: int | None = shell.returncode
            except TimeoutError:
                shell.kill()
                await shell.wait()
                status = None
        took = asyncio.get_running_loop().time() - began
        texts = [path.read_text("utf-8", "replace") for path in (out, err)]
        return ExecResult(status, *texts, took, timed_out=status is None)

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        return (self.folder / path).read_bytes()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "bench").mkdir()
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    setup = Setup(tmp_path / "cache", tmp_path / "state", environ)
    return Bench(tmp_path / "bench", "bare", setup, patience_s=0.3)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Callable[[Policy], BareComputer]]:
    folder = tmp_path / "inside"
    folder.mkdir()
    yield lambda policy: BareComputer(folder, policy)
    for pid in below(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def below(folder: Path) -> list[int]:
    """Processes whose working directory is the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def attempt(promise: str, what: str = "") -> Attempt:
    (found,) = [one for one in ATTEMPTS if one.promise == promise and what in one.what]
    return found


def answers(*rules: tuple[str, Response]) -> Callable[[str], Response]:
    """The first rule whose pattern is in the command; `echo lives` is answered honestly."""

    def respond(command: str) -> Response:
        if command == "echo lives":
            return "lives\n"
        for pattern, response in rules:
            if re.search(pattern, command):
                return response
        return ExecResult(1, "", "no such thing\n", 0.0)

    return respond


async def tried(one: Attempt, box: Sandbox, bench: Bench) -> Seen:
    async with box:
        return await one.body(box, bench)


# --- a computer without walls keeps no promise ----------------------------------------------


@pytest.mark.parametrize(
    ("promise", "what", "word"),
    [
        ("files", "", "was changed"),
        ("memory", "", "were held"),
        ("cpus", "", "two busy loops got"),
        ("processes", "", "all began"),
        ("disk", "", "fill"),
        ("open files", "", "exit status 0|all"),
        ("file size", "", "2097152 bytes"),
        ("output", "", "0 KiB kept|32768 KiB kept"),
        ("timeout", "a daemon", "still beats"),
        ("network", "this machine", "127.0.0.1.* was reached"),
    ],
)
async def test_a_computer_without_walls_keeps_no_promise(
    bare: Callable[[Policy], BareComputer], bench: Bench, promise: str, what: str, word: str
) -> None:
    one = attempt(promise, what)
    seen = await tried(one, bare(one.policy), bench)
    assert seen.kept is False, seen.evidence
    if promise != "disk":
        assert re.search(word, seen.evidence), seen.evidence
    assert judge("bare", one, Enforcement(promise, "a claim", True), seen).result == "not kept"


async def test_addresses_beyond_this_machine_are_not_dialled_where_a_route_leads_out(
    bench: Bench,
) -> None:
    routed = NO_ROUTES.replace("\n--", "\neth0\t00000000\t0100000A\n--")
    for tables in (routed, "nonsense", ExecResult(1, "", "cat: no such file", 0.0)):
        box = FakeSandbox(answers(("/proc/net/route", tables)))
        seen = await tried(attempt("network", "private and"), box, bench)
        assert seen.kept is None
        assert not [command for command in box.commands if "/dev/tcp" in command]


async def test_a_metadata_address_that_answers_is_seen(bench: Bench) -> None:
    box = FakeSandbox(answers(("/proc/net/route", NO_ROUTES), (METADATA[0], "")))
    seen = await tried(attempt("network", "private and"), box, bench)
    assert (seen.kept, seen.evidence) == (False, f"{METADATA[0]} was reached")


async def test_where_nothing_leads_out_every_far_address_is_dialled_and_none_answers(
    bench: Bench,
) -> None:
    box = FakeSandbox(answers(("/proc/net/route", NO_ROUTES)))
    seen = await tried(attempt("network", "private and"), box, bench)
    assert seen.kept is True
    for address in (*PRIVATE, *METADATA):
        assert any(f"/dev/tcp/{address}/80" in command for command in box.commands)


# --- one promise broken, the others as they should be ---------------------------------------


@pytest.mark.parametrize(
    ("promise", "what", "rules", "kept", "word"),
    [
        ("ids", "", [("CapEff", "0\nCapEff:\t00000000a80405fb\n")], True, "user 0"),
        ("ids", "", [("CapEff", "0\nCapEff:\t000001ffffffffff\n")], False, "CAP_SYS_ADMIN"),
        ("system calls", "", [("unshare -U", "")], False, "a user namespace was not refused"),
        (
            "system calls",
            "",
            [("unshare -[Um]", ExecResult(127, "", "not found", 0.0))],
            None,
            "the image has no unshare",
        ),
        (
            "system calls",
            "",
            [
                ("unshare", ExecResult(1, "", "Operation not permitted\n", 0.0)),
                ("mount", ExecResult(32, "", "unknown filesystem type\n", 0.0)),
            ],
            False,
            "a mount was not refused",
        ),
        (
            "system calls",
            "",
            [
                ("unshare|^mount", ExecResult(1, "", "Operation not permitted\n", 0.0)),
                ("NoNewPrivs", "NoNewPrivs:\t0\nSeccomp:\t2\n"),
            ],
            False,
            "NoNewPrivs: 0",
        ),
        ("memory", "", [("tail", SandboxDied(DeathCause.OUT_OF_MEMORY))], True, "told apart"),
        ("memory", "", [("tail", SandboxDied(DeathCause.KILLED))], False, "not told apart"),
        ("memory", "", [("tail", "137\n")], True, "status 137"),
        ("wall time", "", [("sleep", ExecResult(0, "", "", 4.0))], False, "went through"),
        ("wall time", "", [("sleep", SandboxDied(DeathCause.KILLED))], False, "killed"),
        ("wall time", "", [("sleep", SandboxDied(DeathCause.TIME_LIMIT))], True, "time_limit"),
        ("timeout", "a loop", [("trap", ExecResult(0, "", "", 9.0))], False, "9.00 s"),
        (
            "timeout",
            "a loop",
            [("trap", ExecResult(None, "", "", 9.0, timed_out=True))],
            False,
            "9.00 s",
        ),
        ("cpus", "", [("TIMEFORMAT", ExecResult(0, "", "1.5 0.10 0.04", 1.5))], True, "0.09"),
        (
            "cpus",
            "",
            [("TIMEFORMAT", ExecResult(0, "", "1.5 0.10 0.04", 1.5, throttled_s=0.0))],
            None,
            "too busy to tell",
        ),
        ("cpus", "", [("TIMEFORMAT", ExecResult(0, "", "1.5 2.80 0.10", 1.5))], False, "1.93"),
        ("disk", "", [("fill", ExecResult(1, "67108864\n", "Killed\n", 1.0))], False, "Killed"),
    ],
)
async def test_what_one_promise_s_attempt_makes_of_what_it_sees(
    bench: Bench,
    promise: str,
    what: str,
    rules: list[tuple[str, Response]],
    kept: bool | None,
    word: str,
) -> None:
    one = attempt(promise, what)
    seen = await tried(one, FakeSandbox(answers(*rules), policy=one.policy), bench)
    assert seen.kept is kept, seen.evidence
    assert word in seen.evidence


async def test_a_limit_that_costs_the_sandbox_its_life_is_not_kept(bench: Bench) -> None:
    """The disk limit bites, and then nothing answers: the promise names both."""
    full = ExecResult(1, "33554432\n", "No space left on device\n", 0.1)

    def respond(command: str) -> Response:
        return full if "fill" in command else ExecResult(None, "", "", 5.0, timed_out=True)

    one = attempt("disk")
    seen = await tried(one, FakeSandbox(respond, policy=one.policy), bench)
    assert seen.kept is False
    assert "does not answer" in seen.evidence


# --- the proxy ------------------------------------------------------------------------------


def proxied(answer: str, *, proxy: str = PROXY) -> FakeSandbox:
    return FakeSandbox(answers(("http_proxy", proxy), ("CONNECT", answer)))


async def test_a_proxy_that_refuses_by_rule_keeps_its_promise(bench: Bench) -> None:
    box = proxied("HTTP/1.1 403 Sandbox network: address instead of name\r\n")
    seen = await tried(attempt("network", "through"), box, bench)
    assert seen.kept is True, seen.evidence
    assert [command for command in box.commands if f"CONNECT {METADATA[0]}:80" in command]


@pytest.mark.parametrize("answer", ["HTTP/1.1 200 Connection established", "HTTP/1.1 502 Bad", ""])
async def test_what_a_proxy_does_not_refuse_is_seen_and_nothing_foreign_is_asked_of_it(
    bench: Bench, answer: str
) -> None:
    """502 means that it was dialled: the rule has to come first."""
    box = proxied(answer)
    seen = await tried(attempt("network", "through"), box, bench)
    assert seen.kept is False
    assert not [command for command in box.commands if METADATA[0] in command]


async def test_a_proxy_that_dials_before_it_refuses_is_seen_by_the_listener(bench: Bench) -> None:
    async def respond(command: str) -> Response:
        if "http_proxy" in command:
            return PROXY
        if found := re.search(r"CONNECT (127\.0\.0\.1):(\d{4,})", command):
            _, writer = await asyncio.open_connection(found[1], int(found[2]))
            await asyncio.sleep(0.01)
            writer.close()
        return "HTTP/1.1 403 no\r\n"

    seen = await tried(attempt("network", "through"), FakeSandbox(respond), bench)
    assert seen.kept is False
    assert "reached a listener" in seen.evidence


async def test_a_record_of_an_allowed_request_is_seen(bench: Bench) -> None:
    box = proxied("HTTP/1.1 403 no\r\n")
    box.egress_to_report = [EgressRecord("localhost", 443, "allowed", 1, 1)]
    seen = await tried(attempt("network", "through"), box, bench)
    assert (seen.kept, "localhost" in seen.evidence) == (False, True)


async def test_no_proxy_inside_is_said_and_not_called_kept(bench: Bench) -> None:
    seen = await tried(attempt("network", "through"), proxied("", proxy="\n"), bench)
    assert seen.kept is None


async def test_a_proxy_with_a_token_is_asked_with_it() -> None:
    async with proxied("", proxy="http://sandbox:s%3Acret@10.0.2.2:8080\n") as box:
        proxy = await probe_network.find_proxy(box)
    assert proxy is not None
    assert (proxy.host, proxy.port) == ("10.0.2.2", 8080)
    assert proxy.header == "Proxy-Authorization: Basic c2FuZGJveDpzOmNyZXQ="


async def test_a_name_beyond_the_rule_that_is_let_through_is_seen(bench: Bench) -> None:
    one = attempt("network", "a name beyond")
    assert (await tried(one, proxied("HTTP/1.1 200 OK"), bench)).kept is False
    assert (await tried(one, proxied("HTTP/1.1 403 no"), bench)).kept is True
    assert (await tried(one, proxied("", proxy="\n"), bench)).kept is None


def test_the_proxy_s_own_rule_refuses_each_address_that_is_asked_for() -> None:
    assert probe_network.unruled() == []


# --- the owner ------------------------------------------------------------------------------


async def test_a_process_that_outlives_its_owner_is_seen_and_removed(bench: Bench) -> None:
    leaving = (
        "import json, subprocess, sys, time; order = json.loads(sys.stdin.readline());"
        "subprocess.Popen(['sleep', order['marker']], start_new_session=True,"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        "print('ready', flush=True); time.sleep(60)"
    )
    owner = (sys.executable, "-c", leaving)
    seen = await tried(attempt("leavings"), FakeSandbox(), replace(bench, owner=owner))
    assert seen.kept is False
    (pid,) = re.findall(r"process (\d+)", seen.evidence)
    assert await comes_true(lambda: ended(int(pid)))


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits only to be reaped."""
    try:
        return ") Z " in Path("/proc", str(pid), "stat").read_text()
    except FileNotFoundError:
        return True


async def test_an_owner_that_cannot_start_is_said_with_its_last_words(bench: Bench) -> None:
    owner = (sys.executable, "-c", "raise SystemExit('no such engine')")
    seen = await tried(attempt("leavings"), FakeSandbox(), replace(bench, owner=owner))
    assert (seen.kept, "no such engine" in seen.evidence) == (None, True)


async def test_the_owner_takes_its_order_and_dies_of_sigkill_without_a_trace(bench: Bench) -> None:
    bench = replace(bench, backend="fake", owner=probe_owner.OWNER)
    seen = await tried(attempt("leavings"), FakeSandbox(), bench)
    assert seen.kept is True, seen.evidence
    assert "cannot be seen" in seen.evidence


# --- findings -------------------------------------------------------------------------------

NEVER = Attempt("memory", "nothing", lambda box, bench: asyncio.sleep(0, Seen(True, "ok")), small())


def test_a_best_effort_is_never_called_kept_however_the_attempt_went() -> None:
    row = Enforcement("memory", "a watchdog", False)
    found = judge("x", NEVER, row, Seen(True, "it was stopped"))
    assert found.verdict == "not kept (best effort: a watchdog)"
    assert "it was stopped" in found.evidence
    assert "Delegate" in found.remedy


def test_a_promise_that_nothing_keeps_says_so() -> None:
    found = judge("x", NEVER, Enforcement("memory", "none", False), Seen(False, "held"))
    assert found.verdict == "not kept (nothing enforces it)"


def test_a_claim_that_did_not_hold_asks_for_a_report() -> None:
    found = judge("x", NEVER, Enforcement("memory", "cgroup", True), Seen(False, "held"))
    assert (found.verdict, found.means) == ("not kept", "cgroup")
    assert "report" in found.remedy


def test_what_could_not_be_tried_says_why() -> None:
    found = judge("x", NEVER, None, Seen(None, "no proxy"))
    assert found.verdict == "not tried (no proxy)"


async def test_a_backend_that_does_not_start_is_one_row_with_reason_and_remedy(
    bench: Bench,
) -> None:
    closed = []

    class Refusing(FakeSandbox):
        async def start(self) -> None:
            raise SandboxUnavailable("namespaces are forbidden")

        async def close(self) -> None:
            closed.append(True)

    async def opening(name: str, policy: Policy) -> Sandbox:
        return Refusing(policy=policy)

    found = [one async for one in probe_backend("bubblewrap", bench.setup, open_box=opening)]
    (row,) = found
    assert row.verdict == "not tried (namespaces are forbidden)"
    assert "apparmor_restrict_unprivileged_userns" in row.remedy
    assert closed == [True]


class Claiming(FakeSandbox):
    """Starts, answers the first command, and claims to keep everything."""

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        return tuple(Enforcement(name, "a claim", True) for name in PROMISES)


async def found_with(respond: Callable[[str], Response], bench: Bench) -> list[Finding]:
    async def opening(name: str, policy: Policy) -> Sandbox:
        return Claiming(respond, policy=policy)

    some = [one for one in ATTEMPTS if one.promise in ("ids", "memory", "disk", "file size")]
    rows = probe_backend("claiming", bench.setup, open_box=opening, attempts=some)
    return [one async for one in rows]


async def test_answers_of_another_form_and_deaths_are_findings_and_end_nothing(
    bench: Bench,
) -> None:
    first: Response = "42\n"
    garbled = await found_with(answers((r"\$\(\(", first), ("", "gar\x00bled\n")), bench)
    assert [one.result for one in garbled] == ["kept", *["not kept"] * 4]
    dying = answers((r"\$\(\(", first), ("", SandboxDied(DeathCause.UNRESPONSIVE, "gone")))
    assert [one.result for one in await found_with(dying, bench)] == ["kept", *["not kept"] * 4]


async def test_a_double_that_isolates_nothing_is_not_tried_further(bench: Bench) -> None:
    found = [one async for one in probe_backend("fake", bench.setup)]
    assert [one.result for one in found] == [Result.KEPT, Result.NOT_TRIED]
    assert "isolates nothing" in found[-1].because


async def test_a_backend_that_does_not_exist_is_a_row_and_the_next_one_is_tried(
    bench: Bench,
) -> None:
    found = [one async for one in probe(("no-such", "fake"), bench.setup)]
    assert "is not known" in next(one for one in found if one.backend == "no-such").because
    assert found[-1].backend == "fake"


def test_every_promise_of_a_policy_is_tried() -> None:
    assert {one.promise for one in ATTEMPTS} >= set(PROMISES)


def test_every_attempt_is_bounded_by_its_own_policy() -> None:
    """The bounds of what is allocated and written come from these numbers."""
    for one in ATTEMPTS:
        limits = one.policy.limits
        assert limits.memory_bytes is not None
        assert limits.memory_bytes <= 256 * MIB
        assert limits.disk_bytes == 32 * MIB
        assert limits.processes == 64


# --- the machine ----------------------------------------------------------------------------


def test_each_part_of_the_machine_is_found_or_names_a_remedy() -> None:
    parts = list(probe_machine.parts())
    assert len(parts) >= 7
    for part in parts:
        assert part.found
        assert part.ok or part.remedy


def test_the_machine_s_addresses_begin_with_the_loopback() -> None:
    addresses = probe_network.own_addresses()
    assert addresses[0] == "127.0.0.1"
    assert not [address for address in addresses[1:] if address.startswith("127.")]


# --- the real thing -------------------------------------------------------------------------


@pytest.fixture
async def on_bubblewrap(tmp_path: Path) -> list[Finding]:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    setup = Setup(image_cache(), tmp_path / "state", environ)
    return [one async for one in probe_backend("bubblewrap", setup)]


@pytest.mark.sandbox
@pytest.mark.slow
async def test_every_promise_of_bubblewrap_is_kept_here(
    on_bubblewrap: list[Finding], tmp_path: Path
) -> None:
    if on_bubblewrap[0].result is Result.NOT_TRIED and not REQUIRED:
        pytest.skip(on_bubblewrap[0].because)
    assert len(on_bubblewrap) == len(ATTEMPTS) + 1
    grouped = probe_machine.has_control_groups()
    for one in on_bubblewrap:
        excused = not grouped and one.promise in ("memory", "cpus", "processes")
        assert one.result is Result.KEPT or (excused and one.because), one
    assert not list((tmp_path / "sandlot").glob("*/lease.json"))


@pytest.mark.sandbox
@pytest.mark.slow
async def test_every_promise_of_podman_is_kept_here(
    podman_service: PodmanService, podman_image: str, tmp_path: Path
) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(podman_service.folder / "run")}
    setup = Setup(
        image_cache(),
        tmp_path,
        environ,
        engine_image=podman_image,
        engine=podman_service.address,
    )
    found = [one async for one in probe_backend("podman", setup)]
    assert len(found) == len(ATTEMPTS) + 1, found
    for one in found:
        excused = one.because.startswith("best effort") and os.getuid() != 0
        assert one.result is Result.KEPT or excused, one
    assert not podman_service.containers()
