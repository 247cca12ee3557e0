"""Drawing tokens on a vLLM or SGLang server, by token ids over HTTP; and giving it new weights.

Ids go out and ids come back, so nothing is put into text in between. Written after the servers'
sources and documentation and tested against `train.fake_server`, which speaks both wire formats;
not run against a real server.

What the server must be started with:

    vLLM     --logprobs-mode processed_logprobs, for draws at another temperature than 1 or from a
             part of the vocabulary. Adapters: --enable-lora --max-lora-rank N, and the variable
             VLLM_ALLOW_RUNTIME_LORA_UPDATING=1. Whole weights: VLLM_SERVER_DEV_MODE=1.
    SGLang   nothing for whole weights; adapters: --enable-lora --max-lora-rank N
             --lora-target-modules …. SGLANG_RETURN_ORIGINAL_LOGPROB must not be set. It heeds
             a draw's seed only with --enable-deterministic-inference.

Sources: vLLM, entrypoints/openai/completion/protocol.py, entrypoints/serve (lora, dev/rpc) and
`reload_weights` of v1/worker/gpu_model_runner.py, which must know `weights_path`;
SGLang, srt/managers/io_struct.py (GenerateReqInput, UpdateWeightFromDiskReqInput).
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import anyio

from sandlot.core.errors import ConfigError, ContextOverflow, ModelError
from sandlot.core.types import JsonObject
from sandlot.models.refusals import Endpoint, Refusal, usable_key
from sandlot.models.retry import RetryPolicy, TransientError, Waiter, with_retries
from sandlot.train.base import Draw, Drawn

if TYPE_CHECKING:
    from httpx2 import AsyncClient

T = TypeVar("T")
Flavour = Literal["vllm", "sglang"]
KEY_VARIABLE = "OPENAI_API_KEY"
_TOO_LONG = re.compile(
    r"(?i)input length .* exceeds|longer than the model's|maximum allowed length"
)


class ServerEngine:
    """A `TokenEngine` on a server.

    Args:
        base_url: with or without the `/v1` at its end.
        model: the name under which the server knows the model.
        context_tokens: what the server was given (`--max-model-len`, `--context-length`).
        processed_logprobs: whether a vLLM was started with `--logprobs-mode processed_logprobs`.
        timeout_s: bounds one attempt; `deadline_s` one draw or update with all its retries.

    `update_weights` waits for the draws under way and holds back new ones, so that no reply comes
    from two sets of weights.
    """

    def __init__(
        self,
        flavour: Flavour,
        base_url: str,
        *,
        model: str,
        context_tokens: int,
        api_key: str | None = None,
        processed_logprobs: bool = False,
        timeout_s: float = 600.0,
        deadline_s: float = 1800.0,
        retry_policy: RetryPolicy | None = None,
        client: AsyncClient | None = None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if flavour not in _WIRES:
            raise ConfigError(f"server flavour {flavour!r}: use {' or '.join(_WIRES)}")
        self.context_tokens = context_tokens
        root = base_url.rstrip("/").removesuffix("/v1")
        key = usable_key(api_key, KEY_VARIABLE)
        self._wire: _Wire = _WIRES[flavour](processed_logprobs)
        self._endpoint = Endpoint(model, root, key, KEY_VARIABLE)
        self._timeout_s, self._deadline_s = timeout_s, deadline_s
        self._policy = retry_policy or RetryPolicy()
        self._waiter = Waiter(sleep, clock, jitter)
        self._client, self._owns_client = client, client is None
        self._gate = _Gate()
        self._adapter: str | None = None
        self._versions = 0
        self._adapter_stem = f"policy-{uuid.uuid4().hex[:8]}"

    def reports_logprobs_of(self, draw: Draw) -> bool:
        """Whether the server's log probabilities are those of the distribution it draws from.

        Where they are not, the draws still serve for evaluation.
        """
        return self._wire.reports_logprobs_of(draw)

    async def sample(self, prompt: Sequence[int], draw: Draw) -> Drawn:
        if len(prompt) + draw.max_tokens > self.context_tokens:
            raise ContextOverflow(
                f"prompt {len(prompt):,} + reply {draw.max_tokens:,} tokens; the server's "
                f"{self._endpoint.model!r} holds {self.context_tokens:,}"
            )
        await self._gate.enter()
        try:
            call = self._wire.draw(self._endpoint.model, self._adapter, prompt, draw)
            return await self._asked(partial(self._draw_once, call, prompt, draw))
        finally:
            self._gate.leave()

    async def update_weights(self, folder: Path) -> None:
        """Let the server draw from the weights in a folder from now on.

        A folder with `adapter_config.json` holds a LoRA adapter; any other is a whole model. The
        server reads the folder itself, so it must see the same path.

        Raises:
            ConfigError: no such folder, or the server was not started for this.
            ModelError: the server could not load it; it goes on with the weights it has, or, where
                a whole model broke off half-way, with none that can be relied on.
        """
        path = folder.absolute()
        if not path.is_dir():
            raise ConfigError(f"{folder}: no such folder of weights")
        async with self._gate.alone():
            if (path / "adapter_config.json").exists():
                await self._load_adapter(path)
            else:
                for call in self._wire.load_weights(path):
                    await self._asked(partial(self._told, call))
                self._adapter = None

    async def close(self) -> None:
        if self._client is not None and self._owns_client:
            await self._client.aclose()
            self._client = None

    async def _load_adapter(self, folder: Path) -> None:
        """Each version gets a name of its own, then the one before it is let go.

        Under one name vLLM may go on with keys and values that it kept of the version before:
        https://github.com/vllm-project/vllm/issues/42125
        """
        name = await self._asked(partial(self._load_version, folder))
        before, self._adapter = self._adapter, name
        if before is not None:
            await self._asked(partial(self._told, self._wire.unload_adapter(before)))

    async def _load_version(self, folder: Path) -> str:
        """A new name at each attempt: one that seemed to fail may have been carried out."""
        self._versions += 1
        name = f"{self._adapter_stem}-{self._versions}"
        await self._told(self._wire.load_adapter(name, folder))
        return name

    # One request.

    async def _asked(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            with anyio.fail_after(self._deadline_s):
                return (await with_retries(attempt, self._policy, self._waiter)).value
        except TimeoutError:
            raise ModelError(
                f"{self._endpoint.shown_url} gave no reply in {self._deadline_s:g} s, retries "
                "included"
            ) from None

    async def _draw_once(self, call: _Call, prompt: Sequence[int], draw: Draw) -> Drawn:
        reply = await self._post(call)
        try:
            drawn = self._wire.drawn(reply, prompt)
        except Refusal as refusal:
            raise self._error(refusal) from None
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ModelError(
                f"{self._endpoint.shown_url}{call.path} answered in another form than expected "
                f"({type(error).__name__}: {error}). Is its flavour right?"
            ) from error
        if len(drawn.ids) > draw.max_tokens or not drawn.ids:
            raise ModelError(
                f"{self._endpoint.shown_url} drew {len(drawn.ids)} tokens; asked for 1 to "
                f"{draw.max_tokens}"
            )
        ended = drawn.ids[-1] in draw.stop_ids
        return Drawn(drawn.ids, drawn.logprobs, "stop" if ended else drawn.finish)

    async def _told(self, call: _Call) -> None:
        """Carry out a change of weights; some servers answer 200 and say `success: false`."""
        reply = await self._post(call)
        if isinstance(reply, Mapping) and reply.get("success") is False:
            said = str(reply.get("message") or reply.get("error_message") or reply)
            raise ModelError(
                f"{self._endpoint.shown_url}{call.path}: {self._endpoint.redact(said)}"
            )

    async def _post(self, call: _Call) -> Any:
        import httpx2

        url = self._endpoint.base_url + call.path
        body = b"" if call.body is None else json.dumps(call.body).encode()
        try:
            with anyio.fail_after(self._timeout_s):
                response = await self._connected().post(url, content=body)
        except TimeoutError:
            raise TransientError(
                f"{self._endpoint.shown_url} gave no whole reply in {self._timeout_s:g} s"
            ) from None
        except httpx2.TransportError as error:
            raise self._endpoint.unreachable(str(error) or type(error).__name__) from error
        if response.status_code != 200:
            if response.status_code in (404, 405) and call.needs:
                raise ConfigError(
                    f"{self._endpoint.shown_url} knows no {call.path}: start it with {call.needs}"
                )
            headers = response.headers
            raise self._error(
                self._endpoint.refusal(response.status_code, response.content, headers)
            )
        return _json(response.content)

    def _error(self, refusal: Refusal) -> ModelError:
        if refusal.status in (None, 400, 422) and _TOO_LONG.search(refusal.text):
            return ContextOverflow(
                f"{self._endpoint.model!r}: the conversation is longer than the context holds "
                f"({refusal.text})",
                status=refusal.status,
            )
        return self._endpoint.to_error(refusal)

    def _connected(self) -> AsyncClient:
        """The client, made at the first request: importing it takes a moment."""
        if self._client is None:
            import httpx2

            headers = {"Content-Type": "application/json"}
            if self._endpoint.api_key:
                headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
            # Draws of a whole batch wait at once; a proxy is not meant for this machine's servers.
            self._client = httpx2.AsyncClient(
                headers=headers,
                timeout=httpx2.Timeout(None, connect=15.0),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
                trust_env=not self._endpoint.is_loopback,
                verify=self._endpoint.base_url.startswith("https"),  # else reads certificates
            )
        return self._client


def _json(content: bytes) -> Any:
    """A body as JSON; control endpoints also answer with plain text or with nothing."""
    try:
        return json.loads(content)
    except ValueError:
        return None


@dataclass(slots=True)
class _Gate:
    """Lets draws overlap, and an update in alone. One event loop's."""

    inside: int = 0
    closed: bool = False
    _changed: anyio.Event = field(default_factory=anyio.Event)

    async def enter(self) -> None:
        while self.closed:
            await self._changed.wait()
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1
        self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        while self.closed:
            await self._changed.wait()
        self.closed = True
        try:
            while self.inside:
                await self._changed.wait()
            yield
        finally:
            self.closed = False
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


