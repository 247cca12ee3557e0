"""A rollout as an ATIF v1.7 document (Agent Trajectory Interchange Format, Harbor's RFC 0001).

Field names and rules are those of the published models in the package `harbor` 0.25.0, whose
version 1.8 adds audio to 1.7. docs/meters.md says which of our figures stands in which field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sandlot import __version__
from sandlot.core.types import (
    FilePart,
    ImagePart,
    JsonObject,
    Message,
    Part,
    Role,
    TextPart,
    ToolCall,
    ToolResult,
    Trajectory,
    Turn,
)
from sandlot.models.base import ToolSpec
from sandlot.models.openai_wire import encode_tools

VERSION = "ATIF-v1.7"
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

SaveImage = Callable[[ImagePart], str]
"""Stores a picture beside the document and gives its path as the document names it."""


def to_atif(
    trajectory: Trajectory,
    *,
    times: Sequence[float] = (),
    tools: Sequence[ToolSpec] = (),
    extra: Mapping[str, Any] | None = None,
    save_image: SaveImage | None = None,
) -> JsonObject:
    """The document of a trajectory that has messages.

    `times` are seconds since the epoch at which each message was recorded; `extra` goes to the
    root's. Tool results stand in the observation of the step that called them. The task's truth
    is in no field.
    """
    steps = _Steps(trajectory, times, save_image).build()
    document: JsonObject = _compact(
        {
            "schema_version": VERSION,
            "session_id": trajectory.id,
            "trajectory_id": trajectory.id,
            "agent": {
                "name": "sandlot",
                "version": __version__,
                "model_name": trajectory.model,
                "tool_definitions": encode_tools(tools) or None,
            },
            "steps": steps,
            "final_metrics": _final_metrics(trajectory, len(steps)),
            "extra": {
                "task_id": trajectory.task.id,
                "domain": trajectory.task.domain,
                "mode": trajectory.mode,
                "stop_reason": trajectory.stop_reason,
                "stop_detail": trajectory.stop_detail or None,
                "answer": trajectory.answer,
                "files": [file.path for file in trajectory.files] or None,
                **(extra or {}),
            },
        }
    )
    return document


class _Steps:
    """Walks the messages; a tool message belongs to the last step that an agent made."""

    def __init__(
        self, trajectory: Trajectory, times: Sequence[float], save_image: SaveImage | None
    ) -> None:
        self._messages = trajectory.messages
        self._turns = {id(turn.reply): turn for turn in trajectory.turns}
        self._times = times
        self._save_image = save_image
        self._steps: list[JsonObject] = []

    def build(self) -> list[JsonObject]:
        for number, message in enumerate(self._messages):
            at = self._times[number] if number < len(self._times) else None
            if message.role is Role.TOOL:
                self._observe(message)
            else:
                self._steps.append(self._step(message, at))
        return self._steps

    def _step(self, message: Message, at: float | None) -> JsonObject:
        agent = message.role is Role.ASSISTANT
        step: JsonObject = {
            "step_id": len(self._steps) + 1,
            "timestamp": _timestamp(at),
            "source": "agent" if agent else message.role.value,
            "message": self._content(message.parts),
        }
        turn = self._turns.get(id(message))
        if agent:
            step["reasoning_content"] = message.reasoning
            step["tool_calls"] = [_call(call) for call in message.tool_calls] or None
            step["observation"] = None
        if turn is not None:
            step["metrics"] = _metrics(turn)
            step["llm_call_count"] = 1
            step["extra"] = {
                "finish_reason": turn.finish_reason,
                "model_s": turn.model_s,
                "waiting_s": turn.waiting_s,
            }
        return step

    def _observe(self, message: Message) -> None:
        """Add a tool result to the step of its call; without such a call it names none."""
        step = next(
            (step for step in reversed(self._steps) if _makes(step, message.tool_call_id)), None
        )
        result: JsonObject = {
            "source_call_id": message.tool_call_id if step is not None else None,
            "content": self._content(message.parts),
        }
        if step is None:
            step = self._steps[-1]
        measured = self._result_of(message)
        if measured is not None:
            result["extra"] = _measured(measured)
        observation = step.get("observation") or {"results": []}
        observation["results"].append(result)
        step["observation"] = observation

    def _result_of(self, message: Message) -> ToolResult | None:
        for turn in self._turns.values():
            for result in turn.tool_results:
                if result.message is message:
                    return result
        return None

    def _content(self, parts: Sequence[Part]) -> str | list[JsonObject]:
        if all(isinstance(part, TextPart) for part in parts):
            return "".join(part.text for part in parts if isinstance(part, TextPart))
        return [self._part(part) for part in parts]

    def _part(self, part: Part) -> JsonObject:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        if isinstance(part, FilePart):
            return {"type": "text", "text": f"[file {part.path}]"}
        if self._save_image is None or part.media_type not in IMAGE_TYPES:
            return {"type": "text", "text": f"[{part.media_type}, {len(part.data)} bytes]"}
        source = {"media_type": part.media_type, "path": self._save_image(part)}
        return {"type": "image", "source": source}


def _makes(step: JsonObject, call_id: str | None) -> bool:
    return any(call["tool_call_id"] == call_id for call in step.get("tool_calls") or ())


def _call(call: ToolCall) -> JsonObject:
    return {
        "tool_call_id": call.id,
        "function_name": call.name,
        "arguments": _arguments(call.arguments),
    }


def _arguments(raw: str) -> JsonObject:
    """The format wants an object; what is none is kept as the text that the model wrote."""
    try:
        value = json.loads(raw or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"invalid_arguments": raw}


def _measured(result: ToolResult) -> JsonObject:
    command = result.command
    return {
        "ok": result.ok,
        "duration_s": result.duration_s,
        "exit_code": command.exit_code if command is not None else None,
    }


def _metrics(turn: Turn) -> JsonObject | None:
    usage, tokens = turn.usage, turn.tokens
    metrics: JsonObject = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "cost_usd": usage.cost_usd,
    }
    if tokens is not None:
        metrics["prompt_token_ids"] = list(tokens.prompt_ids)
        metrics["completion_token_ids"] = list(tokens.completion_ids)
        metrics["logprobs"] = list(tokens.logprobs) if tokens.logprobs is not None else None
    if usage.reasoning_tokens is not None:
        metrics["extra"] = {"reasoning_tokens": usage.reasoning_tokens}
    return metrics if any(value is not None for value in metrics.values()) else None


def _final_metrics(trajectory: Trajectory, steps: int) -> JsonObject:
    def total(name: str) -> Any:
        counts = [getattr(turn.usage, name) for turn in trajectory.turns]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    return {
        "total_prompt_tokens": total("prompt_tokens"),
        "total_completion_tokens": total("completion_tokens"),
        "total_cached_tokens": total("cached_tokens"),
        "total_cost_usd": total("cost_usd"),
        "total_steps": steps,
        "extra": {"turns": len(trajectory.turns), "duration_s": trajectory.duration_s},
    }


def _timestamp(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _compact(value: Any) -> Any:
    """Without the keys of objects that are None; arguments of calls are left as they are."""
    if isinstance(value, dict):
        return {
            key: item if key == "arguments" else _compact(item)
            for key, item in value.items()
            if item is not None
        }
    return [_compact(item) for item in value] if isinstance(value, list) else value
