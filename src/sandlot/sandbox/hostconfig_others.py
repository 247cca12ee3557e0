"""What of uv's files, conda, cargo and go enters a sandbox: their registries, without secrets."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sandlot.sandbox.hostconfig_reader import HostReader, is_host_name

CONDARC = "/etc/conda/.condarc"
CARGO_CONFIG = "/.cargo/config.toml"
"""Cargo reads the folders above the working one, so this one serves everywhere inside."""


def _toml(host: HostReader, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(host.read(path))
    except tomllib.TOMLDecodeError:
        host.warnings.append(f"{path}: not carried in (cannot be parsed)")
        return {}


def _tables(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# uv


def read_uv_files(host: HostReader) -> dict[str, tuple[str, str]]:
    """uv's variables (raw value, and where it stands) as its own files would set them."""
    config = Path(host.env.get("XDG_CONFIG_HOME") or host.home / ".config")
    paths = [host.path("/etc/xdg/uv/uv.toml"), host.path("/etc/uv/uv.toml"), config / "uv/uv.toml"]
    if chosen := host.env.get("UV_CONFIG_FILE"):
        paths = [host.path(chosen)]
    found: dict[str, tuple[str, str]] = {}
    for path in paths:
        for variable, words in _uv_settings(_toml(host, path)):
            found[variable] = (" ".join(words), f"{path}: index")
    return found


