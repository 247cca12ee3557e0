"""A file system that forgets between calls, for the arm without files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandlot.core.errors import DeathCause, SandboxDied, SandboxError, SandboxFileError
from sandlot.sandbox.base import Sandbox
from sandlot.tools.base import Observation, Tool, ToolContext


class Forgetting:
    """Brings a sandbox back to how it was before the first call; the answer stays.

    Working directory, variables and background jobs go with the files. `state` is a host file for
    the snapshot. `answer_file` is carried over, and so is `output_dir` where the output is what is
    scored: elsewhere it would be a place to remember in.
    """

    def __init__(self, state: Path, answer_file: str, output_dir: str | None = None) -> None:
        self._state = state
        self._answer_file = answer_file
        self._output_dir = output_dir
        self._known: Sandbox | None = None

    async def remember(self, sandbox: Sandbox) -> None:
        """Take the snapshot, once for each sandbox."""
        if self._known is not sandbox:
            await sandbox.snapshot(self._state)
            self._known = sandbox

    async def forget(self, sandbox: Sandbox) -> None:
        answer = await self._answer(sandbox)
        if self._output_dir is None:
            await sandbox.restore(self._state)
        else:
            with tempfile.TemporaryDirectory(dir=self._state.parent) as folder:
                await sandbox.collect([self._output_dir], Path(folder))
                await sandbox.restore(self._state)
                await sandbox.upload(Path(folder), self._output_dir)
        if answer is not None:
            await sandbox.write_file(self._answer_file, answer)

    async def _answer(self, sandbox: Sandbox) -> bytes | None:
        try:
            return await sandbox.read_file(self._answer_file, limit_bytes=4 * 1024 * 1024)
        except SandboxFileError:
            return None


class ForgetfulTool:
    """A tool after whose every call the sandbox forgets."""

    def __init__(self, tool: Tool, memory: Forgetting) -> None:
        self.spec = tool.spec
        self._tool = tool
        self._memory = memory

    async def run(self, arguments: Mapping[str, Any], context: ToolContext) -> Observation:
        sandbox = context.sandbox
        try:
            await self._memory.remember(sandbox)
            observation = await self._tool.run(arguments, context)
            if not observation.submitted:
                await self._memory.forget(sandbox)
        except SandboxDied:
            raise
        except SandboxError as exc:
            # A wall that does not hold must not look like one that does.
            raise SandboxDied(DeathCause.KILLED, f"it could not be made to forget: {exc}") from exc
        return observation
