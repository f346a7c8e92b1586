"""Items by what people write of them, and files that list candidates."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from reccocktail.tasks import Catalogue, DataError, DomainData, Item, read_listed

ITEMS = [
    Item("a1", "Rose Cream, 50 ml"),
    Item("a2", "rose cream 50 ML"),
    Item("b1", "Green Tea"),
    Item("b2", ""),
    Item("7", "Seven"),
    Item("8", "7"),
    Item("x", "{braces}"),
]
CATALOGUE = Catalogue(DomainData.of("shop", ITEMS, []))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("b1", "b1"),
        ("  green   TEA!", "b1"),
        ("Rose cream - 50 ml", "a1"),
        ("a2", "a2"),
        ("8", "8"),
        ("b2", None),
        ("", None),
        ("B1", None),
    ],
)
def test_an_item_is_found_by_its_id_or_its_title(text, found):
    item = CATALOGUE.find(text)
    assert (item and item.item_id) == found


def test_the_id_of_one_item_that_is_the_title_of_another_is_refused():
    with pytest.raises(DataError):
        CATALOGUE.find("7")


def test_what_is_near_is_an_id_that_is_spelled_alike_or_a_title_with_the_same_words():
    catalogue = Catalogue(DomainData.of("shop", [Item("B00X7", "Rose Cream"), Item("B00Q9", "Green Tea")], []))
    assert catalogue.near("B00X8") == "B00X7"
    assert catalogue.near("a tea that is green") == "Green Tea"
    assert catalogue.near("chair") is None


def listed(tmp_path: Path, text: str, name: str = "some.txt"):
    (tmp_path / name).write_text(text)
    return read_listed(tmp_path / name, CATALOGUE)


def test_lines_of_ids_and_titles_are_read_each_item_once_in_their_order(tmp_path):
    found = listed(tmp_path, "\ufeffGreen Tea\r\n\n  b1 \nRose cream 50 ml\nx\n8\n")
    assert [item.item_id for item in found.items] == ["b1", "a1", "x", "8"]
    assert (found.repeats, found.retitled) == (1, 0)


def test_json_lines_name_items_by_id_or_title(tmp_path):
    text = '{"item_id": "a1", "title": "Something else"}\n{"title": "green tea", "price": 3}\n{"item_id": "7"}\n{"item_id": "b1", "title": "Green tea"}'
    found = listed(tmp_path, text, "some.jsonl")
    assert [item.item_id for item in found.items] == ["a1", "b1", "7"]
    assert (found.repeats, found.retitled) == (1, 1)
    with gzip.open(tmp_path / "some.jsonl.gz", "wt") as file:
        file.write(text)
    assert read_listed(tmp_path / "some.jsonl.gz", CATALOGUE) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("b1\nB1x\nb2\n", ["line 2: 'B1x'", "line 3: 'b2' has no title"]),
        ("green tee\n", ["line 1", "near: 'Green Tea'"]),
        ('{"item_id": "Green Tea"}\n', ["line 1: 'Green Tea'"]),
        ('{"title": "b1"}\n', ["line 1"]),
        ("7\n", ["line 1", "is the id of"]),
        ('{"item_id": 7}\n', ["line 1", "must be text"]),
        ('{"price": 7}\n', ["line 1", "must be"]),
        ('{"item_id": \n', ["line 1"]),
        ("\n \n", ["no item"]),
        ("\n".join("nowhere" + "x" * n for n in range(9)), ["line 3", "and 6 more"]),
    ],
)
def test_what_names_no_item_is_refused_with_its_line_and_what_is_near(tmp_path, text, said):
    with pytest.raises(DataError) as refused:
        listed(tmp_path, text)
    assert str(tmp_path / "some.txt") in str(refused.value)
    assert all(part in str(refused.value) for part in said), refused.value


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.txt"):
        read_listed(tmp_path / "absent.txt", CATALOGUE)
