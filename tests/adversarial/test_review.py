"""Races and interruptions that a review tried: what they must not break stays checked here."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from sandlot.core.errors import SandboxDied
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox, opened, small_policy
from sandlot.sandbox.policy import MIB, Policy

from .attack import first_process_above, marked_processes

pytestmark = pytest.mark.sandbox


def tiny_policy() -> Policy:
    return small_policy(
        memory_bytes=128 * MIB, processes=64, disk_bytes=32 * MIB, command_timeout_s=3.0
    )


async def echoes(box: Sandbox, word: str) -> None:
    result = await asyncio.wait_for(box.exec(f"echo {word}"), 10)
    assert (result.stdout, result.exit_code) == (f"{word}\n", 0)


async def test_a_storm_of_renames_does_not_keep_a_climbing_link_from_being_read(
    make_box: MakeSandbox,
) -> None:
    storm = (
        "for k in 1 2 3 4; do (: > /dev/shm/a$k; while :; do mv /dev/shm/a$k /dev/shm/b$k; "
        "mv /dev/shm/b$k /dev/shm/a$k; done) >/dev/null 2>&1 & done"
    )
    link = 'mkdir d; echo kept > f; ln -s "$(for i in {1..300}; do printf d/../; done)f" climbing'
    async with opened(make_box, tiny_policy()) as box:
        await box.exec(link)
        await box.exec(storm)
        for _ in range(5):
            data = await asyncio.wait_for(box.read_file("climbing", limit_bytes=100), 10)
            assert data == b"kept\n"


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.005, 0.01, 0.02])
async def test_a_cancelled_command_leaves_the_next_one_its_own_output(
    delay_s: float, make_box: MakeSandbox
) -> None:
    async with opened(make_box, tiny_policy()) as box:
        for number in range(5):
            call = asyncio.ensure_future(box.exec("trap '' INT; echo lost; yes | head -c 3000"))
            await asyncio.sleep(delay_s)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await echoes(box, f"own{number}")


async def test_descriptors_of_a_closed_sandbox_are_given_back(make_box: MakeSandbox) -> None:
    async with opened(make_box, tiny_policy()) as keeper:
        await echoes(keeper, "up")
        before = len(os.listdir("/proc/self/fd"))
        async with opened(make_box, tiny_policy()) as box:
            for _ in range(10):
                await box.exec("sleep 100 &")
        assert len(os.listdir("/proc/self/fd")) == before


async def test_the_first_process_killed_from_outside_is_a_typed_death(
    make_box: MakeSandbox,
) -> None:
    async with opened(make_box, tiny_policy()) as box:
        marker = f"61{os.getpid()}"
        call = asyncio.ensure_future(box.exec(f"sleep {marker}", 30))
        while not (running := marked_processes(f"sleep\0{marker}")):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        os.kill(first_process_above(running[0]), signal.SIGKILL)
        with pytest.raises(SandboxDied):
            await asyncio.wait_for(call, 10)
        with pytest.raises(SandboxDied):
            await asyncio.wait_for(box.stat("/"), 10)
