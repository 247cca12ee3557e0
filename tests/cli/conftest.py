"""A command line of one's own: a fresh folder, a scripted model and the fake sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
Script = Callable[..., str]


def call(tool: str, **arguments: object) -> dict[str, Any]:
    return {"tool_calls": [{"name": tool, "arguments": arguments}]}


def write(path: str, text: str) -> dict[str, Any]:
    return call("str_replace_editor", command="create", path=path, file_text=text)


ANSWER = [write("/testbed/output/answer.txt", "forty-two\n"), call("submit")]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        # Leases of this test alone: other sandboxes of this user must not show in `ps` or `reap`.
        "XDG_RUNTIME_DIR": str(tmp_path),
        "HOME": str(tmp_path / "home"),
        "LANG": "C.UTF-8",
        "SANDLOT_BACKEND": "fake",
    }


@pytest.fixture
def sandlot(tmp_path: Path, environment: dict[str, str]) -> Command:
    """Run the real program in the test's folder."""

    def command(
        *arguments: str, stdin: str = "", variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sandlot.cli.main", *arguments],
            cwd=tmp_path,
            env={**environment, **(variables or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return command


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write a model's replies to a file; gives the `-m` for it."""

    def write_script(replies: Sequence[dict[str, Any]], name: str = "script.jsonl") -> str:
        (tmp_path / name).write_text("".join(json.dumps(reply) + "\n" for reply in replies))
        return f"scripted:{name}"

    return write_script
