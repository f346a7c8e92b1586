"""Who moved which alias when, what a reference meant on a day, and where an adapter went."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from reccocktail.registry import Adapter, Base, Build, Registry, Settings
from reccocktail.registry.catalog.adapters import AdapterFilter
from reccocktail.registry.catalog.filters import MetricBound
from reccocktail.registry.catalog.gates import Passage
from reccocktail.registry.catalog.references import Reference
from reccocktail.registry.errors import ConflictError, GateError, NotFoundError, UsageError

Add = Callable[..., Adapter]
Make = Callable[..., Path]


def moment() -> datetime:
    """Now, which is after all that was done and before all that is still to be done."""
    return datetime.now(UTC)


@pytest.fixture
def beauty(registry: Registry, add: Add) -> Registry:
    registry.domains.add("beauty")
    for seed in (1, 2, 3):
        add("beauty", seed)
    return registry


# --- the log


def test_the_log_tells_who_moved_which_alias_when(settings: Settings, beauty: Registry) -> None:
    with Registry.open(settings, actor="ann") as ann:
        ann.adapters.alias("beauty@v1", "champion")
    with Registry.open(settings, actor="bob") as bob:
        moved = bob.adapters.alias("beauty@v2", "champion")
        bob.adapters.remove_alias("beauty@champion")
    removed, move, put = beauty.adapters.log("beauty", limit=3)
    assert moved.ref == "beauty@v2"
    assert (put.kind, put.subject, put.created_by) == ("alias.set", "beauty@champion", "ann")
    assert (move.kind, move.created_by) == ("alias.moved", "bob")
    assert move.detail == {"base": "tiny", "from": "beauty@v1", "to": "beauty@v2"}
    assert (removed.kind, removed.detail) == ("alias.removed", {"base": "tiny", "from": "beauty@v2"})
    assert put.created_at <= move.created_at <= removed.created_at


def test_the_log_of_a_version_holds_what_came_and_what_left(beauty: Registry) -> None:
    beauty.adapters.alias("beauty@v1", "champion")
    beauty.adapters.alias("beauty@v2", "champion")
    beauty.adapters.alias("beauty@v3", "candidate")
    beauty.adapters.archive("beauty@v1")
    beauty.adapters.restore("beauty@v1")
    kinds = [event.kind for event in beauty.adapters.log("beauty@v1")]
    assert kinds == ["adapter.restored", "adapter.archived", "alias.moved", "alias.set", "adapter.added"]


def test_the_log_of_an_alias_goes_on_after_it_is_removed(beauty: Registry) -> None:
    beauty.adapters.alias("beauty@v1", "candidate")
    beauty.adapters.alias("beauty@v3", "champion")
    beauty.adapters.alias("beauty@v2", "candidate")
    beauty.adapters.remove_alias("beauty@candidate")
    kinds = [event.kind for event in beauty.adapters.log("beauty@candidate")]
    assert kinds == ["alias.removed", "alias.moved", "alias.set"]
    assert beauty.adapters.log("beauty@candidate", base="tiny") == beauty.adapters.log("beauty@candidate")


def test_the_log_is_paged_by_key(beauty: Registry) -> None:
    for version in (1, 2, 3, 1):
        beauty.adapters.alias(f"beauty@v{version}", "champion")
    whole = beauty.adapters.log("beauty")
    pages, after = [], None
    while page := beauty.adapters.log("beauty", limit=2, after=after):
        pages += page
        after = page[-1].id
    assert pages == whole
    assert len(whole) == 7


def test_the_log_of_a_name_may_be_kept_to_one_base(
    beauty: Registry, make_base: Make, make_adapter: Make, tmp_path: Path
) -> None:
    other = beauty.bases.add("other", make_base(tmp_path / "other", seed=1), source="org/other")
    beauty.adapters.add(make_adapter(tmp_path / "o"), base=other, role="ingredient", domain="beauty")
    assert len(beauty.adapters.log("beauty")) == 4
    assert len(beauty.adapters.log("beauty", base="other")) == 1


def test_an_alias_that_stays_where_it_is_makes_no_event(beauty: Registry) -> None:
    beauty.adapters.alias("beauty@v1", "champion")
    beauty.adapters.alias("beauty@v1", "champion")
    assert len(beauty.adapters.log("beauty@v1")) == 2


def test_removing_wants_an_alias_that_is_there(beauty: Registry) -> None:
    with pytest.raises(UsageError, match="names no alias"):
        beauty.adapters.remove_alias("beauty@v1")
    with pytest.raises(NotFoundError):
        beauty.adapters.remove_alias("beauty@champion")


def test_a_removed_alias_can_be_set_again(beauty: Registry) -> None:
    beauty.adapters.alias("beauty@v1", "champion")
    assert beauty.adapters.remove_alias("beauty@champion").aliases == ()
    assert beauty.adapters.resolve("beauty").ref == "beauty@v3"
    assert beauty.adapters.alias("beauty@v2", "champion").aliases == ("champion",)
    assert beauty.adapters.log("beauty")[0].kind == "alias.set"


# --- what it was then


def test_a_reference_is_resolved_as_of_a_moment(beauty: Registry) -> None:
    before = moment() - timedelta(days=1)
    added = moment()
    beauty.adapters.alias("beauty@v1", "champion")
    first = moment()
    beauty.adapters.alias("beauty@v2", "champion")
    second = moment()
    beauty.adapters.remove_alias("beauty@champion")
    removed = moment()
    beauty.adapters.archive("beauty@v3")
    archived = moment()

    def was(ref: str, at: datetime) -> str:
        return beauty.adapters.resolve(ref, at=at).ref

    assert [was("beauty", at) for at in (added, first, second, removed, archived)] == [
        f"beauty@v{version}" for version in (3, 1, 2, 3, 2)
    ]
    assert [was("beauty@champion", at) for at in (first, second)] == ["beauty@v1", "beauty@v2"]
    assert was("beauty@v1", archived) == "beauty@v1"
    for ref, at in (
        ("beauty", before),
        ("beauty@v1", before),
        ("beauty@champion", added),
        ("beauty@champion", removed),
    ):
        with pytest.raises(NotFoundError, match=re.escape(f"there was no '{ref}' at {at.isoformat()}")):
            was(ref, at)
    assert beauty.adapters.resolve("beauty@v3", at=archived).archived_at is not None
    assert beauty.adapters.resolve("beauty@v3", at=removed).archived_at is None
    assert beauty.adapters.resolve("beauty", at=first).aliases == ("champion",)
    assert beauty.adapters.resolve("beauty").aliases == ()


def test_a_champion_that_was_archived_then_is_passed_over_then(beauty: Registry) -> None:
    beauty.adapters.alias("beauty@v1", "champion")
    beauty.adapters.archive("beauty@v1", force=True)
    archived = moment()
    beauty.adapters.restore("beauty@v1")
    assert beauty.adapters.resolve("beauty", at=archived).ref == "beauty@v3"
    assert beauty.adapters.resolve("beauty@champion", at=archived).ref == "beauty@v1"
    assert beauty.adapters.resolve("beauty").ref == beauty.adapters.resolve("beauty", at=moment()).ref == "beauty@v1"


def test_two_bases_had_adapters_of_the_name(
    beauty: Registry, make_base: Make, make_adapter: Make, tmp_path: Path
) -> None:
    one = moment()
    other = beauty.bases.add("other", make_base(tmp_path / "other", seed=1), source="org/other")
    beauty.adapters.add(make_adapter(tmp_path / "o"), base=other, role="ingredient", domain="beauty")
    two = moment()
    assert beauty.adapters.resolve("beauty", at=one).base == "tiny"
    with pytest.raises(UsageError, match="several base models: other and tiny"):
        beauty.adapters.resolve("beauty", at=two)
    assert beauty.adapters.resolve("beauty", at=two, base="other").ref == "beauty@v1"


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["alias", "remove", "archive", "restore", "gate", "ungate"]),
        st.integers(1, 3),
        st.sampled_from(["champion", "candidate"]),
    ),
    max_size=12,
)


@examples(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_the_past_is_what_the_present_was(beauty: Registry, moves: list[tuple[str, int, str]]) -> None:
    """Whatever is done, resolving as of a moment gives what resolving gave at that moment."""
    refs = ["beauty", "beauty@champion", "beauty@candidate", "beauty@v1"]

    def now() -> list[Any]:
        found = []
        for ref in refs:
            try:
                adapter = beauty.adapters.resolve(ref)
            except (NotFoundError, GateError) as error:
                found.append(error.code)
            else:
                found.append((adapter.ref, adapter.aliases, adapter.archived_at is None))
        return found

    def then(at: datetime) -> list[Any]:
        found = []
        for ref in refs:
            try:
                adapter = beauty.adapters.resolve(ref, at=at)
            except (NotFoundError, GateError) as error:
                found.append(error.code)
            else:
                found.append((adapter.ref, adapter.aliases, adapter.archived_at is None))
        return found

    seen = []
    for what, version, name in moves:
        why = "a test" if name == "champion" else None
        try:
            match what:
                case "alias":
                    passage = Passage(None, override=why) if why else None
                    beauty.adapters.alias(f"beauty@v{version}", name, passage=passage)
                case "remove":
                    beauty.adapters.remove_alias(f"beauty@{name}", override=why)
                case "archive":
                    is_champion = "champion" in beauty.adapters.resolve(f"beauty@v{version}").aliases
                    override = "a test" if is_champion else None
                    beauty.adapters.archive(f"beauty@v{version}", force=True, override=override)
                case "gate":
                    beauty.gates.set("beauty", None, version)
                case "ungate":
                    beauty.gates.remove("beauty")
                case _:
                    beauty.adapters.restore(f"beauty@v{version}")
        except (ConflictError, NotFoundError):
            pass
        seen.append((moment(), now()))
    assert [then(at) for at, _ in seen] == [found for _, found in seen]


# --- where it went


@pytest.fixture
def build(registry: Registry, base: Base, beauty: Registry) -> Callable[..., Build]:
    """(key, refs): a build for beauty that succeeded and is served, of the versions named."""

    def make(key: str, *refs: str, domain: str = "beauty") -> Build:
        found = [registry.adapters.resolve(ref) for ref in refs]
        inputs = {"adapters": [{"ref": a.ref, "digest": a.digest} for a in found]}
        asked = registry.builds.request(domain, base.name, key, {}, inputs).build
        registry.builds.claim("w", build_id=asked.id)
        done = registry.builds.succeed(asked.id, "w", base.digest, None, None)
        registry.serving.promote(done.id)
        return done

    return make


def test_an_adapter_tells_which_builds_and_publications_it_reached(
    registry: Registry, build: Callable[..., Build]
) -> None:
    one, two = build("one", "beauty@v1"), build("two", "beauty@v1", "beauty@v2")
    build("three", "beauty@v2")
    registry.publications.add(two, "acme/beauty", "c0ffee", "v1")
    found = registry.adapters.reached(registry.adapters.resolve("beauty@v1"))
    assert [b.id for b in found.builds] == [two.id, one.id]
    assert (found.build_count, found.publication_count) == (2, 1)
    (published,) = found.publications
    assert (published.build, published.repo, published.tag, published.domain) == (two.id, "acme/beauty", "v1", "beauty")
    short = registry.adapters.reached(registry.adapters.resolve("beauty@v1"), limit=1)
    assert ([b.id for b in short.builds], short.build_count) == ([two.id], 2)
    nowhere = registry.adapters.reached(registry.adapters.resolve("beauty@v3"))
    assert (nowhere.build_count, nowhere.publication_count) == (0, 0)


def test_what_is_in_use_is_archived_only_by_force(registry: Registry, build: Callable[..., Build]) -> None:
    used = build("one", "beauty@v1")
    with pytest.raises(ConflictError, match=rf"in use: it is in beauty@production \({used.id}\)") as caught:
        registry.adapters.archive("beauty@v1")
    assert caught.value.hint == "use --force to archive it"
    registry.publications.add(used, "acme/beauty", "c0ffee")
    build("two", "beauty@v2")
    assert registry.adapters.uses(registry.adapters.resolve("beauty@v1")) == ["it is published in acme/beauty"]
    registry.publications.add(build("three", "beauty@v3"), "acme/beauty", "c0ffee")
    assert registry.adapters.uses(registry.adapters.resolve("beauty@v1")) == []
    assert registry.adapters.archive("beauty@v1").archived_at is not None
    assert registry.adapters.archive("beauty@v3", force=True).archived_at is not None


def test_a_champion_is_archived_only_by_force(beauty: Registry) -> None:
    beauty.adapters.alias("beauty@v1", "champion")
    with pytest.raises(ConflictError, match="in use: it is champion"):
        beauty.adapters.archive("beauty@v1")
    beauty.adapters.archive("beauty@v2")


def test_many_domains_are_counted_rather_than_listed(registry: Registry, add: Add, build: Callable[..., Build]) -> None:
    spirit = add("spirit", 9)
    for number in range(7):
        registry.domains.add(f"domain-{number}")
        build(f"k{number}", spirit.ref, domain=f"domain-{number}")
    (sentence,) = registry.adapters.uses(spirit)
    assert sentence.startswith("it is in domain-0@production (")
    assert sentence.endswith("and 2 more")


# --- finding


@pytest.fixture
def searched(registry: Registry, add: Add) -> Registry:
    registry.domains.add("beauty")
    registry.domains.add("toys")
    add("beauty", 1, metrics={"NDCG@3": 0.25, "HR@1": 0.5}, tags=["nightly"], note="First TRY, 100% größer")
    add("beauty", 2, metrics={"NDCG@3": 0.5}, tags=["nightly", "good"])
    add("toys", 3, metrics={"HR@1": 0.1}, tags=["good"], note="a_b")
    return registry


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"tags": ["nightly"]}, ["beauty@v2", "beauty@v1"]),
        ({"tags": ["nightly", "good"]}, ["beauty@v2"]),
        ({"tags": ["night"]}, []),
        ({"metrics": ["NDCG@3>=0.5"]}, ["beauty@v2"]),
        ({"metrics": ["NDCG@3>0.2", "HR@1=0.5"]}, ["beauty@v1"]),
        ({"metrics": ["HR@1"]}, ["toys@v1", "beauty@v1"]),
        ({"metrics": ["HR@1<0.5"]}, ["toys@v1"]),
        ({"metrics": ["HR@1 <= 1e-1"]}, ["toys@v1"]),
        ({"metrics": ["MRR"]}, []),
        ({"text": "first try"}, ["beauty@v1"]),
        ({"text": "GRÖSSER"}, ["beauty@v1"]),
        ({"text": "100%"}, ["beauty@v1"]),
        ({"text": "%"}, ["beauty@v1"]),
        ({"text": "a_b"}, ["toys@v1"]),
        ({"text": "_"}, ["toys@v1"]),
        ({"text": "toys"}, ["toys@v1"]),
        ({"text": "good", "domain": "beauty"}, ["beauty@v2"]),
    ],
)
def test_adapters_are_found_by_tag_metric_and_text(
    searched: Registry, wanted: dict[str, Any], found: list[str]
) -> None:
    wanted = wanted | {"metrics": [MetricBound.parse(text) for text in wanted.get("metrics", [])]}
    assert [a.ref for a in searched.adapters.list(AdapterFilter(**wanted))] == found


@pytest.mark.parametrize("text", ["", ">1", "a>", "a>x", "a>=nan", "a>inf", "a=1=2", "a<>1", " "])
def test_a_bound_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"metric|number"):
        MetricBound.parse(text)


def test_a_page_goes_on_across_bases(searched: Registry, make_base: Make, make_adapter: Make, tmp_path: Path) -> None:
    other = searched.bases.add("other", make_base(tmp_path / "other", seed=1), source="org/other")
    searched.adapters.add(make_adapter(tmp_path / "o"), base=other, role="ingredient", domain="beauty")
    everything = searched.adapters.list()
    pages, after = [], None
    while page := searched.adapters.list(limit=1, after=after):
        pages += page
        after = f"{page[-1].base}:{page[-1].ref}"
    assert pages == everything
    assert len(everything) == 4
    with pytest.raises(UsageError, match="several base models"):
        searched.adapters.list(after="beauty@v1")


def test_what_bare_names_mean_is_known_in_one_query(
    searched: Registry, make_base: Make, make_adapter: Make, tmp_path: Path
) -> None:
    other = searched.bases.add("other", make_base(tmp_path / "other", seed=1), source="org/other")
    searched.adapters.add(make_adapter(tmp_path / "o"), base=other, role="ingredient", domain="beauty")
    searched.adapters.alias("beauty@v1", "champion", base="tiny")
    found = {(a.base, a.ref) for a in searched.adapters.current()}
    assert found == {("tiny", "beauty@v1"), ("tiny", "toys@v1"), ("other", "beauty@v1")}


def test_the_digests_of_what_references_mean_are_those_of_active_versions_for_the_base(
    searched: Registry, add: Add, make_base: Make, tmp_path: Path
) -> None:
    other = searched.bases.add("other", make_base(tmp_path / "other", seed=1), source="org/other")
    spirit, newest = add("spirit", 5), add("beauty", 4)
    one, two, three = (searched.adapters.resolve(ref) for ref in ("beauty@v1", "beauty@v2", "toys@v1"))
    elsewhere = add("beauty", 6, base=other)
    for row, name in ((one, "champion"), (two, "candidate"), (newest, "mine"), (elsewhere, "theirs")):
        searched.adapters.alias(row.ref, name, base=row.base)
    searched.adapters.archive("beauty@v2", base="tiny", force=True)
    expected = {
        "spirit": spirit,
        "beauty": one,
        "beauty@champion": one,
        "beauty@mine": newest,
        "beauty@v3": newest,
        "toys": three,
        "toys@v1": three,
    }
    nothing = ["beauty@v2", "beauty@candidate", "beauty@theirs", "beauty@v4", "toys@champion", "toys@mine", "nobody"]
    asked = [Reference.parse(name) for name in (*expected, *nothing)]
    found = searched.adapters.digests(asked, base="tiny")
    assert found == {Reference.parse(name): row.digest for name, row in expected.items()}
    assert searched.adapters.digests(asked[1:2], base="other") == {asked[1]: elsewhere.digest}
    assert searched.adapters.digests(asked, base="absent") == searched.adapters.digests([], base="tiny") == {}


def test_many_references_are_looked_up_at_once(searched: Registry) -> None:
    many = [Reference("toys", version=number) for number in range(1, 2000)]
    many += [Reference(f"toys-{number}", alias="champion") for number in range(2000)]
    many += [Reference(f"toys-{number}") for number in range(2000)]
    assert [*searched.adapters.digests(many, base="tiny")] == many[:1]
