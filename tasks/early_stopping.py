"""Training that keeps the weights of its best epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class EarlyStopping:
    """At most so many `epochs`, and no more once `patience` of them in a row were no better than the best.

    `progress` receives (epochs done, epochs at most).
    """

    epochs: int
    patience: int
    progress: Callable[[int, int], None] = lambda done, total: None

    def best(self, model: Model, train: Callable[[], None], validate: Callable[[], float]) -> Model:
        """The model in evaluation mode, with the weights of the epoch that validates highest; of equal ones the first.

        `train` makes one epoch, with the model in training mode; `validate` returns a figure from 0.
        """
        best, kept, since = -1.0, copy.deepcopy(model.state_dict()), 0
        for epoch in range(self.epochs):
            model.train()
            train()
            model.eval()
            found = validate()
            self.progress(epoch + 1, self.epochs)
            if found > best:
                best, kept, since = found, copy.deepcopy(model.state_dict()), 0
            elif (since := since + 1) >= self.patience:
                break
        model.load_state_dict(kept)
        return model.eval()
