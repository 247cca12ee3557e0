"""Everything that sandlot raises on purpose. A message says what was asked, found, and to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum


class SandlotError(Exception):
    """Base of every error that sandlot raises on purpose."""


class ConfigError(SandlotError):
    """A setting, flag or file of the user's cannot be used as it stands."""


class InputError(SandlotError):
    """An input folder or file is missing, unreadable or not of the right kind."""


class RecordError(SandlotError):
    """A stored trajectory or run directory cannot be read or written."""


class ImageError(SandlotError):
    """A sandbox image is missing, damaged, or could not be built."""


class SandboxError(SandlotError):
    """The sandbox refused or failed an operation; the sandbox itself may still be alive."""


class SandboxUnavailable(SandboxError):
    """This machine cannot run such a sandbox. The message names the remedy."""


class PolicyNotEnforceable(SandboxUnavailable):
    """A limit or rule that was asked for cannot be enforced on this machine."""


class SandboxFileError(SandboxError):
    """A file operation inside the sandbox was refused; `path` is a path inside."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class DeathCause(StrEnum):
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    KILLED = "killed"
    UNRESPONSIVE = "unresponsive"
    CLOSED = "closed"
    TIME_LIMIT = "time_limit"
    ENGINE_LOST = "engine_lost"
    HOST_EXHAUSTED = "host_exhausted"
    START_FAILED = "start_failed"


class SandboxDied(SandboxError):
    """The sandbox is gone and no later call on it can succeed."""

    def __init__(self, cause: DeathCause, detail: str = "") -> None:
        super().__init__(f"sandbox died ({cause.value})" + (f": {detail}" if detail else ""))
        self.cause = cause
        self.detail = detail


class ModelError(SandlotError):
    """The model gave no usable reply. `status` is the HTTP status where there was one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ContextOverflow(ModelError):
    """The request is longer than the model's context holds."""


class ExportError(SandlotError):
    """A trained model cannot be written as a file, or not in that form."""


class MissingExtra(ConfigError):
    """A part of sandlot that is installed separately was asked for and is not there."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra: pip install 'sandlot[{extra}]'")
        self.extra = extra


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """An error for a name that is not in a registry, with the nearest name that is."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{kind} {name!r} is not known (have: {', '.join(names)}).{hint}")
