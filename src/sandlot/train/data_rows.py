"""Rows of question sets as contexts: documents, and the questions that are asked of them.

Three shapes are read: rows with a context and a list of pairs (the seed of Instruction
Pre-Training, ft-instruction-synthesizer-collection: `context`, `QA_list` of `Q` and `A`, `QA_type`,
`rc_name`; options and chains of thought stand in `Q` and `A` as its own code reads them), rows with
documents and one question each, and rows in the schema of the paper's bench.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from sandlot.core.errors import InputError
from sandlot.core.types import Task
from sandlot.scoring.choice import options_of
from sandlot.tasks.base import Source, TaskSet
from sandlot.tasks.loaders import ALIASES, documents_of, field_of, load_tasks
from sandlot.tasks.readers import Row
from sandlot.tasks.truth import wrong_truth
from sandlot.train.data_files import Document
from sandlot.train.data_words import digest_of_texts

CHOICE = "multiple choice"
OPEN = "free-form"
"""The paper's own words for the two kinds of question (`qa_type`)."""

PAIRS = ("QA_list", "qa_pairs", "questions", "pairs")
TYPES = ("qa_type", "QA_type", "question_type", "type")
OPTIONS = ("options", "choices")
CONTEXTS = ("context", "contexts", "passage")
POOLS = ("rc_name", "dataset")
ANSWERS = "answers"
LICENCES = ("licence", "license")
_ASKED = ("Q", *ALIASES["prompt"], "instruction")
_ANSWERED = ("A", *ALIASES["target"], "response", "output")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_GROUP = 1000  # questions of rows in a row with the same documents that are held together
_STEPS = "\nLet's think step by step."
_THEREFORE = "\nTherefore, the answer is "
_LISTED = "\nOptions:\n- "
_SEVERAL = re.compile(r"several|multi[-_ ]?(?:ple)?[-_ ]?(?:answer|label|select)|select all", re.I)
_LETTERED = re.compile(r"\(?[A-Z]\)?\.?(?:\s*[,;/]?\s*\(?[A-Z]\)?\.?)*")
_LABELLED = re.compile(r"\(?([A-Z])(?:\)|[.:])\)?\s+\S.*")
_JOINED = (", ", "; ", " | ", "\n", "\t", ",", ";")


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it was read.

    `right` holds the letters of a choice, all of them right, or the texts of an open question, of
    which any is right. `options` are in the order of their letters: `listed` ones have to
    be written below the question, `loose` ones had no letters, so that their order is free.
    `several` means that more than one may be right. `place` is where it stands.
    """

    text: str
    right: tuple[str, ...]
    place: str
    options: tuple[str, ...] = ()
    listed: bool = False
    loose: bool = False
    choice: bool = False
    several: bool = False
    id: str | None = None

    @property
    def truth(self) -> str | list[str]:
        """As a scorer wants it: `A, C` of a choice, a text or a list of texts of the rest."""
        if self.choice:
            return ", ".join(self.right)
        return self.right[0] if len(self.right) == 1 else list(self.right)

    @property
    def answers(self) -> tuple[str, ...]:
        """What is right in words: of a choice the right options, where they are known."""
        if not self.choice or not self.options:
            return self.right
        return tuple(self.options[LETTERS.index(letter)] for letter in self.right)


@dataclass(frozen=True, slots=True)
class Context:
    """Documents with their questions, in order. `pool` names the set that they come from."""

    pool: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    licence: str | None = None

    def digest(self) -> str:
        """16 hex digits by which the same documents are known, whatever their layout and order.

        Questions without documents are told apart by themselves.
        """
        own: Sequence[Document | Question] = self.documents or self.questions
        return digest_of_texts(one.text for one in own)


@dataclass(frozen=True, slots=True)
class Bad:
    """A row, or one question of it, that cannot be used, and why, with its place."""

    problem: str


class _Problem(Exception):
    """What is wrong, in words that follow the place."""


_NAMED = TaskSet("source", "instruct_pretrain", Source("file"), "qa")
_NUMBERED = replace(_NAMED, source=Source("file", options={"ids": "number"}))


def read_contexts(
    rows: Iterable[Row], pool: str, *, allow_empty: bool = False
) -> Iterator[Context | Bad]:
    """Every context of a source in order, and what cannot be used.

    Args:
        pool: the name of the set where rows name none.
        allow_empty: questions without documents are contexts of their own.
    """
    held: Context | None = None
    for raw in rows:
        for found in _read(raw, pool, allow_empty):
            joined = _together(held, found)
            if joined is not None:
                held = joined
                continue
            if held is not None:
                yield held
                held = None
            if isinstance(found, Bad):
                yield found
            else:
                held = found
    if held is not None:
        yield held


def _together(held: Context | None, found: Context | Bad) -> Context | None:
    """One context of two neighbours with the same documents; None where they are two."""
    if held is None or isinstance(found, Bad) or not found.documents:
        return None
    if len(held.questions) >= _GROUP:
        return None
    if (held.pool, held.licence, held.documents) != (found.pool, found.licence, found.documents):
        return None
    return replace(held, questions=held.questions + found.questions)


def _read(raw: Row, pool: str, allow_empty: bool) -> Iterator[Context | Bad]:
    if raw.fields is None:
        yield Bad(f"{raw.place}: {raw.problem or 'cannot be read'}")
        return
    try:
        documents = _documents(raw, allow_empty)
        reader = _Reader(raw, raw.fields)
        questions: list[Question] = []
        for found in reader.questions():
            if isinstance(found, Bad):
                yield found
            else:
                questions.append(found)
        pool = _word(raw.fields, POOLS) or pool
        licence = _word(raw.fields, LICENCES) or _word(_meta(raw.fields), LICENCES)
    except _Problem as exc:
        yield Bad(f"{raw.place}: {exc}")
    except InputError as exc:
        yield Bad(str(exc))
    else:
        if questions:
            yield Context(pool, documents, tuple(questions), licence)


def _meta(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    found = next((fields[name] for name in ("metadata", "meta") if name in fields), None)
    return found if isinstance(found, Mapping) else {}


def _word(fields: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these fields that is a text on one line."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str) and value.strip() and "\n" not in value:
            return _whole(name, value.strip())
    return None


def _whole(name: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise _Problem(
            f"field {name!r} is not text (a lone surrogate at character {exc.start})"
        ) from exc
    return text


# --- documents -------------------------------------------------------------------------------


def _documents(raw: Row, allow_empty: bool) -> tuple[Document, ...]:
    """The documents of a row, blank ones left out."""
    fields = raw.fields or {}
    name = next((one for one in CONTEXTS if fields.get(one) is not None), None)
    name = name or field_of(fields, "files", {})
    found = _from_field(raw, name) if name else ()
    kept = tuple(document for document in found if document.text.strip())
    if kept or allow_empty:
        return kept
    found_fields = ", ".join(map(str, fields))
    what = "is empty" if name else f"is missing (found: {found_fields})"
    raise _Problem(
        f"field {name or CONTEXTS[0]!r} {what}; --allow-empty keeps questions without documents"
    )


def _from_field(raw: Row, name: str) -> tuple[Document, ...]:
    value = (raw.fields or {})[name]
    if isinstance(value, str) and name in CONTEXTS:
        return (Document(_whole(name, value), title=_word(raw.fields or {}, ("title",))),)
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        return tuple(_titled(name, number, one) for number, one in enumerate(value))
    files = documents_of(raw, name)
    given = not isinstance(value, list)
    return tuple(
        Document(data.decode("utf-8"), file if given else None) for file, data in files.items()
    )


def _titled(name: str, number: int, value: Any) -> Document:
    """A document of a list, as an object with a text and perhaps a title or a file name."""
    if isinstance(value, str):
        return Document(_whole(name, value))
    text = value.get("text", value.get("content")) if isinstance(value, Mapping) else None
    if not isinstance(text, str):
        raise _Problem(
            f"field '{name}[{number}]' must be a text, or an object with `text` and perhaps "
            f"`title` or `name`, found {value!r:.80}"
        )
    file = _word(value, ("name",))
    if file and (PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts):
        raise _Problem(f"field '{name}[{number}]': the name {file!r} leads out of the folder")
    return Document(_whole(f"{name}[{number}]", text), file, _word(value, ("title",)))


# --- questions -------------------------------------------------------------------------------


class _Reader:
    """The questions of one row. A bad one of several is told, and the others are read."""

    def __init__(self, raw: Row, fields: Mapping[str, Any]) -> None:
        self._raw = raw
        self._fields = fields

    def questions(self) -> Iterator[Question | Bad]:
        name = next((one for one in PAIRS if isinstance(self._listed(one), list)), None)
        if name is None:
            yield self._alone()
            return
        pairs = self._listed(name)
        if not pairs:
            raise _Problem(f"field {name!r} is empty: there is no question")
        for number, pair in enumerate(pairs):
            where = f"{name}[{number}]"
            try:
                yield self._of_pair(pair, where, number)
            except _Problem as exc:
                yield Bad(f"{self._raw.place}: {exc}")

    def _listed(self, name: str) -> Any:
        value = self._fields.get(name)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError as exc:
                raise _Problem(f"field {name!r}: not the JSON of a list ({exc})") from exc
        return value

    def _of_pair(self, pair: Any, where: str, number: int) -> Question:
        if not isinstance(pair, Mapping):
            raise _Problem(
                f"field '{where}' must be an object with question and answer, found {pair!r:.80}"
            )
        asked = next((name for name in _ASKED if pair.get(name) is not None), None)
        answered = next((name for name in _ANSWERED if pair.get(name) is not None), None)
        for name, wanted in ((asked, "Q"), (answered, "A")):
            if name is None:
                found = ", ".join(map(str, pair)) or "nothing"
                raise _Problem(f"field '{where}.{wanted}' is missing (found: {found})")
        text = pair[asked]
        if not isinstance(text, str) or not text.strip():
            raise _Problem(f"field '{where}.{asked}' must be a text, found {text!r:.80}")
        kind = _kind({**self._fields, **pair})
        return _question(
            _whole(f"{where}.{asked}", text),
            pair[answered],
            (f"{where}.{asked}", f"{where}.{answered}"),
            _options(pair),
            kind,
            place=f"{self._raw.place} {where}",
            id=self._id_of_pair(pair, number),
        )

    def _id_of_pair(self, pair: Mapping[str, Any], number: int) -> str | None:
        own, of_row = field_of(pair, "id", {}), field_of(self._fields, "id", {})
        if own:
            return str(pair[own])
        return f"{self._fields[of_row]}-{number + 1}" if of_row else None

    def _alone(self) -> Question:
        """A row that is one question, read as any task set's row is."""
        left = (*TYPES, *OPTIONS, *CONTEXTS, *ALIASES["files"], "domain")
        bare = {name: value for name, value in self._fields.items() if name not in left}
        if field_of(bare, "target", {}) is None and bare.get(ANSWERS) is not None:
            bare["answer"] = _distinct(bare[ANSWERS])
        has_id = field_of(bare, "id", {}) is not None
        (task,) = load_tasks([Row(self._raw.place, bare)], _NAMED if has_id else _NUMBERED)
        names = field_of(bare, "prompt", {}) or "", field_of(bare, "target", {}) or ""
        return _question(
            task.prompt,
            task.target,
            names,
            _options(self._fields),
            _kind(self._fields),
            place=self._raw.place,
            id=task.id if has_id else None,
        )


