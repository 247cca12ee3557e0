"""What the computer bought: one frozen report of bench runs, computed from their stored records.

No mean without its n, no unknown that reads as 0. docs/reports.md explains each part and the
schema of `report.json`; docs/sources.md names where the statistics come from.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from sandlot.bench.arms import ARMS
from sandlot.bench.gather import Evidence, Item, Run, Try, join, manifest_sets, read_run
from sandlot.bench.stats import Difference, Mean, holm, mean_of, paired
from sandlot.core.codec import from_json, to_json
from sandlot.core.errors import RecordError
from sandlot.tasks.base import LABELS

VERSION = 1
HEAD, COMPUTER = "llm", "sandbox"
CAPABILITIES = ("external", "files", "computation")
EVERYTHING = "all"
_WORK = 2_000_000  # items drawn for one interval: bounds the time of a report over large sets
_FEWEST_DRAWS, _MOST_DRAWS = 2_000, 5_000

METERS = (
    "turns",
    "tool_calls",
    "billed_prompt_tokens",
    "billed_cached_tokens",
    "billed_completion_tokens",
    "context_tokens",
    "observation_tokens",
    "cost_usd",
    "wall_s",
    "model_s",
    "tool_s",
    "waiting_s",
    "cpu_s",
    "memory_peak_bytes",
    "files_left",
    "refused_requests",
)
"""The meters that are summed up for each arm, by their names in `records.Meters`."""


@dataclass(frozen=True, slots=True)
class Tally:
    """One meter over an arm's episodes. `known` and `unknown` count episodes; the rest is None
    where none is known, and covers the known ones only.
    """

    known: int
    unknown: int
    total: float | None = None
    mean: float | None = None
    median: float | None = None
    highest: float | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What an arm's episodes used.

    `capabilities` is the share of turns whose action uses each (patterns over commands), None
    where there were no turns. `went_out` and `left_files` are shares of episodes with an allowed
    request, and with a file left (of those where it is known). `hosts` is bytes by host.
    `per_minute` is episodes a minute of one slot of the runner: without concurrency, so that arms
    compare.
    `turn_counts` is how many episodes took how many turns.
    """

    meters: Mapping[str, Tally]
    capabilities: Mapping[str, float | None]
    went_out: float | None
    left_files: float | None
    hosts: Mapping[str, int]
    per_minute: float | None
    turn_counts: Mapping[str, int]
    installed_and_used: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm over a section's items.

    `score` is None where nothing was scored; its bounds count missing repeats too. `unmarked` is
    the score without the items that the contamination guard marked. `missing` is episodes without
    a score, by reason; `no_answer` those that were worth 0 for want of an answer. `reference` is
    what the published package gives, None where it is not installed.
    """

    arm: str
    planned: int
    ended: int
    scored: int
    score: Mean | None
    unmarked: Mean | None
    missing: Mapping[str, int]
    no_answer: int
    reference: Mean | None
    stops: Mapping[str, int]
    continued: int
    restarted: int
    use: Use


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `second` scored over `first`, paired by item.

    `takes` is the capability that `first` lacks, for an ablation. `adjusted_p` is Holm's over the
    task sets. `bounds` are the difference if every missing score had told against the second arm,
    and for it. `unmarked` leaves out the items that the contamination guard marked.
    """

    first: str
    second: str
    takes: str | None
    difference: Difference | None
    adjusted_p: float | None
    bounds: tuple[float, float] | None
    unmarked: Difference | None = None


@dataclass(frozen=True, slots=True)
class LabelGain:
    """The gain on the items that were labelled so before any run."""

    label: str
    items: int
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Section:
    """A task set, or all of them (`name` is `all`): every item counts once."""

    name: str
    domain: str | None
    items: int
    repeats: int
    scorer: str | None
    marked: int
    arms: tuple[ArmReport, ...]
    comparisons: tuple[Comparison, ...]
    labels: tuple[LabelGain, ...]

    def arm(self, name: str) -> ArmReport | None:
        return next((arm for arm in self.arms if arm.arm == name), None)

    def comparison(self, first: str, second: str) -> Comparison | None:
        return next((c for c in self.comparisons if (c.first, c.second) == (first, second)), None)


