"""Every format in the layout in which it is published or exported, with the awkward points that the real files have."""

from __future__ import annotations

import gzip
import json
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.tasks import DataError, DomainData, Item, TaskError, describe, load_template, read_domain, write_domain

Row = tuple[str, str, int, float]  # user, item, time, rating
Put = Callable[[dict[str, str | bytes]], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """A folder with these files; names in .gz are zipped, text is UTF-8."""

    def write(files: dict[str, str | bytes]) -> Path:
        for name, content in files.items():
            raw = content.encode() if isinstance(content, str) else content
            (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return tmp_path

    return write


def lines(*records: object) -> str:
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


def taken(data: DomainData) -> dict[str, list[tuple[str, float | None, float | None]]]:
    """Per user what was taken when and how it was rated."""
    found = {}
    for history in data.sequences:
        times = history.fields.get("timestamps", [None] * len(history.items))
        ratings = history.fields.get("ratings", [None] * len(history.items))
        found[history.user_id] = list(zip(history.items, times, ratings, strict=True))
    return found


def titles(data: DomainData) -> dict[str, str]:
    return {item_id: item.title for item_id, item in data.items.items()}


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        read_domain(folder)
    assert error.value.hint, "a refusal says the way out"
    return f"{error.value} ({error.value.hint})"


# Amazon ---------------------------------------------------------------------------------------------------------------

REVIEWS = lines(
    {
        "reviewerID": "A2",
        "asin": "0000031852",
        "reviewerName": "N",
        "helpful": [0, 0],
        "reviewText": "Fine.\nVery",
        "overall": 5.0,
        "summary": "s",
        "unixReviewTime": 1400000000,
        "reviewTime": "05 13, 2014",
    },
    {"reviewerID": "A1", "asin": "B000000001", "overall": 4.0, "unixReviewTime": 1300000000},
    {"reviewerID": "A1", "asin": "0000031852", "overall": 3.0, "unixReviewTime": 1200000000},
    {"reviewerID": "A1", "asin": "B000000009", "overall": 1.0, "unixReviewTime": 1200000000},
)
OLD_TAKEN = {
    "A1": [("0000031852", 1200000000, 3), ("B000000009", 1200000000, 1), ("B000000001", 1300000000, 4)],
    "A2": [("0000031852", 1400000000, 5)],
}
META_2014 = (
    "{'asin': '0000031852', 'title': \"Girl's Tutu &amp; \\\"Bow\\\"\", 'price': 3.17, 'imUrl': 'http://x/y.jpg',"
    " 'related': {'also_bought': ['B00JHONN1S']}, 'salesRank': {'Toys & Games': 211836}, 'brand': 'Coxlures',"
    " 'categories': [['Sports & Outdoors', 'Other Sports', 'Dance']]}\n"
    "{'asin': 'B000000001', 'description': 'no title here'}\n"
    "{'asin': 'B777777777', 'title': 'Never Reviewed'}\n"
)


def test_amazon_2014_is_read_from_reviews_and_the_python_literals_of_its_metadata(put: Put):
    data = read_domain(put({"reviews_Toys_5.json.gz": REVIEWS, "meta_Toys.json.gz": META_2014}))
    assert data.format == "amazon 2014"
    assert taken(data) == OLD_TAKEN
    assert data.items["0000031852"] == Item("0000031852", 'Girl\'s Tutu & "Bow"', {"brand": "Coxlures"})
    facts = describe(data)
    assert (facts.missing_titles, facts.unlisted, facts.unused, facts.never_taken) == (2, 1, 1, 0)
    assert (facts.first_time, facts.last_time) == (1200000000, 1400000000)


def test_metadata_are_never_run_as_code(put: Put, tmp_path: Path):
    line = f"{{'asin': '0000031852', 'title': __import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()}}\n"
    said = refusal(put({"reviews_Toys_5.json.gz": REVIEWS, "meta_Toys.json.gz": line}))
    assert "meta_Toys.json.gz, line 1: is neither JSON nor a Python literal" in said
    assert not (tmp_path / "ran").exists()


def test_amazon_2018_metadata_repeat_records_and_hold_pieces_of_pages(put: Put):
    meta = lines(
        {"category": [], "title": "", "brand": "", "asin": "0000031852", "details": {}},
        {
            "title": '<span class="a-list">Slime &quot;Time&quot;  &#39;09</span>',
            "brand": "by\n\n  Ann",
            "asin": "0000031852",
        },
        {"title": "Another name", "asin": "0000031852"},
        {"title": "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0", "asin": "B000000001"},
        {"title": "5 < 6 > 4", "asin": "B000000009"},
    )
    data = read_domain(put({"Toys_5.json.gz": REVIEWS, "meta_Toys.json.gz": meta}))
    assert data.format == "amazon 2018"
    assert taken(data) == OLD_TAKEN
    assert titles(data) == {"0000031852": 'Slime "Time" \'09', "B000000001": "", "B000000009": "5 < 6 > 4"}
    assert data.items["0000031852"].fields == {"brand": "by Ann"}
    assert describe(data).duplicates == 2


def test_amazon_ratings_have_no_header_and_put_the_item_first_in_2018_and_second_in_2014(put: Put, tmp_path: Path):
    old = "A1,B000000001,5.0,1300000000\nA1,0000031852,3.0,1200000000\n"
    new = "B000000001,A1,5.0,1300000000\n0000031852,A1,3.0,1200000000\n"
    meta = lines({"asin": "B000000001", "title": "A"}, {"asin": "0000031852", "title": "B"})
    for format_, name, rows in ("2014", "ratings_Toys.csv", old), ("2018", "Toys.csv", new):
        data = read_domain(put({name: rows, "meta_Toys.json.gz": meta}))
        assert data.format == f"amazon {format_} ratings"
        assert taken(data) == {"A1": [("0000031852", 1200000000, 3), ("B000000001", 1300000000, 5)]}
        (tmp_path / name).unlink()


META_2023 = lines(
    {"main_category": "All Beauty", "title": "Howard LC0008 &amp; Co", "store": "Howard", "parent_asin": "B01CUPMQZE"},
    {"main_category": "All Beauty", "title": None, "store": None, "parent_asin": "B076WQZGPM"},
)
TAKEN_2023 = {"AGKH": [("B01CUPMQZE", 1387500604000, 4), ("B076WQZGPM", 1588687728923, 5)]}


def test_amazon_2023_reviews_count_for_the_parent_and_their_titles_are_not_the_items(put: Put):
    reviews = lines(
        {
            "rating": 5.0,
            "title": "Such a lovely scent",
            "text": "…",
            "images": [],
            "asin": "B00YQ6X8EO",
            "parent_asin": "B076WQZGPM",
            "user_id": "AGKH",
            "timestamp": 1588687728923,
            "verified_purchase": True,
        },
        {
            "rating": 4.0,
            "asin": "B01CUPMQZE",
            "parent_asin": "B01CUPMQZE",
            "user_id": "AGKH",
            "timestamp": 1387500604000,
        },
    )
    data = read_domain(put({"All_Beauty.jsonl.gz": reviews, "meta_All_Beauty.jsonl.gz": META_2023}))
    assert (data.format, taken(data)) == ("amazon 2023", TAKEN_2023)
    assert titles(data) == {"B01CUPMQZE": "Howard LC0008 & Co", "B076WQZGPM": ""}
    assert data.items["B01CUPMQZE"].fields == {"brand": "Howard"}


@pytest.mark.parametrize("history", [False, True])
def test_amazon_2023_ratings_have_a_header_and_perhaps_a_history(put: Put, history: bool):
    rows = [
        ["user_id", "parent_asin", "rating", "timestamp", "history"],
        ["AGKH", "B01CUPMQZE", "4.0", "1387500604000", ""],
        ["AGKH", "B076WQZGPM", "5.0", "1588687728923", "B01CUPMQZE"],
    ]
    table = "".join(",".join(row[: 4 + history]) + "\n" for row in rows)
    data = read_domain(put({"All_Beauty.csv.gz": table, "meta_All_Beauty.jsonl": META_2023}))
    assert (data.format, taken(data)) == ("amazon 2023 ratings", TAKEN_2023)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"Toys_5.json": REVIEWS, "meta_Toys.json": "\n{\n"}, "meta_Toys.json, line 2: Expecting"),
        ({"reviews_Toys.json": REVIEWS, "meta_Toys.json": "{'asin': None}\n"}, "meta_Toys.json, line 1: asin must be"),
        ({"reviews_Toys.json": REVIEWS, "meta_Toys.json": "{'a'" + "[" * 9999}, "meta_Toys.json, line 1"),
        ({"Toys.json": REVIEWS, "meta_Toys.json": '{"title": "x"}\n'}, "line 1: asin must be non-empty text"),
        ({"Toys.json": REVIEWS, "meta_Toys.json": '{"asin": "a", "title": ["x"]}\n'}, "title must be text or null"),
        ({"Toys.json": REVIEWS + '{"asin": "a"}\n', "meta_Toys.json": ""}, "Toys.json, line 5: has no reviewerID"),
        ({"Toys.csv": "a,b,5.0\n", "meta_Toys.json": ""}, "Toys.csv, line 1: expected 4 columns, found 3"),
        ({"reviews_Toys_5.json.gz": REVIEWS}, "reviews_Toys_5.json.gz, but no meta_NAME.json.gz"),
        ({"meta_Toys.json.gz": META_2014}, "meta_Toys.json.gz, but no reviews"),
    ],
)
def test_what_is_wrong_with_amazon_files_is_named(put: Put, files: dict[str, str | bytes], said: str):
    assert said in refusal(put(files))


