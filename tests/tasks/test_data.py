from __future__ import annotations

import gzip
import json
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import DataError, DomainData, History, Item, describe, read_domain, write_domain

PEN = {"item_id": "pen", "title": "A Pen", "brand": "Bic"}
PAD = {"item_id": "pad", "title": "A Pad"}
ANN = {"user_id": "ann", "items": ["pen", "pad", "pen"]}


def test_a_folder_is_read_with_everything_its_lines_say(folder):
    data = read_domain(folder([PEN, PAD], [{**ANN, "age": 7}]))
    assert data.items["pen"] == Item("pen", "A Pen", {"brand": "Bic"})
    assert data.sequences == (History("ann", ("pen", "pad", "pen"), {"age": 7}),)


def test_a_domain_is_named_after_its_folder_unless_told_otherwise(folder):
    path = folder([PEN, PAD], [ANN]).rename(folder([], []).parent / "office_products")
    assert read_domain(path).name == "office-products"
    assert read_domain(path, "desks").name == "desks"


def test_the_digest_is_of_the_content_not_of_the_files(folder):
    path = folder([PEN, PAD], [ANN, {"user_id": "bob", "items": []}])
    plain = read_domain(path)
    folder([PAD, dict(reversed(PEN.items()))], [{"user_id": "bob", "items": []}, ANN])
    for name in "items", "sequences":
        file = path / f"{name}.jsonl"
        (path / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\n" + file.read_bytes()))
        file.unlink()
    assert read_domain(path, "another name").digest == plain.digest
    assert plain.digest.startswith("sha256:")


@pytest.mark.parametrize(
    ("items", "sequences"),
    [
        ([PEN, {**PAD, "title": "Two Pads"}], [ANN]),
        ([PEN, {**PAD, "brand": "Bic"}], [ANN]),
        ([PEN, PAD], [{**ANN, "items": ["pad", "pen", "pen"]}]),
        ([PEN, PAD], [{**ANN, "user_id": "bob"}]),
    ],
)
def test_other_content_has_another_digest(folder, items, sequences):
    before = read_domain(folder([PEN, PAD], [ANN])).digest
    assert read_domain(folder(items, sequences)).digest != before


@pytest.mark.parametrize(
    ("items", "sequences", "where", "what"),
    [
        (["{"], [], "items.jsonl, line 1", "Expecting"),
        ([PEN, "", "[1]"], [], "items.jsonl, line 3", "expected a JSON object, found list"),
        ([{"title": "A Pen"}], [], "items.jsonl, line 1", "item_id must be non-empty text, found None"),
        ([{"item_id": 7}], [], "items.jsonl, line 1", "item_id must be non-empty text, found 7"),
        ([{**PEN, "title": 7}], [], "items.jsonl, line 1", "title must be text or null, found 7"),
        ([PEN, PAD, PEN], [], "items.jsonl, line 3", "item_id 'pen' was used before"),
        (["[" * 100_000], [], "items.jsonl, line 1", "recursion"),
        ([PEN, PAD], [{"items": []}], "sequences.jsonl, line 1", "user_id must be"),
        ([PEN, PAD], [{"user_id": "ann"}], "sequences.jsonl, line 1", "items must be a list of item_ids, found None"),
        ([PEN, PAD], [{**ANN, "items": [1]}], "sequences.jsonl, line 1", "items must be a list of item_ids, found [1]"),
        ([PEN, PAD], [ANN, ANN], "sequences.jsonl, line 2", "user_id 'ann' was used before"),
        ([PEN], [ANN], "sequences.jsonl, line 1", "item 'pad' is not among the items"),
        ([PEN, PAD], [{**ANN, "timestamps": [1, 2]}], "sequences.jsonl, line 1", "timestamps must be a list of 3"),
        ([PEN, PAD], [{**ANN, "ratings": 5}], "sequences.jsonl, line 1", "ratings must be a list of 3"),
        ([PEN, PAD], [{**ANN, "timestamps": [1, 2, "3"]}], "sequences.jsonl, line 1", "must be numbers, found '3'"),
        ([PEN, PAD], [{**ANN, "timestamps": [1, 2, float("nan")]}], "line 1", "must be numbers, found None"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(folder, items, sequences, where, what):
    with pytest.raises(DataError) as error:
        read_domain(folder(items, sequences))
    assert where in str(error.value)
    assert what in str(error.value)


@pytest.mark.parametrize("missing", ["items", "sequences"])
def test_a_missing_file_is_named(folder, missing):
    path = folder([PEN], [])
    (path / f"{missing}.jsonl").unlink()
    with pytest.raises(DataError, match=rf"holds no {missing}\.jsonl"):
        read_domain(path)


def test_a_file_in_two_forms_is_refused(folder):
    path = folder([PEN], [])
    (path / "items.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="both plain and gzipped"):
        read_domain(path)


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(b'{"item_id": "pen"}\n')[:-5]], ids=["not gzip", "cut off"]
)
def test_a_broken_gzip_file_is_named(folder, content):
    path = folder([PEN], [])
    (path / "items.jsonl").unlink()
    (path / "items.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"items\.jsonl\.gz, after line"):
        read_domain(path)


def test_a_decompression_bomb_is_refused_before_it_unfolds(folder):
    path = folder([PEN], [])
    (path / "items.jsonl").unlink()
    (path / "items.jsonl.gz").write_bytes(gzip.compress(b'{"item_id": "' + b"a" * 50_000_000))
    with pytest.raises(DataError, match=r"line 1: longer than 1,000,000 bytes"):
        read_domain(path)


def test_interactions_follow_their_timestamps_and_equal_times_keep_their_order(folder):
    line = {"user_id": "ann", "items": ["a", "b", "c"], "timestamps": [5, 3, 3], "ratings": [1, 2, 3]}
    history = read_domain(folder([{"item_id": i, "title": i} for i in "abc"], [line])).sequences[0]
    assert history.items == ("b", "c", "a")
    assert history.fields == {"timestamps": [3, 3, 5], "ratings": [2, 3, 1]}


@pytest.mark.parametrize("title", ["null", '""', '"  "', '"nan"', '"NaN"', "NaN"])
def test_an_item_without_a_title_is_kept_and_counted_but_never_shown(folder, title):
    data = read_domain(folder([PEN, f'{{"item_id": "pad", "title": {title}}}'], [ANN]))
    assert describe(data).missing_titles == 1
    assert data.titled == ("pen",)
    assert data.by_user == {"ann": ("pen", "pen")}


def test_facts_count_users_items_interactions_and_repeats(folder):
    facts = describe(read_domain(folder([PEN, PAD], [ANN, {"user_id": "bob", "items": ["pen"]}])))
    assert (facts.users, facts.items, facts.interactions, facts.repeats, facts.missing_titles) == (2, 2, 4, 1, 0)
    assert (facts.never_taken, facts.too_short, facts.first_time, facts.last_time) == (0, 1, None, None)


def test_facts_tell_when_and_what_was_never_taken(folder):
    sequences = [{**ANN, "items": ["pen", "pen"], "timestamps": [9, 4]}, {"user_id": "bob", "items": []}]
    facts = describe(read_domain(folder([PEN, PAD], sequences)))
    assert (facts.first_time, facts.last_time, facts.never_taken, facts.too_short) == (4, 9, 1, 2)
    assert facts.format == "reccocktail jsonl"


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))))
def test_arrays_and_lists_of_equal_numbers_are_the_same_data(tmp_path_factory, rows):
    def domain(times: Sequence[int], ratings: Sequence[float]) -> DomainData:
        history = History("ann", ("pen",) * len(rows), {"timestamps": times, "ratings": ratings})
        return DomainData.of("shop", [Item("pen", "A Pen")], [history])

    times, ratings = [time for time, _ in rows], [rating for _, rating in rows]
    lists, arrays = domain(times, ratings), domain(array("q", times), array("d", ratings))
    assert lists.digest == arrays.digest
    written = []
    for data in lists, arrays:
        folder = tmp_path_factory.mktemp("data")
        write_domain(data, folder)
        written.append((folder / "sequences.jsonl").read_bytes())
    assert written[0] == written[1]


