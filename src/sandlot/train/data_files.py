"""Documents as files: long ones cut at sections and paragraphs, each file under a telling name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

_PROSE = (".md", ".rst", ".text", ".txt")
_NAME_LENGTH = 40
_GENERIC = re.compile(
    r"(?:doc(?:ument)?|context|text|file|input|passage|article|paragraph|content|untitled)?"
    r"[-_ ]*\d*",
    re.IGNORECASE,
)
_MARKED = re.compile(r"#{1,6}\s+(?P<hash>\S.*?)\s*#*|(?P<wiki>={2,6})\s*(?P<title>\S.*?)\s*=+")
_RULE = re.compile(r"(?:=|-|~){3,}\s*")
_LABEL = re.compile(r"(?:title|section|chapter)\s*:\s*(?P<title>\S.*)", re.IGNORECASE)
_BORDERS = (
    re.compile(r"(?:\r?\n[ \t]*){2,}"),  # paragraphs
    re.compile(r"\r?\n"),
    re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+"),
    re.compile(r"\s+"),
)
_HEADING_LENGTH = 80
_CELL_ROWS = 3


@dataclass(frozen=True, slots=True)
class Document:
    """A text of a context. `name` is a file name and `title` a heading, where it has them."""

    text: str
    name: str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes of files in characters: a text above `most` is cut; no piece is to be below `least`."""

    least: int = 400
    most: int = 4000


@dataclass(frozen=True, slots=True)
class Piece:
    """What becomes a file. `name` is kept as is; `number` is its place in a text that was cut."""

    text: str
    title: str | None = None
    section: str | None = None
    name: str | None = None
    number: int | None = None
    suffix: str = ".txt"

    @property
    def stem(self) -> str:
        """Its file's name without the ending; empty where nothing tells one."""
        number = f"{self.number:02d}" if self.number else ""
        told = [safe(self.title or ""), number, safe(self.section or "")]
        return "_".join(part for part in told if part) if told[0] or told[2] else ""


def pieces_of(documents: Sequence[Document], bounds: Bounds) -> tuple[Piece, ...]:
    """Each document as one piece, or as several where it is prose above the bound."""
    return tuple(piece for document in documents for piece in _pieces(document, bounds))


def _pieces(document: Document, bounds: Bounds) -> Iterator[Piece]:
    title = title_of(document)
    suffix = PurePosixPath(document.name or "").suffix.lower() or ".txt"
    text = _headed(document)
    if suffix not in _PROSE or len(text) <= bounds.most:
        kept = document.name if document.name and not _is_generic(document.name) else None
        yield Piece(text, title, name=kept, suffix=suffix)
        return
    sections = _packed_sections(text, bounds)
    begins = "Beginning" if any(heading for heading, _ in sections) else None
    for number, (heading, body) in enumerate(sections, 1):
        section = None if heading and heading == title else heading or begins
        yield Piece(body, title, section, number=number, suffix=suffix)


def title_of(document: Document) -> str | None:
    """The title that was given, that the text begins with, or that the file's name tells."""
    if document.title:
        return document.title
    heading = next(iter(_headings(document.text.lstrip().splitlines()[:3])), None)
    if heading is not None and heading[0] == 0:
        return heading[1]
    if document.name and not _is_generic(document.name):
        return PurePosixPath(document.name).stem
    return None


def _is_generic(name: str) -> bool:
    return _GENERIC.fullmatch(PurePosixPath(name).stem) is not None


def _headed(document: Document) -> str:
    """The text, below its title where that stands nowhere else."""
    if not document.title or document.text.lstrip(" #=\n").startswith(document.title):
        return document.text
    return f"# {document.title}\n\n{document.text}"


# --- sections --------------------------------------------------------------------------------


def _packed_sections(text: str, bounds: Bounds) -> list[tuple[str | None, str]]:
    """Heading and text of each file: short sections together, long ones cut."""
    packed: list[tuple[str | None, str]] = []
    for heading, body in _sections(text):
        for part in _cut(body, bounds):
            last = packed[-1] if packed else None
            short = last is not None and min(len(last[1]), len(part)) < bounds.least
            if last is not None and short and len(last[1]) + len(part) <= bounds.most:
                packed[-1] = (last[0] or heading, last[1] + part)
            else:
                packed.append((heading, part))
    return [(heading, _trimmed(body)) for heading, body in packed if body.strip()]


def _sections(text: str) -> list[tuple[str | None, str]]:
    """The text in sections, each with its heading's line; nothing is lost between them."""
    lines = text.splitlines(keepends=True)
    starts: list[tuple[int, str | None]] = [
        (0, None),
        *_headings([line.rstrip("\r\n") for line in lines]),
    ]
    if len(starts) > 1 and starts[1][0] == 0:
        starts.pop(0)
    ends = [at for at, _ in starts[1:]] + [len(lines)]
    return [
        (heading, "".join(lines[at:end])) for (at, heading), end in zip(starts, ends, strict=True)
    ]


