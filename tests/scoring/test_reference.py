"""The published package's score: by its reward files alone, and absent where it is absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sandlot.core.types import Task
from sandlot.scoring.base import ScoringTools
from sandlot.scoring.reference import DOMAINS, Reference

SAME = "def compute_score(agent_answer, ground_truth, **kwargs):\n"
REWARDS = {
    "math": SAME + "    return float(agent_answer == ground_truth)\n",
    "chem": SAME + "    print('Error in compute_score: no signal'); return 0.0\n",
    "biomed": SAME + "    raise KeyError('x')\n",
    "instruct_pretrain": "from llm_in_sandbox.benchmark.math.reward import compute_score as inner\n"
    + SAME
    + "    print('noise'); return inner(agent_answer, ground_truth) / len(kwargs['qa_type'])\n",
    "physics": SAME + "    return 0.0\n",
}


@pytest.fixture
def installed(tools: ScoringTools, tmp_path: Path) -> ScoringTools:
    """A package of the published layout whose own `__init__` must not run."""
    package = tmp_path / "double" / "llm_in_sandbox"
    for domain, code in REWARDS.items():
        folder = package / "benchmark" / domain
        folder.mkdir(parents=True)
        (folder / "reward.py").write_text(code)
    for init in (package, package / "benchmark"):
        (init / "__init__.py").write_text("raise SystemExit('loaded')\n")
    return replace(tools, environ={**tools.environ, "PYTHONPATH": str(package.parent)})


async def test_reward_files_score_the_raw_text(installed: ScoringTools) -> None:
    reference = Reference(installed)
    task = Task("t1", "?", target="5", metadata={"qa_type": "mc"})
    try:
        assert await reference.installed()
        assert await reference.score(task, "5", "math") == 1.0
        assert await reference.score(task, "ANSWER: 5", "math") == 0.0
        assert await reference.score(task, "5", "instruct_pretrain") == 0.5
    finally:
        await reference.close()


async def test_a_failure_or_a_placeholder_is_no_score(installed: ScoringTools) -> None:
    reference = Reference(installed)
    task = Task("t1", "?", target="5")
    try:
        assert await reference.score(task, "5", "chem") is None  # it swallowed its own failure
        assert await reference.score(task, "5", "biomed") is None
        assert await reference.score(task, "5", "instruct_follow") is None  # no such file
        assert await reference.score(task, "5", "physics") is None
        assert "physics" not in DOMAINS
    finally:
        await reference.close()


async def test_where_the_package_is_not_installed_there_is_no_score(
    tools: ScoringTools, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden" / "llm_in_sandbox.py"  # a module, so never the package
    hidden.parent.mkdir()
    hidden.touch()
    reference = Reference(
        replace(tools, environ={**tools.environ, "PYTHONPATH": str(hidden.parent)})
    )
    assert not await reference.installed()
    assert await reference.score(Task("t1", "?", target="5"), "5", "math") is None
    await reference.close()
