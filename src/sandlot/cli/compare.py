"""`sandlot compare`: what one bench run scored over another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sandlot.cli import options


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A bench run, or `last`.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_json: options.Json = False,
    display: options.Display = None,
) -> None:
    """Compare two bench runs over the items that both have, and say what differs between them."""
    from sandlot.bench.compare import compare_runs, summary, tables, to_document
    from sandlot.cli.report import place_of, print_tables

    found = compare_runs(place_of(first), place_of(second))
    if as_json:
        print(json.dumps(to_document(found), ensure_ascii=False))
        return
    print_tables(summary(found), tables(found), [*found.notes], display)
