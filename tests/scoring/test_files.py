"""The scorer of files: what it refuses, what it finds wrong, and what it cannot know."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import struct
import sys
import time
import wave
import zipfile
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandlot.core.errors import ConfigError
from sandlot.core.types import Score, Task
from sandlot.scoring.base import Candidate, ScoringTools
from sandlot.scoring.files import FilesScorer
from sandlot.scoring.files_child import KINDS, answer, guarded
from sandlot.scoring.files_page import CHECKS as PAGE_CHECKS
from sandlot.scoring.registry import load_scorer

PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes | None = None) -> bytes:
    """A greyscale picture; without rows its pixels are promised but not there."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG_HEAD + head + chunk(b"IDAT", zlib.compress(rows or b"")) + chunk(b"IEND", b"")


def look(path: Path, kind: str, *checks: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """The helper's verdicts, found in this process: (passed, said) by check."""
    reply = answer({"path": str(path), "kind": kind, "checks": list(checks)})
    assert "results" in reply, reply
    return {one["check"]: (one["passed"], one["said"]) for one in reply["results"]}


def refused(path: Path, kind: str) -> str:
    """Why a file does not open; it must not."""
    found = look(path, kind)
    assert list(found) == ["opens"]
    assert not found["opens"][0]
    return found["opens"][1]


def task_of(*files: Mapping[str, Any]) -> Task:
    return Task("t", "Make it.", target={"files": list(files)})


def asked(path: str, kind: str, *checks: Mapping[str, Any]) -> dict[str, Any]:
    return {"path": path, "kind": kind, "checks": list(checks)}


@asynccontextmanager
async def scorer_of(tools: ScoringTools, **options: Any) -> AsyncIterator[FilesScorer]:
    scorer = FilesScorer(tools, helpers=1, **options)
    try:
        yield scorer
    finally:
        await scorer.close()


async def scored(tools: ScoringTools, folder: Path | None, *files: Mapping[str, Any]) -> Score:
    async with scorer_of(tools) as scorer:
        return await scorer.score(Candidate(task_of(*files), "done", folder))


# --- the whole of what was left --------------------------------------------------------------

TABLE = asked("a.csv", "table", {"check": "header", "names": ["x"]})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "a.csv").write_text("x\n1\n")
    (folder / "answer.txt").write_text("I made a table.")
    return folder


async def test_the_asked_file_alone_scores_1_and_the_answer_file_does_not_count(
    tools: ScoringTools, output: Path
) -> None:
    score = await scored(tools, output, TABLE)
    assert (score.value, score.details["parts"]) == (1.0, 1.0)
    assert [one["check"] for one in score.details["checks"]] == ["opens", "header", "nothing else"]


@pytest.mark.parametrize("name", ["README.md", "notes/plan.txt", ".hidden"])
async def test_a_document_that_nobody_asked_for_fails_the_task(
    name: str, tools: ScoringTools, output: Path
) -> None:
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("39 of 39 checks passed")
    score = await scored(tools, output, TABLE)
    assert score.value == 0.0
    assert score.details["failed"] == ["nothing else"]
    assert score.details["extra"] == [name]


async def test_nothing_left_is_worth_0_and_says_that_there_was_no_answer(
    tools: ScoringTools, tmp_path: Path
) -> None:
    for folder in (None, tmp_path / "never", tmp_path):
        score = await scored(tools, folder, TABLE)
        assert (score.value, score.missing) == (0.0, None)
        assert score.details["no_answer"] is True


async def test_parts_tell_how_much_was_right(tools: ScoringTools, output: Path) -> None:
    other = asked("b.csv", "table", {"check": "header", "names": ["y"]})
    score = await scored(tools, output, TABLE, other)
    assert score.value == 0.0
    assert score.details["failed"] == ["b.csv opens"]
    assert score.details["parts"] == 0.6  # of five: two files opened, two headers, nothing else


