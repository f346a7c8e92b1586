"""Errors about data, splits, templates and metrics."""

from __future__ import annotations

from ..registry.errors import RecCocktailError


class TaskError(RecCocktailError):
    """Something about a recommendation task is wrong."""

    code = "task"


class DataError(TaskError):
    """A data folder is missing a file, or a line in it does not say what it must."""

    code = "data"


class ChatTemplateError(TaskError):
    """A tokenizer's chat template takes too much time or memory, or makes too much text."""

    code = "chat_template"


class NoRatingsError(DataError):
    """Clicks are made of ratings, and the domain has none."""

    code = "no_ratings"


class NoNegativesError(DataError):
    """A rating filter left nothing below the threshold: all clicks would be positive."""

    code = "no_negatives"


class OneClassError(DataError):
    """All labels are the same, where likes are to be told from dislikes."""

    code = "one_class"


class AnswerTokenError(TaskError):
    """An answer whose probability is wanted is not one token of this tokenizer, or both are the same."""

    code = "answer_token"


class UntitledItemError(TaskError):
    """An item without a title was to be put into words."""

    code = "untitled_item"


class EmptyHistoryError(TaskError):
    """A history without items was to be put into words."""

    code = "empty_history"
