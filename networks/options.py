"""The options of the recommenders that train here, apart from them, so that reading or hashing them loads no torch."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DinOptions(BaseModel):
    """Sizes and training. `embedding` is the width of each field, `hidden` of c_u; `length` is how many of the newest items are seen.

    With `target` c_u follows from user, history and the target, by attention. Without, it follows from the user and the mean history
    alone, the same for all targets, and meets the target in one product at the end. `id_dropout` is the share of user ids, and of
    item ids, that training takes for unknown, so that unknown ones are trained for. `patience` is in epochs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: bool = True
    embedding: int = Field(default=16, ge=1)
    hidden: int = Field(default=256, ge=1)
    layers: int = Field(default=3, ge=1)
    attention: int = Field(default=64, ge=1)
    length: int = Field(default=60, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=256, ge=1)
    epochs: int = Field(default=10, ge=1)
    patience: int = Field(default=2, ge=1)
    seed: int = 42


class Bert4RecOptions(BaseModel):
    """Sizes and training. `length` is how many of the newest items are seen, `patience` is in epochs.

    Each item is masked with the probability `mask`; in the share `mask_last` of the samples the last item alone. `id_dropout` is the share of the
    items read that training takes for unknown, so that unknown ones are trained for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    length: int = Field(default=50, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    mask: float = Field(default=0.2, gt=0, lt=1)
    mask_last: float = Field(default=0.5, ge=0, le=1)
    id_dropout: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=64, ge=1)
    epochs: int = Field(default=150, ge=1)
    patience: int = Field(default=15, ge=1)
    seed: int = 42

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} is not a multiple of {self.heads} heads")
        return self
