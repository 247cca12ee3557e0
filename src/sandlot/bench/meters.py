"""What one rollout used, counted from its record. docs/meters.md says what each figure means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandlot.agent.budget import billed_tokens
from sandlot.bench.patterns import (
    CAPABILITIES,
    Code,
    arguments_of,
    capabilities,
    code_of,
    installs,
    python_uses,
    shell_code,
)
from sandlot.bench.records import Meters
from sandlot.bench.shellwords import Command, commands_of
from sandlot.core.types import Message, Role, ToolResult, Trajectory, Usage

__all__ = ["Price", "capabilities", "measure"]


@dataclass(frozen=True, slots=True)
class Price:
    """A model's price in dollars per million tokens, as its user knows it."""

    prompt_usd: float
    completion_usd: float
    cached_usd: float | None = None  # of prompt tokens from the cache; None: as the others


def measure(trajectory: Trajectory, price: Price | None = None) -> Meters:
    """All meters of a rollout, finished or not. A count that nobody reported is None."""
    turns = trajectory.turns
    results = [result for turn in turns for result in turn.tool_results]
    context = next(
        (count for turn in reversed(turns) if (count := billed_tokens(turn.usage)) is not None),
        None,
    )
    uses = Counter(name for turn in turns for name in capabilities(turn))
    allowed = [record for record in trajectory.egress if record.verdict == "allowed"]
    meter = trajectory.meter
    collected = trajectory.mode == "sandbox" and trajectory.stop_reason is not None
    return Meters(
        turns=len(turns),
        tool_calls=sum(len(turn.reply.tool_calls) for turn in turns),
        billed_prompt_tokens=_total(trajectory, "prompt_tokens"),
        billed_cached_tokens=_total(trajectory, "cached_tokens"),
        billed_completion_tokens=_total(trajectory, "completion_tokens"),
        context_tokens=context,
        observation_tokens=_observed(trajectory.messages, context),
        cost_usd=_cost(trajectory, price),
        wall_s=trajectory.duration_s,
        model_s=sum(turn.model_s for turn in turns),
        tool_s=sum(result.duration_s for result in results),
        waiting_s=sum(turn.waiting_s for turn in turns),
        turns_with={name: uses[name] for name in CAPABILITIES},
        egress_hosts=_bytes_by_host(trajectory),
        refused_requests=len(trajectory.egress) - len(allowed),
        files_left=len(trajectory.files) if collected else None,
        cpu_s=meter.cpu_s if meter is not None else None,
        memory_peak_bytes=meter.memory_peak_bytes if meter is not None else None,
        installed_and_used=installed_and_used(trajectory),
    )


def _total(trajectory: Trajectory, count: str) -> Any:
    """Summed over the requests whose usage tells it; None where none does."""
    values = [getattr(turn.usage, count) for turn in trajectory.turns]
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _cost(trajectory: Trajectory, price: Price | None) -> float | None:
    costs = [_cost_of(turn.usage, price) for turn in trajectory.turns]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def _cost_of(usage: Usage, price: Price | None) -> float | None:
    """What the provider says it cost; else tokens times the user's prices; else unknown."""
    if usage.cost_usd is not None or price is None or billed_tokens(usage) is None:
        return usage.cost_usd
    cached = usage.cached_tokens or 0
    cached_usd = price.prompt_usd if price.cached_usd is None else price.cached_usd
    fresh = max((usage.prompt_tokens or 0) - cached, 0)
    dollars = fresh * price.prompt_usd + cached * cached_usd
    return (dollars + (usage.completion_tokens or 0) * price.completion_usd) / 1e6


def _observed(messages: Sequence[Message], context: int | None) -> int | None:
    """How many tokens of the last request came from tools, by their share of its characters."""
    last = max((n for n, item in enumerate(messages) if item.role is Role.ASSISTANT), default=None)
    if context is None or last is None:
        return None
    sizes = [(message.role, _characters(message)) for message in messages[: last + 1]]
    total = sum(size for _, size in sizes) + len(messages[last].reasoning or "")
    observed = sum(size for role, size in sizes if role is Role.TOOL)
    return round(context * observed / total) if total else 0


def _characters(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.text) + calls


def _bytes_by_host(trajectory: Trajectory) -> Mapping[str, int]:
    hosts: Counter[str] = Counter()
    for record in trajectory.egress:
        if record.verdict == "allowed":
            hosts[record.host] += record.bytes_sent + record.bytes_received
    return dict(sorted(hosts.items()))


# What was installed and then used.

