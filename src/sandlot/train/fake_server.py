"""A server that plays vLLM or SGLang as far as `train.engine_server` asks of them: for tests.

    fake = FakeTokenServer("vllm", lambda ids: [5, 6, 0])
    async with FakeOpenAIServer(fake) as server:
        ... ServerEngine("vllm", server.base_url, model="policy", context_tokens=512)

It refuses what the real ones refuse: a field it does not know, a model or adapter that was not
loaded, a prompt that is too long, an endpoint it was not started for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandlot.core.types import JsonObject
from sandlot.models.fake_server import Answer, FakeRequest, Status, failure
from sandlot.train.engine_server import Flavour

Policy = Callable[[Sequence[int]], Sequence[int]]
"""The ids that follow a prompt, as many as it likes; the server cuts them."""

_VLLM_FIELDS = frozenset(
    [
        "model",
        "prompt",
        "add_special_tokens",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "stop_token_ids",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "logprobs",
        "return_token_ids",
        "seed",
    ]
)
_SGLANG_FIELDS = frozenset(["input_ids", "sampling_params", "return_logprob", "lora_path"])
_SGLANG_SAMPLING = frozenset(
    [
        "max_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "stop_token_ids",
        "no_stop_trim",
        "skip_special_tokens",
        "sampling_seed",
    ]
)


def logprob_of(token: int) -> float:
    """The log probability under which the fake draws a token, in nats."""
    return -(token % 7 + 1) / 8


@dataclass(slots=True)
class FakeTokenServer:
    """Answers requests; give it to `FakeOpenAIServer`.

    `first` are answers that come before any other, for failures. `adapters` maps the names of
    loaded adapters to their paths, `weights` lists the folders of whole models in the order in
    which they were loaded, `log` the paths of all requests.
    """

    flavour: Flavour
    policy: Policy
    model: str = "policy"
    context_tokens: int = 512
    adapters_allowed: bool = True
    first: list[Answer] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __call__(self, request: FakeRequest) -> Answer:
        self.log.append(request.path)
        if self.first:
            return self.first.pop(0)
        paths = self._vllm_paths() if self.flavour == "vllm" else self._sglang_paths()
        handle = paths.get(request.path)
        if handle is None:
            return Status(404, {"detail": "Not Found"})
        return handle(request.json if request.body else {})

    # vLLM.

    def _vllm_paths(self) -> dict[str, Callable[[JsonObject], Answer]]:
        paths = {
            "/v1/completions": self._complete,
            "/collective_rpc": self._collective_rpc,
            "/reset_prefix_cache": lambda body: Status(200),
        }
        if self.adapters_allowed:
            paths["/v1/load_lora_adapter"] = self._load_adapter
            paths["/v1/unload_lora_adapter"] = self._unload_adapter
        return paths

    def _complete(self, body: JsonObject) -> Answer:
        if unknown := body.keys() - _VLLM_FIELDS:
            return failure(400, f"unknown fields {sorted(unknown)}")
        if body["model"] not in (self.model, *self.adapters):
            return failure(404, f"The model `{body['model']}` does not exist.")
        prompt, room = body["prompt"], body["max_tokens"]
        if len(prompt) + room > self.context_tokens:
            return failure(
                400,
                f"This model's maximum context length is {self.context_tokens} tokens. However, "
                f"you requested {room} output tokens and your prompt contains {len(prompt)}.",
            )
        ids, finish = self._draw(prompt, body["stop_token_ids"], room)
        choice: JsonObject = {"index": 0, "text": "…", "finish_reason": finish, "stop_reason": None}
        if body["return_token_ids"]:
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        if body["logprobs"] is not None:
            tokens = {"tokens": [str(each) for each in ids], "text_offset": [0] * len(ids)}
            choice["logprobs"] = {"token_logprobs": [*map(logprob_of, ids)], **tokens}
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def _collective_rpc(self, body: JsonObject) -> Answer:
        if body.get("method") != "reload_weights":
            return Status(500, {"detail": f"no method {body.get('method')!r}"})
        self.weights.append(body["kwargs"]["weights_path"])
        return {"results": [None]}

    def _load_adapter(self, body: JsonObject) -> Answer:
        name = body["lora_name"]
        if name in self.adapters:
            return failure(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(body["lora_path"]) / "adapter_config.json").exists():
            return failure(404, f"No adapter found for {body['lora_path']}")
        self.adapters[name] = body["lora_path"]
        return Status(200, f"Success: LoRA adapter '{name}' added successfully.".encode())

    def _unload_adapter(self, body: JsonObject) -> Answer:
        if self.adapters.pop(body["lora_name"], None) is None:
            return failure(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return Status(200, b"Success")

    # SGLang.

    def _sglang_paths(self) -> dict[str, Callable[[JsonObject], Answer]]:
        return {
            "/generate": self._generate,
            "/update_weights_from_disk": self._update_from_disk,
            "/load_lora_adapter": self._sglang_load_adapter,
            "/unload_lora_adapter": self._sglang_unload_adapter,
        }

    def _generate(self, body: JsonObject) -> Answer:
        sampling = body["sampling_params"]
        if unknown := (body.keys() - _SGLANG_FIELDS) | (sampling.keys() - _SGLANG_SAMPLING):
            return failure(400, f"unknown fields {sorted(unknown)}")
        adapter = body.get("lora_path")
        if adapter is not None and adapter not in self.adapters:
            return failure(400, f"The following requested LoRA adapters are not loaded: {adapter}")
        prompt, room = body["input_ids"], sampling["max_new_tokens"]
        if len(prompt) >= self.context_tokens:
            return failure(
                400,
                f"Input length ({len(prompt)} tokens) exceeds the maximum allowed length "
                f"({self.context_tokens} tokens). Use a shorter input.",
            )
        ids, finish = self._draw(prompt, sampling["stop_token_ids"], room)
        end: JsonObject = {"type": finish}
        end |= {"matched": ids[-1]} if finish == "stop" else {"length": room}
        figures: JsonObject = {
            "id": "0",
            "finish_reason": end,
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
        }
        if body["return_logprob"]:
            figures["output_token_logprobs"] = [[logprob_of(each), each, None] for each in ids]
        return {"text": "…", "output_ids": ids, "meta_info": figures}

    def _update_from_disk(self, body: JsonObject) -> Answer:
        folder = body["model_path"]
        if not (Path(folder) / "config.json").exists():
            return Status(400, {"success": False, "message": f"Failed to load {folder}"})
        self.weights.append(folder)
        return {"success": True, "message": "Succeeded to update model weights."}

    def _sglang_load_adapter(self, body: JsonObject) -> Answer:
        if not self.adapters_allowed:
            error = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA."
            return Status(400, {"success": False, "error_message": error})
        if body["lora_name"] in self.adapters:
            error = f"LoRA with name {body['lora_name']} already exists."
            return Status(400, {"success": False, "error_message": error})
        self.adapters[body["lora_name"]] = body["lora_path"]
        return {"success": True, "loaded_adapters": self.adapters}

    def _sglang_unload_adapter(self, body: JsonObject) -> Answer:
        found = self.adapters.pop(body["lora_name"], None)
        answer: Mapping[str, Any] = {"success": found is not None}
        return answer if found is not None else Status(400, answer)

    # Both.

    def _draw(
        self, prompt: Sequence[int], stops: Sequence[int], room: int
    ) -> tuple[list[int], str]:
        ids: list[int] = []
        for token in self.policy(prompt):
            ids.append(token)
            if token in stops:
                return ids, "stop"
            if len(ids) == room:
                return ids, "length"
        return ids, "stop"
