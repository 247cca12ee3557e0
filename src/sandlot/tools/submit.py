"""`submit`: the model says that it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandlot.core.types import TextPart
from sandlot.models.base import ToolSpec
from sandlot.tools.base import Observation, ToolContext


class Submit:
    spec = ToolSpec(
        name="submit",
        description=(
            "Finish the task. Call it once, when the answer and every output file are in place "
            "and checked; nothing can be changed afterwards."
        ),
        parameters={"type": "object", "properties": {}, "required": []},
    )

    async def run(self, arguments: Mapping[str, Any], context: ToolContext) -> Observation:
        return Observation((TextPart("Submitted."),), submitted=True)
