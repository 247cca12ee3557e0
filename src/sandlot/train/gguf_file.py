"""GGUF files, written tensor by tensor: the format in which llama.cpp reads weights and adapters.

Source: the format is described in ggml's docs/gguf.md; the bytes are those of the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sandlot.core.errors import ConfigError, MissingExtra
from sandlot.train.atomic import replacing

Kind = Literal["F32", "F16", "Q8_0"]
KINDS: tuple[Kind, ...] = ("F32", "F16", "Q8_0")
_Q8_BLOCK = 32  # values that share a scale; a row is a multiple of it


@dataclass(frozen=True, slots=True)
class Key:
    """A key-value of a file's header; `value_type` and `item_type` are names of GGUFValueType."""

    name: str
    value: Any
    value_type: str
    item_type: str | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written. `shape` is that of the array: rows first, the opposite of ggml's.

    `make` gives its float32 values when their turn comes, so that they are not all held at once.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    make: Callable[[], Any]

    @property
    def file_bytes(self) -> int:
        values = 1
        for size in self.shape:
            values *= size
        return {"F32": values * 4, "F16": values * 2, "Q8_0": values // _Q8_BLOCK * 34}[self.kind]


def kind_for(shape: Sequence[int], wanted: Kind) -> Kind:
    """`wanted` where llama.cpp takes it: vectors stay F32, rows that fill no block become F16."""
    if len(shape) < 2:
        return "F32"
    return "F16" if wanted == "Q8_0" and shape[-1] % _Q8_BLOCK else wanted


def write_gguf_file(
    target: Path, architecture: str, keys: Sequence[Key], tensors: Sequence[Tensor]
) -> None:
    """Write a whole file or none. The same arguments always give the same bytes.

    Raises:
        ExportError: the file cannot be written.
        MissingExtra: the package `gguf` is not there.
    """
    gguf = import_gguf()
    types = gguf.GGMLQuantizationType
    with replacing(target) as part:
        writer = gguf.GGUFWriter(part, architecture)
        for key in keys:
            item = None if key.item_type is None else gguf.GGUFValueType[key.item_type]
            writer.add_key_value(key.name, key.value, gguf.GGUFValueType[key.value_type], item)
        for tensor in tensors:
            _announce(gguf, writer, tensor)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(gguf.quants.quantize(tensor.make(), types[tensor.kind]))
            writer.flush()
        finally:
            writer.close()


def _announce(gguf: Any, writer: Any, tensor: Tensor) -> None:
    import numpy

    raw, shape = gguf.GGMLQuantizationType[tensor.kind], tensor.shape
    if tensor.kind == "Q8_0":
        shape = gguf.quants.quant_shape_to_byte_shape(tensor.shape, raw)
    dtype = numpy.dtype({"F32": "f4", "F16": "f2", "Q8_0": "u1"}[tensor.kind])
    writer.add_tensor_info(tensor.name, shape, dtype, tensor.file_bytes, raw_dtype=raw)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its tensors: `keys` by name, and the tensors' shapes, rows first."""

    path: Path
    keys: Mapping[str, Key]
    shapes: Mapping[str, tuple[int, ...]]

    def value(self, name: str) -> Any:
        """Raises:
        ConfigError: the file does not say.
        """
        if name not in self.keys:
            raise ConfigError(f"{self.path} says nothing of {name!r}; is it a file of weights?")
        return self.keys[name].value


def read_header(path: Path) -> Header:
    """Raises:
    ConfigError: the file cannot be read or is no GGUF file.
    MissingExtra: the package `gguf` is not there.
    """
    gguf = import_gguf()
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as exc:
        raise ConfigError(f"{path} cannot be read as a GGUF file: {exc}") from exc
    keys = {
        name: Key(name, field.contents(), field.types[0].name, _item_type(field))
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    shapes = {t.name: tuple(int(size) for size in reversed(t.shape)) for t in reader.tensors}
    return Header(path, keys, shapes)


def _item_type(field: Any) -> str | None:
    return field.types[-1].name if len(field.types) > 1 else None


def import_gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtra("writing GGUF files", "train") from error
    return gguf