def _distinct(answers: Any) -> Any:
    """Accepted answers as a list of texts, or an object with that list in `text` as in SQuAD."""
    given = answers.get("text") if isinstance(answers, Mapping) else answers
    return list(dict.fromkeys(map(str, given))) if isinstance(given, list) else given


def _kind(fields: Mapping[str, Any]) -> str | None:
    name = next((one for one in TYPES if fields.get(one) is not None), None)
    if name is None or fields[name] == "":
        return None
    if not isinstance(fields[name], str):
        raise _Problem(f"field {name!r} must be a text, found {fields[name]!r:.80}")
    return str(fields[name]).lower()


def _options(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The options by letter: a list, or texts by the letters from A."""
    name = next((one for one in OPTIONS if fields.get(one)), None)
    if name is None:
        return ()
    value = fields[name]
    if isinstance(value, Mapping):
        given = {str(key).strip().upper(): text for key, text in value.items() if text is not None}
        ordered = sorted(given)
        if ordered != list(LETTERS[: len(ordered)]):
            raise _Problem(f"field {name!r}: the letters are {', '.join(ordered)}, not A, B, C, …")
        value = [given[letter] for letter in ordered]
    if not isinstance(value, list) or not all(
        isinstance(one, str | int | float) and not isinstance(one, bool) for one in value
    ):
        raise _Problem(f"field {name!r} must be a list of texts, found {value!r:.80}")
    return _checked_options(name, [_whole(name, str(one)) for one in value])


def _checked_options(name: str, options: list[str]) -> tuple[str, ...]:
    if not 2 <= len(options) <= len(LETTERS):
        raise _Problem(f"field {name!r}: from 2 to 26 options are understood, found {len(options)}")
    if not all(option.strip() for option in options):
        raise _Problem(f"field {name!r}: an option is empty")
    plain = [" ".join(option.split()) for option in options]
    if len({option.casefold() for option in plain}) < len(plain):
        raise _Problem(f"field {name!r}: two options are the same")
    return tuple(plain)


def _question(
    text: str,
    answer: Any,
    names: tuple[str, str],
    options: tuple[str, ...],
    kind: str | None,
    *,
    place: str,
    id: str | None,  # noqa: A002 - a task's word
) -> Question:
    """The question with its options and answer taken apart.

    Raises:
        _Problem: an answer that does not fit; `names` are those of the fields of both.
    """
    wrong = wrong_truth("qa", answer)
    if wrong:
        raise _Problem(f"field {names[1]!r}: {wrong}")
    answers = [str(one) for one in (answer if isinstance(answer, list | tuple) else [answer])]
    answers = [_whole(names[1], one) for one in answers]
    text = text.strip().removesuffix(_STEPS.strip()).rstrip()
    answers = [_final(one) for one in answers]
    if not text:
        raise _Problem(f"field {names[0]!r} must be a text that is not empty")
    if not options and _LISTED in text:
        text, _, tail = text.partition(_LISTED)
        options = _checked_options(names[0], tail.split("\n- "))
    if options or _is_choice(text, answers, kind):
        return _choice(text, answers, names[1], options, kind or "", place, id)
    return Question(text, tuple(answers), place, id=id)


def _final(answer: str) -> str:
    """What a chain of thought ends with; any other answer as it is."""
    _, mark, last = answer.rpartition(_THEREFORE)
    return last.strip().removesuffix(".") if mark and last.strip(" .\n") else answer.strip()


def _is_choice(text: str, answers: list[str], kind: str | None) -> bool:
    """Whether a question without a list of options is one of choice: its row says so, or it has
    lettered lines and the answer is a letter of theirs.
    """
    if kind is not None:
        return "choice" in kind or kind == "mcq"
    inside = options_of(Task("", text))
    return bool(inside) and all(answer in inside for answer in answers)


def _choice(
    text: str,
    answers: list[str],
    name: str,
    options: tuple[str, ...],
    kind: str,
    place: str,
    id: str | None,  # noqa: A002
) -> Question:
    listed = bool(options)
    options = options or tuple(options_of(Task("", text)).values())
    by_words = _by_words(answers, options)
    letters = by_words or _by_letters(answers, options)
    if not letters:
        have = ", ".join(options) or "none in the question"
        raise _Problem(
            f"field {name!r}: a choice wants letters, or options word for word "
            f"(have: {have:.120}), found {', '.join(answers)!r:.80}"
        )
    return Question(
        text,
        tuple(letters),
        place,
        options,
        listed,
        loose=listed and bool(by_words),
        choice=True,
        several=len(letters) > 1 or bool(_SEVERAL.search(kind)),
        id=id,
    )


def _by_words(answers: list[str], options: tuple[str, ...]) -> list[str]:
    """The letters of answers that are options word for word, joined in one text or not."""
    found = _places(answers, options)
    if not found and len(answers) == 1:
        split = (answers[0].split(mark) for mark in _JOINED if mark in answers[0])
        found = next((places for parts in split if (places := _places(parts, options))), [])
    return [LETTERS[at] for at in found]


def _places(answers: Iterable[str], options: tuple[str, ...]) -> list[int]:
    places = {option.casefold(): at for at, option in enumerate(options)}
    found = [places.get(" ".join(answer.split()).casefold(), -1) for answer in answers]
    return [] if -1 in found else sorted(set(found))


def _by_letters(answers: list[str], options: tuple[str, ...]) -> list[str]:
    """The letters that answers are, or begin with as labels; empty where one is neither."""
    known = LETTERS[: len(options)] if options else LETTERS
    letters: set[str] = set()
    for answer in answers:
        label = _LABELLED.fullmatch(answer)
        run = [label[1]] if label else re.findall("[A-Z]", answer)
        if not label and not _LETTERED.fullmatch(answer.replace(" and ", ", ")):
            run = [answer.upper()] if re.fullmatch("[a-z]", answer) else []
        if not run or not set(run) <= set(known):
            return []
        letters |= set(run)
    return sorted(letters)
