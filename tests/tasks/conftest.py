from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from reccocktail.tasks import DomainData, History, Item

MakeDomain = Callable[[dict[str, list[str]]], DomainData]
MakeFolder = Callable[..., Path]


@pytest.fixture
def domain() -> MakeDomain:
    """A domain of the items i00 to i29, titled "Title 0" to "Title 29", and the given histories."""

    def make(histories: dict[str, list[str]]) -> DomainData:
        items = [Item(f"i{number:02d}", f"Title {number}") for number in range(30)]
        return DomainData.of("shop", items, [History(user, tuple(taken)) for user, taken in histories.items()])

    return make


@pytest.fixture
def folder(tmp_path: Path) -> MakeFolder:
    """A data folder with these records, or raw lines, in its two files."""

    def write(items: list[object], sequences: list[object]) -> Path:
        for stem, records in ("items", items), ("sequences", sequences):
            lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
            (tmp_path / f"{stem}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return tmp_path

    return write
