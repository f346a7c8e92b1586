"""What ships, once users who took no part in the choice have judged: the mix, or the best parent alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..adaptive import Guard
from .calibration import Floats, mean_loss, ranks
from .guard import Comparison, compare


@dataclass(frozen=True)
class Judged:
    """On the users kept apart: the mix beside every parent, unless it is one of them, and the best parent beside the others.

    `best` is that parent's place: it has the smallest loss of all parents on all labels together. `mix_has_least` says whether the mix's is
    smaller still.
    """

    mix: Comparison | None
    parent: Comparison
    best: int
    mix_has_least: bool

    def ships(self, guard: Guard) -> bool:
        """Whether the mix ships.

        `ship-best` also lets it where no parent is safe either and the mix has the smallest loss: to fall back on a parent would be a guess,
        and the loss tells mixes apart by fewer users than the metric.
        """
        if self.mix is None:
            return False
        if guard == "off" or self.mix.safe:
            return True
        return guard == "ship-best" and not self.parent.safe and self.mix_has_least


def judge(
    roles: Sequence[str],
    on_fit: Sequence[Floats],
    on_gate: Sequence[Floats],
    *,
    metric: str,
    margin: float,
    looks: int = 0,
) -> Judged:
    """Judge by the margins [users, candidates] of each parent and, where it is none of them, of the mix, which comes last.

    `on_gate` are those of the users kept apart, `on_fit` of those that chose; `looks` is how often the former have judged before.
    """
    beside = partial(compare, metric=metric, margin=margin, looks=looks, candidates=on_gate[0].shape[1])
    ranked = [ranks(table) for table in on_gate]
    parents: Mapping[str, Sequence[int]] = dict(zip(roles, ranked, strict=False))
    mix = beside(ranked[-1], parents) if len(ranked) > len(roles) else None
    best = least_loss(on_fit[: len(roles)], on_gate[: len(roles)])
    others = {role: found for role, found in parents.items() if role != roles[best]}
    return Judged(mix, beside(ranked[best], others), best, least_loss(on_fit, on_gate) == len(roles))


def least_loss(*labelled: Sequence[Floats]) -> int:
    """The place of the mix with the smallest loss on all labels together; each argument is the mixes' margins on some of them."""
    together = [np.concatenate(margin) for margin in zip(*labelled, strict=True)]
    return min(range(len(together)), key=lambda place: mean_loss(together[place]))
