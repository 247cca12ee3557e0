"""Data sets of the hub, through its own library and in its own cache.

A commit that is in the cache is read without a request. A branch is asked for, unless the hub is
offline or cannot be reached and the cache holds what the branch last pointed to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sandlot.core.errors import InputError, MissingExtra
from sandlot.tasks.base import Source
from sandlot.tasks.readers import SUFFIXES

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class HubCopy:
    """The files of one split at one commit. `hosts` are those of the hub that holds the answers."""

    files: tuple[Path, ...]
    commit: str
    hosts: tuple[str, ...]


def fetch(
    source: Source,
    *,
    cache: Path,
    environ: Mapping[str, str],
    progress: Callable[[str], None],
) -> HubCopy:
    """The files of a source's config and split, from the cache or the hub.

    Raises:
        MissingExtra: the hub's library is not installed.
        InputError: the hub cannot be reached or refuses, or holds no such config or split; says
            which local files would do instead.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants  # the package loads its own parts at first use
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as exc:
        raise MissingExtra(f"the data set {source.dataset} on the hub", "hub") from exc
    return _Fetch(huggingface_hub, source, cache, environ, progress).copy()


def cache_of(environ: Mapping[str, str], fallback: Path) -> Path:
    """The hub's cache folder, by the variables that its own library reads."""
    if environ.get("HF_HUB_CACHE"):
        return Path(environ["HF_HUB_CACHE"]).expanduser()
    if environ.get("HF_HOME"):
        return Path(environ["HF_HOME"]).expanduser() / "hub"
    home = environ.get("HOME")
    base = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
    return Path(base) / "huggingface" / "hub" if base else fallback / "hub"


def is_offline(environ: Mapping[str, str]) -> bool:
    return environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