# MovieLens ------------------------------------------------------------------------------------------------------------

U_ITEM = (
    "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "2|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/|0|0|0|0|0|0|0|0|1|0|0|0|1|0|0|0|0|0|0\n"
    "267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
)
ML_TAKEN = {"1": [("2", 874965478, 3), ("1", 874965758, 5)], "2": [("267", 888550871, 4)]}


def test_movielens_100k_is_latin_1_and_knows_its_users(put: Put):
    data = read_domain(
        put(
            {
                "u.data": "1\t1\t5\t874965758\n1\t2\t3\t874965478\n2\t267\t4\t888550871\n",
                "u.item": U_ITEM.encode("latin-1"),
                "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
                "u.genre": "unknown|0\n",
            }
        )
    )
    assert (data.format, taken(data)) == ("movielens 100k", ML_TAKEN)
    assert titles(data) == {"1": "Toy Story (1995)", "2": "Misérables, Les (1995)", "267": ""}
    assert data.items["1"].fields == {"genres": ["Animation", "Children's", "Comedy"]}
    assert data.items["2"].fields == {"genres": ["Drama", "Musical"]}
    about = {name: value for name, value in data.sequences[0].fields.items() if isinstance(value, str)}
    assert about == {"age": "24", "gender": "M", "occupation": "technician", "zip_code": "85711"}


