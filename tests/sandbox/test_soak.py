"""Many ill-treated sandboxes leave nothing, and neither do those of a harness that is killed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandlot.sandbox.contract import MakeSandbox, opened
from sandlot.sandbox.registry import list_leases
from waiting import comes_true

from .backends import image_cache, image_name, maker

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = float(os.environ.get("SANDLOT_SOAK_SECONDS", "20"))


@pytest.mark.sandbox
@pytest.mark.slow
def test_a_soak_leaves_nothing_and_answers_rightly(bubblewrap: MakeSandbox, tmp_path: Path) -> None:
    target = tmp_path / "soak.json"
    words = ["--seconds", str(SECONDS), "--sandboxes", "10", "--commands", "200", "--alive", "6"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/soak.py"), *words, "--json", str(target)],
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert target.exists(), done.stderr
    found = json.loads(target.read_text())
    assert found["wrong"] == []
    assert found["left"] == {}
    assert found["rise_bytes"] <= found["rise_allowed_bytes"]
    assert found["enough"], (found["sandboxes"], found["commands"])
    assert done.returncode == 0


def test_the_census_sees_what_is_left(tmp_path: Path, soak: Any) -> None:
    before = soak.Census.take(tmp_path)
    assert soak.Census.take(tmp_path).more_than(before) == {}
    (tmp_path / "leaked").write_text("x")
    with open(tmp_path / "leaked"):
        process = subprocess.Popen(["sleep", "30"])
        try:
            left = soak.Census.take(tmp_path).more_than(before)
        finally:
            process.kill()
            process.wait()
    assert left["files"] == 1
    assert left["processes"] == 1
    assert left["descriptors"] >= 1


def test_growth_is_measured_after_the_warm_up(soak: Any) -> None:
    steep_then_flat = [(t, min(t, 20) * 1000, 0) for t in range(100)]
    steady = [(t, t * 1000, 0) for t in range(100)]
    assert soak.growth(steep_then_flat) == (0.0, 0.0)
    assert soak.growth(steady) == pytest.approx((1000.0, 69_000.0))


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("soak")


# --- a harness that is killed ---------------------------------------------------------------------

_HARNESS = """
import asyncio, os, sys
from pathlib import Path
from sandlot.sandbox.contract import small_policy
from sandlot.sandbox.registry import open_sandbox

async def main(state, cache, image, marker, count):
    boxes = []
    for _ in range(count):
        box = await open_sandbox(
            "bubblewrap", policy=small_policy(), image=image, cache=Path(cache),
            state=Path(state), environ=os.environ, progress=lambda _: None)
        await box.start()
        await box.exec(f"(setsid bash -c \\"trap '' TERM HUP INT; sleep {marker}\\" &)")
        boxes.append(box)
    print(boxes[0]._host.launcher.pid, flush=True)
    await asyncio.sleep(600)

state, cache, image, marker, count = sys.argv[1:]
asyncio.run(main(state, cache, image, marker, int(count)))
"""


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.parametrize("with_launcher", [False, True], ids=["alone", "with its launcher"])
async def test_fifty_sandboxes_of_a_killed_harness_are_gone_after_the_next_start(
    with_launcher: bool, bubblewrap: MakeSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    marker = f"43{os.getpid()}{time.monotonic_ns() % 10**6}"
    with _harness(tmp_path, marker, 50) as (process, launcher):
        assert sum(lease.sandboxes for lease in list_leases(tmp_path, os.environ)) == 50
        cgroups = [group for lease in list_leases(tmp_path, os.environ) for group in lease.cgroups]
        # A background job is counted as begun before its program has its name.
        assert await comes_true(lambda: len(_marked(marker)) >= 50, 20, every_s=0.05)
        process.kill()
        if with_launcher:
            os.kill(launcher, signal.SIGKILL)
        process.wait(10)
    # A launcher clears up for a moment; a start before it is done finds its lease alive.
    assert await comes_true(lambda: not Path(f"/proc/{launcher}").exists(), 30)
    async with opened(maker(tmp_path)):
        assert await comes_true(lambda: not _marked(marker), every_s=0.1)
        (own,) = list_leases(tmp_path, os.environ)
        assert own.pid == os.getpid()
        assert [group for group in cgroups if Path(group).exists()] == []
    assert list_leases(tmp_path, os.environ) == []


@contextlib.contextmanager
def _harness(state: Path, marker: str, count: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    cache = image_cache()
    words = [str(state), str(cache), image_name(cache), marker, str(count)]
    process = subprocess.Popen(
        [sys.executable, "-c", _HARNESS, *words], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def _marked(marker: str) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            if marker.encode() in line and b"sleep" in line.split(b"\0")[0]:
                found.append(line)
    return found
