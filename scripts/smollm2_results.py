"""The figures of runs of recipes/smollm2.toml as JSONL, for bench/results/smollm2.jsonl.

    smollm2_results.py NAME=RUN ... [--bench NAME=DIR ...]

RUN is a training run that `sandlot train eval` measured, DIR a bench that `sandlot report` told of.
A line each: an evaluation, an arm of a bench, and what training a run took.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def trained(name: str, run: Path) -> dict[str, Any]:
    """What a run took: seconds by phase, the sandboxes' share, the highest memory.

    The share is of all rollouts' time together, so that a long step counts for more.
    """
    steps = lines_of(run / "steps.jsonl")
    figures = {
        phase: [line["figures"] for line in steps if line["phase"] == phase]
        for phase in ("warmstart", "train")
    }
    played = figures["train"]
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    rollouts_s = sum(each["rollout_s"] for each in played)
    found: dict[str, Any] = {
        "which": "training",
        "run": name,
        "commit": manifest["commit"],
        "machine": manifest["machine"],
        "seed": manifest["config"]["seed"],
        "warmstart": manifest["config"]["warmstart"],
        "warm_start_steps": len(figures["warmstart"]),
        "warm_start_s": round(sum(each["update_s"] for each in figures["warmstart"])),
        "steps": len(played),
        "rollouts_s": round(rollouts_s),
        "updates_s": round(sum(each["update_s"] for each in played)),
        "memory_peak_mib": round(
            max(each["memory_mib"] for kind in figures.values() for each in kind)
        ),
    }
    if played:
        spent = sum(each["sandbox_share"] * each["rollout_s"] for each in played)
        found["sandbox_share"] = round(spent / rollouts_s, 4)
        learned = [each for each in played if "gap_mean" in each]
        found["gap_mean"] = round(sum(each["gap_mean"] for each in learned) / len(learned), 5)
        found["gap_max"] = round(max(each["gap_max"] for each in learned), 4)
    return found


def measured(name: str, run: Path) -> Iterator[dict[str, Any]]:
    file = run / "measured.jsonl"
    for line in lines_of(file) if file.is_file() else ():
        yield {"which": "evaluation", "run": name, **line}


def benched(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    report = json.loads((folder / "report.json").read_text("utf-8"))
    for each in report["sets"]:
        for arm in each["arms"]:
            kept = {key: arm[key] for key in ("arm", "planned", "scored", "score", "stops")}
            kept["turns"] = arm["use"]["meters"]["turns"]
            yield {"which": "bench", "run": name, "set": each["name"], **kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--bench", nargs="*", default=[], metavar="NAME=DIR")
    given = parser.parse_args()
    for named in given.runs:
        name, _, place = named.partition("=")
        for line in (*measured(name, Path(place)), trained(name, Path(place))):
            print(json.dumps(line))
    for named in given.bench:
        name, _, place = named.partition("=")
        for line in benched(name, Path(place)):
            print(json.dumps(line))


if __name__ == "__main__":
    main()
