"""The demo: a real small model works in a real sandbox on the files of demo/input.

Where no backend with walls of its own works, it takes `restricted`, which holds less, and says so:
what runs there is what the small model asks for, on the files of this repository.

Ends with 0 when the machinery worked, whatever the model answered, and with another code when it
did not. Set up by `make demo`. Another model may be named: `demo.py scripted:FILE`.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from sandlot.core.errors import SandboxUnavailable
from sandlot.core.store import RunDirectory, newest_run
from sandlot.core.types import Trajectory
from sandlot.sandbox.choose import AUTO, choose_here
from sandlot.settings import resolve

ROOT = Path(__file__).resolve().parent.parent
INPUT, OUTPUT, RUNS = ROOT / "demo" / "input", ROOT / "demo-output", ROOT / "runs"
SANDLOT = Path(sys.executable).with_name("sandlot")
# An untrained model of this size invents commands; with one before its eyes it copies that.
PROMPT = (
    "Count the lines of station.log that hold the word WARN. Write the number to the answer "
    "file. For the word ERROR the command would be: "
    "grep -c ERROR input/station.log > output/answer.txt"
)
# The run stopped by itself: with an answer (0) or without one (1). Other codes are failures.
MACHINERY_WORKED = (0, 1)


def truth() -> str:
    lines = (INPUT / "station.log").read_text("utf-8").splitlines()
    return str(sum("WARN" in line for line in lines))


def main() -> int:
    began = time.monotonic()
    model = sys.argv[1] if len(sys.argv) > 1 else "local"
    backend = pick_backend()
    image = "host" if backend == "restricted" else prepare_image()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    step(f"a model works on {INPUT.relative_to(ROOT)} (backend {backend}, image {image})")
    before = newest_run(RUNS)
    code = run_model(model, backend, image)
    if code not in MACHINERY_WORKED:
        print(f"\ndemo: the run failed (exit code {code}); see above", file=sys.stderr)
        return code
    run = newest_run(RUNS)
    if run is None or run == before:
        print(f"\ndemo: the run left no record in {RUNS}", file=sys.stderr)
        return 1
    tell(RunDirectory.open(run).trajectory(), run, time.monotonic() - began)
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


def run_model(model: str, backend: str, image: str) -> int:
    command: list[str | Path] = [
        SANDLOT,
        "run",
        PROMPT,
        "-m",
        model,
        *(() if model.startswith("local") else ("--profile", "compact")),  # local ones know theirs
        "--backend",
        backend,
        "--image",
        image,
    ]
    command += ["--input", INPUT, "--output", OUTPUT, "--network", "none", "--temperature", "0"]
    # Four turns show the loop; later ones repeat themselves.
    command += ["--seed", "1", "--max-turns", "4"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


# --- the image -----------------------------------------------------------------------------


def prepare_image() -> str:
    """`base`, built where this machine and this user can; else `host`, which needs no build."""
    if image_is_there("base"):
        return "base"
    missing = what_a_build_lacks()
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        step("mmdebstrap, which builds images (by apt-get)")
        install("mmdebstrap")
        missing = what_a_build_lacks()
    if missing:
        print(
            f"==> no image can be built here, so the sandbox shows this machine's own programs\n"
            f"    (--image host). What brings it: {missing}"
        )
        return "host"
    step("sandbox image 'base', built once (about half a minute)")
    if subprocess.run([SANDLOT, "image", "build", "base"], cwd=ROOT, check=False).returncode:
        print("==> the image could not be built (see above); --image host is used instead")
        return "host"
    return "base"


def image_is_there(name: str) -> bool:
    listing = subprocess.run(
        [SANDLOT, "image", "list"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    return any(name in line.split() for line in listing.stdout.splitlines())


def what_a_build_lacks() -> str | None:
    """The one command that makes a build possible, or None where nothing lacks."""
    packages = [] if shutil.which("mmdebstrap") else ["mmdebstrap"]
    if os.geteuid() == 0:
        return f"apt-get install {' '.join(packages)}" if packages else None
    if not shutil.which("newuidmap"):
        packages.append("uidmap")
    steps = [f"sudo apt-get install {' '.join(packages)}"] if packages else []
    if not has_subordinate_ids():
        ids = "--add-subuids 100000-165535 --add-subgids 100000-165535"
        steps.append(f"sudo usermod {ids} {getpass.getuser()}")
    return " && ".join(steps) or None


def has_subordinate_ids() -> bool:
    owners = {getpass.getuser(), str(os.getuid())}
    try:
        lines = Path("/etc/subuid").read_text("utf-8").splitlines()
    except OSError:
        return False
    return any(line.split(":")[0] in owners for line in lines)


def install(package: str) -> None:
    """Install a Debian package; the lists are fetched first where the package is not in them."""
    command = ["apt-get", "install", "-y", "--no-install-recommends", package]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    known = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    if not known.stdout:
        subprocess.run(
            ["apt-get", "update"], check=False, env=environment, stdout=subprocess.DEVNULL
        )
    subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)


# --- what is told --------------------------------------------------------------------------


def step(text: str) -> None:
    print(f"==> {text}", flush=True)


def tell(trajectory: Trajectory, run: Path, seconds: float) -> None:
    answer, right = (trajectory.answer or "").strip(), truth()
    calls = [result.call for turn in trajectory.turns for result in turn.tool_results]
    used = sum(turn.usage.completion_tokens or 0 for turn in trajectory.turns)
    stopped = trajectory.stop_reason.value if trajectory.stop_reason else "unknown"
    turns = len(trajectory.turns)
    did = f"{turns} turns, {len(calls)} tool calls, {used} tokens; stopped: {stopped}"
    verdict = "right" if answer == right else f"wrong: it is {right}"
    print(f"""
--- demo ---------------------------------------------------------------------------------
The model    SmolLM2-135M-Instruct: 135 million parameters, on this machine's processor. It
             was never taught to use a computer and is a stand-in. What was shown is real:
             a model, a sandbox, files in, files out, a record of each step.
The task     {PROMPT}
What it did  {did}
Its answer   {f"{answer[:60]!r}, which is {verdict}" if answer else f"none (it is {right})"}
The record   {run.relative_to(ROOT)}
The time     {seconds:.1f} s

For a capable model, replace `-m local --profile compact` by one flag (with its key in
OPENAI_API_KEY; --base-url URL for a server of your own):

    .venv/bin/sandlot run "{PROMPT}" \\
        --input demo/input --output demo-output -m openai/NAME
""")


if __name__ == "__main__":
    sys.exit(main())
