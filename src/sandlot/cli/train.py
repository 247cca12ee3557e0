"""`sandlot train`: teach a model to use its computer, and what is done with the result."""

from __future__ import annotations

import importlib.util
import json
import os
import tomllib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sandlot.cli import options, train_after
from sandlot.cli.outcome import Interrupted, drive, say
from sandlot.core.errors import ConfigError, InputError, MissingExtra, SandlotError

if TYPE_CHECKING:
    from sandlot.cli.train_view import SilentTrainView
    from sandlot.settings import Settings
    from sandlot.train.config import TrainConfig
    from sandlot.train.directory import TrainDirectory

_HELP = """Teach a model to use its computer, by its own rollouts in sandboxes.

CONFIG.toml describes the run (recipes/ holds some). The run directory keeps figures, records,
rollouts to look at and checkpoints; --resume goes on exactly from the newest checkpoint, whatever
ended the run.

Exit codes: 0 trained to the end; 2 a flag, config, model, file or disk cannot be used; 3 the engine
failed; 4 no sandbox can be had; 130 Ctrl-C, 143 SIGTERM (the newest checkpoint stays)."""

_SFT_HELP = """Fine-tune on good rollouts alone: the warm start of CONFIG.toml, and --rows FILE.

FILE holds training records of an earlier run, or rollouts that `sandlot export` wrote in the form
messages or training, or chat messages of any other program in OpenAI's form; a line each.

Exit codes: those of `sandlot train`."""


class TrainGroup(TyperGroup):
    """A group that is a command too: what is no word of a subcommand is its own arguments."""

    allow_interspersed_args = True

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            return super().parse_args(ctx, args)
        super().parse_args(ctx, [])
        ctx._protected_args, ctx.args = args[:1], args[1:]
        rest: list[str] = ctx.args
        return rest


app = typer.Typer(cls=TrainGroup, rich_markup_mode=None)

Runs = Annotated[
    str | None,
    typer.Option("--out", "--runs", metavar="DIR", help="Where run directories are. [runs]"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value, like train.steps=10; again."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="In place of the config's.")]
Resume = Annotated[
    Path | None, typer.Option("--resume", metavar="DIR", help="Go on with a run, or with `last`.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Resume although the config differs; it is recorded.")
]


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A TOML file; not needed on resuming.")
    ] = None,
    runs: Runs = None,
    resume: Resume = None,
    force: Force = False,
    seed: Seed = None,
    set_: Set = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="One step of a tiny model, and what the run would need."),
    ] = False,
    display: options.Display = None,
    as_json: options.Json = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    asked = Asked(config, resume, force, changes_of(set_, seed), runs, display)
    if dry_run:
        _dry_run(asked, as_json=as_json)
        return
    perform(asked, asked.prepared(), as_json=as_json)


train.__doc__ = _HELP


@app.command()
def sft(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A TOML file; not needed on resuming.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="Rollouts to learn from as well.")
    ] = None,
    min_reward: Annotated[
        float | None,
        typer.Option("--min-reward", metavar="X", help="Of --rows, only those worth as much."),
    ] = None,
    runs: Runs = None,
    resume: Resume = None,
    force: Force = False,
    seed: Seed = None,
    set_: Set = None,
    display: options.Display = None,
    as_json: options.Json = False,
) -> None:
    changes: dict[str, Any] = {"train.steps": 0, **changes_of(set_, seed)}
    if rows is not None:
        if not rows.is_file():
            raise ConfigError(f"--rows {rows}: no such file")
        changes["warmstart.rows"] = str(rows.resolve())
    if min_reward is not None:
        changes["warmstart.min_reward"] = min_reward
    asked = Asked(config, resume, force, changes, runs, display)
    perform(asked, asked.prepared(), as_json=as_json)


sft.__doc__ = _SFT_HELP

app.command("eval")(train_after.evaluate)
app.command("export")(train_after.export)
app.command("plot")(train_after.plot)


# What is asked.


@dataclass(frozen=True, slots=True)
class Asked:
    """The words of the command line. `changes` maps dotted names to values."""

    recipe: Path | None
    resume: Path | None
    force: bool
    changes: Mapping[str, Any]
    runs: str | None
    display: str | None

    def settings(self) -> Settings:
        from sandlot.settings import resolve

        return resolve(
            {k: v for k, v in (("runs", self.runs), ("display", self.display)) if v is not None}
        )

    def config(self) -> TrainConfig:
        """Raises ConfigError where none is named, or it cannot be used."""
        from sandlot.train.config import load_config

        if self.recipe is None:
            raise ConfigError("what is to be trained? Write: sandlot train CONFIG.toml")
        return load_config(self.recipe, self.changes)

    def prepared(self) -> Prepared:
        """The run's configuration, and the directory that it goes on in, if any.

        Raises:
            ConfigError: a config that cannot be used, or another one than the run began with.
            InputError: the run to resume is none.
        """
        from sandlot.train.config import changed_config
        from sandlot.train.directory import TrainDirectory

        if self.resume is None:
            return Prepared(self.config(), None)
        path = train_after.find_training(str(self.resume), Path(self.settings().runs))
        stored = TrainDirectory.open(path, None).manifest()["config"]
        if self.recipe is not None:
            config = self.config()
        else:
            config = changed_config(stored, self.changes, str(path / "manifest.json"))
        return Prepared(config, TrainDirectory.open(path, config, force=self.force))


