"""A history as a text that a language model embeds: an instruction, then a numbered line per item. An item is a history of one.

As in Laser (arXiv 2409.01605). The text is put together from tokens, piece by piece, so that all texts begin with the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .clicks import digest_of
from .data import Item
from .documents import read_yaml
from .errors import EmptyHistoryError, TaskError, UntitledItemError
from .prompts import broken_up, special_tokens
from .validation import problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED = Path(__file__).parent  # history_NAME.yaml
DEFAULT_HISTORY_TEMPLATE = "numbered"
FIELDS = {"brand": ("brand", "store"), "category": ("category", "categories", "genres")}
"""What a template may show of an item beside its title, and the item fields that have it; the first that is there counts."""


class HistoryTemplate(BaseModel):
    """The wording of a history: `instruction`, then a line per item with its title and those of `fields` that it has.

    At most `history_limit` items are shown, and of those only the newest whose lines together have at most `history_tokens` tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    instruction: str = Field(min_length=1)
    fields: tuple[Literal["brand", "category"], ...] = ("brand", "category")
    history_limit: int = Field(20, ge=1)
    history_tokens: int = Field(512, ge=1)

    @property
    def digest(self) -> str:
        """SHA-256 of what the model gets to see, so of everything but the name."""
        return digest_of(self.model_dump(exclude={"name"}))

    def line(self, number: int, item: Item) -> str:
        """One item's line, with its end. Raises UntitledItemError."""
        if not item.title:
            raise UntitledItemError(
                f"item {item.item_id!r} has no title, so there is nothing to read of it",
                hint="give it a title, or leave it out",
            )
        known = [(name, _value(item, FIELDS[name])) for name in self.fields]
        details = [f"{name}: {value}" for name, value in known if value]
        return f"{number}. {'; '.join([item.title, *details])}\n"

    def item_digest(self, item: Item) -> str:
        """SHA-256 (hexadecimal) of all that is shown of an item. Raises UntitledItemError."""
        return hashlib.sha256(self.line(1, item).encode("utf-8", "surrogatepass")).hexdigest()

    def catalogue_digest(self, items: Mapping[str, Item]) -> str:
        """SHA-256 of the ids and of what is shown of each; histories have no part in it. Raises UntitledItemError."""
        ids = sorted(items)
        return items_digest(ids, [self.item_digest(items[item_id]) for item_id in ids])

    def shown(self, item: Item) -> Item:
        """The item with nothing but what its line shows, in plain text."""
        values = {FIELDS[name][0]: _value(item, FIELDS[name]) for name in self.fields}
        return Item(item.item_id, item.title, {name: value for name, value in values.items() if value})


def items_digest(item_ids: Sequence[str], texts: Sequence[str]) -> str:
    """SHA-256 over items by their sorted ids and the digest of what is read of each; histories have no part in it."""
    return digest_of([list(item_ids), list(texts)])


def _value(item: Item, names: Sequence[str]) -> str:
    value = next((item.fields[name] for name in names if item.fields.get(name)), "")
    parts = value if isinstance(value, list | tuple) else [value]
    return " ".join(", ".join(map(str, parts)).split())


def shipped_history_templates() -> tuple[str, ...]:
    """The names of the templates that ship."""
    return tuple(sorted(file.stem.removeprefix("history_") for file in SHIPPED.glob("history_*.yaml")))


def load_history_template(name_or_path: str | Path) -> HistoryTemplate:
    """A template that ships with the package by its name, or any other by the path of its YAML file. Raises TaskError."""
    name = str(name_or_path)
    path = SHIPPED / f"history_{name}.yaml" if name in shipped_history_templates() else Path(name_or_path)
    if not path.is_file():
        raise TaskError(
            f"no history template is called {name!r} and no such file exists",
            hint=f"templates that ship: {', '.join(shipped_history_templates())}",
        )
    try:
        return HistoryTemplate.model_validate(read_yaml(path))
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise TaskError(f"{path}: {problems(error, HistoryTemplate, whole='template')}") from error
    except ValueError as error:
        raise TaskError(f"{path} is not a YAML file: {error}") from error


@dataclass(frozen=True, slots=True)
class HistoryText:
    """The tokens of a history's lines, which follow those of the instruction, and what the budget did not allow.

    `shown` are the places of the items in the history that are in the text; `omitted` older ones are not. `shortened`: the newest item
    alone has more tokens than the budget, and its line ends early.
    """

    tokens: tuple[int, ...]
    shown: range
    omitted: int
    shortened: bool


class HistoryWriter:
    """Writes histories by a template in the tokens of one tokenizer.

    A special token that a title spells is broken up with a blank, as in every prompt.
    """

    def __init__(self, template: HistoryTemplate, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self._tokenizer = template, tokenizer
        self._special = special_tokens(tokenizer)
        self._known: dict[str, tuple[int, ...]] = {}
        self.instruction = self._ids(template.instruction)

    def write(self, history: Sequence[Item]) -> HistoryText:
        """The items, oldest first; numbers count from 1 at the oldest that is shown. Raises EmptyHistoryError, UntitledItemError."""
        if not history:
            raise EmptyHistoryError("a history without items has no embedding", hint="give at least one item")
        most, newest = self.template.history_tokens, len(history) - 1
        starts = range(max(0, len(history) - self.template.history_limit), newest)
        start = next((start for start in starts if len(self._lines(history[start:])) <= most), newest)
        tokens = self._lines(history[start:])
        return HistoryText(tokens[:most], range(start, len(history)), start, len(tokens) > most)

    def _lines(self, items: Sequence[Item]) -> tuple[int, ...]:
        lines = (self._ids(self.template.line(number, item)) for number, item in enumerate(items, start=1))
        return tuple(chain.from_iterable(lines))

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            shown = broken_up(text, self._special)
            self._known[text] = tuple(self._tokenizer(shown, add_special_tokens=False)["input_ids"])
        return self._known[text]
