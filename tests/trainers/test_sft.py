"""The shipped trainer, for real: TRL and PEFT on a tiny random model."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from reccocktail.registry import inspect_adapter, inspect_base
from reccocktail.registry.catalog.registration import Labels
from reccocktail.tasks import examples, generate
from reccocktail.trainers.plugin import TrainerError, TrainingJob
from reccocktail.trainers.sft import trainer as sft
from reccocktail.trainers.sft import tuning, validation
from reccocktail.trainers.sft.options import SftOptions
from reccocktail.trainers.sft.trainer import SftTrainer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from trl.trainer.sft_trainer import SFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"examples": 16, "epochs": 2, "rank": 4, "alpha": 8, "dropout": 0.0}
# Soon learns by heart: validation is best at step 6 of 24.
WORSENS = {"examples": 8, "batch_size": 4, "epochs": 12, "learning_rate": 0.02, "warmup": 0.0}
WORSENS |= {"validate_every": 2, "patience": 2}


def job_in(folder, base, *domains, role="ingredient", resume=False, progress=lambda *_: None, **options):
    folder.mkdir(exist_ok=True)
    return TrainingJob(
        role=role,
        base_folder=base,
        base_name="tiny",
        domains=tuple(generate(name, users=20) for name in domains or ("skin-care",)),
        folder=folder,
        options=SftOptions.model_validate(SMALL | options),
        resume=resume,
        device="cpu",
        progress=progress,
    )


class Killed(BaseException):
    """As a kill: nothing below catches it."""


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """A run with the small options, for tests that only look."""
    return SftTrainer().train(job_in(tmp_path_factory.mktemp("plain"), base))


@pytest.fixture(scope="module")
def stopped(base, tmp_path_factory):
    """A run that stopped early."""
    return SftTrainer().train(job_in(tmp_path_factory.mktemp("stopped"), base, **WORSENS))


@pytest.fixture
def make_job(base, tmp_path):
    """(domains, folder, options): a job in a folder of the test's."""
    return lambda *domains, folder="run", **told: job_in(tmp_path / folder, base, *domains, **told)


@pytest.fixture
def train(make_job):
    """One training run; arguments as of `make_job`."""
    return lambda *domains, **told: SftTrainer().train(make_job(*domains, **told))