def _uv_settings(settings: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Variables and their words. A later one of the same name wins."""
    for table in (settings.get("pip"), settings):
        if isinstance(table, dict):
            if isinstance(url := table.get("index-url"), str):
                yield "UV_DEFAULT_INDEX", [url]
            if isinstance(urls := table.get("extra-index-url"), list):
                yield "UV_EXTRA_INDEX_URL", [url for url in urls if isinstance(url, str)]
    indexes = [item for item in _tables(settings.get("index")) if isinstance(item.get("url"), str)]
    if first := [item["url"] for item in indexes if item.get("default") is True]:
        yield "UV_DEFAULT_INDEX", first[:1]
    if others := [_uv_word(item) for item in indexes if item.get("default") is not True]:
        yield "UV_INDEX", others


def _uv_word(index: dict[str, Any]) -> str:
    name = index.get("name")
    return f"{name}={index['url']}" if isinstance(name, str) else str(index["url"])


# conda

_CONDA_KEY = re.compile(r"(channel_alias|default_channels|channels):\s*(\S*)\s*")
_CONDA_ITEM = re.compile(r"\s*-\s+(\S+)\s*")
_CONDA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
_ConfigLines = dict[str, list[str]]


def read_conda(host: HostReader, bundle: str | None) -> bytes:
    """conda's channels, as a file for the inside; conda itself is asked where it is installed."""
    asked = host.run(["conda", "config", "--show", "channel_alias", "default_channels", "channels"])
    settings: _ConfigLines = {}
    sources = [("conda config", asked)]
    paths = (host.path("/etc/conda/.condarc"), host.home / ".condarc")
    sources += [(str(path), host.read(path)) for path in paths]
    for where, text in sources:
        for key, values in _conda_lines(text).items():
            cleaned = [word for value in values if (word := _channel(host, value, where))]
            if cleaned:
                settings[key] = cleaned
    return _conda_file(settings, bundle)


def _conda_lines(text: str) -> _ConfigLines:
    """The few keys that matter, of the plain form that conda writes (one item a line)."""
    found: _ConfigLines = {}
    key = ""
    for line in text.splitlines():
        if match := _CONDA_KEY.fullmatch(line):
            key = match[1]
            found[key] = [match[2]] if match[2] not in ("", "[]") else []
        elif key and (item := _CONDA_ITEM.fullmatch(line)):
            found[key].append(item[1])
        elif line.strip():
            key = ""
    return found


def _channel(host: HostReader, word: str, where: str) -> str | None:
    """An address without secrets, or the bare name of a channel."""
    word = word.strip("\"'")
    if "://" in word or not _CONDA_NAME.fullmatch(word):
        return host.url(word, f"{where}: channel")
    return word


def _conda_file(settings: _ConfigLines, bundle: str | None) -> bytes:
    if not settings:
        return b""
    lines = [f"ssl_verify: {bundle}"] if bundle else []
    for key, values in settings.items():
        if key == "channel_alias":
            lines.append(f"{key}: {values[0]}")
        else:
            lines += [f"{key}:", *(f"  - {value}" for value in values)]
    return "".join(f"{line}\n" for line in lines).encode()


# cargo

_CARGO_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CARGO_CACHE = re.compile(r"(.+)-[0-9a-f]{16}")


def read_cargo(host: HostReader) -> bytes:
    """cargo's registries and replaced sources, as a file for the inside.

    cargo does not tell its default registry; the index that it keeps in its home folder does.
    """
    home = Path(host.env.get("CARGO_HOME") or host.home / ".cargo")
    for folder in sorted(home.glob("registry/index/*")):
        _note_cached_index(host, folder)
    old = home / "config"  # where both names exist, cargo reads the old one
    path = old if old.is_file() else home / "config.toml"
    settings = _toml(host, path)
    lines = [
        *_cargo_tables(host, path, "source", settings.get("source"), "registry"),
        *_cargo_tables(host, path, "registries", settings.get("registries"), "index"),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _note_cached_index(host: HostReader, folder: Path) -> None:
    """Note the hosts of a registry that was used before: of its index and of its files."""
    name = _CARGO_CACHE.fullmatch(folder.name)
    if name and is_host_name(name[1]):
        host.names.add(name[1])
    try:
        settings = json.loads(host.read(folder / "config.json") or "{}")
    except ValueError:
        return
    if isinstance(settings, dict) and isinstance(settings.get("dl"), str):
        # Placeholders such as {crate} stand in the path, which is not needed here.
        host.url(settings["dl"].partition("{")[0], f"{folder}: dl")


def _cargo_tables(
    host: HostReader, path: Path, kind: str, tables: object, key: str
) -> Iterator[str]:
    for name, table in tables.items() if isinstance(tables, dict) else ():
        if not _CARGO_NAME.fullmatch(name) or not isinstance(table, dict):
            continue
        where = f"{path}: {kind}.{name}"
        lines = [*_cargo_address(host, table.get(key), key, where), *_cargo_replacement(table)]
        if lines:
            yield from [f"[{kind}.{name}]", *lines]


def _cargo_address(host: HostReader, value: object, key: str, where: str) -> Iterable[str]:
    if not isinstance(value, str):
        return
    sparse = "sparse+" if value.startswith("sparse+") else ""
    if url := host.url(value.removeprefix(sparse), where):
        yield f'{key} = "{sparse}{url}"'


def _cargo_replacement(table: dict[str, Any]) -> Iterable[str]:
    other = table.get("replace-with")
    if isinstance(other, str) and _CARGO_NAME.fullmatch(other):
        yield f'replace-with = "{other}"'


# go


def read_go(host: HostReader) -> dict[str, str]:
    """go's module proxies and checksum database; go itself is asked where it is installed."""
    asked = host.run(["go", "env", "GOPROXY", "GOSUMDB"]).splitlines()
    proxies = host.env.get("GOPROXY") or (asked[0] if len(asked) == 2 else "")
    sums = host.env.get("GOSUMDB") or (asked[1] if len(asked) == 2 else "")
    found: dict[str, str] = {}
    words = [_go_proxy(host, word) for word in re.split(r"([,|])", proxies.strip()) if word]
    if words and None not in words:
        found["GOPROXY"] = "".join(word for word in words if word)
    if is_host_name(sums.strip()):
        found["GOSUMDB"] = sums.strip()
        if sums.strip() != "off":
            host.names.add(sums.strip())
    return found


def _go_proxy(host: HostReader, word: str) -> str | None:
    return word if word in (",", "|", "direct", "off") else host.url(word, "go: GOPROXY")
