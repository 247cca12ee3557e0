"""What a turn costs the harness: CPU and wall time of a whole rollout with a scripted server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from computer import Place
from measure import Row, Sample, ratio

from sandlot.agent.budget import Budget
from sandlot.agent.rollout import run_rollout
from sandlot.core.events import Event, ModelCalled, RolloutStopped
from sandlot.core.types import Task
from sandlot.models.fake_server import FakeOpenAIServer, reply, tool_call
from sandlot.models.openai_chat import OpenAIChatModel

_TASK = Task("bench", "Run echo hi.")
_CALL = {"name": "execute_bash", "arguments": {"command": "echo hi"}}
_SHORT, _LONG = 20, 100


@dataclass(slots=True)
class _Clock:
    """CPU of this process (its children excluded, nanoseconds) and wall time at each turn."""

    marks: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, ModelCalled | RolloutStopped):
            self.marks.append((time.process_time() * 1e3, time.perf_counter() * 1e3))

    def per_turn(self, which: int) -> list[float]:
        return [b[which] - a[which] for a, b in zip(self.marks, self.marks[1:], strict=False)]


@asynccontextmanager
async def _server(work: Path) -> AsyncIterator[str]:
    """The fake server in a process of its own; yields its base URL."""
    script = work / "script.jsonl"
    script.write_text(json.dumps({"tool_calls": [_CALL]}) + "\n")
    words = [sys.executable, "-m", "sandlot.models.fake_server", "--script", str(script), "--loop"]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}/v1"
    finally:
        process.terminate()
        await process.wait()


async def _rollout(place: Place, url: str, turns: int) -> _Clock:
    clock = _Clock()
    model = OpenAIChatModel("bench", base_url=url, api_key="bench")
    try:
        trajectory = await run_rollout(
            _TASK,
            model=model,
            sandbox=await place.open(),
            budget=Budget(max_turns=turns),
            sink=clock,
        )
    finally:
        await model.close()
    if len(trajectory.turns) != turns:
        raise RuntimeError(f"{len(trajectory.turns)} turns: {trajectory.stop_detail}")
    return clock


async def _bodies(place: Place, turns: int) -> list[Any]:
    """The request of each turn, as a server saw it."""
    answers = [reply(tool_calls=[tool_call("execute_bash", {"command": "echo hi"}, f"call_{n}")])
               for n in range(turns)]  # fmt: skip
    async with FakeOpenAIServer(answers) as server:
        await _rollout(place, server.base_url, turns)
        return [request.json for request in server.requests]


def _encoding(bodies: list[Any]) -> list[float]:
    """Milliseconds of `json.dumps` of each body, the least of five."""
    return [min(_encode(body) for _ in range(5)) for body in bodies]


def _encode(body: Any) -> float:
    began = time.perf_counter()
    json.dumps(body, ensure_ascii=False).encode()
    return (time.perf_counter() - began) * 1e3


async def turns(place: Place, work: Path, n: int) -> list[Row]:
    async with _server(work) as url, place.started():
        await _rollout(place, url, 3)  # imports the SDK
        short = [await _rollout(place, url, _SHORT) for _ in range(n)]
        long = [await _rollout(place, url, _LONG) for _ in range(n)]
        dumps = _encoding(await _bodies(place, _LONG))
    growth = [_growth(clock.per_turn(0)) for clock in long]
    cost = _growth(dumps)
    return [
        _row(_SHORT, short, dumps[:_SHORT], {}),
        _row(
            _LONG,
            long,
            dumps,
            {
                "growth_last_20_less_first_20_ms": Sample.of(growth, "ms"),
                "growth_of_json_dumps_ms": round(cost, 4),
            },
        ),
    ]


def _growth(per_turn: list[float]) -> float:
    return mean(per_turn[-20:]) - mean(per_turn[1:21])


def _row(turns: int, clocks: list[_Clock], dumps: list[float], detail: dict[str, Any]) -> Row:
    cpu = Sample.of([mean(clock.per_turn(0)) for clock in clocks], "ms")
    wall = Sample.of([mean(clock.per_turn(1)) for clock in clocks], "ms")
    floor = Sample.of(dumps, "ms")
    name = f"harness CPU a turn, {turns} turns"
    met = cpu.median <= 8
    detail = {"wall_a_turn": wall, **detail}
    floor_is = "json.dumps of the request bodies"
    return Row(name, cpu, floor, floor_is, "≤ 8 ms", met, ratio(cpu, floor), detail)
