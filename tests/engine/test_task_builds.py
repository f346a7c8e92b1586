"""Adapters of classifiers in a registry: registered, built, resolved, and refused where words are asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reccocktail.cli.main import main
from reccocktail.engine.building.execution import RunOptions, run
from reccocktail.engine.building.planning import request
from reccocktail.engine.errors import MergeError
from reccocktail.engine.recipes import load_recipe
from reccocktail.registry import Build, Registry
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification


@pytest.fixture
def classifiers(stocked: Registry, base: Path, tmp_path: Path) -> Registry:
    """The stocked registry, whose newest spirit and ingredient are classifiers."""
    for which, owner in enumerate(({"role": "spirit"}, {"role": "ingredient", "domain": "skin-care"})):
        torch.manual_seed(which)
        model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(str(tmp_path / f"classifier-{which}"))
        stocked.adapters.add(tmp_path / f"classifier-{which}", base=stocked.bases.get("tiny"), **owner)
    return stocked


def built(registry: Registry, recipe: str) -> Build:
    asked = request(registry, "skin-care", load_recipe(recipe)).build
    claimed = registry.builds.claim("tester", build_id=asked.id)
    assert claimed
    return run(registry, claimed, RunOptions("tester", "cpu"), progress=lambda *_: None)


@pytest.mark.filterwarnings("ignore")
def test_a_build_of_classifiers_is_one(
    classifiers: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = built(classifiers, "average")
    assert build.status == "succeeded"
    assert build.digest
    folder = classifiers.store.folder(build.digest)
    made: Any = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(made[1].values())
    heads = [
        load_file(tmp_path / f"classifier-{n}" / "adapter_model.safetensors")["base_model.model.score.weight"]
        for n in (0, 1)
    ]
    torch.testing.assert_close(made[0].score.weight.data, (heads[0] + heads[1]) / 2)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification.from_pretrained" in card
    assert "ForCausalLM" not in card
    home = str(classifiers.settings.home)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--home", home, "resolve", build.id, "--merged", "--json"])
    assert json.loads(capsys.readouterr().out)["auto_class"] == "AutoModelForSequenceClassification"


@pytest.mark.filterwarnings("ignore")
def test_coefficients_of_classifiers_are_not_found_by_entropy(classifiers: Registry) -> None:
    with pytest.raises(MergeError, match="SEQ_CLS") as refused:
        built(classifiers, "reccocktail")
    assert "average" in (refused.value.hint or "")


@pytest.mark.filterwarnings("ignore")
def test_a_language_models_spirit_is_not_mixed_into_a_classifier(
    classifiers: Registry, make_adapter: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    spirit = shutil.copytree(make_adapter(base, 5), tmp_path / "spirit")
    classifiers.adapters.add(spirit, base=classifiers.bases.get("tiny"), role="spirit")
    with pytest.raises(MergeError, match=r"CAUSAL_LM.*SEQ_CLS"):
        built(classifiers, "average")
