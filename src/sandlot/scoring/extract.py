"""What a model gave as its answer: one strict reading, the same for every arm."""

from __future__ import annotations

import json
import re
import unicodedata

SHORT_CHARACTERS = 2000
"""A text without any mark is taken whole up to this length; a longer one is not an answer."""

_THOUGHT_TAG = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>", re.IGNORECASE)
_MARKED = re.compile(
    r"""(?:^|(?<=[.!?][ ]))[ \t>#*_`"'{-]*             # a line's or sentence's start, markdown
        (?:(?:the|my|so|thus|therefore|hence|and|but|wait|actually|correct|right|best)[ ,]+)*
        (?:final[ ]answer|answer|final)[*_`"' ]*     # the mark itself
        (?:[ ]is\b[ ]*[:：]?|[:：=])[*_`]*""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_SENTENCE_END = re.compile(r"(?:(?<=[\d)}\]$%*])|(?<=[^\W\d_]{4}))\.\s+(?=[A-Z]\w*(?:\s+\S+){2})")
_HEADING = re.compile(
    r"^[ \t]*(?:#+[ \t]*(?:final )?answer|\*\*(?:final )?answer\*\*|(?:final )?answer)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_NESTED = 4  # boxes within boxes that are told apart
_BOX = re.compile(r"\\{1,2}boxed\s*\{|\\{1,2}fbox\s*\{")


def extract(text: str | None) -> str | None:
    r"""The answer in a text, or None where it gives none.

    The rule, in order:

    1. Finished thoughts (`<think>…</think>`) are removed; of an unfinished one all that follows
       its opening tag; of a closing tag without an opening one all that stands before it.
    2. A text that is one JSON object with a field `answer` (or `final_answer`) gives that field.
    3. Otherwise the last of these marks in the text counts: a line or sentence that begins with
       `ANSWER:`, `Answer:`, `Final answer:` or `The answer is` (markdown around it is ignored)
       gives the rest of its line without a further sentence, or what follows down to the next
       empty line where the rest is empty; a heading `# Answer` likewise; `<answer>…</answer>` its
       inside; `\boxed{…}` its inside. A box inside a marked answer is opened.
    4. A text without any mark is taken whole if it has at most `SHORT_CHARACTERS` characters.

    Nothing is guessed from the middle of an argument. What is found comes back trimmed; an empty
    find is None.
    """
    visible = visible_text(text)
    if not visible:
        return None
    from_json = _json_field(visible)
    if from_json is not None:
        return _unboxed(from_json) or None
    marked = _last_mark(visible)
    if marked is not None:
        return _unboxed(marked) or None
    return visible if len(visible) <= SHORT_CHARACTERS else None


def visible_text(text: str | None) -> str:
    """The text without thoughts, byte order marks and NULs, trimmed."""
    if not text:
        return ""
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _THOUGHT_TAG.finditer(text):
        if not thinking and tag[1]:
            kept.clear()  # the opening tag was part of the prompt
        elif not thinking:
            kept.append(text[start : tag.start()])
        thinking, start = not tag[1], tag.end()
    without = "".join(kept) + ("" if thinking else text[start:])
    return without.replace("\ufeff", "").replace("\x00", "").strip()


def plain(text: str) -> str:
    """Compatibility forms made one: full-width letters and digits, odd spaces, dashes as minus."""
    text = unicodedata.normalize("NFKC", text)
    return text.translate(_ONE_FORM)


_ONE_FORM = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "’": "'", "‘": "'", "“": '"', "”": '"'}
    | {"，": ",", "：": ":", "；": ";", "。": ".", "、": ",", "\u200b": None}
)


def last_box(text: str) -> tuple[int, str] | None:
    """Where the last box of a text begins, and its inside. An unclosed one ends with its line."""
    found = None
    for match in list(_BOX.finditer(text))[-_NESTED:]:
        if found is not None and match.start() < found[0] + len(found[1]):
            continue  # a box inside the one before
        found = (match.start(), _balanced(text, match.end()))
    return found


def _balanced(text: str, start: int) -> str:
    depth = 1
    for at in range(start, len(text)):
        if text[at] == "{" and text[at - 1] != "\\":
            depth += 1
        elif text[at] == "}" and text[at - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[start:at]
    return text[start:].split("\n", 1)[0]


def _unboxed(text: str) -> str:
    """The inside of the last box where there is one, of nested boxes the innermost."""
    while (box := last_box(text)) is not None:
        text = box[1]
    return text.strip()


def _json_field(text: str) -> str | None:
    body = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not body.startswith("{"):
        return None
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    fields = {str(key).lower().replace(" ", "_"): value for key, value in data.items()}
    value = fields.get("final_answer", fields.get("answer"))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return None if value is None else str(value)


def _last_mark(text: str) -> str | None:
    finds = [
        (match.start(), match.end(), mark)
        for mark, pattern in (("line", _MARKED), ("heading", _HEADING), ("tag", _ANSWER_TAG))
        for match in pattern.finditer(text)
    ]
    box = last_box(text)
    if box is not None and all(box[0] > start for start, _, _ in finds):
        return box[1]
    if not finds:
        return None
    _, end, mark = max(finds)
    if mark == "tag":
        return re.split("</answer>", text[end:], maxsplit=1, flags=re.IGNORECASE)[0]
    line = text[end:].split("\n", 1)[0].strip()
    if mark == "heading" or not line.strip("*_` \t"):
        return _unquoted(_paragraph(text, end))
    return _unquoted(_SENTENCE_END.split(line, maxsplit=1)[0])


def _paragraph(text: str, start: int) -> str:
    """What follows a mark that stands alone: down to the next empty line."""
    return text[start:].strip().split("\n\n", 1)[0].strip()


def _unquoted(text: str) -> str:
    """Without the bold marks or quotes that the mark's own line began, and a brace left over."""
    text = text.strip()
    if text.endswith("}") and text.count("}") > text.count("{"):
        text = text[:-1].rstrip()
    if text.count("**") % 2:
        text = re.sub(r"\*\*(?=[.!]?$)", "", text)  # the other half stood before the mark
    return text.strip("`").strip(' "').strip()
