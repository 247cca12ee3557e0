"""Frozen dataclasses to JSON values and back, driven by their annotations.

Bytes travel as base64. Unknown fields are ignored on reading, so that a newer record stays
readable; a missing field without a default is an error that names it.
"""

from __future__ import annotations

import base64
import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from sandlot.core.errors import RecordError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A JSON-encodable copy of a dataclass, enum, bytes, mapping or sequence."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_json(item) for item in value)  # the same record for the same set
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], data: Any) -> T:
    """Rebuild `cls` (a dataclass) from what `to_json` gave.

    Raises:
        RecordError: the data does not fit; the message names the class and field.
    """
    try:
        return typing.cast(T, _decode(cls, data))
    except (TypeError, ValueError, KeyError) as exc:
        raise RecordError(f"{cls.__name__}: {exc}") from exc


@cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, data: Any) -> Any:
    if hint is Any or data is None:
        return data
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(hint, data)
    if origin is typing.Literal:
        return data
    if origin is tuple:
        item = typing.get_args(hint)[0]
        return tuple(_decode(item, entry) for entry in data)
    if origin is not None and issubclass(origin, Mapping):
        item = typing.get_args(hint)[1]
        return {key: _decode(item, entry) for key, entry in data.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, data)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(data)
    if hint is bytes:
        return base64.b64decode(data)
    return data


def _decode_dataclass(cls: type, data: Any) -> Any:
    if not isinstance(data, Mapping):
        raise TypeError(f"expected an object, found {type(data).__name__}")
    hints = _hints(cls)
    values = {name: _decode(hints[name], data[name]) for name in _field_names(cls) if name in data}
    return cls(**values)


def _decode_union(hint: Any, data: Any) -> Any:
    """Unions of dataclasses are told apart by a literal `type` field; others by being one."""
    choices = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if len(choices) == 1:
        return _decode(choices[0], data)
    for choice in choices:
        if dataclasses.is_dataclass(choice) and isinstance(data, Mapping):
            tag = _hints(typing.cast(type, choice)).get("type")
            if tag is not None and data.get("type") in typing.get_args(tag):
                return _decode(choice, data)
    if any(dataclasses.is_dataclass(choice) for choice in choices):
        raise ValueError(f"no member of {hint} has type {data!r:.80}")
    return data
