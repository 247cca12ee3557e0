"""Documents and data: PDF, spreadsheets, CSV, JSON, calendars and archives."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandlot.scoring.files_kinds import (
    BROKEN,
    MIB,
    Check,
    Finding,
    Kind,
    Refused,
    compare,
    holds_texts,
    plain_text,
    same_value,
)

_PAGES = 200
_CELLS = 200_000
_ROWS = 20_000
_UNPACKED = 100 * MIB
_MEMBERS = 2000
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_POINTS_A_MM = 72 / 25.4


@dataclass(frozen=True, slots=True)
class Page:
    """Sides in points (1/72 inch), as a viewer shows the page, turned pages included."""

    width: float
    height: float
    text: str


@dataclass(frozen=True, slots=True)
class Pdf:
    pages: tuple[Page, ...]
    metadata: Mapping[str, str]


def read_pdf(path: Path) -> Pdf:
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(path)
        if len(reader.pages) > _PAGES:
            raise Refused(f"more than {_PAGES} pages")
        pages = tuple(_page(page) for page in reader.pages)
        found: Mapping[str, Any] = reader.metadata or {}
        return Pdf(pages, {str(name).lstrip("/"): str(found[name]) for name in found})
    except (*BROKEN, PyPdfError) as exc:
        raise Refused(f"no PDF that can be read ({exc})") from exc


def _page(page: Any) -> Page:
    width, height = float(page.cropbox.width), float(page.cropbox.height)
    if page.rotation % 180:
        width, height = height, width
    return Page(width, height, page.extract_text())


def _pages(pdf: Pdf, *, count: Any) -> Finding:
    return compare("pages", len(pdf.pages), count)


def _page_size(pdf: Pdf, *, mm: tuple[float, float]) -> Finding:
    """Every page, to a millimetre: libraries round paper sizes differently."""
    wrong = {
        f"{page.width / _POINTS_A_MM:.1f} x {page.height / _POINTS_A_MM:.1f} mm"
        for page in pdf.pages
        if abs(page.width / _POINTS_A_MM - mm[0]) > 1.0
        or abs(page.height / _POINTS_A_MM - mm[1]) > 1.0
    }
    said = f"page size: asked {mm[0]:g} x {mm[1]:g} mm"
    return Finding(not wrong, f"{said}, found {sorted(wrong)[:3]}" if wrong else said)


def _page_texts(pdf: Pdf, *, pages: list[list[str]]) -> Finding:
    """Texts that each page must hold, page by page."""
    for number, (page, wanted) in enumerate(zip(pdf.pages, pages, strict=False), 1):
        found = holds_texts(f"page {number}", page.text, wanted)
        if not found.passed:
            return found
    return Finding(len(pdf.pages) >= len(pages), f"texts of {len(pages)} pages were looked for")


def _metadata(pdf: Pdf, *, fields: Mapping[str, str]) -> Finding:
    wrong = {
        name: pdf.metadata.get(name)
        for name, asked in fields.items()
        if plain_text(pdf.metadata.get(name, "")) != asked
    }
    return Finding(not wrong, f"metadata: asked {dict(fields)}, different: {wrong or 'nothing'}")


# --- archives --------------------------------------------------------------------------------


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip file whose members, unpacked, stay within limits by their own headers.

    `zipfile` reads no member beyond the size that its header names, so the headers can be held to.
    """
    archive = zipfile.ZipFile(path)
    members = archive.infolist()
    if len(members) > _MEMBERS:
        raise Refused(f"{len(members):,} members are more than {_MEMBERS:,}")
    if sum(member.file_size for member in members) > _UNPACKED:
        raise Refused(f"unpacked it would be larger than {_UNPACKED // MIB} MiB")
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in _PACKED:
            raise Refused(f"member {member.filename!r} is encrypted or packed in an unusual way")
    return archive


def read_archive(path: Path) -> dict[str, bytes]:
    try:
        with open_archive(path) as archive:
            names = [member.filename for member in archive.infolist() if not member.is_dir()]
            if len(set(names)) < len(names):
                raise Refused("two members have the same name")
            return {name: archive.read(name) for name in names}
    except (*BROKEN, zipfile.BadZipFile) as exc:
        raise Refused(f"no zip file that can be read ({exc})") from exc


def _members(archive: Mapping[str, bytes], *, names: list[str]) -> Finding:
    absent = sorted(set(names) - set(archive))
    extra = sorted(set(archive) - set(names))
    said = f"members: {len(names)} asked, absent {absent or 'none'}, not asked {extra or 'none'}"
    return Finding(not absent and not extra, said)


def _contents(archive: Mapping[str, bytes], *, texts: Mapping[str, str]) -> Finding:
    """Members by their exact text, but for line ends and a last line break."""
    wrong = [
        name
        for name, text in texts.items()
        if _lines(archive.get(name, b"\xff").decode("utf-8", "replace")) != _lines(text)
    ]
    return Finding(not wrong, f"contents differ: {wrong or 'none'}")


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").splitlines()


