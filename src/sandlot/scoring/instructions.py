"""Instructions that code can check, by name. They belong to the project and need no extra.

A task's target is a list of checks, or the same as JSON text; all must hold:

```json
[{"id": "word_count", "kwargs": {"min": 20, "max": 30}},
 {"id": "contains", "kwargs": {"words": ["tea"]}}]
```

Counts take `exactly`, `min`, `max` (at least one of them; `exactly` alone or a range).

- `word_count` (counts): so many words (runs of letters and digits; hyphens and apostrophes join)
- `sentence_count` (counts): so many sentences (ended by . ! ? or by the end of a line)
- `paragraph_count` (counts): so many paragraphs, parted by empty lines
- `line_count` (counts): so many lines that are not empty
- `character_count` (counts): so many characters, spaces included, of the trimmed text
- `number_count` (counts): so many numbers written in digits
- `bullet_count` (counts): so many lines that begin with `-`, `*` or `•`
- `numbered_list` (counts): so many lines `1.`, `2.` … (or `1)`) in order from 1 and without a gap
- `heading_count` (counts): so many markdown headings
- `letter_count` (`letter`, counts): the letter occurs so often, in either case
- `occurrences` (`word`, counts): the word or phrase occurs so often, as whole words, in either
  case
- `palindrome_count` (counts, `length`=3): so many words of at least `length` letters that read the
  same backwards
- `capital_words` (counts): so many words wholly in capitals (of two letters or more)
- `words_per_line` (counts): every line that is not empty has so many words
- `words_per_sentence` (counts): every sentence has so many words
- `word_length` (counts): every word has so many letters (digits and marks not counted)
- `contains` (`words`): every word or phrase is there, as whole words, in either case
- `not_contains` (`words`): none of them is there
- `no_characters` (`characters`): none of these characters is there (`","` for no commas)
- `starts_with` (`text`): the text begins so, exactly
- `ends_with` (`text`): the text ends so, exactly
- `letter_case` (`kind`: lower, upper, title): no letter breaks the case; in title case each word
  begins with a capital
- `json_object` (`keys`, `only`=false): the text is one JSON object (a code fence is allowed) with
  these keys, and with `only` no other
- `json_list` (counts): the text is one JSON list with so many items
- `alphabetical` (`of`: words, lines, sentences): they stand in alphabetical order, case ignored
- `nth_word` (`n`, `word`): the n-th word (from 1; from the end if negative) is this one, case
  ignored
- `nth_line_starts` (`n`, `text`): the n-th line that is not empty begins so, case ignored
- `unique_words`: no word occurs twice, case ignored
- `initial_letter` (`letter`, `of`: words, lines, sentences): each begins with the letter, case
  ignored
- `acrostic` (`word`): the first letters of the lines that are not empty spell the word, case
  ignored
- `one_of` (`options`): the text is one of the options, exactly but for white space around it
- `parts` (`separator`, counts): so many parts that are not empty, parted by the separator
- `quoted`: the whole text stands in one pair of double quotes
- `ends_every_line` (`text`): every line that is not empty ends so
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate
from sandlot.scoring.extract import visible_text

Check = Callable[..., bool]

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*(\d+)[.)][ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*\s+|\n+")


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def sentences(text: str) -> list[str]:
    """Parts that end with . ! ? or with their line, and hold a word."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part and words(part)]


def paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


_UNITS: Mapping[str, Callable[[str], list[str]]] = {
    "words": words,
    "lines": lines,
    "sentences": sentences,
}


@dataclass(frozen=True, slots=True)
class Count:
    """A number that is asked for: exactly so many, or at least, or at most."""

    exactly: int | None = None
    min: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        if self.exactly is None and self.min is None and self.max is None:
            raise TypeError("one of exactly, min, max is needed")

    def holds(self, number: int) -> bool:
        if self.exactly is not None and number != self.exactly:
            return False
        return (self.min is None or number >= self.min) and (self.max is None or number <= self.max)


def _units(of: str) -> Callable[[str], list[str]]:
    if of not in _UNITS:
        raise TypeError(f"of={of!r} is not one of {', '.join(_UNITS)}")
    return _UNITS[of]


def _counting(count: Callable[[str], int]) -> Check:
    def check(text: str, **count_: int) -> bool:
        return Count(**count_).holds(count(text))

    return check


