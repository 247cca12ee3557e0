"""The engine draws what a plain forward pass would, whatever runs beside it and came before."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from waiting import comes_true

REASON = "needs the extra `train` (torch, transformers, peft)"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("peft", reason=REASON)

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError  # noqa: E402
from sandlot.core.tokens import TokenRow  # noqa: E402
from sandlot.train import engine_torch  # noqa: E402
from sandlot.train.base import Draw, Drawn  # noqa: E402
from sandlot.train.engine_torch import TorchEngine, draw_tokens, use_slots  # noqa: E402
from sandlot.train.objective import model_logprobs, pad  # noqa: E402
from sandlot.train.weights import LoraSettings, adapt  # noqa: E402

VOCABULARY, CONTEXT = 61, 160
END = 60
KINDS = ("llama", "qwen2", "qwen3")
CLOSE = 1e-5


def tiny(
    kind: str = "qwen3", *, lora: bool = False, attention: str | None = None, **more: Any
) -> Any:
    """Always the same weights for the same arguments; two query heads share each key head."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": END,
        "pad_token_id": None,
    }
    config = transformers.AutoConfig.for_model(kind, **sizes, **more)
    model = transformers.AutoModelForCausalLM.from_config(config)
    if attention is None:
        use_slots(model)
    else:
        model.set_attn_implementation(attention)
    if lora:
        model = adapt(model, LoraSettings(rank=4), skip_layers=1, seed=5)
        for name, each in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(each, std=0.2)
    return model.eval()


@asynccontextmanager
async def drawing(
    model: Any, *, slots: int = 4, context: int = CONTEXT
) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(model, slots=slots, context_tokens=context, threads=1)
    try:
        async with asyncio.timeout(240):
            yield engine
    finally:
        await engine.close()


def prompt_of(seed: int, length: int) -> list[int]:
    return [random.Random(seed).randrange(END) for _ in range(length)]


def draw(seed: int = 0, tokens: int = 12, **more: Any) -> Draw:
    return Draw(tokens, frozenset({END}), seed=seed, **more)


