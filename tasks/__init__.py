"""What recommending means: interactions, splits, candidates, prompts, ranking, metrics. Imports nothing until it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalogue import Catalogue, ListedItems, list_items, read_listed, title_key
    from .data import DataFacts, DomainData, History, Item, describe, write_domain
    from .errors import DataError, TaskError
    from .filters import at_least_rated, k_core
    from .generation import GeneratedRanking, answer_ends, rank_by_generation, read_answer
    from .metrics import Interval, auc, hit_rate, mean_interval, mrr, ndcg, paired_difference, summarise
    from .popularity import known, rank_by_popularity
    from .prompts import (
        DEFAULT_TEMPLATE,
        OpenQuestion,
        Question,
        TaskSpec,
        Template,
        fit,
        load_template,
        open_question,
        parse_template,
        question,
        questions,
        read_open_questions,
        read_questions,
        shipped_templates,
        shown_titles,
        write_questions,
    )
    from .pseudo_users import pseudo_questions
    from .ranking import Ranking
    from .readers import read_domain
    from .retrieval import Retriever
    from .samples import SAMPLE_DOMAINS, SampleDomain, generate
    from .sasrec import SasRecOptions, rank_by_sasrec
    from .scores import SCORES, Score, ScoreMode, ScoreParts, fit_temperature, fit_weight, rank_candidates, score_parts
    from .splits import Example, Split, examples, sample, user_digest
    from .tfidf import Likeness, rank_by_tfidf
    from .title_trie import TitleTrie

__all__ = [
    "DEFAULT_TEMPLATE",
    "SAMPLE_DOMAINS",
    "SCORES",
    "Catalogue",
    "DataError",
    "DataFacts",
    "DomainData",
    "Example",
    "GeneratedRanking",
    "History",
    "Interval",
    "Item",
    "Likeness",
    "ListedItems",
    "OpenQuestion",
    "Question",
    "Ranking",
    "Retriever",
    "SampleDomain",
    "SasRecOptions",
    "Score",
    "ScoreMode",
    "ScoreParts",
    "Split",
    "TaskError",
    "TaskSpec",
    "Template",
    "TitleTrie",
    "answer_ends",
    "at_least_rated",
    "auc",
    "describe",
    "examples",
    "fit",
    "fit_temperature",
    "fit_weight",
    "generate",
    "hit_rate",
    "k_core",
    "known",
    "list_items",
    "load_template",
    "mean_interval",
    "mrr",
    "ndcg",
    "open_question",
    "paired_difference",
    "parse_template",
    "pseudo_questions",
    "question",
    "questions",
    "rank_by_generation",
    "rank_by_popularity",
    "rank_by_sasrec",
    "rank_by_tfidf",
    "rank_candidates",
    "read_answer",
    "read_domain",
    "read_listed",
    "read_open_questions",
    "read_questions",
    "sample",
    "score_parts",
    "shipped_templates",
    "shown_titles",
    "summarise",
    "title_key",
    "user_digest",
    "write_domain",
    "write_questions",
]

_HOMES = {
    "catalogue": ("Catalogue", "ListedItems", "list_items", "read_listed", "title_key"),
    "data": ("DataFacts", "DomainData", "History", "Item", "describe", "write_domain"),
    "errors": ("DataError", "TaskError"),
    "filters": ("at_least_rated", "k_core"),
    "generation": ("GeneratedRanking", "answer_ends", "rank_by_generation", "read_answer"),
    "metrics": ("Interval", "auc", "hit_rate", "mean_interval", "mrr", "ndcg", "paired_difference", "summarise"),
    "popularity": ("known", "rank_by_popularity"),
    "tfidf": ("Likeness", "rank_by_tfidf"),
    "title_trie": ("TitleTrie",),
    "prompts": (
        "DEFAULT_TEMPLATE",
        "OpenQuestion",
        "Question",
        "TaskSpec",
        "Template",
        "fit",
        "load_template",
        "open_question",
        "parse_template",
        "question",
        "questions",
        "read_open_questions",
        "read_questions",
        "shipped_templates",
        "shown_titles",
        "write_questions",
    ),
    "pseudo_users": ("pseudo_questions",),
    "readers": ("read_domain",),
    "retrieval": ("Retriever",),
    "ranking": ("Ranking",),
    "sasrec": ("SasRecOptions", "rank_by_sasrec"),
    "samples": ("SAMPLE_DOMAINS", "SampleDomain", "generate"),
    "scores": (
        "SCORES",
        "Score",
        "ScoreMode",
        "ScoreParts",
        "fit_temperature",
        "fit_weight",
        "rank_candidates",
        "score_parts",
    ),
    "splits": ("Example", "Split", "examples", "sample", "user_digest"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