@pytest.fixture
def exact(monkeypatch):
    """Float32, so that two ways to the same end can be compared."""
    monkeypatch.setattr(sft, "_precision", lambda device: (torch.float32, False))


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that are made during the test."""
    made = []
    run = tuning.run
    monkeypatch.setattr(tuning, "run", lambda trainer, job: (made.append(trainer), run(trainer, job)))
    return made


@pytest.fixture
def make_tuner(make_job, base, monkeypatch):
    """(model, mixed, options): a trainer that has not begun."""

    def make(*, model=None, mixed=False, **options):
        ready = []

        class Ready(Exception):  # noqa: N818
            pass

        def stop(trainer, job):
            ready.append(trainer)
            raise Ready

        with monkeypatch.context() as patch:
            patch.setattr(tuning, "run", stop)
            patch.setattr(sft, "_precision", lambda device: (torch.bfloat16 if mixed else torch.float32, mixed))
            if model:
                patch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **given: model(given["dtype"]))
            with pytest.raises(Ready):
                SftTrainer().train(make_job(**options))
        return ready[0]

    return make


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(result.adapter / "adapter_model.safetensors")


def read_log(result) -> list[dict[str, float]]:
    return [json.loads(line) for line in (result.adapter / sft.LOG).read_text().splitlines()]


def figures(result, name="loss") -> list[float]:
    return [entry[name] for entry in read_log(result) if name in entry]


def assert_close(one, other, tolerance=1e-5):
    """Equal losses and weights, but for the order in which floating-point sums were made."""
    for name in ("loss", "learning_rate", "validation_loss"):
        assert figures(one, name) == pytest.approx(figures(other, name), rel=tolerance, abs=tolerance)
    theirs = weights(other)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance)


# --- the adapter ----------------------------------------------------------------------------------------------------


def test_training_gives_an_adapter_that_registration_accepts(plain, base):
    facts = inspect_adapter(plain.adapter, inspect_base(base), base_names=("tiny",))
    assert (facts.rank, facts.alpha) == (4, 8)
    assert facts.target_modules == tuple(
        sorted(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    )


def test_the_log_and_the_plot_are_registered_with_the_adapter_and_verified(plain, stocked):
    result = plain
    row = stocked.adapters.add(
        result.adapter,
        labels=Labels(context=result.context),
        base=stocked.bases.get("tiny"),
        role="ingredient",
        domain="skin-care",
    )
    kept = stocked.adapters.folder(row)
    assert row.skipped == ()
    assert (kept / sft.LOG).read_bytes() == (result.adapter / sft.LOG).read_bytes()
    assert (kept / sft.PLOT).read_bytes().startswith(b"\x89PNG")
    stocked.store.verify_tree(row.digest)
    inspect_adapter(kept, stocked.bases.facts(stocked.bases.get("tiny")))


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(train, stocked):
    def digest(result):
        return stocked.adapters.add(result.adapter, base=stocked.bases.get("tiny"), role="spirit").digest

    first, again, other = (digest(train(folder=name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again
    assert first != other


def test_the_adapter_names_its_base_and_no_folder_of_this_machine(plain):
    result = plain
    assert json.loads((result.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert sorted(path.name for path in result.adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        sft.PLOT,
        sft.LOG,
    ]
    for path in result.adapter.iterdir():
        assert str(result.adapter.parent.parent).encode() not in path.read_bytes()


def test_the_adapter_loads_in_peft(plain, base):
    result = plain
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), result.adapter)
    loaded = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert loaded.keys() == weights(result).keys()


def test_target_modules_can_be_named(train):
    result = train(target_modules="q_proj, v_proj")
    assert {name.split(".")[-3] for name in weights(result)} == {"q_proj", "v_proj"}


def test_context_repeats_the_run(plain):
    context = plain.context
    assert context["trainer"] == "sft"
    assert SftOptions.model_validate(context["options"]).rank == 4
    assert context["packages"].keys() == {"torch", "transformers", "peft", "trl", "accelerate"}
    assert all(digest.startswith("sha256:") for task in context["tasks"] for digest in (task["data"], task["task"]))
    assert (context["steps"], context["examples"], context["stopped_early"]) == (4, 16, False)


def test_the_base_is_bfloat16_where_the_device_has_it_and_the_adapter_float32(train, monkeypatch):
    monkeypatch.setattr(sft, "_precision", lambda device: (torch.bfloat16, True))
    result = train()
    assert result.context["dtype"] == {"base": "bfloat16", "lora": "float32"}
    assert {tensor.dtype for tensor in weights(result).values()} == {torch.float32}


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(TrainerError, match="there is no device cuda"):
        sft._precision("cuda:1") if not torch.cuda.is_available() else pytest.skip("there is one")


def test_a_process_that_trains_alone_keeps_to_the_gpu_it_was_given(make_tuner, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    args = make_tuner().args
    args._n_gpu = 4
    tuning._keep_to_one_gpu(args, "cuda:2")
    assert (args.n_gpu, args.device, chosen) == (1, torch.device("cuda:2"), [torch.device("cuda:2")])


# --- what is learned from -------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_on_what_was_learned(train):
    result = train(epochs=15, learning_rate=1e-2, validation_examples=0)
    losses = figures(result)
    assert losses[-1] < 0.5 * losses[0]
    assert result.metrics["train_loss"] == pytest.approx(sum(losses[-3:]) / 3, abs=1e-5)  # 3 of 30 steps


def test_only_the_answer_is_learned_from(train, base):
    """The gradient comes from the answer's tokens alone: the very adapter results when TRL is given labels by hand."""
    from peft import LoraConfig, get_peft_model
    from reccocktail.tasks import DEFAULT_TEMPLATE, load_template, questions

    result = train(examples=1, epochs=1, batch_size=1, learning_rate=1e-2, warmup=0.0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    _, (asked,) = questions(generate("skin-care", users=20), "train", load_template(DEFAULT_TEMPLATE), seed=42, limit=1)
    prompt = tokenizer.apply_chat_template(asked.messages, add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*asked.messages, {"role": "assistant", "content": asked.answer}])[
        "input_ids"
    ]
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trained = weights(result)
    # B starts at zero, so after one Adam step every entry of B is ±lr times the sign of its gradient.
    state = {
        name.replace("lora_A.weight", "lora_A.default.weight"): t for name, t in trained.items() if "lora_A" in name
    }
    model.load_state_dict(state, strict=False)
    labels = torch.tensor([[-100] * len(prompt) + whole[len(prompt) :]])
    model(torch.tensor([whole]), labels=labels).loss.backward()
    agree = total = 0
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.grad is not None:
            step = trained[name.replace(".default", "")]
            strong = parameter.grad.abs() > 1e-5
            agree += int((torch.sign(step) == -torch.sign(parameter.grad))[strong].sum())
            total += int(strong.sum())
    assert total > 500
    assert agree / total > 0.98


