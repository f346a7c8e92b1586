"""The contract test lets good trainers pass, and tells of each bad one what the contract wants."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel, Field
from reccocktail.networks.bundle import BundleOrigin, Retrieval, write_bundle
from reccocktail.networks.click_fields import ClickVocabulary
from reccocktail.networks.din import Din, DinOptions, FrozenDin
from reccocktail.networks.gated_lora import GatedLora, GatedLoraConfig
from reccocktail.tasks import (
    ClickOptions,
    ClickRow,
    ClickUser,
    Item,
    RatedItem,
    generate,
    load_click_template,
    write_domain,
)
from reccocktail.trainers import testing
from reccocktail.trainers.plugin import PluginDomain, TrainerError, TrainingJob, TrainingResult
from reccocktail.trainers.runs import base_digest
from reccocktail.trainers.sft.trainer import SftTrainer
from reccocktail.trainers.testing import check_trainer
from transformers import AutoModelForCausalLM, set_seed


class GoodOptions(BaseModel, extra="forbid"):
    rank: int = Field(2, description="of the LoRA")


class Good:
    """Saves a LoRA with random weights: all that the contract asks for, but no training."""

    name: ClassVar[str] = "good"
    summary: ClassVar[str] = "random weights"
    Options: ClassVar[type[BaseModel]] = GoodOptions
    seed = 0

    def train(self, job: TrainingJob) -> TrainingResult:
        set_seed(self.seed)
        model = AutoModelForCausalLM.from_pretrained(job.base_folder)
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        for step in range(3):
            job.progress(step + 1, 3, {"loss": 1.0})
        tuned.save_pretrained(job.folder / "adapter", save_embedding_layers=False)
        return TrainingResult(job.folder / "adapter", {"train_loss": 1.0})

    def domains(self) -> list[PluginDomain]:
        return [PluginDomain("toys", "Toys", lambda folder: write_domain(generate("kitchen", users=5), folder))]


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """(trainer, …): the contract test, with a base model that is made once."""
    made = tmp_path_factory.getbasetemp() / "contract-base"
    if not made.exists():
        testing.tiny_base(made)
    monkeypatch.setattr(testing, "tiny_base", lambda folder: Path(shutil.copytree(made, folder)))
    return lambda trainer, **more: check_trainer(trainer, tmp_path, **more)


def test_a_good_trainer_passes_and_its_result_is_given(check: Callable[..., Any]) -> None:
    result = check(Good, options={"rank": 2}, deterministic=True)
    assert result.metrics == {"train_loss": 1.0}
    assert (result.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_shipped_trainer_passes(tmp_path: Path) -> None:
    options = {"examples": 8, "epochs": 1, "batch_size": 4, "rank": 2, "validation_examples": 2, "validate_every": 1}
    check_trainer(SftTrainer, tmp_path, options=options, deterministic=True)


class Silent(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        return super().train(_with(job, lambda *_: None))


class Talking(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        print("epoch 1")
        return super().train(job)


class TalkingBelow(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        subprocess.run(["echo", "from a child"], check=True)
        return super().train(job)


class Backwards(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        return super().train(_with(job, lambda done, total, figures: job.progress(total - done, total, figures)))


class Beyond(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        return super().train(_with(job, lambda done, total, figures: job.progress(done + 1, total, figures)))


class Wordy(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        return super().train(_with(job, lambda done, total, figures: job.progress(done, total, {"loss": "low"})))  # type: ignore


class Elsewhere(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        super().train(job)
        shutil.copytree(job.folder / "adapter", job.folder.parent / "elsewhere", dirs_exist_ok=True)
        return TrainingResult(job.folder.parent / "elsewhere", {})


class Endless(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        return TrainingResult(super().train(job).adapter, {"train_loss": float("inf")})


class Broken(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        result = super().train(job)
        os.truncate(result.adapter / "adapter_model.safetensors", 100)
        return result


class Stranger(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        result = super().train(job)
        config = result.adapter / "adapter_config.json"
        config.write_text(config.read_text().replace(str(job.base_folder), "another/model"))
        return result


class Meddling(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        (job.base_folder / "cache").touch()
        return super().train(job)


class Stubborn(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        def swallow(*words: Any) -> None:
            with contextlib.suppress(KeyboardInterrupt):
                job.progress(*words)

        return super().train(_with(job, swallow))


class Forgetful(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        if job.resume:
            raise TrainerError("cannot resume")
        return super().train(job)


class Fickle(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        Fickle.seed += 1
        return super().train(job)


class OneDomain(Good):
    def train(self, job: TrainingJob) -> TrainingResult:
        if len(job.domains) > 1:
            raise TrainerError("one domain only")
        return super().train(job)


class Undocumented(Good):
    class Options(BaseModel, extra="forbid"):  # type: ignore
        rank: int = 2


class Lenient(Good):
    class Options(BaseModel):  # type: ignore
        rank: int = Field(2, description="of the LoRA")


class Nameless(Good):
    name = ""  # type: ignore


class Long(Good):
    summary = "two\nlines"  # type: ignore


class BadName(Good):
    def domains(self) -> list[PluginDomain]:
        return [PluginDomain("Not A Name", "Toys", Path("/nowhere"))]


class NoData(Good):
    def domains(self) -> list[PluginDomain]:
        return [PluginDomain("toys", "Toys", lambda folder: None)]


class Random(Good):
    def domains(self) -> list[PluginDomain]:
        def write(folder: Path) -> None:
            write_domain(generate("kitchen", users=5, seed=int.from_bytes(os.urandom(2), "big")), folder)

        return [PluginDomain("toys", "Toys", write)]


class NoRecipe(Good):
    def domains(self) -> list[PluginDomain]:
        (toys,) = super().domains()
        return [PluginDomain(toys.name, toys.title, toys.data, recipe="/nowhere/recipe.yaml")]


class NoBundle(Good):
    kind = "personalised-lora"


class Peculiar(Good):
    kind = "magic"


class Bundled(Good):
    kind = "personalised-lora"

    def train(self, job: TrainingJob) -> TrainingResult:
        if job.role == "spirit":
            raise TrainerError("no spirit")
        assert "ratings" in job.domains[0].sequences[0].fields
        job.progress(1, 1, {})
        write_tiny_bundle(job.folder / "adapter", base_digest(job.base_folder))
        self.spoil(job.folder / "adapter")
        return TrainingResult(job.folder / "adapter", {})

    def spoil(self, bundle: Path) -> None: ...


class BrokenBundle(Bundled):
    def spoil(self, bundle: Path) -> None:
        os.truncate(bundle / "gated_lora.safetensors", 100)


class ForeignBundle(Bundled):
    def spoil(self, bundle: Path) -> None:
        text = (bundle / "bundle.json").read_text()
        (bundle / "bundle.json").write_text(re.sub(r'"base": "sha256:\w+"', f'"base": "sha256:{"0" * 64}"', text))


class SpiritBundle(Bundled):
    def train(self, job: TrainingJob) -> TrainingResult:
        return super().train(replace(job, role="ingredient"))


class FickleBundle(Bundled):
    def spoil(self, bundle: Path) -> None:
        shutil.rmtree(bundle)
        FickleBundle.seed += 1
        write_tiny_bundle(bundle, base_digest(bundle.parents[2] / "base"), seed=FickleBundle.seed)


def write_tiny_bundle(folder: Path, base: str, seed: int = 0) -> None:
    users = [ClickUser("u", {}, (RatedItem("i", 5.0),))]
    rows, items = [ClickRow.candidate(user, "i") for user in users], {"i": Item("i", "Film")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocabulary = ClickVocabulary.of(rows, items)
        din = FrozenDin(Din(vocabulary, DinOptions(embedding=4, hidden=8)), vocabulary, "sha256:rows")
        net = GatedLora(GatedLoraConfig(metas=2, rank=2, width=8), {"a.q_proj": (4, 4), "a.v_proj": (4, 4)})
    template = load_click_template("yes-no")
    write_bundle(folder, BundleOrigin(base, template, ClickOptions(), Retrieval(), 1), net, din)


def _with(job: TrainingJob, progress: Any) -> TrainingJob:
    return replace(job, progress=progress)


@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [
        (Silent, "wants progress.* called"),
        (Talking, r"wants stdout left alone; the trainer printed 'epoch 1"),
        (TalkingBelow, r"wants stdout left alone; the trainer printed 'from a child"),
        (Backwards, "wants progress that only grows"),
        (Beyond, "wants 0 <= done <= total"),
        (Wordy, "wants numbers for progress, not loss='low'"),
        (Elsewhere, "wants a result that can be registered: .*outside its run folder"),
        (Endless, "wants a result that can be registered: .*train_loss=inf"),
        (Broken, "wants a result that can be registered"),
        (Stranger, "wants a result that can be registered: .*another/model"),
        (Meddling, "wants base model and data left as they are"),
        (Stubborn, "wants an interruption to end the training"),
        (Forgetful, "wants an interrupted training to resume: .*cannot resume"),
        (Fickle, "a trainer that claims determinism gives equal weights"),
        (OneDomain, "refused the training 'spirit': one domain only"),
        (Undocumented, "wants a Field.* for every option; without one: rank"),
        (Lenient, "wants unknown options refused"),
        (Nameless, "wants a name"),
        (Long, "wants summary on one line"),
        (BadName, "wants domains that can be registered: .*Not A Name"),
        (NoData, "wants domains that can be registered"),
        (Random, "wants the same data for domain 'toys' whenever they are made"),
        (NoRecipe, "names the recipe file /nowhere/recipe.yaml, which is not there"),
        (NoBundle, "wants a result that can be registered: .*bundle.json"),
        (Peculiar, "kind is 'magic'"),
        (BrokenBundle, "wants a result that can be registered: .*gated_lora.safetensors"),
        (
            ForeignBundle,
            "wants a result that can be registered: .*beside the base",
        ),
        (SpiritBundle, "wants a spirit refused"),
        (FickleBundle, "a trainer that claims determinism gives equal weights"),
    ],
)
def test_a_bad_trainer_is_told_what_the_contract_wants(
    check: Callable[..., Any], trainer: type[Good], wanted: str
) -> None:
    with pytest.raises(AssertionError, match=wanted):
        check(trainer, options={"rank": 2}, deterministic=trainer in (Fickle, FickleBundle))


def test_a_good_trainer_of_bundles_passes(check: Callable[..., Any]) -> None:
    assert (check(Bundled, options={"rank": 2}, deterministic=True).adapter / "bundle.json").is_file()


def test_an_option_that_cannot_be_typed_is_told(check: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="options that can be typed"):
        check(Good, options={"rank": "many"})


def test_the_module_needs_no_pytest() -> None:
    code = "import sys, reccocktail.trainers.testing; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
