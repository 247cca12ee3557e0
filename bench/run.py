"""Measure this machine: `make bench`, or `python bench/run.py --quick` to look without recording.

Each row of the table stands beside a floor that is measured in the same run. A full run writes
`bench/results/latest.json` and `latest.md`; figures of different machines are not comparable, the
ratios roughly are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import container_rows
import experiment_rows
import long_context_rows
import process_rows
import proxy_rows
import report_rows
import resume_rows
import sandbox_rows
import table
import train_rows
import turn_rows
import wall_rows
from computer import find_place
from floor import prepare
from measure import Row, load, machine

RESULTS = Path(__file__).resolve().parent / "results"
Measure = Callable[[], Coroutine[Any, Any, list[Row]]]


def rows(
    work: Path, n: int, density: int, install: bool, soak_s: float, trained: Path | None = None
) -> dict[str, Measure]:
    """Each group of rows by name; nothing is measured yet."""
    place = find_place(work / "state")
    floor = prepare(work)
    found: dict[str, Measure] = {
        "starts": lambda: sandbox_rows.starts(place, floor, n),
        "round-trips": lambda: sandbox_rows.round_trips(place, n),
        "memory": lambda: sandbox_rows.idle_memory(place, min(n, 30)),
        "density": lambda: sandbox_rows.density(place, density),
        "turns": lambda: turn_rows.turns(place, work, n),
        "command-line": lambda: process_rows.command_line(n),
        "proxy": lambda: proxy_rows.proxy(n),
        "walls": lambda: wall_rows.overhead(place, n),
        "states": lambda: wall_rows.states(place, n),
        "containers": lambda: container_rows.containers(place, n),
    }
    found |= {
        "rollouts": lambda: experiment_rows.rollouts(
            place, work, 200 if install else 20, None, experiment_rows.DELAY_S if install else 0.5
        ),
        "scoring": lambda: experiment_rows.scoring(work, 10_000 if install else 500),
        "long-context": lambda: long_context_rows.long_context(place, work, min(n, 3)),
        "resume": lambda: resume_rows.resume(work, 50 if install else 3),
        "report": lambda: report_rows.report(work, 10_000 if install else 500),
    }
    if train_rows.here():
        found["training"] = lambda: train_rows.training(work, trained)
    else:
        print("training is left out: its packages are not installed (make setup-train)")
    if install:
        found["soak"] = lambda: wall_rows.soak_row(work, soak_s)
        found["install"] = lambda: process_rows.installed_size(work)
    return found


def measure(groups: dict[str, Measure], keep: Callable[[list[Row]], None]) -> list[Row]:
    """Each group in turn; `keep` gets all rows so far, for a run of half an hour may be cut off."""
    done: list[Row] = []
    for name, work in groups.items():
        before, began = load(), time.perf_counter()
        print(f"==> {name} (load {before})", flush=True)
        made = asyncio.run(work())
        took = round(time.perf_counter() - began, 1)
        made = [replace(row, load_before=before, load_after=load(), took_s=took) for row in made]
        for row in made:
            print(table.line(row), flush=True)
        done += made
        keep(done)
    return done


def record(done: list[Row], started: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": started, "rows": [row.to_json() for row in done]}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (RESULTS / "latest.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / "latest.md").write_text(table.page(done, started), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure sandlot on this machine.")
    parser.add_argument("--quick", action="store_true", help="few repetitions; print only")
    parser.add_argument("--repetitions", type=int, help="of each measurement (full run: 40)")
    parser.add_argument("--only", action="append", help="a group of rows; print only")
    parser.add_argument("--soak-seconds", type=float, default=600, help="of ill treatment")
    parser.add_argument("--train-run", type=Path, help="read the recipe's figures from this run")
    chosen = parser.parse_args()
    partial = chosen.quick or bool(chosen.only) or chosen.repetitions is not None
    n = chosen.repetitions or (5 if chosen.quick else 40)
    started = machine()
    with tempfile.TemporaryDirectory(prefix="sandlot-bench-") as folder:
        groups = rows(
            Path(folder),
            n,
            min(500, 10 * n) if partial else 500,
            not chosen.quick,
            chosen.soak_seconds,
            chosen.train_run,
        )
        for name in chosen.only or ():
            if name not in groups:
                parser.error(f"no group {name!r} (have: {', '.join(groups)})")
        groups = {k: v for k, v in groups.items() if not chosen.only or k in chosen.only}

        def keep(done: list[Row]) -> None:
            if not partial:
                changed = started["source_changed"] or machine()["source_changed"]
                record(done, {**started, "source_changed": changed})

        measure(groups, keep)
    if not partial:
        print(f"written: {RESULTS}/latest.json, latest.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
