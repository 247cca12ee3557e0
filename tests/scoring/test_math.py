"""Mathematical answers: by numbers here, by algebra in a helper process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.errors import ConfigError, MissingExtra
from sandlot.core.types import Score, Task
from sandlot.scoring import math as scoring_math
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.math import MathScorer, compare_here, to_tex

pytestmark = pytest.mark.slow


@pytest.fixture
async def scorer(tools: ScoringTools) -> AsyncIterator[MathScorer]:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed")
    scorer = MathScorer(tools)
    yield scorer
    await scorer.close()


async def scored(scorer: MathScorer, answer: str | None, target: Any) -> Score:
    return await scorer.score(Candidate(Task("t1", "?", target=target), answer))


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("588.", "588"),
        ("**588**", "588"),
        ("Answer: 588", "588"),
        ("`588`", "588"),
        (r"\[588\]", "588"),
        (r"\boxed{005}", "5"),
        (r"\boxed{\text{Yes}}", "yes"),
        ("5 km/h", r"5\,\mathrm{km/h}"),
        (r"\boxed{5890.0\,\text{\AA}, 5896.0\,\text{\AA}}", "5890.0, 5896.0"),
        ("1, 2, 3", "3,2,1"),
        ("1 and 2", "1,2"),
        ("Step 1: 3+4=7. Step 2: 7*84=588", "588"),
    ],
)
async def test_numbers_and_words_need_no_algebra(
    tools: ScoringTools, answer: str, truth: str
) -> None:
    assert (await scored(MathScorer(tools, numeric=True), answer, truth)).value == 1.0


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("587", "588"),
        ("-588", "588"),
        ("The answer is not 588", "588"),
        ("587 588 589", "588"),
        ("587, 588", "588"),
        ("5 km/s", "5 m/s"),
        ("588.0000001", "588"),
        ("1, 2", "1, 2, 3"),
    ],
)
async def test_wrong_numbers_are_wrong(tools: ScoringTools, answer: str, truth: str) -> None:
    assert (await scored(MathScorer(tools, numeric=True), answer, truth)).value == 0.0


def test_a_number_needs_no_helper_and_an_expression_does() -> None:
    assert compare_here("588", "587") is False
    assert compare_here("a+b", "b+a") is None
    assert compare_here("A", "a") is None  # a symbol's case is part of it


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("$x^2$.", "x^2"),
        (r"\sin 30^\circ", r"\sin \frac{30\pi}{180}"),
        (r"\sin\alpha+d", r"\sin{(\alpha)}+d"),
        ("C(5,2)", r"\binom{5}{2}"),
        ("x**2", "x^{2}"),
        ("sqrt(2)", r"\sqrt{2}"),
        ("[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        ("[[1,2],[3]]", "[[1,2],[3]]"),
        (r"x<1 \text{ or } x\ge 2", r"(-\infty,1)\cup[2,\infty)"),
        ("−5", "-5"),
    ],
)
def test_other_notations_become_tex(text: str, tex: str) -> None:
    assert to_tex(text) == tex


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (r"\boxed{587+1}", "588"),
        (r"\boxed{\frac{6}{\sqrt3}}", r"2\sqrt{3}"),
        (r"\boxed{x^2+2x+1}", "(x+1)^2"),
        (r"\boxed{\sin 30^\circ}", r"\frac12"),
        ("C(5,2)", "10"),
        ("2*sqrt(3)", r"2\sqrt{3}"),
        ("[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        (r"\boxed{x<3}", r"(-\infty,3)"),
        ("x<1 or x>2", r"(-\infty,1)\cup(2,\infty)"),
        (r"\boxed{d+\frac{m g\sin\alpha}{k}}", r"\frac{m g \sin \alpha}{k}+d"),
        (r"\boxed{4i+3}", "3+4i"),
        (r"\boxed{\pi}", [r"2\pi", r"\pi"]),
    ],
)
async def test_equal_expressions_agree(scorer: MathScorer, answer: str, truth: Any) -> None:
    assert (await scored(scorer, answer, truth)).value == 1.0


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (r"\boxed{x^2+1}", "(x+1)^2"),
        (r"\boxed{(-\infty,3]}", r"(-\infty,3)"),
        (r"\boxed{3\sqrt{2}}", r"2\sqrt{3}"),
        (r"\boxed{588 \text{ or } 589}", "588"),
        ('__import__("os").system("true")', "588"),
        ("I could not solve it.", "588"),
        ("{" * 1500, "588"),
    ],
)
async def test_other_expressions_do_not(scorer: MathScorer, answer: str, truth: str) -> None:
    score = await scored(scorer, answer, truth)
    assert (score.value, score.missing) == (0.0, None)


@pytest.mark.parametrize(
    "answer", [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{(10^{9})!}", r"\boxed{(x+1)^{2000}}"]
)
async def test_a_number_that_fills_the_machine_is_no_answer(
    scorer: MathScorer, answer: str
) -> None:
    score = await scored(scorer, answer, "588")
    assert score.value == 0.0
    assert "exhausted" in score.details
    undecided = await scored(scorer, answer, r"\pi x")
    assert undecided.value is None
    assert undecided.missing


async def test_a_truth_that_cannot_be_read_is_missing_and_never_0(scorer: MathScorer) -> None:
    score = await scorer.score(Candidate(Task("t", "?", target=r"\frac{1}{"), r"\boxed{x + y}"))
    assert score.value is None
    assert "ground truth cannot be read" in str(score.missing)


async def test_a_hung_helper_is_killed_and_the_next_item_is_scored(
    tools: ScoringTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper's library is replaced by one that sleeps on one word, as a real one may hang."""
    package = tmp_path / "double" / "math_verify"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import time\n"
        "class LatexExtractionConfig:\n    def __init__(self, **_): pass\n"
        "ExprExtractionConfig = LatexExtractionConfig\n"
        "def parse(text, *_, **__):\n    return [text]\n"
        "def verify(truth, answer, **_):\n"
        "    if 'hang' in answer[0]: time.sleep(60)\n"
        "    return truth == answer\n"
    )
    info = tmp_path / "double" / "math_verify-0.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: math-verify\nVersion: 0.9\n")
    monkeypatch.syspath_prepend(str(tmp_path / "double"))
    doubled = replace(tools, environ={**tools.environ, "PYTHONPATH": str(tmp_path / "double")})
    scorer = MathScorer(doubled, helpers=1, wall_s=2)
    try:
        hung = await scored(scorer, "hang+x", "y+z")
        assert hung.value is None
        assert hung.missing is not None
        assert "no answer within 2 s" in hung.missing
        assert (await scored(scorer, "b+a", "a+b")).value == 0.0
    finally:
        await scorer.close()


@pytest.mark.parametrize("answer", [None, "", r"\boxed{}", "?", "588 " * 20_000, "a" * 100_000])
async def test_no_answer_is_0_and_says_so(tools: ScoringTools, answer: str | None) -> None:
    score = await scored(MathScorer(tools, numeric=True), answer, "588")
    assert (score.value, score.details["no_answer"]) == (0.0, True)


@pytest.mark.parametrize("target", [None, "", [], {"a": 1}])
async def test_a_truth_of_the_wrong_type_names_the_task(tools: ScoringTools, target: Any) -> None:
    with pytest.raises(ConfigError, match="task 't1'"):
        await scored(MathScorer(tools, numeric=True), "1", target)


def test_without_the_extra_the_scorer_says_what_to_install(
    tools: ScoringTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_math, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"sandlot\[math\]"):
        MathScorer(tools)
    MathScorer(tools, numeric=True)