def plain(model: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0) -> Any:
    """Log probabilities of `ids` after `prompt`, from one forward pass over all of them."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
    logprobs = (logits.float() / temperature).log_softmax(-1)
    return [logprobs[len(prompt) + at - 1, token].item() for at, token in enumerate(ids)]


def assert_plain(model: Any, prompt: Sequence[int], drawn: Drawn, temperature: float = 1.0) -> None:
    assert drawn.ids
    assert drawn.finish == ("stop" if drawn.ids[-1] == END else "length")
    wanted = plain(model, prompt, drawn.ids, temperature)
    assert list(drawn.logprobs) == pytest.approx(wanted, abs=CLOSE)


async def until_busy(engine: TorchEngine) -> None:
    before = engine.decoded_tokens
    assert await comes_true(lambda: engine.decoded_tokens > before, every_s=0.001)


# --- what is drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["bare", "lora"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_reply_has_the_logprobs_of_a_plain_forward_pass(kind: str, lora: bool) -> None:
    prompt = prompt_of(1, 20)
    async with drawing(tiny(kind, lora=lora)) as engine:
        drawn = await engine.sample(prompt, draw(7))
    assert_plain(tiny(kind, lora=lora, attention="eager"), prompt, drawn)


@pytest.mark.parametrize("kind", KINDS)
async def test_so_have_replies_that_come_and_go_in_any_order(kind: str) -> None:
    """More requests than slots, of all lengths, at several temperatures, one after another."""
    chance = random.Random(9)
    asked = [
        (prompt_of(number, chance.randint(1, 60)), draw(number, chance.randint(1, 40)))
        for number in range(24)
    ]

    async def later(engine: TorchEngine, number: int) -> Drawn:
        await asyncio.sleep(number * 0.002)
        return await engine.sample(*asked[number])

    async with drawing(tiny(kind), slots=5) as engine:
        drawn = await asyncio.gather(*(later(engine, number) for number in range(len(asked))))
        assert engine.steps < sum(len(each.ids) for each in drawn)
    reference = tiny(kind, attention="eager")
    for (prompt, _), each in zip(asked, drawn, strict=True):
        assert_plain(reference, prompt, each)


async def test_the_trainer_gives_the_same_logprobs() -> None:
    model, prompt = tiny(), prompt_of(2, 30)
    async with drawing(model) as engine:
        drawn = await engine.sample(prompt, draw(3, 40, temperature=0.7))
    sampled = (False,) * len(prompt) + (True,) * len(drawn.ids)
    row = TokenRow((*prompt, *drawn.ids), sampled, (0.0,) * len(sampled))
    longer = TokenRow((1,) * 90, (False,) * 89 + (True,), (0.0,) * 90)
    trained = model_logprobs(model, pad([longer, row]), 0.7)[1, len(prompt) : len(sampled)]
    assert list(drawn.logprobs) == pytest.approx(trained.tolist(), abs=CLOSE)
    trained.sum().backward()  # what was drawn in inference mode is in nobody's way


async def test_a_model_that_bends_its_logits_draws_from_the_bent_ones() -> None:
    model, prompt = tiny("llama"), prompt_of(4, 9)
    model.config.final_logit_softcapping = 2.0
    async with drawing(model) as engine:
        drawn = await engine.sample(prompt, draw(5))
    sampled = (False,) * len(prompt) + (True,) * len(drawn.ids)
    row = TokenRow((*prompt, *drawn.ids), sampled, (0.0,) * len(sampled))
    bent = model_logprobs(model, pad([row]))[0, len(prompt) :].tolist()
    assert list(drawn.logprobs) == pytest.approx(bent, abs=CLOSE)
    straight = plain(tiny("llama"), prompt, drawn.ids)
    assert list(drawn.logprobs) != pytest.approx(straight, abs=0.1)


async def test_the_same_seed_draws_the_same_whatever_runs_beside_it() -> None:
    prompt = prompt_of(1, 25)
    async with drawing(tiny(), slots=6) as engine:
        alone = await engine.sample(prompt, draw(42, 30))
    async with drawing(tiny(), slots=6) as engine:
        others = [engine.sample(prompt_of(n, 3 + 7 * n), draw(n, 25)) for n in range(2, 10)]
        beside, *_ = await asyncio.gather(engine.sample(prompt, draw(42, 30)), *others)
        again = await engine.sample(prompt, draw(42, 30))
        other = await engine.sample(prompt, draw(43, 30))
    assert alone.ids == beside.ids == again.ids != other.ids
    assert list(alone.logprobs) == pytest.approx(beside.logprobs, abs=CLOSE)


async def test_greedy_draws_are_the_likeliest_tokens() -> None:
    model, prompt = tiny(attention="eager"), prompt_of(6, 11)
    ids: list[int] = []
    while len(ids) < 15 and (not ids or ids[-1] != END):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
    async with drawing(tiny()) as engine:
        drawn = await engine.sample(prompt, draw(1, 15, temperature=0.0))
    assert list(drawn.ids) == ids


def warped(logits: Any, each: Draw) -> Any:
    """The distribution as transformers' own warpers make it."""
    from transformers.generation import logits_process

    steps: list[Any] = [logits_process.TemperatureLogitsWarper(each.temperature)]
    if each.top_k:
        steps.append(logits_process.TopKLogitsWarper(each.top_k))
    if each.top_p < 1:
        steps.append(logits_process.TopPLogitsWarper(each.top_p))
    for step in steps:
        logits = step(None, logits)
    return logits.log_softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.4},
        {"top_k": 3},
        {"top_k": 1},
        {"top_k": 1000},
        {"top_p": 0.6},
        {"top_p": 1e-9},
        {"top_k": 5, "top_p": 0.7, "temperature": 1.7},
    ],
    ids=str,
)
def test_draws_invert_the_distribution_that_transformers_makes(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    rows = 400
    logits = torch.randn(rows, VOCABULARY) * 3
    uniforms = [random.Random(number).random() for number in range(rows)]
    each = draw(**settings)
    chosen, logprobs = draw_tokens(logits, [each] * rows, uniforms)
    wanted = warped(logits, each)
    whole = wanted.double().exp().cumsum(-1)
    inverted = (whole <= torch.tensor(uniforms).double().unsqueeze(1)).sum(-1)
    assert chosen == inverted.tolist()
    assert logprobs == pytest.approx(wanted[range(rows), chosen].tolist(), abs=CLOSE)


def test_no_draw_hits_what_was_cut_away_not_even_at_the_ends() -> None:
    """A number just under 1 rounds to 1 in 32 bits, where nothing is left to draw."""
    logits = torch.tensor([[0.0, 5.0, 4.0, -1.0]] * 3)
    chosen, logprobs = draw_tokens(logits, [draw(top_k=2)] * 3, [0.0, 0.5, 1 - 1e-12])
    assert chosen == [1, 1, 2]
    assert min(logprobs) > -2


def test_rows_of_one_step_are_each_drawn_in_their_own_way() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0]] * 3)
    ways = [draw(temperature=0.0), draw(top_k=1), draw()]
    chosen, logprobs = draw_tokens(logits, ways, [0.0, 0.0, 0.0])
    assert chosen == [1, 1, 0]
    assert logprobs[1] == 0.0
    assert logprobs[0] == pytest.approx(logits[0].log_softmax(0)[1].item(), abs=CLOSE)


