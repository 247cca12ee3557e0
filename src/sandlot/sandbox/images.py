"""Images: root file systems as tars in the user's cache, and the folders unpacked from them.

CACHE/images/DIGEST/image.tar, info.json    the digest is the sha256 of the tar
CACHE/names/NAME                            holds a digest
CACHE/rootfs/DIGEST-KEY/                    unpacked once per id map, shared by all sandboxes
CACHE/rootfs/DIGEST-KEY.stamp               written last: without it the folder is not used
CACHE/locks/, CACHE/partial/                work under way; safe to delete when nothing runs
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from sandlot.core.errors import ImageError, SandlotError
from sandlot.sandbox.images_archive import Stopped, normalize
from sandlot.sandbox.images_build import (
    RECIPES,
    BuildHost,
    Runner,
    build_tar,
    run_process,
)
from sandlot.sandbox.images_host import HostImage, host_layers

__all__ = [
    "HostImage",
    "ImageInfo",
    "ImageStore",
    "Progress",
    "RemoveTree",
    "Unpack",
    "host_layers",
    "remove_plain",
    "unpack_plain",
]

T = TypeVar("T")
Progress = Callable[[str], None]
Unpack = Callable[[Path, Path], Awaitable[None]]
RemoveTree = Callable[[Path], Awaitable[None]]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_CHUNK_BYTES = 1 << 20
_LOCK_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an image.

    Attributes:
        name: the name it was asked for by, or the digest when it has none.
        digest: sha256 of the tar, 64 hex digits.
        created: seconds since the epoch.
        origin: how it came here, in words (`built from bookworm`, `imported from FILE`).
        packages: what was asked of apt, without what those depend on.
    """

    name: str
    digest: str
    size_bytes: int
    created: float
    origin: str
    packages: tuple[str, ...] = ()


async def unpack_plain(tar: Path, target: Path) -> None:
    """Unpack for a user with one id: all files become the caller's.

    Set-id bits are dropped: inside they would mean nothing, outside they would lend the caller's
    rights to every other user of the machine.
    """
    argv = ["tar", "--no-same-owner", "--xattrs", "--delay-directory-restore"]
    said: list[str] = []
    code = await run_process([*argv, "-xpf", str(tar), "-C", str(target)], said.append)
    if code != 0:
        raise _unpack_failed(tar, target, said)
    find = ["find", str(target), "-type", "f", "-perm", "/6000"]
    await run_process([*find, "-exec", "chmod", "ug-s", "{}", "+"], said.append)


def _unpack_failed(tar: Path, target: Path, said: list[str]) -> ImageError:
    if any("No space left" in line for line in said):
        return _disk_full(target, tar.stat().st_size)
    return ImageError(f"unpacking {tar} into {target} failed: {' / '.join(said[-3:])}")


async def remove_plain(tree: Path) -> None:
    """Remove a folder that the caller owns, read-only folders inside included."""

    def unlock_and_retry(remove: Callable[[str], object], path: str, _: object) -> None:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path)
        else:
            remove(path)

    await asyncio.to_thread(shutil.rmtree, tree, onerror=unlock_and_retry)


