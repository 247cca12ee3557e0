"""The choice of an id map, from the files of a pretended machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandlot.sandbox.idmap import RANGE, IdMap, detect

WIDE_MAP = "         0          0 4294967295\n"
NARROW_MAP = "         0     100000      65536\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/uid_map").write_text(WIDE_MAP)
    return tmp_path


@pytest.fixture
def mapping_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("newuidmap", "newgidmap"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def grant(machine: Path, subuid: str, subgid: str) -> None:
    (machine / "etc/subuid").write_text(subuid)
    (machine / "etc/subgid").write_text(subgid)


def test_root_gets_a_shifted_range_that_maps_nobody_of_the_host(machine: Path) -> None:
    found = detect(0, "root", machine)
    assert found.kind == "root"
    assert found.base == found.gid_base > 1_000_000_000
    assert found.base + found.count <= 2**31
    assert found.count == RANGE


def test_root_of_a_narrow_namespace_gets_one_id(machine: Path) -> None:
    (machine / "proc/self/uid_map").write_text(NARROW_MAP)
    assert detect(0, "root", machine) == IdMap("single")


@pytest.mark.usefixtures("mapping_programs")
def test_a_user_gets_the_first_granted_range_of_each_file(machine: Path) -> None:
    grant(machine, "eve:1:65536\nada:100000:65536\nada:900000:65536\n", "ada:200000:65536\n")
    assert detect(1000, "ada", machine) == IdMap("subids", 100000, 200000, RANGE)


@pytest.mark.usefixtures("mapping_programs")
def test_a_range_may_be_granted_to_the_number_of_the_user(machine: Path) -> None:
    grant(machine, "1000:300000:65536\n", "1000:300000:65536\n")
    assert detect(1000, "ada", machine).base == 300000


@pytest.mark.usefixtures("mapping_programs")
@pytest.mark.parametrize(
    "line",
    ["", "eve:100000:65536", "ada:100000:1000", "ada:much:65536", "ada", "# ada:100000:65536"],
    ids=["empty", "another user", "too narrow", "not a number", "torn", "comment"],
)
def test_a_file_without_a_usable_range_leaves_one_id(machine: Path, line: str) -> None:
    grant(machine, line + "\n", "ada:100000:65536\n")
    assert detect(1000, "ada", machine) == IdMap("single")


@pytest.mark.usefixtures("mapping_programs")
def test_a_range_of_users_without_one_of_groups_is_not_enough(machine: Path) -> None:
    (machine / "etc/subuid").write_text("ada:100000:65536\n")
    assert detect(1000, "ada", machine) == IdMap("single")


def test_a_range_is_no_use_without_the_programs_that_map_it(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant(machine, "ada:100000:65536\n", "ada:100000:65536\n")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert detect(1000, "ada", machine) == IdMap("single")


def test_folders_unpacked_for_different_maps_have_different_keys() -> None:
    maps = [
        IdMap("single"),
        IdMap("root", 5, 5, RANGE),
        IdMap("subids", 5, 5, RANGE),
        IdMap("subids", 5, 6, RANGE),
        IdMap("subids", 6, 5, RANGE),
    ]
    assert len({each.key for each in maps}) == len(maps)
