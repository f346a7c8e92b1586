"""Two evaluations or systems side by side: paired intervals, and for two versions what differs, with their weights' cosine by module."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from ...engine.documents import describe_comparison
from ...engine.records import compare, find_pair
from ...registry import Registry
from ...registry.catalog.evaluations import EvaluationFilter
from ...registry.catalog.filters import AdapterFilter
from ..identity import Reading
from ..libraries import load_models
from ..naming import expect_registered
from .acting import ShortText, attempt, show
from .charts import heat_map, intervals
from .forms import Problems, Sent, query_of

router = APIRouter()
CHOICES = 30
NOTHING: dict[str, Any] = {
    "measured": None,
    "names": None,
    "chart": None,
    "tasks": [],
    "differ": None,
    "map": None,
    "total": None,
}


class Pair(BaseModel):
    """`a` minus `b`: evaluations by id, or systems by name; with `weights`, the LoRAs of two versions, too, which takes a while."""

    a: ShortText = ""
    b: ShortText = ""
    domain: ShortText = ""
    weights: ShortText = ""

    def expect_domain(self, registry: Registry) -> None:
        """Raises FormError."""
        problems = Problems()
        with problems.of("domain"):
            if self.domain:
                registry.domains.get(self.domain)
        problems.expect_none()


@router.get("/compare")
def comparing(
    request: Request, registry: Reading, sent: Annotated[Sent[Pair], Depends(query_of(Pair))]
) -> HTMLResponse:
    """The figures of both and how they differ; the form alone as long as a side is missing."""
    pair = sent.known
    refused = attempt(lambda: sent.read().expect_domain(registry))
    domain = None if refused else pair.domain or None
    found: dict[str, Any] = {}
    unmeasured = None
    if pair.a and pair.b and not refused:
        refused = attempt(lambda: found.update(_measured(registry, pair.a, pair.b, domain)))
        of_weights = attempt(lambda: found.update(_weights(registry, pair.a, pair.b))) if pair.weights else None
        if "differ" in found:
            refused, unmeasured = None, refused  # what differs is an answer, too
        refused = refused or of_weights
    return show(
        request, "compare.html", refused=refused, unmeasured=unmeasured, form=pair, typed=sent.typed,
        recent=registry.evaluations.list(EvaluationFilter(domain=domain), limit=CHOICES),
        versions=registry.adapters.list(AdapterFilter(domain=domain), limit=CHOICES), **NOTHING | found,
    )  # fmt: skip


def _measured(registry: Registry, a: str, b: str, domain: str | None) -> dict[str, Any]:
    problems = Problems()
    for name, text in (("a", a), ("b", b)):
        with problems.of(name):
            expect_registered(text)
            find_pair(registry, text, text, domain=domain)
    problems.expect_none()
    document = describe_comparison(compare(registry, *find_pair(registry, a, b, domain=domain)))
    chart = intervals("difference", [*document["differences"].items()], with_zero=True)
    options = [(key, document["a"]["task"].get(key), document["b"]["task"].get(key))
               for key in dict.fromkeys((*document["a"]["task"], *document["b"]["task"]))]  # fmt: skip
    tasks = [each for each in options if each[1] != each[2]]
    return {"measured": document, "names": _names(document, a, b), "chart": chart, "tasks": tasks}


def _names(document: dict[str, Any], a: str, b: str) -> tuple[str, str]:
    """What the systems were called when they were evaluated; what was asked for where that is the same of both."""
    one, other = document["a"]["label"], document["b"]["label"]
    if one != other:
        return one, other
    return _asked(a, one), _asked(b, other)


def _asked(text: str, label: str) -> str:
    return f"{label} (evaluation {text})" if text.isdigit() else text


def _weights(registry: Registry, a: str, b: str) -> dict[str, Any]:
    load_models()
    from ...engine.comparing import compare as compare_adapters

    found = compare_adapters(registry, registry.adapters.resolve(a), registry.adapters.resolve(b))
    deltas = found.weights.deltas if found.weights else ()
    cosines = {each.name: 1.0 if each.equal else each.cosine for each in deltas}
    return {
        "differ": [asdict(field) for field in found.fields],
        "map": heat_map("cosine of the two deltas", {n: c for n, c in cosines.items() if c is not None}),
        "total": found.weights and found.weights.total,
    }
