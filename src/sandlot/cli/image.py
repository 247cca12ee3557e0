"""`sandlot image build|import|list|rm`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandlot.cli.outcome import drive, say
from sandlot.cli.text import clean
from sandlot.core.errors import ConfigError

if TYPE_CHECKING:
    from sandlot.sandbox.images import ImageStore

app = typer.Typer(
    help="The images that sandboxes start from.", no_args_is_help=True, rich_markup_mode=None
)
Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command()
def build(
    name: Name = "science",
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="docker|podman|ADDRESS",
            help="Also import it into this container engine, once.",
        ),
    ] = None,
) -> None:
    """Build `base` or `science` from Debian's packages; a finished one is not built again."""
    if engine is not None:
        drive(lambda: _put_into(engine, name))
        return
    image = drive(lambda: _awaited(_store().build, name, say))
    print(clean(_described(name, image)))


async def _put_into(engine: str, name: str) -> None:
    """Build it if it is not there, then import it into the engine."""
    import os

    from sandlot.sandbox.engine_api import EngineClient, find_address, parse_address
    from sandlot.sandbox.engine_images import import_image

    known = engine in ("docker", "podman")
    address = find_address(engine, None, os.environ) if known else parse_address(engine)
    store = _store()
    client = EngineClient(address, os.environ)
    try:
        await client.call("describe itself", "GET", "/info")  # before a build of minutes
        info = await store.ensure(name, say)
        image = await import_image(client, info, store.tar(info.digest), say)
    finally:
        await client.close()
    print(clean(f"{name}  {image.digest}  in the engine as {image.id}"))


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="TAR|DIR", help="A root file system.")],
    name: Annotated[str, typer.Option("--name", help="What to call it. [the source's name]")] = "",
) -> None:
    """Import a root file system from a tar archive or a folder."""
    if not source.exists():
        raise ConfigError(f"{source} does not exist; name a rootfs tar archive or a folder")
    name = name or source.name.split(".")[0]
    image = drive(lambda: _awaited(_store().import_, source, name, say))
    print(clean(_described(name, image)))


@app.command("list")
def list_() -> None:
    """List the images of this user's cache."""
    import asyncio

    images = list(asyncio.run(_awaited(_store().list)))
    for image in images:
        print(clean(_described("", image)))
    if not images:
        say("no image yet; `sandlot image build science` builds the default one")


@app.command()
def rm(name: Name) -> None:
    """Remove an image from this user's cache."""
    import asyncio

    asyncio.run(_awaited(_store().remove, name))
    say(f"removed image {name}")


def _store() -> ImageStore:
    from sandlot.sandbox.images import ImageStore
    from sandlot.settings import resolve

    return ImageStore(resolve().cache_dir)


async def _awaited(function: Callable[..., Any], *arguments: Any) -> Any:
    import inspect

    result = function(*arguments)
    return await result if inspect.isawaitable(result) else result


def _described(name: str, image: Any) -> str:
    size = getattr(image, "size_bytes", None)
    parts = [getattr(image, "name", name) or name, getattr(image, "digest", None)]
    if size is not None:
        parts.append(f"{size / 2**20:,.0f} MiB")
    return "  ".join(str(part) for part in parts if part)
