"""Images in a container engine: found, pulled by reference, or imported from the local store."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from sandlot.core.errors import ImageError
from sandlot.sandbox.engine_api import EngineClient, EngineRefusal
from sandlot.sandbox.images import ImageInfo, ImageStore

Progress = Callable[[str], None]
PULL_S = 3600.0
_CHUNK_BYTES = 1 << 20
_REFERENCE = re.compile(r"(?P<name>.+?)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>\w+:\w+))?")
_STEP_BYTES = 32 * 1024 * 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image that the engine holds.

    `id` is the engine's own name for it, `digest` what is recorded: of the registry's manifest, of
    the imported tar, or else of the image's configuration. `environment` are its variables.
    """

    reference: str
    id: str
    digest: str
    environment: Mapping[str, str] = field(default_factory=dict)


async def prepare_image(
    client: EngineClient, reference: str, store: ImageStore, progress: Progress
) -> EngineImage:
    """The image of a reference: a name of the local store is imported, any other one is pulled.

    Raises:
        ImageError: it is not to be had, or is no image for a container.
        EngineLost: the engine does not answer.
    """
    if reference == "host":
        raise ImageError(
            "image 'host' shows this machine's own files and is for bubblewrap alone; "
            "name an image of the engine, or base or science"
        )
    if _is_local(reference, store):
        info = await store.ensure(reference, progress)
        return await import_image(client, info, store.tar(info.digest), progress)
    found = await find_image(client, reference)
    if found is None:
        await _pull(client, reference, progress)
        found = await find_image(client, reference)
    if found is None:
        raise ImageError(f"the engine pulled {reference!r} and does not find it; see its log")
    return found


async def find_image(client: EngineClient, reference: str) -> EngineImage | None:
    """An image that the engine holds already, or None."""
    path = f"/images/{quote(reference, safe='/:@')}/json"
    try:
        found = await client.call(f"describe the image {reference}", "GET", path)
    except EngineRefusal as exc:
        if exc.status in (400, 404):
            return None
        raise ImageError(f"image {reference!r}: {exc}") from exc
    return _described(reference, found)


async def import_image(
    client: EngineClient, info: ImageInfo, tar: Path, progress: Progress
) -> EngineImage:
    """Put an image of the local store into the engine, once, under a tag made of its digest."""
    repository, tag = f"sandlot/{_as_repository(info.name)}", info.digest[:12]
    found = await find_image(client, f"{repository}:{tag}")
    if found is None:
        made = await _import(client, info, tar, progress)
        path = f"/images/{made}/tag"
        await client.call("name an image", "POST", path, query={"repo": repository, "tag": tag})
        found = await find_image(client, made)
    if found is None:
        raise ImageError(f"the engine imported image {info.name!r} and does not find it")
    return EngineImage(info.name, found.id, info.digest)


async def _import(client: EngineClient, info: ImageInfo, tar: Path, progress: Progress) -> str:
    size = tar.stat().st_size
    progress(f"importing image {info.name} into the engine ({size >> 20} MiB, once)")
    made = ""
    query = {"fromSrc": "-", "changes": f"LABEL sandlot.image={info.digest}"}
    try:
        with tar.open("rb") as file:
            async for line in client.lines(
                "import an image",
                "POST",
                "/images/create",
                query=query,
                content=_chunks(file, size, progress),
                deadline_s=PULL_S,
            ):
                made = _import_step(info.name, line) or made
    except (EngineRefusal, OSError) as exc:
        raise ImageError(f"image {info.name!r} could not be imported: {exc}") from exc
    if not made:
        raise ImageError(f"image {info.name!r} was imported, but the engine gave it no id")
    return made


def _import_step(name: str, line: Mapping[str, Any]) -> str:
    if line.get("error"):
        raise ImageError(f"image {name!r} could not be imported: {line['error']}")
    status = str(line.get("status", ""))
    return status if re.fullmatch(r"(sha256:)?[0-9a-f]{64}", status) else ""


async def _chunks(file: IO[bytes], size: int, progress: Progress) -> AsyncIterator[bytes]:
    sent = shown = 0
    while data := await asyncio.to_thread(file.read, _CHUNK_BYTES):
        yield data
        sent += len(data)
        if sent - shown >= _STEP_BYTES:
            shown = sent
            progress(f"importing: {sent >> 20} of {size >> 20} MiB")


async def _pull(client: EngineClient, reference: str, progress: Progress) -> None:
    progress(f"pulling image {reference}")
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ImageError(f"image {reference!r} is not a reference like name:tag")
    query = {"fromImage": match["name"], "tag": match["digest"] or match["tag"] or "latest"}
    layers = _Layers(progress)
    try:
        async for line in client.lines(
            f"pull {reference}", "POST", "/images/create", query=query, deadline_s=PULL_S
        ):
            if line.get("error"):
                raise _not_pulled(reference, str(line["error"]))
            layers.show(line)
    except EngineRefusal as exc:
        raise _not_pulled(reference, exc.reason) from exc


def _not_pulled(reference: str, reason: str) -> ImageError:
    return ImageError(
        f"image {reference!r} is not in the engine and could not be pulled: "
        f"{reason.strip()[:500]}. Name one that the engine has or can pull, or use base or science"
    )


class _Layers:
    """Sums what the lines about single layers say, and shows a line now and then."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._sizes: dict[str, tuple[int, int]] = {}
        self._shown = 0

    def show(self, line: Mapping[str, Any]) -> None:
        detail = line.get("progressDetail") or {}
        current, total = detail.get("current"), detail.get("total")
        if not (isinstance(current, int) and isinstance(total, int)):
            return
        if len(self._sizes) < 1000:
            self._sizes[str(line.get("id"))] = (current, total)
        done, size = (sum(pair[n] for pair in self._sizes.values()) for n in (0, 1))
        if done - self._shown >= _STEP_BYTES:
            self._shown = done
            self._progress(f"pulling: {done >> 20} of {size >> 20} MiB")


def _is_local(reference: str, store: ImageStore) -> bool:
    from sandlot.sandbox.images_build import RECIPES

    return reference in RECIPES or reference in store.names()


def _as_repository(name: str) -> str:
    """Repositories hold small letters only."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "image"


def _described(reference: str, found: object) -> EngineImage:
    if not isinstance(found, dict) or not isinstance(found.get("Id"), str):
        raise ImageError(f"the engine's description of image {reference!r} cannot be read")
    digests = found.get("RepoDigests") or []
    digest = str(digests[0]).rpartition("@")[2] if digests else found["Id"]
    config = found.get("Config") or {}
    pairs = (str(entry).partition("=") for entry in config.get("Env") or [])
    environment = {name: value for name, _, value in pairs if _VARIABLE.fullmatch(name)}
    return EngineImage(reference, found["Id"], digest, environment)
