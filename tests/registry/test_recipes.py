"""Recipes and templates as versions of content."""

from __future__ import annotations

import pytest
from reccocktail.registry import Registry
from reccocktail.registry.errors import NotFoundError, UsageError

HALF = {"coefficients": {"spirit": 0.5, "ingredient": 0.5}}
LESS = {"coefficients": {"spirit": 0.4, "ingredient": 0.6}}


def test_other_content_is_the_next_version_and_the_same_content_is_the_same(registry: Registry) -> None:
    first = registry.recipes.add("house", HALF)
    assert (first.ref, first.created) == ("house@v1", True)
    assert registry.recipes.add("house", dict(HALF)) == registry.recipes.get("house@v1")
    second = registry.recipes.add("house", LESS, note="less spirit")
    assert (second.ref, second.note, second.content) == ("house@v2", "less spirit", LESS)
    # going back adds nothing
    again = registry.recipes.add("house", HALF)
    assert (again.ref, again.created) == ("house@v1", False)
    assert registry.recipes.get("house").ref == "house@v2"
    assert [version.ref for version in registry.recipes.log("house")] == ["house@v2", "house@v1"]


def test_recipes_and_templates_of_one_name_are_two_things(registry: Registry) -> None:
    registry.recipes.add("house", HALF)
    registry.templates.add("house", {"name": "house"})
    assert registry.recipes.get("house").content == HALF
    assert [version.ref for version in registry.templates.list()] == ["house@v1"]
    assert {event.kind for event in registry.events.list()} >= {"recipe.added", "template.added"}


def test_each_version_is_an_event_with_its_author(registry: Registry) -> None:
    registry.recipes.add("house", HALF, read_from="/home/ann/house.yaml")
    (event,) = registry.events.list(kind="recipe.added")
    assert (event.subject, event.detail["read_from"]) == ("house@v1", "/home/ann/house.yaml")
    assert event.created_by == registry.recipes.get("house").created_by


def test_the_list_has_the_newest_of_each(registry: Registry) -> None:
    for name, content in (("house", HALF), ("garden", HALF), ("house", LESS)):
        registry.recipes.add(name, content)
    assert [version.ref for version in registry.recipes.list()] == ["garden@v1", "house@v2"]
    assert registry.recipes.contents({"house@v1", "garden@v1", "gone@v1", "average"}) == {
        "house@v1": HALF,
        "garden@v1": HALF,
    }


@pytest.mark.parametrize("ref", ["hous", "house@v2"])
def test_what_is_not_there_is_named(registry: Registry, ref: str) -> None:
    registry.recipes.add("house", HALF)
    with pytest.raises(NotFoundError, match=r"did you mean 'house'|no version 2"):
        registry.recipes.get(ref)


@pytest.mark.parametrize("ref", ["House", "house@best", "/house.yaml", ""])
def test_what_is_no_reference_to_a_recipe_is_refused(registry: Registry, ref: str) -> None:
    with pytest.raises(UsageError):
        registry.recipes.get(ref)


def test_a_domain_points_to_a_version_and_never_to_a_file(registry: Registry) -> None:
    registry.recipes.add("house", HALF)
    assert registry.domains.add("beauty", recipe="house@v1").recipe == "house@v1"
    assert registry.recipes.users() == {"house@v1": ["beauty"]}
    for recipe in ("/home/ann/house.yaml", "house.yaml", "house@v2", "house@best"):
        with pytest.raises(UsageError):
            registry.domains.add("beauty", recipe=recipe)
        with pytest.raises(UsageError):
            registry.domains.add("toys", recipe=recipe)
    assert registry.domains.get("beauty").recipe == "house@v1"
    assert [row.name for row in registry.domains.list()] == ["beauty"]


def test_a_secret_in_a_recipe_is_refused(registry: Registry) -> None:
    with pytest.raises(UsageError):
        registry.templates.add("ours", {"name": "ours", "user": "hf_" + "a1B2c3D4e5" * 4})
