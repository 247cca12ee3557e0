"""Adapters: what a small model learnt, as one file that lies on its weights, and its manifest.

    adapter.gguf     a LoRA adapter as llama.cpp takes it
    manifest.json    what it was trained on and with, and what it scored

An adapter is held to the manifest beside it: on other weights, or with other prompts than it was
trained with, it would do worse than no adapter, and nothing would say why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from sandlot.core.codec import from_json, to_json
from sandlot.core.errors import ConfigError, RecordError

SHIPPED = Path(__file__).parent / "data" / "taught"
"""Where the package keeps the adapter that it ships; it may hold none."""

ADAPTER_FILE = "adapter.gguf"
MANIFEST_FILE = "manifest.json"
_FORMAT = 1
_SHOWN = 12  # characters of a digest in a message


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file by its content: `sha256` in hex, and its size."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Pin:
    """Something named, held to its content: `digest` is a sha256 in hex."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an adapter was made from and with. `scores` are figures that were measured, by name."""

    name: str
    adapter: FileDigest
    base: FileDigest
    profile: Pin
    recipe: Pin | None = None
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    format: int = _FORMAT

    def to_text(self) -> str:
        return json.dumps(to_json(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's file and the manifest beside it, where there is one."""

    path: Path
    manifest: Manifest | None = None

    @property
    def name(self) -> str:
        return self.path.stem if self.manifest is None else self.manifest.name


def shipped_adapter() -> Adapter | None:
    """The adapter of the package, if it ships one.

    Raises:
        ConfigError: it has no manifest, or one that cannot be read.
    """
    path = SHIPPED / ADAPTER_FILE
    if not path.is_file():
        return None
    adapter = adapter_at(path)
    if adapter.manifest is None:
        raise ConfigError(f"the shipped adapter {path} has no {MANIFEST_FILE}; reinstall sandlot")
    return adapter


def adapter_at(path: Path) -> Adapter:
    """The adapter of a file, with the manifest beside it where there is one.

    Raises:
        ConfigError: the manifest cannot be read.
    """
    path = path.expanduser().absolute()
    manifest = path.with_name(MANIFEST_FILE)
    return Adapter(path, read_manifest(manifest) if manifest.is_file() else None)


def read_manifest(path: Path) -> Manifest:
    """Raises:
    ConfigError: the file cannot be read, is no manifest, or is of a later format.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        manifest = from_json(Manifest, data)
    except OSError as exc:
        raise ConfigError(f"adapter manifest {path} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecordError) as exc:
        raise ConfigError(f"adapter manifest {path} is damaged: {exc}") from exc
    words = (
        manifest.name,
        manifest.adapter.sha256,
        manifest.base.sha256,
        manifest.profile.name,
        manifest.profile.digest,
    )
    if not all(isinstance(word, str) and word for word in words):
        raise ConfigError(f"adapter manifest {path} is damaged: a name or digest is no text")
    if manifest.format != _FORMAT:
        raise ConfigError(
            f"adapter manifest {path} has format {manifest.format}, this sandlot reads {_FORMAT}"
        )
    return manifest


def check_fits(adapter: Adapter, weights: Path, untaught: str) -> None:
    """Hold an adapter to its manifest: its own bytes, and the weights that it lies on.

    Args:
        untaught: the name of the model without it, for the message.
    Raises:
        ConfigError: either differs, or a file cannot be read.
    """
    manifest = adapter.manifest
    if manifest is None:
        return
    found = file_digest(adapter.path)
    if found.sha256 != manifest.adapter.sha256:
        raise ConfigError(
            f"adapter {adapter.path} is not the one of its manifest (sha256 "
            f"{_short(found.sha256)} is here, {_short(manifest.adapter.sha256)} was written): it "
            f"is damaged or was replaced. Restore it, or use -m {untaught}."
        )
    below = file_digest(weights)
    if below.sha256 != manifest.base.sha256:
        raise ConfigError(
            f"adapter {manifest.name!r} was trained on {manifest.base.file} (sha256 "
            f"{_short(manifest.base.sha256)}, {manifest.base.bytes} bytes), not on {weights} "
            f"(sha256 {_short(below.sha256)}, {below.bytes} bytes). Bring that file, or use "
            f"-m {untaught}."
        )


def file_digest(path: Path) -> FileDigest:
    """A file's digest; one that has not changed is read only once in a process.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        status = path.stat()
        sha256 = _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as exc:
        raise ConfigError(f"file {path} cannot be read: {exc.strerror}") from exc
    return FileDigest(path.name, sha256, status.st_size)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(digest: str) -> str:
    return f"{digest[:_SHOWN]}…"
