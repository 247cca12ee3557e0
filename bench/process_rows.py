"""What the command line and the package cost before any work: start time, imports, size."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from measure import ROOT, Row, Sample, timed_process

_HEAVY = ("openai", "torch", "pydantic", "anthropic", "xllamacpp", "httpx2")
_LOADED = "import sys; print(*(set(sys.modules) & set(sys.argv[1].split(','))), file=sys.stderr)"
_HELP = (
    "import atexit, sys; names = set(sys.argv[1].split(',')); sys.argv = ['sandlot', '--help']; "
    "atexit.register(lambda: print(*(names & set(sys.modules)), file=sys.stderr)); "
    "from sandlot.cli.main import main; main()"
)


async def command_line(n: int) -> list[Row]:
    python = sys.executable
    command = str(Path(python).with_name("sandlot"))
    bare, imported, helped = [], [], []
    for _ in range(n):
        bare.append(timed_process([python, "-c", "pass"]))
        imported.append(timed_process([python, "-c", "import sandlot"]))
        helped.append(timed_process([command, "--help"]))
    floor = Sample.of(bare, "ms")
    return [
        _over("`import sandlot`", imported, floor, 60, _heavy("import sandlot; " + _LOADED)),
        _over("`sandlot --help`", helped, floor, 150, _heavy(_HELP)),
    ]


def _over(name: str, took: list[float], floor: Sample, limit: float, heavy: list[str]) -> Row:
    value = Sample.of(took, "ms")
    over = round(value.median - floor.median, 1)
    met = over <= limit and not heavy
    mark = f"≤ {limit:g} ms over bare Python, nothing heavy loaded"
    times = round(value.median / floor.median, 2)
    detail = {"over_bare_python_ms": over, "heavy_modules_loaded": heavy}
    return Row(name, value, floor, "`python -c pass`", mark, met, times, detail)


def _heavy(code: str) -> list[str]:
    """Which of the heavy modules a fresh Python has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(_HEAVY)], capture_output=True, text=True, check=True
    )
    return sorted(done.stderr.split())


async def installed_size(work: Path) -> list[Row]:
    """The core and all that it depends on, in a fresh virtual environment."""
    size = await asyncio.to_thread(_install, work / "venv")
    value = Sample.of([size], "MB")
    return [Row("core install", value, None, "", "≤ 100 MB", size <= 100)]


def _install(venv: Path) -> float:
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    before = _bytes(venv)
    pip = [str(venv / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-qq"]
    subprocess.run([*pip, "install", str(ROOT)], check=True)
    return (_bytes(venv) - before) / 1e6


def _bytes(folder: Path) -> int:
    """Blocks on disk, as `du` counts them; a file with two names counts once."""
    said = subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=True)
    return int(said.stdout.split()[0]) * 1024