# --- the two wire formats --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Call:
    """A POST. `needs` says how the server must be started to know the path."""

    path: str
    body: JsonObject | None
    needs: str = ""


class _Wire(Protocol):
    def reports_logprobs_of(self, draw: Draw) -> bool: ...

    def draw(self, model: str, adapter: str | None, prompt: Sequence[int], draw: Draw) -> _Call: ...

    def drawn(self, reply: Any, prompt: Sequence[int]) -> Drawn:
        """Raises:
        Refusal: the reply says that the draw was broken off.
        ModelError: ids or log probabilities are missing, or the prompt was changed.
        """
        ...

    def load_adapter(self, name: str, folder: Path) -> _Call: ...

    def unload_adapter(self, name: str) -> _Call: ...

    def load_weights(self, folder: Path) -> list[_Call]: ...


@dataclass(frozen=True, slots=True)
class _Vllm:
    """`/v1/completions` with `return_token_ids`."""

    processed_logprobs: bool

    def reports_logprobs_of(self, draw: Draw) -> bool:
        return self.processed_logprobs or (draw.temperature == 1 and _takes_all(draw))

    def draw(self, model: str, adapter: str | None, prompt: Sequence[int], draw: Draw) -> _Call:
        # Every setting is given: what is left out, the server takes from the model's own
        # generation_config.json. The stop token is among `token_ids` whatever the text holds.
        body = {
            "model": adapter or model,
            "prompt": list(prompt),
            "add_special_tokens": False,
            "max_tokens": draw.max_tokens,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "top_k": draw.top_k or -1,
            "min_p": 0.0,
            **_NO_PENALTIES,
            "stop_token_ids": sorted(draw.stop_ids),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "logprobs": 0,
            "return_token_ids": True,
            **({} if draw.seed is None else {"seed": draw.seed % 2**63}),
        }
        return _Call("/v1/completions", body)

    def drawn(self, reply: Any, prompt: Sequence[int]) -> Drawn:
        choice = reply["choices"][0]
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if ids is None or logprobs is None:
            raise ModelError(
                "the server gave no token ids or log probabilities: it needs a vLLM that knows "
                "return_token_ids, started without --max-logprobs 0"
            )
        seen = choice.get("prompt_token_ids")
        if seen is not None and list(seen) != list(prompt):
            raise ModelError(_CHANGED.format(sent=len(prompt), seen=len(seen)))
        return _drawn(ids, logprobs["token_logprobs"], choice.get("finish_reason"))

    def load_adapter(self, name: str, folder: Path) -> _Call:
        body = {"lora_name": name, "lora_path": str(folder)}
        return _Call("/v1/load_lora_adapter", body, _VLLM_ADAPTERS)

    def unload_adapter(self, name: str) -> _Call:
        return _Call("/v1/unload_lora_adapter", {"lora_name": name}, _VLLM_ADAPTERS)

    def load_weights(self, folder: Path) -> list[_Call]:
        reload: JsonObject = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        needs = "the variable VLLM_SERVER_DEV_MODE=1"
        return [_Call("/collective_rpc", reload, needs), _Call("/reset_prefix_cache", None, needs)]


