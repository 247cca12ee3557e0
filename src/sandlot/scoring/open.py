"""Open answers: a check by algebra where truth and answer are expressions, else by text."""

from __future__ import annotations

import re
from collections.abc import Callable

from sandlot.core.errors import MissingExtra
from sandlot.core.types import Score
from sandlot.scoring.base import Candidate, Scorer
from sandlot.scoring.extract import extract, plain
from sandlot.scoring.text import text_targets

_LONG = 400  # characters; a longer one is a text
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FUNCTION = re.compile(r"\b(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|max|min|mod)\b")
_WORD = re.compile(r"[^\W\d_]{3,}")
_SIGN = re.compile(r"[\d\\^=+*/<>]")


def is_expression(text: str) -> bool:
    """Whether a text is a number or formula and holds no word of a language."""
    text = plain(text)
    if len(text) > _LONG or not _SIGN.search(text):
        return False
    return not _WORD.search(_FUNCTION.sub(" ", _COMMAND.sub(" ", text)))


class MathFirst:
    """1 where the answer says the truth, in words or as mathematics; else what the text earns.

    Algebra is asked only where truth and answer are expressions: sentences that share a number are
    not equal. Where it is needed and cannot be had (no library, a helper that died), the score is
    missing with the reason, never a lower one.
    """

    name = "open"
    version = "1"

    def __init__(self, text: Scorer, math: Callable[[], Scorer]) -> None:
        self._text = text
        self._build = math
        self._math: Scorer | None = None

    async def score(self, candidate: Candidate) -> Score:
        by_text = await self._text.score(candidate)
        if by_text.value == 1.0 or by_text.details.get("no_answer"):
            return by_text
        truths = text_targets(candidate.task)
        if not is_expression(extract(candidate.answer) or "") or not any(
            map(is_expression, truths)
        ):
            return by_text
        by_math = await self._by_math(candidate)
        if by_math.value == 1.0 or (by_math.missing and not by_math.details.get("truth_unread")):
            return by_math
        return by_text

    async def close(self) -> None:
        await self._text.close()
        if self._math is not None:
            await self._math.close()

    async def _by_math(self, candidate: Candidate) -> Score:
        try:
            self._math = self._math or self._build()
        except MissingExtra as exc:
            return Score(candidate.task.id, "math", self.version, None, str(exc))
        return await self._math.score(candidate)
