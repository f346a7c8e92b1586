"""Tied heads where stored names are not the modules': one head in the result, the right one, as PEFT's unmerged model has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from reccocktail.engine.errors import MergeError
from reccocktail.engine.merging import result as results
from reccocktail.engine.merging.loadable import expect_loadable
from reccocktail.engine.merging.standalone import WeightedFolder, merge_folders
from reccocktail.registry import inspect_base
from safetensors import safe_open
from safetensors.torch import load_file, save_file

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "max_position_embeddings": 64, "head_dim": 8, "initializer_range": 0.2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
SIZE, GROWN = 64, 67


def _text(kind: str) -> dict[str, Any]:
    return TEXT | {"model_type": kind}


MODELS: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=5, boi_token_index=6,
        eoi_token_index=7,
    ),
    "paligemma": lambda: transformers.PaliGemmaConfig(
        text_config=_text("gemma"), vision_config=VISION | {"model_type": "siglip_vision_model"}, image_token_index=5,
        projection_dim=32, hidden_size=32,
    ),
    "mistral3": lambda: transformers.Mistral3Config(
        text_config=_text("mistral"), vision_config=VISION | {"model_type": "pixtral", "head_dim": 16},
        image_token_index=5, tie_word_embeddings=True,
    ),
    "internvl": lambda: transformers.InternVLConfig(text_config=_text("qwen2"), vision_config=VISION, image_token_id=5),
    "llava": lambda: transformers.LlavaConfig(
        text_config=_text("llama"), vision_config=VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        image_token_index=5, tie_word_embeddings=True,
    ),
}  # fmt: skip
BOTH = {"modules_to_save": ["embed_tokens", "lm_head"]}
KINDS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "saved": (None, BOTH),
    "saved, grown": (GROWN, BOTH),
    "saved head": (None, {"modules_to_save": ["lm_head"]}),
    "tokens": (None, {"trainable_token_indices": [3, 9]}),
}
TARGETS = r".*language_model.*q_proj"
OWN = {"embedding": r".*language_model.*(q_proj|embed_tokens)", "head": r".*(language_model.*q_proj|lm_head)"}


def _base(folder: Path, name: str, *, tied: bool | None = None, current: bool = False) -> Path:
    """A random model, stored with the names that save_pretrained writes, or with those of its modules."""
    config = MODELS[name]()
    if tied is not None:
        config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).to(torch.float32)
    model.save_pretrained(folder)
    if current:
        held = {key: value.contiguous() for key, value in model.state_dict().items()}
        kept = {key: value for key, value in held.items() if tied is False or key != "lm_head.weight"}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def _adapter(base: Path, folder: Path, options: Mapping[str, Any], grown: int | None = None) -> torch.Tensor:
    """Writes an adapter of the base; its logits, unmerged."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    if grown:
        model.resize_token_embeddings(grown, mean_resizing=False)
    peft = get_peft_model(model, LoraConfig(**({"r": 3, "lora_alpha": 6, "target_modules": TARGETS} | dict(options))))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    peft.save_pretrained(folder)
    return _logits(peft)


@torch.inference_mode()
def _logits(model: Any) -> torch.Tensor:
    ids = torch.arange(8, 40).reshape(2, -1)
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def _merged(base: Path, adapter: Path, out: Path) -> torch.Tensor:
    merge_folders(base, [WeightedFolder(adapter, 1.0)], out)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return _logits(model)