class ImageStore:
    """The images below one cache folder; several processes may use it at once."""

    def __init__(
        self,
        cache: Path,
        *,
        now: Callable[[], float] = time.time,
        run: Runner = run_process,
        host: Callable[[], BuildHost] = BuildHost.current,
    ) -> None:
        self.cache = cache
        self._now = now
        self._run = run
        self._host = host

    # -- looking ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        folder = self.cache / "names"
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

    def list(self) -> list[ImageInfo]:
        """Every image: once per name, nameless ones under their digest."""
        named = [info for name in self.names() if (info := self._named(name)) is not None]
        seen = {info.digest for info in named}
        folder = self.cache / "images"
        rest = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        return named + [i for d in rest if d not in seen and (i := self._info(d, d)) is not None]

    def resolve(self, name_or_digest: str) -> ImageInfo:
        """The image of a name, a digest, or the first 8 or more digits of one.

        Raises:
            ImageError: there is none; says the nearest name and how to get it.
        """
        info = self._named(name_or_digest) or self._by_digest(name_or_digest)
        if info is None:
            raise self._unknown(name_or_digest)
        return info

    def tar(self, digest: str) -> Path:
        return self.cache / "images" / digest / "image.tar"

    def _named(self, name: str) -> ImageInfo | None:
        if not _NAME.fullmatch(name):
            return None
        try:
            digest = (self.cache / "names" / name).read_text().strip()
        except FileNotFoundError:
            return None
        return self._info(digest, name) if re.fullmatch(r"[0-9a-f]{64}", digest) else None

    def _by_digest(self, text: str) -> ImageInfo | None:
        match = _DIGEST.fullmatch(text)
        folder = self.cache / "images"
        if match is None or not folder.is_dir():
            return None
        found = [p.name for p in folder.iterdir() if p.name.startswith(match[1])]
        return self._info(found[0], self._name_of(found[0])) if len(found) == 1 else None

    def _name_of(self, digest: str) -> str:
        return next((n for n in self.names() if self._digest_of(n) == digest), digest)

    def _digest_of(self, name: str) -> str | None:
        info = self._named(name)
        return info.digest if info else None

    def _info(self, digest: str, name: str) -> ImageInfo | None:
        try:
            stored = json.loads((self.cache / "images" / digest / "info.json").read_text())
            stored["packages"] = tuple(stored.get("packages", ()))
            return replace(ImageInfo(**stored), name=name, digest=digest)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as exc:
            raise ImageError(
                f"image {name!r}: {self.cache / 'images' / digest / 'info.json'} is damaged "
                f"({exc}). {_remedy(name)}"
            ) from exc

    def _unknown(self, name: str) -> ImageError:
        known = sorted({*self.names(), *RECIPES, "host"})
        near = get_close_matches(name, known, n=1)
        have = ", ".join(self.names()) or "none yet"
        if name in RECIPES:
            return ImageError(
                f"image {name!r} has not been built yet. Build it: sandlot image build {name}"
            )
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return ImageError(
            f"image {name!r} is not known (have: {have}; can be built: {', '.join(RECIPES)}).{hint}"
            " Build one with `sandlot image build NAME` or bring your own with "
            "`sandlot image import FILE NAME`."
        )

    # -- getting ------------------------------------------------------------------------------

    async def ensure(self, name: str, progress: Progress) -> ImageInfo:
        """The image of this name, built now when it is a known one that is not there yet."""
        if self._named(name) is None and name in RECIPES:
            return await self.build(name, progress)
        return self.resolve(name)

    async def build(self, name: str, progress: Progress) -> ImageInfo:
        """Build `base` or `science` from the host's Debian or Ubuntu sources, or build it anew.

        Two builds of one name at once become one: the second waits and takes the first's result.

        Raises:
            ImageError: a tool is missing (with the command that brings it), the build failed, or
                the disk is full.
        """
        if name not in RECIPES:
            raise ImageError(
                f"image {name!r} cannot be built (can be built: {', '.join(RECIPES)})."
            )
        before = self._digest_of(name)
        async with self._locked(f"name-{name}", progress):
            after = self._named(name)
            if after is not None and after.digest != before:
                return after
            return await self._build(name, progress)

    async def _build(self, name: str, progress: Progress) -> ImageInfo:
        recipe = RECIPES[name]
        with self._partial(name) as work, _disk_errors(self.cache, recipe.disk_bytes):
            _require_space(work, recipe.disk_bytes)
            suite = await build_tar(recipe, work, self._host(), self._run, progress)
            progress("storing the image")
            return await self._adopt(
                work / "image.tar", name, f"built from {suite}", recipe.packages
            )

    async def import_(
        self, path: Path, name: str, progress: Progress = lambda _: None
    ) -> ImageInfo:
        """Take in a root file system: a folder, a tar (plain, gz, bz2, xz, zst), an OCI image
        layout, or an archive as `docker save` and `podman save` write it.

        Its content is treated as hostile: names that lead out are refused, devices are left out.

        Raises:
            ImageError: not readable, not a root file system, hostile, or the disk is full.
        """
        if not _NAME.fullmatch(name):
            raise ImageError(
                f"image name {name!r} cannot be used: letters, digits, '.', '_' and '-', at most "
                "64, beginning with a letter or digit."
            )
        async with self._locked(f"name-{name}", progress):
            with self._partial(name) as work, _disk_errors(self.cache, None):
                out = work / "image.tar"
                await _in_thread(lambda stop: normalize(path, out, work, progress, stop))
                return await self._adopt(out, name, f"imported from {path.name}")

    async def _adopt(
        self, tar: Path, name: str, origin: str, packages: tuple[str, ...] = ()
    ) -> ImageInfo:
        """Move a finished tar to its place by digest, then point the name at it."""
        digest = await _in_thread(lambda stop: _sha256(tar, stop))
        info = ImageInfo(name, digest, tar.stat().st_size, self._now(), origin, packages)
        folder = self.cache / "images" / digest
        folder.mkdir(parents=True, exist_ok=True)
        os.replace(tar, folder / "image.tar")
        _write_whole(folder / "info.json", json.dumps(asdict(info), indent=1) + "\n")
        _write_whole(self.cache / "names" / name, digest + "\n")
        return info

    async def verify(self, digest: str) -> None:
        """Read the whole tar again.

        Raises:
            ImageError: it is not there, or not what it was; says how to get it anew.
        """
        name, tar = self._name_of(digest), self.tar(digest)
        if not tar.is_file():
            raise ImageError(f"image {name!r}: {tar} is missing. {_remedy(name)}")
        found = await _in_thread(lambda stop: _sha256(tar, stop))
        if found != digest:
            raise ImageError(
                f"image {name!r} is damaged: {tar} has sha256 {found[:12]}…, not {digest[:12]}…. "
                f"{_remedy(name)}"
            )

    async def remove(self, name_or_digest: str, remove_tree: RemoveTree = remove_plain) -> None:
        """Forget a name; the last name's image goes too, with all that was unpacked from it.

        Sandboxes that still run on it lose files: the caller asks first.
        """
        info = self.resolve(name_or_digest)
        async with self._locked(f"name-{info.name}"):
            (self.cache / "names" / info.name).unlink(missing_ok=True)
            if self._name_of(info.digest) != info.digest:
                return
            for tree in sorted((self.cache / "rootfs").glob(f"{info.digest}-*")):
                await self._remove_rootfs(tree, remove_tree)
            await remove_plain(self.cache / "images" / info.digest)

    async def _remove_rootfs(self, tree: Path, remove_tree: RemoveTree) -> None:
        if tree.suffix == ".stamp":
            return
        async with self._locked(f"rootfs-{tree.name}"):
            _stamp(tree).unlink(missing_ok=True)
            with _disk_errors(tree, None):
                if tree.exists():
                    await remove_tree(tree)

    # -- unpacking ----------------------------------------------------------------------------

    async def rootfs(
        self,
        digest: str,
        key: str,
        unpack: Unpack = unpack_plain,
        remove_tree: RemoveTree = remove_plain,
        progress: Progress = lambda _: None,
    ) -> Path:
        """The folder of an image unpacked for one id map, made at its first use.

        `unpack(tar, target)` gets an empty folder of the caller's, mode 0755, and may replace it.
        A folder left half done by a killed process is removed by `remove_tree` and made anew.

        Raises:
            ImageError: the image is missing or damaged, or the disk is full.
        """
        target = self.cache / "rootfs" / f"{digest}-{key}"
        if _stamp(target).exists() and target.is_dir():
            return target
        async with self._locked(f"rootfs-{target.name}", progress):
            if not (_stamp(target).exists() and target.is_dir()):
                await self._unpack(digest, target, unpack, remove_tree, progress)
        return target

    async def _unpack(
        self, digest: str, target: Path, unpack: Unpack, remove_tree: RemoveTree, progress: Progress
    ) -> None:
        await self.verify(digest)
        size = self.tar(digest).stat().st_size
        with _disk_errors(target, size):
            _stamp(target).unlink(missing_ok=True)
            if target.exists():
                await remove_tree(target)
            # Ids of a user namespace must be able to pass through, not to list.
            target.parent.mkdir(parents=True, exist_ok=True)
            target.parent.chmod(0o711)
            _require_space(target.parent, size)
            progress("unpacking the image (once)")
            target.mkdir()
            target.chmod(0o755)
            try:
                await unpack(self.tar(digest), target)
            except (OSError, SandlotError) as exc:
                await remove_tree(target)
                if "No space left" in str(exc):
                    raise _disk_full(target, size) from exc
                raise
            _write_whole(_stamp(target), digest + "\n")

    # -- one at a time ------------------------------------------------------------------------

    @asynccontextmanager
    async def _locked(self, name: str, progress: Progress = lambda _: None) -> AsyncIterator[None]:
        """Hold a lock between processes; the kernel gives it back when its holder dies."""
        path = self.cache / "locks" / f"{name}.lock"
        with _disk_errors(path, None):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _try_lock(file):
                progress("waiting for another process that is preparing this image")
                # A lock of another process gives no event to wait for.
                while not _try_lock(file):  # noqa: ASYNC110
                    await asyncio.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(file)

    @contextmanager
    def _partial(self, name: str) -> Iterator[Path]:
        """A scratch folder of a name, held under its lock: what lies in it is of a dead process."""
        work = self.cache / "partial" / name
        with _disk_errors(work, None):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stamp(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}.stamp")


