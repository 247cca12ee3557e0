"""The helper process that runs the published package's own reward files, and nothing else of it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from sandlot.scoring.child import Answer, limited, serve

PACKAGE = "llm_in_sandbox"
CPU_S = 12.0
SWALLOWED = "Error in compute_score"
"""What a reward file prints where it turns a failure of its own into 0.0."""


def prepare() -> tuple[Mapping[str, Any], Answer]:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package {PACKAGE} is not installed")
    folder = Path(spec.submodule_search_locations[0])
    _hollow(PACKAGE, folder)
    _hollow(f"{PACKAGE}.benchmark", folder / "benchmark")
    rewards: dict[str, ModuleType] = {}

    def answer(question: Mapping[str, Any]) -> Mapping[str, Any]:
        return limited(CPU_S, lambda: _score(rewards, folder / "benchmark", question))

    return {"ready": _version()}, answer


def _hollow(name: str, folder: Path) -> None:
    """Stand for a package without running its `__init__`, which loads far more than rewards."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


def _version() -> str:
    try:
        return version("llm-in-sandbox")
    except PackageNotFoundError:
        return "unknown"


def _score(
    rewards: dict[str, ModuleType], folder: Path, question: Mapping[str, Any]
) -> Mapping[str, Any]:
    domain, said = question["domain"], io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            if domain not in rewards:
                rewards[domain] = _load(folder, domain)
            value = rewards[domain].compute_score(
                question["answer"], question["truth"], **question["kwargs"]
            )
        except Exception as exc:  # noqa: BLE001 - the published code's own failures are recorded
            return {"failed": f"{type(exc).__name__}: {exc}"[:300]}
    if SWALLOWED in said.getvalue():
        return {"failed": said.getvalue().strip()[:300]}
    return {"value": float(value)}


def _load(folder: Path, domain: str) -> ModuleType:
    """The reward file of a domain, by its path; those that it imports are found beside it."""
    for beside in folder.iterdir():
        name = f"{PACKAGE}.benchmark.{beside.name}"
        if beside.is_dir() and name not in sys.modules:
            _hollow(name, beside)
    spec = spec_from_file_location(f"reward_of_{domain}", folder / domain / "reward.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"no reward file for {domain}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(prepare)
