"""The sandbox contract as checks that any backend can run: ours, and those of plug-ins.

`CHECKS` are small async functions with sentences for names. Each builds its own sandbox from the
factory it is handed, breaks one promise if it can, and raises `ContractViolation` if it could.
`run_contract` runs them for `doctor` and plug-in authors; the tests run them one by one.

A check `needs` capabilities that a backend may lack: `shell` (a real bash; all the following
imply it), `processes` (real processes, pid namespace), `python3` (in the image), `limits`
(output budgets that bite) and `network` (a network namespace of its own).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import os
import platform
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sandlot.core.errors import (
    DeathCause,
    InputError,
    PolicyNotEnforceable,
    RecordError,
    SandboxDied,
    SandboxError,
    SandboxFileError,
)
from sandlot.sandbox.base import ExecResult, Sandbox
from sandlot.sandbox.policy import MIB, Limits, Network, NetworkMode, Policy

MakeSandbox = Callable[[Policy], Sandbox | Awaitable[Sandbox]]
"""Builds an unstarted sandbox that keeps to a policy; may be async."""

CAPABILITIES = frozenset({"shell", "processes", "python3", "limits", "network"})
_T = TypeVar("_T")
_CAPTURE = 16 * 1024
_SAVED = 1 * MIB
_CANARY = "canary-5d1f7c-of-the-host"


class ContractViolation(AssertionError):
    """A backend broke a promise of `sandbox/base.py`. `python -O` keeps it, unlike an assert."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise. `run` raises `ContractViolation`, or whatever the backend wrongly raised."""

    name: str
    needs: frozenset[str]
    run: Callable[[MakeSandbox], Awaitable[None]]
    slow: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found: `problem` is None where the promise was kept, `skipped` says why not
    tried."""

    name: str
    problem: str | None
    skipped: str | None
    duration_s: float


_FAILS = -1
"""An expected exit code that stands for any but 0: shells differ on syntax errors."""


@dataclass(frozen=True, slots=True)
class Script:
    """Commands run in order in one sandbox, and what the last one must give."""

    name: str
    commands: tuple[str, ...]
    stdout: str | None = None
    exit_code: int | None = 0
    restarted: bool | None = None
    needs: tuple[str, ...] = ()
    stderr_has: str = ""
    silent: bool = False
    environment: dict[str, str] = field(default_factory=dict)


_registered: list[Check] = []


def small_policy(**limits: Any) -> Policy:
    """A policy for checks: little memory, few processes, no network, short deadlines."""
    base = Limits(
        memory_bytes=512 * MIB,
        processes=128,
        disk_bytes=256 * MIB,
        open_files=1024,
        command_timeout_s=20.0,
        capture_bytes=_CAPTURE,
        saved_bytes=_SAVED,
        flood_bytes=1024 * MIB,
    )
    return Policy(limits=replace(base, **limits), network=Network(NetworkMode.NONE))


@contextlib.asynccontextmanager
async def opened(make: MakeSandbox, policy: Policy | None = None) -> AsyncIterator[Sandbox]:
    """A started sandbox that is closed afterwards."""
    box = await _build(make, policy or small_policy())
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(box.close)
        await box.start()
        yield box


async def _build(make: MakeSandbox, policy: Policy) -> Sandbox:
    made = make(policy)
    return await made if inspect.isawaitable(made) else made


def require(kept: object, problem: str) -> None:
    """Raise `ContractViolation(problem)` unless `kept`."""
    if not kept:
        raise ContractViolation(problem)


def equal(found: object, expected: object, what: str) -> None:
    """Raise unless both are equal; the message shows both, shortened."""
    require(found == expected, f"{what}: expected {expected!r:.300}, found {found!r:.300}")


async def within(seconds: float, what: str, work: Awaitable[_T]) -> _T:
    """Await `work`; taking longer than `seconds` breaks the contract."""
    try:
        return await asyncio.wait_for(work, seconds)
    except TimeoutError:
        raise ContractViolation(f"{what} took longer than {seconds:g} s") from None


async def refused(work: Awaitable[object], *kinds: type[Exception], what: str) -> Exception:
    """Await `work`, which must raise one of `kinds`; returns what it raised."""
    try:
        found = await within(20, what, work)
    except kinds as exc:
        return exc
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise ContractViolation(f"{what}: expected {expected}, got {found!r:.200}")


async def alive(box: Sandbox) -> None:
    """The shell answers with nothing but what it was asked for."""
    result = await within(15, "a command after the check", box.exec("echo alive", 10))
    equal((result.exit_code, result.stdout), (0, "alive\n"), "the shell afterwards")


async def stdout_of(box: Sandbox, command: str, timeout_s: float = 20) -> str:
    """The output of a command that must succeed."""
    result = await box.exec(command, timeout_s)
    require(
        result.exit_code == 0 and not result.timed_out, f"{command!r:.120} gave {result!r:.600}"
    )
    return result.stdout


def _check(
    name: str, *needs: str, slow: bool = False
) -> Callable[[Callable[[MakeSandbox], Awaitable[None]]], Callable[[MakeSandbox], Awaitable[None]]]:
    def register(
        run: Callable[[MakeSandbox], Awaitable[None]],
    ) -> Callable[[MakeSandbox], Awaitable[None]]:
        _registered.append(Check(name, _with_shell(needs), run, slow))
        return run

    return register


def _boxed(
    name: str, *needs: str, slow: bool = False, **limits: Any
) -> Callable[
    [Callable[[Sandbox], Coroutine[Any, Any, None]]],
    Callable[[Sandbox], Coroutine[Any, Any, None]],
]:
    """Register a check of one started sandbox under `small_policy(**limits)`."""

    def register(
        run: Callable[[Sandbox], Coroutine[Any, Any, None]],
    ) -> Callable[[Sandbox], Coroutine[Any, Any, None]]:
        async def in_a_sandbox(make: MakeSandbox) -> None:
            async with opened(make, small_policy(**limits)) as box:
                await run(box)

        _registered.append(Check(name, _with_shell(needs), in_a_sandbox, slow))
        return run

    return register


def _with_shell(needs: Iterable[str]) -> frozenset[str]:
    given = frozenset(needs)
    return given | {"shell"} if given else given


async def run_contract(
    make: MakeSandbox, capabilities: Iterable[str] = CAPABILITIES, *, slow: bool = True
) -> list[Outcome]:
    """Run every check that the capabilities allow, one after the other."""
    have = frozenset(capabilities)
    return [await _outcome(check, make, have, slow) for check in CHECKS]


async def _outcome(check: Check, make: MakeSandbox, have: frozenset[str], slow: bool) -> Outcome:
    lacking = sorted(check.needs - have)
    if lacking or (check.slow and not slow):
        return Outcome(check.name, None, f"needs {', '.join(lacking)}" if lacking else "slow", 0.0)
    start = time.monotonic()
    try:
        await check.run(make)
        problem = None
    except (AssertionError, SandboxError, InputError, OSError, ValueError, TypeError) as exc:
        problem = f"{type(exc).__name__}: {exc}"
    return Outcome(check.name, problem, None, time.monotonic() - start)


# --- The shell: what one command gives, and what the next one finds -------------------------------

SCRIPTS: tuple[Script, ...] = (
    Script("a command's output and status come back", ("echo hello",), "hello\n"),
    Script("the working directory starts at the policy's", ("pwd",), "/testbed\n"),
    Script("the working directory survives", ("cd /tmp", "pwd"), "/tmp\n"),
    Script("plain variables survive", ("x='a b'", 'echo "$x"'), "a b\n"),
    Script("exported variables survive", ("export X=7", "bash -c 'echo $X'"), "7\n"),
    Script("arrays survive", ("a=(1 'two words' 3)", 'echo "${#a[@]} ${a[1]}"'), "3 two words\n"),
    Script("maps survive", ("declare -A m; m[k]=v", 'echo "${m[k]}"'), "v\n"),
    Script("functions survive", ("greet() { echo hi $1; }", "greet you"), "hi you\n"),
    Script("aliases survive", ("shopt -s expand_aliases; alias hi='echo hey'", "hi"), "hey\n"),
    Script("set options survive", ("set -o pipefail", "false | true; echo $?"), "1\n"),
    Script("shopt options survive", ("shopt -s nullglob", "echo /no-such-*"), "\n"),
    Script("the umask survives", ("umask 027", "umask"), "0027\n"),
    Script("traps of the user's survive", ("trap 'echo got' USR2", "kill -USR2 $$"), "got\n"),
    Script("a background job is listed later", ("sleep 20 &", "jobs | grep -c sleep"), "1\n"),
    Script("a background job is waited for later", ("(exit 5) &", "wait $!; echo $?"), "5\n"),
    Script("a background job is killed later", ("sleep 50 &", "kill %1; wait %1; echo $?"),
           "143\n"),
    Script("status 0 comes back", ("true",), "", 0),
    Script("status 1 comes back", ("false",), "", 1),
    Script("status 42 of a child comes back", ("bash -c 'exit 42'",), "", 42),
    Script("a command that does not exist gives 127", ("no-such-command-1",), "", 127),
    Script("a file that cannot be executed gives 126", ("touch f; ./f",), "", 126),
    Script("death by TERM gives 143", ("bash -c 'kill -TERM $$'",), "", 143),
    Script("death by KILL gives 137", ("bash -c 'kill -KILL $$'",), "", 137),
    Script("signals are ignored by nobody but who asked for it",
           # Not 32 and 33: the C library keeps those for itself, and no program can reset them.
          ("m=$(sed -n 's/^SigIgn:[[:space:]]*/0x/p' /proc/self/status); "
           "echo $((m & ~(3 << 31)))",), "0\n", needs=("processes",)),
    Script("a broken pipe ends its writer silently", ("yes | head -n1",), "y\n", silent=True),
    Script("an interrupt ends a child", ("bash -c 'kill -INT $$; echo on'; echo $?",), "130\n"),
    Script("death by SEGV gives 139", ("bash -c 'kill -SEGV $$'",), "", 139),
    Script("exit 3 gives 3 and a new shell", ("exit 3",), "", 3, restarted=True),
    Script("exit keeps what was printed", ("echo bye; exit 0",), "bye\n", 0, restarted=True),
    Script("a replaced shell starts where the command began", ("cd /tmp", "cd /; exit 3", "pwd"),
           "/tmp\n"),
    Script("exec false ends the shell with 1", ("exec false",), "", 1, restarted=True),
    Script("a shell under set -e ends with the failure", ("set -e; false",), "", 1),
    Script("an exit in a subshell leaves the shell", ("(exit 9)",), "", 9, restarted=False),
    Script("a syntax error is a failure with a message", ("if then fi (",), "", _FAILS,
           stderr_has="syntax error"),
    Script("an unterminated quote is a failure", ("echo 'abc",), "", _FAILS,
           stderr_has="unexpected EOF"),
    Script("a closing brace alone is a failure", ("}",), "", _FAILS, stderr_has="syntax error"),
    Script("a closing parenthesis alone is a failure", (") ; echo out",), "", _FAILS),
    Script("an unterminated here-document ends with the command", ("cat <<EOF\nhi",), "hi\n"),
    Script("a here-document keeps its text", ("cat <<'EOF'\na $x `b` \"c\"\nEOF",),
           'a $x `b` "c"\n'),
    Script("several lines are one command", ("for i in 1 2\ndo\n  echo $i\ndone\necho end\n",),
           "1\n2\nend\n"),
    Script("a comment alone succeeds silently", ("# nothing",), ""),
    Script("a comment in the last line changes nothing", ("echo a # b",), "a\n"),
    Script("an empty command succeeds silently", ("",), ""),
    Script("a command of blanks succeeds silently", (" \n\t\n",), ""),
    Script("a trailing backslash does not wait for more", ("echo hi \\",), "hi\n"),
    Script("a final ampersand does not wait", ("sleep 20 &",), ""),
    Script("output without a final newline stays so", ("printf abc",), "abc"),
    Script("carriage returns are kept", ("printf 'a\\r\\nb\\r\\n'",), "a\r\nb\r\n"),
    Script("NUL bytes are kept", ("printf 'a\\0b'",), "a\0b"),
    Script("invalid UTF-8 is replaced", ("printf 'a\\377b'",), "a\ufffdb"),
    Script("other scripts are kept", ("echo 'żółć 漢字 🙂'",), "żółć 漢字 🙂\n"),
    Script("standard output and error are apart", ("echo out; echo err >&2",), "out\n",
           stderr_has="err"),
    Script("closing the shell's output does not wedge it", ("exec 1>&- 2>&-", "echo x"),
           None, None),
    Script("redirecting the shell's output ends with the command or is kept",
           ("exec >/dev/null", "true"), None),
    Script("stdin is at its end for read", ("read x; echo $?",), "1\n"),
    Script("stdin is at its end for cat", ("cat; echo end",), "end\n"),
    Script("stdin is /dev/null", ("readlink /proc/self/fd/0",), "/dev/null\n",
           needs=("processes",)),
    Script("stdin is at its end for Python's input", ("python3 -c 'input()' 2>&1 | tail -n1",),
           "EOFError: EOF when reading a line\n", needs=("python3",)),
    Script("there is no terminal", ("test -t 0 || test -t 1 || test -t 2 || echo none",), "none\n"),
    Script("/dev/tty cannot be opened", ("(: </dev/tty) 2>/dev/null && echo tty || echo none",),
           "none\n", needs=("processes",)),
    Script("a prompt on the terminal fails at once",
           ("read -r secret </dev/tty 2>/dev/null || echo refused",), "refused\n",
           needs=("processes",)),
    Script("pagers are off", ("echo $PAGER $GIT_PAGER $MANPAGER",), "cat cat cat\n"),
    Script("a pager passes text through", ("seq 500 | ${PAGER:-less} | tail -n1",), "500\n"),
    Script("less does not wait for a key",
           ("if command -v less >/dev/null; then seq 500 | less | tail -n1; else echo 500; fi",),
           "500\n"),
    Script("a log of git's does not wait for a key",
           ("command -v git >/dev/null || { echo done; exit 0; }; git init -q . 2>/dev/null; "
            "git log >/dev/null 2>&1; echo done",), "done\n"),
    Script("git does not ask for a password",
           ("command -v git >/dev/null || { echo 0; exit 0; }; echo $GIT_TERMINAL_PROMPT",), "0\n"),
    Script("sleep inside the timeout is not a timeout", ("sleep 0.3; echo up",), "up\n"),
    Script("PATH finds the usual tools", ("command -v ls >/dev/null && echo yes",), "yes\n"),
    Script("HOME is root's", ("echo $HOME; cd; pwd",), "/root\n/root\n"),
    Script("the user is 0 inside", ("id -u",), "0\n", needs=("processes",)),
    Script("the locale reads UTF-8", ("x=漢字; echo ${#x}",), "2\n"),
    Script("variables of the policy are set", ("echo $FROM_POLICY",), "a b\n",
           environment={"FROM_POLICY": "a b"}),
    Script("commands with quotes of every kind pass unchanged",
           ("echo \"a'b\" 'c\"d' e\\ f $'g\\th'",), "a'b c\"d e f g\th\n"),
    Script("an assignment of IFS does not break the shell", ("IFS=x", "echo axb"), "axb\n"),
    Script("a function named like a builtin does not break the shell",
           ("eval() { :; }; printf() { :; }; read() { :; }; echo set", "unset -f eval printf read",
            "echo back"), "back\n"),
    Script("set -u and set -x do not break the shell", ("set -u; set -x", "echo on"), "on\n"),
    Script("set -n does not wedge the shell", ("set -n", "echo off"), None, None),
    Script("an emptied PATH does not break the shell", ("PATH=", "echo still"), "still\n"),
    Script("a removed working directory does not break the shell",
           ("mkdir d; cd d; rmdir ../d", "cd /; pwd"), "/\n"),
    Script("a thousand background jobs that ended do not break the shell",
           ("for i in {1..300}; do true & done; wait", "echo ok"), "ok\n"),
)  # fmt: skip


def _script_check(script: Script) -> Check:
    async def run(make: MakeSandbox) -> None:
        policy = replace(small_policy(), environment=script.environment)
        async with opened(make, policy) as box:
            await _run_script(box, script)

    return Check(script.name, _with_shell(("shell", *script.needs)), run)


async def _run_script(box: Sandbox, script: Script) -> None:
    for command in script.commands[:-1]:
        await within(25, repr(command), box.exec(command, 15))
    last = script.commands[-1]
    result = await within(25, repr(last), box.exec(last, 15))
    require(not result.timed_out, f"{last!r} ran into its timeout: {result!r:.400}")
    if script.stdout is not None:
        equal(result.stdout, script.stdout, f"output of {last!r} (stderr {result.stderr!r:.200})")
    if script.exit_code == _FAILS:
        require(result.exit_code, f"{last!r} did not fail: {result.exit_code}")
    elif script.exit_code is not None:
        equal(result.exit_code, script.exit_code, f"exit code of {last!r}")
    if script.restarted is not None:
        equal(result.shell_restarted, script.restarted, f"shell_restarted of {last!r}")
    if script.silent:
        equal(result.stderr, "", f"error output of {last!r}")
    require(script.stderr_has in result.stderr, f"no {script.stderr_has!r} in {result.stderr!r}")
    if script.restarted or script.exit_code is not None:
        again = await within(15, "the next command", box.exec("true", 10))
        require(not again.timed_out, f"the shell is wedged after {last!r}")


_registered.extend(_script_check(script) for script in SCRIPTS)


@_boxed("a shell that kills itself is replaced", "shell")
async def _(box: Sandbox) -> None:
    result = await within(15, "kill -9 $$", box.exec("echo last; kill -9 $$; sleep 30", 10))
    require(result.exit_code in (None, 137), f"exit code of kill -9 $$: {result.exit_code}")
    require(result.shell_restarted, "shell_restarted is not set after kill -9 $$")
    equal(result.stdout, "last\n", "output before the shell's death")
    await alive(box)


@_boxed("a command of one megabyte runs", "shell")
async def _(box: Sandbox) -> None:
    text = "x" * 1_000_000
    equal((await box.exec(f"v={text}; echo ${{#v}}")).stdout, "1000000\n", "length of the variable")
    await alive(box)


@_boxed("a here-document of one megabyte arrives whole", "shell")
async def _(box: Sandbox) -> None:
    text = "0123456789abcde\n" * 65536
    found = await stdout_of(box, f"sha256sum <<'END'\n{text}END\n")
    require(found.startswith(hashlib.sha256(text.encode()).hexdigest()), f"another sum: {found}")


@_boxed("a NUL byte in a command does not wedge the shell", "shell")
async def _(box: Sandbox) -> None:
    with contextlib.suppress(SandboxError, ValueError):
        await within(15, "a command with a NUL byte", box.exec("echo a\0b", 5))
    await alive(box)


@_boxed("half a character in a command does not wedge the shell", "shell")
async def _(box: Sandbox) -> None:
    with contextlib.suppress(SandboxError, ValueError):
        await within(15, "a command with a lone surrogate", box.exec("echo a\ud800b", 5))
    await alive(box)


@_boxed("byte counts are of the whole streams", "shell")
async def _(box: Sandbox) -> None:
    result = await box.exec("printf 'a\\377\\0c'; printf xyz >&2")
    equal((result.stdout_bytes, result.stderr_bytes), (4, 3), "byte counts")
    require(not result.truncated, "a short output is marked as truncated")


@_boxed("the duration is that of the command", "shell")
async def _(box: Sandbox) -> None:
    result = await box.exec("sleep 0.3")
    require(0.25 <= result.duration_s < 5, f"sleep 0.3 is said to take {result.duration_s} s")


@_boxed("many commands in a row keep their outputs apart", "shell")
async def _(box: Sandbox) -> None:
    for number in range(100):
        result = await box.exec(f"echo {number}; echo e{number} >&2")
        equal((result.stdout, result.stderr), (f"{number}\n", f"e{number}\n"), "output")


@_boxed("a command ends although its child holds the output", "processes")
async def _(box: Sandbox) -> None:
    result = await within(8, "a command with a background child", box.exec("sleep 15 & echo done"))
    equal(result.stdout, "done\n", "output")
    require(result.duration_s < 5, f"the command took {result.duration_s:.1f} s")


@_boxed("late output of a background child is dropped", "processes")
async def _(box: Sandbox) -> None:
    await box.exec("(sleep 0.4; echo LATE; echo LATE >&2) & echo now")
    result = await box.exec("sleep 0.9; echo next")
    equal((result.stdout, result.stderr), ("next\n", ""), "output after the late child")


@_boxed("a background child that prints for ever does not disturb", "processes")
async def _(box: Sandbox) -> None:
    await within(10, "yes in the background", box.exec("yes & echo $! > pid"))
    for number in range(5):
        equal((await box.exec(f"echo {number}", 10)).stdout, f"{number}\n", "output")
    await box.exec("kill $(cat pid)")


# --- Output ---------------------------------------------------------------------------------------


async def _prints(box: Sandbox, size: int, *, stream: int = 1) -> ExecResult:
    """Print `size` bytes that start with HEAD and end with TAIL."""
    fill = f"head -c {size - 8} /dev/zero | tr '\\0' x"
    return await box.exec(f"{{ printf HEAD; {fill}; printf TAIL; }} >&{stream}")


@_boxed("output one byte below the bound is whole", "shell")
async def _(box: Sandbox) -> None:
    result = await _prints(box, _CAPTURE - 1)
    equal((result.truncated, len(result.stdout)), (False, _CAPTURE - 1), "truncated and length")


@_boxed("output exactly at the bound is whole", "shell")
async def _(box: Sandbox) -> None:
    result = await _prints(box, _CAPTURE)
    equal((result.truncated, len(result.stdout)), (False, _CAPTURE), "truncated and length")


@_boxed("output one byte above the bound is marked and saved", "shell")
async def _(box: Sandbox) -> None:
    result = await _prints(box, _CAPTURE + 1)
    equal((result.truncated, result.stdout_bytes), (True, _CAPTURE + 1), "truncated and bytes")
    require(result.stdout_file, "no stdout_file is named")


@_boxed("long output keeps its start, its end and a bounded length", "shell")
async def _(box: Sandbox) -> None:
    result = await _prints(box, 300_000)
    require(result.stdout.startswith("HEADxxx"), f"start: {result.stdout[:40]!r}")
    require(result.stdout.endswith("xxxTAIL"), f"end: {result.stdout[-40:]!r}")
    require(len(result.stdout) < _CAPTURE + 500, f"{len(result.stdout)} characters were kept")
    equal(result.stdout_bytes, 300_000, "stdout_bytes")


@_boxed("the whole of a long output lies in the named file", "shell")
async def _(box: Sandbox) -> None:
    result = await box.exec("seq 100000")
    expected = "".join(f"{number}\n" for number in range(1, 100_001)).encode()
    require(result.stdout_file, "no stdout_file is named")
    found = await box.read_file(result.stdout_file or "")
    require(found == expected, f"saved {len(found)} of {len(expected)} bytes or others")
    equal(
        await stdout_of(box, f"wc -c < {result.stdout_file}"), f"{len(expected)}\n", "size inside"
    )


@_boxed("the whole of a long error output lies in the named file", "shell")
async def _(box: Sandbox) -> None:
    result = await _prints(box, 200_000, stream=2)
    require(result.truncated and result.stderr_file, f"not saved: {result.truncated=}")
    found = await box.read_file(result.stderr_file or "")
    equal((len(found), found[:4], found[-4:]), (200_000, b"HEAD", b"TAIL"), "saved stderr")
    equal((result.stdout, result.stdout_file), ("", None), "standard output")


@_boxed("saved files of later commands are files of their own", "shell")
async def _(box: Sandbox) -> None:
    first = (await box.exec("yes a | head -c 100000")).stdout_file
    second = (await box.exec("yes b | head -c 100000")).stdout_file
    require(first and second and first != second, f"saved in {first!r} and {second!r}")
    equal((await box.read_file(first or ""))[:2], b"a\n", "the first file afterwards")


@_boxed("the saved file is bounded", "limits")
async def _(box: Sandbox) -> None:
    result = await _prints(box, 3 * _SAVED)
    equal(result.stdout_bytes, 3 * _SAVED, "stdout_bytes")
    size = (await box.stat(result.stdout_file or "/missing")).size_bytes
    require(0 < size <= _SAVED + 4096, f"{size} bytes were saved, {_SAVED} are allowed")


@_boxed("output that never ends stops at the timeout with flat host memory", "limits",
        flood_bytes=1 << 40)  # fmt: skip
async def _(box: Sandbox) -> None:
    async with _watched_memory() as grown:
        result = await within(8, "yes", box.exec("yes", 1.5))
    require(result.timed_out, f"yes did not time out: {result.exit_code=}")
    require(result.stdout.startswith("y\ny\n"), f"start: {result.stdout[:20]!r}")
    require(grown() < 64 * MIB, f"the harness grew by {grown() // MIB} MiB")
    await alive(box)


@_boxed("a flood is stopped at its budget", "limits", flood_bytes=4 * MIB)
async def _(box: Sandbox) -> None:
    result = await within(15, "a flood", box.exec("yes; echo after", 12))
    require(result.flooded and not result.timed_out, f"{result.flooded=} {result.timed_out=}")
    require("after" not in result.stdout, "the rest of the command line ran after the flood")
    await alive(box)


@_boxed("a flood of errors is stopped at its budget", "limits", flood_bytes=4 * MIB)
async def _(box: Sandbox) -> None:
    result = await within(15, "a flood", box.exec("while :; do printf '%8000s' x; done >&2", 12))
    require(result.flooded, f"the flood was not stopped: {result.stderr_bytes} bytes")
    await alive(box)


@contextlib.asynccontextmanager
async def _watched_memory() -> AsyncIterator[Callable[[], int]]:
    """How many bytes this process grew by at most, sampled while the block runs."""
    start, peak = _resident(), 0

    async def sample() -> None:
        nonlocal peak
        while True:
            peak = max(peak, _resident())
            await asyncio.sleep(0.05)

    task = asyncio.create_task(sample())
    try:
        yield lambda: max(0, peak - start)
    finally:
        task.cancel()


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- Timeouts, queues and ends --------------------------------------------------------------------

STUBBORN: tuple[tuple[str, str], ...] = (
    ("a sleep", "sleep 60"),
    ("a busy loop of the shell's", "while :; do :; done"),
    ("a loop of short commands", "while :; do sleep 0.01; done"),
    ("a pipeline", "sleep 60 | sleep 60 | cat"),
    ("a busy subshell", "(while :; do :; done)"),
    ("a loop inside eval", "eval 'until false; do :; done'"),
    ("a busy function", "spin() { while :; do :; done; }; spin"),
    ("a wait for a job", "sleep 60 & wait"),
    ("a read of a FIFO that nobody writes", "mkfifo p; cat p"),
    ("a read by the shell of a FIFO", "mkfifo q; exec 7<>q; read -u 7 x"),
    ("a child that ignores signals",
     "bash -c \"trap '' TERM INT HUP USR1; while :; do sleep 1; done\""),
    ("a subshell that ignores signals", "(trap '' TERM INT HUP USR1; while :; do :; done)"),
    ("a shell that ignores signals", "trap '' TERM INT HUP; while :; do :; done"),
    ("a shell that ignores every signal it can",
     "trap '' TERM INT HUP QUIT USR1 USR2 ALRM PIPE CHLD CONT; while :; do :; done"),
    ("a shell whose traps start over", "trap 'while :; do :; done' USR1 TERM INT; sleep 60"),
    ("a shell that stopped itself", "kill -STOP $$"),
    ("a stopped child", "sleep 60 & kill -STOP $!; wait $!"),
    ("a long loop over braces",
     "for i in {1..1000}; do for j in {1..1000}; do :; done; sleep 1; done"),
)  # fmt: skip


def _timeout_check(what: str, command: str) -> Check:
    async def run(make: MakeSandbox) -> None:
        async with opened(make) as box:
            start = time.monotonic()
            result = await within(12, f"a timeout of 0.7 s of {command!r}", box.exec(command, 0.7))
            took = time.monotonic() - start
            require(result.timed_out, f"{command!r} did not time out: {result!r:.300}")
            require(0.6 <= took < 3.7, f"a timeout of 0.7 s took {took:.1f} s")
            await alive(box)

    return Check(f"{what} ends at its timeout and the shell answers", _with_shell(("shell",)), run)


_registered.extend(_timeout_check(what, command) for what, command in STUBBORN)


def _state_check(what: str, command: str) -> Check:
    async def run(make: MakeSandbox) -> None:
        async with opened(make) as box:
            await box.exec("cd /tmp; plain=1; export SHARED=2; f() { echo three; }; a=(4 5)")
            require((await box.exec(command, 0.6)).timed_out, "no timeout")
            found = await stdout_of(box, 'pwd; echo $plain $SHARED; f; echo "${a[1]}"')
            equal(found, "/tmp\n1 2\nthree\n5\n", "directory, variables, function, array")

    return Check(f"a timeout of {what} keeps the shell's state", _with_shell(("shell",)), run)


_registered.extend(
    _state_check(*row)
    for row in (
        ("a sleep", "sleep 60"),
        ("a busy loop", "while :; do :; done"),
        ("a pipeline", "sleep 60 | cat"),
        ("a child that ignores signals", "bash -c \"trap '' TERM INT; sleep 60; sleep 60\""),
    )
)


async def _cut_short(
    box: Sandbox, command: str, seconds: float, begun: Callable[[ExecResult], Awaitable[bool]]
) -> ExecResult:
    """The result of a command that its timeout cut short, but not before it had begun.

    A loaded machine may need longer than that for the first line: then it gets longer.
    """
    while True:
        result = await box.exec(command, seconds)
        require(result.timed_out, f"no timeout: {result!r:.300}")
        if seconds > 8 or await begun(result):
            return result
        seconds *= 3


@_boxed("a timeout keeps what was printed and drops the rest of the line", "shell")
async def _(box: Sandbox) -> None:
    async def begun(result: ExecResult) -> bool:
        return bool(result.stderr)

    line = "echo before; echo warn >&2; sleep 60; echo after | tee after"
    result = await _cut_short(box, line, 0.6, begun)
    equal((result.stdout, result.stderr), ("before\n", "warn\n"), "result")
    await asyncio.sleep(0.3)
    await refused(box.stat("after"), SandboxFileError, what="the rest of the line, which ran")


_BEAT = "while :; do echo x >> {path}; sleep 0.05; done"


async def _size(box: Sandbox, path: str) -> int:
    """Of a heartbeat file inside; 0 before the first beat."""
    try:
        return (await box.stat(path)).size_bytes
    except SandboxFileError:
        return 0


async def _grows(box: Sandbox, path: str) -> bool:
    """Whether a heartbeat file that was begun still grows."""
    before = (await box.stat(path)).size_bytes
    await asyncio.sleep(0.5)
    return (await box.stat(path)).size_bytes > before


async def _beats(box: Sandbox, path: str, what: str) -> None:
    """A heartbeat file is there and grows, at once or as soon as a loaded machine comes to it."""
    before = await _size(box, path)
    deadline = time.monotonic() + 10
    while (await _size(box, path)) <= before:
        require(time.monotonic() < deadline, what)
        await asyncio.sleep(0.02)


async def _cut_short_beating(box: Sandbox, command: str) -> None:
    """A command that leaves a heartbeat in `/testbed/beat` is cut short after the first one."""

    async def begun(_: ExecResult) -> bool:
        return await _size(box, "/testbed/beat") > 0

    await _cut_short(box, command, 1.0, begun)


@_boxed("a timeout ends daemons that the command forked twice", "processes")
async def _(box: Sandbox) -> None:
    beat = _BEAT.format(path="/testbed/beat")
    await _cut_short_beating(
        box, f"( setsid bash -c \"trap '' TERM HUP INT; {beat}\" >/dev/null 2>&1 & ) ; sleep 60"
    )
    require(not await _grows(box, "/testbed/beat"), "the daemon outlived the timeout")


@_boxed("a timeout ends a job that the command put into the background", "processes")
async def _(box: Sandbox) -> None:
    await _cut_short_beating(box, f"{_BEAT.format(path='/testbed/beat')} & sleep 60")
    require(not await _grows(box, "/testbed/beat"), "the job outlived the timeout of its command")


@_boxed("a timeout ends children that fork faster than they are looked at", "processes")
async def _(box: Sandbox) -> None:
    relay = "relay() { echo x >> /testbed/beat; sleep 0.02; relay & disown; }; relay; sleep 60"
    await _cut_short_beating(box, relay)
    require(not await _grows(box, "/testbed/beat"), "a relay of children outlived the timeout")


@_boxed("a timeout spares a background job of an earlier command", "processes")
async def _(box: Sandbox) -> None:
    await box.exec(_BEAT.format(path="/testbed/early") + " &")
    await _beats(box, "/testbed/early", "the job never ran")
    require((await box.exec("sleep 60", 0.6)).timed_out, "no timeout")
    await _beats(box, "/testbed/early", "the earlier job ended with the timeout")
    await box.exec("kill %1")


@_boxed("a timeout spares a daemon of an earlier command", "processes")
async def _(box: Sandbox) -> None:
    beat = _BEAT.format(path="/testbed/early")
    await box.exec(f"( setsid bash -c '{beat}' >/dev/null 2>&1 & )")
    await _beats(box, "/testbed/early", "the daemon never ran")
    require((await box.exec("while :; do :; done", 0.6)).timed_out, "no timeout")
    await _beats(box, "/testbed/early", "the earlier daemon ended with the timeout")


@_boxed("the policy's timeout holds where none is given", "shell", command_timeout_s=0.6)
async def _(box: Sandbox) -> None:
    require((await within(8, "sleep", box.exec("sleep 60"))).timed_out, "no timeout")


@_boxed("concurrent commands run one after the other in the order of the calls", "shell")
async def _(box: Sandbox) -> None:
    calls = [f"echo start{n} >> order; sleep 0.05; echo end{n} >> order" for n in range(10)]
    results = await asyncio.gather(*(box.exec(call) for call in calls))
    require(all(result.exit_code == 0 for result in results), "a queued command failed")
    expected = "".join(f"start{n}\nend{n}\n" for n in range(10))
    equal((await box.read_file("order")).decode(), expected, "order of ten commands")


@_boxed("waiting in the queue is not working time", "shell")
async def _(box: Sandbox) -> None:
    first, second = await asyncio.gather(box.exec("sleep 1.2"), box.exec("echo second", 1.0))
    require(not first.timed_out and not second.timed_out, "the queue counted as working time")
    require(second.duration_s < 0.9, f"echo is said to take {second.duration_s:.1f} s")


@_boxed("file operations do not wait for a running command", "shell")
async def _(box: Sandbox) -> None:
    running = asyncio.create_task(box.exec("sleep 3"))
    await asyncio.sleep(0.2)
    await within(2, "write_file", box.write_file("beside", b"x"))
    equal(await within(2, "read_file", box.read_file("beside")), b"x", "the file")
    require(not running.done(), "the command ended too early")
    await running


@_boxed("a cancelled call stops its command and leaves the sandbox usable", "processes")
async def _(box: Sandbox) -> None:
    await box.exec("kept=7")
    running = asyncio.create_task(box.exec(_BEAT.format(path="/testbed/beat"), 60))
    await _beats(box, "/testbed/beat", "the command never ran")
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await within(6, "the cancelled call", running)
    equal((await box.exec("echo $kept", 10)).stdout, "7\n", "the shell after a cancelled call")
    require(not await _grows(box, "/testbed/beat"), "the cancelled command still runs")


@_boxed("a call cancelled in the queue never runs", "shell")
async def _(box: Sandbox) -> None:
    first = asyncio.create_task(box.exec("sleep 0.5"))
    second = asyncio.create_task(box.exec("echo ran > ran"))
    await asyncio.sleep(0.2)
    second.cancel()
    await first
    await alive(box)
    await refused(box.stat("ran"), SandboxFileError, what="the file of a cancelled call")


@_check("calls after close say that the sandbox is closed")
async def _(make: MakeSandbox) -> None:
    async with opened(make) as box:
        await box.close()
        for work in (box.exec("true"), box.read_file("x"), box.write_file("x", b"")):
            died = await refused(work, SandboxDied, what="a call after close")
            equal(getattr(died, "cause", None), DeathCause.CLOSED, "cause")


@_check("closing twice does nothing")
async def _(make: MakeSandbox) -> None:
    async with opened(make) as box:
        await box.close()
        await within(2, "the second close", box.close())


@_check("closing a sandbox that never started does nothing")
async def _(make: MakeSandbox) -> None:
    box = await _build(make, small_policy())
    await within(5, "close", box.close())


@_check("closing during a command ends it at once", "processes")
async def _(make: MakeSandbox) -> None:
    async with opened(make) as box:
        running = asyncio.create_task(box.exec("while :; do :; done", 60))
        waiting = asyncio.create_task(box.exec("echo queued", 60))
        await asyncio.sleep(0.3)
        await within(5, "close during a command", box.close())
        for task in (running, waiting):
            await refused(within(3, "the call", task), SandboxDied, what="a call at the close")


@_check("a sandbox works as a context manager")
async def _(make: MakeSandbox) -> None:
    async with await _build(make, small_policy()) as box:
        await box.write_file("a", b"1")
    await refused(box.read_file("a"), SandboxDied, what="a read after the block")


@_check("fifty sandboxes start at once and answer", "shell", slow=True)
async def _(make: MakeSandbox) -> None:
    async def one(number: int) -> str:
        async with opened(make) as box:
            return (await box.exec(f"echo {number}", 60)).stdout

    found = await within(120, "fifty starts", asyncio.gather(*(one(n) for n in range(50))))
    equal(found, [f"{number}\n" for number in range(50)], "answers")


@_check("two sandboxes do not see each other's files")
async def _(make: MakeSandbox) -> None:
    async with opened(make) as one, opened(make) as other:
        await one.write_file("/tmp/mine", b"1")
        await refused(other.read_file("/tmp/mine"), SandboxFileError, what="a neighbour's file")


@_boxed("each promise of the policy says how it is kept")
async def _(box: Sandbox) -> None:
    for line in box.enforcement:
        require(line.promise and line.means, f"an empty line: {line!r}")
        require(not line.holds or line.means != "none", f"means and holds disagree: {line!r}")


async def _survives_or_dies(box: Sandbox, command: str) -> None:
    """After an attack the sandbox either answers or is typed as dead, promptly."""
    try:
        await within(12, repr(command), box.exec(command, 3))
        await alive(box)
    except SandboxDied as died:
        require(died.cause is not DeathCause.CLOSED, "an attack is reported as our own close")


def _attack_check(what: str, command: str) -> Check:
    async def run(make: MakeSandbox) -> None:
        async with opened(make) as box:
            await _survives_or_dies(box, command)

    return Check(f"{what} ends in an answer or in a typed death", _with_shell(("processes",)), run)


_registered.extend(
    _attack_check(*row)
    for row in (
        ("killing every process inside", "kill -9 -1"),
        ("killing pid 1", "kill -9 1; kill -TERM 1; sleep 0.3"),
        ("stopping every process inside", "kill -STOP -1"),
        ("killing the shell's parent", "kill -9 $PPID; sleep 0.3"),
    )
)


# --- Files ----------------------------------------------------------------------------------------

ODD_NAMES: tuple[str, ...] = (
    "with space",
    'quo\'te "double"',
    "-rf",
    "--help",
    "new\nline",
    "tab\tand\x1b[31mescape",
    "żółć 漢字 🙂",
    "$(touch pwned) `x` ${y} *?[a]",
    "back\\slash",
    "~",
    "...",
    ".hidden",
    "n" * 255,
    "deep/" * 30 + "end",
)


@_boxed("files with odd names are written, read, listed and described")
async def _(box: Sandbox) -> None:
    for number, name in enumerate(ODD_NAMES):
        data = f"content {number}".encode()
        await box.write_file(f"odd/{name}", data)
        equal(await box.read_file(f"odd/{name}"), data, f"content of {name!r:.60}")
        found = await box.stat(f"odd/{name}")
        equal((found.kind, found.size_bytes), ("file", len(data)), f"stat of {name!r:.60}")
    names = {entry.path for entry in await box.list_dir("odd")}
    equal(names, {name.split("/")[0] for name in ODD_NAMES}, "names of the folder")


@_boxed("files with odd names are the same files for the shell", "shell")
async def _(box: Sandbox) -> None:
    await box.write_file("-n we'ird\nname", b"text\n")
    equal(await stdout_of(box, "cat -- $'-n we\\'ird\\nname'"), "text\n", "content for the shell")


@_boxed("a relative path starts at the policy's working directory")
async def _(box: Sandbox) -> None:
    await box.write_file("a/b", b"1")
    equal(await box.read_file("/testbed/a/b"), b"1", "content by the absolute path")


@_boxed("a relative path does not follow the shell's cd", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("cd /tmp")
    await box.write_file("here", b"1")
    equal(await stdout_of(box, "cat /testbed/here"), "1", "content")


@_boxed("missing parent folders are made")
async def _(box: Sandbox) -> None:
    await box.write_file("/new/one/two/file", b"1")
    equal((await box.stat("/new/one/two")).kind, "directory", "kind of the parent")


@_boxed("an existing file is replaced whole")
async def _(box: Sandbox) -> None:
    await box.write_file("f", b"long content")
    await box.write_file("f", b"short")
    equal(await box.read_file("f"), b"short", "content")


@_boxed("an existing file keeps its mode", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("echo old > f; chmod 751 f")
    await box.write_file("f", b"new")
    equal(await stdout_of(box, "stat -c %a f; cat f"), "751\nnew", "mode and content")


@_boxed("an exclusive write refuses an existing file")
async def _(box: Sandbox) -> None:
    await box.write_file("f", b"1", exclusive=True)
    await refused(box.write_file("f", b"2", exclusive=True), SandboxFileError, what="second write")
    equal(await box.read_file("f"), b"1", "content")


@_boxed("an exclusive write refuses a dangling link", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("ln -s /testbed/elsewhere link")
    await refused(box.write_file("link", b"2", exclusive=True), SandboxFileError, what="a link")


@_boxed("empty files stay empty")
async def _(box: Sandbox) -> None:
    await box.write_file("f", b"")
    equal((await box.read_file("f"), (await box.stat("f")).size_bytes), (b"", 0), "content, size")


@_boxed("every byte value survives")
async def _(box: Sandbox) -> None:
    data = bytes(range(256)) * 5 + b"\r\n\n\r"
    await box.write_file("f", data)
    equal(await box.read_file("f"), data, "content")


@_boxed("a read limit is exact")
async def _(box: Sandbox) -> None:
    await box.write_file("f", b"x" * 11)
    equal(len(await box.read_file("f", limit_bytes=11)), 11, "length at the limit")
    await refused(
        box.read_file("f", limit_bytes=10), SandboxFileError, what="a read over its limit"
    )


@_boxed("a read limit holds for a file that says it is empty", "processes")
async def _(box: Sandbox) -> None:
    with contextlib.suppress(SandboxFileError):
        found = await within(10, "read", box.read_file("/proc/self/mountinfo", limit_bytes=16))
        require(len(found) <= 16, f"{len(found)} bytes came through a limit of 16")


@_boxed("what is missing is named")
async def _(box: Sandbox) -> None:
    for work in (box.read_file("no/such"), box.stat("no/such"), box.list_dir("no/such")):
        error = await refused(work, SandboxFileError, what="a missing path")
        require("no/such" in str(error), f"the message does not name the path: {error}")


@_boxed("a folder is not a file and a file is not a folder")
async def _(box: Sandbox) -> None:
    await box.write_file("d/f", b"1")
    for work in (box.read_file("d"), box.write_file("d", b""), box.list_dir("d/f"),
                 box.write_file("d/f/g", b"")):  # fmt: skip
        await refused(work, SandboxFileError, what="the wrong kind")
    equal(await box.read_file("d/f"), b"1", "content afterwards")


@_boxed("paths with NUL bytes, too long or empty names are refused")
async def _(box: Sandbox) -> None:
    for path in ("a\0b", "x" * 300, "y/" * 3000):
        await refused(box.read_file(path), SandboxFileError, what=f"reading {path!r:.20}")
        await refused(box.write_file(path, b""), SandboxFileError, what=f"writing {path!r:.20}")


@_boxed("a folder is listed by name with kinds and sizes")
async def _(box: Sandbox) -> None:
    for name, data in (("d/b", b"22"), ("d/a", b"1"), ("d/c/e", b"")):
        await box.write_file(name, data)
    found = [(entry.path, entry.kind) for entry in await box.list_dir("d")]
    equal(found, [("a", "file"), ("b", "file"), ("c", "directory")], "names and kinds")
    equal((await box.list_dir("d"))[1].size_bytes, 2, "size")


@_boxed("a folder of thousands is listed whole", "shell")
async def _(box: Sandbox) -> None:
    await stdout_of(box, "mkdir many; cd many; seq -f f%05g 3000 | xargs touch; cd ..")
    equal(len(await within(15, "list", box.list_dir("many"))), 3000, "number of names")


@_boxed("what is at a path is described without following its last link", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("echo x > f; chmod 640 f; ln -s f l; mkfifo p; mkdir d")
    kinds = [(await box.stat(path)).kind for path in ("f", "l", "p", "d", "/dev/null")]
    equal(kinds, ["file", "link", "fifo", "directory", "device"], "kinds")
    equal((await box.stat("f")).mode & 0o7777, 0o640, "mode")


@_boxed("a hundred megabytes go in and out byte for byte", slow=True)
async def _(box: Sandbox) -> None:
    data = hashlib.shake_256(b"seed").digest(1 * MIB) * 100
    await within(60, "write", box.write_file("big", data))
    require(await within(60, "read", box.read_file("big")) == data, "the bytes differ")


@_boxed("files of the shell and of the API are the same", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("printf 'from shell' > one")
    equal(await box.read_file("one"), b"from shell", "read of what the shell wrote")
    await box.write_file("two", b"from api")
    equal(await stdout_of(box, "cat two"), "from api", "what the shell reads")


SPECIAL: tuple[tuple[str, str, str], ...] = (
    ("a FIFO", "mkfifo x", "x"),
    ("a FIFO that somebody writes", "mkfifo x; (echo data > x) &", "x"),
    ("a link to a FIFO", "mkfifo p; ln -s p x", "x"),
    ("a socket", "python3 -c \"import socket; socket.socket(1).bind('x')\"", "x"),
    ("a device", "true", "/dev/zero"),
    ("a link to a device", "ln -s /dev/zero x", "x"),
    ("a folder behind a link", "ln -s /tmp x", "x"),
    ("a link to itself", "ln -s x x", "x"),
    ("an open pipe of a process", "sleep 30 | sleep 30 &", "/proc/self/fd/0"),
)


def _special_check(what: str, setup: str, path: str) -> Check:
    async def run(make: MakeSandbox) -> None:
        async with opened(make) as box:
            await box.exec(setup)
            await refused(box.read_file(path), SandboxFileError, what=f"reading {what}")
            await refused(box.write_file(path, b"x"), SandboxFileError, what=f"writing {what}")
            await box.write_file("after", b"1")
            await alive(box)

    needs = ("shell", "python3") if "python3" in setup else ("processes",)
    return Check(f"{what} is refused at once", _with_shell(needs), run)


_registered.extend(_special_check(*row) for row in SPECIAL)


@_boxed("links inside are followed inside", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("mkdir d; echo x > d/f; ln -s d/f near; ln -s /testbed/d/f far; ln -s d dir")
    for path in ("near", "far", "dir/f", "/proc/../testbed/dir/../d/f"):
        equal(await box.read_file(path), b"x\n", f"content through {path}")
    await box.write_file("far", b"y")
    equal(await box.read_file("d/f"), b"y", "content written through a link")


@_boxed("a folder under a name with dots stays inside")
async def _(box: Sandbox) -> None:
    await box.write_file("/../../../../tmp/up", b"1")
    equal(await box.read_file("/tmp/up"), b"1", "content of a path above the root")


# --- The host behind links ------------------------------------------------------------------------


@contextlib.contextmanager
def canary() -> Iterator[Path]:
    """A file of the host's, world-readable and -writable, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="sandlot-canary-") as folder:
        os.chmod(folder, 0o777)
        path = Path(folder, "canary.txt")
        path.write_text(_CANARY)
        path.chmod(0o666)
        yield path


