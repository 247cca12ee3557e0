"""`str_replace_editor`: look at files and change them, every other byte kept as it is.

Works on the sandbox's file calls alone: no path ever meets a shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sandlot.core.errors import SandboxFileError
from sandlot.core.types import ImagePart, TextPart
from sandlot.models.base import ToolSpec
from sandlot.sandbox.base import FileInfo, Sandbox
from sandlot.tools.base import Observation, ToolContext
from sandlot.tools.images import image_format
from sandlot.tools.text import capped, visible

_FILE_BYTES = 16 * 1024 * 1024
_AROUND = 4  # lines shown before and after a change
_DIR_ENTRIES = 1000
_LINE_END = re.compile(r"\r\n|\n|\r")


class _Refused(Exception):  # control flow inside one call: the message is the observation
    """The edit cannot be made as asked."""


class StrReplaceEditor:
    spec = ToolSpec(
        name="str_replace_editor",
        description=(
            "Look at and change files without a shell. `view` shows a text file with line "
            "numbers (all of it, or the lines of view_range), a folder two levels deep, or an "
            "image. `create` writes a new file from file_text and refuses an existing path. "
            "`str_replace` puts new_str in the place of old_str, which must occur exactly once, "
            "whitespace and all. `insert` adds new_str after line insert_line (0: at the top). "
            "Whatever is not changed keeps its bytes."
        ),
        parameters={
            "type": "object",
            "properties": {
                "command": {
                    "type": "string",
                    "enum": ["view", "create", "str_replace", "insert"],
                    "description": "What to do.",
                },
                "path": {
                    "type": "string",
                    "description": "The file or folder; best as an absolute path.",
                },
                "file_text": {
                    "type": "string",
                    "description": "For create: the whole content of the new file.",
                },
                "old_str": {
                    "type": "string",
                    "description": "For str_replace: the text to replace, found exactly once.",
                },
                "new_str": {
                    "type": "string",
                    "description": "For str_replace: the new text (left out: delete). "
                    "For insert: the lines to add.",
                },
                "insert_line": {
                    "type": "integer",
                    "description": "For insert: the number of the line to insert after.",
                },
                "view_range": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "description": "For view of a file: [first, last] line; last -1 is the end.",
                },
            },
            "required": ["command", "path"],
        },
    )

    async def run(self, arguments: Mapping[str, Any], context: ToolContext) -> Observation:
        action = {
            "view": _view,
            "create": _create,
            "str_replace": _str_replace,
            "insert": _insert,
        }[arguments["command"]]
        try:
            return await action(arguments, context)
        except (_Refused, SandboxFileError) as exc:
            text = capped(f"Error: {visible(str(exc))}", context.observation_chars)
            return Observation.of(text, ok=False)


async def _view(arguments: Mapping[str, Any], context: ToolContext) -> Observation:
    path, span = arguments["path"], arguments.get("view_range")
    if await _is_folder(context.sandbox, path):
        if span is not None:
            raise _Refused(f"{path} is a folder; view_range is for files")
        return _told(await _tree(context.sandbox, path), context, "view a folder further down")
    data = await context.sandbox.read_file(path, limit_bytes=_FILE_BYTES)
    if image_format(data) is not None:
        return _show_image(path, data, context)
    lines = _LINE_END.split(_decode(path, data))
    if len(lines) > 1 and lines[-1] == "":
        lines.pop()
    first, last = _span(path, span, len(lines))
    text = _numbered(lines, first, last)
    if not data:
        text = "(the file is empty)"
    return _told(text, context, f"the file has {len(lines)} lines: use view_range")


async def _create(arguments: Mapping[str, Any], context: ToolContext) -> Observation:
    path, text = arguments["path"], arguments.get("file_text")
    if text is None:
        raise _Refused("create needs 'file_text'")
    if await _exists(context.sandbox, path):
        raise _Refused(
            f"{path} exists already; create makes new files only. Use str_replace or insert to "
            "change it, or execute_bash to remove or overwrite it"
        )
    await context.sandbox.write_file(path, text.encode("utf-8"), exclusive=True)
    return Observation.of(f"Created {path} ({len(text.encode('utf-8'))} bytes).")


async def _str_replace(arguments: Mapping[str, Any], context: ToolContext) -> Observation:
    path, old = arguments["path"], arguments.get("old_str")
    if not old:
        raise _Refused("str_replace needs a non-empty 'old_str'")
    new = arguments.get("new_str", "")
    text = await _read_text(context.sandbox, path)
    old, new = _as_in_file(text, old, new)
    places = _places(text, old)
    if not places:
        raise _Refused(f"old_str does not occur in {path}. {_near_miss(text, old)}")
    if len(places) > 1:
        where = ", ".join(str(_line_of(text, place)) for place in places[:20])
        raise _Refused(
            f"old_str occurs {len(places)} times in {path} (lines {where}); add lines around it "
            "until it is unique"
        )
    changed = text[: places[0]] + new + text[places[0] + len(old) :]
    await context.sandbox.write_file(path, changed.encode("utf-8"))
    return _changed(path, changed, places[0], new, context)


async def _insert(arguments: Mapping[str, Any], context: ToolContext) -> Observation:
    path, line, new = arguments["path"], arguments.get("insert_line"), arguments.get("new_str")
    if line is None or new is None:
        raise _Refused("insert needs 'insert_line' and 'new_str'")
    text = await _read_text(context.sandbox, path)
    starts = _line_starts(text)
    total = len(starts) - 1
    if not 0 <= line <= total:
        raise _Refused(f"insert_line {line} is outside of {path}: give 0 to {total}")
    newline = _newline_of(text)
    new = _with_newlines(new, newline)
    at = starts[line]
    if at == len(text) and text and not text.endswith(("\n", "\r")):
        # The last line has no newline: the new one starts on its own line and has none either.
        inserted, shown = newline + new.removesuffix(newline), at + len(newline)
    else:
        inserted, shown = new if new.endswith(newline) else new + newline, at
    changed = text[:at] + inserted + text[at:]
    await context.sandbox.write_file(path, changed.encode("utf-8"))
    return _changed(path, changed, shown, new, context)


# Reading.


async def _is_folder(sandbox: Sandbox, path: str) -> bool:
    """Also true for a link to a folder, which a plain stat does not follow."""
    info = await sandbox.stat(path)
    if info.kind != "link":
        return info.kind == "directory"
    try:
        await sandbox.list_dir(path)
    except SandboxFileError:
        return False
    return True


async def _exists(sandbox: Sandbox, path: str) -> bool:
    try:
        await sandbox.stat(path)
    except SandboxFileError:
        return False
    return True


async def _read_text(sandbox: Sandbox, path: str) -> str:
    return _decode(path, await sandbox.read_file(path, limit_bytes=_FILE_BYTES))


def _decode(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _Refused(
            f"{path} is not UTF-8 text (byte {exc.start}: 0x{data[exc.start]:02x}) and is left as "
            "it is. With execute_bash: `file` tells its kind, `iconv -f ENCODING -t UTF-8` or "
            "chardet convert text, `xxd` shows binary data"
        ) from exc


async def _tree(sandbox: Sandbox, path: str) -> str:
    """Two levels of a folder; hidden entries are left out."""
    lines = [f"{visible(path)}:"]
    for entry in _shown(await sandbox.list_dir(path)):
        lines.append(_entry(entry, ""))
        if entry.kind == "directory":
            lines.extend(await _below(sandbox, f"{path.rstrip('/')}/{entry.path}"))
    if len(lines) == 1:
        lines.append("(nothing but hidden entries, or empty)")
    return "\n".join(lines)


async def _below(sandbox: Sandbox, path: str) -> list[str]:
    try:
        return [_entry(entry, "  ") for entry in _shown(await sandbox.list_dir(path))]
    except SandboxFileError as exc:
        return [f"  ({exc.reason})"]


def _shown(entries: list[FileInfo]) -> list[FileInfo]:
    return [entry for entry in entries if not entry.path.startswith(".")][:_DIR_ENTRIES]


def _entry(entry: FileInfo, indent: str) -> str:
    name = visible(entry.path).replace("\n", "\\n")
    if entry.kind == "directory":
        return f"{indent}{name}/"
    kind = f"{entry.size_bytes} bytes" if entry.kind == "file" else entry.kind
    return f"{indent}{name} ({kind})"


def _show_image(path: str, data: bytes, context: ToolContext) -> Observation:
    found = image_format(data)
    assert found is not None
    size = f"{found.width} x {found.height} pixels" if found.width else "size unknown"
    facts = f"{path}: {found.name} image, {size}, {len(data)} bytes."
    if context.sees_images:
        return Observation((TextPart(facts), ImagePart(data, found.media_type)))
    return _told(
        f"{facts} You cannot see pictures here: examine it by program, for example with Python "
        "(PIL, numpy) or an OCR tool such as tesseract.",
        context,
        "",
    )


# Positions and line ends.


def _line_starts(text: str) -> list[int]:
    """Offset of each line's start, and the end of the text where a further line would begin."""
    starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
    return starts if starts[-1] == len(text) else [*starts, len(text)]


