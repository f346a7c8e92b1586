"""RecLoRA's training, for real: a planted toy of two groups of users who answer oppositely for the same items, and a tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from reccocktail.networks.bundle import PersonalisedBundle, open_bundle
from reccocktail.networks.gated_lora import GatedLora, GatedLoraConfig
from reccocktail.networks.personalised_scores import score_clicks_personalised
from reccocktail.registry.digests import file_digest
from reccocktail.tasks import (
    AnswerTokenError,
    ClickData,
    ClickRow,
    DomainData,
    History,
    Item,
    NoNegativesError,
    NoRatingsError,
    OneClassError,
    TaskError,
    click_data,
    generate,
    write_domain,
)
from reccocktail.trainers import testing
from reccocktail.trainers.plugin import TrainerError, TrainingJob, TrainingResult
from reccocktail.trainers.reclora import item_embeddings, learning, stages
from reccocktail.trainers.reclora.item_embeddings import principal_components, titled
from reccocktail.trainers.reclora.options import RecloraOptions
from reccocktail.trainers.reclora.rows import Examples, Wording, draw
from reccocktail.trainers.reclora.trainer import RecloraTrainer
from reccocktail.trainers.testing import check_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

TEMPLATE = """\
name: toy
user: |-
  {profile} {history}
  Will the user like this? {target}
entry: "{title}"
separator: " "
history_limit: 2
"""
TOY: dict[str, Any] = {
    "split": "user", "min_history": 3, "history": 2, "metas": 2, "rank": 4, "samples": 96, "epochs": 6, "batch_size": 16,
    "micro_batch": 16, "learning_rate": 0.01, "validation_rows": 32, "validate_every": 6, "patience": 0,
    "recommender": "epochs=8,embedding=8,hidden=32,attention=16,length=20,learning_rate=0.01,batch_size=32",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.tiny_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("toy") / "toy.yaml"
    path.write_text(TEMPLATE)
    return str(path)


@pytest.fixture(scope="module")
def toy() -> DomainData:
    """24 users, each of whom likes every other of 24 items; every item is liked by half of them, and no prompt says by whom."""
    rng = random.Random(0)
    shop = list(generate("skin-care", users=0).items.values())[:24]
    items = [replace(item, fields={"genres": ["War" if place % 2 else "Love"]}) for place, item in enumerate(shop)]
    histories = []
    for user in range(24):
        taken = rng.sample(range(24), 20)
        ratings = [5.0 if number % 2 == user % 2 else 1.0 for number in taken]
        fields = {"ratings": ratings, "timestamps": list(range(20))}
        histories.append(History(f"u{user:02d}", tuple(items[number].item_id for number in taken), fields))
    return DomainData.of("toy", items, histories)


@dataclass(frozen=True)
class Bench:
    base: Path
    toy: DomainData
    template: str

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
            options=RecloraOptions.model_validate({"template": self.template} | TOY | options),
            resume=resume,
            device="cpu",
            progress=progress,
        )

    def clicks(self, **options: Any) -> ClickData:
        return click_data(self.toy, RecloraOptions.model_validate(TOY | options).clicks)


@pytest.fixture(scope="module")
def bench(base: Path, toy: DomainData, template: str) -> Bench:
    return Bench(base, toy, template)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32, so that two ways to the same end can be compared."""
    monkeypatch.setattr(stages, "precision", lambda device: (torch.float32, False))


@dataclass(frozen=True)
class Trained:
    job: TrainingJob
    result: TrainingResult
    bundle: PersonalisedBundle


@pytest.fixture(scope="module")
def trained(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "precision", lambda device: (torch.float32, False))
        job = bench.job(tmp_path_factory.mktemp("trained"))
        result = RecloraTrainer().train(job)
    return Trained(job, result, open_bundle(result.adapter))


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def words(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)


def test_users_who_answer_oppositely_are_told_apart_and_one_lora_cannot(trained: Trained, bench: Bench, tmp_path: Path):
    shutil.copytree(trained.job.folder / "recommender", tmp_path / "run" / "recommender")
    one = RecloraTrainer().train(bench.job(tmp_path / "run", resume=True, metas=1))
    assert trained.result.metrics["validation_log_loss"] < 0.45
    assert one.metrics["validation_log_loss"] > 0.6
    assert trained.result.metrics["train_loss"] < one.metrics["train_loss"]


