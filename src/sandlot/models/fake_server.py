"""A small HTTP server that plays an OpenAI-compatible one: for tests and for measuring.

    async with FakeOpenAIServer([reply("4"), Status(429, headers={"Retry-After": "1"})]) as server:
        ... server.base_url ... server.requests

As a process of its own: `python -m sandlot.models.fake_server --script FILE --port 0` prints its
base URL's port on the first line. It listens on the loopback address only and speaks HTTP/1.1.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import h11


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """A request as it arrived; header names are lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Status:
    """An answer that is sent as it is: a dict body as JSON, bytes unchanged."""

    status: int
    body: Mapping[str, Any] | bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """Server-sent events, a dict each; `[DONE]` follows unless the stream is to be cut short.

    With `dropped` the connection breaks after the events, without the end of the body.
    """

    events: Sequence[Mapping[str, Any]]
    done: bool = True
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A whole answer is promised, half of it sent, and the connection closed."""

    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer at all until the client goes away or the server stops."""


Answer = Mapping[str, Any] | Status | Stream | Dropped | Hang
Script = Iterable[Answer] | Callable[[FakeRequest], Answer]


class FakeOpenAIServer:
    """Gives its answers in order, or what a callable makes of each request.

    A plain mapping is a chat completion; a client that asked for a stream gets it as one. When
    the answers have run out, the server says so with status 418, which no client retries.
    """

    def __init__(self, answers: Script = (), *, port: int = 0, delay_s: float = 0.0) -> None:
        self.requests: list[FakeRequest] = []
        self.record = True
        self.port = port
        self._delay_s = delay_s
        self._answer = answers if callable(answers) else _in_order(answers)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection; hanging requests end."""
        if self._server is None:
            return
        self._server.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            # A client that breaks off is what some tests are about. A cancelled task is `stop`;
            # asyncio's stream server would print the cancellation as an error.
            with suppress(ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
                await self._talk(_Connection(reader, writer))
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _talk(self, connection: _Connection) -> None:
        async for request in connection.requests():
            if self.record:
                self.requests.append(request)
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            answer = self._answer(request)
            if isinstance(answer, Hang):
                await connection.wait_for_end()
                return
            if not await connection.send(answer, wants_stream=b'"stream":true' in request.body):
                return


class _Connection:
    """One HTTP/1.1 connection, kept alive between requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER)

    async def requests(self) -> AsyncIterator[FakeRequest]:
        while (head := await self._event()) is not None:
            assert isinstance(head, h11.Request)
            body = bytearray()
            while isinstance(data := await self._event(), h11.Data):
                body += data.data
            headers = {name.decode(): value.decode() for name, value in head.headers}
            yield FakeRequest(head.target.decode(), headers, bytes(body))
            if self._http.our_state is h11.MUST_CLOSE:
                return
            self._http.start_next_cycle()

    async def wait_for_end(self) -> None:
        while await self._reader.read(65536):
            pass

    async def send(
        self, answer: Mapping[str, Any] | Status | Stream | Dropped, *, wants_stream: bool
    ) -> bool:
        """Send an answer; False when the connection must not go on."""
        if isinstance(answer, Stream):
            return await self._send_stream(answer)
        if isinstance(answer, Dropped):
            return await self._send_half(_json(answer.body))
        if isinstance(answer, Status):
            body = answer.body if isinstance(answer.body, bytes) else _json(answer.body)
            return await self._send_body(answer.status, body, answer.headers)
        if wants_stream:
            return await self._send_stream(Stream(as_events(answer)))
        return await self._send_body(200, _json(answer), {})

    async def _event(self) -> Any:
        """The next event of the request; None at the end of the connection."""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(262144))
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                return None
            else:
                return event

    async def _send_body(self, status: int, body: bytes, headers: Mapping[str, str]) -> bool:
        given = {name.lower() for name in headers}
        kind = [] if "content-type" in given else [("Content-Type", "application/json")]
        self._write(_head(status, [*kind, *headers.items(), ("Content-Length", str(len(body)))]))
        self._write(h11.Data(data=body))
        return await self._end()

    async def _send_half(self, body: bytes) -> bool:
        self._write(_head(200, [("Content-Length", str(len(body)))]))
        self._write(h11.Data(data=body[: len(body) // 2]))
        await self._writer.drain()
        return False

    async def _send_stream(self, stream: Stream) -> bool:
        kind = ("Content-Type", "text/event-stream")
        self._write(_head(200, [kind, ("Transfer-Encoding", "chunked")]))
        for event in stream.events:
            self._write(h11.Data(data=b"data: " + _json(event) + b"\n\n"))
            await self._writer.drain()
        if stream.dropped:
            return False
        if stream.done:
            self._write(h11.Data(data=b"data: [DONE]\n\n"))
        return await self._end()

    async def _end(self) -> bool:
        self._write(h11.EndOfMessage())
        await self._writer.drain()
        return True

    def _write(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        data = self._http.send(event)
        assert data is not None
        self._writer.write(data)


def reply(
    text: str | None = None,
    *,
    tool_calls: Sequence[Mapping[str, Any]] = (),
    finish_reason: str | None = None,
    usage: Mapping[str, Any] | None = None,
    **message: Any,
) -> dict[str, Any]:
    """The body of a chat completion; further arguments become fields of its message."""
    wire: dict[str, Any] = {"role": "assistant", "content": text, **message}
    if tool_calls:
        wire["tool_calls"] = list(tool_calls)
    reason = finish_reason or ("tool_calls" if tool_calls else "stop")
    choice = {"index": 0, "message": wire, "finish_reason": reason}
    body: dict[str, Any] = {"id": "fake", "object": "chat.completion", "choices": [choice]}
    return body if usage is None else {**body, "usage": dict(usage)}


def tool_call(
    name: str, arguments: Mapping[str, Any] | str, call_id: str | None = None
) -> dict[str, Any]:
    """A tool call as it stands in a completion; text arguments are sent as they are."""
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments)
    call = {"type": "function", "function": {"name": name, "arguments": raw}}
    return call if call_id is None else {"id": call_id, **call}


def failure(status: int, message: str, *, code: Any = None, **headers: str) -> Status:
    """An error in OpenAI's shape; `retry_after="2"` becomes the header `retry-after`."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    return Status(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def as_events(body: Mapping[str, Any], piece_chars: int = 8) -> list[dict[str, Any]]:
    """A chat completion cut into the events of a stream, texts in pieces of `piece_chars`."""
    choice = body["choices"][0]
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    for name, value in choice["message"].items():
        if isinstance(value, str) and name != "role":
            deltas.extend({name: piece} for piece in _pieces(value, piece_chars))
        elif name == "tool_calls":
            for index, call in enumerate(value):
                deltas.extend(_call_deltas(index, call, piece_chars))
        elif name != "role" and value is not None:
            deltas.append({name: value})
    events = [_chunk({"delta": delta, "finish_reason": None}) for delta in deltas]
    events.append(_chunk({"delta": {}, "finish_reason": choice.get("finish_reason")}))
    if "usage" in body:
        events.append({"id": "fake", "choices": [], "usage": body["usage"]})
    return events


def from_script(path: Path) -> list[Answer]:
    """Answers from a JSONL file in the form of `ScriptedModel.from_file`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_scripted(json.loads(line), number) for number, line in enumerate(lines)]


def _scripted(line: Mapping[str, Any], number: int) -> Answer:
    if "error" in line:
        error = line["error"]
        return failure(error.get("status") or 500, error.get("message", "scripted error"))
    calls = [
        tool_call(item["name"], item.get("arguments", {}), f"call_{number}_{index}")
        for index, item in enumerate(line.get("tool_calls", ()))
    ]
    extra = {"reasoning_content": line["reasoning"]} if "reasoning" in line else {}
    finish, usage = line.get("finish_reason"), line.get("usage")
    return reply(line.get("text"), tool_calls=calls, finish_reason=finish, usage=usage, **extra)


def _call_deltas(index: int, call: Mapping[str, Any], chars: int) -> Iterable[dict[str, Any]]:
    function = call["function"]
    first = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
    yield {"tool_calls": [first]}
    for piece in _pieces(function["arguments"], chars):
        yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _chunk(choice: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": "fake", "choices": [{"index": 0, **choice}]}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _head(status: int, headers: Sequence[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, headers=list(headers))


def _in_order(answers: Iterable[Answer]) -> Callable[[FakeRequest], Answer]:
    waiting = iter(answers)
    return lambda request: next(waiting, failure(418, "the fake server has no more answers"))


async def _main(arguments: argparse.Namespace) -> None:
    answers = from_script(arguments.script)
    script = itertools.cycle(answers) if arguments.loop else answers
    server = FakeOpenAIServer(script, port=arguments.port, delay_s=arguments.delay_s)
    server.record = False
    await server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible server on loopback.")
    parser.add_argument("--script", type=Path, required=True, help="replies, JSON lines")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--delay-s", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--loop", action="store_true", help="start over after the last reply")
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))
