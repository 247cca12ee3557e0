"""Which questions and documents of a source stand in task sets that are measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandlot.core.types import Task
from sandlot.scoring.choice import options_of
from sandlot.tasks.base import LoadedSet, TaskSet
from sandlot.tasks.hub import cache_of
from sandlot.tasks.registry import load_row, load_sets, set_names
from sandlot.train.data_files import Document
from sandlot.train.data_rows import Question
from sandlot.train.data_words import hash64, normal, runs, sentences, words_of

RUN = 8
"""Words in a row that count as one piece of a question; a shorter question has none."""

SENTENCE = 6
"""Words of a sentence that is told from any other; shorter ones are not counted."""

Note = Callable[[str], None]


@dataclass(slots=True)
class _Index:
    """What one set holds, as hashes."""

    name: str
    runs: set[int] = field(default_factory=set)
    pairs: set[int] = field(default_factory=set)
    texts: set[int] = field(default_factory=set)
    sentences: set[int] = field(default_factory=set)

    def add(self, task: Task) -> None:
        self.runs.update(runs(words_of(task.prompt), RUN))
        self.sentences.update(key for key, _ in sentences(task.prompt, SENTENCE))
        asked = {normal(part) for part in (task.prompt, *task.prompt.splitlines())} - {""}
        for answer in _answers(task):
            self.pairs.update(_pair(one, answer) for one in asked)
        for data in task.input_files.values():
            text = data.decode("utf-8", "replace")
            self.texts.add(hash64(normal(text)))
            self.sentences.update(key for key, _ in sentences(text, SENTENCE))


class Overlaps:
    """Task sets against which questions and documents are held.

    A question is known where at least the share `overlap` of its runs of `RUN` words stands in the
    prompts of one set; a shorter one where a set asks it with the same answer. A document is known
    where a set holds the same words, or that share of its sentences (by their words).
    """

    def __init__(self, overlap: float) -> None:
        self._overlap = overlap
        self._indexes: list[_Index] = []

    def add(self, loaded: LoadedSet) -> None:
        index = _Index(loaded.row.name)
        for task in loaded.tasks:
            index.add(task)
        self._indexes.append(index)

    def of_question(self, question: Question) -> str | None:
        """The name of a set that asks it."""
        words = words_of(question.text)
        pieces = list(runs(words, RUN))
        if pieces:
            return next((i.name for i in self._indexes if self._shared(pieces, i.runs)), None)
        asked = " ".join(words)
        pairs = {_pair(asked, normal(answer)) for answer in question.answers}
        return next((i.name for i in self._indexes if not pairs.isdisjoint(i.pairs)), None)

    def of_documents(self, documents: Sequence[Document]) -> str | None:
        """The name of a set that holds one of them."""
        for document in documents if self._indexes else ():
            same = hash64(normal(document.text))
            parts = list(sentences(document.text, SENTENCE))
            for index in self._indexes:
                if same in index.texts or self._weighed(parts, index.sentences):
                    return index.name
        return None

    def _shared(self, pieces: Sequence[int], known: set[int]) -> bool:
        return sum(piece in known for piece in pieces) >= self._overlap * len(pieces)

    def _weighed(self, parts: Sequence[tuple[int, int]], known: set[int]) -> bool:
        whole = sum(words for _, words in parts)
        found = sum(words for key, words in parts if key in known)
        return found > 0 and found >= self._overlap * whole


def _pair(question: str, answer: str) -> int:
    return hash64(f"{question}\0{answer}")


def _answers(task: Task) -> set[str]:
    """The right answers in words, of a letter also the option that it stands for."""
    given = task.target if isinstance(task.target, list | tuple) else [task.target]
    texts = {str(one) for one in given if isinstance(one, str | int | float)}
    options = options_of(task)
    return {normal(text) for text in (*texts, *(options.get(one, one) for one in texts))} - {""}


# --- which sets ------------------------------------------------------------------------------


def load_compared(
    names: Sequence[str] | None,
    *,
    cache: Path,
    environ: Mapping[str, str],
    note: Note,
) -> Iterator[LoadedSet]:
    """The sets to compare with, one at a time: those named, else every shipped one that is here.

    By default that is each local set, and each set of the hub whose files are in the cache; the
    paper's own training tasks are no measure and are left out. Nothing is downloaded for it.
    Raises:
        ConfigError, InputError, MissingExtra: as of `tasks.registry.load_set`, for named sets.
    """
    if names is not None:
        for name in names:
            yield from load_sets(name, cache=cache, environ=environ, progress=note)
        return
    for name in set_names():
        row = load_row(name)
        if row.members or row.domain == "instruct_pretrain":
            continue
        if row.source.kind != "hub":
            yield from load_sets(name, cache=cache, environ=environ, progress=note)
        elif _is_cached(row, cache, environ):
            yield from _from_cache(name, cache, environ, note)


def _is_cached(row: TaskSet, cache: Path, environ: Mapping[str, str]) -> bool:
    folder = f"datasets--{str(row.source.dataset).replace('/', '--')}"
    return (cache_of(environ, cache) / folder).is_dir()


def _from_cache(
    name: str, cache: Path, environ: Mapping[str, str], note: Note
) -> Iterable[LoadedSet]:
    from sandlot.core.errors import InputError, MissingExtra

    offline: dict[str, Any] = {**environ, "HF_HUB_OFFLINE": "1"}
    try:
        return load_sets(name, cache=cache, environ=offline, progress=note)
    except (InputError, MissingExtra) as exc:
        note(f"not compared with {name}: {exc}")
        return ()
