"""Forms of pages: what was typed, what it means, and by field what is wrong with it, so that a form comes back as it was sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ...registry.errors import RecCocktailError, UsageError
from ..errors import STATUSES
from .hints import on_page

M = TypeVar("M", bound=BaseModel)


class FormError(UsageError):
    """Fields of a form mean nothing. `problems` says by field why; the code is that of the first."""

    def __init__(self, problems: Mapping[str, str], code: str = UsageError.code) -> None:
        found = "; ".join(f"{name.replace('_', ' ')}: {text}" for name, text in problems.items())
        super().__init__(found)
        self.code, self.problems = code, dict(problems)

    @property
    def summary(self) -> str:
        """For a page that says the rest beside each field."""
        return f"correct what is marked below: {', '.join(name.replace('_', ' ') for name in self.problems)}"


class Problems:
    """Collects what is wrong with the fields of one form, so that all of it is shown at once."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._code = UsageError.code

    @contextmanager
    def of(self, name: str, kind: type[RecCocktailError] = RecCocktailError) -> Iterator[None]:
        """What is refused inside is the field's fault if it is of that kind; what is no fault of who asks is raised."""
        try:
            yield
        except kind as error:
            if STATUSES.get(error.code, 500) >= 500:
                raise
            if not self._found:
                self._code = error.code
            hint = on_page(error.hint)
            self._found[name] = f"{error}; {hint}" if hint else str(error)

    def expect_none(self) -> None:
        """Raises FormError."""
        if self._found:
            raise FormError(self._found, self._code)


@dataclass(frozen=True)
class Filled:
    """What the fields of a page are filled with instead of what holds, and what is wrong with them."""

    typed: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent(Generic[M]):
    """A form as it came: `typed` by field, `known` what is right of it, and `problems` of the fields that are malformed."""

    typed: Mapping[str, str]
    known: M
    problems: Mapping[str, str]

    def read(self) -> M:
        """Raises FormError."""
        if self.problems:
            raise FormError(self.problems)
        return self.known

    @classmethod
    def of(cls, model: type[M], fields: Iterable[tuple[str, object]]) -> Sent[M]:
        """`model` has a value of its own for each field that a person fills in."""
        typed = {key: text for key, text in fields if isinstance(text, str)}
        try:
            return cls(typed, model.model_validate(typed), {})
        except ValidationError as error:
            problems = {str(each["loc"][0]): each["msg"] for each in error.errors()}
        good = {key: text for key, text in typed.items() if key not in problems}
        return cls(typed, model.model_validate(good), problems)


def form_of(model: type[M]) -> Callable[[Request], Awaitable[Sent[M]]]:
    """A dependency: the form that was posted."""

    async def read(request: Request) -> Sent[M]:
        return Sent.of(model, (await request.form()).multi_items())

    return read


def query_of(model: type[M]) -> Callable[[Request], Sent[M]]:
    """A dependency: the form that was sent as the address's query."""

    def read(request: Request) -> Sent[M]:
        return Sent.of(model, request.query_params.multi_items())

    return read
