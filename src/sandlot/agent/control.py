"""The control channel of a live rollout: pause, resume, say something, stop.

The rollout looks at it between steps, never in the middle of a model call or a command.
Every method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading


class Control:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paused = False
        self._stop: str | None = None
        self._messages: list[str] = []
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def stop_reason(self) -> str | None:
        """Why somebody asked for the end, or None."""
        return self._stop

    def pause(self) -> None:
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._wake()

    def message(self, text: str) -> None:
        """Say something to the model before its next turn."""
        with self._lock:
            self._messages.append(text)

    def stop(self, reason: str = "stopped by the user") -> None:
        """End the rollout at the next step (paused or not), its files collected."""
        with self._lock:
            self._stop = reason
            self._wake()

    def take_messages(self) -> list[str]:
        """The messages since the last call, oldest first."""
        with self._lock:
            taken, self._messages = self._messages, []
        return taken

    async def wait_while_paused(self) -> None:
        while True:
            with self._lock:
                if not self._paused or self._stop is not None:
                    return
                event = asyncio.Event()
                self._waiter = (asyncio.get_running_loop(), event)
            await event.wait()

    def _wake(self) -> None:
        if self._waiter is not None:
            loop, event = self._waiter
            self._waiter = None
            loop.call_soon_threadsafe(event.set)
