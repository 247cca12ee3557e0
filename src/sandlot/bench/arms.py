"""The arms of an experiment: the same items, seeds and sampling under named conditions.

What an arm takes away is taken away at the wall: the network by the policy, a tool by not being
offered, the files by a file system that forgets. The prompt of an ablation is that of the sandbox
arm, word for word, so that the capability is all that differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sandlot.agent.prompts import Profile, load_profile
from sandlot.bench.forgetting import ForgetfulTool, Forgetting
from sandlot.core.errors import ConfigError, InputError, unknown_name
from sandlot.core.types import Task
from sandlot.models.registry import Fit
from sandlot.tasks.base import TaskSet
from sandlot.tools import default_tools
from sandlot.tools.base import Tool

REFERENCE = "sandbox"
"""The arm whose tokens the token-matched arm may use, and that ablations are compared with."""

WHOLE_TEXT = ("instructions", "ifbench")
"""Scorers for which the whole reply or file is the answer."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One condition.

    `documents` says where a task's input files go: into the sandbox or into the prompt. `tools`
    names those that are offered (None: all). `network` takes the place of every other setting of
    it. An arm that `forgets` loses its files after each call, the answer apart. One that `exhorts`
    gets the sandbox prompt's advice without the sandbox. One that `votes` replies until it has used
    the tokens of the sandbox arm, and the majority answers. `takes` is the capability that an
    ablation removes: external, files or computation.
    """

    name: str
    mode: Literal["llm", "sandbox"]
    documents: Literal["files", "prompt"]
    tools: tuple[str, ...] | None = None
    network: str | None = None
    forgets: bool = False
    exhorts: bool = False
    votes: bool = False
    takes: str | None = None


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("llm", "llm", "prompt"),
        Arm("sandbox", "sandbox", "files"),
        Arm("sandbox-docs-in-prompt", "sandbox", "prompt"),
        Arm("llm-prompt-matched", "llm", "prompt", exhorts=True),
        Arm("llm-token-matched", "llm", "prompt", votes=True),
        Arm("sandbox-no-network", "sandbox", "files", network="none", takes="external"),
        Arm(
            "sandbox-no-exec",
            "sandbox",
            "files",
            tools=("str_replace_editor", "submit"),
            takes="computation",
        ),
        Arm("sandbox-no-files", "sandbox", "files", forgets=True, takes="files"),
    )
}
MODES = {"llm": ("llm",), "sandbox": ("sandbox",), "both": ("llm", "sandbox")}


def arms_of(words: str | Iterable[str]) -> tuple[Arm, ...]:
    """The arms of `both`, or of names parted by commas, each once and in their order.

    Raises:
        ConfigError: an unknown name, none at all, or an arm without the one that it is matched to.
    """
    given = words.split(",") if isinstance(words, str) else list(words)
    names = [name for word in given if word.strip() for name in MODES.get(word.strip(), (word,))]
    arms = tuple(_arm(name.strip()) for name in dict.fromkeys(names))
    if not arms:
        raise ConfigError(f"no arm is named (have: both, {', '.join(ARMS)})")
    for arm in arms:
        if arm.votes and REFERENCE not in names:
            raise ConfigError(
                f"arm {arm.name!r} is matched to the tokens of {REFERENCE!r}; name that arm too"
            )
    return arms


def _arm(name: str) -> Arm:
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    return ARMS[name]


def profile_of(arm: Arm, row: TaskSet, asked: str | None, fit: Fit | None = None) -> Profile:
    """The profile of a set in an arm: what the user asked for, else the row's, in the form that

    its scorer reads. `fit` is what suits the model: one that was taught with a profile gets that
    one in place of the row's, and a small one the shortest prompts.
    """
    if arm.exhorts:
        return load_profile(_fitted("benchmark-matched", "benchmark-matched", row, None))
    taught = None if fit is None or fit.digest is None else fit.profile
    if arm.mode == "sandbox":
        return load_profile(asked or taught or _fitted(row.profile, "benchmark", row, fit))
    alone = f"{taught}-llm" if taught else None
    return load_profile(alone or _fitted(row.llm_profile, "benchmark-llm", row, fit))


def _fitted(name: str, default: str, row: TaskSet, fit: Fit | None) -> str:
    if name != default:
        return name  # the row chose it
    if fit is not None:
        return f"{name}-{fit.profile}"
    if row.scorer in WHOLE_TEXT:
        return f"{name}-text"
    return f"{name}-files" if row.scorer == "files" and name == "benchmark" else name


def task_for(arm: Arm, task: Task) -> Task:
    """The task as the arm puts it: documents as files, or written out before the question."""
    if arm.documents == "files":
        return task
    documents = "\n\n".join(_as_text(name, data) for name, data in _documents(task))
    if not documents:
        return task
    prompt = f"{documents}\n\n{task.prompt}"
    return replace(task, prompt=prompt, input_files={}, input_dir=None)


def _documents(task: Task) -> list[tuple[str, bytes]]:
    found = dict(task.input_files)
    if task.input_dir is not None:
        folder = Path(task.input_dir)
        try:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                found.setdefault(str(file.relative_to(folder)), file.read_bytes())
        except OSError as exc:
            raise InputError(f"task {task.id}: {exc.filename}: {exc.strerror}") from exc
    return list(found.items())


def _as_text(name: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = f"[not text: {len(data):,} bytes]"
    return f"<document name={name!r}>\n{text.rstrip()}\n</document>"


def tools_of(arm: Arm, profile: Profile, row: TaskSet, state: Path) -> Sequence[Tool]:
    """The tools that the arm offers. `state` is a host path for what a forgetting arm restores."""
    tools = [tool for tool in default_tools() if arm.tools is None or tool.spec.name in arm.tools]
    if not arm.forgets:
        return tools
    folder = profile.output_dir if row.scorer == "files" else None
    memory = Forgetting(state, profile.answer_file, folder)
    return [ForgetfulTool(tool, memory) for tool in tools]
