"""Tasks out of contexts: files, distractors, examples, and one question asked.

All chance comes from hashes of the seed and of what is decided, so that the same options give the
same bytes everywhere, and one context's draw does not depend on another's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sandlot.train.data_files import Bounds, Piece, named, pieces_of, safe
from sandlot.train.data_rows import CHOICE, LETTERS, OPEN, Context, Question
from sandlot.train.data_spool import Spool, Spooled
from sandlot.train.data_words import hash64, normal

T = TypeVar("T")

DOMAIN = "instruct_pretrain"
CONTEXT = "context_digest"
"""Field of every row: tasks that share a context share it, whatever documents were added."""

_CLOSED = frozenset(
    ("yes", "no", "true", "false", "maybe", "unknown", "unanswerable", "not given", "none")
)
_REFERRING = re.compile(
    r"\b(?:above|below|all of|none of|both|neither|[A-Z] (?:and|or) [A-Z])\b", re.IGNORECASE
)
_TRIES = 50  # draws for each distractor in a pool too large to be put in order


@dataclass(frozen=True, slots=True)
class Shape:
    """How tasks are made. `ask`: the last so many questions of a context, 0 for all."""

    seed: int = 1
    ask: int = 1
    examples: int = 3
    distractors: int = 3
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True)
class Made:
    """One task as a row in the schema of the paper's bench, and where its question came from."""

    row: Mapping[str, Any]
    place: str
    files: int
    distractors: int
    lacking: bool


def asked_of(count: int, ask: int) -> int:
    """How many of so many questions are asked."""
    return count if ask == 0 else min(ask, count)


def tasks_of(spooled: Spooled, spool: Spool, shape: Shape, asked: int) -> Iterator[Made]:
    """The tasks of one context: its last `asked` questions, with earlier ones as examples."""
    context = spooled.context
    pieces = list(pieces_of(context.documents, shape.bounds))
    added: list[Piece] = []
    alone = len(pieces) == 1 and shape.distractors > 0
    if alone:
        added = list(_distractors(spooled, spool, shape))
        pieces = _in_order(f"{shape.seed} files {spooled.digest}", [*pieces, *added])
    files = named(pieces)
    first = len(context.questions) - asked
    for question in context.questions[first:]:
        question = _shuffled(question, shape.seed)
        examples = _examples(context.questions[:first], question, shape.examples)
        row = _row(context, spooled.digest, question, examples, files)
        row["distractors"] = len(added)
        lacking = alone and len(added) < shape.distractors
        yield Made(row, question.place, len(files), len(added), lacking)


def _row(
    context: Context,
    digest: str,
    question: Question,
    examples: Sequence[Question],
    files: Mapping[str, str],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": question.id or name_of(context, digest, question),
        "domain": DOMAIN,
        "problem_statement": prompt_of(question, examples, documents=bool(files)),
        "ground_truth": question.truth,
        "input_files": dict(files),
        "qa_type": CHOICE if question.choice else OPEN,
    }
    if question.options:
        row["options"] = dict(zip(LETTERS, question.options, strict=False))
    row |= {"pool": context.pool, CONTEXT: digest, "examples": len(examples)}
    if context.licence:
        row["licence"] = context.licence
    return row


def name_of(context: Context, digest: str, question: Question) -> str:
    """An id made of the set's name and of what is asked about which documents."""
    return f"{safe(context.pool) or 'task'}-{hash64(f'{digest} {identity(question)}'):016x}"


def identity(question: Question) -> str:
    """What makes two questions the same: their words and their options, in whatever order."""
    options = sorted(normal(option) for option in question.options)
    return "\0".join((normal(question.text), *options))


# --- distractors -----------------------------------------------------------------------------


