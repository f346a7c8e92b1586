"""How often the guard of `objective: ranking` ships something worse than the best parent, on simulated domains whose truth is known.

    python benchmarks/guard.py [--domains 200] [--seed 1] [--labelled 60 2000] [--guard ship-best | ship-parent | off]

A domain has users with 10 candidates each, a base model, and two adapters. What a user takes follows from two tastes (one that holds in all shops,
one of this shop) and chance; each adapter has learned some of either, with noise of its own. A mix adds their scores, and some domains
have interference: noise that grows with the product of the coefficients, so that mixing harms. How much of everything there is, how many
labelled users there are (60 to 2,000), and what they take, is drawn. Ladder and guard are those of a build, on arrays in place of a model.
`--guard` is the recipe's switch: what ships where labels do not say that the mix is safe.

What is shipped is judged by NDCG@3 on 10,000 other users. Fails where more than 5 % of the domains got something worse than the best parent by
more than the margin ε = .02.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
from reccocktail.engine.adapting.calibration import Floats, margins, ranks
from reccocktail.engine.adapting.found import Matrix
from reccocktail.engine.adapting.judging import judge
from reccocktail.engine.adapting.ladder import Ladder
from reccocktail.engine.adaptive import Guard
from reccocktail.tasks.metrics import per_question

CANDIDATES, TRUTH, MARGIN, LIMIT = 10, 10_000, 0.02, 0.05
METRIC = "NDCG@3"


@dataclass(frozen=True)
class Domain:
    """What is the same for all users: how much each adapter knows of either taste, and the size of noise of every kind."""

    tastes: Floats  # [2] what users go by
    learned: Floats  # [2 adapters, 2 tastes]
    noise: Floats  # [2] of an adapter alone
    interference: float
    base_noise: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Domain:
        learned = rng.uniform(0.0, 1.0, (2, 2)) * np.array([[1.0, 0.4], [0.4, 1.0]])
        return cls(
            tastes=rng.uniform(0.3, 2.0, 2),
            learned=learned,
            noise=rng.uniform(0.2, 1.5, 2),
            interference=float(rng.choice([0.0, 0.0, 1.0, 3.0]) * rng.uniform(0.5, 2.0)),
            base_noise=float(rng.uniform(0.2, 1.0)),
        )


class Users:
    """Users of a domain, and every mix's scores for their candidates."""

    def __init__(self, domain: Domain, count: int, rng: np.random.Generator) -> None:
        self._domain = domain
        self._tastes = rng.normal(size=(2, count, CANDIDATES))
        wanted = np.tensordot(domain.tastes, self._tastes, 1) + rng.gumbel(size=(count, CANDIDATES))
        self.targets = wanted.argmax(axis=1).tolist()
        self._noise = rng.normal(size=(2, count, CANDIDATES))
        self._clash = rng.normal(size=(count, CANDIDATES))
        self._base = domain.base_noise * rng.normal(size=(count, CANDIDATES))

    def margins(self, weights: Matrix) -> Floats:
        (row,) = np.asarray(weights)
        knows = np.tensordot(row @ self._domain.learned, self._tastes, 1)
        noise = np.tensordot(row * self._domain.noise, self._noise, 1)
        clash = self._domain.interference * abs(row[0] * row[1]) * self._clash
        return margins(self._base + knows + noise + clash, self.targets)


@dataclass(frozen=True)
class Shipped:
    """What a domain got: `worse` is by how much it is worse than the best parent, in truth."""

    outcome: str
    worse: float
    win: bool


def simulate(rng: np.random.Generator, least: int, most: int, guard: Guard) -> Shipped:
    domain = Domain.drawn(rng)
    labelled = int(np.exp(rng.uniform(np.log(least), np.log(most))))
    fit, gate = Users(domain, round(0.6 * labelled), rng), Users(domain, labelled - round(0.6 * labelled), rng)
    ladder = Ladder(fit.margins, 2)
    ladder.begin()
    ladder.climb()
    chosen, alone = ladder.best.weights, [parent.weights for parent in ladder.parents]
    looked = [*dict.fromkeys((*alone, chosen))]
    on_fit, on_gate = [fit.margins(w) for w in looked], [gate.margins(w) for w in looked]
    judged = judge(("spirit", "ingredient"), on_fit, on_gate, metric=METRIC, margin=MARGIN)
    outcome = "parent"
    if judged.ships(guard):
        outcome = "mixed" if judged.mix is not None and judged.mix.safe else "mixed, unsure"
    else:
        chosen = alone[judged.best]
    win = outcome == "mixed" and judged.mix is not None and judged.mix.win
    others = Users(domain, TRUTH, rng)
    truth = [float(per_question(ranks(others.margins(w)), METRIC).mean()) for w in (chosen, *alone)]
    return Shipped(outcome, max(truth[1:]) - truth[0], win)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--labelled", type=int, nargs=2, default=(60, 2000), help="labelled users, at least and at most"
    )
    parser.add_argument("--guard", choices=("ship-best", "ship-parent", "off"), default="ship-best")
    asked = parser.parse_args()
    began = time.monotonic()
    rngs = [np.random.default_rng([asked.seed, number]) for number in range(asked.domains)]
    least, most = asked.labelled
    shipped = [simulate(rng, least, most, asked.guard) for rng in rngs]
    bad = [each for each in shipped if each.worse > MARGIN]
    share = len(bad) / len(shipped)
    outcomes, harmed = Counter(each.outcome for each in shipped), Counter(each.outcome for each in bad)
    for outcome, count in sorted(outcomes.items()):
        print(f"{outcome}: {count} domains, {harmed[outcome]} of them worse than the best parent by more than {MARGIN}")
    false = sum(each.win and each.worse > 0 for each in shipped)
    print(f"wins claimed: {sum(each.win for each in shipped)}, wrongly: {false}")
    print(f"mean NDCG@3 over the best parent: {-np.mean([each.worse for each in shipped]):+.4f}")
    print(f"{'reached' if share <= LIMIT else 'MISSED'}: {share:.1%} of {len(shipped)} domains, at most {LIMIT:.0%}")
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(share > LIMIT)


if __name__ == "__main__":
    main()
