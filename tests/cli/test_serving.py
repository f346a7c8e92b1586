"""`resolve`: a name in the form that a serving engine takes."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest


def test_the_path_alone_is_on_stdout_and_holds_the_adapter(built: Any, loras: dict[str, Path]) -> None:
    answer = built("resolve", "skin-care@v1")
    folder = Path(answer.out.removesuffix("\n"))
    name = "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (loras["ingredient"] / name).read_bytes()
    document = built("resolve", "skin-care", "--json").json
    assert document["path"] == str(folder)
    assert (document["kind"], document["adapter"], document["base"]) == ("adapter", "skin-care@v1", "tiny")


def test_an_alias_is_followed(built: Any, loras: dict[str, Path]) -> None:
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    built("adapter", "alias", "skin-care@v1", "champion")
    before = built("resolve", "skin-care@champion", "--json").json
    built("adapter", "alias", "skin-care@v2", "champion")
    after = built("resolve", "skin-care@champion", "--json").json
    assert [document["adapter"] for document in (before, after)] == ["skin-care@v1", "skin-care@v2"]
    assert before["ref"] == after["ref"] == "skin-care@champion"


def test_the_command_for_vllm_can_be_pasted_and_is_the_documents(built: Any) -> None:
    answer, document = (
        built("resolve", "spirit", "--format", "vllm"),
        built("resolve", "spirit", "--format", "vllm", "--json").json,
    )
    words = shlex.split(answer.out)
    assert words == document["command"]
    assert words[:2] == ["vllm", "serve"]
    assert (Path(words[2]) / "config.json").is_file()
    module = json.loads(words[words.index("--lora-modules") + 1])
    assert module == document["lora_module"]
    assert module == {"name": "spirit", "path": document["path"], "base_model_name": "tiny"}


def test_what_an_older_vllm_would_pass_over_is_told(prepared: Any, loras: dict[str, Path], tmp_path: Path) -> None:
    assert prepared("resolve", "skin-care", "--format", "vllm").err == ""
    folder = shutil.copytree(loras["newer"], tmp_path / "uneven")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"q_proj": 2}}))
    prepared("adapter", "add", folder, "--base", "tiny", "--domain", "kitchen")
    answer = prepared("resolve", "kitchen", "--format", "vllm")
    assert "kitchen@v1 has a rank_pattern or an alpha_pattern" in answer.err
    assert shlex.split(answer.out)[:2] == ["vllm", "serve"]


def test_the_folder_for_peft_names_a_base_that_is_there(built: Any) -> None:
    document = built("resolve", "skin-care", "--format", "peft", "-o", "mine", "--json").json
    assert document["path"] == str(built.folder / "mine")
    config = json.loads((built.folder / "mine" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == document["base_model_name_or_path"]
    assert (Path(config["base_model_name_or_path"]) / "model.safetensors").is_file()
    again = built("resolve", "skin-care", "--format", "peft", "-o", "mine", code=1)
    assert "exists and is not an empty folder" in again.err


def test_the_merged_checkpoint_is_that_of_the_present_inputs(built: Any, loras: dict[str, Path]) -> None:
    newest = built("build", "list", "--json").json[0]
    fresh = built("resolve", "skin-care", "--merged", "--json")
    assert fresh.json["state"] == "fresh"
    assert (fresh.json["build"], fresh.json["path"]) == (newest["id"], newest["path"])
    assert fresh.err.splitlines() == [f"skin-care means build {newest['id']}: {fresh.json['why']}"]
    built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
    stale = built("resolve", "skin-care", "--merged")
    assert stale.out == newest["path"] + "\n"
    assert "is not of what skin-care has now (stale: " in stale.err
    words = shlex.split(built("resolve", "skin-care", "--merged", "--format", "vllm").out)
    assert words == ["vllm", "serve", newest["path"], "--served-model-name", "skin-care"]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("skin-care", "--format", "peft"), 2, "-o DIR belongs to --format peft"),
        (("skin-care", "-o", "x"), 2, "-o DIR belongs to --format peft"),
        (("skin-care@champion", "--merged"), 1, "no build has the alias 'skin-care@champion'"),
        (("spirit", "--merged"), 2, "--merged belongs to a domain"),
        (("skin-care", "--merged", "--format", "peft", "-o", "x"), 2, "a merged checkpoint is no adapter"),
        (("kitchen", "--merged"), 1, "reccocktail build request kitchen --wait"),
        (("kitchen",), 1, "'kitchen' has no adapter yet"),
        (("absent", "--merged"), 1, "absent"),
        (("Not A Name",), 2, "is not a reference"),
        (("skin-care", "--base", "absent"), 1, "there is no base model 'absent'"),
    ],
)
def test_what_cannot_be_resolved_says_why_and_leaves_stdout_empty(
    built: Any, words: tuple[str, ...], code: int, part: str
) -> None:
    answer = built("resolve", *words, code=code)
    assert part in answer.err
    assert answer.out == ""


def test_a_build_that_made_an_adapter_is_no_checkpoint(prepared: Any) -> None:
    recipe = prepared.folder / "lora.yaml"
    recipe.write_text("coefficients: {spirit: 0.5, ingredient: 0.5}\noutput: {format: adapter}\n")
    (made,) = prepared("build", "request", "skin-care", "--recipe", recipe, "--wait", "--json").json
    assert "made an adapter, not a checkpoint" in prepared("resolve", made["id"], "--merged", code=1).err
    prepared("build", "promote", made["id"])
    resolved = prepared("resolve", "skin-care@production", "--json").json
    assert (resolved["build"], resolved["path"], resolved["adapter"]) == (made["id"], made["path"], None)
    refused = prepared("resolve", "skin-care@production", "--merged", "--json", code=1).json["error"]
    assert refused["hint"] == "reccocktail resolve skin-care@production"


def test_a_grown_vocabulary_says_what_the_base_has_to_be_resized_to(prepared: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = prepared("resolve", "skin-care", "--format", "peft", "-o", "plain", "--json")
    assert "resize_token_embeddings" not in plain.json
    base = plain.json["base_model_name_or_path"]
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    before = model.config.vocab_size
    model.resize_token_embeddings(before + 4, mean_resizing=False)
    options = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(model, options).save_pretrained(str(tmp_path / "grown"))
    prepared("adapter", "add", tmp_path / "grown", "--base", "tiny", "--domain", "kitchen", "--allow-base-mismatch")
    answer = prepared("resolve", "kitchen", "--format", "peft", "-o", "copy", "--json")
    assert answer.json["resize_token_embeddings"] == before + 4
    assert answer.json["base_vocabulary"] == before
    said = prepared("resolve", "kitchen", "--format", "path").err
    assert f"resize_token_embeddings({before + 4})" in said
    resized: Any = AutoModelForCausalLM.from_pretrained(base)
    resized.resize_token_embeddings(answer.json["resize_token_embeddings"])
    PeftModel.from_pretrained(resized, answer.json["path"])  # raises where the sizes differ
    refused = prepared("resolve", "kitchen", "--format", "vllm", code=1)
    assert str(before + 4) in refused.err