def untouched(path: Path) -> None:
    """The canary is as it was and has no new neighbours."""
    equal(path.read_text(), _CANARY, "the canary on the host")
    equal(os.listdir(path.parent), [path.name], "the canary's folder on the host")


async def no_canary(work: Awaitable[bytes], what: str) -> None:
    """A read that may fail but may not give the canary."""
    with contextlib.suppress(SandboxFileError):
        found = await within(15, what, work)
        require(_CANARY.encode() not in found, f"{what} gave a file of the host")


def host_links(path: Path) -> dict[str, str]:
    """Ways for a link to point at a host path, by name."""
    return {
        "absolute": str(path),
        "climbing": "../" * 40 + str(path).lstrip("/"),
        "by-self-root": f"/proc/self/root{path}",
        "by-init-root": f"/proc/1/root{path}",
        "by-self-cwd": f"/proc/self/cwd/{'../' * 20}{path}",
        "by-thread": f"/proc/thread-self/root{path}",
        "by-parent": f"/proc/2/root{path}",
    }


def _host_check(
    name: str, attack: Callable[[Sandbox, str, Path], Coroutine[Any, Any, None]]
) -> None:
    """Register a check that plants every kind of link to a canary, then attacks through each."""

    async def run(make: MakeSandbox) -> None:
        with canary() as path:
            async with opened(make) as box:
                for kind, target in host_links(path).items():
                    await box.exec(f"ln -sfn '{target}' to-{kind}")
                    await box.exec(f"ln -sfn '{os.path.dirname(target)}' dir-{kind}")
                    await attack(box, kind, path)
                    untouched(path)

    _registered.append(Check(name, _with_shell(("processes",)), run))


