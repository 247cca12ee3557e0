"""Which user ids a sandbox gets: 64k of them where this machine allows it, else one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RANGE = 65536
_ROOT_BASE = 0x70000000  # above what distributions hand out, below the signed 32-bit border


@dataclass(frozen=True, slots=True)
class IdMap:
    """`kind` is `root` (a shifted range made by root), `subids` (newuidmap) or `single`.

    `base` and `gid_base` are the first host ids behind inner id 0 (`root`) or 1 (`subids`);
    `count` is the number of inner ids. `key` names folders that were unpacked for this map.
    """

    kind: Literal["root", "subids", "single"]
    base: int = 0
    gid_base: int = 0
    count: int = 1

    @property
    def key(self) -> str:
        return self.kind if self.kind == "single" else f"{self.kind}-{self.base}-{self.gid_base}"


def detect(uid: int, user: str, root: Path = Path("/")) -> IdMap:
    """The widest map that this user may have; whether the kernel agrees shows at the start."""
    if uid == 0:
        return _for_root(root)
    subuid = _first_range(root / "etc/subuid", uid, user)
    subgid = _first_range(root / "etc/subgid", uid, user)
    if subuid and subgid and shutil.which("newuidmap") and shutil.which("newgidmap"):
        return IdMap("subids", subuid, subgid, RANGE)
    return IdMap("single")


def _for_root(root: Path) -> IdMap:
    """Root may map any range, unless it is itself inside a narrow user namespace."""
    rows = [line.split() for line in (root / "proc/self/uid_map").read_text().splitlines()]
    for inner, _outer, count in rows:
        if int(inner) <= _ROOT_BASE and int(inner) + int(count) >= _ROOT_BASE + RANGE:
            return IdMap("root", _ROOT_BASE, _ROOT_BASE, RANGE)
    return IdMap("single")


def _first_range(path: Path, uid: int, user: str) -> int | None:
    """The start of the first range of at least 65,536 ids; see subuid(5)."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        start, _, count = rest.partition(":")
        wide = count.isdigit() and int(count) >= RANGE
        if name in (user, str(uid)) and start.isdigit() and wide:
            return int(start)
    return None