@dataclass(frozen=True, slots=True)
class Flip:
    """An item that changed hands. `first` and `second` are its scores, repeats averaged; the
    answers are those of the first repeat, cut.
    """

    task_set: str
    item: str
    label: str | None
    marks: tuple[str, ...]
    first: float
    second: float
    first_answer: str | None
    second_answer: str | None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """`dropped` is episodes that were run again, by the class of their failure; `dropped_cost_usd`
    is what is known of their cost.
    """

    name: str
    manifest: Mapping[str, Any]
    scorers: Mapping[str, str]
    dropped: Mapping[str, int]
    dropped_cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole. `main` is the pair of arms of the headline, None with a single arm."""

    version: int
    runs: tuple[RunInfo, ...]
    arms: tuple[str, ...]
    main: tuple[str, str] | None
    overall: Section
    sets: tuple[Section, ...]
    flips: tuple[Flip, ...]
    marks: Mapping[str, tuple[str, ...]]
    controls: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]


def build_report(directories: Sequence[Path], *, measure_again: bool = False) -> Report:
    """One report of one bench run, or of several that hold other sets or arms.

    `measure_again` takes the meters from the trajectories and not from the episodes' records.

    Raises:
        RecordError: a directory holds no bench run, or two hold the same episode.
    """
    if not directories:
        raise RecordError("a report needs at least one bench directory")
    return report_of(join([read_run(d, measure_again=measure_again) for d in directories]))


def report_of(evidence: Evidence) -> Report:
    arms = _ordered(evidence.tries)
    pairs = _pairs(arms)
    main = _main_pair(pairs)
    overall, sets = sections_of(evidence, arms, pairs)
    return Report(
        version=VERSION,
        runs=tuple(run_info(run) for run in evidence.runs),
        arms=tuple(arms),
        main=main,
        overall=overall,
        sets=tuple(sets),
        flips=tuple(flips_of(evidence, main)) if main else (),
        marks={key: item.marks for key, item in evidence.items.items() if item.marks},
        controls={k: v for run in evidence.runs for k, v in _controls(run).items()},
        notes=(*evidence.notes, *_notes(evidence, arms)),
    )


def to_document(report: Report) -> dict[str, Any]:
    """The report as JSON values, floats rounded to six digits after the point."""
    document = rounded(to_json(report))
    assert isinstance(document, dict)
    return document


def from_document(document: Mapping[str, Any]) -> Report:
    """Read a `report.json` again.

    Raises:
        RecordError: another version, or not a report.
    """
    if document.get("version") != VERSION:
        raise RecordError(
            f"report version {document.get('version')!r} is not one that this sandlot reads "
            f"({VERSION}); make it again with `sandlot report`"
        )
    return from_json(Report, document)


def document_text(report: Report) -> str:
    """`report.json` as text."""
    return json.dumps(to_document(report), ensure_ascii=False, indent=1) + "\n"


def write_report(report: Report, path: Path) -> None:
    """Write `report.json` in one step."""
    write_text(path, document_text(report))


def write_text(path: Path, text: str) -> None:
    """Write a file anew in one step: a reader never sees half of it.

    Raises:
        RecordError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.write_text(text, "utf-8", errors="replace")
        draft.replace(path)
    except OSError as exc:
        raise RecordError(f"{path}: cannot be written: {exc.strerror}") from exc


