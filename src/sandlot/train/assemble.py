"""Putting a training run together: policy, format, engine, sandboxes, scorer, from its config."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sandlot.agent.prompts import Profile, load_profile
from sandlot.api import open_computer, policy_of, relocated, settle_backend
from sandlot.core.errors import ConfigError
from sandlot.models.base import Model, Sampling
from sandlot.sandbox.base import Sandbox
from sandlot.scoring.base import Scorer, ScoringTools
from sandlot.settings import Settings, resolve
from sandlot.train.base import Note, TokenEngine
from sandlot.train.chat import TemplateFormat
from sandlot.train.config import TrainConfig
from sandlot.train.engine_torch import TorchEngine, use_slots
from sandlot.train.rollouts import MakeModel, Player, Rules
from sandlot.train.session import TokenModel
from sandlot.train.sources import Tasks, open_tasks, scorer_of
from sandlot.train.weights import LoraSettings, adapt, freeze, load_base


@dataclass(frozen=True, slots=True)
class Policy:
    """What learns. `model` is the transformers model, inside its adapter where it has one."""

    model: Any
    tokenizer: Any
    chat: TemplateFormat


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a run works with, opened. `profiles` by mode, `scorers` by held-out set."""

    policy: Policy
    engine: TokenEngine
    player: Player
    scorer: Scorer
    train: Tasks
    evaluate: Mapping[str, Tasks]
    scorers: Mapping[str, Scorer]
    profiles: Mapping[str, Profile]

    def make_model(self, name: str) -> MakeModel:
        def make(seed: int) -> Model:
            return TokenModel(self.engine, self.policy.chat, name=name, seed=seed)

        return make

    async def close(self) -> None:
        await self.engine.close()
        for scorer in {id(each): each for each in (self.scorer, *self.scorers.values())}.values():
            await scorer.close()


def build_policy(config: TrainConfig, tasks: Tasks | None, note: Note) -> Policy:
    """The model with what learns of it chosen, and its chat format.

    Args:
        tasks: what the tokenizer of a model of random weights is made from; others need none.
    Raises:
        ConfigError: no such model, or one whose template cannot be used; says what to give.
        InputError: a model that cannot be loaded.
    """
    wanted = config.model
    if wanted.random is not None:
        from sandlot.train.random_model import make_random

        assert tasks is not None
        model, tokenizer = make_random(
            wanted.random, tasks, dtype=wanted.dtype, seed=config.seed, profile=_profile(config)
        )
    else:
        model, tokenizer = load_base(wanted.source, dtype=wanted.dtype, note=note)
    template = None if wanted.template is None else text_of(wanted.template)
    chat = TemplateFormat(tokenizer, wanted.tool_form, template=template)
    model = on_device(model, wanted.device)
    use_slots(model)
    if wanted.lora is not None:
        lora = LoraSettings(wanted.lora.rank, wanted.lora.alpha, wanted.lora.targets)
        model = adapt(model, lora, skip_layers=wanted.freeze_layers, seed=config.seed)
    else:
        freeze(model, layers=wanted.freeze_layers, embeddings=wanted.freeze_embeddings)
    return Policy(model, tokenizer, chat)


def on_device(model: Any, name: str) -> Any:
    """Raises:
    ConfigError: torch knows no such device, or this machine has none.
    """
    try:
        return model.to(name)
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
        why = str(error).partition("\n")[0]
        raise ConfigError(f"model.device {name!r} cannot be used here: {why}") from error


def _profile(config: TrainConfig) -> Profile:
    return replace(load_profile(config.sandbox.profile), tool_calls=config.model.tool_form)


def text_of(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"chat template {path} cannot be read: {error.strerror}") from error