def _distractors(spooled: Spooled, spool: Spool, shape: Shape) -> Iterator[Piece]:
    """A piece each of other contexts of the same pool, as many as asked for where there are."""
    pool = spooled.context.pool
    used = {spooled.digest}
    left = shape.distractors
    for rank in _ranks(f"{shape.seed} distractors {spooled.digest}", spool.pool_size(pool), left):
        if rank == spooled.rank or spool.digest_at(pool, rank) in used:
            continue
        other = spool.at(pool, rank)
        found = pieces_of(other.context.documents, shape.bounds)
        if not found:
            continue
        used.add(other.digest)
        key = f"{shape.seed} piece {spooled.digest} {other.digest}"
        # Without its number, which would tell it from a text that is whole.
        yield replace(_in_order(key, found)[0], number=None)
        left -= 1
        if left == 0:
            return


def _ranks(key: str, count: int, wanted: int) -> Iterator[int]:
    """Places in a pool, drawn without repeats: all of a small pool, enough of a large one."""
    if count <= _TRIES * wanted:
        yield from _in_order(key, range(count))
        return
    seen: set[int] = set()
    for number in range(_TRIES * wanted):
        rank = hash64(f"{key} {number}") % count
        if rank not in seen:
            seen.add(rank)
            yield rank


def _in_order(key: str, items: Sequence[T]) -> list[T]:
    """The items in an order that depends on the key and their places alone."""
    places = sorted(range(len(items)), key=lambda at: (hash64(f"{key} {at}"), at))
    return [items[at] for at in places]


# --- prompts ---------------------------------------------------------------------------------


def prompt_of(
    question: Question, examples: Sequence[Question] = (), *, documents: bool = True
) -> str:
    """What is asked, below examples with their answers where there are any."""
    asked = "\n\n".join(part for part in (_asked(question), _form(question)) if part)
    if not examples:
        return asked
    shown = "\n\n".join(f"Question: {_asked(one)}\nAnswer: {_told(one)}" for one in examples)
    about = "about the same documents" if documents else "of the same kind"
    return (
        f"Earlier questions {about}, with their answers:\n\n"
        f"{shown}\n\nThe question to answer now:\n\n{asked}"
    )


def _asked(question: Question) -> str:
    if not question.listed:
        return question.text
    lines = (
        f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False)
    )
    return "\n".join((question.text, *lines))


def _form(question: Question) -> str:
    if question.several:
        return (
            "One option or several may be right. Answer with the letters of all right options, "
            "separated by commas."
        )
    return "Answer with the letter of the right option." if question.choice else ""


def _told(question: Question) -> str:
    truth = question.truth
    return truth if isinstance(truth, str) else truth[0]


def _examples(earlier: Sequence[Question], asked: Question, count: int) -> tuple[Question, ...]:
    """The nearest earlier questions that do not give the asked one's answer away."""
    kept = [one for one in earlier if not gives_away(one, asked)]
    return tuple(kept[len(kept) - min(count, len(kept)) :])


def gives_away(example: Question, asked: Question) -> bool:
    """Whether a question with its answer tells the answer of another.

    Letters, and answers of a closed class such as yes and no, tell nothing: to leave out examples
    that share them would tell that the answer is another one.
    """
    if identity(example) == identity(asked):
        return True
    if asked.choice and sorted(map(normal, example.options)) == sorted(map(normal, asked.options)):
        return False
    told = [f" {normal(text)} " for text in (example.text, *example.answers)]
    for answer in asked.answers if asked.options or not asked.choice else ():
        words = normal(answer)
        if words and words not in _CLOSED and any(f" {words} " in text for text in told):
            return True
        if not words and answer.strip() and answer.strip() in "\n".join(example.answers):
            return True
    return False


def _shuffled(question: Question, seed: int) -> Question:
    """The options in another order, where their order was free and none speaks of the others.

    In many sets the right option stands in one place more often than in others.
    """
    if not question.loose or any(_REFERRING.search(option) for option in question.options):
        return question
    key = f"{seed} options {identity(question)}"
    options = tuple(_in_order(key, sorted(question.options)))
    right = sorted(LETTERS[options.index(answer)] for answer in question.answers)
    return replace(question, options=options, right=tuple(right))