@pytest.mark.parametrize(("format_", "encoding"), [("movielens 1m", "latin-1"), ("movielens 10m", "utf-8")])
def test_movielens_1m_and_10m_differ_in_their_users_and_encoding(put: Put, format_: str, encoding: str):
    files: dict[str, str | bytes] = {
        "ratings.dat": "1::1::5::874965758\n1::2::3::874965478\n2::267::4::888550871\n",
        "movies.dat": (
            "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Misérables, Les: Part 1 (1995)::Drama\n"
            "267::Pull My Daisy (1958)::(no genres listed)\n3::Never Seen (1999)::Drama\n"
        ).encode(encoding),
    }
    if format_ == "movielens 1m":
        files["users.dat"] = "1::F::1::10::48067\n2::M::56::16::70072\n"
    data = read_domain(put(files))
    assert (data.format, taken(data)) == (format_, ML_TAKEN)
    assert titles(data)["2"] == "Misérables, Les: Part 1 (1995)"
    assert data.items["267"].fields == {"genres": []}
    assert data.sequences[0].fields.get("gender") == ("F" if format_ == "movielens 1m" else None)
    assert describe(data).never_taken == 1


def test_movielens_in_csv_is_told_from_other_tables_and_its_tags_are_no_interactions(put: Put):
    data = read_domain(
        put(
            {
                "ratings.csv": "userId,movieId,rating,timestamp\r\n1,1,5.0,874965758\r\n1,2,3.0,874965478\r\n2,267,4.0,888550871\r\n",
                "movies.csv": 'movieId,title,genres\r\n1,Toy Story (1995),Animation|Comedy\r\n2,"Misérables, ""Les"" (1995)",Drama\r\n',
                "tags.csv": "userId,movieId,tag,timestamp\r\n1,1,fun,5\r\n",
                "links.csv": "movieId,imdbId,tmdbId\r\n1,0114709,862\r\n",
            }
        )
    )
    assert (data.format, taken(data)) == ("movielens csv", ML_TAKEN)
    assert titles(data) == {"1": "Toy Story (1995)", "2": 'Misérables, "Les" (1995)', "267": ""}
    assert describe(data).unlisted == 1


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"u.data": ""}, "u.data, but no u.item"),
        ({"ratings.dat": ""}, "ratings.dat, but no movies.dat"),
        ({"u.data": "1\t2\n", "u.item": ""}, "u.data, line 1: expected 4 columns, found 2"),
        ({"u.data": "1\t2\t3\tx\n", "u.item": ""}, "u.data, line 1: timestamp must be a number"),
        ({"ratings.dat": "", "movies.dat": "1::A\n"}, "movies.dat, line 1: expected 3 columns, found 2"),
        ({"ratings.dat": "", "movies.dat": b"1::\xe9::A\n"}, "movies.dat, line 1: is not utf-8"),
    ],
)
def test_what_is_wrong_with_movielens_files_is_named(put: Put, files: dict[str, str | bytes], said: str):
    assert said in refusal(put(files))


