"""Self-consistency: replies to the same prompt until a token budget is used; the majority answers.

Source: Wang et al. 2022, arXiv:2203.11171. It is the arm that asks whether the sandbox bought more
than its tokens alone would have.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandlot.agent.budget import billed_tokens
from sandlot.agent.calls import sendable
from sandlot.agent.prompts import Profile, first_messages
from sandlot.core.errors import ContextOverflow, ModelError
from sandlot.core.events import (
    LIVE_ONLY,
    Event,
    EventSink,
    FilesCollected,
    MessageAdded,
    ReplyReceived,
    RolloutContinued,
    RolloutStarted,
    RolloutStopped,
    fold,
)
from sandlot.core.types import Message, StopReason, Task, Trajectory, Turn
from sandlot.models.base import Model, Sampling
from sandlot.scoring.extract import extract, visible_text

MOST_REPLIES = 256
_SEED_STEP = 1_000_003
"""Between the seeds of two replies: far from those that the replies of one rollout use."""


@dataclass(frozen=True, slots=True)
class Ballot:
    """What the replies agreed on: the first reply with the most frequent answer, ties to the first.

    `text` is that whole reply; None where there is no reply. `votes` is how many gave its answer.
    """

    text: str | None
    votes: int
    replies: int


def count_votes(replies: Sequence[str], *, whole_text: bool) -> Ballot:
    """The majority over strictly extracted answers, or over whole texts where those are the answer.

    Letter case and white space do not tell answers apart. A reply without an answer has no vote.
    """
    read = visible_text if whole_text else extract
    answers = [" ".join((read(reply) or "").split()).casefold() for reply in replies]
    counted = Counter(answer for answer in answers if answer)  # keeps the order of the first seen
    if not counted:
        return Ballot(replies[-1] if replies else None, 0, len(replies))
    winner, votes = max(counted.items(), key=lambda item: item[1])
    return Ballot(replies[answers.index(winner)], votes, len(replies))


async def vote(
    task: Task,
    *,
    model: Model,
    profile: Profile,
    sampling: Sampling,
    tokens: int,
    whole_text: bool = False,
    sink: EventSink,
    history: Trajectory | None = None,
    rollout_id: str = "votes",
    metadata: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Trajectory:
    """Reply until `tokens` (prompt and completion, all replies) are used, at least once.

    Each reply is recorded as a turn, though none sees another. With a seed, each reply has its own.
    A `history` goes on after its recorded replies.
    """
    events: list[Event] = []

    def emit(event: Event) -> None:
        if not isinstance(event, LIVE_ONLY):
            events.append(event)
        sink(event)

    began = clock()
    prompt = first_messages(profile, task)
    if history is None:
        emit(RolloutStarted(rollout_id, task, "llm", model.name, {**(metadata or {})}))
        for message in prompt:
            emit(MessageAdded(message, "prompt"))
        turns: list[Turn] = []
    else:
        emit(RolloutContinued("resume", f"{len(history.turns)} replies were there"))
        turns = list(history.turns)
    stop = await _reply(turns, prompt, model, sampling, tokens, emit, clock)
    ballot = count_votes([turn.reply.text for turn in turns], whole_text=whole_text)
    emit(FilesCollected((), answer=ballot.text))
    said = f"{ballot.votes} of {ballot.replies} replies gave this answer"
    reason, detail = stop or (StopReason.ANSWERED, said)
    emit(RolloutStopped(reason, detail, clock() - began))
    return fold(events, history)


async def _reply(
    turns: list[Turn],
    prompt: Sequence[Message],
    model: Model,
    sampling: Sampling,
    tokens: int,
    emit: EventSink,
    clock: Callable[[], float],
) -> tuple[StopReason, str] | None:
    """Add replies until the tokens are used; gives what ended it before."""
    used = sum(billed_tokens(turn.usage) or 0 for turn in turns)
    while (used < tokens or not turns) and len(turns) < MOST_REPLIES:
        index, began = len(turns), clock()
        try:
            completion = await model.complete(prompt, (), _seeded(sampling, index))
        except ContextOverflow as exc:
            return StopReason.CONTEXT_FULL, str(exc)
        except ModelError as exc:
            return StopReason.MODEL_ERROR, str(exc)
        model_s = max(clock() - began - completion.waiting_s, 0.0)
        turn = Turn(
            index=index,
            reply=sendable(completion.message, index),
            usage=completion.usage,
            finish_reason=completion.finish_reason,
            model_s=model_s,
            waiting_s=completion.waiting_s,
        )
        turns.append(turn)
        emit(ReplyReceived(turn))
        billed = billed_tokens(turn.usage)
        if billed is None:
            why = "the server reports no token counts, so the arm cannot be matched by tokens"
            return StopReason.MODEL_ERROR, why
        used += billed
    return None


def _seeded(sampling: Sampling, index: int) -> Sampling:
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=sampling.seed + _SEED_STEP * index)
