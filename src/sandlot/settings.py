"""The one reader of environment variables and configuration files.

Each setting comes from the first of: a flag or argument, `SANDLOT_NAME` or the provider's usual
variable, `./sandlot.toml`, the user's `sandlot/config.toml`, the default.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import TOOL_CALLS

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
DISPLAYS = ("auto", "rich", "plain", "none")


def parse_size(value: Any) -> int | None:
    """Bytes from `2GiB`, `512MiB`, `1.5g` or a whole number; `none` lifts the ceiling."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("none", "unlimited"):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text)
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"size {str(value)!r} is not understood; write it like 512MiB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_duration(value: Any) -> float | None:
    """Seconds from `90`, `90s`, `15m`, `1.5h` or a number; `none` lifts the ceiling."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip().lower()
        if text in ("none", "unlimited"):
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?", text)
        if match is None:
            raise ConfigError(
                f"duration {str(value)!r} is not understood; write it like 90s, 15m or 2h"
            )
        seconds = float(match[1]) * _SECONDS[match[2] or ""]
    if seconds <= 0 or not math.isfinite(seconds):
        raise ConfigError(f"duration {str(value)!r} must be above zero")
    return seconds


def _required_duration(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds is None:
        raise ConfigError("a duration is needed here; write it like 90s, 15m or 2h")
    return seconds


def parse_extra_body(value: Any) -> dict[str, Any]:
    """A JSON object, as text or already as a table."""
    if isinstance(value, Mapping):
        return dict(value)
    try:
        body = json.loads(str(value))
    except ValueError as exc:
        raise ConfigError(
            f"extra-body is not JSON ({exc}); write it like '{{\"top_k\": 20}}'"
        ) from exc
    if not isinstance(body, dict):
        raise ConfigError(f"extra-body must be a JSON object, found {type(body).__name__}")
    return body


def _text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"expected text, found {value!r}")
    return os.fspath(value)


def _hosts(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"expected host names, found {value!r}")
    return tuple(part.strip().lower() for part in parts if part.strip())


def _words(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ConfigError(f"expected words, found {value!r}")
    return tuple(part.strip() for part in parts if part.strip())


def _number(kind: type[int] | type[float], low: float) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = kind(value)
            if kind is int and number != float(value):
                raise ValueError
        except (TypeError, ValueError) as exc:
            word = "a whole number" if kind is int else "a number"
            raise ConfigError(f"expected {word}, found {value!r}") from exc
        if not math.isfinite(number) or number < low:
            raise ConfigError(f"must be at least {low:g}, found {value!r}")
        return number

    return parse


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value in ("none", "unlimited") else parse(value)


def _one_of(kind: str, words: tuple[str, ...]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise unknown_name(kind, str(value), words)
        return str(value)

    return parse


@dataclass(frozen=True, slots=True)
class _Setting:
    parse: Callable[[Any], Any]
    default: Any = None
    variables: tuple[str, ...] = ()


SETTINGS: dict[str, _Setting] = {
    "model": _Setting(_text),
    "base_url": _Setting(_text, variables=("OPENAI_BASE_URL",)),
    "api_key": _Setting(_text, variables=("OPENAI_API_KEY",)),
    "anthropic_api_key": _Setting(_text, variables=("ANTHROPIC_API_KEY",)),
    "tool_calls": _Setting(_one_of("tool-calls", TOOL_CALLS), "auto"),
    "model_timeout": _Setting(_required_duration, 600.0),
    "max_retries": _Setting(_number(int, 0), 6),
    "temperature": _Setting(_number(float, 0)),
    "top_p": _Setting(_number(float, 0)),
    "seed": _Setting(_number(int, 0)),
    "reply_tokens": _Setting(_number(int, 1)),
    "extra_body": _Setting(parse_extra_body, {}),
    "backend": _Setting(_text, "auto"),
    "engine": _Setting(_text, variables=("CONTAINER_HOST", "DOCKER_HOST")),
    "runtime": _Setting(_text),
    "image": _Setting(_text, "science"),
    "network": _Setting(_text, "packages"),
    "private_hosts": _Setting(_hosts, ()),
    "deny_hosts": _Setting(_hosts, ()),
    "egress_bytes": _Setting(parse_size),
    "egress_connections": _Setting(_optional(_number(int, 1))),
    "credentials": _Setting(_words, ()),
    "accept_unenforced": _Setting(_words, ()),
    "memory": _Setting(parse_size, 4 * 2**30),
    "cpus": _Setting(_optional(_number(float, 0.01))),
    "processes": _Setting(_optional(_number(int, 1)), 1024),
    "disk": _Setting(parse_size, 2 * 2**30),
    "open_files": _Setting(_optional(_number(int, 1)), 4096),
    "file_size": _Setting(parse_size),
    "wall_time": _Setting(parse_duration),
    "timeout": _Setting(_required_duration, 120.0),
    "profile": _Setting(_text),
    "prompt_file": _Setting(_text),
    "max_turns": _Setting(_number(int, 1), 100),
    "max_tokens": _Setting(_optional(_number(int, 1))),
    "time_limit": _Setting(parse_duration),
    "judge": _Setting(_text),
    "prices": _Setting(_text),
    "runs": _Setting(_text, "runs"),
    "display": _Setting(_one_of("display", DISPLAYS), "auto"),
}
SECRET_SETTINGS = ("api_key", "anthropic_api_key")


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, resolved. Sizes in bytes, durations in seconds, None for no value or ceiling.

    `sources` says for each setting where its value came from: `argument`, the name of a variable,
    the path of a file, or `default`.
    """

    model: str | None = None
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    anthropic_api_key: str | None = field(default=None, repr=False)
    tool_calls: str = "auto"
    model_timeout: float = 600.0
    max_retries: int = 6
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    reply_tokens: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    backend: str = "auto"
    engine: str | None = None
    runtime: str | None = None
    image: str = "science"
    network: str = "packages"
    private_hosts: tuple[str, ...] = ()
    deny_hosts: tuple[str, ...] = ()
    egress_bytes: int | None = None
    egress_connections: int | None = None
    credentials: tuple[str, ...] = ()
    accept_unenforced: tuple[str, ...] = ()
    memory: int | None = 4 * 2**30
    cpus: float | None = None
    processes: int | None = 1024
    disk: int | None = 2 * 2**30
    open_files: int | None = 4096
    file_size: int | None = None
    wall_time: float | None = None
    timeout: float = 120.0
    profile: str | None = None
    prompt_file: str | None = None
    max_turns: int = 100
    max_tokens: int | None = None
    time_limit: float | None = None
    judge: str | None = None
    prices: str | None = None
    runs: str = "runs"
    display: str = "auto"
    cache_dir: Path = Path()
    state_dir: Path = Path()
    sources: Mapping[str, str] = field(default_factory=dict)

    def asked(self, name: str) -> bool:
        """Whether the user set this, anywhere; a default may fall back, what was asked may not."""
        return self.sources.get(name, "default") != "default"

    def public(self) -> dict[str, Any]:
        """Every setting but the secrets, for the run's manifest."""
        names = (name for name in SETTINGS if name not in SECRET_SETTINGS)
        return {name: getattr(self, name) for name in names}


