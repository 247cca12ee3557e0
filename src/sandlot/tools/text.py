"""Text on its way to a model: control characters made visible, length capped."""

from __future__ import annotations

import re

# CSI and OSC sequences and the two-character escapes (ECMA-48): colours, cursor moves, titles.
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\^-~])"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_OVERWRITTEN = re.compile(r"[^\n\r]*\r(?=[^\n\r])")


def visible(text: str) -> str:
    """Strip terminal escapes and overwritten progress lines; spell other controls as \\xNN."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n")
    text = _OVERWRITTEN.sub("", text).replace("\r", "")
    return _CONTROLS.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def capped(text: str, limit: int, advice: str = "") -> str:
    """At most `limit` characters: the head and the tail, with what was left out said between."""
    if len(text) <= limit:
        return text
    note = f"\n[… {{}} characters left out{'; ' + advice if advice else ''} …]\n"
    room = limit - len(note.format(len(text)))
    if room < limit // 2:  # a long advice must not eat a small observation
        note = "\n[… {} chars left out …]\n"
        room = max(limit - len(note.format(len(text))), 0)
    head = room - room // 3
    tail = room // 3
    left_out = len(text) - head - tail
    return text[:head] + note.format(left_out) + (text[-tail:] if tail else "")
