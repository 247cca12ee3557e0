"""Which backend `auto` takes, with doubles in the place of what this machine has."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sandlot.core.errors import ConfigError, DeathCause, SandboxDied, SandboxUnavailable
from sandlot.sandbox import choose
from sandlot.sandbox.choose import Choice, choose_backend
from sandlot.settings import Settings, resolve

Start = Callable[[], Awaitable[None]]


class Machine:
    """What works here, and how often it was tried."""

    def __init__(self, *, bubblewrap: Exception | None = None, engines: str = "") -> None:
        self.bubblewrap = bubblewrap
        self.engines = engines.split()
        self.tried: list[str] = []

    async def try_bubblewrap(self) -> None:
        self.tried.append("bubblewrap")
        if self.bubblewrap is not None:
            raise self.bubblewrap

    async def try_engine(self, name: str) -> str:
        self.tried.append(name)
        if name not in self.engines:
            raise SandboxUnavailable(f"no socket of {name} was found")
        return f"unix:///run/{name}.sock"

    async def choose(self, state: Path, key: str = "this boot") -> Choice:
        return await choose_backend(
            state, try_bubblewrap=self.try_bubblewrap, try_engine=self.try_engine, key=key
        )


DENIED = SandboxUnavailable("unshare user namespace: Operation not permitted")


async def test_bubblewrap_is_taken_where_it_starts(tmp_path: Path) -> None:
    machine = Machine(engines="podman docker")
    assert (await machine.choose(tmp_path)).backend == "bubblewrap"
    assert machine.tried == ["bubblewrap"]


async def test_a_success_is_remembered_and_costs_less_than_a_millisecond(tmp_path: Path) -> None:
    await Machine().choose(tmp_path)
    machine = Machine(bubblewrap=DENIED)
    took = []
    for _ in range(21):
        began = time.perf_counter()
        assert (await machine.choose(tmp_path)).backend == "bubblewrap"
        took.append(time.perf_counter() - began)
    assert machine.tried == []
    assert statistics.median(took) < 0.001


async def test_another_boot_kernel_user_or_program_is_tried_anew(tmp_path: Path) -> None:
    await Machine().choose(tmp_path, "this boot")
    machine = Machine()
    await machine.choose(tmp_path, "the next boot")
    assert machine.tried == ["bubblewrap"]


@pytest.mark.parametrize(
    "failure", [DENIED, SandboxDied(DeathCause.START_FAILED), OSError(28, "No space left")]
)
async def test_a_failure_is_never_remembered(tmp_path: Path, failure: Exception) -> None:
    machine = Machine(bubblewrap=failure, engines="docker")
    assert (await machine.choose(tmp_path)).backend == "docker"
    machine.bubblewrap = None
    assert (await machine.choose(tmp_path)).backend == "bubblewrap"


async def test_the_first_engine_that_answers_is_next_and_the_reason_is_told(
    tmp_path: Path,
) -> None:
    choice = await Machine(bubblewrap=DENIED, engines="docker podman").choose(tmp_path)
    assert (choice.backend, choice.engine) == ("podman", "unix:///run/podman.sock")
    assert "Operation not permitted" in choice.why


async def test_where_nothing_works_each_refusal_and_remedy_is_told(tmp_path: Path) -> None:
    machine = Machine(bubblewrap=DENIED)
    with pytest.raises(SandboxUnavailable) as refusal:
        await machine.choose(tmp_path)
    text = str(refusal.value)
    assert "bubblewrap: unshare user namespace: Operation not permitted" in text
    assert "no socket of podman" in text
    assert "no socket of docker" in text
    assert "apparmor_restrict_unprivileged_userns" in text
    assert "podman system service" in text
    assert "--backend restricted" in text
    assert "best effort" in text
    assert machine.tried == ["bubblewrap", "podman", "docker"]


async def test_a_state_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    state = tmp_path / "file"
    state.write_text("not a folder")
    assert (await Machine().choose(state)).backend == "bubblewrap"


def test_the_key_is_the_same_for_a_second_process_and_names_the_user() -> None:
    key = choose.machine_key({"PATH": "/usr/bin"})
    assert key == choose.machine_key({"PATH": "/usr/bin"})
    assert len(json.loads(key)) >= 4


async def _answer_as(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
    body = json.dumps({"Components": [{"Name": name}]}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n")
    writer.write(body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(("name", "backend"), [("Podman Engine", "podman"), ("Engine", "docker")])
async def test_what_answers_at_a_named_address_is_asked_who_it_is(
    tmp_path: Path, name: str, backend: str
) -> None:
    socket = tmp_path / "engine.sock"
    server = await asyncio.start_unix_server(lambda r, w: _answer_as(name, r, w), socket)
    async with server:
        address = f"unix://{socket}"
        for asked in ("podman", "docker"):
            if asked == backend:
                assert await choose.reach_engine(asked, address, {}) == address
            else:
                with pytest.raises(SandboxUnavailable, match=f"answers {backend}"):
                    await choose.reach_engine(asked, address, {})


async def test_a_socket_that_nobody_listens_on_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable):
        await choose.reach_engine("podman", f"unix://{tmp_path}/absent.sock", {})
    with pytest.raises(ConfigError):
        await choose.reach_engine("podman", "smoke://signal", {})


# --- what the rest of the package does with it ---------------------------------------------------


async def test_the_settings_follow_what_was_chosen_and_it_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandlot import api

    async def chosen(*_: object) -> Choice:
        return Choice("podman", "unix:///here", "bubblewrap does not start here: denied")

    monkeypatch.setattr(choose, "choose_here", chosen)
    noted: list[str] = []
    settings = _settings(tmp_path)
    assert settings.backend == "auto"
    settled, why = await api.settle_backend(settings, {}, noted.append)
    assert (settled.backend, settled.engine) == ("podman", "unix:///here")
    assert why in noted[0]


async def test_a_backend_that_was_asked_for_is_not_chosen_again(tmp_path: Path) -> None:
    from sandlot import api

    settled, why = await api.settle_backend(_settings(tmp_path, backend="fake"), {}, print)
    assert (settled.backend, why) == ("fake", "asked for")
    settled, _ = await api.settle_backend(_settings(tmp_path, backend="restricted"), {}, print)
    assert settled.image == "host"


def _settings(home: Path, **arguments: str) -> Settings:
    return resolve(arguments, environ={"HOME": str(home)}, directory=home)
