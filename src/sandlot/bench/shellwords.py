"""A bash text as the simple commands in it: enough to say which programs an action runs.

No full grammar: functions, arithmetic and case patterns are read as if they were commands. What
stands inside quotes is an argument and never a command, except where the shell itself would run
it (`$(…)` in double quotes).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

_HEREDOC = re.compile(r"(?<!<)<<(?P<dash>-?)[ \t]*(?P<quote>['\"\\]?)(?P<word>\w+)(?P=quote)?")
_ESCAPED = re.compile(r"\\([\"$`\\\n])")
_DEEPEST = 8  # of substitutions inside substitutions
_LONGEST = 10_000  # words of a command that are looked at
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


@lru_cache(maxsize=128)  # the same text is asked about by each meter in turn
def commands_of(text: str) -> tuple[Command, ...]:
    """The simple commands of a shell text in their order, substitutions included."""
    return tuple(_commands(text, 0))


def _commands(text: str, depth: int) -> Iterator[Command]:
    shell, bodies = _take_heredocs(text)
    reader = _Reader(bodies)
    for match in _TOKEN.finditer(shell):
        if reader.take(str(match.lastgroup), match.group()):
            yield from reader.command(depth)
            reader = _Reader(bodies, piped=match.lastgroup == "pipe")
    reader.end_word()
    yield from reader.command(depth)


@dataclass(slots=True)
class _Reader:
    """Gathers the words of one simple command."""

    bodies: Sequence[str]
    piped: bool = False
    words: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)
    heredoc: str | None = None
    word: str = ""
    redirecting: bool = False

    def take(self, kind: str, token: str) -> bool:
        """Add a token; True where it ends the command."""
        match kind:
            case "plain":
                self.word += token
            case "single":
                self.word += token.lstrip("$")[1:-1]
            case "double":
                self.word += _ESCAPED.sub(r"\1", token[1:-1])
                self.inner.extend(_substitutions(token))
            case "escape":
                self.word += token[1]
            case "heredoc":
                self.heredoc = self.bodies[int(token.strip("\x00"))]
            case _:
                self.end_word()
                if kind == "redirect":
                    self.redirecting = "&" not in token[1:]
        return kind in ("pipe", "end")

    def end_word(self) -> None:
        if self.word:
            (self.targets if self.redirecting else self.words).append(self.word)
            self.word, self.redirecting = "", False

    def command(self, depth: int) -> Iterator[Command]:
        """The command, if there are words for one, and those inside its quotes."""
        rest = _without_wrappers(self.words)
        if rest:
            name = rest[0].rsplit("/", 1)[-1]
            targets = tuple(self.targets)
            yield Command(name, tuple(rest[1:]), self.piped, self.heredoc, targets)
        for text in self.inner if depth < _DEEPEST else ():
            yield from _commands(text, depth + 1)


def _take_heredocs(text: str) -> tuple[str, list[str]]:
    """The text with each here-document's operator replaced by a mark, and their bodies."""
    text = text.replace("\x00", "")
    if "<<" not in text:
        return text, []
    lines = text.split("\n")
    places: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        places.setdefault(line.lstrip("\t"), []).append(number)
    kept: list[str] = []
    bodies: list[str] = []
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        for match in list(_HEREDOC.finditer(line)):
            end = _next_place(places.get(match["word"], ()), at)
            if end is None:  # a shift operator in some code, or cut off
                continue
            line = line.replace(match.group(), f"\x00{len(bodies)}\x00", 1)
            bodies.append("\n".join(lines[at:end]))
            at = end + 1
        kept.append(line)
    return "\n".join(kept), bodies


def _next_place(places: Sequence[int], start: int) -> int | None:
    """The first of sorted line numbers from `start` on."""
    found = bisect_left(places, start)
    return places[found] if found < len(places) else None


def _substitutions(quoted: str) -> Iterator[str]:
    """What stands in the outermost `$(…)` of a double-quoted text."""
    at = 0
    while (at := quoted.find("$(", at)) >= 0:
        start = at = at + 2
        depth = 1
        while at < len(quoted) and depth:
            depth += {"(": 1, ")": -1}.get(quoted[at], 0)
            at += 1
        if quoted[start : start + 1] != "(":  # `$((…))` is arithmetic
            yield quoted[start : at - 1]


def _without_wrappers(words: list[str]) -> list[str]:
    """From the program on that is really run: `sudo timeout 5 env A=1 pip …` is `pip …`."""
    words = words[:_LONGEST]
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
