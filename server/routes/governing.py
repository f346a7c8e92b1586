"""What has to be shown before something is promoted, who approved it, how a domain gets what it serves, and going back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from ...engine.building.rollback import describe_rollback, plan_rollback, roll_back, rollback_target
from ...engine.gates import policy_of
from ...registry.catalog.gates import Gate, GateChange
from ...registry.catalog.references import SPIRIT
from ...registry.catalog.serving import ServingPolicy
from ..identity import Administering, Promoting, Reading, identify
from ..models import RollbackModel, model_of
from .aliases import DryRun, Why
from .declaring import BaseName, Name, router

routes = router("governing")
GateModel, GateChangeModel, ServingPolicyModel = model_of(Gate), model_of(GateChange), model_of(ServingPolicy)
ShortText = Annotated[str, Field(max_length=200)]


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewGate(_Sent):
    """`require` has metric, against, margin, confidence and split; `approvals` is how many others approve."""

    require: dict[ShortText, Any] | None = None
    approvals: Annotated[int, Field(ge=0, le=20)] = 0


class PolicyChange(_Sent):
    """What is left out stays; `override` is a reason in words to serve another alias by the gate."""

    alias: ShortText | None = None
    promote: Literal["manual", "automatic"] | None = None
    override: Why = None


class Return(_Sent):
    """`to` is a build, or a moment whose build is served again; without it, what was served before."""

    to: ShortText | None = None
    base: ShortText | None = None
    why: Why = None


@routes.get("/domains/{name}/gate", response_model=GateModel | None)
def show_gate(registry: Reading, name: Name) -> Any:
    """What a version has to show before it becomes champion; null without a gate."""
    found = registry.gates.get(name)
    return found and found.to_json()


@routes.put("/domains/{name}/gate", response_model=GateModel)
def set_gate(registry: Administering, name: Name, new: NewGate) -> Any:
    """Replaces the gate as a whole."""
    return registry.gates.set(name, *policy_of(new.model_dump())).to_json()


@routes.delete("/domains/{name}/gate", status_code=204)
def remove_gate(registry: Administering, name: Name) -> None:
    registry.gates.remove(name)


@routes.get("/domains/{name}/gate/history", response_model=list[GateChangeModel])
def show_gates(registry: Reading, name: Name) -> Any:
    """Who set or removed the gate, when, and what it asked for; newest first."""
    return [each.to_json() for each in registry.gates.history(name)]


@routes.post("/adapters/{ref}:approve")
def approve_adapter(request: Request, registry: Promoting, ref: Name, base: BaseName = None) -> dict[str, Any]:
    """Approves a version that somebody else registered; for those who may promote in its domain."""
    row = registry.adapters.resolve(ref, base=base)
    identify(request).expect(f"promote:{row.domain or SPIRIT}")
    return {"ref": row.ref, "approved_by": registry.gates.approve_adapter(row.ref, base=row.base)}


@routes.post("/builds/{id}:approve")
def approve_build(request: Request, registry: Promoting, id: Name) -> dict[str, Any]:  # noqa: A002
    """Approves a build that somebody else requested; for those who may promote in its domain."""
    row = registry.builds.get(id)
    identify(request).expect(f"promote:{row.domain}")
    return {"id": row.id, "approved_by": registry.gates.approve_build(row.id)}


@routes.get("/domains/{name}/policy", response_model=ServingPolicyModel)
def show_policy(registry: Reading, name: Name) -> Any:
    """Which alias is served, and who promotes new builds."""
    registry.domains.get(name)
    return registry.serving.policy(name).to_json()


@routes.patch("/domains/{name}/policy", response_model=ServingPolicyModel)
def set_policy(registry: Promoting, name: Name, change: PolicyChange) -> Any:
    found = registry.serving.set_policy(name, alias=change.alias, promote=change.promote, override=change.override)
    return found.to_json()


@routes.post("/domains/{name}:rollback", response_model=RollbackModel)
def go_back(registry: Promoting, name: Name, wanted: Return | None = None, dry_run: DryRun = False) -> Any:
    """Serves an earlier build again; with `dry_run` says what that would change, and what would be out of date then."""
    wanted = wanted or Return()
    planned = plan_rollback(registry, name, to=rollback_target(wanted.to), base=wanted.base)
    if planned.is_needed and not dry_run:
        roll_back(registry, planned, why=wanted.why)
    return describe_rollback(planned) | {"dry_run": dry_run}
