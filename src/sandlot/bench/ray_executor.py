"""Episodes spread over a Ray cluster. Ray places them; here they are carried there and back.

A node is handed one episode and sends back its events as they happen, then its files. The run
directory is written here alone, so that it is the same as that of a local run, no folder has to be
shared, and a node that is lost costs at most the step in flight.
"""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandlot.bench.episodes import (
    Job,
    LocalExecutor,
    ModelFor,
    OpenBox,
    models_of_settings,
    opener,
)
from sandlot.core.errors import (
    ConfigError,
    ImageError,
    InputError,
    MissingExtra,
    SandboxError,
    SandboxUnavailable,
    SandlotError,
)
from sandlot.core.events import LIVE_ONLY, Event, EventSink, RolloutStopped
from sandlot.core.redact import Redactor
from sandlot.core.store import Recorder
from sandlot.core.types import StopReason, Task, Trajectory

CPUS_AN_EPISODE = 0.25
"""An episode waits for its model most of the time; Ray starts so many as fit."""

_CHUNK = 4 * 1024 * 1024
_LOOK_S = 0.2
_WIND_UP_S = 60.0
_KINDS: tuple[type[SandlotError], ...] = (
    ImageError,
    SandboxUnavailable,
    InputError,
    ConfigError,
    SandboxError,
)

Workshop = Callable[[], tuple[ModelFor, OpenBox]]
"""Called on a node: builds models and opens sandboxes there."""


@dataclass(frozen=True, slots=True)
class _FilePart:
    path: str
    data: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class _Failed:
    """An error by the nearest kind that the runner tells apart, since not all can be pickled."""

    kind: type[Exception]
    message: str


_Sent = Event | _FilePart | _Failed | Trajectory


def node_workshop() -> tuple[ModelFor, OpenBox]:
    """Models as the settings say; sandboxes by the node's own environment."""
    return models_of_settings(), opener(os.environ, lambda text: None)


class RayExecutor:
    """Plays each episode as one Ray task. `sandlot` must be installed on every node.

    `address` None takes the cluster that Ray finds by itself (RAY_ADDRESS, or one started on this
    machine), else starts one here. A job travels with the settings' keys, inside the cluster.

    Raises:
        MissingExtra: Ray is not installed.
    """

    def __init__(
        self,
        redactor: Redactor,
        clock: Callable[[], float] = time.time,
        *,
        address: str | None = None,
        workshop: Workshop = node_workshop,
    ) -> None:
        self._ray = _load_ray()
        self._redactor = redactor
        self._clock = clock
        self._workshop = workshop
        self._owns_connection = not self._ray.is_initialized()
        if self._owns_connection:
            self._ray.init(address=address, configure_logging=False, log_to_driver=False)
        self._play = self._ray.remote(
            num_cpus=CPUS_AN_EPISODE,
            max_retries=0,  # the runner tries again, and counts it
            num_returns="streaming",
            scheduling_strategy="SPREAD",
        )(play_on_node)

    async def play(self, job: Job, sink: EventSink) -> Trajectory:
        recorder = Recorder(job.record, redactor=self._redactor, clock=self._clock)
        try:
            return await self._follow(job, recorder, sink)
        except asyncio.CancelledError:
            # Before the node's first event there is nothing to stop: the episode begins anew.
            if not recorder.stopped and job.record.stat().st_size:
                recorder(RolloutStopped(StopReason.CANCELLED))
            raise
        finally:
            await asyncio.to_thread(recorder.close)

    async def close(self) -> None:
        if self._owns_connection:
            await asyncio.to_thread(self._ray.shutdown)

    async def _follow(self, job: Job, recorder: Recorder, sink: EventSink) -> Trajectory:
        await asyncio.to_thread(shutil.rmtree, job.files, ignore_errors=True)
        trajectory: Trajectory | None = None
        portable = await asyncio.to_thread(_portable, job)
        async with aclosing(self._sent(portable)) as arriving:
            async for sent in arriving:
                if isinstance(sent, _Failed):
                    raise sent.kind(sent.message)
                if isinstance(sent, _FilePart):
                    await asyncio.to_thread(_append, job.files, sent)
                elif isinstance(sent, Trajectory):
                    trajectory = sent
                else:
                    recorder(sent)
                    sink(sent)
        if trajectory is None:
            raise SandboxError("the node of this episode sent no end of it")
        return trajectory

    async def _sent(self, job: Job) -> AsyncGenerator[_Sent, None]:
        from ray.exceptions import RayError

        stream: Any = self._play.remote(job, self._redactor, self._workshop)
        try:
            async for reference in stream:
                yield await reference
        except RayError as exc:
            text = str(exc).strip().splitlines() or [type(exc).__name__]
            raise SandboxError(f"Ray lost the episode: {text[-1]}") from exc
        except (asyncio.CancelledError, GeneratorExit):
            self._ray.cancel(stream)
            with suppress(RayError, TimeoutError):  # see `play_on_node`
                await asyncio.wait_for(stream.completed(), _WIND_UP_S)
            raise


