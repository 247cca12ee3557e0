"""Data-parallel training on CPU: two processes over gloo, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REASON = "needs the extra `train` (torch, transformers, trl)"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("trl", reason=REASON)

SCRIPT = Path(__file__).with_name("data_parallel_run.py")
LIMIT_S = 900


def run(command: Sequence[str]) -> None:
    """Run to the end or fail with what was said; nothing outlives the test."""
    local = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # asks no name server for itself
    environment = {**os.environ, **local, "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, said[-4000:]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_those_of_one_process(tmp_path: Path) -> None:
    """Three steps with missing rewards spread unevenly: a process whose rollouts failed must not
    weigh the other's down. The ranks begin with different weights, so agreement is no luck."""
    address = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    launch = ["-m", "torch.distributed.run", *address, "--nproc_per_node=2"]
    run([*launch, str(SCRIPT), str(tmp_path), "2"])
    run([str(SCRIPT), str(tmp_path), "1"])
    first, second, alone = (
        torch.load(tmp_path / f"weights.{name}.pt", weights_only=True)
        for name in ("0-of-2", "1-of-2", "0-of-1")
    )
    gap = max((first[name] - alone[name]).abs().max().item() for name in alone)
    print(f"two processes and one: weights {gap:.1e} apart")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert gap < 1e-5