# RecBole --------------------------------------------------------------------------------------------------------------


def test_recboles_atomic_files_may_name_the_item_otherwise_in_each(put: Put):
    data = read_domain(
        put(
            {
                "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t5\t874965758\n1\t2\t3.0\t874965478.0\n2\t267\t4\t888550871\n",
                "ml.item": 'movie_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n1\tToy "Story\t1995\tAnimation Comedy\n2\t\t\t\n',
                "ml.user": "user_id:token\tage:token\tgender:token\n2\t53\tF\n1\t24\tM\n",
                "ml.kg": "head_id:token\n",
            }
        )
    )
    assert (data.format, taken(data)) == ("recbole", ML_TAKEN)
    assert data.items["1"] == Item("1", 'Toy "Story', {"year": "1995", "genres": "Animation Comedy"})
    assert (data.items["2"], data.items["267"]) == (Item("2", ""), Item("267", ""))
    assert [data.sequences[0].fields[name] for name in ("age", "gender")] == ["24", "M"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.inter": "user_id:token\titem_id:token\n"}, "a.inter, but no a.item"),
        ({"a.inter": "user_id\titem_id\n", "a.item": ""}, "a.inter, line 1: expected fields such as item_id:token"),
        ({"a.inter": "user_id:token\tx:token\n", "a.item": ""}, "has no item field; its fields are user_id, x"),
        ({"a.inter": "user_id:token\titem_id:token\n1\n", "a.item": ""}, "line 2: expected 2 columns, found 1"),
        (
            {
                "a.inter": "user_id:token\titem_id:token\n",
                "a.item": "item_id:token\ttitle:token_seq\n",
                "a.user": "user_id:token\titems:token\n",
            },
            "has a field 'items'",
        ),
    ],
)
def test_what_is_wrong_with_atomic_files_is_named(put: Put, files: dict[str, str | bytes], said: str):
    assert said in refusal(put(files))


# Tables ---------------------------------------------------------------------------------------------------------------


def test_csv_columns_are_found_by_their_usual_names(put: Put):
    data = read_domain(
        put(
            {
                "orders.csv.gz": "\ufeffCustomer_ID,when,product_id,timestamp\r\nann,x,7,2024-05-31 18:00:00\r\nann,y,8,1717000000\r\n\r\n",
                "products.tsv": 'asin\tName\tbrand\tprice\n7\t"A ""Pen"", blue"\tBic\t1\n8\tnan\t\t2\n7\tAgain\t\t3\n',
                "users.csv": "customer_id,name\nann,Ann\n",
            }
        )
    )
    assert data.format == "csv"
    assert taken(data) == {"ann": [("8", 1717000000, None), ("7", 1717178400, None)]}
    assert data.items == {"7": Item("7", 'A "Pen", blue', {"brand": "Bic"}), "8": Item("8", "")}
    assert describe(data).duplicates == 1


def test_a_title_may_go_over_two_lines_and_semicolons_may_separate(put: Put):
    data = read_domain(
        put({"a.csv": "user;item\nann;7\n", "b.csv": 'item;title;note\n7;"A Pen,\nblue; fine";x\n8;"B";y\n'})
    )
    assert titles(data) == {"7": "A Pen, blue; fine", "8": "B"}
    assert taken(data) == {"ann": [("7", None, None)]}


def test_rows_without_times_keep_the_order_of_the_file(put: Put):
    data = read_domain(put({"a.csv": "user,item\nb,3\na,2\nb,1\na,9\nb,2\n", "b.csv": "item,title\n"}))
    assert [history.items for history in data.sequences] == [("2", "9"), ("3", "1", "2")]


def test_a_time_with_a_fraction_leaves_the_others_what_they_are(put: Put):
    data = read_domain(put({"a.csv": "user,item,time\na,1,2\na,2,1.5\na,3,1.0\n", "b.csv": "item,title\n"}))
    assert data.sequences[0].fields == {"timestamps": array("d", [1.0, 1.5, 2.0])}


def test_nanoseconds_stay_exact(put: Put):
    data = read_domain(
        put({"a.csv": "user,item,time\na,1,1717178400000000001\na,2,1717178400000000000\n", "b.csv": "item,title\n"})
    )
    assert list(data.sequences[0].fields["timestamps"]) == [1717178400000000000, 1717178400000000001]


