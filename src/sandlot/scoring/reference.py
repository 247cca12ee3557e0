"""The published package's own score of the same text, where that package is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sandlot.core.types import Task
from sandlot.scoring.base import ScoringTools
from sandlot.scoring.children import ChildPool, Failed

WALL_S = 20.0
DOMAINS = ("math", "chem", "biomed", "instruct_follow", "instruct_pretrain")
"""Domains that it scores by rules. For physics and long_context its reward file is a placeholder
that gives 0.0 to every answer, which is no score."""


class Reference:
    """What llm-in-sandbox 0.2.0 gives for an answer, beside our own score.

    It reads the text as the model left it, as the published harness does. Its reward files run in
    a helper process that loads them by path and nothing else of the package. Not installed, a
    domain without rules, or a failure of theirs: None. The first tells for good.
    """

    def __init__(self, tools: ScoringTools, *, helpers: int = 1) -> None:
        self._pool = ChildPool(
            "sandlot.scoring.reference_child",
            timeout_s=WALL_S,
            size=helpers,
            environ=tools.environ,
        )
        self._absent: bool | None = None

    async def installed(self) -> bool:
        """Whether the package is there. Starts a helper process the first time."""
        if self._absent is None:
            self._absent = not await self._pool.usable()
        return not self._absent

    async def score(self, task: Task, answer: str | None, domain: str) -> float | None:
        if domain not in DOMAINS or not await self.installed():
            return None
        reply = await self._pool.ask(
            {
                "domain": domain,
                "answer": answer or "",
                "truth": _as_text(task.target),
                "kwargs": _row(task, domain),
            }
        )
        if isinstance(reply, Failed) or "value" not in reply:
            return None
        return round(float(reply["value"]), 6)

    async def close(self) -> None:
        await self._pool.close()


def _as_text(target: Any) -> str:
    return target if isinstance(target, str) else json.dumps(target)


def _row(task: Task, domain: str) -> Mapping[str, Any]:
    """The fields of a row that its reward files read."""
    return {
        "id": task.id,
        "domain": task.domain or domain,
        "qa_type": task.metadata.get("qa_type"),
        "problem_statement": task.prompt,
    }
