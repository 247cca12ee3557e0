"""The bracket of `test_brackets` with nothing between model and score that is not the real thing.

The runner, the prompts, the sandbox, the collected answer file, the extraction and the scorers are
those of a real run. The models know a problem only by what the prompt says, answer where and in
the form that it asks for, and name the other answer on the way: a near miss must not score, and
a truth where nobody should look for it must not either.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiments import plan

from sandbox.backends import image_cache, image_name, proved_maker
from sandlot.bench.controls import check_controls
from sandlot.bench.episodes import LocalExecutor, opener
from sandlot.bench.grading import Grader, GradingOptions
from sandlot.bench.plan import BenchPlan, Condition
from sandlot.bench.runner import BenchWatch, Ground, run_bench
from sandlot.bench.store import BenchDirectory
from sandlot.core.redact import Redactor
from sandlot.core.types import Message, Role, StopReason, Task
from sandlot.models.base import Completion, OnDelta, Sampling, ToolSpec
from sandlot.models.scripted import bash, submit
from sandlot.scoring.base import ScoringTools
from sandlot.tasks.base import LoadedSet
from sandlot.tasks.registry import load_sets
from tasks.mini_texts_b import TEXTS

DOMAINS = {"math", "physics", "chem", "biomed", "long_context", "instruct_follow"}
A_FEW = 2
"""Problems of each domain that are played in real sandboxes."""


class Knowing:
    """Finds the problem in its prompt and answers from a table, where and as it was asked to."""

    name = "knowing"
    sees_images = False

    def __init__(self, answers: Mapping[str, str]) -> None:
        self._answers = answers

    async def complete(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        sampling: Sampling | None = None,
        on_delta: OnDelta | None = None,
    ) -> Completion:
        asked = next(message.text for message in messages if message.role is Role.USER)
        (answer,) = (text for problem, text in self._answers.items() if problem in asked)
        if not tools:
            return Completion(Message.assistant(answer))
        if any(message.role is Role.ASSISTANT for message in messages):
            return Completion(submit(), finish_reason="tool_calls")
        (file,) = set(re.findall(r"into the file (/\S+?)\. ", asked.replace("\n", " ")))
        written = bash(f"cat > {file} <<'END OF ANSWER'\n{answer}\nEND OF ANSWER")
        return Completion(written, finish_reason="tool_calls")

    async def close(self) -> None: ...


def perfect(task: Task) -> str:
    if task.id in TEXTS:
        return TEXTS[task.id][0]
    return f"At first sight it is {missed(str(task.target))}.\n\nANSWER: {task.target}"


def wrong(task: Task) -> str:
    if task.id in TEXTS:
        return TEXTS[task.id][1]
    return f"At first sight it is {task.target}.\n\nANSWER: {missed(str(task.target))}"


def missed(truth: str) -> str:
    """An answer of the same kind that is not the truth."""
    if re.fullmatch(r"[A-J]", truth):
        return "A" if truth == "J" else chr(ord(truth) + 1)
    if re.fullmatch(r"[A-J](, [A-J])+", truth):
        return truth.rpartition(",")[0]  # all but one of the right ones
    if truth in ("True", "False"):
        return str(truth == "False")
    if not re.search(r"\d", truth):
        return "Nobody Atall"
    return re.sub(r"\d", lambda digit: str(int(digit[0]) % 9 + 1), truth, count=1)


def mini(tmp_path: Path, each: int | None = None) -> tuple[LoadedSet, ...]:
    """The shipped set, or so many problems of each domain, of different kinds where there are."""
    sets = load_sets("mini", cache=tmp_path, environ={}, progress=lambda text: None)
    return sets if each is None else tuple(_some(loaded, each) for loaded in sets)


def _some(loaded: LoadedSet, each: int) -> LoadedSet:
    kinds: dict[Any, list[Task]] = defaultdict(list)
    for task in sorted(loaded.tasks, key=lambda task: not task.input_files):
        kinds[task.metadata["qa_type"]].append(task)
    chosen = [same[n] for n in range(each) for same in kinds.values() if n < len(same)]
    return replace(loaded, tasks=tuple(chosen[:each]))


async def run(tmp_path: Path, made: BenchPlan, know: Any) -> BenchDirectory:
    """The plan with a knowing model; all else as the settings say."""
    model = Knowing({task.prompt: know(task) for s in made.sets for task in s.tasks})
    open_box = opener({}, lambda text: None)

    def ground(plan: BenchPlan, directory: BenchDirectory, redactor: Redactor) -> Ground:
        tools = ScoringTools(cache_dir=tmp_path / "cache", environ={})
        grader = Grader([s.row for s in plan.sets], tools, GradingOptions(reference=False))
        executor = LocalExecutor(lambda job: model, open_box, redactor, lambda: 0.0)

        async def controls(conditions: Sequence[Condition], scratch: Path) -> list[dict[str, Any]]:
            return await check_controls(conditions, open_box, scratch)

        async def preflight(conditions: Sequence[Condition]) -> dict[str, Any]:
            return {}

        return Ground(executor, grader, controls, preflight)

    return await run_bench(made, BenchWatch(), environ={}, ground=ground)


def by_domain(directory: BenchDirectory) -> dict[str, list[float | None]]:
    records, found = directory.episodes(), defaultdict(list)
    for (episode, _), score in directory.scores().items():
        found[str(records[episode].domain)].append(score.score.value)
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize(("know", "value"), [(perfect, 1.0), (wrong, 0.0)])
async def test_all_150_problems_are_bracketed_in_both_arms_without_a_computer(
    tmp_path: Path, know: Any, value: float
) -> None:
    made = plan(tmp_path, *mini(tmp_path), arms="llm,llm-prompt-matched", concurrency=4)
    directory = await run(tmp_path, made, know)
    assert by_domain(directory) == {domain: [value] * 50 for domain in DOMAINS}
    assert not any(record.failure for record in directory.episodes().values())


def real_plan(tmp_path: Path, *sets: LoadedSet, arms: str) -> BenchPlan:
    cache = image_cache()
    settings = {"backend": "bubblewrap", "image": image_name(cache)}
    made = plan(tmp_path, *sets, arms=arms, concurrency=2, settings=settings)
    return replace(made, settings=replace(made.settings, cache_dir=cache))


@pytest.fixture(scope="module")
def _a_sandbox_can_be_had(tmp_path_factory: pytest.TempPathFactory) -> None:
    proved_maker(tmp_path_factory.mktemp("leases"))


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.usefixtures("_a_sandbox_can_be_had")
@pytest.mark.parametrize(("know", "value"), [(perfect, 1.0), (wrong, 0.0)])
async def test_every_domain_is_bracketed_in_real_sandboxes(
    tmp_path: Path, know: Any, value: float
) -> None:
    sets = mini(tmp_path, A_FEW)
    made = real_plan(tmp_path, *sets, arms="sandbox")
    directory = await run(tmp_path, made, know)
    records = directory.episodes().values()
    assert {record.stop_reason for record in records} == {StopReason.SUBMITTED}
    assert by_domain(directory) == {domain: [value] * A_FEW for domain in DOMAINS}


@pytest.mark.sandbox
@pytest.mark.slow
@pytest.mark.usefixtures("_a_sandbox_can_be_had")
async def test_answers_get_out_of_every_arm_but_the_one_that_takes_the_shell_away(
    tmp_path: Path,
) -> None:
    """This model writes with the shell; where it is refused there is no answer, which scores 0."""
    arms = "sandbox,sandbox-docs-in-prompt,sandbox-no-network,sandbox-no-exec,sandbox-no-files"
    sets = mini(tmp_path, 1)
    made = real_plan(tmp_path, *sets, arms=arms)
    directory = await run(tmp_path, made, perfect)
    found = defaultdict(set)
    for (episode, _), score in directory.scores().items():
        found[episode.arm].add(score.score.value)
    assert found == {arm: {0.0 if arm == "sandbox-no-exec" else 1.0} for arm in arms.split(",")}
    controls = directory.manifest["controls"]
    taken = {"sandbox-no-network", "sandbox-no-exec", "sandbox-no-files"}
    assert {control["arm"] for control in controls} == taken
    assert all(control["bites"] for control in controls)