async def _read_through(box: Sandbox, kind: str, path: Path) -> None:
    await no_canary(box.read_file(f"to-{kind}"), f"reading a link ({kind})")
    await no_canary(box.read_file(f"dir-{kind}/{path.name}"), f"reading below a link ({kind})")
    await no_canary(box.read_file(host_links(path)[kind]), f"reading the path itself ({kind})")


async def _write_through(box: Sandbox, kind: str, path: Path) -> None:
    for target in (f"to-{kind}", f"dir-{kind}/{path.name}", f"dir-{kind}/new/file"):
        with contextlib.suppress(SandboxFileError):
            await within(15, "write", box.write_file(target, b"overwritten"))


async def _list_through(box: Sandbox, kind: str, path: Path) -> None:
    with contextlib.suppress(SandboxFileError):
        names = [entry.path for entry in await box.list_dir(f"dir-{kind}")]
        require(path.name not in names, f"a folder of the host is listed ({kind})")
    with contextlib.suppress(SandboxFileError):
        found = await box.stat(f"dir-{kind}/{path.name}")
        raise ContractViolation(f"a file of the host is described ({kind}): {found}")


async def _upload_through(box: Sandbox, kind: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, path.name).write_text("uploaded")
        for target in (f"dir-{kind}", f"dir-{kind}/sub"):
            with contextlib.suppress(SandboxFileError):
                await within(15, "upload", box.upload(Path(folder), target))
        with contextlib.suppress(SandboxFileError):
            await within(15, "upload", box.upload(Path(folder, path.name), f"to-{kind}"))