def test_parquet_ids_may_be_numbers_and_times_points_in_time(tmp_path: Path):
    when = pa.array([1717178400_500000, 1717178400_000000], pa.timestamp("us"))
    interactions = pa.table({"user_id": [1, 1], "item_id": [7, 8], "timestamp": when, "rating": [4, 5]})
    pq.write_table(interactions, tmp_path / "interactions.parquet", row_group_size=1)
    items = pa.table({"item_id": ["7", "8", "9"], "title": ["A Pen", None, "C"], "year": [1999, None, 2000]})
    pq.write_table(items, tmp_path / "items.parquet")
    data = read_domain(tmp_path)
    assert data.format == "parquet"
    assert taken(data) == {"1": [("8", 1717178400, 5), ("7", 1717178400.5, 4)]}
    assert data.items["7"] == Item("7", "A Pen", {"year": 1999})
    assert data.items["8"] == Item("8", "")
    assert read_domain(write(data, tmp_path / "again")).digest == data.digest


def write(data: DomainData, folder: Path) -> Path:
    write_domain(data, folder)
    return folder


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a,1,5,5\na,2\n", "a.csv, line 3: expected 4 columns, found 2"),
        (",1,5,5\n", "none of 1 rows of the data (csv) names a user"),
        ("a,,5,5\n", "a.csv, line 2: item must be non-empty text"),
        ("a,1,soon,5\n", "a.csv, line 2: timestamp must be a number or a date such as"),
        ("a,1,nan,5\n", "a.csv, line 2: timestamp must be a number"),
        ("a,1,99999999999999999999,5\n", "a.csv, line 2"),
        ("a,1,5,good\n", "a.csv, line 2: rating must be a number, found 'good'"),
        ("a,1,5,true\n", "a.csv, line 2: rating must be a number, found 'true'"),
        ("a,1,5,inf\n", "a.csv, line 2: rating must be a number, found 'inf'"),
        ('a,"1"x,5,5\n', "a.csv, line 2: ',' expected after '\"'"),
        ('a,"1,5,5\n', "a.csv, line 2: unexpected end of data"),
        ('a,"' + "1" * 200_000 + '",5,5\n', "a.csv, line 2: field larger than field limit"),
        (b"a,1,5,5\n\xff,1,5,5\n", "a.csv, line 3: is not utf-8"),
        ("a,1,1.5,5\na,2,1717178400000000001,5\n", "some timestamps have a fraction, and others are too large"),
    ],
    ids=range(14),
)
def test_a_wrong_row_is_named_with_its_file_and_line(put: Put, rows: str | bytes, said: str):
    raw = rows.encode() if isinstance(rows, str) else rows
    assert said in refusal(put({"a.csv": b"user,item,time,rating\n" + raw, "b.csv": "item,title\n1,x\n"}))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            {"item_id": ["7", None]},
            "interactions.parquet, row 2: item must be non-empty text or a whole number, found None",
        ),
        ({"item_id": [7.5, 8.0]}, "interactions.parquet, row 1: item must be"),
        ({"timestamp": pa.array([1, 2], pa.timestamp("ns"))}, "'timestamp' is finer than microseconds"),
        ({"timestamp": [1, None]}, "interactions.parquet, row 2: timestamp must be a number"),
    ],
)
def test_a_wrong_row_of_parquet_is_named_with_its_file_and_number(tmp_path: Path, column: dict[str, object], said: str):
    interactions = pa.table({"user_id": ["a", "b"], "item_id": ["7", "8"], "timestamp": [1, 2]} | column)
    pq.write_table(interactions, tmp_path / "interactions.parquet")
    pq.write_table(pa.table({"item_id": ["7"], "title": ["A Pen"]}), tmp_path / "items.parquet")
    assert said in refusal(tmp_path)


def test_a_file_that_is_no_parquet_is_named(put: Put):
    assert "items.parquet cannot be read as Parquet" in refusal(put({"items.parquet": b"PAR1 not"}))


