"""`sandlot shell`: a terminal of one's own in a sandbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandlot.cli import options
from sandlot.cli.outcome import drive, say
from sandlot.core.errors import ConfigError

if TYPE_CHECKING:
    from sandlot.core.store import RunDirectory
    from sandlot.settings import Settings


def shell(
    run: Annotated[
        str | None, typer.Argument(help="A run that was kept, or `last`; fresh without.")
    ] = None,
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
    runs: options.Runs = None,
) -> None:
    """Open a terminal in a fresh sandbox, or in the kept one of a run.

    What is changed inside is gone when the shell ends. The exit code is that of the shell.
    """
    from sandlot.api import resume_arguments
    from sandlot.settings import resolve

    arguments = options.setting_arguments(locals())
    settings = resolve(arguments)
    state = None
    if run is not None:
        directory = options.find_run(run, Path(settings.runs))
        settings = resolve(resume_arguments(directory, arguments))
        state = _kept_state(directory)
    # Once attached, the terminal is raw: Ctrl-C is a key for the shell inside, no signal for us.
    code = drive(lambda: _attach(settings, state))
    if code:
        raise typer.Exit(code)


def _kept_state(directory: RunDirectory) -> Path:
    if not directory.state_path.is_file():
        raise ConfigError(
            f"the sandbox of {directory.path} was not kept; "
            "`sandlot run --keep` and `sandlot continue --keep` keep it"
        )
    return directory.state_path


async def _attach(settings: Settings, state: Path | None) -> int:
    from sandlot.api import open_computer, policy_of, settle_backend
    from sandlot.sandbox.registry import terminal

    settings, _ = await settle_backend(settings, os.environ, say)
    box, _ = await open_computer(settings, policy_of(settings), os.environ, say)
    async with box:
        if state is not None:
            await box.restore(state)
        return await terminal(box)
