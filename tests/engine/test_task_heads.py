"""Adapters of classifiers and their kin: the head that they bring is the result's, which answers as PEFT does.

The base is a language model; PEFT made the adapter of the class for its task, and saved that class's head whole.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reccocktail.engine.adapting.mixture import Mixture
from reccocktail.engine.errors import EvaluationError, MergeError
from reccocktail.engine.merging.plan import Mix, Part
from reccocktail.engine.merging.result import Result
from reccocktail.engine.merging.standalone import WeightedFolder, merge_folders
from reccocktail.engine.merging.stream import merge_all
from reccocktail.engine.models import load_model
from reccocktail.registry import inspect_adapter, inspect_base
from reccocktail.registry.errors import InvalidArtifactError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

LABELS = 3
CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
}


def _architectures() -> Any:
    name = "reccocktail_tests_architectures"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("architectures.py"))
        assert spec
        assert spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_module = _architectures()
ARCHITECTURES, TOLERANCE, EFFECT = _module.ARCHITECTURES, _module.TOLERANCE, _module.EFFECT


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _module.Catalogue(tmp_path_factory.mktemp("architectures"))


def of_task(task: str, base: Path, labels: int = LABELS) -> Any:
    torch.manual_seed(7)  # for the new head
    wanted = {"num_labels": labels} if task in ("SEQ_CLS", "TOKEN_CLS") else {}
    return CLASSES[task].from_pretrained(base, dtype=torch.float32, **wanted)


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., Path]:
    """(architecture, base, which, task, labels, vocabulary, options of LoraConfig): an adapter as PEFT saves it."""

    def make(
        name: str,
        base: Path,
        which: int = 0,
        *,
        task: str = "SEQ_CLS",
        labels: int = LABELS,
        rows: int = 0,
        **options: Any,
    ) -> Path:
        architecture, model = ARCHITECTURES[name], of_task(task, base, labels)
        if rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
            _module._disturb(model.get_input_embeddings().weight)
        torch.manual_seed(1 + which)
        options = {"target_modules": list(architecture.linear), "r": 4} | options
        config = LoraConfig(
            task_type=task, lora_alpha=8, init_lora_weights=False, fan_in_fan_out=architecture.conv1d, **options
        )
        peft = get_peft_model(model, config)
        for parameter_name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                _module._train(parameter_name, parameter, architecture.strength)
        folder = tmp_path / f"adapter-{len(list(tmp_path.iterdir()))}"
        peft.save_pretrained(str(folder))
        return folder

    return make


def by_peft(task: str, base: Path, adapter: Path, *, rows: int = 0, labels: int = LABELS) -> Any:
    """The model that PEFT loads, unmerged."""
    model = of_task(task, base, labels)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, adapter).eval()


@torch.inference_mode()
def answers(model: Any, rows: int = _module.VOCABULARY) -> Tensor:
    """Two texts, the second padded; one where the model knows no padding."""
    ids = torch.arange(3, rows - rows % 2 + 1)[: rows - rows % 2 - 4].reshape(2, -1)
    if model.config.pad_token_id is None:
        ids = ids[-1:]
    else:
        ids[0, -3:] = model.config.pad_token_id
    ids[:, 5] = model.config.eos_token_id or 2
    out = model.eval()(input_ids=ids, attention_mask=(ids != 0).long())
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits])
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _configure(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CELLS = [
    *(("SEQ_CLS", name) for name in ("Llama", "Qwen2", "Qwen3", "Gemma 3", "GPT-2", "Mixtral", "Falcon")),
    *(("TOKEN_CLS", name) for name in ("Qwen3", "GPT-NeoX", "BERT")),
    *(("QUESTION_ANS", name) for name in ("Mistral", "T5")),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("task", "name"), CELLS)
def test_a_language_model_becomes_the_class_that_was_trained(
    task: str, name: str, tied: bool, catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base(name, tied=tied)
    adapter = trained(name, base, task=task)
    merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    ours = _module.load(CLASSES[task], tmp_path / "o")
    wanted = by_peft(task, base, adapter)
    assert ours.config.architectures == [type(wanted.base_model.model).__name__]
    assert ours.config.num_labels == wanted.config.num_labels
    assert ours.config.id2label == wanted.config.id2label
    assert ours.config.pad_token_id == wanted.config.pad_token_id
    assert _module.apart(answers(ours), answers(wanted)) <= TOLERANCE
    assert _module.apart(answers(of_task(task, base)), answers(wanted)) >= EFFECT
    assert _module.apart(answers(ours), answers(wanted.merge_and_unload())) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": "all-linear"},
        {"trainable_token_indices": {"embed_tokens": [3, 17]}},
        {"modules_to_save": ["norm", "embed_tokens"]},
        {"bias": "all"},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [True, False])
def test_what_else_the_adapter_holds_is_merged_without_the_old_head(
    options: dict[str, Any], tied: bool, catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Qwen2", tied=tied)
    adapter = trained("Qwen2", base, **options)
    merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    ours = _module.load(CLASSES["SEQ_CLS"], tmp_path / "o")
    assert _module.apart(answers(ours), answers(by_peft("SEQ_CLS", base, adapter))) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [60, 67])
def test_a_classifiers_vocabulary_may_be_resized(
    rows: int, tied: bool, catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Llama", tied=tied)
    adapter = trained("Llama", base, rows=rows)
    merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    ours = _module.load(CLASSES["SEQ_CLS"], tmp_path / "o")
    assert ours.config.vocab_size == rows
    assert _module.apart(answers(ours, rows), answers(by_peft("SEQ_CLS", base, adapter, rows=rows), rows)) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", [(0.6, 0.7), (1.5, -0.5)])
@pytest.mark.parametrize("how", [{}, {"shard": "20KB"}, {"tied": True}], ids=str)
def test_two_heads_are_averaged_by_weight(
    weights: tuple[float, float], how: dict[str, Any], catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """The trunk is W + Σ w(W_k - W); of the head there is no W, as of new rows of a vocabulary."""
    base = catalogue.base("Llama", **how)
    adapters = [trained("Llama", base, which) for which in (0, 1)]
    merge_folders(base, [WeightedFolder(a, w) for a, w in zip(adapters, weights, strict=True)], tmp_path / "o")
    ours = _module.load(CLASSES["SEQ_CLS"], tmp_path / "o")
    old = {name: value.double() for name, value in of_task("SEQ_CLS", base).state_dict().items()}
    alone = [by_peft("SEQ_CLS", base, a).double().merge_and_unload().state_dict() for a in adapters]
    for name, value in ours.state_dict().items():
        pairs = list(zip(alone, weights, strict=True))
        if name == "score.weight":
            exact = sum(w * state[name] for state, w in pairs) / sum(weights)
        else:
            exact = old[name] + sum(w * (state[name] - old[name]) for state, w in pairs)
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_head_alone_is_kept_to_the_last_bit_in_the_bases_dtype(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Llama", dtype="bfloat16")
    adapter = trained("Llama", base)
    merge_folders(base, [WeightedFolder(adapter, 0.5)], tmp_path / "o")
    made, own = load_file(tmp_path / "o/model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    assert torch.equal(made["score.weight"], own["base_model.model.score.weight"].bfloat16())
    assert "lm_head.weight" not in made


@pytest.mark.filterwarnings("ignore")
def test_results_of_different_classes_are_made_in_one_pass(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """What one result leaves out does not shift the tensors of another."""
    base = catalogue.base("Llama", shard="20KB")
    facts = inspect_base(base)
    adapters = {"lm": catalogue.adapter("Llama", "saved head", 0, base), "classifier": trained("Llama", base)}
    mixes = []
    for name, folder in adapters.items():
        (tmp_path / name).mkdir()
        mixes.append(Mix([Part(folder, inspect_adapter(folder, facts), 1.0)], tmp_path / name))
        merge_folders(base, [WeightedFolder(folder, 1.0)], tmp_path / f"{name}-alone")
    read: list[int] = []
    merge_all(base, facts, mixes, progress=read.append)
    assert sum(read) == facts.bytes
    for name in adapters:
        for file in (tmp_path / f"{name}-alone").glob("*.safetensors"):
            assert file.read_bytes() == (tmp_path / name / file.name).read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_progress_ends_at_the_bases_bytes_though_its_head_is_not_read(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base, seen = catalogue.base("Llama"), list[tuple[int, int]]()
    merge_folders(
        base, [WeightedFolder(trained("Llama", base), 1.0)], tmp_path / "o", progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (inspect_base(base).bytes,) * 2


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_different_tasks_are_refused(catalogue: Any, trained: Callable[..., Path], tmp_path: Path) -> None:
    base = catalogue.base("Llama")
    for other in (catalogue.adapter("Llama", "plain", 0, base), trained("Llama", base, task="TOKEN_CLS")):
        parts = [WeightedFolder(trained("Llama", base), 0.5), WeightedFolder(other, 0.5)]
        with pytest.raises(MergeError, match=r"SEQ_CLS.*(?:CAUSAL_LM|TOKEN_CLS)"):
            merge_folders(base, parts, tmp_path / "o")
        assert not (tmp_path / "o").exists()


@pytest.mark.filterwarnings("ignore")
def test_heads_of_different_labels_are_refused(catalogue: Any, trained: Callable[..., Path], tmp_path: Path) -> None:
    base = catalogue.base("Llama")
    adapters = [trained("Llama", base, labels=labels) for labels in (3, 4)]
    with pytest.raises(MergeError, match=r"score\.weight.*\[3, 32\].*\[4, 32\]"):
        merge_folders(base, [WeightedFolder(adapter, 0.5) for adapter in adapters], tmp_path / "o")


@pytest.mark.filterwarnings("ignore")
def test_heads_whose_weights_sum_to_zero_are_refused(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Llama")
    adapters = [trained("Llama", base, which) for which in (0, 1)]
    with pytest.raises(MergeError, match=r"score\.weight.*sum to zero"):
        merge_folders(base, [WeightedFolder(a, w) for a, w in zip(adapters, (1, -1), strict=True)], tmp_path / "o")


@pytest.mark.filterwarnings("ignore")
def test_a_mix_with_an_adapter_of_no_task_keeps_the_one_head(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Llama")
    plain = shutil.copytree(catalogue.adapter("Llama", "plain", 0, base), tmp_path / "plain")
    _configure(plain, task_type=None)
    adapter = trained("Llama", base)
    merge_folders(base, [WeightedFolder(plain, 0.5), WeightedFolder(adapter, 0.5)], tmp_path / "o")
    made, own = load_file(tmp_path / "o/model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    assert torch.equal(made["score.weight"], own["base_model.model.score.weight"])


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_does_not_have_the_old_head_that_another_adapter_changes(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Llama")
    head = shutil.copytree(catalogue.adapter("Llama", "saved head", 0, base), tmp_path / "head")
    _configure(head, task_type=None)
    with pytest.raises(MergeError, match=r"lm_head\.weight.*SEQ_CLS"):
        merge_folders(base, [WeightedFolder(head, 0.5), WeightedFolder(trained("Llama", base), 0.5)], tmp_path / "o")


@pytest.mark.filterwarnings("ignore")
def test_a_class_that_needs_more_than_the_adapter_saved_is_refused(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """BERT's classifier has a pooler, which this masked language model lacks and PEFT does not save: it was random in training."""
    base = catalogue.base("BERT")
    with pytest.raises(MergeError, match=r"BertForSequenceClassification: bert\.pooler") as refused:
        merge_folders(base, [WeightedFolder(trained("BERT", base), 1.0)], tmp_path / "o")
    assert refused.value.hint


