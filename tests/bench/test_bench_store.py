"""A bench run on disk: what is read back, what a kill tears, and what is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from sandlot.bench.records import Episode, EpisodeRecord, Meters, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.errors import RecordError
from sandlot.core.redact import Redactor
from sandlot.core.store import RunDirectory
from sandlot.core.types import Score, StopReason, Task

NOW = datetime(2026, 11, 22, 14, 30)
EPISODE = Episode("tiny", "a/b", "sandbox", 0)


def record(episode: Episode = EPISODE, attempt: int = 1, **fields: object) -> EpisodeRecord:
    values = {
        "stop_reason": StopReason.SUBMITTED,
        "stop_detail": "",
        "answer": "ANSWER: 42",
        "failure": None,
        "meters": Meters(turns=2, egress_hosts={"example.org": 10}),
        "marks": ("seen",),
    }
    return EpisodeRecord(episode, "key", attempt, **{**values, **fields})  # type: ignore[arg-type]


def score(value: float | None, episode: Episode = EPISODE, name: str = "math") -> ScoreRecord:
    return ScoreRecord(episode, Score(episode.item, name, "1", value, None, {"answer": "42"}))


@pytest.fixture
def directory(tmp_path: Path) -> BenchDirectory:
    made = BenchDirectory.create(tmp_path, "tiny both", NOW).writing(Redactor())
    made.write_manifest({"model": "m"})
    return made


def test_what_was_written_is_read_back_as_it_was(directory: BenchDirectory) -> None:
    directory.add_episode(record())
    directory.add_score(score(1.0))
    directory.write_tasks({("tiny", "a/b"): Task("a/b", "?", target=["x", 1])})
    directory.close()
    again = BenchDirectory.open(directory.path)
    assert again.path.name == "2026-11-22T14-30-00-tiny-both"
    assert again.manifest["model"] == "m"
    assert again.episodes() == {EPISODE: record()}
    assert again.scores() == {(EPISODE, "math"): score(1.0)}
    assert again.tasks()["tiny", "a/b"].target == ["x", 1]


def test_of_several_attempts_and_scores_the_last_counts(directory: BenchDirectory) -> None:
    for attempt in (1, 2):
        directory.add_episode(record(attempt=attempt))
    for value in (0.0, None, 0.5):
        directory.add_score(score(value))
    directory.add_score(score(1.0, name="judge"))
    assert directory.episodes()[EPISODE].attempt == 2
    assert [item.attempt for item in directory.attempts()] == [1, 2]
    assert directory.scores()[EPISODE, "math"].score.value == 0.5
    assert directory.scores()[EPISODE, "judge"].score.value == 1.0


def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(directory: BenchDirectory) -> None:
    directory.add_episode(record())
    directory.close()
    file = directory.path / "episodes.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[: len(whole) // 2])
    assert list(BenchDirectory.open(directory.path).attempts()) == [record()]
    again = BenchDirectory.open(directory.path).writing(Redactor())
    again.add_episode(record(attempt=2))
    again.close()
    assert [item.attempt for item in again.attempts()] == [1, 2]


def test_a_broken_line_before_the_end_is_named_with_its_line(directory: BenchDirectory) -> None:
    directory.add_episode(record())
    directory.close()
    file = directory.path / "episodes.jsonl"
    file.write_text(file.read_text() + '{"episode": 1}\n' + file.read_text())
    with pytest.raises(RecordError, match=r"episodes\.jsonl:2: .*expected an object"):
        directory.episodes()


@pytest.mark.parametrize(("found", "age"), [(0, "an older"), (2, "a newer")])
def test_a_run_of_another_version_is_refused_by_name(
    directory: BenchDirectory, found: int, age: str
) -> None:
    RunDirectory(directory.path, {}).with_manifest({"bench": found})
    with pytest.raises(RecordError, match=f"bench format {found} is of {age} sandlot"):
        BenchDirectory.open(directory.path)


def test_a_single_run_is_told_from_a_bench_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "x", NOW).with_manifest({})
    with pytest.raises(RecordError, match="a single run, not a bench run"):
        BenchDirectory.open(run.path)


def test_the_lock_is_given_back(directory: BenchDirectory) -> None:
    with pytest.raises(RecordError, match="another process"):
        BenchDirectory.open(directory.path).writing(Redactor())
    directory.close()
    directory.close()
    BenchDirectory.open(directory.path).writing(Redactor()).close()


def test_secrets_are_redacted_wherever_they_stand(tmp_path: Path) -> None:
    made = BenchDirectory.create(tmp_path, "x", NOW).writing(Redactor(["s3cret-value"]))
    made.write_manifest({"note": "s3cret-value"})
    made.add_episode(record(answer="it is s3cret-value"))
    made.add_judgement({"reply": "s3cret-value"})
    made.close()
    for file in made.path.iterdir():
        assert not file.is_file() or "s3cret-value" not in file.read_text()


def test_episodes_of_odd_ids_have_files_of_their_own() -> None:
    stems = {Episode("s", item, "llm", 0).stem for item in ("a/b", "a-b", "a b", "../a", "x" * 200)}
    assert len(stems) == 5
    assert all("/" not in stem and len(stem) < 120 for stem in stems)
