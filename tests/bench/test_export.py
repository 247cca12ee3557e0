"""Recorded runs in the forms of others: ATIF, chat messages, result lines, token records."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sandlot.agent.rollout import run_rollout
from sandlot.bench.atif import to_atif
from sandlot.bench.export import FORMATS, _segments, export, read_recorded
from sandlot.bench.meters import measure
from sandlot.bench.records import Episode, EpisodeRecord, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.cli.main import app
from sandlot.core.errors import ConfigError, InputError, RecordError
from sandlot.core.events import (
    MessageAdded,
    ReplyReceived,
    RolloutContinued,
    RolloutStarted,
    ToolFinished,
    encode_event,
)
from sandlot.core.redact import Redactor
from sandlot.core.store import Recorder, RunDirectory
from sandlot.core.types import (
    FilePart,
    ImagePart,
    Message,
    Role,
    Score,
    Task,
    TextPart,
    TokenRecord,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
    Usage,
)
from sandlot.models.base import Completion
from sandlot.models.scripted import ScriptedModel, bash, call, calls, say, submit
from sandlot.sandbox.fake import FakeSandbox
from sandlot.tools import default_tools

SCHEMA = Path(__file__).parent / "atif-v1.7.schema.json"
NOW = datetime(2026, 11, 22, 14, 30)
PICTURE = ImagePart(b"\x89PNG\r\n", "image/png")


def check_atif(document: dict[str, Any]) -> None:
    """Against the schema, and the two rules that a schema cannot say."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(document, json.loads(SCHEMA.read_text("utf-8")))
    for number, step in enumerate(document["steps"], 1):
        assert step["step_id"] == number
        made = {item["tool_call_id"] for item in step.get("tool_calls", ())}
        for result in step.get("observation", {}).get("results", ()):
            assert result.get("source_call_id") in {None, *made}


async def record(
    directory: RunDirectory | Path, model: ScriptedModel, **options: Any
) -> Trajectory:
    path = directory.trajectory_path if isinstance(directory, RunDirectory) else directory
    times = iter(range(1_800_000_000, 1_800_000_999))
    with Recorder(path, redactor=Redactor(), clock=lambda: float(next(times))) as recorder:
        task = options.pop("task", Task("t1", "How many?", target="34", domain="math"))
        return await run_rollout(task, model=model, sink=recorder, rollout_id="r1", **options)


def with_usage(message: Message, *counts: int, **fields: Any) -> Completion:
    return Completion(message, Usage(*counts), **fields)


def script() -> ScriptedModel:
    return ScriptedModel(
        with_usage(calls(bash("echo 1"), bash("echo 2"), text="Let me see."), 100, 10, 40),
        with_usage(call("execute_bash", "{broken"), 150, 5),
        say("I am thinking."),
        with_usage(submit(), 200, 3),
    )


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    directory = RunDirectory.create(tmp_path, "a run", NOW).with_manifest({"model": "scripted"})
    await record(directory, script(), sandbox=FakeSandbox({"echo 1": "1\n", "echo 2": "2\n"}))
    return directory.path


async def bench_of(parent: Path, *rollouts: tuple[Episode, float | None, ScriptedModel]) -> Path:
    bench = BenchDirectory.create(parent, "b", NOW).writing(Redactor())
    bench.write_manifest({"model": "scripted"})
    for episode, value, model in rollouts:
        sandbox = FakeSandbox({"echo 1": "1"}) if episode.arm == "sandbox" else None
        trajectory = await record(bench.trajectory_path(episode), model, sandbox=sandbox)
        bench.add_episode(
            EpisodeRecord(
                episode=episode,
                content_key="k",
                attempt=0,
                stop_reason=trajectory.stop_reason,
                stop_detail="",
                answer=trajectory.answer,
                failure=None,
                meters=measure(trajectory),
                marks=("reached a.test",),
            )
        )
        missing = "no judge" if value is None else None
        bench.add_score(ScoreRecord(episode, Score(episode.item, "exact", "1", value, missing)))
    bench.close()
    return bench.path