@pytest.mark.filterwarnings("ignore")
def test_a_trunk_that_transformers_does_not_load_into_the_class_is_refused(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """Llama's class for questions calls its trunk `transformer`: from_pretrained leaves it as random as it was built."""
    base = catalogue.base("Llama")
    adapter = trained("Llama", base, task="QUESTION_ANS")
    with pytest.raises(MergeError, match=r"LlamaForQuestionAnswering: transformer\."):
        merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")


@pytest.mark.filterwarnings("ignore")
def test_a_model_type_without_such_a_class_is_refused(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("OLMo 2")
    adapter = trained("OLMo 2", base)
    _configure(adapter, task_type="TOKEN_CLS")
    with pytest.raises(MergeError, match=r"TOKEN_CLS.*olmo2") as refused:
        merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    assert refused.value.hint


@pytest.mark.filterwarnings("ignore")
def test_a_head_of_no_stated_task_is_refused_with_what_to_write(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Llama")
    adapter = trained("Llama", base)
    _configure(adapter, task_type=None)
    with pytest.raises(InvalidArtifactError, match=r"score\.weight") as refused:
        merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    assert "task_type" in (refused.value.hint or "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to_save", [None, ["classifier", "score"]])
def test_a_task_without_its_head_is_incomplete(
    to_save: list[str] | None, catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Llama")
    adapter = trained("Llama", base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors["base_model.model.score.weight"]
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    _configure(adapter, modules_to_save=to_save)
    with pytest.raises(InvalidArtifactError, match="SEQ_CLS" if to_save is None else "modules_to_save"):
        inspect_adapter(adapter, inspect_base(base))
    assert inspect_adapter(adapter, inspect_base(base), allow_partial=True).missing


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_a_base_with_such_a_head_keeps_its_class(
    name: str, catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    of_task("SEQ_CLS", catalogue.base(name)).save_pretrained(tmp_path / "base")
    adapter = trained(name, tmp_path / "base")
    merge_folders(tmp_path / "base", [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    ours = _module.load(CLASSES["SEQ_CLS"], tmp_path / "o")
    assert config_of(tmp_path / "o") == config_of(tmp_path / "base")
    assert _module.apart(answers(ours), answers(by_peft("SEQ_CLS", tmp_path / "base", adapter))) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_a_feature_extractors_adapter_is_merged_into_the_whole_model(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base("Qwen2")
    adapter = trained("Qwen2", base, task="FEATURE_EXTRACTION")
    merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    ours = AutoModel.from_pretrained(tmp_path / "o", dtype=torch.float32)
    assert _module.apart(answers(ours), answers(by_peft("FEATURE_EXTRACTION", base, adapter))) <= TOLERANCE
    assert config_of(tmp_path / "o") == config_of(base)
    _module.load(AutoModelForCausalLM, tmp_path / "o")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "says"), [("GPT-2", True), ("Llama", False)])
def test_a_classifier_without_a_padding_token_is_noted(
    name: str, says: bool, catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    base = catalogue.base(name)
    report = merge_folders(base, [WeightedFolder(trained(name, base), 1.0)], tmp_path / "o")
    assert any("pad_token_id" in note for note in report.notes) is says


@pytest.mark.filterwarnings("ignore")
def test_only_the_files_that_the_base_has_are_planned(
    catalogue: Any, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """The new head goes where the old one was, so that no shard becomes empty."""
    base = catalogue.base("Llama", shard="5KB")
    facts, adapter = inspect_base(base), trained("Llama", base)
    with ExitStack() as opened:
        planned = Result(facts, Mix([Part(adapter, inspect_adapter(adapter, facts), 1.0)], tmp_path / "o"), opened)
    assert planned.shards.keys() == facts.files
    assert all(planned.shards.values())


@pytest.mark.filterwarnings("ignore")
def test_labels_are_not_ranked_as_words(catalogue: Any, trained: Callable[..., Path], tmp_path: Path) -> None:
    """transformers would load a classifier as a language model with a head that was never trained."""
    base = catalogue.base("Llama", tied=True)
    adapter = trained("Llama", base)
    merge_folders(base, [WeightedFolder(adapter, 1.0)], tmp_path / "o")
    with pytest.raises(EvaluationError, match="LlamaForSequenceClassification"):
        load_model(tmp_path / "o", "cpu")
    part = Part(adapter, inspect_adapter(adapter, inspect_base(base)), 1.0)
    with pytest.raises(MergeError, match=r"score\.weight.*SEQ_CLS") as refused:
        Mixture(AutoModelForCausalLM.from_pretrained(base), [part], "linear")
    assert refused.value.hint


def test_a_model_without_a_head_is_not_ranked_with_a_random_one(catalogue: Any, tmp_path: Path) -> None:
    AutoModel.from_pretrained(catalogue.base("Llama")).save_pretrained(tmp_path / "trunk")
    with pytest.raises(EvaluationError, match=r"lm_head\.weight"):
        load_model(tmp_path / "trunk", "cpu")
