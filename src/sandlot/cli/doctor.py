"""`sandlot doctor`: what this machine can do, each promise tried."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from sandlot.cli import options
from sandlot.cli.text import clean, one_line
from sandlot.sandbox.choose import AUTO

if TYPE_CHECKING:
    from sandlot.sandbox.probe import Finding
    from sandlot.settings import Settings

Trying = Callable[[str], None]
_COLOURS = {"kept": "green", "not kept": "red", "not tried": "yellow"}


def doctor(
    backend: options.Backend = None,
    image: options.Image = None,
    engine: options.Engine = None,
    runtime: options.Runtime = None,
    display: options.Display = None,
    as_json: options.Json = False,
) -> None:
    """Try to break each promise on this machine; say what held, by what means, and what would help.

    Every backend that can start here is tried, or the one of --backend. Container engines get the
    image of --image, or a standard one that is built already. Nothing outside this machine is
    contacted, unless an engine has to fetch the image of --image. Exit code 1 where the default
    backend, or the one that was named, cannot run here.
    """
    import asyncio

    from sandlot.settings import resolve

    chosen = {"backend": backend, "image": image, "engine": engine, "runtime": runtime}
    settings = resolve({**chosen, "display": display})
    moving = not as_json and _moving(settings.display)
    with _progress(moving) as trying:
        found = asyncio.run(_collect(settings, backend, trying, plain=not as_json and not moving))
    default, runs_here = _default(found, settings.backend)
    if as_json:
        checks = [asdict(finding) for finding in found]
        print(json.dumps({"ok": runs_here, "backend": default, "checks": checks}))
    else:
        if moving:
            _show_table(found)
        print("\n".join(_summary(found, default, runs_here)))
    if not runs_here:
        raise typer.Exit(1)


async def _collect(
    settings: Settings, named: str | None, trying: Trying, *, plain: bool
) -> list[Finding]:
    found = []
    async for finding in _findings(settings, named, trying):
        found.append(finding)
        if plain:
            print("\n".join(_plain(finding)), flush=True)
    return found


def _default(found: list[Finding], asked: str) -> tuple[str, bool]:
    """The backend that a run would use, and whether it started."""
    from sandlot.sandbox.probe import first_that_starts

    if asked == AUTO:
        first = first_that_starts(found)
        return first or AUTO, first is not None
    starts = (one for one in found if (one.backend, one.promise) == (asked, "start"))
    return asked, any(one.result == "kept" for one in starts)


def _findings(settings: Settings, named: str | None, trying: Trying) -> AsyncIterator[Finding]:
    from sandlot.sandbox import probe

    asked = () if settings.backend == AUTO else (settings.backend,)
    names = tuple(dict.fromkeys((*asked, *probe.backends())))
    if named not in (None, AUTO):
        names = asked
        if settings.backend not in probe.BACKENDS:
            from sandlot.api import check_backend

            check_backend(settings.backend)
    setup = probe.Setup(
        settings.cache_dir,
        settings.state_dir,
        dict(os.environ),
        engine_image=_engine_image(settings),
        engine=settings.engine,
        runtime=settings.runtime,
    )
    return probe.probe(names, setup, trying=trying)


def _engine_image(settings: Settings) -> str | None:
    """The image that was asked for, else the smallest of the standard ones that is built."""
    from sandlot.core.errors import ImageError
    from sandlot.sandbox.images import ImageStore

    if settings.asked("image"):
        return settings.image
    for name in ("base", "science"):
        try:
            ImageStore(settings.cache_dir).resolve(name)
        except ImageError:
            continue
        return name
    return None


def _summary(found: list[Finding], default: str, runs_here: bool) -> list[str]:
    """A line for each backend, and one for the default."""
    lines = []
    for name in dict.fromkeys(one.backend for one in found):
        results = [one.result for one in found if one.backend == name]
        counts = {word: results.count(word) for word in dict.fromkeys(results)}
        lines.append(f"{clean(name)}: {', '.join(f'{n} {word}' for word, n in counts.items())}")
    if default == AUTO:
        return ["", *lines, "no backend that a run would take by itself starts here"]
    verdict = "starts here" if runs_here else "does not start here"
    return ["", *lines, f"a run would take {clean(default)}, which {verdict}"]


def _progress(moving: bool) -> AbstractContextManager[Trying]:
    """What is being tried, while it is; only on a terminal."""
    if not moving:
        return nullcontext(lambda _: None)
    from rich.console import Console
    from rich.text import Text

    status = Console(stderr=True).status("")

    class Shown(AbstractContextManager[Trying]):
        def __enter__(self) -> Trying:
            status.start()
            return lambda what: status.update(Text(f"trying {clean(what)}"))

        def __exit__(self, *exc: object) -> None:
            status.stop()

    return Shown()


def _moving(display: str) -> bool:
    if display == "auto":
        return sys.stdout.isatty() and not os.environ.get("CI")
    return display == "rich"


def _plain(finding: Finding) -> list[str]:
    first = f"{finding.result.value:9}  {clean(finding.backend)}  {clean(finding.promise)}"
    said: list[Any] = [one_line(finding.evidence, 300)]
    said += [f"({one_line(finding.because, 300)})"] if finding.because else []
    said += [f"[{one_line(finding.means, 120)}]"] if finding.means else []
    lines = [f"{first}: {' '.join(word for word in said if word)}"]
    if finding.remedy:
        lines.append(f"           remedy: {clean(finding.remedy)}")
    return lines


def _show_table(found: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("backend", "promise", "result", "by", "tried, and seen", "remedy", box=None)
    for one in found:
        table.add_row(
            Text(clean(one.backend)),
            Text(clean(one.promise)),
            Text(one_line(one.verdict, 300), _COLOURS[one.result.value]),
            Text(one_line(one.means, 120)),
            Text(one_line(one.evidence, 300)),
            Text(clean(one.remedy)),
        )
    Console().print(table)
