"""The inside of a helper process: limits, a clean channel, and the loop of question and answer."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, TextIO

Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_PR_SET_PDEATHSIG = 1
MEMORY_BYTES = 3 << 30
"""Address space of a helper: enough for the libraries, not for the factorial of a billion."""


class OutOfCpu(BaseException):
    """The item used up its processor time. No Exception, so that no library swallows it."""


def serve(
    prepare: Callable[[], tuple[Mapping[str, Any], Answer]],
    *,
    memory_limit: int = resource.RLIMIT_AS,
) -> None:
    """Say what `prepare` found, then answer line by line until the channel closes.

    What a library prints goes nowhere: the channel is a copy of standard output, made before.
    `memory_limit` is the limit that `MEMORY_BYTES` is set on: a browser reserves address space
    far beyond what it uses, so its helper counts written memory (`RLIMIT_DATA`) instead.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _end_with_the_parent()
    resource.setrlimit(memory_limit, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.set_int_max_str_digits(100_000)
    try:
        greeting, answer = prepare()
    except ImportError as exc:
        _say(channel, {"unusable": str(exc)})
        return
    _say(channel, greeting)
    for line in sys.stdin:
        _say(channel, answer(json.loads(line)))


def _end_with_the_parent() -> None:
    """On Linux the kernel ends the helper when its owner ends, even in the middle of an item."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limited(seconds: float, work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The work's answer, or `{"exhausted": reason}` where it needs too much time or memory."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfCpu

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        return work()
    except OutOfCpu:
        return {"exhausted": f"more than {seconds:g} s of processor time"}
    except (MemoryError, RecursionError, OverflowError) as exc:
        return {"exhausted": type(exc).__name__}
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _say(channel: TextIO, message: Mapping[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()
