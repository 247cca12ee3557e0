"""The results as text for people."""

from __future__ import annotations

from typing import Any

from measure import Row, Sample


def line(row: Row) -> str:
    floor = f", floor {_figure(row.floor)}" if row.floor else ""
    times = f", {row.ratio:g} ×" if row.ratio is not None else ""
    mark = f"; {row.mark}: {_met(row)}" if row.mark else ""
    return f"    {row.name}: {_spread(row.value)}{floor}{times}{mark}"


def page(rows: list[Row], machine: dict[str, Any]) -> str:
    """Markdown: the machine, the table, and the further figures of each row."""
    changed = " (with local changes)" if machine["source_changed"] else ""
    head = [
        "# Measured",
        "",
        "Written by `make bench`; do not edit. `notes.md` says why a mark is missed and where the",
        "time goes.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_mib']} MiB, "
        f"Linux {machine['kernel']}, Python {machine['python']}, "
        f"{'root' if machine['root'] else 'ordinary user'}, {machine['date']}, "
        f"commit `{machine['commit'][:12]}`{changed}.",
        "",
        "| what | median (p10 to p90, n) | floor, same run | ratio | mark | met | load |",
        "|---|---|---|---|---|---|---|",
    ]
    further = [f"- **{row.name}**: {_details(row.detail)}" for row in rows if row.detail]
    return "\n".join([*head, *map(_cells, rows), "", "## Further figures", "", *further, ""])


def _cells(row: Row) -> str:
    floor = f"{_figure(row.floor)}: {row.floor_is}" if row.floor else "none"
    times = "" if row.ratio is None else f"{row.ratio:g}"
    loads = f"{row.load_before:g} → {row.load_after:g}"
    cells = (row.name, _spread(row.value), floor, times, row.mark, _met(row), loads)
    return "| " + " | ".join(cells) + " |"


def _met(row: Row) -> str:
    return {True: "yes", False: "**no**", None: ""}[row.met]


def _figure(sample: Sample) -> str:
    return f"{sample.median:.3g} {sample.unit}"


def _spread(sample: Sample) -> str:
    return f"{_figure(sample)} ({sample.p10:.3g} to {sample.p90:.3g}, n={sample.n})"


def _details(detail: dict[str, Any]) -> str:
    return "; ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in detail.items())


def _value(value: Any) -> str:
    if isinstance(value, Sample):
        return _spread(value)
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_value(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
