"""Reading a machine's configuration: its files, its programs, and addresses without secrets."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

Run = Callable[[Sequence[str]], str]
"""Runs a program and returns what it printed; empty where it is missing or failed."""

_FILE_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class HostReader:
    """The machine that is read, and what was noticed on the way."""

    env: Mapping[str, str]
    home: Path
    root: Path
    run: Run
    names: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def read(self, path: Path) -> str:
        """A regular file's text; empty where there is none."""
        try:
            if not path.is_file():
                return ""
            with path.open("rb") as file:
                return file.read(_FILE_BYTES).decode("utf-8", "replace")
        except OSError as error:
            self.warnings.append(f"{path}: not carried in ({error.strerror or 'unreadable'})")
            return ""

    def url(self, text: str, where: str) -> str | None:
        """An address without secrets, its host noted; None for one that cannot work inside."""
        text = text.strip().strip("\"'")
        try:
            parts = urlsplit(text)
            name, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            parts, name, port = urlsplit(""), "", None
        # An `@` after the host is what is left of a password with an unescaped slash in it.
        if not _URL_TEXT.fullmatch(text) or "@" in parts.path:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not is_host_name(name):
            self.warnings.append(f"{where}: dropped, only http(s) addresses with a host name work")
            return None
        if port not in (None, 80, 443):
            self.warnings.append(f"{where}: port {port} cannot be reached from inside")
        self.names.add(name)
        return self._without_secrets(parts, name, port, where)

    def _without_secrets(self, parts: SplitResult, name: str, port: int | None, where: str) -> str:
        if "@" in parts.netloc:
            self.warnings.append(f"{where}: user name and password were removed")
        if parts.query or parts.fragment:
            self.warnings.append(f"{where}: query string or fragment was removed")
        return f"{parts.scheme}://{name}{f':{port}' if port else ''}{parts.path}"


_URL_TEXT = re.compile(r"[!#-\[\]-~]+")
HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")


def is_host_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return bool(HOST_NAME.fullmatch(name)) and not name.rpartition(".")[2].isdigit()
    return False


def run_program(env: Mapping[str, str], argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            argv, env=dict(env), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
