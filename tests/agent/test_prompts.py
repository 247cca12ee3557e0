"""Profiles are data, and a problem's own braces are never placeholders."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandlot.agent.budget import Budget
from sandlot.agent.prompts import (
    Profile,
    digest,
    first_messages,
    load_profile,
    load_prompt_file,
    profile_names,
)
from sandlot.core.errors import ConfigError
from sandlot.core.types import Role, Task

BASE = Profile("base", "{problem_statement}")


def test_the_shipped_profiles_load() -> None:
    assert {"compact", "general", "llm", "benchmark", "benchmark-llm"} <= set(profile_names())
    for name in profile_names():
        assert load_profile(name).name == name


def test_the_compact_profile_fits_a_tiny_model() -> None:
    compact = load_profile("compact")
    assert (compact.observation_chars, compact.context_tokens, compact.max_turns) == (100, 512, 8)
    prompt = "".join(message.text for message in first_messages(compact, Task("t", "")))
    assert len(prompt) < 200


def test_an_unknown_profile_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'general'"):
        load_profile("generl")


def test_braces_and_placeholders_in_a_problem_stay_as_they_are() -> None:
    problem = "f'{x}' {answer_file} {{}} {problem_statement} \\1 {0}"
    profile = Profile("p", "{problem_statement} -> {answer_file} {unknown}", answer_file="/a")
    (message,) = first_messages(profile, Task("t", problem))
    assert message.text == f"{problem} -> /a {{unknown}}"
    assert message.role is Role.USER


def test_the_digest_changes_with_any_field() -> None:
    assert digest(BASE) == digest(Profile("base", "{problem_statement}"))
    assert digest(BASE) != digest(Profile("base", "{problem_statement}", max_turns=99))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_toml_prompt_file_may_set_any_field(tmp_path: Path) -> None:
    path = write(tmp_path, "p.toml", 'instance_prompt = "Do {problem_statement}"\nmax_turns = 5\n')
    profile = load_prompt_file(path, BASE)
    assert (profile.instance_prompt, profile.max_turns) == ("Do {problem_statement}", 5)


def test_yaml_blocks_are_read(tmp_path: Path) -> None:
    text = (
        "# prompts\nsystem_prompt: |\n  You: a # model.\n\n    indented\n"
        "instance_prompt: >-\n  One\n  line {problem_statement}\n\n  Two\nother: 'it''s'\n"
    )
    profile = load_prompt_file(write(tmp_path, "p.yaml", text), BASE)
    assert profile.system_prompt == "You: a # model.\n\n  indented\n"
    assert profile.instance_prompt == "One line {problem_statement}\n\nTwo"
    assert profile.name == "p"


def test_json_prompt_files_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "p.json", '{"system_prompt": "S", "instance_prompt": "I"}')
    assert load_prompt_file(path, BASE).system_prompt == "S"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.toml", "max_turn = 3", "Did you mean 'max_turns'"),
        ("p.toml", "max_turns = true", "must be int"),
        ("p.toml", "max_turns = 'x'", "must be int"),
        ("p.toml", "tool_calls = 'json'", "have: auto, fenced, native, text"),
        ("p.toml", "instance_prompt = ''", "missing or empty"),
        ("p.toml", "x = ", "not valid TOML"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", "[]", "must hold an object"),
        ("p.json", '{"instance_prompt": 3}', "must be str"),
        ("p.yaml", "system_prompt: x", "no 'instance_prompt'"),
        ("p.yaml", "instance_prompt:\n  - a", "nested"),
        ("p.yaml", "- a", "only 'key: text'"),
    ],
)
def test_a_bad_prompt_file_says_what_is_wrong(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        load_prompt_file(write(tmp_path, name, text), BASE)


def test_a_missing_or_binary_prompt_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompt_file(tmp_path / "none.toml", BASE)
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompt_file(tmp_path / "b.toml", BASE)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_turns must be above zero"):
        Budget(max_turns=0)
    with pytest.raises(ConfigError, match="reminders"):
        Budget(reminders=-1)
