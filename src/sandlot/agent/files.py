"""A rollout's files: folders and inputs before it, declared outputs after it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sandlot.agent.prompts import Profile
from sandlot.core.errors import InputError, SandboxError, SandboxFileError
from sandlot.core.events import FilesCollected
from sandlot.core.types import SkippedFile, Task
from sandlot.sandbox.base import Sandbox

_ANSWER_BYTES = 4 * 1024 * 1024


async def lay_out(sandbox: Sandbox, profile: Profile, enter: bool) -> None:
    """Make the profile's folders; a restored shell stays in the directory where it was."""
    folders = dict.fromkeys((profile.working_dir, profile.input_dir, profile.output_dir))
    command = "mkdir -p -- " + " ".join(_quoted(folder) for folder in folders)
    if enter:
        command += f" && cd -- {_quoted(profile.working_dir)}"
    result = await sandbox.exec(command)
    if result.exit_code != 0:
        raise SandboxError(f"the folders {', '.join(folders)} could not be made: {result.stderr}")


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


async def upload_inputs(sandbox: Sandbox, task: Task, input_dir: str) -> None:
    if task.input_dir is not None:
        await sandbox.upload(Path(task.input_dir), input_dir)
    for name, data in task.input_files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise InputError(
                f"task {task.id}: input file {name!r} must lie inside the input folder"
            )
        await sandbox.write_file(f"{input_dir}/{path}", data)


async def collect_outputs(
    sandbox: Sandbox, profile: Profile, into: Path | None
) -> tuple[FilesCollected, SandboxError | None]:
    """Copy the output folder and the answer file out; without `into` only the answer is read.

    A sandbox that is gone gives what it could, with the reason among the skipped files and as the
    second value.
    """
    answer = None
    try:
        answer = await _read_answer(sandbox, profile.answer_file)
        if into is None:
            return FilesCollected((), answer=answer), None
        into.mkdir(parents=True, exist_ok=True)
        paths = [profile.output_dir]
        if not PurePosixPath(profile.answer_file).is_relative_to(profile.output_dir):
            paths.append(profile.answer_file)
        files, skipped = await sandbox.collect(paths, into)
    except SandboxError as exc:
        return FilesCollected((), (SkippedFile(profile.output_dir, str(exc)),), answer), exc
    return FilesCollected(tuple(files), tuple(skipped), answer), None


async def _read_answer(sandbox: Sandbox, path: str) -> str | None:
    try:
        data = await sandbox.read_file(path, limit_bytes=_ANSWER_BYTES)
    except SandboxFileError:
        return None
    return data.decode("utf-8", "replace")
