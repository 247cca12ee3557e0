"""The helper process that compares mathematical expressions by math-verify."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from sandlot.scoring.child import Answer, limited, serve

CPU_S = 1.5
_DIGITS = 20_000
_POWER = 300


def prepare() -> tuple[Mapping[str, Any], Answer]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    def read(text: str) -> list[Any]:
        # Its own limits are alarms of one second's grain; ours stands around all of it.
        found: list[Any] = parse("\\boxed{" + text + "}", configs, parsing_timeout=None)
        return found

    def compare(question: Mapping[str, Any]) -> Mapping[str, Any]:
        truth, answer = read(question["truth"]), read(question["answer"])
        if truth != answer and any(too_large(part) for part in (*truth, *answer)):
            return {"exhausted": "a number of too many digits, or too high a power"}
        same = verify(truth, answer, allow_set_relation_comp=True, timeout_seconds=None)
        return {
            "same": bool(same),
            "read": bool(answer),
            "truth_read": is_read(question["truth"], truth),
        }

    compare(
        {"truth": r"\frac{x}{2}", "answer": "x-1"}
    )  # first use loads grammars: not an item's time
    return {"ready": version("math-verify")}, lambda question: limited(
        CPU_S, lambda: compare(question)
    )


def is_read(text: str, parts: Sequence[Any]) -> bool:
    """Words may be a truth too; TeX of which nothing but its own text came back is a broken one."""
    return any(not isinstance(part, str) for part in parts) or not ("\\" in text or "{" in text)


def too_large(expression: Any) -> bool:
    """Whether working an expression out would fill the memory before any clock can stop it."""
    from sympy import Basic, Integer, Pow, binomial, factorial, preorder_traversal

    if not isinstance(expression, Basic):
        return False
    for part in preorder_traversal(expression):
        if isinstance(part, Pow) and (
            _log10(part) > _DIGITS
            or (part.base.free_symbols and isinstance(part.exp, Integer) and part.exp > _POWER)
        ):
            return True
        if isinstance(part, factorial | binomial) and _log10(part.args[0]) > 4:
            return True
    return False


def _log10(number: Any) -> float:
    """About how many digits a number has, from its parts; 0 for what is no number."""
    from sympy import Add, Integer, Mul, Pow

    if isinstance(number, Integer):
        return len(str(abs(int(number)))) if number else 0.0
    if isinstance(number, Mul):
        return sum(map(_log10, number.args))
    if isinstance(number, Add):
        return max(map(_log10, number.args))
    if isinstance(number, Pow):
        digits = _log10(number.exp)
        return _log10(number.base) * (10.0**digits if digits < 300 else math.inf)
    return 0.0


if __name__ == "__main__":
    serve(prepare)