def _ordered(names: Iterable[str]) -> list[str]:
    """Known arms in the order of `ARMS`, then the others by name."""
    order = {name: rank for rank, name in enumerate(ARMS)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def _pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Each arm against the model's head, and the sandbox against each arm that lacks something."""
    pairs = [(HEAD, arm) for arm in arms if arm != HEAD and HEAD in arms]
    if COMPUTER in arms:
        pairs += [(arm, COMPUTER) for arm in arms if lacks(arm) is not None]
    return pairs


def lacks(arm: str) -> str | None:
    """What an arm has less than the sandbox arm: a capability, or its documents as files."""
    known = ARMS.get(arm)
    if known is None or known.mode != "sandbox" or arm == COMPUTER:
        return None
    return known.takes or ("documents as files" if known.documents == "prompt" else None)


def _main_pair(pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    return (HEAD, COMPUTER) if (HEAD, COMPUTER) in pairs else next(iter(pairs), None)


def sections_of(
    evidence: Evidence, arms: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> tuple[Section, list[Section]]:
    """All items together, and each set with its tests adjusted over the sets."""
    main = _main_pair(pairs)
    overall = _section(evidence, None, arms, pairs, main)
    sets = [_section(evidence, name, arms, pairs, main) for name in evidence.sets]
    return overall, _with_holm(sets, pairs)


def _section(
    evidence: Evidence,
    name: str | None,
    arms: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    main: tuple[str, str] | None,
) -> Section:
    keys = evidence.keys(name)
    items = [evidence.items[key] for key in keys]
    present = [arm for arm in arms if any(key in evidence.tries[arm] for key in keys)]
    domains = {item.domain for item in items}
    return Section(
        name=name or EVERYTHING,
        domain=domains.pop() if name is not None and len(domains) == 1 else None,
        items=len(keys),
        repeats=max(evidence.repeats[item.task_set] for item in items),
        scorer=_scorer(evidence, name),
        marked=sum(bool(item.marks) for item in items),
        arms=tuple(_arm(evidence, arm, keys) for arm in present),
        comparisons=tuple(
            _comparison(evidence, first, second, keys)
            for first, second in pairs
            if first in present and second in present
        ),
        labels=tuple(_labels(evidence, items, main)) if main else (),
    )


def _scorer(evidence: Evidence, name: str | None) -> str | None:
    if name is None:
        return None
    return next((run.scorers[name] for run in evidence.runs if name in run.scorers), None)


def _arm(evidence: Evidence, arm: str, keys: Sequence[str]) -> ArmReport:
    keys = evidence.begun(arm, keys)
    by_item = evidence.tries[arm]
    tries = [each for key in keys for each in by_item.get(key, ())]
    values = evidence.values(arm, keys)
    references = _references(by_item, keys)
    score = _score(evidence, arm, keys, values)
    unmarked = [key for key in keys if not evidence.items[key].marks]
    return ArmReport(
        arm=arm,
        planned=sum(evidence.repeats[evidence.items[key].task_set] for key in keys),
        ended=len(tries),
        scored=sum(each.value is not None for each in tries),
        score=score,
        unmarked=score
        if len(unmarked) == len(keys)
        else _score(evidence, arm, unmarked, evidence.values(arm, unmarked)),
        missing=dict(evidence.missing(arm, keys).most_common()),
        no_answer=sum(each.no_answer for each in tries),
        reference=_mean(evidence, references, len(keys)) if references else None,
        stops=_counted(each.record.stop_reason or "unfinished" for each in tries),
        continued=sum(each.record.continued for each in tries),
        restarted=sum(each.record.restarted for each in tries),
        use=_use(tries),
    )


def _score(
    evidence: Evidence, arm: str, keys: Sequence[str], values: Mapping[str, float]
) -> Mean | None:
    if not values:
        return None
    ranges = [evidence.range_of(arm, key) for key in keys]
    bounds = (fmean(low for low, _ in ranges), fmean(high for _, high in ranges))
    return replace(_mean(evidence, values, len(keys)), bounds=bounds)


def _mean(evidence: Evidence, values: Mapping[str, float], items: int) -> Mean:
    clusters = evidence.clusters(values)
    missing = items - len(values)
    return mean_of(values, missing=missing, clusters=clusters, draws=_draws(len(values)))


def _references(by_item: Mapping[str, Sequence[Try]], keys: Sequence[str]) -> dict[str, float]:
    found = {
        key: [each.reference for each in by_item.get(key, ()) if each.reference is not None]
        for key in keys
    }
    return {key: fmean(values) for key, values in found.items() if values}


def _draws(items: int) -> int:
    return max(_FEWEST_DRAWS, min(_MOST_DRAWS, _WORK // max(1, items)))


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(str(value) for value in values).most_common())


def _use(tries: Sequence[Try]) -> Use:
    meters = [each.record.meters for each in tries]
    turns = sum(meter.turns for meter in meters)
    uses = {name: sum(meter.turns_with.get(name, 0) for meter in meters) for name in CAPABILITIES}
    hosts: Counter[str] = Counter()
    for meter in meters:
        hosts.update(meter.egress_hosts)
    minutes = [meter.wall_s / 60 for meter in meters if meter.wall_s is not None]
    files = [meter.files_left > 0 for meter in meters if meter.files_left is not None]
    return Use(
        meters={name: _tally([getattr(meter, name) for meter in meters]) for name in METERS},
        capabilities={name: count / turns if turns else None for name, count in uses.items()},
        went_out=fmean(bool(meter.egress_hosts) for meter in meters) if meters else None,
        left_files=fmean(files) if files else None,
        hosts=dict(hosts.most_common()),
        per_minute=len(minutes) / sum(minutes) if sum(minutes) > 0 else None,
        turn_counts=_by_number(Counter(meter.turns for meter in meters)),
        installed_and_used=_counted(tool for m in meters for tool in m.installed_and_used),
    )


def _by_number(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(number): counts[number] for number in sorted(counts)}


def _tally(values: Sequence[float | None]) -> Tally:
    known = [float(value) for value in values if value is not None]
    unknown = len(values) - len(known)
    if not known:
        return Tally(0, unknown)
    total = math.fsum(known)
    return Tally(len(known), unknown, total, total / len(known), median(known), max(known))


def _comparison(evidence: Evidence, first: str, second: str, keys: Sequence[str]) -> Comparison:
    keys = evidence.begun(first, evidence.begun(second, keys))
    unmarked = [key for key in keys if not evidence.items[key].marks]
    difference = _difference(evidence, first, second, keys)
    return Comparison(
        first=first,
        second=second,
        takes=lacks(first) if second == COMPUTER else None,
        difference=difference,
        adjusted_p=None,
        bounds=_difference_bounds(evidence, first, second, keys),
        unmarked=difference
        if len(unmarked) == len(keys)
        else _difference(evidence, first, second, unmarked),
    )


def _difference(
    evidence: Evidence, first: str, second: str, keys: Sequence[str]
) -> Difference | None:
    left, right = evidence.values(first, keys), evidence.values(second, keys)
    return paired(
        left,
        right,
        clusters=evidence.clusters(keys),
        single=_single(evidence, (first, second), keys),
        draws=_draws(len(keys)),
    )


def _single(evidence: Evidence, arms: Iterable[str], keys: Iterable[str]) -> bool:
    """Whether each score is that of one try and is 0 or 1."""
    return all(
        len(evidence.tries[arm].get(key, ())) <= 1
        and all(each.value in (0, 1, None) for each in evidence.tries[arm].get(key, ()))
        for key in keys
        for arm in arms
    )


def _difference_bounds(
    evidence: Evidence, first: str, second: str, keys: Sequence[str]
) -> tuple[float, float] | None:
    pairs = [(evidence.range_of(first, key), evidence.range_of(second, key)) for key in keys]
    if not pairs:
        return None
    return (
        fmean(right[0] - left[1] for left, right in pairs),
        fmean(right[1] - left[0] for left, right in pairs),
    )


def _labels(
    evidence: Evidence, items: Sequence[Item], main: tuple[str, str]
) -> Iterable[LabelGain]:
    groups: dict[str, list[str]] = {}
    for item in items:
        if item.label is not None:
            groups.setdefault(item.label, []).append(item.key)
    for label in sorted(groups, key=_label_rank):
        keys = groups[label]
        known = all(arm in evidence.tries for arm in main)
        yield LabelGain(label, len(keys), _difference(evidence, *main, keys) if known else None)


def _label_rank(label: str) -> tuple[int, str]:
    return (LABELS.index(label) if label in LABELS else len(LABELS), label)


def _with_holm(sections: Sequence[Section], pairs: Sequence[tuple[str, str]]) -> list[Section]:
    """Adjust each comparison's p-value over the sets: they are the family of tests."""
    adjusted: dict[tuple[str, str], Mapping[str, float | None]] = {}
    for pair in pairs:
        found = {section.name: section.comparison(*pair) for section in sections}
        adjusted[pair] = holm({name: _p_value(each) for name, each in found.items()})
    return [
        replace(
            section,
            comparisons=tuple(
                replace(each, adjusted_p=adjusted[each.first, each.second][section.name])
                for each in section.comparisons
            ),
        )
        for section in sections
    ]


def _p_value(comparison: Comparison | None) -> float | None:
    if comparison is None or comparison.difference is None:
        return None
    return comparison.difference.p_value


def flips_of(evidence: Evidence, main: tuple[str, str]) -> Iterable[Flip]:
    """Won first, then lost, in the order of the items."""
    first, second = main
    keys = list(evidence.items)
    left, right = evidence.values(first, keys), evidence.values(second, keys)
    changed = [key for key in keys if key in left and key in right and left[key] != right[key]]
    for key in sorted(changed, key=lambda key: left[key] > right[key]):
        item = evidence.items[key]
        yield Flip(
            task_set=item.task_set,
            item=item.id,
            label=item.label,
            marks=item.marks,
            first=left[key],
            second=right[key],
            first_answer=_answer(evidence.tries[first][key]),
            second_answer=_answer(evidence.tries[second][key]),
        )


def _answer(tries: Sequence[Try], longest: int = 400) -> str | None:
    answer = tries[0].record.answer
    if answer is None or len(answer) <= longest:
        return answer
    return f"{answer[: longest // 2]} … {answer[-longest // 2 :]}"


def run_info(run: Run) -> RunInfo:
    costs = [each.meters.cost_usd for each in run.dropped if each.meters.cost_usd is not None]
    return RunInfo(
        name=run.name,
        manifest=run.manifest,
        scorers=run.scorers,
        dropped=_counted(each.failure or "asked for" for each in run.dropped),
        dropped_cost_usd=math.fsum(costs) if costs else None,
    )


def _controls(run: Run) -> dict[str, Mapping[str, Any]]:
    """The evidence of the ablations' positive controls, by arm, as the runner recorded it."""
    found = run.manifest.get("controls", ())
    return {str(each["arm"]): each for each in found if isinstance(each, Mapping) and "arm" in each}


def _notes(evidence: Evidence, arms: Sequence[str]) -> Iterable[str]:
    models = {str(run.manifest.get("model")) for run in evidence.runs}
    if len(models) > 1:
        yield (
            f"the runs joined here name several models ({', '.join(sorted(models))}): "
            "a difference between arms may be one between models"
        )
    for run in evidence.runs:
        begun = {episode.task_set for episode in run.tries}
        absent = manifest_sets(run.manifest).keys() - begun
        if absent:
            yield f"{run.name}: nothing has ended yet in {', '.join(sorted(absent))}"
    for arm in arms:
        if lacks(arm) and ARMS[arm].takes and not any(arm in _controls(r) for r in evidence.runs):
            yield f"{arm}: the run records no positive control that shows that the ablation bites"


def rounded(value: Any) -> Any:
    """A JSON value with its floats at six digits after the point."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
