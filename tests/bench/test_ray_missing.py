"""What needs no Ray: asking for it where it is not, and what is sent instead of paths."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandlot.bench.ray_executor import RayExecutor, _append, _file_parts
from sandlot.core.errors import MissingExtra
from sandlot.core.redact import Redactor


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"--executor ray needs an extra: .*sandlot\[ray\]"):
        RayExecutor(Redactor())


def test_files_cross_in_parts_with_their_modes_and_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandlot.bench.ray_executor._CHUNK", 4)
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "deep").mkdir(parents=True)
    (there / "deep" / "run.sh").write_bytes(b"0123456789")
    (there / "deep" / "run.sh").chmod(0o755)
    (there / "empty").write_bytes(b"")
    (there / "link").symlink_to("/etc/passwd")
    parts = list(_file_parts(there))
    assert [len(part.data) for part in parts] == [4, 4, 2, 0]
    for part in parts:
        _append(here, part)
    assert (here / "deep" / "run.sh").read_bytes() == b"0123456789"
    assert (here / "deep" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in here.rglob("*")) == ["deep", "empty", "run.sh"]