def test_what_is_frozen_stays_as_it_was_and_training_and_evaluation_read_the_same(
    trained: Trained, bench: Bench, model: Any, words: Any
):
    """Oracle 5; the base's files are watched by `check_trainer`."""
    clicks, bundle = bench.clicks(), trained.bundle
    folder, adapter = trained.job.folder / "recommender", trained.result.adapter
    for name in ("din.json", "din.safetensors"):
        assert (folder / name).read_bytes() == (adapter / name).read_bytes()
    before = digests(model)
    drawn = draw(clicks, trained.job.options)
    wording = Wording(clicks.items, bundle.template, bundle.shown)
    examples = Examples.of(drawn.train, wording, words, bundle.recommender)
    places = [5, 2, 7]
    assert torch.equal(examples.c[places], bundle.recommender.user_vectors([drawn.train[place] for place in places]))
    net = GatedLora.beside(model, trained.job.options.gates)
    learner = learning.Learner(model, words, net, examples, None, learning.Plan.of(trained.job.options, 16))
    for _ in range(2):  # the gates learn from the second step on
        learner._gradients(learning.Course(), places)
        assert all(each.grad is None for each in model.parameters())
        for each in net.parameters():
            assert each.grad is not None
            each.data -= each.grad
    assert digests(model) == before
    scores = score_clicks_personalised(model, words, bundle, drawn.validation, clicks.items)
    judged = learning.Exam.of(drawn.validation, wording, bundle.recommender).labels
    labels = judged.labels.astype(float)
    loss = -np.mean(labels * np.log(scores) + (1 - labels) * np.log1p(-scores))
    assert loss == pytest.approx(trained.result.metrics["validation_log_loss"], abs=1e-5)


def digests(model: Any) -> dict[str, bytes]:
    return {name: hashlib.sha256(each.numpy().tobytes()).digest() for name, each in model.state_dict().items()}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_a_batch_of_users_is_scored_as_each_alone(trained: Trained, bench: Bench, words: Any, dtype: Any, most: float):
    """Oracle 1."""
    bundle = open_bundle(trained.result.adapter)
    bundle.net.to(dtype)
    model = AutoModelForCausalLM.from_pretrained(bench.base, dtype=dtype)
    clicks = bench.clicks()
    rows = [*clicks.test[:5], ClickRow(replace(clicks.test[5].user, user_id="nobody knows"), "?", 3)]
    rows[-1] = replace(rows[-1], item_id=rows[0].item_id)
    together = score_clicks_personalised(model, words, bundle, rows, clicks.items)
    alone = [score_clicks_personalised(model, words, bundle, [row], clicks.items)[0] for row in rows]
    assert together == pytest.approx(alone, rel=most)
    other = ClickRow(rows[1].user, rows[0].item_id, rows[0].position)
    assert rows[0].user_id != other.user_id
    assert np.ptp(together) > 0.5


@pytest.mark.parametrize("form", ["sum", "factor"])
def test_a_step_of_one_meta_lora_is_pefts(bench: Bench, model: Any, words: Any, form: Any):
    """Oracle 2: equal gradients."""
    examples = made_examples(bench, words, ["Yes.", "No. No."])
    net = GatedLora.beside(model, GatedLoraConfig(metas=1, rank=3, width=6, form=form))
    for b in net.b:
        b.data.normal_(std=0.1)
    tokens = sum(map(len, examples.answers))
    loss = learning.backward(model, net, examples, range(4), tokens)
    config = LoraConfig(r=3, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    peft: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32), config)
    layers = [peft.base_model.model.get_submodule(name) for name in net.modules_gated]
    for number, layer in enumerate(layers):
        layer.lora_A["default"].weight.data.copy_(net.a[number][0])
        layer.lora_B["default"].weight.data.copy_(net.b[number][0])
    theirs = peft(**padded(examples)).loss  # the mean over all answers' tokens
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    for number, layer in enumerate(layers):
        for own, other in ((net.a, layer.lora_A), (net.b, layer.lora_B)):
            found, wanted = own[number].grad[0], other["default"].weight.grad
            assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max()) + 1e-9
            assert wanted.abs().max() > 0


