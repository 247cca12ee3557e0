"""The forms in which tools, calls and results go to a model as text, by their setting's word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sandlot.core.types import Message, Role, TextPart
from sandlot.models import fenced, hermes
from sandlot.models.base import ToolSpec
from sandlot.models.hermes import AS_WRITTEN, split_reasoning

MakeId = Callable[[], str]


@dataclass(frozen=True, slots=True)
class TextForm:
    """One form: the tools as text, a message as text, and a reply's text as a message.

    A message is rendered from itself alone, so that one added later never changes an earlier one.
    """

    render_tools: Callable[[Sequence[ToolSpec]], str]
    to_text_message: Callable[[Message], Message]
    read: Callable[[str, Sequence[ToolSpec], MakeId], Message]

    def to_text_messages(
        self, messages: Iterable[Message], tools: Sequence[ToolSpec] = ()
    ) -> tuple[Message, ...]:
        """The conversation; the tools' text ends the first system message, or becomes one."""
        rendered = [self.to_text_message(message) for message in messages]
        return with_tools_text(rendered, self.render_tools(tools))


def with_tools_text(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    if not text:
        return tuple(messages)
    if messages and messages[0].role is Role.SYSTEM:
        parts = (*messages[0].parts, TextPart("\n\n" + text))
        return (Message(Role.SYSTEM, parts), *messages[1:])
    return (Message.system(text), *messages)


def _read_tags(text: str, tools: Sequence[ToolSpec], make_id: MakeId) -> Message:
    return hermes.parse_message(text, make_id)


def _read_blocks(text: str, tools: Sequence[ToolSpec], make_id: MakeId) -> Message:
    """Blocks inside a leading thinking block are only thoughts."""
    thought, said = split_reasoning(text)
    message = fenced.parse_message(said, tools, make_id)
    if thought is None:
        return message
    extra = {**message.extra, AS_WRITTEN: text}
    return Message(message.role, message.parts, message.tool_calls, reasoning=thought, extra=extra)


FORMS: Mapping[str, TextForm] = {
    "text": TextForm(hermes.render_tools, hermes.to_text_message, _read_tags),
    "fenced": TextForm(fenced.render_tools, fenced.to_text_message, _read_blocks),
}
