"""Models of random weights, and tokenizers to which all that surrounds a message is one token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

REASON = "needs the extra `train` (torch, transformers)"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from small_shell import open_small_shell  # noqa: E402

from sandlot.agent.prompts import load_profile  # noqa: E402
from sandlot.agent.rollout import run_rollout  # noqa: E402
from sandlot.core.errors import ConfigError  # noqa: E402
from sandlot.core.tokens import rows_of  # noqa: E402
from sandlot.core.types import Message, ToolCall  # noqa: E402
from sandlot.tasks.generators.filing import ENTRIES, KEYS  # noqa: E402
from sandlot.tools import default_tools  # noqa: E402
from sandlot.train.chat import TemplateFormat  # noqa: E402
from sandlot.train.clerks import Clerk  # noqa: E402
from sandlot.train.config import RandomModel, TaskSource, load_config  # noqa: E402
from sandlot.train.lessons import lessons_of  # noqa: E402
from sandlot.train.random_model import make_random, make_tokenizer  # noqa: E402
from sandlot.train.sft import WrittenModel  # noqa: E402
from sandlot.train.sources import Tasks, open_tasks  # noqa: E402

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "nano.toml"
SMALL = RandomModel(layers=1, hidden=16, heads=2)
FORMS = ("native", "text", "fenced")


def tasks_of(generator: str = "filing") -> Tasks:
    return open_tasks(TaskSource(generator=generator), cache=Path("unused"), note=print)


FILING = tasks_of()


def profile_of(form: str, name: str = "nano") -> Any:
    return replace(load_profile(name), tool_calls=form)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {
        form: make_tokenizer(FILING, vocabulary=900, profile=profile_of(form)) for form in FORMS
    }


def encoded(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def test_the_recipe_makes_a_model_of_0_7_million_weights() -> None:
    wanted = load_config(RECIPE).model.random
    assert wanted is not None
    model, tokenizer = make_random(
        wanted, FILING, dtype="float32", seed=1, profile=profile_of("native")
    )
    assert 0.65e6 < sum(each.numel() for each in model.parameters()) < 0.78e6
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer) <= 900


def test_the_same_seed_gives_the_same_weights_and_disturbs_nobody_elses_chance() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    made = [
        make_random(SMALL, FILING, dtype="float32", seed=seed, profile=profile_of("native"))[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.rand(3), wanted)
    first, again, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_each_architecture_can_be_made(architecture: str) -> None:
    wanted = replace(SMALL, architecture=architecture)
    model, _ = make_random(wanted, FILING, dtype="bfloat16", seed=1, profile=profile_of("native"))
    assert model.config.model_type == architecture
    assert next(model.parameters()).dtype == torch.bfloat16
    assert not model.training


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (replace(SMALL, architecture="qwen9"), "'qwen9' is not known.*Did you mean"),
        (replace(SMALL, hidden=18), "hidden is 18; it must be heads"),
        (replace(SMALL, layers=0), "there must be a layer"),
        (replace(SMALL, vocabulary=200), "vocabulary is 200; bytes and signs alone need"),
    ],
)
def test_sizes_that_do_not_fit_are_named(wanted: RandomModel, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_random(wanted, FILING, dtype="float32", seed=1, profile=profile_of("native"))


def test_each_word_of_the_tasks_is_one_token(tokenizers: dict[str, Any]) -> None:
    for tokenizer in tokenizers.values():
        for word in (*KEYS, *ENTRIES):
            assert len(encoded(tokenizer, f" {word}")) == 1
        assert len(encoded(tokenizer, f"- {KEYS[3]} {ENTRIES[5]}")) == 3
        assert len(encoded(tokenizer, f"grep -h {KEYS[3]} input/*")) == 4


@pytest.mark.parametrize("form", FORMS)
async def test_what_surrounds_a_message_is_one_token_and_the_text_what_it_always_is(
    tokenizers: dict[str, Any], form: str
) -> None:
    """Against a tokenizer that knows no such tokens: the texts agree to the character."""
    bare = make_tokenizer(tasks_of("errands"), vocabulary=700, profile=profile_of(form, "compact"))
    texts, rows = [], []
    task, style, commands = lessons_of("filing").clerks(FILING.fresh(4, 3), 1)[0]
    for tokenizer in (tokenizers[form], bare):
        chat = TemplateFormat(tokenizer, form)  # type: ignore[arg-type]
        trajectory = await run_rollout(
            task,
            model=WrittenModel(Clerk(commands, style), chat),
            sandbox=await open_small_shell(),
            profile=replace(profile_of(form), context_tokens=None),
        )
        (row,) = rows_of(trajectory)
        rows.append(row)
        texts.append(tokenizer.decode(row.ids, skip_special_tokens=False))
    assert texts[0] == texts[1]
    turns = texts[0].count("turns left")
    assert len(rows[0].ids) < 22 * (turns + 1)
    assert len(rows[0].ids) < len(rows[1].ids) / 1.5


def test_a_submit_is_two_tokens_and_a_command_four_more_than_its_words(
    tokenizers: dict[str, Any],
) -> None:
    tools = tuple(tool.spec for tool in default_tools())
    chat = TemplateFormat(tokenizers["native"], "native")

    def written(name: str, arguments: str) -> int:
        return len(chat.write(Message.assistant("", ToolCall("c", name, arguments)), tools))

    assert written("submit", "{}") == 2
    assert written("execute_bash", '{"command": "cat input/d3.txt"}') == 2 + 3


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_comes_back_from_its_tokens(tokenizers: dict[str, Any], text: str) -> None:
    tokenizer = tokenizers["native"]
    kept = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(encoded(tokenizer, kept), skip_special_tokens=False) == kept


def test_a_tokenizer_that_was_saved_gives_the_same_ids(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = tokenizers["native"]
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    chats = [TemplateFormat(each, "native") for each in (tokenizer, again)]
    tools = tuple(tool.spec for tool in default_tools())
    asked = [Message.user("Find the line about falcon.")]
    assert chats[0].render(asked, tools) == chats[1].render(asked, tools)
    assert len(chats[0].render(asked, tools)) == 8


def test_tokenizers_are_made_for_other_tasks_too() -> None:
    made = make_tokenizer(
        tasks_of("errands"), vocabulary=1500, profile=profile_of("fenced", "taught")
    )
    assert len(made) <= 1500
    assert len(encoded(made, "wc -l input/log.txt > output/answer.txt")) < 12
