"""`sandlot export`: recorded runs in the forms that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandlot.cli import options
from sandlot.cli.outcome import say


def export(
    run: Annotated[str, typer.Argument(help="A run or bench directory, or `last`.")],
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORM", help="atif, messages, hub or training."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="PATH",
            help="A folder for atif, a JSONL file for the others. [RUN/exports/FORM…]",
        ),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="X", help="Leave out what scored less, or not at all."),
    ] = None,
    runs: options.Runs = None,
) -> None:
    """Write what was recorded as ATIF documents, chat messages, result lines or token records.

    The path of what was written goes to stdout. Rollouts that the form cannot hold are named on
    stderr and left out; where none is left, nothing is written.
    """
    from sandlot.bench.export import default_output
    from sandlot.bench.export import export as write
    from sandlot.settings import resolve

    directory = options.find_run(run, Path(resolve({"runs": runs}).runs))
    target = output or default_output(directory.path, form)
    done = write(directory.path, form, target, min_score=min_score)
    for reason in done.skipped:
        say(f"left out {reason}")
    say(f"{done.written} written, {len(done.skipped)} left out")
    print(done.path)
