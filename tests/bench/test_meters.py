"""What a rollout used, and which capabilities its actions show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandlot.bench.meters import Price, capabilities, measure
from sandlot.bench.shellwords import commands_of
from sandlot.core.types import (
    CollectedFile,
    CommandMeter,
    EgressRecord,
    Message,
    SandboxMeter,
    StopReason,
    Task,
    TextPart,
    ToolResult,
    Trajectory,
    Turn,
    Usage,
)
from sandlot.models.scripted import bash, call, calls, edit, say

UNKNOWN = Usage()
EXTERNAL, FILES, COMPUTING = "external", "files", "computation"


def turn_of(
    reply: Message, *observations: str, index: int = 0, usage: Usage = UNKNOWN, exit_code: int = 0
) -> Turn:
    """A turn whose calls got these observations, from 0.5 s commands."""
    results = tuple(
        ToolResult(
            tool_call,
            Message.tool(tool_call.id, TextPart(text)),
            True,
            0.5,
            CommandMeter(exit_code, 0.5),
        )
        for tool_call, text in zip(reply.tool_calls, observations, strict=False)
    )
    return Turn(index, reply, usage, "stop", model_s=2.0, waiting_s=1.0, tool_results=results)


def trajectory_of(*turns: Turn, **fields: Any) -> Trajectory:
    messages: list[Message] = [Message.user("what is asked")]
    for turn in turns:
        messages += [turn.reply, *(result.message for result in turn.tool_results)]
    base = Trajectory(
        id="r",
        task=Task("t", "what is asked"),
        mode="sandbox",
        model="m",
        messages=tuple(messages),
        turns=turns,
        stop_reason=StopReason.SUBMITTED,
    )
    return replace(base, **fields)


def shown_by(reply: Message) -> set[str]:
    return set(capabilities(turn_of(reply)))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("pip install rdkit", {EXTERNAL}),
        ("python3 -m pip install -q numpy==2.0", {EXTERNAL}),
        ("uv pip install sympy", {EXTERNAL}),
        ("sudo apt-get update && sudo apt-get install -y sox", {EXTERNAL}),
        ("DEBIAN_FRONTEND=noninteractive apt install -y gp", {EXTERNAL}),
        ("npm i left-pad", {EXTERNAL}),
        ("timeout 20 curl -sL example.test/a", {EXTERNAL}),
        ("x=$(curl -s example.test); echo $x", {EXTERNAL}),
        ('echo "$(wget -qO- example.test)"', {EXTERNAL}),
        ("bash -c 'wget example.test'", {EXTERNAL}),
        ("git clone example.test:a/b.git", {EXTERNAL}),
        ("cd /srv\ncurl example.test", {EXTERNAL}),
        ("ls | xargs -n 1 curl", {EXTERNAL, FILES}),
        ("cat a.txt | grep word", {FILES}),
        ("grep -rn 'needle' /testbed/input", {FILES}),
        ("/usr/bin/find . -name '*.md'", {FILES}),
        ("for f in *.txt; do cat $f; done", {FILES}),
        ("head -50 notes.txt", {FILES}),
        ("echo '2^100' | bc", {COMPUTING}),
        ("gp -q script.gp", {COMPUTING}),
        ("python3 -c 'import math; print(math.comb(50, 3))'", {COMPUTING}),
        ("python3 -c 'print(2**100)'", {COMPUTING}),
        ("python3 -c 'print(17 * 23 + 4)'", {COMPUTING}),
        ("python3 - <<'EOF'\nfor i in range(10):\n    print(i)\nEOF", {COMPUTING}),
        ("python3 <<EOF\nprint(open('a').read())\nEOF", {FILES}),
        (
            "cat > s.py <<'EOF'\nimport requests\nprint(requests.get(u))\nEOF\npython3 s.py",
            {EXTERNAL},
        ),
        ("cat > s.py <<'EOF'\nimport numpy as np\nprint(np.linalg.det(a))\nEOF", {COMPUTING}),
        ("cat > s.sh <<'EOF'\nwget example.test\nEOF", {EXTERNAL}),
        ("tee s.py <<'EOF'\nfrom scipy.optimize import fsolve\nfsolve(f, 1)\nEOF", {COMPUTING}),
        # What only looks like it.
        ("echo 'curl is a program'", set()),
        ("echo done # pip install nothing", set()),
        ("git commit -m 'pip install; cat file'", set()),
        ('echo "grep and find"', set()),
        ("pip list | grep numpy", set()),
        ("pip --version", set()),
        ("python3 solve.py | tail -5", set()),
        ("python3 -c 'print(\"range( while open(\")'", set()),
        ("python3 -c 'print(1)  # open(x)'", set()),
        ("cat > notes.txt <<'EOF'\nuse curl, then open( the file\nEOF", set()),
        ("echo 42 > /testbed/output/answer.txt", set()),
        ("cd /testbed && pwd", set()),
        ("concatenate; findings; curling", set()),
        ("echo 'unclosed", set()),
        ("", set()),
    ],
)
def test_a_command_shows_its_capabilities(command: str, expected: set[str]) -> None:
    assert shown_by(bash(command)) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import requests", {EXTERNAL}),
        ("from bs4 import BeautifulSoup as B\nB(text)", {EXTERNAL}),
        ("from rdkit import Chem\nm = Chem.MolFromSmiles('C')", {EXTERNAL}),
        ("import urllib.request as u\nu.urlopen(a)", {EXTERNAL}),
        ("import subprocess\nsubprocess.run(['pip', 'install', 'x'])", {EXTERNAL}),
        (
            "import sys, subprocess\nsubprocess.run([sys.executable, '-m', 'pip', 'install', 'x'])",
            {EXTERNAL},
        ),
        ("from os import system\nsystem('curl example.test')", {EXTERNAL}),
        ("import pandas as pd\npd.read_csv('a')", {FILES}),
        ("import numpy as np\nnp.load('a')", {FILES}),
        ("import os\nos.path.exists('a')", {FILES}),
        ("from pathlib import Path\nprint(Path('a').read_text())", {FILES}),
        ("with open('a') as f: pass", {FILES}),
        ("import glob\nglob.glob('*')", {FILES}),
        ("import pickle\npickle.load(f)", {FILES}),
        ("from itertools import permutations as p\np(x)", {COMPUTING}),
        ("from scipy.integrate import odeint, quad\nquad(f, 0, 1)", {COMPUTING}),
        ("while True:\n    break", {COMPUTING}),
        ("[n for n in range(9)]", {COMPUTING}),
        ("import sympy as sp\nsp.solve(e)", {COMPUTING}),
        ("import json\nfor n in range(3): json.load(open('a'))", {FILES, COMPUTING}),
        # A part of a file does not parse; it is read loosely.
        ("    for n in range(3):\n  print(n)", {COMPUTING}),
        ("print 'open(x)'", set()),
        ("  return requests.get(url)", {EXTERNAL}),
        # What only looks like it.
        ("import math", set()),
        ("print('open(', 'requests.get(')", set()),
        ('"""open(x) while range(3)"""\nprint(1)', set()),
        ("self.open(door)", set()),
        ("arrange(3)", set()),
        ("x = 'a' * 3", set()),
        ("", set()),
    ],
)
def test_python_code_shows_its_capabilities_wherever_it_is_written(
    code: str, expected: set[str]
) -> None:
    assert shown_by(edit("create", "/testbed/s.py", file_text=code)) == expected
    assert shown_by(bash(f"python3 <<'EOF'\n{code}\nEOF")) == expected


def test_the_editor_shows_what_it_reads_and_the_code_it_writes() -> None:
    assert shown_by(edit("view", "/testbed/input/a.txt")) == {FILES}
    assert shown_by(edit("create", "/a.txt", file_text="curl x; open(y)")) == set()
    assert shown_by(edit("create", "/a.sh", file_text="curl x")) == {EXTERNAL}
    changed = edit("str_replace", "/a.py", old_str="pass", new_str="while True: pass")
    assert shown_by(changed) == {COMPUTING}


def test_a_turn_shows_what_all_its_calls_show_and_text_alone_shows_nothing() -> None:
    assert shown_by(calls(bash("cat a"), bash("pip install b"))) == {FILES, EXTERNAL}
    assert shown_by(say("I would run curl and open(file)")) == set()
    assert shown_by(call("execute_bash", "{not json")) == set()
    assert shown_by(call("browser", {"command": "curl x"})) == set()


def test_a_shell_text_is_read_as_its_commands() -> None:
    text = "a 'b c' > out 2>&1 | /bin/g -x && (h; ! i) & cat <<E | j\nbody; k\nE\nl # m"
    found = commands_of(text)
    assert [command.name for command in found] == ["a", "g", "h", "i", "cat", "j", "l"]
    assert found[0].arguments == ("b c",)
    assert found[0].targets == ("out",)
    assert [command.name for command in found if command.piped] == ["g", "j"]
    assert found[4].heredoc == "body; k"


def test_a_shift_operator_is_no_here_document() -> None:
    found = commands_of('python3 -c "print(1 << n)"; ls')
    assert [command.name for command in found] == ["python3", "ls"]


def test_tokens_are_summed_over_requests_and_the_context_is_the_last_ones() -> None:
    first = turn_of(bash("a"), "x", usage=Usage(100, 10, cached_tokens=0))
    second = turn_of(bash("b"), "y", index=1, usage=Usage(150, 20, cached_tokens=90))
    meters = measure(trajectory_of(first, second))
    assert (meters.turns, meters.tool_calls) == (2, 2)
    assert (meters.billed_prompt_tokens, meters.billed_completion_tokens) == (250, 30)
    assert (meters.billed_cached_tokens, meters.context_tokens) == (90, 170)


def test_what_no_turn_reported_is_unknown_and_never_zero() -> None:
    meters = measure(trajectory_of(turn_of(bash("a"), "x")), Price(1.0, 2.0))
    assert meters.billed_prompt_tokens is None
    assert meters.billed_cached_tokens is None
    assert meters.context_tokens is None
    assert meters.observation_tokens is None
    assert meters.cost_usd is None
    assert meters.cpu_s is None
    assert meters.wall_s is None


def test_the_providers_price_goes_before_the_users_table() -> None:
    told = turn_of(say("a"), usage=Usage(1000, 1000, cost_usd=0.5))
    untold = turn_of(say("b"), usage=Usage(3_000_000, 1_000_000, cached_tokens=1_000_000))
    assert measure(trajectory_of(told)).cost_usd == 0.5
    assert measure(trajectory_of(untold)).cost_usd is None
    price = Price(prompt_usd=2.0, completion_usd=8.0, cached_usd=0.2)
    assert measure(trajectory_of(told, untold), price).cost_usd == pytest.approx(0.5 + 4 + 0.2 + 8)
    uncached = Price(prompt_usd=2.0, completion_usd=8.0)
    assert measure(trajectory_of(untold), uncached).cost_usd == pytest.approx(6 + 8)


def test_time_is_split_into_the_models_the_tools_and_waiting() -> None:
    turns = (turn_of(bash("a"), "x"), turn_of(bash("b"), "y", index=1))
    meters = measure(trajectory_of(*turns, duration_s=9.0))
    assert (meters.wall_s, meters.model_s, meters.tool_s, meters.waiting_s) == (9.0, 4.0, 1.0, 2.0)


def test_the_observed_share_is_that_of_the_last_request() -> None:
    shown = turn_of(bash("c" * 69), "o" * 500, usage=Usage(90, 10))
    last = turn_of(say("z" * 287), index=1, usage=Usage(990, 10))
    meters = measure(trajectory_of(shown, last))
    characters = len("what is asked") + 69 + len('execute_bash{"command": ""}') + 500 + 287
    assert meters.observation_tokens == round(1000 * 500 / characters)
    unseen = measure(trajectory_of(replace(shown, usage=Usage(90, 10))))
    assert unseen.observation_tokens == 0


def test_the_boundary_tells_hosts_bytes_refusals_files_and_use() -> None:
    egress = (
        EgressRecord("b.test", 443, "allowed", 10, 100),
        EgressRecord("a.test", 443, "allowed", 1, 2),
        EgressRecord("b.test", 80, "allowed", 0, 5),
        EgressRecord("c.test", 443, "not allowed"),
    )
    run = trajectory_of(
        egress=egress,
        files=(CollectedFile("a.png", 3, "00"),),
        meter=SandboxMeter(memory_peak_bytes=7, cpu_s=1.5),
    )
    meters = measure(run)
    assert dict(meters.egress_hosts) == {"a.test": 3, "b.test": 115}
    assert meters.refused_requests == 1
    assert meters.files_left == 1
    assert (meters.cpu_s, meters.memory_peak_bytes) == (1.5, 7)
    assert measure(replace(run, mode="llm")).files_left is None
    assert measure(replace(run, stop_reason=None)).files_left is None


def test_turns_are_counted_for_each_capability() -> None:
    turns = (
        turn_of(bash("cat a; pip install b"), ""),
        turn_of(bash("cat a"), "", index=1),
        turn_of(say("done"), index=2),
    )
    shown = measure(trajectory_of(*turns)).turns_with
    assert dict(shown) == {EXTERNAL: 1, FILES: 2, COMPUTING: 0}


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["pip install qrcode", "python3 -c 'import qrcode'"], ("qrcode",)),
        (["pip install 'qrcode[pil]>=7' && python3 -c 'import qrcode'"], ("qrcode",)),
        (
            ["pip install beautifulsoup4", "python3 - <<E\nfrom bs4 import X\nE"],
            ("beautifulsoup4",),
        ),
        (["pip install yt-dlp && yt-dlp a"], ("yt-dlp",)),
        (["pip install pytest", "python3 -m pytest"], ("pytest",)),
        (["apt-get install -y imagemagick sox", "convert a.png b.png"], ("imagemagick",)),
        (["apt install texlive-latex-base", "pdflatex a"], ("texlive-latex-base",)),
        (["apt install -y r-base", "Rscript a.R"], ("r-base",)),
        (["npm install mathjs", "node -e \"require('mathjs')\""], ("mathjs",)),
        (
            [
                "python3 -c \"import os; os.system('pip install music21')\"",
                "python3 -c 'import music21'",
            ],
            ("music21",),
        ),
        # Brought in and left alone, used before, not brought in, or not there after all.
        (["pip install qrcode", "python3 -c 'import json'"], ()),
        (["python3 -c 'import qrcode'", "pip install qrcode"], ()),
        (["python3 -c 'import qrcode'"], ()),
        (["pip install -r requirements.txt", "python3 -c 'import requirements'"], ()),
        (["pip install qrcode", "echo import qrcode"], ()),
        (["pip install sox", "echo sox"], ()),
    ],
)
def test_what_was_installed_and_then_used_is_told(
    commands: list[str], expected: tuple[str, ...]
) -> None:
    turns = [turn_of(bash(command), "ok", index=n) for n, command in enumerate(commands)]
    assert measure(trajectory_of(*turns)).installed_and_used == expected


def test_an_install_that_failed_or_a_module_that_is_not_found_is_no_use() -> None:
    use = turn_of(bash("python3 -c 'import qrcode'"), "ok", index=1)
    failed = turn_of(bash("pip install qrcode"), "", exit_code=1)
    assert measure(trajectory_of(failed, use)).installed_and_used == ()
    hidden = turn_of(bash("pip install qrcode | tail -1"), "ERROR: No matching distribution found")
    assert measure(trajectory_of(hidden, use)).installed_and_used == ()
    missing = turn_of(bash("python3 -c 'import qrcode'"), "ModuleNotFoundError", index=1)
    worked = turn_of(bash("pip install qrcode"), "")
    assert measure(trajectory_of(worked, missing)).installed_and_used == ()
    assert measure(trajectory_of(worked, use)).installed_and_used == ("qrcode",)


@pytest.mark.parametrize(
    "text",
    [
        "cat <<E\n" * 2000,
        '"$(' * 2000,
        '"' + "$(" * 5000 + '"',
        "bash -c " * 2000,
        "a|" * 5000,
        "'" * 5001,
        "\\" * 5001,
        "python3 -c '" + "(" * 5000 + "'",
        "python3 <<E\n" + "-" * 20_000 + "1\nE",
        "python3 <<E\nprint('\\d')\nE",
        "\x000\x00 \x00",
        "\udcff\ud800",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_no_text_stops_the_count(text: str) -> None:
    turns = (turn_of(bash(text), "x"), turn_of(edit("create", "/a.py", file_text=text), "y"))
    assert measure(trajectory_of(*turns)).turns == 2