# --- what is computed only once ------------------------------------------------------------------


async def test_a_conversation_goes_on_where_its_last_reply_ended() -> None:
    reference, prompt = tiny(attention="eager"), prompt_of(1, 30)
    async with drawing(tiny(), slots=3) as engine:
        for turn in range(4):
            before = engine.prefilled_tokens
            drawn = await engine.sample(prompt, draw(turn, 8))
            assert_plain(reference, prompt, drawn)
            # the last drawn token has no keys yet, and the five after it are new
            assert engine.prefilled_tokens - before == (30 if turn == 0 else 6)
            prompt = [*prompt, *drawn.ids, *prompt_of(turn + 50, 5)]


async def test_conversations_that_take_turns_each_keep_their_slot() -> None:
    reference = tiny(attention="eager")
    talks = [prompt_of(number, 20) for number in range(4)]
    async with drawing(tiny(), slots=4) as engine:
        for turn in range(3):
            drawn = await asyncio.gather(
                *(engine.sample(talk, draw(turn + 9 * at, 4)) for at, talk in enumerate(talks))
            )
            for at, each in enumerate(drawn):
                assert_plain(reference, talks[at], each)
                talks[at] = [*talks[at], *each.ids, *prompt_of(turn + at, 3)]
        assert engine.prefilled_tokens == 4 * 20 + 2 * 4 * 4


async def test_a_group_computes_its_prompt_once() -> None:
    model, prompt = tiny(), prompt_of(1, 40)
    async with drawing(model, slots=8) as engine:
        drawn = await asyncio.gather(*(engine.sample(prompt, draw(n, 10)) for n in range(8)))
        assert engine.prefilled_tokens == 40 + 7  # each has to compute the last token itself
        assert engine.shared_tokens == 7 * 39
    assert len({each.ids for each in drawn}) == 8
    reference = tiny(attention="eager")
    for each in drawn:
        assert_plain(reference, prompt, each)


