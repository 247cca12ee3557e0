"""An OpenAI-compatible gateway over a chat format and a policy, and a policy that needs no model.

The OpenAI wire carries no sampled ids, so the gateway remembers for each session (`/s/ID/v1`) what
it drew, and knows a reply again by its content and calls. A reply that comes back changed is a
message like any other: the template writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandlot.core.types import Message, Role, TextPart, ToolCall
from sandlot.models.base import ToolSpec
from sandlot.models.fake_server import Answer, FakeRequest, failure
from sandlot.train.base import SAMPLED_IDS, Draw, Drawn, Ids
from sandlot.train.chat import TemplateFormat

Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class HashPolicy:
    """A `TokenEngine` that draws one of `replies`, chosen by a hash of the prompt's ids.

    After `turns` turns it draws `last`. Now and then the same text is drawn in other tokens than
    a tokenizer would give it, byte by byte, as a policy may.
    """

    chat: TemplateFormat
    replies: Sequence[str]
    last: str
    turns: int = 6
    context_tokens: int = 1 << 20

    async def sample(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        return self.draw(prompt, draw)

    def draw(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        number = int(hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest(), 16)
        turn = list(prompt).count(self.chat.end_of_turn) // 2
        text = self.last if turn > self.turns else self.replies[number % len(self.replies)]
        ids = [*self._encode(text, byte_by_byte=number % 3 == 0), self.chat.end_of_turn]
        kept = ids[: draw.max_tokens]
        logprobs = tuple(-((number + token) % 13) / 16 for token in kept)
        return Drawn(tuple(kept), logprobs, "stop" if len(kept) == len(ids) else "length")

    def _encode(self, text: str, *, byte_by_byte: bool) -> list[int]:
        encode = self.chat.tokenizer.encode
        pieces = list(text) if byte_by_byte else [text]
        return [token for piece in pieces for token in encode(piece, add_special_tokens=False)]

    async def close(self) -> None:
        return None


@dataclass(slots=True)
class ChatGateway:
    """Give it to `FakeOpenAIServer`; each session is one rollout."""

    chat: TemplateFormat
    policy: HashPolicy
    sessions: dict[str, list[tuple[Key, Ids]]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, request: FakeRequest) -> Answer:
        path = re.fullmatch(r"/s/(\w+)/v1/chat/completions", request.path)
        if path is None:
            return failure(404, f"no such path: {request.path}")
        body, session = request.json, self.sessions[path.group(1)]
        tools = [_tool(each["function"]) for each in body.get("tools", ())]
        messages = self._recall([_message(wire) for wire in body["messages"]], session)
        prompt = self.chat.render(messages, tools)
        drawn = self.policy.draw(prompt, Draw(body["max_tokens"], self.chat.stop_ids))
        reply = self.chat.read(drawn.ids, tools, cut=drawn.finish == "length")
        session.append((_key(reply), drawn.ids))
        return self._answer(body, prompt, drawn, reply)

    def _recall(self, messages: list[Message], session: list[tuple[Key, Ids]]) -> list[Message]:
        """Put the drawn ids back into the replies that came back as they were sent.

        A reply is looked for where it stands, then among the later ones, since a client may have
        cut the history at its beginning.
        """
        replies, next_one = 0, 0
        recalled = []
        for message in messages:
            if message.role is Role.ASSISTANT:
                places = [replies, *range(next_one, len(session))]
                replies += 1
                key = _key(message)
                found = [at for at in places if at < len(session) and session[at][0] == key]
                if found:
                    next_one = found[0] + 1
                    message = replace(message, extra={SAMPLED_IDS: list(session[found[0]][1])})
            recalled.append(message)
        return recalled

    def _answer(
        self, body: dict[str, Any], prompt: Ids, drawn: Drawn, reply: Message
    ) -> dict[str, Any]:
        wire: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.reasoning:
            wire["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            wire["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.tool_calls
            ]
        cut = drawn.finish == "length"
        reason = "length" if cut else "tool_calls" if reply.tool_calls else "stop"
        choice: dict[str, Any] = {"index": 0, "message": wire, "finish_reason": reason}
        if body.get("logprobs"):
            entries = [{"token": str(i), "logprob": p} for i, p in _pairs(drawn)]
            choice["logprobs"] = {"content": entries}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(drawn.ids)}
        whole: dict[str, Any] = {"id": "0", "choices": [choice], "usage": usage}
        if body.get("return_token_ids"):
            whole["prompt_token_ids"] = list(prompt)
            choice["token_ids"] = list(drawn.ids)
        return whole


def _pairs(drawn: Drawn) -> list[tuple[int, float]]:
    return list(zip(drawn.ids, drawn.logprobs, strict=True))


def _tool(function: dict[str, Any]) -> ToolSpec:
    return ToolSpec(function["name"], function["description"], function["parameters"])


def _message(wire: dict[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in wire.get("tool_calls") or ()
    )
    parts = (TextPart(wire["content"]),) if wire["content"] else ()
    return Message(
        Role(wire["role"]),
        parts,
        calls,
        wire.get("tool_call_id"),
        wire.get("reasoning_content"),
    )


def _key(reply: Message) -> Key:
    calls = tuple((_sent_name(call.name), _unwrapped(call.arguments)) for call in reply.tool_calls)
    return reply.text, calls


def _sent_name(name: str) -> str:
    """A call's name as the client sends it back."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "unnamed"


def _unwrapped(arguments: str) -> str:
    """Arguments as they were drawn: broken ones come back as the value of one key."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    if isinstance(value, dict) and value.keys() == {"invalid_arguments"}:
        return str(value["invalid_arguments"])
    return arguments if arguments.strip() else "{}"
