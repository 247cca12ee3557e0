"""Waiting for what another process, task or the kernel is about to do and tells nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def comes_true(
    condition: Callable[[], bool], within_s: float = 10.0, every_s: float = 0.01
) -> bool:
    """Whether it holds in time; asked every `every_s` while the event loop runs on."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every_s)
    return True


def becomes_true(condition: Callable[[], bool], within_s: float = 15.0) -> bool:
    """The same where no event loop runs."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
