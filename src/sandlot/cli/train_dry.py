"""`sandlot train CONFIG --dry-run`: one step with a tiny policy, and what the run needs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sandlot.cli.outcome import drive, say

if TYPE_CHECKING:
    from sandlot.bench.terminal import Table
    from sandlot.settings import Settings
    from sandlot.train.config import TrainConfig
    from sandlot.train.needs import Need


def dry_run(
    config: TrainConfig, settings: Settings, *, as_json: bool, rows: Path | None = None
) -> None:
    """Rehearse, and print what came of it."""
    from sandlot.cli.report import print_tables
    from sandlot.core.codec import to_json
    from sandlot.train.dry_run import dry_run as rehearse

    with tempfile.TemporaryDirectory(prefix="sandlot-dry-run-") as folder:
        report = drive(lambda: rehearse(config, settings, Path(folder), note=say, rows=rows))
    if as_json:
        print(json.dumps(to_json(report), ensure_ascii=False))
        return
    found = [needs_table(report.needs)] if report.needs else []
    print_tables(report.lines(), found, [], settings.display)
    if report.needs:
        print("Sharded training (FSDP, ZeRO-3) divides weights, gradients and optimizer among its")
        print("processes; plain data-parallel training does not.")


def needs_table(needs: tuple[Need, ...]) -> Table:
    from sandlot.bench.terminal import Table

    rows = tuple((each.part, each.what, each.how, each.text) for each in needs)
    return Table("What the run needs", ("part", "what", "how", "amount"), rows, 3)
