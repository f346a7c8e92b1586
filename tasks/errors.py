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
