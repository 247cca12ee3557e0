"""A task set's TOML file, read strictly: a field that does not exist is named with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sandlot.core.errors import ConfigError, unknown_name
from sandlot.tasks.base import Source, TaskSet

LIMITS = (
    "cpus",
    "disk",
    "egress_bytes",
    "egress_connections",
    "file_size",
    "max_tokens",
    "memory",
    "open_files",
    "processes",
    "time_limit",
    "timeout",
    "wall_time",
)
"""Settings that a row may set in its table `limits`, written as the settings are."""

_KINDS: dict[str, tuple[str, ...]] = {
    "builtin": ("path",),
    "file": ("path",),
    "hub": ("dataset", "split", "revision"),
    "generator": ("path",),
}
_TABLES = ("scorer_options", "limits", "options")
_LISTS = ("leak_hosts", "members")
_COUNTS = ("max_turns", "repeats")


def read_row(path: Path) -> TaskSet:
    """The row in a TOML file. Its name is the field `name`, else the file's.

    Raises:
        ConfigError: an unreadable file, an unknown or missing field, a value of the wrong type.
    """
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    return _RowFile(path, text).row(table)


def _names_fields(value: Any) -> bool:
    return isinstance(value, dict) and all(
        part in ("id", "prompt", "target", "files") and isinstance(name, str)
        for part, name in value.items()
    )


_OPTIONS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "fields": ("a table that names the fields of id, prompt, target or files", _names_fields),
    "ids": ('"number"', lambda value: value == "number"),
    "items": ("a whole number", lambda value: type(value) is int),
}


class _RowFile:
    """One file's text, so that what is wrong can be named with its line."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = text.splitlines()

    def row(self, table: Mapping[str, Any]) -> TaskSet:
        known = {field.name for field in fields(TaskSet)}
        values = self._checked(table, known, section=None)
        values.setdefault("name", self._path.stem)
        self._check_name(values["name"])
        if values.get("members"):
            values.setdefault("domain", "mixed")
            values.update(scorer="", source=Source("builtin"))
            return TaskSet(**values)
        self._require(values, ("domain", "scorer", "source"), section=None)
        values["source"] = self._source(values["source"])
        self._check_limits(values.get("limits", {}))
        return TaskSet(**values)

    def _source(self, table: Mapping[str, Any]) -> Source:
        values = self._checked(table, {field.name for field in fields(Source)}, section="source")
        self._require(values, ("kind",), section="source")
        kind = values["kind"]
        if kind not in _KINDS:
            place = self._place("source", "kind")
            raise ConfigError(f"{place}: {unknown_name('kind of source', kind, _KINDS)}")
        self._require(values, _KINDS[kind], section="source")
        if kind != "generator":  # which checks its own
            self._check_options(values.get("options", {}))
        return Source(**values)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            place = self._place("source", "options")
            if name not in _OPTIONS:
                raise ConfigError(f"{place}: {unknown_name('option', name, _OPTIONS)}")
            wanted, fits = _OPTIONS[name]
            if not fits(value):
                raise ConfigError(f"{place}: option {name!r} must be {wanted}, found {value!r}")

    def _checked(
        self, table: Mapping[str, Any], known: set[str], section: str | None
    ) -> dict[str, Any]:
        values = {}
        for name, value in table.items():
            if name not in known:
                raise ConfigError(
                    f"{self._place(section, name)}: {unknown_name('field', name, known)}"
                )
            values[name] = self._typed(section, name, value)
        return values

    def _typed(self, section: str | None, name: str, value: Any) -> Any:
        if name in _LISTS:
            if isinstance(value, list) and all(isinstance(one, str) for one in value):
                return tuple(value)
            raise self._wrong(section, name, "a list of texts", value)
        if name in _TABLES or (name == "source" and section is None):
            if isinstance(value, dict):
                return value
            raise self._wrong(section, name, "a table", value)
        if name in _COUNTS:
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            raise self._wrong(section, name, "a whole number above zero", value)
        if isinstance(value, str):
            return value
        raise self._wrong(section, name, "a text", value)

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ConfigError(
                f"{self._place(None, 'name')}: the name {name!r} goes into names of files: "
                "use letters, digits, - and _"
            )

    def _check_limits(self, limits: Mapping[str, Any]) -> None:
        for name in limits:
            if name not in LIMITS:
                place = self._place("limits", name)
                raise ConfigError(f"{place}: {unknown_name('limit', name, LIMITS)}")

    def _require(
        self, values: Mapping[str, Any], names: tuple[str, ...], section: str | None
    ) -> None:
        where = f" in [{section}]" if section else ""
        for name in names:
            if name not in values:
                found = ", ".join(sorted(values)) or "nothing"
                raise ConfigError(
                    f"{self._path}: field {name!r} is missing{where} (found: {found})"
                )

    def _wrong(self, section: str | None, name: str, wanted: str, value: Any) -> ConfigError:
        place = self._place(section, name)
        return ConfigError(f"{place}: field {name!r} must be {wanted}, found {value!r}")

    def _place(self, section: str | None, name: str) -> str:
        """The file, and the line where the field stands, as far as a plain search can tell."""
        current: str | None = None
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
            if header:
                current = header[1].strip("\"'")
                named = name if section is None else f"{section}.{name}"
                if current == named or (section is None and current.split(".")[0] == name):
                    return f"{self._path}:{number}"
            inline = section is not None and re.match(rf"\s*{re.escape(section)}\s*=", line)
            field = re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[=.]", line)
            if inline or (field and current == section):
                return f"{self._path}:{number}"
        return f"{self._path}"
