"""The run directory: made, written, torn, read back; and no secret in it."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandlot.core.errors import RecordError
from sandlot.core.events import (
    MessageAdded,
    ModelCalled,
    ReplyReceived,
    RolloutStarted,
    RolloutStopped,
)
from sandlot.core.redact import Redactor, secret_values
from sandlot.core.store import Recorder, RunDirectory, newest_run, slugify, to_toml
from sandlot.core.types import Message, StopReason, Task, Turn, Usage

NOW = datetime(2026, 11, 22, 14, 30, tzinfo=UTC)


def record(directory: RunDirectory, *texts: str, redactor: Redactor | None = None) -> None:
    with Recorder(
        directory.trajectory_path, redactor=redactor or Redactor(), clock=lambda: 1.0
    ) as sink:
        sink(RolloutStarted("r", Task("t", "say hi"), "llm", "m"))
        for index, text in enumerate(texts):
            sink(ModelCalled(index))
            sink(ReplyReceived(Turn(index, Message.assistant(text), Usage(), "stop", 0.1, 0.0)))


def test_directories_are_named_by_time_and_task_and_never_shared(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path / "runs", "What's the prime?", NOW)
    second = RunDirectory.create(tmp_path / "runs", "What's the prime?", NOW)
    assert first.path.name == "2026-11-22T14-30-00-what-s-the-prime"
    assert second.path.name == "2026-11-22T14-30-00-what-s-the-prime-2"


def test_a_run_is_read_back_as_it_was_recorded(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "x", NOW).with_manifest({"model": "m"})
    record(directory, "one", "two")
    again = RunDirectory.open(directory.path)
    assert again.manifest["model"] == "m"
    assert [turn.reply.text for turn in again.trajectory().turns] == ["one", "two"]
    assert "model_called" not in directory.trajectory_path.read_text()


def test_a_torn_last_line_costs_that_line_and_no_more(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "x", NOW).with_manifest({})
    record(directory, "one", "two")
    whole = directory.trajectory_path.read_bytes()
    directory.trajectory_path.write_bytes(whole[:-20])
    assert [turn.reply.text for turn in directory.trajectory().turns] == ["one"]
    with Recorder(directory.trajectory_path, redactor=Redactor(), clock=lambda: 2.0) as sink:
        sink(RolloutStopped(StopReason.CANCELLED))
    assert directory.trajectory().stop_reason is StopReason.CANCELLED


def test_every_event_is_in_the_file_before_the_call_returns(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with Recorder(path, redactor=Redactor(), clock=lambda: 1.0) as sink:
        sink(RolloutStarted("r", Task("t", "p"), "llm", "m"))
        assert path.read_text().count("\n") == 1
        sink(MessageAdded(Message.user("p")))
        assert path.read_text().count("\n") == 2


def test_a_full_disk_is_a_record_error() -> None:
    sink = Recorder(Path("/dev/full"), redactor=Redactor(), clock=lambda: 1.0)
    with pytest.raises(RecordError, match="No space left"):
        sink(MessageAdded(Message.user("p")))
    sink.close()


def test_a_newer_format_is_refused_and_a_stranger_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is not a run directory"):
        RunDirectory.open(tmp_path)
    (tmp_path / "run.toml").write_text("format = 99\n")
    with pytest.raises(RecordError, match="format 99"):
        RunDirectory.open(tmp_path)
    (tmp_path / "run.toml").write_text("format = \n")
    with pytest.raises(RecordError, match="damaged"):
        RunDirectory.open(tmp_path)


def test_the_newest_run_is_found_and_an_absent_folder_has_none(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "none") is None
    RunDirectory.create(tmp_path, "b", NOW).with_manifest({})
    later = RunDirectory.create(tmp_path, "a", NOW.replace(hour=20)).with_manifest({})
    assert newest_run(tmp_path) == later.path


def test_known_secrets_and_tokens_never_reach_the_record(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "x", NOW).with_manifest({})
    known = 'my "quoted" secret value'
    token = "ghp_" + "a1B2" * 9
    key = "sk-" + "proj-abcdefghijklmnopqrstuvwxyz"
    arguments = json.dumps({"command": f"echo {known}"})
    record(directory, arguments, token, f"key {key} end", redactor=Redactor([known]))
    text = directory.trajectory_path.read_text()
    assert "quoted" not in text
    assert token not in text
    assert key not in text
    replies = [turn.reply.text for turn in directory.trajectory().turns]
    assert json.loads(replies[0]) == {"command": "echo [redacted]"}
    assert replies[2] == "key [redacted] end"


def test_headers_and_urls_lose_their_credentials_and_keep_the_rest() -> None:
    redact = Redactor().text
    assert redact("Authorization: Bearer abcdefghijklmnop1234") == (
        "Authorization: Bearer [redacted]"
    )
    assert redact("https://me:pass@host/x") == "https://me:[redacted]@host/x"
    assert redact("a basic understanding of tokens") == "a basic understanding of tokens"


def test_only_variables_with_telling_names_are_secrets() -> None:
    environ = {"OPENAI_API_KEY": "k1", "DB_PASSWORD": "p1", "GITHUB_TOKEN": "t1", "KEYBOARD": "us"}
    assert set(secret_values(environ)) == {"k1", "p1", "t1"}


def test_short_values_are_left_alone_lest_ordinary_words_vanish() -> None:
    assert Redactor(["none", "EMPTY"]).text("none is EMPTY") == "none is EMPTY"


scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_what_the_toml_writer_writes_reads_back_the_same(table: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(table)) == table


def test_nothing_stands_for_none_in_a_manifest() -> None:
    assert to_toml({"a": None, "b": [1, None], "c": {"d": None}}) == "b = [1]\n\n[c]\n"


@given(st.text())
def test_a_slug_is_always_a_plain_short_name(text: str) -> None:
    slug = slugify(text)
    assert 0 < len(slug) <= 40
    assert slug.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == ""