@dataclass(frozen=True, slots=True)
class _Sglang:
    """`/generate`, whose log probabilities are taken after the temperature, before top-k and -p."""

    processed_logprobs: bool

    def reports_logprobs_of(self, draw: Draw) -> bool:
        return _takes_all(draw)

    def draw(self, model: str, adapter: str | None, prompt: Sequence[int], draw: Draw) -> _Call:
        sampling = {
            "max_new_tokens": draw.max_tokens,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "top_k": draw.top_k or -1,
            "min_p": 0.0,
            **_NO_PENALTIES,
            "stop_token_ids": sorted(draw.stop_ids),
            "no_stop_trim": True,
            "skip_special_tokens": False,
            **({} if draw.seed is None else {"sampling_seed": draw.seed % 2**63}),
        }
        body: JsonObject = {
            "input_ids": list(prompt),
            "sampling_params": sampling,
            "return_logprob": True,
            **({} if adapter is None else {"lora_path": adapter}),
        }
        return _Call("/generate", body)

    def drawn(self, reply: Any, prompt: Sequence[int]) -> Drawn:
        figures = reply["meta_info"]
        reason = figures["finish_reason"]
        if reason["type"] == "abort":
            said = str(reason.get("message") or "aborted")
            raise Refusal(reason.get("status_code") or 503, said)
        if figures.get("prompt_tokens", len(prompt)) != len(prompt):
            raise ModelError(_CHANGED.format(sent=len(prompt), seen=figures["prompt_tokens"]))
        entries = figures["output_token_logprobs"]
        return _drawn([entry[1] for entry in entries], [e[0] for e in entries], reason["type"])

    def load_adapter(self, name: str, folder: Path) -> _Call:
        body = {"lora_name": name, "lora_path": str(folder)}
        return _Call("/load_lora_adapter", body, "--enable-lora")

    def unload_adapter(self, name: str) -> _Call:
        return _Call("/unload_lora_adapter", {"lora_name": name}, "--enable-lora")

    def load_weights(self, folder: Path) -> list[_Call]:
        body: JsonObject = {"model_path": str(folder), "flush_cache": True}
        return [_Call("/update_weights_from_disk", body)]


_WIRES: dict[str, Callable[[bool], _Wire]] = {"vllm": _Vllm, "sglang": _Sglang}
_NO_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_VLLM_ADAPTERS = "--enable-lora and the variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
_CHANGED = (
    "the server changed the prompt: {sent} tokens were sent and {seen} seen (was it cut, or a "
    "beginning-of-sequence token put before it?)"
)


def _takes_all(draw: Draw) -> bool:
    return draw.top_p >= 1 and not draw.top_k


def _drawn(ids: Sequence[Any], logprobs: Sequence[Any], reason: Any) -> Drawn:
    if len(ids) != len(logprobs):
        raise ModelError(f"the server gave {len(ids)} token ids and {len(logprobs)} logprobs")
    if reason not in ("stop", "length"):
        raise Refusal(503, f"the draw ended for the reason {reason!r}")
    finish: Literal["stop", "length"] = "stop" if reason == "stop" else "length"
    return Drawn(tuple(map(int, ids)), tuple(map(float, logprobs)), finish)
