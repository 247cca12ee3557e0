"""Training: where its time goes, what it learns from, and whether it goes on exactly.

The machinery is measured on a policy of random weights (`tiny_train.toml`). What the recipe takes
is not measured again, for that is an hour: it is read from a run of it, or from tracked figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from measure import MIB, ROOT, Row, Sample

TINY = ROOT / "bench" / "tiny_train.toml"
TRACKED = ROOT / "bench" / "results" / "smollm2.jsonl"
_TOLD = ("run", "steps", "rollouts_s", "updates_s", "machine", "commit")
_LIMIT_S = 3600.0
_KILLED_AFTER = 3  # steps, between two checkpoints


def here() -> bool:
    """Whether the training packages are installed."""
    return all(find_spec(name) is not None for name in ("torch", "transformers", "peft", "trl"))


async def training(work: Path, recorded: Path | None = None) -> list[Row]:
    """`recorded` is a run of the recipe, whose figures stand in place of the tracked ones."""
    folder = Path(tempfile.mkdtemp(prefix="train-", dir=work))
    return [
        await asyncio.to_thread(_sampled_row, folder),
        await _resume_row(folder),
        await _two_processes_row(folder),
        *(_tracked_rows() if recorded is None else _recorded_rows(recorded)),
    ]


def _row(name: str, value: float, unit: str, mark: str, met: bool, detail: dict[str, Any]) -> Row:
    return Row(name, Sample.of([value], unit), None, "", mark, met, None, detail)


# --- a run in a process of its own ---------------------------------------------------------------


async def _start(folder: Path, runs: str, *words: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "sandlot.cli.main", "train", *words]
    command += ["--runs", str(folder / runs), "--display", "none"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, env=environ, stdout=pipe, stderr=pipe)


async def _run(folder: Path, runs: str, *words: str) -> Path:
    """A whole run; its directory."""
    process = await _start(folder, runs, *words)
    async with asyncio.timeout(_LIMIT_S):
        out, err = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"sandlot train left with {process.returncode}: {err.decode()[-1500:]}")
    return Path(out.decode().strip().splitlines()[-1])


def _steps(run: Path, phase: str = "train") -> list[dict[str, Any]]:
    file = run / "steps.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [line for line in map(json.loads, lines) if line["phase"] == phase]


# --- tokens that were trained and never drawn ----------------------------------------------------


def _sampled_row(folder: Path) -> Row:
    """Every run of sampled tokens in the records is a reply that the engine gave, each once."""
    drawn, records = asyncio.run(_watched(folder))
    wrong = total = 0
    for row in records:
        for is_sampled, run in groupby(zip(row.ids, row.sampled, strict=True), lambda at: at[1]):
            reply = tuple(token for token, _ in run)
            if not is_sampled:
                continue
            total += len(reply)
            wrong += 0 if drawn[reply] else len(reply)
            drawn[reply] -= 1
    name = "tokens trained that the policy did not sample"
    return _row(name, wrong, "tokens", "0", wrong == 0 and total > 0, {"of": total})


async def _watched(folder: Path) -> tuple[Counter[tuple[int, ...]], list[Any]]:
    """The replies that an engine drew in a tiny run, and the rows of its records."""
    from datetime import UTC, datetime

    from sandlot.train.assemble import assemble
    from sandlot.train.config import load_config
    from sandlot.train.directory import TrainDirectory
    from sandlot.train.driver import Driver
    from sandlot.train.records import read_records

    config = load_config(TINY, {"warmstart": None, "evaluate.modes": [], "rollout.max_turns": 4})
    drawn: Counter[tuple[int, ...]] = Counter()
    parts = assemble(config, lambda line: None)
    engine = parts.engine

    class Watched:
        context_tokens = engine.context_tokens
        close = engine.close

        async def sample(self, prompt: Sequence[int], draw: Any) -> Any:
            found = await engine.sample(prompt, draw)
            drawn[tuple(found.ids)] += 1
            return found

    directory = TrainDirectory.create(folder / "watched", config, {}, datetime.now(UTC))
    try:
        parts = replace(parts, engine=Watched())
        await Driver(config, parts, directory, lambda line: None).run()
    finally:
        await parts.close()
    files = sorted((directory.path / "records").glob("*.jsonl"))
    return drawn, [row for f in files for each in read_records(f) for row in each.episode.rows]


# --- going on ------------------------------------------------------------------------------------


async def _resume_row(folder: Path) -> Row:
    whole = _losses(await _run(folder, "whole", str(TINY)))
    process = await _start(folder, "killed", str(TINY))
    runs = folder / "killed"
    async with asyncio.timeout(_LIMIT_S):
        while not any(len(_steps(run)) >= _KILLED_AFTER for run in runs.glob("*")):
            if process.returncode is not None:
                raise RuntimeError("the run to be killed ended by itself")
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    resumed = _losses(await _run(folder, "killed", "--resume", "last"))
    apart = max(abs(one - other) for one, other in zip(whole, resumed, strict=True))
    name = "loss of each step after kill -9 and --resume, against a run left alone: greatest gap"
    detail = {"steps": len(whole), "losses": [round(each, 6) for each in resumed]}
    return _row(name, apart, "nats", "≤ 1e-5", apart <= 1e-5, detail)


def _losses(run: Path) -> list[float]:
    return [line["figures"].get("loss", 0.0) for line in _steps(run)]


# --- two processes -------------------------------------------------------------------------------


async def _two_processes_row(folder: Path) -> Row:
    """Three steps of TRL's trainer, data-parallel over gloo; the ranks begin apart on purpose."""
    import torch

    script = ROOT / "tests" / "train" / "data_parallel_run.py"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1"]
    words += [f"--master-port={port}", "--nproc_per_node=2", str(script), str(folder), "2"]
    local = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TOKENIZERS_PARALLELISM": "false"}
    process = await asyncio.create_subprocess_exec(
        *words,
        env={**os.environ, **local},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(_LIMIT_S):
        said, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"two processes failed: {said.decode()[-1500:]}")
    first, second = (
        torch.load(folder / f"weights.{rank}-of-2.pt", weights_only=True) for rank in (0, 1)
    )
    apart = max((first[name] - second[name]).abs().max().item() for name in first)
    name = "weights of two data-parallel processes (gloo) after 3 steps: greatest gap"
    return _row(name, apart, "", "0", apart == 0, {"matrices": len(first)})


