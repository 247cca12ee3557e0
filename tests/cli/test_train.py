"""`sandlot train` as a program: a tiny policy of random weights, the fake sandbox, real kills."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandlot.scoring.files_page_child import BROWSERS
from sandlot.train.config import load_config
from sandlot.train.directory import TrainDirectory
from sandlot.train.records import read_records

LIMIT_S = 600
CONFIG = (Path(__file__).parents[2] / "bench" / "tiny_train.toml").read_text("utf-8")
Train = Callable[..., subprocess.CompletedProcess[str]]
torch_here = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")),
    reason="the training packages are not installed (pip install 'sandlot[train]')",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train")
    (made / "tiny.toml").write_text(CONFIG)
    return made


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "sandlot.cli.main", "train", *words]


@pytest.fixture(scope="module")
def train(folder: Path) -> Train:
    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words),
            cwd=folder,
            env={**environment(folder), **variables},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    return run


@pytest.fixture(scope="module")
def trained(train: Train, folder: Path) -> tuple[TrainDirectory, subprocess.CompletedProcess[str]]:
    """One whole run, that nobody disturbed."""
    done = train("tiny.toml", "--runs", "whole")
    assert done.returncode == 0, done.stderr
    name = done.stdout.split("run: ")[1].splitlines()[0]
    return TrainDirectory(folder / name), done


# --- before anything is loaded -----------------------------------------------------------------


def test_help_names_its_options_and_its_subcommands(train: Train) -> None:
    done = train("--help")
    assert done.returncode == 0
    for word in ("CONFIG", "--resume", "--dry-run", "--set", "sft", "eval", "export", "plot"):
        assert word in done.stdout
    assert train("sft", "--help").returncode == 0


def test_help_does_not_load_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom sandlot.cli.main import app\n"
        "try:\n    app(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(folder), capture_output=True, timeout=LIMIT_S
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "what is to be trained? Write: sandlot train CONFIG.toml"),
        (("none.toml",), "none.toml: cannot be read"),
        (("tiny.toml", "--set", "train.stepz=1"), "Did you mean 'steps'"),
        (("tiny.toml", "--set", "train.steps"), "write it like train.steps=10"),
        (("tiny.toml", "--set", "rollout.rollouts_a_task=1"), "a group of one has no baseline"),
        (("--resume", "nowhere"), "training run 'nowhere' was not found"),
        (("--resume", "last", "--runs", "empty"), "there is no training run in empty yet"),
        (("sft", "tiny.toml", "--rows", "none.jsonl"), "--rows none.jsonl: no such file"),
        (("plot", "nowhere", "--out", "x.svg"), "was not found"),
        (("plot", "nowhere", "--out", "x.pdf"), "ends in .svg or .png"),
        (("eval", "nowhere", "--mode", "head"), "mode 'head' is not known"),
        (("eval", "nowhere", "--temperature", "nan"), "--temperature must be 0 (greedy) or above"),
    ],
)
def test_what_cannot_be_used_is_named_before_anything_is_loaded(
    train: Train, words: tuple[str, ...], said: str
) -> None:
    done = train(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_the_message_says_what_to_install(train: Train, folder: Path) -> None:
    (folder / "without").mkdir()
    (folder / "without" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['torch'] = None\n"
    )
    done = train("tiny.toml", PYTHONPATH=str(folder / "without"))
    assert done.returncode == 2
    assert "torch is not installed" in done.stderr
    assert "pip install 'sandlot[train]'" in done.stderr


@torch_here
@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("adapter", "trained whole weights, not an adapter"),
        ("onnx", "form of a trained model 'onnx' is not known"),
        ("gguf", "name one of the same model with --base FILE.gguf"),
    ],
)
def test_a_form_that_does_not_suit_a_run_is_refused_before_torch_is_loaded(
    tmp_path: Path, form: str, said: str
) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    config = load_config(tmp_path / "tiny.toml")
    directory = TrainDirectory.create(tmp_path / "runs", config, {}, datetime.now(UTC))
    code = (
        "import atexit, sys\nfrom sandlot.cli.main import main\n"
        "atexit.register(lambda: print({'torch', 'transformers'} & set(sys.modules)))\nmain()"
    )
    words = ("train", "export", str(directory.path), "--to", form, "--out", "nothing")
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == "set()\n"


# --- a whole run -------------------------------------------------------------------------------


@torch_here
@pytest.mark.slow
def test_a_run_tells_its_steps_and_keeps_what_it_was_made_with(
    trained: tuple[TrainDirectory, subprocess.CompletedProcess[str]],
) -> None:
    directory, done = trained
    manifest = directory.manifest()
    assert manifest["versions"]["torch"]
    assert manifest["recipe"]["path"] == "tiny.toml"
    assert set(manifest["profiles"]) == {"sandbox", "llm"}
    assert len(manifest["profiles"]["sandbox"]["digest"]) == 64
    assert manifest["sandbox"]["backend"] == "fake"
    assert [line["step"] for line in directory.steps("train")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in directory.evaluations()] == [0, 6]
    assert "step 6/6: reward" in done.stderr
    assert "held out, 0 steps: unseen in mode sandbox" in done.stderr
    assert "6 of reinforcement" in done.stdout
    assert list((directory.path / "trajectories").glob("step-000006.*.jsonl"))
    assert max(line["figures"].get("gap_max", 0.0) for line in directory.steps("train")) < 1e-4


@torch_here
@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_exactly(
    train: Train,
    folder: Path,
    trained: tuple[TrainDirectory, subprocess.CompletedProcess[str]],
) -> None:
    """The kill falls between two checkpoints; the steps after the older one are made again."""
    whole, _ = trained
    with begun(folder, "killed") as (process, directory):
        wait_for_steps(process, directory, 3)
        process.kill()
    done = train("--resume", "last", "--runs", "killed", "--display", "none")
    assert done.returncode == 0, done.stderr
    assert losses(directory) == pytest.approx(losses(whole), abs=1e-5)
    for step in range(1, 7):
        assert drawn(directory, step) == drawn(whole, step)
    assert [line["step"] for line in directory.evaluations()] == [0, 6]
    assert done.stdout.strip() == str(directory.path.relative_to(folder))


@torch_here
@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_its_code_and_says_how_it_goes_on(folder: Path) -> None:
    """A person who holds it down gets the same end as one who taps it."""
    with begun(folder, "stopped", "--set", "train.steps=1000") as (process, directory):
        wait_for_steps(process, directory, 1)
        end = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < end:
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, said
    assert "go on with: sandlot train --resume stopped/" in said
    assert "Traceback" not in said
    assert list(directory.checkpoints.glob("step-*"))


@torch_here
@pytest.mark.slow
def test_a_run_does_not_go_on_with_a_changed_configuration(
    train: Train, trained: tuple[TrainDirectory, subprocess.CompletedProcess[str]]
) -> None:
    directory, _ = trained
    done = train("tiny.toml", "--resume", str(directory.path), "--set", "train.lr=2e-3")
    assert done.returncode == 2
    assert "train.lr: was 0.001, is 0.002" in done.stderr
    assert "--force" in done.stderr


# --- afterwards --------------------------------------------------------------------------------


@torch_here
@pytest.mark.slow
def test_a_checkpoint_is_measured_on_sets_of_the_config_and_on_others(
    train: Train, trained: tuple[TrainDirectory, subprocess.CompletedProcess[str]]
) -> None:
    directory, _ = trained
    done = train(
        *("eval", str(directory.path), "--set", "unseen", "--set", "errands", "--limit", "2"),
        *("--mode", "both", "--temperature", "0", "--json"),
    )
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    found = [(line["set"], line["mode"], line["temperature"], line["tasks"]) for line in lines]
    assert found == [
        *(("unseen", "llm", 0.0, 2), ("unseen", "sandbox", 0.0, 2)),
        *(("errands", "llm", 0.0, 2), ("errands", "sandbox", 0.0, 2)),
    ]
    kept = (directory.path / "measured.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == lines
    assert lines[0]["step"] == 6


@torch_here
@pytest.mark.slow
def test_a_trained_model_is_written_as_a_folder_that_a_run_may_begin_with(
    train: Train, folder: Path, trained: tuple[TrainDirectory, subprocess.CompletedProcess[str]]
) -> None:
    """And from there it is fine-tuned on the rollouts of the first run, and on conversations."""
    directory, _ = trained
    done = train("export", str(directory.path), "--to", "hf", "--out", "model")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "model"
    assert (folder / "model" / "chat_template.jinja").is_file()
    assert "is there" in train("export", str(directory.path), "--to", "hf", "--out", "model").stderr
    rows = folder / "rows.jsonl"
    talk = [
        {"role": "user", "content": "Find the line."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "a", "function": {"name": "submit", "arguments": "{}"}}],
        },
    ]
    records = (directory.path / "records" / "step-000001.jsonl").read_text()
    rows.write_text(records + json.dumps({"messages": talk}))
    done = train(
        *("sft", "tiny.toml", "--rows", "rows.jsonl", "--runs", "sft", "--display", "none"),
        *("--set", "model.source=model", "--set", "model.random={}", "--json"),
    )
    assert done.returncode == 2  # a table `random` and a folder contradict each other
    (folder / "again.toml").write_text(
        CONFIG.replace('source = "random"', 'source = "model"').replace("random = {", "# {")
    )
    done = train(
        *("sft", "again.toml", "--rows", "rows.jsonl", "--runs", "sft", "--display", "none"),
        *("--set", "evaluate.modes=[]", "--json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["steps"] == 0
    assert told["warm_steps"] == 2  # 8 drills and texts, 6 rollouts and a conversation; 8 a step


@torch_here
@pytest.mark.slow
def test_what_a_run_cannot_be_written_as_is_said(
    train: Train, trained: tuple[TrainDirectory, subprocess.CompletedProcess[str]]
) -> None:
    directory, _ = trained
    for words, said in (
        (("--to", "hf", "--kind", "F16"), "--kind changes nothing of --to hf"),
        (("--to", "hf", "--max-bytes", "1M"), "--max-bytes changes nothing of --to hf"),
        (("--to", "adapter"), "trained whole weights, not an adapter"),
        (("--to", "onnx"), "form of a trained model 'onnx' is not known"),
        (("--to", "gguf"), "name one of the same model with --base FILE.gguf"),
        (
            ("--to", "hf", "--checkpoint", "step-9"),
            "have: step-train-000000, step-train-000004, step-train-000006",
        ),
    ):
        done = train("export", str(directory.path), *words, "--out", "nothing")
        assert done.returncode == 2
        assert said in done.stderr


@torch_here
@pytest.mark.slow
def test_curves_are_drawn_as_svg_and_where_there_is_a_browser_as_png(
    train: Train, folder: Path, trained: tuple[TrainDirectory, subprocess.CompletedProcess[str]]
) -> None:
    directory, _ = trained
    assert train("plot", str(directory.path), "--out", "curves.svg").returncode == 0
    assert (folder / "curves.svg").read_text().startswith("<svg")
    done = train("plot", str(directory.path), "--out", "curves.png")
    if any(map(shutil.which, BROWSERS)):
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG"), done.stderr
    else:
        assert "PNG files need Chromium" in done.stderr


class begun:  # noqa: N801 - a context manager
    """A run in a process of its own, that nobody waits for."""

    def __init__(self, folder: Path, runs: str, *more: str) -> None:
        self._folder, self._runs = folder, folder / runs
        words = command("tiny.toml", "--runs", runs, *more)
        self._process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> tuple[subprocess.Popen[str], TrainDirectory]:
        end = time.monotonic() + LIMIT_S
        while not list(self._runs.glob("*/manifest.json")):
            assert self._process.poll() is None, self._process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        (path,) = (each.parent for each in self._runs.glob("*/manifest.json"))
        return self._process, TrainDirectory(path)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def wait_for_steps(process: subprocess.Popen[str], directory: TrainDirectory, count: int) -> None:
    end = time.monotonic() + LIMIT_S
    while len(list(directory.steps("train"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def losses(directory: TrainDirectory) -> list[float]:
    return [line["figures"].get("loss", 0.0) for line in directory.steps()]


def drawn(directory: TrainDirectory, step: int) -> list[list[int]]:
    """The tokens of each rollout of a step."""
    records = read_records(directory.path / "records" / f"step-{step:06d}.jsonl")
    return [list(row.ids) for record in records for row in record.episode.rows]
