from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reccocktail.registry.artifacts.content import content_digest
from reccocktail.registry.artifacts.facts import BaseFacts
from reccocktail.registry.artifacts.inspect import copied, inspect_adapter, inspect_base
from reccocktail.registry.artifacts.patterns import NamePatterns
from reccocktail.registry.errors import BaseMismatchError, InvalidArtifactError, UnsupportedAdapterError

Make = Callable[..., Path]
SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
Q0 = "model.layers.0.self_attn.q_proj"
A0, B0 = f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight"


@pytest.fixture
def facts(tmp_path: Path, make_base: Make) -> BaseFacts:
    return inspect_base(make_base(tmp_path / "base"))


# --- base models


def test_a_base_tells_architecture_size_and_where_each_tensor_is(facts: BaseFacts) -> None:
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.dtype == "F32"
    assert facts.parameters == 2 * 10 * 8 + 4 * 6 * 8
    assert facts.bytes == 4 * facts.parameters
    assert not facts.tied_embeddings
    assert facts.tensors[f"{Q0}.weight"].file == "model.safetensors"


def shard(folder: Path, write: Make, **files: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors").unlink()
    names = {}
    for name, tensors in files.items():
        write(folder / f"{name}.safetensors", tensors)
        names |= dict.fromkeys(tensors, f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_a_sharded_base_is_read_through_its_index(tmp_path: Path, make_base: Make, write_safetensors: Make) -> None:
    folder = make_base(tmp_path / "base")
    one = np.ones((2, 2), "float16")
    shard(folder, write_safetensors, first={"a": one}, second={"b": one, "c": one})
    facts = inspect_base(folder)
    assert {name: tensor.file for name, tensor in facts.tensors.items()} == {
        "a": "first.safetensors",
        "b": "second.safetensors",
        "c": "second.safetensors",
    }
    assert facts.tied_embeddings is False


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "first.safetensors", "b": "gone.safetensors"}, "has no gone.safetensors"),
        ({"a": "first.safetensors", "b": "first.safetensors"}, "does not hold it"),
        ({"b": "first.safetensors"}, "does not hold it"),
        ({}, "no weight_map"),
        ({"a": "../first.safetensors"}, "not the name of a safetensors file"),
        ({"a": "/etc/first.safetensors"}, "not the name of a safetensors file"),
        ({"a": "first.bin"}, "not the name of a safetensors file"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(
    tmp_path: Path, make_base: Make, write_safetensors: Make, weight_map: dict[str, str], reason: str
) -> None:
    folder = make_base(tmp_path / "base")
    shard(folder, write_safetensors, first={"a": np.ones((2, 2), "float16")})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InvalidArtifactError, match=reason):
        inspect_base(folder)


def test_a_tensor_that_the_index_forgot_is_refused(tmp_path: Path, make_base: Make, write_safetensors: Make) -> None:
    folder = make_base(tmp_path / "base")
    one = np.ones((2, 2), "float16")
    shard(folder, write_safetensors, first={"a": one, "b": one})
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "first.safetensors"}}')
    with pytest.raises(InvalidArtifactError, match="holds tensor 'b'"):
        inspect_base(folder)


def test_a_quantised_base_is_refused(tmp_path: Path, make_base: Make) -> None:
    with pytest.raises(InvalidArtifactError, match="quantization_config"):
        inspect_base(make_base(tmp_path / "base", config={"quantization_config": {"bits": 4}}))


