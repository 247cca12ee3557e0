"""What is done with a training run afterwards: measured again, written for others. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sandlot.agent.prompts import load_profile
from sandlot.core.errors import ConfigError, InputError
from sandlot.models.adapters import ADAPTER_FILE, Manifest, Pin
from sandlot.settings import resolve
from sandlot.train import checkpoint, export
from sandlot.train.assemble import Policy, assemble, build_policy, text_of
from sandlot.train.base import Note
from sandlot.train.config import TaskSource, TrainConfig, digest
from sandlot.train.curves import Evaluated
from sandlot.train.directory import TrainDirectory
from sandlot.train.driver import Driver, Mode
from sandlot.train.engine_server import ServerEngine
from sandlot.train.forms import file_before
from sandlot.train.gguf_file import Kind
from sandlot.train.sources import Tasks, open_tasks
from sandlot.train.weights import load_values

UNTRAINED = "untrained"
"""In place of a checkpoint's name: the model as the run began with it."""


def put_checkpoint(model: Any, directory: TrainDirectory, name: str | None, note: Note) -> int:
    """Give the model the values of a checkpoint (the newest without a name); how many steps it has.

    Raises:
        InputError: no such checkpoint, or one of another model.
    """
    if name == UNTRAINED:
        return 0
    found = (
        checkpoint.newest(directory.checkpoints, note)
        if name is None
        else checkpoint.named(directory.checkpoints, name)
    )
    if found is None:
        raise InputError(f"{directory.path} has no checkpoint yet")
    load_values(model, found.weights())
    return found.step


async def evaluate(
    directory: TrainDirectory,
    config: TrainConfig,
    note: Note,
    *,
    sets: Sequence[str] = (),
    modes: Sequence[str] = (),
    temperatures: Sequence[float] = (),
    limit: int | None = None,
    name: str | None = None,
) -> list[Mapping[str, Any]]:
    """Play held-out sets with a checkpoint; the lines are appended to `measured.jsonl`.

    What is not given is as the run's config says. `sets` may also name task sets that the config
    does not. A server that draws gets the checkpoint's weights first.

    Raises:
        RecordError: the run goes on meanwhile, and its server holds its weights.
    """
    known = config.tasks.evaluate
    chosen = {each: known.get(each, TaskSource(set=each)) for each in sets} or dict(known)
    if not chosen:
        raise ConfigError("the config names no held-out set; name one with --set")
    config = replace(config, tasks=replace(config.tasks, evaluate=chosen))
    parts = assemble(config, note)
    lines: list[Mapping[str, Any]] = []
    alone = ExitStack()
    try:
        step = put_checkpoint(parts.policy.model, directory, name, note)
        parts.policy.model.eval()
        driver = Driver(config, parts, directory, note)
        if isinstance(parts.engine, ServerEngine):
            alone.enter_context(directory.alone())  # a run under way has its own weights there
            await driver.publish(step)
        for each, source in parts.evaluate.items():
            tasks = source.all(source.source.limit)[:limit]
            for mode in modes or config.evaluate.modes:
                for temperature in temperatures or config.evaluate.temperatures:
                    result: Evaluated = await driver.evaluate_on(
                        tasks, cast(Mode, mode), temperature, parts.scorers[each]
                    )
                    line = directory.add_measured(name or "newest", step, each, result)
                    lines.append(line)
                    note(f"{each}, {mode}, T = {temperature:g}: {result.reward}")
    finally:
        alone.close()
        await parts.close()
    return lines


def write(
    directory: TrainDirectory,
    config: TrainConfig,
    note: Note,
    *,
    form: str,
    out: Path,
    name: str | None = None,
    base: Path | None = None,
    kind: Kind | None = None,
    max_bytes: int | None = None,
    label: str | None = None,
) -> Path:
    """A checkpoint as an adapter, a Hugging Face folder or a GGUF file; gives what to name.

    Args:
        base: a GGUF file of the model before its training; the run's own where that was one.
        label: what an adapter is called behind the model's name.
    Raises:
        ConfigError: the form does not suit the run. ExportError: it cannot be written.
    """
    below = file_before(config, form, base)
    policy = build_policy(config, _tasks_of(config, note), note)
    put_checkpoint(policy.model, directory, name, note)
    if form == "adapter":
        assert below is not None
        _write_adapter(directory, config, policy, below, out, kind, max_bytes, label)
        return out / ADAPTER_FILE
    model = export.merged(policy.model) if config.model.lora is not None else policy.model
    if below is None:
        if config.model.template is not None:
            policy.tokenizer.chat_template = text_of(config.model.template)
        export.write_hf(model, policy.tokenizer, out)
    else:
        export.write_gguf(model, below, out, kind or "Q8_0")
    return out


def _tasks_of(config: TrainConfig, note: Note) -> Tasks | None:
    """The training tasks where a model is made from them; else they need not be here any more."""
    if config.model.random is None:
        return None
    return open_tasks(config.tasks.train, cache=resolve({}).cache_dir, note=note)


def _write_adapter(
    directory: TrainDirectory,
    config: TrainConfig,
    policy: Policy,
    base: Path,
    out: Path,
    kind: Kind | None,
    max_bytes: int | None,
    label: str | None,
) -> Manifest:
    recipe = directory.manifest().get("recipe")
    pin = Pin(config.name, digest(config))
    if recipe is not None:
        pin = Pin(Path(recipe["path"]).name, recipe["sha256"])
    return export.export_adapter(
        export.lora_of(policy.model),
        base,
        out,
        name=label or config.name,
        profile=load_profile(config.sandbox.profile),
        kind=kind or "F16",
        max_bytes=max_bytes,
        recipe=pin,
        seed=config.seed,
        scores=scores_of(directory),
    )


def scores_of(directory: TrainDirectory) -> dict[str, Any]:
    """The run's first and last evaluations, by set, mode and temperature."""
    found: dict[str, Any] = {}
    for line in directory.evaluations():
        place = f"{line['set']} {line['mode']} T={line['temperature']:g}"
        figures = {name: line[name] for name in ("reward", "interval", "turns", "scored")}
        found.setdefault(place, {})["before" if line["step"] == 0 else "after"] = figures
    return found