def _heads(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return [name for name in file.keys() if "lm_head" in name]  # noqa: SIM118  no mapping


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_model_gets_the_one_head_that_peft_has(name: str, kind: str, tmp_path: Path) -> None:
    base, (grown, options) = _base(tmp_path / "base", name), KINDS[kind]
    wanted = _adapter(base, tmp_path / "adapter", options, grown)
    made = _merged(base, tmp_path / "adapter", tmp_path / "out")
    assert _heads(tmp_path / "out") == ([] if kind == "tokens" else ["language_model.lm_head.weight"])
    assert float((made - wanted).abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", OWN)
def test_a_lora_of_one_of_the_two_parts_them(where: str, tmp_path: Path) -> None:
    base = _base(tmp_path / "base", "gemma3")
    wanted = _adapter(base, tmp_path / "adapter", {"target_modules": OWN[where]})
    made = _merged(base, tmp_path / "adapter", tmp_path / "out")
    assert _heads(tmp_path / "out") == ["language_model.lm_head.weight"]
    assert float((made - wanted).abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("tied", "current"), [(True, True), (False, True), (False, False)])
def test_the_head_has_the_name_of_the_layout_that_it_is_in(tied: bool, current: bool, tmp_path: Path) -> None:
    base = _base(tmp_path / "base", "gemma3", tied=tied, current=current)
    wanted = _adapter(base, tmp_path / "adapter", BOTH, GROWN)
    made = _merged(base, tmp_path / "adapter", tmp_path / "out")
    assert _heads(tmp_path / "out") == ["lm_head.weight" if current else "language_model.lm_head.weight"]
    assert float((made - wanted).abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_a_vocabulary_that_the_config_leaves_to_its_default_grows_in_the_text_model(tmp_path: Path) -> None:
    content = {"architectures": ["X"], "text_config": {"hidden_size": 8}}
    from reccocktail.engine.merging.checkpoint import changed_config

    assert changed_config(content, {"vocab_size": 9})["text_config"] == {"hidden_size": 8, "vocab_size": 9}
    assert "vocab_size" not in content["text_config"]


@pytest.mark.filterwarnings("ignore")
def test_the_embedding_of_a_state_space_model_is_found_and_parted_from_its_head(tmp_path: Path) -> None:
    config = transformers.MambaConfig(
        vocab_size=SIZE, hidden_size=16, num_hidden_layers=1, state_size=4, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=40, target_modules=["embeddings", "in_proj"]))
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))
    peft.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(8, 40).reshape(2, -1)
    with torch.inference_mode():
        wanted = peft.eval()(input_ids=ids).logits
        merge_folders(tmp_path / "base", [WeightedFolder(tmp_path / "adapter", 1.0)], tmp_path / "out")
        made = transformers.MambaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()(ids).logits
    assert _heads(tmp_path / "out") == ["lm_head.weight"]
    assert float((made - wanted).abs().max()) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("added", "config", "named"),
    [
        ({"language_model.lm_head.weight": (SIZE, 32), "lm_head.weight": (SIZE, 32)}, {}, "lm_head.weight"),
        ({"language_model.lm_head.weight": (SIZE, 32)}, {"tie_word_embeddings": True}, "lm_head.weight"),
        ({"stray.weight": (3, 3)}, {"tie_word_embeddings": True}, "stray.weight"),
        ({"language_model.model.embed_tokens.weight": (GROWN, 32)}, {}, "lm_head.weight"),
        ({}, {}, "lm_head.weight"),
    ],
    ids=["two heads", "a head that is tied", "a tensor of no module", "a head that did not grow", "no head"],
)
def test_what_transformers_would_not_load_is_refused_by_name(
    added: dict[str, tuple[int, ...]], config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    base = _base(tmp_path / "base", "gemma3")
    facts = inspect_base(base)
    shapes = {name: tensor.info.shape for name, tensor in facts.tensors.items()} | added
    changes = {"tie_word_embeddings": False} | config | ({"vocab_size": GROWN} if "embed" in str(added) else {})
    with pytest.raises(MergeError, match=named):
        expect_loadable(base, facts, shapes, changes)


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_with_the_base_itself_is_not_held_against_the_result(tmp_path: Path) -> None:
    base = _base(tmp_path / "base", "gemma3")
    weights = load_file(base / "model.safetensors")
    weights["stray.weight"] = torch.zeros(2)
    weights.pop("language_model.model.norm.weight")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    facts = inspect_base(base)
    shapes = {name: tensor.info.shape for name, tensor in facts.tensors.items()}
    shapes["language_model.lm_head.weight"] = (SIZE, 32)
    assert expect_loadable(base, facts, shapes, {"tie_word_embeddings": False}) is None


def test_a_model_that_transformers_does_not_know_is_said_to_be_unchecked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OursForCausalLM"], "model_type": "ours"}))
    facts = replace(inspect_base(_base(tmp_path / "base", "gemma3")), architecture="OursForCausalLM")
    note = expect_loadable(tmp_path, facts, {}, {"vocab_size": 3})
    assert note is not None
    assert "OursForCausalLM" in note


@pytest.mark.filterwarnings("ignore")
def test_a_merge_that_would_not_load_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = _base(tmp_path / "base", "gemma3")
    _adapter(base, tmp_path / "adapter", BOTH)
    uses = results.uses_by_tensor

    def elsewhere(parts: Any) -> Any:  # a head under a second name
        found = uses(parts)
        found["lm_head.weight"] = list(found["language_model.lm_head.weight"])
        return found

    monkeypatch.setattr(results, "uses_by_tensor", elsewhere)
    with pytest.raises(MergeError, match="lm_head"):
        merge_folders(base, [WeightedFolder(tmp_path / "adapter", 1.0)], tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
