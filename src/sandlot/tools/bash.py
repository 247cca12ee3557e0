"""`execute_bash`: one command in the sandbox's persistent shell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandlot.core.types import CommandMeter, TextPart
from sandlot.models.base import ToolSpec
from sandlot.sandbox.base import ExecResult
from sandlot.tools.base import Observation, ToolContext
from sandlot.tools.text import capped, visible


class ExecuteBash:
    spec = ToolSpec(
        name="execute_bash",
        description=(
            "Run a command in the computer's bash and get its output and exit code. The shell "
            "stays open between calls: directory, variables, functions and background jobs "
            "are kept. There is no terminal and stdin is empty, so pass answers as "
            "options or files. Put programs that go on running into the background with their "
            "output in a file: `server > server.log 2>&1 &`. A command that takes too long is "
            "stopped and what it printed so far is shown."
        ),
        parameters={
            "type": "object",
            "properties": {
                "command": {
                    "type": "string",
                    "description": "What bash shall run; several lines are fine.",
                }
            },
            "required": ["command"],
        },
    )

    async def run(self, arguments: Mapping[str, Any], context: ToolContext) -> Observation:
        result = await context.sandbox.exec(arguments["command"])
        timeout_s = context.sandbox.policy.limits.command_timeout_s
        text = describe(result, timeout_s, context.observation_chars)
        return Observation((TextPart(text),), command=_meter(result))


def describe(result: ExecResult, timeout_s: float, limit: int) -> str:
    """What the model is told of a command: output first, then what happened, within `limit`."""
    notes = "\n".join(_notes(result, timeout_s))
    room = max(limit - len(notes) - 1, limit // 2) if notes else limit
    output = capped(_output(result), room, _advice(result))
    return capped("\n".join(part for part in (output, notes) if part), limit)


def _output(result: ExecResult) -> str:
    stdout = visible(result.stdout).rstrip("\n")
    stderr = visible(result.stderr).rstrip("\n")
    parts = [stdout] if stdout else []
    if stderr:
        parts.append(f"[stderr]\n{stderr}")
    if not parts and not (result.timed_out or result.flooded):
        parts.append("(no output)" if result.exit_code == 0 else "")
    return "\n".join(part for part in parts if part)


def _advice(result: ExecResult) -> str:
    return "" if result.truncated else "write long output to a file and look at parts of it"


def _notes(result: ExecResult, timeout_s: float) -> list[str]:
    notes = []
    if result.timed_out:
        printed = "what it printed is above" if result.stdout or result.stderr else "no output"
        notes.append(
            f"[stopped after {timeout_s:g} s; {printed}; "
            "background jobs of earlier commands still run]"
        )
    if result.flooded:
        notes.append("[stopped: it printed far too much; write to a file and look at parts]")
    if result.truncated:
        files = [name for name in (result.stdout_file, result.stderr_file) if name]
        where = f"; the full output is in {' and '.join(files)}" if files else ""
        notes.append(f"[output was cut{where}]")
    if result.exit_code is None and not (result.timed_out or result.flooded):
        notes.append("[ended without an exit code]")
    if result.memory_kills:
        notes.append("[a process was killed at the memory limit of this computer]")
    if result.exit_code:
        notes.append(f"[exit code {result.exit_code}]")
    if result.shell_restarted:
        notes.append("[the shell was restarted: variables and functions set before are gone]")
    return notes


def _meter(result: ExecResult) -> CommandMeter:
    return CommandMeter(
        exit_code=result.exit_code,
        duration_s=result.duration_s,
        timed_out=result.timed_out,
        stdout_bytes=result.stdout_bytes,
        stderr_bytes=result.stderr_bytes,
        truncated=result.truncated,
        shell_restarted=result.shell_restarted,
        memory_peak_bytes=result.memory_peak_bytes,
        cpu_s=result.cpu_s,
        throttled_s=result.throttled_s,
        memory_kills=result.memory_kills,
    )
