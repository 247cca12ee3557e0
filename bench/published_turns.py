"""What a turn costs the published package: run by the Python of a venv that holds it.

`published_turns.py URL TURNS` plays one rollout against the fake server at URL with a runtime that
answers at once, so that no container is counted, and prints milliseconds of CPU a turn.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any


class Runtime:
    """In place of the package's containers: every command prints `hi`."""

    def demux_run(self, command: str, *more: Any, **options: Any) -> tuple[str, str, int]:
        return "hi\n", "", 0


def play(url: str, turns: int) -> float:
    from llm_in_sandbox.agent import Agent, AgentArgs

    words = {"system_prompt": "You have a computer.", "instance_prompt": "{problem_statement}"}
    agent = Agent(AgentArgs(**words, llm_name="openai/bench", llm_base_url=url, quiet=True))
    began = time.process_time()
    trajectory = agent.run(Runtime(), "Run echo hi.", max_steps=turns)
    spent = time.process_time() - began
    if len(trajectory.steps) != turns:
        raise SystemExit(f"{len(trajectory.steps)} of {turns} turns were played")
    return spent / turns * 1e3


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    play(sys.argv[1], 3)  # imports what is imported late
    print(f"\n{play(sys.argv[1], int(sys.argv[2]))}")