def tokens(prompt: list[int], reply: list[int], logprob: float | None = -0.5) -> TokenRecord:
    logprobs = None if logprob is None else (logprob,) * len(reply)
    return TokenRecord(tuple(prompt), tuple(reply), logprobs)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


async def test_a_run_becomes_an_atif_document_that_its_schema_takes(
    run: Path, tmp_path: Path
) -> None:
    done = export(run, "atif", tmp_path / "out")
    assert (done.written, done.skipped) == (1, ())
    document = json.loads((tmp_path / "out" / f"{run.name}.json").read_text("utf-8"))
    check_atif(document)
    sources = [step["source"] for step in document["steps"]]
    assert sources[-5:] == ["agent", "agent", "agent", "user", "agent"]
    first = next(step for step in document["steps"] if step["source"] == "agent")
    assert first["message"] == "Let me see."
    assert [item["arguments"] for item in first["tool_calls"]] == [
        {"command": "echo 1"},
        {"command": "echo 2"},
    ]
    seen = [item["content"].split("\n")[0] for item in first["observation"]["results"]]
    assert seen == ["1", "2"]
    assert first["metrics"] == {"prompt_tokens": 100, "completion_tokens": 10, "cached_tokens": 40}
    assert first["timestamp"].startswith("2027-01-15T08:00:")
    assert document["final_metrics"]["total_prompt_tokens"] == 450
    assert document["final_metrics"]["total_steps"] == len(document["steps"])
    assert document["extra"]["stop_reason"] == "submitted"


async def test_no_document_or_message_holds_the_truth(run: Path, tmp_path: Path) -> None:
    document = to_atif(replace(next(read_recorded(run)).trajectory, answer=None))
    assert "34" not in json.dumps(document["extra"])
    done = export(run, "messages", tmp_path / "m.jsonl")
    assert "ground_truth" not in done.path.read_text("utf-8")


def odd_trajectory() -> Trajectory:
    """Pictures, a file, a result without its call, no times and no usage."""
    picture_call = ToolCall("p", "str_replace_editor", '{"command": "view"}')
    reply = Message.assistant("", picture_call, ToolCall("q", "x", "[1]"), reasoning="Hm.")
    seen = Message.tool("p", TextPart("a picture"), PICTURE)
    bmp = Message.tool("q", ImagePart(b"BM", "image/bmp"))
    stray = Message.tool("nowhere", TextPart("lost"))
    asked = Message(Role.USER, (TextPart("Look."), FilePart("/a.txt")))
    result = ToolResult(picture_call, seen, True, 0.1)
    turn = Turn(0, reply, Usage(), "tool_calls", 1.0, 0.0, (result,))
    return Trajectory(
        id="odd",
        task=Task("t", "Look."),
        mode="sandbox",
        model="m",
        messages=(Message.system("Be brief."), asked, reply, seen, bmp, stray),
        turns=(turn,),
        stop_reason=None,
    )


def test_pictures_and_stray_results_have_their_place_in_atif() -> None:
    saved: list[ImagePart] = []

    def save(part: ImagePart) -> str:
        saved.append(part)
        return "images/a.png"

    document = to_atif(odd_trajectory(), save_image=save)
    check_atif(document)
    assert saved == [PICTURE]
    step = document["steps"][2]
    assert step["reasoning_content"] == "Hm."
    assert step["tool_calls"][1]["arguments"] == {"invalid_arguments": "[1]"}
    contents = [item["content"] for item in step["observation"]["results"]]
    assert contents[0][1]["source"] == {"media_type": "image/png", "path": "images/a.png"}
    assert contents[1] == [{"type": "text", "text": "[image/bmp, 2 bytes]"}]
    assert "source_call_id" not in step["observation"]["results"][2]
    assert "metrics" not in step
    assert "timestamp" not in step


