"""Parquet files, read in batches that are bounded in bytes: a dictionary can hide gigabytes in a few kilobytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .lines import MAX_FIELD, TooLong

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1 << 16
BATCH_BYTES = 64_000_000
MAX_CHUNK_BYTES = 256_000_000  # one column of one row group, unpacked


def columns_of(path: Path) -> list[tuple[str, pa.DataType]]:
    """The columns that can be read, in their order: plain values, and lists of them, but no structs, maps or lists of those."""
    with _parquet(path) as file:
        return [(field.name, field.type) for field in file.schema_arrow if not _is_nested(_of_list(field.type))]


def is_list(kind: pa.DataType) -> bool:
    return _of_list(kind) is not kind


def is_point_in_time(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_date(kind) or pa.types.is_timestamp(kind)


def parquet_rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, Sequence[Any]]]:
    """These columns of every row, in this order, with the row's number. Texts that are too long are `TooLong`."""
    number, read = 0, list(dict.fromkeys(wanted))
    with _parquet(path) as file:
        texts = _text_leaves(file, read)
        with _parquet(path, list(texts)) as probe:
            sizes = [_batch_rows(path, probe, group, texts) for group in range(file.num_row_groups)]
        for group, size in enumerate(sizes):
            for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=read):
                columns = {name: _values(path, name, batch.column(name)) for name in read}
                for row in zip(*(columns[name] for name in wanted), strict=True):
                    number += 1
                    yield number, row


def _text_leaves(file: pq.ParquetFile, wanted: Sequence[str]) -> dict[str, int]:
    """Where in the file the texts of these columns, or of the lists in them, are: the number of each by its path."""
    found = {}
    for number in range(len(file.schema)):
        column = file.schema.column(number)
        if column.physical_type == "BYTE_ARRAY" and (column.path in wanted or column.path.split(".")[0] in wanted):
            found[column.path] = number
    return found


def _batch_rows(path: Path, probe: pq.ParquetFile, group: int, texts: dict[str, int]) -> int:
    """How many rows of the group may be read at once, by the longest text in its dictionaries and the size of the others."""
    about, largest = probe.metadata.row_group(group), 1
    for leaf, number in texts.items():
        chunk = about.column(number)
        if chunk.total_uncompressed_size > MAX_CHUNK_BYTES:
            raise DataError(
                f"{path}, row group {group + 1}: column {leaf!r} is {chunk.total_uncompressed_size:,} bytes,"
                f" more than {MAX_CHUNK_BYTES:,}",
                hint="write the file with smaller row groups, such as row_group_size=100_000",
            )
        longest = _longest_of_dictionary(probe, group, leaf) if chunk.has_dictionary_page else 0
        in_a_row = -(-chunk.num_values // max(1, about.num_rows))
        largest = max(largest, longest * in_a_row, chunk.total_uncompressed_size // max(1, about.num_rows))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // largest))


def _longest_of_dictionary(probe: pq.ParquetFile, group: int, leaf: str) -> int:
    """Bytes of the longest text of a chunk's dictionary, which comes whole with the first value."""
    import pyarrow as pa

    compute = _compute()

    for batch in probe.iter_batches(batch_size=1024, row_groups=[group], columns=[leaf]):
        values = batch.column(0)
        while is_list(values.type):
            values = values.flatten()
        if not pa.types.is_dictionary(values.type):
            return 0
        if len(values.dictionary):
            return compute.max(compute.binary_length(values.dictionary)).as_py() or 0
    return 0


def _values(path: Path, name: str, column: pa.Array) -> list[Any]:
    """The column's values; points in time become seconds since 1970, whole decimals integers."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        return _seconds(path, name, column)
    if pa.types.is_decimal(kind):
        return [_number(value) for value in column.to_pylist()]
    if pa.types.is_dictionary(kind):
        values = _values(path, name, column.dictionary)
        return [None if place is None else values[place] for place in column.indices.to_pylist()]
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return column.to_pylist()
    return _short_texts(column)


def _short_texts(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    compute = _compute()

    lengths = compute.binary_length(column)
    if (compute.max(lengths).as_py() or 0) <= MAX_FIELD:
        return column.to_pylist()
    long = compute.fill_null(compute.greater(lengths, MAX_FIELD), False)
    texts = compute.if_else(long, pa.scalar(None, column.type), column).to_pylist()
    return [TooLong() if is_long else text for text, is_long in zip(texts, long.to_pylist(), strict=True)]


def _seconds(path: Path, name: str, column: pa.Array) -> list[Any]:
    import pyarrow as pa

    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
    counts = column.cast(pa.int64()).to_pylist()
    if per_second == 10**9 and any(count is not None and count % 1000 for count in counts):
        raise DataError(
            f"{path}: column {name!r} is finer than microseconds", hint="store it as microseconds or as integers"
        )
    return [count if count is None else count / per_second for count in counts]


def _number(value: Decimal | None) -> int | float | None:
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def _of_list(kind: pa.DataType) -> pa.DataType:
    """What the lists of this type hold, or the type itself."""
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return kind.value_type
    return kind


def _is_nested(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_nested(kind)


def _compute() -> Any:
    """pyarrow.compute, whose functions are made when it is imported and known to no type checker."""
    return import_module("pyarrow.compute")


@contextmanager
def _parquet(path: Path, dictionaries: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed", hint="pip install 'reccocktail[train]'"
        ) from error
    try:
        with pq.ParquetFile(path, read_dictionary=list(dictionaries) or None) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {error}", hint="write the file again, or get it again, whole"
        ) from error
