"""What a bench run is going to do: its conditions, its episodes, and what they may cost."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sandlot.agent.budget import Budget
from sandlot.agent.prompts import Profile, digest
from sandlot.api import check_fit, policy_of
from sandlot.bench.arms import REFERENCE, Arm, profile_of
from sandlot.bench.meters import Price
from sandlot.bench.records import Episode
from sandlot.bench.stats import smallest_gain
from sandlot.core.codec import to_json
from sandlot.core.errors import ConfigError, unknown_name
from sandlot.core.types import Task
from sandlot.models.base import Sampling
from sandlot.models.registry import profile_fit
from sandlot.sandbox.policy import Policy
from sandlot.settings import SETTINGS, Settings
from sandlot.tasks.base import LoadedSet, TaskSet

CHARS_PER_TOKEN = 4.0
TYPICAL_TURNS = 8
"""Of a sandbox rollout, for a plan made before anything was run (published: 5 to 24)."""
_TURN_TOKENS = 700
"""A reply and its observation, likewise."""
_PROMPT_TOKENS = 900
_REPLY_TOKENS = 1500
_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """One experiment: sets, arms and how to run them.

    `repeats` None leaves it to each set. `limit` takes the first so many items of each set.
    `deadline_s` ends an episode that hangs, waiting included; it is no budget of the model's.
    `attempts` counts tries at an episode that fails for a reason of ours or the server's. `retry`
    names failure classes, and only those are tried again on resuming (empty: all). `prices` is by
    model name as it is written after `-m`. `words` are the names and paths of the sets as given.
    `protocol` is the version of the paper whose protocol the settings were taken from, if any.
    """

    sets: tuple[LoadedSet, ...]
    arms: tuple[Arm, ...]
    settings: Settings
    repeats: int | None = None
    limit: int | None = None
    concurrency: int = 8
    attempts: int = 2
    deadline_s: float | None = 7200.0
    max_cost_usd: float | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)
    reference: bool = True
    retry: tuple[str, ...] = ()
    force: bool = False
    executor: str = "local"
    name: str = ""
    words: tuple[str, ...] = ()
    protocol: str = ""

    @property
    def price(self) -> Price | None:
        return self.prices.get(self.settings.model or "")


@dataclass(frozen=True, slots=True)
class Condition:
    """All of an episode but its problem and its number: one set in one arm.

    `adapter` is the sha256 of what a taught local model learnt.
    """

    row: TaskSet
    arm: Arm
    settings: Settings
    profile: Profile
    policy: Policy
    budget: Budget
    sampling: Sampling
    digest: str
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One episode of the plan with its problem."""

    episode: Episode
    task: Task
    content_key: str


def conditions_of(plan: BenchPlan, environ: Mapping[str, str]) -> dict[tuple[str, str], Condition]:
    """The condition of each set and arm, by their names.

    Raises:
        ConfigError: two sets of one name, or a limit, profile or network that cannot be used.
    """
    names = [loaded.row.name for loaded in plan.sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two task sets are named {name!r}; give each its own name")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_ .-]*", name):
            raise ConfigError(
                f"task set {name!r}: files are named after it, so it may hold only letters, "
                "digits, spaces and _ . -"
            )
    return {
        (loaded.row.name, arm.name): _condition(plan, loaded.row, arm, environ)
        for loaded in plan.sets
        for arm in plan.arms
    }


def _condition(plan: BenchPlan, row: TaskSet, arm: Arm, environ: Mapping[str, str]) -> Condition:
    settings = _settings_of(plan.settings, row, arm)
    fit = profile_fit(settings.model)
    profile = profile_of(arm, row, settings.profile, fit)
    if arm.mode == "sandbox":
        check_fit(settings, fit, profile)
    if not settings.asked("tool_calls"):
        settings = replace(settings, tool_calls=profile.tool_calls)
    policy = policy_of(settings, environ=environ)
    policy = replace(policy, working_dir=profile.working_dir)
    budget = Budget(
        max_turns=_turns(settings, row, profile),
        max_tokens=settings.max_tokens,
        time_limit_s=settings.time_limit,
    )
    sampling = Sampling(
        settings.temperature,
        settings.top_p,
        settings.seed,
        settings.reply_tokens,
        settings.extra_body,
    )
    adapter = None if fit is None else fit.adapter
    condition = Condition(row, arm, settings, profile, policy, budget, sampling, "", adapter)
    return replace(condition, digest=_sha256(_what_decides(condition)))


