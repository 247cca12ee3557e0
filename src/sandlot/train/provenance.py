"""What a training run was made with, for its manifest."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import sandlot
from sandlot.agent.prompts import Profile, digest
from sandlot.core.errors import ImageError
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.images import ImageStore
from sandlot.train.config import TrainConfig

PACKAGES = ("sandlot", "torch", "transformers", "trl", "peft", "accelerate", "gguf", "numpy")


def made_with(
    config: TrainConfig,
    profiles: Mapping[str, Profile],
    *,
    recipe: Path | None,
    box: Sandbox | None,
    cache: Path,
    now: datetime,
) -> dict[str, Any]:
    """Versions, machine, commit, image, prompts and recipe; `box` is one of the run's sandboxes."""
    return {
        "started": now.isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions()},
        "machine": machine(),
        "commit": commit(),
        "sandbox": None if box is None else _sandbox(config, box, cache),
        "profiles": {
            mode: {"name": profile.name, "digest": digest(profile)}
            for mode, profile in profiles.items()
        },
        "recipe": None if recipe is None else _recipe(recipe),
    }


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None)


def commit() -> dict[str, Any] | None:
    """The commit of a source tree that sandlot runs from; None where it was installed."""
    root = Path(sandlot.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    head, changed = (
        _git(root, "rev-parse", "HEAD"),
        _git(root, "status", "--porcelain", "--", "src"),
    )
    return None if head is None else {"id": head, "changed": bool(changed)}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _sandbox(config: TrainConfig, box: Sandbox, cache: Path) -> dict[str, Any]:
    image = config.sandbox.image
    found = getattr(box, "image_digest", None)  # containers say it themselves
    if found is None and box.backend == "bubblewrap" and image != "host":
        try:
            found = ImageStore(cache).resolve(image).digest
        except ImageError:
            found = None
    return {"backend": box.backend, "image": image, "digest": found}


def _recipe(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
