"""What a run is going to do: conditions, keys, differences, prices and the estimate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from experiments import plan, task, task_set

from sandlot.bench.meters import Price
from sandlot.bench.plan import (
    BenchPlan,
    Condition,
    conditions_of,
    differences,
    estimate,
    identity_of,
    items_of,
    read_prices,
)
from sandlot.core.errors import ConfigError
from sandlot.models.adapters import file_digest
from taught import taught_spec


def keys(made: BenchPlan) -> dict[str, str]:
    items = items_of(made, conditions_of(made, {}))
    return {item.episode.stem: item.content_key for item in items}


def condition(made: BenchPlan, arm: str = "sandbox") -> Condition:
    return conditions_of(made, {})["tiny", arm]


def test_the_key_changes_with_what_decides_an_episode_and_with_nothing_else(
    tmp_path: Path,
) -> None:
    first = keys(plan(tmp_path))
    assert len(set(first.values())) == 4
    assert keys(plan(tmp_path, concurrency=99, attempts=7, limit=2)) == first
    for settings in ({"temperature": 0.5}, {"max_turns": 5}, {"model": "openai/x"}, {"seed": 1}):
        changed = keys(plan(tmp_path, settings=settings))
        assert changed["tiny.a.sandbox.0"] != first["tiny.a.sandbox.0"], settings
    other = keys(plan(tmp_path, settings={"network": "open"}))
    assert other["tiny.a.sandbox.0"] != first["tiny.a.sandbox.0"]
    assert other["tiny.a.llm.0"] == first["tiny.a.llm.0"]  # it has no network to change
    changed = keys(plan(tmp_path, task_set(task("a", "43"))))
    assert changed["tiny.a.llm.0"] != first["tiny.a.llm.0"]


def test_the_users_word_counts_before_the_sets_and_the_sets_before_the_default(
    tmp_path: Path,
) -> None:
    loaded = task_set(network="none", limits={"memory": "1GiB"}, max_turns=30)
    by_set = condition(plan(tmp_path, loaded))
    assert by_set.policy.network.mode == "none"
    assert by_set.policy.limits.memory_bytes == 2**30
    assert {"network", "memory_bytes"} <= by_set.policy.asked
    assert by_set.budget.max_turns == 30
    asked = {"network": "open", "memory": "2GiB", "max_turns": 7}
    by_user = condition(plan(tmp_path, loaded, settings=asked))
    assert by_user.policy.network.mode == "open"
    assert by_user.policy.limits.memory_bytes == 2**31
    assert by_user.budget.max_turns == 7
    assert condition(plan(tmp_path)).budget.max_turns == 100
    assert condition(plan(tmp_path), "llm").budget.max_turns == 1


def test_a_set_with_a_limit_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task set 'tiny': limit 'memroy'.*'memory'"):
        condition(plan(tmp_path, task_set(limits={"memroy": "1GiB"})))


def test_a_tiny_local_model_gets_prompts_that_it_can_hold(tmp_path: Path) -> None:
    made = plan(tmp_path, settings={"model": "local:base"})
    assert condition(made).profile.name == "benchmark-compact"
    assert condition(made, "llm").profile.name == "benchmark-llm-compact"


def test_a_taught_model_gets_the_profile_that_it_was_taught_with_in_every_set(
    tmp_path: Path,
) -> None:
    settings = {"model": taught_spec(tmp_path / "t")}
    for loaded in (task_set(), task_set(profile="benchmark-files", scorer="files")):
        made = plan(tmp_path, loaded, settings=settings)
        boxed, alone = condition(made), condition(made, "llm")
        assert (boxed.profile.name, boxed.settings.tool_calls) == ("taught", "fenced")
        assert (alone.profile.name, alone.settings.tool_calls) == ("taught-llm", "auto")
        assert boxed.budget.max_turns == 8
    matched = plan(tmp_path, arms="llm-prompt-matched", settings=settings)
    assert condition(matched, "llm-prompt-matched").profile.name == "benchmark-matched"


def test_a_taught_model_in_a_bench_is_refused_with_another_profile(tmp_path: Path) -> None:
    settings = {"model": taught_spec(tmp_path / "t"), "profile": "benchmark"}
    with pytest.raises(ConfigError, match="was taught with the profile 'taught'"):
        conditions_of(plan(tmp_path, settings=settings), {})


def test_what_a_model_learnt_is_part_of_what_decides_an_episode(tmp_path: Path) -> None:
    spec = taught_spec(tmp_path / "t")
    made = plan(tmp_path, settings={"model": spec})
    before, first = keys(made), identity_of(made, conditions_of(made, {}))
    (tmp_path / "t/adapter.gguf").write_bytes(b"GGUF trained for longer")
    anew = file_digest(tmp_path / "t/adapter.gguf")
    manifest = tmp_path / "t/manifest.json"
    manifest.write_text(manifest.read_text().replace(first["adapter"], anew.sha256))
    assert not set(before.values()) & set(keys(made).values())
    (line,) = differences(first, identity_of(made, conditions_of(made, {})))
    assert line.startswith("adapter: was ")


def test_limit_and_repeats_make_the_episodes(tmp_path: Path) -> None:
    made = plan(tmp_path, task_set(task("a"), task("b"), repeats=3), limit=1)
    assert list(keys(made)) == [f"tiny.a.{arm}.{n}" for n in range(3) for arm in ("llm", "sandbox")]
    assert len(keys(replace(made, repeats=2))) == 4


def test_what_differs_is_said_by_name(tmp_path: Path) -> None:
    first, second = plan(tmp_path), plan(tmp_path, settings={"temperature": 0.5, "network": "open"})
    before, now = (identity_of(p, conditions_of(p, {})) for p in (first, second))
    found = differences(before, now)
    assert "temperature: was the server's own, now 0.5" in found
    assert any(line.startswith("policy of tiny, sandbox: was ") for line in found)
    assert len(found) == 2
    assert differences(before, before) == []


def test_prices_are_read_and_a_bad_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('["openai/x"]\nprompt = 1\ncompletion = 10.0\ncached = 0.1\n')
    assert read_prices(file) == {"openai/x": Price(1.0, 10.0, 0.1)}
    for text, said in (
        ('["x"]\nprompt = 1\n', "'completion' must be a number, found None"),
        ('["x"]\nprompt = -1\ncompletion = 1\n', "'prompt' must be a number, found -1"),
        ('["x"]\nprice = 1\n', "price 'price' is not known"),
        ("x = 1\n", "expected a table"),
        ("[", "not valid TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_prices(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(tmp_path / "none.toml")


def test_documents_weigh_on_the_arm_that_has_them_in_its_prompt(tmp_path: Path) -> None:
    long = task_set(task("a", input_files={"x.txt": b"word " * 80_000}))
    made = plan(tmp_path, long, arms="both,sandbox-docs-in-prompt,llm-token-matched")
    rows = {row.arm: row for row in estimate(made, conditions_of(made, {}))}
    assert rows["llm"].prompt_tokens > 100_000
    assert rows["sandbox"].prompt_tokens < rows["llm"].prompt_tokens
    assert rows["sandbox-docs-in-prompt"].prompt_tokens > 5 * rows["llm"].prompt_tokens
    assert rows["llm-token-matched"].prompt_tokens == rows["sandbox"].prompt_tokens


def test_the_plan_names_money_only_where_a_price_is_known(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert {row.cost_usd for row in estimate(made, conditions_of(made, {}))} == {None}
    priced = replace(made, prices={"scripted:none.jsonl": Price(1.0, 2.0)})
    (llm, _) = estimate(priced, conditions_of(priced, {}))
    assert llm.cost_usd == pytest.approx((llm.prompt_tokens + 2 * llm.completion_tokens) / 1e6)


def test_more_items_show_smaller_gains(tmp_path: Path) -> None:
    small, large = (
        plan(tmp_path, task_set(*(task(f"t{n}") for n in range(count)))) for count in (4, 100)
    )
    (few, _), (many, _) = (estimate(made, conditions_of(made, {})) for made in (small, large))
    assert many.smallest_gain == pytest.approx(0.14, abs=0.005)  # 2.8 × 0.5 / √100
    assert few.smallest_gain == pytest.approx(5 * many.smallest_gain)


def test_a_set_whose_name_no_file_can_have_is_refused(tmp_path: Path) -> None:
    for name in ("../up", "a/b", ".hidden", ""):
        with pytest.raises(ConfigError, match="files are named after it"):
            conditions_of(plan(tmp_path, task_set(name=name)), {})