def test_a_base_of_pickles_is_refused_by_the_pickles_name(tmp_path: Path, make_base: Make) -> None:
    folder = make_base(tmp_path / "base")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidArtifactError, match=r"pytorch_model\.bin is a pickle"):
        inspect_base(folder)


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("folder", "target", "followed"),
    [
        (f"models--me--base/snapshots/{COMMIT}", "../../blobs/b", True),
        (f"models--me--base/snapshots/{COMMIT}", "../../blobs/deep/b", False),
        (f"models--me--base/snapshots/{COMMIT}", "../../../models--me--other/blobs/b", False),
        ("models--me--base/snapshots/main", "../../blobs/b", False),
        (f"datasets--me--base/snapshots/{COMMIT}", "../../blobs/b", False),
        ("base", "../blobs/b", False),
    ],
)
def test_only_links_of_the_hubs_cache_to_blobs_of_their_repository_are_followed(
    tmp_path: Path, make_base: Make, folder: str, target: str, followed: bool
) -> None:
    (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
    place = make_base(tmp_path / folder)
    blob = place / target
    blob.parent.mkdir(parents=True)
    (place / "model.safetensors").rename(blob)
    (place / "model.safetensors").symlink_to(target)
    if followed:
        assert inspect_base(place).parameters
        return
    with pytest.raises(InvalidArtifactError, match="leads out of the folder") as caught:
        inspect_base(place)
    assert caught.value.hint


def test_a_blob_that_is_itself_a_link_is_not_followed(tmp_path: Path, make_base: Make) -> None:
    (tmp_path / "models--me--base/snapshots").mkdir(parents=True)
    place = make_base(tmp_path / f"models--me--base/snapshots/{COMMIT}")
    (tmp_path / "models--me--base/blobs").mkdir()
    (place / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "models--me--base/blobs/b").symlink_to(tmp_path / "elsewhere")
    (place / "model.safetensors").symlink_to("../../blobs/b")
    with pytest.raises(InvalidArtifactError, match="leads out of the folder"):
        inspect_base(place)


# --- adapters


def test_an_adapter_tells_its_modules_and_their_scale(tmp_path: Path, make_adapter: Make, facts: BaseFacts) -> None:
    config = {"rank_pattern": {"0.self_attn.q_proj": 2}, "alpha_pattern": {"layers.1.*v_proj": 6}, "use_rslora": True}
    adapter = inspect_adapter(make_adapter(tmp_path / "a", config=config), facts)
    assert (adapter.rank, adapter.alpha, adapter.tensors, adapter.dtype) == (2, 4, 8, "F32")
    assert adapter.target_modules == ("q_proj", "v_proj")
    scales = {module.name: module.scale for module in adapter.modules}
    assert scales[Q0] == 4 / math.sqrt(2)
    assert scales["model.layers.1.self_attn.v_proj"] == 6 / math.sqrt(2)
    assert adapter.modules[0].weight == f"{Q0}.weight"
    assert (adapter.modules[0].a.shape, adapter.modules[0].b.shape) == ((2, 8), (6, 2))


def test_fan_in_fan_out_expects_the_weight_transposed(tmp_path: Path, make_adapter: Make, facts: BaseFacts) -> None:
    folder = make_adapter(tmp_path / "a", config={"fan_in_fan_out": True})
    with pytest.raises(InvalidArtifactError, match=r"weight of shape \[8, 6\].*is \[6, 8\]"):
        inspect_adapter(folder, facts)
    assert all(module.transposed for module in inspect_adapter(folder, None).modules)


@pytest.mark.parametrize(
    "config",
    [
        {"bias": "some"}, {"layer_replication": [[0, 2]]},
        {"alora_invocation_tokens": [5]}, {"use_qalora": True}, {"use_bdlora": {"nblocks": 2}}, {"arrow_config": {"top_k": 1}},
        {"kasa_config": {"beta": 1}}, {"megatron_config": {"a": 1}}, {"velora_config": {"scale": 1}},
        {"monteclora_config": {"num_samples": 8}}, {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"}, {"init_lora_weights": "corda"}, {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"}, {"init_lora_weights": "mica"}, {"peft_type": "VERA"}, {"peft_type": None},
        {"from_the_future": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_merging_cannot_honour_is_refused_by_name(
    tmp_path: Path, make_adapter: Make, config: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedAdapterError, match=next(iter(config))):
        inspect_adapter(make_adapter(tmp_path / "a", config=config), None)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0}, {"r": True}, {"r": "2"}, {"r": None}, {"lora_alpha": None}, {"lora_alpha": float("inf")}, {"lora_alpha": 10**400},
        {"use_rslora": "yes"}, {"rank_pattern": [1]}, {"rank_pattern": {"q_proj": 1.5}}, {"alpha_pattern": {"(": 1}},
        {"base_model_name_or_path": 7},
        {"use_dora": True}, {"use_dora": 1}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": "lm_head"},
        {"modules_to_save": [""]}, {"trainable_token_indices": [1]}, {"trainable_token_indices": {"embed_tokens": [1]}},
        {"trainable_token_indices": [-1]}, {"trainable_token_indices": [1, 1]}, {"trainable_token_indices": {"": [1]}},
        {"trainable_token_indices": {"a": 1}}, {"trainable_token_indices": 5}, {"target_parameters": "gate_up_proj"},
        {"target_parameters": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_broken_configuration_is_refused_by_the_field(
    tmp_path: Path, make_adapter: Make, config: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArtifactError, match=next(iter(config))):
        inspect_adapter(make_adapter(tmp_path / "a", config=config), None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(B0), f"'{A0}' has no lora_B"),
        (lambda t: t.pop(A0), f"'{B0}' has no lora_A"),
        (lambda t: t.update({A0: t[A0][:1]}), "do not multiply"),
        (lambda t: t.update({A0: t[A0][:1], B0: t[B0][:, :1]}), "has rank 1, but adapter_config.json says 2"),
        (lambda t: t.update({A0: t[A0][:, :5]}), r"weight of shape \[6, 5\]"),
        (lambda t: t.update({A0: t[A0][..., None, None]}), "convolution"),
        (lambda t: t.update({A0.replace("q_proj", "k_proj"): t.pop(A0), B0.replace("q_proj", "k_proj"): t.pop(B0)}), "no tensor"),
        (lambda t: t.update({A0.removeprefix("base_model.model."): t[A0]}), "is not a lora_A or lora_B weight"),
        (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": t[A0]}), "has no lora_embedding_B"),
        (lambda t: t.update({B0.replace("weight", "bias"): t[A0]}), "has a lora_B.bias beside it, but lora_bias is false"),
        (lambda t: t.clear(), "no LoRA tensors"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, make_adapter: Make, lora_tensors: Any, facts: BaseFacts, change: Any, reason: str
) -> None:
    tensors = lora_tensors()
    change(tensors)
    with pytest.raises(InvalidArtifactError, match=reason):
        inspect_adapter(make_adapter(tmp_path / "a", tensors=tensors), facts)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found_in_every_dtype(
    tmp_path: Path, make_adapter: Make, lora_tensors: Any, dtype: str, value: float
) -> None:
    tensors = lora_tensors()
    tensors[B0][3, 1] = value
    if dtype == "bfloat16":  # the upper half of a float32
        tensors = {name: (array.view("uint32") >> 16).astype("uint16") for name, array in tensors.items()}
    else:
        tensors = {name: array.astype(dtype) for name, array in tensors.items()}
    folder = make_adapter(tmp_path / "a", tensors=tensors)
    with pytest.raises(InvalidArtifactError, match=f"{B0}' has 1 of 12 values"):
        inspect_adapter(folder, None)
    assert inspect_adapter(folder, None, scan=False).tensors == 8


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_largest_finite_values_are_finite_and_the_bits_above_them_are_not(
    tmp_path: Path, make_adapter: Make, lora_tensors: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reccocktail.registry.artifacts.values._PIECE", 16)  # so that a tensor is read in pieces
    width, exponent = {
        "float64": (8, 0x7FF << 52),
        "float32": (4, 0x7F8 << 20),
        "float16": (2, 0x7C00),
        "bfloat16": (2, 0x7F80),
    }[dtype]
    kind = "uint16" if dtype == "bfloat16" else dtype
    sign = 1 << (8 * width - 1)
    sound = np.array([0, 1, exponent - 1, sign, sign | 1, sign | exponent - 1], f"<u{width}")
    tensors = {name: np.resize(sound, array.shape).view(kind) for name, array in lora_tensors().items()}
    inspect_adapter(make_adapter(tmp_path / "sound", tensors=tensors), None)
    for number, bits in enumerate(
        [exponent, exponent | 1, sign | exponent, sign | exponent | 1, 2 * sign - 1, sign - 1]
    ):
        spoiled = tensors[B0].view(f"<u{width}").copy()
        spoiled.flat[[0, 5, 11]] = bits
        folder = make_adapter(tmp_path / str(number), tensors=tensors | {B0: spoiled.view(kind)})
        with pytest.raises(InvalidArtifactError, match=f"{B0}' has 3 of 12 values"):
            inspect_adapter(folder, None)


def test_an_adapter_of_another_base_is_refused_unless_allowed(tmp_path: Path, make_adapter: Make) -> None:
    folder = make_adapter(tmp_path / "a", config={"base_model_name_or_path": "org/other"})
    with pytest.raises(BaseMismatchError, match="'org/other', not for 'tiny' = 'org/tiny'") as caught:
        inspect_adapter(folder, None, base_names=("tiny", "org/tiny"))
    assert "--allow-base-mismatch" in (caught.value.hint or "")
    assert inspect_adapter(folder, None, base_names=("tiny",), allow_base_mismatch=True).base_name == "org/other"
    assert inspect_adapter(folder, None, base_names=("org/other",)).modules


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("org/other", "org/other"),
        ("/home/ann/secret-project/other", "other"),
        ("../secret-project/other", "other"),
        ("C:\\secret-project\\other", "other"),
        ("secret-project/models/other", "other"),
        ("/hub/secret-project/models--org--other/snapshots/0123", "org/other"),
        (None, None),
    ],
)
@pytest.mark.parametrize("does_not_fit", ["shape", "name"])
def test_an_adapter_that_does_not_fit_is_said_to_be_of_another_base_without_its_path(
    named: str | None,
    shown: str | None,
    does_not_fit: str,
    tmp_path: Path,
    make_adapter: Make,
    lora_tensors: Any,
    facts: BaseFacts,
) -> None:
    tensors = lora_tensors()
    if does_not_fit == "shape":
        tensors[A0] = tensors[A0][:, :5]
    else:
        tensors |= {n.replace("layers.0", "layers.90"): t for n, t in tensors.items() if "layers.0" in n}
    folder = make_adapter(tmp_path / "a", tensors=tensors, config={"base_model_name_or_path": named})
    with pytest.raises(BaseMismatchError) as caught:
        inspect_adapter(folder, facts)
    told = str(caught.value).removeprefix(str(folder))
    assert "secret-project" not in told
    assert shown is None or f"adapter_config.json names {shown!r}" in told
    assert told.index("another base model") < told.index("[6, 5]" if does_not_fit == "shape" else "layers.90")
    assert caught.value.hint


def test_a_base_named_by_its_path_is_recognised_however_it_is_written(tmp_path: Path, make_adapter: Make) -> None:
    (tmp_path / "base").mkdir()
    folder = make_adapter(tmp_path / "a", config={"base_model_name_or_path": f"{tmp_path}/a/../base/"})
    assert inspect_adapter(folder, None, base_names=(str(tmp_path / "base"),)).modules


def test_a_pickled_adapter_is_refused_by_name(tmp_path: Path, make_adapter: Make) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidArtifactError, match=r"adapter_model\.bin: is a pickle"):
        inspect_adapter(folder, None)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_with_what_it_lacks(
    tmp_path: Path, make_adapter: Make, missing: str
) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(InvalidArtifactError, match=f"has no {missing}"):
        inspect_adapter(folder, None)


# --- patterns, which are regular expressions from outside

TOKENS = [
    "a", "b", "ab", "1", "_", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[0-9]", "[-a]", "[b.-]", "(", ")", "(?:", "|", "*",
    "+", "?", "*?", "{1}", "{0,2}", "{2,3}?", "^", "$",
]  # fmt: skip


@hypothesis_settings(max_examples=2_000 if SOAK else 500, deadline=2_000)
@given(
    st.lists(st.lists(st.sampled_from(TOKENS), max_size=7).map("".join), max_size=4, unique=True),
    st.lists(st.lists(st.sampled_from(["a", "b", ".", "1", "_", "ab"]), max_size=7).map("".join), max_size=5),
)
def test_whatever_pattern_is_accepted_fits_the_names_that_peft_finds(keys: list[str], names: list[str]) -> None:
    from peft.utils.other import get_pattern_key

    keys = [key for key in keys if is_pattern(key)]
    patterns = NamePatterns({key: number for number, key in enumerate(keys)})
    for name in names:
        assert patterns.value_of(name, -1) == (
            keys.index(found) if (found := get_pattern_key(keys, name)) in keys else -1
        )
        assert patterns.keys_of(name) == tuple(key for key in keys if re.match(rf"(.*\.)?({key})$", name))


def is_pattern(key: str) -> bool:
    try:
        NamePatterns({key: 1})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "key",
    [
        "q_proj", "model.layers.0.self_attn.q_proj", r"layers\.1\..*down_proj", ".*q_proj", "(q|k|v)_proj", "k_proj|v_proj",
        r"layers\.(?:1?[0-9]|2[0-3])\.mlp\..+", r"^model\.layers\.\d+\.self_attn\.q_proj$", r"h\.[0-9]{1,2}\.c_attn",
        r"(self_)?attn\.[-\w]+", ".*?_proj", "",
    ],
)  # fmt: skip
def test_patterns_that_people_write_are_accepted(key: str) -> None:
    assert is_pattern(key)


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+b", "(a*)*", "(a|aa)+", "((a)b)*", r"(a)\1", "(?=a)a", "(?<!a)b", "(?P<n>a)", "(?i)a", "(?>a)", "a*+", "a++", "a**",
        r"\ba", r"\Aa", "a)|(b", "(", "[", "[]a]", "[z-a]", "a{", "a{3,1}", "a{1000}", "a{,3}", "*", r"\1", "a\\", "(" * 30 + ")" * 30,
        "a" * 400 + ".*" * 100,
    ],
)  # fmt: skip
def test_patterns_that_could_run_for_ever_or_mean_something_else_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        NamePatterns({key: 1})


def test_thousands_of_plain_names_as_patterns_take_no_time() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(40) for expert in range(128)]
    start = time.process_time()
    patterns = NamePatterns({name: number for number, name in enumerate(names)})
    assert [patterns.value_of(name, -1) for name in names] == list(range(len(names)))
    assert time.process_time() - start < 5


