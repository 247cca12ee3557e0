"""The container backend on a Podman of the measurement's own, beside one exec a command."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time

from computer import Place
from measure import ROOT, Row, Sample, ratio, timed

from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.contract import MakeSandbox

_EXECS = 10


async def containers(place: Place, n: int) -> list[Row]:
    """Start, `echo hi` and close; nothing where there is no Podman or no image for it."""
    if shutil.which("podman") is None or place.image == "host":
        print("    containers: not measured (they need podman and the image base)")
        return []
    sys.path.insert(0, str(ROOT / "tests"))
    from sandbox.podman import PodmanService, podman_maker, private_podman

    service: PodmanService
    with private_podman() as service:
        make = podman_maker(service, place.state, place.image)
        async with await _made(make, place):
            pass  # the image is imported and the engine known
        starts, echoes, closes, execs = [], [], [], []
        for _ in range(max(5, n // 4)):
            box = await _made(make, place)
            try:
                starts.append(await timed(box.start))
                echoes += [await timed(lambda box=box: box.exec("echo hi")) for _ in range(20)]
            finally:
                closes.append(await timed(box.close))
        async with await _made(make, place):
            (container,) = service.containers()
            execs = [_exec_ms(service, container) for _ in range(_EXECS)]
    echo, floor = Sample.of(echoes, "ms"), Sample.of(execs, "ms")
    close = Sample.of(closes, "ms")
    named = "a fresh `podman exec` of echo"
    return [
        Row("container: start", Sample.of(starts, "ms"), None, "", "", None),
        Row(
            "container: `echo hi` round trip",
            echo,
            floor,
            named,
            "≤ 2 ms",
            echo.median <= 2,
            ratio(echo, floor),
        ),
        Row("container: close", close, None, "", "≤ 300 ms", close.median <= 300),
    ]


async def _made(make: MakeSandbox, place: Place) -> Sandbox:
    made = make(place.policy())
    assert asyncio.iscoroutine(made)
    box: Sandbox = await made
    return box


def _exec_ms(service: object, container: str) -> float:
    """What each command would cost if it were an exec of its own."""
    began = time.perf_counter()
    said = service.run("exec", container, "/bin/echo", "hi")  # type: ignore[attr-defined]
    if said != "hi\n":
        raise RuntimeError(f"podman exec gave {said!r}")
    return (time.perf_counter() - began) * 1e3
