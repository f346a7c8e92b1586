"""The trainer `reclora`: a personalised LoRA by RecLoRA (arXiv 2408.03533).

A conventional recommender, DIN, learns from all training rows and is frozen. The base model embeds the items, so that a prompt can show
the rated ones that are most like the item asked about. Then meta-LoRAs, and the gates that mix them by what the recommender
knows of a user, learn from a few of the rows. Each stage leaves a checkpoint.
"""

from __future__ import annotations

import os
from typing import ClassVar

from pydantic import BaseModel

from ..plugin import TrainerError, TrainingJob, TrainingResult
from .options import RecloraOptions


class RecloraTrainer:
    """A LoRA per user (RecLoRA)."""

    name: ClassVar[str] = "reclora"
    summary: ClassVar[str] = "a LoRA per user: meta-LoRAs, mixed by gates that read what a recommender knows (RecLoRA)"
    kind: ClassVar[str] = "personalised-lora"
    Options: ClassVar[type[BaseModel]] = RecloraOptions

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train on one domain's ratings and leave the bundle in `job.folder`/adapter, with its log.

        Metrics: `train_loss`, the mean of the last tenth of the steps, in nats a token; `validation_log_loss` and `validation_roc_auc`
        of the checkpoint kept; `recommender_roc_auc` on all validation rows; `train_seconds` of this call.
        Raises TrainerError for a spirit, for several processes, for rows that do not fill a batch or are too long, for a diverged loss;
        NoRatingsError, NoNegativesError, OneClassError and AnswerTokenError where clicks cannot be had from the data or the tokenizer.
        """
        assert isinstance(job.options, RecloraOptions)
        _expect_one_domain_and_process(job)
        from .stages import train

        return train(job, job.options)


def _expect_one_domain_and_process(job: TrainingJob) -> None:
    if job.role == "spirit" or len(job.domains) > 1:
        raise TrainerError(
            "a personalised LoRA is of the users of one domain, and no spirit",
            hint="name one domain: `reccocktail train DOMAIN --trainer reclora`",
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainerError("reclora trains in one process", hint="run it without a launcher")
