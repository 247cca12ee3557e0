"""Training tasks out of context-based question sets (`sandlot data build`).

    rows -> contexts -> without what is repeated or measured with -> spool -> tasks -> JSONL

Sources are read once and held on disk in between: memory does not grow with them (JSON and CSV
files are read whole by their readers). The same sources, options and compared sets give the same
bytes. Method: LLM-in-Sandbox, arXiv 2601.16206, section on reinforcement learning: contexts of
reading sets as files, single files beside distractors, earlier pairs as examples.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandlot import __version__
from sandlot.bench.contamination import check_sandbox_view
from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError, InputError
from sandlot.core.store import to_toml
from sandlot.core.types import Task
from sandlot.tasks.base import LoadedSet
from sandlot.tasks.readers import ROW_BYTES, SUFFIXES, read_rows
from sandlot.train.atomic import replacing
from sandlot.train.data_files import Bounds
from sandlot.train.data_overlap import RUN, Overlaps
from sandlot.train.data_rows import Bad, Context, Question, read_contexts
from sandlot.train.data_spool import Spool
from sandlot.train.data_tasks import CONTEXT, DOMAIN, Made, Shape, asked_of, identity, tasks_of
from sandlot.train.data_words import hash64, normal, words_of

FORMAT = 1
_SHOWN = 20  # problems in one message
_PLACES = 5  # of each reason, in the manifest
_EVERY = 200  # rows or tasks between two signs of progress

Progress = Callable[[str, int, int | None], None]
"""Gets what is being done, how much of it is, and of how much where that is known."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What is made of the sources.

    `ask` questions of a context are asked, the last ones (0: all), each with up to `examples` of
    those before them. A text above `most_chars` is cut into files of at least `least_chars`; a
    context that is a single file gets `distractors` files of other contexts of its set. `limit`
    picks contexts for so many tasks. `overlap` is the share of a question's runs of words, or of a
    document's sentences, from which it counts as one of a set that is measured with. Questions
    without documents are an error unless `allow_empty`; with `skip_bad` what cannot be used is
    left out and counted; with `force` files that are there are replaced.
    """

    seed: int = 1
    ask: int = 1
    examples: int = 3
    distractors: int = 3
    least_chars: int = 400
    most_chars: int = 4000
    limit: int | None = None
    overlap: float = 0.5
    allow_empty: bool = False
    skip_bad: bool = False
    force: bool = False

    @property
    def shape(self) -> Shape:
        bounds = Bounds(self.least_chars, self.most_chars)
        return Shape(self.seed, self.ask, self.examples, self.distractors, bounds)


@dataclass(slots=True)
class LeftOut:
    """How many questions were left out for one reason, and where the first of them stand."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str, count: int = 1) -> None:
        self.count += count
        if len(self.places) < _PLACES:
            self.places.append(place)


@dataclass(frozen=True, slots=True)
class Built:
    """What a build left: its files, and its manifest as it was written."""

    path: Path
    row_path: Path
    manifest_path: Path
    manifest: Mapping[str, Any]


