"""Three steps of TRL's trainer in as many processes as torchrun started; see `test_ddp.py`.

    data_parallel_run.py OUTPUT PROCESSES

Each process leaves its weights in OUTPUT/weights.RANK-of-PROCESSES.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from toy_policies import episodes_of, tiny_qwen3, trainer_of

REWARDS = {
    "a": [1.0, 0.0, 0.25, 0.5],
    "b": [0.0, 1.0, None, None],
    "c": [0.1, 0.1, 0.1, 0.1],
    "d": [None, 1.0, None, 0.0],
    "e": [0.0, 0.0, 1.0, 0.0],
    "f": [0.75, None, 0.5, 0.5],
}


def main(output: Path, processes: int) -> None:
    torch.set_num_threads(1)
    model = tiny_qwen3()
    rank = int(os.environ.get("RANK", "0"))
    for parameter in model.parameters():  # the processes must agree in the end, not by luck
        parameter.data += 1e-3 * rank
    trainer = trainer_of(
        model,
        episodes_of(REWARDS),
        output / str(processes),
        tasks=2,
        steps=3,
        lr=0.05,
        processes=processes,
    )
    trainer.train()
    torch.save(model.state_dict(), output / f"weights.{rank}-of-{processes}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