def made_examples(bench: Bench, words: Any, answers: list[str], count: int = 4) -> Examples:
    """The first rows, answered in turn by these; c is random."""
    clicks = bench.clicks()
    told = [words(answers[number % len(answers)])["input_ids"] for number in range(count)]
    prompts = [words(f"item number {'|| ' * number} {clicks.items[row.item_id].title}")["input_ids"]
               for number, row in enumerate(clicks.train[:count])]  # fmt: skip
    return Examples(prompts, told, torch.randn(count, 6, generator=torch.Generator().manual_seed(1)))


def padded(examples: Examples) -> dict[str, torch.Tensor]:
    """As a training script has them, padded on the right."""
    ids, mask, labels = [], [], []
    width = max(examples.lengths)
    for prompt, answer in zip(examples.prompts, examples.answers, strict=True):
        rest = width - len(prompt) - len(answer)
        ids.append(prompt + answer + [0] * rest)
        mask.append([1] * (width - rest) + [0] * rest)
        labels.append([-100] * len(prompt) + answer + [-100] * rest)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}


def test_gates_learn_once_b_does_and_uniform_factors_collapse(bench: Bench, model: Any, words: Any):
    """Oracle 4."""
    examples = made_examples(bench, words, ["Yes.", "No."])
    told = {}
    for form in ("sum", "factor"):
        torch.manual_seed(0)
        config = GatedLoraConfig(metas=3, rank=2, width=6, form=form, temperature=1e9, dropout=0)
        net = GatedLora.beside(model, config)
        learning.backward(model, net, examples, range(4), 8)
        assert not any(each.grad.any() for each in [*net.a, net.out_bias] if each.grad is not None)
        told[form] = max(
            float((b.grad - b.grad[:1]).abs().max() / b.grad.abs().max()) for b in net.b if b.grad is not None
        )
        for b in net.b:
            b.data.normal_(std=0.1)
        net.zero_grad()
        learning.backward(model, net, examples, range(4), 8)
        assert net.out_bias.grad is not None
        assert net.out_bias.grad.any()
    assert told["factor"] < 1e-6
    assert told["sum"] > 0.1


def test_only_without_target_are_all_targets_one_to_a_user(trained: Trained, bench: Bench, tmp_path: Path):
    """Oracle 6."""
    clicks = bench.clicks()
    user = clicks.test[0].user
    rows = [ClickRow.candidate(user, item) for item in sorted(clicks.items)[:2]]
    by_default = trained.bundle.coefficients(rows)
    assert trained.bundle.manifest.target_dependent
    assert not torch.equal(by_default[0], by_default[1])
    short = {"samples": 16, "epochs": 1, "retrieval": "recent", "target_dependent": False, "validation_rows": 0}
    free = open_bundle(RecloraTrainer().train(bench.job(tmp_path / "run", **short)).adapter)
    assert not free.manifest.target_dependent
    assert free.embeddings is None
    alpha = free.coefficients(rows)
    assert torch.equal(alpha[0], alpha[1])
    assert (alpha.sum(-1) - 1).abs().max() < 1e-6


def test_prompts_show_the_most_similar_of_the_past_in_the_order_of_time(
    trained: Trained, bench: Bench, model: Any, words: Any
):
    """Oracle 7, with embeddings by transformers' own hidden states."""
    clicks, bundle = bench.clicks(), trained.bundle
    assert bundle.embeddings is not None
    items = titled(clicks.items)
    states = []
    for item in items:
        asked = [{"role": "user", "content": f"{item.title} (genres: {item.fields['genres'][0]})"}]
        ids = words(words.apply_chat_template(asked, tokenize=False), return_tensors="pt", add_special_tokens=False)
        states.append(model(ids["input_ids"], output_hidden_states=True).hidden_states[-1][0].double().mean(dim=0))
    vectors = torch.stack(states).numpy()
    vectors = vectors - vectors.mean(axis=0)
    places = {item.item_id: place for place, item in enumerate(items)}
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = units @ units.T
    theirs = np.array([bundle.embeddings.cosines(item.item_id, list(places)) for item in items])
    assert bundle.embeddings.vectors.shape == (24, 23)
    assert np.abs(theirs - cosines).max() < 1e-4
    for row in clicks.test[:6]:
        shown = bundle.shown(row)
        past = {each.item_id for each in row.history}
        assert len(shown) == 2
        assert [row.history.index(each) for each in shown] == sorted(row.history.index(each) for each in shown)
        assert row.item_id not in past
        best = sorted(past, key=lambda item: -cosines[places[row.item_id], places[item]])[:2]
        assert {each.item_id for each in shown} == set(best)