# --- a recipe ------------------------------------------------------------------------------------


def _recorded_rows(run: Path) -> list[Row]:
    steps = [line["figures"] for line in _steps(run)]
    taken = {
        name: round(sum(each[name] for each in steps), 1) for name in ("rollout_s", "update_s")
    }
    memory = max(
        line["figures"]["memory_mib"] for line in (*_steps(run, "warmstart"), *_steps(run))
    )
    shares = [100 * each["sandbox_share"] for each in steps]
    return _recipe_rows(shares, memory, {"steps": len(steps), **taken, "read_from": run.name})


def _tracked_rows() -> list[Row]:
    lines = map(json.loads, TRACKED.read_text("utf-8").splitlines())
    told = [line for line in lines if line["which"] == "training" and line["steps"]]
    about: dict[str, Any] = {name: [run[name] for run in told] for name in _TOLD}
    about["read_from"] = f"bench/results/{TRACKED.name}, not measured in this run"
    shares = [100 * run["sandbox_share"] for run in told]
    return _recipe_rows(shares, max(run["memory_peak_mib"] for run in told), about)


def _recipe_rows(shares: list[float], memory_mib: float, about: dict[str, Any]) -> list[Row]:
    share = Sample.of(shares, "%")
    name = "recipe smollm2: share of the rollouts' time in sandboxes and harness, not in the model"
    met = share.median <= 5
    small = memory_mib * MIB <= 8e9
    return [
        Row(name, share, None, "", "≤ 5 %", met, None, about),
        _row("recipe smollm2: peak memory", memory_mib, "MiB", "≤ 8 GB", small, {}),
    ]