async def test_prompts_with_one_opening_compute_the_opening_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a step does not hold all of the opening."""
    monkeypatch.setattr(engine_torch, "STEP_TOKENS", 13)
    opening = prompt_of(1, 50)
    prompts = [[*opening, number, *prompt_of(number, 20)] for number in range(4)]
    async with drawing(tiny(), slots=8) as engine:
        drawn = await asyncio.gather(*(engine.sample(each, draw(1, 5)) for each in prompts * 2))
        assert engine.prefilled_tokens == 50 + 4 * 21 + 4
    reference = tiny(attention="eager")
    for prompt, each in zip(prompts * 2, drawn, strict=True):
        assert_plain(reference, prompt, each)


async def test_a_new_conversation_does_not_take_the_slot_of_one_that_goes_on() -> None:
    opening = prompt_of(1, 30)
    async with drawing(tiny(), slots=2) as engine:
        first = [*opening, 1, 2, 3]
        drawn = await engine.sample(first, draw(1, 4))
        await engine.sample([*opening, 4, 5], draw(2, 4))
        before = engine.prefilled_tokens
        await engine.sample([*first, *drawn.ids, 7], draw(3, 4))
        assert engine.prefilled_tokens - before == 2


# --- weights that change -------------------------------------------------------------------------


def shaken(model: Any) -> None:
    torch.manual_seed(8)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn_like(each) * 0.1)


async def test_an_update_forgets_what_old_weights_made() -> None:
    model, reference, prompt = tiny(), tiny(attention="eager"), prompt_of(1, 30)
    async with drawing(model) as engine:
        assert_plain(reference, prompt, await engine.sample(prompt, draw(1)))
        with engine.updating():
            shaken(model)
        shaken(reference)
        before = engine.prefilled_tokens
        assert_plain(reference, prompt, await engine.sample(prompt, draw(1)))
        assert engine.prefilled_tokens - before == 30


async def test_an_update_that_fails_midway_forgets_too() -> None:
    model, reference, prompt = tiny(), tiny(attention="eager"), prompt_of(1, 30)
    async with drawing(model) as engine:
        await engine.sample(prompt, draw(1))
        with suppress(RuntimeError), engine.updating():
            shaken(model)
            raise RuntimeError("no more memory")
        shaken(reference)
        assert_plain(reference, prompt, await engine.sample(prompt, draw(1)))


async def test_nobody_goes_on_from_a_reply_that_was_under_way_at_an_update() -> None:
    model, reference, prompt = tiny(), tiny(attention="eager"), prompt_of(1, 30)
    endless = Draw(100, frozenset(), seed=1)
    async with drawing(model, slots=3) as engine:
        under_way = asyncio.create_task(engine.sample(prompt, endless))
        assert await comes_true(lambda: engine.decoded_tokens >= 5, every_s=0.001)
        with engine.updating():
            assert not under_way.done()
            shaken(model)
        shaken(reference)
        beside = await engine.sample(prompt, draw(2))  # while the old reply still runs
        assert_plain(reference, prompt, beside)
        drawn = await under_way
        longer = [*prompt, *drawn.ids, 1, 2]
        assert_plain(reference, longer, await engine.sample(longer, draw(3)))


async def test_updates_and_draws_take_turns() -> None:
    """An update does not wait for all that is asked, nor do draws wait for all updates."""
    async with drawing(tiny(), slots=2) as engine:
        waits: list[int] = []
        stop = threading.Event()

        def update() -> None:
            while not stop.is_set():
                before = engine.steps
                with engine.updating():
                    waits.append(engine.steps - before)

        thread = threading.Thread(target=update)
        thread.start()
        try:
            endless = Draw(100, frozenset(), seed=1)
            await asyncio.gather(*(engine.sample([1, 2], endless) for _ in range(4)))
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
    assert max(waits) < 20  # of 200 steps; between asking for a turn and getting it there are few


# --- what goes wrong -----------------------------------------------------------------------------


async def test_a_cancelled_request_frees_its_slot() -> None:
    endless = Draw(150, frozenset(), seed=1)
    async with drawing(tiny(), slots=1) as engine:
        first = asyncio.create_task(engine.sample([1, 2, 3], endless))
        await until_busy(engine)
        second = asyncio.create_task(engine.sample([4, 5], endless))  # waits, and is cancelled too
        await asyncio.sleep(0)
        third = asyncio.create_task(engine.sample([1, 2, 3], draw(1, 5)))
        first.cancel()
        second.cancel()
        drawn = await third
        assert engine.decoded_tokens < 140
        assert first.cancelled()
        assert second.cancelled()
    assert_plain(tiny(attention="eager"), [1, 2, 3], drawn)


async def test_those_who_waited_for_a_cancelled_prompt_compute_it_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_torch, "STEP_TOKENS", 1)
    prompt = prompt_of(3, 60)
    async with drawing(tiny()) as engine:
        leader = asyncio.create_task(engine.sample(prompt, draw(1, 5)))
        assert await comes_true(lambda: engine.prefilled_tokens > 0, every_s=0.001)
        followers = [asyncio.create_task(engine.sample(prompt, draw(n, 5))) for n in (2, 3)]
        await asyncio.sleep(0.005)
        leader.cancel()
        drawn = await asyncio.gather(*followers)
    reference = tiny(attention="eager")
    for each in drawn:
        assert_plain(reference, prompt, each)


async def test_a_context_that_would_overflow_is_refused_at_once() -> None:
    async with drawing(tiny(), context=32) as engine:
        with pytest.raises(ContextOverflow, match=r"prompt 20 .* reply 13 .* context of 32"):
            await engine.sample(prompt_of(1, 20), draw(1, 13))
        full = await engine.sample(prompt_of(1, 20), Draw(12, frozenset(), seed=1))
        assert len(full.ids) == 12


@pytest.mark.parametrize(("prompt", "tokens"), [([], 5), ([1], 0)])
async def test_a_draw_of_nothing_is_refused(prompt: list[int], tokens: int) -> None:
    async with drawing(tiny()) as engine:
        with pytest.raises(ModelError, match="needs a prompt"):
            await engine.sample(prompt, draw(1, tokens))


async def test_a_fault_of_the_model_is_told_to_who_waits_and_the_engine_goes_on() -> None:
    model, reference = tiny(), tiny(attention="eager")
    broken = threading.Event()

    def hook(*_: Any) -> None:
        if broken.is_set():
            raise RuntimeError("out of memory")

    model.model.layers[1].register_forward_pre_hook(hook)
    prompts = [prompt_of(number, 12) for number in range(6)]
    endless = Draw(100, frozenset(), seed=1)
    async with drawing(model, slots=2) as engine:
        asked = [asyncio.create_task(engine.sample(each, endless)) for each in prompts]
        await until_busy(engine)
        broken.set()
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        broken.clear()
        for each in done:
            with pytest.raises(ModelError, match="RuntimeError: out of memory"):
                each.result()
        await asyncio.gather(*waiting, return_exceptions=True)
        for prompt in prompts:
            assert_plain(reference, prompt, await engine.sample(prompt, draw(1)))


async def test_closing_while_busy_answers_everybody() -> None:
    endless = Draw(150, frozenset(), seed=1)
    engine = TorchEngine(tiny(), slots=1, context_tokens=CONTEXT)
    asked = [asyncio.create_task(engine.sample([1, 2], endless)) for _ in range(3)]
    await until_busy(engine)
    await engine.close()
    for each in asked:
        with pytest.raises(ModelError, match="closed"):
            await each
    with pytest.raises(ModelError, match="closed"):
        await engine.sample([1], draw(1))
    await engine.close()


async def test_two_event_loops_may_ask_one_engine() -> None:
    async with drawing(tiny()) as engine:
        here = asyncio.create_task(engine.sample([1, 2, 3], draw(1)))
        there = await asyncio.to_thread(lambda: asyncio.run(engine.sample([1, 2, 3], draw(1))))
        assert (await here).ids == there.ids


def test_models_whose_attention_is_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="caps what its attention adds up"):
        tiny("gemma2", layer_types=["full_attention"] * 2)
    short = tiny("mistral", sliding_window=64)
    with pytest.raises(ConfigError, match="looks back 64 tokens"):
        TorchEngine(short, slots=1, context_tokens=65)


async def test_a_window_that_holds_the_whole_context_is_no_window() -> None:
    prompt = prompt_of(1, 40)
    async with drawing(tiny("mistral", sliding_window=64), context=64) as engine:
        drawn = await engine.sample(prompt, draw(1))
    assert_plain(tiny("mistral", sliding_window=64, attention="eager"), prompt, drawn)


@pytest.mark.parametrize(
    ("slots", "window"),
    [([], None), ([3], slice(3, 4)), ([0, 2], slice(0, 3)), ([0, 3], None), ([1, 2, 5], None)],
)
def test_single_tokens_look_at_a_run_of_slots_that_is_mostly_theirs(
    slots: list[int], window: slice | None
) -> None:
    assert engine_torch._window(slots) == window
