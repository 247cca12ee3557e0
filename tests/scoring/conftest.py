"""Shared by the tests of scoring: tools without a judge, and the folder of shared samples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandlot.scoring.base import ScoringTools

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def tools(tmp_path: Path) -> ScoringTools:
    return ScoringTools(cache_dir=tmp_path / "cache", environ=dict(os.environ))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of sample data, which is no part of the project."""
    folder = Path(os.environ.get("SANDLOT_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "scorer_cases.jsonl").is_file():
        pytest.skip(f"no sample data in {folder}; SANDLOT_SHARED_DATA names another folder")
    return folder
