"""Publishing by commands alone: adapters, licenses, signatures, what comes after, and no token anywhere."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, snapshot_download
from peft import PeftModel
from reccocktail.publishing import upload as publishing
from reccocktail.publishing.signing import sign
from transformers import AutoModelForCausalLM

REPO = "acme/skin-care"
NON_COMMERCIAL = "---\nlicense: cc-by-nc-4.0\nlanguage: de\ndatasets: [acme/purchases]\n---\n# a LoRA\n"


@pytest.fixture
def hub(loopback_hub: Any) -> Any:
    return loopback_hub


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between attempts."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key, whose public half lies beside it as `.pub`."""
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    path = tmp_path / "key.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path], check=True)
    public = ["openssl", "ec", "-in", path, "-pubout", "-out", path.with_suffix(".pub")]
    subprocess.run(public, check=True, capture_output=True)
    return path


def fault(hub: Any, pattern: str, **what: Any) -> None:
    hub.faults.append(type(hub).Fault(pattern, **what))


def rows(shell: Any) -> list[dict[str, Any]]:
    return shell("publication", "list", "--json").json


def card_of(hub: Any, repo: str) -> ModelCard:
    return ModelCard(hub.files(repo)["README.md"].decode())


def builds(shell: Any) -> tuple[str, str]:
    """The ids of the adaptive build and of the average."""
    adaptive, average = shell("build", "list", "--json").json
    return adaptive["id"], average["id"]


def with_papers(lora: Path, folder: Path, readme: str) -> Path:
    shutil.copytree(lora, folder)
    (folder / "README.md").write_text(readme)
    return folder


# what is sent again, and what is not


def test_another_build_of_the_domain_goes_on_top_and_what_both_have_is_not_sent_again(built: Any, hub: Any) -> None:
    adaptive, average = builds(built)
    first = built("publish", average, "--to", REPO, "--tag", "v1", "--json").json
    before = hub.files(REPO)
    sent = len(hub.uploads())
    shown = built("publish", adaptive, "--to", REPO, "--dry-run", "--json").json
    assert shown["parent"] == first["revision"]
    assert {"tokenizer.json", "generation_config.json"} & set(shown["uploads"]) == set()
    second = built("publish", adaptive, "--to", REPO, "--tag", "v2", "--json").json
    assert len(hub.uploads()) == sent + sum(name.endswith(".safetensors") for name in shown["uploads"]) == sent + 1
    assert hub.files(REPO, "v1") == before
    assert hub.tags(REPO) == {"v1": first["revision"], "v2": second["revision"]}
    assert "entropy.png" in hub.files(REPO)
    back = built("publish", average, "--to", REPO)
    assert "removing entropy.png, which is not part of this publication" in back.err
    assert hub.files(REPO) == before


def test_publishing_twice_makes_one_commit_and_one_row(built: Any, hub: Any) -> None:
    first = built("publish", "skin-care", "--to", REPO, "--tag", "v1", "--json").json
    again = built("publish", "skin-care", "--to", REPO, "--tag", "v1")
    assert "already on the Hub" in again.err
    assert [row["id"] for row in rows(built)] == [first["id"]]
    assert len(hub.history(REPO)) == 2


# faults: the row says where the repository is, and the same again completes


def test_without_a_commit_there_is_no_row_and_the_same_again_completes(built: Any, hub: Any, waits: None) -> None:
    fault(hub, r"PUT /lfs/", cut=1000, times=1000)
    answer = built("publish", "skin-care", "--to", REPO, "--json", code=1)
    assert answer.json["error"]["code"] == "hub"
    assert rows(built) == []
    assert built("status", "skin-care", "--json").json[0]["published"] is None
    hub.faults.clear()
    done = built("publish", "skin-care", "--to", REPO, "--json").json
    assert [row["revision"] for row in rows(built)] == [done["revision"]] == [hub.head(REPO)]


def test_a_commit_without_its_tag_has_a_row_and_the_same_again_sets_the_tag(built: Any, hub: Any, waits: None) -> None:
    fault(hub, r"POST .*/tag/", status=500, times=1000)
    built("publish", "skin-care", "--to", REPO, "--tag", "v1", code=1)
    (row,) = rows(built)
    assert (row["revision"], row["tag"]) == (hub.head(REPO), None)
    hub.faults.clear()
    done = built("publish", "skin-care", "--to", REPO, "--tag", "v1", "--json").json
    assert (done["revision"], done["tag"]) == (row["revision"], "v1")
    assert hub.tags(REPO) == {"v1": row["revision"]}
    assert len(hub.history(REPO)) == 2


def test_a_kill_between_commit_and_row_is_made_good_by_the_same_again(built: Any, hub: Any) -> None:
    real = publishing.publish

    def killed(*words: Any, **options: Any) -> Any:
        real(*words, **options | {"committed": lambda commit: None})
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "publish", killed)
        built("publish", "skin-care", "--to", REPO, "--tag", "v1", code=130)
    assert rows(built) == []
    head = hub.head(REPO)
    done = built("publish", "skin-care", "--to", REPO, "--tag", "v1", "--json").json
    assert [row["id"] for row in rows(built)] == [done["id"]]
    assert (done["revision"], hub.head(REPO), hub.tags(REPO)) == (head, head, {"v1": head})


def test_somebody_elses_commit_is_refused_until_rebase_is_said(built: Any, hub: Any) -> None:
    adaptive, average = builds(built)
    first = built("publish", average, "--to", REPO, "--json").json
    theirs = hub.add_repo(REPO, hub.files(REPO) | {"cover.png": b"art"}, private=True, message="a cover")
    answer = built("publish", adaptive, "--to", REPO, "--json", code=1)
    assert first["revision"] in answer.json["error"]["message"]
    assert theirs in answer.json["error"]["message"]
    assert "--rebase" in answer.json["error"]["hint"]
    done = built("publish", adaptive, "--to", REPO, "--rebase", "--json").json
    assert done["revision"] == hub.head(REPO)
    assert hub.files(REPO)["cover.png"] == b"art"


