"""Adapters that change the size of the vocabulary, and those trained with tied weights: PEFT's unmerged model is the oracle."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reccocktail.engine.merging.standalone import MergeOptions, WeightedFolder, merge_folders
from reccocktail.engine.recipes import Output
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

ROWS, FEWER = 40, 33
TOKENS = torch.arange(3, 23).reshape(2, 10)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    made: dict[bool, Path] = {}

    def make(tied: bool) -> Path:
        if tied not in made:
            torch.manual_seed(0)
            config = Qwen2Config(
                vocab_size=ROWS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.2,
            )  # fmt: skip
            made[tied] = tmp_path_factory.mktemp("base")
            AutoModelForCausalLM.from_config(config).save_pretrained(made[tied])
        return made[tied]

    return make


def trained(base: Path, folder: Path, rows: int | None = None, **options: Any) -> Tensor:
    """The adapter in `folder`, and the logits of the model that was trained."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rows:
            model.resize_token_embeddings(rows)
        settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
        peft = get_peft_model(model, LoraConfig(**settings | options))
        generator = torch.Generator().manual_seed(1)
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        peft.save_pretrained(str(folder))
    with torch.no_grad():
        return peft.eval()(input_ids=TOKENS).logits


def logits(folder: Path) -> Tensor:
    model, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


FEWER_TOKENS: dict[str, dict[str, Any]] = {
    "q_proj alone": {},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "head adapted": {"target_modules": ["q_proj", "lm_head"]},
    "embedding adapted": {"target_modules": ["q_proj", "embed_tokens"]},
    "head decomposed": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "tokens": {"trainable_token_indices": [5, 7]},
}


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("options", FEWER_TOKENS.values(), ids=FEWER_TOKENS)
def test_a_smaller_vocabulary_is_followed(
    tied: Callable[[bool], Path], tmp_path: Path, options: dict[str, Any], is_tied: bool
) -> None:
    base = tied(is_tied)
    wanted = trained(base, tmp_path / "a", FEWER, **options)
    report = merge_folders(base, [WeightedFolder(tmp_path / "a", 1.0)], tmp_path / "o")
    got = logits(tmp_path / "o")
    assert got.shape[-1] == json.loads((tmp_path / "o/config.json").read_text())["vocab_size"] == FEWER
    assert float((got - wanted).abs().max()) < 1e-4
    assert any(f"from {ROWS} to {FEWER}" in note for note in report.notes)


@pytest.mark.parametrize(("method", "settings"), [("linear", {}), ("ties_peft", {"density": 0.5})])
def test_a_smaller_vocabulary_is_followed_in_a_mix_and_in_another_dtype(
    tied: Callable[[bool], Path], tmp_path: Path, method: str, settings: dict[str, float]
) -> None:
    """The other adapter knows nothing of it; the embedding, which none of them saved, is cut while it is rounded."""
    base = tied(False)
    trained(base, tmp_path / "a", FEWER, target_modules=["q_proj", "lm_head"])
    trained(base, tmp_path / "b")
    folders = [WeightedFolder(tmp_path / name, 0.5) for name in ("a", "b")]
    merge_folders(
        base, folders, tmp_path / "o", MergeOptions(method=method, options=settings, output=Output(dtype="bfloat16"))
    )
    with safe_open(tmp_path / "o/model.safetensors", "pt") as made, safe_open(base / "model.safetensors", "pt") as old:
        embedding = made.get_tensor("model.embed_tokens.weight")
        assert torch.equal(embedding, old.get_tensor("model.embed_tokens.weight")[:FEWER].bfloat16())
    assert logits(tmp_path / "o").shape[-1] == FEWER


def test_a_mix_that_cuts_away_a_trained_token_is_refused(tied: Callable[[bool], Path], tmp_path: Path) -> None:
    from reccocktail.engine.errors import MergeError

    base = tied(True)
    trained(base, tmp_path / "a", FEWER)
    trained(base, tmp_path / "b", trainable_token_indices=[FEWER + 1])
    with pytest.raises(MergeError, match=f"token {FEWER + 1}"):
        merge_folders(base, [WeightedFolder(tmp_path / name, 0.5) for name in ("a", "b")], tmp_path / "o")


TIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embedding adapted": {"target_modules": ["q_proj", "embed_tokens"]},
    "by expression": {"target_modules": ".*(q_proj|embed_tokens)"},
    "tokens": {"trainable_token_indices": [5, 7]},
}


@pytest.mark.parametrize("options", TIES.values(), ids=TIES)
def test_a_tie_that_was_trained_as_one_is_kept(
    tied: Callable[[bool], Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    wanted = trained(tied(True), tmp_path / "a", ensure_weight_tying=True, **options)
    merge_folders(tied(True), [WeightedFolder(tmp_path / "a", 1.0)], tmp_path / "o")
    assert float((logits(tmp_path / "o") - wanted).abs().max()) < 1e-4
    assert json.loads((tmp_path / "o/config.json").read_text())["tie_word_embeddings"] is True


def test_factors_of_a_tied_head_count_also_without_the_key(tied: Callable[[bool], Path], tmp_path: Path) -> None:
    """PEFT names the embedding alone. Without the key the two are merged as two tensors, to the same logits."""
    options: dict[str, Any] = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    wanted = trained(tied(True), tmp_path / "a", **options)
    file = tmp_path / "a/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ensure_weight_tying": False}))
    merge_folders(tied(True), [WeightedFolder(tmp_path / "a", 1.0)], tmp_path / "o")
    assert float((logits(tmp_path / "o") - wanted).abs().max()) < 1e-4


def test_a_kept_tie_is_given_up_where_another_adapter_gives_it_up(tied: Callable[[bool], Path], tmp_path: Path) -> None:
    """Half of each: the head moves with both, the embedding with the tied one alone."""
    base = tied(True)
    trained(base, tmp_path / "a", ensure_weight_tying=True, modules_to_save=["embed_tokens"])
    trained(base, tmp_path / "b", modules_to_save=["lm_head"])
    merge_folders(base, [WeightedFolder(tmp_path / name, 0.5) for name in ("a", "b")], tmp_path / "o")
    prefix = "base_model.model."
    with (
        safe_open(base / "model.safetensors", "pt") as old,
        safe_open(tmp_path / "a/adapter_model.safetensors", "pt") as a,
        safe_open(tmp_path / "b/adapter_model.safetensors", "pt") as b,
        safe_open(tmp_path / "o/model.safetensors", "pt") as made,
    ):
        w = old.get_tensor("model.embed_tokens.weight")
        one, two = a.get_tensor(f"{prefix}model.embed_tokens.weight"), b.get_tensor(f"{prefix}lm_head.weight")
        torch.testing.assert_close(made.get_tensor("model.embed_tokens.weight"), w + 0.5 * (one - w))
        torch.testing.assert_close(made.get_tensor("lm_head.weight"), w + 0.5 * (one - w) + 0.5 * (two - w))


@pytest.mark.parametrize(("padding", "left"), [(ROWS - 1, None), (FEWER, None), (FEWER - 1, FEWER - 1)])
def test_padding_beyond_a_smaller_vocabulary_is_left_out_and_said(
    padding: int, left: int | None, tied: Callable[[bool], Path], tmp_path: Path
) -> None:
    """transformers builds no embedding whose padding is beyond its rows."""
    base = shutil.copytree(tied(False), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": padding, "eos_token_id": [2, ROWS - 2]}))
    wanted = trained(base, tmp_path / "a", FEWER, modules_to_save=["embed_tokens", "lm_head"])
    report = merge_folders(base, [WeightedFolder(tmp_path / "a", 1.0)], tmp_path / "o")
    assert float((logits(tmp_path / "o") - wanted).abs().max()) < 1e-4
    made = json.loads((tmp_path / "o/config.json").read_text())
    assert made.get("pad_token_id") == left
    assert made["eos_token_id"] == [2, ROWS - 2]
    assert any(f"pad_token_id {padding}" in note for note in report.notes) is (left is None)
    assert any(f"eos_token_id {ROWS - 2}" in note for note in report.notes)
