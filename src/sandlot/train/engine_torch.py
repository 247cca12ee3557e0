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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from sandlot.core.errors import ContextOverflow, ModelError
from sandlot.train.base import Draw, Drawn

ATTENTION = "sandlot_slots"
STEP_TOKENS = 1024
"""Most tokens of prompts in one step: bounds memory, and how long a reply under way waits."""


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
    whole: bool  # the singles are the slots 0..n-1, in order
    longest: int
    seen: torch.Tensor  # [singles, 1, 1, longest], True where a key may be looked at
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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention: over the slots of a packed step, or over plain rows where there is none.

    Rows padded at their right end need no mask: no real token looks to its right.
    """
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
    """[heads, singles, width] to [singles, heads, width]: each looks at its own slot's past."""
    heads, count, width = query.shape
    groups = keys.shape[1]
    if step.whole:
        past_keys, past_values = keys[:count, :, : step.longest], values[:count, :, : step.longest]
    else:
        past_keys = keys[step.singles, :, : step.longest]
        past_values = values[step.singles, :, : step.longest]
    # The heads that share keys stand as queries of one head, so nothing is repeated or copied.
    asked = query.transpose(0, 1).reshape(count, groups, heads // groups, width)
    out = functional.scaled_dot_product_attention(
        asked, past_keys, past_values, attn_mask=step.seen, scale=scale
    )
    return out.reshape(count, heads, width)


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
    """Let a transformers model attend through slots (and plainly where no step is handed in)."""
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
    model.set_attn_implementation(ATTENTION)


# --- requests --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Request:
    prompt: list[int]
    draw: Draw
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Drawn]
    random: random.Random
    slot: int = -1
    done: int = 0  # tokens of the prompt that are in the slot
    twin: _Request | None = None  # computes the same prompt; this one copies it
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
    used: int = 0  # when, in steps


