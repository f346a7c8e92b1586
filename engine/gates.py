"""Whether something passes the gate of its domain: an adapter that is to become champion, or a build that is to be served.

Decided from stored ranks, paired by user, with the bounds of the guard (`adapting.guard`); no model runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..registry import Adapter, Build, Registry
from ..registry.catalog.evaluations import EvaluationFilter, EvaluationRecord, Weights, weights_of_build
from ..registry.catalog.expecting import Expected
from ..registry.catalog.gates import Gate, Passage, Requirement, checked_override
from ..registry.catalog.references import CHAMPION, SPIRIT, Reference
from ..registry.catalog.serving import BuildAlias
from ..registry.errors import GateError, NotFoundError, UsageError

if TYPE_CHECKING:
    from .adapting.guard import Bound, Comparison

Subject = Adapter | Build


@dataclass(frozen=True)
class _Asked:
    """A subject in its domain, and the weights that it is compared with, by what they are called."""

    registry: Registry
    subject: Subject
    domain: str
    requirement: Requirement
    opponents: Mapping[str, Weights]


@dataclass
class _Found:
    """What the gate found: what stands in the way, with the commands that help."""

    problems: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def check(
    registry: Registry, subject: Subject, champion: Subject | None, *, override: str | None = None
) -> Passage | None:
    """Why the subject may take the champion's place; None where its domain has no gate and nothing is to be overridden.

    `champion` is what has the place now: the version with the alias, or the build that is served. With an `override`, a reason in words, nothing is
    checked. Raises GateError, which says what is missing or by how much it fails, and what to type.
    """
    name = _domain_of(subject)
    place = None if champion is None else called(champion)
    if override is not None:
        return Passage(place, override=checked_override(override))
    gate = registry.gates.get(name)
    if gate is None:
        return None
    if isinstance(subject, Build) and subject.digest is None:
        return None  # it has no result, which is refused by whoever would serve it
    found = _Found()
    _look_at_approvals(registry, subject, gate, found)
    passage = Passage(place, gate.version)
    if gate.requirement is not None:
        opponents = _opponents(registry, subject, champion, gate.requirement)
        asked = _Asked(registry, subject, name, gate.requirement, opponents)
        passage = _measured(asked, passage, found) or passage
    if found.problems:
        raise GateError(
            f"{called(subject)} does not pass the gate of {name}: {'; '.join(found.problems)}",
            hint="; ".join(
                [*found.commands, '--override "why" lets it through all the same, and the reason is recorded']
            ),
        )
    return passage


def move_champion(
    registry: Registry,
    ref: str | Reference,
    alias: str,
    *,
    base: str | None = None,
    override: str | None = None,
    expected: Expected | None = None,
) -> Adapter:
    """Sets the alias on the version; `champion` only through the gate of its domain. Raises GateError, PreconditionError."""
    row = registry.adapters.resolve(ref, base=base)
    passage = may_move(registry, row, alias, override=override)
    if alias == CHAMPION and CHAMPION in row.aliases and expected is None:
        return row
    return registry.adapters.alias(row.ref, alias, base=row.base, passage=passage, expected=expected)


def may_move(registry: Registry, row: Adapter, alias: str, *, override: str | None = None) -> Passage | None:
    """Why the alias may be set on the version: of `champion` what `check` says of its gate. Raises GateError, UsageError."""
    if alias != CHAMPION:
        if override is not None:
            raise UsageError(f"only {CHAMPION} has a gate: --override is for it")
        return None
    return None if CHAMPION in row.aliases else check(registry, row, _champion(registry, row), override=override)


def may_promote(registry: Registry, build: Build, *, override: str | None = None) -> Passage | None:
    """Why the build may be served: what `check` says, unless it is served already. Raises GateError."""
    served = [each.build for each in registry.serving.served(build.domain) if each.base == build.base]
    if served == [build.id]:
        return None
    return check(registry, build, registry.builds.get(served[0]) if served else None, override=override)


def promote(
    registry: Registry,
    build: Build,
    *,
    why: str | None = None,
    override: str | None = None,
    expected: Expected | None = None,
) -> BuildAlias:
    """Makes the build what its domain serves, through its gate. Raises GateError, ConflictError, PreconditionError."""
    passage = may_promote(registry, build, override=override)
    return registry.serving.promote(build.id, why=why, passage=passage, expected=expected)


def called(subject: Subject) -> str:
    """Its reference, or a build's id."""
    return subject.ref if isinstance(subject, Adapter) else subject.id


def _domain_of(subject: Subject) -> str:
    return subject.domain or SPIRIT


def _champion(registry: Registry, row: Adapter) -> Adapter | None:
    try:
        return registry.adapters.resolve(Reference(row.domain or SPIRIT, alias=CHAMPION), base=row.base)
    except NotFoundError:
        return None


def _look_at_approvals(registry: Registry, subject: Subject, gate: Gate, found: _Found) -> None:
    if not gate.approvals:
        return
    is_adapter = isinstance(subject, Adapter)
    there = registry.gates.approvers(
        adapter=(subject.ref, subject.base) if is_adapter else None, build=None if is_adapter else called(subject)
    )
    if len(there) < gate.approvals:
        found.problems.append(
            f"{len(there)} of {gate.approvals} approvals are there, by others than {subject.created_by}"
        )
        found.commands.append(
            f"somebody else: reccocktail {'adapter' if is_adapter else 'build'} approve {called(subject)}"
        )


def _weights(registry: Registry, subject: Subject) -> Weights:
    base = registry.bases.get(subject.base).digest
    return Weights(subject.digest, base) if isinstance(subject, Adapter) else weights_of_build(subject, base)


