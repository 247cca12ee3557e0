"""The benchmark's harness: that it measures, prints and records what it says."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results/latest.json"


def _bench(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/run.py"), *words],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_short_run_measures_every_group_and_records_nothing() -> None:
    """Two repetitions say nothing about speed; a full run alone may overwrite the figures."""
    before = RESULTS.read_bytes() if RESULTS.exists() else None
    said = _bench("--quick", "--repetitions", "2")
    for name in (
        "start to first output",
        "close",
        "`echo hi` round trip",
        "`/bin/true` round trip",
        "memory of an idle sandbox",
        "20 idle sandboxes at once",
        "harness CPU a turn, 100 turns",
        "`import sandlot`",
        "proxy: throughput",
    ):
        assert f"    {name}" in said
    if find_spec("torch") is None:
        assert "training is left out" in said
    else:
        assert "tokens trained that the policy did not sample: 0 tokens" in said
    assert "0 failures, all closed clean: yes" in said
    assert (RESULTS.read_bytes() if RESULTS.exists() else None) == before


@pytest.mark.slow
def test_an_unknown_group_is_refused_with_those_that_exist() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/run.py"), "--only", "startz"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "startz" in done.stderr
    assert "starts" in done.stderr