def _every(parts: Callable[[str], list[str]], size: Callable[[str], int]) -> Check:
    """A check that each part has a size; a text without any part fails it."""

    def check(text: str, **count_: int) -> bool:
        wanted, found = Count(**count_), parts(text)
        return bool(found) and all(wanted.holds(size(part)) for part in found)

    return check


def _whole(phrase: str) -> re.Pattern[str]:
    """A word or phrase with no letter or digit touching it."""
    inner = r"\s+".join(map(re.escape, phrase.split()))
    return re.compile(rf"(?<![^\W_]){inner}(?![^\W_])", re.IGNORECASE)


def _letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


def _capital_words(text: str) -> int:
    return sum(word.isupper() and _letters(word) >= 2 for word in words(text))


def _letter_count(text: str, letter: str, **count: int) -> bool:
    if len(letter) != 1:
        raise TypeError(f"letter={letter!r} is not one letter")
    return Count(**count).holds(text.casefold().count(letter.casefold()))


def _occurrences(text: str, word: str, **count: int) -> bool:
    return Count(**count).holds(len(_whole(word).findall(text)))


def _palindromes(text: str, length: int = 3, **count: int) -> bool:
    lowered = [word.casefold() for word in words(text)]
    found = [w for w in lowered if len(w) >= length and w.isalpha() and w == w[::-1]]
    return Count(**count).holds(len(found))


def _numbered_list(text: str, **count: int) -> bool:
    numbers = [int(number) for number in _NUMBERED.findall(text)]
    return Count(**count).holds(len(numbers)) and numbers == list(range(1, len(numbers) + 1))


def _contains(text: str, words: Sequence[str]) -> bool:
    return all(_whole(word).search(text) for word in words)


def _not_contains(text: str, words: Sequence[str]) -> bool:
    return not any(_whole(word).search(text) for word in words)


def _no_characters(text: str, characters: str) -> bool:
    return not set(text) & set(characters)


def _starts_with(text: str, text_: str) -> bool:
    return text.startswith(text_)


def _ends_with(text: str, text_: str) -> bool:
    return text.endswith(text_)


def _letter_case(text: str, kind: str) -> bool:
    if kind == "lower":
        return text == text.lower()
    if kind == "upper":
        return text == text.upper()
    if kind == "title":
        return all(not word[0].isalpha() or word[0].isupper() for word in words(text))
    raise TypeError(f"kind={kind!r} is not one of lower, upper, title")


def _json(text: str) -> Any:
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None


def _json_object(text: str, keys: Sequence[str], only: bool = False) -> bool:
    data = _json(text)
    if not isinstance(data, dict) or not set(keys) <= data.keys():
        return False
    return not only or set(keys) == data.keys()


def _json_list(text: str, **count: int) -> bool:
    data, wanted = _json(text), Count(**count)
    return isinstance(data, list) and wanted.holds(len(data))


def _alphabetical(text: str, of: str) -> bool:
    found = [part.casefold() for part in _units(of)(text)]
    return bool(found) and found == sorted(found)


def _nth_word(text: str, n: int, word: str) -> bool:
    return _nth(words(text), n).casefold() == word.casefold()


def _nth_line_starts(text: str, n: int, text_: str) -> bool:
    return _nth(lines(text), n).casefold().startswith(text_.casefold())


def _nth(parts: Sequence[str], n: int) -> str:
    """The n-th part from 1, from the end if negative; empty where there is none."""
    if n == 0:
        raise TypeError("n counts from 1, or from -1 at the end")
    at = n - 1 if n > 0 else n
    return parts[at] if -len(parts) <= at < len(parts) else ""


def _unique_words(text: str) -> bool:
    lowered = [word.casefold() for word in words(text)]
    return bool(lowered) and len(lowered) == len(set(lowered))


def _first_letter(part: str) -> str:
    return next((character.casefold() for character in part if character.isalnum()), "")


def _initial_letter(text: str, letter: str, of: str) -> bool:
    found = _units(of)(text)
    return bool(found) and all(_first_letter(part) == letter.casefold() for part in found)


def _acrostic(text: str, word: str) -> bool:
    return "".join(map(_first_letter, lines(text))) == word.casefold()


def _one_of(text: str, options: Sequence[str]) -> bool:
    return text in [option.strip() for option in options]


def _parts(text: str, separator: str, **count: int) -> bool:
    return Count(**count).holds(sum(bool(part.strip()) for part in text.split(separator)))


