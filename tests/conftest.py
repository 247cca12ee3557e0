"""Shared fixtures. Async tests run on asyncio without a mark of their own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence

import pytest

from sandlot.sandbox import hostconfig, hostconfig_reader


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def programs_are_asked_once() -> Iterator[None]:
    """What pip and npm say of their registries, kept for all tests.

    An event loop asks them once, and each test has a loop of its own. They take longer to answer
    than a sandbox takes to start.
    """
    known: dict[object, str] = {}

    def ask(env: Mapping[str, str], argv: Sequence[str]) -> str:
        key = (*argv, *sorted(item for item in env.items() if item[0] != "PYTEST_CURRENT_TEST"))
        if key not in known:
            known[key] = hostconfig_reader.run_program(env, argv)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hostconfig, "run_program", ask)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        function = getattr(item, "function", None)
        if function is not None and inspect.iscoroutinefunction(function):
            item.add_marker(pytest.mark.anyio)
