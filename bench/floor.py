"""The control program `floor.c`, compiled, or this stand-in of it where there is no compiler.

The stand-in makes the same system calls from Python, so its own forks are heavier: it says so in
the name of the floor, and its figures are not to be compared with those of the C program.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("floor.c")
_NAMESPACES = 0x10000000 | 0x20000 | 0x20000000 | 0x40000000 | 0x8000000 | 0x4000000 | 0x2000000
_MS_REC_PRIVATE, _DETACH = 0x4000 | 0x40000, 2


@dataclass(frozen=True, slots=True)
class Floor:
    """How to run the control program; `kind` is `C` or `Python stand-in`."""

    argv: tuple[str, ...]
    kind: str

    def rounds(self, lower: str, n: int, shell: str = "/bin/sh") -> list[tuple[float, float]]:
        """(ms to the first byte of output, ms to the end of the process), n times.

        Raises:
            RuntimeError: this machine refuses the namespaces or the overlay.
        """
        words = [*self.argv, lower, str(n), shell]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"the control program failed: {done.stderr.strip()}")
        pairs = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
        return [(float(first) / 1e3, float(last) / 1e3) for first, last in pairs]


def prepare(folder: Path) -> Floor:
    compiler = shutil.which("cc")
    target = folder / "floor"
    if compiler is not None:
        done = subprocess.run([compiler, "-O2", "-o", str(target), str(_SOURCE)])
        if done.returncode == 0:
            return Floor((str(target),), "C")
    return Floor((sys.executable, "-I", "-S", __file__), "Python stand-in")


# --- the stand-in -------------------------------------------------------------------------------


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def _mount(libc: ctypes.CDLL, source: str, target: str, kind: str, flags: int, data: str) -> None:
    words = [text.encode() for text in (source, target, kind)]
    _check(libc.mount(*words, flags, data.encode()), f"mount {target}")


def _write_maps(uid: int, gid: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def _enter_root(libc: ctypes.CDLL, lower: str) -> None:
    _mount(libc, "", "/", "", _MS_REC_PRIVATE, "")
    on_host = lower == "host"
    pinned = os.open("/usr" if on_host else lower, os.O_PATH | os.O_DIRECTORY)
    _mount(libc, "floor", "/tmp", "tmpfs", 6, "mode=0755")
    for name in "uwr":
        os.mkdir(f"/tmp/{name}")
    layers = f"lowerdir=/proc/self/fd/{pinned},upperdir=/tmp/u,workdir=/tmp/w,userxattr"
    _mount(libc, "floor", "/usr" if on_host else "/tmp/r", "overlay", 0, layers)
    if on_host:
        return
    _mount(libc, "proc", "/tmp/r/proc", "proc", 0, "")
    os.chdir("/tmp/r")
    os.chroot(".")


def _one_round(lower: str, shell: str) -> tuple[float, float]:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    read_end, write_end = os.pipe()
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _check(libc.unshare(_NAMESPACES), "unshare")
        _write_maps(uid, gid)
        inner = os.fork()  # only a child is in the new pid namespace
        if inner == 0:
            _enter_root(libc, lower)
            os.dup2(write_end, 1)
            os.execv(shell, [shell, "-c", "echo hi"])
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
    os.close(write_end)
    said = os.read(read_end, 1)
    spoke = time.perf_counter()
    status = os.waitpid(pid, 0)[1]
    os.close(read_end)
    if status or not said:
        raise SystemExit("the namespaces were refused")
    return (spoke - began) * 1e6, (time.perf_counter() - began) * 1e6


if __name__ == "__main__":
    for _ in range(int(sys.argv[2])):
        print(*_one_round(sys.argv[1], sys.argv[3]), flush=True)