async def _collect_through(box: Sandbox, kind: str, path: Path) -> None:
    await box.exec(f"rm -rf out; mkdir out; cp -P to-{kind} dir-{kind} out/")
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "into")
        into.mkdir()
        for paths in (["out"], [f"to-{kind}"], [f"dir-{kind}"], [f"dir-{kind}/{path.name}"]):
            await within(20, "collect", box.collect(paths, into))
        _nothing_of_the_host(Path(folder), into)


def _nothing_of_the_host(folder: Path, into: Path) -> None:
    equal(os.listdir(folder), [into.name], "entries beside the folder that was collected into")
    for found in into.rglob("*"):
        require(not found.is_symlink(), f"a link was collected: {found.name}")
        if found.is_file():
            require(_CANARY.encode() not in found.read_bytes(), f"{found.name} is of the host")


_host_check("a link to the host never reads the host", _read_through)
_host_check("a link to the host never writes the host", _write_through)
_host_check("a link to the host never lists or describes the host", _list_through)
_host_check("an upload through a link to the host stays inside", _upload_through)
_host_check("collecting links to the host brings nothing of the host", _collect_through)


@_check("the saved output behind planted links never writes the host", "processes")
async def _(make: MakeSandbox) -> None:
    with canary() as path:
        async with opened(make) as box:
            first = await box.exec("seq 50000")
            folder = os.path.dirname(first.stdout_file or "/tmp/x")
            plant = f'cd {folder} && for f in *; do ln -sfn {path} "$f"; done; '
            plant += f"cd / && rm -rf {folder}; ln -sfn {path.parent} {folder}"
            await box.exec(plant)
            second = await within(15, "a long output", box.exec("seq 60000"))
            require(second.truncated, "the long output is not marked")
            if second.stdout_file:
                await no_canary(box.read_file(second.stdout_file), "the saved output")
        untouched(path)


