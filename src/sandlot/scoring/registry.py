"""Scorers by name. Imports a scorer's code only when it is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Score
from sandlot.scoring.base import Candidate, Scorer, ScoringTools

ENTRY_POINTS = "sandlot.scorers"

Builder = Callable[..., Scorer]
"""Called with the tools, and with a set's `scorer_options` by keyword."""


def scorer_names() -> list[str]:
    """Names of the shipped scorers and of those that other packages add."""
    plugged = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return sorted(plugged | _BUILDERS.keys())


def load_scorer(name: str, options: Mapping[str, Any], tools: ScoringTools) -> Scorer:
    """The scorer of a name, built with its options.

    Third parties add one by an entry point in the group `sandlot.scorers` that names a `Builder`.

    Raises:
        ConfigError: an unknown name, an option that the scorer does not take, or a bad value.
        MissingExtra: the scorer's library is not installed.
    """
    builder = _BUILDERS.get(name) or _plugged_in(name)
    if builder is None:
        raise unknown_name("scorer", name, scorer_names())
    _check_options(name, builder, options)
    return builder(tools, **options)


def _plugged_in(name: str) -> Builder | None:
    for point in entry_points(group=ENTRY_POINTS, name=name):
        builder: Builder = point.load()
        return builder
    return None


def _check_options(name: str, builder: Builder, options: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(builder).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of the scorer {name!r}:", option, known or ["none"])


def _math(
    tools: ScoringTools, *, rel_tol: float = 0.0, numeric: bool = False, helpers: int = 2
) -> Scorer:
    from sandlot.scoring.math import MathScorer

    return MathScorer(tools, rel_tol=rel_tol, numeric=numeric, helpers=helpers)


def _choice(tools: ScoringTools, *, partial: str = "none") -> Scorer:
    from sandlot.scoring.choice import ChoiceScorer

    return ChoiceScorer(partial=partial)


def _text(
    tools: ScoringTools, *, rouge: bool = False, rel_tol: float = 0.0, exact: bool = False
) -> Scorer:
    from sandlot.scoring.text import TextScorer

    return TextScorer(rouge=rouge, rel_tol=rel_tol, exact=exact)


def _qa(
    tools: ScoringTools,
    *,
    rouge: bool = True,
    partial: str = "f1",
    others: str = "open",
    rel_tol: float = 0.0,
) -> Scorer:
    """Choice for questions of choice; `others` for the rest: math, text, or open (math first)."""
    from sandlot.scoring.open import MathFirst
    from sandlot.scoring.text import TextScorer

    if others not in ("math", "open", "text"):
        raise unknown_name("option others of the scorer 'qa':", others, ("math", "open", "text"))
    choice = _choice(tools, partial=partial)
    if others == "math":
        return ByQuestion(choice, _math(tools, rel_tol=rel_tol))
    text = TextScorer(rouge=rouge, rel_tol=rel_tol)
    if others == "text":
        return ByQuestion(choice, text)
    return ByQuestion(choice, MathFirst(text, lambda: _math(tools, rel_tol=rel_tol)))


def _harbor(tools: ScoringTools) -> Scorer:
    raise ConfigError(
        "a Harbor task is graded by its own script (tests/test.sh), run in the container that the "
        "model worked in; sandlot loads such tasks but does not run their scripts. Give them "
        "ground truths in a JSONL of your own and a scorer such as text or judge"
    )


def _instructions(tools: ScoringTools) -> Scorer:
    from sandlot.scoring.instructions import InstructionsScorer

    return InstructionsScorer()


def _ifbench(tools: ScoringTools, *, helpers: int = 2) -> Scorer:
    from sandlot.scoring.ifbench import IFBenchScorer

    return IFBenchScorer(tools, helpers=helpers)


def _judge(
    tools: ScoringTools,
    *,
    rules: str = "general",
    judgements: int = 1,
    tries: int = 3,
    timeout_s: float = 300.0,
    reply_tokens: int = 2048,
) -> Scorer:
    from sandlot.scoring.judge import JudgeScorer

    return JudgeScorer(
        tools,
        rules=rules,
        judgements=judgements,
        tries=tries,
        timeout_s=timeout_s,
        reply_tokens=reply_tokens,
    )


def _cascade(
    tools: ScoringTools,
    *,
    rules: str = "physics",
    judgements: int = 1,
    tries: int = 3,
    timeout_s: float = 300.0,
    reply_tokens: int = 2048,
    rel_tol: float = 0.0,
    numeric: bool = False,
) -> Scorer:
    from sandlot.scoring.judge import CascadeScorer

    judge = _judge(
        tools,
        rules=rules,
        judgements=judgements,
        tries=tries,
        timeout_s=timeout_s,
        reply_tokens=reply_tokens,
    )
    return CascadeScorer(_math(tools, rel_tol=rel_tol, numeric=numeric), judge)


def _files(tools: ScoringTools, **options: Any) -> Scorer:
    built: Scorer = import_module("sandlot.scoring.files").FilesScorer(tools, **options)
    return built


_BUILDERS: Mapping[str, Builder] = {
    "cascade": _cascade,
    "choice": _choice,
    "files": _files,
    "harbor": _harbor,
    "ifbench": _ifbench,
    "instructions": _instructions,
    "judge": _judge,
    "math": _math,
    "qa": _qa,
    "text": _text,
}


class ByQuestion:
    """Choice where the task's own `qa_type` says so ("multiple choice"), else another scorer."""

    name = "qa"
    version = "2"

    def __init__(self, choice: Scorer, other: Scorer) -> None:
        self._choice = choice
        self._other = other

    async def score(self, candidate: Candidate) -> Score:
        kind = str(candidate.task.metadata.get("qa_type") or "").lower()
        chosen = self._choice if "choice" in kind or kind == "mcq" else self._other
        score = await chosen.score(candidate)
        details = {**score.details, "as": score.scorer}
        return Score(score.task_id, self.name, self.version, score.value, score.missing, details)

    async def close(self) -> None:
        await self._choice.close()
        await self._other.close()