def test_validation_and_test_interactions_stay_unseen(train):
    result = train(examples=None, epochs=1)
    data = generate("skin-care", users=20)
    assert result.context["examples"] == sum(len(history.items) - 3 for history in data.sequences)


def test_a_spirit_is_trained_on_all_its_domains(train):
    result = train("kitchen", "garden", role="spirit", examples=5)
    assert result.context["examples"] == 10
    assert [task["domain"] for task in result.context["tasks"]] == ["kitchen", "garden"]
    assert result.context["role"] == "spirit"


def test_weights_say_how_many_examples_a_domain_gives_and_they_repeat_where_it_has_fewer(train):
    there = len(examples(generate("garden", users=20), "train"))
    result = train(
        "kitchen", "garden", "skin-care", role="spirit", examples=40, epochs=1, weights="kitchen=0.25, garden=3"
    )
    found = {task["domain"]: (task["examples"], task["distinct"]) for task in result.context["tasks"]}
    assert found == {"kitchen": (10, 10), "garden": (120, there), "skin-care": (40, 40)}
    assert there < 120


@pytest.mark.parametrize(
    ("text", "said"), [("kitchen=2,kitchen=3", "named twice"), ("kitchen=0", "greater than 0"), ("kitchen", "number")]
)
def test_weights_that_make_no_sense_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        SftOptions.model_validate({"weights": text})


def test_a_weight_for_a_domain_that_is_not_trained_on_is_refused(train):
    with pytest.raises(TrainerError, match="weights names books, which is not trained on"):
        train("kitchen", weights="books=2")


def test_an_example_that_is_too_long_is_refused_with_its_length(train):
    with pytest.raises(TrainerError, match=r"16 of 16 examples are longer than 16 tokens, the longest has \d+"):
        train(max_tokens=16)


def test_examples_that_fill_no_batch_are_refused(train):
    with pytest.raises(TrainerError, match="3 training examples do not fill a batch of 8") as refused:
        train(examples=3)
    assert refused.value.hint.startswith("-o batch_size=3")


# --- batches --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lengths():
    return [random.Random(n).randint(20, 400) for n in range(1000)]


def padding(batches, lengths):
    return sum(max(lengths[i] for i in batch) - lengths[j] for batch in batches for j in batch)


def in_batches(order):
    indices = list(order)
    return [indices[start : start + 8] for start in range(0, len(indices), 8)]


