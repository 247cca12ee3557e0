"""A bash text as the simple commands in it: enough to say which programs an action runs.

No full grammar: functions, arithmetic and case patterns are read as if they were commands. What
stands inside quotes is an argument and never a command, except where the shell itself would run
it (`$(…)` in double quotes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_HEREDOC = re.compile(r"(?<!<)<<(?P<dash>-?)[ \t]*(?P<quote>['\"\\]?)(?P<word>\w+)(?P=quote)?")
_MARK = re.compile(r"\x00(\d+)\x00")
_TOKEN = re.compile(
    r"(?P<heredoc>\x00\d+\x00)"
    r"|(?P<comment>(?<![^\s;|&(])#[^\n]*)"
    r"|(?P<single>\$?'[^']*')"
    r'|(?P<double>"(?:\\.|[^"\\])*")'
    r"|(?P<redirect>\d*(?:>>|<<<|>\||<>|[<>])(?:&\d|&-)?|&>>?)"
    r"|(?P<pipe>\|&?(?!\|))"
    r"|(?P<end>&&|\|\||[;&\n()`]|\$\()"
    r"|(?P<joined>\\\n)"
    r"|(?P<escape>\\.)"
    r"|(?P<space>[ \t\r]+)"
    r"|(?P<plain>[^\s'\"\\;|&()`<>$\x00]+|.)",
    re.DOTALL,
)


def words(text: str) -> frozenset[str]:
    """A table of names, written as one line of words."""
    return frozenset(text.split())


_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\+?=")
_LEADING = words("if then elif else do while until ! { }")
_WRAPPERS = words(
    "sudo nohup time env nice ionice timeout xargs stdbuf command exec eval setsid uvx"
)


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command: `name` without its folder, its arguments with their quotes taken off.

    `piped` is whether it reads another command's output; `heredoc` is the text it is fed;
    `targets` are the files that its output goes to.
    """

    name: str
    arguments: tuple[str, ...]
    piped: bool = False
    heredoc: str | None = None
    targets: tuple[str, ...] = ()


def commands_of(text: str) -> Iterator[Command]:
    """The simple commands of a shell text in their order, substitutions included."""
    shell, bodies = _take_heredocs(text)
    words: list[str] = []
    targets: list[str] = []
    inner: list[str] = []
    heredoc: str | None = None
    word, piped, redirecting = "", False, False

    def end_word() -> None:
        nonlocal word, redirecting
        if not word:
            return
        (targets if redirecting else words).append(word)
        word, redirecting = "", False

    for match in [*_TOKEN.finditer(shell), None]:
        kind, token = (match.lastgroup, match.group()) if match is not None else ("end", "")
        if kind == "plain":
            word += token
        elif kind == "single":
            word += token.lstrip("$")[1:-1]
        elif kind == "double":
            word += re.sub(r"\\([\"$`\\\n])", r"\1", token[1:-1])
            inner.extend(_substitutions(token))
        elif kind == "escape":
            word += token[1]
        elif kind in ("space", "comment", "joined"):
            end_word()
        elif kind == "heredoc":
            heredoc = bodies[int(token.strip("\x00"))]
        elif kind == "redirect":
            end_word()
            redirecting = "&" not in token[1:]
        else:
            end_word()
            command = _command(words, piped, heredoc, targets)
            if command is not None:
                yield command
            for substitution in inner:
                yield from commands_of(substitution)
            words, targets, inner, heredoc = [], [], [], None
            piped = kind == "pipe"


def _take_heredocs(text: str) -> tuple[str, list[str]]:
    """The text with each here-document's operator replaced by a mark, and their bodies."""
    lines = text.replace("\x00", "").split("\n")
    kept: list[str] = []
    bodies: list[str] = []
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        for match in list(_HEREDOC.finditer(line)):
            end = _end_of_heredoc(lines, at, match["word"], bool(match["dash"]))
            if end is None:  # a shift operator in some code, or cut off
                continue
            line = line.replace(match.group(), f"\x00{len(bodies)}\x00", 1)
            bodies.append("\n".join(lines[at:end]))
            at = end + 1
        kept.append(line)
    return "\n".join(kept), bodies


def _end_of_heredoc(lines: Sequence[str], start: int, word: str, tabs: bool) -> int | None:
    for number in range(start, len(lines)):
        line = lines[number].lstrip("\t") if tabs else lines[number]
        if line == word:
            return number
    return None


def _substitutions(quoted: str) -> list[str]:
    """What stands in `$(…)` inside double quotes."""
    found = []
    for match in re.finditer(r"\$\((?!\()", quoted):
        depth, at = 1, match.end()
        while at < len(quoted) and depth:
            depth += {"(": 1, ")": -1}.get(quoted[at], 0)
            at += 1
        found.append(quoted[match.end() : at - 1])
    return found


def _command(
    words: Sequence[str], piped: bool, heredoc: str | None, targets: Sequence[str]
) -> Command | None:
    rest = _without_wrappers(list(words))
    if not rest:
        return None
    name = rest[0].rsplit("/", 1)[-1]
    return Command(name, tuple(rest[1:]), piped, heredoc, tuple(targets))


def _without_wrappers(words: list[str]) -> list[str]:
    """From the program on that is really run: `sudo timeout 5 env A=1 pip …` is `pip …`."""
    while words:
        first = words[0]
        if first in _LEADING or _ASSIGNMENT.match(first):
            words = words[1:]
        elif first.rsplit("/", 1)[-1] in _WRAPPERS:
            words = words[1:]
            while words and (words[0].startswith("-") or re.fullmatch(r"[\d.]+[smhd]?", words[0])):
                words = words[1:]
        elif words[:2] == ["uv", "run"]:
            words = words[2:]
        else:
            break
    return words
