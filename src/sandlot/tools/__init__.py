"""The three tools, one a file: schema beside behaviour."""

from __future__ import annotations

from sandlot.tools.base import Tool


def default_tools() -> tuple[Tool, ...]:
    """`execute_bash`, `str_replace_editor` and `submit`, in the order that a model sees them."""
    from sandlot.tools.bash import ExecuteBash
    from sandlot.tools.editor import StrReplaceEditor
    from sandlot.tools.submit import Submit

    return (ExecuteBash(), StrReplaceEditor(), Submit())