def test_without_pyarrow_parquet_is_refused_with_what_to_install(put: Put, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = refusal(put({"items.parquet": b""}))
    assert "needs pyarrow, which is not installed" in said
    assert "pip install 'reccocktail[train]'" in said


# Which format it is ---------------------------------------------------------------------------------------------------


def test_an_unknown_folder_is_told_what_was_looked_for(put: Put):
    said = refusal(put({"notes.txt": ""}))
    assert "it holds notes.txt" in said
    for name in ("items.jsonl", "reviews_NAME_5.json", "u.item", "movies.dat", "NAME.inter", "CSV or TSV"):
        assert name in said


def test_no_folder_at_all_is_refused(tmp_path: Path):
    assert "cannot be read as a folder" in refusal(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert "cannot be read as a folder" in refusal(tmp_path / "file")


OURS = {
    "items.jsonl": lines({"item_id": "1", "title": "A"}),
    "sequences.jsonl": lines({"user_id": "a", "items": ["1"]}),
}
TABLES = {"a.csv": "user,item\na,1\n", "b.csv": "item,title\n1,x\n"}


def test_a_folder_with_two_data_sets_is_refused_unless_it_says_which(put: Put):
    folder = put({**OURS, **TABLES})
    assert "more than one data set: reccocktail jsonl (sequences.jsonl); csv (a.csv)" in refusal(folder)
    assert read_domain(put({"dataset.yaml": "format: csv\n"})).format == "csv"
    assert read_domain(put({"dataset.yaml": "format: reccocktail jsonl\n"})).format == "reccocktail jsonl"


def test_two_categories_of_amazon_in_one_folder_are_refused(put: Put):
    files: dict[str, str | bytes] = {name: "" for c in "AB" for name in (f"reviews_{c}_5.json.gz", f"meta_{c}.json.gz")}
    assert "more than one data set" in refusal(put(files))


def test_a_stray_table_beside_a_whole_data_set_is_passed_over(put: Put):
    assert read_domain(put({**OURS, "popular.csv": "item,title\n1,x\n"})).format == "reccocktail jsonl"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.csv": "user,item\n"}, "no file could be the file of items, where one is needed; found a.csv: user, item"),
        ({**TABLES, "c.csv": "uid,asin\n"}, "a.csv, c.csv could be the file of interactions"),
        ({**TABLES, "c.csv": "asin,name\n"}, "b.csv, c.csv could be the file of items"),
    ],
)
def test_tables_that_leave_it_open_are_listed_with_their_columns(put: Put, files: dict[str, str | bytes], said: str):
    assert said in refusal(put(files))


# dataset.yaml ---------------------------------------------------------------------------------------------------------


def test_dataset_yaml_names_files_and_columns(put: Put):
    told = "interactions: {file: log.csv, user: who, item: what, timestamp: at, rating: how}\nitems: {file: log.csv, item: what, title: called}\n"
    log = "who,what,called,at,how,rating\na,1,Pen,2,5,x\na,2,Pad,1,4,x\na,1,Pen,3,5,x\n"
    data = read_domain(put({"log.csv": log, "more.csv": "user,item\n", "dataset.yaml": told}))
    assert taken(data) == {"a": [("2", 1, 4), ("1", 2, 5), ("1", 3, 5)]}
    assert titles(data) == {"1": "Pen", "2": "Pad"}


def test_dataset_yaml_filters_every_format(put: Put):
    rows = "user,item,rating\n" + "".join(
        f"{u},{i},{r}\n"
        for u, i, r in [("a", 1, 5), ("a", 2, 5), ("b", 1, 5), ("b", 2, 4), ("b", 3, 4), ("c", 1, 1), ("c", 2, 5)]
    )
    folder = put(
        {"a.csv": rows, "b.csv": "item,title\n1,x\n2,y\n3,z\n4,never\n", "dataset.yaml": "core: 2\nmin_rating: 4\n"}
    )
    data = read_domain(folder)
    assert taken(data) == {"a": [("1", None, 5), ("2", None, 5)], "b": [("1", None, 5), ("2", None, 4)]}
    assert (set(data.items), describe(data).dropped) == ({"1", "2"}, 3)
    (folder / "dataset.yaml").unlink()
    whole = read_domain(folder)
    for name in "a.csv", "b.csv":
        (folder / name).unlink()
    write_domain(whole, folder)
    put({"dataset.yaml": "core: 2\nmin_rating: 4\n"})
    ours = read_domain(folder)
    assert (ours.format, ours.digest, ours.origin.dropped) == ("reccocktail jsonl", data.digest, 3)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("colour: red", "unknown key 'colour'"),
        ("fromat: csv", "unknown key 'fromat'; did you mean 'format'?"),
        ("items:\n  titel: name\n", "unknown key 'items.titel'; did you mean 'title'?"),
        ("core: 0", "core: Input should be greater than or equal to 1"),
        ("core: '5'", "core: Input should be a valid integer"),
        ("min_rating: .nan", "min_rating: Input should be a finite number"),
        ("[", "cannot be read as YAML"),
        ("just text", "dataset.yaml: Input should be"),
        ("format: xml", "no format is called 'xml'"),
        ("format: recbole", "Looked for: recbole (NAME.inter and NAME.item)"),
        ("interactions: {file: ../a.csv}", "must be the name of a file in the same folder, found '../a.csv'"),
        ("interactions: {file: /etc/passwd}", "must be the name of a file in the same folder"),
        (
            "interactions: {file: c.csv}",
            "names 'c.csv' as its file of interactions, and the folder holds no such table",
        ),
        ("interactions: {user: who}", "does not say which file holds the interactions; the folder holds a.csv, b.csv"),
        (
            "interactions: {file: a.csv, user: who}",
            "has no column 'who', which dataset.yaml names for the user; its columns are user, item",
        ),
        ("interactions: {file: b.csv}", "has no user column; its columns are item, title"),
        ("items: {file: a.csv}\ninteractions: {file: a.csv}", "has no title column; its columns are user, item"),
        (
            "format: movielens csv\ninteractions: {user: who}",
            "names files and columns, which movielens csv has of its own",
        ),
        ("min_rating: 3", "has no ratings"),
    ],
)
def test_what_dataset_yaml_must_not_say_is_refused(put: Put, told: str, said: str):
    assert said in refusal(put({**TABLES, "dataset.yaml": told}))


