"""The processes of one sandbox, seen and signalled from the host without any race on ids.

Everything goes through a descriptor of the sandbox's own /proc: its numbers are those inside, and
the folder of a process pins that process, so a signal never reaches a later owner of the number
(pidfd_send_signal(2) takes such a folder).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Set

INIT = 1
_LISTS = 50


class ProcessTree:
    """`root_fd` is the sandbox's root folder; `close` gives the descriptors back."""

    def __init__(self, root_fd: int) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._proc = os.open("proc", flags, dir_fd=root_fd)
        self._children: dict[int, int] = {}

    def close(self) -> None:
        for fd in (*self._children.values(), self._proc):
            os.close(fd)
        self._children = {}
        self._proc = -1

    def forget(self, pid: int) -> None:
        fd = self._children.pop(pid, None)
        if fd is not None:
            os.close(fd)

    def only(self, shell: int) -> bool:
        """Whether nothing but the first process and an idle shell is there: two short reads."""
        try:
            return self._read_children(INIT) == [shell] and not self._read_children(shell)
        except OSError:
            return False

    def pids(self) -> set[int]:
        """Every process that is not a zombie."""
        return {pid for pid, (state, _) in self._look().items() if state != "Z"}

    def parent(self, pid: int) -> int | None:
        status = self._status(pid)
        return None if status is None else status[1]

    def working_dir(self, pid: int) -> str | None:
        try:
            path = os.readlink(f"{pid}/cwd", dir_fd=self._proc)
        except OSError:
            return None
        return path if path.startswith("/") and not path.endswith(" (deleted)") else None

    def descendants_since(self, before: Set[int], shell: int) -> list[int]:
        """Processes that began after `before` was taken and belong to no job of that time."""
        found_now = self._look()
        parents = {pid: parent for pid, (_, parent) in found_now.items()}
        kept = {INIT, shell}
        jobs = before - kept
        found = []
        for pid, (state, _parent) in found_now.items():
            if pid in kept or pid in jobs or state == "Z":
                continue
            if not jobs & _ancestors(pid, parents):
                found.append(pid)
        return found

    def kill(self, pids: Iterable[int], signum: signal.Signals | int = signal.SIGKILL) -> None:
        for pid in pids:
            try:
                fd = os.open(
                    str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._proc
                )
            except OSError:
                continue
            try:
                signal.pidfd_send_signal(fd, signum)
            except ProcessLookupError:
                pass  # it ended meanwhile, which is what was wanted
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def held_still(self, spared: Set[int]) -> Iterator[None]:
        """Stop everything but `spared`, and let go on what was not stopped before."""
        stopped: set[int] = set()
        try:
            while running := self._running() - spared - stopped:
                self.kill(running, signal.SIGSTOP)
                stopped |= running
            yield
        finally:
            self.kill(stopped, signal.SIGCONT)

    def _look(self) -> dict[int, tuple[str, int]]:
        """State and parent of every process, those included that began during the look.

        One that ends between the list and its reading may have forked one that is not in the
        list, so the list is taken until it names nobody new; where a job forks without pause,
        as often as is reasonable.
        """
        seen: set[int] = set()
        found: dict[int, tuple[str, int]] = {}
        for _ in range(_LISTS):
            begun = set(self._all()) - seen
            if not begun:
                break
            found |= {pid: status for pid in begun if (status := self._status(pid))}
            seen |= begun
        return found

    def _all(self) -> list[int]:
        return [int(name) for name in os.listdir(self._proc) if name.isdigit()]

    def _running(self) -> set[int]:
        return {pid for pid, (state, _) in self._look().items() if state not in "ZTt"}

    def _status(self, pid: int) -> tuple[str, int] | None:
        """(state, parent) from /proc/PID/stat; the name in it may hold anything, `)` included."""
        try:
            fields = self._read(f"{pid}/stat").rpartition(b")")[2].split()
            return fields[0].decode(), int(fields[1])
        except (OSError, IndexError, ValueError):
            return None

    def _read(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)

    def _read_children(self, pid: int) -> list[int]:
        fd = self._children.get(pid)
        if fd is None:
            name = f"{pid}/task/{pid}/children"
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
            self._children[pid] = fd
        return [int(word) for word in os.pread(fd, 4096, 0).split()]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while (pid := parents.get(pid, 0)) > INIT and pid not in found:
        found.add(pid)
    return found
