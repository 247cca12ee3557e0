"""A sandbox without a computer: canned command outputs over an in-memory file tree.

A shipped, typed double for tests of whatever uses a sandbox. Files behave as the contract says,
links included; commands only do what they were told to. It isolates nothing and runs nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import json
import os
import shlex
import stat as stat_module
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sandlot.core.errors import DeathCause, InputError, SandboxDied, SandboxError, SandboxFileError
from sandlot.core.types import CollectedFile, EgressRecord, SkippedFile
from sandlot.sandbox.base import ExecResult, FileInfo, SandboxStats, absolute
from sandlot.sandbox.policy import Enforcement, Policy

Response = str | ExecResult | Exception
Responder = Callable[[str], Response | Awaitable[Response]]

_MAX_LINKS = 40  # as Linux counts them before ELOOP


@dataclass(slots=True)
class _Folder:
    entries: dict[str, _Node] = field(default_factory=dict)
    mode: int = 0o755
    kind: str = "directory"


@dataclass(slots=True)
class _File:
    data: bytes
    mode: int = 0o644
    kind: str = "file"


@dataclass(slots=True)
class _Link:
    target: str
    mode: int = 0o777
    kind: str = "link"


@dataclass(slots=True)
class _Special:
    kind: str
    mode: int = 0o644


_Node = _Folder | _File | _Link | _Special


class FakeSandbox:
    """Answers commands from `responses`: an exact command to what it gives, or a function.

    A text is standard output with exit code 0; an `ExecResult` is given as it is; an exception
    is raised. An unknown command gives 127, as in a shell. `mkdir -p -- …` and `cd -- …`, joined
    by `&&`, work on the tree. `commands` holds every other command that was run.
    """

    backend = "fake"

    def __init__(
        self,
        responses: Mapping[str, Response] | Responder | None = None,
        *,
        policy: Policy | None = None,
        image: object = None,
        files: Mapping[str, bytes | str] | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.commands: list[str] = []
        self.started = False
        self.egress_to_report: list[EgressRecord] = []
        self._responses = {} if responses is None else responses
        self._root = _Folder()
        self._cwd = self.policy.working_dir
        self._dead: SandboxDied | None = None
        self._died = asyncio.Event()
        self._shell = asyncio.Lock()
        self._saved = 0
        for path in (self.policy.working_dir, "/tmp", "/root"):
            self._make_folders(path)
        for path, data in (files or {}).items():
            self.put(path, data)

    # For the author of a test.

    def put(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Place a file in the tree, started or not."""
        folder, name = self._parent(path, make=True)
        content = data.encode("utf-8") if isinstance(data, str) else data
        folder.entries[name] = _File(content, mode)

    def link(self, path: str, target: str) -> None:
        """Place a symbolic link; where it leads is not looked at."""
        folder, name = self._parent(path, make=True)
        folder.entries[name] = _Link(target)

    def special(self, path: str, kind: str) -> None:
        """Place something that is no file: `fifo`, `socket` or `device`."""
        folder, name = self._parent(path, make=True)
        folder.entries[name] = _Special(kind)

    def die(self, cause: DeathCause = DeathCause.KILLED, detail: str = "") -> None:
        """End the sandbox now: running and later calls raise `SandboxDied`."""
        if self._dead is None:
            self._dead = SandboxDied(cause, detail)
            self._died.set()

    # The contract.

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        return (Enforcement("isolation", "none", False, "nothing runs: outputs are canned"),)

    async def start(self) -> None:
        self._check_alive()
        self.started = True

    async def exec(self, command: str, timeout_s: float | None = None) -> ExecResult:
        self._check_usable()
        async with self._shell:
            self._check_usable()
            running = asyncio.ensure_future(self._respond(command))
            death = asyncio.ensure_future(self._died.wait())
            limit_s = self.policy.limits.command_timeout_s if timeout_s is None else timeout_s
            try:
                await asyncio.wait((running, death), timeout=limit_s, return_when="FIRST_COMPLETED")
                if running.done():
                    return running.result()
                self._check_alive()
                return ExecResult(None, "", "", limit_s, timed_out=True)
            finally:
                running.cancel()
                death.cancel()

    async def read_file(self, path: str, *, limit_bytes: int | None = None) -> bytes:
        self._check_usable()
        node = self._node(path)
        if not isinstance(node, _File):
            raise SandboxFileError(path, f"is not a regular file but a {node.kind}")
        if limit_bytes is not None and len(node.data) > limit_bytes:
            raise SandboxFileError(
                path, f"holds {len(node.data):,} bytes; at most {limit_bytes:,} are read"
            )
        return node.data

    async def write_file(self, path: str, data: bytes, *, exclusive: bool = False) -> None:
        self._check_usable()
        self._write(path, data, 0o644, exclusive)

    async def stat(self, path: str) -> FileInfo:
        self._check_usable()
        return _info(path, self._node(path, follow=path.endswith(("/", "/."))))

    async def list_dir(self, path: str) -> list[FileInfo]:
        self._check_usable()
        node = self._node(path)
        if not isinstance(node, _Folder):
            raise SandboxFileError(path, f"is not a folder but a {node.kind}")
        return [_info(name, node.entries[name]) for name in sorted(node.entries)]

    async def upload(self, source: Path, target: str) -> int:
        self._check_usable()
        if source.is_dir():
            self._make_folders(target)
            return self._upload_folder(source, source.resolve(), target)
        if not source.is_file():
            raise InputError(f"{source}: there is no such file or folder to upload")
        self._write(target, _host_bytes(source), source.stat().st_mode & 0o777)
        return 1

    async def collect(
        self, paths: Sequence[str], into: Path
    ) -> tuple[list[CollectedFile], list[SkippedFile]]:
        self._check_usable()
        collection = _Collection(into, self.policy.limits.collect_bytes)
        for path in paths:
            try:
                node = self._node(path)
            except SandboxFileError:
                continue
            if isinstance(node, _Folder):
                self._collect_folder(node, path, "", collection)
            else:
                self._collect_node(node, path, path.rstrip("/").rpartition("/")[2], collection)
        return collection.files, collection.skipped

    async def snapshot(self, target: Path) -> None:
        self._check_usable()
        state = {"fake_state": 1, "cwd": self._cwd, "root": _packed(self._root)}
        target.write_text(json.dumps(state), "utf-8")

    async def restore(self, source: Path) -> None:
        self._check_usable()
        try:
            state = json.loads(source.read_text("utf-8"))
            root, cwd = _unpacked(state["root"]), state["cwd"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise SandboxError(f"{source}: is not a kept state of a fake sandbox ({exc})") from exc
        assert isinstance(root, _Folder)
        self._root, self._cwd = root, cwd

    async def fork(self) -> FakeSandbox:
        self._check_usable()
        twin = FakeSandbox(self._responses, policy=self.policy)
        await twin.start()
        root = _unpacked(json.loads(json.dumps(_packed(self._root))))
        assert isinstance(root, _Folder)
        twin._root, twin._cwd = root, self._cwd
        return twin

    def egress(self) -> list[EgressRecord]:
        """What a test put into `egress_to_report` since the last call."""
        found, self.egress_to_report = self.egress_to_report, []
        return found

    async def stats(self) -> SandboxStats:
        return SandboxStats(disk_bytes=_size(self._root))

    async def close(self) -> None:
        self._dead = SandboxDied(DeathCause.CLOSED)
        self._died.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # Commands.

    async def _respond(self, command: str) -> ExecResult:
        built_in = self._built_in(command)
        if built_in is not None:
            return built_in
        self.commands.append(command)
        if isinstance(self._responses, Mapping):
            found = self._responses.get(command, _not_found(command))
        else:
            answer = self._responses(command)
            found = await answer if inspect.isawaitable(answer) else answer
        if isinstance(found, SandboxDied):
            self.die(found.cause, found.detail)
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, ExecResult) else self._bounded(found)

    def _built_in(self, command: str) -> ExecResult | None:
        steps = [step.strip() for step in command.split("&&")]
        if not all(step.startswith(("mkdir -p -- ", "cd -- ")) for step in steps):
            return None
        for name, *arguments in map(shlex.split, steps):
            paths = arguments[arguments.index("--") + 1 :]
            try:
                for path in paths:
                    self._make_folders(path)
            except SandboxFileError as exc:
                return ExecResult(1, "", f"{name}: {exc}\n", 0.0)
            if name == "cd":
                self._cwd = paths[-1]
        return ExecResult(0, "", "", 0.0)

    def _bounded(self, text: str) -> ExecResult:
        data = text.encode("utf-8", "surrogatepass")
        keep = self.policy.limits.capture_bytes
        if len(data) <= keep:
            return ExecResult(0, text, "", 0.0, stdout_bytes=len(data))
        self._saved += 1
        path = f"/tmp/output-{self._saved}.txt"
        self.put(path, data[: self.policy.limits.saved_bytes])
        head, tail = data[: keep // 2], data[len(data) - keep // 2 :]
        note = f"\n[… {len(data) - 2 * (keep // 2)} bytes left out …]\n".encode()
        shown = (head + note + tail).decode("utf-8", "replace")
        return ExecResult(
            0, shown, "", 0.0, truncated=True, stdout_bytes=len(data), stdout_file=path
        )

    # The tree.

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise SandboxDied(self._dead.cause, self._dead.detail)

    def _check_usable(self) -> None:
        self._check_alive()
        if not self.started:
            raise SandboxError("the sandbox has not been started; use `async with` or start()")

    def _node(self, path: str, *, follow: bool = True) -> _Node:
        trail = self._walk(path, follow=follow)
        if path.endswith("/") and not isinstance(trail[-1], _Folder):
            raise SandboxFileError(path, "is not a folder")
        return trail[-1]

    def _walk(self, path: str, *, follow: bool = True, make: bool = False) -> list[_Node]:
        """The nodes from the root to `path`, every link resolved inside the root."""
        parts = _split(path, absolute(path, self.policy.working_dir))
        trail: list[_Node] = [self._root]
        links = 0
        while parts:
            part = parts.pop(0)
            here = trail[-1]
            if not isinstance(here, _Folder):
                raise SandboxFileError(path, "a part of it is not a folder")
            if part == "..":
                trail = trail[:-1] or [self._root]
                continue
            if part not in here.entries:
                if not make:
                    raise SandboxFileError(path, "does not exist")
                here.entries[part] = _Folder()
            node = here.entries[part]
            if isinstance(node, _Link) and (parts or follow):
                links += 1
                if links > _MAX_LINKS:
                    raise SandboxFileError(path, "too many links lead on from it")
                trail = [self._root] if node.target.startswith("/") else trail
                parts = [*_split(path, node.target), *parts]
            else:
                trail.append(node)
        return trail

    def _parent(self, path: str, *, make: bool = False) -> tuple[_Folder, str]:
        """The folder that holds the last part of a path, and that part's name."""
        head, _, name = absolute(path, self.policy.working_dir).rpartition("/")
        if name in ("", ".", ".."):
            raise SandboxFileError(path, "does not name a file")
        _split(path, name)
        folder = self._walk(head or "/", make=make)[-1]
        if not isinstance(folder, _Folder):
            raise SandboxFileError(path, "a part of it is not a folder")
        return folder, name

    def _make_folders(self, path: str) -> None:
        if not isinstance(self._walk(path, make=True)[-1], _Folder):
            raise SandboxFileError(path, "exists and is not a folder")

    def _write(self, path: str, data: bytes, mode: int, exclusive: bool = False) -> None:
        for _ in range(_MAX_LINKS):
            folder, name = self._parent(path, make=True)
            node = folder.entries.get(name)
            if node is not None and exclusive:
                raise SandboxFileError(path, "exists already")
            if not isinstance(node, _Link):
                break
            path = _after_link(absolute(path, self.policy.working_dir), node.target)
        else:
            raise SandboxFileError(path, "too many links lead on from it")
        if node is not None and not isinstance(node, _File):
            raise SandboxFileError(path, f"is not a regular file but a {node.kind}")
        old = len(node.data) if node else 0
        limit = self.policy.limits.disk_bytes
        if limit is not None and _size(self._root) - old + len(data) > limit:
            raise SandboxFileError(path, f"no space left: the disk limit is {limit:,} bytes")
        folder.entries[name] = _File(data, node.mode if node else mode)

    def _upload_folder(self, folder: Path, top: Path, target: str) -> int:
        count = 0
        for entry in sorted(folder.iterdir()):
            inside = f"{target.rstrip('/')}/{entry.name}"
            if entry.is_symlink():
                if not entry.resolve().is_relative_to(top) or os.path.isabs(os.readlink(entry)):
                    raise InputError(f"{entry}: is a link that leads out of the folder")
                self.link(inside, os.readlink(entry))
                count += 1
            elif entry.is_dir():
                self._make_folders(inside)
                count += self._upload_folder(entry, top, inside)
            elif entry.is_file():
                self._write(inside, _host_bytes(entry), entry.stat().st_mode & 0o777)
                count += 1
            else:
                raise InputError(f"{entry}: is not a regular file, folder or link")
        return count

    def _collect_folder(
        self, folder: _Folder, path: str, prefix: str, collection: _Collection
    ) -> None:
        for name, node in sorted(folder.entries.items()):
            inside = f"{path.rstrip('/')}/{name}"
            relative = f"{prefix}{name}"
            if isinstance(node, _Folder):
                self._collect_folder(node, inside, f"{relative}/", collection)
            else:
                self._collect_node(node, inside, relative, collection)

    def _collect_node(self, node: _Node, path: str, relative: str, collection: _Collection) -> None:
        if isinstance(node, _Link):
            try:
                node = self._node(path)
            except SandboxFileError:
                collection.skip(relative, "a link that leads nowhere")
                return
        if not isinstance(node, _File):
            collection.skip(relative, f"not a regular file but a {node.kind}")
        elif len(collection.files) >= self.policy.limits.collect_files:
            collection.skip(relative, f"more than {self.policy.limits.collect_files:,} files")
        else:
            collection.add(relative, node.data)


@dataclass(slots=True)
class _Collection:
    into: Path
    room_bytes: int
    files: list[CollectedFile] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(SkippedFile(path, reason))

    def add(self, path: str, data: bytes) -> None:
        if len(data) > self.room_bytes:
            self.skip(path, f"{len(data):,} bytes are more than is left of the collection's limit")
            return
        self.room_bytes -= len(data)
        target = self.into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()
        target.write_bytes(data)
        self.files.append(CollectedFile(path, len(data), hashlib.sha256(data).hexdigest()))


def _after_link(path: str, target: str) -> str:
    """Where writing goes on: an absolute target from the root, another from the link's folder."""
    return target if target.startswith("/") else f"{path.rpartition('/')[0]}/{target}"


def _split(path: str, text: str) -> list[str]:
    if not text or "\0" in text:
        raise SandboxFileError(path, "is not a path")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        raise SandboxFileError(path[:80] + "…", "a name in it is longer than 255 bytes")
    return parts


def _info(path: str, node: _Node) -> FileInfo:
    size = len(node.data) if isinstance(node, _File) else 0
    types = {
        "directory": stat_module.S_IFDIR,
        "link": stat_module.S_IFLNK,
        "fifo": stat_module.S_IFIFO,
        "socket": stat_module.S_IFSOCK,
        "device": stat_module.S_IFCHR,
    }
    return FileInfo(path, node.kind, size, node.mode | types.get(node.kind, stat_module.S_IFREG))


def _size(node: _Node) -> int:
    if isinstance(node, _Folder):
        return sum(map(_size, node.entries.values()))
    return len(node.data) if isinstance(node, _File) else 0


def _not_found(command: str) -> ExecResult:
    word = (command.split() or [""])[0]
    text = f"bash: {word}: command not found (the fake sandbox has no answer to {command!r:.200})\n"
    return ExecResult(127, "", text, 0.0, stderr_bytes=len(text.encode()))


def _packed(node: _Node) -> dict[str, Any]:
    match node:
        case _Folder(entries, mode):
            packed = {name: _packed(entry) for name, entry in entries.items()}
            return {"kind": "directory", "mode": mode, "entries": packed}
        case _File(data, mode):
            return {"kind": "file", "mode": mode, "data": base64.b64encode(data).decode("ascii")}
        case _Link(target, mode):
            return {"kind": "link", "mode": mode, "target": target}
        case _Special(kind, mode):
            return {"kind": kind, "mode": mode}


def _unpacked(data: Mapping[str, Any]) -> _Node:
    kind, mode = str(data["kind"]), int(data["mode"])
    if kind == "directory":
        entries = {name: _unpacked(entry) for name, entry in data["entries"].items()}
        return _Folder(entries, mode)
    if kind == "file":
        return _File(base64.b64decode(data["data"]), mode)
    return _Link(data["target"], mode) if kind == "link" else _Special(kind, mode)


def _host_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