def build(
    sources: Sequence[Path],
    out: Path,
    options: BuildOptions | None = None,
    *,
    compared: Iterable[LoadedSet] = (),
    progress: Progress | None = None,
) -> Built:
    """Write the tasks of all sources, a TOML row that loads them, and a manifest.

    Args:
        sources: files of rows, or folders of them (read in the order of their names).
        out: a JSONL file; the row and the manifest go beside it.
        compared: task sets (`data_overlap.load_compared`) whose questions and documents are left
            out; each is let go before the next is asked for.
    Raises:
        ConfigError: options out of range, or an output that is there.
        InputError: rows that cannot be used, each named; nothing left to write.
        ExportError, RecordError: the disk is full. What was there before is there still.
    """
    options = options or BuildOptions()
    _check(options)
    outputs = _Outputs(out, options.force)
    files = source_files(sources)
    outputs.refuse_sources(files)
    job = _Job(options, progress or _silent)
    job.index(compared)
    with Spool(out.parent) as spool:
        job.read(files, spool)
        with (
            replacing(outputs.manifest) as manifest_part,
            replacing(outputs.row) as row_part,
            replacing(outputs.tasks) as tasks_part,
        ):
            job.write(spool, tasks_part)
            manifest = job.manifest(out.name, _digest_of_file(tasks_part)[0])
            row_part.write_text(to_toml(_task_set(out, manifest)), "utf-8")
            text = json.dumps(manifest, ensure_ascii=False, indent=1)
            manifest_part.write_text(f"{text}\n", "utf-8")
    return Built(out, outputs.row, outputs.manifest, manifest)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of rows. `name` is how it is recorded, `pool` the set of rows that name none."""

    path: Path
    name: str
    pool: str


def source_files(sources: Sequence[Path]) -> tuple[SourceFile, ...]:
    """The files of rows: those given, and those below given folders by name.

    Raises:
        InputError: a path that is not there, or a folder without such files.
    """
    found: dict[Path, SourceFile] = {}
    for source in sources:
        if source.is_dir():
            inside = list(_below(source))
            if not inside:
                raise InputError(f"{source}: holds no file of rows ({', '.join(SUFFIXES)})")
        elif source.is_file():
            inside = [SourceFile(source, source.name, source.stem)]
        else:
            raise InputError(f"{source}: no such file")
        for file in inside:
            if not _is_text(file.name):  # it stands in tasks and in the manifest
                raise InputError(f"{source}: a file's name is not UTF-8: {file.name!r}; rename it")
            found.setdefault(file.path.resolve(), file)
    if not found:
        raise InputError("no source was named")
    return tuple(found.values())


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _below(folder: Path) -> Iterator[SourceFile]:
    """The files of a folder in the order of their names; shards of one folder are one set.

    A folder inside that cannot be read is an error: rows of it would be missing without a word.
    """

    def unreadable(exc: OSError) -> None:
        raise InputError(f"{exc.filename}: cannot be read: {exc.strerror}") from exc

    paths = (
        Path(at, name) for at, _, names in os.walk(folder, onerror=unreadable) for name in names
    )
    named = {
        f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}": path
        for path in paths
        if path.suffix.lower() in SUFFIXES and path.is_file()
    }
    for name in sorted(named):
        yield SourceFile(named[name], name, name.rpartition("/")[0])


def _silent(what: str, done: int, whole: int | None) -> None:
    pass


def _check(options: BuildOptions) -> None:
    for name, low in (
        ("seed", 0), ("ask", 0), ("examples", 0), ("distractors", 0), ("least_chars", 1)
    ):  # fmt: skip
        if getattr(options, name) < low:
            raise ConfigError(f"{name} must be at least {low}, found {getattr(options, name)}")
    if options.most_chars < 2 * options.least_chars:
        raise ConfigError(
            f"most_chars must be at least twice least_chars ({options.least_chars}), so that a "
            f"text can be cut, found {options.most_chars}"
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"limit must be at least 1, found {options.limit}")
    if not 0 < options.overlap <= 1:
        raise ConfigError(f"overlap must be above 0 and at most 1, found {options.overlap}")


# --- the work --------------------------------------------------------------------------------


class _Job:
    """One build: what was read, kept, left out and written."""

    def __init__(self, options: BuildOptions, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._overlaps = Overlaps(options.overlap)
        self._compared: list[dict[str, Any]] = []
        self._sources: list[dict[str, Any]] = []
        self._left_out: dict[str, LeftOut] = {}
        self._problems: list[str] = []
        self._bad = 0
        self._counts: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._licences: Counter[str] = Counter()

    def index(self, compared: Iterable[LoadedSet]) -> None:
        for number, loaded in enumerate(compared, 1):
            self._overlaps.add(loaded)
            self._compared.append(
                {"name": loaded.row.name, "items": len(loaded.tasks), "digest": loaded.digest}
            )
            self._progress(f"comparing with {loaded.row.name}", number, None)

    # reading

    def read(self, files: Sequence[SourceFile], spool: Spool) -> None:
        """Every context that is of use into the spool.

        Raises:
            InputError: rows that cannot be used, all named; or nothing of use.
        """
        for file in files:
            self._read_file(file, spool)
        if self._bad and not self._options.skip_bad:
            raise InputError(self._summary())
        if not len(spool):
            raise InputError(self._nothing_left())

    def _read_file(self, file: SourceFile, spool: Spool) -> None:
        rows = 0

        def counted() -> Iterator[Any]:
            nonlocal rows
            for rows, row in enumerate(read_rows(file.path), 1):
                if rows % _EVERY == 0:
                    self._progress(f"reading {file.name}", rows, None)
                yield row

        allow_empty = self._options.allow_empty
        for found in read_contexts(counted(), file.pool, allow_empty=allow_empty):
            if isinstance(found, Bad):
                self._add_bad(found)
            else:
                self._keep(found, spool)
        self._progress(f"reading {file.name}", rows, rows)
        digest, size = _digest_of_file(file.path)
        self._sources.append({"name": file.name, "rows": rows, "bytes": size, "sha256": digest})
        self._counts["rows"] += rows

    def _add_bad(self, bad: Bad) -> None:
        self._bad += 1
        if len(self._problems) < _SHOWN:
            self._problems.append(bad.problem)
        self._drop("cannot be used", bad.problem)

    def _keep(self, context: Context, spool: Spool) -> None:
        """Store a context with those of its questions that are new and not measured with."""
        digest = context.digest()
        self._counts["contexts"] += 1
        self._counts["questions"] += len(context.questions)
        measured = self._overlaps.of_documents(context.documents)
        questions = []
        for question in context.questions:
            taken = spool.claim(question.id, question.place) if question.id else None
            if taken:
                problem = f"{question.place}: field 'id': {question.id!r} stands already at {taken}"
                self._add_bad(Bad(problem))
            elif measured:
                self._drop(f"documents of {measured}", question.place)
            elif self._is_new(question, digest, spool):
                questions.append(question)
        if questions:
            kept = Context(context.pool, context.documents, tuple(questions), context.licence)
            asked = asked_of(len(questions), self._options.ask)
            draw = hash64(f"{self._options.seed} pick {len(spool)} {digest}")
            spool.add(kept, digest, draw=draw, asked=asked)

    def _is_new(self, question: Question, digest: str, spool: Spool) -> bool:
        known = self._overlaps.of_question(question)
        if known:
            self._drop(f"question of {known}", question.place)
            return False
        asked = identity(question)
        if not spool.is_new(f"documents {digest} {asked}"):
            self._drop("asked of the same documents before", question.place)
            return False
        if len(words_of(question.text)) < RUN:
            return True  # "What is the title?" is asked of many documents
        answer = "\0".join(map(normal, question.answers))
        if not spool.is_new(f"pair {asked} {answer}"):
            self._drop("the same question with the same answer before", question.place)
            return False
        return True

    def _drop(self, reason: str, place: str, count: int = 1) -> None:
        self._left_out.setdefault(reason, LeftOut()).add(place, count)

    # writing

    def write(self, spool: Spool, path: Path) -> None:
        limit = self._options.limit
        picked = spool.picked(limit) if limit is not None else None
        whole = len(spool) if picked is None else len(picked)
        with path.open("wb") as file:
            for number, spooled in enumerate(spool.contexts(), 1):
                count = len(spooled.context.questions)
                asked = asked_of(count, self._options.ask)
                if picked is not None:
                    asked = picked.get(spooled.number, 0)
                self._left(spooled.context, count - asked, picked is not None and not asked)
                if asked:
                    for made in tasks_of(spooled, spool, self._options.shape, asked):
                        self._write_task(made, file.write)
                if number % _EVERY == 0:
                    self._progress("writing contexts", min(number, whole), whole)
        self._progress("writing contexts", whole, whole)
        if not self._counts["tasks"]:
            raise InputError(self._nothing_left())

    def _left(self, context: Context, count: int, unpicked: bool) -> None:
        if count:
            reason = "beyond the limit" if unpicked else "not asked (examples, or left over)"
            self._drop(reason, context.questions[0].place, count)

    def _write_task(self, made: Made, write: Callable[[bytes], Any]) -> None:
        row = made.row
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        if len(line) > ROW_BYTES:
            raise InputError(
                f"{made.place}: the task would be larger than {ROW_BYTES / 1e6:,.0f} MB; split "
                "its documents, or take fewer distractors"
            )
        if not _may_be_shown(row):
            self._drop("a document is an answer key", made.place)
            return
        write(line)
        self._counts["tasks"] += 1
        self._counts["files"] += made.files
        self._counts["distractors"] += made.distractors
        self._counts["examples"] += row["examples"]
        self._counts["tasks with fewer distractors"] += made.lacking
        self._kinds[_kind(row)] += 1
        self._licences[row.get("licence", "not named")] += 1

    # telling

    def manifest(self, name: str, digest: str) -> dict[str, Any]:
        options = {key: value for key, value in to_json(self._options).items() if key != "force"}
        return {
            "format": FORMAT,
            "sandlot": __version__,
            "tasks": {"file": name, "sha256": digest},
            "options": options,
            "sources": self._sources,
            "compared": self._compared,
            "counts": {key: self._counts[key] for key in sorted(self._counts)},
            "kinds": {key: self._kinds[key] for key in sorted(self._kinds)},
            "left_out": {key: to_json(self._left_out[key]) for key in sorted(self._left_out)},
            "licences": {key: self._licences[key] for key in sorted(self._licences)},
        }

    def _summary(self) -> str:
        if self._bad == 1:
            return self._problems[0]
        shown = "\n  ".join(self._problems)
        more = self._bad - len(self._problems)
        rest = f"\n  … and {more:,} more" if more else ""
        return (
            f"{self._bad:,} rows or questions cannot be used (--skip-bad leaves them out):\n"
            f"  {shown}{rest}"
        )

    def _nothing_left(self) -> str:
        names = ", ".join(source["name"] for source in self._sources)
        if not self._counts["rows"]:
            return f"{names}: holds no rows"
        reasons = "; ".join(
            f"{left.count:,} {reason}" for reason, left in sorted(self._left_out.items())
        )
        return f"{names}: no task is left ({reasons or 'no question was read'})"


def _may_be_shown(row: Mapping[str, Any]) -> bool:
    """Whether a bench would let a model see the task: no file of it is an answer key."""
    files = {name: text.encode() for name, text in row["input_files"].items()}
    task = Task(row["id"], row["problem_statement"], files, target=row["ground_truth"])
    try:
        check_sandbox_view(task)
    except ConfigError:
        return False
    return True


def _kind(row: Mapping[str, Any]) -> str:
    if row["qa_type"] != "multiple choice":
        return "open"
    return "choice of several" if "," in row["ground_truth"] else "choice of one"


def _digest_of_file(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


def _task_set(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the task set, as one writes it for problems of one's own."""
    names = list(dict.fromkeys(source["name"] for source in manifest["sources"]))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    licences = sorted(manifest["licences"])
    more = f" and {len(licences) - 5} more, see the manifest" if len(licences) > 5 else ""
    return {
        "name": re.sub(r"[^A-Za-z0-9_-]+", "-", out.stem).strip("-_") or "tasks",
        "title": f"training tasks from {shown}",
        "domain": DOMAIN,
        "scorer": "qa",
        "cluster": CONTEXT,
        "licence": "; ".join(licences[:5]) + more,
        "source": {
            "kind": "file",
            "path": out.name,
            "options": {"items": manifest["counts"]["tasks"]},
        },
    }


# --- files -----------------------------------------------------------------------------------


class _Outputs:
    """The three files of a build."""

    def __init__(self, out: Path, force: bool) -> None:
        if out.suffix != ".jsonl":
            raise ConfigError(f"--out {out}: the tasks go into a file that ends in .jsonl")
        if not out.parent.is_dir():
            raise ConfigError(f"--out {out}: the folder {out.parent} is not there")
        self.tasks = out
        self.row = out.with_suffix(".toml")
        self.manifest = out.with_suffix(".manifest.json")
        try:
            there = [path.name for path in (self.tasks, self.row, self.manifest) if path.exists()]
        except OSError as exc:  # too long a name
            raise ConfigError(f"--out {out}: {exc.strerror}") from exc
        if there and not force:
            raise ConfigError(f"{out.parent}: there already: {', '.join(there)}; --force replaces")

    def refuse_sources(self, files: Iterable[SourceFile]) -> None:
        """Raises ConfigError where an output is one of the sources."""
        outputs = {path.resolve() for path in (self.tasks, self.row, self.manifest)}
        for file in files:
            if file.path.resolve() in outputs:
                raise ConfigError(f"{file.path}: is a source, and would be written over")
