"""What can be learned where, shown by two oracles that know titles only: the general rules as written in the docstring, and
next-step counts taken from a shop's training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from reccocktail.cli.domains import facts_lines
from reccocktail.tasks import (
    SAMPLE_DOMAINS,
    DomainData,
    History,
    Question,
    TaskError,
    describe,
    examples,
    generate,
    load_template,
    questions,
    read_domain,
    write_domain,
)

MATURE = [domain.name for domain in SAMPLE_DOMAINS if domain.mature]
CHANCE = 0.1
Scorer = Callable[[list[str], str], float]  # history titles, candidate title


@cache
def shop(name: str) -> DomainData:
    return generate(name)


def spirit_oracle(history: list[str], candidate: str) -> float:
    brand, product, variant = candidate.split()
    tiered = [title.split() for title in history if title.endswith(("Basic", "Plus", "Prime"))]
    if variant in ("Refill", "Kit"):
        return 2 * any(title.split()[:2] == [brand, product] for title in history[-3:])
    return float(bool(tiered) and tiered[-1][0] == brand and tiered[-1][2] == variant and tiered[-1][1] != product)


def step(title: str) -> str:
    _, product, variant = title.split()
    return product if variant in ("Basic", "Plus", "Prime") else f"{product} {variant}"


def ingredient_oracle(data: DomainData) -> Scorer:
    counts: Counter[tuple[str, str]] = Counter()
    for example in examples(data, "train"):
        counts[step(data.items[example.history[-1]].title), step(data.items[example.target].title)] += 1
    return lambda history, candidate: counts[step(history[-1]), step(candidate)]


def hit_rate(data: DomainData, scorer: Scorer, rule: str | None = None) -> float:
    """HR@1 on the test split, or on its questions made by `rule`; equal scores share the hit."""
    last_rule = {history.user_id: history.fields["rules"][-1] for history in data.sequences}
    _, asked = questions(data, "test", load_template("pick-one"))
    hits = [_hit(data, scorer, q) for q in asked if rule in (None, last_rule[q.example.user_id])]
    return sum(hits) / len(hits)


def _hit(data: DomainData, scorer: Scorer, asked: Question) -> float:
    history = [data.items[item_id].title for item_id in asked.example.history]
    scores = [scorer(history, title) for title in asked.titles]
    return (scores[asked.target_index] == max(scores)) / scores.count(max(scores))


@pytest.mark.parametrize("name", MATURE)
def test_general_rules_answer_most_questions_of_a_mature_shop(name):
    assert hit_rate(shop(name), spirit_oracle) > 0.5
    assert hit_rate(shop(name), spirit_oracle, "follow_up") > 0.8
    assert hit_rate(shop(name), spirit_oracle, "loyal") > 0.5


def test_general_rules_answer_the_general_half_of_the_young_shop_and_not_its_order():
    assert hit_rate(shop("skin-care"), spirit_oracle, "follow_up") > 0.8
    assert hit_rate(shop("skin-care"), spirit_oracle, "loyal") > 0.5
    assert hit_rate(shop("skin-care"), spirit_oracle, "order") < 1.2 * CHANCE


def test_the_young_shops_training_rows_teach_its_order_and_not_the_general_rules():
    scorer = ingredient_oracle(shop("skin-care"))
    assert hit_rate(shop("skin-care"), scorer, "order") > 4 * CHANCE  # many come after a purchase of the general rules
    assert hit_rate(shop("skin-care"), scorer, "follow_up") < 1.5 * CHANCE
    assert hit_rate(shop("skin-care"), scorer, "loyal") < 1.5 * CHANCE


def test_both_together_answer_more_than_either():
    data = shop("skin-care")
    ingredient = ingredient_oracle(data)
    both = hit_rate(data, lambda h, c: 3 * spirit_oracle(h, c) + min(ingredient(h, c), 4))
    assert both > hit_rate(data, spirit_oracle) + 0.1
    assert both > hit_rate(data, ingredient) + 0.1


@pytest.mark.parametrize("name", [domain.name for domain in SAMPLE_DOMAINS])
def test_popularity_alone_answers_few_questions(name):
    data = shop(name)
    counts = Counter(example.target for example in examples(data, "train"))
    popularity = {item.title: counts[item_id] for item_id, item in data.items.items()}
    assert hit_rate(data, lambda history, candidate: popularity[candidate]) < 2.5 * CHANCE


def test_the_young_shop_has_cold_targets():
    assert len(examples(shop("skin-care"), "cold")) > 10


def test_the_young_shops_validation_shows_both_kinds_of_reasons_as_its_test_does():
    shares = []
    for place in (-2, -1):
        rules = [history.fields["rules"][place] for history in shop("skin-care").sequences]
        shares.append(sum(rule in ("follow_up", "loyal") for rule in rules) / len(rules))
    assert min(shares) > 0.35
    assert abs(shares[0] - shares[1]) < 0.15


@pytest.mark.parametrize("domain", SAMPLE_DOMAINS, ids=lambda domain: domain.name)
def test_a_shop_has_the_size_it_is_meant_to_have(domain):
    facts = describe(shop(domain.name))
    assert facts.users == domain.users
    assert 60 <= facts.items <= 160
    assert facts.missing_titles == facts.repeats == 0
    lengths = {len(history.items) for history in shop(domain.name).sequences}
    assert (min(lengths), max(lengths)) == domain.lengths


def test_shops_share_the_words_for_variants_but_no_title_brand_or_product():
    for field in "brand", "product":
        values = [{item.fields[field] for item in shop(d.name).items.values()} for d in SAMPLE_DOMAINS]
        assert sum(map(len, values)) == len(set.union(*values))
    for domain in SAMPLE_DOMAINS:
        variants = {item.fields["variant"] for item in shop(domain.name).items.values()}
        assert variants >= {"Basic", "Plus", "Prime", "Refill", "Kit"}


def without_times(data: DomainData) -> DomainData:
    histories = [
        History(history.user_id, history.items, {"rules": history.fields["rules"]}) for history in data.sequences
    ]
    return DomainData.of(data.name, data.items.values(), histories)


def test_a_shop_is_the_same_on_every_machine():
    purchases = {name: without_times(shop(name)).digest for name in ("skin-care", "garden")}
    assert purchases["skin-care"] == "sha256:d831e26e2fab8588ecd57199105efef1bdee925e4cf0c3c7276990f70553c6e5"
    assert purchases["garden"] == "sha256:bf69b1c3d0036148f24a50230d7fe81e1b213bd111f5e99f08906fc878bd1a28"
    assert shop("skin-care").digest == "sha256:bd56a94862850b9d76dd9fbfec1388534a4c30b845034fd83434ed6e9978c970"
    assert shop("garden").digest == "sha256:04b75ccfe0bda2e2497d1052d5866fbc879b66337116573f058b8c6ef528bccc"


@pytest.mark.parametrize("name", [domain.name for domain in SAMPLE_DOMAINS])
def test_purchases_have_times_that_follow_each_other(name: str, tmp_path: Path):
    for history in shop(name).sequences:
        times = history.fields["timestamps"]
        assert len(times) == len(history.items)
        assert all(earlier < later for earlier, later in pairwise(times))
    write_domain(shop(name), tmp_path)
    back = read_domain(tmp_path, name)
    assert back.digest == shop(name).digest
    assert [*facts_lines(describe(back))[1:]] == []


def test_another_seed_makes_other_shoppers_and_more_users_only_add_some():
    assert generate("garden", seed=1).digest != shop("garden").digest
    assert generate("garden", users=5).sequences == shop("garden").sequences[:5]


def test_an_unknown_shop_is_answered_with_the_known_ones():
    with pytest.raises(TaskError, match="no sample domain is called 'books'") as error:
        generate("books")
    assert "skin-care" in (error.value.hint or "")
