"""Checkpoints are whole or not there: after a full disk, a kill, or damage from outside."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REASON = "needs the extra `train` (torch, safetensors)"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("safetensors", reason=REASON)

from sandlot.core.errors import InputError, RecordError  # noqa: E402
from sandlot.train import checkpoint  # noqa: E402


def values(step: int, size: int = 64) -> dict[str, Any]:
    return {"a": torch.full((size,), float(step)), "b": torch.arange(size).to(torch.bfloat16)}


def saved(
    folder: Path, step: int, *, phase: str = "train", size: int = 64
) -> checkpoint.Checkpoint:
    return checkpoint.save(
        folder,
        phase=phase,
        step=step,
        weights=values(step, size),
        optimiser={"masters": values(step, size), "adam": {"step": step}},
    )


def assert_holds(found: checkpoint.Checkpoint | None, step: int) -> None:
    assert found is not None
    assert found.step == step
    for name, each in values(step).items():
        assert torch.equal(found.weights()[name], each)
        assert found.weights()[name].dtype == each.dtype
    assert found.optimiser()["adam"] == {"step": step}


def test_what_was_saved_comes_back_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    for step in (5, 10, 15):
        saved(tmp_path, step)
    assert_holds(checkpoint.newest(tmp_path), 15)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "step-train-000010",
        "step-train-000015",
    ]


def test_the_beginning_of_the_reinforcement_stays_to_be_compared_with(tmp_path: Path) -> None:
    saved(tmp_path, 40, phase="warmstart")
    for step in (0, 5, 10, 15):
        saved(tmp_path, step)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["step-train-000000", "step-train-000010", "step-train-000015"]
    assert_holds(checkpoint.named(tmp_path, "step-train-000000"), 0)
    with pytest.raises(InputError, match=r"'step-train-000005' is not in .*step-train-000015"):
        checkpoint.named(tmp_path, "step-train-000005")


def test_training_is_newer_than_the_warm_start(tmp_path: Path) -> None:
    saved(tmp_path, 900, phase="warmstart")
    saved(tmp_path, 0)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.phase, found.step) == ("train", 0)


def test_a_step_that_is_saved_again_replaces_what_it_was(tmp_path: Path) -> None:
    """A run that went on from an earlier checkpoint comes by the same steps again."""
    saved(tmp_path, 5)
    again = saved(tmp_path, 5)
    assert_holds(again, 5)
    assert len(list(tmp_path.iterdir())) == 1


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("weights.safetensors", cut),
        ("weights.safetensors", flip),
        ("weights.safetensors", Path.unlink),
        ("optimiser.pt", cut),
        ("optimiser.pt", flip),
        ("state.json", cut),
        ("state.json", no_text),
        ("state.json", Path.unlink),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, harm: Any) -> None:
    saved(tmp_path, 5)
    newest = saved(tmp_path, 10)
    harm(newest.path / name)
    said: list[str] = []
    assert_holds(checkpoint.newest(tmp_path, said.append), 5)
    (line,) = said
    assert "passed over: step-train-000010; using step-train-000005" in line
    harm(tmp_path / "step-train-000005" / name)
    with pytest.raises(InputError, match="000005, step-train-000010 were damaged"):
        checkpoint.newest(tmp_path)


def test_a_state_nested_without_end_is_damage(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    (saved(tmp_path, 10).path / "state.json").write_text("[" * 100_000)
    assert_holds(checkpoint.newest(tmp_path), 5)


def test_a_checkpoint_is_had_by_its_name_unless_it_is_damaged(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    saved(tmp_path, 10)
    assert_holds(checkpoint.named(tmp_path, "step-train-000005"), 5)
    with pytest.raises(InputError, match=r"'step-7' is not in .*have: step-train-000005, step-"):
        checkpoint.named(tmp_path, "step-7")
    flip(tmp_path / "step-train-000005" / "weights.safetensors")
    with pytest.raises(InputError, match="was damaged"):
        checkpoint.named(tmp_path, "step-train-000005")


def test_damaged_checkpoints_never_push_out_one_that_is_whole(tmp_path: Path) -> None:
    """Both newest ones are damaged, so the run goes on from the beginning and saves step 5."""
    for step in (0, 10, 15):
        saved(tmp_path, step)
    for step in (10, 15):
        cut(tmp_path / f"step-train-{step:06d}" / "weights.safetensors")
    assert_holds(checkpoint.newest(tmp_path), 0)
    saved(tmp_path, 5)
    assert_holds(checkpoint.newest(tmp_path), 5)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["step-train-000000", "step-train-000005"]


def test_strange_states_are_no_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    for number, state in enumerate(({}, [], {"phase": "train", "step": "x"}, None)):
        (tmp_path / f"step-{number}").mkdir()
        (tmp_path / f"step-{number}" / "state.json").write_text(json.dumps(state))
    (tmp_path / "step-file").touch()
    (tmp_path / ".draft-step-train-000006").mkdir()
    assert_holds(checkpoint.newest(tmp_path), 5)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as if the disk were full there."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("room", [0, 100, 5_000, 20_000, 45_000])
def test_a_disk_that_fills_leaves_the_last_good_checkpoint(tmp_path: Path, room: int) -> None:
    """Wherever it fills: in the weights, in the optimiser's state, or before any of it."""
    saved(tmp_path, 5)
    with largest_file(room), pytest.raises(RecordError, match="step-train-000010 could") as told:
        saved(tmp_path, 10, size=8_000)
    assert "written: a file may not grow that large here (" in str(told.value)
    assert [each.name for each in tmp_path.iterdir()] == ["step-train-000005"]
    assert_holds(checkpoint.newest(tmp_path), 5)
    assert_holds(saved(tmp_path, 11), 11)


def test_a_full_file_system_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system to fill")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "sandlot-test", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        saved(tmp_path, 5)
        with pytest.raises(RecordError, match=r"written: .*(disk is full|No space left)"):
            saved(tmp_path, 10, size=20_000)
        assert_holds(checkpoint.newest(tmp_path), 5)
        assert_holds(saved(tmp_path, 10), 10)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_quota_that_is_used_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root has no quota, so the system's answers are played."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def fail(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RecordError, match=r"written: the disk quota is used up \("):
        saved(tmp_path, 5)


SAVING_FOR_EVER = textwrap.dedent(
    """
    import sys, torch
    from itertools import count
    from pathlib import Path
    from sandlot.train import checkpoint
    for step in count(1):
        weights = {"a": torch.full((200_000,), float(step))}
        checkpoint.save(Path(sys.argv[1]), phase="train", step=step, weights=weights,
                        optimiser={"masters": weights, "adam": {"step": step}})
        print(step, flush=True)
    """
)


def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        last = 0
        for _ in range(6):
            last = int(process.stdout.readline())
        process.kill()
        process.wait()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step >= last
    assert float(found.weights()["a"][0]) == found.optimiser()["adam"]["step"] == found.step
