"""What the context of an adapter tells of its training, whichever program wrote it."""

from __future__ import annotations

from typing import Any

import pytest
from reccocktail.engine.building import lineage
from reccocktail.publishing import packing
from reccocktail.registry import Adapter
from reccocktail.registry.catalog.training import TrainingContext, TrainingData

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "context",
    [
        {"data": [{"domain": "books", "digest": DIGEST}]},
        {"tasks": [{"domain": "books", "data": DIGEST, "task": "sha256:t"}]},
        {"data": [{"domain": "books", "digest": DIGEST}], "tasks": [{"domain": "books", "data": DIGEST}]},
    ],
    ids=["a plugin's", "tasks alone", "both"],
)
def test_the_card_and_the_lineage_of_a_build_name_the_same_data(add: Any, registry: Any, context: Any) -> None:
    registry.domains.add("books")
    adapter: Adapter = add("books", context=context)
    assert lineage._adapter(adapter)["data"] == [{"domain": "books", "digest": DIGEST}]
    assert [(each.domain, each.digest) for each in packing.data_of(adapter)] == [("books", DIGEST)]


@pytest.mark.parametrize("odd", [1, "text", [], [1], {"a": 1}, None, True])
def test_what_has_another_form_is_left_out(odd: Any) -> None:
    context = dict.fromkeys(("data", "tasks", "options", "template", "partial"), odd)
    known = TrainingContext.of(context | {"trainer": "sft"})
    assert known.trained_by == "sft"
    assert (known.data, known.template_name, known.template_option) == ((), None, None)
    assert TrainingContext.of({"data": [{"domain": odd}]}).data[0] == TrainingData(
        "text" if odd == "text" else None, None
    )
