"""Multiple choice: which letters an answer claims, read as a careful human reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandlot.core.errors import ConfigError
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate
from sandlot.scoring.extract import extract, plain
from sandlot.scoring.text import normalise, same_text

PARTIAL = ("none", "f1")
_LONG = 8000  # characters; nothing of that length is a choice
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|boldsymbol)\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"[*`\"$\[\]{}]|(?<!\w)_|_(?!\w)")
_SPACES = re.compile(r"\s+")
_LETTER = r"(?<![\w'])\(?([A-Z])(?![\w'])\)?"
_JOIN = r"(?:\s?[,;/&+]\s?(?:(?:and|or)\s)?|\s(?:and|or)\s)"
_RUN = rf"(?P<run>{_LETTER}(?:{_JOIN}{_LETTER}){{0,25}})"
_ENDS = r"(?=\s*(?:$|[.,;:!?\n]|-\s|\b(?:because|since|as)\b))"
_FILL = (
    r"(?:\s+(?:is|are|be|the|option|choice|letter|answer|with|for|correct|most|likely|clearly))*"
)

_STRONG = re.compile(
    r"\b(?i:answers?|(?:correct|right|best) (?:option|choice)s?)\b"
    rf"\s*(?:is|are|(?:must|should) be|:|=|-){_FILL}\s*:?\s*{_RUN}{_ENDS}",
    re.MULTILINE,
)
_WEAK = re.compile(
    r"(?:\b(?:answer|option|choice|pick|choose|chose|select|think|believe|go|so|therefore|thus"
    r"|hence|but|maybe|probably|perhaps|it's|it is|must be|should be|is)\b"
    rf"{_FILL}\s*[:=]?|\w\s*[:=])\s*{_RUN}{_ENDS}",
    re.IGNORECASE | re.MULTILINE,
)
_PRAISE = re.compile(
    rf"{_RUN}\s+(?:is|are|must be|seems|looks)\s+(?:\w+\s+){{0,4}}?"
    r"(?:right|correct|best|answers?|choice|true|likely)\b"
)
_LAST = re.compile(r"(?P<run>\(([A-Z])\))[.!]?\s*$|\band\s+[A-Z],\s+(?P<other>[A-Z])[.!]?\s*$")
_DENIAL = re.compile(
    r"\b(?:not|never|cannot|neither|nor|except|without|eliminate|exclude|wrong|incorrect|false)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"[-•]?\s*\(?([A-Z])(?:\)[.:]?(?=\s|$)|\s*[.:;](?=\s|$)|,(?!\s*[A-Z](?![\w']))(?=\s)"
    r"|(?=\s+\()|(?=\s+-\s)|(?=\s+(?:because|since)\b))"
)
_SMALL = re.compile(r"\b([Oo]ption|[Ll]etter)\s+\(?([a-z])\)?(?![\w'])|^()\(?([a-z])\)(?=\s)")
_NEXT_LABEL = re.compile(r"[,;]\s+(?=\(?[A-Z](?:\)|[.:](?:\s|$)))")
_OPTION = re.compile(r"^[ \t]*\(?([A-Z])(?:\)|[.:])[ \t]*(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Claim:
    """The letters that an answer gives; `hedged` where it gives them as alternatives."""

    letters: frozenset[str] = frozenset()
    hedged: bool = False


def read_claim(text: str) -> Claim:
    """The letters that an answer gives.

    In order: an answer that is nothing but letters (`C`, `(a)`, `A, C`, `A and C`, `AC`); the last
    plain statement ("the answer is B"); labels in front (`B. text`, a line or a part each);
    the last of the weaker signs ("so B", "B is right", a final "(B)"). Letters that are denied,
    named as alternatives to compare, or words of the language (the article, the pronoun) are none.
    """
    if len(text) > _LONG:
        return Claim()
    text = _MARKUP.sub(" ", _WRAPPER.sub(r"\1", plain(text)))
    text = _SPACES.sub(lambda run: "\n" if "\n" in run[0] else " ", text).strip()
    bare = _bare(text)
    if bare.letters:
        return bare
    text = _SMALL.sub(lambda m: f"{m[1] or ''} ({(m[2] or m[4]).upper()})".lstrip(), text)
    strong = [_claim(match["run"]) for match in _STRONG.finditer(text) if not _denied(text, match)]
    if strong:
        return strong[-1]
    labelled = _labelled(text)
    if labelled.letters:
        return labelled
    weak = sorted(_weak_claims(text), key=lambda found: found[0])
    return weak[-1][1] if weak else Claim()


def _bare(text: str) -> Claim:
    """The claim of a text that is nothing but letters, in either case."""
    if len(text) > 80:
        return Claim()
    joined = text.strip(" .!()")
    if len(joined) > 1 and joined.isalpha() and joined.isascii() and joined.isupper():
        distinct = list(joined) == sorted(set(joined))
        return Claim(frozenset(joined)) if distinct else Claim()
    parts = re.split(r"[\s,;/&+.!()]+|\b(?:and|or|und|oder)\b", text, flags=re.IGNORECASE)
    letters = [part.upper() for part in parts if part]
    if not letters or not all(re.fullmatch("[A-Z]", letter) for letter in letters):
        return Claim()
    return Claim(frozenset(letters), _hedged(text))


def _hedged(run: str) -> bool:
    return bool(re.search(r"/|\b(?:or|oder)\b", run, re.IGNORECASE))


def _claim(run: str) -> Claim:
    return Claim(frozenset(re.findall(r"(?<!\w)[A-Z](?!\w)", run)), _hedged(run))


def _denied(text: str, match: re.Match[str]) -> bool:
    """Whether the clause that leads to the letters, or the sign itself, denies."""
    if match[0].lower().startswith("but"):
        return bool(_DENIAL.search(match[0]))
    before = re.split(r"[,;.:!?\n]|\bbut\b", text[: match.start()])[-1]
    return bool(_DENIAL.search(before) or _DENIAL.search(match[0]))


def _labelled(text: str) -> Claim:
    """Letters that stand as labels: of the first part, and of those that follow it at once.

    A first line that is nothing but letters is the claim, and what follows explains it.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = _bare(lines[0]) if lines else Claim()
    if first.letters:
        return first
    letters: list[str] = []
    for part in (part for line in lines for part in _NEXT_LABEL.split(line)):
        label = _LABEL.match(part)
        if label is None:
            break
        letters.append(label[1])
    return Claim(frozenset(letters))


