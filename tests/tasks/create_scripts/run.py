"""`python3 run.py TASK OUTPUT GIVEN [miss]`: writes a task's files; needs the standard library."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts import SCRIPTS

if __name__ == "__main__":
    task, output, given, *rest = sys.argv[1:]
    Path(output).mkdir(parents=True, exist_ok=True)
    SCRIPTS[task](Path(output), Path(given), rest == ["miss"])
