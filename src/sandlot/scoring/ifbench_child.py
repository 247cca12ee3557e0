"""The helper process that runs IFBench's checkers. It never downloads anything."""

from __future__ import annotations

import random
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sandlot.scoring.child import Answer, limited, serve

CPU_S = 4.0
REGISTRIES = (
    ("ifbench", "ifbench.instructions_registry"),
    ("if-verifiable", "if_verifiable.ifbench.instructions_registry"),
)
"""Packages that hold the checkers, the benchmark's own before its port."""


def variants(response: str) -> list[str]:
    """The readings of the loose rule: with and without asterisks, first line and last line.

    Source: IFEval, Zhou et al. 2023, arXiv:2311.07911, section 2.2.
    """
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [text.replace("*", "") for text in cut]


def prepare() -> tuple[Mapping[str, Any], Answer]:
    import nltk

    nltk.download = _no_download
    package, registry = _registry()

    def check(question: Mapping[str, Any]) -> Mapping[str, Any]:
        return limited(CPU_S, lambda: _check(registry, question))

    return {"ready": package}, check


def _no_download(*_args: Any, **_options: Any) -> bool:
    return False


def _registry() -> tuple[str, Mapping[str, Any]]:
    for package, module in REGISTRIES:
        try:
            found: Mapping[str, Any] = import_module(module).INSTRUCTION_DICT
            return f"{package} {version(package)}", found
        except (ModuleNotFoundError, PackageNotFoundError):
            continue
    raise ImportError("no checker package is installed: pip install 'sandlot[ifbench]'")


def _check(registry: Mapping[str, Any], question: Mapping[str, Any]) -> Mapping[str, Any]:
    response, verdicts = question["response"], []
    for name, kwargs in zip(question["ids"], question["kwargs"], strict=True):
        if name not in registry:
            return {"missing": f"the checkers do not know the instruction {name!r}"}
        random.seed(0)  # a checker that was given no arguments picks some
        try:
            instruction = registry[name](name)
            instruction.build_description(**{k: v for k, v in kwargs.items() if v is not None})
            strict = _holds(instruction, response)
            loose = strict or any(_holds(instruction, text) for text in variants(response))
        except LookupError as exc:
            return {"missing": f"{name}: {_first_lines(exc)}"}
        except Exception as exc:  # noqa: BLE001 - third-party code; its failure is no wrong answer
            return {"missing": f"the checker {name} failed: {type(exc).__name__}: {exc}"[:300]}
        verdicts.append({"id": name, "strict": strict, "loose": loose})
    return {"verdicts": verdicts}


def _holds(instruction: Any, text: str) -> bool:
    return bool(text.strip()) and bool(instruction.check_following(text))


def _first_lines(exc: LookupError) -> str:
    """What NLTK says is missing, without its page of advice."""
    told = [line.strip() for line in str(exc).splitlines() if line.strip(" *")]
    return " ".join(told[:1]) or type(exc).__name__


if __name__ == "__main__":
    serve(prepare)
