"""`sandlot doctor`: what this machine can do, each thing tried."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from sandlot.cli import options
from sandlot.cli.text import clean, one_line

if TYPE_CHECKING:
    from sandlot.settings import Settings


def doctor(
    backend: options.Backend = None, display: options.Display = None, as_json: options.Json = False
) -> None:
    """Try what sandlot needs of this machine; say what is refused and what would change that.

    Exit code 1 where the sandbox backend cannot run here.
    """
    import asyncio

    from sandlot.settings import resolve

    settings = resolve({"backend": backend, "display": display})
    rows = asyncio.run(_rows(settings, quiet=as_json))
    runs_here = rows[-1]["ok"]
    if as_json:
        print(json.dumps({"ok": runs_here, "checks": rows}))
    elif _moving(settings.display):
        _show_table(rows)
    if not runs_here:
        raise typer.Exit(1)


async def _rows(settings: Settings, *, quiet: bool) -> list[dict[str, Any]]:
    """Each check as it comes; the last is whether a sandbox of the backend starts at all."""
    from sandlot.sandbox.registry import probe

    plain = not quiet and not _moving(settings.display)
    rows: list[dict[str, Any]] = []

    def add(name: str, ok: bool, detail: str, remedy: str) -> None:
        rows.append({"name": name, "ok": ok, "detail": detail, "remedy": remedy})
        if plain:
            print("\n".join(_plain(rows[-1])), flush=True)

    async for check in probe(settings.cache_dir, settings.state_dir, dict(os.environ)):
        add(check.name, check.ok, check.detail, check.remedy or "")
    add(f"a {settings.backend} sandbox runs a command", *await _try_sandbox(settings))
    return rows


async def _try_sandbox(settings: Settings) -> tuple[bool, str, str]:
    from dataclasses import replace

    from sandlot.api import check_backend, open_computer, policy_of
    from sandlot.core.errors import SandlotError

    check_backend(settings.backend)
    # The host image needs no build, so that a missing image does not hide a working backend.
    probed = replace(settings, image="host", sources={**settings.sources, "image": "doctor"})
    try:
        box, _ = await open_computer(probed, policy_of(probed), os.environ, lambda _: None)
        async with box:
            if settings.backend != "fake":
                result = await box.exec("echo $((6 * 7))", 20)
                if result.stdout.strip() != "42":
                    return False, f"it printed {result.stdout!r} {result.stderr!r}", ""
    except SandlotError as exc:
        return False, str(exc), "see the refusals above"
    return True, "it started, ran and closed", ""


def _moving(display: str) -> bool:
    if display == "auto":
        return sys.stdout.isatty() and not os.environ.get("CI")
    return display == "rich"


def _plain(row: dict[str, Any]) -> list[str]:
    state = "ok     " if row["ok"] else "refused"
    lines = [f"{state}  {clean(row['name'])}: {one_line(row['detail'], 300)}"]
    if not row["ok"] and row["remedy"]:
        lines.append(f"         remedy: {clean(row['remedy'])}")
    return lines


def _show_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "", "found", "remedy", box=None)
    for row in rows:
        state = Text("ok", "green") if row["ok"] else Text("refused", "red")
        remedy = Text("" if row["ok"] else clean(row["remedy"]))
        found = Text(one_line(row["detail"], 300))
        table.add_row(Text(clean(row["name"])), state, found, remedy)
    Console().print(table)
