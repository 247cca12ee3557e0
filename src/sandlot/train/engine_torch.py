"""Drawing tokens in this process: transformers models, batched as requests come.

All tokens of a step, one of each reply under way and the new ones of each prompt, go through the
model as one packed sequence, so that the weights are read once a step and nothing is padded. Only
attention knows which tokens belong together: it is handed in through the library's attention
interface, keeps keys and values in slots of its own, and lets a prompt begin with what any slot
already holds. A group's prompt is therefore computed once, and a conversation goes on where its
last reply ended.
"""

from __future__ import annotations

import asyncio
import math
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.train.base import Draw, Drawn
from sandlot.train.objective import head_of

ATTENTION = "sandlot_slots"
STEP_TOKENS = 1024
"""Most tokens of prompts in one step: bounds memory, and how long a reply under way waits."""
WORTH_WAITING = 16
"""So many tokens are rather copied a step later than computed a second time."""


# --- attention over slots --------------------------------------------------------------------


@dataclass(slots=True)
class _Piece:
    """Tokens `start..start+count` of one slot's sequence, new in this step."""

    slot: int
    start: int
    count: int


@dataclass(slots=True)
class _Step:
    """What attention needs to know of a packed step; first the single tokens, then the prompts."""

    cache: _Cache
    slots: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    singles: torch.Tensor  # [singles], slots of the replies under way
    window: slice | None  # the run of slots in which they lie, where it has few others
    longest: int
    seen: torch.Tensor  # [singles or slots of the window, 1, 1, longest], True where a key is seen
    pieces: list[_Piece]