def _quoted(text: str) -> bool:
    return len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]


def _ends_every_line(text: str, text_: str) -> bool:
    found = lines(text)
    return bool(found) and all(line.endswith(text_) for line in found)


CHECKS: Mapping[str, Check] = {
    "word_count": _counting(lambda text: len(words(text))),
    "sentence_count": _counting(lambda text: len(sentences(text))),
    "paragraph_count": _counting(lambda text: len(paragraphs(text))),
    "line_count": _counting(lambda text: len(lines(text))),
    "character_count": _counting(len),
    "number_count": _counting(lambda text: len(_NUMBER.findall(text))),
    "bullet_count": _counting(lambda text: len(_BULLET.findall(text))),
    "numbered_list": _numbered_list,
    "heading_count": _counting(lambda text: len(_HEADING.findall(text))),
    "letter_count": _letter_count,
    "occurrences": _occurrences,
    "palindrome_count": _palindromes,
    "capital_words": _counting(_capital_words),
    "words_per_line": _every(lines, lambda part: len(words(part))),
    "words_per_sentence": _every(sentences, lambda part: len(words(part))),
    "word_length": _every(words, _letters),
    "contains": _contains,
    "not_contains": _not_contains,
    "no_characters": _no_characters,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "letter_case": _letter_case,
    "json_object": _json_object,
    "json_list": _json_list,
    "alphabetical": _alphabetical,
    "nth_word": _nth_word,
    "nth_line_starts": _nth_line_starts,
    "unique_words": _unique_words,
    "initial_letter": _initial_letter,
    "acrostic": _acrostic,
    "one_of": _one_of,
    "parts": _parts,
    "quoted": _quoted,
    "ends_every_line": _ends_every_line,
}


def follows(text: str, check: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether a text keeps one instruction. The text is trimmed first.

    Raises:
        ConfigError: an unknown check, or arguments that it does not take.
    """
    if check not in CHECKS:
        raise unknown_name("instruction check", check, CHECKS)
    given = {("text_" if name == "text" else name): value for name, value in kwargs.items()}
    try:
        return CHECKS[check](text.strip(), **given)
    except (TypeError, AttributeError) as exc:
        raise ConfigError(f"instruction check {check!r} with {dict(kwargs)!r}: {exc}") from exc


def checks_of(task: Task) -> list[tuple[str, dict[str, Any]]]:
    """The checks of a task's target, as (id, kwargs).

    Raises:
        ConfigError: the target is not such a list; names the task.
    """
    target = task.target
    if isinstance(target, str):
        try:
            target = json.loads(target)
        except ValueError as exc:
            raise _not_a_target(task, str(exc)) from exc
    if not isinstance(target, list | tuple) or not target:
        raise _not_a_target(task, type(target).__name__)
    return [_entry(task, entry) for entry in target]


def _entry(task: Task, entry: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), str):
        raise _not_a_target(task, repr(entry))
    kwargs = entry.get("kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise _not_a_target(task, repr(entry))
    return entry["id"], dict(kwargs)


def _not_a_target(task: Task, found: str) -> ConfigError:
    return ConfigError(
        f'task {task.id!r}: the ground truth must be a list of {{"id": …, "kwargs": {{…}}}}, '
        f"found {found}"
    )


class InstructionsScorer:
    """1 where the answer keeps every instruction of the task, else 0.

    The answer is the whole visible text: nothing is extracted from it. `details` holds each
    check's verdict and the share that was kept.
    """

    name = "instructions"
    version = "1"

    async def score(self, candidate: Candidate) -> Score:
        checks = checks_of(candidate.task)
        text = visible_text(candidate.answer)
        if not text:
            return self._score(candidate, 0.0, {"no_answer": True})
        try:
            kept = [follows(text, name, kwargs) for name, kwargs in checks]
        except ConfigError as exc:
            raise ConfigError(f"task {candidate.task.id!r}: {exc}") from exc
        verdicts = [
            {"id": name, "followed": held} for (name, _), held in zip(checks, kept, strict=True)
        ]
        details = {"checks": verdicts, "instruction_level": round(sum(kept) / len(kept), 4)}
        return self._score(candidate, float(all(kept)), details)

    async def close(self) -> None:
        pass

    def _score(self, candidate: Candidate, value: float, details: Mapping[str, Any]) -> Score:
        return Score(candidate.task.id, self.name, self.version, value, details=details)