def _settings_of(settings: Settings, row: TaskSet, arm: Arm) -> Settings:
    """The user's settings, the row's where the user set none, and what the arm takes away."""
    wanted = {"image": row.image, "network": row.network, **row.limits}
    sources = dict(settings.sources)
    values: dict[str, Any] = {}
    for name, value in wanted.items():
        if name not in SETTINGS:
            raise unknown_name(f"task set {row.name!r}: limit", name, SETTINGS)
        if value is not None and not settings.asked(name):
            values[name] = SETTINGS[name].parse(value)
            sources[name] = f"task set {row.name}"
    if arm.network is not None:
        values |= {"network": arm.network, "credentials": (), "private_hosts": ()}
        values["deny_hosts"] = ()
        sources["network"] = f"arm {arm.name}"
    return replace(settings, **values, sources=sources)


def _turns(settings: Settings, row: TaskSet, profile: Profile) -> int:
    if settings.asked("max_turns"):
        return settings.max_turns
    return row.max_turns or profile.max_turns


def _what_decides(condition: Condition) -> dict[str, Any]:
    """Everything that may change what happens in an episode of this condition."""
    settings = condition.settings
    network = replace(condition.policy.network, credentials=())
    policy = replace(condition.policy, network=network)
    learnt = {} if condition.adapter is None else {"adapter": condition.adapter}
    return learnt | {
        "set": condition.row.name,
        "arm": to_json(condition.arm),
        "profile": digest(condition.profile),
        "model": settings.model,
        "tool_calls": settings.tool_calls,
        "sampling": to_json(condition.sampling),
        "budget": to_json(condition.budget),
        "policy": to_json(policy) if condition.arm.mode == "sandbox" else None,
        "image": settings.image if condition.arm.mode == "sandbox" else None,
    }


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def items_of(plan: BenchPlan, conditions: Mapping[tuple[str, str], Condition]) -> list[Item]:
    """Every episode, so ordered that a run which stops early has whole pairs from every set.

    All arms of an item follow each other, then the next item of each set, then the next repeat.
    """
    sets = {loaded.row.name: _tasks(plan, loaded) for loaded in plan.sets}
    repeats = {loaded.row.name: plan.repeats or loaded.row.repeats for loaded in plan.sets}
    digests = {
        (name, n): _sha256(to_json(t)) for name, ts in sets.items() for n, t in enumerate(ts)
    }
    longest = max((len(tasks) for tasks in sets.values()), default=0)
    return [
        _item(conditions[name, arm.name], tasks[index], digests[name, index], repeat)
        for repeat in range(max(repeats.values(), default=0))
        for index in range(longest)
        for name, tasks in sets.items()
        if index < len(tasks) and repeat < repeats[name]
        for arm in plan.arms
    ]


def _tasks(plan: BenchPlan, loaded: LoadedSet) -> tuple[Task, ...]:
    return loaded.tasks if plan.limit is None else loaded.tasks[: plan.limit]


def _item(condition: Condition, task: Task, task_digest: str, repeat: int) -> Item:
    episode = Episode(condition.row.name, task.id, condition.arm.name, repeat)
    return Item(episode, task, _sha256([condition.digest, task_digest, repeat]))


def identity_of(plan: BenchPlan, conditions: Mapping[tuple[str, str], Condition]) -> dict[str, Any]:
    """What a resumed run must agree with, flat, for the manifest."""
    first = plan.settings
    found: dict[str, Any] = {
        "model": first.model or "",
        "arms": [arm.name for arm in plan.arms],
        "repeats": plan.repeats or "by set",
        "limit": plan.limit or "all",
        "max_tokens": first.max_tokens or "none",
        "time_limit": first.time_limit or "none",
        "tool_calls": first.tool_calls,
    }
    if adapters := {c.adapter for c in conditions.values() if c.adapter}:
        found["adapter"] = ", ".join(sorted(adapters))
    names = ("temperature", "top_p", "seed", "reply_tokens")
    found |= {name: _or_default(getattr(first, name)) for name in names}
    found["extra_body"] = json.dumps(dict(first.extra_body), sort_keys=True)
    for loaded in plan.sets:
        found[f"set {loaded.row.name}"] = loaded.digest
    for (name, arm), condition in conditions.items():
        parts = _what_decides(condition)
        where = f"{name}, {arm}"
        found[f"profile of {where}"] = parts["profile"]
        if condition.arm.mode == "sandbox":
            found[f"policy of {where}"] = _sha256(parts["policy"])
            found[f"image of {where}"] = parts["image"]
            found[f"max_turns of {where}"] = condition.budget.max_turns
    return found