async def test_a_link_is_no_file_wherever_it_leads(tools: ScoringTools, output: Path) -> None:
    (output / "real.csv").write_text("x\n")
    (output / "a.csv").unlink()
    (output / "a.csv").symlink_to(output / "real.csv")
    (output / "folder").symlink_to("/etc")
    score = await scored(tools, output, TABLE)
    assert score.details["failed"] == ["a.csv opens", "nothing else"]
    assert score.details["extra"] == ["folder", "real.csv"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("poster.png", '"files"'),
        ({"files": []}, '"files"'),
        ({"files": [{"path": "a"}]}, "kind"),
        ({"files": [asked("a", "pictur")]}, "Did you mean 'picture'"),
        ({"files": [asked("a", "picture", {"check": "sise"})]}, "Did you mean 'size'"),
        ({"files": [asked("a", "page", {"check": "stays_insid"})]}, "Did you mean 'stays_inside'"),
        ({"files": [asked("a", "picture", {"check": "size", "width": 3})]}, "'height'"),
        ({"files": [asked("../a", "picture")]}, "inside the output folder"),
        ({"files": [{**asked("a", "picture"), "check": []}]}, "'check' is no field"),
    ],
)
async def test_a_ground_truth_that_cannot_be_used_is_named(
    target: Any, said: str, tools: ScoringTools, output: Path
) -> None:
    async with scorer_of(tools) as scorer:
        with pytest.raises(ConfigError, match="task 't'") as caught:
            await scorer.score(Candidate(Task("t", "p", target=target), "done", output))
    assert said in str(caught.value)


async def test_the_registry_builds_it(tools: ScoringTools) -> None:
    scorer = load_scorer("files", {}, tools)
    assert scorer.name == "files"
    await scorer.close()


# --- hostile files ---------------------------------------------------------------------------


def test_a_picture_that_claims_ten_billion_pixels_is_refused_from_its_header(
    tmp_path: Path,
) -> None:
    pytest.importorskip("PIL")
    path = tmp_path / "a.png"
    path.write_bytes(png(100_000, 100_000))
    begin = time.monotonic()
    assert "100000 x 100000" in refused(path, "picture") or "pixels" in refused(path, "picture")
    assert time.monotonic() - begin < 5


