"""Text that others wrote, made harmless for a terminal."""

from __future__ import annotations

import re

# C0 and C1 controls, DEL, and the marks that reorder or hide what stands around them.
_HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def clean(text: str) -> str:
    """The text with every control character shown instead of obeyed; newlines and tabs stay."""
    return _HOSTILE.sub(_shown, text.replace("\r\n", "\n").replace("\r", "\n"))


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def one_line(text: str, width: int = 120) -> str:
    """The text on one line of at most `width` characters."""
    line = " ".join(clean(text[: width * 8]).split())
    return line if len(line) <= width and len(text) <= width * 8 else line[: width - 1] + "…"


def excerpt(text: str, lines: int = 12, width: int = 200) -> list[str]:
    """The start and the end of a text, in at most `lines` lines of at most `width` characters."""
    all_lines = clean(text).rstrip("\n").split("\n") if text.strip() else []
    if len(all_lines) > lines:
        head, tail = lines // 2, lines - lines // 2 - 1
        left_out = len(all_lines) - head - tail
        all_lines = [*all_lines[:head], f"… {left_out:,} lines …", *all_lines[-tail:]]
    return [line if len(line) <= width else line[: width - 1] + "…" for line in all_lines]