def _or_default(value: Any) -> Any:
    return "the server's own" if value is None else value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two identities disagree on, one line each."""
    names = list(dict.fromkeys((*before, *now)))
    return [
        f"{name}: was {_short(before.get(name))}, now {_short(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


# Money.


def read_prices(path: Path) -> dict[str, Price]:
    """A price table: a TOML file with one table a model, as it is written after `-m`.

    ```toml
    ["openai/NAME"]          # US dollars for a million tokens
    prompt = 1.25
    cached = 0.125
    completion = 10.0
    ```

    Raises:
        ConfigError: the file cannot be read, or a price is missing or no number.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"price table {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(f"price table {path} is not valid TOML: {exc}") from exc
    return {model: _price(f"{path}: {model}", entry) for model, entry in table.items()}


def _price(where: str, entry: Any) -> Price:
    names = ("prompt", "completion", "cached")
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a table with prompt, completion and maybe cached")
    for name in entry:
        if name not in names:
            raise unknown_name(f"{where}: price", name, names)
    for name in names:
        value = entry.get(name, 0.0 if name == "cached" else None)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"{where}: price {name!r} must be a number, found {value!r}")
    cached = entry.get("cached")
    prompt, completion = float(entry["prompt"]), float(entry["completion"])
    return Price(prompt, completion, None if cached is None else float(cached))


# Before a run.


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one set in one arm is likely to take. Tokens are billed ones, prompt apart from reply.

    `smallest_gain` is the least true difference to another arm that so many items would show in
    four of five such experiments, if each were scored 0 or 1.
    """

    task_set: str
    arm: str
    items: int
    repeats: int
    episodes: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    smallest_gain: float


def estimate(plan: BenchPlan, conditions: Mapping[tuple[str, str], Condition]) -> list[Estimate]:
    """A row for each set and arm. Rough on purpose: before a run nobody knows a model's turns."""
    return [
        _estimate(
            plan,
            loaded,
            arm.name,
            # a voting arm takes by definition what the sandbox arm takes
            conditions[loaded.row.name, REFERENCE if arm.votes else arm.name],
        )
        for loaded in plan.sets
        for arm in plan.arms
    ]


def _estimate(plan: BenchPlan, loaded: LoadedSet, arm: str, condition: Condition) -> Estimate:
    tasks, repeats = _tasks(plan, loaded), plan.repeats or loaded.row.repeats
    pairs = [_expected(condition, task) for task in tasks]
    prompt, completion = (repeats * sum(pair[n] for pair in pairs) for n in (0, 1))
    return Estimate(
        loaded.row.name,
        arm,
        len(tasks),
        repeats,
        len(tasks) * repeats,
        prompt,
        completion,
        _cost(prompt, completion, plan.price),
        smallest_gain(len(tasks), _SPREAD) if tasks else 0.0,
    )


def _expected(condition: Condition, task: Task) -> tuple[int, int]:
    """Billed prompt and completion tokens of one episode."""
    documents = sum(len(data) for data in task.input_files.values()) + _folder_bytes(task)
    question = len(task.prompt) / CHARS_PER_TOKEN
    inside = documents / CHARS_PER_TOKEN if condition.arm.documents == "prompt" else 0.0
    if condition.arm.mode == "llm":
        return int(question + inside) + 200, condition.sampling.reply_tokens or _REPLY_TOKENS
    turns = min(TYPICAL_TURNS, condition.budget.max_turns)
    start = _PROMPT_TOKENS + question + inside
    prompts = sum(start + turn * _TURN_TOKENS for turn in range(turns))
    return int(prompts), turns * _TURN_TOKENS // 2


def _folder_bytes(task: Task) -> int:
    if task.input_dir is None:
        return 0
    return sum(path.stat().st_size for path in _files(Path(task.input_dir)))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _cost(prompt: int, completion: int, price: Price | None) -> float | None:
    """Nothing is assumed of a cache, so that the plan is no promise too low."""
    if price is None:
        return None
    return (prompt * price.prompt_usd + completion * price.completion_usd) / 1e6
