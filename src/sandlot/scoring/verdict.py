"""What a judge's reply says: correct, incorrect, or nothing that can be relied on."""

from __future__ import annotations

import json
import re

from sandlot.scoring.extract import plain, visible_text

_LINE = re.compile(r"^[\s*_#>`\"']*VERDICT[\s*_`\"']*[:=][\s*_`\"']*(\w+)\W*$", re.IGNORECASE)
_TAIL = 200  # characters in which a last word and its marks are looked for
_WORDS = {"correct": True, "incorrect": False}
_ALONE = re.compile(r"\W*(correct|incorrect)\W*", re.IGNORECASE)
_FIRST = re.compile(
    r"[\s*_#>`\"']*(correct|incorrect)[*_`\"']*\s*(?:[.,;:!\n]|$| -)", re.IGNORECASE
)
_LAST = re.compile(r"(?:^|[.!?:\n]|[^\x00-\x7f])[\s*_`\"']*(CORRECT|INCORRECT)[\s*_`\"'.!]*$")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+|;\s*|(?<=\?)|\s-\s|,\s*but\b")
_QUESTION = re.compile(r"\?\s*$")
_BOTH = re.compile(r"\bcorrect\W+or\W+incorrect\b", re.IGNORECASE)
_VERB = re.compile(
    r"\b(?:is|are|was|were|seems?|looks?|match(?:es)?|agrees?|differs?)\b|n't\b", re.I
)
_FRAGMENT = re.compile(r"\W*(?:not|partially|partly|almost|nearly|completely|entirely)\s", re.I)
_GOOD = re.compile(r"\b(?:correct|right|match(?:es)?|agrees?|equivalent|consistent)\b", re.I)
_BAD = re.compile(r"\b(?:incorrect|wrong|differs?|inconsistent|mismatch)\b", re.I)
_NEGATION = re.compile(
    r"\b(?:not|never|neither|cannot|partially|partly|almost|nearly)\b|n't\b", re.IGNORECASE
)
_OFFICIAL = re.compile(r"\b(?:official|reference|gold|expected|true)\b(?=.*?\bis\b)", re.I)


def read_verdict(reply: str) -> bool | None:
    """True for correct, False for incorrect, None where the reply does not say.

    Finished thoughts are removed; a reply that ends inside a thought says nothing. Then, in order:

    1. the last line `VERDICT: CORRECT` or `VERDICT: INCORRECT`, or the JSON field `verdict`;
    2. a reply that is the word alone, or begins with it as a sentence of its own, or ends with it
       in capitals as a sentence of its own;
    3. plain prose: the last clause that calls something right or wrong, negations turned round and
       partial agreement counted as none. Questions, and clauses that name both words as choices,
       do not count; a clause that calls the *official* answer right says that the candidate's is
       another.
    """
    text = plain(visible_text(reply))
    if not text:
        return None
    anchored = _anchored(text)
    if anchored is not None:
        return _WORDS.get(anchored)
    tail = text if len(text) <= _TAIL else "x" + text[-_TAIL:]
    found = _ALONE.fullmatch(tail) or _FIRST.match(text) or _LAST.search(tail)
    if found is not None:
        return _WORDS[found[1].lower()]
    return _prose(text)


def _anchored(text: str) -> str | None:
    """The word that the last verdict line or the JSON field gives, in lower case."""
    line = _LINE.match(text.splitlines()[-1])
    if line is not None:
        return line[1].lower()
    if text.startswith("{"):
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(data, dict) and "verdict" in data:
            return str(data["verdict"]).lower()
    return None


def _prose(text: str) -> bool | None:
    verdict = None
    for clause in _SENTENCE.split(text):
        if not clause or _QUESTION.search(clause) or _BOTH.search(clause):
            continue
        said = _clause(clause)
        verdict = verdict if said is None else said
    return verdict


def _clause(clause: str) -> bool | None:
    """Whether one clause calls its subject right or wrong; None where it does neither."""
    if not (_VERB.search(clause) or _FRAGMENT.match(clause)):
        return None
    good, bad = _GOOD.search(clause), _BAD.search(clause)
    if (good is None) == (bad is None):
        return None
    found = good or bad
    assert found is not None
    if good and _OFFICIAL.match(re.sub(r"^\W*(?:the|a)\s+", "", clause, flags=re.I)):
        return False
    negated = bool(_NEGATION.search(clause[: found.start()]))
    return (good is not None) != negated
