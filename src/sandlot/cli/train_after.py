"""`sandlot train eval`, `export` and `plot`: what is done with a training run afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from sandlot.cli import options
from sandlot.cli.outcome import drive, say
from sandlot.core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from sandlot.train.directory import TrainDirectory

Run = Annotated[
    str, typer.Argument(metavar="DIR", help="A training run: a folder, a name in runs/, or `last`.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="NAME", help="One of its folder, or untrained. [newest]"),
]
_MODES = {"llm": ("llm",), "sandbox": ("sandbox",), "both": ("llm", "sandbox")}


def find_training(name: str, runs: Path) -> Path:
    """The training run of a path, of a name in the runs folder, or the newest one for `last`.

    Raises:
        ConfigError: there is none.
    """
    if name == "last":
        found = [each.parent for each in runs.glob("*/manifest.json")]
        if not found:
            raise ConfigError(f"there is no training run in {runs} yet")
        return max(found, key=lambda path: path.name)
    for path in (Path(name), runs / name):
        if (path / "manifest.json").is_file():
            return path
    raise ConfigError(
        f"training run {name!r} was not found: neither {name} nor {runs / name} holds a "
        "manifest.json; name a run directory, or `last`"
    )


def evaluate(
    run: Run,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME", help="A held-out set, or any task set; again."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", metavar="MODE", help="llm, sandbox or both. [config]")
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", metavar="T", help="0 is greedy; again. [config]"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="The first N tasks of a set.")
    ] = None,
    checkpoint: Checkpoint = None,
    display: options.Display = None,
    as_json: options.Json = False,
    runs: options.Runs = None,
) -> None:
    """Measure a checkpoint on held-out tasks. The figures are kept in the run's measured.jsonl.

    Exit codes: 0 measured; 2 a flag, run or set cannot be used; 3 the engine failed; 4 no sandbox
    can be had; 130 Ctrl-C.
    """
    from sandlot.cli.train import quiet_libraries, require_training

    if mode is not None and mode not in _MODES:
        raise unknown_name("mode", mode, tuple(_MODES))
    for each in temperature or ():
        if not 0 <= each < math.inf:
            raise ConfigError(f"--temperature must be 0 (greedy) or above, found {each:g}")
    directory = _open(run, runs)
    require_training()
    quiet_libraries()
    from sandlot.train import finished

    lines = drive(
        lambda: finished.evaluate(
            directory,
            _config(directory),
            _silent if display == "none" else say,
            sets=sets or (),
            modes=_MODES[mode] if mode is not None else (),
            temperatures=temperature or (),
            limit=limit,
            name=checkpoint,
        )
    )
    if as_json:
        print(json.dumps(lines, ensure_ascii=False))
        return
    from sandlot.cli.report import print_tables
    from sandlot.train.live import evaluation_table

    print_tables([], [evaluation_table(lines)], [], display)


def export(
    run: Run,
    form: Annotated[
        str, typer.Option("--to", metavar="FORM", help="adapter, hf or gguf.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="A folder; for gguf a file.")],
    checkpoint: Checkpoint = None,
    base: Annotated[
        Path | None,
        typer.Option("--base", metavar="FILE.gguf", help="The model before. [the run's, if GGUF]"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="TYPE", help="F32, F16 or Q8_0. [adapter: F16, gguf: Q8_0]"),
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", metavar="SIZE", help="An adapter is no larger.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of an adapter. [the config's]")
    ] = None,
    runs: options.Runs = None,
) -> None:
    """Write a trained model for other programs.

    adapter: a LoRA adapter for llama.cpp and `-m local:WEIGHTS+PATH/adapter.gguf`, with a manifest.
    hf: a Hugging Face folder, adapters merged, for vLLM, SGLang and transformers. gguf: one file of
    weights, adapters merged, for llama.cpp and `-m local:FILE`. The path goes to stdout.
    """
    from sandlot.cli.train import quiet_libraries, require_training
    from sandlot.settings import parse_size
    from sandlot.train.forms import file_before
    from sandlot.train.gguf_file import KINDS

    directory = _open(run, runs)
    require_training(*(() if form == "hf" else ("gguf",)))
    config = _config(directory)
    file_before(config, form, base)  # torch takes seconds to load: what cannot be is said before
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of GGUF tensors", kind, KINDS)
    _refuse_idle(form, kind=kind, max_bytes=max_bytes, name=name)
    quiet_libraries()
    from sandlot.train import finished

    written = finished.write(
        directory,
        config,
        say,
        form=form,
        out=out,
        name=checkpoint,
        base=base,
        kind=cast(Any, kind),
        max_bytes=None if max_bytes is None else parse_size(max_bytes),
        label=name,
    )
    print(written)


def _refuse_idle(form: str, *, kind: str | None, max_bytes: str | None, name: str | None) -> None:
    """Raises ConfigError for what was asked for and would change nothing."""
    for flag, given, forms in (
        ("--kind", kind, ("adapter", "gguf")),
        ("--max-bytes", max_bytes, ("adapter",)),
        ("--name", name, ("adapter",)),
    ):
        if given is not None and form not in forms:
            raise ConfigError(f"{flag} changes nothing of --to {form}: leave it out")


def plot(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="An SVG or PNG file, by its name.")
    ],
    runs: options.Runs = None,
) -> None:
    """Draw a run's curves: reward, turns, tokens, capabilities, useful groups, logprob gap.

    PNG files are drawn by Chromium, where this machine has one (or SANDLOT_CHROMIUM names it).
    """
    from sandlot.train.plot import curves, save_png, save_svg

    if out.suffix not in (".svg", ".png"):
        raise ConfigError(f"--out {out}: name a file that ends in .svg or .png")
    directory = _open(run, runs)
    drawn = curves(directory)
    if out.suffix == ".svg":
        save_svg(drawn, out)
    else:
        import os

        save_png(drawn, out, os.environ)
    print(out)


def _open(run: str, runs: str | None) -> TrainDirectory:
    from sandlot.settings import resolve
    from sandlot.train.directory import TrainDirectory

    chosen = resolve({} if runs is None else {"runs": runs}).runs
    return TrainDirectory.open(find_training(run, Path(chosen)), None)


def _config(directory: TrainDirectory) -> Any:
    from sandlot.train.config import read_config

    return read_config(directory.manifest()["config"], str(directory.path / "manifest.json"))


def _silent(line: str) -> None: ...