def resolve(
    arguments: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Settings:
    """Settle every setting.

    Args:
        arguments: flags or keyword arguments by setting name; None means not given.
        environ: variables instead of this process's own.
        directory: where `sandlot.toml` is looked for, instead of the working directory.
    Raises:
        ConfigError: a value cannot be used, or a file holds a setting that does not exist.
    """
    environ = os.environ if environ is None else environ
    home = Path(environ.get("HOME") or Path.home())
    project = (directory or Path.cwd()) / "sandlot.toml"
    layers = (
        _from_arguments(arguments or {}),
        _from_environment(environ),
        _from_file(project),
        _from_file(_xdg(environ, "XDG_CONFIG_HOME", home / ".config") / "config.toml"),
    )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in reversed(layers):
        for name, (value, source) in layer.items():
            values[name], sources[name] = value, source
    return Settings(
        **values,
        cache_dir=_xdg(environ, "XDG_CACHE_HOME", home / ".cache"),
        state_dir=_xdg(environ, "XDG_STATE_HOME", home / ".local" / "state"),
        sources=sources,
    )


_Layer = dict[str, tuple[Any, str]]


def _parsed(name: str, value: Any, where: str) -> Any:
    try:
        return SETTINGS[name].parse(value)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def _from_arguments(arguments: Mapping[str, Any]) -> _Layer:
    layer: _Layer = {}
    for name, value in arguments.items():
        if name not in SETTINGS:
            raise unknown_name("setting", name, SETTINGS)
        if value is not None:
            flag = "--" + name.replace("_", "-")
            layer[name] = (_parsed(name, value, flag), "argument")
    return layer


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    layer: _Layer = {}
    for name, setting in SETTINGS.items():
        for variable in (f"SANDLOT_{name.upper()}", *setting.variables):
            if environ.get(variable):
                layer[name] = (_parsed(name, environ[variable], variable), variable)
                break
    return layer


def _from_file(path: Path) -> _Layer:
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    layer: _Layer = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        where = f"{path}{_line_of(text, key)}"
        if name not in SETTINGS:
            raise ConfigError(f"{where}: {unknown_name('setting', key, SETTINGS)}")
        layer[name] = (_parsed(name, value, f"{where}: {key}"), str(path))
    return layer


def _line_of(text: str, key: str) -> str:
    pattern = re.compile(rf"\s*\[*\s*[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.match(line):
            return f":{number}"
    return ""


def _xdg(environ: Mapping[str, str], variable: str, fallback: Path) -> Path:
    base = environ.get(variable, "")
    # The specification tells programs to ignore a relative path here.
    return (Path(base) if base.startswith("/") else fallback) / "sandlot"