# --- what PEFT itself writes


@pytest.fixture(scope="module")
def peft_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path, Any]]:
    """(options of LoraConfig): (base folder, adapter folder, the PEFT model)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**options: Any) -> tuple[Path, Path, Any]:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("peft")
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1,
            )
        )  # fmt: skip
        model.save_pretrained(folder / "base")
        peft = get_peft_model(model, LoraConfig(init_lora_weights=False, **options))
        peft.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        return folder / "base", folder / "adapter", peft

    return make


def test_scales_and_ranks_are_those_that_peft_uses(peft_adapter: Any) -> None:
    base, adapter, peft = peft_adapter(
        r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear",
        rank_pattern={"layers.0.self_attn.q_proj": 2, "mlp.*": 3}, alpha_pattern={"q_proj": 5, "^model.layers.1.mlp": 7,
        "down_proj": 9},
    )  # fmt: skip
    # PEFT warns that this key ends no module's name, and goes on without it
    facts = inspect_adapter(adapter, inspect_base(base))
    assert any("alpha_pattern" in note and "^model.layers.1.mlp" in note for note in facts.notes)
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in peft.named_modules()
        if hasattr(layer, "lora_A")
    }
    assert {module.name for module in facts.modules} == layers.keys()
    for module in facts.modules:
        assert module.rank == layers[module.name].r["default"]
        assert module.scale == layers[module.name].scaling["default"]


def test_the_delta_that_the_facts_describe_is_the_one_that_peft_merges(peft_adapter: Any) -> None:
    from safetensors.numpy import load_file

    base, adapter, peft = peft_adapter(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    before = load_file(base / "model.safetensors")
    merged = {name: tensor.numpy() for name, tensor in peft.merge_and_unload().state_dict().items()}
    factors = load_file(adapter / "adapter_model.safetensors")
    for module in inspect_adapter(adapter, inspect_base(base)).modules:
        delta = module.scale * factors[module.b.name].astype("float64") @ factors[module.a.name]
        np.testing.assert_allclose(merged[module.weight], before[module.weight] + delta, atol=1e-6)


def test_a_copy_is_known_by_configuration_and_header_and_its_own_values_count(
    tmp_path: Path, facts: BaseFacts, make_adapter: Make, lora_tensors: Any, write_safetensors: Make
) -> None:
    first = make_adapter(tmp_path / "first")
    found = inspect_adapter(first, facts, scan=False)
    whole = inspect_adapter(first, facts)
    assert copied(make_adapter(tmp_path / "same"), found) == (whole, content_digest(first))
    others = make_adapter(tmp_path / "others", seed=1)
    assert copied(others, found) == (inspect_adapter(others, facts), content_digest(others))
    assert copied(make_adapter(tmp_path / "alpha", config={"lora_alpha": 8}), found) is None
    assert copied(make_adapter(tmp_path / "rank", rank=3, config={"r": 2}), found) is None
    zero = make_adapter(tmp_path / "zero", tensors=lora_tensors() | {B0: np.zeros_like(lora_tensors()[B0])})
    assert copied(zero, found) == (inspect_adapter(zero, facts), content_digest(zero))
    assert inspect_adapter(zero, facts).zero == {B0}
    assert not whole.zero
    broken = lora_tensors() | {B0: np.full_like(lora_tensors()[B0], np.nan)}
    with pytest.raises(InvalidArtifactError, match="NaN"):
        copied(make_adapter(tmp_path / "nan", tensors=broken), found)
    renamed = {name.replace("layers.0", "layers.1"): tensor for name, tensor in lora_tensors().items()}
    assert copied(make_adapter(tmp_path / "renamed", tensors=renamed), found) is None


def test_an_adapter_that_changes_while_it_is_registered_is_refused(
    registry: Any, base: Any, make_adapter: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "lora")
    add_folder = type(registry.store).add_folder

    def written_meanwhile(store: Any, source: Path, **options: Any) -> Any:
        (source / "adapter_config.json").write_text(
            (source / "adapter_config.json").read_text().replace('"lora_alpha": 4', '"lora_alpha": 5')
        )
        return add_folder(store, source, **options)

    monkeypatch.setattr(type(registry.store), "add_folder", written_meanwhile)
    before = registry.store.digests()
    with pytest.raises(InvalidArtifactError, match="changed while"):
        registry.adapters.add(folder, base=base, role="spirit")
    assert registry.adapters.list() == []
    assert registry.store.digests() == before
