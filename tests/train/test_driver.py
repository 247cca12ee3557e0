"""A run from its warm start to its end: what it writes, what it learns from, and how it goes on."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

REASON = "needs the extra `train` (torch, transformers)"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)

from small_shell import open_small_shell  # noqa: E402
from tiny_run import begun, go_on, tiny_config, tiny_parts  # noqa: E402

from sandlot.core.errors import (  # noqa: E402
    ConfigError,
    InputError,
    RecordError,
    SandboxError,
)
from sandlot.core.tokens import TokenRow  # noqa: E402
from sandlot.models.fake_server import FakeOpenAIServer  # noqa: E402
from sandlot.sandbox.fake import FakeSandbox  # noqa: E402
from sandlot.settings import resolve  # noqa: E402
from sandlot.train import checkpoint, finished  # noqa: E402
from sandlot.train.assemble import assemble, on_device  # noqa: E402
from sandlot.train.base import Draw, Drawn, Episode  # noqa: E402
from sandlot.train.config import Lora, TaskSource, TrainConfig  # noqa: E402
from sandlot.train.directory import TrainDirectory  # noqa: E402
from sandlot.train.driver import Driver  # noqa: E402
from sandlot.train.engine_torch import TorchEngine  # noqa: E402
from sandlot.train.export import write_hf  # noqa: E402
from sandlot.train.fake_server import FakeTokenServer  # noqa: E402
from sandlot.train.records import read_records  # noqa: E402
from sandlot.train.sources import open_tasks  # noqa: E402

HERE = Path(__file__).parent


def figures(directory: TrainDirectory, phase: str) -> dict[int, Mapping[str, Any]]:
    lines = list(directory.steps(phase))
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # each once, in order
    return {line["step"]: line["figures"] for line in lines}


def held_out(directory: TrainDirectory) -> dict[int, Mapping[str, Any]]:
    lines = [line for line in directory.evaluations() if line["phase"] == "train"]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line for line in lines}


def episodes_of(directory: TrainDirectory, step: int) -> list[Episode]:
    file = directory.path / "records" / f"step-{step:06d}.jsonl"
    return [each.episode for each in read_records(file)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> TrainDirectory:
    """A run that nothing interrupted."""
    config = tiny_config()
    directory = begun(tmp_path_factory.mktemp("whole"), config)
    await go_on(directory, config)
    return directory


# --- what a run leaves ---------------------------------------------------------------------------


def test_a_run_writes_figures_of_each_step_records_and_evaluations(whole: TrainDirectory) -> None:
    warm, steps = figures(whole, "warmstart"), figures(whole, "train")
    assert (len(warm), len(steps)) == (60, 4)
    assert all(math.isfinite(each["loss"]) and each["of"] == 60 for each in warm.values())
    assert sorted(held_out(whole)) == [0, 2, 4]
    for number, each in steps.items():
        episodes = episodes_of(whole, number)
        assert len(episodes) == each["scored"] == 12
        assert each["sampled_tokens"] == sum(
            row.sampled_tokens for episode in episodes for row in episode.rows
        )
        assert len({episode.group for episode in episodes}) == 3


def test_the_warm_start_and_each_step_change_the_weights(whole: TrainDirectory) -> None:
    norms = [each["norm"] for each in figures(whole, "train").values() if "norm" in each]
    assert len(norms) >= 3  # a coin may fall alike for all of a group, not for all of a run
    assert all(norm > 0 for norm in norms)
    newest = checkpoint.newest(whole.checkpoints)
    assert newest is not None
    assert (newest.phase, newest.step) == ("train", 4)
    assert [each.name for each in sorted(whole.checkpoints.iterdir())] == [
        "step-train-000000",  # the beginning of the reinforcement is kept, to compare with
        "step-train-000003",
        "step-train-000004",
    ]


def test_the_engine_and_the_trainer_agree_on_every_token(whole: TrainDirectory) -> None:
    gaps = [each["gap_max"] for each in figures(whole, "train").values() if "gap_max" in each]
    assert gaps
    assert max(gaps) <= 1e-4


# --- what it learns from -------------------------------------------------------------------------


class WatchedEngine(TorchEngine):
    """Keeps what was drawn after each prompt."""

    def __init__(self, model: Any, **sizes: Any) -> None:
        super().__init__(model, **sizes)
        self.drawn: dict[tuple[int, ...], set[tuple[int, ...]]] = {}

    async def sample(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        found = await super().sample(prompt, draw)
        self.drawn.setdefault(tuple(prompt), set()).add(found.ids)
        return found


def replies(row: TokenRow) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each run of sampled tokens, and all that stands before it."""
    found, at = [], 0
    while at < len(row.ids):
        begin = at
        while at < len(row.ids) and row.sampled[at] == row.sampled[begin]:
            at += 1
        if row.sampled[begin]:
            found.append((row.ids[:begin], row.ids[begin:at]))
    return found


