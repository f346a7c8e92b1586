"""What `sft` learns with `task=clicks`: to answer whether a user likes an item, from a sample of rows that is drawn once (TALLRec, arXiv 2305.00447)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...tasks import (
    ClickData,
    ClickPart,
    ClickQuestions,
    ClickRow,
    ClickTemplate,
    DomainData,
    click_data,
    click_questions,
    load_click_template,
)
from .options import SftOptions
from .pool import Pool, count_of, validation_spec

LABELLED = 2  # of a user's items, the latest: the validation and the test target of the task `rank`


def click_pools(domains: Sequence[DomainData], options: SftOptions) -> tuple[ClickTemplate, Pool, Pool]:
    """The template, what is learned, and what is validated on. Raises TaskError for a template or for data that give no clicks."""
    template = load_click_template(options.template)
    clicks = [click_data(data, options.clicks) for data in domains]
    learned = [
        _drawn(each, "train", template, options, count_of(each.name, len(each.train), options)) for each in clicks
    ]
    checked = [_drawn(each, "validation", template, options, options.validation_examples) for each in clicks]
    specs = [_validation_spec(*both, options) for both in zip(learned, checked, strict=True)]
    questions = [question for each in checked for question in each.in_words()]
    sources = [data for data, each in zip(domains, checked, strict=True) for _ in each.rows]
    return template, _learned_pool(domains, learned, options), Pool(tuple(questions), tuple(sources), tuple(specs))


def _drawn(
    clicks: ClickData, part: ClickPart, template: ClickTemplate, options: SftOptions, count: int
) -> ClickQuestions:
    return click_questions(clicks, part, template, limit=count, seed=options.seed)


def _learned_pool(domains: Sequence[DomainData], learned: Sequence[ClickQuestions], options: SftOptions) -> Pool:
    """Where a domain's weight asks for more rows than there are, they repeat."""
    picked, sources, specs = [], [], []
    for data, each in zip(domains, learned, strict=True):
        count = count_of(data.name, len(each.clicks.train), options)
        words = each.in_words()
        picked += [words[number % len(words)] for number in range(count)]
        sources += [data] * count
        specs.append(_spec(each) | {"examples": count, "distinct": len(words)})
    return Pool(tuple(picked), tuple(sources), tuple(specs))


def _spec(asked: ClickQuestions) -> dict[str, Any]:
    likes = sum(row.label is True for row in asked.rows)
    return {
        "domain": asked.clicks.name,
        "data": asked.task.data_digest,
        "task": asked.task.digest,
        "kind": asked.task.to_json()["kind"],
        "likes": likes,
    }


def _validation_spec(learned: ClickQuestions, checked: ClickQuestions, options: SftOptions) -> dict[str, Any]:
    """With the users whose labels of the task `rank` some row shows too, so that no mix is chosen or judged by them."""
    users = {row.user_id for row in checked.rows} | {row.user_id for row in learned.rows if _is_label(row)}
    spec = validation_spec(checked.clicks.name, checked.task.data_digest, sorted(users), options)
    return spec | {"split": checked.task.split, "examples": len(checked.rows)}


def _is_label(row: ClickRow) -> bool:
    return row.position >= len(row.user.rated) - LABELLED
