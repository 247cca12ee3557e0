"""Mathematical answers: numbers compared exactly here, expressions by math-verify in a child."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from sandlot.core.errors import MissingExtra
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.children import ChildPool, Failed
from sandlot.scoring.extract import extract, plain
from sandlot.scoring.math_child import CPU_S
from sandlot.scoring.quantities import Quantity, read_quantity, same_quantity
from sandlot.scoring.text import normalise, same_text, text_targets

WALL_S = 3.5
"""For one comparison in a helper; its own limit of processor time is shorter."""

_LONG = 2000  # characters; what is longer is no expression that anyone asked for
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*")
_NUMBERS_ALONE = re.compile(r"[-+]?\d+(?:\.\d+)?(?:\s+[-+]?\d+(?:\.\d+)?)+")
_DENIED = re.compile(r"\b(?:not|isn't|cannot|never)\b", re.IGNORECASE)
_TRIG = r"\\(?:sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp)"
_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|theta|vartheta|phi|varphi|psi|omega|lambda|mu"
    r"|nu|rho|sigma|tau|pi|eta|xi|zeta|kappa|chi)"
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        (
            r"(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?|(\d+(?:\.\d+)?)\s*°",
            r"\\frac{\1\2\\pi}{180}",
        ),
        (rf"({_TRIG})\s*({_GREEK})(?![A-Za-z])", r"\1{(\2)}"),
        (r"(?<!\\)\b[CP]\(\s*(\d+)\s*,\s*(\d+)\s*\)", r"\\binom{\1}{\2}"),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"\*\*\s*\(([^()]*)\)|\*\*\s*([\w.]+)", r"^{\1\2}"),
        (r"(?<!\\)\bsqrt\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
    )
)
_MATRIX = re.compile(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])+)\s*\]")


def to_tex(text: str) -> str:
    """An answer as math-verify can read it: without markdown and dollars, Python's forms as TeX.

    Angles in degrees become radians, and a function's single Greek letter gets its brackets, since
    the parser otherwise takes all that follows as the argument.
    """
    text = plain(text).strip().rstrip(".")
    text = re.sub(r"^(?:\*\*|`+)(.*?)(?:\*\*|`+)$", r"\1", text, flags=re.DOTALL).strip()
    text = re.sub(r"^(?:\$+|\\\[|\\\()(.*?)(?:\$+|\\\]|\\\))$", r"\1", text, flags=re.DOTALL)
    text = text.strip().rstrip(".").strip()
    for pattern, instead in _REWRITES:
        text = pattern.sub(instead, text)
    return _intervals(_matrix(text))


def _matrix(text: str) -> str:
    """A list of lists of one length as TeX writes a matrix; any other text as it is."""
    match = _MATRIX.fullmatch(text)
    if match is None:
        return text
    rows = [row.split(",") for row in re.findall(r"\[([^\[\]]*)\]", match[1])]
    if len({len(row) for row in rows}) != 1:
        return text
    body = r"\\".join("&".join(cell.strip() for cell in row) for row in rows)
    return rf"\begin{{pmatrix}}{body}\end{{pmatrix}}"


_RELATION = re.compile(r"[a-zA-Z]\s*(<|>|\\leq?|\\geq?|\\lt|\\gt|≤|≥|<=|>=)\s*([^<>≤≥=]+)")
_OR = re.compile(r"\s*(?:\\text\s*\{\s*or\s*\}|\\lor|\\vee|\bor\b)\s*")


def _intervals(text: str) -> str:
    """`x < 1 or x > 2` as a union of intervals; any other text as it is."""
    parts = _OR.split(text)
    matches = [_RELATION.fullmatch(part.strip()) for part in parts]
    if len(parts) < 2 or not all(matches):
        return text
    return r"\cup".join(_interval(match[1], match[2].strip()) for match in matches if match)


def _interval(relation: str, bound: str) -> str:
    closed = relation in ("\\le", "\\leq", "\\ge", "\\geq", "≤", "≥", "<=", ">=")
    if relation in ("<", "<=", "≤", "\\le", "\\leq", "\\lt"):
        return rf"(-\infty,{bound}{']' if closed else ')'}"
    return rf"{'[' if closed else '('}{bound},\infty)"


def compare_here(answer: str, truth: str, *, rel_tol: float = 0.0) -> bool | None:
    """A verdict that needs no algebra: the same text, two quantities, two lists of quantities.

    None where it does need algebra.
    """
    if _same_words(answer, truth):
        return True
    if (_DENIED.search(answer) and not _DENIED.search(truth)) or _NUMBERS_ALONE.fullmatch(
        plain(answer).strip()
    ):
        return False
    one, other = read_quantity(answer), read_quantity(truth)
    if one is not None and other is not None:
        return same_quantity(one, other, rel_tol=rel_tol)
    lists = _quantities(answer), _quantities(truth)
    if lists[0] and lists[1]:
        return _same_lists(lists[0], lists[1], rel_tol)
    return None


def _same_words(answer: str, truth: str) -> bool:
    """Equal texts. Case is ignored in words alone: a symbol's case is part of it."""
    one, other = to_tex(answer), to_tex(truth)
    return one == other or (bool(_WORDS.fullmatch(normalise(truth))) and same_text(answer, truth))