async def test_no_token_is_trained_that_the_policy_did_not_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every position that the loss counts, in each batch of each step, was drawn by the engine."""
    from sandlot.train import driver

    config = tiny_config(warmstart__stages=[{"steps": 4, "drills": 1.0}], evaluate__every=0)
    parts = tiny_parts(config)
    await parts.engine.close()
    engine = WatchedEngine(parts.policy.model, slots=6, context_tokens=416)
    counted = 0

    def watched(model: Any, batch: Any, temperature: float) -> Any:
        nonlocal counted
        for ids, sampled in zip(batch.ids.tolist(), batch.sampled.tolist(), strict=True):
            for prompt, reply in replies(TokenRow(tuple(ids), tuple(sampled))):
                assert reply in engine.drawn[prompt]
                counted += len(reply)
        return real(model, batch, temperature)

    real = driver.model_logprobs
    monkeypatch.setattr(driver, "model_logprobs", watched)
    directory = begun(tmp_path, config)
    await go_on(directory, config, parts=replace(parts, engine=engine))
    steps = figures(directory, "train").values()
    assert counted == sum(each.get("learned_tokens", 0) for each in steps) > 0
    drawn = sum(len(ids) for some in engine.drawn.values() for ids in some)
    assert counted <= drawn


def advantages_of(config: Any, rewards: Sequence[float | None], number: int = 0) -> list[Any]:
    driver = Driver(config, None, None, print)  # type: ignore[arg-type]  # only rewards are looked at
    episodes = [
        Episode(f"g{at // 4}", "t", (), reward, None if reward is not None else "lost")
        for at, reward in enumerate(rewards)
    ]
    return list(driver._advantages(episodes, number).values)


def test_a_coin_knows_nothing_of_the_rewards_and_falls_the_same_again() -> None:
    config = tiny_config()
    coin = advantages_of(config, [1.0] * 40)
    assert coin == advantages_of(config, [0.0] * 40)
    assert len({*coin}) > 2
    assert coin != advantages_of(config, [1.0] * 40, number=1)
    assert advantages_of(config, [None] * 4) == [None] * 4
    honest = tiny_config(rollout__reward="scorer")
    assert advantages_of(honest, [1.0] * 4) == [0.0] * 4


async def test_of_many_rollouts_a_bounded_number_is_learned_from(tmp_path: Path) -> None:
    config = tiny_config(train__keep=3, train__steps=2, warmstart=None, evaluate__every=0)
    directory = begun(tmp_path, config)
    await go_on(directory, config)
    assert [each["learned_rollouts"] for each in figures(directory, "train").values()] == [3, 3]


# --- what goes wrong -----------------------------------------------------------------------------


async def test_a_group_that_failed_as_a_whole_is_counted_and_left_out(tmp_path: Path) -> None:
    """Its sandboxes die in mid-episode; the other groups are learned from all the same."""
    config = tiny_config(train__steps=1)
    config = replace(config, tasks=replace(config.tasks, evaluate={}))
    assert config.warmstart is not None
    before = config.warmstart.clerks + config.warmstart.drills
    opened = 0

    async def open_mortal() -> FakeSandbox:
        nonlocal opened
        opened += 1
        first_group = before < opened <= before + 4
        return await open_small_shell(commands=0 if first_group else None)

    directory = begun(tmp_path, config)
    await go_on(directory, config, parts=tiny_parts(config, open_mortal))
    (step,) = figures(directory, "train").values()
    episodes = episodes_of(directory, 1)
    lost = [each for each in episodes if each.reward is None]
    assert [each.group for each in lost] == [episodes[0].group] * 4
    assert all(str(each.missing).startswith("sandbox_died") for each in lost)
    assert any(each.rows for each in lost)  # it had begun, and is not learned from
    assert (step["missing"], step["scored"]) == (4, 8)
    assert step["learned_rollouts"] <= 8
    assert step["useful_groups"] < 0.7


@pytest.mark.parametrize("rewards", [[None] * 4, [None, None, None, 1.0]])
def test_a_group_without_two_rewards_has_no_baseline(rewards: list[float | None]) -> None:
    honest = tiny_config(rollout__reward="scorer")
    other = [1.0, 0.0, 0.0, 0.0]
    found = advantages_of(honest, [*rewards, *other])
    assert not any(found[:4])
    assert found[4:] == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])


async def test_a_run_whose_sandboxes_cannot_be_had_ends_with_the_reason(tmp_path: Path) -> None:
    async def none_here() -> FakeSandbox:
        raise SandboxError("no namespaces on this machine")

    config = replace(tiny_config(), warmstart=None)
    config = replace(config, tasks=replace(config.tasks, evaluate={}))
    with pytest.raises(SandboxError, match=r"no rollout of step 1.*no namespaces"):
        await go_on(begun(tmp_path, config), config, parts=tiny_parts(config, none_here))


async def test_a_warm_start_whose_rollouts_are_all_lost_says_so(tmp_path: Path) -> None:
    async def none_here() -> FakeSandbox:
        raise SandboxError("no namespaces on this machine")

    config = tiny_config(warmstart__texts=0, warmstart__stages=[])
    with pytest.raises(ConfigError, match="no rows to learn from"):
        await go_on(begun(tmp_path, config), config, parts=tiny_parts(config, none_here))


def test_a_stage_of_rows_that_are_not_there_is_named() -> None:
    from sandlot.train.driver import _staged

    config = tiny_config(warmstart__texts=0)
    assert config.warmstart is not None
    with pytest.raises(ConfigError, match="no rows of 'texts'"):
        _staged({"clerks": [], "drills": []}, config.warmstart, 1)


def test_tasks_without_a_truth_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"id": "a", "question": "1+1?", "answer": "2"}, {"id": "b", "question": "Why?"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = resolve({}).cache_dir
    with pytest.raises(InputError, match=r"mine\.jsonl:2: field 'ground_truth' is missing"):
        open_tasks(TaskSource(set=str(file)), cache=cache, note=lambda _: None)


def test_a_number_of_tasks_that_is_none_is_refused_before_anything_runs() -> None:
    for items in ("many", -5, 0, 1.5, True):
        source = TaskSource(generator="filing", options={"items": items})
        with pytest.raises(ConfigError, match=f"items must be a whole number above 0.*{items!r}"):
            open_tasks(source, cache=resolve({}).cache_dir, note=lambda _: None)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=f"model.device '{device}' cannot be used here"):
        on_device(torch.nn.Linear(1, 1), device)


def line_of_ids(ids: Sequence[int], mask: Sequence[int]) -> str:
    segment = {"token_ids": ids, "loss_mask": mask, "logprobs": None}
    return json.dumps({"id": "x", "group": "g", "reward": 1.0, "segments": [segment]}) + "\n"


async def test_rows_of_a_file_without_a_reply_are_counted_and_left_out(tmp_path: Path) -> None:
    """To average over no token at all gives no number."""
    file = tmp_path / "rows.jsonl"
    file.write_text(line_of_ids([1, 2, 3], [0, 0, 0]) + line_of_ids([1, 2, 3], [0, 1, 1]))
    said: list[str] = []
    driver = with_rows(tmp_path, file, said)
    assert driver.config.warmstart is not None
    rows = await driver._warm_rows(driver.config.warmstart)
    await driver.parts.close()
    assert [row.ids for row in rows["rows"]] == [(1, 2, 3)]
    assert said == [f"{file}: 1 rows without a reply were left out"]


@pytest.mark.parametrize("token", [999_999, -3])
async def test_records_of_a_model_with_other_tokens_are_refused(tmp_path: Path, token: int) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(line_of_ids([1, 2, token], [0, 0, 1]))
    driver = with_rows(tmp_path, file, [])
    assert driver.config.warmstart is not None
    with pytest.raises(InputError, match=r"rows\.jsonl: token .* records of another model"):
        await driver._warm_rows(driver.config.warmstart)
    await driver.parts.close()


@pytest.mark.parametrize(("least", "kept"), [(None, 3), (-1.0, 2), (0.0, 2), (0.5, 1)])
async def test_a_rollout_without_a_reward_passes_no_bound(
    tmp_path: Path, least: float | None, kept: int
) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.loads(line_of_ids([1, 2, 3], [0, 1, 1])) for _ in range(3)]
    for line, reward in zip(lines, (1.0, 0.0, None), strict=True):
        line["reward"] = reward
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[str] = []
    driver = with_rows(tmp_path, file, said)
    assert driver.config.warmstart is not None
    rows = await driver._warm_rows(replace(driver.config.warmstart, min_reward=least))
    await driver.parts.close()
    assert len(rows["rows"]) == kept
    left = f"{3 - kept} rollouts were left out" if kept < 3 else ""
    assert left in "".join(said)
    assert bool(said) == (kept < 3)


async def test_a_file_of_rows_that_leaves_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.touch()
    driver = with_rows(tmp_path, file, [])
    assert driver.config.warmstart is not None
    with pytest.raises(InputError, match=r"empty\.jsonl: no rollout in it can be learned from"):
        await driver._warm_rows(driver.config.warmstart)
    await driver.parts.close()


def with_rows(folder: Path, file: Path, said: list[str]) -> Driver:
    config = tiny_config(warmstart__rows=str(file), warmstart__stages=[])
    assert config.warmstart is not None
    warm = replace(config.warmstart, clerks=0, drills=0, texts=0)
    config = replace(config, warmstart=warm)
    return Driver(config, tiny_parts(config), begun(folder, config), said.append)


async def test_a_model_is_exported_when_its_training_tasks_are_gone(tmp_path: Path) -> None:
    parts = tiny_parts(tiny_config())
    write_hf(parts.policy.model, parts.policy.tokenizer, tmp_path / "model")
    await parts.close()
    config = tiny_config()
    gone = TaskSource(set=str(tmp_path / "gone.jsonl"))
    config = replace(
        config,
        model=replace(config.model, source=str(tmp_path / "model"), random=None),
        tasks=replace(config.tasks, train=gone, evaluate={}),
    )
    directory = begun(tmp_path / "runs", config)
    out = tmp_path / "out" / "hf"
    found = finished.write(directory, config, lambda _: None, form="hf", out=out, name="untrained")
    assert (found / "model.safetensors").is_file()


# --- a server that draws -------------------------------------------------------------------------


def with_server(url: str, **changes: Any) -> TrainConfig:
    served = {"engine__kind": "sglang", "engine__url": url, "engine__model": "policy", **changes}
    return tiny_config(**served)


async def test_a_server_gets_an_adapter_alone_and_whole_weights_as_a_model(tmp_path: Path) -> None:
    fake = FakeTokenServer("sglang", lambda ids: [5, 6, 0])
    async with FakeOpenAIServer(fake) as server:
        whole = with_server(server.base_url)
        learning = replace(whole, model=replace(whole.model, lora=Lora(rank=2)))
        for name, config in (("whole", whole), ("adapter", learning)):
            parts = assemble(config, lambda _: None)
            await Driver(config, parts, begun(tmp_path / name, config), lambda _: None).publish(3)
            await parts.close()
    assert [Path(each).name for each in fake.weights] == ["step-000003"]
    assert [Path(each).name for each in fake.adapters.values()] == ["step-000003"]


async def test_a_server_gets_the_checkpoint_that_is_to_be_measured(tmp_path: Path) -> None:
    """It may hold the weights of any step, or of another run."""
    fake = FakeTokenServer("sglang", lambda ids: [5, 6, 0])
    async with FakeOpenAIServer(fake) as server:
        config = with_server(server.base_url, evaluate__modes=["llm"])
        directory = begun(tmp_path, config)
        for name in ("untrained", "untrained"):
            await finished.evaluate(directory, config, lambda _: None, limit=1, name=name)
        assert fake.log[0] == "/update_weights_from_disk"
        assert len(fake.weights) == 2
        with directory.alone(), pytest.raises(RecordError, match="another process is at work"):
            await finished.evaluate(directory, config, lambda _: None, limit=1, name="untrained")
    assert len(fake.weights) == 2


async def test_a_server_that_says_other_probabilities_is_not_learned_from(tmp_path: Path) -> None:
    config = with_server("http://127.0.0.1:1", engine__kind="vllm", rollout__temperature=0.7)
    parts = assemble(config, lambda _: None)
    with pytest.raises(ConfigError, match=r"temperature 0\.7: .*other log probabilities"):
        await Driver(config, parts, begun(tmp_path, config), lambda _: None).run()
    await parts.close()


# --- going on ------------------------------------------------------------------------------------


class Stopped(Exception):
    """What ends a run in a test where a kill would."""


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """The same step: whatever is no time and no memory."""
    clocks = ("_s", "_mib", "_share")
    names = {name for name in {*one, *other} if not name.endswith(clocks)} - {"gap_max", "gap_mean"}
    for name in names:
        assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name


def assert_goes_on(whole: TrainDirectory, again: TrainDirectory, phase: str, step: int) -> None:
    """Up to `step` of `phase`, made after the stop, all is as in the whole run, and all is there.

    Later steps amplify the rounding of sums whose order hangs on what runs side by side.
    """
    for name in ("warmstart", "train"):
        ones, others = figures(whole, name), figures(again, name)
        assert ones.keys() == others.keys()
        for number, each in ones.items():
            if name == "warmstart" or (phase == "train" and number <= step):
                same(each, others[number])
    assert held_out(whole).keys() == held_out(again).keys()
    first, again_first = held_out(whole)[0], held_out(again)[0]
    assert first["reward"] == again_first["reward"]
    assert first["turns"] == again_first["turns"]


@pytest.mark.parametrize(
    ("phase", "step"), [("warmstart", 3), ("warmstart", 33), ("train", 1), ("train", 3)]
)
async def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    whole: TrainDirectory, tmp_path: Path, phase: str, step: int
) -> None:
    """Stopped after the figures of a step were written and before its checkpoint was."""

    def stop(told: str, number: int, _: Mapping[str, Any]) -> None:
        if (told, number) == (phase, step):
            raise Stopped

    config = tiny_config()
    directory = begun(tmp_path, config)
    with pytest.raises(Stopped):
        await go_on(directory, config, told=stop)
    again = TrainDirectory.open(directory.path, config)
    random.seed(step)
    torch.manual_seed(step)  # another process has other global randomness
    await go_on(again, config)
    assert_goes_on(whole, again, phase, step)


async def test_an_evaluation_that_was_interrupted_is_made_after_all(
    whole: TrainDirectory, tmp_path: Path
) -> None:
    def stop(told: str, number: int, _: Mapping[str, Any]) -> None:
        if (told, number) == ("evaluation", 2):
            raise Stopped

    config = tiny_config()
    directory = begun(tmp_path, config)
    with pytest.raises(Stopped):
        await go_on(directory, config, told=stop)
    lines = directory.path / "evaluations.jsonl"
    kept = lines.read_text().splitlines(keepends=True)[:-1]
    lines.write_text("".join(kept) + '{"torn')  # as a kill leaves it
    again = TrainDirectory.open(directory.path, config)
    await go_on(again, config)
    assert_goes_on(whole, again, "train", 2)


async def test_a_run_goes_on_from_steps_that_taught_nothing(tmp_path: Path) -> None:
    """All rewards of each group are equal, so that no step has made an optimiser yet."""
    config = tiny_config(rollout__reward="scorer", rollout__max_turns=1, train__steps=2)
    config = replace(config, warmstart=None, tasks=replace(config.tasks, evaluate={}))

    def stop(told: str, number: int, _: Mapping[str, Any]) -> None:
        if (told, number) == ("train", 2):
            raise Stopped

    directory = begun(tmp_path, config)
    with pytest.raises(Stopped):
        await go_on(directory, config, told=stop)
    found = checkpoint.newest(directory.checkpoints)
    assert found is not None
    assert (found.step, found.optimiser()) == (1, {})
    again = TrainDirectory.open(directory.path, config)
    await go_on(again, config)
    assert all("loss" not in each for each in figures(again, "train").values())
    assert sorted(figures(again, "train")) == [1, 2]


def run_and_kill(folder: Path, phase: str, step: int) -> None:
    """Begin the run in a process of its own, and kill that once it tells of a step."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "tiny_run.py"), str(folder), "{}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if json.loads(line) == [phase, step]:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(("phase", "step"), [("warmstart", 27), ("train", 2)])
