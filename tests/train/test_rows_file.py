"""Rollouts that are learned from: read from exports, and written into a model's own tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_chat import REASON, family_tokenizer, template_text

from sandlot.core.errors import InputError
from sandlot.core.tokens import TokenRow
from sandlot.models.openai_wire import encode_tools
from sandlot.tools import default_tools
from sandlot.train.base import Episode
from sandlot.train.records import write_records

pytest.importorskip("transformers", reason=REASON)

from sandlot.train.chat import TemplateFormat, ToolForm
from sandlot.train.rows_file import read_rollouts

TOOLS = encode_tools([tool.spec for tool in default_tools()])
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "You have a computer."},
    {"role": "user", "content": [{"type": "text", "text": "Count the lines."}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": "execute_bash", "arguments": '{"command": "wc -l a.txt"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0", "content": "3 a.txt\n"},
    {"role": "assistant", "content": "Three lines."},
]


def chat(form: ToolForm = "native", family: str = "qwen2_5") -> TemplateFormat:
    return TemplateFormat(family_tokenizer(family), form, template=template_text(family))


def written(path: Path, *lines: Mapping[str, Any], end: str = "\n") -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + end)
    return path


def said(row: TokenRow, form: TemplateFormat) -> list[str]:
    """The runs of tokens that are learned, as text."""
    runs: list[list[int]] = [[]]
    for token, sampled in zip(row.ids, row.sampled, strict=True):
        if sampled:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [form.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3", "llama3_1"])
def test_a_conversation_is_learned_as_the_model_would_have_said_it(
    tmp_path: Path, family: str
) -> None:
    """One row; its replies, ends of turns included, and nothing of what was given."""
    form = chat(family=family)
    file = written(tmp_path / "talk.jsonl", {"messages": TALK, "tools": TOOLS})
    (episode,) = read_rollouts(file, form)
    (row,) = episode.rows
    first, second = said(row, form)
    end = form.tokenizer.convert_ids_to_tokens(form.end_of_turn)
    assert "wc -l a.txt" in first
    assert second.endswith(f"Three lines.{end}")  # Qwen3 writes that it thought nothing first
    whole = form.tokenizer.decode(row.ids)
    assert "Count the lines." in whole
    assert "3 a.txt" in whole
    assert row.logprobs == (0.0,) * len(row.ids)
    assert (episode.task_id, episode.reward) == ("talk.jsonl:1", None)


def test_a_reply_that_was_read_back_is_the_call_that_was_written(tmp_path: Path) -> None:
    form = chat("fenced")
    (episode,) = read_rollouts(
        written(tmp_path / "x.jsonl", {"messages": TALK, "tools": TOOLS}), form
    )
    first, _ = said(episode.rows[0], form)
    assert first.startswith("```bash\nwc -l a.txt\n```")


def test_an_export_brings_its_name_and_score(tmp_path: Path) -> None:
    about = {"id": "math.q1.sandbox.0", "score": 0.5}
    file = written(tmp_path / "x.jsonl", {"messages": TALK, "tools": TOOLS, "metadata": about})
    (episode,) = read_rollouts(file, chat())
    assert (episode.group, episode.task_id, episode.reward) == (
        "math.q1.sandbox.0",
        "math.q1.sandbox.0",
        0.5,
    )


def test_records_of_a_run_are_taken_as_they_are(tmp_path: Path) -> None:
    row = TokenRow((5, 6, 7), (False, True, True), (0.0, -0.5, -0.25))
    episode = Episode("1.0.t", "t", (row,), 1.0)
    write_records(tmp_path / "x.jsonl", [episode])
    assert list(read_rollouts(tmp_path / "x.jsonl", chat())) == [episode]


def test_token_records_without_log_probabilities_can_be_learned_too(tmp_path: Path) -> None:
    segment = {"token_ids": [5, 6], "loss_mask": [0, 1], "logprobs": None}
    line = {"id": "a", "group": "g", "reward": 1, "model": "m", "segments": [segment]}
    (episode,) = read_rollouts(written(tmp_path / "x.jsonl", line), chat())
    assert episode.rows == (TokenRow((5, 6), (False, True), (0.0, 0.0)),)


def test_a_score_that_is_no_number_is_named_by_its_line(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", {"messages": TALK, "reward": "good"})
    with pytest.raises(InputError, match=r"x\.jsonl:1: the score or reward .* found 'good'"):
        list(read_rollouts(file, chat()))


def test_a_last_line_without_a_newline_is_read_and_empty_ones_are_passed_over(
    tmp_path: Path,
) -> None:
    """Other programs end their files as they like."""
    file = written(tmp_path / "x.jsonl", {"messages": TALK}, {"messages": TALK}, end="")
    file.write_text(file.read_text().replace("\n", "\n\n"))
    assert len(list(read_rollouts(file, chat()))) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"x\.jsonl:2: not JSON"),
        ("[1]", r"x\.jsonl:2: expected an object, found list"),
        ('{"prompt": "a"}', r"x\.jsonl:2: no rollout to learn from.*found: prompt"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no assistant message"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "unknown role 'robot'"),
        ('{"messages": ["a"]}', r"x\.jsonl:2: damaged"),
        ('{"messages": [], "tools": [{}]}', r"x\.jsonl:2: damaged: KeyError: 'function'"),
        ('{"id": "a", "group": "g", "reward": 2, "segments": []}', r"reward 2 is not in \[0, 1\]"),
    ],
)
def test_a_line_that_is_no_rollout_is_named_by_its_number(
    tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"messages": TALK}) + f"\n{line}\n")
    with pytest.raises(InputError, match=said):
        list(read_rollouts(file, chat()))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read"):
        list(read_rollouts(tmp_path / "none.jsonl", chat()))
