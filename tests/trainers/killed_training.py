"""One training of `laser` or `reclora` in a process of its own, which kills itself as `kill -9` would.

    python killed_training.py JOB.json

JOB names trainer, base, data, folder, options, `resume` and the progress to end after.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from reccocktail.tasks import read_domain
from reccocktail.trainers.laser.trainer import LaserTrainer
from reccocktail.trainers.plugin import TrainingJob
from reccocktail.trainers.reclora import stages
from reccocktail.trainers.reclora.trainer import RecloraTrainer

TRAINERS = {"laser": LaserTrainer, "reclora": RecloraTrainer}


def main() -> None:
    told = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    stages.precision = lambda device: (torch.float32, False)
    trainer = TRAINERS[told["trainer"]]()

    def progress(done: int, *_: object) -> None:
        if done >= told["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.train(
        TrainingJob(
            role="ingredient",
            base_folder=Path(told["base"]),
            base_name="tiny",
            domains=(read_domain(told["data"], "toy"),),
            folder=Path(told["folder"]),
            options=trainer.Options.model_validate(told["options"]),
            resume=told["resume"],
            device="cpu",
            progress=progress,
        )
    )


if __name__ == "__main__":
    main()
