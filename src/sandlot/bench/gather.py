"""What bench runs hold, laid out for comparison: for each arm and item, its tries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandlot.bench.meters import measure
from sandlot.bench.records import Episode, EpisodeRecord, ScoreRecord
from sandlot.bench.store import BenchDirectory
from sandlot.core.errors import RecordError
from sandlot.core.types import Task

NOT_RUN, NOT_SCORED = "not run", "not scored"


@dataclass(frozen=True, slots=True)
class Try:
    """One episode with its score. `reason` says why `value` is missing, where it is."""

    record: EpisodeRecord
    value: float | None
    reason: str | None
    no_answer: bool = False
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One bench run as read. `scorers` names each set's scorer with its versions."""

    name: str
    manifest: Mapping[str, Any]
    tries: Mapping[Episode, Try]
    scorers: Mapping[str, str]
    dropped: Sequence[EpisodeRecord]
    planned: Mapping[tuple[str, str], Task]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """A problem, whatever the arm. `cluster` is unique over sets."""

    key: str
    task_set: str
    id: str
    domain: str | None = None
    label: str | None = None
    cluster: str | None = None
    marks: tuple[str, ...] = ()


def read_run(path: Path, *, measure_again: bool = False) -> Run:
    """Read one run from its episodes and scores.

    No trajectory is opened, unless `measure_again` asks for meters by this version: then one at a
    time, and those that cannot be read keep the meters that were stored.

    Raises:
        RecordError: no bench run is there, or one of its records is damaged.
    """
    directory = BenchDirectory.open(path)
    records: dict[Episode, EpisodeRecord] = {}
    dropped = []
    for record in directory.attempts():
        earlier = records.get(record.episode)
        if earlier is not None:
            dropped.append(earlier)
        records[record.episode] = record
    if not records:
        raise RecordError(f"{path}: no episode has ended yet: there is nothing to report")
    scores, scorers, notes = _chosen_scores(directory.all_scores())
    if measure_again:
        records = {episode: _measured(directory, record) for episode, record in records.items()}
    tries = {episode: _try(record, scores.get(episode)) for episode, record in records.items()}
    name, planned = path.resolve().name, directory.tasks()
    return Run(name, directory.manifest, tries, scorers, tuple(dropped), planned, notes)


def _measured(directory: BenchDirectory, record: EpisodeRecord) -> EpisodeRecord:
    try:
        meters = measure(directory.trajectory(record.episode))
    except RecordError:
        return record
    if meters.cost_usd is None:  # by the user's prices of that day, which are not kept
        meters = replace(meters, cost_usd=record.meters.cost_usd)
    return replace(record, meters=meters)


def _chosen_scores(
    records: Iterable[ScoreRecord],
) -> tuple[dict[Episode, ScoreRecord], dict[str, str], tuple[str, ...]]:
    """Each episode's last score by the scorer that its set was scored with last."""
    by_scorer: dict[tuple[str, str], dict[Episode, ScoreRecord]] = {}
    for record in records:
        name = (record.episode.task_set, record.score.scorer)
        latest = by_scorer.pop(name, {})
        latest[record.episode] = record
        by_scorer[name] = latest  # at the end: the scorer that was used last
    chosen = dict(by_scorer.keys())
    scores: dict[Episode, ScoreRecord] = {}
    scorers = {}
    notes = []
    for task_set, scorer in chosen.items():
        used = by_scorer[task_set, scorer]
        scores.update(used)
        versions = sorted({record.score.scorer_version for record in used.values()})
        scorers[task_set] = f"{scorer} {', '.join(versions)}"
        if len(versions) > 1:
            notes.append(
                f"{task_set}: scores by several versions of {scorer!r} ({', '.join(versions)}) "
                "are mixed; score the run again"
            )
    for task_set, scorer in by_scorer:
        if chosen[task_set] != scorer:
            notes.append(f"{task_set}: scores by {scorer!r} are left out; a later scorer counts")
    return scores, scorers, tuple(notes)


