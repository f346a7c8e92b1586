"""`build request` of several domains at once."""

from __future__ import annotations

from typing import Any


def test_several_domains_are_built_in_one_pass(prepared: Any) -> None:
    words = ("build", "request", "skin-care", "kitchen", "--recipe", "spirit-only", "--wait")
    answer = prepared(*words, "--json")
    assert [(row["domain"], row["status"], row["report"]["together"]) for row in answer.json] == [
        ("skin-care", "succeeded", 2),
        ("kitchen", "succeeded", 2),
    ]
    again = prepared(*words)
    assert all(row["id"] in again.out for row in answer.json)
    with prepared.registry() as registry:
        assert registry.builds.counts() == {"succeeded": 2}
