"""`sandlot score`: scores of a finished bench run made again, without a model or a sandbox."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from sandlot.cli import options
from sandlot.cli.bench import find_bench, settings_before
from sandlot.cli.outcome import drive, say
from sandlot.core.errors import ConfigError

if TYPE_CHECKING:
    from sandlot.bench.store import BenchDirectory
    from sandlot.settings import Settings


def score(
    run: Annotated[str, typer.Argument(metavar="DIR", help="A bench run, or `last`.")],
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="MODEL", help="For sets that a judge scores; replies are cached."
        ),
    ] = None,
    base_url: options.BaseUrl = None,
    reference: Annotated[
        bool, typer.Option(help="The published package's score beside ours, where installed.")
    ] = True,
    runs: options.Runs = None,
) -> None:
    """Score a finished bench run again. The new scores are appended; the last one counts."""
    from sandlot.settings import resolve

    given = {"judge": judge, "base_url": base_url, "runs": runs}
    directory = find_bench(run, given)
    before = settings_before(directory.manifest)
    before.pop("judge", None)  # judgements cost money: only who asks for them here pays
    settings = resolve({**before, **{k: v for k, v in given.items() if v is not None}})
    done = drive(lambda: score_again(directory, settings, reference=reference))
    say(f"scored {done} episodes again: {directory.path}")


async def score_again(
    directory: BenchDirectory, settings: Settings, *, reference: bool = True
) -> int:
    """Score every episode of a run directory with the scorers that its manifest names."""
    import asyncio

    from sandlot.api import secrets_of
    from sandlot.bench.grading import JUDGED, Grader, GradingOptions, rescore
    from sandlot.bench.runner import judge_of
    from sandlot.core.codec import from_json
    from sandlot.core.redact import Redactor
    from sandlot.scoring.base import ScoringTools
    from sandlot.tasks.base import TaskSet

    if not directory.episodes():
        raise ConfigError(f"{directory.path} holds no finished episode to score")
    rows = [from_json(TaskSet, entry["row"]) for entry in directory.manifest["sets"].values()]
    judged = [row.name for row in rows if row.scorer in JUDGED]
    if settings.judge is None and judged:
        say(f"{', '.join(judged)}: scored by a judge, so left as is; name one by --judge")
        rows = [row for row in rows if row.scorer not in JUDGED]
    directory.writing(Redactor(secrets_of(settings, os.environ)))
    tools = ScoringTools(
        cache_dir=settings.cache_dir / "judgements",
        judge_model=judge_of(settings),
        judge_address=settings.base_url or "",
        environ=os.environ,
        on_judgement=directory.add_judgement,
    )
    grader = Grader(rows, tools, GradingOptions(reference=reference))
    try:
        return await rescore(directory, grader)
    finally:
        await grader.close()
        await asyncio.to_thread(directory.close)
