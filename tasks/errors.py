"""The errors of the room: what is wrong with data, a split or a template. Same shape as the registry's errors."""

from __future__ import annotations


class TaskError(Exception):
    """Something about a recommendation task is wrong; the message says what and where, the hint what to do."""

    code = "task"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DataError(TaskError):
    """A data folder is missing a file, or a line in it does not say what it must."""

    code = "data"


class ChatTemplateError(TaskError):
    """A tokenizer's chat template takes too much time or memory, or makes too much text."""

    code = "chat_template"