# adapters


def test_an_ingredient_and_a_spirit_are_published_as_adapters_that_peft_loads(
    built: Any, hub: Any, tiny_base: Path, tmp_path: Path
) -> None:
    document = built("publish", "skin-care@v1", "--to", "acme/ingredient", "--json").json
    assert (document["adapter"], document["build"], document["domain"]) == ("skin-care@v1", None, "skin-care")
    built("publish", "spirit", "--to", "acme/spirit")
    data = card_of(hub, "acme/ingredient").data
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-generation")
    text = card_of(hub, "acme/ingredient").text
    assert "An ingredient: a LoRA adapter" in text
    assert "0.2500" in text  # the metric that it was registered with
    assert "A base spirit" in card_of(hub, "acme/spirit").text
    folder = Path(snapshot_download("acme/ingredient", cache_dir=tmp_path / "cache"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    assert model.peft_config["default"].r == 4
    shown = built("adapter", "show", "skin-care@v1", "--json").json
    assert [each["repo"] for each in shown["publications"]] == ["acme/ingredient"]
    assert built("verify", "acme/ingredient", "--json").json["known_as"] == "skin-care@v1"
    # the cocktail's card then names what it was mixed of; its base is not on the Hub, and an adapter is none
    built("publish", "skin-care", "--to", REPO)
    assert {"[acme/spirit]", "[acme/ingredient]"} <= set(re.findall(r"\[acme/[a-z]+\]", card_of(hub, REPO).text))
    assert card_of(hub, REPO).data.base_model is None


def on_hub(shell: Any, hub: Any, tiny_base: Path, loras: dict[str, Path]) -> str:
    """The id of a build over a base model from the Hub, of which the spirit has been published."""
    hub.add_repo("maker/tiny", {path.name: path.read_bytes() for path in tiny_base.iterdir()}, private=True)
    shell("base", "add", "hub-tiny", "maker/tiny")
    for which, where in (("spirit", "--spirit"), ("ingredient", "--domain=kitchen")):
        shell("adapter", "add", loras[which], "--base", "hub-tiny", where, "--allow-base-mismatch")
    shell("publish", "spirit", "--base", "hub-tiny", "--to", "acme/spirit")
    (row,) = shell("build", "request", "kitchen", "--base", "hub-tiny", "--recipe", "average", "--wait", "--json").json
    return row["id"]


def test_the_base_model_is_what_it_is_on_the_hub_and_no_repository_that_an_adapter_was_put_into(
    built: Any, hub: Any, tiny_base: Path, loras: dict[str, Path]
) -> None:
    build = on_hub(built, hub, tiny_base, loras)
    built("publish", build, "--to", "acme/first")
    assert card_of(hub, "acme/first").data.base_model == ["maker/tiny", "acme/spirit"]
    # something else came to where the spirit was
    built("publish", build, "--to", "acme/spirit", "--replace")
    built("publish", build, "--to", "acme/second")
    assert card_of(hub, "acme/second").data.base_model == "maker/tiny"
    # an adapter was published onto the base model, by mistake
    built("publish", "kitchen@v1", "--to", "maker/tiny", "--replace")
    built("publish", build, "--to", "acme/third")
    assert card_of(hub, "acme/third").data.base_model is None
    built("publish", "kitchen@v1", "--to", "acme/kitchen")
    assert json.loads(hub.files("acme/kitchen")["adapter_config.json"])["base_model_name_or_path"] == "hub-tiny"


def test_the_card_has_the_wording_that_was_used_though_its_file_is_gone(built: Any, hub: Any, tmp_path: Path) -> None:
    _, average = builds(built)
    template = tmp_path / "mine.yaml"
    template.write_text("name: mine\nsystem: You know soap.\nuser: 'So far {history}. And now?'\nseparator: ' ; '\n")
    recipe = tmp_path / "mine-recipe.yaml"
    recipe.write_text(
        f"method: linear\nadaptive: {{points: 3, prompts: 4, tokens: 2, template: {template}}}\noutput: {{dtype: bfloat16}}\n"
    )
    (row,) = built("build", "request", "skin-care", "--recipe", recipe, "--wait", "--json").json
    template.unlink()
    built("publish", row["id"], "--to", REPO)
    snippet = card_of(hub, REPO).text.split("```python\n")[1].split("```")[0]
    code = snippet.partition("messages = ")[2].partition("\ninputs")[0]
    assert ast.literal_eval(code.replace('.format(\n        history="FIRST TITLE ; SECOND TITLE")', "")) == [
        {"role": "system", "content": "You know soap."},
        {"role": "user", "content": "So far {history}. And now?"},
    ]
    # nobody knows how the adapters were asked when they were trained
    built("publish", average, "--to", "acme/average")
    assert "the template is not known" in card_of(hub, "acme/average").text
    assert "customer" not in card_of(hub, "acme/average").text


def test_the_builds_own_warnings_are_in_the_card(built: Any, hub: Any) -> None:
    few_labels = built("build", "request", "skin-care", "--recipe", "default", "--wait", "--json").json[0]["id"]
    with built.registry() as registry:
        warnings = registry.builds.get(few_labels).report["warnings"]
    built("publish", few_labels, "--to", REPO)
    limits = card_of(hub, REPO).text.partition("## Limits")[2]
    assert warnings
    assert limits.count("The build warned: ") == len(warnings)


def test_a_merge_without_a_registry_names_no_domain_in_its_card(
    bare: Any, tiny_base: Path, loras: dict[str, Path]
) -> None:
    bare("merge", tiny_base, "-a", f"{loras['spirit']}=0.5", "-o", "m6")
    text = (bare.folder / "m6" / "README.md").read_text()
    assert "m6" not in text
    assert "recommends in" not in text


def test_an_adapters_config_names_the_base_as_the_hub_knows_it(
    built: Any, hub: Any, tiny_base: Path, loras: Any
) -> None:
    lora = json.loads((loras["ingredient"] / "adapter_config.json").read_text())
    assert lora["base_model_name_or_path"] == "tiny"
    hub.add_repo("maker/tiny", {path.name: path.read_bytes() for path in tiny_base.iterdir()})
    built("base", "add", "hub-tiny", "maker/tiny")
    words = ("--base", "hub-tiny", "--domain", "kitchen", "--allow-base-mismatch")
    built("adapter", "add", loras["ingredient"], *words)
    built("publish", "kitchen@v1", "--to", "acme/kitchen")
    files = hub.files("acme/kitchen")
    assert json.loads(files["adapter_config.json"]) == lora | {"base_model_name_or_path": "maker/tiny"}
    data = card_of(hub, "acme/kitchen").data
    assert (data.base_model, data.base_model_relation) == ("maker/tiny", "adapter")
    assert built("verify", "acme/kitchen", "--json").json["ok"]


def test_a_build_whose_output_is_an_adapter_is_published_as_one(built: Any, hub: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text("method: linear\ncoefficients: {spirit: 0.5, ingredient: 0.5}\noutput: {format: adapter}\n")
    (row,) = built("build", "request", "skin-care", "--recipe", recipe, "--wait", "--json").json
    built("publish", row["id"], "--to", "acme/mixed")
    card = card_of(hub, "acme/mixed")
    assert (card.data.library_name, card.data.tags[0]) == ("peft", "merge")
    assert "PeftModel.from_pretrained" in card.text
    assert built("verify", "acme/mixed", "--json").json["known_as"] == f"build {row['id']}"


# what was published comes back


def registered_again(shell: Any, hub: Any, repo: str, folder: Path, *words: str) -> Any:
    copied(hub, repo, folder)
    return shell("adapter", "add", folder, "--base", "tiny", *words, "--json").json


def test_an_adapter_that_was_published_and_downloaded_is_registered_and_published_again(
    built: Any, hub: Any, tmp_path: Path
) -> None:
    built("publish", "skin-care@v1", "--to", "acme/first")
    registered_again(built, hub, "acme/first", tmp_path / "copy", "--domain", "kitchen")
    built("publish", "kitchen@v1", "--to", "acme/second", "--dry-run")
    built("publish", "kitchen@v1", "--to", "acme/second")
    found = built("verify", "acme/second", "--json").json
    assert (found["ok"], found["known_as"]) == (True, "kitchen@v1")
    statement = json.loads(hub.files("acme/second")["provenance.json"])
    about = statement["predicate"]["buildDefinition"]["externalParameters"]["adapter"]
    assert about["ref"] == "kitchen@v1"
    assert "kitchen@v1" in card_of(hub, "acme/second").text
    assert "skin-care@v1" not in card_of(hub, "acme/second").text


def test_one_that_was_signed_comes_back_without_the_old_signature(
    built: Any, hub: Any, key: Path, tmp_path: Path
) -> None:
    built("publish", "skin-care@v1", "--to", "acme/first", "--sign", key)
    registered_again(built, hub, "acme/first", tmp_path / "copy", "--domain", "kitchen")
    built("publish", "kitchen@v1", "--to", "acme/plain")
    assert "model.sig" not in hub.files("acme/plain")
    built("publish", "kitchen@v1", "--to", "acme/signed", "--sign", key)
    found = built("verify", "acme/signed", "--key", key.with_suffix(".pub"), "--json").json
    assert (found["ok"], found["signature"], found["known_as"]) == (True, "sound", "kitchen@v1")


def test_a_mixed_adapter_that_was_published_is_registered_and_published_again(
    built: Any, hub: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text("method: linear\ncoefficients: {spirit: 0.5, ingredient: 0.5}\noutput: {format: adapter}\n")
    (row,) = built("build", "request", "skin-care", "--recipe", recipe, "--wait", "--json").json
    built("publish", row["id"], "--to", "acme/mixed")
    registered_again(built, hub, "acme/mixed", tmp_path / "copy", "--domain", "kitchen")
    built("publish", "kitchen@v1", "--to", "acme/again")
    assert built("verify", "acme/again", "--json").json["known_as"] == "kitchen@v1"


# what is there already


def test_an_adapter_takes_no_models_place_and_a_model_no_adapters_unless_all_is_to_go(built: Any, hub: Any) -> None:
    built("publish", "skin-care", "--to", REPO)
    built("publish", "spirit", "--to", "acme/spirit")
    heads = hub.head(REPO), hub.head("acme/spirit")
    for words, said in (
        (("spirit", "--to", REPO), "holds a model"),
        (("skin-care", "--to", "acme/spirit"), "holds an adapter"),
    ):
        for more in ((), ("--dry-run",), ("--rebase",)):
            answer = built("publish", *words, *more, "--json", code=1)
            assert answer.json["error"]["code"] == "conflict"
            assert said in answer.json["error"]["message"]
            assert "--replace" in answer.json["error"]["hint"]
    assert heads == (hub.head(REPO), hub.head("acme/spirit"))
    shown = built("publish", "spirit", "--to", REPO, "--replace", "--dry-run", "--json").json
    assert (shown["held"], shown["kind"]) == ("model", "adapter")
    assert "model.safetensors" in shown["removed"]
    assert hub.head(REPO) == heads[0]
    built("publish", "spirit", "--to", REPO, "--replace")
    assert hub.files(REPO).keys() - {".gitattributes"} == hub.files("acme/spirit").keys() - {".gitattributes"}


def test_a_dry_run_tells_what_is_lost_before_anything_else_and_in_red_where_there_are_colours(
    built: Any, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO, {"model.safetensors": b"theirs", "cover.png": b"art"}, private=True)
    words = ("publish", "spirit", "--to", REPO, "--replace", "--dry-run")
    lines = built(*words).err.splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("note: "))
    assert [line[: line.index(",")] for line in lines[first + 1 : first + 3]] == [
        "- would remove cover.png",
        "- would remove model.safetensors",
    ]
    assert lines[first].startswith(f"- {REPO} holds a model")
    assert "\x1b" not in "".join(lines)
    monkeypatch.setattr("click.utils.should_strip_ansi", lambda *words: False)
    monkeypatch.setattr("reccocktail.cli.display.is_terminal", lambda stream: True)
    assert "\x1b[31m- would remove model.safetensors" in built(*words, TERM="xterm").err
    for plain in ({"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}):
        assert "\x1b" not in built(*words, **plain).err
    assert hub.history(REPO) == ["add"]


def test_a_dry_run_fails_where_the_publication_would(built: Any, hub: Any) -> None:
    adaptive, average = builds(built)
    built("publish", average, "--to", REPO, "--tag", "v1")
    for dry in ((), ("--dry-run",)):
        assert "points to commit" in built("publish", adaptive, "--to", REPO, "--tag", "v1", *dry, code=1).err
    with built.registry() as registry:
        kept = registry.builds.get(adaptive).path / "config.json"
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[::-1])
    for dry in ((), ("--dry-run",)):
        assert "store verify" in built("publish", adaptive, "--to", "acme/other", *dry, code=1).err
    hub.role = "read"
    for dry in ((), ("--dry-run",)):
        assert "may only read" in built("publish", "spirit", "--to", "acme/other", *dry, code=1).err
    assert set(hub.repos) == {REPO}


def test_a_dry_run_that_cannot_ask_the_hub_fails_unless_it_is_offline(
    built: Any, hub: Any, waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("publish", "spirit", "--to", "acme/other", "--dry-run")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = built(*words, "--json", code=1).json["error"]
    assert answer["code"] == "hub"
    assert "acme/other" in answer["message"]
    assert "--offline" in answer["hint"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    before = len(hub.requests)
    shown = built(*words, "--offline", "--json").json
    assert (shown["repo_exists"], {file["change"] for file in shown["files"]}) == (None, {None})
    assert len(hub.requests) == before
    assert (
        built("publish", "spirit", "--to", "acme/other", "--offline", "--json", code=2).json["error"]["code"] == "usage"
    )


def test_programs_that_an_older_version_stored_are_not_published_and_not_signed(
    built: Any, hub: Any, loras: dict[str, Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_papers(loras["newer"], tmp_path / "lora", "# mine\n")
    for name in ("handler.py", "libfast.so", "model.gguf", "run.sh", "all_results.json"):
        (folder / name).write_text("x")
    everything = [path.name for path in folder.iterdir()]
    with monkeypatch.context() as older:
        older.setattr("reccocktail.registry.catalog.adapters.adapter_files", lambda folder, **_: (everything, ()))
        (row,) = [built("adapter", "add", folder, "--base", "tiny", "--domain", "skin-care", "--json").json]
    assert row["not_stored"] == []
    sent = built("publish", row["ref"], "--to", "acme/ingredient", "--sign", key)
    assert all(name in sent.err for name in ("handler.py", "libfast.so", "model.gguf", "run.sh", "all_results.json"))
    files = hub.files("acme/ingredient")
    assert {*files} == {
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors", "model.sig", "provenance.json",
    }  # fmt: skip
    subjects = {subject["name"] for subject in json.loads(files["provenance.json"])["subject"]}
    assert subjects == {"adapter_config.json", "adapter_model.safetensors"}
    found = built("verify", "acme/ingredient", "--key", key.with_suffix(".pub"), "--json").json
    assert (found["ok"], found["known_as"]) == (True, row["ref"])


def test_programs_in_a_build_that_an_older_version_made_are_not_published(
    built: Any, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reccocktail.engine.building.execution as running

    def with_program(out: Path, *given: Any, **known: Any) -> None:
        (out / "modeling_tiny.py").write_text("import os")
        write_metadata(out, *given, **known)

    write_metadata = running.write_metadata
    with monkeypatch.context() as older:
        older.setattr(running, "write_metadata", with_program)
        (row,) = built("build", "request", "skin-care", "--recipe", "spirit-only", "--wait", "--json").json
    sent = built("publish", row["id"], "--to", "acme/mixed")
    assert "modeling_tiny.py" in sent.err
    assert "modeling_tiny.py" not in hub.files("acme/mixed")
    found = built("verify", "acme/mixed", "--json").json
    assert (found["ok"], found["known_as"]) == (True, f"build {row['id']}")


def test_papers_that_vouch_for_a_program_do_not_make_it_sound(built: Any) -> None:
    adaptive, _ = builds(built)
    built("build", "export", adaptive, "exported")
    folder = built.folder / "exported"
    forge(folder, lambda: (folder / "handler.py").write_text("import os"))
    assert "handler.py" in built("verify", "./exported", code=1).err


# which build a domain means


def test_an_experiment_by_another_recipe_is_neither_published_nor_served(
    built: Any, hub: Any, loras: dict[str, Path]
) -> None:
    adaptive, _ = builds(built)
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")  # the domain waits for its build
    words = ("build", "request", "skin-care", "--recipe", "spirit-only", "--wait", "--json")
    (trial,) = built(*words).json
    assert trial["own_recipe"] is False
    served = built("resolve", "skin-care", "--merged", "--json")
    assert (served.json["build"], served.json["state"], served.json["trial"]) == (adaptive, "stale", trial["id"])
    assert "production" in served.json["why"]
    assert f"skin-care means build {adaptive}" in served.err
    assert f"build {trial['id']} is newer" in served.err
    planned = built("publish", "skin-care", "--to", REPO, "--dry-run", "--json").json
    assert (planned["build"], planned["trial"]) == (adaptive, trial["id"])
    done = built("publish", "skin-care", "--to", REPO, "--json").json
    assert (done["build"], done["state"], done["reasons"]) == (
        adaptive,
        "stale",
        ["ingredient skin-care@v1 → skin-care@v2"],
    )
    built("publish", trial["id"], "--to", "acme/trial")  # by its id it is what was asked for


def test_a_domain_with_experiments_alone_has_nothing_to_publish_and_says_how_to(prepared: Any, hub: Any) -> None:
    (trial,) = prepared("build", "request", "skin-care", "--recipe", "average", "--wait", "--json").json
    for words in (("publish", "skin-care", "--to", REPO), ("resolve", "skin-care", "--merged")):
        error = prepared(*words, "--json", code=1).json["error"]
        assert error["code"] == "not_found"
        assert trial["id"] in error["hint"]
        assert "build request skin-care" in error["hint"]
    (shown,) = prepared("status", "skin-care", "--json").json
    assert (shown["state"], shown["build"], shown["trial"]) == ("unbuilt", None, trial["id"])
    # what was an experiment is none once the domain takes its recipe, whether that is named or not
    prepared("domain", "add", "skin-care", "--recipe", "average")
    (same,) = prepared("build", "request", "skin-care", "--recipe", "average", "--json").json
    assert prepared("resolve", "skin-care", "--merged", "--json").json["build"] == trial["id"]
    assert (same["id"], same["own_recipe"]) == (trial["id"], True)
    # and stands, as what it is, when the domain goes on to another
    prepared("domain", "add", "skin-care", "--recipe", "spirit-only")
    served = prepared("resolve", "skin-care", "--merged", "--json").json
    assert (served["build"], served["state"]) == (trial["id"], "stale")
    assert any(reason.startswith("recipe") for reason in served["reasons"])


# cards and licenses


def test_a_conflict_of_licenses_stops_before_anything_is_sent_unless_one_is_named(
    built: Any, hub: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    base = tmp_path / "licensed"
    shutil.copytree(tiny_base, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n")
    built("base", "add", "licensed", base)
    lora = with_papers(loras["ingredient"], tmp_path / "nc", NON_COMMERCIAL)
    built("adapter", "add", lora, "--base", "licensed", "--domain", "kitchen", "--allow-base-mismatch")
    answer = built("publish", "kitchen@v1", "--to", "acme/kitchen", code=1)
    assert "licensed is under apache-2.0, kitchen@v1 under cc-by-nc-4.0" in answer.err
    assert "--license ID" in answer.err
    assert hub.repos == {}
    built("publish", "kitchen@v1", "--to", "acme/kitchen", "--license", "cc-by-nc-4.0")
    card = card_of(hub, "acme/kitchen")
    assert (card.data.license, card.data.language, card.data.datasets) == ("cc-by-nc-4.0", "de", ["acme/purchases"])
    assert "license apache-2.0" in card.text
    assert "chosen by the publisher" in card.text
    assert "not a license id of the Hub" in built("publish", "spirit", "--to", REPO, "--license", "own", code=2).err


def test_stale_takes_a_license_that_was_named_for_other_parts_no_further(
    built: Any, hub: Any, loras: dict[str, Path], tmp_path: Path
) -> None:
    built("publish", "skin-care", "--to", REPO, "--license", "mit")
    head = hub.head(REPO)
    lora = with_papers(loras["newer"], tmp_path / "nc", NON_COMMERCIAL)
    built("adapter", "add", lora, "--base", "tiny", "--domain", "skin-care")
    built("build", "request", "--stale", "--wait")
    built("build", "promote", "skin-care@candidate")
    answer = built("publish", "--stale", code=1)
    assert f"{REPO} was published under mit, which was named for none" in answer.err
    assert "skin-care@v2 is under cc-by-nc-4.0" in answer.err
    assert "--license ID" in answer.err
    assert hub.head(REPO) == head
    built("publish", "--stale", "--license", "cc-by-nc-4.0")
    assert card_of(hub, REPO).data.license == "cc-by-nc-4.0"


def test_every_part_without_a_license_is_noted(
    built: Any, hub: Any, tiny_base: Path, loras: dict[str, Path], tmp_path: Path
) -> None:
    base = tmp_path / "licensed"
    shutil.copytree(tiny_base, base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    built("base", "add", "licensed", base)
    words = ("--base", "licensed", "--domain", "kitchen", "--allow-base-mismatch")
    built("adapter", "add", loras["ingredient"], *words)
    answer = built("publish", "kitchen@v1", "--to", "acme/kitchen", "--dry-run")
    assert "the license is apache-2.0; no license is known for kitchen@v1" in answer.err


def test_a_card_has_what_was_measured_with_intervals(built: Any, hub: Any) -> None:
    adaptive, _ = builds(built)
    built("evaluate", "tiny", "skin-care", adaptive, "--domain", "skin-care", "--limit", "6")
    built("publish", "skin-care", "--to", REPO)
    text = card_of(hub, REPO).text
    assert "6 users; means with 95 % bootstrap intervals" in text
    for kept in [*(built.home / "evaluations").glob("*.json")]:
        for key in ("metrics", "ranks", "task"):
            content = json.loads(kept.read_text())
            del content[key]
            (kept.parent / f"z-without-{key}-{kept.name}").write_text(json.dumps(content))
    built("publish", "skin-care", "--to", "acme/second")
    assert "bootstrap intervals" in card_of(hub, "acme/second").text
    measured = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ") and "[" in line]
    assert measured == ["| tiny", "| skin-care@v1", "| this model"]
    results = card_of(hub, REPO).data.eval_results
    assert {result.metric_type for result in results} == {"HR@1", "HR@3", "NDCG@3", "MRR"}
    assert {(result.dataset_type, result.dataset_name, result.dataset_split) for result in results} == {
        ("skin-care", "Skin Care", "test")
    }


def test_a_template_of_ones_own_may_replace_a_part_and_cannot_reach_further(
    built: Any, hub: Any, tmp_path: Path
) -> None:
    template = tmp_path / "card.j2"
    template.write_text('{% extends "card.jinja" %}{% block limits %}Ask {{ facts.domain | code }}.{% endblock %}')
    shown = built("publish", "skin-care", "--to", REPO, "--card-template", template, "--dry-run", "--json").json
    assert shown["card"].rstrip().endswith("Ask `skin-care`.")
    assert "library_name: transformers" in shown["card"]
    for wrong in (
        "{{ facts.__class__.__mro__ }}",
        "{% if %}",
        "{{ nothing }}",
        "{{ 1 / 0 }}",
        '{% include "/etc/passwd" %}',
    ):
        template.write_text(wrong)
        answer = built("publish", "skin-care", "--to", REPO, "--card-template", template, "--dry-run", code=2)
        assert "card.j2" in answer.err
    built("publish", "skin-care", "--to", REPO, "--card-template", tmp_path / "none", "--dry-run", code=2)


# signatures and verification


def test_a_signed_publication_is_verified_and_a_changed_one_is_not(
    built: Any, hub: Any, key: Path, tmp_path: Path
) -> None:
    adaptive, _ = builds(built)
    built("publish", "skin-care", "--to", REPO, "--sign", key)
    again = built("publish", "skin-care", "--to", REPO, "--sign", key)
    assert "already on the Hub" in again.err
    assert len(hub.history(REPO)) == 2
    assert "\nerror: acme/skin-care is signed" in built("publish", "skin-care", "--to", REPO, code=2).err
    public = key.with_suffix(".pub")
    found = built("verify", REPO, "--key", public, "--json").json
    assert (found["ok"], found["signature"], found["known_as"]) == (True, "sound", f"build {adaptive}")
    assert found["recorded"]
    assert built("verify", REPO, "--json").json["signature"] == "unchecked"
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, data in hub.files(REPO).items():
        (folder / name).write_bytes(data)
    assert built("verify", folder, "--key", public, "--json").json["ok"]
    (folder / "README.md").write_text("# mine now\n")
    assert "README.md is not what was signed" in built("verify", folder, "--key", public, code=1).err
    (folder / "extra.safetensors").write_bytes(b"x")
    assert (
        "extra.safetensors is not listed in provenance.json, and would be loaded" in built("verify", folder, code=1).err
    )
    built("publish", "skin-care", "--to", "acme/other", "--sign", public, code=2)


def test_verify_finds_what_changed_in_what_was_exported(built: Any) -> None:
    adaptive, _ = builds(built)
    built("build", "export", adaptive, "exported")
    sound = built("verify", "./exported", "--json").json
    assert (sound["ok"], sound["known_as"], sound["signature"]) == (True, f"build {adaptive}", "none")
    weights = built.folder / "exported" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (built.folder / "exported" / "config.json").unlink()
    err = built("verify", "./exported", code=1).err
    assert "model.safetensors differs from provenance.json" in err
    assert "config.json is missing" in err
    (built.folder / "exported" / "provenance.json").write_text("{}")
    assert "not an in-toto statement" in built("verify", "./exported", code=1).err


def forge(folder: Path, change: Any) -> None:
    """What is written of the folder's files is made true of what they are now."""
    change()
    path = folder / "provenance.json"
    content = json.loads(path.read_text())
    names = sorted(each.name for each in folder.iterdir() if each.name not in ("README.md", "provenance.json"))
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    content["subject"] = [{"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()]
    path.write_text(json.dumps(content))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def copied(hub: Any, repo: str, folder: Path) -> Path:
    folder.mkdir()
    for name, data in hub.files(repo).items():
        if name != ".gitattributes":
            (folder / name).write_bytes(data)
    return folder


def test_weights_that_only_their_own_papers_know_are_not_known_to_the_registry(
    built: Any, hub: Any, tmp_path: Path
) -> None:
    adaptive, _ = builds(built)
    built("publish", "skin-care@v1", "--to", "acme/ingredient")
    lora = copied(hub, "acme/ingredient", tmp_path / "lora")
    assert built("verify", lora, "--json").json["known_as"] == "skin-care@v1"
    forge(lora, lambda: flip(lora / "adapter_model.safetensors"))
    found = built("verify", lora, "--json").json
    assert (found["ok"], found["known_as"]) == (True, None)

    built("build", "export", adaptive, "exported")
    folder = built.folder / "exported"
    assert built("verify", folder, "--json").json["known_as"] == f"build {adaptive}"
    forge(folder, lambda: (folder / "generation_config.json").write_text('{"max_new_tokens": 1}'))
    assert built("verify", folder, "--json").json["known_as"] is None
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    forge(folder, lambda: (folder / "pytorch_model.bin").write_bytes(b"anything"))
    found = built("verify", folder, "--json", code=1).json  # a pickle, whatever its papers say
    assert (found["ok"], found["known_as"]) == (False, None)


def test_a_broken_signature_on_the_hub_is_not_kept_for_its_likeness(built: Any, hub: Any, key: Path) -> None:
    built("publish", "skin-care", "--to", REPO, "--sign", key)
    good = hub.files(REPO)["model.sig"]
    spoilt = json.loads(good)
    (signed,) = spoilt["dsseEnvelope"]["signatures"]
    raw = bytearray(base64.b64decode(signed["sig"]))
    raw[-1] ^= 1
    signed["sig"] = base64.b64encode(raw).decode()
    hub.add_repo(REPO, hub.files(REPO) | {"model.sig": json.dumps(spoilt).encode()}, private=True)
    built("verify", REPO, "--key", key.with_suffix(".pub"), code=1)
    built("publish", "skin-care", "--to", REPO, "--sign", key, "--rebase")
    assert built("verify", REPO, "--key", key.with_suffix(".pub"), "--json").json["signature"] == "sound"
    # one that is sound though no row knows it, as after a kill before the row, is kept
    hub.add_repo(REPO, hub.files(REPO) | {"model.sig": good}, private=True)
    answer = built("publish", "skin-care", "--to", REPO, "--sign", key, "--rebase")
    assert "already on the Hub" in answer.err
    assert hub.files(REPO)["model.sig"] == good


def test_a_sound_signature_of_something_else_does_not_stand_for_the_folder(
    built: Any, hub: Any, key: Path, tmp_path: Path
) -> None:
    built("publish", "skin-care", "--to", REPO, "--sign", key)
    folder = copied(hub, REPO, tmp_path / "copy")
    public = ("--key", key.with_suffix(".pub"), "--json")
    (folder / "notes.md").write_text("of whoever downloaded it")
    found = built("verify", folder, *public).json
    assert (found["ok"], found["signature"], found["notes"]) == (True, "sound", ["notes.md is not signed"])

    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.md").write_text("of whoever downloaded it")
    sign(other, other / "model.sig", key)
    shutil.copyfile(other / "model.sig", folder / "model.sig")
    found = built("verify", folder, *public, code=1).json
    assert (found["ok"], found["signature"]) == (False, "partial")
    for name in ("provenance.json", "model.safetensors", "config.json"):
        assert f"the signature: {name} is not signed" in found["problems"]


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "model.gguf", "chat_templates/tools.jinja"])
def test_code_and_pickles_that_are_in_no_paper_are_no_mere_note(built: Any, name: str) -> None:
    built("build", "export", builds(built)[0], "exported")
    path = built.folder / "exported" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert f"{name} is not listed in provenance.json, and would be loaded" in built("verify", "./exported", code=1).err


def test_papers_that_name_what_no_file_can_be_called_are_told_as_a_problem(built: Any) -> None:
    built("build", "export", builds(built)[0], "exported")
    path = built.folder / "exported" / "provenance.json"
    content = json.loads(path.read_text())
    content["subject"].append({"name": "x" * 300, "digest": {"sha256": "0" * 64}})
    path.write_text(json.dumps(content))
    assert "which is not in the folder" in built("verify", "./exported", code=1).err
    payload = {"predicate": {"resources": [{"name": "config.json"}, {"digest": "0"}]}}
    envelope = {"dsseEnvelope": {"payload": base64.b64encode(json.dumps(payload).encode()).decode()}}
    (built.folder / "exported" / "model.sig").write_text(json.dumps(envelope))
    assert "model.sig is not a model signature" in built("verify", "./exported", code=1).err


# after publishing


def test_a_newer_build_makes_the_publication_stale_and_publish_stale_brings_it_up_to_date(
    built: Any, hub: Any, loras: dict[str, Path]
) -> None:
    def state() -> str | None:
        return built("status", "skin-care", "--json").json[0]["publication"]

    assert state() is None
    built("publish", "skin-care", "--to", REPO, "--license", "mit")
    assert state() == "fresh"
    assert built("publish", "--stale", "--json").json == []
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    (newer,) = built("build", "request", "--stale", "--wait", "--json").json
    built("build", "promote", "skin-care@candidate")
    assert state() == "stale"
    assert "(stale)" in built("status").out
    assert "reccocktail publish --stale" in built("status").out
    (done,) = built("publish", "--stale", "--json").json
    assert (done["build"], done["repo"], done["revision"]) == (newer["id"], REPO, hub.head(REPO))
    assert card_of(hub, REPO).data.license == "mit"
    assert state() == "fresh"


def test_publish_stale_makes_no_repository_and_leaves_the_others_their_turn(built: Any, hub: Any) -> None:
    _, average = builds(built)
    built("publish", average, "--to", REPO)
    del hub.repos[REPO]
    answer = built("publish", "--stale", code=1)
    assert f"{REPO} is no longer on the Hub" in answer.err
    assert hub.repos == {}


def test_what_was_withdrawn_is_not_published_again_by_stale(built: Any, hub: Any) -> None:
    adaptive, average = builds(built)
    built("publish", average, "--to", REPO)
    withdrawn = built("publish", adaptive, "--to", REPO, "--json").json
    built("unpublish", withdrawn["id"])
    (shown,) = built("status", "skin-care", "--json").json
    assert (shown["published"], shown["publication"]) == (None, None)
    assert built("publish", "--stale", "--json").json == []
    built("publish", average, "--to", REPO)  # and the build that was withdrawn still stands for the domain
    head = hub.head(REPO)
    assert built("status", "skin-care", "--json").json[0]["publication"] == "fresh"
    answer = built("publish", "--stale")
    assert f"{REPO} is not changed: build {adaptive} was withdrawn there" in answer.err
    assert hub.head(REPO) == head
    built("publish", adaptive, "--to", REPO)  # said by name, it counts again
    built("publish", average, "--to", REPO)
    assert [row["build"] for row in built("publish", "--stale", "--json").json] == [adaptive]


def test_stale_puts_no_trial_into_a_repository(built: Any, hub: Any, loras: dict[str, Path], tiny_base: Path) -> None:
    adaptive, _ = builds(built)
    built("publish", "skin-care", "--to", REPO)
    built("publish", "skin-care", "--to", "acme/second")
    head = hub.head(REPO)
    # the domain waits for its build, and what was built last is by another recipe
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    (trial,) = built("build", "request", "skin-care", "--recipe", "average", "--wait", "--json").json
    assert built("publish", "--stale", "--json").json == []
    assert built("status", "skin-care", "--json").json[0]["trial"] == trial["id"]
    assert hub.head(REPO) == head
    assert built("status", "skin-care", "--json").json[0]["publication"] == "fresh"
    # or of another base model
    built("base", "add", "other", tiny_base)
    for which, where in (("spirit", "--spirit"), ("ingredient", "--domain=skin-care")):
        built("adapter", "add", loras[which], "--base", "other", where, "--allow-base-mismatch")
    words = ("build", "request", "skin-care", "--base", "other", "--wait", "--json")
    (other,) = built(*words).json
    assert built("resolve", "skin-care", "--merged", "--base", "other", "--json").json["build"] == other["id"]
    assert built("publish", "--stale", "--json").json == []
    assert hub.head(REPO) == head
    # what is served goes to every repository that the domain is in
    (newer,) = built("build", "request", "skin-care", "--base", "tiny", "--wait", "--json").json
    built("build", "promote", newer["id"])
    assert built("status", "skin-care", "--json").json[0]["publication"] == "stale"
    del hub.repos["acme/second"]
    failed, done = built("publish", "--stale", "--json", code=1).json
    assert (failed["repo"], failed["error"]["code"]) == ("acme/second", "hub")
    assert (done["repo"], done["build"]) == (REPO, newer["id"]) != (REPO, adaptive)


def test_what_stale_would_not_heed_is_refused(built: Any) -> None:
    for words in (("--base", "tiny"), ("--public",), ("--private",)):
        assert "--stale keeps the base model and visibility" in built("publish", "--stale", *words, code=2).err


def test_what_is_withdrawn_counts_no_more_and_is_still_there(built: Any, hub: Any) -> None:
    done = built("publish", "skin-care", "--to", REPO, "--public", "--json").json
    answer = built("unpublish", REPO, "--make-private", "--json").json
    assert [row["id"] for row in answer["withdrawn"]] == [done["id"]]
    assert hub.private(REPO)
    assert hub.head(REPO) == done["revision"]
    assert rows(built)[0]["withdrawn_at"]
    assert "withdrawn" in built("publication", "list").out
    assert built("status", "skin-care", "--json").json[0]["published"] is None
    built("unpublish", REPO)
    assert "nothing was published to 'acme/none'" in built("unpublish", "acme/none", code=1).err
    again = built("publish", "skin-care", "--to", REPO, "--json").json
    assert again["revision"] == done["revision"]
    assert again["withdrawn_at"] is None
    assert built("status", "skin-care", "--json").json[0]["publication"] == "fresh"


def test_a_publication_is_shown_with_its_files(built: Any, hub: Any) -> None:
    done = built("publish", "skin-care", "--to", REPO, "--json").json
    shown = built("publication", "show", REPO, "--json").json
    assert shown["id"] == done["id"]
    assert {entry["path"] for entry in shown["files"]} == hub.files(REPO).keys() - {".gitattributes"}
    assert "model.safetensors" in built("publication", "show", done["id"]).out


# tokens


@pytest.mark.slow
def test_no_token_is_in_any_output_row_log_or_file(
    built: Any, hub: Any, waits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted in the environment and in the client's own file, and refused, dropped, answered by errors: it is nowhere."""
    planted = "hf_PlantedTokenThatNobodyMaySee"
    hub.token = planted
    hub_home = tmp_path / "hf"
    hub_home.mkdir()
    (hub_home / "token").write_text(planted)
    env = {"HF_TOKEN": planted, "HF_HOME": str(hub_home), "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}
    (built.folder / "reccocktail.toml").write_text('device = "cpu"\n')
    said = []

    def run(*words: str, code: int = 0) -> None:
        answer = built("--traceback", *words, code=code, **env)
        said.append(answer.out + answer.err)

    run("publish", "skin-care", "--to", REPO, "--dry-run")
    fault(hub, r"PUT /lfs/", status=500, times=1000)
    run("publish", "skin-care", "--to", REPO, code=1)
    hub.faults.clear()
    for status in (400, 507):
        fault(hub, r"PUT /lfs/", status=status, message="", times=1000)
        run("publish", "skin-care", "--to", REPO, code=1)
        hub.faults.clear()
    fault(hub, r"POST .*/commit/", status=403, message=f"Forbidden for {planted}", times=1000)
    run("publish", "skin-care", "--to", REPO, code=1)
    hub.faults.clear()
    run("publish", "skin-care", "--to", REPO, "--tag", "v1")
    run("verify", REPO)
    run("publication", "show", REPO)
    run("doctor")
    run("unpublish", REPO)
    hub.token = "hf_another"
    run("publish", "skin-care", "--to", "acme/other", code=1)
    hub.token = planted
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    debugged = built.process("publish", "skin-care", "--to", "acme/debugged")  # the client logs every request
    said.append(debugged.out + debugged.err)
    assert "curl" in debugged.err
    assert not [text for text in said if "Planted" in text]
    assert not [text for text in said[:-1] if "Amz-Signature" in text]
    everything = [*built.home.rglob("*"), *built.folder.rglob("*")]
    assert not [path for path in everything if path.is_file() and planted.encode() in path.read_bytes()]
    assert not [name for name, data in hub.files(REPO).items() if planted.encode() in data]


def test_a_folder_to_verify_that_is_not_there_is_told_as_one(bare):
    answer = bare("verify", "/nowhere/at/all", code=2)
    assert "error: /nowhere/at/all is not a folder" in answer.err