class _Fetch:
    def __init__(
        self,
        library: Any,
        source: Source,
        cache: Path,
        environ: Mapping[str, str],
        progress: Callable[[str], None],
    ) -> None:
        self._library = library
        self._source = source
        self._dataset = str(source.dataset)
        self._revision = source.revision or "main"
        self._environ = environ
        self._progress = progress
        self._where: dict[str, Any] = {
            "repo_id": self._dataset,
            "repo_type": "dataset",
            "revision": self._revision,
            "cache_dir": cache_of(environ, cache),
            "endpoint": environ.get("HF_ENDPOINT") or None,
            "token": environ.get("HF_TOKEN") or None,
        }

    def copy(self) -> HubCopy:
        cached = self._cached()
        pinned = bool(_COMMIT.fullmatch(self._revision))
        if cached is not None and (pinned or is_offline(self._environ)):
            return cached
        if is_offline(self._environ):
            raise self._failed("HF_HUB_OFFLINE is set, and the cache has no such copy")
        if not pinned:
            self._progress(
                f"{self._dataset}: revision {self._revision!r} is NOT PINNED; "
                "the commit that is loaded is recorded"
            )
        try:
            return self._downloaded()
        except (OSError, self._library.errors.HTTPError, ValueError) as exc:
            if cached is None:
                raise self._failed(_short(exc)) from exc
            self._progress(
                f"{self._dataset}: the hub gave no answer ({_short(exc)}); "
                f"the cache's copy of commit {cached.commit[:12]} is used"
            )
            return cached

    def _cached(self) -> HubCopy | None:
        """What the cache holds of the revision; None where a part of the split is missing."""
        folder = self._snapshot()
        if folder is None:
            return None
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        chosen = split_files(names, self._patterns(folder / _CARD))
        return self._made(folder, chosen) if chosen and not _torn(chosen) else None

    def _snapshot(self) -> Path | None:
        """The revision's folder in the cache.

        Looked up here, by the layout that the hub documents for all its libraries: the library's
        own look-up refuses a snapshot that lacks other files of the data set.
        """
        home = self._where["cache_dir"] / f"datasets--{self._dataset.replace('/', '--')}"
        try:
            commit = (home / "refs" / self._revision).read_text("ascii").strip()
        except (OSError, ValueError):
            commit = self._revision
        folder: Path = home / "snapshots" / commit
        return folder if folder.is_dir() else None

    def _downloaded(self) -> HubCopy:
        api = self._library.HfApi(endpoint=self._where["endpoint"], token=self._where["token"])
        info = api.dataset_info(self._dataset, revision=self._revision, timeout=30)
        names = sorted(sibling.rfilename for sibling in info.siblings or ())
        self._library.utils.disable_progress_bars()
        card = Path(self._library.snapshot_download(**self._where, allow_patterns=[_CARD])) / _CARD
        chosen = split_files(names, self._patterns(card))
        if not chosen:
            raise self._failed(f"it has no files of that config and split (has: {_few(names)})")
        self._progress(f"{self._dataset}: downloading {len(chosen)} files")
        wanted = [_CARD, *map(escape, chosen)]
        return self._made(
            Path(self._library.snapshot_download(**self._where, allow_patterns=wanted)), chosen
        )

    def _patterns(self, card: Path) -> list[str]:
        """Where the split's files lie: as the data set's card says, else where they usually do."""
        config, split = self._source.config or "default", str(self._source.split)
        if card.is_file():
            table = self._library.metadata_load(card) or {}
            said = list(_patterns_of_card(table.get("configs"), config, split))
            if said:
                return said
        folders = [""] if config == "default" else []
        folders += ["data/"] if config == "default" else [f"{config}/", f"data/{config}/"]
        plain = [f"{folder}{split}{rest}" for folder in folders for rest in (".*", "-*", "/*")]
        joined = [] if config == "default" else [f"{config}.*", f"{config}_{split}.*"]
        return plain + joined

    def _made(self, folder: Path, names: Iterable[str]) -> HubCopy:
        return HubCopy(tuple(folder / name for name in names), folder.name, self._hosts())

    def _hosts(self) -> tuple[str, ...]:
        endpoint = self._where["endpoint"] or self._library.constants.ENDPOINT
        return tuple(filter(None, (urlsplit(endpoint).hostname,)))

    def _failed(self, reason: str) -> InputError:
        source = self._source
        return InputError(
            f"data set {self._dataset} (config {source.config or 'default'}, split {source.split}, "
            f"revision {self._revision}): {reason}. Without the hub: put the rows into a JSONL, "
            "JSON, CSV or Parquet file and name its path, or a TOML file with "
            '[source] kind = "file"; the shipped sets (mini, long_context_10k) need no network'
        )


def split_files(names: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """Files of rows that match; Parquet alone where the same rows also lie in another form."""
    wanted = list(patterns)
    chosen = [
        name
        for name in names
        if name.lower().endswith(SUFFIXES) and any(fnmatch(name, pattern) for pattern in wanted)
    ]
    parquet = [name for name in chosen if name.lower().endswith(".parquet")]
    return tuple(parquet or chosen)


def _torn(names: Iterable[str]) -> bool:
    """Whether a numbered shard is missing (a download that was broken off)."""
    shards = [match for name in names if (match := _SHARD.search(name))]
    return bool(shards) and len(shards) != int(shards[0][2])


def _patterns_of_card(configs: Any, config: str, split: str) -> Iterator[str]:
    """The paths that a card's `configs` names: a text, a list, or a list of splits with paths."""
    for entry in configs if isinstance(configs, list) else ():
        if not isinstance(entry, Mapping) or entry.get("config_name", "default") != config:
            continue
        files = entry.get("data_files")
        for part in files if isinstance(files, list) else [files]:
            if isinstance(part, str):
                yield part
            elif isinstance(part, Mapping) and part.get("split") == split:
                paths = part.get("path")
                yield from [paths] if isinstance(paths, str) else paths or ()


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown}, … {len(names)} files" if len(names) > 8 else shown or "nothing"


def _short(exc: BaseException) -> str:
    text = str(exc).strip()
    return (text.splitlines()[0] if text else type(exc).__name__)[:200]
