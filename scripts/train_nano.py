"""Run recipes/nano.toml and hold it to its marks: train_nano.py [SEED …] [--coin] [--record FILE]

With --coin also the control, whose rewards are coin flips: it must not learn. FILE gets a line of
figures for each run. Ends with 1 where a mark is missed. Set up by `make train-nano` and
`make test-long`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "nano.toml"
REWARD, TURNS, GAP = 0.85, 4.5, 1e-4
"""Held-out reward at least, turns at most, and how far sampler and trainer may be apart (nats)."""
NO_GAIN = 0.1
"""A control that learned nothing stays below this gain of held-out reward."""


def train(seed: int, runs: Path, *changes: str) -> Path:
    """The directory of a finished run.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is above.
    """
    command = [sys.executable, "-m", "sandlot", "train", str(RECIPE), "--seed", str(seed)]
    command += ["--runs", str(runs), "--display", "plain", "--json"]
    for change in changes:
        command += ["--set", change]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return Path(json.loads(done.stdout)["directory"])


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def held_out(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The evaluations before and after the reinforcement."""
    found = lines_of(run / "evaluations.jsonl")
    return found[0], found[-1]


def greatest_gap(run: Path) -> float:
    steps = [line["figures"] for line in lines_of(run / "steps.jsonl") if line["phase"] == "train"]
    return max(step.get("gap_max", 0.0) for step in steps)


def missed(run: Path) -> list[str]:
    """What a run did not reach, in words."""
    _, after = held_out(run)
    gap = greatest_gap(run)
    return [
        words
        for wrong, words in (
            (after["reward"] < REWARD, f"held-out reward {after['reward']:.3f}, not {REWARD}"),
            (after["turns"] > TURNS, f"{after['turns']:.2f} turns, not at most {TURNS}"),
            (gap > GAP, f"sampler and trainer {gap:.1e} nats apart, not at most {GAP:.0e}"),
        )
        if wrong
    ]


def learned_from_coins(run: Path) -> list[str]:
    before, after = held_out(run)
    gain = after["reward"] - before["reward"]
    return [f"coin flips taught it: {gain:+.3f}"] if gain > NO_GAIN else []


def figures_of(name: str, run: Path, wrong: list[str]) -> dict[str, Any]:
    """What a run came to, with its machine and commit."""
    before, after = held_out(run)
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    return {
        "run": name,
        "seed": manifest["config"]["seed"],
        "commit": manifest["commit"],
        "machine": manifest["machine"],
        "before": before,
        "after": after,
        "gap_max": greatest_gap(run),
        "missed": wrong,
    }


def told(name: str, run: Path, wrong: list[str]) -> None:
    before, after = held_out(run)
    print(
        f"{name}: held-out reward {before['reward']:.3f} -> {after['reward']:.3f}, turns "
        f"{before['turns']:.2f} -> {after['turns']:.2f}, gap {greatest_gap(run):.1e}: "
        f"{'; '.join(wrong) or 'as it should be'}",
        flush=True,
    )


def main() -> int:
    asked = argparse.ArgumentParser()
    asked.add_argument("seeds", type=int, nargs="*")
    asked.add_argument("--coin", action="store_true")
    asked.add_argument("--record", type=Path)
    words = asked.parse_args()
    seeds = words.seeds or [1]
    good = True
    with tempfile.TemporaryDirectory(prefix="sandlot-nano-") as folder:

        def tried(name: str, judged: Callable[[Path], list[str]], seed: int, *changes: str) -> bool:
            run = train(seed, Path(folder), *changes)
            wrong = judged(run)
            told(name, run, wrong)
            if words.record is not None:
                with words.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(figures_of(name, run, wrong)) + "\n")
            return not wrong

        for seed in seeds:
            good &= tried(f"seed {seed}", missed, seed)
        if words.coin:
            good &= tried("coin flips", learned_from_coins, seeds[0], "rollout.reward=coin")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
