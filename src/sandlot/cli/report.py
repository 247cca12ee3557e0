"""`sandlot report`: what a bench run shows, in the terminal, as JSON, as a page, as a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandlot.cli import options
from sandlot.cli.outcome import say

if TYPE_CHECKING:
    from sandlot.bench.report import Report
    from sandlot.bench.terminal import Table

Directories = Annotated[
    list[Path],
    typer.Argument(metavar="DIR…", help="Bench runs of other sets or other arms; or `last`."),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")
]
Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="FILE.tar.gz",
        help="Pack manifest, trajectories, scores, digests and report for others to score again.",
    ),
]


def report(
    directories: Directories,
    html: Html = None,
    bundle: Bundle = None,
    measure_again: Annotated[
        bool, typer.Option("--measure-again", help="Take meters from the trajectories anew.")
    ] = False,
    as_json: options.Json = False,
    display: options.Display = None,
) -> None:
    """Compare the arms of bench runs: what the computer bought, how sure that is, what it cost.

    A run that is reported alone gets report.json and report.html written beside its records.
    """
    from sandlot.bench.report import build_report, to_document, write_report

    directories = [place_of(directory) for directory in directories]
    found = build_report(directories, measure_again=measure_again)
    if len(directories) == 1:
        write_report(found, directories[0] / "report.json")
        _write_page(found, directories[0] / "report.html")
    if html is not None:
        _write_page(found, html)
        say(f"written: {html}")
    if bundle is not None:
        from sandlot.bench.bundle import write_bundle
        from sandlot.bench.html import page
        from sandlot.bench.report import document_text

        members = {"report.json": document_text(found), "report.html": page(found)}
        encoded = {name: text.encode("utf-8", "replace") for name, text in members.items()}
        digest = write_bundle(directories, bundle, encoded)
        say(f"written: {bundle} (sha256 {digest})")
    if as_json:
        print(json.dumps(to_document(found), ensure_ascii=False))
        return
    show(found, display)


def place_of(directory: Path) -> Path:
    """The folder itself, else the run of this name in the runs folder, or the newest for `last`."""
    from sandlot.settings import resolve

    if directory.exists():
        return directory
    return options.find_run(str(directory), Path(resolve().runs)).path


def show(found: Report, display: str | None) -> None:
    from sandlot.bench.paper import beside
    from sandlot.bench.terminal import summary, tables

    notes = [*found.notes, *beside(found)]
    print_tables(summary(found), tables(found), notes, display)


def print_tables(
    lines: list[str], found: list[Table], notes: list[str], display: str | None
) -> None:
    """Text first, then the tables, then what to keep in mind."""
    import sys

    from sandlot.bench.terminal import plain, rich_tables
    from sandlot.cli.text import clean

    if display == "none":
        return
    harmless = [table.mapped(clean) for table in found]
    for line in lines:
        print(clean(line))
    print()
    if display == "rich" or (display in (None, "auto") and sys.stdout.isatty()):
        from rich.console import Console

        Console().print(*rich_tables(harmless))
    else:
        print(plain(harmless))
    for note in notes:
        print(clean(f"Note: {note.strip()}"))


def _write_page(found: Report, path: Path) -> None:
    from sandlot.bench.html import page
    from sandlot.bench.report import write_text

    write_text(path, page(found))
