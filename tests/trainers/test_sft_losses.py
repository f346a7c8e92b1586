"""The losses of `sft`, against slow ones that read one title at a time and look through the whole catalogue."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from reccocktail.tasks import examples, generate, load_template, questions, sample
from reccocktail.tasks.candidates import wording
from reccocktail.tasks.prompts import shown_titles
from reccocktail.tasks.ranking import end_of_turn, prompt_text, title_trie
from reccocktail.tasks.scores import Score, score_parts
from reccocktail.trainers.plugin import TrainerError, TrainingJob
from reccocktail.trainers.sft import objective, tuning, validation
from reccocktail.trainers.sft import trainer as sft
from reccocktail.trainers.sft.losses import IGNORED, ChoiceLoss, ContrastLoss, title_scores
from reccocktail.trainers.sft.options import SftOptions
from reccocktail.trainers.sft.trainer import SftTrainer
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"examples": 12, "epochs": 1, "rank": 4, "alpha": 8, "dropout": 0.0, "batch_size": 6, "validation_examples": 3}


@pytest.fixture
def make_job(base, tmp_path):
    def make(*domains, folder="run", resume=False, **options):
        (tmp_path / folder).mkdir(exist_ok=True)
        return TrainingJob(
            role="ingredient",
            base_folder=base,
            base_name="tiny",
            domains=tuple(generate(name, users=20) for name in domains or ("skin-care",)),
            folder=tmp_path / folder,
            options=SftOptions.model_validate(SMALL | options),
            resume=resume,
            device="cpu",
            progress=lambda *_: None,
        )

    return make


@pytest.fixture
def train(make_job, monkeypatch):
    monkeypatch.setattr(sft, "_precision", lambda device: (torch.float32, False))
    return lambda *domains, **told: SftTrainer().train(make_job(*domains, **told))


@pytest.fixture
def make_tuner(train, monkeypatch):
    """(domains, options): a trainer that has not begun, with a LoRA that is not zero, in float64."""

    def make(*domains, dtype=torch.float64, **options):
        class Ready(BaseException):
            pass

        ready = []

        def stop(trainer, job):
            ready.append(trainer)
            raise Ready

        with monkeypatch.context() as patch:
            patch.setattr(tuning, "run", stop)
            with pytest.raises(Ready):
                train(*domains, **options)
        torch.manual_seed(1)
        for name, parameter in ready[0].model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        ready[0].model.to(dtype)
        return ready[0]

    return make


def first_batch(tuner):
    return dict(next(iter(tuner.get_train_dataloader())))


def gradients(tuner, loss):
    tuner.model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in tuner.model.named_parameters() if p.requires_grad}


def assert_same(tuner, ours, theirs, tolerance):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    found, expected = gradients(tuner, ours), gradients(tuner, theirs)
    tolerance = max(tolerance, 1e-6)  # a Llama's norm works in float32, so one pass differs from the sum of many
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=tolerance, atol=tolerance)


def logits_of(tuner, ids):
    """[tokens, vocabulary] of one sequence, by itself."""
    return tuner.model(input_ids=torch.tensor([ids])).logits[0]


def split_rows(batch):
    """Per example its prompt and its answer."""
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        begin = next(place for place, label in enumerate(labels) if label != IGNORED)
        answer = [label for label in labels if label != IGNORED]
        yield ids[:begin], answer


def catalogue_tokens(name, tokenizer):
    """All titles of a domain as they are trained: with what the chat template writes behind an answer."""
    titles = shown_titles(
        (item.title for item in generate(name, users=20).items.values()), load_template("next-title"), tokenizer
    )
    return [tuple(tokenizer(title + "<|im_end|>\n", add_special_tokens=False)["input_ids"]) for title in titles]


def masked_oracle(tuner, batch, catalogue, temperature):
    """Mean over all tokens of the answers, each among the tokens that follow the same beginning in any title."""
    nats, tokens = 0, 0
    for prompt, answer in split_rows(batch):
        logits = logits_of(tuner, prompt + answer) / temperature
        for place, token in enumerate(answer):
            follows = sorted({t[place] for t in catalogue if list(t[:place]) == answer[:place] and len(t) > place})
            assert token in follows
            offered = logits[len(prompt) + place - 1][follows]
            nats = nats - torch.log_softmax(offered, 0)[follows.index(token)]
            tokens += 1
    return nats / tokens


@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float64, 1.0), (torch.float64, 2.5), (torch.float32, 1.0)])
def test_masked_loss_and_gradients_are_those_of_a_search_through_the_catalogue(make_tuner, dtype, temperature):
    tuner = make_tuner(loss="masked", temperature=temperature, dtype=dtype)
    batch = first_batch(tuner)
    catalogue = catalogue_tokens("skin-care", tuner.processing_class)
    ours, theirs = tuner.compute_loss(tuner.model, batch), masked_oracle(tuner, batch, catalogue, temperature)
    assert_same(tuner, ours, theirs, 1e-9 if dtype == torch.float64 else 1e-4)


def test_masked_loss_takes_the_titles_of_the_examples_own_domain(make_tuner):
    tuner = make_tuner("kitchen", "garden", loss="masked")
    for batch in tuner.get_train_dataloader():
        found = []
        for number, pair in zip(batch["example"].tolist(), split_rows(batch), strict=True):
            name = "kitchen" if number < 12 else "garden"
            single = {
                "input_ids": torch.tensor([[*pair[0], *pair[1]]]),
                "labels": torch.tensor([[IGNORED] * len(pair[0]) + pair[1]]),
            }
            catalogue = catalogue_tokens(name, tuner.processing_class)
            found.append(masked_oracle(tuner, single, catalogue, 1.0) * len(pair[1]))
        expected = sum(found) / sum(len(answer) for _, answer in split_rows(batch))
        torch.testing.assert_close(tuner.compute_loss(tuner.model, dict(batch)), expected, rtol=1e-9, atol=1e-9)


def choice_oracle(tuner, batch, titles, barred, temperature):
    """Mean over examples; every title of the batch scored by itself; `titles` and `barred` by example, in words as shown."""
    end, nats = end_of_turn(tuner.processing_class, [{"role": "user", "content": "x"}]), 0
    for row, (prompt, _) in enumerate(split_rows(batch)):
        scores, place = [], None
        for title in dict.fromkeys(titles):
            same = wording(title) == wording(titles[row])
            if title != titles[row] and (same or wording(title) in barred[row]):
                continue
            place = len(scores) if title == titles[row] else place
            tokens = tuner.processing_class(title + end, add_special_tokens=False)["input_ids"]
            logp = torch.log_softmax(logits_of(tuner, prompt + tokens), 1)
            scores.append(sum(logp[len(prompt) + n - 1, token] for n, token in enumerate(tokens)))
        nats = nats - torch.log_softmax(torch.stack(scores) / temperature, 0)[place]
    return nats / len(titles)


def contrast_oracle(tuner, batch, titles, barred, temperature):
    """Mean over examples; each title scored by itself behind every prompt of the batch whose user neither took nor asks for it."""
    end, nats = end_of_turn(tuner.processing_class, [{"role": "user", "content": "x"}]), 0
    prompts = [prompt for prompt, _ in split_rows(batch)]
    for row, title in enumerate(titles):
        tokens = tuner.processing_class(title + end, add_special_tokens=False)["input_ids"]
        scores, place = [], None
        for other, prompt in enumerate(prompts):
            if other != row and (wording(titles[other]) == wording(title) or wording(title) in barred[other]):
                continue
            place = len(scores) if other == row else place
            logp = torch.log_softmax(logits_of(tuner, prompt + tokens), 1)
            scores.append(sum(logp[len(prompt) + n - 1, token] for n, token in enumerate(tokens)))
        nats = nats - torch.log_softmax(torch.stack(scores) / temperature, 0)[place]
    return nats / len(titles)


ORACLES = {"choice": (ChoiceLoss, choice_oracle), "contrast": (ContrastLoss, contrast_oracle)}


def told_by_batch(tuner, batch):
    """Right titles of a batch, and what their users took before and may be asked for in training."""
    shop = generate("skin-care", users=20)
    titles, barred = [], []
    for number in batch["example"].tolist():
        choice = tuner.objective.choices[number]
        titles.append(choice.title)
        barred.append(choice.taken)
    taken = {frozenset(wording(shop.items[i].title) for i in items[:-2]) for items in shop.by_user.values()}
    assert set(barred) <= taken
    return titles, barred


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(("dtype", "temperature"), [(torch.float64, 1.0), (torch.float64, 4.0), (torch.float32, 1.0)])
@pytest.mark.parametrize("loss", ORACLES)
def test_losses_of_a_batch_and_their_gradients_are_those_of_titles_scored_one_by_one(
    make_tuner, loss, dtype, temperature, packs
):
    tuner = make_tuner(loss=loss, temperature=temperature, dtype=dtype)
    kind, oracle = ORACLES[loss]
    assert type(tuner.objective) is kind
    assert tuner.objective.packs
    tuner.objective = kind(tuner.objective.choices, temperature, packs)
    batch = first_batch(tuner)
    titles, barred = told_by_batch(tuner, batch)
    assert any(wording(t) in b for b in barred for t in titles)  # so that leaving out matters
    ours = tuner.compute_loss(tuner.model, batch)
    theirs = oracle(tuner, batch, titles, barred, temperature)
    assert_same(tuner, ours, theirs, 1e-9 if dtype == torch.float64 else 2e-4)


def test_titles_that_say_the_same_and_titles_taken_are_no_negatives(make_tuner):
    tuner = make_tuner(loss="choice")
    batch = first_batch(tuner)
    numbers = batch["example"].tolist()
    choices = list(tuner.objective.choices)
    own = choices[numbers[0]]
    for number in numbers[1:]:  # all other titles say the same as the first example's, or were taken by its user
        choices[number] = type(own)(own.title.upper(), own.words, choices[number].closed, own.taken)
    tuner.objective = ChoiceLoss(choices, 1.0, packs=True)
    nats = tuner.objective.nats(batch, lambda given, places: tuner._logits(tuner.model, given, places))
    assert nats[0] == 0


@pytest.mark.parametrize("packs", [True, False])
def test_titles_of_one_token_and_prompts_of_many_lengths_are_scored(make_tuner, packs):
    tuner = make_tuner()
    prompts, answers = [[5], [6, 7, 8, 9], [9, 8]], [[11], [12, 13, 14], [15], [16, 17]]
    tensors = [list(map(torch.tensor, some)) for some in (prompts, answers)]
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 2, 0, 1]]
    with torch.no_grad():
        own = [[tensors[1][n] for n in order] for order in orders]
        found = title_scores(tensors[0], own, lambda given, at: tuner._logits(tuner.model, given, at), packs=packs)
        for row, prompt in enumerate(prompts):
            for column, answer in enumerate([answers[n] for n in orders[row]]):
                logp = torch.log_softmax(logits_of(tuner, prompt + answer), 1)
                expected = sum(logp[len(prompt) + n - 1, token] for n, token in enumerate(answer))
                torch.testing.assert_close(found[row, column], expected, rtol=1e-9, atol=1e-9)


def test_a_batch_in_parts_learns_the_same_by_the_masked_loss(train):
    whole, parts = (train(folder=str(micro), loss="masked", micro_batch=micro) for micro in (6, 2))
    assert whole.metrics["train_loss"] == pytest.approx(parts.metrics["train_loss"], abs=2e-5)
    theirs = load_file(parts.adapter / "adapter_model.safetensors")
    for name, tensor in load_file(whole.adapter / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-4)


def test_a_step_of_the_choice_loss_is_the_mean_over_its_examples(make_tuner, train, monkeypatch):
    nats = []
    plain = ChoiceLoss.nats
    monkeypatch.setattr(ChoiceLoss, "nats", lambda *told: (nats.append(plain(*told)), nats[-1])[1])
    result = train(loss="choice", micro_batch=3, validation_examples=0)
    assert [len(part) for part in nats] == [3, 3, 3, 3]
    logged = [json.loads(line) for line in (result.adapter / sft.LOG).read_text().splitlines()]
    expected = [torch.cat(nats[step : step + 2]).mean().item() for step in (0, 2)]
    assert [entry["loss"] for entry in logged] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "choice", "micro_batch": 1},
        {"loss": "choice", "template": "pick-one"},
        {"loss": "choice", "template": "top-five"},
        {"loss": "contrast", "micro_batch": 1},
        {"loss": "contrast", "template": "pick-one"},
        {"loss": "masked", "template": "top-five"},
    ],
)
def test_a_loss_that_cannot_be_had_is_refused(train, options):
    with pytest.raises(TrainerError, match=f"loss={options['loss']}") as raised:
        train(**options)
    assert raised.value.hint


@pytest.mark.parametrize(("loss", "temperature"), [("answer", 2.0), ("masked", 0.0), ("choice", -1), ("masked", "inf")])
def test_a_temperature_without_a_use_and_one_that_is_not_positive_are_refused(loss, temperature):
    with pytest.raises(ValueError, match="temperature"):
        SftOptions.model_validate({"loss": loss, "temperature": temperature})


def test_an_answer_that_is_written_otherwise_than_the_catalogues_titles_is_refused(train, monkeypatch):
    monkeypatch.setattr(objective, "title_trie", lambda tokenizer, titles, end: title_trie(tokenizer, titles, "!"))
    with pytest.raises(TrainerError, match="otherwise than by itself"):
        train(loss="masked")


def test_masked_loss_can_be_had_where_the_prompt_lists_candidates(train):
    assert train(loss="masked", template="pick-one", examples=6).metrics["train_loss"] > 0


# --- validation by ranking ------------------------------------------------------------------------------------------


def logged(result, name):
    lines = [json.loads(line) for line in (result.adapter / sft.LOG).read_text().splitlines()]
    return {entry["step"]: entry[name] for entry in lines if name in entry}


def ranking_oracle(model, tokenizer, asked, fitted):
    """Mean −log softmax(pmi / τ) of the right titles, with each title read by itself and the best τ of a grid, or τ = 1."""
    rows = []
    for question in asked:
        end = end_of_turn(tokenizer, question.messages)
        scores = []
        for title in question.titles:
            score = 0.0
            for sign, history in (1, question.history), (-1, ()) if fitted else (0, ()):
                start = prompt_text(tokenizer, replace(question, history=history))
                prompt, tokens = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (start, title + end))
                logp = torch.log_softmax(model(torch.tensor([prompt + tokens])).logits[0].double(), 1)
                score += sign * sum(logp[len(prompt) + n - 1, token].item() for n, token in enumerate(tokens))
            scores.append(score)
        rows.append(scores)
    scores, targets = torch.tensor(rows), torch.tensor([question.target_index for question in asked])
    tries = torch.logspace(-3, 7, 6000).tolist() if fitted else [1.0]
    return min(cross_entropy(scores / t, targets).item() for t in tries)


@pytest.mark.parametrize(
    ("template", "packs", "most"),
    [("next-title", True, 2048), ("next-title", True, 1), ("next-title", False, 2048), ("pick-one", True, 2048)],
)
def test_candidates_have_the_scores_that_they_are_served_with(make_tuner, monkeypatch, template, packs, most):
    monkeypatch.setattr(validation.batches_of_like_length, "__defaults__", (most,))
    tuner = make_tuner(template=template, validation_examples=5, negatives=3, dtype=torch.float32)
    tuner.model.eval()
    about = {"n_negatives": 3, "seed": 42, "limit": 5}
    asked = questions(generate("skin-care", users=20), "validation", load_template(template), **about)[1]
    found = validation.CandidateQuestions(asked, tuner.processing_class, packs=packs).pmi(
        tuner.accelerator, lambda given, at: tuner._logits(tuner.model, given, at), lambda: None
    )
    expected = [p.scores(Score("pmi")) for p in score_parts(tuner.model, tuner.processing_class, asked, {"pmi"})]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("loss", "name"), [("answer", "validation_ranking"), ("choice", "validation_loss")])
def test_validation_ranks_the_candidates_as_they_are_when_each_title_is_read_by_itself(train, base, loss, name):
    result = train(loss=loss, validate_by="ranking", learning_rate=5e-3, warmup=0.0)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    asked = questions(
        generate("skin-care", users=20), "validation", load_template("next-title"), n_negatives=9, seed=42, limit=3
    )[1]
    adapted = PeftModel.from_pretrained(model, result.adapter).eval()
    with torch.no_grad():
        expected = ranking_oracle(adapted, tokenizer, asked, name == "validation_ranking")
    assert result.metrics[name] == pytest.approx(expected, abs=2e-4)
    assert logged(result, name)[result.context["kept_step"]] == pytest.approx(expected, abs=2e-4)


def test_the_checkpoint_with_the_best_ranking_is_kept_and_patience_counts_by_it(train, monkeypatch):
    figures = iter([2.0, 1.0, 3.0, 4.0, 0.5])
    monkeypatch.setattr(validation.CandidateQuestions, "ranking", lambda *_: next(figures))
    result = train(validate_by="ranking", epochs=4, validate_every=1, patience=2)
    assert (result.context["kept_step"], result.context["steps"]) == (2, 4)
    assert result.context["validate_by"] == "ranking"
    assert result.metrics["validation_ranking"] == 1.0
    assert logged(result, "validation_ranking") == {1: 2.0, 2: 1.0, 3: 3.0, 4: 4.0}
    assert result.metrics["validation_loss"] == pytest.approx(logged(result, "validation_loss")[2], abs=1e-5)


def test_a_diverged_training_is_reported_when_it_is_validated_by_ranking(train):
    with pytest.raises(TrainerError, match="training diverged: the validation loss is nan"):
        train(validate_by="ranking", learning_rate=1e30, warmup=0.0, validate_every=1, epochs=3)


@pytest.mark.parametrize(("every", "by"), [(2, "ranking"), (1, "loss")])
def test_ranking_is_chosen_where_it_takes_little_of_the_time(train, every, by):
    result = train(validation_examples=1, validate_every=every, epochs=2)  # 12 or 6 examples for each that is ranked
    assert result.context["validate_by"] == by
    assert ("validation_ranking" in result.metrics) == (by == "ranking")


def test_validating_by_nothing_is_refused():
    with pytest.raises(ValueError, match="validate_by"):
        SftOptions.model_validate({"validate_by": "ranking", "validation_examples": 0})


def test_the_context_says_which_users_were_validated_on(train):
    result = train("kitchen", "garden", validation_examples=3, seed=7)
    assert [spec["domain"] for spec in result.context["validation"]] == ["kitchen", "garden"]
    for spec in result.context["validation"]:
        shop = generate(spec["domain"], users=20)
        drawn = sample(examples(shop, spec["split"]), spec["examples"], spec["seed"])
        users = json.dumps(sorted(example.user_id for example in drawn)).encode()
        assert spec["users_digest"] == f"sha256:{hashlib.sha256(users).hexdigest()}"
        short = [hashlib.sha256(b"user\0" + example.user_id.encode()).hexdigest()[:16] for example in drawn]
        assert spec["users"] == sorted(short)
        assert (spec["data"], spec["examples"], spec["seed"]) == (shop.digest, 3, 7)
    assert train(folder="none", validation_examples=0).context["validation"] == []


def test_a_killed_training_resumes_with_its_loss_and_its_ranking(train, make_job, monkeypatch):
    told = {"loss": "choice", "temperature": 2.0, "validate_by": "ranking", "validate_every": 2, "epochs": 2}

    class Killed(BaseException):
        pass

    def kill(done, *_):
        if done == 3:
            raise Killed

    undisturbed = train(folder="undisturbed", **told)
    with pytest.raises(Killed):
        SftTrainer().train(replace(make_job(folder="killed", **told), progress=kill))
    resumed = train(folder="killed", resume=True, **told)
    assert resumed.context == undisturbed.context
    for name in ("train_loss", "validation_loss", "validation_ranking"):
        assert resumed.metrics[name] == pytest.approx(undisturbed.metrics[name], abs=1e-5)
