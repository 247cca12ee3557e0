"""Any two bench runs over problems that they share: models, prompts, before and after training.

Paired by set, item and arm, with the statistics of the report; and what differs in the manifests,
since that is what a difference of scores may come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandlot.bench import words
from sandlot.bench.gather import Run, Try, join, read_run
from sandlot.bench.records import Episode
from sandlot.bench.report import Flip, RunInfo, Section, flips_of, rounded, run_info, sections_of
from sandlot.bench.terminal import Table
from sandlot.core.codec import to_json
from sandlot.core.errors import RecordError

VERSION = 1
FIRST, SECOND = "A", "B"
# What every run has of its own, and what other lines of the manifest say already.
_OWN = (
    "arms",
    "bench",
    "controls",
    "created",
    "format",
    "identity",
    "profiles",
    "resumed",
    "sources",
    "words",
)


@dataclass(frozen=True, slots=True)
class SharedArm:
    """One arm of both runs over the items that both ended in it; `A` and `B` are the runs."""

    arm: str
    overall: Section
    sets: tuple[Section, ...]
    flips: tuple[Flip, ...]


@dataclass(frozen=True, slots=True)
class RunComparison:
    """`differs` is the manifests' disagreement: name, first, second."""

    version: int
    runs: tuple[RunInfo, RunInfo]
    differs: tuple[tuple[str, str, str], ...]
    arms: tuple[SharedArm, ...]
    notes: tuple[str, ...]


def compare_runs(first: Path, second: Path) -> RunComparison:
    """What the second run scored over the first, in each arm that both have.

    Raises:
        RecordError: a folder holds no bench run, or they share no item of an arm.
    """
    runs = (read_run(first), read_run(second))
    changed = _changed_problems(*runs)
    shared = {key for key in _items(runs[0]) & _items(runs[1]) if (key[1], key[2]) not in changed}
    if not shared:
        raise RecordError(_nothing_shared(runs, len(changed)))
    arms = list(dict.fromkeys(episode.arm for episode in runs[0].tries))
    return RunComparison(
        version=VERSION,
        runs=(run_info(runs[0]), run_info(runs[1])),
        differs=tuple(_differing(runs[0].manifest, runs[1].manifest)),
        arms=tuple(
            _shared_arm(runs, arm, shared)
            for arm in arms
            if any(found == arm for found, _, _ in shared)
        ),
        notes=tuple(_notes(runs, changed)),
    )


def to_document(comparison: RunComparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    document = rounded(to_json(comparison))
    assert isinstance(document, dict)
    return document


def _items(run: Run) -> set[tuple[str, str, str]]:
    return {(e.arm, e.task_set, e.item) for e in run.tries}


def _changed_problems(first: Run, second: Run) -> set[tuple[str, str]]:
    """Items of one name that are not the same problem in both runs."""
    both = first.planned.keys() & second.planned.keys()
    return {key for key in both if first.planned[key] != second.planned[key]}


def _nothing_shared(runs: tuple[Run, Run], changed: int) -> str:
    held = "; ".join(
        f"{run.name} holds {', '.join(sorted({f'{e.task_set} ({e.arm})' for e in run.tries}))}"
        for run in runs
    )
    other = f" {changed} items have one name and are different problems." if changed else ""
    return f"the runs share no item of an arm, so nothing can be paired: {held}.{other}"


def _shared_arm(runs: tuple[Run, Run], arm: str, shared: set[tuple[str, str, str]]) -> SharedArm:
    """Both runs of one arm laid side by side as if they were two arms of one run."""
    sides = [
        replace(run, tries=dict(_renamed(run, arm, side, shared)), planned={})
        for run, side in zip(runs, (FIRST, SECOND), strict=True)
    ]
    evidence = join(sides)
    overall, sets = sections_of(evidence, [FIRST, SECOND], [(FIRST, SECOND)])
    return SharedArm(arm, overall, tuple(sets), tuple(flips_of(evidence, (FIRST, SECOND))))


def _renamed(
    run: Run, arm: str, side: str, shared: set[tuple[str, str, str]]
) -> Iterator[tuple[Episode, Try]]:
    for episode, each in run.tries.items():
        if episode.arm == arm and (arm, episode.task_set, episode.item) in shared:
            named = replace(episode, arm=side)
            yield named, replace(each, record=replace(each.record, episode=named))


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    names = [", ".join(manifest.get("arms", ())) for manifest in (first, second)]
    if names[0] != names[1]:
        yield "arms", names[0], names[1]
    left, right = dict(_flat(first)), dict(_flat(second))
    for name in dict.fromkeys((*left, *right)):
        if left.get(name) != right.get(name) and name.split(".")[0] not in _OWN:
            yield name, left.get(name, "not there"), right.get(name, "not there")


def _flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)


