"""`sandlot data`: training tasks out of question sets."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandlot.cli import options
from sandlot.cli.outcome import say
from sandlot.cli.text import clean

if TYPE_CHECKING:
    from sandlot.train.data import Built

app = typer.Typer(
    help="Training tasks out of question sets.", rich_markup_mode=None, no_args_is_help=True
)

_SIGN_S = 0.2  # between two signs of progress on a terminal
_LINE_S = 10.0  # and elsewhere


@app.callback()
def data() -> None:
    """Training tasks out of question sets."""


@app.command()
def build(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE…", help="JSONL, JSON, CSV or Parquet, or folders of them."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.jsonl", help="The tasks; two files go beside it.")
    ],
    seed: Annotated[
        int,
        typer.Option("--seed", show_default=False, min=0, metavar="N", help="Of every draw. [1]"),
    ] = 1,
    ask: Annotated[
        int,
        typer.Option(
            "--ask",
            show_default=False,
            min=0,
            metavar="N",
            help="The last N questions of a context; 0: all. [1]",
        ),
    ] = 1,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            show_default=False,
            min=0,
            metavar="N",
            help="Up to N earlier questions, answered. [3]",
        ),
    ] = 3,
    distractors: Annotated[
        int,
        typer.Option(
            "--distractors",
            show_default=False,
            min=0,
            metavar="N",
            help="Files beside a context of one file. [3]",
        ),
    ] = 3,
    least_chars: Annotated[
        int,
        typer.Option(
            "--least-chars",
            show_default=False,
            min=1,
            metavar="N",
            help="Of a file that was cut. [400]",
        ),
    ] = 400,
    most_chars: Annotated[
        int,
        typer.Option(
            "--most-chars",
            show_default=False,
            min=2,
            metavar="N",
            help="Longer texts are cut. [4000]",
        ),
    ] = 4000,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Draw contexts for N tasks.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="SET",
            help="Leave out what this set asks or holds (again for more; none: no set). "
            "[every shipped set that is here]",
        ),
    ] = None,
    overlap: Annotated[
        float,
        typer.Option(
            "--overlap",
            show_default=False,
            min=0.01,
            max=1.0,
            metavar="X",
            help="Share that counts as held. [0.5]",
        ),
    ] = 0.5,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Keep questions without documents.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out what cannot be used, and count it.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Turn context-based question sets into training tasks.

    Each task has the documents of one context as files, perhaps earlier questions with their
    answers, and one question. Beside FILE.jsonl go FILE.toml, which loads it as a task set, and
    FILE.manifest.json, which says what it was made of and what was left out.
    """
    from sandlot.settings import resolve
    from sandlot.train.data import BuildOptions
    from sandlot.train.data import build as make
    from sandlot.train.data_overlap import load_compared

    asked = BuildOptions(
        seed=seed,
        ask=ask,
        examples=examples,
        distractors=distractors,
        least_chars=least_chars,
        most_chars=most_chars,
        limit=limit,
        overlap=overlap,
        allow_empty=allow_empty,
        skip_bad=skip_bad,
        force=force,
    )
    names = [name for name in against if name != "none"] if against is not None else None
    shown = _Progress()
    compared = load_compared(names, cache=resolve().cache_dir, environ=os.environ, note=shown.note)
    try:
        built = make(sources, out, asked, compared=compared, progress=shown)
    finally:
        shown.close()
    if as_json:
        print(json.dumps(_as_json(built), ensure_ascii=False))
        return
    for line in _summary(built.manifest):
        say(line)
    print(clean(str(built.path)))


class _Progress:
    """A line that moves on a terminal, a line now and then elsewhere; both on stderr."""

    def __init__(self) -> None:
        self._moves = sys.stderr.isatty()
        self._last = time.monotonic()
        self._open = False

    def __call__(self, what: str, done: int, whole: int | None) -> None:
        now = time.monotonic()
        if now - self._last < (_SIGN_S if self._moves else _LINE_S):
            return
        self._last = now
        text = clean(f"{what}: {done:,}" + (f" of {whole:,}" if whole is not None else ""))
        if self._moves:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            say(text)

    def note(self, text: str) -> None:
        self.close()
        say(text)

    def close(self) -> None:
        if self._open:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._open = False


def _summary(manifest: Mapping[str, Any]) -> list[str]:
    counts, kinds = manifest["counts"], manifest["kinds"]
    shown = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
    lines = [
        f"read {counts['rows']:,} rows: {counts['questions']:,} questions about "
        f"{counts['contexts']:,} contexts",
        *(f"left out {left['count']:,}: {reason}" for reason, left in manifest["left_out"].items()),
        f"wrote {counts['tasks']:,} tasks ({shown}) with {counts['files']:,} files, "
        f"{counts['distractors']:,} of them distractors, and {counts['examples']:,} examples",
    ]
    lacking = counts["tasks with fewer distractors"]
    if lacking:
        lines.append(f"{lacking:,} tasks have fewer distractors: their sets are too small")
    if not manifest["compared"]:
        lines.append("compared with no task set")
    return lines


def _as_json(built: Built) -> dict[str, Any]:
    return {
        "tasks": str(built.path),
        "row": str(built.row_path),
        "manifest_file": str(built.manifest_path),
        "manifest": built.manifest,
    }
