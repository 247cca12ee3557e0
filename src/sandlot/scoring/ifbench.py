"""IFBench by its published checkers, in a helper process; loud where they or data are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from sandlot.core.errors import ConfigError, MissingExtra
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.children import ChildPool, Failed
from sandlot.scoring.extract import visible_text

WALL_S = 4.5


class IFBenchScorer:
    """1 where every instruction is followed by the loose rule (the benchmark's own metric), else 0.

    `details` holds strict and loose verdicts of the prompt and of each instruction, and which
    checkers gave them. Checkers or language data that are not installed make a missing score.
    The answer is the whole visible text.
    """

    name = "ifbench"
    version = "1"

    def __init__(self, tools: ScoringTools, *, helpers: int = 2) -> None:
        if find_spec("if_verifiable") is None and find_spec("ifbench") is None:
            raise MissingExtra("the ifbench scorer", "ifbench")
        self._pool = ChildPool(
            "sandlot.scoring.ifbench_child",
            timeout_s=WALL_S,
            size=helpers,
            environ=tools.environ,
        )

    async def score(self, candidate: Candidate) -> Score:
        ids, kwargs = ifbench_target(candidate.task)
        response = visible_text(candidate.answer)
        if not response:
            return self._scored(candidate, 0.0, {"no_answer": True})
        reply = await self._pool.ask({"response": response, "ids": ids, "kwargs": kwargs})
        if isinstance(reply, Failed):
            return self._missing(candidate, reply.reason)
        if "verdicts" not in reply:
            return self._missing(candidate, str(reply.get("missing") or reply.get("exhausted")))
        return self._graded(candidate, reply["verdicts"])

    async def close(self) -> None:
        await self._pool.close()

    def _graded(self, candidate: Candidate, verdicts: Sequence[Mapping[str, Any]]) -> Score:
        kept = {rule: [bool(v[rule]) for v in verdicts] for rule in ("strict", "loose")}
        details = {
            "checks": verdicts,
            "checker": self._pool.greeting.get("ready"),
            "prompt_strict": all(kept["strict"]),
            "prompt_loose": all(kept["loose"]),
            "instruction_strict": round(sum(kept["strict"]) / len(verdicts), 4),
            "instruction_loose": round(sum(kept["loose"]) / len(verdicts), 4),
        }
        return self._scored(candidate, float(all(kept["loose"])), details)

    def _scored(self, candidate: Candidate, value: float, details: Mapping[str, Any]) -> Score:
        return Score(candidate.task.id, self.name, self.version, value, details=details)

    def _missing(self, candidate: Candidate, reason: str) -> Score:
        return Score(candidate.task.id, self.name, self.version, None, missing=reason)


def ifbench_target(task: Task) -> tuple[list[str], list[dict[str, Any]]]:
    """Instruction ids and their arguments, from the benchmark's JSON.

    Raises:
        ConfigError: the truth is not such JSON; names the task.
    """
    target = task.target
    try:
        data = json.loads(target) if isinstance(target, str) else target
        ids, kwargs = list(data["instruction_id_list"]), [dict(one) for one in data["kwargs"]]
    except (ValueError, TypeError, KeyError) as exc:
        raise _not_a_target(task) from exc
    if not ids or len(ids) != len(kwargs) or not all(isinstance(one, str) for one in ids):
        raise _not_a_target(task)
    return ids, kwargs


def _not_a_target(task: Task) -> ConfigError:
    return ConfigError(
        f"task {task.id!r}: the ground truth must be JSON with instruction_id_list and as many "
        f"kwargs, found {str(task.target)[:120]!r}"
    )