def test_batches_of_like_length_need_a_tenth_of_the_padding(lengths):
    order = in_batches(tuning.BatchOrder(lengths, 8, seed=1))
    shuffled = random.Random(0).sample(range(1000), 1000)
    assert padding(order, lengths) < 0.1 * padding([shuffled[i : i + 8] for i in range(0, 1000, 8)], lengths)


def test_batches_do_not_come_in_the_order_of_their_lengths(lengths):
    longest = [max(lengths[i] for i in batch) for batch in in_batches(tuning.BatchOrder(lengths, 8, seed=1))][:50]
    rising = sum(a < b for a, b in pairwise(longest))
    assert 10 < rising < 40


def test_an_epoch_has_every_example_once_but_for_a_rest_that_changes(lengths):
    order = tuning.BatchOrder(lengths[:101], 8, seed=1)
    seen = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        seen.append(list(order))
        assert len(set(seen[-1])) == len(seen[-1]) == len(order) == 96
    assert set(seen[0]) != set(seen[1])


def test_tokens_are_those_of_the_batches_so_far(lengths):
    order = tuning.BatchOrder(lengths[:101], 8, seed=1)
    first = list(order)
    order.set_epoch(1)
    both = first + list(order)
    assert order.tokens(0) == 0
    assert order.tokens(3) == sum(lengths[i] for i in both[:24])
    assert order.tokens(20) == sum(lengths[i] for i in both[:160])


def test_the_trainer_takes_the_batches_in_that_order_and_another_in_the_next_epoch(train, trainers, monkeypatch):
    taken = []
    compute = tuning.Tuner.compute_loss

    def spy(self, model, inputs, *rest, **named):
        if model.training:
            taken.append(sorted(inputs["attention_mask"].sum(1).tolist()))
        return compute(self, model, inputs, *rest, **named)

    monkeypatch.setattr(tuning.Tuner, "compute_loss", spy)
    train(examples=40)
    order = trainers[0].order
    expected = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        expected += [sorted(order._lengths[i] for i in batch) for batch in in_batches(order)]
    assert taken == expected
    assert taken[:5] != taken[5:]


def test_a_batch_in_parts_gives_what_the_whole_batch_gives(exact, train):
    whole, parts = train(folder="whole"), train(folder="parts", micro_batch=2)
    assert_close(whole, parts)