@_check("links swapped in mid-operation never touch the host", "processes", slow=True)
async def _(make: MakeSandbox) -> None:
    with canary() as path, tempfile.TemporaryDirectory() as folder:
        async with opened(make) as box:
            inner = f"flip{path}"
            await box.exec(f"mkdir -p {os.path.dirname(inner)}; echo inside > {inner}")
            flip = (
                "mv -T flip away; ln -s / flip; rm flip; ln -s {0} flip; rm flip; mv -T away flip"
            )
            await box.exec(f"while :; do {flip.format('/proc/1/root')}; done >/dev/null 2>&1 &")
            for number in range(50):
                await _touch_all(box, inner, Path(folder, str(number)))
                untouched(path)
        for found in Path(folder).rglob("*"):
            if found.is_file():
                require(_CANARY not in found.read_text(), "the host's file was collected")


async def _touch_all(box: Sandbox, inner: str, into: Path) -> None:
    into.mkdir()
    await no_canary(box.read_file(inner), "reading a path that flips")
    with contextlib.suppress(SandboxFileError):
        await box.write_file(inner, b"written")
    with contextlib.suppress(SandboxFileError):
        await box.list_dir(os.path.dirname(inner))
    with contextlib.suppress(SandboxFileError):
        await within(15, "collect", box.collect([inner, os.path.dirname(inner)], into))


