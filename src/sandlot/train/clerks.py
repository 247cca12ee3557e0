"""Clerks: scripted policies whose rollouts teach a warm start how work with the shell looks.

A clerk is a `Model` that plays shell commands and submits, through the one rollout loop. Three
styles: `efficient` (one command), `wandering` (idle looks before and after, still right),
`guessing` (a plausible wrong answer that nothing was computed for).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Message, Role, Task, ToolCall
from sandlot.models.base import Completion, OnDelta, Sampling, ToolSpec
from sandlot.tasks.generators import errands
from sandlot.tasks.generators.errands import ANSWER
from sandlot.tasks.generators.errands_words import TRAIN_WORDS
from sandlot.train.lessons import Lessons, Played, Text

MIX: Mapping[str, float] = {"efficient": 0.30, "wandering": 0.55, "guessing": 0.15}
"""Shares of the styles in a warm start."""
COPIES = 0.4
"""Share of the drills that only exercise copying; the others are errands of each trained family."""
DRILL_MIX: Mapping[str, float] = {"efficient": 0.45, "wandering": 0.55}
"""Shares of the styles in the drills of families: nobody guesses, and more than half wander."""


@dataclass(frozen=True, slots=True)
class Clerk:
    """Plays its commands in turn, then submits; the history says how many were played."""

    commands: tuple[str, ...]
    style: str = "efficient"

    sees_images = False

    @property
    def name(self) -> str:
        return f"clerk:{self.style}"

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        turn = sum(message.role is Role.ASSISTANT for message in messages)
        if turn < len(self.commands):
            arguments = json.dumps({"command": self.commands[turn]})
            call = ToolCall(f"call_{turn}", "execute_bash", arguments)
        else:
            call = ToolCall(f"call_{turn}", "submit", "{}")
        return Completion(Message.assistant("", call), finish_reason="tool_calls")

    async def close(self) -> None:
        pass


def plan(task: Task, rng: Random, style: str) -> tuple[str, ...]:
    """The commands of a clerk, without the submit that ends them.

    Raises:
        ConfigError: a style that does not exist.
        KeyError: a task that is no errand.
    """
    if style not in _PLANS:
        raise unknown_name("style of clerks", style, tuple(_PLANS))
    return _PLANS[style](task, rng)


def clerk_mix(
    tasks: Iterable[Task], seed: int, mix: Mapping[str, float] = MIX
) -> list[tuple[Task, str, tuple[str, ...]]]:
    """Each task with a style, in the shares of the mix, and the commands of that style."""
    tasks = list(tasks)
    rng = Random(f"sandlot clerks {seed}")
    styles = _shares(len(tasks), mix)
    rng.shuffle(styles)
    return [
        (task, style, plan(task, rng, style)) for task, style in zip(tasks, styles, strict=True)
    ]


def _shares(count: int, mix: Mapping[str, float]) -> list[str]:
    """`count` styles; what rounding leaves over goes to the styles that it took most from."""
    whole = {style: int(share * count) for style, share in mix.items()}
    by_loss = sorted(mix, key=lambda style: whole[style] - mix[style] * count)
    for style in by_loss[: count - sum(whole.values())]:
        whole[style] += 1
    return [style for style, times in whole.items() for _ in range(times)]


def _efficient(task: Task, rng: Random) -> tuple[str, ...]:
    return (str(task.metadata["efficient"]),)


_IDLE = ("ls", "pwd", "ls input", "ls output", "ls -a")


def _wandering(task: Task, rng: Random) -> tuple[str, ...]:
    """Three to six looks around the efficient command, most of them before it."""
    right = str(task.metadata["efficient"])
    looks = rng.choices((3, 4, 5, 6), (0.2, 0.38, 0.34, 0.08))[0]
    after = rng.choices((0, 1), (0.4, 0.6))[0]
    before = [_look(task, rng) for _ in range(looks - after)]
    return (*before, right, *([f"cat {ANSWER}"] * after))


def _look(task: Task, rng: Random) -> str:
    if task.input_files and rng.random() < 0.5:
        name = rng.choice(sorted(task.input_files))
        return rng.choice(("cat {}", "cat {}", "head -3 {}", "wc {}")).format(f"input/{name}")
    return rng.choice(_IDLE)


def _guessing(task: Task, rng: Random) -> tuple[str, ...]:
    looks = [_look(task, rng) for _ in range(rng.choices((0, 1, 2), (0.25, 0.5, 0.25))[0])]
    return (*looks, f"echo {guess(task, rng)} > {ANSWER}")


def guess(task: Task, rng: Random) -> str:
    """A wrong answer of the truth's kind, in one line: the words of the prompt in a wrong order
    where the truth consists of them, else as many words or figures as it has (at most five).
    """
    parts = str(task.target).split()
    asked = len(parts) > 1 and all(part in task.prompt for part in parts)
    while True:
        wrong = rng.sample(parts, len(parts)) if asked else [_like(p, rng) for p in parts[:5]]
        if wrong != parts:
            return " ".join(wrong)


def _like(part: str, rng: Random) -> str:
    if part.isdigit():
        return str(rng.randrange(10 ** (len(part) - 1), 10 ** len(part)))
    if part.replace("-", "").isdigit():
        return f"20{rng.randrange(10, 30)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    return ",".join(rng.choice(TRAIN_WORDS) for _ in part.split(","))


_PLANS: Mapping[str, Callable[[Task, Random], tuple[str, ...]]] = {
    "efficient": _efficient,
    "wandering": _wandering,
    "guessing": _guessing,
}


def _drills(count: int, seed: int) -> list[Played]:
    """Without those of families a family has three efficient rollouts in a warm start, and some get
    lost later: what never succeeds is never reinforced.
    """
    copies = round(COPIES * count)
    return [
        *_drilled({"efficient": 1.0}, copies, seed, families=errands.DRILLS),
        *_drilled(
            DRILL_MIX,
            count - copies,
            seed,
            families=(*errands.TRIAL, *errands.FURTHER),
            wording="varied",
        ),
    ]


def _drilled(mix: Mapping[str, float], count: int, seed: int, **options: Any) -> list[Played]:
    if not count:
        return []
    tasks = errands.generate({**options, "items": count, "seed": seed + 1})
    return clerk_mix(tasks, seed, mix)


def _texts(count: int, seed: int) -> list[Text]:
    raise ConfigError("warmstart.texts: the generator 'errands' has no plain texts to learn from")


LESSONS = Lessons(clerks=clerk_mix, drills=_drills, texts=_texts)