@pytest.mark.parametrize(
    ("processes", "options", "said"),
    [
        (3, {}, "a batch of 8 cannot be divided among 3 processes"),
        (16, {}, "a batch of 8 cannot be divided among 16 processes"),
        (2, {"micro_batch": 3}, "micro_batch=3 does not divide the 4 examples"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(train, monkeypatch, processes, options, said):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(TrainerError, match=said):
        train(**options)


def test_gradient_checkpointing_changes_no_loss(exact, train, trainers):
    plain, saving = train(folder="plain"), train(folder="saving", gradient_checkpointing=True)
    assert [trainer.model.is_gradient_checkpointing for trainer in trainers] == [False, True]
    assert_close(plain, saving, 1e-6)


# --- the loss, against TRL's ----------------------------------------------------------------------------------------


def first_batch(tuner):
    return next(iter(tuner.get_train_dataloader()))


def loss_and_gradients(tuner, compute, items):
    tuner.model.train()
    tuner.model.zero_grad()
    with tuner.compute_loss_context_manager():
        loss = compute(tuner.model, dict(first_batch(tuner)), num_items_in_batch=items)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in tuner.model.named_parameters() if p.requires_grad}


@pytest.fixture
def trls():
    """TRL's own loss of a tuner."""
    return lambda tuner: lambda *told, **named: SFTTrainer.compute_loss(tuner, *told, **named)


@pytest.mark.parametrize("items", [None, 100])
def test_loss_and_gradients_are_trls(make_tuner, trls, items):
    tuner = make_tuner()
    assert tuner._logits_on_demand
    (ours, our_gradients), (theirs, their_gradients) = (
        loss_and_gradients(tuner, compute, items) for compute in (tuner.compute_loss, trls(tuner))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert max(gradient.abs().max() for gradient in their_gradients.values()) > 1e-2
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], rtol=1e-5, atol=1e-5)


def test_the_loss_is_trls_in_bfloat16_but_for_rounding(make_tuner, trls):
    tuner = make_tuner(mixed=True)
    (ours, our_gradients), (theirs, their_gradients) = (
        loss_and_gradients(tuner, compute, None) for compute in (tuner.compute_loss, trls(tuner))
    )
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    flat = [torch.cat([g.flatten() for g in found.values()]) for found in (our_gradients, their_gradients)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


def test_validation_gives_the_mean_of_the_examples_losses_whatever_the_batches(make_tuner, trls):
    tuner = make_tuner(micro_batch=2)
    found = tuner.evaluate()["eval_loss"]
    tuner.model.eval()
    with torch.no_grad():
        each = [trls(tuner)(tuner.model, dict(batch)).item() for batch in tuner.get_eval_dataloader()]
    assert len(each) == 20
    assert found == pytest.approx(sum(each) / 20, rel=1e-5)


@pytest.mark.parametrize("takes_places", [True, False])
def test_validation_in_batches_gives_what_one_example_at_a_time_gives(make_tuner, monkeypatch, takes_places):
    tuner = make_tuner()
    tuner.__dict__["_takes_places"] = takes_places
    passes, found = [], {}
    tuner.model.register_forward_hook(lambda *_: passes.append(1))
    for most in (1, 300, 2048):
        passes.clear()
        monkeypatch.setattr(validation.batches_of_like_length, "__defaults__", (most,))
        found[most] = tuner.evaluate()["eval_loss"], len(passes)
    assert [number for _, number in found.values()] == [20, found[300][1], 1]
    assert 1 < found[300][1] < 20
    assert [loss for loss, _ in found.values()] == pytest.approx([found[1][0]] * 3, rel=1e-5)


def test_batches_of_like_length_hold_everything_and_little_padding():
    lengths = [random.Random(n).randint(1, 90) for n in range(200)] + [5000]
    batches = validation.batches_of_like_length(lengths, 400)
    assert sorted(number for batch in batches for number in batch) == list(range(201))
    assert batches[-1] == [200]
    assert all(max(lengths[n] for n in batch) * len(batch) <= 400 for batch in batches[:-1])
    padded = sum(max(lengths[n] for n in batch) * len(batch) for batch in batches)
    assert padded < 1.2 * sum(lengths)


def test_a_training_on_the_whole_is_what_it_is_with_trls_loss(exact, train, monkeypatch):
    ours = train(folder="ours", micro_batch=4)
    monkeypatch.setattr(tuning.Tuner, "_logits_on_demand", False)
    assert_close(ours, train(folder="theirs", micro_batch=4), 1e-4)


def test_a_batch_without_an_answer_teaches_nothing(make_tuner):
    tuner = make_tuner()
    batch = dict(first_batch(tuner))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = tuner.compute_loss(tuner.model, batch)
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in tuner.model.parameters() if p.grad is not None)


def test_a_model_that_cannot_leave_logits_out_is_trained_with_trls_loss(make_tuner, base, trls):
    class Older(LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **rest):
            assert "logits_to_keep" not in rest
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **rest)

    older, newer = make_tuner(model=lambda dtype: Older.from_pretrained(base, dtype=dtype)), make_tuner()
    assert not older._logits_on_demand
    torch.testing.assert_close(
        loss_and_gradients(older, older.compute_loss, None)[0], loss_and_gradients(newer, newer.compute_loss, None)[0]
    )


# --- the course of training -----------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls_as_a_cosine(train):
    rates = figures(train(epochs=10, warmup=0.2, learning_rate=1e-3, validation_examples=0), "learning_rate")
    assert len(rates) == 20
    warm, after = rates[:4], rates[4:]
    assert warm == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3])
    assert after == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * n / 16)) for n in range(16)])