def test_components_keep_cosines_and_are_at_most_one_fewer_than_items():
    vectors = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = principal_components(vectors)
    assert found.shape == (5, 4)
    centred = vectors - vectors.mean(dim=0)
    assert torch.allclose(found @ found.T, centred @ centred.T)
    assert (found.var(dim=0).diff() <= 1e-12).all()  # the largest first


class Interrupted(BaseException):
    """As a kill: nothing below catches it."""


SHORT: dict[str, Any] = {
    "samples": 40, "epochs": 2, "batch_size": 8, "micro_batch": 4, "validate_every": 2, "validation_rows": 8,
    "recommender": "epochs=1,embedding=4,hidden=8,attention=4,length=8,batch_size=16",
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "precision", lambda device: (torch.float32, False))
        return RecloraTrainer().train(bench.job(tmp_path_factory.mktemp("whole"), **SHORT))


@pytest.mark.parametrize("stage", ["recommender", "items", "first rows", "last rows"])
def test_a_training_that_was_killed_ends_where_an_undisturbed_one_does(
    bench: Bench, undisturbed: TrainingResult, tmp_path: Path, stage: str
):
    told: list[int] = []
    of: set[str] = set()
    first, total = 1 + 6, 1 + 6 + 80  # of the rows that the language model learns from; all
    at = {"recommender": 0, "items": 3, "first rows": first + 12, "last rows": first + 60}[stage]

    def kill(done: int, all_of_them: int, figures: Any) -> None:
        assert all_of_them == total
        told.append(done)
        of.update(figures)
        if done >= at:
            raise Interrupted

    with pytest.raises(Interrupted):
        RecloraTrainer().train(bench.job(tmp_path / "killed", progress=kill, **SHORT))
    assert of >= (
        {"recommender", "items_embedded", "loss"} if "rows" in stage else {"recommender"}
    )  # the bar names these
    half = tmp_path / "killed" / "checkpoints" / "step-000099"  # a save that was killed has no state
    half.mkdir(parents=True)
    (tmp_path / "killed" / "recommender.half").mkdir(exist_ok=True)
    again: list[int] = []
    job = bench.job(tmp_path / "killed", resume=True, progress=lambda done, *_: again.append(done), **SHORT)
    resumed = RecloraTrainer().train(job)
    lost = {"recommender": 0, "items": 1, "first rows": first, "last rows": first + 48}[stage]
    assert again[0] >= lost
    assert file_digest(resumed.adapter / "bundle.json") == file_digest(undisturbed.adapter / "bundle.json")
    assert (resumed.adapter / "training_log.jsonl").read_bytes() == (
        undisturbed.adapter / "training_log.jsonl"
    ).read_bytes()


def test_items_that_were_embedded_before_an_interruption_are_kept(
    bench: Bench, model: Any, words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_embeddings, "PART", 3)
    monkeypatch.setattr(item_embeddings, "BATCH_TOKENS", 40)
    titles = sorted({item.title for item in bench.toy.items.values()})
    items = [Item(f"i{place}", " ".join(titles[place % 4 :][: 1 + place % 5])) for place in range(20)]
    whole = item_embeddings.embed_items(model, words, items)

    def interrupt(done: int) -> None:
        if done > 12:
            raise Interrupted

    with pytest.raises(Interrupted):
        item_embeddings.embed_items(model, words, items, interrupt, tmp_path / "parts")
    newest = max((tmp_path / "parts").iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])  # one that is not whole is made again
    told: list[int] = []
    again = item_embeddings.embed_items(model, words, items, told.append, tmp_path / "parts")
    assert told[0] >= 5, "what was embedded before is reported at once"
    assert told[-1] == 20
    assert np.array_equal(again.vectors, whole.vectors)
    changed = [Item("i0", titles[-1]), *items[1:]]
    assert not np.array_equal(item_embeddings.embed_items(model, words, changed, parts=tmp_path / "parts").vectors, whole.vectors)  # fmt: skip


