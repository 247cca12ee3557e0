"""`sandlot ps`, `reap` and `clean`: what runs, and what dead runs left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sandlot.cli import options
from sandlot.cli.outcome import say
from sandlot.cli.text import clean


def ps(as_json: options.Json = False) -> None:
    """List the sandboxes of this user, by the process that owns them."""
    from sandlot.core.codec import to_json
    from sandlot.sandbox.registry import list_leases
    from sandlot.settings import resolve

    leases = list_leases(resolve().state_dir, os.environ)
    if as_json:
        print(json.dumps([to_json(lease) for lease in leases], default=str))
        return
    for lease in leases:
        state = "alive" if lease.alive else "dead (sandlot reap)"
        owner = f"{lease.id}  pid {lease.pid}  {lease.backend}"
        count = f"{lease.sandboxes} sandbox{'' if lease.sandboxes == 1 else 'es'}"
        print(clean(f"{owner}  {count}  {state}"))
    if not leases:
        say("no sandbox runs")


def reap() -> None:
    """Remove what sandboxes left whose owner was killed. Living ones are not touched."""
    import asyncio

    from sandlot.sandbox.registry import reap as reap_state
    from sandlot.settings import resolve

    removed = asyncio.run(reap_state(resolve().state_dir, os.environ))
    for line in removed:
        print(clean(line))
    if not removed:
        say("nothing to reap")


def clean_(
    kept: Annotated[
        bool, typer.Option("--kept", help="Also the stored sandboxes of runs.")
    ] = False,
    images: Annotated[bool, typer.Option("--images", help="Also every image.")] = False,
    runs: options.Runs = None,
) -> None:
    """Reap, and free disk space. Answers, files and trajectories of runs are never removed."""
    import asyncio

    from sandlot.settings import resolve

    reap()
    settings = resolve({"runs": runs})
    if kept:
        _remove_kept(Path(settings.runs))
    if images:
        asyncio.run(_remove_images(settings.cache_dir))


def _remove_kept(runs: Path) -> None:
    for state in sorted(runs.glob("*/sandbox.state")):
        size = state.stat().st_size
        state.unlink()
        print(clean(f"removed {state} ({size / 2**20:,.1f} MiB)"))


async def _remove_images(cache: Path) -> None:
    import inspect

    from sandlot.sandbox.images import ImageStore

    async def settled(value: Any) -> Any:
        return await value if inspect.isawaitable(value) else value

    store = ImageStore(cache)
    for image in list(await settled(store.list())):
        await settled(store.remove(image.name))
        print(clean(f"removed image {image.name}"))
