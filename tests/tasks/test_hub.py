"""The hub's loader, against a cache in the hub's own layout and a hub of the test's own."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.errors import InputError, MissingExtra
from sandlot.tasks.base import LoadedSet, Source
from sandlot.tasks.hub import cache_of, fetch, split_files
from sandlot.tasks.registry import load_set

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER = "f" * 40
ROWS = [
    {"id": f"m{n}", "domain": "math", "problem_statement": f"{n} + 1?", "ground_truth": str(n + 1)}
    for n in range(3)
]
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens
ROW = """
domain = "math"
scorer = "math"
[source]
kind = "hub"
dataset = "someone/bench"
config = "math"
split = "test"
revision = "{revision}"
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def cached(
    folder: Path, files: dict[str, bytes], commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """A cache as the hub's own library lays it out: blobs, snapshots that link to them, refs."""
    home = folder / "datasets--someone--bench"
    for number, (name, data) in enumerate(files.items()):
        blob = home / "blobs" / f"{commit[:8]}{number:032d}"
        link = home / "snapshots" / commit / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link.symlink_to(blob)
    if ref:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / ref).write_text(commit)
    return folder


def load(folder: Path, environ: dict[str, str], revision: str = "main") -> tuple[LoadedSet, str]:
    path = folder / "own.toml"
    path.write_text(ROW.format(revision=revision))
    said: list[str] = []
    loaded = load_set(str(path), cache=folder / "ours", environ=environ, progress=said.append)
    return loaded, "\n".join(said)


# --- without a network -----------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_cache_that_is_there_is_read_offline(tmp_path: Path, revision: str) -> None:
    cache = cached(tmp_path / "hub", {"math/test.jsonl": lines(ROWS), "chem/test.jsonl": b"{}"})
    loaded, _ = load(tmp_path, {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}, revision)
    assert [task.id for task in loaded.tasks] == ["m0", "m1", "m2"]
    assert loaded.row.source.revision == COMMIT
    assert loaded.row.leak_hosts