def _line_of(text: str, offset: int) -> int:
    return sum(1 for _ in _LINE_END.finditer(text, 0, offset)) + 1


def _newline_of(text: str) -> str:
    """The file's line end, from its first line; a file of one line gets the usual one."""
    match = _LINE_END.search(text)
    return match.group() if match else "\n"


def _with_newlines(text: str, newline: str) -> str:
    return text if newline == "\n" else _LINE_END.sub(newline, text)


def _as_in_file(text: str, old: str, new: str) -> tuple[str, str]:
    """The two texts with the file's line ends, where `old` is found only with those.

    A model sees lines, not line ends, and writes plain newlines for a CRLF file.
    """
    if old in text or "\n" not in text + old:
        return old, _with_newlines(new, "\r\n") if _crlf_only(text) else new
    newline = _newline_of(text)
    return _with_newlines(old, newline), _with_newlines(new, newline)


def _crlf_only(text: str) -> bool:
    return "\r\n" in text and text.count("\n") == text.count("\r\n") == text.count("\r")


def _places(text: str, old: str) -> list[int]:
    """Every offset where `old` begins, overlapping ones too: each could be the one meant."""
    places, at = [], text.find(old)
    while at >= 0:
        places.append(at)
        at = text.find(old, at + 1)
    return places


