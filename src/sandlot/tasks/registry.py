"""Task sets by name or by path: a shipped row, a row of one's own, or a bare file of problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from sandlot.core.errors import ConfigError, InputError, unknown_name
from sandlot.core.types import Task
from sandlot.tasks.base import LoadedSet, Source, TaskSet
from sandlot.tasks.harbor import is_harbor, load_harbor
from sandlot.tasks.loaders import DOMAINS, digest_of, field_of, guess_scorer, load_tasks
from sandlot.tasks.readers import SUFFIXES, read_rows
from sandlot.tasks.rows import read_row

_HERE = Path(__file__).parent
_GENERATORS = {
    "errands": "sandlot.tasks.generators.errands:generate",
    "filing": "sandlot.tasks.generators.filing:generate",
    "long_context": "sandlot.tasks.generators.long_context:generate",
}

Progress = Callable[[str], None]


def set_names() -> list[str]:
    """Names of the shipped rows, groups included."""
    return sorted(path.stem for path in (_HERE / "sets").glob("*.toml"))


def load_row(name_or_path: str) -> TaskSet:
    """The row of a shipped set, of a TOML file, or one made up for a bare file of problems.

    Raises:
        ConfigError: an unknown name, or a row that cannot be used; names file, line and field.
        InputError: no such file, or a file of problems that cannot be read.
    """
    return _find(name_or_path).row


def members_of(name_or_path: str) -> tuple[str, ...]:
    """What `load_set` can be called with: the members of a group, or the set itself.

    Raises:
        ConfigError: a group that holds itself; else as of `load_row`.
    """
    return tuple(dict.fromkeys(_members(name_or_path, ())))


def _members(name_or_path: str, above: tuple[str, ...]) -> Iterator[str]:
    found = _find(name_or_path)
    if name_or_path in above:
        raise ConfigError(f"task set {found.row.name!r} is a group that holds itself")
    if not found.row.members:
        yield name_or_path
    for one in found.row.members:
        yield from _members(found.member(one), (*above, name_or_path))


def load_sets(
    name_or_path: str, *, cache: Path, environ: Mapping[str, str], progress: Progress
) -> tuple[LoadedSet, ...]:
    """The set, or every set of a group. Arguments and errors as of `load_set`."""
    return tuple(
        load_set(one, cache=cache, environ=environ, progress=progress)
        for one in members_of(name_or_path)
    )


def load_set(
    name_or_path: str, *, cache: Path, environ: Mapping[str, str], progress: Progress
) -> LoadedSet:
    """A row with its problems.

    Args:
        cache: a folder of ours, used where `environ` leads to no cache of the hub's own.
        environ: variables that the hub's library knows (`HF_HOME`, `HF_HUB_OFFLINE`, …).
        progress: gets a line about what was guessed or takes time.
    Raises:
        ConfigError: an unknown name, a row that cannot be used, or the name of a group.
        InputError: problems that cannot be used, or a hub that cannot be reached.
        MissingExtra: a library for this source is not installed.
    """
    found = _find(name_or_path)
    if found.row.members:
        raise ConfigError(
            f"task set {found.row.name!r} is a group of {', '.join(found.row.members)}: "
            "load its members one by one (tasks.registry.load_sets)"
        )
    if found.guessed:
        progress(found.guessed)
    row, tasks = _LOAD[found.row.source.kind](_Job(found, cache, environ, progress))
    _check_count(row, tasks, progress)
    return LoadedSet(row, tasks, digest_of(row, tasks))


@dataclass(frozen=True, slots=True)
class _Found:
    """A row and the folder that its paths start from. `guessed` says what nobody had written."""

    row: TaskSet
    folder: Path
    guessed: str = ""

    def member(self, name: str) -> str:
        """A member's name, or its path as seen from here."""
        return name if name in set_names() else str(self.folder / name)


@dataclass(frozen=True, slots=True)
class _Job:
    found: _Found
    cache: Path
    environ: Mapping[str, str]
    progress: Progress

    @property
    def row(self) -> TaskSet:
        return self.found.row


_Loaded = tuple[TaskSet, tuple[Task, ...]]


