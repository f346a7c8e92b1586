"""One training in a process of its own, as the tests of killed and of several processes need it.

    python training_process.py JOB.json

JOB names base, folder, domains, options and resume; with `kill_at` the process kills itself after that step, as `kill -9` would.
The base is loaded in float32, so that results can be compared. Leaves metrics and context in `RANK.json` in the folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from reccocktail.tasks import generate
from reccocktail.trainers.plugin import TrainingJob
from reccocktail.trainers.sft import trainer as sft


def main() -> None:
    told = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    sft._precision = lambda device: (torch.float32, False)

    def progress(done: int, *_: object) -> None:
        if done == told["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    job = TrainingJob(
        role="spirit",
        base_folder=Path(told["base"]),
        base_name="tiny",
        domains=tuple(generate(name, users=20) for name in told["domains"]),
        folder=Path(told["folder"]),
        options=sft.SftOptions.model_validate(told["options"]),
        resume=told["resume"],
        device="cpu",
        progress=progress,
    )
    result = sft.SftTrainer().train(job)
    rank = os.environ.get("RANK", "0")
    (job.folder / f"{rank}.json").write_text(json.dumps({"metrics": result.metrics, "context": result.context}))


if __name__ == "__main__":
    main()