def test_filters_that_leave_nothing_are_refused(put: Put):
    assert "the filters of dataset.yaml leave none of 1 interactions" in refusal(
        put({**OURS, "dataset.yaml": "core: 2"})
    )
    assert "the filters of dataset.yaml leave none of 1 interactions" in refusal(
        put({"dataset.yaml": "core: 2\nformat: csv\n", **TABLES})
    )


def test_a_minimum_rating_for_histories_without_ratings_is_refused(put: Put):
    assert "user 'a' has no ratings" in refusal(put({**OURS, "dataset.yaml": "min_rating: 3\n"}))


# All formats alike ----------------------------------------------------------------------------------------------------


def as_ours(rows: list[Row], items: dict[str, str]) -> dict[str, str | bytes]:
    users = sorted({row[0] for row in rows})
    sequences = []
    for user in users:
        _, taken, times, ratings = zip(*(row for row in rows if row[0] == user), strict=True)
        sequences.append({"user_id": user, "items": taken, "timestamps": times, "ratings": ratings})
    records = [{"item_id": item_id, "title": title} for item_id, title in items.items()]
    return {"items.jsonl": lines(*records), "sequences.jsonl.gz": lines(*sequences)}


def as_csv(rows: list[Row], items: dict[str, str]) -> dict[str, str | bytes]:
    return {
        "interactions.csv": "".join(
            f"{u},{i},{t},{r}\n" for u, i, t, r in [("userId", "asin", "time", "rating"), *rows]
        ),
        "items.csv": "item_id,title\n" + "".join(f"{item_id},{title}\n" for item_id, title in items.items()),
    }


def as_movielens(rows: list[Row], items: dict[str, str]) -> dict[str, str | bytes]:
    return {
        "ratings.dat": "".join(f"{u}::{i}::{r}::{t}\n" for u, i, t, r in rows),
        "movies.dat": "".join(f"{item_id}::{title}::Drama\n" for item_id, title in items.items()),
    }


def as_recbole(rows: list[Row], items: dict[str, str]) -> dict[str, str | bytes]:
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    return {
        "x.inter": head + "".join(f"{u}\t{i}\t{r}\t{t}.0\n" for u, i, t, r in rows),
        "x.item": "item_id:token\ttitle:token_seq\n" + "".join(f"{i}\t{title}\n" for i, title in items.items()),
    }


def as_amazon_2018(rows: list[Row], items: dict[str, str]) -> dict[str, str | bytes]:
    reviews = [{"reviewerID": u, "asin": i, "overall": r, "unixReviewTime": t} for u, i, t, r in rows]
    return {"X.json.gz": lines(*reviews), "meta_X.json": lines(*({"asin": i, "title": t} for i, t in items.items()))}


def as_amazon_2023(rows: list[Row], items: dict[str, str]) -> dict[str, str | bytes]:
    table = "".join(f"{u},{i},{r},{t}\n" for u, i, t, r in [("user_id", "parent_asin", "timestamp", "rating"), *rows])
    return {"X.csv": table, "meta_X.jsonl.gz": lines(*({"parent_asin": i, "title": t} for i, t in items.items()))}


FORMATS = [as_ours, as_csv, as_movielens, as_recbole, as_amazon_2018, as_amazon_2023]
ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from("123456789"),
        st.integers(10**9, 2**32 - 2**28),  # in one unit; what becomes of several is in test_times.py
        st.integers(1, 10).map(lambda n: n / 2),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda row: row[2],
)


