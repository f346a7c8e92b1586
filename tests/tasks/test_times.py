"""Times as data sets write them: in several units, in words, with fractions. What they mean is computed with datetime."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reccocktail.tasks import DataError, describe, read_domain

PER_SECOND = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
DAY = int(datetime(2020, 9, 13, tzinfo=UTC).timestamp())


def shop(folder: Path, times: Iterable[object], said: str = "", *, name: str = "a.csv") -> Path:
    """Ann takes item 1, 2, 3, … at these times, written in this order."""
    rows = "".join(f'ann,{number},"{time}"\n' for number, time in enumerate(times, 1))
    (folder / name).write_text("user,item,time\n" + rows)
    (folder / "b.csv").write_text("item,title\n1,A\n")
    if said:
        (folder / "dataset.yaml").write_text(said)
    return folder


def order(folder: Path) -> tuple[str, ...]:
    return read_domain(folder).sequences[0].items


def times(folder: Path) -> list[float]:
    return list(read_domain(folder).sequences[0].fields["timestamps"])


def refusal(folder: Path) -> tuple[str, str]:
    with pytest.raises(DataError) as error:
        read_domain(folder)
    return str(error.value), error.value.hint or ""


FIRST, LAST = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (1990, 2100))


@settings(deadline=None)  # each example writes files
@given(st.lists(st.tuples(st.integers(FIRST, LAST - 1), st.sampled_from(list(PER_SECOND))), min_size=1, max_size=12))
def test_every_moment_has_its_place_whatever_its_unit(tmp_path_factory, rows: list[tuple[int, str]]):
    seconds = [second for second, _ in rows]
    written = [second * PER_SECOND[unit] for second, (_, unit) in zip(seconds, rows, strict=True)]
    folder = shop(tmp_path_factory.mktemp("data"), written)
    expected = [str(place + 1) for place in sorted(range(len(rows)), key=lambda place: seconds[place])]
    assert list(order(folder)) == expected
    used = [unit for unit in PER_SECOND if any(unit == its for _, its in rows)]
    assert times(folder) == sorted(second * PER_SECOND[used[-1]] for second in seconds)
    found = describe(read_domain(folder)).time_units
    assert found == ({unit: sum(unit == its for _, its in rows) for unit in used} if len(used) > 1 else {})


def test_times_in_one_unit_stay_as_they_are_and_nothing_is_said(tmp_path: Path):
    written = [DAY + 2, DAY, 315532800]  # 1980 in the same unit
    assert times(shop(tmp_path, written)) == sorted(written)
    assert describe(read_domain(tmp_path)).time_units == {}


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ([DAY, 5], 3),  # a counter beside seconds
        ([DAY, 0], 3),
        ([DAY, 20200913], 3),  # digits of a date
        ([20200913, 20200914, 20200915120000], 2),
        ([20200915120000, DAY], 2),
        ([DAY, 253402300799], 3),  # the year 9999
        ([DAY, DAY * 1000, 157766400], 4),  # 1975 in seconds, or 1970 in milliseconds
        ([157766400, 157766400000], 2),
        (["2020-09-13", 20200913], 3),
    ],
)
def test_units_that_cannot_be_told_apart_are_refused_with_line_and_way_out(
    tmp_path: Path, written: list[int], line: int
):
    said, hint = refusal(shop(tmp_path, written))
    assert f"a.csv, line {line}: timestamp" in said
    assert "time_unit: seconds" in hint


@pytest.mark.parametrize("unit", list(PER_SECOND))
def test_a_unit_that_is_set_leaves_numbers_as_they_are_and_turns_dates_into_it(tmp_path: Path, unit: str):
    written = [DAY, 5, 20200913, "2020-09-13T00:00:01Z"]
    expected = sorted([DAY, 5, 20200913, (DAY + 1) * PER_SECOND[unit]])
    assert times(shop(tmp_path, written, f"time_unit: {unit}\n")) == expected


def test_counters_and_digits_of_dates_are_numbers_like_others(tmp_path: Path):
    assert times(shop(tmp_path, [3, 1, 2_000_000])) == [1, 3, 2_000_000]
    assert times(shop(tmp_path, [20240531, 19991231])) == [19991231, 20240531]
    assert times(shop(tmp_path, [20240531120000, 19991231235959])) == [19991231235959, 20240531120000]


def test_seconds_with_fractions_beside_milliseconds_keep_their_thousandths(tmp_path: Path):
    assert times(shop(tmp_path, [f"{DAY}.125", f"{DAY * 1000 + 124}", f"{DAY}.333"])) == [
        DAY * 1000 + 124,
        DAY * 1000 + 125,
        DAY * 1000 + 333,
    ]


def test_files_of_one_data_set_may_be_in_other_units_than_each_other(tmp_path: Path):
    shop(tmp_path, [DAY, DAY + 3])
    (tmp_path / "more.csv").write_text(f"user,item,time\nann,9,{(DAY + 1) * 1000}\n")
    (tmp_path / "dataset.yaml").write_text("interactions: {file: [a.csv, more.csv]}\nitems: {file: b.csv}\n")
    assert order(tmp_path) == ("1", "9", "2")
    assert describe(read_domain(tmp_path)).time_units == {"seconds": 2, "milliseconds": 1}


@pytest.mark.parametrize("as_text", [False, True])
def test_numbers_of_parquet_are_told_apart_and_points_in_time_are_seconds(tmp_path: Path, as_text: bool):
    written = [DAY * 1000, DAY + 1, (DAY - 1) * 10**6]
    column = pa.array(list(map(str, written)) if as_text else written)
    pq.write_table(pa.table({"user": ["ann"] * 3, "item": ["1", "2", "3"], "time": column}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"item": ["1"], "title": ["A"]}), tmp_path / "b.parquet")
    assert order(tmp_path) == ("3", "1", "2")
    days = [datetime(year, 1, 2, tzinfo=UTC) for year in (1956, 1970, 2020)]
    old = pa.array(days, pa.timestamp("ms"))
    pq.write_table(pa.table({"user": ["ann"] * 3, "item": ["1", "2", "3"], "time": old}), tmp_path / "a.parquet")
    assert order(tmp_path) == ("1", "2", "3")  # nothing to be told apart


def test_equal_moments_of_json_lines_keep_the_order_of_the_file(tmp_path: Path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "1", "title": "A"}\n{"item_id": "2", "title": "B"}\n')
    (tmp_path / "sequences.jsonl").write_text(
        f'{{"user_id": "a", "items": ["1", "2"], "timestamps": [{DAY * 1000}, {DAY}.0]}}\n'
    )
    assert order(tmp_path) == ("1", "2")


def test_json_lines_are_put_in_order_by_the_real_moments(tmp_path: Path):
    (tmp_path / "items.jsonl").write_text('{"item_id": "1", "title": "A"}\n{"item_id": "2", "title": "B"}\n')
    (tmp_path / "sequences.jsonl").write_text(
        f'{{"user_id": "a", "items": ["1", "2"], "timestamps": [{DAY * 1000}, {DAY - 1}], "ratings": [1, 2]}}\n'
        f'{{"user_id": "b", "items": ["1"], "timestamps": [{DAY}]}}\n{{"user_id": "c", "items": []}}\n'
    )
    data = read_domain(tmp_path)
    assert data.sequences[0].items == ("2", "1")
    assert data.sequences[0].fields == {"timestamps": [(DAY - 1) * 1000, DAY * 1000], "ratings": [2, 1]}
    assert data.sequences[1].fields["timestamps"] == [DAY * 1000]
    assert describe(data).time_units == {"seconds": 2, "milliseconds": 1}
    with (tmp_path / "sequences.jsonl").open("a") as file:
        file.write('{"user_id": "d", "items": ["1"], "timestamps": [7]}\n')
    said, hint = refusal(tmp_path)
    assert "sequences.jsonl, line 4: timestamp 7" in said
    assert "time_unit" in hint


# Dates in words -------------------------------------------------------------------------------------------------------

WHEN = datetime(2024, 5, 31, 18, 5, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "expected", "said"),
    [
        ("2024-05-31 18:05:09 UTC", WHEN, ""),
        ("2024-05-31 18:05:09.250 UTC", WHEN + timedelta(seconds=0.25), ""),
        ("2024-05-31T18:05:09Z", WHEN, ""),
        ("2024-05-31T18:05:09+02:00", WHEN.replace(tzinfo=timezone(timedelta(hours=2))), ""),
        ("2024-05-31 18:05:09 +0200", WHEN.replace(tzinfo=timezone(timedelta(hours=2))), ""),
        ("2024-05-31 18:05:09 -05", WHEN.replace(tzinfo=timezone(-timedelta(hours=5))), ""),
        ("2024-05-31 18:05:09 +0000 UTC", WHEN, ""),
        ("2024-05-31 UTC", datetime(2024, 5, 31, tzinfo=UTC), ""),
        ("2024/5/31 6:05:09 PM", WHEN, ""),
        ("31.05.2024 18:05:09", WHEN, "dates: dmy"),
        ("31/5/24 18:05:09 UTC", WHEN, "dates: dmy"),
        ("05/31/2024 06:05:09 PM", WHEN, "dates: mdy"),
        ("5/31/24, 6:05:09 p.m.", WHEN, "dates: mdy"),
        ("05-31-2024", datetime(2024, 5, 31, tzinfo=UTC), "dates: mdy"),
        ("3.4.1999", datetime(1999, 4, 3, tzinfo=UTC), "dates: dmy"),
        ("3/4/99 12:00 AM", datetime(1999, 3, 4, tzinfo=UTC), "dates: mdy"),
        ("2024-05-31 18:05:09", WHEN, "dates: dmy"),
    ],
)
def test_dates_are_read_as_they_are_written(tmp_path: Path, written: str, expected: datetime, said: str):
    separated = written.replace(",", "")  # what a table in quotes does not need
    assert times(shop(tmp_path, [written, separated], said)) == [expected.timestamp()] * 2


@pytest.mark.parametrize(
    ("written", "said", "way_out"),
    [
        ("05/31/2024", "", "dates: mdy"),
        ("01.02.2024", "", "dates: dmy"),
        ("05/31/2024", "dates: dmy", "mdy"),
        ("31.05.2024", "dates: mdy", "dmy"),
    ],
)
def test_days_and_months_are_not_guessed(tmp_path: Path, written: str, said: str, way_out: str):
    problem, hint = refusal(shop(tmp_path, ["2024-05-31", written], said))
    assert "a.csv, line 3: timestamp" in problem
    assert way_out in hint


@pytest.mark.parametrize(
    "written",
    [
        "2024-05-31 18:05 CEST",
        "2024-05-31 25:00 UTC",
        "2024-05-31 13:00 PM",
        "2024-05-31T18:05+02:00 UTC",
        "31. May",
        "2024-02-30",
    ],
)
def test_what_is_no_date_is_refused(tmp_path: Path, written: str):
    assert "a.csv, line 2: timestamp must be a number or a date" in refusal(shop(tmp_path, [written]))[0]