def test_a_single_step_trains(train):
    result = train(examples=8, batch_size=8, epochs=1, learning_rate=1e-3, validation_examples=0)
    assert figures(result, "learning_rate") == pytest.approx([1e-3])
    assert any(tensor.any() for name, tensor in weights(result).items() if "lora_B" in name)


def test_training_stops_when_validation_has_not_improved_and_keeps_the_best_checkpoint(stopped):
    result = stopped
    steps, kept = result.context["steps"], result.context["kept_step"]
    assert result.context["stopped_early"]
    assert steps == kept + 2 * 2 < 24
    losses = figures(result, "validation_loss")
    assert result.metrics["validation_loss"] == pytest.approx(min(losses), abs=1e-5)
    assert losses[-3] == min(losses)

    def of(step):
        return load_file(result.adapter.parent / "checkpoints" / f"checkpoint-{step}" / "adapter_model.safetensors")

    for name, tensor in weights(result).items():
        assert torch.equal(tensor, of(kept)[name])
    assert any(not torch.equal(tensor, of(steps)[name]) for name, tensor in weights(result).items())


def test_without_patience_training_goes_on_and_still_keeps_the_best_checkpoint(train):
    result = train(**WORSENS | {"patience": 0})
    assert (result.context["steps"], result.context["stopped_early"]) == (24, False)
    assert result.context["kept_step"] < 24


def test_without_validation_the_last_step_is_kept(train, tmp_path):
    result = train(**WORSENS | {"validation_examples": 0})
    assert result.context["kept_step"] == 24
    assert "validation_loss" not in result.metrics
    last = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-24" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(result).items())


def test_the_log_has_every_step_and_every_validation_and_no_times(train):
    log = read_log(train(validate_every=2))
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in log if "validation_loss" in entry] == [2, 4]
    assert {name for entry in log for name in entry} == {"step", "epoch", "loss", "learning_rate", "validation_loss"}


def test_a_diverged_loss_ends_the_training_and_says_where(train):
    with pytest.raises(TrainerError, match=r"training diverged: the loss is nan at step \d+") as raised:
        train(learning_rate=1e30, warmup=0.0, epochs=5, validation_examples=0)
    assert "learning_rate" in raised.value.hint


def test_a_diverged_validation_loss_is_reported_as_well(train):
    with pytest.raises(TrainerError, match="training diverged: the validation loss is nan at step 1"):
        train(learning_rate=1e30, warmup=0.0, validate_every=1)


def test_tokens_per_second_count_no_validation(train, monkeypatch):
    evaluate = tuning.Tuner.evaluate
    monkeypatch.setattr(tuning.Tuner, "evaluate", lambda *told, **named: (time.sleep(0.5), evaluate(*told, **named))[1])
    result = train(validate_every=2)
    stepping = result.context["tokens"] / result.metrics["tokens_per_second"]
    assert result.metrics["train_seconds"] > 1
    assert stepping < result.metrics["train_seconds"] - 0.9


# --- killed and resumed ---------------------------------------------------------------------------------------------


def ranks(number):
    """The variables by which `accelerate launch` and `torchrun` tell each of so many processes which one it is; none for one."""
    if number == 1:
        return [{}]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    return [place | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


@pytest.fixture
def in_processes(base, tmp_path, warm):
    """(number, folder, kill_at, options): train in one process, or in several that know of each other; how each of them ended."""
    script = Path(__file__).with_name("training_process.py")

    def run(number, *, folder, kill_at=None, resume=False, domains=("skin-care",), **options):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        told = {"base": str(base), "folder": str(place), "domains": domains, "options": SMALL | options}
        (place / "job.json").write_text(json.dumps(told | {"resume": resume, "kill_at": kill_at}))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, script, place / "job.json"]
        with ThreadPoolExecutor(number) as threads:
            return list(threads.map(lambda own: warm.run(words, env=environment | own), ranks(number)))

    return run