# --- spreadsheets and tables -----------------------------------------------------------------

Sheet = dict[tuple[int, int], Any]
"""Values by (row, column), both from 1; a formula is its text, `=` in front."""


def read_workbook(path: Path) -> dict[str, Sheet]:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        open_archive(path).close()
        book = openpyxl.load_workbook(path, read_only=True, data_only=False)
        try:
            return {sheet.title: _cells(sheet) for sheet in book.worksheets}
        finally:
            book.close()
    except (*BROKEN, zipfile.BadZipFile, InvalidFileException) as exc:
        raise Refused(f"no workbook that can be read ({type(exc).__name__}: {exc})") from exc


def _cells(sheet: Any) -> Sheet:
    """What a sheet holds; its own word about its size is not believed."""
    sheet.reset_dimensions()
    cells: Sheet = {}
    seen = 0
    for number, row in enumerate(sheet.iter_rows(), 1):
        seen += len(row)
        if number > _ROWS or seen > _CELLS:
            raise Refused(f"sheet {sheet.title!r} has more than {_ROWS:,} rows or {_CELLS:,} cells")
        for cell in row:
            if cell.value is not None:
                value = getattr(cell.value, "text", cell.value)  # an array formula is an object
                cells[(cell.row, cell.column)] = value
    return cells


def _place(name: str) -> tuple[int, int]:
    """`B12` as (12, 2)."""
    letters = name.rstrip("0123456789")
    column = 0
    for letter in letters:
        column = column * 26 + ord(letter) - ord("A") + 1
    return int(name[len(letters) :]), column


def _sheets(book: Mapping[str, Sheet], *, names: list[str]) -> Finding:
    return Finding(list(book) == names, f"sheets: asked {names}, found {list(book)}")


def _sheet_rows(book: Mapping[str, Sheet], *, sheet: str, count: Any) -> Finding:
    rows = {row for row, _ in book.get(sheet, {})}
    return compare(f"rows of {sheet!r} that hold something", len(rows), count)


def _values(
    book: Mapping[str, Sheet], *, sheet: str, cells: Mapping[str, Any], tolerance: float = 1e-6
) -> Finding:
    found = book.get(sheet, {})
    wrong = [
        f"{name}: asked {asked!r}, found {found.get(_place(name))!r}"
        for name, asked in cells.items()
        if not same_value(found.get(_place(name)), asked, tolerance)
    ]
    said = "; ".join(wrong[:5]) or f"{len(cells)} values of {sheet!r} are right"
    return Finding(not wrong, said)


def _formulas(book: Mapping[str, Sheet], *, sheet: str, cells: Mapping[str, list[str]]) -> Finding:
    """Cells by accepted ways of writing their formula; spaces, `$` and case do not count."""
    found = book.get(sheet, {})
    wrong = []
    for name, ways in cells.items():
        value = found.get(_place(name))
        if _bare_formula(str(value)) not in {_bare_formula(way) for way in ways}:
            wrong.append(f"{name}: asked {ways[0]}, found {value!r}")
    said = "; ".join(wrong[:5]) or f"{len(cells)} formulas of {sheet!r} are right"
    return Finding(not wrong, said)


def _bare_formula(text: str) -> str:
    return re.sub(r"[\s$']", "", text).upper()


def read_table(path: Path) -> list[list[str]]:
    text = _utf8(path)
    rows: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), strict=True):
            if len(rows) >= _ROWS:
                raise Refused(f"more than {_ROWS:,} rows")
            if row:
                rows.append([cell.strip() for cell in row])
    except csv.Error as exc:
        raise Refused(f"no CSV ({exc})") from exc
    return rows


