"""Values that nobody reads may be of any length, in lines that are never held whole; the oracles are the modules json and csv."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reccocktail.tasks import DataError, read_domain
from reccocktail.tasks.readers import amazon as amazon_reader
from reccocktail.tasks.readers import lines, long_values, separated
from reccocktail.tasks.readers.long_values import JsonLine, SeparatedLine

LIMIT = 40
LONGEST, HUGE = 5_000_000, 6_000_000
PIECE = (
    "many words that nobody reads, " * 40 + "\"quoted\" or 'not', and a backslash \\ "
)  # to be escaped in JSON and CSV


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of more than LIMIT bytes are long, and a stand-in is of a length that no value has."""
    monkeypatch.setattr(long_values, "LONGEST_VALUE", LIMIT)
    monkeypatch.setattr(long_values, "STAND_IN", b"x" * 33)


def pieces(text: bytes, rng: random.Random) -> Iterator[bytes]:
    while text:
        size = rng.choice([1, 1, 2, 3, 7, 50])
        yield text[:size]
        text = text[size:]


def text_of(rng: random.Random, length: int) -> str:
    return "".join(rng.choice("ab,:;{}[]\"'\\é😀\t ") for _ in range(length))


def value_of(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 4:
        return [value_of(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        return {text_of(rng, 2): value_of(rng, depth + 1) for _ in range(rng.randrange(3))}
    return [None, True, rng.random(), text_of(rng, rng.choice([0, 3, 60]))][kind]


@pytest.mark.parametrize("written", ["json", "python"])
@pytest.mark.parametrize("seed", range(25))
def test_a_json_line_loses_its_long_values_alone(small: None, seed: int, written: str) -> None:
    rng = random.Random(seed)
    ascii_only = rng.random() < 0.5
    values = {f"k{n}": value_of(rng) for n in range(rng.randrange(5))}
    raw = {k: repr(v) if written == "python" else json.dumps(v, ensure_ascii=ascii_only) for k, v in values.items()}
    quote = "'" if written == "python" else '"'
    line = "{" + ",".join(f"{quote}{key}{quote}:{text}" for key, text in raw.items()) + "}"
    found = JsonLine()
    for piece in pieces(line.encode(), rng):
        found.add(piece)
    read = (ast.literal_eval if written == "python" else json.loads)(found.whole().decode())
    assert read == {key: v if len(raw[key].encode()) <= LIMIT else "x" * 33 for key, v in values.items()}


def doubled(field: str) -> str:
    return field.replace('"', '""')


def escaped(field: str) -> str:
    return field.replace("\\", "\\\\").replace('"', '\\"')


@pytest.mark.parametrize("way", [doubled, escaped])
@pytest.mark.parametrize("seed", range(25))
def test_a_csv_line_loses_its_long_fields_alone(small: None, seed: int, way: Any) -> None:
    rng = random.Random(seed)
    row = [text_of(rng, rng.choice([0, 1, 2, 4, 90])) for _ in range(rng.randrange(2, 6))]
    line = ",".join(f'"{way(field)}"' if set(field) & set(',"\\') or rng.random() < 0.3 else field for field in row)
    found = SeparatedLine(b",", escaped=way is escaped)
    for piece in pieces(line.encode(), rng):
        found.add(piece)
    kept = found.whole().decode()
    if way is escaped:
        kept = separated.BEFORE_A_QUOTE.sub(separated._doubled, kept)
        row = [field.replace("\\", "\\\\") if '"' not in field else field for field in row]
    (read,) = csv.reader([kept], strict=True)
    assert len(read) == len(row)
    for is_, was in zip(read, row, strict=True):
        if len(was) > 80:
            assert is_ == "x" * 33
        elif "\\" not in was:
            assert is_ == was


def test_a_line_without_quotes_loses_its_long_fields_alone(small: None) -> None:
    found = SeparatedLine(b"::", quoted=False)
    for piece in (b"1:", b':"a:b"', b"::", b"y" * 90, b"::2"):
        found.add(piece)
    assert found.whole() == b'1::"a:b"::' + b"x" * 33 + b"::2"


# whole files: lines of less than the 16 MB that they may have, so that these tests take little time


@pytest.fixture(autouse=True)
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_BYTES", LONGEST)
    monkeypatch.setattr(amazon_reader, "LONGEST_BYTES", LONGEST)


def write_csv(folder: Path, orders: str, titles: str) -> None:
    (folder / "orders.csv").write_text(orders)
    (folder / "items.csv").write_text(titles)


def long_text() -> str:
    return PIECE * (HUGE // len(PIECE))


def csv_line(*fields: str) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(fields)
    return file.getvalue()


def amazon(folder: Path, record: dict[str, Any], meta: dict[str, Any]) -> None:
    review = {"user_id": "ann", "parent_asin": "B1", "timestamp": 1_700_000_000_000, "rating": 5.0}
    reviews = [review, {**review, "parent_asin": "B2", "timestamp": 1_700_000_100_000, **record}]
    metas = [{"parent_asin": "B1", "title": "One"}, {"parent_asin": "B2", "title": "Two", **meta}]
    for name, records in (("Toys.jsonl.gz", reviews), ("meta_Toys.jsonl.gz", metas)):
        with gzip.open(folder / name, "wt", compresslevel=1) as file:
            file.writelines(json.dumps(each) + "\n" for each in records)


def titles(folder: Path) -> list[str]:
    return sorted(item.title for item in read_domain(folder).items.values())


def test_a_long_field_of_csv_that_nobody_reads_is_skipped(tmp_path: Path) -> None:
    orders = "user,item,comment\n" + csv_line("ann", "1", long_text()) + csv_line("bob", "2", "fine")
    write_csv(tmp_path, orders, "item,title\n1,One\n2,Two\n")
    data = read_domain(tmp_path)
    assert [(history.user_id, history.items) for history in data.sequences] == [("ann", ("1",)), ("bob", ("2",))]


def test_a_long_field_over_many_lines_that_nobody_reads_is_skipped(tmp_path: Path) -> None:
    story = 'a line that says "hello"\nand one that says nothing\n' * (HUGE // 50)
    rows = csv_line("ann", "1", story) + csv_line("bob", "2", "fine")
    write_csv(tmp_path, "user,item,comment\n" + rows, "item,title\n1,One\n2,Two\n")
    data = read_domain(tmp_path)
    assert [(history.user_id, history.items) for history in data.sequences] == [("ann", ("1",)), ("bob", ("2",))]


def test_long_values_of_json_that_nobody_reads_are_skipped(tmp_path: Path) -> None:
    nested = [{"large": "y" * 1000, "n": number} for number in range(HUGE // 1000)]
    amazon(tmp_path, {"text": long_text(), "images": nested}, {"description": [long_text()]})
    assert titles(tmp_path) == ["One", "Two"]


@pytest.mark.parametrize("field", ["title", "store"])
def test_a_long_value_that_is_read_is_refused_with_its_line_and_the_way_out(tmp_path: Path, field: str) -> None:
    amazon(tmp_path, {}, {field: "y" * HUGE})
    with pytest.raises(DataError, match=r"meta_Toys\.jsonl\.gz, line 2: .*131,072") as caught:
        read_domain(tmp_path)
    assert caught.value.hint


def test_a_line_of_which_too_much_is_left_says_the_way_out(tmp_path: Path) -> None:
    amazon(tmp_path, {f"k{number}": "y" * 1_000_000 for number in range(7)}, {})
    with pytest.raises(DataError, match=r"Toys\.jsonl\.gz, line 2: longer than 5,000,000 bytes") as caught:
        read_domain(tmp_path)
    assert "leave out" in (caught.value.hint or "")


@pytest.mark.parametrize("make", [JsonLine, lambda: SeparatedLine(b",")])
def test_no_more_is_held_than_64_mb(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        for _ in range(20):
            file.write(b'{"k":"' + b"y" * 1_000_000)
    tracemalloc.start()
    try:
        ((number, line),) = lines.lines(path, longest=lines.LONGEST_BYTES, without=make)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert number == 1
    assert len(line) < 1_000_000
    assert peak < 64_000_000
