"""`sandlot tasks`: which task sets there are, and an item as a model gets it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandlot.cli import options
from sandlot.cli.outcome import say
from sandlot.cli.text import clean, one_line
from sandlot.core.errors import unknown_name

if TYPE_CHECKING:
    from sandlot.core.types import Task
    from sandlot.tasks.base import LoadedSet, TaskSet

app = typer.Typer(help="Task sets: what there is, and what is in them.", rich_markup_mode=None)

_COLUMNS = ("name", "items", "domain", "scorer", "source", "licence")


@app.callback(invoke_without_command=True)
def tasks(context: typer.Context, as_json: options.Json = False) -> None:
    """List the shipped task sets. Others are named by the path of a TOML file or of their rows."""
    if context.invoked_subcommand is None:
        _list(as_json)


def _list(as_json: bool) -> None:
    from sandlot.tasks.registry import load_row, set_names

    rows = [_described(load_row(name)) for name in set_names()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    lines = [_COLUMNS, *(tuple(str(row[name] or "-") for name in _COLUMNS) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_COLUMNS) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print(clean("  ".join([*cells, line[-1]]).rstrip()))


def _described(row: TaskSet) -> dict[str, Any]:
    return {
        "name": row.name,
        "title": row.title,
        "items": row.source.options.get("items"),
        "domain": row.domain,
        "scorer": row.scorer or None,
        "source": _source(row),
        "licence": row.licence,
        "members": list(row.members),
    }


def _source(row: TaskSet) -> str:
    source = row.source
    if row.members:
        return f"{len(row.members)} sets"
    if source.kind == "hub":
        pinned = (source.revision or "")[:12] if source.revision != "main" else "not pinned"
        return f"hub {source.dataset} {source.config or 'default'}/{source.split} ({pinned})"
    return {"builtin": "shipped", "generator": "generated"}.get(source.kind, str(source.path))


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="SET", help="A shipped set, or the path of a TOML or data file."),
    ],
    item: Annotated[
        str | None, typer.Option("--item", metavar="ID", help="One item, in full.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="NAME", help="Print this file of the item.")
    ] = None,
    truth: Annotated[
        bool, typer.Option("--truth", help="Also the ground truth, which no model is shown.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show a set's items, or one item as a model gets it: its prompt and its files."""
    from sandlot.settings import resolve
    from sandlot.tasks.registry import load_sets

    sets = load_sets(name, cache=resolve().cache_dir, environ=os.environ, progress=say)
    if item is None:
        _show_sets(sets, as_json, truth)
        return
    task = _picked(sets, item)
    if file is not None:
        _print_file(task, file)
    elif as_json:
        print(json.dumps(_as_json(task, truth), ensure_ascii=False))
    else:
        _show_task(task, truth)


def _picked(sets: tuple[LoadedSet, ...], item: str) -> Task:
    found = {task.id: task for one in sets for task in one.tasks}
    if item not in found:
        raise unknown_name("item", item, found)
    return found[item]


def _show_sets(sets: tuple[LoadedSet, ...], as_json: bool, truth: bool) -> None:
    if as_json:
        print(json.dumps([_set_as_json(one, truth) for one in sets], ensure_ascii=False))
        return
    for one in sets:
        print(clean(f"{one.row.name}: {one.row.title or 'a task set'}"))
        print(clean(f"  {len(one.tasks)} items, scorer {one.row.scorer}, digest {one.digest[:16]}"))
        for task in one.tasks:
            label = task.metadata.get("label") or ""
            files = f"{len(task.input_files)} files" if task.input_files else ""
            right = f"  = {one_line(str(task.target), 40)}" if truth else ""
            head = f"  {task.id}  {label:18}  {files:9}"
            print(clean(f"{head}  {one_line(task.prompt, 70)}{right}"))


def _set_as_json(loaded: LoadedSet, truth: bool) -> dict[str, Any]:
    described = _described(loaded.row)
    tasks = [_as_json(task, truth) for task in loaded.tasks]
    return described | {"items": len(tasks), "digest": loaded.digest, "tasks": tasks}


def _as_json(task: Task, truth: bool) -> dict[str, Any]:
    shown = {
        "id": task.id,
        "domain": task.domain,
        "label": task.metadata.get("label"),
        "prompt": task.prompt,
        "files": {name: len(data) for name, data in task.input_files.items()},
    }
    return shown | ({"truth": task.target} if truth else {})


def _show_task(task: Task, truth: bool) -> None:
    print(clean(task.prompt))
    if task.input_files:
        print("\nfiles in the input folder:")
    for name, data in task.input_files.items():
        print(clean(f"  {name}  {len(data):,} bytes"))
    if truth:
        print(clean(f"\nground truth: {json.dumps(task.target, ensure_ascii=False)}"))


def _print_file(task: Task, name: str) -> None:
    if name not in task.input_files:
        raise unknown_name(f"file of {task.id}:", name, task.input_files or ("none",))
    print(clean(task.input_files[name].decode("utf-8", "replace")))
