"""The form that sets or removes a domain's gate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ...engine.gates import policy_of
from ...registry import Registry
from .acting import ShortText


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
        """Raises UsageError for a gate that means nothing."""
        if self.do == "remove":
            registry.gates.remove(domain)
        else:
            registry.gates.set(domain, *policy_of(self._content()))

    def _content(self) -> dict[str, Any]:
        names = ("metric", "against", "margin", "confidence", "split")
        require = {name: getattr(self, name).strip() for name in names} if self.metric.strip() else None
        return {"require": require, "approvals": self.approvals}
