"""Where a setting comes from, and what a bad one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandlot.core.errors import ConfigError
from sandlot.settings import parse_duration, parse_size, resolve


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), **variables}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_layer_yields_to_the_one_above_it(tmp_path: Path) -> None:
    write(tmp_path / "home/.config/sandlot/config.toml", 'model = "user"\nmemory = "1GiB"\n')
    assert resolve(environ=environment(tmp_path), directory=tmp_path).model == "user"
    write(tmp_path / "sandlot.toml", 'model = "project"\n')
    assert resolve(environ=environment(tmp_path), directory=tmp_path).model == "project"
    environ = environment(tmp_path, SANDLOT_MODEL="variable")
    assert resolve(environ=environ, directory=tmp_path).model == "variable"
    settings = resolve({"model": "flag"}, environ=environ, directory=tmp_path)
    assert settings.model == "flag"
    assert settings.memory == 2**30
    assert settings.sources["model"] == "argument"
    assert settings.sources["memory"].endswith("config.toml")
    assert settings.asked("memory")
    assert not settings.asked("disk")


def test_our_variable_wins_over_the_providers(tmp_path: Path) -> None:
    environ = environment(tmp_path, OPENAI_API_KEY="theirs", SANDLOT_API_KEY="ours")
    assert resolve(environ=environ, directory=tmp_path).api_key == "ours"


def test_an_unknown_key_in_a_file_is_named_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "sandlot.toml", '# ours\nmodle = "x"\n')
    with pytest.raises(ConfigError, match=r"sandlot\.toml:2: .*'modle'.*Did you mean 'model'"):
        resolve(environ=environment(tmp_path), directory=tmp_path)


def test_a_bad_value_in_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "sandlot.toml", 'model = "x"\nmemory = "lots"\n')
    with pytest.raises(ConfigError, match=r"sandlot\.toml:2: memory: size 'lots'"):
        resolve(environ=environment(tmp_path), directory=tmp_path)


def test_broken_toml_is_a_clear_error(tmp_path: Path) -> None:
    write(tmp_path / "sandlot.toml", "model = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        resolve(environ=environment(tmp_path), directory=tmp_path)


def test_private_hosts_come_as_text_or_as_a_list(tmp_path: Path) -> None:
    environ = environment(tmp_path, SANDLOT_PRIVATE_HOSTS="packages, Git.Example.org")
    both = ("packages", "git.example.org")
    assert resolve(environ=environ, directory=tmp_path).private_hosts == both
    write(tmp_path / "sandlot.toml", 'private_hosts = ["packages", "git.example.org"]\n')
    assert resolve(environ=environment(tmp_path), directory=tmp_path).private_hosts == both


def test_folders_follow_the_xdg_variables_and_ignore_relative_ones(tmp_path: Path) -> None:
    environ = environment(tmp_path, XDG_CACHE_HOME="/c", XDG_STATE_HOME="relative")
    settings = resolve(environ=environ, directory=tmp_path)
    assert settings.cache_dir == Path("/c/sandlot")
    assert settings.state_dir == tmp_path / "home/.local/state/sandlot"


def test_secrets_are_neither_shown_nor_stored(tmp_path: Path) -> None:
    settings = resolve({"api_key": "hunter22"}, environ=environment(tmp_path), directory=tmp_path)
    assert "hunter22" not in repr(settings)
    assert "hunter22" not in str(settings.public())


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("512MiB", 2**29), ("1.5g", 1_500_000_000), ("7", 7), (7, 7), ("none", None)],
)
def test_sizes(text: object, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1.5h", 5400), (2, 2)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-5", "5 apples", "nan", "2Gi2", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("extra_body", "[1]"),
        ("extra_body", "{"),
        ("max_turns", "0"),
        ("max_turns", "1.5"),
        ("max_turns", True),
        ("temperature", "nan"),
        ("seed", "x"),
        ("time_limit", "0"),
        ("display", "pretty"),
        ("timeout", "none"),
    ],
)
def test_a_bad_value_names_its_flag(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        resolve({name: value}, environ=environment(tmp_path), directory=tmp_path)