@given(rows=ROWS, order=st.randoms(use_true_random=False))
def test_equal_interactions_give_equal_histories_in_every_format_and_order(tmp_path_factory, rows: list[Row], order):
    items = {item_id: f"Title {item_id}" for item_id in sorted({row[1] for row in rows})}
    expected = {
        user: sorted(((i, t, r) for u, i, t, r in rows if u == user), key=lambda row: row[1])
        for user in {row[0] for row in rows}
    }
    digests = set()
    for layout in FORMATS:
        folder = tmp_path_factory.mktemp("data")
        for name, content in layout(order.sample(rows, len(rows)), items).items():
            raw = str(content).encode()
            (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        data = read_domain(folder, "shop")
        assert taken(data) == expected
        assert titles(data) == items
        if layout is not as_movielens:  # which has genres
            digests.add(data.digest)
            assert read_domain(write(data, folder / "again")).digest == data.digest
    assert len(digests) == 1


@pytest.mark.parametrize(
    "content",
    [
        "format: 2024-99-99",
        "core: 2024-01-01 99:00:00",
        'core: !!int "abc"',
        "min_rating: !!float x",
        "core: !!bool maybe",
        "format: !!timestamp foo",
        "[" * 3000,
    ],
)
def test_what_the_yaml_loader_stumbles_over_is_told_with_the_file(tmp_path: Path, content: str):
    (tmp_path / "dataset.yaml").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.yaml cannot be read as YAML"):
        read_domain(tmp_path)
    with pytest.raises(TaskError, match=r"dataset\.yaml is not a YAML file"):
        load_template(tmp_path / "dataset.yaml")


def test_a_quote_that_nothing_closes_is_found_at_once(tmp_path: Path):
    (tmp_path / "reviews_X_5.json").write_text(
        '{"reviewerID": "u", "asin": "A1", "unixReviewTime": 1, "overall": 5.0}\n'
    )
    hostile = "{'asin': 'A1', 'title': 'x', 'n': " + '"\\' * 400_000
    (tmp_path / "meta_X.json").write_text(hostile)
    with pytest.raises(DataError, match=r"meta_X\.json, line 1: is neither JSON nor a Python literal"):
        read_domain(tmp_path)


@pytest.mark.parametrize("rest", ["[]: 2}", "'q': {[]}}"])
def test_a_literal_that_python_cannot_make_is_refused(tmp_path: Path, rest: str):
    (tmp_path / "reviews_X_5.json").write_text(
        '{"reviewerID": "u", "asin": "A1", "unixReviewTime": 1, "overall": 5.0}\n'
    )
    (tmp_path / "meta_X.json").write_text("{'asin': 'A1', 'title': 'x', " + rest)
    with pytest.raises(DataError, match="is neither JSON nor a Python literal"):
        read_domain(tmp_path)


@pytest.mark.parametrize(
    ("interactions", "problem"),
    [
        ("user_id,item_id\n", "hold no interaction"),
        ("user_id,item_id,time\nu,a,2024-01-01T00:00:00.123456789\n", "finer than microseconds"),
        ("user_id,item_id,item_id\nu,a,b\n", "has 2 columns called 'item_id'"),
    ],
)
def test_a_table_that_could_be_misread_is_refused(tmp_path: Path, interactions: str, problem: str):
    (tmp_path / "x.csv").write_text(interactions)
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    with pytest.raises(DataError, match=problem):
        read_domain(tmp_path)


@pytest.mark.parametrize(
    "values", ['"ratings": ["5"]', '"ratings": [1e999]', '"timestamps": [1e999]', f'"timestamps": [{"9" * 401}]']
)
def test_a_number_that_is_none_or_too_large_is_refused_in_json_lines(tmp_path: Path, values: str):
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "A"}\n')
    (tmp_path / "sequences.jsonl").write_text(f'{{"user_id": "u", "items": ["a"], {values}}}\n')
    with pytest.raises(DataError, match="must be"):
        read_domain(tmp_path)


def test_odd_values_of_a_parquet_file_are_missing_or_refused(tmp_path: Path):
    pq.write_table(pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"]}), tmp_path / "x.parquet")

    def items(**columns: object) -> DomainData:
        pq.write_table(pa.table({"item_id": ["a", "b"], "title": ["A", "B"]} | columns), tmp_path / "items.parquet")
        return read_domain(tmp_path)

    data = items(year=[float("nan"), 1999.0])
    assert [dict(item.fields) for item in data.items.values()] == [{}, {"year": 1999.0}]
    for column in ([float("inf"), 1.0], [b"x", b"y"]):
        with pytest.raises(DataError, match="must be text or finite numbers"):
            items(year=column)