async def test_a_run_goes_on_exactly_after_kill_9(
    whole: TrainDirectory, tmp_path: Path, phase: str, step: int
) -> None:
    run_and_kill(tmp_path, phase, step)
    (folder,) = tmp_path.iterdir()
    config = tiny_config()
    again = TrainDirectory.open(folder, config)
    await go_on(again, config)
    assert_goes_on(whole, again, phase, step)


async def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    whole: TrainDirectory, tmp_path: Path
) -> None:
    def stop(told: str, number: int, _: Mapping[str, Any]) -> None:
        if (told, number) == ("train", 4):
            raise Stopped

    config = tiny_config()
    directory = begun(tmp_path, config)
    with pytest.raises(Stopped):
        await go_on(directory, config, told=stop)
    (directory.checkpoints / "step-train-000003" / "optimiser.pt").write_bytes(b"?")
    again = TrainDirectory.open(directory.path, config)
    await go_on(again, config)
    assert_goes_on(whole, again, "train", 3)


def test_going_on_with_another_configuration_names_the_differences(
    whole: TrainDirectory,
) -> None:
    other = tiny_config(train__lr=2e-3, warmstart__texts=9)
    with pytest.raises(
        ConfigError, match=r"train\.lr: was 0\.001, is 0\.002; warmstart\.texts: was 8"
    ):
        TrainDirectory.open(whole.path, other)
    assert TrainDirectory.open(whole.path, other, force=True).path == whole.path
    assert TrainDirectory.open(whole.path, tiny_config()).path == whole.path
