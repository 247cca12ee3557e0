"""The demo: a real small model, taught by this project, works in real sandboxes on demo/input.

Where no backend with walls of its own works, it takes `restricted`, which holds less, and says so:
what runs there is what the small model asks for, on the files of this repository.

Ends with 0 when the machinery worked, whatever the model answered, and with another code when it
did not. Set up by `make demo`. Another model may be named: `demo.py scripted:FILE`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from prepare_image import prepare_image, step

from sandlot.core.errors import SandboxUnavailable
from sandlot.core.store import RunDirectory, newest_run
from sandlot.core.types import Trajectory
from sandlot.sandbox.choose import AUTO, choose_here
from sandlot.settings import resolve

ROOT = Path(__file__).resolve().parent.parent
INPUT, OUTPUT, RUNS = ROOT / "demo" / "input", ROOT / "demo-output", ROOT / "runs"
SANDLOT = Path(sys.executable).with_name("sandlot")
LOG, NOTES = INPUT / "station.log", INPUT / "notes.txt"


@dataclass(frozen=True, slots=True)
class Errand:
    """A task of a kind that the model was taught, and its truth, computed here."""

    prompt: str
    truth: str


def errands() -> tuple[Errand, ...]:
    lines, words = LOG.read_text("utf-8").splitlines(), NOTES.read_text("utf-8").split()
    warnings = sum("WARN" in line for line in lines)
    return (
        Errand("Count the lines of input/station.log that contain WARN.", str(warnings)),
        Errand("Count the words of input/notes.txt.", str(len(words))),
        Errand("Multiply 2612 by 333.", str(2612 * 333)),
    )


# The run stopped by itself: with an answer (0) or without one (1). Other codes are failures.
MACHINERY_WORKED = (0, 1)


def main() -> int:
    began = time.monotonic()
    model = sys.argv[1] if len(sys.argv) > 1 else "local"
    backend = pick_backend()
    image = "host" if backend == "restricted" else prepare_image()
    done: list[tuple[Errand, Path]] = []
    for errand in errands():
        step(f"{errand.prompt} (backend {backend}, image {image})")
        before = newest_run(RUNS)
        shutil.rmtree(OUTPUT, ignore_errors=True)
        code = run_model(errand.prompt, model, backend, image)
        if code not in MACHINERY_WORKED:
            print(f"\ndemo: the run failed (exit code {code}); see above", file=sys.stderr)
            return code
        run = newest_run(RUNS)
        if run is None or run == before:
            print(f"\ndemo: the run left no record in {RUNS}", file=sys.stderr)
            return 1
        done.append((errand, run))
    tell(done, model, time.monotonic() - began)
    return 0


def pick_backend() -> str:
    """What the settings name or `auto` finds; where nothing works, the weaker backend."""
    settings = resolve()
    if settings.backend != AUTO:
        return settings.backend
    try:
        choice = asyncio.run(choose_here(settings.state_dir, os.environ, settings.engine))
    except SandboxUnavailable as exc:
        step(str(exc))
        step("so this demo, and only it, takes the weaker one by itself: --backend restricted")
        return "restricted"
    return choice.backend


def run_model(prompt: str, model: str, backend: str, image: str) -> int:
    command: list[str | Path] = [SANDLOT, "run", prompt, "-m", model, "--backend", backend]
    command += ["--image", image, "--input", INPUT, "--output", OUTPUT, "--network", "none"]
    command += ["--temperature", "0", "--seed", "1"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


# --- what is told --------------------------------------------------------------------------


def tell(done: list[tuple[Errand, Path]], model: str, seconds: float) -> None:
    print(f"""
--- demo ---------------------------------------------------------------------------------
The model    {WHO if model == "local" else model}
The errands""")
    for errand, run in done:
        print(f"  {errand.prompt}\n    {outcome(errand, RunDirectory.open(run).trajectory())}")
    print(f"""The records  {done[0][1].parent.relative_to(ROOT)}/
The time     {seconds:.1f} s

It knows {KINDS}
and little else (docs/experiments.md says how well). For your own tasks name a capable model, with
its key in OPENAI_API_KEY (--base-url URL for a server of your own):

    .venv/bin/sandlot run "How many warnings did the day bring, and why?" \\
        --input demo/input --output demo-output -m openai/NAME
""")


WHO = """SmolLM2-135M-Instruct: 135 million parameters, on this machine's processor,
             with an adapter that `sandlot train recipes/smollm2.toml` made: it learned by its
             own attempts, rewarded by right answers alone, to use the computer for errands."""
KINDS = """errands of these kinds: multiply; look a value up in files; count lines with a word,
words, distinct lines or files with a word; sort words or numbers; sums and columns; a line
by its number; the day after so many days; lines joined by commas or reversed;"""


def outcome(errand: Errand, trajectory: Trajectory) -> str:
    answer = (trajectory.answer or "").strip()
    commands = [
        json.loads(call.arguments).get("command", "")
        for turn in trajectory.turns
        for call in turn.reply.tool_calls
        if call.name == "execute_bash"
    ]
    did = f"{len(trajectory.turns)} turns; its last command: {commands[-1] if commands else 'none'}"
    if not answer:
        return f"{did}\n    it left no answer; it is {errand.truth}"
    verdict = "right" if answer == errand.truth else f"wrong: it is {errand.truth}"
    return f"{did}\n    it answered {answer[:60]!r}, which is {verdict}"


if __name__ == "__main__":
    sys.exit(main())
