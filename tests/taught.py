"""A taught model without its engine: two files that begin as GGUF files do, and a manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sandlot.agent.prompts import digest, load_profile
from sandlot.models.adapters import ADAPTER_FILE, MANIFEST_FILE, Manifest, Pin, file_digest


def taught_files(folder: Path, weights: Path | None = None, **fields: Any) -> tuple[Path, Path]:
    """Weights (made where none are given) and an adapter with its manifest.

    `fields` take the place of the manifest's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if weights is None:
        weights = folder / "w.gguf"
        weights.write_bytes(b"GGUF weights")
    adapter = folder / ADAPTER_FILE
    adapter.write_bytes(b"GGUF adapter")
    pinned = Pin("taught", digest(load_profile("taught")))
    manifest = Manifest("taught", file_digest(adapter), file_digest(weights), pinned)
    (folder / MANIFEST_FILE).write_text(replace(manifest, **fields).to_text())
    return weights, adapter


def taught_spec(folder: Path, **fields: Any) -> str:
    """The same, as it is written after `-m`."""
    weights, adapter = taught_files(folder, **fields)
    return f"local:{weights}+{adapter}"
