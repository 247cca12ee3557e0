"""A host that runs out of something costs one sandbox, typed, and not the harness."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sandlot.core.errors import (
    DeathCause,
    PolicyNotEnforceable,
    SandboxDied,
    SandboxUnavailable,
)
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, alive, opened, small_policy
from sandlot.sandbox.registry import open_sandbox
from waiting import comes_true

pytestmark = pytest.mark.sandbox


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Room for `spare` more descriptors in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    held = [os.dup(0) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


async def test_a_command_without_descriptors_left_ends_its_sandbox_typed(
    bubblewrap: MakeSandbox,
) -> None:
    async with opened(bubblewrap) as other, opened(bubblewrap) as box:
        with few_descriptors(1), pytest.raises(SandboxDied, match="Too many open files") as caught:
            await box.exec("true")
        assert caught.value.cause is DeathCause.HOST_EXHAUSTED
        await alive(other)


async def test_a_start_without_descriptors_left_is_refused_typed_and_leaves_none(
    bubblewrap: MakeSandbox,
) -> None:
    async with opened(bubblewrap) as other:
        before = len(os.listdir("/proc/self/fd"))
        for spare in (1, 2, 4, 6, 8):
            box = await bubblewrap(small_policy())  # type: ignore[misc]
            with few_descriptors(spare), pytest.raises(SandboxUnavailable, match="open files"):
                await box.start()
            await box.close()
        assert len(os.listdir("/proc/self/fd")) == before
        await alive(other)


async def test_an_asked_limit_is_refused_before_an_image_is_built(tmp_path: Path) -> None:
    limits = small_policy(disk_bytes=1 << 60, memory_bytes=None)
    policy = replace(limits, asked=frozenset({"disk_bytes"}))
    said: list[str] = []
    with pytest.raises(PolicyNotEnforceable, match="limit on disk was asked for"):
        await open_sandbox(
            "bubblewrap",
            policy=policy,
            image="base",
            cache=tmp_path / "cache",
            state=tmp_path / "state",
            environ=dict(os.environ),
            progress=said.append,
        )
    assert not said


def groups_of(box: Sandbox) -> list[Path]:
    cgroups = box._host.cgroups  # type: ignore[attr-defined]
    return [] if cgroups is None else list(cgroups.tops.values())


async def test_a_launcher_that_was_killed_costs_its_sandboxes_and_not_the_later_ones(
    bubblewrap: MakeSandbox,
) -> None:
    async with opened(bubblewrap) as lost:
        groups = groups_of(lost)
        os.kill(lost._host.launcher.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        assert await comes_true(lambda: not lost._host.launcher.running())  # type: ignore[attr-defined]
        async with opened(bubblewrap) as later:
            await alive(later)
            assert not any(top.exists() for top in groups)


async def test_a_folder_of_leases_that_was_taken_away_costs_no_later_sandbox(
    bubblewrap: MakeSandbox,
) -> None:
    async with opened(bubblewrap) as lost:
        groups = groups_of(lost)
        shutil.rmtree(lost._host.lease_dir)  # type: ignore[attr-defined]
        async with opened(bubblewrap) as later:
            await alive(later)
            assert not any(top.exists() for top in groups)