def assemble(config: TrainConfig, note: Note) -> Parts:
    """Open what a run needs. Nothing runs in a sandbox yet.

    Raises:
        ConfigError, InputError: as of its parts.
        MissingExtra: a package that the configuration needs is not there.
    """
    settings = resolve(
        {
            "backend": config.sandbox.backend,
            "image": config.sandbox.image,
            "network": config.sandbox.network,
        }
    )
    train = open_tasks(config.tasks.train, cache=settings.cache_dir, note=note)
    held_out = {
        name: open_tasks(source, cache=settings.cache_dir, note=note)
        for name, source in config.tasks.evaluate.items()
    }
    tools = ScoringTools(settings.cache_dir, environ=os.environ)
    scorer = scorer_of(config.tasks, train.row, tools)
    own = config.tasks.scorer is None  # then a held-out set of another kind has its own scorer
    scorers = {
        name: scorer_of(config.tasks, tasks.row, tools) if own and tasks.row else scorer
        for name, tasks in held_out.items()
    }
    policy = build_policy(config, train, note)
    profiles = {
        "sandbox": load_profile(config.sandbox.profile),
        "llm": load_profile(config.sandbox.llm_profile),
    }
    player = Player(opener(settings, profiles["sandbox"], note), scorer, config.sandbox.live)
    engine = _engine(config, policy)
    return Parts(policy, engine, player, scorer, train, held_out, scorers, profiles)


def opener(settings: Settings, profile: Profile, note: Note) -> Any:
    """Opens one unstarted sandbox for each rollout, as the settings say."""
    policy = replace(policy_of(settings), working_dir=profile.working_dir)
    told: set[str] = set()
    settled: list[Settings] = []
    first = asyncio.Lock()

    def once(line: str) -> None:
        if line not in told:
            told.add(line)
            note(line)

    async def open_box() -> Sandbox:
        async with first:
            if not settled:
                settled.append((await settle_backend(settings, os.environ, once))[0])
        box, _ = await open_computer(settled[0], policy, os.environ, once)
        if relocated(profile, box) != profile:
            raise ConfigError(
                f"backend {box.backend!r} has no {profile.working_dir} of its own, and a policy "
                "learns paths: train on another (bubblewrap, podman, docker)"
            )
        return box

    return open_box


def _engine(config: TrainConfig, policy: Policy) -> TokenEngine:
    wanted = config.engine
    if wanted.kind == "torch":
        return TorchEngine(
            policy.model,
            slots=wanted.slots,
            context_tokens=wanted.context_tokens,
            threads=wanted.threads,
        )
    from sandlot.train.engine_server import ServerEngine

    return ServerEngine(
        wanted.kind,
        str(wanted.url),
        model=wanted.model or config.model.source,
        context_tokens=wanted.context_tokens,
        api_key=os.environ.get(wanted.key) if wanted.key else None,
        processed_logprobs=wanted.processed_logprobs,
    )


def rules_of(
    config: TrainConfig,
    parts: Parts,
    *,
    mode: Literal["sandbox", "llm"] | None = None,
    temperature: float | None = None,
    held_out: bool = False,
) -> Rules:
    """How rollouts are played: as in training, or in another mode or at another temperature.

    `held_out` rollouts keep to the shares of the vocabulary that evaluations draw from.
    """
    rollout, evaluate = config.rollout, config.evaluate
    mode = mode or rollout.mode
    top_p, top_k = rollout.top_p, rollout.top_k
    if held_out:
        top_p = top_p if evaluate.top_p is None else evaluate.top_p
        top_k = top_k if evaluate.top_k is None else evaluate.top_k
    extra = {"top_k": top_k} if top_k else {}
    profile = parts.profiles[mode]
    return Rules(
        profile=profile,
        sampling=Sampling(
            temperature=rollout.temperature if temperature is None else temperature,
            top_p=top_p,
            reply_tokens=rollout.reply_tokens or profile.reply_tokens,
            extra_body=extra,
        ),
        mode=mode,
        max_turns=rollout.max_turns if mode == "sandbox" else None,
        episode_s=rollout.episode_s,
        submit=rollout.submit,
    )