def _opponents(
    registry: Registry, subject: Subject, champion: Subject | None, wanted: Requirement
) -> dict[str, Weights]:
    """What is compared against, by name; nothing where there is no champion yet."""
    if wanted.against == "champion":
        return {} if champion is None else {called(champion): _weights(registry, champion)}
    base = registry.bases.get(subject.base)
    if isinstance(subject, Adapter):
        return {base.name: Weights(base.digest)}
    return {each["ref"]: Weights(each["digest"], base.digest) for each in subject.inputs["adapters"]}


def _measured(asked: _Asked, passage: Passage, found: _Found) -> Passage | None:
    """The newest evaluation that every opponent has a counterpart of, and how they compare; None where that is not good enough."""
    from .adapting.guard import FEWEST  # what compares is not loaded where there is no gate
    from .records import are_comparable

    wanted, registry = asked.requirement, asked.registry
    own = _evaluations(asked, _weights(registry, asked.subject))
    theirs = {name: _evaluations(asked, weights) for name, weights in asked.opponents.items()}
    for row in own:
        pairs = {name: next((r for r in rows if are_comparable(row, r)), None) for name, rows in theirs.items()}
        others = {name: each for name, each in pairs.items() if each is not None}
        if len(others) == len(pairs):
            break
    else:
        _miss(asked, own, theirs, found)
        return None
    compared = _compared(registry, row, others, wanted)
    if compared is not None and compared.users < FEWEST:
        found.problems.append(
            f"evaluation {row.id} has {row.users} user{'s' * (row.users != 1)}, and a gate decides on {FEWEST} or more: evaluate without"
            " --limit, or on a split with more users"
        )
        found.commands.append(_command(asked))
    for bound in () if compared is None else compared.bounds:
        if bound.low <= -wanted.margin:
            found.problems.append(_failure(bound, wanted, compared, row))
    against = [
        {
            "evaluation": others[bound.parent].id,
            "system": bound.parent,
            "difference": bound.difference,
            "low": bound.low,
        }
        for bound in (() if compared is None else compared.bounds)
    ]
    return replace(passage, evaluation=row.id, against=tuple(against), require=asdict(wanted))


def _evaluations(asked: _Asked, weights: Weights) -> list[EvaluationRecord]:
    from .records import NEWEST

    domain = None if asked.domain == SPIRIT else asked.domain
    wanted = EvaluationFilter(domain=domain, weights=weights, split=asked.requirement.split)
    rows = asked.registry.evaluations.list(wanted, limit=NEWEST)
    # a metric of another k follows from the ranks too; only the lists that a model writes have no AUC
    return [row for row in rows if asked.requirement.metric != "AUC" or "AUC" in row.metrics]


def _compared(
    registry: Registry, row: EvaluationRecord, others: Mapping[str, EvaluationRecord], wanted: Requirement
) -> Comparison | None:
    from .adapting.guard import compare
    from .records import ranks_of

    if not others:
        return None
    return compare(
        ranks_of(registry, row),
        {name: ranks_of(registry, each) for name, each in others.items()},
        metric=wanted.metric,
        margin=wanted.margin,
        candidates=row.task["n_negatives"] + 1,
        alpha=1 - wanted.confidence,
    )


def _miss(
    asked: _Asked, own: Sequence[EvaluationRecord], theirs: Mapping[str, Sequence[EvaluationRecord]], found: _Found
) -> None:
    where = f"the {asked.requirement.split} split" + ("" if asked.domain == SPIRIT else f" of {asked.domain}")
    missing = [called(asked.subject)] if not own else []
    missing += [name for name, rows in theirs.items() if not rows]
    if missing:
        found.problems.append(f"there is no evaluation of {' or '.join(missing)} on {where}")
    else:
        names = " and ".join([called(asked.subject), *theirs])
        found.problems.append(f"{names} were never evaluated on the same users of {where} by the same score")
    found.commands.append(_command(asked))


def _command(asked: _Asked) -> str:
    systems = " ".join(shlex.quote(name) for name in (called(asked.subject), *asked.opponents))
    domain = "DOMAIN" if asked.domain == SPIRIT else asked.domain
    split = "" if asked.requirement.split == "test" else f" --split {asked.requirement.split}"
    return f"reccocktail evaluate {systems} --domain {domain}{split}"


def _failure(bound: Bound, wanted: Requirement, compared: Comparison | None, row: EvaluationRecord) -> str:
    users = compared.users if compared else row.users
    limit = f"at most {wanted.margin:g} lower" if wanted.margin > 0 else f"at least {-wanted.margin:g} higher"
    limit = f"{limit} (above {-wanted.margin:+g})" if wanted.margin else "to be better (above 0)"
    return (
        f"its {wanted.metric} is {bound.mix_mean:.3f} and that of {bound.parent} {bound.parent_mean:.3f} on {users} users:"
        f" with {wanted.confidence:.0%} confidence the difference is only known to be above {bound.low:+.3f}, and the gate wants it"
        f" {limit}"
    )


def policy_of(content: Any) -> tuple[Requirement | None, int]:
    """The requirement and the number of approvals of a policy file's content. Raises UsageError."""
    if not isinstance(content, Mapping) or not content or content.keys() - {"require", "approvals"}:
        raise UsageError("a gate's file has `require` and `approvals`, and nothing else", hint="see docs/gates.md")
    approvals = content.get("approvals", 0)
    if isinstance(approvals, bool) or not isinstance(approvals, int) or not 0 <= approvals <= 20:
        raise UsageError(f"approvals are a number from 0 to 20, not {approvals!r}")
    require = content.get("require")
    return None if require is None else Requirement.read(require), approvals
