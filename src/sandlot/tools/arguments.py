"""From the raw text of a tool call to arguments that fit the tool's schema, or advice.

Covers the part of JSON schema that tool parameters use: object, string, integer, array of
integers, enum, required. Harmless slips ("3" for 3, null for an optional one) are put right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sandlot.models.base import ToolSpec


class BadCall(Exception):  # control flow inside one call: the message is the observation
    """The call cannot be carried out as written; the message tells the model what to change."""


def parse_arguments(spec: ToolSpec, raw: str) -> dict[str, Any]:
    """Raises BadCall."""
    values = _read_object(spec, raw)
    properties: Mapping[str, Any] = spec.parameters.get("properties", {})
    unknown = [name for name in values if name not in properties]
    if unknown:
        raise BadCall(f"{spec.name} has no parameter {unknown[0]!r}. {_usage(spec)}")
    values = {name: value for name, value in values.items() if value is not None}
    missing = [name for name in spec.parameters.get("required", ()) if name not in values]
    if missing:
        raise BadCall(f"{spec.name} needs {', '.join(map(repr, missing))}. {_usage(spec)}")
    fitted = {name: _fit(spec, name, properties[name], value) for name, value in values.items()}
    for name, value in fitted.items():
        _check_text(spec, name, value)
    return fitted


def _check_text(spec: ToolSpec, name: str, value: Any) -> None:
    """Half a surrogate pair has no bytes, and no path or command holds a NUL."""
    if not isinstance(value, str):
        return
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadCall(
            f"{spec.name}: {name!r} holds half of a \\u escape pair; write the character itself"
        )
    if "\0" in value and name in ("command", "path"):
        raise BadCall(f"{spec.name}: {name!r} holds a NUL character, which cannot be passed on")


def _read_object(spec: ToolSpec, raw: str) -> dict[str, Any]:
    try:
        values = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError) as exc:
        raise BadCall(
            f"the arguments of {spec.name} are not valid JSON ({exc}). Nothing was run. "
            f"Send one JSON object, with quotes and newlines escaped. {_usage(spec)}"
        ) from exc
    if not isinstance(values, dict):
        raise BadCall(f"the arguments of {spec.name} must be one JSON object. {_usage(spec)}")
    return values


def _usage(spec: ToolSpec) -> str:
    properties = spec.parameters.get("properties", {})
    required = spec.parameters.get("required", ())
    if not properties:
        return f"Usage: {spec.name} takes no parameters."
    names = [name if name in required else f"{name}?" for name in properties]
    return f"Usage: {spec.name}({', '.join(names)})."


def _fit(spec: ToolSpec, name: str, schema: Mapping[str, Any], value: Any) -> Any:
    fitted = _coerce(schema, value)
    if fitted is None:
        raise BadCall(
            f"{spec.name}: {name!r} must be {_wanted(schema)}, found {json.dumps(value)[:80]}."
        )
    return fitted


def _wanted(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    return "a list of integers" if schema.get("type") == "array" else f"of type {schema['type']}"


def _coerce(schema: Mapping[str, Any], value: Any) -> Any:
    """The value as the schema wants it, or None."""
    kind = schema.get("type")
    if kind == "integer":
        return _integer(value)
    if kind == "array":
        return _array(schema, value)
    if kind == "string":
        fits = isinstance(value, str) and value in schema.get("enum", (value,))
        return value if fits else None
    return value


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return int(value)
    except ValueError:
        return None


def _array(schema: Mapping[str, Any], value: Any) -> list[Any] | None:
    if isinstance(value, str):  # "[1, 20]" is a common slip
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list):
        return None
    items = [_coerce(schema.get("items", {}), item) for item in value]
    return None if any(item is None for item in items) else items
