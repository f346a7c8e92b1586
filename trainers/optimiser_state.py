"""What an optimiser remembers of each parameter, as tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def flat_state(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What the optimiser remembers of each parameter: `NUMBER.exp_avg` and so on."""
    state: dict[int, dict[str, torch.Tensor]] = optimiser.state_dict()["state"]
    return {f"{number}.{name}": value for number, own in state.items() for name, value in own.items()}


def fill_state(optimiser: torch.optim.Optimizer, flat: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
