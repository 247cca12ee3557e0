"""Give any language model a computer. Importing the package does nothing; see `sandlot.api`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandlot.api import RunResult, Sandbox, arun, run

__version__ = "0.1.0"
__all__ = ["RunResult", "Sandbox", "__version__", "arun", "run"]


def __getattr__(name: str) -> Any:
    """The library's face loads when it is first used, so that `import sandlot` stays cheap."""
    if name in ("RunResult", "Sandbox", "arun", "run"):
        from sandlot import api

        return getattr(api, name)
    raise AttributeError(f"module 'sandlot' has no attribute {name!r}")