def _find(name_or_path: str) -> _Found:
    if name_or_path in set_names():
        return _Found(read_row(_HERE / "sets" / f"{name_or_path}.toml"), _HERE)
    path = Path(name_or_path)
    if path.suffix == ".toml" and path.is_file():
        return _Found(read_row(path), path.parent)
    if path.is_file() or (path.is_dir() and is_harbor(path)):
        return _guessed(path)
    if path.is_dir():
        raise InputError(
            f"{path}: a folder is read as Harbor tasks, and has no task.toml in or one below it; "
            "name a TOML file or a file of problems"
        )
    if len(path.parts) > 1 or path.suffix in (".toml", *SUFFIXES):
        raise InputError(f"{path}: no such file")
    raise unknown_name("task set", name_or_path, set_names())


# --- where problems come from ----------------------------------------------------------------


def _load_builtin(job: _Job) -> _Loaded:
    return job.row, _from_file(job.row, _HERE / str(job.row.source.path))


def _load_file(job: _Job) -> _Loaded:
    path = job.found.folder / str(job.row.source.path)
    if path.is_dir():
        return job.row, load_harbor(path, domain=job.row.domain)
    if not path.is_file():
        raise InputError(f"{path}: no such file (the source of the task set {job.row.name!r})")
    return job.row, _from_file(job.row, path)


def _from_file(row: TaskSet, path: Path) -> tuple[Task, ...]:
    return load_tasks(read_rows(path), row, folder=path.parent, what=str(path))


def _load_hub(job: _Job) -> _Loaded:
    from sandlot.tasks.hub import fetch

    copy = fetch(job.row.source, cache=job.cache, environ=job.environ, progress=job.progress)
    source = replace(job.row.source, revision=copy.commit)
    hosts = dict.fromkeys((*job.row.leak_hosts, *copy.hosts))
    row = replace(job.row, source=source, leak_hosts=tuple(hosts))
    rows = (raw for path in copy.files for raw in read_rows(path))
    what = f"{source.dataset} ({source.config or 'default'}, {source.split}, {copy.commit[:12]})"
    return row, load_tasks(rows, row, what=what)


def _load_generator(job: _Job) -> _Loaded:
    source = job.row.source
    return job.row, generate(str(source.path), source.options, domain=job.row.domain)


def generate(
    name: str, options: Mapping[str, Any], *, domain: str | None = None
) -> tuple[Task, ...]:
    """The tasks that a shipped generator makes of its options, the same on every machine.

    Raises:
        ConfigError: an unknown generator, or options that it does not take.
    """
    if name not in _GENERATORS:
        raise unknown_name("generator", name, _GENERATORS)
    module, _, function = _GENERATORS[name].partition(":")
    make = getattr(import_module(module), function)
    tasks: tuple[Task, ...] = make(options, domain=domain or name)
    return tasks


_LOAD: Mapping[str, Callable[[_Job], _Loaded]] = {
    "builtin": _load_builtin,
    "file": _load_file,
    "generator": _load_generator,
    "hub": _load_hub,
}


def _check_count(row: TaskSet, tasks: tuple[Task, ...], progress: Progress) -> None:
    expected = row.source.options.get("items")
    if isinstance(expected, int) and expected != len(tasks):
        progress(f"{row.name}: {len(tasks)} items, where the published set has {expected}")


# --- a bare file -----------------------------------------------------------------------------


def _guessed(path: Path) -> _Found:
    """A row for a file that has none: its domain from the rows, its scorer from both."""
    source = Source("file", path=path.name)
    folder = path.parent
    if path.is_dir():
        row = TaskSet(_name(path), "general", source, "harbor", title=f"Harbor tasks of {path}")
        said = f"{path}: Harbor tasks; their verifiers are scripts and are not run (scorer harbor)"
        return _Found(row, folder, said)
    rows = [raw.fields for raw in read_rows(path) if raw.fields is not None]
    domain = _domain_of(rows)
    scorer = guess_scorer(rows)
    if rows and all(_unnamed_sample(fields) for fields in rows):
        source = replace(source, options={"ids": "number"})
    row = TaskSet(_name(path), domain, source, scorer, title=f"problems of {path.name}")
    return _Found(row, folder, f"{path}: read as domain {domain!r} with the scorer {scorer!r}")


def _domain_of(rows: Iterable[Mapping[str, Any]]) -> str:
    found = {str(fields["domain"]) for fields in rows if fields.get("domain")}
    known = found & set(DOMAINS)
    return next(iter(known)) if len(found) == 1 and known else "general"


def _unnamed_sample(fields: Mapping[str, Any]) -> bool:
    """An Inspect sample, whose id may be left out."""
    return "input" in fields and field_of(fields, "id", {}) is None


def _name(path: Path) -> str:
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in path.stem)
    return plain.strip("-") or "problems"
