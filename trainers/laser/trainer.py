"""The trainer `laser`: a prefix and a suffix around a frozen language model, by Laser (arXiv 2409.01605).

Items and users are embedded by the same text and the same frozen model; trained rows before the text, and one behind it at which the
embedding is read, make a recommender of it. What is trained is kept with the index of the items' embeddings, which answers by cosine.
"""

from __future__ import annotations

import os
from typing import ClassVar

from pydantic import BaseModel

from ..plugin import TrainerError, TrainingJob, TrainingResult
from .options import LaserOptions


class LaserTrainer:
    """Prefix and suffix around a frozen language model (Laser)."""

    name: ClassVar[str] = "laser"
    summary: ClassVar[str] = "embeddings of users and items by trained rows around a frozen language model (Laser)"
    kind: ClassVar[str] = "bi-tuning"
    Options: ClassVar[type[BaseModel]] = LaserOptions

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train on one domain's histories and leave the bundle in `job.folder`/adapter, with its log.

        Metrics: `train_loss`, the mean of InfoNCE over the last tenth of the steps, in nats; `validation_ndcg_10` of the epoch kept, by
        ranking all items; `train_seconds` of this call.
        Raises TrainerError for a spirit, for several processes, for examples that do not fill a batch, for a diverged loss.
        """
        assert isinstance(job.options, LaserOptions)
        _expect_one_domain_and_process(job)
        from .stages import train

        return train(job, job.options)


def _expect_one_domain_and_process(job: TrainingJob) -> None:
    if job.role == "spirit" or len(job.domains) > 1:
        raise TrainerError(
            "a bi-tuning embeds the items of one domain, and is no spirit",
            hint="name one domain: `reccocktail train DOMAIN --trainer laser`",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainerError("laser trains in one process", hint="run it without a launcher")
