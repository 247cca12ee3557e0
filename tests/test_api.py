"""The library's face, offline: scripted models in the fake sandbox."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path

import pytest

import sandlot
from sandlot.api import refused_hosts
from sandlot.core.errors import ConfigError, InputError
from sandlot.core.events import Event, ModelCalled, RolloutStopped
from sandlot.core.store import RunDirectory
from sandlot.core.types import EgressRecord, StopReason, Task, Trajectory
from sandlot.models.adapters import Pin, file_digest
from taught import taught_files, taught_spec


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the machine that runs the tests must not reach them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SANDLOT_BACKEND", "fake")
    for name in ("XDG_CONFIG_HOME", "SANDLOT_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    arguments = {"command": "create", "path": "/testbed/output/answer.txt", "file_text": "4"}
    replies = [
        {
            "tool_calls": [{"name": "str_replace_editor", "arguments": arguments}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 7},
        },
        {"tool_calls": [{"name": "submit", "arguments": {}}], "usage": {"prompt_tokens": 120}},
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    return "scripted:s.jsonl"


def test_run_gives_the_answer_the_files_the_usage_and_the_directory(
    tmp_path: Path, model: str
) -> None:
    result = sandlot.run("2 + 2?", model, output=tmp_path / "out")
    assert result.answer == "4"
    assert result.stop_reason is StopReason.SUBMITTED
    assert [file.read_text() for file in result.files] == ["4"]
    assert (tmp_path / "out/answer.txt").read_text() == "4"
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (220, 7)
    assert result.cost_usd is None
    assert RunDirectory.open(result.directory).trajectory().answer == "4"


async def test_run_inside_a_loop_points_at_arun(model: str) -> None:
    with pytest.raises(RuntimeError, match=r"await sandlot\.arun"):
        sandlot.run("2 + 2?", model)


async def test_arun_tells_each_event_as_it_happens(model: str) -> None:
    events: list[Event] = []
    result = await sandlot.arun("2 + 2?", model, on_event=events.append)
    assert result.answer == "4"
    assert isinstance(events[-1], RolloutStopped)


async def test_a_cancelled_arun_keeps_its_record(tmp_path: Path) -> None:
    (tmp_path / "slow.jsonl").write_text('{"text": "late", "delay_s": 60}\n')
    asked = asyncio.Event()

    def listen(event: Event) -> None:
        if isinstance(event, ModelCalled):
            asked.set()

    task = asyncio.create_task(sandlot.arun("x", "scripted:slow.jsonl", on_event=listen))
    await asyncio.wait_for(asked.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (path,) = (tmp_path / "runs").iterdir()
    assert RunDirectory.open(path).trajectory().stop_reason is StopReason.CANCELLED


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"model": None}, ConfigError),
        ({"network": "perhaps"}, ConfigError),
        ({"memmory": "2GiB"}, ConfigError),
        ({"input": "missing"}, InputError),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(
    tmp_path: Path, model: str, arguments: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        sandlot.run("x", **{"model": model, **arguments})  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


async def test_sandbox_start_gives_a_started_computer() -> None:
    async with sandlot.Sandbox.start(network="none", memory="1GiB") as box:
        await box.write_file("note.txt", b"hello")
        assert await box.read_file("/testbed/note.txt") == b"hello"
        assert box.policy.limits.memory_bytes == 2**30
        assert "memory_bytes" in box.policy.asked


async def test_mounts_are_read_only_unless_said_otherwise(tmp_path: Path) -> None:
    async with sandlot.Sandbox.start(mounts={str(tmp_path): "/mnt/data"}) as box:
        (mount,) = box.policy.mounts
        assert (mount.source, mount.target, mount.writable) == (str(tmp_path), "/mnt/data", False)


def test_each_refused_host_comes_once_with_the_flag_that_would_allow_it() -> None:
    verdicts = [
        ("a.example", "not allowed"),
        ("a.example", "not allowed"),
        ("b.example", "private address"),
        ("c.example", "allowed"),
        ("d.example", "does not resolve"),
    ]
    egress = tuple(EgressRecord(host, 443, verdict) for host, verdict in verdicts)
    trajectory = Trajectory("r", Task("t", "p"), "sandbox", "m", (), (), None, egress=egress)
    flags = {r.host: r.flag for r in refused_hosts(trajectory, "packages", ("git.example",))}
    assert flags == {
        "a.example": "--network allow:packages,a.example",
        "b.example": "--private-hosts git.example,b.example",
        "d.example": None,
    }
    flags = {r.host: r.flag for r in refused_hosts(trajectory, "allow:z.example")}
    assert flags["a.example"] == "--network allow:z.example,a.example"


def test_run_and_arun_take_the_same_arguments() -> None:
    assert inspect.signature(sandlot.run).parameters == inspect.signature(sandlot.arun).parameters


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"profile": "general"}, r"profile 'taught' and knows it alone, not 'general'"),
        ({"prompt_file": "own.toml"}, r"not 'own\.toml'"),
        ({"tool_calls": "text"}, r"whose tool calls are 'fenced', not 'text'"),
    ],
)
def test_a_taught_model_is_refused_with_other_prompts_before_anything_starts(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    (tmp_path / "own.toml").write_text("instance_prompt = 'Do {problem_statement}'\n")
    spec = taught_spec(tmp_path / "t")
    with pytest.raises(ConfigError, match=said) as caught:
        sandlot.run("x", spec, **settings)  # type: ignore[arg-type]
    assert f"-m local:{tmp_path}/t/w.gguf." in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_profile_that_changed_since_the_training_is_refused(tmp_path: Path) -> None:
    spec = taught_spec(tmp_path / "t", profile=Pin("taught", "0" * 64))
    with pytest.raises(ConfigError, match=r"as it was \(digest 0{12}…\); it has changed since"):
        sandlot.run("x", spec, profile="taught")
    assert not (tmp_path / "runs").exists()


def test_a_taught_model_runs_with_its_own_profile_and_says_so(tmp_path: Path) -> None:
    """The stand-in's engine cannot load it; all that is before that is the real thing."""
    spec = taught_spec(tmp_path / "t")
    result = sandlot.run("x", spec)
    assert result.stop_reason is StopReason.MODEL_ERROR
    manifest = RunDirectory.open(result.directory).manifest
    assert manifest["profile"]["name"] == "taught"
    assert manifest["adapter"] == file_digest(tmp_path / "t/adapter.gguf").sha256
    assert manifest["settings"]["tool_calls"] == "fenced"


def test_untaught_local_weights_keep_the_compact_profile(tmp_path: Path) -> None:
    weights, _ = taught_files(tmp_path / "t")
    result = sandlot.run("x", f"local:{weights}")
    manifest = RunDirectory.open(result.directory).manifest
    assert manifest["profile"]["name"] == "compact"
    assert "adapter" not in manifest
