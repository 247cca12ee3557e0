"""Profiles: the prompt texts, paths and sizes of a kind of rollout, as data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import TOOL_CALLS, Message, Task

_PLACEHOLDER = re.compile(r"\{(problem_statement|input_dir|output_dir|working_dir|answer_file)\}")


@dataclass(frozen=True, slots=True)
class Profile:
    """How a rollout speaks to a model and where its files lie.

    `tool_calls` is one of `TOOL_CALLS`. `observation_chars` caps the text of one tool result,
    `context_tokens` is what the model holds (None: unknown), `reply_tokens` bounds one reply.
    A `conversation` ends with the first reply that calls no tool.
    """

    name: str
    instance_prompt: str
    system_prompt: str = ""
    working_dir: str = "/testbed"
    input_dir: str = "/testbed/input"
    output_dir: str = "/testbed/output"
    answer_file: str = "/testbed/output/answer.txt"
    tool_calls: str = "auto"
    observation_chars: int = 16_000
    context_tokens: int | None = None
    reply_tokens: int | None = None
    max_turns: int = 100
    temperature: float | None = None
    conversation: bool = False


def first_messages(profile: Profile, task: Task) -> list[Message]:
    """The messages that open a rollout. Only our own placeholders are filled in, once."""
    values = {
        "problem_statement": task.prompt,
        "input_dir": profile.input_dir,
        "output_dir": profile.output_dir,
        "working_dir": profile.working_dir,
        "answer_file": profile.answer_file,
    }
    system = _fill(profile.system_prompt, values)
    user = Message.user(_fill(profile.instance_prompt, values))
    return [Message.system(system), user] if system.strip() else [user]


def profile_names() -> list[str]:
    folder = resources.files("sandlot.agent") / "profiles"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_profile(name: str) -> Profile:
    """A shipped profile.

    Raises:
        ConfigError: no profile has this name.
    """
    known = profile_names()
    if name not in known:
        raise unknown_name("profile", name, known)
    text = (resources.files("sandlot.agent") / "profiles" / f"{name}.toml").read_text("utf-8")
    return _profile(tomllib.loads(text), Profile(name=name, instance_prompt=""), f"{name}.toml")


def load_prompt_file(path: Path, base: Profile) -> Profile:
    """`base` with what a prompt file says instead.

    TOML files may set any field of a profile; YAML and JSON files hold `system_prompt` and
    `instance_prompt` (other keys are left aside).

    Raises:
        ConfigError: an unreadable file, an unknown field, or no `instance_prompt` at all.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"prompt file {path} cannot be read: {exc}") from exc
    if path.suffix == ".toml":
        return _profile(_read_toml(text, path), base, path.name)
    found = _read_json(text, path) if path.suffix == ".json" else _read_yaml(text, path)
    wanted = ("system_prompt", "instance_prompt")
    prompts: dict[str, str] = {key: value for key, value in found.items() if key in wanted}
    if "instance_prompt" not in prompts:
        raise ConfigError(
            f"prompt file {path} holds no 'instance_prompt' "
            f"(found: {', '.join(found) or 'nothing'})"
        )
    return _profile({"name": path.stem} | prompts, base, path.name)


def digest(profile: Profile) -> str:
    """sha256 (hex) of everything in the profile, for the manifest."""
    text = json.dumps(to_json(profile), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _fill(template: str, values: Mapping[str, str]) -> str:
    """One pass, so that braces and placeholder names inside a problem stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


_KINDS: dict[str, tuple[type, ...]] = {
    "observation_chars": (int,),
    "context_tokens": (int,),
    "reply_tokens": (int,),
    "max_turns": (int,),
    "temperature": (int, float),
    "conversation": (bool,),
}


def _profile(values: Mapping[str, Any], base: Profile, source: str) -> Profile:
    known = {field.name for field in dataclasses.fields(Profile)}
    for key, value in values.items():
        if key not in known:
            raise unknown_name(f"{source}: profile field", key, known)
        kinds = _KINDS.get(key, (str,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigError(
                f"{source}: field {key!r} must be {expected}, found {type(value).__name__}"
            )
    profile = dataclasses.replace(base, **values)
    if profile.tool_calls not in TOOL_CALLS:
        raise unknown_name(f"{source}: tool_calls", profile.tool_calls, TOOL_CALLS)
    if not profile.instance_prompt.strip():
        raise ConfigError(f"{source}: field 'instance_prompt' is missing or empty")
    return profile


def _read_toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"prompt file {path} is not valid TOML: {exc}") from exc


def _read_json(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"prompt file {path} is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"prompt file {path} must hold an object")
    return value


_KEY = re.compile(r"(?P<key>[A-Za-z_][\w-]*):(?:[ \t]+(?P<rest>.*))?$")
_BLOCK = re.compile(r"(?P<style>[|>])(?P<chomp>[-+]?)\s*(?:#.*)?$")


def _read_yaml(text: str, path: Path) -> dict[str, Any]:
    """The part of YAML that prompt files use: `key: text` and `key: |` blocks at the top level.

    Written by hand so that two keys do not cost every install a YAML parser.
    """
    found: dict[str, Any] = {}
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if not line.strip() or line.startswith(("#", "---", "...")):
            continue
        match = _KEY.match(line)
        if match is None:
            raise ConfigError(
                f"{path.name}:{at}: only 'key: text' and 'key: |' blocks are read here; "
                "write the prompts as TOML or JSON instead"
            )
        rest = (match["rest"] or "").strip()
        end = _end_of_block(lines, at)
        found[match["key"]] = _yaml_value(rest, lines[at:end], path, at)
        at = end
    return found


def _end_of_block(lines: list[str], at: int) -> int:
    while at < len(lines) and (not lines[at].strip() or lines[at][0] in " \t"):
        at += 1
    return at


def _yaml_value(rest: str, block: list[str], path: Path, line: int) -> str:
    style = _BLOCK.match(rest)
    if style is not None:
        return _yaml_block(block, style["style"], style["chomp"])
    if any(part.strip() for part in block):
        raise ConfigError(
            f"{path.name}:{line + 1}: a nested or folded value is not read here; "
            "use a 'key: |' block, or TOML or JSON"
        )
    if rest[:1] == '"' == rest[-1:]:
        return str(_read_json(f'{{"text": {rest}}}', path)["text"])
    if rest[:1] == "'" == rest[-1:] and len(rest) > 1:
        return rest[1:-1].replace("''", "'")
    return rest


def _yaml_block(block: list[str], style: str, chomp: str) -> str:
    indents = [len(part) - len(part.lstrip(" ")) for part in block if part.strip()]
    indent = indents[0] if indents else 0
    text = "\n".join(part[indent:] for part in block)
    if style == ">":
        text = re.sub(r"(?<=[^\n])\n(?=[^\n ])", " ", text)
    if chomp == "+":
        return text + "\n"
    return text.rstrip("\n") + ("" if chomp == "-" else "\n")
