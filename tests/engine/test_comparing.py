"""How two adapters differ; that the distances are those of PEFT's merges is shown in test_equality.py."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from reccocktail.engine.comparing import compare, compare_weights
from reccocktail.registry import inspect_base
from reccocktail.registry.catalog.registration import Labels
from reccocktail.registry.errors import InvalidArtifactError
from safetensors.torch import load_file, save_file

WHOLE = {"modules_to_save": ["lm_head"], "use_dora": True}


def test_an_adapter_is_nowhere_from_itself_whatever_it_holds(base, make_adapter):
    folder = make_adapter(base, 1, **WHOLE)
    found = compare_weights(folder, folder, inspect_base(base))
    assert found.total.equal
    assert (found.total.distance, found.total.cosine) == (0.0, pytest.approx(1.0))
    assert [each.name for each in found.tensors if "whole" in each.name] == ["lm_head.weight (whole)"]
    assert sum("(magnitude)" in each.name for each in found.tensors) == len(found.deltas) == 14
    assert all(each.equal and each.distance == 0 for each in (*found.deltas, *found.tensors))


def test_one_number_that_changed_is_found_and_is_as_far_as_it_went(base, make_adapter, tmp_path):
    folder = shutil.copytree(make_adapter(base, 1, **WHOLE), tmp_path / "changed")
    tensors = load_file(folder / "adapter_model.safetensors")
    factor = tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    before = factor.clone()
    factor[3, 2] += 0.5
    whole = next(value for name, value in tensors.items() if "lm_head" in name)
    whole[7, 9] += 2.0
    save_file(tensors, folder / "adapter_model.safetensors")
    found = compare_weights(make_adapter(base, 1, **WHOLE), folder, inspect_base(base))
    (delta,) = (each for each in found.deltas if not each.equal)
    (tensor,) = (each for each in found.tensors if not each.equal)
    a = tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].double()
    scale = 8 / 4
    assert delta.name == "model.layers.1.mlp.up_proj.weight"
    assert delta.distance == pytest.approx(float((factor - before)[3, 2] * scale * a[2].norm()), rel=1e-9)
    assert found.total.distance == delta.distance
    assert (tensor.name, tensor.distance) == ("lm_head.weight (whole)", pytest.approx(2.0, rel=1e-5))


def test_a_module_that_one_adapter_leaves_alone_is_a_zero_there(base, make_adapter):
    wide, narrow = make_adapter(base, 1), make_adapter(base, 2, target_modules=["q_proj"], r=2)
    for pair in ((wide, narrow), (narrow, wide)):
        found = compare_weights(*pair, inspect_base(base))
        alone = [each for each in found.deltas if None in (each.one, each.other)]
        assert {each.name.split(".")[-2] for each in alone} == {
            "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
        }  # fmt: skip
        assert all(each.cosine is None and each.distance == pytest.approx(each.one or each.other) for each in alone)
        assert not found.total.equal


def test_rows_of_other_tokens_are_not_taken_from_each_other(base, make_adapter):
    one, other = (make_adapter(base, 1, trainable_token_indices={"embed_tokens": rows}) for rows in ([5, 6], [6, 7]))
    found = compare_weights(one, other, inspect_base(base))
    assert [(each.one is None, each.other is None) for each in found.tensors] == [(False, True), (True, False)]
    same = compare_weights(one, one, inspect_base(base))
    assert [(each.name, each.equal) for each in same.tensors] == [
        ("model.embed_tokens.weight (rows of 2 tokens)", True)
    ]


def test_what_is_told_of_two_versions_is_compared_by_name(stocked, make_adapter, base, tmp_path):
    row = stocked.bases.get("tiny")
    one = stocked.adapters.resolve("skin-care@v1")
    folder = shutil.copytree(make_adapter(base, 3, r=2), tmp_path / "lora")
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"target_modules": config["target_modules"][::-1], "lora_dropout": 0.25}))
    other = stocked.adapters.add(folder, labels=Labels(metrics={"HR@1": 0.5}, tags=["nightly"], note="new", context={"data": [{"domain": "toys", "rows": 3}, {"domain": "books", "rows": 4}]}), base=row, role="ingredient", domain="skin-care")  # fmt: skip
    found = {field.name: (field.one, field.other) for field in compare(stocked, one, other).fields}
    assert found.pop("bytes") == (one.bytes, other.bytes)
    assert found == {
        "rank": (4, 2),
        "metrics.HR@1": (None, 0.5),
        "tags": ([], ["nightly"]),
        "note": (None, "new"),
        "context.data.toys.rows": (None, 3),
        "context.data.books.rows": (None, 4),
        "config.r": (4, 2),
        "config.lora_dropout": (0.0, 0.25),
    }
    assert compare(stocked, one, one).fields == ()


def test_weights_for_bases_of_other_numbers_are_not_compared(stocked, make_adapter, make_base):
    source = make_base(seed=1)
    other = stocked.bases.add("other", source, source=str(source))
    foreign = stocked.adapters.add(make_adapter(source, 2), base=other, role="ingredient", domain="skin-care")
    found = compare(stocked, stocked.adapters.resolve("skin-care@v1", base="tiny"), foreign)
    assert found.weights is None
    assert ("base", "tiny", "other") in [(field.name, field.one, field.other) for field in found.fields]


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_of_nearly_equal_adapters_is_not_lost_to_cancellation(base, make_adapter, tmp_path, seed):
    """Float32 factors that differ in their last bits: the difference of two deltas, formed whole in float64."""
    original = make_adapter(base, 1)
    folder = shutil.copytree(original, tmp_path / "nudged")
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.manual_seed(seed)
    nudged = {name: value * (1 + 1e-6 * torch.randn_like(value)) for name, value in tensors.items()}
    save_file(nudged, folder / "adapter_model.safetensors")
    found = compare_weights(original, folder, inspect_base(base))
    exact = _dense(nudged, 2.0)
    for name, delta in _dense(tensors, 2.0).items():
        (got,) = (each for each in found.deltas if each.name == f"{name}.weight")
        assert got.distance == pytest.approx(float((delta - exact[name]).norm()), rel=1e-6)


def _dense(tensors: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    names = {name.split(".lora_")[0] for name in tensors}
    return {
        name.removeprefix("base_model.model."): scale
        * tensors[f"{name}.lora_B.weight"].double()
        @ tensors[f"{name}.lora_A.weight"].double()
        for name in names
    }


def test_a_folder_that_is_no_adapter_is_refused(base, make_adapter, tmp_path):
    with pytest.raises(InvalidArtifactError, match="adapter_config"):
        compare_weights(tmp_path, make_adapter(base, 1), inspect_base(base))
