"""Drawing on a vLLM or SGLang server: what goes over the wire, what may go wrong, new weights."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.models.fake_server import Answer, Dropped, FakeOpenAIServer, Hang, Status, failure
from sandlot.models.retry import RetryPolicy
from sandlot.train.base import Draw
from sandlot.train.engine_server import Flavour, ServerEngine
from sandlot.train.fake_server import FakeTokenServer, logprob_of

FLAVOURS: tuple[Flavour, ...] = ("vllm", "sglang")
END = 9
DRAW = Draw(max_tokens=6, stop_ids=frozenset({END, 8}))
QUICK = RetryPolicy(max_retries=2, first_s=0.001, cap_s=0.002)
both = pytest.mark.parametrize("flavour", FLAVOURS)


def counting_on(prompt: Sequence[int]) -> list[int]:
    """The policy of these tests: three more than the last, and so on, then the end."""
    return [prompt[-1] + 3, prompt[-1] + 6, END, 1, 1]


@asynccontextmanager
async def serving(
    flavour: Flavour,
    policy: Callable[[Sequence[int]], Sequence[int]] = counting_on,
    *,
    answers: Callable[[FakeTokenServer], Any] = lambda fake: fake,
    fake_options: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[ServerEngine, FakeTokenServer, FakeOpenAIServer]]:
    fake = FakeTokenServer(flavour, policy, **(fake_options or {}))
    async with FakeOpenAIServer(answers(fake)) as server:
        settings: dict[str, Any] = {"context_tokens": 512, "retry_policy": QUICK, **options}
        engine = ServerEngine(flavour, server.base_url, model="policy", **settings)
        try:
            yield engine, fake, server
        finally:
            await engine.close()


@both
async def test_a_reply_comes_back_in_ids_with_its_end_and_its_logprobs(flavour: Flavour) -> None:
    async with serving(flavour) as (engine, _, _):
        drawn = await engine.sample([1, 2, 3], DRAW)
    assert drawn.ids == (*(6, 9)[:1], 9)
    assert drawn.logprobs == (logprob_of(6), logprob_of(END))
    assert drawn.finish == "stop"


@both
async def test_a_reply_that_reaches_its_limit_says_so(flavour: Flavour) -> None:
    async with serving(flavour, lambda prompt: [1] * 50) as (engine, _, _):
        drawn = await engine.sample([1], DRAW)
    assert (drawn.ids, drawn.finish) == ((1,) * 6, "length")


async def test_vllm_is_told_every_setting_that_it_would_take_from_the_model_otherwise() -> None:
    async with serving("vllm") as (engine, _, server):
        await engine.sample([1, 2], Draw(6, DRAW.stop_ids, 0.7, 0.8, 20, seed=5))
        await engine.sample([1, 2], DRAW)
    first, second = (request.json for request in server.requests)
    assert server.requests[0].path == "/v1/completions"
    assert first["prompt"] == [1, 2]
    assert (first["temperature"], first["top_p"], first["top_k"], first["seed"]) == (
        0.7,
        0.8,
        20,
        5,
    )
    assert first["stop_token_ids"] == [8, 9]
    assert second["top_k"] == -1
    assert "seed" not in second
    assert {second[name] for name in ("repetition_penalty", "temperature", "top_p")} == {1.0}


async def test_sglang_is_told_the_same_in_its_own_words() -> None:
    async with serving("sglang") as (engine, _, server):
        await engine.sample([1, 2], Draw(6, DRAW.stop_ids, 0.7, 0.8, 20, seed=5))
    (request,) = server.requests
    assert request.path == "/generate"
    assert request.json["input_ids"] == [1, 2]
    sampling = request.json["sampling_params"]
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.7, 0.8, 20)
    assert (sampling["max_new_tokens"], sampling["sampling_seed"]) == (6, 5)
    assert sampling["stop_token_ids"] == [8, 9]
    assert request.json["return_logprob"] is True


def test_logprobs_are_those_of_the_draw_only_where_the_server_can_give_them() -> None:
    def engine(flavour: Flavour, processed: bool = False) -> ServerEngine:
        return ServerEngine(
            flavour, "http://x", model="m", context_tokens=9, processed_logprobs=processed
        )

    plain, hot = DRAW, Draw(6, DRAW.stop_ids, temperature=0.7)
    cut = Draw(6, DRAW.stop_ids, top_k=20)
    reported = [
        [one.reports_logprobs_of(draw) for draw in (plain, hot, cut)]
        for one in (engine("vllm"), engine("vllm", True), engine("sglang"))
    ]
    assert reported == [[True, False, False], [True, True, True], [True, True, False]]


@both
async def test_draws_overlap(flavour: Flavour) -> None:
    async with serving(flavour) as (engine, _, server), anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(engine.sample, [number], DRAW)
    assert len(server.requests) == 20


# --- what may go wrong -----------------------------------------------------------------------


@both
async def test_what_does_not_fit_is_told_before_it_is_sent(flavour: Flavour) -> None:
    async with serving(flavour, context_tokens=8) as (engine, fake, _):
        with pytest.raises(ContextOverflow, match=r"prompt 3 \+ reply 6 tokens"):
            await engine.sample([1, 2, 3], DRAW)
    assert fake.log == []


@both
async def test_a_server_with_less_context_than_was_said_is_an_overflow_too(
    flavour: Flavour,
) -> None:
    async with serving(flavour, fake_options={"context_tokens": 3}) as (engine, _, _):
        with pytest.raises(ContextOverflow, match="longer than the context holds"):
            await engine.sample([1, 2, 3, 4], DRAW)


@both
@pytest.mark.parametrize(
    "first", [failure(503, "busy"), Dropped({"a": 1}), Status(500, b"oops"), failure(429, "slow")]
)
async def test_a_failure_that_passes_is_tried_again(flavour: Flavour, first: Answer) -> None:
    async with serving(flavour, fake_options={"first": [first]}) as (engine, fake, _):
        drawn = await engine.sample([1, 2, 3], DRAW)
    assert drawn.finish == "stop"
    assert len(fake.log) == 2


@both
async def test_a_failure_that_stays_ends_with_what_the_server_said(flavour: Flavour) -> None:
    broken = [failure(503, "out of memory")] * 9
    async with serving(flavour, fake_options={"first": broken}) as (engine, fake, _):
        with pytest.raises(ModelError, match=r"out of memory.*gave up after 2 retries"):
            await engine.sample([1], DRAW)
    assert len(fake.log) == 3


@both
async def test_a_refusal_is_not_tried_again(flavour: Flavour) -> None:
    async with serving(flavour, fake_options={"first": [failure(400, "bad")]}) as (engine, fake, _):
        with pytest.raises(ModelError, match=r"answered 400.*bad"):
            await engine.sample([1], DRAW)
    assert len(fake.log) == 1


async def test_a_model_that_vllm_does_not_know_is_named() -> None:
    async with serving("vllm", fake_options={"model": "other"}) as (engine, _, _):
        with pytest.raises(ModelError, match="'policy' was not found"):
            await engine.sample([1], DRAW)


@both
async def test_a_server_that_never_answers_is_left_at_the_deadline(flavour: Flavour) -> None:
    silent = {"first": [Hang()] * 999}
    options = {"timeout_s": 0.05, "deadline_s": 0.5, "retry_policy": RetryPolicy(99, 0.001, 0.001)}
    async with serving(flavour, fake_options=silent, **options) as (engine, fake, _):
        with pytest.raises(ModelError, match=r"no reply in 0\.5 s, retries included"):
            await engine.sample([1], DRAW)
    assert fake.log


async def test_nobody_at_the_address_is_told_as_such() -> None:
    engine = ServerEngine(
        "vllm", "http://127.0.0.1:9", model="m", context_tokens=99, retry_policy=QUICK
    )
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        await engine.sample([1], DRAW)
    await engine.close()


@both
async def test_the_other_servers_flavour_is_guessed_at(flavour: Flavour) -> None:
    async with serving(flavour, fake_options={"first": [Status(200, {"a": 1})]}) as (engine, _, _):
        with pytest.raises(ModelError, match="Is its flavour right"):
            await engine.sample([1], DRAW)


def test_a_flavour_that_is_not_known_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="use vllm or sglang"):
        ServerEngine("tgi", "http://x", model="m", context_tokens=9)  # type: ignore[arg-type]


async def test_a_vllm_that_gives_no_ids_is_too_old() -> None:
    old = {"choices": [{"text": "x", "finish_reason": "stop", "logprobs": None}]}
    async with serving("vllm", fake_options={"first": [old]}) as (engine, _, _):
        with pytest.raises(ModelError, match="return_token_ids"):
            await engine.sample([1], DRAW)


@pytest.mark.parametrize(
    ("flavour", "reply"),
    [
        (
            "vllm",
            {
                "choices": [
                    {
                        "token_ids": [5],
                        "prompt_token_ids": [0, 1],
                        "logprobs": {"token_logprobs": [-1.0]},
                        "finish_reason": "stop",
                    }
                ]
            },
        ),
        (
            "sglang",
            {
                "meta_info": {
                    "finish_reason": {"type": "stop"},
                    "prompt_tokens": 2,
                    "output_token_logprobs": [[-1.0, 5, None]],
                }
            },
        ),
    ],
)
async def test_a_prompt_that_the_server_changed_is_never_trained_on(
    flavour: Flavour, reply: dict[str, Any]
) -> None:
    async with serving(flavour, fake_options={"first": [reply]}) as (engine, _, _):
        with pytest.raises(ModelError, match="1 tokens were sent and 2 seen"):
            await engine.sample([1], DRAW)


async def test_ids_and_logprobs_must_be_as_many() -> None:
    choice = {"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}
    async with serving("vllm", fake_options={"first": [{"choices": [choice]}]}) as (engine, _, _):
        with pytest.raises(ModelError, match="2 token ids and 1 logprobs"):
            await engine.sample([1], DRAW)


async def test_a_draw_that_sglang_broke_off_is_drawn_again() -> None:
    broken = {"meta_info": {"finish_reason": {"type": "abort", "message": "Aborted"}}}
    async with serving("sglang", fake_options={"first": [broken]}) as (engine, fake, _):
        assert (await engine.sample([1], DRAW)).finish == "stop"
    assert len(fake.log) == 2


async def test_more_tokens_than_asked_for_are_an_error() -> None:
    choice = {
        "token_ids": [5] * 7,
        "logprobs": {"token_logprobs": [-1.0] * 7},
        "finish_reason": "stop",
    }
    async with serving("vllm", fake_options={"first": [{"choices": [choice]}]}) as (engine, _, _):
        with pytest.raises(ModelError, match="drew 7 tokens; asked for 1 to 6"):
            await engine.sample([1], DRAW)


async def test_a_key_is_sent_and_never_shown() -> None:
    refused = failure(401, "Incorrect API key sk-secret123")
    options = {"api_key": "sk-secret123", "fake_options": {"first": [refused]}}
    async with serving("vllm", **options) as (engine, _, server):
        with pytest.raises(ModelError, match=r"401.*\[key\]") as caught:
            await engine.sample([1], DRAW)
    assert server.requests[0].headers["authorization"] == "Bearer sk-secret123"
    assert "secret" not in str(caught.value)


# --- new weights -----------------------------------------------------------------------------


def adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def whole_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@both
async def test_each_adapter_gets_a_name_of_its_own_and_the_one_before_it_goes(
    flavour: Flavour, tmp_path: Path
) -> None:
    async with serving(flavour) as (engine, fake, server):
        await engine.sample([1], DRAW)
        names = []
        for step in range(3):
            await engine.update_weights(adapter(tmp_path / str(step)))
            await engine.sample([1], DRAW)
            (name,) = fake.adapters
            names.append(name)
            assert fake.adapters[name] == str(tmp_path / str(step))
    field = "model" if flavour == "vllm" else "lora_path"
    draws = [each.json for each in server.requests if each.path.endswith(("ions", "generate"))]
    assert [body.get(field) for body in draws[1:]] == names
    assert len(set(names)) == 3


@both
async def test_two_trainings_on_one_server_never_share_a_name(
    flavour: Flavour, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a")
    async with serving(flavour) as (engine, fake, server):
        other = ServerEngine(flavour, server.base_url, model="policy", context_tokens=512)
        await engine.update_weights(folder)
        await other.update_weights(folder)
        await other.close()
        assert len(fake.adapters) == 2


@both
async def test_a_whole_model_is_loaded_from_its_folder_and_caches_are_dropped(
    flavour: Flavour, tmp_path: Path
) -> None:
    folder = whole_model(tmp_path / "model")
    async with serving(flavour) as (engine, fake, server):
        await engine.update_weights(adapter(tmp_path / "adapter"))
        await engine.update_weights(folder)
        await engine.sample([1], DRAW)
    assert fake.weights == [str(folder)]
    body = json.dumps(server.requests[-1].json)
    assert "policy-" not in body
    if flavour == "vllm":
        assert fake.log[-3:-1] == ["/collective_rpc", "/reset_prefix_cache"]
    else:
        assert server.requests[-2].json["flush_cache"] is True


async def test_weights_that_the_server_cannot_load_are_an_error_and_the_old_ones_stay(
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    async with serving("sglang") as (engine, fake, _):
        with pytest.raises(ModelError, match="Failed to load"):
            await engine.update_weights(bad)
        assert (await engine.sample([1], DRAW)).finish == "stop"
    assert fake.weights == []


async def test_success_false_is_no_success(tmp_path: Path) -> None:
    answer = Status(200, {"success": False, "message": "shape mismatch"})
    async with serving("sglang", fake_options={"first": [answer]}) as (engine, _, _):
        with pytest.raises(ModelError, match="update_weights_from_disk: shape mismatch"):
            await engine.update_weights(whole_model(tmp_path / "m"))


async def test_a_server_that_was_not_started_for_adapters_says_how(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    async with serving("vllm", fake_options={"adapters_allowed": False}) as (engine, _, _):
        with pytest.raises(ConfigError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
            await engine.update_weights(folder)
    async with serving("sglang", fake_options={"adapters_allowed": False}) as (engine, _, _):
        with pytest.raises(ModelError, match="--enable-lora"):
            await engine.update_weights(folder)


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with serving("vllm") as (engine, fake, _):
        with pytest.raises(ConfigError, match="no such folder of weights"):
            await engine.update_weights(tmp_path / "none")
    assert fake.log == []


@both
async def test_an_adapter_whose_loading_seemed_to_fail_is_loaded_under_another_name(
    flavour: Flavour, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a")
    async with serving(flavour, fake_options={"first": [failure(503, "?")]}) as (engine, fake, _):
        await engine.update_weights(folder)
        assert [name[-2:] for name in fake.adapters] == ["-2"]


@both
async def test_no_reply_is_drawn_from_two_sets_of_weights(flavour: Flavour, tmp_path: Path) -> None:
    """An update waits for the draws before it, and the draws after it wait for the update."""
    folder = adapter(tmp_path / "a")
    order: list[str] = []

    async def draw(engine: ServerEngine, name: str) -> None:
        await engine.sample([1], DRAW)
        order.append(name)

    async def update(engine: ServerEngine) -> None:
        await engine.update_weights(folder)
        order.append("update")

    async with serving(flavour) as (engine, fake, _), anyio.create_task_group() as group:
        group.start_soon(draw, engine, "before")
        await anyio.lowlevel.checkpoint()
        group.start_soon(update, engine)
        await anyio.lowlevel.checkpoint()
        group.start_soon(draw, engine, "after")
    drawing = "/v1/completions" if flavour == "vllm" else "/generate"
    assert [path == drawing for path in fake.log] == [True, False, True]
    assert order == ["before", "update", "after"]


@both
async def test_an_update_that_is_given_up_lets_the_draws_go_on(
    flavour: Flavour, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a")
    async with serving(flavour, fake_options={"first": [Hang()]}) as (engine, fake, _):
        async with anyio.create_task_group() as group:
            group.start_soon(engine.update_weights, folder)
            while not fake.log:  # noqa: ASYNC110 - the double has no event for it
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        assert (await engine.sample([1], DRAW)).finish == "stop"