@pytest.mark.slow
def test_a_process_that_was_killed_resumes_and_ends_where_an_undisturbed_one_does(exact, train, in_processes, trainers):
    # Dropout, and a kill in the second epoch: the state of the generator and the order of batches have to be found again.
    told = {"dropout": 0.2, "examples": 24, "epochs": 3, "validate_every": 2}
    (killed,) = in_processes(1, folder="killed", kill_at=5, **told)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    steps = []
    resumed = train(folder="killed", resume=True, progress=lambda done, *_: steps.append(done), **told)
    assert [trainers[0].watch.first_step, steps[0], steps[-1]] == [4, 5, 9]
    undisturbed = train(folder="undisturbed", **told)
    assert resumed.metrics["train_loss"] == undisturbed.metrics["train_loss"]
    assert_close(resumed, undisturbed, 1e-6)
    assert resumed.context == undisturbed.context


def test_a_half_written_checkpoint_is_passed_over(train, tmp_path):
    first = train(validate_every=2)
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    (newest / "trainer_state.json").write_text('{"epoch": 1.')
    (newest / "optimizer.pt").write_bytes(b"")
    steps = []
    again = train(validate_every=2, resume=True, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 3
    assert weights(again).keys() == weights(first).keys()
    assert json.loads((newest / "trainer_state.json").read_text())["global_step"] == 4


def test_patience_is_remembered_over_a_kill(train, stopped):
    first_bad = stopped.context["kept_step"] + 2

    def kill(done: int, *_: object) -> None:
        if done == first_bad + 1:
            raise Killed

    with pytest.raises(Killed):
        train(folder="killed", progress=kill, **WORSENS)
    resumed = train(folder="killed", resume=True, **WORSENS)
    assert resumed.context["stopped_early"]
    assert resumed.context == stopped.context
    assert_close(resumed, stopped, 1e-6)


def test_a_kill_between_stopping_early_and_writing_the_adapter_changes_nothing(train, stopped, monkeypatch):
    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sft, "_save", kill)
        with pytest.raises(Killed):
            train(folder="killed", **WORSENS)
    resumed = train(folder="killed", resume=True, **WORSENS)
    assert resumed.context["stopped_early"]
    assert resumed.context == stopped.context
    assert_close(resumed, stopped, 1e-6)


def test_a_kill_after_the_last_step_changes_nothing(train, plain, monkeypatch):
    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(sft, "_save", kill)
        with pytest.raises(Killed):
            train(folder="killed")
    resumed = train(folder="killed", resume=True)
    assert resumed.context == plain.context
    assert_close(resumed, plain, 1e-6)


def test_a_run_that_starts_over_forgets_the_checkpoints_of_the_one_before(train, tmp_path):
    train(epochs=4, validate_every=2)
    train(epochs=1, validate_every=2)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"loss": "choice", "validate_by": "ranking"}])
def test_two_processes_learn_what_one_does_from_the_same_batches(exact, train, in_processes, tmp_path, options):
    told = {"validate_every": 2, "validation_examples": 7, "micro_batch": 2, "examples": 12, **options}
    for done in in_processes(2, folder="two", domains=("kitchen", "garden"), **told):
        assert done.returncode == 0, done.stderr[-2000:]
    one = train("kitchen", "garden", role="spirit", folder="one", **told)
    results = [json.loads((tmp_path / "two" / f"{rank}.json").read_text()) for rank in (0, 1)]
    for result in results:
        assert result["context"] == one.context
        for name in one.metrics.keys() & {"train_loss", "validation_loss", "validation_ranking"}:
            assert result["metrics"][name] == pytest.approx(one.metrics[name], abs=2e-5)
    two = type(one)(tmp_path / "two" / "adapter", results[0]["metrics"], results[0]["context"])
    assert_close(two, one, 1e-4)