@pytest.mark.slow
def test_kill_9_in_any_stage_loses_nothing(bench: Bench, undisturbed: TrainingResult, tmp_path: Path, warm: Any):
    write_domain(bench.toy, tmp_path / "data")
    run, told = tmp_path / "run", tmp_path / "job.json"
    run.mkdir()
    about = {"trainer": "reclora", "base": str(bench.base), "data": str(tmp_path / "data"), "folder": str(run)}
    options = {"template": bench.template} | TOY | SHORT
    for resume, kill_at in enumerate([1, 3, 7 + 12, 7 + 60]):  # recommender, items' embeddings, first rows, last rows
        told.write_text(json.dumps(about | {"options": options, "kill_at": kill_at, "resume": bool(resume)}))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        killed = warm.run([sys.executable, Path(__file__).with_name("killed_training.py"), told], env=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert not (run / "adapter").exists()
    resumed = RecloraTrainer().train(bench.job(run, resume=True, **SHORT))
    assert file_digest(resumed.adapter / "bundle.json") == file_digest(undisturbed.adapter / "bundle.json")


def test_what_cannot_be_is_refused_before_anything_is_trained(bench: Bench, tmp_path: Path):
    def refused(error: type[Exception], toy: DomainData | None = None, **options: Any) -> str:
        job = bench.job(tmp_path, **options)
        with pytest.raises(error) as caught:
            RecloraTrainer().train(replace(job, domains=(toy or job.domains[0],)))
        assert list(tmp_path.glob("*/")) == []
        return str(caught.value)

    toy = bench.toy
    refused(NoRatingsError, DomainData.of("toy", toy.items.values(), [replace(h, fields={}) for h in toy.sequences]))
    kept = [history.fields | {"ratings": [5.0] * 20} for history in toy.sequences]
    likes = DomainData.of(
        "toy", toy.items.values(), [replace(h, fields=f) for h, f in zip(toy.sequences, kept, strict=True)]
    )
    refused(NoNegativesError, replace(likes, origin=replace(likes.origin, min_rating=4.0)))
    refused(OneClassError, likes)
    several = tmp_path / "several.yaml"
    several.write_text(TEMPLATE + "positive: Yes indeed.\n")
    refused(AnswerTokenError, template=str(several))
    assert "linear layer" in refused(TaskError, target_modules="q_proj,c_attn")
    assert "batch of 64" in refused(TrainerError, samples=20, batch_size=64)
    assert "one domain" in refused_as_spirit(bench.job(tmp_path))


def refused_as_spirit(job: TrainingJob) -> str:
    with pytest.raises(TrainerError) as caught:
        RecloraTrainer().train(replace(job, role="spirit"))
    return str(caught.value)


def test_a_prompt_that_is_too_long_and_a_launch_are_refused(bench: Bench, tmp_path: Path, monkeypatch: Any):
    with pytest.raises(TrainerError, match="longer than 16 tokens") as caught:
        RecloraTrainer().train(bench.job(tmp_path, max_tokens=16, **SHORT))
    assert caught.value.hint
    assert "max_tokens=" in caught.value.hint
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainerError, match="one process"):
        RecloraTrainer().train(bench.job(tmp_path, **SHORT))


def test_options_are_those_of_din_and_the_gates_and_wrong_ones_are_named():
    options = RecloraOptions.model_validate(
        {"recommender": "epochs=3,hidden=64,learning_rate=1e-2", "target_dependent": "false", "seed": "7", "metas": "4"}
    )
    assert (options.din.epochs, options.din.hidden, options.din.learning_rate) == (3, 64, 0.01)
    assert (options.din.target, options.din.seed) == (False, 7)
    assert (options.gates.width, options.gates.metas, options.gates.targets) == (64, 4, ("q_proj", "v_proj"))
    assert [RecloraOptions(samples=each).count(50) for each in (0.1, 1, 20, 500)] == [5, 1, 20, 50]
    wrong = {
        "recommender": ("epoch=3", "epochs=many", "target=1", "seed=1", "epochs=1,epochs=2"),
        "samples": ("1.5", "0"),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValidationError, match=name):
                RecloraOptions.model_validate({name: value})


def test_the_trainer_keeps_the_contract(tmp_path: Path):
    options = {"split": "user", "min_history": 1, "threshold": 3, "samples": 12, "batch_size": 4, "micro_batch": 2}
    options |= {"metas": 2, "rank": 2, "validation_rows": 8, "validate_every": 1}
    options |= {"recommender": "epochs=1,hidden=16,embedding=4"}
    check_trainer(RecloraTrainer, tmp_path, options=options, deterministic=True)
