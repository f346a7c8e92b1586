"""Scores against oracles that read every prompt and title as one text and know no cache, no packing and no arrays."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reccocktail.tasks import (
    SCORES,
    Likeness,
    Question,
    Score,
    ScoreParts,
    TaskError,
    TitleTrie,
    fit,
    fit_temperature,
    fit_weight,
    load_template,
    questions,
    rank_by_tfidf,
    rank_candidates,
    score_parts,
)
from reccocktail.tasks.ranking import prompt_text
from scipy.optimize import minimize_scalar
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def packed(tokenizer) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(tokenizer))).eval()


@pytest.fixture(scope="module")
def unpacked(tokenizer) -> PreTrainedModel:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, vocab_size=len(tokenizer), sliding_window=16)).eval()


@pytest.fixture(scope="module")
def shown(shop) -> list[Question]:
    """Three questions of the template that shows no candidates."""
    return questions(shop, "test", load_template("next-title"), n_negatives=4, limit=3)[1]


@pytest.fixture(scope="module")
def catalogue(shop) -> list[str]:
    return [item.title for item in shop.items.values()]


@torch.inference_mode()
def logprobs_of(model, tokenizer, question: Question, title: str) -> tuple[list[int], torch.Tensor]:
    """The tokens of the title and of what closes it, and for each the float64 logits of its place."""
    start = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
    close = " ||" if question.template.answers > 1 else "<|im_end|>"
    prompt, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, title + close))
    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double()
    return ids, logits


def likelihood(model, tokenizer, question: Question, title: str) -> float:
    ids, logits = logprobs_of(model, tokenizer, question, title)
    return sum(row.log_softmax(-1)[token].item() for token, row in zip(ids, logits, strict=True))


def following(tokenizer, titles: list[str], close: str) -> dict[tuple[int, ...], set[int]]:
    """For every beginning of a title, the tokens that come next in some title."""
    found: dict[tuple[int, ...], set[int]] = {}
    for title in titles:
        ids = tokenizer(title + close, add_special_tokens=False)["input_ids"]
        for place, token in enumerate(ids):
            found.setdefault(tuple(ids[:place]), set()).add(token)
    return found


def constrained(model, tokenizer, question: Question, title: str, prefixes) -> float:
    ids, logits = logprobs_of(model, tokenizer, question, title)
    total = 0.0
    for place, token in enumerate(ids):
        total += logits[place, token].item()
        total -= math.log(sum(math.exp(logits[place, other].item()) for other in prefixes[tuple(ids[:place])]))
    return total


# --- scores of a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["next-title", "pick-one"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_pmi_takes_off_the_weighted_score_without_a_history(template, gamma, packed, tokenizer, shop):
    _, asked = questions(shop, "test", load_template(template), n_negatives=4, limit=2)
    for question, ranking in zip(asked, rank_candidates(packed, tokenizer, asked, Score("pmi", gamma)), strict=True):
        empty = replace(question, history=())
        expected = [
            likelihood(packed, tokenizer, question, title) - gamma * likelihood(packed, tokenizer, empty, title)
            for title in question.titles
        ]
        assert ranking.scores == pytest.approx(expected, abs=1e-4)
        assert ranking.rank == sum(score > expected[question.target_index] for score in expected)


@pytest.mark.parametrize("kind", ["packed", "unpacked"])
@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_a_constrained_score_runs_over_what_continues_some_title(
    kind, batch_tokens, tokenizer, shown, catalogue, request
):
    model = request.getfixturevalue(kind)
    prefixes = following(tokenizer, catalogue, "<|im_end|>")
    assert any(len(tokens) == 1 for tokens in prefixes.values()), "some tokens have no alternative"
    found = rank_candidates(
        model, tokenizer, shown, Score("constrained"), catalogue=catalogue, batch_tokens=batch_tokens
    )
    for question, ranking in zip(shown, found, strict=True):
        expected = [constrained(model, tokenizer, question, title, prefixes) for title in question.titles]
        assert ranking.scores == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["packed", "unpacked"])
def test_titles_that_begin_others_or_read_alike_are_constrained_exactly(kind, tokenizer, shown, catalogue, request):
    """Unknown words are one token, so titles that differ in them have the same tokens."""
    model = request.getfixturevalue(kind)
    whole = next(title for title in catalogue if len(title.split()) > 2)
    titles = (whole, " ".join(whole.split()[:2]), whole.split()[0], f"{whole} Xyzzy", f"{whole} Plugh")
    question = replace(shown[0], titles=titles)
    prefixes = following(tokenizer, [*catalogue, *titles], "<|im_end|>")
    (ranking,) = rank_candidates(model, tokenizer, [question], Score("constrained"), catalogue=[*catalogue, *titles])
    assert ranking.scores == pytest.approx(
        [constrained(model, tokenizer, question, t, prefixes) for t in titles], abs=1e-4
    )
    assert ranking.scores[3] == pytest.approx(ranking.scores[4], abs=1e-6)


def test_candidates_that_the_catalogue_lacks_count_as_titles_of_their_own_question_only(packed, tokenizer, shown):
    few = [shown[0].titles[0], "Xyzzy"]
    found = rank_candidates(packed, tokenizer, shown, Score("constrained"), catalogue=few)
    for question, ranking in zip(shown, found, strict=True):
        prefixes = following(tokenizer, [*few, *question.titles], "<|im_end|>")
        expected = [constrained(packed, tokenizer, question, title, prefixes) for title in question.titles]
        assert ranking.scores == pytest.approx(expected, abs=1e-4)


def test_a_catalogues_titles_are_those_that_a_question_shows(packed, tokenizer, shop, catalogue):
    """A separator within a title, and a special token that it spells, are broken up, as in the question; a list has another end."""
    template = load_template("top-five")
    (question,) = questions(shop, "test", template, limit=1)[1]
    odd = [f"{catalogue[0]} || Xyzzy", f"{catalogue[1]} <|im_end|>"]
    question = replace(question, titles=(*map(template.title, odd), *question.titles[2:]))
    (put,) = fit([question], tokenizer)
    assert put.titles[:2] == (f"{catalogue[0]} Xyzzy", f"{catalogue[1]} < |im_end|>")
    prefixes = following(tokenizer, [*put.titles, *catalogue], " ||")
    (ranking,) = rank_candidates(packed, tokenizer, [question], Score("constrained"), catalogue=[*odd, *catalogue])
    expected = [constrained(packed, tokenizer, put, title, prefixes) for title in put.titles]
    assert ranking.scores == pytest.approx(expected, abs=1e-4)


def test_a_catalogue_is_tokenised_once_for_many_calls_and_anew_when_anything_changes(
    packed, tokenizer, shown, catalogue, monkeypatch
):
    made = []
    monkeypatch.setattr("reccocktail.tasks.ranking.TitleTrie", lambda *titles: made.append(1) or TitleTrie(*titles))

    def scores(template: str = "next-title", titles: list[str] = catalogue) -> tuple[float, ...]:
        question = replace(shown[0], template=load_template(template))
        return rank_candidates(packed, tokenizer, [question], Score("constrained"), catalogue=titles)[0].scores

    fresh = scores(titles=[*catalogue, "Aurora Xyzzy"])
    made.clear()
    first = scores()
    assert (scores(titles=list(catalogue)), len(made)) == (first, 1)
    assert (scores(titles=[*catalogue, "Aurora Xyzzy"]), len(made)) == (fresh, 2)
    scores("top-five")
    assert len(made) == 3
    assert (scores(), len(made)) == (first, 4)


def test_all_scores_follow_from_one_reading(packed, tokenizer, shown, catalogue):
    parts = score_parts(packed, tokenizer, shown, {score.mode for score in SCORES}, catalogue=catalogue)
    for score in SCORES:
        ranked = rank_candidates(packed, tokenizer, shown, score, catalogue=catalogue)
        assert [part.scores(score) for part in parts] == [ranking.scores for ranking in ranked]


def tokens_read(model, tokenizer, asked: list[Question], score: str = "pmi") -> int:
    """How many tokens went through the model, with padding."""
    read: list[int] = []
    handle = model.register_forward_pre_hook(lambda *given: read.append(given[1][0].numel()))
    rank_candidates(model, tokenizer, asked, Score.parse(score))
    handle.remove()
    return sum(read)


def test_a_prior_is_read_once_per_title_where_no_candidates_are_shown(packed, tokenizer, shop):
    _, asked = questions(shop, "test", load_template("next-title"), n_negatives=4, limit=2)
    same = [replace(asked[1], titles=asked[0].titles), asked[0]]
    for many in (asked[:1], same):
        alone = tokens_read(packed, tokenizer, many, "likelihood")
        prior = tokens_read(packed, tokenizer, many) - alone
        assert prior == tokens_read(packed, tokenizer, asked[:1]) - tokens_read(
            packed, tokenizer, asked[:1], "likelihood"
        )


def test_what_answers_and_prompts_have_in_common_is_read_once(packed, tokenizer, shop):
    """No token more than the prompts' own ends and the distinct beginnings of their answers, where rows are alike."""
    _, (asked,) = questions(shop, "test", load_template("next-title"), n_negatives=4, limit=1)
    twice = replace(asked, titles=tuple(asked.titles[place // 2] for place in range(8)))
    once = replace(asked, titles=tuple(asked.titles[:4]))
    assert tokens_read(packed, tokenizer, [twice], "likelihood") == tokens_read(packed, tokenizer, [once], "likelihood")
    start = len(tokenizer(prompt_text(tokenizer, asked))["input_ids"])
    one = tokens_read(packed, tokenizer, [once], "likelihood")
    two = tokens_read(packed, tokenizer, [once, once], "likelihood")
    assert two == start - 1 + 2 * (one - start + 1), "the prompt but for its last token, then what differs"


def test_constrained_without_a_catalogue_is_refused(packed, tokenizer, shown):
    with pytest.raises(TaskError, match="catalogue") as refused:
        rank_candidates(packed, tokenizer, shown, Score("constrained"))
    assert refused.value.hint


def test_hybrid_adds_the_weighted_cosine_of_words_to_pmi(packed, tokenizer, shop, shown):
    asked = Likeness(shop).added(shown)
    pmi, alike = rank_candidates(packed, tokenizer, shown, Score("pmi")), rank_by_tfidf(shop, shown)
    for weight in (0.0, 3.0, 1e6):
        found = rank_candidates(packed, tokenizer, asked, Score("hybrid", weight))
        for got, one, other in zip(found, pmi, alike, strict=True):
            expected = [a + weight * b for a, b in zip(one.scores, other.scores, strict=True)]
            np.testing.assert_allclose(got.scores, expected, rtol=1e-9, atol=1e-6)
    with pytest.raises(TaskError, match="alike"):
        rank_candidates(packed, tokenizer, shown, Score("hybrid", 3.0))


@pytest.mark.parametrize("planted", [0.0, 0.4, 5.0, 120.0])
def test_the_weight_of_hybrid_is_the_one_of_least_loss(planted):
    """Questions are answered by a softmax of one feature plus the planted weight times another; the weight is recovered as by a fine grid."""
    rng = np.random.default_rng(5)
    own, other = rng.normal(0, 3, (400, 10)), rng.uniform(0, 1, (400, 10))
    drawn = own + planted * other + rng.gumbel(0, 1, (400, 10))
    targets = drawn.argmax(axis=1)

    def loss(weight: float) -> float:
        return float(fit_temperature(own + weight * other, targets)[1].mean())

    found = fit_weight(loss)
    grid = [0.0, *np.geomspace(0.01, 1e4, 400)]
    assert loss(found) <= min(map(loss, grid)) + 1e-3  # of two digits
    assert found == pytest.approx(planted, abs=1.0, rel=0.15)


def test_words_that_mislead_get_no_weight():
    rng = np.random.default_rng(6)
    own, other = rng.normal(0, 2, (200, 10)), rng.uniform(0, 1, (200, 10))
    targets = (own - 8 * other + rng.gumbel(0, 1, (200, 10))).argmax(axis=1)
    assert fit_weight(lambda weight: float(fit_temperature(own + weight * other, targets)[1].mean())) == 0.0


def test_a_part_that_was_not_wanted_has_no_score():
    parts = ScoreParts((-1.0, -2.0))
    assert parts.scores(Score("likelihood")) == (-1.0, -2.0)
    for mode in ("pmi", "constrained"):
        with pytest.raises(TaskError, match=mode):
            parts.scores(Score(mode))


# --- scores in words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("likelihood", Score("likelihood")),
        ("pmi", Score()),
        ("pmi:0.5", Score("pmi", 0.5)),
        ("pmi:0", Score("pmi", 0)),
        ("pmi:0.1", Score("pmi", 0.1)),
        ("constrained", Score("constrained")),
    ],
)
def test_a_score_is_read_back_from_its_text(text, score):
    assert (str(score), Score.parse(text)) == (text, score)


@pytest.mark.parametrize(
    "text", ["", "PMI", "generate", "pmi:", "pmi:x", "pmi:-1", "pmi:nan", "pmi:inf", "likelihood:0.5", "constrained:1"]
)
def test_what_is_no_score_is_refused(text):
    with pytest.raises(TaskError) as refused:
        Score.parse(text)
    assert refused.value.hint


def test_a_score_is_read_without_torch():
    code = "import sys; from reccocktail.tasks import Score; Score.parse('pmi'); print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- temperature ----------------------------------------------------------------------------------------------------


def losses_at(tau: float, scores, targets) -> list[float]:
    found = []
    for row, target in zip(scores, targets, strict=True):
        most = max(row)
        found.append(math.log(sum(math.exp((s - most) / tau) for s in row)) - (row[target] - most) / tau)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_temperature_has_the_least_mean_loss(seed, scale):
    rng = np.random.default_rng(seed)
    scores = [rng.normal(size=rng.integers(2, 12)) * scale for _ in range(60)]
    targets = [int(np.argmax(row + rng.gumbel(size=len(row)) * scale)) for row in scores]
    tau, losses = fit_temperature(scores, targets)
    best = minimize_scalar(
        lambda log_tau: np.mean(losses_at(math.exp(log_tau), scores, targets)),
        bounds=(math.log(scale) - 6, math.log(scale) + 6),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert tau == pytest.approx(math.exp(best.x), rel=1e-4)
    assert losses == pytest.approx(losses_at(tau, scores, targets))
    assert losses.mean() == pytest.approx(best.fun, rel=1e-9)


def test_constant_scores_say_nothing():
    tau, losses = fit_temperature([[2.0, 2.0, 2.0], [-1.0, -1.0]], [0, 1])
    assert tau == 1.0
    assert losses == pytest.approx([math.log(3), math.log(2)])


def test_scores_that_mislead_are_worth_a_guess_and_those_that_always_lead_are_certain():
    scores = [[3.0, 0.0, 0.0, 1.0], [0.0, 5.0, 1.0, 0.0]]
    tau, losses = fit_temperature(scores, [1, 0])
    assert math.isfinite(tau)
    assert losses == pytest.approx([math.log(4)] * 2, abs=1e-3)
    tau, losses = fit_temperature(scores, [0, 1])
    assert tau > 0
    assert losses == pytest.approx([0, 0], abs=1e-9)


def test_far_apart_and_shifted_scores_are_no_overflow():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(40, 10)), rng.integers(0, 10, 40)
    targets[:20] = scores[:20].argmax(axis=1)
    tau, losses = fit_temperature(scores, targets)
    shifted_tau, shifted = fit_temperature(scores * 1e6 - 1e7, targets)
    assert shifted_tau == pytest.approx(tau * 1e6, rel=1e-6)
    assert shifted == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        ([], []),
        ([[1.0, 2.0]], [2]),
        ([[1.0, 2.0]], [-1]),
        ([[1.0, math.nan]], [0]),
        ([[1.0, -math.inf]], [0]),
        ([[1.0]], [0, 0]),
    ],
)
def test_a_temperature_without_sound_questions_is_refused(scores, targets):
    with pytest.raises(TaskError):
        fit_temperature(scores, targets)