def _weak_claims(text: str) -> Iterator[tuple[int, Claim]]:
    for pattern in (_WEAK, _PRAISE):
        for match in pattern.finditer(text):
            claim = _claim(match["run"])
            if claim.letters and not _denied(text, match):
                yield match.start("run"), claim
    last = _LAST.search(text)
    if last is not None and not _denied(text, last):
        yield last.start(), _claim(last["run"] or last["other"])


def options_of(task: Task) -> dict[str, str]:
    """The options by letter: of the metadata field `options`, else of the prompt's own lines.

    Empty where neither has at least two in order from A.
    """
    given = task.metadata.get("options")
    if isinstance(given, Mapping):
        return {str(letter).upper(): str(text) for letter, text in given.items()}
    if isinstance(given, list | tuple):
        return {chr(ord("A") + at): str(text) for at, text in enumerate(given)}
    found: dict[str, str] = {}
    for match in _OPTION.finditer(task.prompt):
        if match[1] == chr(ord("A") + len(found)):
            found[match[1]] = match[2].strip()
    return found if len(found) > 1 else {}


def _option_claim(answer: str, options: Mapping[str, str]) -> Claim:
    """The option whose whole text the answer is, where just one is. One letter is a letter."""
    if len(normalise(answer)) < 2:
        return Claim()
    same = [letter for letter, text in options.items() if same_text(answer, text)]
    return Claim(frozenset(same)) if len(same) == 1 else Claim()


def truth_letters(task: Task) -> frozenset[str]:
    """The right letters; empty where the truth is a text that is no letter.

    Raises:
        ConfigError: a truth that is neither text nor a list of letters; names the task.
    """
    target = task.target
    if isinstance(target, list | tuple) and target and all(isinstance(x, str) for x in target):
        target = ", ".join(target)
    if not isinstance(target, str) or not target.strip():
        raise ConfigError(
            f"task {task.id!r}: the ground truth must be a letter or letters such as 'A, C', "
            f"found {task.target!r}"
        )
    text = plain(target).strip()
    bare = _bare(text)
    if bare.letters:
        return bare.letters
    label = re.match(r"\(?([A-Z])[).:]\s+\S", text)
    return frozenset(label[1]) if label else frozenset()


class ChoiceScorer:
    """1 where the answer gives just the right letters, else 0, or F1 where a set asks.

    Option `partial="f1"` gives a truth of several letters the F1 of the claimed ones; where the
    options are known, naming all of them is worth nothing unless all are right. An answer that is
    the whole text of one option claims that option. A hedge claims nothing. A truth that is no
    letter is compared as text.
    """

    name = "choice"
    version = "1"

    def __init__(self, *, partial: str = "none") -> None:
        if partial not in PARTIAL:
            raise ConfigError(f"scorer choice: partial={partial!r} is not one of none, f1")
        self._partial = partial

    async def score(self, candidate: Candidate) -> Score:
        truth = truth_letters(candidate.task)
        answer = extract(candidate.answer)
        if not answer or not normalise(answer):
            return self._scored(candidate, 0.0, {"no_answer": True})
        if not truth:
            value = float(same_text(answer, str(candidate.task.target)))
            return self._scored(candidate, value, {"answer": answer[:200]})
        options = options_of(candidate.task)
        named = _option_claim(answer, options)  # first: an option may read `COS` or `A and B`
        claim = named if named.letters else read_claim(answer)
        return self._scored(candidate, *self._grade(claim, truth, options))

    async def close(self) -> None:
        pass

    def _grade(
        self, claim: Claim, truth: frozenset[str], options: Mapping[str, str]
    ) -> tuple[float, dict[str, Any]]:
        if not claim.letters:
            return 0.0, {"no_answer": True}
        details: dict[str, Any] = {"claimed": "".join(sorted(claim.letters))}
        if claim.hedged:
            return 0.0, details | {"hedged": True}
        if self._partial == "none" or len(truth) == 1 or claim.letters == truth:
            return float(claim.letters == truth), details
        if options and claim.letters >= options.keys():
            return 0.0, details | {"named_all": True}
        shared = len(claim.letters & truth)
        return round(2 * shared / (len(claim.letters) + len(truth)), 6), details

    def _scored(self, candidate: Candidate, value: float, details: Mapping[str, Any]) -> Score:
        return Score(candidate.task.id, self.name, self.version, value, details=details)
