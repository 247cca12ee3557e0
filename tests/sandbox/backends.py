"""Sandboxes for tests that need a real one, on whatever this machine can run."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sandlot.core.errors import ImageError, SandboxUnavailable
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, opened
from sandlot.sandbox.images import ImageStore
from sandlot.sandbox.policy import Policy
from sandlot.sandbox.registry import open_sandbox

REQUIRED = os.environ.get("SANDLOT_REQUIRE_SANDBOX") == "1"


def image_cache() -> Path:
    """The image cache of the user who runs the tests."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SANDLOT_CACHE") or Path(base, "sandlot"))


def image_name(cache: Path) -> str:
    """`base` where it is built already, else the machine's own files."""
    try:
        ImageStore(cache).resolve("base")
    except ImageError:
        return "host"
    return "base"


def maker(state: Path) -> MakeSandbox:
    """A factory of bubblewrap sandboxes that keep their leases in `state`."""
    cache = image_cache()
    image = os.environ.get("SANDLOT_TEST_IMAGE") or image_name(cache)

    async def make(policy: Policy) -> Sandbox:
        return await open_sandbox(
            "bubblewrap",
            policy=policy,
            image=image,
            cache=cache,
            state=state,
            environ=os.environ,
            progress=lambda _: None,
        )

    return make


def proved_maker(state: Path) -> MakeSandbox:
    """A factory, proved once by a start; a machine that cannot run it skips and says why."""
    make = maker(state)

    async def prove() -> None:
        async with opened(make):
            pass

    try:
        asyncio.run(prove())
    except SandboxUnavailable as exc:
        if REQUIRED:
            raise
        pytest.skip(f"bubblewrap cannot run here: {exc}")
    return make
