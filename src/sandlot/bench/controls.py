"""Positive controls: before an arm takes something away, proof that it is gone.

Each control does the forbidden thing twice, in the sandbox arm's own condition and in the
ablation's. It bites where the first succeeds and the second does not. Nothing leaves this machine:
the name that is asked for exists nowhere, and an answer of the proxy is all that is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sandlot.agent.rollout import run_rollout
from sandlot.api import relocated
from sandlot.bench.arms import ARMS, Arm, tools_of
from sandlot.bench.plan import Condition
from sandlot.core.errors import SandboxError
from sandlot.core.types import Message, Task, Trajectory
from sandlot.models.scripted import ScriptedModel, bash, edit, submit
from sandlot.sandbox.base import Sandbox
from sandlot.sandbox.policy import Network, NetworkMode

OpenBox = Callable[[Condition], Awaitable[Sandbox]]

_NOWHERE = "sandlot-control.invalid"  # RFC 2606: this name never resolves
_REACHED = "sandlot-control: somebody answered"
_ASK = f"""\
(
proxy="${{http_proxy:-$HTTP_PROXY}}"; proxy="${{proxy#*://}}"; proxy="${{proxy%/}}"
address="${{proxy##*@}}"; address="${{address:-GIVEN}}"; echo "proxy: ${{address:-none}}"
host="${{address%:*}}"; port="${{address##*:}}"
if [ -n "$port" ] && exec 9<>"/dev/tcp/$host/$port"; then
  printf 'GET http://{_NOWHERE}/ HTTP/1.1\\r\\n' >&9
  printf 'Host: {_NOWHERE}\\r\\nConnection: close\\r\\n\\r\\n' >&9
  if read -r -t 20 line <&9; then echo "{_REACHED}: $line"; fi
fi
)
"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a control saw: the forbidden act without the ablation and with it."""

    arm: str
    act: str
    without: str
    under: str
    bites: bool


async def check_controls(
    conditions: Sequence[Condition], open_box: OpenBox, scratch: Path
) -> list[dict[str, Any]]:
    """The evidence for each ablation among the conditions, once for each arm and network.

    Raises:
        SandboxError: a control does not bite; the message says what was seen.
    """
    found = []
    seen: set[tuple[str, Any]] = set()
    for condition in conditions:
        key = (condition.arm.name, condition.settings.image)
        control = _CONTROLS.get(condition.arm.takes or "")
        if control is None or key in seen:
            continue
        seen.add(key)
        evidence = await control(condition, open_box, scratch)
        if not evidence.bites:
            raise SandboxError(
                f"arm {evidence.arm!r}: its control does not bite, so nothing was run. "
                f"{evidence.act}: without the ablation {evidence.without!r}, under it "
                f"{evidence.under!r}"
            )
        found.append({name: getattr(evidence, name) for name in Evidence.__dataclass_fields__})
    return found


async def _no_network(condition: Condition, open_box: OpenBox, scratch: Path) -> Evidence:
    """A request through the proxy variables: elsewhere the proxy answers, here nobody does.

    Here it goes to the address that the proxy has elsewhere, as a model that knows it would try.
    """
    usual = replace(condition.policy, network=Network(NetworkMode.PACKAGES))
    without = await _ask(replace(condition, policy=usual), open_box, "")
    address = re.search(r"proxy: (\S+)", without)
    under = await _ask(condition, open_box, address[1] if address else "")
    bites = _REACHED in without and _REACHED not in under
    return Evidence(condition.arm.name, "a request through the proxy", without, under, bites)


async def _ask(condition: Condition, open_box: OpenBox, address: str) -> str:
    box = await open_box(condition)
    async with box:
        result = await box.exec(_ASK.replace("GIVEN", address), 30.0)
    return _short(f"{result.stdout} {result.stderr}")


async def _no_exec(condition: Condition, open_box: OpenBox, scratch: Path) -> Evidence:
    """A call of the shell: elsewhere it runs, here it is refused and leaves no trace."""
    target = f"{condition.profile.working_dir}/control"
    acts = (bash(f"echo ran > {target}"), edit("view", target), submit())
    without = await _played(condition, ARMS["sandbox"], acts, open_box, scratch)
    under = await _played(condition, condition.arm, acts, open_box, scratch)
    before, after = _told(without, 1), _told(under, 1)
    refused = not under.turns[0].tool_results[0].ok
    bites = "ran" in before and _ok(without, 1) and refused and not _ok(under, 1)
    shown = f"{_told(under, 0)} / {after}"
    return Evidence(condition.arm.name, "a call of execute_bash", before, _short(shown), bites)


async def _no_files(condition: Condition, open_box: OpenBox, scratch: Path) -> Evidence:
    """A file of one call: elsewhere the next call reads it, here it is gone; the answer stays."""
    folder, answer = condition.profile.working_dir, condition.profile.answer_file
    look = f"cat {folder}/control {answer} 2>&1; true"
    acts = (
        bash(f"echo kept > {folder}/control"),
        edit("create", answer, file_text="the answer\n"),
        bash(look),
        submit(),
    )
    without = await _played(condition, ARMS["sandbox"], acts, open_box, scratch)
    under = await _played(condition, condition.arm, acts, open_box, scratch)
    before, after = _told(without, 2), _told(under, 2)
    gone = "kept" not in after and "the answer" in after and under.answer == "the answer\n"
    bites = "kept" in before and "the answer" in before and gone
    return Evidence(condition.arm.name, "a file read in a later call", before, after, bites)


async def _played(
    condition: Condition,
    arm: Arm,
    acts: Sequence[Message],
    open_box: OpenBox,
    scratch: Path,
) -> Trajectory:
    """A scripted rollout with an arm's tools in the condition's own sandbox."""
    box = await open_box(condition)
    profile = relocated(condition.profile, box)
    state = scratch / f"control-{arm.name}.state"
    try:
        return await run_rollout(
            Task("control", "a positive control"),
            model=ScriptedModel(*acts),
            sandbox=box,
            profile=profile,
            tools=tools_of(arm, profile, condition.row, state),
        )
    finally:
        await box.close()
        state.unlink(missing_ok=True)


def _told(trajectory: Trajectory, turn: int) -> str:
    """What the model was told of a turn's call."""
    if turn >= len(trajectory.turns) or not trajectory.turns[turn].tool_results:
        return f"no such turn ({trajectory.stop_reason}: {trajectory.stop_detail})"
    return _short(trajectory.turns[turn].tool_results[0].message.text)


def _ok(trajectory: Trajectory, turn: int) -> bool:
    results = trajectory.turns[turn].tool_results if turn < len(trajectory.turns) else ()
    return bool(results) and results[0].ok


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


_CONTROLS: dict[str, Callable[[Condition, OpenBox, Path], Awaitable[Evidence]]] = {
    "external": _no_network,
    "computation": _no_exec,
    "files": _no_files,
}
