"""The training record: what is written is read back, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandlot.core.errors import RecordError
from sandlot.core.tokens import TokenRow, row_of, segment_of
from sandlot.train.base import Episode
from sandlot.train.records import (
    Recorded,
    Split,
    line_of,
    read_records,
    split,
    write_records,
)

ROW = TokenRow((5, 6, 7, 8), (False, True, False, True), (0.0, -0.5, 0.0, -0.25))
BARE = TokenRow((1, 2), (False, True))
GOOD = Episode(
    "errand-17@3", "errand-17", (ROW,), 0.5, None, "submitted", {"turns": 4.0}, {"profile": "x"}
)
SEVERAL = Episode("errand-17@3", "errand-17", (ROW, BARE), 1.0, None, "max_turns")
FAILED = Episode("errand-18@3", "errand-18", (), None, "the sandbox died", "sandbox_died")


def written(path: Path, *steps: list[Episode]) -> Path:
    for step, episodes in enumerate(steps):
        write_records(path, episodes, step=step, model="policy")
    return path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path / "records.jsonl", [GOOD, SEVERAL, FAILED], [GOOD])
    assert list(read_records(path)) == [
        Recorded("errand-17@3.0", GOOD, "policy", 0),
        Recorded("errand-17@3.1", SEVERAL, "policy", 0),
        Recorded("errand-18@3.0", FAILED, "policy", 0),
        Recorded("errand-17@3.0", GOOD, "policy", 1),
    ]


def test_a_line_has_the_documented_fields() -> None:
    assert line_of(Recorded("errand-17@3.0", GOOD, "policy", 3)) == {
        "id": "errand-17@3.0",
        "group": "errand-17@3",
        "reward": 0.5,
        "model": "policy",
        "segments": [
            {
                "token_ids": [5, 6, 7, 8],
                "loss_mask": [0, 1, 0, 1],
                "logprobs": [0.0, -0.5, 0.0, -0.25],
            }
        ],
        "step": 3,
        "task_id": "errand-17",
        "valid": True,
        "missing": None,
        "stop_reason": "submitted",
        "figures": {"turns": 4.0},
        "metadata": {"profile": "x"},
    }
    failed = line_of(Recorded("a.0", FAILED))
    assert (failed["valid"], failed["reward"], failed["missing"]) == (
        False,
        None,
        "the sandbox died",
    )


def test_a_reward_of_zero_without_a_sampled_token_is_not_valid_to_learn_from() -> None:
    silent = Episode("g", "t", (TokenRow((1, 2), (False, False)),), 0.0)
    assert line_of(Recorded("g.0", silent))["valid"] is False


def test_lines_of_an_export_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "training.jsonl"
    line = {
        "id": "math.3.sandbox.0",
        "group": "math.3.sandbox",
        "reward": 1,
        "model": "openai/x",
        "segments": [segment_of(BARE)],
    }
    path.write_text(json.dumps(line) + "\n")
    (found,) = read_records(path)
    assert found.episode == Episode("math.3.sandbox", "math.3.sandbox", (BARE,), 1.0)
    assert (found.model, found.step) == ("openai/x", None)


def test_a_record_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "records.jsonl", [GOOD])
    with path.open("ab") as file:
        file.write(b'{"id": "errand-17@4.0", "gro')
    assert len(list(read_records(path))) == 1
    written(path, [FAILED])
    assert [each.episode for each in read_records(path)] == [GOOD, FAILED]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere\.jsonl: cannot be read"):
        list(read_records(tmp_path / "nowhere.jsonl"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group": ...}, "field 'group' is missing"),
        ({"group": 7}, "field 'group' is a int"),
        ({"reward": ...}, "field 'reward' is missing"),
        ({"reward": True}, "field 'reward' is a bool"),
        ({"reward": 1.5}, r"reward 1.5 is not in \[0, 1\]"),
        ({"reward": float("nan")}, r"reward nan is not in \[0, 1\]"),
        ({"reward": None}, "marked as valid"),
        ({"segments": []}, "marked as valid"),
        ({"segments": {}}, "field 'segments' is a dict"),
        ({"segments": [7]}, "segment 0 is no object"),
        ({"segments": [{}]}, "segment 0: field 'token_ids' is missing"),
        ({"step": "3"}, "field 'step' is a str"),
    ],
)
def test_a_line_that_is_no_record_is_named_with_its_file_and_number(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "records.jsonl", [GOOD])
    line = line_of(Recorded("g.0", GOOD, "policy", 1)) | change
    line = {key: value for key, value in line.items() if value is not ...}
    with path.open("a") as file:
        file.write("\n" + json.dumps(line) + "\n")
    with pytest.raises(RecordError, match=rf"^records\.jsonl:3: {said}"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss_mask": [0, 1]}, "4 token_ids and 2 entries of loss_mask"),
        ({"loss_mask": [0, 2, 0, 1]}, "other than 0 and 1"),
        ({"loss_mask": [1, 0, 0, 0]}, "the first token is marked as sampled"),
        ({"loss_mask": [False, True, False, True]}, "other things than numbers"),
        ({"logprobs": [0.0]}, "4 token_ids and 1 logprobs"),
        ({"logprobs": [0.0, None, 0.0, 0.0]}, "other things than numbers"),
        ({"token_ids": [0.5, 1, 2, 3]}, "other things than numbers"),
        ({"token_ids": [], "loss_mask": []}, "0 token_ids"),
    ],
)
def test_a_segment_that_does_not_fit_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        row_of(segment_of(ROW) | change)


@given(
    st.lists(st.tuples(st.integers(0, 2**31), st.booleans(), st.floats(-1e3, 0)), min_size=1),
    st.booleans(),
)
def test_any_row_survives_its_segment_and_json(
    tokens: list[tuple[int, bool, float]], bare: bool
) -> None:
    ids, drawn, logprobs = zip(*tokens, strict=True)
    row = TokenRow(ids, (False, *drawn[1:]), None if bare else logprobs)
    assert row_of(json.loads(json.dumps(segment_of(row)))) == row


def test_a_row_is_split_before_its_first_sampled_token() -> None:
    assert split(ROW) == Split((5,), (6, 7, 8), (1, 0, 1), (-0.5, 0.0, -0.25))
    assert split(BARE) == Split((1,), (2,), (1,), None)
    assert split(TokenRow((1, 2), (False, False), (0.0, 0.0))) == Split((1, 2), (), (), ())
