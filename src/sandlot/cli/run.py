"""`sandlot run` and `sandlot continue`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandlot.cli import options
from sandlot.cli.outcome import EXIT_CODES, Interrupted, code_of_stop, drive
from sandlot.core.errors import ConfigError

if TYPE_CHECKING:
    from sandlot.api import Job, RunResult
    from sandlot.core.store import RunDirectory
    from sandlot.settings import Settings

_RUN_HELP = f"""Give a model a computer and a task.

The answer goes to stdout, everything else to stderr. Settings not given here come from
SANDLOT_* variables, ./sandlot.toml, the user's sandlot/config.toml, then the defaults.

{EXIT_CODES}"""


def run(
    prompt: Annotated[
        str | None, typer.Argument(help="The task; `-` reads stdin, `@FILE` reads a file.")
    ] = None,
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    input_dir: Annotated[
        Path | None, typer.Option("--input", metavar="DIR", help="Copied into the sandbox.")
    ] = None,
    output_dir: options.Output = None,
    network: options.Network = None,
    private_hosts: options.PrivateHosts = None,
    deny_hosts: options.DenyHosts = None,
    egress_bytes: options.EgressBytes = None,
    egress_connections: options.EgressConnections = None,
    credentials: options.Credentials = None,
    image: options.Image = None,
    backend: options.Backend = None,
    engine: options.Engine = None,
    runtime: options.Runtime = None,
    memory: options.Memory = None,
    cpus: options.Cpus = None,
    processes: options.Processes = None,
    disk: options.Disk = None,
    open_files: options.OpenFiles = None,
    file_size: options.FileSize = None,
    wall_time: options.WallTime = None,
    accept_unenforced: options.AcceptUnenforced = None,
    timeout: options.Timeout = None,
    max_turns: options.MaxTurns = None,
    max_tokens: options.MaxTokens = None,
    time_limit: options.TimeLimit = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    reply_tokens: options.ReplyTokens = None,
    extra_body: options.ExtraBody = None,
    profile: options.Profile = None,
    prompt_file: options.Prompt = None,
    tool_calls: options.ToolCalls = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="DIR", help="Go on with an unfinished run.")
    ] = None,
    keep: options.Keep = False,
    display: options.Display = None,
    as_json: options.Json = False,
    runs: options.Runs = None,
) -> None:
    arguments = options.setting_arguments(locals())
    if resume is not None:
        _resume(prompt, resume, arguments, input_dir, output_dir, keep, as_json)
        return
    if prompt is None:
        raise ConfigError("what is to be done? Write: sandlot run 'PROMPT' -m MODEL")
    from sandlot.api import Job
    from sandlot.settings import resolve

    job = Job(read_prompt(prompt), input_dir, output_dir, keep)
    perform(job, resolve(arguments), as_json=as_json)


run.__doc__ = _RUN_HELP


def continue_(
    run: Annotated[str, typer.Argument(help="A run directory, or `last`.")],
    more: Annotated[str, typer.Argument(metavar="MORE", help="What to do now; `-` and `@FILE`.")],
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    output_dir: options.Output = None,
    network: options.Network = None,
    private_hosts: options.PrivateHosts = None,
    deny_hosts: options.DenyHosts = None,
    egress_bytes: options.EgressBytes = None,
    egress_connections: options.EgressConnections = None,
    credentials: options.Credentials = None,
    wall_time: options.WallTime = None,
    accept_unenforced: options.AcceptUnenforced = None,
    max_turns: options.MaxTurns = None,
    max_tokens: options.MaxTokens = None,
    time_limit: options.TimeLimit = None,
    tool_calls: options.ToolCalls = None,
    keep: options.Keep = False,
    display: options.Display = None,
    as_json: options.Json = False,
    runs: options.Runs = None,
) -> None:
    """Go on from a finished run with a new message.

    The sandbox is as it was where the run was kept (--keep). Settings not given are the run's own.
    """
    from sandlot.api import Job

    arguments = options.setting_arguments(locals())
    directory, settings = _old_run(run, arguments)
    job = Job(read_prompt(more), None, output_dir, keep, "continue", directory)
    perform(job, settings, as_json=as_json)


def _resume(
    prompt: str | None,
    run: str,
    arguments: dict[str, Any],
    input_dir: Path | None,
    output_dir: Path | None,
    keep: bool,
    as_json: bool,
) -> None:
    from sandlot.api import FINISHED, Job

    if prompt is not None or input_dir is not None:
        raise ConfigError("--resume goes on with the run's own prompt and input; give neither")
    directory, settings = _old_run(run, arguments)
    reason = directory.trajectory().stop_reason
    if reason in FINISHED:
        raise ConfigError(
            f"run {directory.path} is finished ({reason}); "
            f'write: sandlot continue {directory.path} "MORE"'
        )
    perform(Job("", None, output_dir, keep, "resume", directory), settings, as_json=as_json)


def _old_run(name: str, arguments: dict[str, Any]) -> tuple[RunDirectory, Settings]:
    from sandlot.api import resume_arguments
    from sandlot.settings import resolve

    runs = Path(resolve({"runs": arguments.get("runs")}).runs)
    directory = options.find_run(name, runs)
    return directory, resolve(resume_arguments(directory, arguments))


def read_prompt(text: str) -> str:
    """The text itself, stdin for `-`, a file's content for `@FILE`.

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8.
    """
    if text != "-" and not text.startswith("@"):
        return text
    try:
        data = sys.stdin.buffer.read() if text == "-" else Path(text[1:]).read_bytes()
        return data.decode("utf-8")
    except OSError as exc:
        raise ConfigError(f"prompt file {text[1:]} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"prompt {text} is not UTF-8 text: {exc}") from exc


def perform(job: Job, settings: Settings, *, as_json: bool) -> None:
    """Do the job before the user's eyes and leave with the exit code of its end."""
    from sandlot.api import Watch, execute
    from sandlot.cli.live import choose_view
    from sandlot.cli.summary import show_result

    view = choose_view(settings.display, environ=os.environ)
    opened: list[RunDirectory] = []
    watch = Watch((view,), view.note, opened.append, stream=view.streams)
    try:
        result = drive(lambda: execute(job, settings, watch))
    except Interrupted as interrupted:
        view.close()
        stopped = _recorded(opened, settings)
        if stopped is not None:
            show_result(stopped, view=view, output=job.output, as_json=as_json)
        raise typer.Exit(interrupted.exit_code) from None
    finally:
        view.close()
    show_result(result, view=view, output=job.output, as_json=as_json)
    code = code_of_stop(result.stop_reason)
    if code:
        raise typer.Exit(code)


def _recorded(opened: list[RunDirectory], settings: Settings) -> RunResult | None:
    """What is on disk of an interrupted run; None where it had not begun."""
    from sandlot.api import result_of
    from sandlot.core.errors import RecordError

    try:
        directory = opened[0]
        return result_of(directory, directory.trajectory(), settings)
    except (IndexError, RecordError):
        return None
