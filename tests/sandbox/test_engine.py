"""The container backends: their engine found or not, images, walls, death, and what is left."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import struct
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.backends import image_cache
from sandbox.podman import PodmanService, podman_maker
from sandlot.core.errors import (
    ConfigError,
    DeathCause,
    ImageError,
    PolicyNotEnforceable,
    SandboxDied,
    SandboxUnavailable,
)
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, opened, small_policy
from sandlot.sandbox.engine import EngineSandbox, open_engine_sandbox
from sandlot.sandbox.engine_api import (
    AttachedStream,
    EngineClient,
    EngineLost,
    EngineRefusal,
    find_address,
    parse_address,
)
from sandlot.sandbox.engine_container import (
    EngineFacts,
    Form,
    disk_bytes,
    enforcement,
    read_facts,
    stage_source,
)
from sandlot.sandbox.engine_host import (
    LEASE_LABEL,
    OWNER_LABEL,
    EngineHost,
    check_runtime,
    owner_of,
)
from sandlot.sandbox.host import list_leases
from sandlot.sandbox.policy import MIB, Limits, Mount, Network, NetworkMode, Policy
from sandlot.sandbox.registry import open_sandbox, reap

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "socket", "url"),
    [
        ("unix:///run/e.sock", "/run/e.sock", "http://engine"),
        ("/run/e.sock", "/run/e.sock", "http://engine"),
        ("tcp://10.0.0.1:2375", None, "http://10.0.0.1:2375"),
        ("https://engine.example:2376/", None, "https://engine.example:2376"),
    ],
)
def test_an_address_is_a_socket_or_a_host(text: str, socket: str | None, url: str) -> None:
    address = parse_address(text)
    assert (address.socket, address.url) == (socket, url)


@pytest.mark.parametrize("text", ["", "unix://relative", "tcp://", "engine.sock", "ssh://host"])
def test_another_address_is_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(ConfigError, match="unix:///path or tcp://host:port"):
        parse_address(text)


def test_an_asked_address_goes_before_the_environment_and_that_before_the_sockets() -> None:
    environ = {"DOCKER_HOST": "tcp://a:1", "CONTAINER_HOST": "tcp://b:2"}
    assert find_address("docker", "tcp://c:3", environ).text == "tcp://c:3"
    assert find_address("docker", None, environ).text == "tcp://a:1"
    assert find_address("podman", None, environ).text == "tcp://b:2"


def test_the_sockets_of_the_user_are_found(tmp_path: Path) -> None:
    place = tmp_path / "podman" / "podman.sock"
    place.parent.mkdir()
    place.touch()
    found = find_address("podman", None, {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert found.socket in (str(place), "/run/podman/podman.sock")


# --- bad engines ----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _served(folder: Path, serve: Serve) -> AsyncIterator[EngineClient]:
    place = folder / "e.sock"
    server = await asyncio.start_unix_server(serve, place)
    client = EngineClient(parse_address(str(place)))
    try:
        yield client
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


def _answering(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return serve


async def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    client = EngineClient(parse_address(str(tmp_path / "none.sock")))
    with pytest.raises(SandboxUnavailable, match=r"none\.sock does not exist; start the engine"):
        await client.call("describe itself", "GET", "/info")
    await client.close()


async def test_a_socket_that_nobody_serves_is_named(tmp_path: Path) -> None:
    (tmp_path / "dead.sock").touch()
    client = EngineClient(parse_address(str(tmp_path / "dead.sock")))
    with pytest.raises(SandboxUnavailable, match="nobody listens"):
        await client.call("describe itself", "GET", "/info")
    await client.close()


@pytest.mark.skipif(os.getuid() == 0, reason="root may use every socket")
async def test_a_forbidden_socket_names_the_remedy(tmp_path: Path) -> None:
    async with _served(tmp_path, _answering(b"")) as client:
        (tmp_path / "e.sock").chmod(0)
        with pytest.raises(SandboxUnavailable, match="may not be used by this user"):
            await client.call("describe itself", "GET", "/info")


async def test_what_is_no_engine_is_said(tmp_path: Path) -> None:
    async with _served(tmp_path, _answering(b"220 mail ready\r\n\r\n")) as client:
        with pytest.raises(EngineLost, match="does not answer as a container engine"):
            await client.call("describe itself", "GET", "/info")


async def test_an_engine_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with _served(tmp_path, silent) as client:
        with pytest.raises(EngineLost, match=r"did not describe itself within 0\.2 s"):
            await client.call("describe itself", "GET", "/info", deadline_s=0.2)


async def test_an_engine_that_hangs_up_is_lost(tmp_path: Path) -> None:
    async with _served(tmp_path, _answering(b"")) as client:
        with pytest.raises(EngineLost):
            await client.call("describe itself", "GET", "/info")


async def test_a_refusal_gives_the_engine_s_own_words(tmp_path: Path) -> None:
    body = b'{"message": "no such thing"}'
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with _served(tmp_path, _answering(answer)) as client:
        with pytest.raises(EngineRefusal, match="no such thing") as caught:
            await client.call("find it", "GET", "/x")
    assert caught.value.status == 404


async def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 20))
                await writer.drain()
        writer.close()

    async with _served(tmp_path, endless) as client:
        with pytest.raises(EngineLost, match="more than"):
            await client.call("describe itself", "GET", "/info")


# --- frames ---------------------------------------------------------------------------------------


class _Pieces:
    """A raw stream that gives what it was made of, piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def read(self, _: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def _frame(kind: int, data: bytes) -> bytes:
    return struct.pack(">B3xI", kind, len(data)) + data


def _attached(*pieces: bytes) -> AttachedStream:
    return AttachedStream(_Pieces(*pieces), contextlib.AsyncExitStack())


async def _all(stream: AttachedStream) -> bytes:
    data = b""
    while piece := await stream.read():
        data += piece
    return data


async def test_frames_are_joined_wherever_they_are_cut() -> None:
    whole = _frame(1, b"hello ") + _frame(2, b"warning") + _frame(1, b"") + _frame(1, b"world")
    for size in (1, 3, 8, 9, len(whole)):
        stream = _attached(*(whole[at : at + size] for at in range(0, len(whole), size)))
        assert await _all(stream) == b"hello world"
        assert stream.errors == b"warning"


async def test_what_follows_a_line_is_read_after_it() -> None:
    stream = _attached(_frame(1, b"{}\n\xa7\x0d") + _frame(1, b"\n"))
    assert await stream.read_line(100) == b"{}"
    assert await _all(stream) == b"\xa7\x0d\n"


@pytest.mark.parametrize("head", [struct.pack(">B3xI", 9, 1), struct.pack(">B3xI", 1, 1 << 31)])
async def test_a_frame_that_cannot_be_is_an_error(head: bytes) -> None:
    with pytest.raises(OSError, match="a frame of kind"):
        await _attached(head).read()


async def test_errors_are_kept_in_a_bounded_tail() -> None:
    stream = _attached(*(_frame(2, b"%04d" % n * 100) for n in range(100)))
    assert await _all(stream) == b""
    assert len(stream.errors) == 4096
    assert stream.errors.endswith(b"0099")


# --- promises -------------------------------------------------------------------------------------

_FACTS = EngineFacts("docker", "x86_64", False, True, True, True, True)


def _holding(facts: EngineFacts, form: Form) -> set[str]:
    policy = Policy(Limits(cpus=1.0), Network(NetworkMode.NONE))
    return {row.promise for row in enforcement(policy, facts, form) if row.holds}


def test_an_engine_without_limits_promises_none() -> None:
    less = replace(_FACTS, memory=False, cpus=False, processes=False)
    gone = _holding(_FACTS, Form("3.11", True)) - _holding(less, Form("3.11", True))
    assert gone == {"memory", "cpus", "processes"}


def test_without_walls_neither_disk_nor_ids_are_promised() -> None:
    gone = _holding(_FACTS, Form("3.11", True)) - _holding(_FACTS, Form("3.11", False, "denied"))
    assert gone == {"disk", "ids"}


def test_a_disk_never_fills_the_memory() -> None:
    assert disk_bytes(Limits(memory_bytes=128 * MIB, disk_bytes=512 * MIB)) == 96 * MIB
    assert disk_bytes(Limits(memory_bytes=None, disk_bytes=512 * MIB)) == 512 * MIB


def test_a_desktop_engine_counts_as_another_machine() -> None:
    assert not read_facts("docker", {"OperatingSystem": "Docker Desktop"}, local=True).local


def test_a_rootless_engine_has_no_groups_of_version_1() -> None:
    info = {"MemoryLimit": True, "PidsLimit": True, "CpuCfsQuota": True, "Rootless": True}
    assert not read_facts("podman", {**info, "CgroupVersion": "1"}, local=True).memory
    assert read_facts("podman", {**info, "CgroupVersion": "2"}, local=True).processes


def test_podman_refuses_a_runtime_that_its_api_would_pass_over() -> None:
    podman = read_facts("podman", {"DefaultRuntime": "/usr/bin/runsc"}, local=True)
    check_runtime(podman, "runsc")
    check_runtime(podman, None)
    with pytest.raises(SandboxUnavailable, match=r"'runc' was asked for.*with 'runsc'"):
        check_runtime(podman, "runc")
    check_runtime(replace(podman, backend="docker"), "kata")  # docker refuses an unknown one itself


@pytest.mark.parametrize("backend", ["bubblewrap", "restricted"])
async def test_a_runtime_is_refused_where_no_container_is_started(
    backend: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="starts no containers"):
        await open_sandbox(
            backend,
            policy=small_policy(),
            image="host",
            cache=tmp_path,
            state=tmp_path,
            environ={},
            progress=lambda _: None,
            runtime="runsc",
        )


async def test_a_runtime_that_podman_would_pass_over_ends_the_start(
    podman_service: PodmanService, tmp_path: Path
) -> None:
    with pytest.raises(SandboxUnavailable, match="'other' was asked for"):
        await open_engine_sandbox(
            "podman",
            policy=small_policy(),
            image="base",
            cache=tmp_path,
            state=tmp_path,
            environ={"XDG_RUNTIME_DIR": str(podman_service.folder / "run")},
            progress=lambda _: None,
            engine=podman_service.address,
            runtime="other",
        )


def test_the_stage_fits_into_one_argument() -> None:
    assert len(stage_source().encode()) < 128 * 1024


# --- containers -----------------------------------------------------------------------------------

on_podman = pytest.mark.sandbox


@on_podman
async def test_a_container_answers_and_is_gone_after_close(
    podman: MakeSandbox, podman_service: PodmanService
) -> None:
    async with opened(podman) as box:
        assert isinstance(box, EngineSandbox)
        assert len(box.image_digest) == 64
        assert (await box.exec("echo hi")).stdout == "hi\n"
        assert len(podman_service.containers()) == 1
    assert podman_service.containers() == []


@on_podman
async def test_every_promise_holds_behind_walls(podman: MakeSandbox) -> None:
    async with opened(podman) as box:
        lost = [row for row in box.enforcement if not row.holds]
        assert {row.promise for row in box.enforcement} >= {"disk", "ids", "memory", "processes"}
        if os.getuid() == 0:
            assert lost == []
        assert "ids" not in {row.promise for row in lost}


@on_podman
async def test_nothing_outside_of_the_disk_can_be_written(podman: MakeSandbox) -> None:
    places = "/dev/x /sys/fs/cgroup/x /proc/x /sys/x"
    async with opened(podman) as box:
        said = await box.exec(f"for p in {places}; do (: > $p) 2>/dev/null && echo $p; done; true")
    assert said.stdout == ""


@on_podman
async def test_mounts_are_shown_as_the_policy_says(podman: MakeSandbox, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    mounts = (
        Mount(str(tmp_path / "a"), "/data/a"),
        Mount(str(tmp_path / "b"), "/usr/share/b", writable=True),
    )
    async with opened(podman, replace(small_policy(), mounts=mounts)) as box:
        read = await box.exec("cat /data/a/file /usr/share/b/file; ls /usr/share | wc -l")
        assert read.stdout.startswith("ab")
        assert int(read.stdout[2:]) > 5
        refused = await box.exec("echo x > /data/a/file")
        assert "Read-only file system" in refused.stderr
        assert (await box.exec("echo new > /usr/share/b/file")).exit_code == 0
    assert (tmp_path / "b" / "file").read_text() == "new\n"


@on_podman
async def test_where_no_walls_can_be_built_a_plain_container_says_so(
    podman_service: PodmanService,
    podman_image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EngineHost, "seccomp", lambda self: None)
    monkeypatch.setattr("sandlot.sandbox.engine_host.FormStore.get", lambda *_: None)
    monkeypatch.setattr("sandlot.sandbox.engine_host.FormStore.put", lambda *_: None)
    make = podman_maker(podman_service, tmp_path, podman_image)
    async with opened(make) as box:
        held = {row.promise: row.holds for row in box.enforcement}
        assert not held["disk"]
        assert held["system calls"]
        filtered = await box.exec("grep Seccomp: /proc/self/status; unshare -U true; echo $?")
        assert filtered.stdout == "Seccomp:\t2\n1\n"
    with pytest.raises(PolicyNotEnforceable, match="limit on disk"):
        async with opened(make, replace(small_policy(), asked=frozenset({"disk_bytes"}))):
            pass


@on_podman
async def test_the_proxy_is_reached_with_the_token_alone(podman: MakeSandbox) -> None:
    network = Network.parse("allow:allowed.example")
    ask = (
        "import socket; s = socket.create_connection(('127.0.0.1', 3128)); "
        "s.sendall(b'GET http://allowed.example/ HTTP/1.1\\r\\nHost: allowed.example\\r\\n\\r\\n');"
        "print(s.recv(12).decode())"
    )
    open_it = (
        "import urllib.request as u, urllib.error as e\n"
        "try: u.urlopen('http://denied.example/', timeout=10)\n"
        "except e.HTTPError as x: print(x.code)\n"
    )
    async with opened(podman, replace(small_policy(), network=network)) as box:
        assert (await box.exec(f'python3 -c "{ask}"')).stdout == "HTTP/1.1 407\n"
        assert (await box.exec(f'python3 -c "{open_it}"')).stdout == "403\n"
        hosts = [record.host for record in box.egress()]
    assert "denied.example" in hosts


# --- images ---------------------------------------------------------------------------------------


async def _opened_image(service: PodmanService, state: Path, image: str) -> Sandbox:
    return await podman_maker(service, state, image)(small_policy())  # type: ignore[misc]


@on_podman
async def test_the_host_s_own_files_are_no_image_of_an_engine(
    podman_service: PodmanService, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="for bubblewrap alone"):
        await _opened_image(podman_service, tmp_path, "host")


@on_podman
async def test_an_image_that_is_nowhere_is_named(
    podman_service: PodmanService, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=r"127\.0\.0\.1:9/no/such.*could not be pulled"):
        await _opened_image(podman_service, tmp_path, "127.0.0.1:9/no/such:image")


@on_podman
async def test_an_image_without_python_is_refused_before_the_rollout(
    podman_service: PodmanService, tmp_path: Path
) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("nothing"))
    (tmp_path / "bare.tar").write_bytes(archive.getvalue())
    name = "localhost/bare:test"
    podman_service.run("import", str(tmp_path / "bare.tar"), name)
    try:
        with pytest.raises(ImageError, match=r"has no python3.*apt-get install python3"):
            await _opened_image(podman_service, tmp_path, name)
    finally:
        podman_service.run("rmi", "--force", name)
    assert podman_service.containers() == []


@on_podman
async def test_an_image_of_the_engine_is_used_by_its_reference(
    podman: MakeSandbox, podman_service: PodmanService, tmp_path: Path
) -> None:
    ids = podman_service.run("images", "--quiet", "--no-trunc").split()
    box = await _opened_image(podman_service, tmp_path, ids[0].removeprefix("sha256:"))
    async with box:
        assert (await box.exec("echo hi")).stdout == "hi\n"


@on_podman
async def test_an_image_s_entry_point_is_not_run_and_its_variables_are_kept(
    podman: MakeSandbox, podman_service: PodmanService, tmp_path: Path
) -> None:
    image = podman_service.run("images", "--quiet", "--no-trunc").split()[0]
    made = podman_service.run("create", image, "true").strip()
    settings = ('ENTRYPOINT ["/bin/false"]', 'CMD ["x"]', "ENV GREETING=hi", "ENV PATH=/own:/bin")
    changes = [word for setting in settings for word in ("--change", setting)]
    name = "localhost/with-entry-point:test"
    podman_service.run("commit", *changes, made, name)
    podman_service.run("rm", made)
    try:
        async with await _opened_image(podman_service, tmp_path, name) as box:
            assert (await box.exec("echo $GREETING $PATH")).stdout == "hi /own:/bin\n"
    finally:
        podman_service.run("rmi", "--force", name)


@on_podman
async def test_a_restored_container_goes_on_with_the_wall_time_of_the_old_one(
    podman: MakeSandbox, tmp_path: Path
) -> None:
    async with opened(podman, small_policy(wall_s=10)) as box:
        await box.exec("sleep 4", 10)
        await box.snapshot(tmp_path / "state")
        await box.restore(tmp_path / "state")
        restored = time.monotonic()
        assert (await _death(box.exec("sleep 30", 30))).cause is DeathCause.TIME_LIMIT
        assert time.monotonic() - restored < 10


# --- death ----------------------------------------------------------------------------------------


async def _death(call: Awaitable[object]) -> SandboxDied:
    with pytest.raises(SandboxDied) as caught:
        await asyncio.wait_for(call, 10)
    return caught.value


@on_podman
async def test_a_container_killed_from_outside_ends_the_running_call_at_once(
    podman: MakeSandbox, podman_service: PodmanService
) -> None:
    async with opened(podman) as box:
        running = asyncio.ensure_future(_death(box.exec("sleep 60", 60)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(podman_service.run, "kill", *podman_service.containers())
        assert (await running).cause is DeathCause.KILLED
        assert (await _death(box.read_file("x"))).cause is DeathCause.KILLED


@on_podman
async def test_an_engine_that_dies_is_told_from_other_deaths(
    podman: MakeSandbox, podman_service: PodmanService
) -> None:
    async with opened(podman) as box:
        running = asyncio.ensure_future(_death(box.exec("sleep 60", 60)))
        await asyncio.sleep(0.3)
        podman_service.process.kill()
        podman_service.process.wait()
        try:
            assert (await running).cause is DeathCause.ENGINE_LOST
            assert (await _death(box.exec("true"))).cause is DeathCause.ENGINE_LOST
            started = time.monotonic()
            await box.close()
            assert time.monotonic() - started < 5
        finally:
            podman_service.restart()
    await _until_none_is_left(podman_service)


@on_podman
async def test_close_ends_a_container_within_its_deadline(podman: MakeSandbox) -> None:
    async with opened(podman) as box:
        await box.exec("trap '' TERM INT HUP; sleep 100 & ")
        started = time.monotonic()
        await box.close()
        assert time.monotonic() - started < 10  # 0.3 s on a machine of one's own: see `make bench`


# --- leavings -------------------------------------------------------------------------------------

_HARNESS = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from sandlot.sandbox.contract import small_policy
from sandlot.sandbox.registry import open_sandbox

async def main():
    async def one():
        box = await open_sandbox(
            "podman", policy=small_policy(), image="base", cache=Path(sys.argv[3]),
            state=Path(sys.argv[2]), environ=dict(os.environ), progress=lambda _: None,
            engine=sys.argv[1],
        )
        await box.start()
        return box
    boxes = await asyncio.gather(*(one() for _ in range(3)))
    print("ready", flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


async def _until_none_is_left(service: PodmanService) -> None:
    for _ in range(100):
        if not await asyncio.to_thread(service.containers):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"containers are left: {service.containers()}")


@on_podman
async def test_a_killed_harness_leaves_no_container_and_its_lease_is_reaped(
    podman: MakeSandbox, podman_service: PodmanService, tmp_path: Path
) -> None:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    harness = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _HARNESS, podman_service.address, str(tmp_path)),
        *(str(image_cache()), str(Path(__file__).parents[2] / "src")),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert harness.stdout is not None
        assert await asyncio.wait_for(harness.stdout.readline(), 90) == b"ready\n"
        assert len(await asyncio.to_thread(podman_service.containers)) == 3
        folder = tmp_path / "run" / "sandlot"
        assert [(lease.backend, lease.sandboxes) for lease in list_leases(folder)] == [
            ("podman", 3)
        ]
    finally:
        harness.send_signal(signal.SIGKILL)
        await harness.wait()
    await _until_none_is_left(podman_service)
    assert len(await reap(tmp_path, environ)) == 1
    assert list_leases(folder) == []


@on_podman
async def test_reaping_goes_by_lease_and_owner_alone(
    podman: MakeSandbox, podman_service: PodmanService, tmp_path: Path
) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    client = EngineClient(parse_address(podman_service.address))
    image = podman_service.run("images", "--quiet", "--no-trunc").split()[0]
    (tmp_path / "sandlot").mkdir(mode=0o700)
    made = []
    for owner in (owner_of(tmp_path / "sandlot"), "somebody else"):
        labels = {OWNER_LABEL: owner, LEASE_LABEL: "0123456789ab"}
        limits = {"Ulimits": [{"Name": n, "Soft": 99, "Hard": 99} for n in ("nofile", "nproc")]}
        body = {"Image": image, "Cmd": ["true"], "Labels": labels, "HostConfig": limits}
        made.append((await client.call("create", "POST", "/containers/create", body=body))["Id"])
    await client.close()
    box = await open_sandbox(
        "podman",
        policy=small_policy(),
        image="base",
        cache=image_cache(),
        state=tmp_path,
        environ=environ,
        progress=lambda _: None,
        engine=podman_service.address,
    )
    await box.close()
    left = podman_service.containers()
    podman_service.run("rm", "--force", *left)
    assert left == [made[1]]


def test_two_folders_of_leases_never_look_like_one_owner(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert owner_of(one) == owner_of(one) != owner_of(two)
    assert [path.name for path in one.iterdir()] == ["owner"]


@on_podman
async def test_a_lease_whose_engine_is_gone_stays_for_later(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    folder = tmp_path / "sandlot" / "0123456789ab"
    folder.mkdir(parents=True, mode=0o700)
    record = {"pid": 1, "backend": "podman", "cgroups": [], "engine": f"unix://{tmp_path}/none"}
    (folder / "lease.json").write_text(json.dumps(record))
    said = await reap(tmp_path, environ)
    assert "its engine cannot be asked" in said[0]
    assert folder.exists()


async def test_no_engine_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match="start the engine"):
        await open_engine_sandbox(
            "podman",
            policy=small_policy(),
            image="base",
            cache=tmp_path,
            state=tmp_path,
            environ={"XDG_RUNTIME_DIR": str(tmp_path)},
            progress=lambda _: None,
            engine=f"unix://{tmp_path}/none.sock",
        )
