"""Merged checkpoints answer as PEFT does: every adapter kind on every architecture, ties, shards and dtypes.

What is compared with what stands in `architectures.py`; `make test` takes a share of the
cells, `make soak` all; `benchmarks/equality.py` prints the whole matrix as a table.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from reccocktail.engine.comparing import compare_weights
from reccocktail.engine.errors import MergeError
from reccocktail.engine.merging.standalone import WeightedFolder, merge_folders
from reccocktail.registry import inspect_base
from reccocktail.registry.errors import InvalidArtifactError


def _architectures() -> ModuleType:
    """The module beside this one; with `--import-mode=importlib` it is on no search path."""
    path = Path(__file__).with_name("architectures.py")
    spec = importlib.util.spec_from_file_location("reccocktail_tests_architectures", path)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_module: Any = _architectures()
ARCHITECTURES, KINDS, WEIGHTS, TOLERANCE = _module.ARCHITECTURES, _module.KINDS, _module.WEIGHTS, _module.TOLERANCE
BOTH_TIES = [name for name, architecture in ARCHITECTURES.items() if architecture.both]
# what has to do with embedding and head, and one that has not
TIED_KINDS = ("plain", "saved head", "embedding", "head", "DoRA embedding", "tokens", "resized", "bias all")
# the kinds that go through different arithmetic, dealt out over the architectures
DEALT = ("plain", "rsLoRA", "DoRA", "saved norm", "tokens", "resized", "bias all", "embedding", "lora_bias", "mixed")
# the kinds whose deltas are low-rank products and nothing else
COMPARED = ("plain", "rsLoRA", "patterns", "mixed", "embedding", "layers", "exclude", "regex", "experts")
KEPT_TIE = {"plain": True, "head": False, "embedding": False, "tokens": True}
SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`
STEP = {"bfloat16": 8, "float16": 11}  # bits of the significand
SMALLEST = {"bfloat16": 2.0**-126, "float16": 2.0**-14}


def cells(kinds: Any, names: Any = ARCHITECTURES, *, other_tie: bool = False) -> list[Any]:
    return [
        pytest.param(name, kind, id=f"{name}-{kind}".replace(" ", "-"))
        for name in names
        for kind in kinds
        if ARCHITECTURES[name].why_not(kind, ARCHITECTURES[name].tied != other_tie) is None
    ]


def dealt(every: int, start: int = 0) -> list[Any]:
    """Some cells: each architecture is in them, and each of the kinds."""
    return [cell for number, cell in enumerate(cells(DEALT)) if number % every == start]


def few(found: list[Any], every: int) -> list[Any]:
    """One of so many cells, for what no architecture decides; in `make soak` all."""
    return found if SOAK else found[::every]


def share(found: list[Any], every: int) -> list[Any]:
    """One of so many cells, over all architectures and kinds alike, and each of both at least once; in `make soak` all."""
    if SOAK:
        return found
    names, kinds = list(ARCHITECTURES), list(KINDS)
    kept = [cell for cell in found if (names.index(cell.values[0]) + kinds.index(cell.values[1])) % every == 0]
    for cell in found:
        seen = {value for other in kept for value in other.values}
        kept += [cell] * (not seen.issuperset(cell.values))
    return kept


def in_halves(found: list[Any]) -> list[Any]:
    """The cells by turns in each of the half precisions; in `make soak` all of them in both."""
    return [
        pytest.param(*cell.values, dtype, id=f"{cell.id}-{dtype}")
        for number, cell in enumerate(found)
        for which, dtype in enumerate(STEP)
        if SOAK or number % 2 == which
    ]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _module.Catalogue(tmp_path_factory.mktemp("architectures"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind"), share(cells(KINDS), 8))
def test_one_adapter_and_two_answer_as_peft_does(name: str, kind: str, catalogue: Any, tmp_path: Path) -> None:
    cell = catalogue.measure(name, kind, tmp_path)
    assert cell.effect >= _module.EFFECT
    assert cell.one <= TOLERANCE
    assert cell.two <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind"), share(cells(TIED_KINDS, BOTH_TIES, other_tie=True), 8))
def test_a_head_tied_the_other_way_answers_as_peft_does(name: str, kind: str, catalogue: Any, tmp_path: Path) -> None:
    cell = catalogue.measure(name, kind, tmp_path, tied=not ARCHITECTURES[name].tied)
    assert cell.holds, cell


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind"), few(dealt(4), 5) + cells(("experts", "each expert")))
def test_shards_answer_as_peft_does(name: str, kind: str, catalogue: Any, tmp_path: Path) -> None:
    base = catalogue.base(name, shard="20KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    cell = catalogue.measure(name, kind, tmp_path, shard="20KB")
    assert cell.holds, cell


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind"), share(cells(COMPARED, [name for name in ARCHITECTURES if name != "BERT classifier"]), 6)
)  # adapters of a classifier hold its head whole
def test_two_adapters_are_as_far_apart_as_what_peft_makes_of_each(name: str, kind: str, catalogue: Any) -> None:
    base = catalogue.base(name)
    adapters = [catalogue.adapter(name, kind, which, base) for which in (0, 1)]
    old = {tensor: value.double() for tensor, value in catalogue.model(name, base).state_dict().items()}
    made = [catalogue.alone(name, kind, base, adapter)[0] for adapter in adapters]
    deltas = [torch.cat([(state[t].double() - value).flatten() for t, value in old.items()]) for state in made]
    found = compare_weights(*adapters, inspect_base(base)).total
    assert found.one == pytest.approx(float(deltas[0].norm()), rel=1e-6)
    assert found.other == pytest.approx(float(deltas[1].norm()), rel=1e-6)
    assert found.distance == pytest.approx(float((deltas[0] - deltas[1]).norm()), rel=1e-6)
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(*deltas, dim=0)), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind", "dtype"), in_halves(few(dealt(4, 1), 5) + cells(("experts",))))
def test_a_float32_merge_of_a_half_precision_base_answers_as_peft_does(
    name: str, kind: str, dtype: str, catalogue: Any, tmp_path: Path
) -> None:
    cell = catalogue.measure(name, kind, tmp_path, dtype=dtype)
    assert cell.holds, cell


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind", "dtype"), in_halves(share(dealt(4, 2), 6) + cells(("experts",))))
def test_a_half_precision_merge_is_the_exact_mix_rounded_once(
    name: str, kind: str, dtype: str, catalogue: Any, tmp_path: Path
) -> None:
    base = catalogue.base(name, dtype=dtype)
    adapters = [(catalogue.adapter(name, kind, which, base), WEIGHTS[which]) for which in (0, 1)]
    merge_folders(base, [WeightedFolder(folder, weight) for folder, weight in adapters], tmp_path / "merged")
    exact, _ = catalogue.mixed(name, kind, base, adapters)
    merged = _module.load(ARCHITECTURES[name].auto, tmp_path / "merged").state_dict()
    before = catalogue.model(name, base).state_dict()
    assert merged.keys() == exact.keys()
    changed = equal = 0
    for tensor, value in exact.items():
        rounded = value.to(getattr(torch, dtype)).double()
        got = merged[tensor].double()
        if value.shape == before[tensor].shape and torch.equal(value, before[tensor].double()):
            assert torch.equal(got, value), tensor  # what no adapter touches is the base's
            continue
        step = torch.exp2(torch.floor(torch.log2(value.abs().clamp(min=SMALLEST[dtype]))) + 1 - STEP[dtype])
        # sums are formed in float32; where terms cancel, its rounding is more than a step of what remains
        assert ((got - rounded).abs() <= step * 1.001 + 1e-6).all(), tensor
        changed += value.numel()
        equal += int((got == rounded).sum())
    assert changed
    assert equal / changed >= 0.999, f"{equal} of {changed} weights equal the mix rounded once"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind"),
    share(cells(_module.SUMMED_BY_PEFT, [name for name in ARCHITECTURES if name != "BERT classifier"]), 6),
)  # PEFT mixes no adapters that saved a module, as those of a classifier do
def test_a_mix_of_plain_adapters_answers_as_pefts_cat_does(
    name: str, kind: str, catalogue: Any, tmp_path: Path
) -> None:
    base = catalogue.base(name)
    adapters = [(catalogue.adapter(name, kind, which, base), WEIGHTS[which]) for which in (0, 1)]
    merge_folders(base, [WeightedFolder(folder, weight) for folder, weight in adapters], tmp_path / "merged")
    architecture = ARCHITECTURES[name]
    ours = _module.logits(architecture, _module.load(architecture.auto, tmp_path / "merged"), _module.VOCABULARY)
    assert _module.apart(ours, catalogue.peft_cat(name, base, adapters)) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["embedding", "head", "saved head"])
def test_what_would_untie_an_encoder_decoder_is_refused(kind: str, catalogue: Any, tmp_path: Path) -> None:
    base = catalogue.base("T5")
    with pytest.raises(MergeError, match="encoder-decoder"):
        merge_folders(base, [WeightedFolder(catalogue.adapter("T5", kind, 0, base), 1.0)], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "tied"), [*((kind, True) for kind in _module.UNTYING), ("resized", False)])
def test_what_would_part_the_biases_of_a_masked_model_is_refused(
    kind: str, tied: bool, catalogue: Any, tmp_path: Path
) -> None:
    base = catalogue.base("BERT", tied=tied)
    adapters = [WeightedFolder(catalogue.adapter("BERT", kind, which, base), 0.5) for which in (0, 1)]
    with pytest.raises((MergeError, InvalidArtifactError), match=r"cls\.predictions|head of BertForMaskedLM"):
        merge_folders(base, adapters, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind", "tied"),
    [
        (name, kind, tied)
        for row, name in enumerate(name for name in BOTH_TIES if ARCHITECTURES[name].why_not("head", True) is None)
        for column, (kind, tied) in enumerate(KEPT_TIE.items())
        if SOAK or (row + column) % 2 == 0
    ],
)
def test_the_config_says_whether_the_head_is_still_tied(
    name: str, kind: str, tied: bool, catalogue: Any, tmp_path: Path
) -> None:
    base = catalogue.base(name, tied=True)
    merge_folders(base, [WeightedFolder(catalogue.adapter(name, kind, 0, base), 1.0)], tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is tied


def test_a_resized_vocabulary_is_the_configs_too(catalogue: Any, tmp_path: Path) -> None:
    base = catalogue.base("Llama")
    merge_folders(base, [WeightedFolder(catalogue.adapter("Llama", "resized", 0, base), 1.0)], tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["vocab_size"] == _module.VOCABULARY + _module.ADDED
