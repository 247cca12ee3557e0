"""Exit codes, and how each kind of bad news leaves the program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from sandlot.core.errors import ImageError, ModelError, SandboxError, SandlotError

if TYPE_CHECKING:
    from sandlot.core.types import StopReason

T = TypeVar("T")

OK, NO_ANSWER, USAGE, MODEL, SANDBOX, BUG = 0, 1, 2, 3, 4, 70
INTERRUPTED, TERMINATED = 130, 143
EXIT_CODES = """\
Exit codes: 0 the model answered or submitted; 1 it stopped without (turns, tokens, time, context);
2 a flag, setting, file or run directory cannot be used; 3 the model failed; 4 the sandbox failed;
70 a bug of sandlot's; 130 Ctrl-C; 143 SIGTERM. Whatever the code, the run directory is kept."""
_OPEN_FILES = 65536
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the program to end, and everything that ran was wound up."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def code_of_stop(reason: StopReason | None) -> int:
    from sandlot.core.types import StopReason

    if reason in (StopReason.SUBMITTED, StopReason.ANSWERED):
        return OK
    if reason is StopReason.MODEL_ERROR:
        return MODEL
    if reason is StopReason.SANDBOX_DIED:
        return SANDBOX
    return INTERRUPTED if reason is StopReason.CANCELLED else NO_ANSWER


def code_of_error(error: SandlotError) -> int:
    if isinstance(error, ModelError):
        return MODEL
    return SANDBOX if isinstance(error, SandboxError | ImageError) else USAGE


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr and without control characters."""
    from sandlot.cli.text import clean

    print(clean(text), file=sys.stderr, flush=True)


def drive(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run to the end, or cancel once at the first signal and wait for the clean-up.

    Later signals are ignored: the clean-up has deadlines of its own, and cutting it short is what
    leaves sandboxes behind.
    Raises:
        Interrupted: a signal came, whatever the work then gave.
    """
    import asyncio

    caught: list[int] = []

    async def supervised() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop(signum: int) -> None:
            if not caught:
                caught.append(signum)
                task.cancel()

        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, stop, each)
        try:
            result = await work()
        except asyncio.CancelledError:
            if caught:
                raise Interrupted(caught[0]) from None
            raise
        if caught:
            raise Interrupted(caught[0])
        return result

    _allow_many_files()
    try:
        return asyncio.run(supervised())
    except (Interrupted, KeyboardInterrupt):
        # The loop's handlers are gone. Ctrl-C held down would break off what is said at the end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if caught:
            raise Interrupted(caught[0]) from None
        raise


def _allow_many_files() -> None:
    """A sandbox takes about ten descriptors: the usual soft limit of 1024 ends at a hundred."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
