"""When an item is marked, and when it must not be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandlot.bench.contamination import check_sandbox_view, hub_hosts, marks
from sandlot.core.errors import ConfigError
from sandlot.core.types import (
    EgressRecord,
    Message,
    StopReason,
    Task,
    TextPart,
    ToolResult,
    Trajectory,
    Turn,
    Usage,
)
from sandlot.models.scripted import bash, edit, say
from sandlot.tasks.base import Source, TaskSet

PROMPT = (
    "A lighthouse keeper counts the ships that pass between dusk and dawn on nine nights, "
    "and finds each count to be the sum of the two before it. How many pass on the last night?"
)
PAGE = f"Problem 7. {PROMPT} Solution: one adds them up. Answer: 34"
SENTENCE = "The treaty was signed in the harbour of Old Wexmoor."
HUB = TaskSet(
    name="ships",
    domain="math",
    source=Source("hub", dataset="some-lab/Ship-Counts2031", revision="0" * 40),
    scorer="math",
    leak_hosts=("leaks.test",),
)
LOCAL = replace(HUB, source=Source("file", path="ships.jsonl"), leak_hosts=())
OUT = EgressRecord("pages.test", 443, "allowed", 100, 9000, turn=0)


def rollout(
    task: Task, *steps: tuple[Message, str], egress: tuple[EgressRecord, ...] = (OUT,)
) -> Trajectory:
    """A trajectory of replies with the observation that each got."""
    messages: list[Message] = [Message.user(f"Solve this.\n{task.prompt}")]
    turns = []
    for index, (reply, observation) in enumerate(steps):
        calls = tuple(replace(call, id=f"c{index}") for call in reply.tool_calls)
        reply = replace(reply, tool_calls=calls)
        told = [Message.tool(call.id, TextPart(observation)) for call in calls]
        results = tuple(
            ToolResult(call, message, True, 0.1) for call, message in zip(calls, told, strict=True)
        )
        turns.append(Turn(index, reply, Usage(), "stop", 1.0, 0.0, results))
        messages += [reply, *told]
    return Trajectory(
        id="r",
        task=task,
        mode="sandbox",
        model="m",
        messages=tuple(messages),
        turns=tuple(turns),
        stop_reason=StopReason.SUBMITTED,
        egress=egress,
    )


def task_of(target: Any, files: Mapping[str, str] | None = None, **fields: Any) -> Task:
    data = {name: text.encode() for name, text in (files or {}).items()}
    return Task(**{"id": "7", "prompt": PROMPT, "target": target, "input_files": data} | fields)


FETCH = bash("curl -s pages.test/a")
RUN = bash("python3 solve.py")

MISSES = {
    "a page with the problem and a short answer": (task_of("34"), [(FETCH, PAGE)]),
    "the same as a number": (task_of(34), [(FETCH, PAGE)]),
    "the same with other signs and lines": (
        task_of("34"),
        [(FETCH, PAGE.replace(" ", "\n", 9).replace("Answer: 34", "**Answer:** $34$.").upper())],
    ),
    "a part of the problem with its choice": (
        task_of(["B", "D"]),
        [(FETCH, f"{PROMPT[:110]} (A) 3 (B) 34 -- key: B")],
    ),
    "a short problem as a whole": (
        task_of("China", prompt="Which nation won the most medals?"),
        [(FETCH, "Q: Which nation won the most medals? A: China")],
    ),
    "a telling truth by itself": (task_of(SENTENCE), [(FETCH, f"... {SENTENCE} ...")]),
    "one of several telling truths": (
        task_of(["by the river Elmbrook", SENTENCE]),
        [(FETCH, SENTENCE)],
    ),
    "a telling truth in TeX": (
        task_of("upward parabola with vertex three"),
        [(FETCH, r"$\boxed{\text{Upward parabola, with vertex three}}$")],
    ),
    "a telling truth that was in the image": (task_of(SENTENCE), [(RUN, SENTENCE)]),
    "a telling truth though there were inputs": (
        task_of(SENTENCE, {"a.txt": "nothing of it"}),
        [(FETCH, SENTENCE)],
    ),
    "seen first, repeated by the model afterwards": (
        task_of(SENTENCE),
        [(FETCH, SENTENCE), (bash(f"echo '{SENTENCE}' > answer.txt"), SENTENCE)],
    ),
}

FALSE_ALARMS = {
    "a short answer that was computed": (task_of("34"), [(RUN, "34")]),
    "a letter in a listing": (task_of("B"), [(FETCH, "a\nb\nc")]),
    "a long number that was computed": (task_of("1134903170"), [(RUN, "1134903170")]),
    "a formula that was computed": (task_of(r"\frac{3x^2+1}{2}"), [(RUN, "(3*x**2 + 1)/2")]),
    "a part of a short problem": (
        task_of("China", prompt="Which nation won the most medals?"),
        [(FETCH, "The nation that won the most medals is China")],
    ),
    "a problem of a few signs": (task_of("4", prompt="What is 2+2?"), [(RUN, "What is 2? 4")]),
    "the problem without its answer": (task_of("55"), [(FETCH, PAGE)]),
    "the answer inside another number": (task_of("34"), [(FETCH, PAGE.replace("34", "1345"))]),
    "the model's own notes": (
        task_of("34"),
        [
            (edit("create", "/n.txt", file_text=f"{PROMPT}\nI think 34."), "made"),
            (bash("cat /n.txt"), f"{PROMPT}\nI think 34."),
        ],
    ),
    "its own program that prints the problem": (
        task_of("34"),
        [(bash(f"python3 -c \"print('''{PROMPT}''', 21 + 13)\""), f"{PROMPT} 34")],
    ),
    "a telling truth that it wrote": (
        task_of(SENTENCE),
        [(bash(f"echo '{SENTENCE}' > a; cat a"), SENTENCE)],
    ),
    "a telling truth that it had said": (
        task_of(SENTENCE),
        [(replace(FETCH, reasoning=f"I recall: {SENTENCE}"), SENTENCE)],
    ),
    "a telling truth of the prompt": (
        task_of(SENTENCE, prompt=f"{PROMPT} (A) {SENTENCE} (B) None."),
        [(FETCH, SENTENCE)],
    ),
    "a telling truth of the documents": (
        task_of(SENTENCE, {"a.txt": f"Long ago.\n{SENTENCE}\nAnd then."}),
        [(bash("grep treaty input/a.txt"), SENTENCE)],
    ),
    "instructions as the truth": (
        task_of({"instruction_id_list": ["count:words"], "kwargs": [{}]}),
        [(FETCH, "count words")],
    ),
    "no truth at all": (task_of(None), [(FETCH, PAGE)]),
    "no observation at all": (task_of("34"), [(say("It is 34."), "")]),
}


@pytest.mark.parametrize("name", MISSES)
def test_an_answer_from_elsewhere_marks_the_item(name: str) -> None:
    task, steps = MISSES[name]
    (reason,) = marks(task, rollout(task, *steps), LOCAL)
    assert "turn 0: an observation holds the" in reason


@pytest.mark.parametrize("name", FALSE_ALARMS)
def test_an_answer_of_its_own_or_of_its_inputs_does_not(name: str) -> None:
    task, steps = FALSE_ALARMS[name]
    assert marks(task, rollout(task, *steps), LOCAL) == ()


def test_what_only_its_inputs_can_have_told_does_not_mark() -> None:
    """A document that is no plain text, or facts put together, without any network."""
    task = Task("7", PROMPT, {"a.pdf": b"%PDF \xff\x00 packed"}, target=SENTENCE)
    read = (bash("pdftotext a.pdf -"), SENTENCE)
    assert marks(task, rollout(task, read, egress=()), LOCAL) == ()
    refused = replace(OUT, verdict="not allowed")
    assert marks(task, rollout(task, read, egress=(refused,)), LOCAL) == ()
    later = replace(OUT, turn=1)
    assert marks(task, rollout(task, read, egress=(later,)), LOCAL) == ()
    assert marks(task, rollout(task, read), LOCAL) != ()


@pytest.mark.parametrize(
    ("host", "verdict", "marked"),
    [
        ("leaks.test", "allowed", True),
        ("CDN.leaks.test.", "allowed", True),
        ("hub.test", "allowed", True),
        ("leaks.test", "not allowed", False),
        ("noleaks.test", "allowed", False),
        ("leaks.test.example", "allowed", False),
    ],
)
def test_reaching_a_host_of_the_data_set_marks_the_item(
    host: str, verdict: str, marked: bool
) -> None:
    task = task_of("34")
    run = rollout(task, (FETCH, "nothing"), egress=(EgressRecord(host, 443, verdict),) * 2)
    found = marks(task, run, HUB, {"HF_ENDPOINT": "https://hub.test/"})
    assert len(found) == int(marked)
    assert marks(task, run, LOCAL) == ()


@pytest.mark.parametrize(
    ("command", "item", "marked"),
    [
        ("load_dataset('some-lab/Ship-Counts2031')", "7", True),
        ("curl pages.test/?q=ship-counts2031+solutions", "7", True),
        ("grep aime25_II_7 /data", "aime25_II_7", True),
        ("load_dataset('other-lab/Cargo')", "7", False),
        ("echo 7", "7", False),
        ("cat sample_0007.txt", "sample_0007", False),
        ("cat xaime25_II_7b", "aime25_II_7", False),
        ("echo lighthouse", "lighthouse", False),
    ],
)
def test_a_command_that_names_the_set_or_the_item_marks_it(
    command: str, item: str, marked: bool
) -> None:
    task = task_of("34", id=item)
    found = marks(task, rollout(task, (bash(command), "nothing"), egress=()), HUB)
    assert bool(found) is marked


def test_a_name_that_the_prompt_gives_is_no_mark() -> None:
    task = task_of(
        "34", prompt=f"{PROMPT} See Ship-Counts2031, number aime25_II_7.", id="aime25_II_7"
    )
    run = rollout(task, (bash("echo Ship-Counts2031 aime25_II_7"), ""), egress=())
    assert marks(task, run, HUB) == ()


def test_without_a_row_only_what_was_seen_is_judged() -> None:
    task = task_of("34")
    assert marks(task, rollout(task, (FETCH, PAGE)), None) != ()
    assert marks(task, rollout(task, (FETCH, "nothing")), None) == ()


def test_the_hub_is_what_the_environment_or_its_library_says() -> None:
    assert hub_hosts({"HF_ENDPOINT": "https://mirror.test:8443/hf"})[0] == "mirror.test"
    assert hub_hosts({"HF_ENDPOINT": "https://mirror.test"})[1:] == hub_hosts()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("answer.txt", " 34\n"),
        ("gold/7.txt", "34"),
        ("rows.jsonl", '{"id": 1}\n{"id": 7, "ground_truth": "34"}\n'),
        ("rows.json", '[{"problem": {"answer_key": ["34"]}}]'),
        ("readme.md", "Taken from some-lab/Ship-Counts2031."),
    ],
)
def test_an_upload_that_tells_the_truth_is_refused(path: str, text: str) -> None:
    with pytest.raises(ConfigError, match="task 7: input file"):
        check_sandbox_view(task_of("34", {path: text}), HUB)


def test_an_input_folder_is_held_to_the_same(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    task = task_of("34", input_dir=str(tmp_path))
    (tmp_path / "sub" / "numbers.csv").write_text("1,2,34\n")
    check_sandbox_view(task, HUB)
    (tmp_path / "sub" / "solution.txt").write_text("34")
    with pytest.raises(ConfigError, match=r"sub/solution\.txt"):
        check_sandbox_view(task, HUB)


def test_a_prompt_that_names_the_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="the prompt names the data set"):
        check_sandbox_view(task_of("34", prompt="From some-lab/Ship-Counts2031: count."), HUB)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("report.txt", f"In the end, {SENTENCE}"),
        ("counts.txt", "34"),
        ("data.json", '{"answer": "34", "question": "which?"}'),
        ("rows.jsonl", '{"target": "35"}\n{broken\n'),
        ("logo.png", "\x89PNG"),
    ],
)
def test_documents_that_a_task_is_about_are_not(path: str, text: str) -> None:
    check_sandbox_view(task_of(["34", SENTENCE], {path: text}), HUB)


def given_samples(folder: Path) -> list[Task]:
    """Real problems of four sets, with their documents."""
    tasks = []
    for name in ("math", "chem", "biomed", "long_context"):
        for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            files = row.get("input_files") or {}
            files = json.loads(files) if isinstance(files, str) else files
            documents = {path: str(text).encode() for path, text in files.items()}
            problem, truth = row["problem_statement"], row["ground_truth"]
            tasks.append(Task(str(row["id"]), problem, documents, target=truth))
    return tasks


def test_real_problems_are_neither_refused_nor_marked_for_their_own_documents() -> None:
    repository = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("SANDLOT_SHARED_DATA") or repository.parent / "shared" / "data")
    if not (folder / "math.jsonl").is_file():
        pytest.skip(f"no sample data in {folder}; SANDLOT_SHARED_DATA names another folder")
    for task in given_samples(folder):
        check_sandbox_view(task, HUB)
        shown = "\n".join(data.decode() for data in task.input_files.values())
        assert marks(task, rollout(task, (bash("cat *"), f"{shown}\nA B C D 0 1 2")), HUB) == ()
        page = f"{task.prompt}\nAnswer: {task.target}"
        assert marks(task, rollout(task, (FETCH, page)), HUB) != ()
