"""Laser's training, for real: a planted toy in which the next item follows from the history, and a tiny model."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from reccocktail.engine.systems import find_system
from reccocktail.networks.bi_tuning import BiTuning, open_bi_tuning
from reccocktail.networks.laser import LaserNet, load_frozen
from reccocktail.registry import Registry
from reccocktail.registry.digests import file_digest
from reccocktail.registry.errors import InvalidArtifactError, UsageError, WrongKindError
from reccocktail.tasks import DomainData, History, TaskError, examples, generate, hit_rate, write_domain
from reccocktail.trainers import testing
from reccocktail.trainers.laser.learning import ranks, seeded
from reccocktail.trainers.laser.options import LaserOptions
from reccocktail.trainers.laser.trainer import LaserTrainer
from reccocktail.trainers.plugin import TrainerError, TrainingJob, TrainingResult
from safetensors.torch import load_file

pytestmark = pytest.mark.filterwarnings("ignore")

BUNDLE = ("index.safetensors", "item_side.safetensors", "user_side.safetensors", "bundle.json", "training_log.jsonl")
TOY: dict[str, Any] = {
    "prefix": "static", "rows": 8, "batch_size": 8, "stage1_epochs": 2, "stage2_epochs": 2, "examples": 48, "validation_examples": 24,
    "learning_rate": 0.02, "checkpoint_every": 4, "recommender": "epochs=3,width=8,length=8", "experts": 3, "hidden": 12, "layers": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.tiny_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="module")
def toy() -> DomainData:
    """48 users, each of whom takes items of one brand of six; every item is taken as often as any other."""
    rng = random.Random(0)
    items = list(generate("skin-care", users=0).items.values())
    brands = sorted({item.fields["brand"] for item in items})
    of_brand = {brand: [item for item in items if item.fields["brand"] == brand][:6] for brand in brands}
    histories = []
    for user in range(48):
        taken = rng.sample(of_brand[brands[user % len(brands)]], 6)
        histories.append(History(f"u{user:02d}", tuple(item.item_id for item in taken)))
    return DomainData.of("toy", [item for some in of_brand.values() for item in some], histories)


@dataclass(frozen=True)
class Bench:
    base: Path
    toy: DomainData

    def job(
        self, folder: Path, *, resume: bool = False, progress: Any = lambda *_: None, **options: Any
    ) -> TrainingJob:
        folder.mkdir(parents=True, exist_ok=True)
        return TrainingJob(
            role="ingredient",
            base_folder=self.base,
            base_name="tiny",
            domains=(self.toy,),
            folder=folder,
            options=LaserOptions.model_validate(TOY | options),
            resume=resume,
            device="cpu",
            progress=progress,
        )

    def model(self) -> tuple[Any, Any]:
        return load_frozen(self.base, "cpu", "float32")


@pytest.fixture(scope="module")
def bench(tiny_base: Path, toy: DomainData) -> Bench:
    return Bench(tiny_base, toy)


@dataclass(frozen=True)
class Trained:
    job: TrainingJob
    result: TrainingResult
    bundle: BiTuning


@pytest.fixture(scope="module")
def trained(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    job = bench.job(tmp_path_factory.mktemp("trained"), stage1_epochs=4)
    result = LaserTrainer().train(job)
    return Trained(job, result, open_bi_tuning(result.adapter))


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for line in (folder / "training_log.jsonl").read_text().splitlines() if "loss" in (entry := json.loads(line))]  # fmt: skip


def test_a_planted_dependence_is_learned_and_the_index_is_that_of_the_item_side(trained: Trained, bench: Bench):
    found, toy, bundle = losses(trained.result.adapter), bench.toy, trained.bundle
    assert sum(found[-6:]) / 6 < sum(found[:6]) / 6 - 1
    assert trained.result.metrics["train_loss"] == pytest.approx(sum(found[-4:]) / 4, abs=1e-4)
    catalogue = [toy.items[item_id] for item_id in bundle.index.item_ids]
    asked = examples(toy, "test")
    histories = [[toy.items[item_id] for item_id in example.history] for example in asked]
    targets = [bundle.index.item_ids.index(example.target) for example in asked]
    users = bundle.users(*bench.model()).encode(histories)
    recall = hit_rate(ranks(users, bundle.index.matrix, targets), 6)
    counts = Counter(item_id for taken in toy.by_user.values() for item_id in taken[:-1])
    popular = sorted(bundle.index.item_ids, key=lambda item_id: -counts[item_id])[:6]
    assert recall > 0.7
    assert sum(example.target in popular for example in asked) / len(asked) < 0.35
    by_items, by_users = (side.encode([[item] for item in catalogue]) for side in (bundle.items(*bench.model()), bundle.users(*bench.model())))  # fmt: skip
    assert torch.allclose(by_items, bundle.index.matrix, rtol=1e-5, atol=1e-6)
    assert (by_users - bundle.index.matrix).abs().max() > 1e-2
    context = trained.result.context
    assert context["items"] == {"embedded": 36, "untitled": 0}
    assert context["texts"]["histories"] == 72
    assert 1 <= context["kept_epochs"]["items"] <= 4


def test_the_item_side_is_what_began_the_kept_epoch_and_stages_can_be_left_out(bench: Bench, tmp_path: Path):
    model, _ = bench.model()
    with seeded(42):
        first = LaserNet.beside(model, LaserOptions.model_validate(TOY).config(32)).state_dict()
    results = {}
    for name, epochs in {"one": (1, 0), "second": (0, 1)}.items():
        job = bench.job(tmp_path / name, stage1_epochs=epochs[0], stage2_epochs=epochs[1])
        results[name] = LaserTrainer().train(job).adapter
        side = load_file(results[name] / "item_side.safetensors")
        assert all(torch.equal(side[key], first[key]) for key in first)
        other = load_file(results[name] / "user_side.safetensors")
        assert {key for key in first if not torch.equal(other[key], first[key])} == {"prefix", "suffix"}
    assert all((results["one"] / name).read_bytes() == (results["second"] / name).read_bytes() for name in BUNDLE[:3])


class Killed(BaseException):
    """As a kill: nothing below catches it."""


@pytest.fixture(scope="module")
def whole(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LaserTrainer().train(bench.job(tmp_path_factory.mktemp("whole"))).adapter


@pytest.mark.parametrize("step", [0, 9, 12, 17])
def test_a_training_that_was_stopped_anywhere_ends_in_the_same_bits(
    bench: Bench, whole: Path, tmp_path: Path, step: int
):
    def stop(done: int, total: int, figures: Any) -> None:
        assert total == 24
        if done >= step and (step or "items_embedded" in figures):
            raise Killed

    with pytest.raises(Killed):
        LaserTrainer().train(bench.job(tmp_path, progress=stop))
    (tmp_path / "checkpoints" / "step-009-000009").mkdir(parents=True)  # a save that was killed has no state
    done: list[int] = []
    adapter = LaserTrainer().train(bench.job(tmp_path, resume=True, progress=lambda at, *_: done.append(at))).adapter
    assert min(done) >= step - TOY["checkpoint_every"]
    assert all((adapter / name).read_bytes() == (whole / name).read_bytes() for name in BUNDLE)


@pytest.mark.slow
def test_kill_9_in_either_stage_loses_no_more_than_the_steps_since_the_checkpoint(bench: Bench, whole: Path, tmp_path: Path, warm: Any):  # fmt: skip
    write_domain(bench.toy, tmp_path / "data")
    told = {
        "trainer": "laser",
        "base": str(bench.base),
        "data": str(tmp_path / "data"),
        "folder": str(tmp_path / "run"),
        "options": TOY,
    }
    (tmp_path / "run").mkdir()
    for kill_at in (7, 19):
        (tmp_path / "job.json").write_text(json.dumps(told | {"kill_at": kill_at, "resume": kill_at > 7}))
        script = Path(__file__).with_name("killed_training.py")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        killed = warm.run([sys.executable, script, tmp_path / "job.json"], env=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    done: list[int] = []
    job = bench.job(tmp_path / "run", resume=True, progress=lambda at, *_: done.append(at))
    adapter = LaserTrainer().train(job).adapter
    assert min(done) >= 19 - TOY["checkpoint_every"]
    assert all((adapter / name).read_bytes() == (whole / name).read_bytes() for name in BUNDLE)


def test_m_former_learns_beside_a_recommender_of_training_positions(bench: Bench, tmp_path: Path):
    before = {path.name: file_digest(path) for path in bench.base.iterdir()}
    options = {"prefix": "m-former", "learning_rate": 0.003, "stage1_epochs": 2, "stage2_epochs": 1}
    result = LaserTrainer().train(bench.job(tmp_path / "one", **options))
    bundle = open_bi_tuning(result.adapter)
    found = losses(result.adapter)
    assert sum(found[-6:]) / 6 < sum(found[:6]) / 6
    assert bundle.recommender is not None
    training = {item_id for taken in bench.toy.by_user.values() for item_id in taken[:-2]}
    assert {item_id for item_id in bench.toy.items if bundle.recommender.knows(item_id)} == training
    assert bundle.manifest.m_former is not None
    assert bundle.manifest.m_former.experts == 3
    assert {path.name: file_digest(path) for path in bench.base.iterdir()} == before
    log = (result.adapter / "training_log.jsonl").read_text()
    assert '"balance"' in log

    def stop(done: int, total: int, figures: Any) -> None:
        if done >= 10:
            raise Killed

    with pytest.raises(Killed):
        LaserTrainer().train(bench.job(tmp_path / "two", progress=stop, **options))
    again = LaserTrainer().train(bench.job(tmp_path / "two", resume=True, **options)).adapter
    assert all((again / name).read_bytes() == (result.adapter / name).read_bytes() for name in BUNDLE)


def test_a_catalogue_of_one_and_untitled_items_and_long_histories(bench: Bench, tmp_path: Path):
    item = next(iter(bench.toy.items.values()))
    lone = DomainData.of("lone", [item], [History(f"u{n}", (item.item_id,) * 5) for n in range(4)])
    job = replace(bench.job(tmp_path / "lone", batch_size=2), domains=(lone,))
    result = LaserTrainer().train(job)
    assert set(losses(result.adapter)) == {0.0}
    assert result.metrics["validation_ndcg_10"] == 1
    template = tmp_path / "short.yaml"
    template.write_text('name: short\ninstruction: "x"\nfields: []\nhistory_limit: 2\nhistory_tokens: 40\n')
    bare = replace(item, item_id="bare", title="")
    data = DomainData.of("toy", [*bench.toy.items.values(), bare], bench.toy.sequences)
    job = replace(
        bench.job(tmp_path / "short", stage1_epochs=1, stage2_epochs=0, template=str(template)), domains=(data,)
    )
    result = LaserTrainer().train(job)
    assert result.context["items"] == {"embedded": 36, "untitled": 1}
    assert result.context["texts"]["cut"] > 0
    assert "bare" not in open_bi_tuning(result.adapter).index.item_ids


def test_what_cannot_be_trained_is_refused(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for wrong in (
        {"stage1_epochs": 0, "stage2_epochs": 0}, {"prefix": "none", "readout": "mean"}, {"hidden": 13}, {"no_such": 1},
        {"recommender": "epochs=0"}, {"recommender": "seed=3"}, {"recommender": "width=8,width=9"},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            LaserOptions.model_validate(TOY | wrong)
    job = bench.job(tmp_path / "x")
    refused: list[Callable[[], TrainingJob]] = [
        lambda: replace(job, role="spirit"),
        lambda: replace(job, domains=(bench.toy, bench.toy)),
        lambda: bench.job(tmp_path / "x", batch_size=60),
        lambda: replace(job, device="cuda"),
        lambda: bench.job(tmp_path / "x", learning_rate=math.inf),
        lambda: bench.job(tmp_path / "x", template="nowhere"),
    ]
    for make in refused:
        with pytest.raises((TrainerError, TaskError)):
            LaserTrainer().train(make())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainerError):
        LaserTrainer().train(job)


def test_the_trainer_keeps_the_contract(tmp_path: Path):
    options = {
        "prefix": "static",
        "rows": 2,
        "examples": 16,
        "batch_size": 4,
        "stage1_epochs": 1,
        "stage2_epochs": 1,
        "checkpoint_every": 2,
    }
    testing.check_trainer(LaserTrainer, tmp_path, options=options, deterministic=True)


def test_a_bi_tuning_is_registered_as_a_kind_of_its_own_and_refused_elsewhere(
    bench: Bench, registry: Registry, tmp_path: Path
):
    base = registry.bases.add("toy-base", bench.base, source="generated")
    registry.domains.add("toy")
    job = replace(bench.job(tmp_path, stage1_epochs=1, stage2_epochs=0), base_folder=registry.bases.folder(base))
    folder = LaserTrainer().train(job).adapter
    added = registry.adapters.add(folder, base=base, role="ingredient", domain="toy")
    assert (added.ref, added.kind, added.rank) == ("toy@v1", "bi-tuning", 0)
    told = added.context["bundle"]
    assert (told["prefix"], told["base"], told["recommender"]) == ("static", base.digest, None)
    assert open_bi_tuning(registry.adapters.folder(added), base_digest=base.digest).manifest.encoder == told["encoder"]
    assert registry.adapters.inspected(added).tensors == 7
    with pytest.raises(WrongKindError):
        registry.adapters.resolve("toy")
    assert find_system(registry, "toy@v1").bi_tuning == registry.adapters.folder(added)
    with pytest.raises(UsageError):
        registry.adapters.add(folder, base=base, role="spirit")
    (folder / "user_side.safetensors").write_bytes((folder / "item_side.safetensors").read_bytes()[:-1])
    with pytest.raises(InvalidArtifactError):
        registry.adapters.add(folder, base=base, role="ingredient", domain="toy")