def test_the_schema_refuses_what_the_format_forbids() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text("utf-8"))
    document = to_atif(odd_trajectory())
    changes: tuple[dict[str, Any], ...] = (
        {"steps": []},
        {"unknown": 1},
        {"schema_version": "ATIF-v1.6"},
        {"steps": [{"step_id": 1, "source": "user", "message": "a", "metrics": {}}]},
        {"steps": [{"step_id": 1, "source": "robot", "message": "a"}]},
    )
    for change in changes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | change, schema)


def test_pictures_are_written_beside_the_documents_once(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "pictures", NOW).with_manifest({})
    odd = odd_trajectory()
    with Recorder(directory.trajectory_path, redactor=Redactor(), clock=lambda: 0.0) as recorder:
        recorder(RolloutStarted("odd", odd.task, "sandbox", "m"))
        recorder(ReplyReceived(replace(odd.turns[0], tool_results=())))
        recorder(ToolFinished(0, odd.turns[0].tool_results[0]))
    done = export(directory.path, "atif", tmp_path / "out")
    document = json.loads((tmp_path / "out" / f"{directory.path.name}.json").read_text("utf-8"))
    check_atif(document)
    source = document["steps"][0]["observation"]["results"][0]["content"][1]["source"]
    assert (done.path / source["path"]).read_bytes() == PICTURE.data


async def test_messages_are_those_of_the_conversation_with_its_tools(
    run: Path, tmp_path: Path
) -> None:
    export(run, "messages", tmp_path / "m.jsonl")
    (line,) = lines(tmp_path / "m.jsonl")
    trajectory = next(read_recorded(run)).trajectory
    assert [item["role"] for item in line["messages"]] == [
        message.role.value for message in trajectory.messages
    ]
    made = [item for item in line["messages"] if item["role"] == "assistant"]
    assert made[0]["tool_calls"][0]["function"]["arguments"] == '{"command": "echo 1"}'
    answered = {item["tool_call_id"] for item in line["messages"] if item["role"] == "tool"}
    assert answered == {each["id"] for item in made for each in item.get("tool_calls", ())}
    names = [tool["function"]["name"] for tool in line["tools"]]
    assert names == [tool.spec.name for tool in default_tools()]


async def test_results_are_one_line_an_item_with_its_score_and_its_cost(tmp_path: Path) -> None:
    path = await bench_of(
        tmp_path,
        (Episode("ships", "a", "llm", 0), 1.0, ScriptedModel(with_usage(say("34"), 50, 2))),
        (Episode("ships", "b", "llm", 0), None, ScriptedModel(say("35"))),
    )
    export(path, "hub", tmp_path / "h.jsonl")
    first, second = lines(tmp_path / "h.jsonl")
    assert (first["id"], first["domain"], first["ground_truth"]) == ("t1", "math", "34")
    assert (first["prediction"], first["score"], first["scores"]) == ("34", 1.0, {"exact": 1.0})
    assert (first["prompt_tokens"], first["marks"]) == (50, ["reached a.test"])
    assert (second["score"], second["missing"]) == (None, ["no judge"])
    assert second["prompt_tokens"] is None


async def test_only_good_rollouts_are_written_where_a_score_is_asked_for(tmp_path: Path) -> None:
    path = await bench_of(
        tmp_path,
        (Episode("s", "a", "llm", 0), 1.0, ScriptedModel(say("34"))),
        (Episode("s", "a", "llm", 1), 0.0, ScriptedModel(say("35"))),
        (Episode("s", "b", "llm", 0), None, ScriptedModel(say("36"))),
    )
    done = export(path, "messages", tmp_path / "m.jsonl", min_score=0.5)
    assert done.written == 1
    assert done.skipped == (
        "s.a.llm.1: score 0, and 0.5 was asked for",
        "s.b.llm.0: no score, and 0.5 was asked for",
    )
    (line,) = lines(done.path)
    assert line["metadata"]["id"] == "s.a.llm.0"
    assert "tools" not in line