def test_a_pinned_commit_in_the_cache_needs_no_request(tmp_path: Path) -> None:
    cache = cached(tmp_path / "hub", {"math/test.jsonl": lines(ROWS)}, ref=None)
    environ = {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": NOWHERE}
    loaded, said = load(tmp_path, environ, COMMIT)
    assert len(loaded.tasks) == 3
    assert said == ""
    assert loaded.row.leak_hosts == ("127.0.0.1",)


def test_a_branch_is_taken_from_the_cache_where_the_hub_does_not_answer(tmp_path: Path) -> None:
    cache = cached(tmp_path / "hub", {"math/test.jsonl": lines(ROWS)})
    loaded, said = load(tmp_path, {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": NOWHERE})
    assert loaded.row.source.revision == COMMIT
    assert "'main' is NOT PINNED" in said
    assert "the hub gave no answer (" in said
    assert f"the cache's copy of commit {COMMIT[:12]} is used" in said


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set, and the cache has no such copy"),
        ({"HF_ENDPOINT": NOWHERE}, "refused"),
    ],
)
def test_an_unreachable_hub_names_the_local_alternative(
    tmp_path: Path, environ: dict[str, str], reason: str
) -> None:
    with pytest.raises(InputError) as found:
        load(tmp_path, {"HF_HOME": str(tmp_path / "home")} | environ)
    text = str(found.value)
    assert text.startswith("data set someone/bench (config math, split test, revision main): ")
    assert reason in text
    assert "put the rows into a JSONL" in text
    assert "mini" in text


def test_a_split_with_a_missing_shard_is_not_taken_for_whole(tmp_path: Path) -> None:
    cache = cached(tmp_path / "hub", {"math/test-00000-of-00002.jsonl": lines(ROWS)})
    with pytest.raises(InputError, match="the cache has no such copy"):
        load(tmp_path, {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})


def test_the_paths_of_the_card_are_followed_for_a_config_and_split(tmp_path: Path) -> None:
    card = """---
configs:
- config_name: chem
  data_files: chem.jsonl
- config_name: math
  data_files:
  - split: train
    path: a/x.jsonl
  - split: test
    path:
    - a/y-*.jsonl
---
# A card
"""
    files = {
        "README.md": card.encode(),
        "chem.jsonl": b"{}",
        "a/x.jsonl": b"{}",
        "a/y-1.jsonl": lines(ROWS[:1]),
        "a/y-2.jsonl": lines(ROWS[1:]),
        "math/test.jsonl": b"{}",
    }
    cache = cached(tmp_path / "hub", files)
    loaded, _ = load(tmp_path, {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})
    assert [task.id for task in loaded.tasks] == ["m0", "m1", "m2"]


def test_parquet_shards_load_in_order(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = {}
    for number, rows in enumerate((ROWS[:2], ROWS[2:])):
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.Table.from_pylist(rows), sink)
        files[f"math/test-{number:05d}-of-00002.parquet"] = sink.getvalue().to_pybytes()
    cache = cached(tmp_path / "hub", files)
    loaded, _ = load(tmp_path, {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})
    assert [task.id for task in loaded.tasks] == ["m0", "m1", "m2"]


def test_bad_rows_of_the_hub_are_named_with_their_file(tmp_path: Path) -> None:
    cache = cached(tmp_path / "hub", {"math/test.jsonl": lines([ROWS[0], {"id": "x"}])})
    with pytest.raises(InputError, match=r"test\.jsonl:2: field 'problem_statement' is missing"):
        load(tmp_path, {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})


def test_the_cache_folder_is_where_the_hubs_own_variables_say() -> None:
    ours = Path("/ours")
    assert cache_of({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, ours) == Path("/a")
    assert cache_of({"HF_HOME": "/b", "HOME": "/c"}, ours) == Path("/b/hub")
    assert cache_of({"XDG_CACHE_HOME": "/x", "HOME": "/c"}, ours) == Path("/x/huggingface/hub")
    assert cache_of({"HOME": "/c"}, ours) == Path("/c/.cache/huggingface/hub")
    assert cache_of({}, ours) == Path("/ours/hub")


def test_parquet_is_taken_where_the_rows_also_lie_in_another_form() -> None:
    names = ["math/test.csv", "math/test-0.parquet", "math/test.txt", "math/train-0.parquet"]
    assert split_files(names, ["math/test.*", "math/test-*"]) == ("math/test-0.parquet",)


def test_without_the_hubs_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    source = Source("hub", dataset="someone/bench", split="test", revision="main")
    with pytest.raises(MissingExtra, match=r"sandlot\[hub\]"):
        fetch(source, cache=tmp_path, environ={}, progress=print)


# --- a hub on the loopback -------------------------------------------------------------------


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub's interface as a download uses."""

    def __init__(self, files: dict[str, bytes], commit: str) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.files = files
        self.commit = commit
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Requests(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        hub = self.server
        path = self.path.partition("?")[0]
        hub.asked.append(path)
        if path.startswith("/api/datasets/someone/bench/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in hub.files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), body)
        if path.startswith("/api/datasets/someone/bench"):
            siblings = [{"rfilename": name} for name in hub.files]
            info = {"id": "someone/bench", "sha": hub.commit, "siblings": siblings}
            return self._send(200, json.dumps(info).encode(), body)
        _, _, name = path.partition(f"/resolve/{hub.commit}/")
        if name in hub.files:
            return self._send(200, hub.files[name], body)
        return self._send(404, b"{}", body)

    def _send(self, status: int, data: bytes, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def _oid(data: bytes) -> str:
    import hashlib

    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = {"README.md": b"# A card\n", "math/test.jsonl": lines(ROWS), "chem/test.jsonl": b"{}"}
    server = Hub(files, NEWER)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_fills_the_hubs_own_cache_and_records_the_commit(
    tmp_path: Path, hub: Hub
) -> None:
    environ = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    loaded, said = load(tmp_path, environ)
    assert [task.id for task in loaded.tasks] == ["m0", "m1", "m2"]
    assert loaded.row.source.revision == NEWER
    assert "NOT PINNED" in said
    snapshot = tmp_path / "home/hub/datasets--someone--bench/snapshots" / NEWER
    assert (snapshot / "math/test.jsonl").is_file()
    assert not (snapshot / "chem").exists()

    hub.asked.clear()
    again, _ = load(tmp_path, environ | {"HF_HUB_OFFLINE": "1"})
    assert again.digest == loaded.digest
    assert hub.asked == []


def test_a_newer_commit_of_a_branch_replaces_the_one_in_the_cache(tmp_path: Path, hub: Hub) -> None:
    cache = cached(tmp_path / "home/hub", {"math/test.jsonl": lines(ROWS[:1])})
    environ = {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": hub.url}
    assert len(load(tmp_path, environ, COMMIT)[0].tasks) == 1
    loaded, _ = load(tmp_path, environ)
    assert loaded.row.source.revision == NEWER
    assert len(loaded.tasks) == 3


def test_a_config_that_the_data_set_does_not_have_is_named(tmp_path: Path, hub: Hub) -> None:
    del hub.files["math/test.jsonl"]
    with pytest.raises(InputError, match=r"no files of that config and split \(has: .*chem/test"):
        load(tmp_path, {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url})
