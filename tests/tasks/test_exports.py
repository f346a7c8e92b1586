"""Files as other programs export them: their encodings, missing values, ids, quotes, long fields and splits."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import DataError, DomainData, History, Item, describe, read_domain, write_domain

ITEMS = "item,title\n1,A Pen\n2,A Pad\n"


def put(folder: Path, **files: str | bytes) -> Path:
    """The files, named with `__` for a dot; names in gz are zipped, text is UTF-8."""
    for name, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        path = folder / name.replace("__", ".")
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return folder


def taken(data: DomainData) -> dict[str, list[str]]:
    return {history.user_id: list(history.items) for history in data.sequences}


def titles(data: DomainData) -> dict[str, str]:
    return {item_id: item.title for item_id, item in data.items.items()}


def refusal(folder: Path) -> tuple[str, str]:
    with pytest.raises(DataError) as error:
        read_domain(folder)
    return str(error.value), error.value.hint or ""


# Encodings ------------------------------------------------------------------------------------------------------------

FILM = "1::Misérables, Les (1995)::Drama\n"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig", "utf-16"])
def test_movielens_1m_is_read_in_the_encoding_that_its_copy_has(tmp_path: Path, encoding: str):
    put(tmp_path, ratings__dat="1::1::5::978300760\n", movies__dat=FILM.encode(encoding))
    put(tmp_path, users__dat="1::F::1::10::48067\n")
    assert titles(read_domain(tmp_path)) == {"1": "Misérables, Les (1995)"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_byte_order_mark_says_the_encoding_in_every_format(tmp_path: Path, encoding: str):
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    rows = f"{mark}user,item\r\nAna Núñez,1\r\n".encode(encoding)
    put(tmp_path, a__csv__gz=rows, b__csv=f"{mark}item,title\n1,Crème\n".encode(encoding))
    data = read_domain(tmp_path)
    assert (taken(data), titles(data)) == ({"Ana Núñez": ["1"]}, {"1": "Crème"})
    for path in list(tmp_path.iterdir()):
        path.unlink()
    put(tmp_path, items__jsonl=f'{mark}{{"item_id": "1", "title": "Crème"}}\n'.encode(encoding))
    put(tmp_path, sequences__jsonl=f'{mark}{{"user_id": "Ana Núñez", "items": ["1"]}}\n'.encode(encoding))
    assert titles(read_domain(tmp_path)) == {"1": "Crème"}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "utf-16-be"])
def test_an_encoding_that_is_set_is_used(tmp_path: Path, encoding: str):
    title = {"cp1252": "“Crème” €", "shift_jis": "表 ソ"}.get(encoding, "Crème")
    put(tmp_path, a__csv="user,item\na,1\n".encode(encoding), b__csv=f"item,title\n1,{title}\n".encode(encoding))
    put(tmp_path, dataset__yaml=f"encoding: {encoding}\n")
    assert titles(read_domain(tmp_path)) == {"1": title}


def test_bytes_of_another_encoding_are_refused_with_the_line_and_the_setting(tmp_path: Path):
    said, hint = refusal(put(tmp_path, a__csv="user,item\na,1\n", b__csv="item,title\n1,Crème\n".encode("cp1252")))
    assert "b.csv, line 2: is not utf-8" in said
    assert "encoding: cp1252" in hint
    put(tmp_path, b__csv="item,title\n1,A\n2,é\n".encode(), dataset__yaml="encoding: ascii\n")
    assert "b.csv, line 3: is not ascii" in refusal(tmp_path)[0]


@pytest.mark.parametrize("name", ["rot13", "klingon"])
def test_an_encoding_that_is_none_is_refused(tmp_path: Path, name: str):
    said, _ = refusal(put(tmp_path, a__csv="user,item\na,1\n", b__csv=ITEMS, dataset__yaml=f"encoding: {name}\n"))
    assert "dataset.yaml: encoding" in said


# Titles ---------------------------------------------------------------------------------------------------------------

RAW = "Tom &amp; Jerry&#39;s &quot;Best&quot; &amp;lt; R&D&notes"
SHOWN = 'Tom & Jerry\'s "Best" &lt; R&D&notes'


def as_csv(title: str) -> dict[str, str]:
    table = io.StringIO()
    csv.writer(table).writerows([["item", "title", "brand"], ["1", title, "Tom &amp; Co"]])
    return {"a__csv": "user,item\nu,1\n", "b__csv": table.getvalue()}


def as_recbole(title: str) -> dict[str, str]:
    head = "item_id:token\ttitle:token_seq\tbrand:token\n"
    return {"x__inter": "user_id:token\titem_id:token\nu\t1\n", "x__item": f"{head}1\t{title}\tTom &amp; Co\n"}


def as_jsonl(title: str) -> dict[str, str]:
    item = {"item_id": "1", "title": title, "brand": "Tom &amp; Co"}
    return {"items__jsonl": json.dumps(item), "sequences__jsonl": '{"user_id": "u", "items": ["1"]}'}


def as_amazon(title: str) -> dict[str, str]:
    review = {"reviewerID": "u", "asin": "1", "overall": 5, "unixReviewTime": 1400000000}
    return {
        "X__json": json.dumps(review),
        "meta_X__json": json.dumps({"asin": "1", "title": title, "brand": "Tom &amp; Co"}),
    }


def as_100k(title: str) -> dict[str, str]:
    return {"u__data": "u\t1\t5\t874965758\n", "u__item": f"1|{title}|||" + "|0" * 19 + "\n"}


def as_1m(title: str) -> dict[str, str]:
    return {"ratings__dat": "u::1::5::978300760\n", "movies__dat": f"1::{title}::Action &amp; Co\n", "users__dat": ""}


LAYOUTS = [as_csv, as_recbole, as_jsonl, as_amazon, as_100k, as_1m]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_entities_of_html_become_characters_once_in_every_format(tmp_path: Path, layout: Any):
    data = read_domain(put(tmp_path, **layout(RAW.replace('"', ""))))
    assert titles(data) == {"1": SHOWN}
    assert data.items["1"].fields.get("brand", "Tom & Co") == "Tom & Co"
    assert data.items["1"].fields.get("genres", []) in ([], ["Action & Co"])
    write_domain(data, tmp_path / "again")
    assert read_domain(tmp_path / "again").digest == data.digest


@given(st.text(st.sampled_from("a &;#39xltgm"), max_size=20))
def test_what_an_entity_stands_for_is_what_html_says(text: str):
    from reccocktail.tasks.data import unescaped

    assert unescaped(html.escape(text)) == text
    if "&" not in text.replace("&amp;", ""):
        assert unescaped(text) == html.unescape(text)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("title", ["None", "NULL", "N/A", "nan", "NaN", "null", "NA", "<NA>", "\\N", " "])
def test_words_for_missing_are_no_titles_in_any_format(tmp_path: Path, layout: Any, title: str):
    assert describe(read_domain(put(tmp_path, **layout(title)))).missing_titles == 1


def test_words_that_only_begin_so_are_titles(tmp_path: Path):
    data = read_domain(put(tmp_path, a__csv="user,item\na,1\n", b__csv="item,title\n1,Nanny\n2,Null Island\n3,Nana\n"))
    assert describe(data).missing_titles == 0


# Users, ratings, ids --------------------------------------------------------------------------------------------------


def test_rows_without_a_user_are_left_out_and_counted(tmp_path: Path):
    rows = "".join(f"{user},1,{1400000000 + n}\n" for n, user in enumerate(["", "a", " ", "nan", "NULL", "None", "b"]))
    put(tmp_path, a__csv="user,item,time\n" + rows, b__csv=ITEMS)
    data = read_domain(tmp_path)
    assert taken(data) == {"a": ["1"], "b": ["1"]}
    assert (describe(data).without_user, describe(data).interactions) == (5, 2)
    assert list(data.sequences[1].fields["timestamps"]) == [1400000006]


def test_null_users_of_parquet_and_json_are_left_out(tmp_path: Path):
    pq.write_table(pa.table({"user_id": [1.0, None, float("nan")], "item_id": [1, 1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"item_id": [1], "title": ["A"]}), tmp_path / "b.parquet")
    assert (taken(read_domain(tmp_path)), describe(read_domain(tmp_path)).without_user) == ({"1": ["1"]}, 2)
    other = tmp_path / "other"
    other.mkdir()
    review = {"reviewerID": "u", "asin": "1", "unixReviewTime": 1400000000}
    put(other, X__json=json.dumps(review) + "\n" + json.dumps(review | {"reviewerID": None}), meta_X__json="")
    assert describe(read_domain(other)).without_user == 1


RATED = "user,item,time,rating\na,1,1,\na,2,2,4\nb,1,3,NULL\nb,2,4,nan\n"


def test_a_rating_that_is_missing_matters_only_where_ratings_are_asked_for(tmp_path: Path):
    data = read_domain(put(tmp_path, a__csv=RATED, b__csv=ITEMS))
    assert [history.fields["ratings"] for history in data.sequences] == [[None, 4.0], [None, None]]
    assert describe(data).without_rating == 3
    write_domain(data, tmp_path / "again")
    assert read_domain(tmp_path / "again").digest == data.digest
    said, hint = refusal(put(tmp_path, dataset__yaml="min_rating: 3\n"))
    assert "a.csv, line 2: rating is missing" in said
    assert "min_rating" in hint


def test_ratings_that_are_all_missing_are_none(tmp_path: Path):
    data = read_domain(put(tmp_path, a__csv="user,item,rating\na,1,\na,2,\n", b__csv=ITEMS))
    assert data.sequences[0].fields == {}


@pytest.mark.parametrize(
    ("inter", "items", "expected"),
    [
        (["12.0", "7.0"], ["12", "7"], {"12", "7"}),
        (["12", "7"], ["12.0", "7.0"], {"12", "7"}),
        (["12.0", "7"], ["12", "7"], {"12", "7"}),  # two exports in one
        (["12.0", "7.0"], ["12", "A7"], {"12", "7", "A7"}),
        (["12.0", "7.0"], ["12.0", "7.0"], {"12.0", "7.0"}),
        (["12.0", "12.1"], ["12.0", "12.1"], {"12.0", "12.1"}),  # versions
        (["1.0", "1.1"], ["1", "1.1"], {"1.0", "1.1", "1"}),
        (["012", "12"], ["012", "12"], {"012", "12"}),
        (["1e5", "100000"], ["100000"], {"1e5", "100000"}),
        (["012.0"], ["12"], {"012.0", "12"}),
        (["A", "12.0"], ["A", "12"], {"A", "12.0", "12"}),
    ],
)
def test_a_whole_number_and_the_same_as_a_float_are_one_id_where_the_columns_are_numbers(
    tmp_path: Path, inter: list[str], items: list[str], expected: set[str]
):
    rows = "".join(f"u,{item}\n" for item in inter)
    described = "".join(f"{item},Title {item}\n" for item in items)
    data = read_domain(put(tmp_path, a__csv="user,item\n" + rows, b__csv="item,title\n" + described))
    assert set(data.items) == expected
    changed = (set(inter) | set(items)) - expected
    assert describe(data).respelled_ids == len(changed)


def test_users_of_two_exports_are_one_and_their_histories_joined(tmp_path: Path):
    data = read_domain(put(tmp_path, a__csv="user,item,time\n3,1,9\n3.0,2,8\n4.0,1,1\n", b__csv=ITEMS))
    assert taken(data) == {"3": ["2", "1"], "4": ["1"]}


def test_float_ids_that_a_float_cannot_hold_are_refused(tmp_path: Path):
    pq.write_table(pa.table({"user_id": [2.0**60], "item_id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"item_id": [1], "title": ["A"]}), tmp_path / "b.parquet")
    assert "a.parquet, row 1: user must be" in refusal(tmp_path)[0]


def test_decimals_of_parquet_are_numbers(tmp_path: Path):
    from decimal import Decimal

    table = {"user_id": [Decimal("12")], "item_id": [Decimal("1.00")], "rating": [Decimal("4.5")]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    pq.write_table(pa.table({"item_id": [1], "title": ["A"]}), tmp_path / "b.parquet")
    data = read_domain(tmp_path)
    assert (taken(data), list(data.sequences[0].fields["ratings"])) == ({"12": ["1"]}, [4.5])


# Quotes and long fields -----------------------------------------------------------------------------------------------

TEXTS = ['A "Pen", blue', "plain", 'ends in "quotes"', '"all"', 'a\nb "c"', "C:\\temp", 'back\\slash "q"', ""]


def spark(text: str) -> str:
    """As Spark writes a field: in quotes where needed, with backslashes before quotes and, in quotes, before backslashes."""
    if not any(mark in text for mark in '",\n'):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def test_quotes_escaped_by_spark_are_read(tmp_path: Path):
    table = "item,title,brand\n" + "".join(f"{n},{spark(text)},Bic\n" for n, text in enumerate(TEXTS))
    data = read_domain(put(tmp_path, a__csv="user,item\nu,0\n", b__csv=table))
    assert titles(data) == {str(n): " ".join(text.split()) for n, text in enumerate(TEXTS)}


def test_doubled_quotes_after_backslashes_are_read_as_python_reads_them(tmp_path: Path):
    table = io.StringIO()
    csv.writer(table).writerows([["item", "title", "note"], *([n, text, 'C:\\, "\\'] for n, text in enumerate(TEXTS))])
    text = table.getvalue()
    expected = {row["item"]: " ".join(row["title"].split()) for row in csv.DictReader(io.StringIO(text))}
    data = read_domain(put(tmp_path, a__csv="user,item\nu,0\n", b__csv=text))
    assert titles(data) == expected


def test_a_file_that_both_ways_of_quoting_read_differently_asks_for_the_setting(tmp_path: Path):
    put(tmp_path, a__csv="user,item\nu,1\n", b__csv='item,title\n1,"\\"\n2,"\\"\n')
    said, hint = refusal(tmp_path)
    assert "b.csv, line 3: a backslash before a quote" in said
    assert "quotes: escaped" in hint
    assert titles(read_domain(put(tmp_path, dataset__yaml="quotes: doubled\n"))) == {"1": "\\", "2": "\\"}
    assert titles(read_domain(put(tmp_path, dataset__yaml="quotes: escaped\n"))) == {"1": '" 2,"'}


LONG = "long, " * 500_000  # 3 MB


def test_long_fields_that_nobody_reads_are_skipped(tmp_path: Path):
    quoted = '"' + LONG + '"'
    many_lines = '"' + "a line\n" * 40_000 + '"'
    put(
        tmp_path,
        a__csv=f"user,item,text\nu,1,{quoted}\nu,2,{many_lines}\n",
        b__csv__gz=f"item,note,title\n1,{quoted},A\n",
    )
    data = read_domain(tmp_path)
    assert (taken(data), titles(data)) == ({"u": ["1", "2"]}, {"1": "A", "2": ""})
    other = tmp_path / "other"
    other.mkdir()
    review = {"reviewerID": "u", "asin": "1", "unixReviewTime": 1400000000, "reviewText": LONG}
    put(other, X__json=json.dumps(review), meta_X__json=json.dumps({"asin": "1", "description": LONG, "title": "A"}))
    assert titles(read_domain(other)) == {"1": "A"}
    third = tmp_path / "third"
    third.mkdir()
    put(third, x__inter="user_id:token\titem_id:token\nu\t1\n")
    put(third, x__item=f"item_id:token\ttext:token_seq\ttitle:token_seq\n1\t{LONG}\tA\n")
    assert titles(read_domain(third)) == {"1": "A"}


@pytest.mark.parametrize("text", [LONG, "a line\n" * 40_000], ids=["one line", "many lines"])
def test_long_fields_that_are_read_are_refused(tmp_path: Path, text: str):
    said, _ = refusal(put(tmp_path, a__csv="user,item\nu,1\n", b__csv=f'item,title\n1,"{text}"\n'))
    assert "b.csv, line" in said
    assert "131,072 characters" in said
    said, hint = refusal(put(tmp_path, a__csv=f'user,item\n"{text}",1\n'))
    assert "field larger than field limit (131,072 characters)" in said
    assert hint


# Parquet --------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from reccocktail.tasks import DataError, read_domain
import pyarrow.parquet
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) // 1024
before = peak()
try:
    read_domain(sys.argv[1])
except DataError as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["dictionary", "list", "plain"])
def test_a_small_parquet_file_of_giant_cells_is_refused_in_little_memory(tmp_path: Path, kind: str):
    rows, distinct = 20_000, 4
    giants = pa.array([f"{n}" + "x" * 1_000_000 for n in range(distinct)])
    places = pa.array([n % distinct for n in range(rows)], pa.int32())
    column: Any = pa.DictionaryArray.from_arrays(places, giants)
    if kind == "list":
        column = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), column)
    if kind == "plain":
        column = pa.array(["x" * 1_000_000] * 20 + ["y"] * (rows - 20))
    named = {"title": ["A"] * rows, "genres": column} if kind == "list" else {"title": column}
    table = pa.table({"item_id": [str(n) for n in range(rows)], **named})
    pq.write_table(table, tmp_path / "b.parquet", compression="zstd", use_dictionary=kind != "plain")
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["1"]}), tmp_path / "a.parquet")
    assert (tmp_path / "b.parquet").stat().st_size < 1_000_000  # and 20 GB as rows
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    said, megabytes = done.stdout.splitlines()[0], int(done.stdout.splitlines()[-1])
    assert "b.parquet, row 1: " in said
    assert megabytes < 500


def test_structs_maps_and_lists_that_nobody_reads_are_ignored(tmp_path: Path):
    structs = pa.array([{"id": 1, "name": "x"}])
    maps = pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string()))
    interactions = {"user": structs, "user_id": ["u"], "item_id": [1], "rating": structs, "date": maps, "time": [[1]]}
    pq.write_table(pa.table(interactions), tmp_path / "a.parquet")
    items = {"item_id": [1], "title": ["A"], "brand": structs, "genre": [["x", "y &amp; z"]], "year": [[structs[0]]]}
    pq.write_table(pa.table(items), tmp_path / "b.parquet")
    data = read_domain(tmp_path)
    assert (taken(data), data.items) == ({"u": ["1"]}, {"1": Item("1", "A", {"genres": ["x", "y & z"]})})
    assert data.sequences[0].fields == {}
    put(tmp_path, dataset__yaml="interactions: {file: a.parquet, rating: rating}\n")
    assert "has no column 'rating'" in refusal(tmp_path)[0]


# Published splits and names of fields ---------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("suffix", ["", "__gz"])
def test_amazons_own_splits_are_read_as_one_data_set(tmp_path: Path, history: bool, suffix: str):
    head = "user_id,parent_asin,rating,timestamp" + ",history" * history + "\n"
    parts = {
        "train": ["u,B1,5.0,1400000000000,", "v,B2,4.0,1400000000000,", "u,B2,3.0,1400000000001,B1"],
        "valid": ["u,B3,3.0,1500000000000,B1 B2"],
        "test": ["u,B4,3.0,1500000000000,B1 B2 B3"],  # at the same time as the one before
    }
    for part, rows in parts.items():
        text = head + "".join(f"{row if history else row.rsplit(',', 1)[0]}\n" for row in rows)
        put(tmp_path, **{f"All_Beauty__{part}__csv{suffix}": text})
    put(tmp_path, meta_All_Beauty__jsonl="".join(f'{{"parent_asin": "B{n}", "title": "T{n}"}}\n' for n in range(1, 5)))
    data = read_domain(tmp_path)
    assert data.format == "amazon 2023 splits"
    assert taken(data) == {"u": ["B1", "B2", "B3", "B4"], "v": ["B2"]}
    (tmp_path / f"All_Beauty.valid.csv{suffix.replace('__', '.')}").unlink()
    said, hint = refusal(tmp_path)
    assert "All_Beauty.train.csv" in said
    assert "but no All_Beauty.valid.csv" in said
    assert "all parts" in hint


INTER = "user_id:token\titem_id:token\n"
ITEM = "item_id:token\ttitle:token_seq\n1\tA\n2\tB\n3\tC\n"


def test_recboles_split_files_are_read_in_the_order_of_the_split(tmp_path: Path):
    put(tmp_path, x__train__inter=INTER + "u\t3\n", x__valid__inter=INTER + "u\t1\n", x__test__inter=INTER + "u\t2\n")
    assert taken(read_domain(put(tmp_path, x__item=ITEM))) == {"u": ["3", "1", "2"]}
    put(tmp_path, dataset__yaml="benchmark_filename: [test, train]\n")
    assert taken(read_domain(tmp_path)) == {"u": ["2", "3"]}
    put(tmp_path, dataset__yaml="benchmark_filename: [test, other]\n")
    assert "x.other.inter" in refusal(tmp_path)[0]
    (tmp_path / "dataset.yaml").unlink()
    said, hint = refusal(put(tmp_path, x__inter=INTER + "u\t1\n"))
    assert "x.inter and parts of it" in said
    assert "benchmark_filename" in hint


def test_recboles_parts_of_unknown_order_and_windows_are_refused(tmp_path: Path):
    put(tmp_path, x__part1__inter=INTER + "u\t3\n", x__part2__inter=INTER + "u\t1\n", x__item=ITEM)
    assert "benchmark_filename: [part1, part2]" in refusal(tmp_path)[1]
    put(tmp_path, dataset__yaml="benchmark_filename: [part2, part1]\n")
    assert taken(read_domain(tmp_path)) == {"u": ["1", "3"]}
    put(tmp_path, x__part1__inter="user_id:token\titem_id_list:token_seq\titem_id:token\nu\t1 2\t3\n")
    assert "item_id_list" in refusal(tmp_path)[0]


@pytest.mark.parametrize("keys", [("user", "item"), ("user_id", "item_id")])
def test_fields_of_recbole_and_columns_of_tables_may_have_names_of_their_own(tmp_path: Path, keys: tuple[str, str]):
    user, item = keys
    said = (
        f"interactions: {{{user}: who, {item}: what, timestamp: at, rating: how}}\n"
        f"items: {{{item}: what, title: called, brand: maker, category: kind, year: since, genres: sort}}\n"
    )
    names = ["who", "what", "at", "how", "user_id"]
    described = ["what", "called", "maker", "kind", "since", "sort", "title"]
    rows, records = ["u,1,1400000000,5,x", "u,2,1300000000,4,y"], ["1,A,Bic,Pens &amp; Ink,1999,w,z"]
    for format_, separator, kind, suffixes in (
        ("recbole", "\t", ":token", ("x__inter", "x__item")),
        ("csv", ",", "", ("a__csv", "b__csv")),
    ):
        folder = tmp_path / format_
        folder.mkdir()
        for name, head, lines in zip(suffixes, (names, described), (rows, records), strict=True):
            text = "".join(line + "\n" for line in [",".join(f"{each}{kind}" for each in head), *lines])
            put(folder, **{name: text.replace(",", separator)})
        files = "" if format_ == "recbole" else "format: csv\n"
        text = said.replace("{user", "{file: a.csv, user") if format_ == "csv" else said
        data = read_domain(put(folder, dataset__yaml=files + text), "shop")
        assert data.sequences == (History("u", ("2", "1"), data.sequences[0].fields),)
        assert list(data.sequences[0].fields["ratings"]) == [4.0, 5.0]
        fields = {"brand": "Bic", "category": "Pens & Ink", "genres": "w", "year": "1999"}
        assert data.items["1"] == Item("1", "A", fields)
        assert data.items["1"].fields == fields


def test_files_of_which_only_some_have_times_are_refused(tmp_path: Path):
    put(tmp_path, a__csv="user,item,time\nu,1,5\n", c__csv="user,item\nu,2\n", b__csv=ITEMS)
    put(tmp_path, dataset__yaml="interactions: {file: [a.csv, c.csv]}\n")
    said, hint = refusal(tmp_path)
    assert "c.csv has none" in said
    assert hint