def _remedy(name: str) -> str:
    if name in RECIPES:
        return f"Build it anew: sandlot image build {name}"
    return f"Remove it and import it again: sandlot image rm {name}"


def _write_whole(path: Path, text: str) -> None:
    """Write so that a reader, or a crash, sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    os.replace(draft, path)


def _sha256(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if stop.is_set():
                raise Stopped
            digest.update(chunk)
    return digest.hexdigest()


async def _in_thread(work: Callable[[threading.Event], T]) -> T:
    """Run in a thread; a cancelled caller tells the thread to stop and waits until it has."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()
        raise


def _disk_full(path: Path, need_bytes: int | None) -> ImageError:
    need = f" (about {_size(need_bytes)} needed)" if need_bytes else ""
    return ImageError(
        f"no space left on the disk of {path}{need}. Free some, drop images with "
        "`sandlot image rm NAME`, or point XDG_CACHE_HOME at another disk."
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, count >> 20)} MiB"


def _require_space(path: Path, need_bytes: int) -> None:
    if shutil.disk_usage(path).free < need_bytes:
        raise _disk_full(path, need_bytes)


@contextmanager
def _disk_errors(path: Path, need_bytes: int | None) -> Iterator[None]:
    """Turn what a disk refuses into words about the path and the need."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path, need_bytes) from exc
        raise ImageError(f"the image cache at {path} cannot be used: {exc}") from exc
