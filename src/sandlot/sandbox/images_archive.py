"""Reading hostile archives: a root file system from a tar, a folder or an OCI image.

The members are laid out in a tree in memory, where links are followed inside the tree only, and
written again as one plain tar: no name in it is absolute, leads upwards or passes through a link.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import platform
import re
import shutil
import subprocess
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from sandlot.core.errors import ImageError

_CHUNK_BYTES = 1 << 20
_LIMIT_BYTES = 64 << 30
_NAME_BYTES = 4096
_LINK_HOPS = 40
_NOBODY = 65534
_IDS = 65536
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class Stopped(Exception):
    """The caller was cancelled; the thread ends here."""


@dataclass(slots=True, eq=False)
class _Node:
    """A file of the tree. `info` is shared by hard links of one file; `layer` counts from 0."""

    info: tarfile.TarInfo
    source: tarfile.TarFile | None
    layer: int
    children: dict[str, _Node] = field(default_factory=dict)


class FileTree:
    """The root file system that a list of layers adds up to."""

    def __init__(self) -> None:
        self.root = _folder_node(0)
        self.left_out = 0

    def add_layer(
        self, archive: tarfile.TarFile, layer: int, stop: threading.Event, *, whiteouts: bool
    ) -> None:
        for info in archive:
            if stop.is_set():
                raise Stopped
            self._add(archive, info, layer, whiteouts)

    def _add(
        self, archive: tarfile.TarFile, info: tarfile.TarInfo, layer: int, whiteouts: bool
    ) -> None:
        parts = _parts(info.name)
        if not parts:
            self.root.info = info if info.isdir() else self.root.info
            return
        parent = self._folder(parts[:-1], layer)
        name = parts[-1]
        if whiteouts and name.startswith(".wh."):
            _white_out(parent, name, layer)
        elif info.isdir():
            self._add_folder(parent, name, info, layer)
        elif info.islnk():
            target = self._find(info.linkname, info.name)
            parent.children[name] = _Node(target.info, target.source, layer)
        elif info.isreg() or info.issym():
            parent.children[name] = _Node(info, archive, layer)
        else:
            self.left_out += 1

    def _add_folder(self, parent: _Node, name: str, info: tarfile.TarInfo, layer: int) -> None:
        there = parent.children.get(name)
        if there is not None and there.info.isdir():
            there.info, there.layer = info, layer
        else:
            parent.children[name] = _Node(info, None, layer)

    def _folder(self, parts: Sequence[str], layer: int) -> _Node:
        """The folder at a path, links followed as after chroot, made where it is missing."""
        pending, trail, hops = list(reversed(parts)), [self.root], 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                trail = trail[:-1] or trail
                continue
            node = trail[-1].children.setdefault(part, _folder_node(layer))
            if node.info.issym():
                hops += 1
                if hops > _LINK_HOPS:
                    raise ImageError(f"hostile archive: links go in a circle at {part!r}")
                trail = [self.root] if node.info.linkname.startswith("/") else trail
                pending += reversed(node.info.linkname.split("/"))
            elif node.info.isdir():
                trail.append(node)
            else:
                raise ImageError(f"hostile archive: {part!r} is a file and a folder at once")
        return trail[-1]

    def _find(self, name: str, asked_by: str) -> _Node:
        parts = _parts(name)
        node = self._folder(parts[:-1], 0).children.get(parts[-1]) if parts else None
        if node is None or node.info.isdir():
            raise ImageError(f"hostile archive: {asked_by!r} is a hard link to no file ({name!r})")
        return node

    def has_program(self, name: str) -> bool:
        return any(
            name in self._folder(folder.split("/"), 0).children for folder in ("bin", "usr/bin")
        )

    def write(self, out: tarfile.TarFile, stop: threading.Event) -> None:
        written: dict[int, str] = {}
        for path, node in self._walk():
            if stop.is_set():
                raise Stopped
            info = _clean(node.info, path)
            first = written.get(id(node.info))
            if first is not None:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
                out.addfile(info)
            elif node.info.isreg() and node.source is not None:
                written[id(node.info)] = path
                with cast(BinaryIO, node.source.extractfile(node.info)) as body:
                    out.addfile(info, _Stoppable(body, stop))
            else:
                written[id(node.info)] = path
                out.addfile(info)

    def _walk(self) -> Iterator[tuple[str, _Node]]:
        pending = [(".", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            below = sorted(node.children.items(), reverse=True)
            pending += [(f"{path}/{name}", child) for name, child in below]

    def total_bytes(self) -> int:
        files = {id(n.info): n.info.size for _, n in self._walk() if n.info.isreg()}
        return sum(files.values())


class _Stoppable:
    """A file whose reading ends when the caller is cancelled."""

    def __init__(self, body: BinaryIO, stop: threading.Event) -> None:
        self._body, self._stop = body, stop

    def read(self, size: int = -1) -> bytes:
        if self._stop.is_set():
            raise Stopped
        return self._body.read(size)


def _folder_node(layer: int) -> _Node:
    info = tarfile.TarInfo()
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return _Node(info, None, layer)


def _parts(name: str) -> list[str]:
    if name.startswith("/"):
        raise ImageError(f"hostile archive: {name!r} is an absolute name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ImageError(f"hostile archive: {name!r} leads upwards")
    if len(name.encode(errors="surrogateescape")) > _NAME_BYTES or "\0" in name:
        raise ImageError(f"hostile archive: the name {name[:40]!r}… cannot be a path")
    return parts


def _clean(info: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """A fresh header: extended attributes go (overlayfs reads some of them as orders)."""
    new = tarfile.TarInfo(path)
    new.type = tarfile.REGTYPE if info.isreg() else info.type
    new.size = info.size if info.isreg() else 0
    new.mode = info.mode & 0o7777
    new.mtime = min(max(int(info.mtime), 0), 0o77777777777)
    new.uid = info.uid if 0 <= info.uid < _IDS else _NOBODY
    new.gid = info.gid if 0 <= info.gid < _IDS else _NOBODY
    new.linkname = info.linkname if info.issym() else ""
    return new


def _white_out(parent: _Node, name: str, layer: int) -> None:
    """Whiteouts of the OCI image specification: they hide lower layers, never their own."""
    if name == ".wh..wh..opq":
        parent.children = {n: c for n, c in parent.children.items() if c.layer == layer}
        return
    there = parent.children.get(name.removeprefix(".wh."))
    if there is not None and there.layer < layer:
        del parent.children[name.removeprefix(".wh.")]


# -- finding the layers ---------------------------------------------------------------------------


def normalize(
    path: Path, out: Path, work: Path, progress: Callable[[str], None], stop: threading.Event
) -> None:
    """Write the root file system at `path`, whatever its form, to `out` as one plain tar.

    Raises:
        ImageError: missing, unreadable, damaged, hostile, too large or no root file system.
    """
    if not path.exists():
        raise ImageError(f"{path} is not there; give a root file system: a folder, tar or archive.")
    progress(f"reading {path}")
    try:
        layers = _layers(path, work, stop)
        _flatten(layers, out, path, progress, stop)
    except _DAMAGED as exc:
        raise ImageError(f"{path} is damaged or no archive of a known kind: {exc}") from exc
    except PermissionError as exc:
        raise ImageError(f"{exc.filename} cannot be read: import it as a user who can") from exc


def _layers(path: Path, work: Path, stop: threading.Event) -> list[Path]:
    if path.is_dir():
        return _oci_layers(path) if (path / "index.json").is_file() else [_pack(path, work)]
    plain = _plain(path, work / "input.tar", stop)
    with tarfile.open(plain, "r:") as archive:
        names = {info.name.removeprefix("./") for info in archive}
        if not names & {"index.json", "manifest.json"}:
            return [plain]
        box = work / "archive"
        _extract_files(archive, box, stop)
    return _oci_layers(box) if (box / "index.json").is_file() else _docker_layers(box)


def _flatten(
    layers: Sequence[Path],
    out: Path,
    path: Path,
    progress: Callable[[str], None],
    stop: threading.Event,
) -> None:
    tree = FileTree()
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            plain = _plain(layer, out.with_name(f"layer-{index}.tar"), stop)
            archive = stack.enter_context(tarfile.open(plain, "r:"))
            tree.add_layer(archive, index, stop, whiteouts=len(layers) > 1)
        if not tree.has_program("bash"):
            raise ImageError(
                f"{path} is no root file system that a sandbox can use: it has no bash in /bin or "
                "/usr/bin."
            )
        if tree.total_bytes() > _LIMIT_BYTES:
            raise ImageError(f"{path} unpacks to more than {_LIMIT_BYTES >> 30} GiB")
        with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as target:
            tree.write(target, stop)
    if tree.left_out:
        progress(f"left out {tree.left_out} devices, pipes or sockets")


def _plain(path: Path, out: Path, stop: threading.Event) -> Path:
    """The tar itself, or its decompressed copy at `out`."""
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd(path, out)
    opener: Any = None
    for magic, module in ((b"\x1f\x8b", gzip), (b"\xfd7zXZ\0", lzma), (b"BZh", bz2)):
        opener = module if head.startswith(magic) else opener
    if opener is None:
        return path
    with opener.open(path, "rb") as source, out.open("wb") as target:
        _copy(source, target, stop)
    return out


def _copy(source: BinaryIO, target: BinaryIO, stop: threading.Event) -> None:
    total = 0
    while chunk := source.read(_CHUNK_BYTES):
        total += len(chunk)
        if stop.is_set():
            raise Stopped
        if total > _LIMIT_BYTES:
            raise ImageError(f"the archive unpacks to more than {_LIMIT_BYTES >> 30} GiB")
        target.write(chunk)


def _zstd(path: Path, out: Path) -> Path:
    if shutil.which("zstd") is None:
        raise ImageError(
            f"{path} is compressed with zstd, not found on this machine. "
            "Install: sudo apt-get install -y zstd"
        )
    with out.open("wb") as target:
        done = subprocess.run(
            ["zstd", "-dcq", "--", str(path)], stdout=target, stderr=subprocess.PIPE, check=False
        )
    if done.returncode != 0:
        raise ImageError(f"{path} is damaged: {done.stderr.decode(errors='replace').strip()}")
    return out


def _pack(folder: Path, work: Path) -> Path:
    """A folder as a tar; what a running system mounts into its root is left out."""
    out = work / "folder.tar"
    mounted = re.compile(r"\./(?:proc|sys|dev)/")

    def keep(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if mounted.match(info.name) else info

    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(folder, arcname=".", filter=keep)
    return out


def _extract_files(archive: tarfile.TarFile, box: Path, stop: threading.Event) -> None:
    """The regular files of an image archive; links (older `docker save`) become copies."""
    for info in archive:
        target = box.joinpath(*_parts(info.name))
        if not (info.isreg() or info.issym() or info.islnk()) or target == box:
            continue
        try:
            body = archive.extractfile(info)
        except KeyError:
            # A link to what the archive does not hold: missed later if it is a layer.
            body = None
        if body is None:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with body, target.open("wb") as out:
            _copy(cast(BinaryIO, body), out, stop)


# -- OCI and docker -------------------------------------------------------------------------------

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def _docker_layers(box: Path) -> list[Path]:
    manifest = _json(box / "manifest.json")
    try:
        names = [str(name) for name in manifest[0]["Layers"]]
    except (KeyError, IndexError, TypeError) as exc:
        raise ImageError("the archive's manifest.json names no layers") from exc
    return [_existing(box.joinpath(*_parts(name)), name) for name in names]


def _oci_layers(box: Path) -> list[Path]:
    manifest = _object(box / "index.json")
    for _ in range(4):
        if "manifests" not in manifest:
            break
        manifest = _object(_blob(box, _choose(manifest["manifests"])))
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers:
        raise ImageError("the OCI image's manifest names no layers")
    return [_blob(box, layer) for layer in layers]


def _choose(manifests: Any) -> Any:
    """The manifest for this machine's processor; the only one, when none says."""
    if not isinstance(manifests, list) or not manifests:
        raise ImageError("the OCI image's index names no manifests")
    wanted = _ARCHITECTURES.get(platform.machine(), platform.machine())
    for manifest in manifests:
        platforms = manifest.get("platform") if isinstance(manifest, dict) else None
        if not isinstance(platforms, dict) or platforms.get("architecture", wanted) == wanted:
            return manifest
    raise ImageError(f"the OCI image has no manifest for {wanted}")


def _blob(box: Path, descriptor: Any) -> Path:
    digest = str(descriptor.get("digest", "")) if isinstance(descriptor, dict) else ""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ImageError(f"the OCI image names a blob by {digest[:80]!r}, not by sha256")
    path = _existing(box / "blobs" / "sha256" / digest.removeprefix("sha256:"), digest)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest.removeprefix("sha256:"):
            raise ImageError(f"the OCI image's blob {digest[:19]}… is damaged")
    return path


def _existing(path: Path, name: str) -> Path:
    if not path.is_file() or path.is_symlink():
        raise ImageError(f"the image lacks its part {name}")
    return path


def _object(path: Path) -> dict[str, Any]:
    value = _json(path)
    if not isinstance(value, dict):
        raise ImageError(f"the image's {path.name[:20]} is no JSON object")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise ImageError(f"the image's {path.name[:20]} cannot be read: {exc}") from exc