def _quantities(text: str) -> list[Quantity]:
    """The quantities of a bare list `a, b, c`; empty where the text is no such list."""
    parts = re.split(r"(?<![\\{]),(?!\d{3}(?!\d))|;|\s+and\s+", plain(text).strip())
    read = [read_quantity(part) for part in parts if part.strip()]
    found = [quantity for quantity in read if quantity is not None]
    return found if len(found) == len(read) > 1 else []


def _same_lists(one: list[Quantity], other: list[Quantity], rel_tol: float) -> bool:
    """Whether each of one list has a partner of its own in the other, in whatever order."""
    left = list(other)
    for quantity in one:
        partner = next((x for x in left if same_quantity(quantity, x, rel_tol=rel_tol)), None)
        if partner is None:
            return False
        left.remove(partner)
    return not left


def _last_result(text: str) -> str | None:
    """What stands behind the last `=` of shown work; None where the text is one expression."""
    if len(re.findall("=", text)) < 2 or not re.search(r"\w[.:]\s", text):
        return None
    return text.rpartition("=")[2].strip() or None


class MathScorer:
    """1 where the extracted answer equals the truth, else 0.

    Numbers, with or without units, are compared exactly (`rel_tol` loosens it); a unit that only
    one side names is understood; percentages count as numbers and as hundredths. All else goes to
    math-verify in a helper process. With `numeric` nothing does, and what is no number is 0.

    An answer that cannot be reduced to the number that was asked for within the limits (a tower of
    powers, the factorial of a billion) is 0 with `details["exhausted"]`; where the truth is an
    expression that is missing, and so is any failure of the helper.
    """

    name = "math"
    version = "1"

    def __init__(
        self,
        tools: ScoringTools,
        *,
        rel_tol: float = 0.0,
        numeric: bool = False,
        helpers: int = 2,
        wall_s: float = WALL_S,
    ) -> None:
        if not numeric and find_spec("math_verify") is None:
            raise MissingExtra("the math scorer", "math")
        self._rel_tol = rel_tol
        self._numeric = numeric
        self._pool = ChildPool(
            "sandlot.scoring.math_child", timeout_s=wall_s, size=helpers, environ=tools.environ
        )

    async def score(self, candidate: Candidate) -> Score:
        truths = math_targets(candidate.task)
        answer = extract(candidate.answer)
        if not answer or len(answer) > _LONG or not normalise(answer):
            return self._scored(candidate, 0.0, {"no_answer": True})
        answer = _last_result(answer) or answer
        details = {"answer": answer[:500]}
        verdicts = [compare_here(answer, truth, rel_tol=self._rel_tol) for truth in truths]
        if any(verdicts):
            return self._scored(candidate, 1.0, details)
        open_truths = [truth for truth, at in zip(truths, verdicts, strict=True) if at is None]
        if not open_truths or self._numeric:
            return self._scored(candidate, 0.0, details)
        return await self._by_algebra(candidate, answer, open_truths, details)

    async def close(self) -> None:
        await self._pool.close()

    async def _by_algebra(
        self, candidate: Candidate, answer: str, truths: list[str], details: dict[str, Any]
    ) -> Score:
        exhausted = missing = unread = None
        for truth in truths:
            reply = await self._pool.ask({"truth": to_tex(truth), "answer": to_tex(answer)})
            if isinstance(reply, Failed):
                spent = reply.out_of_time and reply.cpu_s >= CPU_S / 2
                reason = reply.reason
            elif "exhausted" in reply:
                spent, reason = True, str(reply["exhausted"])
            elif reply["same"]:
                return self._scored(candidate, 1.0, details)
            else:
                if not reply["truth_read"]:
                    unread = f"the ground truth cannot be read: {truth[:80]!r}"
                continue
            if spent and read_quantity(truth) is not None:
                exhausted = reason
            else:
                missing = reason
        if missing or unread:
            details |= {"truth_unread": True} if not missing else {}
            return Score(
                candidate.task.id, self.name, self.version, None, missing or unread, details
            )
        return self._scored(
            candidate, 0.0, details | ({"exhausted": exhausted} if exhausted else {})
        )

    def _scored(self, candidate: Candidate, value: float, details: Mapping[str, Any]) -> Score:
        return Score(candidate.task.id, self.name, self.version, value, details=details)


def math_targets(task: Task) -> list[str]:
    r"""The accepted truths, opened where they stand in a box.

    Raises:
        ConfigError: the truth is no text, number or list of those; names the task.
    """
    return [extract(target) or target for target in text_targets(task)]
