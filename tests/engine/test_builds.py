"""From a request to a merged checkpoint in the store, on a registry with one tiny model and one sample domain."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch
from reccocktail import tasks
from reccocktail.engine.building import execution as running
from reccocktail.engine.building import job
from reccocktail.engine.building import planning as builds
from reccocktail.engine.building.execution import run
from reccocktail.engine.building.freshness import chosen, differences, freshness_by_domain, freshness_of
from reccocktail.engine.building.job import RunOptions
from reccocktail.engine.building.planning import plan, request
from reccocktail.engine.building.retries import back_off
from reccocktail.engine.building.rollback import plan_rollback, roll_back
from reccocktail.engine.errors import AdaptationError, InsufficientResourcesError, MergeError
from reccocktail.engine.recipe_book import settle_recipe
from reccocktail.engine.recipes import SHIPPED, Adaptive, Recipe, load_recipe
from reccocktail.publishing.outdated import overview
from reccocktail.publishing.package import publishable
from reccocktail.registry import Build, RecCocktailError, Registry, digests
from reccocktail.registry.catalog.filters import BuildFilter
from reccocktail.registry.errors import ConflictError, DatabaseError, NotFoundError, StoreError, UsageError
from reccocktail.tasks import generate, write_domain
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

AVERAGE = load_recipe("average")
SMALL = Recipe(adaptive=Adaptive(prompts=3, points=3, tokens=2))


def silent(stage: str, done: int, total: int) -> None:
    pass


def work(registry: Registry, build: Build, progress=silent) -> Build:
    claimed = registry.builds.claim("tester", build_id=build.id)
    assert claimed is not None
    return run(registry, claimed, RunOptions(worker="tester", device="cpu"), progress=progress)


def made(registry: Registry, recipe: Recipe, **options) -> Build:
    return work(registry, request(registry, "skin-care", recipe, **options).build)


# --- what a build makes ---------------------------------------------------------------------------------------------


def test_a_build_makes_the_whole_result_folder(stocked):
    build = made(stocked, AVERAGE)
    assert (build.status, build.error) == ("succeeded", None)
    assert build.coefficients == {"spirit": 0.5, "ingredient": 0.5}
    assert build.path is not None
    assert {path.name for path in build.path.iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "LICENSE", "README.md", "recipe.json", "provenance.json",
    }  # fmt: skip
    assert json.loads((build.path / "recipe.json").read_text()) == AVERAGE.to_json()
    card = (build.path / "README.md").read_text()
    assert "the base's own card" not in card
    assert "skin-care@v1" in card
    assert build.report is not None
    assert build.report["merge"]["merged_tensors"] == 14


def test_provenance_is_a_statement_about_the_files_that_are_there(stocked):
    build = made(stocked, AVERAGE)
    statement = json.loads((build.path / "provenance.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    assert subjects.keys() == {path.name for path in build.path.iterdir()} - {"README.md", "provenance.json"}
    for name, digest in subjects.items():
        assert hashlib.sha256((build.path / name).read_bytes()).hexdigest() == digest
    definition = statement["predicate"]["buildDefinition"]
    assert definition["buildType"]
    assert definition["externalParameters"] == {"recipe": AVERAGE.to_json(), "domain": "skin-care"}
    adapters = {entry["role"]: entry["digest"] for entry in build.inputs["adapters"]}
    assert {entry["name"]: "sha256:" + entry["digest"]["sha256"] for entry in definition["resolvedDependencies"]} == {
        "base": stocked.bases.get("tiny").digest,
        **adapters,
    }
    assert statement["predicate"]["runDetails"]["builder"]["id"]


def test_the_checkpoint_loads_and_answers(stocked, asked):
    build = made(stocked, AVERAGE)
    model = AutoModelForCausalLM.from_pretrained(build.path)
    tokenizer = AutoTokenizer.from_pretrained(build.path)
    prompt = tokenizer.apply_chat_template(asked[0].messages, add_generation_prompt=True, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    assert torch.isfinite(model(**prompt).logits).all()


@pytest.mark.parametrize("recipe", ["spirit-only", "ingredient-only"])
def test_a_recipe_of_one_adapter_takes_only_that_one(recipe, stocked, mix, base, make_adapter):
    build = made(stocked, load_recipe(recipe))
    (entry,) = build.inputs["adapters"]
    assert entry["role"] == recipe.removesuffix("-only")
    alone, _ = mix(base, [(make_adapter(base, 1 if recipe == "spirit-only" else 2), 1.0)])
    assert (build.path / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


def test_the_recipes_dtype_is_that_of_the_result(stocked):
    recipe = AVERAGE.model_copy(update={"output": AVERAGE.output.model_copy(update={"dtype": "bfloat16"})})
    build = made(stocked, recipe)
    assert {t.dtype for t in load_file(build.path / "model.safetensors").values()} == {torch.bfloat16}


def test_progress_is_told_by_stage_up_to_its_end(stocked):
    told: dict[str, list[tuple[int, int]]] = {}
    build = request(stocked, "skin-care", SMALL).build
    work(stocked, build, lambda stage, done, total: told.setdefault(stage, []).append((done, total)))
    assert list(told) == ["adapt", "merge", "store"]
    for steps in told.values():
        assert steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


# --- an adaptive build ----------------------------------------------------------------------------------------------


def test_an_adaptive_build_keeps_its_curve_and_plot(stocked):
    build = stocked.builds.get(made(stocked, SMALL).id)
    found = build.report["adaptation"]
    (run,) = found["runs"]
    assert [point["means"] for point in run["points"]] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    best = min(run["points"], key=lambda point: point["entropy"])
    assert list(build.coefficients.values()) == best["means"]
    assert (found["prompts"], found["tokens"], found["entropy"]) == (3, 2, best["entropy"])
    artifact = stocked.store.folder(build.report["artifact"])
    kept = json.loads((artifact / "adaptation.json").read_text())
    assert [point["coefficients"] for point in kept["runs"][0]["points"]] == [[[1.0, 0.0]], [[0.5, 0.5]], [[0.0, 1.0]]]
    assert (artifact / "entropy.png").read_bytes().startswith(b"\x89PNG")
    assert build.report["artifact"] in stocked.digests()  # so that `store gc` keeps it
    written = json.loads((build.path / "recipe.json").read_text())
    assert written["coefficients"] == build.coefficients
    assert "adaptive" not in written


def test_the_recipe_that_an_adaptive_build_wrote_repeats_its_weights(stocked):
    adaptive = made(stocked, SMALL)
    again = made(stocked, load_recipe(str(adaptive.path / "recipe.json")))
    assert again.key != adaptive.key
    assert again.digest == adaptive.digest


def test_what_is_published_is_the_result_with_a_card_that_tells_how_the_mix_was_found(stocked):
    build = made(stocked, SMALL)
    with publishable(stocked, build) as package:
        folder = package.folder
        assert "entropy.png" in (folder / "README.md").read_text()
        assert (folder / "entropy.png").exists()
        for path in build.path.iterdir():
            if path.name != "README.md":
                assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not folder.exists()
    stocked.store.verify_tree(build.digest)


def test_only_a_succeeded_build_can_be_published(stocked):
    build = request(stocked, "skin-care", AVERAGE).build
    with pytest.raises(ConflictError, match="is queued"), publishable(stocked, build):
        pass


# --- keys -----------------------------------------------------------------------------------------------------------


def test_the_same_request_is_answered_with_the_same_build(stocked):
    first = request(stocked, "skin-care", AVERAGE)
    assert first.created
    assert request(stocked, "skin-care", AVERAGE) == type(first)(first.build, created=False)
    done = work(stocked, first.build)
    again = request(stocked, "skin-care", AVERAGE)
    assert (again.build.id, again.created, again.build.digest) == (done.id, False, done.digest)
    assert len(stocked.builds.list()) == 1


@pytest.mark.parametrize("recipe", [AVERAGE, SMALL], ids=["fixed", "adaptive"])
def test_a_forced_build_is_another_one_with_the_same_bytes(recipe, stocked):
    first, second = made(stocked, recipe), made(stocked, recipe, force=True)
    assert first.id != second.id
    assert (first.key, first.digest, first.coefficients) == (second.key, second.digest, second.coefficients)
    assert first.report.get("artifact") == second.report.get("artifact")


def test_a_recipe_file_with_its_keys_in_another_order_is_the_same_build(stocked):
    request(stocked, "skin-care", AVERAGE)
    turned = Recipe.model_validate({"coefficients": {"ingredient": 0.5, "spirit": 0.5}})
    assert not request(stocked, "skin-care", turned).created


def test_every_recipe_that_ships_has_a_key_of_its_own(stocked):
    keys = {request(stocked, "skin-care", recipe).build.key for _, recipe in SHIPPED.values()}
    assert len(keys) == len(SHIPPED)


# --- freshness ------------------------------------------------------------------------------------------------------


def state(registry: Registry) -> tuple[str, tuple[str, ...]]:
    """Of the one domain there is, asked for alone and with all others: the answers are the same."""
    found = freshness_of(registry, "skin-care")
    assert freshness_by_domain(registry) == {"skin-care": found}
    return found.state, found.reasons


def test_a_domain_goes_from_unbuilt_to_fresh_to_stale_and_says_what_moved(stocked, make_adapter, base):
    stocked.domains.add("skin-care", recipe="average")
    assert state(stocked) == ("unbuilt", ())
    made(stocked, AVERAGE)
    assert state(stocked) == ("fresh", ())
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 3), base=row, role="ingredient", domain="skin-care")
    assert state(stocked) == ("stale", ("ingredient skin-care@v1 → skin-care@v2",))
    stocked.adapters.alias("skin-care@v1", "champion")
    assert state(stocked) == ("fresh", ())
    stocked.adapters.add(make_adapter(base, 4), base=row, role="spirit")
    assert state(stocked) == ("stale", ("spirit spirit@v1 → spirit@v2",))
    stocked.domains.add("skin-care", recipe="spirit-only")
    assert state(stocked) == (
        "stale",
        ("spirit spirit@v1 → spirit@v2", "ingredient skin-care@v1 → none", "recipe: average → spirit-only"),
    )


def test_new_data_makes_an_adaptive_build_stale(stocked, tmp_path):
    (tmp_path / "small.yaml").write_text("adaptive: {prompts: 3, points: 3, tokens: 2}\n")
    stocked.domains.add("skin-care", recipe=settle_recipe(stocked, str(tmp_path / "small.yaml")))
    made(stocked, SMALL)
    assert state(stocked) == ("fresh", ())
    write_domain(generate("skin-care", users=13), tmp_path / "data")
    assert state(stocked) == ("stale", ("data",))


def test_a_newer_engine_format_makes_a_build_stale(stocked, monkeypatch):
    stocked.domains.add("skin-care", recipe="average")
    made(stocked, AVERAGE)
    monkeypatch.setattr(builds, "FORMAT_VERSION", builds.FORMAT_VERSION + 1)
    assert state(stocked) == ("stale", ("engine format",))


def test_a_domain_without_a_spirit_is_blocked_and_says_so(registry, base, make_adapter):
    row = registry.bases.add("tiny", base, source=str(base))
    registry.domains.add("skin-care", recipe="average")
    registry.adapters.add(make_adapter(base, 2), base=row, role="ingredient", domain="skin-care")
    blocked, reasons = state(registry)
    assert blocked == "blocked"
    assert "spirit" in reasons[0]
    with pytest.raises(RecCocktailError, match="spirit"):
        request(registry, "skin-care", AVERAGE)
    assert request(registry, "skin-care", load_recipe("ingredient-only")).created


def test_a_domain_whose_recipe_or_data_is_not_there_is_blocked(stocked, tmp_path):
    stocked.domains.add("skin-care", recipe="martini")
    assert state(stocked)[0] == "blocked"
    stocked.domains.add("skin-care", recipe="default", data=str(tmp_path / "nowhere"))
    assert state(stocked)[0] == "blocked"


# --- what is refused, and what goes wrong ---------------------------------------------------------------------------


def test_an_adaptive_recipe_needs_the_domains_data(registry, base, make_adapter):
    row = registry.bases.add("tiny", base, source=str(base))
    registry.domains.add("skin-care")
    registry.adapters.add(make_adapter(base, 1), base=row, role="spirit")
    registry.adapters.add(make_adapter(base, 2), base=row, role="ingredient", domain="skin-care")
    with pytest.raises(UsageError, match="has no data"):
        request(registry, "skin-care", SMALL)


def test_a_spirit_of_another_base_is_never_mixed_in(registry, make_base, make_adapter):
    one, other = make_base(seed=0), make_base(seed=1)
    first = registry.bases.add("one", one, source=str(one))
    second = registry.bases.add("other", other, source=str(other))
    registry.domains.add("skin-care")
    with pytest.raises(RecCocktailError, match="was made for"):
        registry.adapters.add(make_adapter(one, 1), base=second, role="spirit")
    registry.adapters.add(make_adapter(other, 1), base=second, role="spirit")
    registry.adapters.add(make_adapter(one, 2), base=first, role="ingredient", domain="skin-care")
    with pytest.raises(NotFoundError, match="'spirit' has no adapter yet for base model 'one'"):
        request(registry, "skin-care", AVERAGE)


def test_a_build_asks_what_its_request_drew_even_where_data_and_template_are_gone(stocked, tmp_path):
    template = tmp_path / "mine.yaml"
    template.write_text("name: mine\nuser: 'History: {history}'\n")
    recipe = Recipe(adaptive=Adaptive(template=str(template), prompts=3, points=3, labels=2))
    before = made(stocked, recipe)
    asked = request(stocked, "skin-care", recipe, force=True).build
    template.unlink()
    shutil.rmtree(tmp_path / "data")
    done = work(stocked, asked)
    assert (done.status, done.digest) == ("succeeded", before.digest)
    assert done.inputs["prompts"] == before.inputs["prompts"]
    stocked.collect(grace=timedelta(0))
    folder = stocked.store.folder(done.inputs["prompts"]["digest"])
    assert [path.name for path in sorted(folder.iterdir())] == ["labelled.json", "prompts.json"]
    drawn = json.loads((folder / "prompts.json").read_text())
    assert len(drawn["questions"]) == 3
    assert "user_id" not in (folder / "prompts.json").read_text()


def test_data_that_changed_makes_another_build(stocked, tmp_path):
    made(stocked, SMALL)
    write_domain(generate("skin-care", users=13), tmp_path / "data")
    second = request(stocked, "skin-care", SMALL)
    assert second.created
    assert work(stocked, second.build).status == "succeeded"


def test_prompts_that_are_missing_from_a_request_are_told(stocked):
    asked = request(stocked, "skin-care", SMALL).build
    claimed = stocked.builds.claim("tester", build_id=asked.id)
    without = {name: value for name, value in claimed.inputs.items() if name != "prompts"}
    forged = type(claimed)(**{**vars(claimed), "inputs": without})
    with pytest.raises(AdaptationError, match="was requested without its prompts"):
        run(stocked, forged, RunOptions(worker="tester", device="cpu"), progress=silent)


@pytest.mark.parametrize(("recipe", "stage"), [(AVERAGE, "merge"), (SMALL, "adapt"), (SMALL, "merge")])
def test_an_interrupted_build_is_a_failed_one_and_can_be_asked_for_again(recipe, stage, stocked):
    build = request(stocked, "skin-care", recipe).build

    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(stocked, build, interrupt)
    row = stocked.builds.get(build.id)
    assert (row.status, row.error["code"]) == ("failed", "interrupted")
    assert not list((stocked.store.root / "staging").iterdir())
    again = request(stocked, "skin-care", recipe)
    assert again.created
    assert work(stocked, again.build).status == "succeeded"


def test_an_error_nobody_foresaw_is_in_the_row_too(stocked, monkeypatch):
    build = request(stocked, "skin-care", AVERAGE).build
    monkeypatch.setattr("reccocktail.engine.merging.stream.merge_all", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        work(stocked, build)
    assert stocked.builds.get(build.id).error == {
        "code": "internal",
        "message": "integer division or modulo by zero",
    }


def test_a_build_that_is_cancelled_while_it_runs_stays_cancelled(stocked):
    build = request(stocked, "skin-care", AVERAGE).build

    def cancel(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("merge", total):
            stocked.builds.cancel(build.id)

    with pytest.raises(ConflictError, match="does not hold it any more"):
        work(stocked, build, cancel)
    assert stocked.builds.get(build.id).status == "cancelled"


def test_what_went_wrong_is_told_even_if_the_build_was_cancelled_meanwhile(stocked):
    build = request(stocked, "skin-care", AVERAGE).build

    def cancel_and_break(stage: str, done: int, total: int) -> None:
        with suppress(ConflictError):  # another thread of the merge was first
            stocked.builds.cancel(build.id)
        raise OSError("No space left on device")

    with pytest.raises(ConflictError, match="is cancelled"):  # what only displays fails nothing
        work(stocked, build, cancel_and_break)
    assert stocked.builds.get(build.id).status == "cancelled"


def test_a_stored_adapter_that_is_not_the_one_requested_is_refused(stocked):
    build = request(stocked, "skin-care", AVERAGE).build
    recorded = json.loads(json.dumps(build.inputs))
    recorded["adapters"][0]["digest"] = "sha256:" + "0" * 64
    claimed = stocked.builds.claim("tester", build_id=build.id)
    forged = type(claimed)(**{**vars(claimed), "inputs": recorded})
    with pytest.raises(RecCocktailError, match=r"spirit@v1 is not the one that the build was requested with"):
        run(stocked, forged, RunOptions(worker="tester", device="cpu"), progress=silent)
    assert stocked.builds.get(build.id).error["code"] == "merge"


def _wait_for(beats, count):
    until = time.monotonic() + 60
    while len(beats) < count and time.monotonic() < until:
        time.sleep(0.01)


def test_the_lease_is_kept_while_a_build_takes_long(stocked, monkeypatch):
    build = request(stocked, "skin-care", AVERAGE).build
    beats = []
    monkeypatch.setattr(job, "LEASE_SECONDS", 0.03)
    heartbeat = stocked.builds.heartbeat

    def beat(*arguments, **options):
        beats.append(arguments)
        heartbeat(*arguments, lease_seconds=60)

    monkeypatch.setattr(stocked.builds, "heartbeat", beat)

    def wait(stage: str, done: int, total: int) -> None:
        _wait_for(beats, 1)

    assert work(stocked, build, wait).status == "succeeded"
    assert beats[0] == (build.id, "tester")


def test_progress_is_in_the_row_and_a_cancelled_build_ends_before_it_is_stored(stocked, monkeypatch):
    build = request(stocked, "skin-care", AVERAGE).build
    monkeypatch.setattr(job, "NOTE_SECONDS", 0.0)
    seen = []

    def cancel_at_the_end(stage: str, done: int, total: int) -> None:
        row = stocked.builds.get(build.id)
        seen.append((row.done, row.total))
        if done == total and row.status == "running":
            stocked.builds.cancel(build.id)

    before = set(stocked.store.root.glob("trees/*"))
    with pytest.raises(ConflictError, match="does not hold it any more"):
        work(stocked, build, cancel_at_the_end)
    assert any(0 < done < total for done, total in seen)
    assert stocked.builds.get(build.id).status == "cancelled"
    assert set(stocked.store.root.glob("trees/*")) == before
    assert not list(stocked.store.root.glob("staging/*"))


def test_a_heartbeat_that_failed_once_is_tried_again(stocked, monkeypatch):
    build = request(stocked, "skin-care", AVERAGE).build
    beats = []
    monkeypatch.setattr(job, "LEASE_SECONDS", 0.03)

    def beat(*arguments, **options):
        beats.append(arguments)
        if len(beats) == 1:
            raise DatabaseError("the database is locked")

    monkeypatch.setattr(stocked.builds, "heartbeat", beat)

    def wait(stage: str, done: int, total: int) -> None:
        _wait_for(beats, 2)

    assert work(stocked, build, wait).status == "succeeded"
    assert len(beats) >= 2


def test_two_domains_never_share_a_build(stocked):
    stocked.domains.add("kitchen")
    recipe = load_recipe("spirit-only")
    first = work(stocked, request(stocked, "skin-care", recipe).build)
    other = request(stocked, "kitchen", recipe, base="tiny")
    assert other.created
    assert work(stocked, other.build).domain == "kitchen"
    assert stocked.builds.newest_succeeded("skin-care").id == first.id


def test_what_is_served_moves_only_when_somebody_promotes(stocked, base, make_adapter):
    stocked.domains.add("skin-care", recipe="average")
    stocked.adapters.alias("skin-care@v1", "champion")
    first = made(stocked, AVERAGE)
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build.id, found.served.alias) == ("fresh", first.id, "production")
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 5), base=row, role="ingredient", domain="skin-care")
    stocked.adapters.alias("skin-care@v2", "champion")
    second = made(stocked, AVERAGE)
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build.id, found.ready.id) == ("ready", first.id, second.id)
    assert found.reasons == ("ingredient skin-care@v1 → skin-care@v2",)
    assert freshness_by_domain(stocked) == {"skin-care": found}
    stocked.serving.promote(second.id)
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build.id, found.ready) == ("fresh", second.id, None)
    stocked.adapters.alias("skin-care@v1", "champion")
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build.id, found.ready.id) == ("ready", second.id, first.id)
    assert freshness_by_domain(stocked) == {"skin-care": found}
    stocked.serving.remove("skin-care@production")
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build, found.ready.id) == ("ready", None, first.id)
    with pytest.raises(NotFoundError, match="serves no build"):
        chosen(stocked, "skin-care")


def test_a_rollback_says_what_changes_and_what_becomes_stale(stocked, base, make_adapter):
    stocked.domains.add("skin-care", recipe="average")
    stocked.adapters.alias("skin-care@v1", "champion")
    first, before = made(stocked, AVERAGE), datetime.now(UTC)
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 5), base=row, role="ingredient", domain="skin-care")
    stocked.adapters.alias("skin-care@v2", "champion")
    second = made(stocked, AVERAGE)
    stocked.serving.promote(second.id)
    stocked.publications.add(second, "acme/skin-care", "c0ffee")
    for to in (None, first.id, before):
        planned = plan_rollback(stocked, "skin-care", to=to)
        assert (planned.now.id, planned.to.id, planned.state) == (second.id, first.id, "ready")
        assert planned.changes == ("ingredient skin-care@v2 → skin-care@v1",)
        assert planned.publications == ("acme/skin-care",)
    assert freshness_of(stocked, "skin-care").build.id == second.id  # a plan changes nothing
    roll_back(stocked, planned, why="worse")
    assert freshness_of(stocked, "skin-care").build.id == first.id
    move = stocked.serving.history("skin-care", limit=1)[0]
    assert (move.build, move.previous, move.rollback, move.why) == (first.id, second.id, True, "worse")
    assert not plan_rollback(stocked, "skin-care", to=first.id).is_needed
    with pytest.raises(ConflictError, match="rolled back"):
        plan_rollback(stocked, "skin-care")
    changed = {**first.recipe, "seed": 7}
    by_file = replace(first, inputs={name: value for name, value in first.inputs.items() if name != "recipe"})
    for build, ref, says in (
        (first, None, f"{first.recipe_ref or 'a file'} → a"),
        (by_file, "mine@v1", "a file → mine@v1"),
        (by_file, None, "a file → another file"),
        (first, first.recipe_ref, first.recipe_ref or "another file"),
    ):
        (line,) = differences(build, first.inputs, changed, ref)
        assert line.startswith("recipe: ")
        assert says in line
    with pytest.raises(NotFoundError):
        plan_rollback(stocked, "skin-care", to=first.created_at)
    stocked.domains.add("toys")
    with pytest.raises(NotFoundError):
        plan_rollback(stocked, "toys")
    shutil.rmtree(second.path)
    with pytest.raises(ConflictError, match="not in the store"):
        plan_rollback(stocked, "skin-care", to=second.id)


def test_an_experiment_stands_for_no_domain_and_its_recipe_makes_it_one(stocked, tmp_path):
    stocked.domains.add("skin-care", recipe="average")
    own = made(stocked, AVERAGE)
    trial = made(stocked, load_recipe("spirit-only"))
    assert (own.own_recipe, trial.own_recipe) == (True, False)
    again = made(stocked, AVERAGE, force=True)
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build.id, found.trial) == ("fresh", own.id, None)
    assert stocked.serving.resolve("skin-care@candidate").build == again.id
    # the very recipe in a file is the same recipe
    written = tmp_path / "mine.yaml"
    written.write_text(json.dumps(AVERAGE.to_json()))
    assert made(stocked, load_recipe(str(written)), force=True).own_recipe
    # one by what was the domain's recipe once goes before an experiment that is newer
    stocked.domains.add("skin-care", recipe="ingredient-only")
    trial = made(stocked, load_recipe("spirit-only"), force=True)
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.trial.id) == ("stale", trial.id)
    assert "recipe: average → ingredient-only" in found.reasons
    assert found.build.recipe == AVERAGE.to_json()
    assert freshness_by_domain(stocked) == {"skin-care": found}
    # a recipe that is not there is nobody's
    stocked.domains.add("skin-care", recipe="martini")
    assert not made(stocked, load_recipe("spirit-only"), force=True).own_recipe


def test_a_build_of_which_the_recipe_is_not_known_is_served_only_once_it_is_promoted(stocked):
    stocked.domains.add("skin-care", recipe="ingredient-only")
    planned = builds.plan(stocked, "skin-care", AVERAGE)
    words = (planned.domain, planned.base.name, planned.key, AVERAGE.to_json(), planned.inputs)
    before = work(stocked, stocked.builds.request(*words).build)
    assert before.own_recipe is None
    made(stocked, load_recipe("spirit-only"))
    assert freshness_of(stocked, "skin-care").state == "unbuilt"
    stocked.serving.promote(before.id)
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build.id) == ("stale", before.id)
    assert freshness_by_domain(stocked) == {"skin-care": found}
    own = made(stocked, load_recipe("ingredient-only"))
    found = freshness_of(stocked, "skin-care")
    assert (found.state, found.build.id, found.ready.id) == ("ready", before.id, own.id)
    assert freshness_by_domain(stocked)["skin-care"] == found


def test_a_note_that_cannot_be_written_does_not_stop_a_build(stocked, monkeypatch):
    def fail(*_: object) -> None:
        raise DatabaseError("the database is locked")

    monkeypatch.setattr(job, "NOTE_SECONDS", 0.0)
    monkeypatch.setattr(stocked.builds, "progress", fail)
    assert made(stocked, AVERAGE).status == "succeeded"


def test_a_result_that_is_missing_from_the_store_is_stale_and_says_so(stocked):
    stocked.domains.add("skin-care", recipe="average")
    build = made(stocked, AVERAGE)
    shutil.rmtree(build.path)
    assert state(stocked) == ("stale", ("its files are missing from the store",))
    with pytest.raises(StoreError, match="missing from the store"):
        builds.result_folder(stocked, stocked.builds.get(build.id))


# --- all domains at once --------------------------------------------------------------------------------------------


def test_many_domains_are_told_in_as_many_queries_as_few(stocked, statements):
    def count() -> int:
        statements.clear()
        assert {found.state for found in freshness_by_domain(stocked).values()} <= {
            "fresh",
            "stale",
            "unbuilt",
            "blocked",
        }
        return len(statements)

    stocked.domains.add("skin-care", recipe="average")
    made(stocked, AVERAGE)
    stocked.domains.add("skin-care", recipe="ingredient-only")
    few = count()
    for number in range(30):
        stocked.domains.add(f"shop-{number}", recipe="spirit-only")
    assert count() == few
    found = freshness_by_domain(stocked)
    assert found["skin-care"].state == "stale"
    assert {found[f"shop-{number}"].state for number in range(30)} == {"unbuilt"}


def test_many_publications_are_told_in_as_many_queries_as_few_and_as_each_domain_is_alone(stocked, statements):
    shops = [f"shop-{number}" for number in range(12)]
    publish = stocked.publications.add
    late = {}

    def set_up(names) -> None:
        for name in names:
            stocked.domains.add(name, recipe="spirit-only")
            first = work(stocked, request(stocked, name, load_recipe("spirit-only")).build)
            publish(first, f"acme/{name}", "a")
            publish(first, f"acme/{name}-second", "b")
            second = work(stocked, request(stocked, name, load_recipe("spirit-only"), force=True).build)
            stocked.serving.promote(second.id)
            late[name] = publish(first, f"acme/{name}-third", "c"), second

    def count() -> int:
        statements.clear()
        overview(stocked)
        return len(statements)

    set_up(shops[:2])
    few = count()
    set_up(shops[2:])
    assert count() == few
    found = overview(stocked)
    assert set(found.published) == set(found.behind) == set(shops) < set(found.states)
    for name, (last, build) in late.items():
        assert (found.published[name], found.behind[name].last, found.behind[name].build) == (last, last, build)
        alone = overview(stocked, name)
        assert alone.states == {name: found.states[name]} == {name: freshness_of(stocked, name)}
        assert (alone.published, alone.behind) == ({name: last}, {name: found.behind[name]})


def test_domains_of_every_kind_stand_as_each_of_them_does_alone(stocked, make_base, make_adapter, base):
    for name, recipe in (
        ("toys", "spirit-only"),
        ("games", "ingredient-only"),
        ("food", None),
    ):
        stocked.domains.add(name, recipe=recipe)
    other = stocked.bases.add("other", make_base(seed=1), source=str(make_base(seed=1)))
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 3), base=row, role="ingredient", domain="games")
    stocked.adapters.add(make_adapter(make_base(seed=1), 3), base=other, role="ingredient", domain="games")
    work(stocked, request(stocked, "games", load_recipe("ingredient-only"), base="other").build)
    for which in (None, "tiny", "other", "absent"):
        alone = {row.name: freshness_of(stocked, row.name, base=which) for row in stocked.domains.list()}
        assert freshness_by_domain(stocked, base=which) == alone
    found = freshness_by_domain(stocked)
    assert found["games"].reasons == ("'games' means versions for several base models: other and tiny",)
    assert (found["games"].spirit, found["games"].ingredient) == ("spirit@v1", None)
    assert freshness_by_domain(stocked, base="other")["games"].state == "fresh"
    assert (found["food"].state, found["food"].spirit, found["food"].ingredient) == ("cold", "spirit@v1", None)


def test_a_domain_whose_versions_are_all_archived_is_told_apart_from_one_without(stocked):
    stocked.domains.add("skin-care", recipe="average")
    made(stocked, AVERAGE)
    stocked.adapters.archive("skin-care@v1", force=True)
    assert state(stocked) == ("blocked", ("there is no 'skin-care'",))


# --- the digest of the data is remembered ---------------------------------------------------------------------------


@pytest.fixture
def adaptive(stocked, tmp_path, monkeypatch):
    """skin-care with an adaptive recipe and data that was written long ago; the folders that are read are noted."""
    (tmp_path / "small.yaml").write_text("adaptive: {prompts: 3, points: 3, tokens: 2}\n")
    stocked.domains.add("skin-care", recipe=settle_recipe(stocked, str(tmp_path / "small.yaml")))
    monkeypatch.setattr(digests, "RACE_SECONDS", -60.0)
    read = []
    read_domain = tasks.read_domain
    monkeypatch.setattr(tasks, "read_domain", lambda folder, *_: read.append(folder) or read_domain(folder))
    return read


def test_data_is_read_once_until_it_changes(stocked, adaptive, tmp_path):
    assert state(stocked) == ("unbuilt", ())
    assert state(stocked) == ("unbuilt", ())
    assert len(adaptive) == 1
    before = builds.plan(stocked, "skin-care", SMALL).key
    write_domain(generate("skin-care", users=13), tmp_path / "data")
    assert builds.plan(stocked, "skin-care", SMALL).key != before
    assert len(adaptive) == 2


def test_a_change_that_keeps_size_and_time_is_seen(stocked, adaptive, tmp_path):
    file = tmp_path / "data" / "items.jsonl"
    before, seen = builds.plan(stocked, "skin-care", SMALL).key, file.stat()
    text = file.read_text()
    title = json.loads(text.splitlines()[0])["title"]
    file.write_text(text.replace(title, title.swapcase(), 1))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (seen.st_size, seen.st_mtime_ns)
    assert builds.plan(stocked, "skin-care", SMALL).key != before


def test_data_that_was_written_just_now_is_not_remembered(stocked, adaptive, monkeypatch):
    monkeypatch.setattr(digests, "RACE_SECONDS", 3600.0)
    builds.plan(stocked, "skin-care", SMALL)
    builds.plan(stocked, "skin-care", SMALL)
    assert len(adaptive) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": 1}', "\x00"])
def test_a_note_that_is_damaged_is_not_believed(stocked, adaptive, text):
    before = builds.plan(stocked, "skin-care", SMALL).key
    (note,) = (stocked.settings.home / "cache" / "data").iterdir()
    note.write_text(text)
    assert builds.plan(stocked, "skin-care", SMALL).key == before
    assert len(adaptive) == 2
    assert json.loads(note.read_text())["digest"].startswith("sha256:")


def test_a_home_that_cannot_be_written_only_costs_time(stocked, adaptive):
    (stocked.settings.home / "cache").mkdir(exist_ok=True)
    (stocked.settings.home / "cache" / "data").write_text("a file where the folder would be")
    assert builds.plan(stocked, "skin-care", SMALL).key == builds.plan(stocked, "skin-care", SMALL).key
    assert len(adaptive) == 2


# --- results that are elsewhere -------------------------------------------------------------------------------------


def test_a_result_that_is_not_on_this_machine_is_fresh_and_is_fetched_when_it_is_needed(stocked, monkeypatch):
    stocked.domains.add("skin-care", recipe="average")
    build = made(stocked, AVERAGE)
    monkeypatch.setattr(type(stocked.store), "local", lambda *_: None)
    monkeypatch.setattr(type(stocked.store), "has", lambda *_: True)
    monkeypatch.setattr(type(stocked.store), "folder", lambda *_: build.path)
    assert stocked.builds.get(build.id).path is None
    assert state(stocked) == ("fresh", ())
    assert builds.result_folder(stocked, stocked.builds.get(build.id)) == build.path


# --- what the registry answers about many builds --------------------------------------------------------------------


def test_the_newest_of_every_domain_and_of_every_key(stocked):
    stocked.domains.add("toys")
    first, second = made(stocked, AVERAGE), made(stocked, AVERAGE, force=True)
    other = work(stocked, request(stocked, "toys", load_recipe("spirit-only")).build)
    assert stocked.builds.newest_succeeded_by_domain() == {"skin-care": second, "toys": other}
    own = [build for build in (second, other) if build.own_recipe]
    assert stocked.builds.newest_succeeded_by_domain(own_recipe=True) == {build.domain: build for build in own}
    found = stocked.builds.succeeded_with_keys([first.key, first.key, other.key, "sha256:absent"])
    assert found == {first.key: second, other.key: other}
    assert stocked.builds.succeeded_with_keys([]) == {}
    spirit, ingredient = stocked.adapters.resolve("spirit"), stocked.adapters.resolve("skin-care")
    assert [b.id for b in stocked.builds.list(BuildFilter(adapter=spirit))] == [other.id, second.id, first.id]
    assert [b.id for b in stocked.builds.list(BuildFilter(adapter=ingredient), limit=1)] == [second.id]
    assert [b.id for b in stocked.builds.list(BuildFilter(adapter=ingredient), after=second.id)] == [first.id]
    assert stocked.builds.list(BuildFilter(adapter=ingredient, domain="toys")) == []


def test_the_newest_publication_of_every_repository_and_those_of_one_build(stocked):
    stocked.domains.add("toys")
    build = made(stocked, AVERAGE)
    assert stocked.publications.standing() == []
    one = stocked.publications.add(build, "acme/one", "c" * 40)
    two = stocked.publications.add(build, "acme/two", "d" * 40)
    other = stocked.publications.add(
        work(stocked, request(stocked, "toys", load_recipe("spirit-only")).build), "a/b", "e"
    )
    assert stocked.publications.standing() == [other, two, one]
    assert stocked.publications.standing("skin-care") == [two, one]
    assert stocked.publications.list(build=build.id) == [two, one]


# --- more than two adapters, fewer, and a coefficient per module ----------------------------------------------------

PER_MODULE = Recipe(
    adaptive=Adaptive(
        granularity="module", prompts=4, tokens=1, labels=4, epochs=1, batch=2, held_out=0.0, learning_rates=(0.1,)
    )
)


def test_a_build_per_module_is_repeated_by_the_recipe_that_it_wrote(stocked):
    build = made(stocked, PER_MODULE)
    modules = build.coefficients["ingredient"]
    assert len(modules) == 2 * 7
    assert len(set(modules.values())) > 1
    written = json.loads((build.path / "recipe.json").read_text())
    assert written["coefficients"] == build.coefficients
    again = made(stocked, load_recipe(str(build.path / "recipe.json")))
    assert again.key != build.key
    assert again.digest == build.digest
    found = build.report["adaptation"]
    assert (found["groups"], found["search"], found["labels"]) == (14, "gradient", 4)
    artifact = stocked.store.folder(build.report["artifact"])
    kept = json.loads((artifact / "adaptation.json").read_text())
    assert [row[1] for row in kept["coefficients"]] == list(modules.values())
    assert (artifact / "coefficients.png").read_bytes().startswith(b"\x89PNG")
    with publishable(stocked, build) as package:
        folder = package.folder
        card = (folder / "README.md").read_text()
        for plot in ("coefficients.png", "entropy.png"):
            assert f"](<{plot}>)" in card
            assert (folder / plot).read_bytes() == (artifact / plot).read_bytes()


def test_neighbours_take_part_and_their_versions_decide_the_key(stocked, base, make_adapter):
    stocked.domains.add("toys")
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 5), base=row, role="ingredient", domain="toys")
    recipe = Recipe(
        adaptive=Adaptive(neighbours=("toys",), prompts=2, tokens=1, epochs=1, held_out=0.5, learning_rates=(0.1,))
    )
    build = made(stocked, recipe)
    assert list(build.coefficients) == ["spirit", "ingredient", "toys"]
    assert sum(build.coefficients.values()) == pytest.approx(1, abs=1e-5)
    assert [adapter["ref"] for adapter in build.inputs["adapters"]] == ["spirit@v1", "skin-care@v1", "toys@v1"]
    again = made(stocked, load_recipe(str(build.path / "recipe.json")))
    assert again.digest == build.digest
    assert request(stocked, "skin-care", recipe).build.id == build.id
    stocked.adapters.add(make_adapter(base, 6), base=row, role="ingredient", domain="toys")
    assert plan(stocked, "skin-care", recipe).key != build.key
    own = recipe.adaptive.model_copy(update={"neighbours": ("toys", "toys@v1")})
    stocked.adapters.alias("toys@v1", "champion")
    with pytest.raises(UsageError, match="names toys@v1 twice, as toys and as toys@v1"):
        plan(stocked, "skin-care", recipe.model_copy(update={"adaptive": own}))
    pinned = recipe.model_copy(update={"adaptive": recipe.adaptive.model_copy(update={"neighbours": ("toys@v1",)})})
    assert plan(stocked, "skin-care", pinned).inputs["adapters"][2]["ref"] == "toys@v1"
    own = recipe.adaptive.model_copy(update={"neighbours": ("skin-care@v1",)})
    with pytest.raises(UsageError, match="as a neighbour of its own domain skin-care"):
        plan(stocked, "skin-care", recipe.model_copy(update={"adaptive": own}))


def test_a_cold_domain_is_the_spirit_alone_until_it_has_an_ingredient(stocked, base, make_adapter):
    stocked.domains.add("toys")
    asked = request(stocked, "toys", SHIPPED["default"][1]).build
    build = stocked.builds.get(work(stocked, asked).id)
    assert build.coefficients == {"spirit": 1.0}
    assert build.report["warnings"] == ["there is no adapter but the spirit, so nothing is mixed"]
    alone = stocked.builds.get(work(stocked, request(stocked, "toys", load_recipe("spirit-only")).build).id)
    assert alone.digest == build.digest
    assert freshness_of(stocked, "toys").state == "fresh"
    row = stocked.bases.get("tiny")
    stocked.adapters.add(make_adapter(base, 5), base=row, role="ingredient", domain="toys")
    assert freshness_of(stocked, "toys").state == "stale"  # now there is something to mix
    build = stocked.builds.get(work(stocked, request(stocked, "toys", SHIPPED["default"][1]).build).id)
    assert build.coefficients == {"spirit": 0.5, "ingredient": 0.5}  # without data nothing says which is better
    assert build.report["outcome"] == "average"
    assert "no labelled users" in build.report["warnings"][0]
    stocked.domains.add("toys", recipe="reccocktail")
    assert freshness_of(stocked, "toys").state == "blocked"  # entropy needs prompts


def test_neighbours_in_any_order_repeat_from_the_recipe_that_was_written(stocked, base, make_adapter):
    row = stocked.bases.get("tiny")
    for seed, domain in enumerate(("toys", "games"), 5):
        stocked.domains.add(domain)
        stocked.adapters.add(make_adapter(base, seed), base=row, role="ingredient", domain=domain)
    adaptive = Adaptive(
        neighbours=("toys", "games"), prompts=2, tokens=1, epochs=1, held_out=0.5, learning_rates=(0.1,)
    )
    build = made(stocked, Recipe(adaptive=adaptive))
    again = made(stocked, load_recipe(str(build.path / "recipe.json")))
    assert again.digest == build.digest


def test_a_domain_whose_ingredient_is_gone_is_not_built_of_the_spirit_unasked(stocked, tmp_path):
    (tmp_path / "small.yaml").write_text("adaptive: {prompts: 3, points: 3, tokens: 2}\n")
    stocked.domains.add("skin-care", recipe=settle_recipe(stocked, str(tmp_path / "small.yaml")))
    made(stocked, SMALL)
    stocked.adapters.archive("skin-care@v1", force=True)
    state = freshness_of(stocked, "skin-care")
    assert state.state == "blocked"
    assert "no longer has the ingredient" in state.reasons[0]
    assert freshness_by_domain(stocked)["skin-care"] == state


def test_coefficients_by_layer_and_by_module_are_what_their_numbers_say(stocked):
    layers = Recipe(coefficients={"spirit": (0.25, 0.75), "ingredient": 1.0})
    build = made(stocked, layers)
    facts = stocked.adapters.facts(stocked.adapters.resolve("spirit"))
    modules = {m.name: 0.25 if ".layers.0." in m.name else 0.75 for m in facts.modules}
    by_module = made(stocked, Recipe(coefficients={"spirit": modules, "ingredient": 1.0}))
    files = [(b.path / "model.safetensors").read_bytes() for b in (build, by_module)]
    assert files[0] == files[1]
    even = made(stocked, Recipe(coefficients={"spirit": 0.25, "ingredient": 1.0}))
    assert (even.path / "model.safetensors").read_bytes() != files[0]
    with pytest.raises(MergeError, match="spirit has 3 coefficients, but the base has 2 layers"):
        made(stocked, Recipe(coefficients={"spirit": (0.1, 0.2, 0.3)}))
    short = dict(list(modules.items())[1:])
    with pytest.raises(MergeError, match=r"name no model\.layers\.0\.[\w.]+, which the adapter changes"):
        made(stocked, Recipe(coefficients={"spirit": short}))


# --- what may heal is tried again -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (StoreError("the bucket does not answer"), True),
        (DatabaseError("gone"), True),
        (InsufficientResourcesError("no space left on device"), True),
        (OSError(28, "No space left on device"), True),
        (OSError(2, "No such file or directory"), False),
        (MergeError("an adapter that cannot be merged"), False),
        (AdaptationError("no prompts"), False),
        (RuntimeError("a bug"), False),
    ],
    ids=lambda value: str(value),
)
def test_what_may_heal_is_tried_again_and_what_cannot_is_not(error, again, stocked, monkeypatch):
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(running, "_make", broken)
    asked = request(stocked, "skin-care", AVERAGE).build
    before = datetime.now(UTC)
    with pytest.raises(type(error)):
        work(stocked, asked)
    left = stocked.builds.get(asked.id)
    assert left.error["message"] == str(error)
    assert left.status == ("queued" if again else "failed")
    assert (left.retry_at is not None) == again
    if again:
        assert 7 < (left.retry_at - before).total_seconds() < 15
    said = [line.text for line in stocked.builds.logs(asked.id)]
    assert said[0] == "attempt 1 by tester on cpu"
    failed = next(number for number, line in enumerate(said) if line.startswith(f"failed: {error}"))
    if left.error["code"] == "internal":
        assert said[failed + 1].startswith("Traceback")
        assert said[-1] == f"{type(error).__name__}: {error}"
    else:
        assert failed == len(said) - 1


def test_attempts_lie_further_and_further_apart():
    means = [sum(back_off(attempt) for _ in range(200)) / 200 for attempt in (1, 2, 3, 4, 20)]
    assert means == pytest.approx([10, 20, 40, 80, 600], rel=0.05)


def test_a_worker_that_is_stopped_gives_its_build_back(stocked):
    asked = request(stocked, "skin-care", AVERAGE).build

    def stopped(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    claimed = stocked.builds.claim("w", build_id=asked.id)
    with pytest.raises(KeyboardInterrupt):
        run(stocked, claimed, RunOptions(worker="w", device="cpu", give_back=True), progress=stopped)
    left = stocked.builds.get(asked.id)
    assert (left.status, left.attempts, left.error) == ("queued", 0, None)
    assert work(stocked, asked).status == "succeeded"
    said = [line.text for line in stocked.builds.logs(asked.id)]
    assert "the worker was stopped; the build is back in the queue" in said
    assert any(text.startswith("merge: ") for text in said)
    assert said[-1].startswith("succeeded after ")
