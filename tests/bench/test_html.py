from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hand_made import Shot, pair, run_of

from sandlot.bench import plots
from sandlot.bench.html import page, text
from sandlot.bench.plots import Dot, Row, Scale, Span
from sandlot.bench.records import Meters
from sandlot.bench.report import build_report
from sandlot.bench.sample import write_sample

HOSTILE = "<script>alert(1)</script>\"' onload=x \x1b[31m\u202e & <img src=x>"


class Elements(HTMLParser):
    """Every element with its attributes, and whether each was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(build_report([write_sample(tmp_path_factory.mktemp("runs"), items=4).path]))


def test_the_page_is_whole_and_reaches_for_nothing_outside(sample: str) -> None:
    elements = Elements()
    elements.feed(sample)
    assert elements.open == []
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in elements.seen}
    names = {name for _, attrs in elements.seen for name in attrs}
    assert not {"src", "href", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in sample
    assert "default-src 'none'" in sample


def test_the_page_answers_a_strangers_questions(sample: str) -> None:
    for heading in (
        "What did the computer buy?",
        "The difference in each domain",
        "Which capability bought it",
        "The gain by what was expected",
        "Problems that changed hands",
        "Tokens against score",
        "Turns",
        "What the computer was used for",
        "What it cost",
        "How sure is this?",
        "Contamination",
        "Protocol",
    ):
        assert f">{heading}<" in sample, heading


def test_every_plot_is_well_formed(sample: str) -> None:
    found = re.findall(r"<svg.*?</svg>(?!</svg>)", sample, re.DOTALL)
    whole = [svg for svg in found if svg.count("<svg") == svg.count("</svg>")]
    assert len(whole) > 20
    for svg in whole:
        ElementTree.fromstring(svg)


def test_what_a_model_wrote_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    shots = [
        Shot(HOSTILE, "llm", 0.0, answer=HOSTILE, label=HOSTILE, task_set="<set>"),
        Shot(HOSTILE, "sandbox", 1.0, answer=HOSTILE, label=HOSTILE, task_set="<set>"),
        Shot("b", "sandbox", None, failure=HOSTILE, marks=(HOSTILE,), task_set="<set>"),
        Shot("b", "llm", 1.0, task_set="<set>", meters=Meters(egress_hosts={HOSTILE: 1})),
    ]
    made = page(build_report([run_of(tmp_path, shots, {"model": HOSTILE, "note": HOSTILE})]))
    elements = Elements()
    elements.feed(made)
    assert elements.open == []
    tags = {tag for tag, _ in elements.seen}
    assert not {"script", "img", "set"} & tags
    assert "\x1b" not in made
    assert "\u202e" not in made
    assert made.count("&lt;script&gt;") >= 5


def test_text_shows_controls_as_replacement_characters() -> None:
    assert text("a\x00\ud800b\n<") == "a\ufffd\ufffdb\n&lt;"


def test_a_page_of_a_single_arm_says_so(tmp_path: Path) -> None:
    made = page(build_report([run_of(tmp_path, [Shot("a", "sandbox", 1.0)])]))
    assert "One arm: nothing to compare" in made


def test_a_page_of_a_run_that_scored_nothing_is_a_page(tmp_path: Path) -> None:
    shots = pair("a", None, None, failure="model_error")
    made = page(build_report([run_of(tmp_path, shots)]))
    assert "Nothing to compare yet" in made
    assert "scored 0 of 1 (1 model_error)" in made
    assert "No server reported token counts: unknown." in made


def test_a_run_that_names_a_protocol_is_set_beside_the_paper(tmp_path: Path) -> None:
    run = run_of(tmp_path, pair("a", 0.0, 1.0), {"protocol": "v3", "model": "openai/gpt-5"})
    assert "Beside the paper" in page(build_report([run]))


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (-0.3, 0.25, [-0.3, -0.2, -0.1, 0, 0.1, 0.2])],
)
def test_ticks_are_round_and_within(low: float, high: float, marks: list[float]) -> None:
    assert plots.ticks(low, high) == pytest.approx(marks)


def test_a_scale_keeps_everything_inside_and_logarithms_even() -> None:
    scale = Scale(100, 10_000, log=True)
    assert scale.at(1000) == pytest.approx(50)
    assert (scale.at(1), scale.at(1e9)) == (0, 100)
    assert Scale(3, 3).at(3) == 50


def test_an_interval_is_drawn_where_its_numbers_are() -> None:
    row = Row("math", "n = 4", (Span(0.5, 0.25, 0.75, "c1"),), "+50")
    drawn = plots.intervals([row], Scale(0, 1), "points", zero=False)
    assert 'x1="25.00%" x2="75.00%"' in drawn
    assert 'cx="50.00%"' in drawn


def test_names_of_near_points_do_not_cover_each_other() -> None:
    dots = [Dot(1000, 0.5, "c1", "first"), Dot(1010, 0.5, "c1", "second"), Dot(9e5, 0.1, "c0")]
    drawn = plots.scatter(dots, [], "tokens", "score")
    places = re.findall(r'dx="(-?\d+)" dy="(-?\d+)" text-anchor="(\w+)" class="name"', drawn)
    assert len(places) == 2
    assert places[0] != places[1]
