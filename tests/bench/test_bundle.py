from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from sandlot.bench.bundle import SUMS, unpack_bundle, write_bundle
from sandlot.bench.grading import Grader, GradingOptions, rescore
from sandlot.bench.report import build_report, document_text
from sandlot.bench.sample import write_sample
from sandlot.bench.store import BenchDirectory
from sandlot.core.codec import from_json
from sandlot.core.errors import RecordError
from sandlot.core.redact import Redactor
from sandlot.scoring.base import ScoringTools
from sandlot.tasks.base import TaskSet


def bundled(tmp_path: Path) -> tuple[Path, Path]:
    """A sample run with a trajectory, a collected file and a link, and its bundle."""
    run = write_sample(tmp_path / "runs", items=2, arms=("llm", "sandbox")).path
    (run / "trajectories" / "math.a.llm.0.jsonl").write_text('{"kind":"x"}\n', "utf-8")
    folder = run / "files" / "math.a.sandbox.0"
    folder.mkdir()
    (folder / "answer with spaces.txt").write_bytes(b"42\r\n")
    (folder / "link").symlink_to("/etc/hostname")
    extra = {"report.json": document_text(build_report([run])).encode()}
    path = tmp_path / "run.tar.gz"
    write_bundle([run], path, extra)
    return run, path


def test_a_bundle_holds_the_records_and_digests_that_sha256sum_reads(tmp_path: Path) -> None:
    run, path = bundled(tmp_path)
    (found,) = unpack_bundle(path, tmp_path / "there")
    for name in ("run.toml", "episodes.jsonl", "scores.jsonl", "tasks.jsonl"):
        assert (found / name).read_bytes() == (run / name).read_bytes()
    kept = found / "files" / "math.a.sandbox.0"
    assert [file.name for file in kept.iterdir()] == ["answer with spaces.txt"]
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path / "there", capture_output=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run, path = bundled(tmp_path)
    extra = {"report.json": document_text(build_report([run])).encode()}
    for file in run.rglob("*.jsonl"):
        file.touch()
    again = tmp_path / "again.tar.gz"
    write_bundle([run], again, extra)
    assert again.read_bytes() == path.read_bytes()


async def test_a_bundle_can_be_scored_again_to_the_same_scores(tmp_path: Path) -> None:
    _, path = bundled(tmp_path)
    (found,) = unpack_bundle(path, tmp_path / "there")
    directory = BenchDirectory.open(found)
    before = {record.episode: record.score.value for record in directory.all_scores()}
    rows = [from_json(TaskSet, entry["row"]) for entry in directory.manifest["sets"].values()]
    grader = Grader(rows, ScoringTools(cache_dir=tmp_path), GradingOptions(reference=False))
    directory.writing(Redactor())
    await rescore(directory, grader)
    await grader.close()
    directory.close()
    after = {record.episode: record.score.value for record in directory.all_scores()}
    assert len(before) > 20
    assert {episode: after[episode] for episode in before} == before


def test_a_member_that_was_changed_is_named(tmp_path: Path) -> None:
    _, path = bundled(tmp_path)
    forged = tmp_path / "forged.tar.gz"
    with tarfile.open(path) as old, tarfile.open(forged, "w:gz") as new:
        for member in old:
            data = old.extractfile(member)
            assert data is not None
            content = data.read()
            if member.name.endswith("scores.jsonl"):
                content = content.replace(b'"value":0.0', b'"value":1.0')
                member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    with pytest.raises(RecordError, match=r"1 members.*scores\.jsonl"):
        unpack_bundle(forged, tmp_path / "there")


def test_a_member_that_leads_outside_is_refused(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.tar.gz"
    with tarfile.open(hostile, "w:gz") as tar:
        entry = tarfile.TarInfo("../outside")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(RecordError, match="not a whole bundle"):
        unpack_bundle(hostile, tmp_path / "there")
    assert not (tmp_path / "outside").exists()


def test_a_torn_bundle_and_another_archive_are_refused(tmp_path: Path) -> None:
    _, path = bundled(tmp_path)
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RecordError, match="not a whole bundle"):
        unpack_bundle(torn, tmp_path / "1")
    other = tmp_path / "other.tar.gz"
    with tarfile.open(other, "w:gz"):
        pass
    with pytest.raises(RecordError, match="no SHA256SUMS"):
        unpack_bundle(other, tmp_path / "2")


def test_a_bundle_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    run, _ = bundled(tmp_path)
    with pytest.raises(RecordError, match="no bundle was made"):
        write_bundle([run], tmp_path / "missing" / "x.tar.gz", {})


def test_two_runs_of_one_name_are_not_mixed(tmp_path: Path) -> None:
    first = write_sample(tmp_path / "1", items=1, arms=("llm",)).path
    second = write_sample(tmp_path / "2", items=1, arms=("llm",)).path
    with pytest.raises(RecordError, match="bundle them apart"):
        write_bundle([first, second], tmp_path / "x.tar.gz", {})
