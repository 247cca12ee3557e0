"""The fake server as a process of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sandlot.core.types import Message
from sandlot.models.openai_chat import OpenAIChatModel


async def test_it_runs_as_its_own_process_and_prints_its_port(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text(
        '{"text": "one", "usage": {"prompt_tokens": 5}}\n'
        '{"tool_calls": [{"name": "submit", "arguments": {}}]}\n'
    )
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sandlot.models.fake_server"),
        *("--script", str(script), "--loop"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert server.stdout is not None
        port = int(await server.stdout.readline())
        model = OpenAIChatModel("m", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
        found = [await model.complete([Message.user("hi")]) for _ in range(3)]
        await model.close()
    finally:
        server.terminate()
        await server.communicate()
    assert [completion.message.text for completion in found] == ["one", "", "one"]
    assert found[0].usage.prompt_tokens == 5
    assert found[1].message.tool_calls[0].name == "submit"