@dataclass(slots=True)
class _Cache:
    """Keys and values, [slots, heads, tokens, width] a layer, made when a layer is first used."""

    slots: int
    tokens: int
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def layer(self, index: int, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in self.layers:
            shape = (self.slots, key.shape[1], self.tokens, key.shape[-1])
            self.layers[index] = (key.new_zeros(shape), key.new_zeros(shape))
        return self.layers[index]

    def copy(self, source: int, target: int, tokens: int) -> None:
        for keys, values in self.layers.values():
            keys[target, :, :tokens] = keys[source, :, :tokens]
            values[target, :, :tokens] = values[source, :, :tokens]


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    step: _Step | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention: over the slots of a packed step, or over plain rows where there is none.

    Rows padded at their right end need no mask: no real token looks to its right.
    """
    if s_aux is not None:
        raise ConfigError("attention with sinks is not known here")
    if step is None:
        grouped = query.shape[1] != key.shape[1]
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        return out.transpose(1, 2), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys, values = step.cache.layer(module.layer_idx, key)
    keys[step.slots, :, step.positions] = key[0].transpose(0, 1)
    values[step.slots, :, step.positions] = value[0].transpose(0, 1)
    singles = len(step.singles)
    parts = []
    if singles:
        parts.append(_singles(query[0, :, :singles], keys, values, scale, step))
    at = singles
    for piece in step.pieces:
        parts.append(_piece(query[:, :, at : at + piece.count], keys, values, scale, piece))
        at += piece.count
    return torch.cat(parts).unsqueeze(0), None


def _singles(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, step: _Step
) -> torch.Tensor:
    """[heads, singles, width] to [singles, heads, width]: each looks at its own slot's past.

    To gather the past of some slots copies it; to look also at the slots between them does not.
    """
    heads, count, width = query.shape
    groups = keys.shape[1]
    # The heads that share keys stand as queries of one head, so nothing is repeated or copied.
    asked = query.transpose(0, 1).reshape(count, groups, heads // groups, width)
    chosen: Any = step.singles
    spread = step.window is not None and step.window.stop - step.window.start > count
    if step.window is not None:
        chosen, at = step.window, step.singles - step.window.start
    if spread:
        wider = asked.new_zeros((len(step.seen), *asked.shape[1:]))
        asked = wider.index_copy_(0, at, asked)
    out = functional.scaled_dot_product_attention(
        asked,
        keys[chosen, :, : step.longest],
        values[chosen, :, : step.longest],
        attn_mask=step.seen,
        scale=scale,
    )
    return (out[at] if spread else out).reshape(count, heads, width)


def _piece(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, piece: _Piece
) -> torch.Tensor:
    """[1, heads, tokens, width] to [tokens, heads, width]: a prompt's new tokens over its past."""
    end = piece.start + piece.count
    rows = torch.arange(piece.start, end, device=query.device).unsqueeze(1)
    seen = torch.arange(end, device=query.device).unsqueeze(0) <= rows
    out = functional.scaled_dot_product_attention(
        query,
        keys[piece.slot : piece.slot + 1, :, :end],
        values[piece.slot : piece.slot + 1, :, :end],
        attn_mask=seen,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    return out[0].transpose(0, 1)


def use_slots(model: Any) -> None:
    """Let a transformers model attend through slots (and plainly where no step is handed in).

    Raises:
        ConfigError: a model whose attention is of another kind, which would be another model here.
    """
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise ConfigError(
            f"{config.model_type} caps what its attention adds up, which is not known"
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if odd := sorted(kinds - {"sliding_attention"}):
        raise ConfigError(f"{config.model_type} has layers of a kind not known here: {odd[0]}")
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    model.set_attn_implementation(ATTENTION)


# --- requests --------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Request:
    prompt: list[int]
    draw: Draw
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Drawn]
    random: random.Random
    slot: int = -1
    done: int = 0  # tokens of the prompt that are in the slot
    leader: _Request | None = None  # computes what this one then copies: `reach` tokens of its own
    reach: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.done == len(self.prompt)

    def answer(self, finish: Literal["stop", "length"]) -> None:
        drawn = Drawn(tuple(self.ids), tuple(self.logprobs), finish)
        self._tell(lambda: self.future.set_result(drawn))

    def fail(self, error: BaseException) -> None:
        self._tell(lambda: self.future.set_exception(error))

    def _tell(self, say: Any) -> None:
        def if_heard() -> None:
            if not self.future.done():
                say()

        try:
            self.loop.call_soon_threadsafe(if_heard)
        except RuntimeError:  # its loop has ended: nobody waits any more
            return


@dataclass(slots=True)
class _Slot:
    ids: list[int] = field(default_factory=list)  # whose keys and values it holds
    busy: bool = False
    stale: bool = False  # some of them were made by weights that have changed since
    used: int = 0  # when, in steps

    def free(self, when: int) -> None:
        """It keeps what it holds, for whoever goes on from there."""
        self.busy, self.used = False, when
        if self.stale:
            self.forget()

    def forget(self) -> None:
        self.ids, self.stale = [], False


class _Turns:
    """A lock that is had in the order of asking, so that neither draws nor updates starve."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._tickets = self._tickets, self._tickets + 1
            while self._serving != mine:
                self._changed.wait()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


class TorchEngine:
    """Draws from a transformers causal language model, on its device.

    Args:
        model: with `use_slots` applied; adapters may be on it. It is only read here, and never
            while `updating` holds.
        slots: how many replies can be under way at once; further requests wait.
        context_tokens: room of one conversation.
        threads: for torch, process-wide; None leaves it.

    The draws of a request depend on its seed and its tokens, not on what runs beside it, up to the
    rounding of sums whose shape the batch decides. `busy_s` sums the seconds of its steps.

    Raises:
        ConfigError: a model that forgets what lies further back than `context_tokens`.
    """

    def __init__(
        self, model: Any, *, slots: int, context_tokens: int, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.context_tokens = context_tokens
        self.decoded_tokens = self.prefilled_tokens = self.shared_tokens = self.steps = 0
        self.busy_s = 0.0
        _check_window(model, context_tokens)
        self._core = _core_of(model)
        self._head = head_of(model)
        self._device = next(model.parameters()).device
        self._cache = _Cache(slots, context_tokens)
        self._slots = [_Slot() for _ in range(slots)]
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._weights = _Turns()
        self._thread = threading.Thread(target=self._work, name="sandlot-draws", daemon=True)
        self._closed = False
        self._thread.start()

    async def sample(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        if self._closed:
            raise ModelError("the engine is closed")
        if not prompt or draw.max_tokens < 1:
            raise ModelError("a draw needs a prompt, and room for a token")
        if len(prompt) + draw.max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"prompt {len(prompt):,} + reply {draw.max_tokens:,} tokens; "
                f"the policy was given a context of {self.context_tokens:,}"
            )
        loop = asyncio.get_running_loop()
        request = _Request(list(prompt), draw, loop, loop.create_future(), random.Random(draw.seed))
        self._inbox.put(request)
        return await request.future

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Hold this while weights change; what slots hold of the old ones is forgotten.

        Replies under way go on after it with what they hold; nobody else goes on from that.
        """
        with self._weights:
            try:
                yield
            finally:
                for slot in self._slots:
                    if slot.busy:
                        slot.stale = True
                    else:
                        slot.forget()

    async def close(self) -> None:
        """Replies under way and requests that wait get a `ModelError`."""
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    # The worker.

    def _work(self) -> None:
        waiting: list[_Request] = []
        active: list[_Request] = []
        while self._take(waiting, block=not waiting and not active):
            try:
                with self._weights, torch.inference_mode():
                    began = time.perf_counter()
                    self._admit(waiting, active)
                    self._step(active)
                    self.busy_s += time.perf_counter() - began
            except Exception as error:  # noqa: BLE001 - any fault of the model, told to who waits
                self._give_up(active, error)
        self._take(waiting, block=False)  # what was asked after the close
        for request in (*waiting, *active):
            request.fail(ModelError("the engine was closed"))

    def _take(self, waiting: list[_Request], *, block: bool) -> bool:
        """Fetch what has come in. False where the engine was closed."""
        while True:
            try:
                request = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if request is None:
                return False
            waiting.append(request)
            block = False

    def _give_up(self, active: list[_Request], error: Exception) -> None:
        """Tell whom a fault of the model hit; nothing that it left behind is used again."""
        for request in active:
            if request.slot >= 0:
                slot = self._slots[request.slot]
                slot.busy = False
                slot.forget()
            failure = ModelError(f"drawing failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            request.fail(failure)
        active.clear()

    def _admit(self, waiting: list[_Request], active: list[_Request]) -> None:
        """Give free slots to those who wait, in the order in which they came."""
        while waiting:
            free = [index for index, slot in enumerate(self._slots) if not slot.busy]
            if not free:
                return
            request = waiting.pop(0)
            if request.future.cancelled():
                continue
            active.append(request)
            self._place(request, free)
            self._follow(request, active)

    def _place(self, request: _Request, free: list[int]) -> None:
        """Its own conversation's slot, else the one that was idle longest: what another holds is
        copied, for its conversation may go on.
        """
        own = [index for index in free if self._goes_on(index, request)]
        if own:
            best = max(own, key=lambda index: len(self._slots[index].ids))
        else:
            best = min(free, key=lambda index: (self._slots[index].used, index))
        last = len(request.prompt) - 1  # the last token is always computed: it gives the draw
        slot = self._slots[best]
        request.slot, request.done = best, min(_common(slot.ids, request.prompt), last)
        slot.busy = True
        self.shared_tokens += request.done
        slot.ids = request.prompt[: request.done]
        self._copy_more(request)

    def _goes_on(self, index: int, request: _Request) -> bool:
        held = self._slots[index].ids
        return bool(held) and request.prompt[: len(held)] == held

    def _copy_more(self, request: _Request) -> None:
        """Copy what any slot holds of its prompt beyond what its own does."""
        last = len(request.prompt) - 1
        more, donor = max(
            (0 if slot.stale else min(_common(slot.ids, request.prompt), last), index)
            for index, slot in enumerate(self._slots)
        )
        if more > request.done:
            self._cache.copy(donor, request.slot, more)
            self.shared_tokens += more - request.done
            request.done = more
            self._slots[request.slot].ids = request.prompt[:more]

    def _follow(self, request: _Request, active: list[_Request]) -> None:
        """Wait for whoever is about to compute much of its prompt, as others of its group are."""
        last = len(request.prompt) - 1
        best = request.done + WORTH_WAITING - 1
        for other in active:
            if other is not request and not other.ready and not self._slots[other.slot].stale:
                reach = min(_common(other.prompt, request.prompt), last)
                if reach > best:
                    best = request.reach = reach
                    request.leader = other

    def _step(self, active: list[_Request]) -> None:
        """One packed pass: the next token of each reply, and the next piece of each prompt."""
        self._catch_up(active)
        singles = sorted((each for each in active if each.ids), key=lambda each: each.slot)
        prompts = self._pieces(active)
        tokens = [each.ids[-1] for each in singles]
        places = [(each.slot, len(each.prompt) + len(each.ids) - 1) for each in singles]
        for request, piece in prompts:
            tokens += request.prompt[piece.start : piece.start + piece.count]
            places += [(piece.slot, piece.start + at) for at in range(piece.count)]
        if not tokens:
            return
        hidden = self._forward(tokens, places, len(singles), [piece for _, piece in prompts])
        ends, at = [*range(len(singles))], len(singles)
        drawing = list(singles)
        for request, piece in prompts:
            at += piece.count
            request.done += piece.count
            self._slots[request.slot].ids = request.prompt[: request.done]
            if request.ready:
                ends.append(at - 1)
                drawing.append(request)
        for each in singles:
            self._slots[each.slot].ids.append(each.ids[-1])
        self.steps += 1
        self.decoded_tokens += len(singles)
        self.prefilled_tokens += len(tokens) - len(singles)
        if drawing:
            self._draw(drawing, hidden[ends])
        self._let_go(active)

    def _catch_up(self, active: list[_Request]) -> None:
        """Those who waited for another's prompt go on once it is computed, or will not be."""
        for request in active:
            leader = request.leader
            if leader is None:
                continue
            gone = leader not in active or self._slots[leader.slot].stale
            if gone or leader.done >= request.reach:
                request.leader = None
                self._copy_more(request)

    def _pieces(self, active: list[_Request]) -> list[tuple[_Request, _Piece]]:
        room, found = STEP_TOKENS, []
        for request in active:
            left = len(request.prompt) - request.done
            if left and request.leader is None and room:
                count = min(left, room)
                room -= count
                found.append((request, _Piece(request.slot, request.done, count)))
        return found

    def _forward(
        self, tokens: list[int], places: list[tuple[int, int]], singles: int, pieces: list[_Piece]
    ) -> torch.Tensor:
        """Hidden states after the last layer, [tokens, width]; the first are of single tokens."""
        device = self._device
        slots = torch.tensor([slot for slot, _ in places], device=device)
        positions = torch.tensor([position for _, position in places], device=device)
        ends = positions[:singles]
        window = _window([slot for slot, _ in places[:singles]])
        if window is not None:
            rows = ends.new_zeros(window.stop - window.start)
            ends = rows.index_copy_(0, slots[:singles] - window.start, ends)
        longest = int(ends.max()) + 1 if singles else 0
        seen = torch.arange(longest, device=device).unsqueeze(0) <= ends.unsqueeze(1)
        step = _Step(
            cache=self._cache,
            slots=slots,
            positions=positions,
            singles=slots[:singles],
            window=window,
            longest=longest,
            seen=seen[:, None, None, :],
            pieces=pieces,
        )
        out = self._core(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            step=step,
        )
        states: torch.Tensor = out.last_hidden_state[0]
        return states

    def _draw(self, drawing: list[_Request], hidden: torch.Tensor) -> None:
        logits = self._head(hidden).float()
        chosen, logprobs = draw_tokens(
            logits,
            [each.draw for each in drawing],
            [each.random.random() for each in drawing],
        )
        for request, token, logprob in zip(drawing, chosen, logprobs, strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)

    def _let_go(self, active: list[_Request]) -> None:
        """Answer what is finished and free its slot, which keeps what it holds."""
        for request in list(active):
            stopped = bool(request.ids) and request.ids[-1] in request.draw.stop_ids
            full = len(request.ids) >= request.draw.max_tokens
            if stopped or full or request.future.cancelled():
                active.remove(request)
                self._slots[request.slot].free(self.steps)
                request.answer("stop" if stopped else "length")


def _window(slots: list[int]) -> slice | None:
    """The run of slots in which these (in order) lie, if at least two thirds of it are these."""
    if not slots or 2 * (slots[-1] + 1 - slots[0]) > 3 * len(slots):
        return None
    return slice(slots[0], slots[-1] + 1)


def draw_tokens(
    logits: torch.Tensor, draws: Sequence[Draw], uniforms: Sequence[float]
) -> tuple[list[int], list[float]]:
    """One token a row and its log probability under the distribution that it was drawn from.

    Args:
        logits: [rows, vocabulary], float32.
        draws: temperature, top-k and top-p of each row.
        uniforms: a number in [0, 1) for each row; the draw inverts the cumulative distribution.
    """
    temperatures = torch.tensor([each.temperature for each in draws], device=logits.device)
    scaled = logits / torch.where(temperatures > 0, temperatures, 1.0).unsqueeze(1)
    for row, each in enumerate(draws):
        if each.temperature > 0 and (each.top_k or each.top_p < 1):
            scaled[row] = _kept(scaled[row], each)
    logprobs = scaled.log_softmax(-1)
    total = logprobs.exp().cumsum(-1)
    points = torch.tensor(uniforms, device=logits.device).unsqueeze(1) * total[:, -1:]
    # Rounding may lift a point to the whole; nothing lies there, and what was cut away comes last.
    points = points.minimum(torch.nextafter(total[:, -1:], total.new_zeros(())))
    drawn = torch.searchsorted(total, points, right=True).squeeze(1)
    chosen = torch.where(temperatures > 0, drawn, logits.argmax(-1))
    taken = logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)
    return chosen.tolist(), taken.tolist()


def _kept(scores: torch.Tensor, draw: Draw) -> torch.Tensor:
    """One row of scaled logits with all but the top k, and of those the top p, cut away."""
    ordered, order = scores.sort(descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if draw.top_k:
        keep[draw.top_k :] = False
        ordered = ordered.masked_fill(~keep, -math.inf)
    if draw.top_p < 1:
        chances = ordered.softmax(-1)
        keep &= chances.cumsum(-1) - chances < draw.top_p
        keep[0] = True
    cut = torch.full_like(scores, -math.inf)
    cut[order[keep]] = scores[order[keep]]
    return cut


def _common(held: list[int], wanted: list[int]) -> int:
    """How many tokens two sequences share from their beginning."""
    most = min(len(held), len(wanted))
    if held[:most] == wanted[:most]:
        return most
    low, high = 0, most  # held[:low] agrees, held[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if held[low:middle] == wanted[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _check_window(model: Any, context_tokens: int) -> None:
    config = model.config.get_text_config()
    sliding = "sliding_attention" in (
        getattr(config, "layer_types", None) or ("sliding_attention",)
    )
    window = getattr(config, "sliding_window", None)
    if sliding and window is not None and window < context_tokens:
        raise ConfigError(
            f"{config.model_type} looks back {window:,} tokens at most, which is not known here; "
            f"engine.context_tokens is {context_tokens:,}: lower it, or take another model"
        )


def _core_of(model: Any) -> Any:
    """The layers without the head; adapters sit inside of them."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(whole, whole.base_model_prefix)
