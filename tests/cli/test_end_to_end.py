"""All steps by commands alone, on a model small enough for it to take seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Q_PROJ = "model.layers.1.self_attn.q_proj"


def _deltas(*mix: tuple[Path, float]) -> torch.Tensor:
    """Σ w · (alpha / r) · B A of one module, in float64 from PEFT's own files."""
    total = torch.zeros((), dtype=torch.float64)
    for folder, weight in mix:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.{Q_PROJ}.lora_{factor}.weight"].double() for factor in "AB")
        total = total + weight * config["lora_alpha"] / config["r"] * (b @ a)
    return total


def _newest(shell: Any) -> dict[str, Any]:
    return shell("build", "list", "--json").json[0]


def _age(store: Path) -> None:
    """Two days older, so that nothing is spared for being young."""
    for path in store.rglob("*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * 86_400))


# registering


def test_init_is_harmless_when_all_is_there(prepared: Any) -> None:
    before = prepared("status", "--json").json
    assert "ready: database sqlite:///" in prepared("init").err
    assert prepared("status", "--json").json == before
    assert {c["check"]: c["ok"] for c in prepared("doctor", "--json").json} == dict.fromkeys(
        ("database", "store", "modes", "device", "trainers", "hub"), True
    )


def test_a_base_is_kept_with_what_it_is(prepared: Any, tiny_base: Path) -> None:
    shown = prepared("base", "show", "tiny", "--json").json
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert (shown["architecture"], shown["dtype"]) == ("LlamaForCausalLM", "F32")
    assert shown["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (Path(shown["path"]) / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
    assert "already there: tiny" in prepared("base", "add", "tiny", tiny_base).err


def test_a_domain_is_described_when_it_is_added(prepared: Any, data: Path) -> None:
    answer = prepared("domain", "add", "more", "--data", data / "kitchen", "--json")
    assert answer.json["found"]["users"] == 12
    assert (answer.json["created"], answer.json["changed"]) == (True, [])
    again = ("domain", "add", "more", "--data", data / "kitchen")
    assert "nothing changed" in prepared(*again).err
    moved = prepared(*again[:-1], data / "skin-care", "--title", "More", "--json").json
    assert not moved["created"]
    assert [(each["key"], each["after"]) for each in moved["changed"]] == [
        ("title", "More"),
        ("data", str(data / "skin-care")),
    ]
    back = prepared(*again, columns=200).err
    assert f"data: {data / 'skin-care'} → {data / 'kitchen'}" in back
    assert "12 users, 128 items" in answer.err
    assert [entry["name"] for entry in prepared("domain", "list", "--json").json] == ["kitchen", "more", "skin-care"]


def test_the_same_adapter_is_registered_once_and_another_gets_the_next_version(
    prepared: Any, loras: dict[str, Path]
) -> None:
    words = ("--base", "tiny", "--domain", "skin-care")
    assert "already there: skin-care@v1" in prepared("adapter", "add", loras["ingredient"], *words).err
    assert "registered: skin-care@v2" in prepared("adapter", "add", loras["newer"], *words, "--note", "warmer").err
    assert prepared("adapter", "show", "skin-care", "--json").json["note"] == "warmer"
    assert "skin-care@v2" in prepared("adapter", "list", "--domain", "skin-care").out
    assert "sound" in prepared("adapter", "verify", "skin-care@v2").err


def test_a_champion_wins_over_the_newest_until_it_is_archived(prepared: Any, loras: dict[str, Path]) -> None:
    def bare_name() -> str:
        return prepared("adapter", "show", "skin-care", "--json").json["ref"]

    prepared("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    assert bare_name() == "skin-care@v2"
    assert "champion is skin-care@v1" in prepared("adapter", "alias", "skin-care@v1", "champion").err
    assert bare_name() == "skin-care@v1"
    assert prepared("adapter", "show", "skin-care@champion", "--json").json["aliases"] == ["champion"]
    prepared("adapter", "archive", "skin-care@v1", "--force")
    assert bare_name() == "skin-care@v2"


# building


def test_both_builds_are_listed_shown_and_tell_what_went_in(built: Any) -> None:
    adaptive, average = built("build", "list", "--domain", "skin-care", "--status", "succeeded", "--json").json
    assert average["coefficients"] == {"spirit": 0.5, "ingredient": 0.5}
    assert sum(adaptive["coefficients"].values()) == pytest.approx(1)
    (run,) = adaptive["report"]["adaptation"]["runs"]
    assert [point["means"] for point in run["points"]] == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    assert [entry["ref"] for entry in adaptive["inputs"]["adapters"]] == ["spirit@v1", "skin-care@v1"]
    text = built("build", "show", adaptive["id"]).out
    assert "skin-care@v1" in text
    assert "← chosen" in text


def test_an_exported_average_is_the_exact_mean_of_both_and_generates(
    built: Any, tiny_base: Path, loras: dict[str, Path]
) -> None:
    average = built("build", "list", "--json").json[1]
    built("build", "export", average["id"], "exported")
    folder = built.folder / "exported"
    base = load_file(tiny_base / "model.safetensors")[f"{Q_PROJ}.weight"].double()
    expected = base + _deltas((loras["spirit"], 0.5), (loras["ingredient"], 0.5))
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(model.get_submodule(Q_PROJ).weight.detach(), expected.float(), rtol=1e-5, atol=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Lumen Toner Luxe"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**asked, max_new_tokens=3, do_sample=False).shape[1] > asked["input_ids"].shape[1]


def test_an_export_takes_nobodys_place(built: Any) -> None:
    newest = built("build", "list", "--json").json[0]["id"]
    theirs = built.folder / ".exported.part" / "notes"
    theirs.parent.mkdir()
    theirs.write_text("of somebody who has a folder of that name")
    built("build", "export", newest, "exported")
    assert theirs.exists()
    assert [path.name for path in built.folder.glob(".*")] == [".exported.part"]


def test_an_export_holds_the_papers(built: Any) -> None:
    newest = _newest(built)
    built("build", "export", newest["id"], "exported")
    folder = built.folder / "exported"
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["coefficients"] == newest["coefficients"]
    statement = json.loads((folder / "provenance.json").read_text())
    made_of = {d["name"]: "sha256:" + d["digest"]["sha256"] for d in
               statement["predicate"]["buildDefinition"]["resolvedDependencies"]}  # fmt: skip
    refs = {"base": ("base", "tiny"), "spirit": ("adapter", "spirit"), "ingredient": ("adapter", "skin-care")}
    assert made_of == {
        role: built(group, "show", name, "--json").json["digest"] for role, (group, name) in refs.items()
    }
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert "# skin-care" in (folder / "README.md").read_text()


def test_an_equal_build_is_not_made_twice_unless_it_is_forced(built: Any) -> None:
    newest = _newest(built)
    answer = built("build", "request", "skin-care", "--wait", "--json")
    assert [entry["id"] for entry in answer.json] == [newest["id"]]
    assert "has the same inputs and is succeeded" in answer.err
    (forced,) = built("build", "request", "skin-care", "--wait", "--force", "--json").json
    assert forced["id"] != newest["id"]
    assert (forced["key"], forced["digest"]) == (newest["key"], newest["digest"])


def test_a_queued_build_waits_for_a_worker(prepared: Any) -> None:
    (queued,) = prepared("build", "request", "skin-care", "--recipe", "spirit-only", "--json").json
    assert queued["status"] == "queued"
    prepared("build", "cancel", queued["id"])
    assert "no build was waiting" in prepared("worker", "--once").err
    prepared("build", "retry", queued["id"])
    (done,) = prepared("worker", "--once", "--json").json
    assert (done["id"], done["status"]) == (queued["id"], "succeeded")


def test_a_new_ingredient_makes_the_domain_stale_and_a_build_of_what_is_stale_makes_it_fresh(
    built: Any, loras: dict[str, Path]
) -> None:
    def state() -> tuple[str, list[str]]:
        (entry,) = built("status", "skin-care", "--json").json
        return entry["state"], entry["reasons"]

    assert state() == ("fresh", [])
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    assert state() == ("stale", ["ingredient skin-care@v1 → skin-care@v2"])
    assert "skin-care@v1 → skin-care@v2" in built("status").out
    answer = built("build", "request", "--stale", "--wait", "--json")
    assert [entry["domain"] for entry in answer.json] == ["skin-care"]
    assert "kitchen is skipped: no ingredient yet; a build would be the spirit alone" in answer.err
    assert state() == ("ready", ["ingredient skin-care@v1 → skin-care@v2"])
    built("build", "promote", "skin-care@candidate")
    assert state() == ("fresh", [])
    assert built("build", "request", "--stale", "--wait", "--json").json == []


# measuring


def test_base_spirit_domain_build_and_folder_are_measured_side_by_side(built: Any) -> None:
    newest = _newest(built)["id"]
    built("build", "export", newest, "exported")
    systems = ("tiny", "spirit", "skin-care", newest, "./exported")
    results = built("evaluate", *systems, "--domain", "skin-care", "--limit", "6", "--json").json["systems"]
    assert [r["label"] for r in results] == ["tiny", "spirit@v1", "skin-care@v1", f"build {newest}", "exported"]
    for result in results:
        assert len(result["ranks"]) == 6
        assert {"HR@1", "NDCG@3", "MRR"} <= result["metrics"].keys()
    assert results[3]["ranks"] == results[4]["ranks"], "an export is the build"
    assert len({tuple(result["ranks"]) for result in results}) > 1, "the adapters change something"
    assert "HR@1" in built("evaluate", *systems, "--domain", "skin-care", "--limit", "6").out


def test_baselines_stand_beside_models_and_are_compared_in_pairs(built: Any) -> None:
    words = ("evaluate", "popularity", "sasrec", "skin-care", "--domain", "skin-care", "--limit", "8")
    document = built(*words, "--against", "skin-care", "--json").json
    assert document["against"] == "skin-care@v1"
    assert document["task"]["digest"].startswith("sha256:")
    *baselines, ingredient = document["systems"]
    assert [row["label"] for row in baselines] == ["popularity", "sasrec"]
    assert ingredient["against"] is None
    for row in baselines:
        assert row["task"] == document["task"]
        assert row["metrics"].keys() == {"HR@1", "HR@3", "NDCG@3", "MRR", "AUC"}
        for metric in ("HR@1", "NDCG@3"):
            difference = row["metrics"][metric]["mean"] - ingredient["metrics"][metric]["mean"]
            assert row["against"][metric]["mean"] == pytest.approx(difference)
    assert "minus skin-care@v1" in built(*words, "--against", "skin-care@v1").out
    assert "--against spirit is none of the systems" in built(*words, "--against", "spirit", code=2).err


def test_models_are_ranked_by_the_score_that_is_named_and_the_answer_says_which(built: Any) -> None:
    words = ("evaluate", "tfidf", "tiny", "--domain", "skin-care", "--limit", "2")
    document = built(*words, "--json").json
    assert (document["score"], [row["mode"] for row in document["systems"]]) == ("pmi", ["tfidf", "pmi"])
    assert all(row["log-loss"]["mean"] >= 0 for row in document["systems"])
    assert built(*words, "--mode", "pmi", "--json").json["systems"] == document["systems"], "the old name of the option"
    assert "pmi:0.5" in built(*words, "--score", "pmi:0.5").out
    chosen = built(*words, "--score", "auto", "--json").json
    assert chosen["score"] == min(chosen["score_losses"], key=chosen["score_losses"].__getitem__)
    assert "pmi:0.5" in built(*words, "--score", "auto").out, "every score's loss is shown"
    for wrong in ("best", "pmi:x", "likelihood:2"):
        assert built(*words, "--score", wrong, "--json", code=2).json["error"]["code"] == "usage"


def test_models_are_measured_by_the_lists_that_they_name(built: Any) -> None:
    words = ("evaluate", "tiny", "--domain", "skin-care", "--limit", "3", "--mode", "generate")
    (row,) = built(*words, "--template", "top-five", "--json").json["systems"]
    assert row["mode"] == "generate"
    assert row["lists"].keys() == {"entries", "unknown", "duplicates"}
    assert "AUC" not in row["metrics"]
    assert "does not show the candidates" in built(*words, code=2).err


# publishing


def test_a_dry_run_sends_nothing(built: Any, loopback_hub: Any) -> None:
    answer = built("publish", "skin-care", "--to", "acme/skin-care", "--dry-run")
    assert "model.safetensors" in answer.out
    assert "would be made); nothing was sent" in answer.err
    assert not loopback_hub.repos


def test_a_publication_is_one_commit_that_transformers_loads(
    built: Any, loopback_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = _newest(built)
    document = built("publish", "skin-care", "--to", "acme/skin-care", "--tag", "v1", "--json").json
    assert (document["build"], document["domain"], document["tag"]) == (newest["id"], "skin-care", "v1")
    assert document["revision"] == loopback_hub.head("acme/skin-care") == loopback_hub.tags("acme/skin-care")["v1"]
    assert loopback_hub.history("acme/skin-care") == [
        f"RecCocktail build {newest['id']} of skin-care", "initial commit"
    ]  # fmt: skip
    assert loopback_hub.private("acme/skin-care")
    (row,) = built("status", "skin-care", "--json").json
    assert row["published"] == f"acme/skin-care@{document['revision'][:12]}"

    folder = Path(snapshot_download("acme/skin-care", revision="v1", cache_dir=tmp_path / "cache"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    theirs = model.get_submodule(Q_PROJ).weight.detach()
    ours = load_file(Path(newest["path"]) / "model.safetensors")[f"{Q_PROJ}.weight"]
    torch.testing.assert_close(theirs, ours.to(theirs.dtype), rtol=0, atol=0)
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "The coefficients were learned" in card
    assert str(tmp_path) not in card + (folder / "provenance.json").read_text() + (folder / "recipe.json").read_text()


def test_a_build_can_be_published_by_the_start_of_its_id(built: Any, loopback_hub: Any) -> None:
    average = built("build", "list", "--json").json[1]
    document = built("publish", average["id"][:-1], "--to", "acme/average", "--public", "--json").json
    assert document["build"] == average["id"]
    assert not loopback_hub.private("acme/average")


# without a registry, and from the Hub


def test_folders_merge_without_a_registry(bare: Any, tiny_base: Path, loras: dict[str, Path]) -> None:
    words = ("-a", f"{loras['spirit']}=0.25", "-a", f"{loras['ingredient']}=1.5", "-o", "merged")
    document = bare("merge", tiny_base, *words, "--json").json
    assert not bare.home.exists()
    merged = load_file(bare.folder / "merged" / "model.safetensors")[f"{Q_PROJ}.weight"]
    base = load_file(tiny_base / "model.safetensors")[f"{Q_PROJ}.weight"].double()
    expected = base + _deltas((loras["spirit"], 0.25), (loras["ingredient"], 1.5))
    torch.testing.assert_close(merged, expected.float(), rtol=1e-5, atol=1e-6)
    assert {tensor["name"] for tensor in document["tensors"]} >= {f"{Q_PROJ}.weight"}
    AutoModelForCausalLM.from_pretrained(bare.folder / "merged")


def test_folders_merge_by_a_recipe_and_to_another_dtype(bare: Any, tiny_base: Path, loras: dict[str, Path]) -> None:
    words = ("-a", loras["spirit"], "-a", loras["ingredient"], "-r", "average", "--dtype", "float16", "-o", "merged")
    bare("merge", tiny_base, *words)
    assert AutoModelForCausalLM.from_pretrained(bare.folder / "merged").dtype == torch.float16


def test_base_and_adapter_come_from_the_hub_at_a_commit(
    bare: Any, loopback_hub: Any, tiny_base: Path, make_lora: Callable[[int], Path]
) -> None:
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    lora = files(make_lora(4))
    config = json.loads(lora["adapter_config.json"]) | {"base_model_name_or_path": "acme/tiny"}
    lora["adapter_config.json"] = json.dumps(config).encode()
    first = loopback_hub.add_repo("acme/tiny", files(tiny_base))
    loopback_hub.add_repo("acme/tiny", files(tiny_base) | {"README.md": b"# moved on\n"})
    commit = loopback_hub.add_repo("acme/lora", lora)
    bare("init")
    base = bare("base", "add", "tiny", "acme/tiny", "--revision", first, "--json").json
    assert (base["source"], base["revision"]) == ("acme/tiny", first)
    assert not (bare.home / "store" / "trees" / base["digest"].removeprefix("sha256:") / "README.md").exists()
    adapter = bare("adapter", "add", "acme/lora", "--revision", commit, "--base", "tiny", "--spirit", "--json").json
    assert adapter["context"] == {"hub_repo": "acme/lora", "hub_commit": commit}
    assert bare("adapter", "verify", "spirit", "--json").json["ok"]


# the store


def test_everything_in_the_store_is_sound_and_needed(built: Any) -> None:
    built("evaluate", "tiny", "--domain", "skin-care", "--limit", "2")
    _age(built.home / "store")
    assert built("store", "verify", "--json").json == {"ok": True, "damage": []}
    report = built("store", "gc", "--dry-run", "--json").json
    assert report == {"trees": [], "blobs": [], "staging": [], "bytes": 0, "dry_run": True, "builds": []}
    assert "would remove 0 folders" in built("store", "gc", "--dry-run").err


def test_a_changed_byte_in_the_store_is_found_and_named(built: Any) -> None:
    weights = Path(_newest(built)["path"]) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    answer = built("store", "verify", "--json", code=1)
    assert not answer.json["ok"]
    assert "model.safetensors" in {damage["path"] for damage in answer.json["damage"]}
