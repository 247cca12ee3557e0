"""A private Podman for tests: its own service, storage and configuration in a temporary folder.

Nothing of the user's own Podman is touched, and all of it is gone afterwards. Works as root and as
an ordinary user with subordinate ids.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.backends import REQUIRED, image_cache
from sandlot.core.errors import ImageError
from sandlot.sandbox import engine
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, opened
from sandlot.sandbox.engine_api import EngineClient
from sandlot.sandbox.engine_container import EngineFacts
from sandlot.sandbox.engine_host import ask_facts
from sandlot.sandbox.images import ImageStore
from sandlot.sandbox.policy import Policy
from sandlot.sandbox.registry import open_sandbox

# Podman's own defaults may be more than the kernel lets this machine give.
_SETTINGS = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc={processes}:{processes}"]
log_driver = "k8s-file"
[engine]
runtime = "{runtime}"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_START_S = 30.0
_PREFIX = "sandlot-podman-"


@dataclass
class PodmanService:
    """A running service; `address` is what `open_sandbox` takes as its engine."""

    folder: Path
    driver: str
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"unix://{self.folder}/podman.sock"

    def run(self, *words: str) -> str:
        """Podman's own command on the same storage."""
        done = subprocess.run(
            _command(self.folder, self.driver, *words),
            env=_environment(self.folder),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    def containers(self) -> list[str]:
        return self.run("ps", "--all", "--quiet", "--no-trunc").split()

    def restart(self) -> None:
        """A new service on the same storage, after the old one was killed."""
        self.process = _serve(self.folder, self.driver)


@contextmanager
def private_podman() -> Iterator[PodmanService]:
    _clear_dead()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o711)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    runtime = "crun" if shutil.which("crun") else "runc"
    settings = _SETTINGS.format(runtime=runtime, processes=_process_limit())
    (folder / "containers.conf").write_text(settings)
    (folder / "run").mkdir(mode=0o700)
    driver = _usable_driver(folder)
    service = PodmanService(folder, driver, _serve(folder, driver))
    try:
        yield service
    finally:
        _remove(service)
        os.close(lock)


def podman_maker(service: PodmanService, state: Path, image: str) -> MakeSandbox:
    """A factory of sandboxes in containers of that service."""
    cache = image_cache()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(service.folder / "run")}

    async def make(policy: Policy) -> Sandbox:
        return await open_sandbox(
            "podman",
            policy=policy,
            image=image,
            cache=cache,
            state=state,
            environ=environ,
            progress=lambda _: None,
            engine=service.address,
        )

    return make


@pytest.fixture(scope="session")
def podman_service() -> Iterator[PodmanService]:
    if shutil.which("podman") is None and not REQUIRED:
        pytest.skip("podman is not installed")
    with private_podman() as service, asked_once(service):
        yield service


@contextmanager
def asked_once(service: PodmanService) -> Iterator[None]:
    """What this service says of itself, kept for all tests; any other engine is asked as ever.

    An event loop asks once, and each test has a loop of its own. Before it answers, Podman asks the
    package manager whose its helpers are, which takes about as long as a container's whole life.
    """
    known: dict[str, tuple[EngineFacts, str]] = {}

    async def ask(client: EngineClient, backend: str) -> tuple[EngineFacts, str]:
        if client.address.text != service.address:
            return await ask_facts(client, backend)
        if backend not in known:
            known[backend] = await ask_facts(client, backend)
        return known[backend]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "ask_facts", ask)
        yield


@pytest.fixture(scope="session")
def podman_image() -> str:
    """The image of the tests: `base`, which somebody has built before."""
    try:
        ImageStore(image_cache()).resolve("base")
    except ImageError as exc:
        if REQUIRED:
            raise
        pytest.skip(f"no image for containers: {exc}")
    return "base"


@pytest.fixture(scope="session")
def podman(
    podman_service: PodmanService, podman_image: str, tmp_path_factory: pytest.TempPathFactory
) -> MakeSandbox:
    """A factory of containers, proved once by a start."""
    make = podman_maker(podman_service, tmp_path_factory.mktemp("state"), podman_image)

    async def prove() -> None:
        async with opened(make):
            pass

    asyncio.run(prove())
    return make


def _clear_dead() -> None:
    """What a test run left that was killed: its lock is free. Its containers ended with it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(OSError, ValueError):
                os.kill(int((folder / "service.pid").read_text()), signal.SIGTERM)
            _end_pause_process(folder)
            _delete(folder, folder)


def _process_limit() -> int:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    return 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)


def _command(folder: Path, driver: str, *words: str) -> list[str]:
    storage = ["--root", f"{folder}/storage", "--runroot", f"{folder}/run/storage"]
    return ["podman", *storage, "--storage-driver", driver, *words]


def _environment(folder: Path) -> dict[str, str]:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("CONTAINER")
    }
    return environ | {
        "CONTAINERS_CONF": f"{folder}/containers.conf",
        "XDG_RUNTIME_DIR": f"{folder}/run",
        "TMPDIR": str(folder),
    }


def _usable_driver(folder: Path) -> str:
    """overlay, or vfs where the folder lies on a file system that takes no overlay."""
    words = _command(folder, "overlay", "info")
    tried = subprocess.run(words, env=_environment(folder), capture_output=True, timeout=60)
    if tried.returncode == 0:
        return "overlay"
    _delete(folder, folder / "storage")
    return "vfs"


def _serve(folder: Path, driver: str) -> subprocess.Popen[bytes]:
    place = folder / "podman.sock"
    place.unlink(missing_ok=True)
    words = _command(folder, driver, "system", "service", "--time=0", f"unix://{place}")
    with (folder / "service.log").open("ab") as log:
        process = subprocess.Popen(
            words,
            cwd=folder,  # a container that ran out of memory leaves a file `oom` where it was begun
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + _START_S
    while not _answers(place):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            said = (folder / "service.log").read_text()[-1000:]
            raise RuntimeError(f"the private podman service did not start: {said}")
        time.sleep(0.05)
    return process


def _answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(place))
        except OSError:
            return False
    return True


def _remove(service: PodmanService) -> None:
    with suppress(OSError):
        service.process.send_signal(signal.SIGCONT)
    service.process.terminate()
    try:
        service.process.wait(10)
    except subprocess.TimeoutExpired:
        service.process.kill()
        service.process.wait()
    service.run("rm", "--all", "--force", "--time", "0")
    _wait_for_stragglers(service.folder)
    _end_pause_process(service.folder)
    _delete(service.folder, service.folder)


def _wait_for_stragglers(folder: Path) -> None:
    """Podman clears up after each container in a process of its own, which makes folders anew."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until and any(_commands_with(str(folder))):
        time.sleep(0.05)


def _commands_with(word: str) -> Iterator[Path]:
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in place.read_bytes():
                yield place


def _end_pause_process(folder: Path) -> None:
    """A rootless Podman keeps a process that holds its user namespace."""
    for record in folder.glob("run/**/pause.pid"):
        with suppress(OSError, ValueError):
            os.kill(int(record.read_text()), signal.SIGKILL)


def _delete(folder: Path, target: Path) -> None:
    for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        place = mount.split()[1]
        if place.startswith(f"{folder}/") and os.getuid() == 0:
            subprocess.run(["umount", "--lazy", place], capture_output=True)
    if os.getuid() != 0 and target.exists():
        words = ["podman", "unshare", "rm", "-rf", str(folder / "storage")]
        subprocess.run(words, env=_environment(folder), capture_output=True, timeout=60)
        _end_pause_process(folder)
    shutil.rmtree(target, ignore_errors=True)