def _headings(lines: Sequence[str]) -> list[tuple[int, str | None]]:
    """Line and words of each heading: marked in Markdown, wiki or rule style, or standing alone.

    A line that stands alone is a heading where it is short, begins with a capital or a number,
    ends without a mark, and longer text follows.
    """
    found: list[tuple[int, str | None]] = []
    for at, line in enumerate(lines):
        title = _heading(line, _at(lines, at - 1), _at(lines, at + 1), _at(lines, at + 2))
        if title:
            found.append((at, title))
    return found


def _at(lines: Sequence[str], at: int) -> str:
    return lines[at] if 0 <= at < len(lines) else ""


def _heading(line: str, before: str, after: str, later: str) -> str | None:
    text = line.strip()
    if len(text) > _HEADING_LENGTH or not re.search(r"\w", text):
        return None
    marked = _MARKED.fullmatch(text)
    if marked:
        return marked["hash"] or marked["title"]
    if before.strip():
        return None
    if _RULE.fullmatch(after) and len(after.strip()) >= len(text) // 2:
        return text
    label = _LABEL.fullmatch(text)
    if label:
        return label["title"]
    alone = not after.strip() and len(later.strip()) > len(text)
    return text if alone and _looks_like_a_title(text) else None


def _looks_like_a_title(text: str) -> bool:
    words = text.split()
    first = text[0]
    return (
        len(words) <= 10
        and (first.isupper() or first.isdigit())
        and text[-1] not in ".,;:!?\"'”’"
        and not re.search(r"[|\t<>{}=]|:\s", text)
    )


# --- cutting ---------------------------------------------------------------------------------


def _cut(text: str, bounds: Bounds) -> list[str]:
    """The text in parts of like size, none above the bound; the parts joined are the text."""
    if len(text) <= bounds.most:
        return [text]
    atoms = list(_atoms(text, bounds.most, 0))
    count = -(-len(text) // bounds.most)
    wanted = len(text) / count
    parts: list[str] = []
    open_part = ""
    for atom in atoms:
        if open_part and (len(open_part) + len(atom) > bounds.most or len(open_part) >= wanted):
            parts.append(open_part)
            open_part = ""
        open_part += atom
    if parts and len(open_part) < bounds.least and len(parts[-1] + open_part) <= bounds.most:
        parts[-1] += open_part
    elif open_part:
        parts.append(open_part)
    return parts


def _atoms(text: str, most: int, level: int) -> Iterator[str]:
    """What is not to be torn: paragraphs, of long ones lines, sentences, words; tables stay."""
    if len(text) <= most or (level == 1 and _is_table(text)):
        yield text
        return
    if level == len(_BORDERS):
        yield from (text[at : at + most] for at in range(0, len(text), most))
        return
    start = 0
    for border in _BORDERS[level].finditer(text):
        yield from _atoms(text[start : border.end()], most, level + 1)
        start = border.end()
    if start < len(text):
        yield from _atoms(text[start:], most, level + 1)


def _is_table(text: str) -> bool:
    """Whether its lines are rows: most hold as many bars, tabs or commas as the first."""
    rows = [line for line in text.splitlines() if line.strip()]
    if len(rows) < _CELL_ROWS:
        return False
    return any(
        rows[0].count(mark) > (0 if mark != "," else 1)
        and sum(row.count(mark) == rows[0].count(mark) for row in rows) >= 0.8 * len(rows)
        for mark in ("|", "\t", ",")
    )


def _trimmed(text: str) -> str:
    return re.sub(r"^(?:[ \t]*\r?\n)+", "", text).rstrip() + "\n"


# --- names -----------------------------------------------------------------------------------


def named(pieces: Sequence[Piece]) -> dict[str, str]:
    """Texts by file name, in order of the names' making.

    Files are named by their titles where every one has a title or name, else numbered alike, so
    that no name tells the file that matters from those that were added.
    """
    telling = all(piece.name or piece.stem for piece in pieces)
    width = len(str(len(pieces)))
    files: dict[str, str] = {}
    taken: set[str] = set()
    for number, piece in enumerate(pieces, 1):
        name = piece.name or f"{piece.stem}{piece.suffix}"
        name = name if telling else f"document_{number:0{width}d}{piece.suffix}"
        files[_free(name, taken)] = piece.text
    return files


def safe(title: str) -> str:
    """A title as a name of letters, digits and _; accents go where that leaves letters."""
    flat = unicodedata.normalize("NFKD", title)
    plain = "".join(sign for sign in flat if not unicodedata.combining(sign))
    name = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")
    if not name:
        name = re.sub(r"\W+", "_", unicodedata.normalize("NFC", title)).strip("_")
    return name[:_NAME_LENGTH].strip("_")


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; names that differ in case alone are one."""
    path = PurePosixPath(name)
    number = 1
    while name.casefold() in taken:
        number += 1
        name = str(path.with_name(f"{path.stem}_{number}{path.suffix}"))
    taken.add(name.casefold())
    return name