def _utf8(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise Refused(f"not UTF-8 text (byte {exc.start})") from exc


def _header(table: list[list[str]], *, names: list[str]) -> Finding:
    found = table[0] if table else []
    return Finding(found == names, f"header: asked {names}, found {found}")


def _table_rows(
    table: list[list[str]], *, rows: list[list[Any]], tolerance: float = 1e-6
) -> Finding:
    """Every row under the header, in order; numbers by tolerance."""
    if len(table) - 1 != len(rows):
        return Finding(False, f"rows: asked {len(rows)}, found {len(table) - 1}")
    for number, (found, asked) in enumerate(zip(table[1:], rows, strict=True), 1):
        same = len(found) == len(asked) and all(
            same_value(a, b, tolerance) for a, b in zip(found, asked, strict=True)
        )
        if not same:
            return Finding(False, f"row {number}: asked {asked}, found {found}")
    return Finding(True, f"all {len(rows)} rows are right")


# --- JSON and maps ---------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    try:
        return json.loads(_utf8(path))
    except (ValueError, RecursionError) as exc:
        raise Refused(f"no JSON ({exc})") from exc


def _fields(value: Any, *, fields: Mapping[str, Any], tolerance: float = 1e-6) -> Finding:
    """Exactly these fields, numbers as numbers."""
    if not isinstance(value, dict) or set(value) != set(fields):
        found = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        return Finding(False, f"fields: asked {sorted(fields)}, found {found}")
    wrong = [
        f"{name}: asked {asked!r}, found {value[name]!r}"
        for name, asked in fields.items()
        if isinstance(asked, str) != isinstance(value[name], str)
        or not same_value(value[name], asked, tolerance)
    ]
    return Finding(not wrong, "; ".join(wrong) or f"{len(fields)} fields are right")


def _points(
    value: Any, *, name: str, points: Mapping[str, tuple[float, float]], tolerance: float = 1e-4
) -> Finding:
    """A GeoJSON collection with just these named points: longitude first, then latitude."""
    try:
        features = value["features"] if value["type"] == "FeatureCollection" else []
        found = {
            str(one["properties"][name]): tuple(map(float, one["geometry"]["coordinates"][:2]))
            for one in features
            if one["type"] == "Feature" and one["geometry"]["type"] == "Point"
        }
    except (LookupError, TypeError, ValueError) as exc:
        return Finding(False, f"no collection of GeoJSON features ({type(exc).__name__}: {exc})")
    if set(found) != set(points) or len(features) != len(points):
        return Finding(False, f"points: asked {sorted(points)}, found {sorted(found)}")
    wrong = [
        f"{place}: asked {list(asked)}, found {list(found[place])}"
        for place, asked in points.items()
        if any(abs(a - b) > tolerance for a, b in zip(found[place], asked, strict=True))
    ]
    return Finding(not wrong, "; ".join(wrong) or f"{len(points)} points are in their places")


# --- calendars -------------------------------------------------------------------------------

Event = dict[str, str]


def read_calendar(path: Path) -> list[Event]:
    """The events of an iCalendar file, a table of fields each (parameters cut off)."""
    text = re.sub(r"\r?\n[ \t]", "", _utf8(path).strip())
    lines = text.splitlines()
    if not lines or lines[0] != "BEGIN:VCALENDAR" or lines[-1] != "END:VCALENDAR":
        raise Refused("no calendar: BEGIN:VCALENDAR and END:VCALENDAR must be first and last")
    events: list[Event] = []
    inside = False
    for line in lines:
        name, _, value = line.partition(":")
        if line == "BEGIN:VEVENT":
            inside = True
            events.append({})
        elif line == "END:VEVENT":
            inside = False
        elif inside:
            events[-1][name.partition(";")[0].upper()] = re.sub(r"\\([,;\\])", r"\1", value)
    return events


def _events(events: list[Event], *, events_are: list[Mapping[str, str]]) -> Finding:
    """Just these events, in whatever order, by the fields that are named."""
    names = sorted({name for asked in events_are for name in asked})
    found = sorted(tuple(event.get(name, "") for name in names) for event in events)
    asked = sorted(tuple(event.get(name, "") for name in names) for event in events_are)
    different = [one for one in found if one not in asked] or [o for o in asked if o not in found]
    said = f"events: {len(asked)} asked, {len(found)} found; different: {different[:2] or 'none'}"
    return Finding(found == asked, said)


def _required(events: list[Event], *, names: list[str]) -> Finding:
    """Fields that every event has, and UIDs that are all different."""
    absent = sorted({name for event in events for name in names if not event.get(name)})
    uids = [event.get("UID") for event in events]
    said = f"fields of each event: absent {absent or 'none'}"
    if len(set(uids)) < len(uids):
        return Finding(False, f"{said}; two events have the same UID")
    return Finding(not absent, said)


_PDF_CHECKS: dict[str, Check] = {
    "metadata": _metadata,
    "page_size": _page_size,
    "page_texts": _page_texts,
    "pages": _pages,
}
_BOOK_CHECKS: dict[str, Check] = {
    "formulas": _formulas,
    "rows": _sheet_rows,
    "sheets": _sheets,
    "values": _values,
}

KINDS = {
    "archive": Kind(read_archive, {"contents": _contents, "members": _members}, {}),
    "calendar": Kind(
        read_calendar, {"events": _events, "required": _required}, {}, max_bytes=5 * MIB
    ),
    "json": Kind(read_json, {"fields": _fields, "points": _points}, {}, max_bytes=10 * MIB),
    "pdf": Kind(read_pdf, _PDF_CHECKS, {"": "pypdf"}),
    "table": Kind(read_table, {"header": _header, "rows": _table_rows}, {}, max_bytes=10 * MIB),
    "workbook": Kind(
        read_workbook, _BOOK_CHECKS, {"": "openpyxl", "xml": "defusedxml"}, max_bytes=10 * MIB
    ),
}