@dataclass(frozen=True, slots=True)
class Prepared:
    config: TrainConfig
    directory: TrainDirectory | None


def changes_of(words: Sequence[str] | None, seed: int | None) -> dict[str, Any]:
    """`KEY=VALUE` words as dotted names with TOML values; a bare word is a text."""
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals or not all(name.split(".")):
            raise ConfigError(f"--set {word!r}: write it like train.steps=10")
        changes[name] = _toml_value(value)
    return changes


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return table["value"] if list(table) == ["value"] else text


def require_training(*more: str) -> None:
    """Raises MissingExtra where the training packages are not installed."""
    for package in ("torch", "transformers", "peft", "safetensors", *more):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(f"training ({package} is not installed)", "train")


# The run.


def perform(asked: Asked, prepared: Prepared, *, as_json: bool) -> None:
    """Train before the user's eyes, and say what came of it."""
    from sandlot.cli.train_view import choose_train_view

    config, settings = prepared.config, asked.settings()
    require_training(*(("trl",) if config.train.trainer == "trl" else ()))
    rank = rank_among_processes(config)
    view = choose_train_view("none" if rank else settings.display, config)
    where: list[TrainDirectory] = []
    try:
        drive(lambda: _train(asked, prepared, settings, view, where.append))
    except (Interrupted, SandlotError) as error:
        view.close()
        mended = "once that is mended, " if isinstance(error, ConfigError | InputError) else ""
        for each in () if rank else where:
            saved = any(each.checkpoints.glob("step-*"))
            kept = "its checkpoints stay" if saved else "no checkpoint yet"
            say(f"{kept}; {mended}go on with: sandlot train --resume {each.path}")
        raise
    finally:
        view.close()
    if not rank:
        show_end(where[0], as_json=as_json, quiet=settings.display == "none")


def rank_among_processes(config: TrainConfig) -> int:
    """Which of the processes this is that torchrun or `accelerate launch` started; 0 where alone.

    Raises:
        ConfigError: several were started for a trainer that works in one.
    """
    if several_processes() and config.train.trainer != "trl":
        raise ConfigError(
            f"train.trainer {config.train.trainer!r} works in one process; set it to 'trl'"
        )
    return int(os.environ.get("RANK", "0")) if several_processes() else 0


def several_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


async def _train(
    asked: Asked,
    prepared: Prepared,
    settings: Settings,
    view: SilentTrainView,
    opened: Callable[[TrainDirectory], None],
) -> None:
    import asyncio

    quiet_libraries()
    from sandlot.train.assemble import assemble
    from sandlot.train.directory import TrainDirectory
    from sandlot.train.driver import driver_of
    from sandlot.train.provenance import made_with

    config, directory = prepared.config, prepared.directory
    parts = await asyncio.to_thread(assemble, config, view.note)
    try:
        box = await parts.player.open_box() if plays_in_sandboxes(config) else None
        if box is not None:  # that there are sandboxes is known before anything is begun
            await box.close()
        now = datetime.now().astimezone()
        made = made_with(
            config,
            parts.profiles,
            recipe=asked.recipe,
            box=box,
            cache=settings.cache_dir,
            now=now,
        )
        if directory is None and rank_among_processes(config) == 0:
            directory = TrainDirectory.create(Path(settings.runs), config, made, now)
        if several_processes():
            from sandlot.train.trl_driver import among_processes

            directory = await asyncio.to_thread(among_processes, directory)
        assert directory is not None
        with directory.alone():
            directory.adopt(config, made)
            opened(directory)
            view.note(f"run: {directory.path}")
            directory.told = view.told
            await driver_of(config, parts, directory, view.note).run()
    finally:
        await parts.close()


def plays_in_sandboxes(config: TrainConfig) -> bool:
    warm = config.warmstart
    return (
        (config.train.steps > 0 and config.rollout.mode == "sandbox")
        or (bool(config.tasks.evaluate) and "sandbox" in config.evaluate.modes)
        or (warm is not None and bool(warm.clerks or warm.drills))
    )


def quiet_libraries() -> None:
    """No bars and advice of others between our lines, and no threads that fork badly."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _dry_run(asked: Asked, *, as_json: bool) -> None:
    from sandlot.cli.train_dry import dry_run

    config = asked.config()
    require_training()
    quiet_libraries()
    dry_run(config, asked.settings(), as_json=as_json)


# Its end.


def show_end(directory: TrainDirectory, *, as_json: bool, quiet: bool) -> None:
    from sandlot.core.codec import to_json
    from sandlot.train.live import summary_of

    summary = summary_of(list(directory.steps()))
    held_out = list(directory.evaluations())
    if as_json:
        shown = {"directory": str(directory.path), **to_json(summary), "evaluations": held_out}
        print(json.dumps(shown, ensure_ascii=False))
        return
    if quiet:
        print(directory.path)
        return
    from sandlot.cli.report import print_tables
    from sandlot.train.live import evaluation_table

    found = [evaluation_table(held_out)] if held_out else []
    print_tables(list(summary.lines()), found, [], None)
    print(f"run: {directory.path}")
    print(f"next: sandlot train plot {directory.path} --out curves.svg")
    print(f"      sandlot train export {directory.path} --to {export_form(directory)} --out PATH")


def export_form(directory: TrainDirectory) -> str:
    return "adapter" if directory.manifest()["config"]["model"].get("lora") else "hf"
