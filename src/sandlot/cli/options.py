"""Flags that several commands share. Sizes, durations and words are read by `sandlot.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandlot.core.errors import ConfigError

if TYPE_CHECKING:
    from sandlot.core.store import RunDirectory

Option = typer.Option
Model = Annotated[
    str | None,
    Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="openai/NAME, anthropic/NAME, local, local:FILE.gguf or scripted:FILE.",
    ),
]
BaseUrl = Annotated[
    str | None, Option("--base-url", metavar="URL", help="An OpenAI-compatible server.")
]
Network = Annotated[
    str | None,
    Option("--network", metavar="RULE", help="none, packages, open or allow:HOST,… [packages]"),
]
PrivateHosts = Annotated[
    str | None,
    Option(
        "--private-hosts",
        metavar="HOST,…|packages",
        help="Names that may lie at a private address.",
    ),
]
Image = Annotated[
    str | None,
    Option("--image", metavar="NAME", help="Image: science, base, host or an imported one."),
]
Backend = Annotated[
    str | None,
    Option(
        "--backend",
        metavar="NAME",
        help="bubblewrap, podman, docker, restricted; auto: the first of the first three. [auto]",
    ),
]
Engine = Annotated[
    str | None,
    Option(
        "--engine",
        metavar="ADDRESS",
        help="Of the container engine: unix:///PATH or tcp://HOST:PORT. [DOCKER_HOST]",
    ),
]
Runtime = Annotated[
    str | None, Option("--runtime", metavar="NAME", help="OCI runtime of the engine, like runsc.")
]
DenyHosts = Annotated[
    str | None, Option("--deny-hosts", metavar="HOST,…", help="Refused whatever else allows them.")
]
EgressBytes = Annotated[
    str | None, Option("--egress-bytes", metavar="SIZE", help="Over the network, both ways.")
]
EgressConnections = Annotated[
    str | None, Option("--egress-connections", metavar="N", help="Opened in all.")
]
Credentials = Annotated[
    str | None,
    Option(
        "--credentials",
        metavar="HOST=VAR,…",
        help="The proxy adds the token in VAR (or HEADER:VAR) to requests for HOST.",
    ),
]
AcceptUnenforced = Annotated[
    str | None,
    Option(
        "--accept-unenforced",
        metavar="NAME,…",
        help="Promises to go without where they do not hold here; recorded.",
    ),
]
OpenFiles = Annotated[
    str | None, Option("--open-files", metavar="N", help="For one process. [4096]")
]
FileSize = Annotated[str | None, Option("--file-size", metavar="SIZE", help="Of a single file.")]
WallTime = Annotated[
    str | None, Option("--wall-time", metavar="TIME", help="The sandbox lives no longer.")
]
Memory = Annotated[str | None, Option("--memory", metavar="SIZE", help="Like 2GiB. [4GiB]")]
Cpus = Annotated[str | None, Option("--cpus", metavar="N", help="At most so many CPUs.")]
Processes = Annotated[str | None, Option("--processes", metavar="N", help="[1024]")]
Disk = Annotated[str | None, Option("--disk", metavar="SIZE", help="Written inside. [2GiB]")]
Timeout = Annotated[
    str | None, Option("--timeout", metavar="TIME", help="For one command, like 90s or 15m. [120s]")
]
Profile = Annotated[
    str | None, Option("--profile", metavar="NAME", help="[general, or what suits the model]")
]
Prompt = Annotated[
    Path | None, Option("--prompt", metavar="FILE", help="Prompt texts in place of the profile's.")
]
ToolCalls = Annotated[
    str | None, Option("--tool-calls", metavar="FORM", help="auto, native, text or fenced. [auto]")
]
MaxTurns = Annotated[str | None, Option("--max-turns", metavar="N", help="[100]")]
MaxTokens = Annotated[
    str | None, Option("--max-tokens", metavar="N", help="Prompt and completion, all turns.")
]
TimeLimit = Annotated[
    str | None, Option("--time-limit", metavar="TIME", help="For the whole run, like 15m.")
]
Temperature = Annotated[str | None, Option("--temperature", metavar="T")]
TopP = Annotated[str | None, Option("--top-p", metavar="P")]
Seed = Annotated[str | None, Option("--seed", metavar="N")]
ReplyTokens = Annotated[
    str | None, Option("--reply-tokens", metavar="N", help="At most so many in one reply.")
]
ExtraBody = Annotated[
    str | None,
    Option("--extra-body", metavar="JSON", help="An object that is merged into each request."),
]
Output = Annotated[
    Path | None,
    Option(
        "--output",
        metavar="DIR",
        help="Receives a copy of the produced files; same names are replaced.",
    ),
]
Keep = Annotated[
    bool, Option("--keep", help="Store the sandbox, for `sandlot shell` and `continue`.")
]
Display = Annotated[
    str | None, Option("--display", metavar="HOW", help="auto, rich, plain or none. [auto]")
]
Json = Annotated[bool, Option("--json", help="One JSON object on stdout and nothing else there.")]
Runs = Annotated[
    str | None, Option("--runs", metavar="DIR", help="Where run directories are. [runs]")
]


def setting_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """Of a command's local values, those that are settings and were given."""
    from sandlot.settings import SETTINGS

    return {name: value for name, value in values.items() if name in SETTINGS and value is not None}


def find_run(name: str, runs: Path) -> RunDirectory:
    """The run of a path, of a name in the runs folder, or the newest one for `last`.

    Raises:
        ConfigError: there is none.
    """
    from sandlot.core.store import MANIFEST, RunDirectory, newest_run

    if name == "last":
        newest = newest_run(runs)
        if newest is None:
            raise ConfigError(f"there is no run in {runs} yet")
        return RunDirectory.open(newest)
    for path in (Path(name), runs / name):
        if (path / MANIFEST).is_file():
            return RunDirectory.open(path)
    raise ConfigError(
        f"run {name!r} was not found: neither {name} nor {runs / name} holds a {MANIFEST}; "
        "name a run directory, or `last`"
    )