class TorchEngine:
    """Draws from a transformers causal language model, on its device.

    Args:
        model: with `use_slots` applied; adapters may be on it. It is only read here, and never
            while `updating` holds.
        slots: how many replies can be under way at once; further requests wait.
        context_tokens: room of one conversation.
        threads: for torch, process-wide; None leaves it.

    The draws of a request depend on its seed and its tokens, not on what runs beside it, up to the
    rounding of sums whose shape the batch decides.
    """

    def __init__(
        self, model: Any, *, slots: int, context_tokens: int, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.context_tokens = context_tokens
        self.decoded_tokens = self.prefilled_tokens = self.shared_tokens = self.steps = 0
        self.busy_s = 0.0
        self._model = model
        self._core = _core_of(model)
        self._head = model.get_output_embeddings()
        self._device = next(model.parameters()).device
        self._cache = _Cache(slots, context_tokens)
        self._slots = [_Slot() for _ in range(slots)]
        self._inbox: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._weights = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="sandlot-draws", daemon=True)
        self._closed = False
        self._thread.start()

    async def sample(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        if self._closed:
            raise ModelError("the engine is closed")
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
        """Hold this while weights change; what slots hold of the old ones is forgotten."""
        with self._weights:
            yield
            for slot in self._slots:
                if not slot.busy:
                    slot.ids = []

    async def close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    # The worker.

    def _work(self) -> None:
        waiting: list[_Request] = []
        active: list[_Request] = []
        while True:
            idle = not waiting and not active
            if not self._take(waiting, block=idle):
                for request in (*waiting, *active):
                    request.fail(ModelError("the engine was closed"))
                return
            try:
                with self._weights, torch.inference_mode():
                    self._admit(waiting, active)
                    self._step(active)
            except Exception as error:  # noqa: BLE001 - any fault of the model, told to who waits
                for request in active:
                    self._slots[request.slot].ids, self._slots[request.slot].busy = [], False
                    failure = ModelError(f"drawing failed: {type(error).__name__}: {error}")
                    failure.__cause__ = error
                    request.fail(failure)
                active.clear()

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

    def _admit(self, waiting: list[_Request], active: list[_Request]) -> None:
        """Give free slots to those who wait, each the slot that holds most of its prompt."""
        leaders = {tuple(request.prompt): request for request in active if not request.ids}
        while waiting:
            request = waiting[0]
            if request.future.cancelled():
                waiting.pop(0)
                continue
            free = [index for index, slot in enumerate(self._slots) if not slot.busy]
            if not free:
                return
            waiting.pop(0)
            self._place(request, free)
            leader = leaders.setdefault(tuple(request.prompt), request)
            if leader is not request and request.done < _reach(leader):
                request.twin = leader
            active.append(request)

    def _place(self, request: _Request, free: list[int]) -> None:
        """Its own conversation's slot, else the one that was idle longest: what another holds is
        copied, for its conversation may go on.
        """
        last = len(request.prompt) - 1  # the last token is always computed: it gives the draw
        own = [index for index in free if self._slots[index].ids and self._goes_on(index, request)]
        if own:
            best = max(own, key=lambda index: len(self._slots[index].ids))
        else:
            best = min(free, key=lambda index: (self._slots[index].used, index))
        slot = self._slots[best]
        common = min(_common(slot.ids, request.prompt), last)
        donor, more = self._donor(request.prompt, last)
        if more > common:
            self._cache.copy(donor, best, more)
            common = more
        self.shared_tokens += common
        slot.ids, slot.busy = request.prompt[:common], True
        request.slot, request.done = best, common

    def _goes_on(self, index: int, request: _Request) -> bool:
        held = self._slots[index].ids
        return request.prompt[: len(held)] == held

    def _donor(self, prompt: list[int], last: int) -> tuple[int, int]:
        found = [
            (min(_common(slot.ids, prompt), last), index) for index, slot in enumerate(self._slots)
        ]
        more, donor = max(found)
        return donor, more

    def _step(self, active: list[_Request]) -> None:
        """One packed pass: the next token of each reply, and the next piece of each prompt."""
        self._copy_twins(active)
        singles = sorted((each for each in active if each.ids), key=lambda each: each.slot)
        prompts = self._pieces(active)
        tokens = [each.ids[-1] for each in singles]
        places = [(each.slot, len(each.prompt) + len(each.ids) - 1) for each in singles]
        for request, piece in prompts:
            tokens += request.prompt[piece.start : piece.start + piece.count]
            places += [(piece.slot, piece.start + at) for at in range(piece.count)]
        if not tokens:
            return
        hidden = self._forward(tokens, places, singles, [piece for _, piece in prompts])
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

    def _copy_twins(self, active: list[_Request]) -> None:
        for request in active:
            twin = request.twin
            if twin is None:
                continue
            ready = min(twin.done, len(request.prompt) - 1)
            if twin.ready or twin not in active:
                if ready > request.done and twin in active:
                    self._cache.copy(twin.slot, request.slot, ready)
                    self.shared_tokens += ready - request.done
                    request.done = ready
                    self._slots[request.slot].ids = request.prompt[:ready]
                request.twin = None

    def _pieces(self, active: list[_Request]) -> list[tuple[_Request, _Piece]]:
        room, found = STEP_TOKENS, []
        for request in active:
            left = len(request.prompt) - request.done
            if left and request.twin is None and room:
                count = min(left, room)
                room -= count
                found.append((request, _Piece(request.slot, request.done, count)))
        return found

    def _forward(
        self,
        tokens: list[int],
        places: list[tuple[int, int]],
        singles: list[_Request],
        pieces: list[_Piece],
    ) -> torch.Tensor:
        """Hidden states after the last layer, [tokens, width]."""
        device, count = self._device, len(singles)
        slots = torch.tensor([slot for slot, _ in places], device=device)
        positions = torch.tensor([position for _, position in places], device=device)
        ends = positions[:count]
        longest = int(ends.max()) + 1 if count else 0
        seen = torch.arange(longest, device=device).unsqueeze(0) <= ends.unsqueeze(1)
        step = _Step(
            cache=self._cache,
            slots=slots,
            positions=positions,
            singles=slots[:count],
            whole=all(each.slot == at for at, each in enumerate(singles)),
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
            if not (stopped or len(request.ids) >= request.draw.max_tokens or self._gone(request)):
                continue
            active.remove(request)
            slot = self._slots[request.slot]
            slot.busy, slot.used = False, self.steps
            request.answer("stop" if stopped else "length")

    @staticmethod
    def _gone(request: _Request) -> bool:
        return request.future.cancelled()


def _reach(leader: _Request) -> int:
    """How much of its prompt a request will have brought into its slot."""
    return len(leader.prompt) - 1


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
    drawn = torch.searchsorted(total, points, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    chosen = torch.where(temperatures > 0, drawn, logits.argmax(-1))
    taken = logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)
    return chosen.tolist(), taken.tolist()


def _kept(scores: torch.Tensor, draw: Draw) -> torch.Tensor:
    """One row of scaled logits with all but the top k and the top p cut away."""
    ordered, order = scores.sort(descending=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if draw.top_k:
        keep[draw.top_k :] = False
    if draw.top_p < 1:
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        keep &= before < draw.top_p
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


def _core_of(model: Any) -> Any:
    """The layers without the head; adapters sit inside of them."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(whole, whole.base_model_prefix)