# --- Collect and upload ---------------------------------------------------------------------------


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sandlot-contract-") as folder:
        yield Path(folder)


@_boxed("a folder's content is collected with sizes and sums")
async def _(box: Sandbox) -> None:
    files = {"a.txt": b"1", "sub/deep/b.bin": b"\0\xff" * 1000, "sub/empty": b"", "sp ace'": b"x"}
    for name, data in files.items():
        await box.write_file(f"out/{name}", data)
    with _folder() as into:
        collected, skipped = await box.collect(["out"], into)
        equal(skipped, [], "skipped files")
        expected = {(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()}
        equal({(f.path, f.size_bytes, f.sha256) for f in collected}, expected, "collected files")
        for name, data in files.items():
            equal((into / name).read_bytes(), data, f"content of {name}")


@_boxed("a single file is collected under its name")
async def _(box: Sandbox) -> None:
    await box.write_file("/tmp/some/answer.txt", b"42")
    with _folder() as into:
        collected, _ = await box.collect(["/tmp/some/answer.txt"], into)
        equal([file.path for file in collected], ["answer.txt"], "collected names")
        equal((into / "answer.txt").read_bytes(), b"42", "content")


@_boxed("missing paths are skipped without a word")
async def _(box: Sandbox) -> None:
    with _folder() as into:
        equal(await box.collect(["no/such", "/none"], into), ([], []), "what was collected")


@_boxed("an empty folder gives nothing", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("mkdir out")
    with _folder() as into:
        equal(await box.collect(["out"], into), ([], []), "what was collected")


@_boxed("a link to a file gives that file's content", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("mkdir out; echo text > elsewhere; ln -s ../elsewhere out/link")
    with _folder() as into:
        collected, _ = await box.collect(["out"], into)
        equal([file.path for file in collected], ["link"], "collected names")
        equal((into / "link").read_bytes(), b"text\n", "content")
        require(not (into / "link").is_symlink(), "a link was made on the host")


@_boxed("FIFOs, sockets, devices and dangling links are skipped with a reason", "processes")
async def _(box: Sandbox) -> None:
    await box.exec("mkdir out; cd out; mkfifo pipe; ln -s /dev/zero zero; ln -s none dangling; "
                   "ln -s loop loop; echo 1 > good; cd ..")  # fmt: skip
    with _folder() as into:
        collected, skipped = await within(15, "collect", box.collect(["out"], into))
        equal([file.path for file in collected], ["good"], "collected names")
        equal({s.path for s in skipped}, {"pipe", "zero", "dangling", "loop"}, "skipped names")
        require(all(file.reason for file in skipped), f"a reason is missing: {skipped}")


@_boxed("a link to a folder above does not make collecting endless", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("mkdir -p out/d; ln -s .. out/d/up; ln -s / out/root; echo 1 > out/good")
    with _folder() as into:
        collected, _ = await within(15, "collect", box.collect(["out"], into))
        require("good" in [file.path for file in collected], "the good file is missing")


@_boxed("a sparse file of ten gigabytes is skipped by the limit", "shell", collect_bytes=8 * MIB)
async def _(box: Sandbox) -> None:
    await box.exec("mkdir out; echo 1 > out/good; truncate -s 10G out/sparse || echo > out/sparse")
    with _folder() as into:
        collected, skipped = await within(10, "collect", box.collect(["out"], into))
        require("good" in [file.path for file in collected], "the good file is missing")
        size = sum(file.stat().st_size for file in into.iterdir())
        require(size <= 8 * MIB, f"{size} bytes were collected")
        if (await box.stat("out/sparse")).size_bytes > 8 * MIB:
            equal([file.path for file in skipped], ["sparse"], "skipped names")


@_boxed("the total of what is collected is bounded", collect_bytes=100_000)
async def _(box: Sandbox) -> None:
    for number in range(5):
        await box.write_file(f"out/{number}", b"x" * 40_000)
    with _folder() as into:
        collected, skipped = await box.collect(["out"], into)
        equal((len(collected), len(skipped)), (2, 3), "collected and skipped")


@_boxed("too many files are bounded and said", "shell", collect_files=50)
async def _(box: Sandbox) -> None:
    await box.exec("mkdir out; cd out; seq 2000 | xargs touch; cd ..")
    with _folder() as into:
        collected, skipped = await within(15, "collect", box.collect(["out"], into))
        require(len(collected) <= 50, f"{len(collected)} files were collected, 50 are allowed")
        require(skipped, "nothing says that files were left")


@_boxed("a tree without end in depth is bounded", "shell")
async def _(box: Sandbox) -> None:
    await stdout_of(box, "mkdir -p out/$(printf 'd/%.0s' {1..600})")
    with _folder() as into:
        await within(20, "collect", box.collect(["out"], into))


@_boxed("names with control characters or invalid UTF-8 are collected or named as skipped",
        "shell")  # fmt: skip
async def _(box: Sandbox) -> None:
    await box.exec(
        "mkdir out; cd out; touch $'new\\nline' $'esc\\e[2J' $'bad\\xff\\xfe' good; cd .."
    )
    with _folder() as into:
        collected, skipped = await within(10, "collect", box.collect(["out"], into))
        equal(len(collected) + len(skipped), 4, "names seen")
        require("good" in [file.path for file in collected], "the good file is missing")
        equal(len(os.listdir(os.fsencode(into))), len(collected), "files on the host")


@_boxed("names like parent folders stay in the folder", "shell")
async def _(box: Sandbox) -> None:
    await box.exec("mkdir -p 'out/..a' 'out/. .'; echo 1 > 'out/..a/..b'; echo 2 > 'out/. ./...'")
    with _folder() as outer:
        into = outer / "into"
        into.mkdir()
        collected, _ = await box.collect(["out"], into)
        equal(len(collected), 2, "collected files")
        equal(os.listdir(outer), ["into"], "entries beside the folder")


@_boxed("a folder is uploaded with its subfolders, modes and links inside", "shell")
async def _(box: Sandbox) -> None:
    with _folder() as source:
        (source / "sub").mkdir()
        (source / "sub/data").write_bytes(b"\0\xff")
        (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
        (source / "run.sh").chmod(0o755)
        (source / "link").symlink_to("sub/data")
        await box.upload(source, "in")
    equal(await box.read_file("in/sub/data"), b"\0\xff", "content")
    equal(await stdout_of(box, "in/run.sh; readlink in/link"), "ran\nsub/data\n", "script, link")


@_boxed("an upload counts its files and lands under the target")
async def _(box: Sandbox) -> None:
    with _folder() as source:
        (source / "d").mkdir()
        for name in ("a", "b", "d/c"):
            (source / name).write_text(name)
        equal(await box.upload(source, "/in"), 3, "number of files")
        equal(await box.upload(source / "a", "/one/file"), 1, "number of files")
    equal(await box.read_file("/in/d/c"), b"d/c", "content")
    equal(await box.read_file("/one/file"), b"a", "content of the single file")


@_boxed("an upload refuses a link that leads out")
async def _(box: Sandbox) -> None:
    with canary() as path:
        for target in (str(path), os.path.relpath(path, path.parent.parent / "x")):
            with _folder() as source:
                (source / "link").symlink_to(target)
                error = await refused(box.upload(source, "in"), InputError, what="a link out")
                require("link" in str(error), f"the message does not name it: {error}")


@_boxed("an upload of something missing or special names it")
async def _(box: Sandbox) -> None:
    with _folder() as source:
        error = await refused(box.upload(source / "gone", "in"), InputError, what="no source")
        require("gone" in str(error), f"the message does not name it: {error}")
        os.mkfifo(source / "pipe")
        await refused(box.upload(source, "in"), InputError, what="a FIFO in a folder")


@_boxed("an upload of an unreadable file names it")
async def _(box: Sandbox) -> None:
    if os.geteuid() == 0:
        return  # root reads everything: nothing to see
    with _folder() as source:
        (source / "secret").write_text("x")
        (source / "secret").chmod(0)
        error = await refused(box.upload(source, "in"), InputError, what="an unreadable file")
        require("secret" in str(error), f"the message does not name it: {error}")


# --- State ----------------------------------------------------------------------------------------


@_check("files, directory and exported variables come back in a fresh sandbox", "shell")
async def _(make: MakeSandbox) -> None:
    with _folder() as folder:
        async with opened(make) as box:
            await box.exec("mkdir -p /testbed/a /opt/b; echo 1 > /testbed/a/f; echo 2 > /opt/b/g")
            await box.exec("ln -s f a/l; chmod 700 a/f; cd /opt/b; export KEPT='a \"b\" $c\n d'")
            await box.snapshot(folder / "state")
        async with opened(make) as box:
            await box.restore(folder / "state")
            found = await stdout_of(box, "pwd; cat g; cd /testbed/a; stat -c %a f; readlink l")
            equal(found, "/opt/b\n2\n700\nf\n", "directory and files")
            equal(await stdout_of(box, 'printf %s "$KEPT"'), 'a "b" $c\n d', "the variable")


@_check("deleted and replaced parts of the image come back so", "processes")
async def _(make: MakeSandbox) -> None:
    delete = (
        "for f in /etc/*; do [ -f $f ] && [ ! -L $f ] && rm -f $f 2>/dev/null "
        "&& echo $f && break; done"
    )
    replace_dir = (
        'for d in /etc/*/; do [ -n "$(ls -A $d)" ] && rm -rf $d 2>/dev/null && [ ! -e $d ] '
        "&& mkdir $d && echo new > $d/only && echo $d && break; done"
    )
    with _folder() as folder:
        async with opened(make) as box:
            gone, changed = (
                (await stdout_of(box, delete)).strip(),
                (await stdout_of(box, replace_dir)).strip(),
            )
            require(gone and changed, "no file or folder of /etc could be removed")
            await box.snapshot(folder / "state")
        async with opened(make) as box:
            equal((await box.stat(gone)).kind, "file", f"{gone} of the image in a fresh sandbox")
            await box.restore(folder / "state")
            await refused(box.stat(gone), SandboxFileError, what=f"the deleted {gone}")
            equal(await stdout_of(box, f"ls -A {changed}"), "only\n", f"the replaced {changed}")


@_check("saved files of the API come back")
async def _(make: MakeSandbox) -> None:
    with _folder() as folder:
        async with opened(make) as box:
            await box.write_file("kept", b"\0\xff")
            await box.snapshot(folder / "state")
            await box.write_file("kept", b"later")
        async with opened(make) as box:
            await box.restore(folder / "state")
            equal(await box.read_file("kept"), b"\0\xff", "content")


@_boxed("a state that is missing or damaged is refused by name")
async def _(box: Sandbox) -> None:
    with _folder() as folder:
        (folder / "bad").write_bytes(b"not a state")
        for name in ("bad", "missing"):
            await refused(
                box.restore(folder / name), SandboxError, InputError, RecordError, what=name
            )


@_check("a damaged snapshot changes nothing", "processes")
async def _(make: MakeSandbox) -> None:
    with _folder() as folder:
        async with opened(make) as box:
            await box.exec("seq 50000 > many; cd /tmp; kept=5")
            await box.snapshot(folder / "state")
            data = (folder / "state").read_bytes()
            (folder / "cut").write_bytes(data[: len(data) // 2])
            await box.exec("echo later > /testbed/later")
            await refused(
                box.restore(folder / "cut"), SandboxError, InputError, what="half a snapshot"
            )
            equal(
                await stdout_of(box, "cat /testbed/later; pwd; echo $kept"),
                "later\n/tmp\n5\n",
                "the sandbox after a refused restore",
            )


@_boxed("a snapshot spares what runs in the background", "processes")
async def _(box: Sandbox) -> None:
    await box.exec(_BEAT.format(path="/testbed/early") + " &")
    await _beats(box, "/testbed/early", "the job never ran")
    with _folder() as folder:
        await box.snapshot(folder / "state")
    await _beats(box, "/testbed/early", "the job stands still after a snapshot")
    await box.exec("kill %1")


@_boxed("what ran before a restore does not run after it", "processes")
async def _(box: Sandbox) -> None:
    with _folder() as folder:
        await box.snapshot(folder / "state")
        await box.exec(_BEAT.format(path="/testbed/early") + " &")
        await _beats(box, "/testbed/early", "the job never ran")
        await box.restore(folder / "state")
        await refused(box.stat("/testbed/early"), SandboxFileError, what="a later file")
        await asyncio.sleep(0.2)
        await refused(box.stat("/testbed/early"), SandboxFileError, what="a file of a dead job")


@_boxed(
    "a fork goes on from files, directory and variables, and both go their own way", "processes"
)
async def _(box: Sandbox) -> None:
    await box.exec("echo 1 > /testbed/f; mkdir -p /opt/b; cd /opt/b; export KEPT='a b'; plain=1")
    gone = (
        await stdout_of(box, "f=$(ls -p /etc | grep -v / | head -1); rm /etc/$f; echo $f")
    ).strip()
    twin = await box.fork()
    try:
        equal(
            await stdout_of(twin, 'pwd; cat /testbed/f; echo "$KEPT$plain"'),
            "/opt/b\n1\na b\n",
            "what the fork goes on from",
        )
        await refused(twin.stat(f"/etc/{gone}"), SandboxFileError, what="a deleted file")
        await twin.exec("echo 2 > /testbed/f; export KEPT=twin")
        await box.exec("echo 3 > /testbed/g")
        equal(await stdout_of(box, 'cat /testbed/f; echo "$KEPT"'), "1\na b\n", "the first")
        await refused(twin.stat("/testbed/g"), SandboxFileError, what="the other's file")
    finally:
        await twin.close()
    await alive(box)


@_check("entering a fork does not start it a second time")
async def _(make: MakeSandbox) -> None:
    async with opened(make) as box:
        await box.write_file("f", b"1")
        async with await box.fork() as twin:
            equal(await twin.read_file("f"), b"1", "the file in the fork")


@_boxed("starting a sandbox that runs changes nothing")
async def _(box: Sandbox) -> None:
    await box.write_file("f", b"1")
    await box.start()
    equal(await box.read_file("f"), b"1", "the file after a second start")


@_check("a closed sandbox does not start again")
async def _(make: MakeSandbox) -> None:
    async with opened(make) as box:
        pass
    await refused(box.start(), SandboxDied, what="a start after close")


@_check("a fork outlives the sandbox that it came from", "processes")
async def _(make: MakeSandbox) -> None:
    async with opened(make) as box:
        await box.write_file("f", b"1")
        twin = await box.fork()
    try:
        equal(await twin.read_file("f"), b"1", "the file")
        await alive(twin)
    finally:
        await twin.close()


# --- Limits ---------------------------------------------------------------------------------------


def _holds(box: Sandbox, promise: str) -> bool:
    """Whether the backend says that it keeps a promise here; what it does not say is not tested."""
    return any(row.promise == promise and row.holds for row in box.enforcement)


@_boxed("every limit of the policy has a row that says how it is kept", "processes")
async def _(box: Sandbox) -> None:
    told = {row.promise for row in box.enforcement}
    wanted = {"files", "network", "memory", "processes", "disk", "open files", "output"}
    require(wanted <= told, f"nothing is said of {sorted(wanted - told)}")


@_boxed(
    "a full disk is an error of the command, and its space comes back",
    "processes",
    disk_bytes=32 * MIB,
)
async def _(box: Sandbox) -> None:
    if not _holds(box, "disk"):
        return
    for folder in ("/testbed", "/tmp"):
        result = await box.exec(f"head -c 100M /dev/zero > {folder}/fill", 30)
        require("No space left on device" in result.stderr, f"{folder}: {result.stderr!r}")
        await alive(box)
        equal((await box.exec(f"rm {folder}/fill; echo 1 > {folder}/small")).exit_code, 0, folder)


@_boxed(
    "a full disk refuses a file of the API and keeps the sandbox", "processes", disk_bytes=32 * MIB
)
async def _(box: Sandbox) -> None:
    if _holds(box, "disk"):
        await refused(box.write_file("big", bytes(64 * MIB)), SandboxFileError, what="a big file")
        await alive(box)


@_boxed(
    "a disk larger than the memory is filled without a death",
    "processes",
    disk_bytes=192 * MIB,
    memory_bytes=128 * MIB,
)
async def _(box: Sandbox) -> None:
    if not _holds(box, "disk"):
        return
    result = await box.exec("head -c 400M /dev/zero > fill; rm -f fill", 60)
    require("No space left on device" in result.stderr, f"{result!r}")
    await alive(box)


@_boxed("a file beyond the limit for one file is cut off", "processes", file_bytes=MIB)
async def _(box: Sandbox) -> None:
    result = await box.exec("head -c 4M /dev/zero > big; stat -c %s big")
    equal(result.stdout, f"{MIB}\n", "the size of the file")
    await alive(box)


@_boxed("a process gets no more open files than the limit", "processes", open_files=64)
async def _(box: Sandbox) -> None:
    opening = 'for n in $(seq 100 220); do eval "exec $n</dev/null" || break; done; echo $n'
    result = await box.exec(f"( ulimit -n; {opening} ) 2>&1 | tail -n 1; ulimit -Hn")
    last, hard = result.stdout.split()[-2:]
    equal(hard, "64", "the hard limit")
    require(last == "100", f"descriptor {last} could be opened")
    await alive(box)


@_boxed("processes beyond the limit are refused to the command", "processes", processes=40)
async def _(box: Sandbox) -> None:
    # Whatever shell `sh` is, it names the fork that failed; but bash would try it again for long.
    forks = "for n in $(seq 80); do sleep 5 >/dev/null 2>&1 & done"
    result = await box.exec(f"sh -c '{forks}' 2>&1 | grep -ci fork")
    if _holds(box, "processes"):
        require(result.stdout.strip() not in ("", "0"), f"80 children at a limit of 40: {result!r}")
    await alive(box)


@_boxed("memory beyond the limit ends the process that takes it", "python3", memory_bytes=96 * MIB)
async def _(box: Sandbox) -> None:
    if not _holds(box, "memory"):
        return
    taking = "python3 -c 'held = [bytearray(1 << 20) for _ in range(400)]; print(len(held))'"
    try:
        result = await box.exec(f"{taking}; echo status $?", 30)
        require("400" not in result.stdout.split(), "400 MiB were had at a limit of 96")
        await alive(box)
    except SandboxDied as died:
        equal(died.cause, DeathCause.OUT_OF_MEMORY, "cause of death")


@_check("a sandbox ends when its wall time is over, and says so", "processes")
async def _(make: MakeSandbox) -> None:
    async with opened(make, small_policy(wall_s=1.5)) as box:
        died = await refused(within(8, "exec", box.exec("sleep 30")), SandboxDied, what="a command")
        equal(getattr(died, "cause", None), DeathCause.TIME_LIMIT, "cause")
        await refused(box.read_file("x"), SandboxDied, what="a later call")


@_boxed("what a command used is measured, or not claimed", "processes")
async def _(box: Sandbox) -> None:
    busy = await box.exec("n=0; while [ $n -lt 200000 ]; do n=$((n + 1)); done")
    idle = await box.exec("true")
    if busy.cpu_s is not None and idle.cpu_s is not None:
        require(0.02 < busy.cpu_s <= 2 * busy.duration_s + 0.1, f"cpu: {busy!r}")
        require(idle.cpu_s < busy.cpu_s, f"true took {idle.cpu_s} s of CPU")
    if busy.memory_peak_bytes is not None:
        require(MIB // 8 < busy.memory_peak_bytes <= 512 * MIB, f"peak: {busy!r}")


@_check("a limit that was asked for is kept or refused by name", "processes")
async def _(make: MakeSandbox) -> None:
    policy = small_policy(cpus=0.5)
    asked = replace(policy, asked=frozenset({"memory_bytes", "cpus", "processes", "disk_bytes"}))
    box = await _build(make, asked)
    try:
        await box.start()
    except PolicyNotEnforceable as exc:
        require("asked for" in str(exc) and "--accept-unenforced" in str(exc), str(exc))
        return
    finally:
        await box.close()
    for promise in ("memory", "cpus", "processes", "disk"):
        require(_holds(box, promise), f"{promise} was asked for and does not hold")


@_check("a limit that was accepted unenforced is marked in the record", "processes")
async def _(make: MakeSandbox) -> None:
    asked = frozenset({"memory_bytes", "cpus", "processes", "disk_bytes"})
    policy = replace(small_policy(cpus=0.5), asked=asked, accepted=frozenset({"all"}))
    async with opened(make, policy) as box:
        for row in box.enforcement:
            require(row.holds or row.accepted, f"neither kept nor marked: {row!r}")


# --- Walls ----------------------------------------------------------------------------------------


@_check("nothing of the harness's environment is inside", "processes")
async def _(make: MakeSandbox) -> None:
    name = "SANDLOT_CONTRACT_CANARY"
    # Children inherit the real environment: only a variable in it can show a leak.
    os.environ[name] = _CANARY
    try:
        async with opened(make) as box:
            found = await box.exec("env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
            require(name not in found.stdout, "the variable is inside")
            for process in ("1", "2", "self"):
                await no_canary(box.read_file(f"/proc/{process}/environ"), "reading environ")
    finally:
        del os.environ[name]


@_boxed("the host's name and processes are not seen", "processes")
async def _(box: Sandbox) -> None:
    name = (await stdout_of(box, "cat /proc/sys/kernel/hostname")).strip()
    require(name != platform.node(), f"the host's name {name!r} is seen")
    marker = f"canary-{os.getpid()}"
    host = await asyncio.create_subprocess_exec("sleep", "30.5", env={"MARK": marker})
    try:
        found = await stdout_of(box, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ls -d /proc/[0-9]*")
        require("sleep 30.5" not in found, "a process of the host is seen")
        require(found.count("/proc/") < 20, f"too many processes are seen: {found:.300}")
    finally:
        host.kill()
        await host.wait()


@_boxed("there is no network interface but lo", "network")
async def _(box: Sandbox) -> None:
    equal(
        await stdout_of(box, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"), "lo\n", "names"
    )


@_boxed("an outgoing connection fails at once", "network")
async def _(box: Sandbox) -> None:
    for address in ("192.0.2.1/80", "127.0.0.1/22", "8.8.8.8/53"):
        result = await box.exec(f"(exec 3<>/dev/tcp/{address}) 2>/dev/null", 5)
        require(result.exit_code == 1 and result.duration_s < 3, f"{address}: {result!r:.300}")


_Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


def _doorman() -> tuple[list[str], _Greet]:
    """A list that grows with each visitor, and the callback of a server that fills it."""
    met: list[str] = []

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(repr(writer.get_extra_info("peername")))
        writer.close()

    return met, greet


@_check("a listener of the host's loopback is not reached", "network")
async def _(make: MakeSandbox) -> None:
    met, greet = _doorman()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server, opened(make) as box:
        port = server.sockets[0].getsockname()[1]
        await box.exec(f"(exec 3<>/dev/tcp/127.0.0.1/{port}; cat <&3) 2>/dev/null", 5)
    equal(met, [], "connections from inside")


@_check("the host's abstract sockets are not reached", "network", "python3")
async def _(make: MakeSandbox) -> None:
    name = f"\0sandlot-canary-{os.getpid()}"
    met, greet = _doorman()
    server = await asyncio.start_unix_server(greet, name)
    async with server, opened(make) as box:
        await box.exec(
            f'python3 -c "import socket; socket.socket(1).connect(chr(0) + {name[1:]!r})"', 10
        )
    equal(met, [], "connections from inside")


@_boxed("the host's password file is not read", "processes")
async def _(box: Sandbox) -> None:
    result = await box.exec("cat /etc/shadow")
    try:
        real = Path("/etc/shadow").read_text()
    except OSError:
        real = ""
    secret = [line for line in real.splitlines() if line and line in result.stdout.splitlines()]
    # A line without a hash ("name:*:…") is the same in every image and no secret.
    leaked = [line for line in secret if line.split(":")[1] not in ("*", "!", "!!", "!*", "x", "")]
    require(not leaked, f"{len(leaked)} lines of the host's /etc/shadow are readable")


@_boxed("nothing inside can gain privileges", "processes")
async def _(box: Sandbox) -> None:
    status = await stdout_of(box, "cat /proc/self/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    equal(fields["NoNewPrivs"].strip(), "1", "NoNewPrivs")
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        mask = int(fields[name].strip(), 16)
        for bit, capability in ((21, "SYS_ADMIN"), (16, "SYS_MODULE"), (17, "SYS_RAWIO"),
                                (19, "SYS_PTRACE"), (39, "BPF")):  # fmt: skip
            require(not mask >> bit & 1, f"{name} holds CAP_{capability}")


@_boxed("a seccomp filter is in force", "processes")
async def _(box: Sandbox) -> None:
    equal(await stdout_of(box, "grep '^Seccomp:' /proc/self/status"), "Seccomp:\t2\n", "mode")


REFUSED: tuple[tuple[str, str], ...] = (
    ("a new user namespace", "unshare -U true"),
    ("a new mount namespace", "unshare -m true"),
    ("a new network namespace", "unshare -n true"),
    ("a new pid namespace", "unshare -p -f true"),
    ("a user and mount namespace", "unshare -Ur -m true"),
    ("a mount of tmpfs", "mount -t tmpfs none /mnt"),
    ("a bind mount", "mount --bind /etc /mnt"),
    ("a mount of proc", "mkdir -p p && mount -t proc none p"),
    ("a remount of the root", "mount -o remount,rw /"),
    ("an unmount of proc", "umount -l /proc"),
    ("a change of root", "pivot_root . ."),
    ("entering the init's namespaces", "nsenter -t 1 -a true"),
    ("a block device", "mknod disk b 8 0 && head -c1 disk"),
    ("a memory device", "mknod mem c 1 1 && head -c1 mem"),
    ("a new host name by /proc", "echo x > /proc/sys/kernel/domainname"),
    ("a core pattern", "v=$(cat /proc/sys/kernel/core_pattern); "
     "echo \"$v\" > /proc/sys/kernel/core_pattern"),
    ("a change of the swappiness",
     "v=$(cat /proc/sys/vm/swappiness); echo $v > /proc/sys/vm/swappiness"),
    ("opening the system request trigger", ": >> /proc/sysrq-trigger"),
    ("reading kernel memory", "head -c1 /proc/kcore | grep -q ."),
    ("loading a module", "insmod /dev/null"),
    ("setting the clock", "date -s @$(($(date +%s)))"),
    ("a lower nice value", "nice -n -5 sh -c 'test $(nice) -lt 0'"),
    ("writing cgroups", "echo $$ > /sys/fs/cgroup/cgroup.procs"),
    ("a reboot", "reboot -f"),
    ("tracing the init", "gdb -p 1 -batch || strace -p 1 true"),
)  # fmt: skip


def _refused_check(what: str, command: str) -> Check:
    async def run(make: MakeSandbox) -> None:
        async with opened(make) as box:
            result = await within(12, command, box.exec(f"( {command} ) >/dev/null 2>&1", 8))
            require(result.exit_code not in (0, None), f"{command!r} was allowed: {result!r:.300}")
            await alive(box)

    return Check(f"{what} is refused", _with_shell(("processes",)), run)


_registered.extend(_refused_check(*row) for row in REFUSED)


@_boxed("there are no disks, memory or terminals in /dev", "processes")
async def _(box: Sandbox) -> None:
    names = (await stdout_of(box, "ls /dev")).split()
    bad = [n for n in names if n.startswith(("sd", "vd", "nvme", "xvd", "loop", "dm-", "mapper"))]
    bad += [n for n in names if n in ("mem", "kmem", "kmsg", "port", "kvm", "fuse", "vhost-net")]
    equal(bad, [], "devices that should not be there")


@_boxed("the usual devices work", "processes")
async def _(box: Sandbox) -> None:
    found = await stdout_of(
        box,
        "echo x > /dev/null; head -c2 /dev/zero | wc -c; head -c2 /dev/urandom | wc -c; "
        "echo err > /dev/stderr; echo out > /dev/stdout; echo s > /dev/shm/x; cat /dev/shm/x",
    )
    equal(found, "2\n2\nout\ns\n", "what devices gave")


@_boxed("measured use is plausible", "processes")
async def _(box: Sandbox) -> None:
    await box.exec("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    stats = await box.stats()
    for name in ("memory_peak_bytes", "cpu_s", "processes", "disk_bytes"):
        value = getattr(stats, name)
        require(value is None or value >= 0, f"{name} is {value}")


@_check("close leaves no process behind", "processes")
async def _(make: MakeSandbox) -> None:
    marker = f"31{time.monotonic_ns() % 10**9}"
    async with opened(make) as box:
        await box.exec(f"( setsid sleep {marker} & ); (trap '' TERM; sleep {marker}) &")
        for _ in range(100):  # the shell answers before its background child has begun
            if _host_sees(marker):
                break
            await asyncio.sleep(0.02)
        require(_host_sees(marker), "the marked process cannot be seen: nothing is proved")
    for _ in range(20):
        if not _host_sees(marker):
            return
        await asyncio.sleep(0.1)
    raise ContractViolation("processes of a closed sandbox still run")


def _host_sees(marker: str) -> bool:
    """Whether any process that this one can see has `marker` in its command line."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in entry.read_bytes():
                return True
    return False


CHECKS: tuple[Check, ...] = tuple(_registered)
