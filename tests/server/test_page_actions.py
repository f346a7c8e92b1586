"""The pages without a browser: what they show and escape, what their forms change and refuse, and for whom."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from reccocktail.engine.records import store_ranks
from reccocktail.registry import Registry
from reccocktail.registry.catalog.annotations import Edit
from reccocktail.registry.catalog.evaluations import Measurement, Weights
from reccocktail.registry.catalog.gates import Requirement
from reccocktail.server.app import ServerOptions
from reccocktail.server.pages.charts import LEFT, PLOT, heat_map, intervals
from reccocktail.server.pages.sliders import slider_of
from sqlalchemy import Engine, event

HTML = {"Accept": "text/html"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
CODES = {"promote": "gate"}


def succeed(registry: Registry, key: str = "key", report: Any = None, coefficients: Any = None) -> Any:
    """A build of skin-care whose result is its base model."""
    base = registry.bases.get("tiny")
    parents = (("spirit", registry.adapters.resolve("spirit")), ("ingredient", registry.adapters.resolve("skin-care")))
    inputs = {
        "base": {"name": "tiny", "digest": base.digest},
        "adapters": [{"role": role, "ref": row.ref, "digest": row.digest} for role, row in parents],
    }
    asked = registry.builds.request(
        "skin-care", "tiny", key, {"method": "linear", "output": {}}, inputs, own_recipe=True
    ).build
    registry.builds.claim("w", build_id=asked.id)
    registry.builds.log(asked.id, "w", HOSTILE)
    return registry.builds.succeed(
        asked.id, "w", base.digest, coefficients or {"spirit": 0.5, "ingredient": 0.5}, report or {}
    )


def measure(registry: Registry, ref: str, ranks: list[int | None], label: str) -> Any:
    """An evaluation of a version with those ranks (0 is the first place); only the intervals are made up."""
    row, base = registry.adapters.resolve(ref), registry.bases.get("tiny")
    mean = sum(rank == 0 for rank in ranks) / len(ranks)
    figure = {"mean": mean, "low": max(0.0, mean - 0.2), "high": min(1.0, mean + 0.2), "n": len(ranks)}
    return registry.evaluations.add(Measurement(
        key=f"{ref}{label}", system=row.digest, weights=Weights(row.digest, base.digest), label=label, domain="skin-care",
        mode="likelihood", dtype="float32", task_digest="sha256:task", questions="sha256:questions", users=len(ranks),
        task={"split": "test", "n_negatives": 9, "kind": "rank", "data_digest": "sha256:data", "seed": 42}, metrics={"HR@1": figure, "NDCG@3": figure}, detail={},
        ranks=store_ranks(registry, ranks), version="1",
    ))  # fmt: skip


def test_the_api_has_the_ranks_behind_a_figure_and_whether_a_version_is_sound(client, stocked):
    row = measure(stocked, "skin-care@v1", [0, 2, None, 0], "one")
    assert client.get(f"/api/v1/evaluations/{row.id}/ranks").json() == {"user_ranks": [0, 2, None, 0]}
    assert client.get("/api/v1/adapters/spirit/verification").json()["ok"]
    (file,) = stocked.adapters.folder(stocked.adapters.resolve("spirit")).glob("*.safetensors")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    damaged = client.get("/api/v1/adapters/spirit/verification")
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (503, "store")


ADAPTATION = {
    "objective": "ranking", "outcome": "mixed", "win": False, "parent": None, "search": "ladder", "roles": ["spirit", "ingredient"],
    "chosen": [0.25, 0.75], "fit": 120, "gate": 40, "seen": 0,
    "rungs": [{"name": "common", "gain": 0.0123, "error": 0.004, "taken": True}, {"name": "by role", "gain": 0.001, "error": 0.002, "taken": False}],
    "points": [{"means": [1 - x, x], "loss": (x - 0.75) ** 2} for x in (0.0, 0.25, 0.5, 0.75, 1.0)],
    "comparison": {"metric": "NDCG@3", "users": 40, "margin": 0.02, "safe": True, "bounds": [
        {"parent": HOSTILE, "mix_mean": 0.5, "parent_mean": 0.4, "difference": 0.1, "low": 0.01}]},
}  # fmt: skip
BY_MODULE = {f"model.layers.{n}.self_attn.{name}": 0.1 * n for n in range(4) for name in ("q_proj", "v_proj")}


def pages_of(build: Any) -> tuple[str, ...]:
    """Of every page, an address."""
    return (
        "/", "/domains/skin-care", "/domains/spirit", "/domains/skin-care/promote?ref=skin-care@v1", f"/builds/{build.id}",
        f"/builds/{build.id}/promote", "/adapters/skin-care@v1", "/adapters/spirit@v1", "/queue", "/activity", "/activity?domain=skin-care",
        "/publish", f"/publish?what={build.id}", "/try?domain=skin-care",
    )  # fmt: skip


def _alert(text: str) -> str:
    """What a page says was refused."""
    found = re.search(r'<div role="alert">.*?</div>', text, re.DOTALL)
    assert found
    return found[0]


def _marked(text: str) -> set[str]:
    """The fields of a page that have an error beside them, and refer to it."""
    found = set(re.findall(r'<p id="(\w+)-problem" class="problem">', text))
    assert (
        len(re.findall(r'aria-describedby="\w+-problem[ "]', text)) == text.count('aria-invalid="true"') == len(found)
    )
    assert text.count(" autofocus") == bool(found)
    return found


@pytest.fixture
def ask(stocked, open_client):
    """(path, form): the answer to somebody on this machine, whose form carries what the page gave it."""
    client = open_client(stocked)
    csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get("/recipes").text)
    assert csrf

    def answer(path: str, form: dict[str, str] | None = None) -> Any:
        if form is None:
            return client.get(path, headers=HTML)
        return client.post(path, data=form | {"csrf": csrf[1]}, headers=HTML)

    return answer


@pytest.fixture
def second(stocked, make_adapter):
    """skin-care@v2."""
    base = stocked.bases.get("tiny")
    folder = make_adapter(stocked.bases.folder(base), 3, r=2)
    return stocked.adapters.add(folder, base=base, role="ingredient", domain="skin-care")


def test_what_people_write_is_shown_as_text(stocked, ask):
    edit = Edit(description=HOSTILE, note=HOSTILE, tags=(HOSTILE,), links={"wiki": "https://x.example/?a=\"'"})
    stocked.edits.adapter("skin-care@v1", edit)
    stocked.edits.domain("skin-care", edit)
    stocked.domains.add("skin-care", title=HOSTILE)
    build = succeed(
        stocked,
        report={
            "adaptation": ADAPTATION,
            "warnings": [HOSTILE],
            "merge": {"left_out": [], "notes": ["one", "two"], "skipped": 0},
        },
        coefficients={"spirit": 0.5, "ingredient": BY_MODULE},
    )
    stocked.edits.build(build.id, edit)
    stocked.serving.alias(build.id, "shadow", why=HOSTILE)
    failed = stocked.builds.request("skin-care", "tiny", "other", {"output": {}}, {"adapters": []}).build
    stocked.builds.claim("w", build_id=failed.id)
    stocked.builds.fail(failed.id, "w", {"code": "x", "message": HOSTILE, "hint": HOSTILE})
    shown = 0
    for path in (
        *pages_of(build),
        f"/builds/{failed.id}",
        f"/activity?actor={HOSTILE}",
        f"/domains/skin-care?at={HOSTILE[:25]}&done={HOSTILE[:25]}",
    ):
        answer = ask(path)
        assert answer.status_code == 200, (path, answer.text)
        assert "<script>alert" not in answer.text, path
        assert "<img" not in answer.text, path
        shown += answer.text.count("&lt;script&gt;alert")
    assert shown > 15
    text = ask(f"/builds/{build.id}").text
    assert text.count('<circle class="ring"') == 1
    assert "120 to choose by, 40 to judge by" in text
    assert re.findall(r"<li>([\w ]+): gain [^<]*: ((?:not )?taken)</li>", text) == [
        ("common", "taken"),
        ("by role", "not taken"),
    ]
    assert ("one, two" in text, "left out</dt>" in text, "<dd>0</dd>" in text) == (
        True,
        False,
        True,
    )  # what is empty is not said
    assert text.count('class="cell"') == len(BY_MODULE)


def test_forms_change_what_they_say_and_only_with_what_the_page_gave(stocked, ask, second, open_client):
    build, other = succeed(stocked), None
    forms = {
        "/domains/skin-care/promote": {"ref": "skin-care@v2", "base": "tiny"},
        "/domains/skin-care/archive": {"ref": "skin-care@v1", "base": "tiny", "force": "1"},
        "/adapters/skin-care@v2/edit": {"base": "tiny", "tags": "a, b", "note": "n", "description": ""},
        f"/builds/{build.id}/pin": {},
        f"/builds/{build.id}/promote": {"why": "w"},
    }
    bare = open_client(stocked)
    for path, form in forms.items():
        for csrf in ({}, {"csrf": "0" * 64}):
            assert bare.post(path, data=form | csrf).status_code == 403, path
    assert stocked.adapters.resolve("skin-care@v2").aliases == ()
    for path, form in forms.items():
        answer = ask(path, form)
        assert answer.status_code == 303, (path, answer.text)
        assert 'role="status"' in ask(answer.headers["location"]).text
    row = stocked.adapters.resolve("skin-care@v2")
    assert (row.aliases, row.tags, row.note) == (("champion",), ("a", "b"), "n")
    assert ask("/adapters/skin-care@v2/edit", {"base": "tiny", "tags": "b"}).status_code == 303
    assert stocked.adapters.resolve("skin-care@v2").tags == ("b",)
    assert stocked.adapters.resolve("skin-care@v1").archived_at is not None
    assert ask("/domains/skin-care/archive", {"ref": "skin-care@v1", "base": "tiny", "undo": "1"}).status_code == 303
    assert stocked.serving.marks([build.id])[build.id] == ("candidate", "production", "pinned")
    # what is champion is archived only with `force`; the page says why, and offers it
    refused = ask("/domains/skin-care/archive", {"ref": "skin-care@v2", "base": "tiny"})
    assert (refused.status_code, 'role="alert"' in refused.text) == (409, True)
    assert "Archive skin-care@v2 all the same" in refused.text
    assert ask(f"/builds/{build.id}/retry", {}).status_code == 409
    assert "Roll back…" not in ask("/domains/skin-care").text
    nowhere = ask("/domains/skin-care/rollback")  # nothing was served before: in place, with what can be done
    assert (nowhere.status_code, "name a build or a moment" in nowhere.text) == (409, True)
    assert f'href="/domains/skin-care/rollback?to={build.id}"' in nowhere.text
    wrong = ask("/domains/skin-care/rollback?to=1999-01-01")
    assert (wrong.status_code, _marked(wrong.text), 'value="1999-01-01"' in wrong.text) == (404, {"to"}, True)
    other = succeed(stocked, "another")
    stocked.serving.promote(other.id)
    assert "Roll back…" in ask("/domains/skin-care").text
    preview = ask("/domains/skin-care/rollback")
    assert build.id in preview.text
    assert stocked.serving.served("skin-care")[0].build == other.id
    assert ask("/domains/skin-care/rollback", {"to": build.id, "base": "tiny", "why": "w"}).status_code == 303
    assert stocked.serving.served("skin-care")[0].build == build.id
    same = ask(f"/domains/skin-care/rollback?to={build.id}").text
    assert ("served already" in same, "What going back changes" in same) == (True, False)
    asked = ask("/domains/skin-care/build", {})
    assert asked.status_code in (303, 409)


def test_a_closed_gate_is_shown_before_and_refuses_after(stocked, ask, second):
    stocked.adapters.alias("skin-care@v1", "champion")
    stocked.gates.set("skin-care", Requirement("HR@1"), 0)
    preview = ask("/domains/skin-care/promote?ref=skin-care@v2")
    assert preview.status_code == 200
    assert "closed" in preview.text
    assert "reccocktail evaluate" in preview.text
    form = {"ref": "skin-care@v2", "base": "tiny"}
    refused = ask("/domains/skin-care/promote", form | {"override": " "})
    assert refused.status_code == 409
    assert "reccocktail evaluate" in refused.text
    assert "--override" not in refused.text + preview.text  # the page has a field for it
    assert "Pass the gate by" in refused.text
    long = ask("/domains/skin-care/promote", form | {"override": "w" * 2001})
    assert (_marked(long.text), "w" * 2001 in long.text) == ({"override"}, True)
    assert ask("/domains/skin-care/promote", form | {"ref": "spirit@v1"}).status_code == 400
    assert stocked.adapters.resolve("skin-care@v2").aliases == ()
    assert ask("/domains/skin-care/promote", form | {"override": "the shop is on fire"}).status_code == 303
    assert stocked.events.list(limit=1)[0].detail["override"] == "the shop is on fire"
    past = ask("/domains/skin-care?at=2020-01-01").text
    assert "champion on tiny: none" in past
    assert ask("/domains/skin-care?at=2999-01-01").status_code == 200


def test_who_lacks_a_scope_sees_no_button_and_is_refused(stocked, open_client, second):
    build = succeed(stocked)
    stocked.serving.remove("skin-care@production")
    paths = {
        "/domains/skin-care/promote": ({"ref": "skin-care@v2", "base": "tiny"}, "promote:skin-care"),
        f"/builds/{build.id}/promote": ({}, "promote:skin-care"),
        f"/builds/{build.id}/pin": ({}, "build"),
        "/domains/skin-care/policy": ({"alias": "production", "promote": "manual"}, "promote:skin-care"),
        "/domains/skin-care/build": ({}, "build"),
        "/domains/skin-care/archive": ({"ref": "skin-care@v1", "base": "tiny"}, "register"),
        "/adapters/skin-care@v1/edit": ({"base": "tiny"}, "register"),
    }
    closed = ServerOptions(login=True)
    stocked.domains.add("garden")
    reader = stocked.tokens.create("anna", ["read", "promote:garden"], lasts=None)
    client = open_client(stocked, closed)
    page = client.get("/login").text
    csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
    assert csrf
    client.post("/login", data={"csrf": csrf[1], "token": reader.secret})
    for path in (
        "/domains/skin-care",
        f"/builds/{build.id}",
        "/adapters/skin-care@v1",
        "/domains/skin-care/promote?ref=skin-care@v2",
        "/queue",
    ):
        text = client.get(path, headers=HTML).text
        assert re.findall(r'<form [^>]*method="post" action="([^"]*)"', text) == ["/logout"], path
        assert "/promote?" not in text
        assert '/promote"' not in text
    csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get("/domains/skin-care", headers=HTML).text)
    assert csrf
    for path, (form, _) in paths.items():
        answer = client.post(path, data=form | {"csrf": csrf[1]}, headers=HTML)
        assert answer.status_code == 403, path
    assert stocked.adapters.resolve("skin-care@v2").aliases == ()
    assert client.get("/queue").status_code == 200


def test_pages_ask_no_more_of_the_database_when_there_is_more(stocked, ask, make_adapter):
    build = succeed(stocked)
    stocked.serving.alias(build.id, "shadow")

    def count() -> dict[str, int]:
        asked: dict[str, int] = {}
        for path in pages_of(build):
            noted: list[str] = []

            def note(conn, cursor, statement, *_, noted=noted):
                noted.append(statement)

            event.listen(Engine, "before_cursor_execute", note)
            try:
                assert ask(path).status_code == 200
            finally:
                event.remove(Engine, "before_cursor_execute", note)
            asked[path] = len(noted)
        return asked

    few = count()
    base = stocked.bases.get("tiny")
    for seed in range(4, 12):
        folder = make_adapter(stocked.bases.folder(base), seed, r=2)
        row = stocked.adapters.add(folder, base=base, role="ingredient", domain="skin-care")
        stocked.adapters.alias(row.ref, "champion")
        stocked.adapters.alias(row.ref, f"a{seed}")
        succeed(stocked, f"key{seed}")
        stocked.domains.add(f"shop-{seed}")
    many = count()
    assert {path: n for path, n in many.items() if n > few[path]} == {}
    assert max(many.values()) < 80


def test_a_recipe_is_checked_kept_and_compared_with_the_one_before(stocked, ask):
    recipe = {"name": "mine", "text": "method: linear\ncoefficients: {spirit: 0.5, ingredient: 0.5}\n", "note": HOSTILE}
    checked = ask("/recipes", recipe | {"check": "1"})
    assert (checked.status_code, 'role="status"' in checked.text) == (200, True)
    assert [each.name for each in stocked.recipes.list()] == []
    for text in ("method: [", "just words", "method: soup", HOSTILE, "adaptive: {template: /etc/passwd}"):
        refused = ask("/recipes", recipe | {"text": text})
        assert refused.status_code in (400, 422), text
        assert _marked(refused.text) == {"text"}
        assert 'value="mine"' in refused.text
        assert "<script>alert" not in refused.text
    assert ask("/recipes", recipe).headers["location"] == "/recipes/mine@v1?done=added"
    assert ask("/recipes", recipe).headers["location"] == "/recipes/mine@v1?done=same"
    assert ask("/recipes", recipe | {"text": recipe["text"].replace("0.5}", "0.25}")}).status_code == 303
    page = ask("/recipes/mine").text
    assert "coefficients.ingredient: 0.5 → 0.25" in page
    assert "<script>alert" not in page
    assert ask("/recipes/average").status_code == ask("/recipes").status_code == 200
    assert ask("/recipes/nothing").status_code == 422
    assert ask("/compare").status_code == 200
    assert ask("/compare?a=skin-care@v1&b=spirit@v1").status_code == 404
    assert ask(f"/compare?a={HOSTILE}&b=1").text.count("<script>alert") == 0
    assert _marked(ask("/compare?a=/etc&b=1").text) == {"a", "b"}
    assert ask("/compare?a=/etc&b=1").status_code == 400
    lost = ask("/compare?a=nope&b=skin-care@v1&domain=nowhere")
    assert (lost.status_code, _marked(lost.text), 'value="nope"' in lost.text) == (404, {"domain"}, True)
    unknown = ask("/compare?a=nope&b=skin-care@v1").text
    assert ("a" in _marked(unknown), "folder" in unknown) == (True, False)


def test_figures_are_drawn_with_intervals_and_compared_by_user(stocked, ask, second):
    one = measure(stocked, "skin-care@v1", [0, 1, 2, None, 0, 1] * 8, HOSTILE)
    other = measure(stocked, "skin-care@v2", [0, 0, 2, None, 0, 2] * 8, "v2")
    page = ask("/domains/skin-care").text
    assert page.count('class="whisker"') == 2
    assert "v1 0.333 [0.133, 0.533]" in page
    for a, b in ((other.id, one.id), ("skin-care@v2", "skin-care@v1")):
        compared = ask(f"/compare?a={a}&b={b}")
        assert compared.status_code == 200
        assert compared.text.count('class="whisker"') == 2
        assert f"{one.users} users of skin-care, split test" in compared.text
        row = re.search(r'<th scope="row">HR@1</th>.*?</tr>', compared.text, re.DOTALL)
        assert row
        assert re.findall(r"(-?\d\.\d{3}) <span", row[0]) == ["0.500", "0.333", "0.167"]
        assert "<script>alert" not in compared.text
        assert compared.text.count('class="zero"') == 1
        assert "same files" not in compared.text
    assert 'class="zero"' not in page
    stocked.adapters.alias("skin-care@v2", "best")
    same = ask("/compare?a=skin-care@v2&b=skin-care@best").text
    assert "skin-care@v2 less skin-care@best" in same
    assert "same files" in same
    assert "NDCG@3" in ask("/adapters/skin-care@v1").text


def test_charts_have_layers_by_number_and_differences_zero():
    names = [f"model.layers.{n}.mlp.up_proj" for n in sorted(map(str, range(21)))]
    drawn = heat_map("cosine", dict.fromkeys(["lm_head", *names], 0.5))
    assert drawn
    assert [text for _, text in drawn.columns] == ["–", *map(str, range(21))]
    for low, high in ((0.1, 0.3), (-0.3, -0.1)):
        chart = intervals(
            "difference", [("HR@1", {"mean": (low + high) / 2, "low": low, "high": high})], with_zero=True
        )
        assert chart
        assert chart.zero
        assert LEFT <= chart.zero <= LEFT + PLOT
        assert (chart.zero < chart.bars[0].low, chart.zero > chart.bars[0].high) == (low > 0, low < 0)


def test_builds_for_several_domains_are_asked_for_at_once(stocked, ask, second):
    page = ask("/").text
    assert 'name="domain" value="skin-care"' in page
    assert ask("/rebuild", {"do": "request"}).status_code == 400
    assert ask("/rebuild", {"do": "boil", "domain": "skin-care"}).status_code == 422
    # one that is refused does not keep the other from its turn
    refused = ask("/rebuild", {"do": "request", "domain": [f"n{HOSTILE[:20]}", "skin-care"]})
    assert (refused.status_code, "1 of 2" in refused.text) == (200, True)
    assert "<script>" not in refused.text
    (build,) = stocked.builds.list()
    assert (build.domain, build.status, build.own_recipe) == ("skin-care", "queued", True)
    answer = ask("/rebuild", {"do": "request", "domain": "skin-care"})
    assert answer.headers["location"] == "/?count=1&done=rebuilding"
    assert 'role="status"' in ask(answer.headers["location"]).text
    assert len(stocked.builds.list()) == 1
    retry = {"do": "retry", "domain": "skin-care"}
    assert "0 of 1" in ask("/rebuild", retry).text  # it has not failed
    stocked.builds.claim("w", build_id=build.id)
    stocked.builds.fail(build.id, "w", {"code": "x", "message": "m"})
    assert "everything that failed (1)" in ask("/?state=failed").text
    assert ask("/rebuild", retry).status_code == 303
    assert stocked.builds.get(build.id).status == "queued"


def test_the_overview_is_filtered_and_a_reason_selects_its_domains(stocked, ask, second):
    build = succeed(stocked)
    stocked.serving.promote(build.id)
    stocked.adapters.alias("skin-care@v2", "champion")
    stocked.domains.add("garden")
    page = ask("/").text
    reason = re.search(r'href="(/\?reason=[^"]*&amp;state=stale)"', page)
    assert reason
    selected = ask(reason[1].replace("&amp;", "&")).text
    assert re.findall(r'<input type="checkbox" name="domain" value="([^"]*)"[^>]* checked>', selected) == ["skin-care"]
    assert "garden</a></th>" not in selected
    assert "Rebuild selected" in page
    garden = ask("/?name=GARD").text
    assert re.findall(r'row"><a href="[^"]*">(\w+)</a>', garden) == ["garden"]
    assert "Rebuild selected" not in garden  # there is nothing to tick
    assert ">select</th>" not in garden
    assert "<script>alert" not in ask(f"/?name={HOSTILE}&reason={HOSTILE}").text


def test_a_build_offers_what_its_state_allows(stocked, ask):
    def offered(build: Any) -> set[str]:
        text = ask(f"/builds/{build.id}").text
        block = re.search(r'<div id="do".*?</div>', text, re.DOTALL)
        assert block
        return {each.strip() for each in re.findall(r">([^<>\n]+)</(?:button|a)>", block[0])}

    again = "Build the domain as it is now"
    build = stocked.builds.request("skin-care", "tiny", "k", {"output": {}}, {"adapters": []}).build
    assert offered(build) == {"Cancel"}
    stocked.builds.claim("w", build_id=build.id)
    assert offered(build) == {"Cancel"}
    stocked.builds.fail(build.id, "w", {"code": "x", "message": "m"})
    assert offered(build) == {"Retry", again}
    assert ask(f"/builds/{build.id}/retry", {}).status_code == ask(f"/builds/{build.id}/cancel", {}).status_code == 303
    assert offered(build) == {"Retry", again}
    done = succeed(stocked)
    assert offered(done) == {"Pin", "Export", "Publish…", again}  # it is served already
    stocked.serving.remove("skin-care@production")
    assert offered(done) == {"Pin", "Promote…", "Export", "Publish…", again}
    stocked.serving.promote(done.id)
    stocked.serving.pin(done.id)
    assert offered(done) == {"Unpin", "Export", "Publish…", again}
    sizes = re.findall(r"</a> ([\d.]+ \w+)</li>", ask(f"/builds/{done.id}").text)
    assert {text.split()[1] for text in sizes} & {"B", "KB"}
    assert not {text.split()[1] for text in sizes} - {"B", "KB", "MB"}  # as the command writes them


def test_what_people_say_of_a_domain_and_a_version_is_replaced(stocked, ask):
    for path, read in (
        ("/domains/skin-care", lambda: stocked.domains.get("skin-care")),
        ("/adapters/skin-care@v1", lambda: stocked.adapters.resolve("skin-care@v1")),
    ):
        form = {"base": "tiny", "tags": "a, b", "note": "n", "description": HOSTILE}
        both = {"links": "our wiki https://wiki.example.org/x\n", "metrics": "HR@1 0.5\nlift 2"}
        assert ask(f"{path}/edit", form | both).status_code == 303
        row = read()
        assert (row.tags, row.note, row.description) == (("a", "b"), "n", HOSTILE)
        assert (row.links, row.metrics) == ({"our wiki": "https://wiki.example.org/x"}, {"HR@1": 0.5, "lift": 2.0})
        page = ask(path).text
        assert '<a href="https://wiki.example.org/x" rel="noreferrer">' in page
        assert "<script>alert" not in page
        typed = form | {"note": "typed just now", "tags": "c"}
        for wrong in ({"links": "x javascript:alert(1)"}, {"links": "nothing"}, {"metrics": "HR@1 high"}):
            refused = ask(f"{path}/edit", typed | wrong)
            assert (refused.status_code, 'role="alert"' in refused.text) == (400, True), wrong
            assert _marked(refused.text) == set(wrong)
            for text in ("typed just now</textarea>", 'value="c"', *(f"{each}</textarea>" for each in wrong.values())):
                assert text in refused.text  # nothing of what was typed is lost
        both = ask(f"{path}/edit", typed | {"links": "nothing", "metrics": "HR@1 high", "tags": "c" * 2001})
        assert _marked(both.text) == {"tags"}  # which is looked at before any is read
        assert _marked(ask(f"{path}/edit", typed | {"links": "nothing", "metrics": "x y"}).text) == {"links", "metrics"}
        assert ask(f"{path}/edit", form | {"tags": "b", "links": "", "metrics": "lift 3"}).status_code == 303
        row = read()
        assert (row.tags, row.links, row.metrics) == (("b",), {}, {"lift": 3.0})


def test_who_approves_is_who_is_logged_in(stocked, ask, second, open_client):
    build = succeed(stocked)
    stocked.serving.remove("skin-care@production")
    stocked.gates.set("skin-care", None, 1)
    form = {"ref": "skin-care@v2", "base": "tiny"}
    assert "Approve as" not in ask("/domains/skin-care/promote?ref=skin-care@v2").text  # it is theirs
    assert ask("/domains/skin-care/approve", form).status_code == 409
    anna = stocked.acting_as("anna")
    client = open_client(anna)
    for home, path, sent in (
        ("/domains/skin-care/promote?ref=skin-care@v2", "/domains/skin-care/approve", form),
        (f"/builds/{build.id}/promote", f"/builds/{build.id}/approve", {}),
    ):
        page = client.get(home, headers=HTML).text
        assert "Approve as anna" in page
        assert '<span class="state failed">closed' in page
        csrf = re.search(r'name="csrf" value="([0-9a-f]{64})"', page)
        assert csrf
        assert client.post(path, data=sent).status_code == 403
        answer = client.post(path, data=sent | {"csrf": csrf[1]}, headers=HTML)
        assert answer.status_code == 303
        page = client.get(answer.headers["location"], headers=HTML).text
        assert '<span class="state fresh">open' in page
        assert "Approve as" not in page
    assert re.search(r"version 1: approvals 1</span>", ask("/domains/skin-care").text)


def test_a_slider_looks_back_by_days(stocked, ask, monkeypatch):
    now = datetime.now(UTC)
    assert slider_of([]) is slider_of([now]) is None
    slider = slider_of([now - timedelta(days=3), now - timedelta(days=10), now])
    assert slider
    assert slider.days in (10, 11)  # midnight may pass
    assert slider.marks == (0, 7, 10)
    assert slider.day(99) in (now.date().isoformat(), (now + timedelta(days=1)).date().isoformat())
    assert [slider.value(slider.day(4)), slider.value("nonsense"), slider.value("1999-01-01")] == [4, slider.days, 0]
    assert 'type="range"' not in ask("/domains/skin-care").text  # all of it happened today
    monkeypatch.setattr("reccocktail.server.pages.domains.slider_of", lambda moments: slider)
    page = ask("/domains/skin-care?day=2").text
    assert f"At {slider.day(2)} 23:59 UTC" in page
    assert f'max="{slider.days}" value="2"' in page
    assert "champion on tiny: none" in page
    today = ask(f"/domains/skin-care?day={slider.days}")
    assert (today.status_code, "in the future" in today.text) == (200, False)
    assert ask("/domains/skin-care?day=-1").status_code == 422


def test_a_gate_and_a_serving_policy_are_set(stocked, ask):
    build = succeed(stocked)
    gate = {
        "metric": "NDCG@3",
        "against": "parents",
        "margin": "0.02",
        "confidence": "0.9",
        "split": "cold",
        "approvals": "1",
    }
    assert ask("/domains/skin-care/gate", gate).status_code == 303
    kept = stocked.gates.get("skin-care")
    assert (kept.requirement, kept.approvals) == (Requirement("NDCG@3", "parents", 0.02, 0.9, "cold"), 1)
    page = ask("/domains/skin-care").text
    assert "<option selected>parents</option>" in page
    for wrong in (
        {"metric": HOSTILE},
        {"margin": "much"},
        {"split": "x"},
        {"metric": "", "approvals": "0"},
        {"approvals": "?"},
    ):
        refused = ask("/domains/skin-care/gate", gate | wrong)
        assert (refused.status_code, "<script>alert" in refused.text) == (400, False), wrong
        assert _marked(refused.text) == {next(iter(wrong))}
        assert "<details open>" in refused.text
        assert ('value="0.9"' in refused.text, "--" in _alert(refused.text)) == (True, False)
    assert ask("/domains/skin-care/gate", {"approvals": "2"}).status_code == 303
    assert (stocked.gates.get("skin-care").requirement, stocked.gates.get("skin-care").approvals) == (None, 2)
    assert ask("/domains/spirit/gate", gate).status_code == 303
    # how it gets what it serves: another alias goes by the gate only with a reason
    for alias in ("candidate", "No such", ""):
        refused = ask("/domains/skin-care/policy", {"alias": alias, "promote": "automatic"})
        assert (refused.status_code, _marked(refused.text), "selected>automatic" in refused.text) == (
            400,
            {"alias"},
            True,
        )
    closed = ask("/domains/skin-care/policy", {"alias": "shadow", "promote": "automatic"})
    assert (closed.status_code, 'value="shadow"' in closed.text, "--" in _alert(closed.text)) == (409, True, False)
    assert stocked.serving.policy("skin-care").alias == "production"
    sent = {"alias": "shadow", "promote": "automatic", "override": "fire"}
    assert 'role="status"' in ask(ask("/domains/skin-care/policy", sent).headers["location"]).text
    policy = stocked.serving.policy("skin-care")
    assert (policy.alias, policy.promote, stocked.serving.served("skin-care")) == ("shadow", "automatic", [])
    assert ask("/domains/nowhere/policy", sent).status_code == ask("/domains/spirit/policy", sent).status_code == 404
    assert ask("/domains/skin-care/policy", sent | {"alias": "production"}).status_code == 303
    assert stocked.serving.marks([build.id])[build.id] == ("candidate", "production")
    stocked.serving.remove("skin-care@production", override="out")
    assert ask(f"/builds/{build.id}/promote", {"override": "fire"}).status_code == 303
    for path in ("/domains/skin-care", "/domains/skin-care/rollback"):
        assert ", override: fire" in ask(path).text, path
    assert ask("/domains/skin-care/gate", {"do": "remove"}).headers["location"].endswith("done=ungated")
    assert stocked.gates.get("skin-care") is None
    empty = ask("/domains/skin-care/gate", {"metric": "", "approvals": "0"})
    assert (_marked(empty.text), "Remove the gate" in empty.text) == ({"metric"}, False)  # there is no such button


def test_the_queue_says_whether_any_worker_lives(stocked, ask, monkeypatch):
    def states() -> list[str]:
        table = ask("/queue").text.partition('id="workers"')[2].partition("</section>")[0]
        return re.findall(r'<code>(\w+)</code></th><td><span class="state[ \w]*">(\w+)', table)

    def warns() -> bool:
        return "No worker lives" in ask("/queue").text

    assert (states(), warns()) == ([], False)
    one, other = (
        stocked.builds.request("skin-care", "tiny", key, {"output": {}}, {"adapters": []}).build for key in ("a", "b")
    )
    assert not warns()  # an idle worker may be about to take it
    monkeypatch.setattr("reccocktail.server.pages.queue.PROMPT", timedelta(0))
    assert warns()
    stocked.builds.claim("busy", build_id=one.id)
    assert (states(), warns()) == ([("busy", "alive")], False)
    stocked.builds.claim("gone", lease_seconds=-1, build_id=other.id)
    assert (states(), warns()) == ([("busy", "alive"), ("gone", "lost")], False)
    stocked.builds.fail(one.id, "busy", {"code": "x", "message": "m"})
    assert (states(), warns()) == ([("gone", "lost"), ("busy", "idle")], True)
    stocked.builds.cancel(other.id)
    assert (states(), warns()) == ([("busy", "idle")], False)
