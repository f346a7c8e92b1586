"""A domain's titled items, found by their ids or titles as people write them; and candidates listed in a file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from .candidates import wording
from .data import DomainData, Item, clean_title
from .errors import DataError
from .readers.lines import misread, objects, text_lines

SHOWN = 3  # of the lines of a file that name nothing


class Catalogue:
    """The items of a domain that have a title."""

    def __init__(self, data: DomainData) -> None:
        self.name = data.name
        self._all = data.items
        self.items = [data.items[item_id] for item_id in data.titled]
        self._by_title = {title_key(item.title): item for item in reversed(self.items)}

    def by_id(self, item_id: str) -> Item | None:
        item = self._all.get(item_id)
        return item if item is not None and item.title else None

    def by_title(self, title: str) -> Item | None:
        """The item with this title, whatever its case and punctuation; of several the first by id."""
        return self._by_title.get(title_key(clean_title(title)))

    def find(self, text: str) -> Item | None:
        """The item with this id, or else with this title. Raises DataError where one item has the id and another the title."""
        by_id, by_title = self.by_id(text), self.by_title(text)
        if by_id and by_title and title_key(by_id.title) != title_key(by_title.title):
            raise DataError(
                f"{text!r} is the id of {by_id.title!r} and the title of item {by_title.item_id!r}",
                hint="write the other one's id or title, or use JSON Lines with item_id or title",
            )
        return by_id or by_title

    def search(self, text: str, limit: int) -> list[Item]:
        """Items whose title has every word of the text, or a part of a word, whatever its case; no two whose titles say the same."""
        asked = wording(text).split()
        found = (item for key, item in self._by_title.items() if all(word in key for word in asked))
        return sorted(islice(found, limit), key=lambda item: item.title) if asked else []

    def untitled(self, item_id: str) -> bool:
        """Whether there is an item with this id that cannot be shown, for lack of a title."""
        return item_id in self._all and not self._all[item_id].title

    def near(self, text: str) -> str | None:
        """The id that is spelled most alike, else the title with most words in common; None if there is nothing like it."""
        if ids := difflib.get_close_matches(text[:100], self._all, n=1, cutoff=0.75):
            return ids[0]
        asked = _terms(text)

        def likeness(item: Item) -> float:
            found = _terms(item.title)
            return len(asked & found) / (len(asked | found) or 1)

        best = max(self.items, key=likeness, default=None)
        return best.title if best is not None and likeness(best) >= 0.25 else None


@dataclass(frozen=True, slots=True)
class ListedItems:
    """The items that a file lists, each once, in its order.

    `repeats` counts further lines of an item that was listed, `retitled` records whose title is not the catalogue's.
    """

    items: tuple[Item, ...]
    repeats: int = 0
    retitled: int = 0


def title_key(title: str) -> str:
    """Equal for titles that say the same to a reader: without case and punctuation, unless there is nothing else."""
    return wording(title) or title


def read_listed(path: Path, catalogue: Catalogue) -> ListedItems:
    """The items that a file lists: an item id or a title a line, or JSON Lines with `item_id` or `title`.

    Raises DataError for a file that cannot be read or lists nothing, and for what the catalogue does not have, with what is near.
    """
    return _listed(_entries(path), catalogue, str(path), "line")


def list_items(names: Iterable[str], catalogue: Catalogue) -> ListedItems:
    """The items with these ids or titles. Raises DataError as `read_listed`."""
    return _listed((_Entry(n, name) for n, name in enumerate(names, start=1)), catalogue, "the candidates", "entry")


def _listed(entries: Iterable[_Entry], catalogue: Catalogue, where: str, unit: str) -> ListedItems:
    found: dict[str, Item] = {}
    unknown: list[_Entry] = []
    count = retitled = 0
    for entry in entries:
        try:
            item = entry.item(catalogue)
        except DataError as error:
            raise DataError(f"{where}, {unit} {entry.number}: {error}", hint=error.hint) from error
        count += 1
        if item is None:
            unknown.append(entry)
            continue
        retitled += bool(entry.title) and title_key(clean_title(entry.title)) != title_key(item.title)
        found.setdefault(item.item_id, item)
    if unknown:
        named = "; ".join(f"{unit} {each.number}: {_missing(each.name, catalogue)}" for each in unknown[:SHOWN])
        more = f"; and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise DataError(
            f"{where}: the catalogue of {catalogue.name} does not have {named}{more}",
            hint="correct these entries, or take them out",
        )
    if not found:
        raise DataError(f"{where}: no item is listed", hint="give an item id or a title in each line")
    return ListedItems(tuple(found.values()), count - len(found), retitled)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a line of a file, or an entry of a list, names: an item by one `text`, or of JSON Lines by `item_id`, else by `title`."""

    number: int
    text: str = ""
    item_id: str = ""
    title: str = ""

    @property
    def name(self) -> str:
        return self.text or self.item_id or self.title

    def item(self, catalogue: Catalogue) -> Item | None:
        """Raises DataError where the text is ambiguous."""
        if self.text:
            return catalogue.find(self.text)
        return catalogue.by_id(self.item_id) if self.item_id else catalogue.by_title(self.title)


def _entries(path: Path) -> Iterator[_Entry]:
    """Blank lines are passed over."""
    if not _is_json_lines(path):
        for number, line in text_lines(path):
            if text := " ".join(line.split()):
                yield _Entry(number, text)
        return
    for number, record in objects(path):
        item_id, title = record.get("item_id") or "", record.get("title") or ""
        if not isinstance(item_id, str) or not isinstance(title, str) or not item_id + title:
            raise misread(path, number, ValueError(f"item_id or title must be text, found {item_id!r} and {title!r}"))
        yield _Entry(number, item_id=item_id, title=title)


def _is_json_lines(path: Path) -> bool:
    first = next((line for _, line in text_lines(path) if line.strip()), "")
    return first.lstrip().startswith("{")


def _terms(text: str) -> set[str]:
    return set(wording(text).split())


def _missing(text: str, catalogue: Catalogue) -> str:
    if catalogue.untitled(text):
        return f"{text[:100]!r} has no title, so no model can rank it"
    near = catalogue.near(text)
    return f"{text[:100]!r}" + (f" (near: {near!r})" if near else "")