def _try(record: EpisodeRecord, score: ScoreRecord | None) -> Try:
    if record.failure is not None:
        return Try(record, None, record.failure)
    if score is None:
        return Try(record, None, NOT_SCORED)
    if score.score.value is None:
        return Try(record, None, f"scorer: {score.score.missing or 'no reason given'}")
    no_answer = bool(score.score.details.get("no_answer"))
    return Try(record, score.score.value, None, no_answer, score.reference)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Runs joined. `tries` is arm to item key to the item's tries; `repeats` is by set."""

    runs: tuple[Run, ...]
    items: Mapping[str, Item]
    tries: Mapping[str, Mapping[str, Sequence[Try]]]
    repeats: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def sets(self) -> list[str]:
        return list(dict.fromkeys(item.task_set for item in self.items.values()))

    def keys(self, task_set: str | None) -> list[str]:
        """The items of a set; of all where it is None."""
        return [key for key, item in self.items.items() if task_set in (None, item.task_set)]

    def begun(self, arm: str, keys: Iterable[str]) -> list[str]:
        """The items of those sets in which the arm has ended anything."""
        tries = self.tries.get(arm, {})
        sets = {self.items[key].task_set for key in tries}
        return [key for key in keys if self.items[key].task_set in sets]

    def values(self, arm: str, keys: Iterable[str]) -> dict[str, float]:
        """Item to its score, repeats averaged; items without any score are left out."""
        means = {}
        tries = self.tries.get(arm, {})
        for key in keys:
            known = [each.value for each in tries.get(key, ()) if each.value is not None]
            if known:
                means[key] = sum(known) / len(known)
        return means

    def range_of(self, arm: str, key: str) -> tuple[float, float]:
        """An item's score if each of its missing repeats had been worth 0, and 1."""
        known = [
            each.value for each in self.tries.get(arm, {}).get(key, ()) if each.value is not None
        ]
        planned = max(self.repeats[self.items[key].task_set], len(known))
        return sum(known) / planned, (sum(known) + planned - len(known)) / planned

    def missing(self, arm: str, keys: Iterable[str]) -> Counter[str]:
        """Episodes without a score, by reason; those that never ended count as not run."""
        reasons: Counter[str] = Counter()
        for key in keys:
            tries = self.tries.get(arm, {}).get(key, ())
            reasons.update(each.reason for each in tries if each.reason is not None)
            reasons[NOT_RUN] += max(0, self.repeats[self.items[key].task_set] - len(tries))
        return +reasons

    def clusters(self, keys: Iterable[str]) -> dict[str, str] | None:
        """Item to its cluster, None where no item of them names one."""
        named = {key: self.items[key].cluster for key in keys}
        found = {key: cluster for key, cluster in named.items() if cluster is not None}
        return found or None


def join(runs: Sequence[Run]) -> Evidence:
    """Lay several runs side by side: of other sets, or of other arms over the same items.

    Raises:
        RecordError: two runs hold the same episode.
    """
    owner: dict[Episode, Run] = {}
    items: dict[str, Item] = {}
    tries: dict[str, dict[str, list[Try]]] = {}
    repeats: Counter[str] = Counter()
    for episode, each, run in _in_order(runs):
        if owner.setdefault(episode, run) is not run:  # a copy may have the same name
            raise RecordError(
                f"{owner[episode].name} and {run.name} both hold {episode.stem}: two runs of "
                "the same episodes are compared, not joined; use `sandlot compare`"
            )
        item = _merged(items.get(item_key(episode)), each.record)
        items[item.key] = item
        tries.setdefault(episode.arm, {}).setdefault(item.key, []).append(each)
        repeats[episode.task_set] = max(repeats[episode.task_set], episode.repeat + 1)
    for run in runs:
        for (task_set, _), task in run.planned.items():
            item = _never_run(task_set, task)
            items.setdefault(item.key, item)
            repeats.setdefault(task_set, 1)
        for task_set, planned in planned_repeats(run.manifest).items():
            if task_set in repeats:
                repeats[task_set] = max(repeats[task_set], planned)
    notes = [note for run in runs for note in run.notes]
    return Evidence(tuple(runs), items, tries, dict(repeats), tuple(notes))


def item_key(episode: Episode) -> str:
    return f"{episode.task_set}/{episode.item}"


def _in_order(runs: Sequence[Run]) -> Iterator[tuple[Episode, Try, Run]]:
    """Sorted, so that a run that was interrupted reports as one that was not."""
    for run in runs:
        for episode in sorted(run.tries):
            yield episode, run.tries[episode], run


def _merged(item: Item | None, record: EpisodeRecord) -> Item:
    """The item with what this record says of it: its marks are added, the rest is filled in."""
    episode = record.episode
    known = item or Item(item_key(episode), episode.task_set, episode.item)
    cluster = None if record.cluster is None else f"{episode.task_set}/{record.cluster}"
    return replace(
        known,
        domain=known.domain or record.domain,
        label=known.label or record.label,
        cluster=known.cluster or cluster,
        marks=tuple(dict.fromkeys((*known.marks, *record.marks))),
    )


def _never_run(task_set: str, task: Task) -> Item:
    """An item of the plan as its task describes it: counted as missing if nothing ran it."""
    key, label = f"{task_set}/{task.id}", task.metadata.get("label")
    return Item(key, task_set, task.id, task.domain, label if isinstance(label, str) else None)


def planned_repeats(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Repeats by set where the manifest states them, else nothing."""
    asked = manifest.get("repeats")
    found = {}
    for name, entry in manifest_sets(manifest).items():
        row = entry.get("row", {})
        repeats = asked if asked is not None else row.get("repeats")
        if isinstance(repeats, int):
            found[name] = repeats
    return found


def manifest_sets(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What the manifest records of each task set, by name."""
    sets = manifest.get("sets", {})
    if not isinstance(sets, Mapping):
        return {}
    return {name: entry for name, entry in sets.items() if isinstance(entry, Mapping)}