def test_a_picture_that_ends_early_does_not_open(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    path = tmp_path / "a.png"
    noise = b"".join(b"\0" + hashlib.sha256(bytes([n])).digest() * 2 for n in range(64))
    whole = png(64, 64, noise)
    path.write_bytes(whole)
    assert look(path, "picture")["opens"][0]
    path.write_bytes(whole[: len(whole) // 2])
    assert "no picture" in refused(path, "picture")


def test_a_zip_file_that_would_fill_the_disk_is_refused_from_its_directory(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.txt", bytes(30 << 20))
    assert path.stat().st_size < 1 << 20
    assert "unpacked it would be larger" in refused(path, "archive")
    book = tmp_path / "a.xlsx"
    book.write_bytes(path.read_bytes())
    pytest.importorskip("openpyxl")
    assert "unpacked it would be larger" in refused(book, "workbook")


def test_a_zip_directory_that_lies_about_a_size_yields_no_more_than_it_says(
    tmp_path: Path,
) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(40 << 20))
    real, lie = struct.pack("<I", 40 << 20), struct.pack("<I", 10)
    path = tmp_path / "a.zip"
    path.write_bytes(data.getvalue().replace(real, lie))
    assert "no zip file" in refused(path, "archive")


LAUGHS = '<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10">{}</svg>'


@pytest.mark.parametrize("head", [LAUGHS, OUTSIDE])
def test_entities_of_a_drawing_are_not_expanded(head: str, tmp_path: Path) -> None:
    pytest.importorskip("defusedxml")
    path = tmp_path / "a.svg"
    path.write_text(head + SVG.format("<text>&a;</text>"))
    assert "EntitiesForbidden" in refused(path, "svg")


def test_a_drawing_with_a_plain_document_type_opens(tmp_path: Path) -> None:
    """Plotting libraries write one."""
    pytest.importorskip("defusedxml")
    path = tmp_path / "a.svg"
    kind = '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd">'
    path.write_text(kind + SVG.format("<text>Rain &amp; snow</text>"))
    found = look(path, "svg", {"check": "texts", "all_of": ["Rain & snow"]})
    assert all(passed for passed, _ in found.values())


async def test_a_deeply_nested_file_costs_no_more_than_its_task(
    tools: ScoringTools, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    (tmp_path / "b.json").write_text("{}")
    fields = {"check": "fields", "fields": {}}
    score = await scored(
        tools, tmp_path, asked("a.json", "json", fields), asked("b.json", "json", fields)
    )
    assert score.value == 0.0
    assert score.details["failed"] == ["a.json opens"]


@pytest.mark.parametrize(
    "kind", ["picture", "svg", "sound", "midi", "video", "pdf", "workbook", "archive", "calendar"]
)
def test_noise_is_a_file_that_does_not_open(kind: str, tmp_path: Path) -> None:
    """Neither an error of ours nor a missing score: the model left something unreadable."""
    for name in ("PIL", "defusedxml", "mido", "av", "pypdf", "openpyxl"):
        pytest.importorskip(name)
    path = tmp_path / "a"
    heads = (b"", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"MThd\0\0\0\6\0\1", b"%PDF-1.7\n", b"PK\3\4")
    for head in (*heads, b"GIF89a", PNG_HEAD, b"\0\0\0\x18ftypisom"):
        path.write_bytes(head + bytes(range(256)) * 8)
        assert refused(path, kind)


def test_an_empty_or_oversized_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"")
    assert refused(path, "table") == "is empty"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "1,099,511,627,776 bytes" in refused(path, "table")


CUSTOMISED = {
    # Runs in the helper when its interpreter starts, from a folder on its path.
    "dies": "import csv, os\ncsv.reader = lambda *a, **k: os.abort()\n",
    "grows": "import csv\ncsv.reader = lambda *a, **k: bytearray(4 << 30)\n",
    "blind": (
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'mido' else real(name, package)\n"
    ),
}


def customised(tools: ScoringTools, folder: Path, how: str) -> ScoringTools:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CUSTOMISED[how])
    return ScoringTools(tools.cache_dir, environ={**tools.environ, "PYTHONPATH": str(folder)})


async def test_a_file_that_ends_its_reader_twice_does_not_open(
    tools: ScoringTools, output: Path, tmp_path: Path
) -> None:
    score = await scored(customised(tools, tmp_path / "site", "dies"), output, TABLE)
    assert score.details["failed"] == ["a.csv opens"]
    assert score.details["checks"][0]["said"] == "ends every process that reads it"


async def test_a_file_that_takes_more_memory_than_any_honest_one_does_not_open(
    tools: ScoringTools, output: Path, tmp_path: Path
) -> None:
    score = await scored(customised(tools, tmp_path / "site", "grows"), output, TABLE)
    assert score.details["failed"] == ["a.csv opens"]
    assert score.details["checks"][0]["said"] == "costs too much to read (MemoryError)"


async def test_a_mistake_of_the_scorer_makes_the_score_missing_and_is_told_by_name(
    tools: ScoringTools, output: Path, tmp_path: Path
) -> None:
    def read_wrongly(path: Path) -> Any:
        raise UnboundLocalError("oops")

    reply = guarded(lambda question: read_wrongly(output), {})
    assert reply["failed"].startswith("the scorer failed: UnboundLocalError: oops at line")


async def test_a_check_that_takes_all_the_time_leaves_no_process(
    tools: ScoringTools, output: Path
) -> None:
    os.unlink(output / "a.csv")
    os.mkfifo(output / "a.csv")
    score = await asyncio.wait_for(scored(tools, output, TABLE), 30)
    assert score.details["failed"] == ["a.csv opens"]
    assert "no regular file" in score.details["checks"][0]["said"]


async def test_a_library_that_is_not_installed_makes_the_score_missing(
    tools: ScoringTools, tmp_path: Path
) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "a.mid").write_bytes(b"MThd")
    blind = customised(tools, tmp_path / "site", "blind")
    score = await scored(blind, folder, asked("a.mid", "midi"))
    assert score.value is None
    assert score.missing == "a.mid: needs the module 'mido': pip install \"sandlot[create]\""


# --- measures --------------------------------------------------------------------------------


def sound(path: Path, samples: list[int], rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return path


def test_a_sound_is_as_long_as_its_samples_not_as_its_header_says(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.wav", [0, 9000] * 8000)
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", 8000 * 2 * 25)  # a header that claims 25 seconds
    path.write_bytes(data)
    passed, said = look(path, "sound", {"check": "duration", "seconds": [20, 30]})["duration"]
    assert not passed
    assert said == "duration in seconds: asked 20 to 30, found 2"


def test_silence_has_no_pitch_no_onsets_and_no_peak(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.wav", [0] * 16_000)
    found = look(
        path,
        "sound",
        {"check": "loud", "peak": [0.1, 1.0]},
        {"check": "pitch", "hz": 440},
        {"check": "onsets", "count": 1},
    )
    assert [passed for passed, _ in found.values()] == [True, False, False, False]


def midi(*events: bytes) -> bytes:
    track = b"".join(events) + b"\0\xff\x2f\0"
    return b"MThd\0\0\0\6\0\0\0\1\0\x60MTrk" + struct.pack(">I", len(track)) + track


def tempo(microseconds: int) -> bytes:
    return b"\0\xff\x51\x03" + microseconds.to_bytes(3, "big")


def test_a_tune_that_says_25_seconds_but_plays_42_is_caught_by_its_tempo_events(
    tmp_path: Path,
) -> None:
    """Fifty beats: 25 s at 120 a minute, as a sum over notes would have it; the tempo is 71.4."""
    pytest.importorskip("mido")
    note = b"\0\x90\x3c\x40" + b"\x60\x80\x3c\0"
    path = tmp_path / "a.mid"
    path.write_bytes(midi(*[note] * 50))
    asked_s = {"check": "duration", "seconds": [20, 30]}
    assert look(path, "midi", asked_s)["duration"][0]
    path.write_bytes(midi(tempo(840_000), *[note] * 50))
    passed, said = look(path, "midi", asked_s)["duration"]
    assert not passed
    assert "found 42" in said


def test_a_change_of_tempo_in_the_middle_counts_from_there(tmp_path: Path) -> None:
    pytest.importorskip("mido")
    note = b"\0\x90\x3c\x40" + b"\x60\x80\x3c\0"
    path = tmp_path / "a.mid"
    path.write_bytes(midi(tempo(500_000), *[note] * 10, tempo(1_000_000), *[note] * 10))
    found = look(path, "midi", {"check": "duration", "seconds": [14.99, 15.01]})
    assert found["duration"][0], found  # 10 half seconds, then 10 whole ones


def test_notes_that_never_end_and_silence_at_the_end_are_no_music(tmp_path: Path) -> None:
    pytest.importorskip("mido")
    path = tmp_path / "a.mid"
    path.write_bytes(midi(b"\0\x90\x3c\x40", b"\x87\x68\x90\x3e\0"))  # rests for ten beats
    found = look(path, "midi", {"check": "notes", "count": 0}, {"check": "duration", "seconds": 0})
    assert all(passed for passed, _ in found.values()), found


def test_a_box_where_a_code_belongs_is_no_code(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("zxingcpp")
    row = b"\0" + b"\xff" * 50 + b"\0" * 100 + b"\xff" * 50
    path = tmp_path / "a.png"
    path.write_bytes(png(200, 200, row * 200))
    passed, said = look(path, "picture", {"check": "qr", "text": "QR CODE"})["qr"]
    assert not passed
    assert "found none that can be read" in said


def test_a_drawing_that_loads_something_says_what(tmp_path: Path) -> None:
    pytest.importorskip("defusedxml")
    path = tmp_path / "a.svg"
    for inner in (
        '<image href="https://example.org/a.png"/>',
        '<rect style="fill: url(https://example.org/a.svg#p)"/>',
        "<style>@import 'https://example.org/a.css';</style>",
        "<script>fetch('a')</script>",
    ):
        path.write_text(SVG.format(inner))
        assert not look(path, "svg", {"check": "self_contained"})["self_contained"][0], inner
    for inner in (
        "<rect fill=\"url( '#g' )\"/>",
        '<use href="#a"/>',
        '<rect fill="url(#g)"/>',
        '<a href="https://a.org"/>',
    ):
        path.write_text(SVG.format(inner))
        assert look(path, "svg", {"check": "self_contained"})["self_contained"][0], inner


def test_numbers_written_into_a_sheet_are_no_formulas(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Orders"
    book.active.append([2, 3, "=A1*B1"])
    book.active.append([2, 3, 6])
    path = tmp_path / "a.xlsx"
    book.save(path)
    for cell, fits in (("C1", True), ("C2", False)):
        row = cell[1]
        check = {"check": "formulas", "sheet": "Orders", "cells": {cell: [f"=$A${row}*b{row}"]}}
        assert look(path, "workbook", check)["formulas"][0] is fits


def test_latitude_and_longitude_the_wrong_way_round_are_another_place(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    point = {"type": "Point", "coordinates": [59.9, 10.7]}
    feature = {"type": "Feature", "properties": {"name": "Oslo"}, "geometry": point}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    check = {"check": "points", "name": "name", "points": {"Oslo": [10.7, 59.9]}}
    assert not look(path, "json", check)["points"][0]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": "none"}))
    assert not look(path, "json", check)["points"][0]


# --- pages -----------------------------------------------------------------------------------

PAGE = "<!doctype html><html><head><title>T</title>{}</head><body><p>Hello</p>{}</body></html>"
QUIET = ({"check": "title", "text": "T"}, {"check": "no_errors"}, {"check": "stays_inside"})


@asynccontextmanager
async def pages(tools: ScoringTools, folder: Path) -> AsyncIterator[Any]:
    """Scores one page after the other in the same helper; skips without a browser."""
    async with scorer_of(tools) as scorer:

        async def failed(html: str, *checks: Mapping[str, Any]) -> list[str]:
            (folder / "a.html").write_text(html)
            task = task_of(asked("a.html", "page", *QUIET, *checks))
            score = await scorer.score(Candidate(task, "done", folder))
            if score.missing and ("no Chromium" in score.missing or "bwrap" in score.missing):
                pytest.skip(score.missing)
            assert score.missing is None
            return list(score.details["failed"])

        yield failed


@pytest.mark.slow
async def test_a_page_that_reaches_out_in_whatever_way_is_noticed(
    tools: ScoringTools, tmp_path: Path
) -> None:
    async with pages(tools, tmp_path) as failed:
        assert await failed(PAGE.format("", "")) == []
        for body in (
            '<img src="https://tiles.example.org/1.png">',
            "<script>fetch('https://example.org/').catch(() => 0)</script>",
            "<script>new WebSocket('wss://example.org/').onerror = () => 0</script>",
            '<iframe src="https://example.org/"></iframe>',
            "<script>setTimeout(() => { new Image().src = 'http://127.0.0.1:9/' }, 300)</script>",
            '<script src="//cdn.example.org/map.js"></script>',
        ):
            assert "a.html stays_inside" in await failed(PAGE.format("", body)), body


@pytest.mark.slow
async def test_a_page_with_errors_or_without_end_fails_and_the_next_one_is_not_harmed(
    tools: ScoringTools, tmp_path: Path
) -> None:
    async with pages(tools, tmp_path) as failed:
        for body in (
            "<script>undefined_function()</script>",
            "<script>console.error('broken')</script>",
            "<script>Promise.reject(new Error('late'))</script>",
            '<script src="not_there.js"></script>',
        ):
            assert await failed(PAGE.format("", body)) == ["a.html no_errors"], body
        assert await failed(PAGE.format("", "<script>for (;;) {}</script>")) == ["a.html opens"]
        spin = "document.title = 'T'; setTimeout(() => { for (;;) {} }, 200)"
        assert await failed(PAGE.format("", f"<script>{spin}</script>"))
        assert await failed(PAGE.format("", "")) == []


@pytest.mark.slow
async def test_a_page_is_clicked_before_it_is_judged(tools: ScoringTools, tmp_path: Path) -> None:
    click = {
        "check": "evaluates",
        "what": "after a click",
        "script": "(document.querySelector('button').click(), document.title)",
        "equals": "clicked",
    }
    button = "<button onclick=\"document.title = 'clicked'; oops()\">Go</button>"
    async with pages(tools, tmp_path) as failed:
        assert await failed(PAGE.format("", button), click) == ["a.html no_errors"]
        assert await failed(PAGE.format("", ""), click) == ["a.html evaluates"]
        asking = "<script>alert('Welcome')</script>"
        assert await failed(PAGE.format("", asking)) == []


async def test_without_a_browser_the_score_of_a_page_is_missing_not_0(
    tools: ScoringTools, tmp_path: Path
) -> None:
    (tmp_path / "a.html").write_text(PAGE.format("", ""))
    environ = {**tools.environ, "SANDLOT_CHROMIUM": "/not/there"}
    score = await scored(
        ScoringTools(tools.cache_dir, environ=environ), tmp_path, asked("a.html", "page", *QUIET)
    )
    assert score.value is None
    assert score.missing is not None
    assert score.missing.startswith("a.html: no Chromium on this machine")


def test_the_docs_name_every_kind_and_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "create.md").read_text("utf-8")
    kinds = {**{name: kind.checks for name, kind in KINDS.items()}, "page": PAGE_CHECKS}
    for name, checks in kinds.items():
        (line,) = [row for row in page.splitlines() if row.startswith(f"| `{name}`")]
        assert set(re.findall(r"`(\w+)`", line)) == {name, *checks}


def test_the_scorer_imports_no_library_of_the_extra(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys, sandlot.scoring.files, sandlot.scoring.files_page_child\n"
        "heavy = {'PIL', 'av', 'mido', 'pypdf', 'openpyxl', 'zxingcpp', 'defusedxml'}\n"
        "print(heavy & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