def test_where_data_came_from_is_no_part_of_what_they_say(folder):
    data = read_domain(folder([PEN, PAD], [ANN]), "shop")
    made = DomainData.of("shop", data.items.values(), data.sequences)
    assert (made, made.digest, made.format) == (data, data.digest, "in memory")


NAMES = st.text(min_size=1, max_size=5)


@given(titles=st.dictionaries(NAMES, st.text(max_size=9), min_size=1), users=st.sets(NAMES), draw=st.data())
def test_what_is_written_is_read_back_to_the_same_digest(tmp_path_factory, titles, users, draw):
    from reccocktail.tasks.data import clean_title

    items = [Item(item_id, clean_title(title), {"n": 1}) for item_id, title in titles.items()]
    taken = st.lists(st.sampled_from(sorted(titles))).map(tuple)
    data = DomainData.of("shop", items, [History(user, draw.draw(taken)) for user in users])
    folder = tmp_path_factory.mktemp("data")
    write_domain(data, folder)
    assert read_domain(folder, "shop") == data


def test_real_lines_with_odd_characters_survive(folder):
    data = read_domain(folder(['{"item_id": "\\ud800", "title": "Caf\\u00e9\\u2028 \\ud800"}'], []))
    assert data.items["\ud800"].title == "Café ?"
    assert json.dumps(data.digest)