def _notes(runs: tuple[Run, Run], changed: set[tuple[str, str]]) -> Iterator[str]:
    if changed:
        yield f"{len(changed)} items have one name and are different problems; they are left out"
    for task_set in sorted(runs[0].scorers.keys() & runs[1].scorers.keys()):
        scorers = [run.scorers[task_set] for run in runs]
        if scorers[0] != scorers[1]:
            yield (
                f"{task_set}: scored by {scorers[0]} and by {scorers[1]}; "
                "score both again with `sandlot score` before trusting a difference"
            )
    for run in runs:
        for note in run.notes:
            yield f"{run.name}: {note}"


def summary(comparison: RunComparison) -> list[str]:
    """What was compared, and each arm's difference in a sentence."""
    names = [f"{side}: {run.name}" for side, run in zip("AB", comparison.runs, strict=True)]
    return [*names, *(_sentence(arm) for arm in comparison.arms)]


def _sentence(shared: SharedArm) -> str:
    found = shared.overall.comparison(FIRST, SECOND)
    if found is None or found.difference is None:
        return f"{shared.arm}: no item has a score in both runs."
    sure = "more than chance" if words.clear(found.difference) else "it may be chance"
    return (
        f"{shared.arm}: B − A = {words.difference(found.difference)} points; "
        f"p {words.p_value(found.difference.p_value)} ({sure}); "
        f"{found.difference.better} won, {found.difference.worse} lost."
    )


def tables(comparison: RunComparison) -> list[Table]:
    rows = [
        row
        for shared in comparison.arms
        for section in ([*shared.sets, shared.overall] if len(shared.sets) > 1 else shared.sets)
        for row in _row(shared.arm, section)
    ]
    columns = ("arm", "set", "A %", "B %", "B − A (95 %)", "p", "p (Holm)", "won", "lost")
    scores = Table("Scores over the items that both runs ended", columns, tuple(rows), 2)
    return [scores, *_use_tables(comparison), _differing_table(comparison)]


def _row(arm: str, section: Section) -> Iterable[tuple[str, ...]]:
    found = section.comparison(FIRST, SECOND)
    if found is None or found.difference is None:
        return
    means = [each.score.value if each.score else None for each in section.arms]
    yield (
        arm,
        section.name,
        *(words.percent(mean) for mean in means),
        words.difference(found.difference),
        words.p_value(found.difference.p_value),
        words.p_value(found.adjusted_p),
        str(found.difference.better),
        str(found.difference.worse),
    )


def _use_tables(comparison: RunComparison) -> Iterator[Table]:
    rows = []
    for shared in comparison.arms:
        for side in shared.overall.arms:
            meters = side.use.meters
            rows.append(
                (
                    f"{shared.arm}, {side.arm}",
                    words.amount(meters["turns"].mean),
                    words.amount(words.billed(side)),
                    words.money(meters["cost_usd"].mean),
                    words.duration(meters["wall_s"].mean),
                    words.missing(side),
                )
            )
    columns = ("arm, run", "turns", "billed tokens", "cost", "wall", "scored")
    yield Table("Use, mean of an episode", columns, tuple(rows))


def _differing_table(comparison: RunComparison) -> Table:
    rows = [(name, _cut(left), _cut(right)) for name, left, right in comparison.differs]
    title = "What differs in the manifests" if rows else "The manifests do not differ"
    return Table(title, ("", "A", "B"), tuple(rows), 3)


def _cut(text: str, longest: int = 48) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
