"""`sandlot replay`: run a record's commands again, or branch off from it with another model."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandlot.cli import options
from sandlot.cli.outcome import NO_ANSWER, drive, say
from sandlot.core.errors import ConfigError

if TYPE_CHECKING:
    from sandlot.bench.replay import Replayed, Scene
    from sandlot.core.store import RunDirectory


def replay(
    run: Annotated[str, typer.Argument(help="A run or bench directory, or `last`.")],
    episode: Annotated[
        str | None,
        typer.Option("--episode", metavar="NAME", help="Of a bench run: SET.ITEM.ARM.REPEAT."),
    ] = None,
    turn: Annotated[
        int | None,
        typer.Option("--from", min=0, metavar="TURN", help="Go on before this turn, with -m."),
    ] = None,
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    max_turns: options.MaxTurns = None,
    max_tokens: options.MaxTokens = None,
    time_limit: options.TimeLimit = None,
    temperature: options.Temperature = None,
    seed: options.Seed = None,
    tool_calls: options.ToolCalls = None,
    network: options.Network = None,
    image: options.Image = None,
    backend: options.Backend = None,
    display: options.Display = None,
    as_json: options.Json = False,
    runs: options.Runs = None,
) -> None:
    """Run a record's commands again in a fresh sandbox and show the first that tells otherwise.

    Exit codes: 0 every observation came again; 1 one differs (as a unified diff on stdout). With
    --from, what came before that turn is repeated first; where it tells the same, the model of -m
    goes on in a new run directory, and the exit codes are those of `sandlot run`.
    """
    arguments = options.setting_arguments(locals())
    if turn is not None and model is None:
        raise ConfigError("--from goes on with a model: name it with -m")
    if turn is None and model is not None:
        raise ConfigError("-m goes on from a turn: name it with --from")
    with tempfile.TemporaryDirectory(prefix="sandlot-replay-") as scratch:
        scene, record = _scene(run, episode, arguments, Path(scratch))
        if turn is not None:
            from sandlot.bench.replay import check_branch

            check_branch(scene.trajectory, turn)
            if not scene.whole:
                raise ConfigError("an episode of an arm with fewer tools cannot be branched from")
        done = drive(lambda: scene.replay(os.environ, say, until=turn)) if turn != 0 else None
    if turn is None or (done is not None and done.difference is not None):
        assert done is not None
        _show(done, scene, as_json=as_json, turn=turn)
        return
    _branch(scene, record, turn, arguments, as_json=as_json)


def _scene(
    run: str, episode: str | None, arguments: dict[str, Any], scratch: Path
) -> tuple[Scene, Path]:
    """What the record stood on, and its file."""
    from sandlot.api import resume_arguments
    from sandlot.bench.replay import profile_word, scene_of_run
    from sandlot.settings import resolve

    directory = options.find_run(run, Path(resolve({"runs": arguments.get("runs")}).runs))
    if "bench" in directory.manifest:
        return _episode_scene(directory, episode, arguments, scratch)
    if episode is not None:
        raise ConfigError(f"{directory.path} is a single run; --episode is for bench runs")
    words = {"profile": profile_word(directory), **resume_arguments(directory, arguments)}
    scene = scene_of_run(directory, resolve(words), os.environ)
    return scene, directory.trajectory_path


def _episode_scene(
    directory: RunDirectory, episode: str | None, arguments: dict[str, Any], scratch: Path
) -> tuple[Scene, Path]:
    from sandlot.bench.replay import scene_of_episode
    from sandlot.bench.store import BenchDirectory
    from sandlot.cli.bench import settings_before
    from sandlot.settings import resolve

    if episode is None:
        raise ConfigError(f"{directory.path} is a bench run: name one of its episodes (--episode)")
    bench = BenchDirectory.open(directory.path)
    # The old model's own settings decide the profile; the new one takes its place afterwards.
    given = {name: value for name, value in arguments.items() if name != "model"}
    settings = resolve({**settings_before(bench.manifest), **given})
    scene = scene_of_episode(bench, episode, settings, os.environ, scratch)
    return scene, bench.trajectories / f"{episode}.jsonl"


def _show(done: Replayed, scene: Scene, *, as_json: bool, turn: int | None) -> None:
    """Tell what came of it, and leave with 1 where something differs."""
    difference = done.difference
    if as_json:
        from sandlot.core.codec import to_json

        print(json.dumps({"same": difference is None, **to_json(done)}, ensure_ascii=False))
    elif difference is None:
        print(f"the same: {done.calls} calls in {done.turns} turns")
    else:
        print(difference.unified())
    if difference is None:
        return
    where = f"turn {difference.turn}, call {difference.call} ({difference.tool})"
    branch = "; no branch was made" if turn is not None else ""
    say(f"{where} gave something else after {done.calls - 1} calls that gave the same{branch}")
    if scene.continued:
        say("this run was continued: where its sandbox was not kept, files of before were gone")
    raise typer.Exit(NO_ANSWER)


def _branch(
    scene: Scene, record: Path, turn: int, arguments: dict[str, Any], *, as_json: bool
) -> None:
    """Go on from a turn in a run directory of its own."""
    from dataclasses import replace

    from sandlot.api import Job
    from sandlot.bench.replay import branch
    from sandlot.cli.run import perform

    settings = replace(scene.settings, model=str(arguments["model"]), profile=scene.profile.name)
    directory = branch(
        scene.trajectory,
        record,
        turn,
        model=str(settings.model),
        parent=Path(settings.runs),
        now=datetime.now().astimezone(),
    )
    perform(Job(how="resume", directory=directory), settings, as_json=as_json)
