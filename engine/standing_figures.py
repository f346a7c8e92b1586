"""What was measured last of what domains stand for: the version that their name means, and the build that they serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..registry import Registry
from ..registry.catalog.evaluations import EvaluationRecord, Weights, weights_of_build
from ..registry.catalog.gates import Gate, Requirement
from .building.freshness import Freshness

METRIC = "NDCG@3"  # of a domain whose gate asks for none


@dataclass(frozen=True)
class StandingFigures:
    """The newest evaluations on the domain's own data, and the metric that counts there: its gate's, if that asks for one."""

    metric: str
    champion: EvaluationRecord | None = None
    served: EvaluationRecord | None = None


def standing_figures(
    registry: Registry, states: Mapping[str, Freshness], gates: Mapping[str, Gate]
) -> dict[str, StandingFigures]:
    """By domain, on the split that its gate asks for, else the test split; in as many queries for many domains as for few."""
    champions = {name: state.champion for name, state in states.items() if state.champion is not None}
    served = {
        name: weights_of_build(state.build, state.build.inputs["base"]["digest"])
        for name, state in states.items()
        if state.build is not None and state.build.digest is not None
    }
    known = registry.evaluations.newest_in_domains([*champions.values(), *served.values()])

    def figures(name: str) -> StandingFigures:
        gate = gates.get(name)
        wanted = (gate and gate.requirement) or Requirement(METRIC)

        def of(systems: Mapping[str, Weights]) -> EvaluationRecord | None:
            return known.get((systems[name], name, wanted.split)) if name in systems else None

        return StandingFigures(wanted.metric, of(champions), of(served))

    return {name: figures(name) for name in states}
