"""Short answers in words: the same text, number, date or name; ROUGE-L where a set grades so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sandlot.core.errors import ConfigError
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate
from sandlot.scoring.extract import extract, plain
from sandlot.scoring.quantities import read_quantity, same_quantity

_TEX_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}"
)
_ARTICLE = re.compile(r"^(?:the|a|an)\s+(?=\S)")
_SHORT = 1000  # characters; longer texts are normalised each time, and not kept
_LONG = 4000  # characters; a longer answer only agrees with the same text
_ROUGE_CHARACTERS = 20_000
_EDGES = " \t\n.,;:!?*_`\"'()[]{}"
_TOKEN = re.compile(r"\w+(?:'\w+)?", re.UNICODE)
_DENIAL = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|isn't|wasn't|aren't|weren't|except|or)\b", re.IGNORECASE
)
_STATEMENT = re.compile(
    r"^(?P<subject>[^:=]*?\S)\s*(?:\b(?:is|are|was|were|equals|called|named)\b|[:=])\s*"
    r"(?P<rest>\S.*)$",
    re.IGNORECASE | re.DOTALL,
)
_REASON = re.compile(
    r"\s*(?:[,;(]|\.(?:\s|$)|\bbecause\b|\bsince\b|\bas\b|\baccording to\b)", re.IGNORECASE
)
_POLARITY = re.compile(r"^(yes|no|true|false)\b(?![\s-]+\w+\s*$|\s+\w+\s+\w+\s*$)", re.IGNORECASE)
_MONTHS = {
    name[:3]: number
    for number, name in enumerate(
        ("january", "february", "march", "april", "may", "june", "july", "august", "september",
         "october", "november", "december"), start=1,
    )
}  # fmt: skip
_MONTH = r"(?P<month>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH},? (?P<year>\d{{4}})",
        rf"{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<year>\d{{4}})",
        r"(?P<year>\d{4})-(?P<month_number>\d{1,2})-(?P<day>\d{1,2})",
    )
)
_QUALIFIERS = frozenset(
    ("new", "north", "south", "east", "west", "northern", "southern", "eastern", "western", "great",
     "upper", "lower", "old", "saint", "st", "san", "los", "las", "el", "the", "mount", "lake")
)  # fmt: skip
_CLASSES = frozenset(
    ("sea", "ocean", "river", "lake", "city", "street", "island", "mountain", "war", "day", "cup",
     "state", "states", "union", "empire", "republic", "minister", "party", "university", "company",
     "house", "army", "league", "prize", "bridge", "church", "park", "school", "museum", "kingdom")
)  # fmt: skip
_TITLES = frozenset(("mr", "mrs", "ms", "dr", "sir", "prof", "president", "king", "queen"))


def normalise(text: str) -> str:
    """The text in lower case, with single spaces, without TeX's text commands, a leading article,
    or marks and quotes at its ends. Signs that touch a letter or digit (Na+, C#, -4) stay.
    """
    return _short_normal(text) if len(text) <= _SHORT else _normal(text)


def _normal(text: str) -> str:
    text = _TEX_TEXT.sub(r"\1", plain(text)).replace("\\ ", " ").replace("~", " ")
    text = " ".join(text.strip(_EDGES + "$").split()).casefold()
    return _ARTICLE.sub("", text).strip(_EDGES)


_short_normal = lru_cache(maxsize=4096)(_normal)


def same_text(one: str, other: str) -> bool:
    """Equal after plain normalisation, and not empty."""
    normal = normalise(one)
    return bool(normal) and normal == normalise(other)


def agrees(answer: str, truth: str, *, rel_tol: float = 0.0) -> bool:
    """Whether a short answer says what the truth says.

    In order: the same text; two quantities with convertible units; two dates; a yes or no with
    whatever reason; a person's name with or without first names or with initials; a list in another
    order; a preposition or pronoun in front that the question implies ("in 1945", "he ran"); the
    truth as the complement of a plain statement ("The capital is Paris, as document 2 says") and
    the other way about. Nothing else: a shared word is not agreement, and a denial or an `or` is
    never one.
    """
    if same_text(answer, truth):
        return True
    if len(answer) > _LONG or len(truth) > _LONG:
        return False
    decided = _by_kind(answer, truth, rel_tol)
    if decided is not None:
        return decided
    if _same_name(answer, truth) or _same_list(answer, truth):
        return True
    if _bare(answer) and _bare(answer) == _bare(truth):
        return True
    complements = (_complement(answer), truth), (answer, _complement(truth))
    return any(
        one is not None and other is not None and _same_or_quantity(one, other, rel_tol)
        for one, other in complements
    )


_LEAD = re.compile(r"^(?:in|at|on|by|from|to|with|he|she|it|they|we|you|i)\s+(?=\S+)")
_LISTED = re.compile(r",\s*(?:and\s+)?|;\s*|\s+and\s+")


def _bare(text: str) -> str:
    """Without the preposition or pronoun in front, which the question implies."""
    return _ARTICLE.sub("", _LEAD.sub("", normalise(text)))


def _same_list(one: str, other: str) -> bool:
    """Whether two texts list the same short items, in whatever order."""
    lists = [sorted(map(normalise, _LISTED.split(plain(text)))) for text in (one, other)]
    short = all(len(item.split()) <= 4 for item in lists[0])
    return len(lists[0]) > 1 and short and lists[0] == lists[1]


def _same_or_quantity(one: str, other: str, rel_tol: float) -> bool:
    return same_text(one, other) or bool(_by_kind(one, other, rel_tol))


def _by_kind(answer: str, truth: str, rel_tol: float) -> bool | None:
    """A verdict where both are quantities, dates, or yes and no; None where they are not."""
    numbers = read_quantity(answer), read_quantity(truth)
    if numbers[0] is not None and numbers[1] is not None:
        return same_quantity(numbers[0], numbers[1], rel_tol=rel_tol)
    dates = read_date(answer), read_date(truth)
    if dates[0] is not None and dates[1] is not None:
        return dates[0] == dates[1]
    polarities = _POLARITY.match(normalise(answer)), _POLARITY.match(normalise(truth))
    if polarities[0] and polarities[1]:
        return polarities[0][1] == polarities[1][1]
    return None


def read_date(text: str) -> tuple[int, int, int] | None:
    """Year, month and day of a text that is one date with the month's name, or in ISO order."""
    normal = normalise(text)
    if len(normal) > 40:
        return None
    for pattern in _DATES:
        match = pattern.fullmatch(normal)
        if match:
            fields = match.groupdict()
            month = fields.get("month")
            number = _MONTHS[month] if month else int(fields["month_number"])
            return int(fields["year"]), number, int(fields["day"])
    return None


def _complement(text: str) -> str | None:
    """What a plain statement says of its subject, without the reason that follows.

    None where it is no such statement, where it denies, or where it names alternatives.
    """
    match = _STATEMENT.match(plain(text).strip())
    if match is None or _DENIAL.search(match["subject"]):
        return None
    cut = _REASON.search(match["rest"])
    rest = match["rest"][: cut.start()] if cut else match["rest"]
    return None if not rest.strip() or _DENIAL.search(rest) else rest


def _same_name(one: str, other: str) -> bool:
    """Whether two texts name one person: the same last name, and no first name that differs.

    A first name may be left out or be an initial. Names are two or three words with capitals, so
    that a qualifier of places is no first name (`South Korea` is not `Korea`).
    """
    names = _name_words(one), _name_words(other)
    longer, shorter = sorted(names, key=len, reverse=True)
    if len(longer) < 2 or not shorter or longer[-1] != shorter[-1]:
        return False
    firsts, given = longer[:-1], shorter[:-1]
    if len(given) not in (0, len(firsts)):
        return False
    return all(_same_first(first, other) for first, other in zip(firsts, given, strict=False))


def _same_first(one: str, other: str) -> bool:
    return one == other or (min(len(one), len(other)) == 1 and one[0] == other[0])


def _name_words(text: str) -> tuple[str, ...]:
    """The words of a name in lower case, titles left out; empty where the text is no name."""
    parts = plain(text).strip(" .*\"'").split()
    bare = [part.strip(".") for part in parts]
    if (
        not 1 <= len(bare) <= 4
        or _DENIAL.search(text)
        or not all(part.isalpha() and part[0].isupper() for part in bare)
    ):
        return ()
    lowered = tuple(part.casefold() for part in bare if part.casefold() not in _TITLES)
    odd = any(part in _QUALIFIERS for part in lowered) or bare[-1].casefold() in _CLASSES
    return () if odd or len(bare[-1]) < 3 else lowered


def rouge_l(answer: str, truth: str) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words, without stemming.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3, with
    equal weight of precision and recall.
    """
    one, other = _tokens(answer), _tokens(truth)
    if not one or not other:
        return 0.0
    common = _common_length(one, other)
    return 2 * common / (len(one) + len(other))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text[:_ROUGE_CHARACTERS].casefold())


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, match in enumerate(other, start=1):
            before, row[at] = row[at], before + 1 if word == match else max(row[at], row[at - 1])
    return row[-1]


def text_targets(task: Task) -> tuple[str, ...]:
    """The accepted truths of a task: a text, a number, or a list of those (any one is right).

    Raises:
        ConfigError: anything else, or an empty text; names the task.
    """
    given = task.target if isinstance(task.target, list | tuple) else [task.target]
    good = [isinstance(one, str | int | float) and not isinstance(one, bool) for one in given]
    targets = tuple(str(one) for one in given)
    if not targets or not all(good) or not all(one.strip() for one in targets):
        raise ConfigError(
            f"task {task.id!r}: the ground truth must be a text, a number or a list of those, "
            f"found {task.target!r}"
        )
    return targets


class TextScorer:
    """1 where the extracted answer agrees with a truth; else 0, or ROUGE-L where a set asks.

    Options: `rouge` (the value of an answer that does not agree is its best ROUGE-L, but 0 where
    both are quantities, dates, or a yes and a no: ROUGE does not see that -4 is not 4);
    `rel_tol` (for numbers, relative to the truth); `exact` (nothing but the same text).
    """

    version = "2"

    def __init__(
        self, *, rouge: bool = False, rel_tol: float = 0.0, exact: bool = False, name: str = "text"
    ) -> None:
        self.name = name
        self._rouge = rouge
        self._rel_tol = rel_tol
        self._exact = exact

    async def score(self, candidate: Candidate) -> Score:
        targets = text_targets(candidate.task)
        answer = extract(candidate.answer)
        if not answer or not normalise(answer):
            return self._scored(candidate, 0.0, {"no_answer": True})
        agreed = any(self._agrees(answer, target) for target in targets)
        details: dict[str, Any] = {"answer": answer[:500], "agrees": agreed}
        if agreed or not self._rouge:
            return self._scored(candidate, float(agreed), details)
        best = max(self._shared(answer, target) for target in targets)
        return self._scored(candidate, round(best, 6), details | {"rouge_l": round(best, 6)})

    async def close(self) -> None:
        pass

    def _agrees(self, answer: str, truth: str) -> bool:
        if self._exact:
            return same_text(answer, truth)
        return agrees(answer, truth, rel_tol=self._rel_tol)

    def _shared(self, answer: str, truth: str) -> float:
        """What an answer that does not agree has in common with the truth."""
        if (
            max(len(answer), len(truth)) <= _LONG
            and _by_kind(answer, truth, self._rel_tol) is False
        ):
            return 0.0
        return rouge_l(answer, truth)

    def _scored(self, candidate: Candidate, value: float, details: Mapping[str, Any]) -> Score:
        return Score(candidate.task.id, self.name, self.version, value, details=details)