_MODULES = {
    "beautifulsoup4": ("bs4",),
    "biopython": ("Bio",),
    "opencv-python": ("cv2",),
    "opencv-python-headless": ("cv2",),
    "pillow": ("PIL",),
    "pymupdf": ("fitz", "pymupdf"),
    "python-dateutil": ("dateutil",),
    "python-docx": ("docx",),
    "python-pptx": ("pptx",),
    "pyyaml": ("yaml",),
    "scikit-image": ("skimage",),
    "scikit-learn": ("sklearn",),
    "z3-solver": ("z3",),
    "python-sat": ("pysat",),
    "fpdf2": ("fpdf",),
    "rdkit-pypi": ("rdkit",),
    "pyqrcode": ("pyqrcode",),
    "imageio-ffmpeg": ("imageio_ffmpeg", "imageio"),
    "midiutil": ("midiutil",),
}
_PROGRAMS = {
    "build-essential": ("gcc", "g++", "make", "cc"),
    "default-jdk": ("java", "javac"),
    "default-jre": ("java",),
    "ffmpeg": ("ffmpeg", "ffprobe"),
    "ghostscript": ("gs",),
    "golang": ("go",),
    "graphviz": ("dot", "neato", "fdp"),
    "imagemagick": ("convert", "magick", "identify", "montage", "mogrify"),
    "libreoffice": ("libreoffice", "soffice"),
    "nodejs": ("node",),
    "openjdk": ("java", "javac"),
    "pari-gp": ("gp",),
    "poppler-utils": ("pdftotext", "pdfinfo", "pdftoppm", "pdfimages"),
    "r-base": ("R", "Rscript"),
    "rustc": ("rustc",),
    "sox": ("sox", "play", "soxi"),
    "tesseract-ocr": ("tesseract",),
    "texlive": ("pdflatex", "latex", "xelatex", "lualatex"),
}
_NOT_INSTALLED = re.compile(
    r"No matching distribution|Could not find a version|Unable to locate package|npm ERR!|"
    r"has no installation candidate|npm error"
)
_NOT_USED = re.compile(r"ModuleNotFoundError|No module named|command not found|Cannot find module")
_IMPORTS = re.compile(r"^[ \t]*(?:import|from)[ \t]+([\w.]+(?:[ \t]*,[ \t]*[\w.]+)*)", re.MULTILINE)
_REQUIRED = re.compile(
    r"""(?:require\(|from|import)\s*['"](?P<name>@?[\w.-]+(?:/[\w.-]+)?)['"]""",
)


def installed_and_used(trajectory: Trajectory) -> tuple[str, ...]:
    """Packages that a command brought in and that later code imports or a later command runs."""
    marks: dict[str, frozenset[str]] = {}
    used: set[str] = set()
    for result, codes in _actions(trajectory):
        text = result.message.text
        installed = (result.command is None or result.command.exit_code == 0) and (
            _NOT_INSTALLED.search(text) is None
        )
        usable = _NOT_USED.search(text) is None
        for packages, names in (step for code in codes for step in _steps(code)):
            if usable:
                used |= {package for package, known in marks.items() if known & names}
            if installed:
                marks |= packages
    return tuple(sorted(used))


def _actions(trajectory: Trajectory) -> Iterator[tuple[ToolResult, list[Code]]]:
    for turn in trajectory.turns:
        for result in turn.tool_results:
            if result.ok:
                arguments = arguments_of(turn, result.call)
                codes = code_of(result.call.name, arguments)
                yield result, [each for code in codes for each in (code, *_started_shell(code))]


def _started_shell(code: Code) -> Iterator[Code]:
    """The commands that Python code starts."""
    if code.language != "python":
        return
    try:
        _, shell = python_uses(code.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for line in shell:
        yield from shell_code(line)


def _steps(code: Code) -> Iterator[tuple[Mapping[str, frozenset[str]], set[str]]]:
    """In their order: packages asked for with the marks of their use, and marks seen.

    A mark is `import NAME`, `run NAME` or `require NAME`.
    """
    if code.language == "shell":
        for command in commands_of(code.text):
            kind, packages = installs(command) or ("", ())
            marks = {package: frozenset(_marks_of(kind, package)) for package in packages}
            yield marks, set() if kind else set(_marks_seen(command))
    elif code.language == "python":
        yield {}, {f"import {name}" for name in _imports(code.text)}
    elif code.language == "javascript":
        yield {}, {f"require {match['name'].lower()}" for match in _REQUIRED.finditer(code.text)}


def _marks_seen(command: Command) -> Iterator[str]:
    yield f"run {command.name}"
    if command.name.startswith("python") and command.arguments[:1] == ("-m",):
        for module in command.arguments[1:2]:
            yield f"import {module.split('.')[0].lower()}"


def _marks_of(kind: str, package: str) -> Iterator[str]:
    name = package.lower()
    if kind == "npm":
        yield from (f"require {name}", f"run {name}")
    elif kind == "apt":
        stem = next((key for key in _PROGRAMS if name.startswith(key)), None)
        yield from (f"run {program}" for program in _PROGRAMS.get(stem or "", ()))
        yield f"run {name}"
        if name.startswith("python3-"):
            yield from _marks_of("pip", name.removeprefix("python3-"))
    else:
        plain = name.replace("_", "-")
        modules = _MODULES.get(plain, (plain.replace("-", "_"), plain.removeprefix("python-")))
        yield from (f"import {module.lower()}" for module in modules)
        yield f"run {name}"


def _imports(text: str) -> Iterator[str]:
    """Top names of the imports, also of code that does not parse."""
    for match in _IMPORTS.finditer(text):
        yield from (name.strip().split(".")[0].lower() for name in match[1].split(","))
    for match in re.finditer(r"[;:][ \t]*(?:import|from)[ \t]+(\w+)", text):
        yield match[1].lower()