def _near_miss(text: str, old: str) -> str:
    first = next((line.strip() for line in _LINE_END.split(old) if line.strip()), "")
    lines = _LINE_END.split(text)
    found = [number for number, line in enumerate(lines, 1) if first and first in line]
    if not found:
        return "View the file and copy the text exactly"
    where = ", ".join(map(str, found[:5]))
    return f"Its first line is much like line {where}: check the whitespace and the lines after"


# Telling.


def _span(path: str, span: list[int] | None, total: int) -> tuple[int, int]:
    if span is None:
        return 1, total
    if len(span) != 2:
        raise _Refused("view_range must be two numbers: [first, last]")
    first, last = span[0], total if span[1] == -1 else span[1]
    if not 1 <= first <= total or last < first:
        raise _Refused(f"view_range {span} does not fit {path}: it has lines 1 to {total}")
    return first, min(last, total)


def _numbered(lines: list[str], first: int, last: int) -> str:
    return "\n".join(
        f"{number:6}\t{_one_line(lines[number - 1])}" for number in range(first, last + 1)
    )


def _one_line(line: str) -> str:
    return visible(line).replace("\ufeff", "\\ufeff")


def _told(text: str, context: ToolContext, advice: str) -> Observation:
    return Observation.of(capped(text, context.observation_chars, advice))


def _changed(path: str, text: str, at: int, new: str, context: ToolContext) -> Observation:
    """The changed lines with a few around them."""
    lines = _LINE_END.split(text)
    begin = _line_of(text, at)
    end = begin + len(_LINE_END.findall(new))
    first, last = max(begin - _AROUND, 1), min(end + _AROUND, len(lines))
    if last == len(lines) and lines[-1] == "" and last > first:
        last -= 1
    snippet = _numbered(lines, first, last)
    return _told(f"Changed {path}. It now reads:\n{snippet}", context, "use view to see more")
