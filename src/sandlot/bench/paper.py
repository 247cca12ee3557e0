"""The published figures beside a run of ours, and every difference in how they were come by.

The figures and the protocol are data (`data/paper.toml`), each with its version and a grade of the
evidence; docs/paper.md goes through the claims.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from sandlot.bench.report import COMPUTER, HEAD, Report, Section
from sandlot.bench.stats import Difference
from sandlot.core.errors import unknown_name
from sandlot.settings import Settings
from sandlot.tasks.base import LoadedSet

VERSIONS = ("v1", "v3")
"""Versions of the paper whose figures are known apart."""


@dataclass(frozen=True, slots=True)
class Published:
    """One cell of the published table, in percent; None is a score that was not found."""

    version: str
    model: str
    domain: str
    llm: float | None
    sandbox: float | None
    difference: float | None
    grade: str
    source: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the paper ran its benches. `repeats`, `items` and `context_tokens` are by set.

    `reply_tokens` bounds a reply of the arm without a sandbox. `judge` is how our program writes
    the judge's name after `--judge`.
    """

    version: str
    sets: tuple[str, ...]
    items: Mapping[str, int]
    repeats: Mapping[str, int]
    temperature: float
    temperature_of: Mapping[str, float]
    max_turns: int
    reply_tokens: int
    context_tokens: Mapping[str, int]
    judge: str
    judgements: int
    judged: tuple[str, ...]
    grade: str
    source: str

    def temperature_for(self, model: str) -> float:
        """Of a model by its name: the paper sampled one family cooler than the others."""
        found = (t for part, t in self.temperature_of.items() if part in model.lower())
        return next(found, self.temperature)

    def settings(self, model: str) -> dict[str, Any]:
        """What the protocol says of settings, by their names."""
        return {
            "temperature": self.temperature_for(model),
            "max_turns": self.max_turns,
            "reply_tokens": self.reply_tokens,
            "judge": self.judge,
        }

    def settled(self, settings: Settings) -> tuple[Settings, list[str]]:
        """The settings with the protocol's where the user set none, and what the user overrode."""
        wanted = self.settings(settings.model or "")
        asked = {name for name in wanted if settings.asked(name)}
        values = {name: value for name, value in wanted.items() if name not in asked}
        sources = {**settings.sources, **dict.fromkeys(values, f"paper {self.version}")}
        overridden = [
            f"{name}: {wanted[name]} in the paper, {getattr(settings, name)} here"
            for name in wanted
            if name in asked and getattr(settings, name) != wanted[name]
        ]
        return replace(settings, **values, sources=sources), overridden

    def judged_as_published(self, loaded: LoadedSet) -> LoadedSet:
        """The set with the published number of judgements, where a judge scores it."""
        if loaded.row.scorer not in ("judge", "cascade"):
            return loaded
        options = {**loaded.row.scorer_options, "judgements": self.judgements}
        row = replace(loaded.row, scorer_options=options)
        text = json.dumps([loaded.digest, options], sort_keys=True)
        return replace(loaded, row=row, digest=hashlib.sha256(text.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Against:
    """One of our task sets beside the paper.

    `published` is the cell of the same model, or those of all models where the paper has not this
    one. `ours` is the paired difference of the arms, a share of 1. `differences` are those of the
    protocol, in words.
    """

    domain: str
    task_set: str
    published: tuple[Published, ...]
    same_model: bool
    ours: Difference | None
    differences: tuple[str, ...]


@cache
def data() -> Mapping[str, Any]:
    """Everything that is known, as docs/paper.md reads it."""
    text = (resources.files("sandlot.bench") / "data" / "paper.toml").read_text("utf-8")
    return tomllib.loads(text)


def protocol(version: str) -> Protocol:
    """
    Raises:
        ConfigError: no version of this name.
    """
    _check(version)
    found = data()["protocol"]
    sets = tuple(found["sets"])
    context = dict.fromkeys(sets, found["context_tokens"]) | found["context_tokens_of"]
    same = ("items", "repeats", "temperature", "temperature_of", "max_turns", "reply_tokens")
    return Protocol(
        version=version,
        sets=sets,
        context_tokens=context,
        judge=f"openai/{found['judge']}",
        judgements=found["judgements"],
        judged=tuple(found["judged"]),
        grade=found["grade"][version],
        source=found["source"],
        **{name: found[name] for name in same},
    )


def _check(version: str) -> None:
    if version not in VERSIONS:
        raise unknown_name("version of the paper", version, VERSIONS)


@cache
def table(version: str) -> tuple[Published, ...]:
    """Every cell of a version's main table that is known.

    Raises:
        ConfigError: no version of this name.
    """
    _check(version)
    figures = [figure for figure in data()["figures"] if figure["version"] == version]
    loose = [row for row in data()["results"] if row["version"] == version]
    return (*(cell for figure in figures for cell in _cells(figure)), *map(_loose, loose))


def _cells(figure: Mapping[str, Any]) -> Iterator[Published]:
    """The figure prints the sandbox score and the gain."""
    for model, scores in figure["scores"].items():
        for domain, (sandbox, gain) in zip(figure["order"], scores, strict=True):
            head = round(sandbox - gain, 1)
            where = (figure["grade"], figure["source"])
            yield Published(figure["version"], model, domain, head, sandbox, gain, *where)


def _loose(row: Mapping[str, Any]) -> Published:
    head, sandbox, difference = (row.get(name) for name in ("llm", "sandbox", "difference"))
    if difference is None and head is not None and sandbox is not None:
        difference = round(sandbox - head, 1)
    cell = (row["version"], row["model"], row["domain"], head, sandbox, difference)
    return Published(*cell, row["grade"], row["source"])


def paper_model(name: str) -> str | None:
    """The paper's name of a model that is written like `openai/gpt-5`; None: not in the paper.

    A suffix may follow (a date, a quantisation); another size or family is another model.
    """
    plain = name.lower().rpartition("/")[2]
    for model, spellings in data()["models"].items():
        for spelling in (model.lower(), *spellings):
            rest = plain.removeprefix(spelling)
            if plain.startswith(spelling) and not _another_model(rest):
                return str(model)
    return None


def _another_model(rest: str) -> bool:
    """`gpt-5.1` and `gpt-5-mini` are not `gpt-5`; a date or `-a3b-instruct` changes nothing."""
    small = ("-mini", "-nano", "-chat", "-pro", "-codex", "-speciale", "-exp")
    return rest.startswith((".", *small)) or rest[:1].isdigit()


def published(version: str, model: str, domain: str) -> Published | None:
    """The published cell, None where it was not found.

    Raises:
        ConfigError: no version of this name.
    """
    wanted = (paper_model(model) or model, domain)
    return next((c for c in table(version) if (c.model, c.domain) == wanted), None)


def against(report: Report, version: str) -> tuple[Against, ...]:
    """Each task set of a domain of the paper's beside the published figures.

    Raises:
        ConfigError: no version of this name.
    """
    asked = protocol(version)
    known = [section for section in report.sets if section.domain in asked.sets]
    return tuple(_against(report, section, asked) for section in known)


def _against(report: Report, section: Section, asked: Protocol) -> Against:
    assert section.domain is not None
    manifest = _manifest_of(report, section.name)
    cell = published(asked.version, str(manifest.get("model") or ""), section.domain)
    others = tuple(each for each in table(asked.version) if each.domain == section.domain)
    comparison = section.comparison(HEAD, COMPUTER)
    return Against(
        domain=section.domain,
        task_set=section.name,
        published=others if cell is None else (cell,),
        same_model=cell is not None,
        ours=None if comparison is None else comparison.difference,
        differences=tuple(_differences(section, manifest, asked)),
    )


def _manifest_of(report: Report, task_set: str) -> Mapping[str, Any]:
    held = (run.manifest for run in report.runs if task_set in run.manifest.get("sets", {}))
    return next(held, {})


def _differences(section: Section, manifest: Mapping[str, Any], asked: Protocol) -> Iterator[str]:
    domain = section.domain
    assert domain is not None
    model = str(manifest.get("model") or "")
    if paper_model(model) is None:
        yield f"model: {model or 'not recorded'} is not among the paper's"
    if section.name != domain:
        yield f"task set: the paper's is {domain}, here it is {section.name}"
    elif not _pinned(_row_of(manifest, section.name).get("source", {}).get("revision")):
        yield "task set: the commit of the data set is pinned neither in the paper nor here"
    for name, theirs, ours in _figures(section, manifest, asked):
        if ours != theirs:
            yield f"{name}: {theirs} in the paper, {_known(ours)} here"
    for arm in section.arms:
        if arm.arm in (HEAD, COMPUTER) and arm.missing:
            yield f"missing: {sum(arm.missing.values())} episodes of arm {arm.arm} have no score"
    for fixed in data()["always"]:
        if domain in fixed.get("domains", asked.sets):
            yield f"{fixed['about']}: in the paper, {fixed['paper']}; here, {fixed['here']}"


def _figures(
    section: Section, manifest: Mapping[str, Any], asked: Protocol
) -> Iterator[tuple[str, Any, Any]]:
    """What is a figure or a name in both: what it is, the paper's, and ours."""
    domain = str(section.domain)
    yield "items", asked.items[domain], section.items
    yield "repeats", asked.repeats[domain], section.repeats
    temperature = asked.temperature_for(str(manifest.get("model") or ""))
    yield "temperature", temperature, _sampling(manifest, "temperature")
    yield "turns at most", asked.max_turns, _turns(manifest, section.name)
    ours = _sampling(manifest, "reply_tokens")
    yield "tokens of a reply without a sandbox", asked.reply_tokens, ours
    if domain in asked.judged:
        yield "judge", asked.judge, manifest.get("judge")
        options = _row_of(manifest, section.name).get("scorer_options", {})
        yield "judgements of an answer", asked.judgements, options.get("judgements", 1)


def _known(value: Any) -> Any:
    return "not set or not recorded" if value is None else value


def _pinned(revision: Any) -> bool:
    return isinstance(revision, str) and len(revision) == 40


def _row_of(manifest: Mapping[str, Any], task_set: str) -> Mapping[str, Any]:
    found = manifest.get("sets", {}).get(task_set, {})
    row = found.get("row", {})
    return row if isinstance(row, Mapping) else {}


def _sampling(manifest: Mapping[str, Any], name: str) -> Any:
    return manifest.get("sampling", {}).get(name)


def _turns(manifest: Mapping[str, Any], task_set: str) -> Any:
    return manifest.get("identity", {}).get(f"max_turns of {task_set}, {COMPUTER}")


def lines(rows: tuple[Against, ...], version: str) -> list[str]:
    """The comparison as plain text: a line for each set, then the differences in protocol."""
    told = [_line(row, version) for row in rows]
    shared = [
        text
        for text in (rows[0].differences if rows else ())
        if all(text in row.differences for row in rows)
    ]
    told += [f"  every set: {text}" for text in shared]
    for row in rows:
        told += [f"  {row.task_set}: {text}" for text in row.differences if text not in shared]
    return told


def _line(row: Against, version: str) -> str:
    theirs = ", ".join(_cell(cell, named=not row.same_model) for cell in row.published)
    return f"{row.task_set}: paper {version} {theirs or 'not found'}; ours {_ours(row.ours)}"


def _cell(cell: Published, *, named: bool) -> str:
    change = "not found" if cell.difference is None else f"{cell.difference:+.1f}"
    return f"{cell.model} {change} [{cell.grade}]" if named else f"{change} [{cell.grade}]"


def _ours(found: Difference | None) -> str:
    if found is None:
        return "not measured (needs the arms llm and sandbox)"
    shown = f"{100 * found.value:+.1f}"
    if found.interval is None:
        return f"{shown} (too few items for an interval)"
    low, high = 100 * found.interval.low, 100 * found.interval.high
    return f"{shown} ({found.interval.level:.0%} {low:+.1f} to {high:+.1f}, {found.items} items)"


def beside(report: Report) -> list[str]:
    """The comparison for each version whose protocol a run of the report names; else nothing."""
    named = {run.manifest.get("protocol") for run in report.runs}
    return [
        line
        for version in VERSIONS
        if version in named
        for line in lines(against(report, version), version)
    ]