def _load_ray() -> Any:
    # Ray reports its use to its makers unless this is set before it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as exc:
        raise MissingExtra("--executor ray", "ray") from exc
    return ray


def _portable(job: Job) -> Job:
    """The job without a path of this machine that the node would have to read."""
    task = job.item.task
    if task.input_dir is None:
        return job
    return replace(job, item=replace(job.item, task=_with_files_inside(task)))


def _with_files_inside(task: Task) -> Task:
    assert task.input_dir is not None
    folder = Path(task.input_dir)
    try:
        found = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
    except OSError as exc:
        raise InputError(f"task {task.id}: {exc.filename}: {exc.strerror}") from exc
    return replace(task, input_files={**found, **task.input_files}, input_dir=None)


def _append(folder: Path, part: _FilePart) -> None:
    target = folder / part.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as file:
        file.write(part.data)
    target.chmod(part.mode)


# On the node.


def play_on_node(job: Job, redactor: Redactor, workshop: Workshop) -> Iterator[_Sent]:
    """Play the episode in a folder of its own, and give its events, files and trajectory.

    Ray cancels by KeyboardInterrupt: the rollout is cancelled, and its sandbox closed, before this
    ends.
    """
    with tempfile.TemporaryDirectory(prefix="sandlot-ray-") as name:
        folder = Path(name)
        local = replace(
            job,
            condition=_at_home(job),
            record=folder / "trajectory.jsonl",
            files=folder / "files",
            scratch=folder,
        )
        player = _Player(local, redactor, workshop)
        player.start()
        try:
            yield from player.sent()
        finally:
            player.stop()
        yield from _file_parts(local.files)
        if player.result is not None:
            yield player.result


def _at_home(job: Job) -> Any:
    """The condition with this node's own folders for images and leases."""
    from sandlot.settings import resolve

    here = resolve()
    settings = replace(job.condition.settings, cache_dir=here.cache_dir, state_dir=here.state_dir)
    return replace(job.condition, settings=settings)


def _file_parts(folder: Path) -> Iterator[_FilePart]:
    """The collected files, in parts that fit into memory; an empty file is one empty part."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        name, mode = str(path.relative_to(folder)), path.stat().st_mode & 0o777
        with path.open("rb") as file:
            yield _FilePart(name, file.read(_CHUNK), mode)
            while data := file.read(_CHUNK):
                yield _FilePart(name, data, mode)


class _Player(threading.Thread):
    """Plays in a thread with a loop of its own, while the task's own thread sends what it hears."""

    def __init__(self, job: Job, redactor: Redactor, workshop: Workshop) -> None:
        super().__init__(name="sandlot-episode", daemon=True)
        self.result: _Sent | None = None
        self._job = job
        self._redactor = redactor
        self._workshop = workshop
        self._heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._play())

    def run(self) -> None:
        try:
            self.result = self._loop.run_until_complete(self._task)
        except SandlotError as exc:
            kind = next((kind for kind in _KINDS if isinstance(exc, kind)), SandboxError)
            self.result = _Failed(kind, str(exc))
        except asyncio.CancelledError:
            pass
        except Exception:  # noqa: BLE001 - the end of a thread: raised again where the run is
            self.result = _Failed(RuntimeError, traceback.format_exc()[-4000:])
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def sent(self) -> Iterator[Event]:
        """What is heard, as it comes, until the episode has ended."""
        # Short waits: an interrupt reaches Python code between them.
        while self.is_alive() or not self._heard.empty():
            with suppress(queue.Empty):
                yield self._heard.get(timeout=_LOOK_S)

    def stop(self) -> None:
        """Cancel what still runs and wait until it has wound up."""
        if self.is_alive():
            with suppress(RuntimeError):  # the loop has just closed
                self._loop.call_soon_threadsafe(self._task.cancel)
        self.join()

    async def _play(self) -> Trajectory:
        models, open_box = self._workshop()
        executor = LocalExecutor(models, open_box, self._redactor, time.time)
        try:
            return await executor.play(self._job, self._hear)
        finally:
            await executor.close()

    def _hear(self, event: Event) -> None:
        if not isinstance(event, LIVE_ONLY):
            self._heard.put(event)
