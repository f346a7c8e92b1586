"""The forms about what is served: the gate of a domain, promotion through it, and the policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from ...engine.gates import policy_of
from ...registry import Registry
from ...registry.catalog.gates import Requirement
from ...registry.errors import UsageError
from .acting import LongText, ShortText
from .forms import Problems

NAMES = ("metric", "against", "margin", "confidence", "split")
ANY_METRIC = "MRR"  # beside which the other fields are looked at one by one


class GateForm(BaseModel):
    """Without a metric the gate asks for approvals alone."""

    metric: ShortText = ""
    against: ShortText = "champion"
    margin: ShortText = "0"
    confidence: ShortText = "0.95"
    split: ShortText = "test"
    approvals: Annotated[int, Field(ge=0, le=20)] = 0
    do: Literal["set", "remove"] = "set"

    def carry_out(self, registry: Registry, domain: str) -> None:
        """Raises FormError for a gate that means nothing."""
        if self.do == "remove":
            registry.gates.remove(domain)
            return
        problems = Problems()
        require = {name: getattr(self, name).strip() for name in NAMES} if self.metric.strip() else None
        for name, text in (require or {}).items():
            with problems.of(name):
                Requirement.read({"metric": ANY_METRIC, name: text})
        problems.expect_none()
        with problems.of("metric", UsageError):
            registry.gates.set(domain, *policy_of({"require": require, "approvals": self.approvals}))
        problems.expect_none()


class Promotion(BaseModel):
    """`why` is kept with the event; `override` is a reason to pass the gate by."""

    why: LongText = ""
    override: LongText = ""


class PolicyForm(BaseModel):
    """Which alias a domain serves, and who promotes new builds; `override` is a reason to pass the gate by."""

    alias: ShortText = ""
    promote: Literal["manual", "automatic"] = "manual"
    override: LongText = ""

    def carry_out(self, registry: Registry, domain: str) -> None:
        """Raises FormError, GateError."""
        problems, override = Problems(), self.override.strip() or None
        with problems.of("alias", UsageError):
            registry.serving.set_policy(domain, alias=self.alias.strip(), promote=self.promote, override=override)
        problems.expect_none()