async def test_token_records_become_one_masked_sequence(tmp_path: Path) -> None:
    model = ScriptedModel(
        with_usage(bash("echo 1"), tokens=tokens([1, 2, 3], [4, 5])),
        with_usage(submit(), tokens=tokens([1, 2, 3, 4, 5, 6, 7], [8])),
    )
    path = await bench_of(tmp_path, (Episode("s", "a", "sandbox", 2), 0.5, model))
    export(path, "training", tmp_path / "t.jsonl")
    (line,) = lines(tmp_path / "t.jsonl")
    assert (line["group"], line["reward"]) == ("s.a.sandbox", 0.5)
    (segment,) = line["segments"]
    assert segment["token_ids"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert segment["loss_mask"] == [0, 0, 0, 1, 1, 0, 0, 1]
    assert segment["logprobs"] == [0, 0, 0, -0.5, -0.5, 0, 0, -0.5]


async def test_a_rewritten_history_begins_a_new_segment(tmp_path: Path) -> None:
    turns = tuple(
        Turn(n, say("x"), Usage(), "stop", 0.0, 0.0, tokens=each)
        for n, each in enumerate((tokens([1, 2], [3], None), tokens([1, 9], [4])))
    )
    first, second = _segments(replace(odd_trajectory(), turns=turns))
    assert first == {"token_ids": [1, 2, 3], "loss_mask": [0, 0, 1], "logprobs": None}
    assert second == {"token_ids": [1, 9, 4], "loss_mask": [0, 0, 1], "logprobs": [0.0, 0.0, -0.5]}


async def test_training_without_token_ids_or_a_score_is_refused_with_the_reason(
    run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"turn 0 has no token ids.*return_token_ids"):
        export(run, "training", tmp_path / "t.jsonl")
    assert not list(tmp_path.glob("*t.jsonl*"))
    directory = RunDirectory.create(tmp_path, "tokens", NOW).with_manifest({})
    await record(directory, ScriptedModel(with_usage(say("x"), tokens=tokens([1], [2]))))
    with pytest.raises(ConfigError, match="no score, and a reward is needed"):
        export(directory.path, "training", tmp_path / "t.jsonl")


async def test_messages_of_before_a_new_start_are_left_out_with_their_times(run: Path) -> None:
    file = run / "trajectory.jsonl"
    with file.open("a") as out:
        for event, at in (
            (RolloutContinued("restart"), 1_900_000_000.0),
            (MessageAdded(Message.user("again")), 1_900_000_001.0),
        ):
            out.write(json.dumps(encode_event(event, at)) + "\n")
    (recorded,) = read_recorded(run)
    assert [message.text for message in recorded.trajectory.messages] == ["again"]
    assert recorded.times == (1_900_000_001.0,)


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'atiff' is not known.*Did you mean 'atif'"):
        export(tmp_path, "atiff", tmp_path / "x")
    with pytest.raises(RecordError, match="not a run directory"):
        export(tmp_path, "atif", tmp_path / "x")
    empty = BenchDirectory.create(tmp_path, "e", NOW)
    empty.write_manifest({})
    for form in FORMATS:
        with pytest.raises(ConfigError, match="holds no rollouts"):
            export(empty.path, form, tmp_path / "x")


async def test_an_output_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/m\.jsonl cannot be written"):
        export(run, "messages", tmp_path / "file" / "m.jsonl")


async def test_the_command_writes_beside_the_run_and_prints_the_path(run: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), "--format", "messages"])
    assert result.exit_code == 0, result.stderr
    path = Path(result.stdout.strip())
    assert path == run / "exports" / "messages.jsonl"
    assert len(lines(path)) == 1
    refused = CliRunner().invoke(app, ["export", str(run), "--format", "training"])
    assert refused.exit_code == 2
    assert "no token ids" in refused.stderr
