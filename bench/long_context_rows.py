"""Long documents in files or in the prompt: a wiring test, with a script in place of a model.

The script greps and answers, so the figures say what the harness sends and nothing of what a model
would do. Tokens are derived from the bytes of each request, as the server received them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from computer import Place
from measure import Row, Sample

from sandlot.bench.arms import arms_of
from sandlot.bench.plan import BenchPlan
from sandlot.bench.records import Meters
from sandlot.bench.runner import run_bench
from sandlot.models.fake_server import FakeOpenAIServer, FakeRequest, reply, tool_call
from sandlot.settings import resolve
from sandlot.tasks.base import LoadedSet, Source, TaskSet
from sandlot.tasks.generators.long_context import CHARS_PER_TOKEN, generate

TOKENS = 100_000
_GREPS = (
    "ls /testbed/documents | head",
    "grep -rn -m 3 -i harbour /testbed/documents | cut -c 1-200 | head -20",
    "grep -rlE '[0-9]+ tons' /testbed/documents | wc -l",
    "printf 'ANSWER: unknown\\n' > /testbed/answer.txt",
)


def scripted_policy(request: FakeRequest) -> dict[str, Any]:
    """Greps where there are tools, else answers at once; usage by the bytes of the request."""
    body = request.json
    usage = {"prompt_tokens": len(request.body) // CHARS_PER_TOKEN, "completion_tokens": 40}
    if not body.get("tools"):
        return reply("ANSWER: unknown", usage=usage)
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    if turn < len(_GREPS):
        call = tool_call("execute_bash", {"command": _GREPS[turn]}, f"call_{turn}")
    else:
        call = tool_call("submit", {}, f"call_{turn}")
    return reply(tool_calls=[call], usage=usage)


async def long_context(place: Place, work: Path, n: int) -> list[Row]:
    """`n` items of 100,000 tokens of documents, from the head and in the sandbox."""
    folder = Path(tempfile.mkdtemp(prefix="long-", dir=work))
    async with FakeOpenAIServer(scripted_policy) as server:
        server.record = False
        meters = await _run(server.base_url, place.image, folder, n)
    inside, head = meters["sandbox"], meters["llm"]
    shares = [
        part / whole
        for part, whole in zip(_figures(inside, _context), _figures(head, _context), strict=True)
    ]
    share = Sample.of([100 * value for value in shares], "%")
    context, before = (Sample.of(_figures(each, _context), "tokens") for each in (inside, head))
    billed, billed_before = (
        Sample.of(_figures(each, _billed), "tokens") for each in (inside, head)
    )
    detail = {
        "items": n,
        "document_tokens": TOKENS,
        "context_sandbox": context,
        "context_llm": before,
        "billed_sandbox": billed,
        "billed_llm": billed_before,
        "tokens_by": f"bytes of the request / {CHARS_PER_TOKEN}",
        "a_real_model": "not measured",
    }
    name = "wiring test, long context: context tokens with documents as files, of the llm arm's"
    met = len(shares) == n and max(shares) <= 1 / 8
    return [Row(name, share, None, "", "≤ 12.5 %", met, None, detail)]


async def _run(url: str, image: str, work: Path, n: int) -> dict[str, list[Meters]]:
    environ = {**os.environ, "XDG_STATE_HOME": str(work / "state")}
    arguments = {
        "model": "openai/bench",
        "base_url": url,
        "api_key": "bench",
        "backend": "bubblewrap",
        "image": image,
        "network": "none",
        "runs": str(work / "runs"),
    }
    settings = resolve(arguments, environ=environ, directory=work)
    options = {"tokens": TOKENS, "items": n, "seed": 1}
    row = TaskSet("long", "long_context", Source("generator", "long_context"), "text")
    loaded = LoadedSet(row, generate(options), json.dumps(options))
    plan = BenchPlan((loaded,), arms_of("both"), settings, concurrency=2, reference=False)
    directory = await run_bench(plan, environ=environ)
    found: dict[str, list[Meters]] = {"llm": [], "sandbox": []}
    for episode, record in sorted(directory.episodes().items()):
        if record.failure is not None:
            raise RuntimeError(f"{episode.stem}: {record.failure}: {record.stop_detail}")
        found[episode.arm].append(record.meters)
    return found


def _figures(meters: list[Meters], figure: Callable[[Meters], int]) -> list[float]:
    return [float(figure(meter)) for meter in meters]


def _context(meters: Meters) -> int:
    return meters.context_tokens or 0


def _billed(meters: Meters) -> int:
    return (meters.billed_prompt_tokens or 0) + (meters.billed_completion_tokens or 0)
