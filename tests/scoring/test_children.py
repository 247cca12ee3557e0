"""Helper processes: one answer a question, killed when they hang, gone when closed."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from sandlot.scoring.base import ScoringTools
from sandlot.scoring.children import ChildPool, Failed

pytestmark = pytest.mark.slow

CHILD = """
import os, sys, time
from sandlot.scoring.child import limited, serve

def answer(question):
    what = question["do"]
    print("a library talks")
    if what == "die": os._exit(3)
    if what == "sleep": time.sleep(60)
    if what == "spin":
        def spin():
            while True: pass
        return limited(0.1, spin)
    if what == "eat":
        return limited(5, lambda: {"size": len(b"x" * (1 << 40))})
    return {"pid": os.getpid(), "said": what}

def prepare():
    if "UNUSABLE" in os.environ: raise ImportError("no such library")
    return {"ready": "1"}, answer

serve(prepare)
"""


@pytest.fixture
def double(tools: ScoringTools, tmp_path: Path) -> ScoringTools:
    (tmp_path / "helper_double.py").write_text(CHILD)
    return replace(tools, environ={**tools.environ, "PYTHONPATH": str(tmp_path)})


@pytest.fixture
async def pool(double: ScoringTools) -> AsyncIterator[ChildPool]:
    pool = ChildPool("helper_double", timeout_s=2.0, size=2, environ=double.environ)
    yield pool
    await pool.close()


async def pid_of(pool: ChildPool) -> int:
    reply = await pool.ask({"do": "pid"})
    assert not isinstance(reply, Failed)
    return int(reply["pid"])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_one_helper_answers_many_questions_and_what_libraries_print_is_lost(
    pool: ChildPool,
) -> None:
    assert await pid_of(pool) == await pid_of(pool)
    reply = await pool.ask({"do": "line\nbreak"})
    assert not isinstance(reply, Failed)
    assert reply["said"] == "line\nbreak"
    assert pool.greeting == {"ready": "1"}


async def test_a_hung_helper_is_killed_and_replaced(pool: ChildPool) -> None:
    before = await pid_of(pool)
    failed = await pool.ask({"do": "sleep"})
    assert isinstance(failed, Failed)
    assert failed.out_of_time
    assert failed.cpu_s < 0.5
    assert not alive(before)
    assert await pid_of(pool) != before


async def test_a_helper_that_dies_is_replaced(pool: ChildPool) -> None:
    assert await pool.ask({"do": "die"}) == Failed("the helper process died")
    assert await pid_of(pool)


async def test_processor_time_and_memory_end_an_item_and_not_the_helper(pool: ChildPool) -> None:
    before = await pid_of(pool)
    assert await pool.ask({"do": "spin"}) == {"exhausted": "more than 0.1 s of processor time"}
    assert await pool.ask({"do": "eat"}) == {"exhausted": "MemoryError"}
    assert await pid_of(pool) == before


async def test_no_more_helpers_run_than_the_pool_has_room_for(pool: ChildPool) -> None:
    pids: set[int] = set()

    async def note() -> None:
        pids.add(await pid_of(pool))

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(note)
    assert 1 <= len(pids) <= 2


async def test_a_cancelled_question_leaves_no_helper_with_a_stale_answer(pool: ChildPool) -> None:
    before = await pid_of(pool)
    with anyio.move_on_after(0.1):
        await pool.ask({"do": "sleep"})
    assert await pid_of(pool) != before
    assert not alive(before)


async def test_closing_ends_the_helpers_and_can_be_done_twice(pool: ChildPool) -> None:
    pid = await pid_of(pool)
    await pool.close()
    await pool.close()
    assert not alive(pid)


async def test_a_helper_without_its_library_says_so_at_once(double: ScoringTools) -> None:
    pool = ChildPool("helper_double", timeout_s=1.0, environ={**double.environ, "UNUSABLE": "1"})
    started = time.perf_counter()
    assert not await pool.usable()
    assert await pool.ask({"do": "x"}) == Failed("no such library")
    assert time.perf_counter() - started < 30
    await pool.close()
