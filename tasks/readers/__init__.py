"""Data sets as they are published or exported, each recognised by the files of its folder. docs/data.md lists them."""

from __future__ import annotations

from pathlib import Path

from ..data import DomainData
from ..errors import DataError
from . import amazon, jsonl, movielens, recbole, tables
from .dataset import FILE, Dataset, read_dataset
from .source import Source

READERS = (jsonl, amazon, movielens, recbole, tables)  # the tables last: they look at what no other layout has
FORMATS = {name: files for reader in READERS for name, files in reader.FORMATS.items()}


def read_domain(folder: str | Path, name: str | None = None) -> DomainData:
    """Read a data folder in any format of docs/data.md; the domain is named after it unless `name` is given.

    Interactions with timestamps are put in their order; equal times keep the order of the file. Raises DataError, which
    names file and line, or says what was looked for in a folder that is no data set.
    """
    folder = Path(folder)
    return _read(folder, name or folder.resolve().name.replace("_", "-"))


def _read(folder: Path, name: str) -> DomainData:
    """The data of the folder, under this name. Raises DataError."""
    dataset = read_dataset(folder)
    data = _source(folder, dataset).read(name, dataset)
    if data.origin.dropped and not data.sequences:
        raise DataError(
            f"{folder}: the filters of {FILE} leave none of {data.origin.dropped:,} interactions",
            hint="set a smaller core or min_rating",
        )
    return data


def _source(folder: Path, dataset: Dataset) -> Source:
    """The one data set that the folder holds."""
    if dataset.format is not None and dataset.format not in FORMATS:
        raise DataError(
            f"{folder / FILE}: no format is called {dataset.format!r}", hint=f"formats are {', '.join(FORMATS)}"
        )
    names = _names(folder)
    found, problems = _found(folder, names, dataset)
    if len(found) == 1:
        return found[0]
    if found:
        seen = "; ".join(f"{source.format} ({source.file.name})" for source in found)
        raise DataError(
            f"{folder} holds more than one data set: {seen}",
            hint=f"keep one of them in the folder, or name its format in {FILE}",
        )
    if problems:
        raise problems[0]
    looked = FORMATS if dataset.format is None else {dataset.format: FORMATS[dataset.format]}
    held = ", ".join(sorted(names)[:10]) + (", …" if len(names) > 10 else "")
    raise DataError(
        f"{folder} holds no data set that can be read; it holds {held or 'no file'}. Looked for: "
        + "; ".join(f"{format_} ({files})" for format_, files in looked.items()),
        hint="put the files of one data set into the folder itself; see docs/data.md",
    )


def _found(folder: Path, names: frozenset[str], dataset: Dataset) -> tuple[list[Source], list[DataError]]:
    """What the readers recognise, and what is wrong with data sets that are nearly there."""
    readers = [reader for reader in READERS if dataset.format is None or dataset.format in reader.FORMATS]
    if dataset.names_tables:
        of_own_columns = [reader for reader in readers if reader in (tables, recbole)]
        if not of_own_columns:
            raise DataError(
                f"{folder / FILE} names files and columns, which {dataset.format} has of its own",
                hint="leave them out, or name the format csv, parquet or recbole",
            )
        atomic = dataset.format is None and any(name.endswith(".inter") for name in names)
        readers = [recbole] if atomic and dataset.interactions.file is None else of_own_columns[-1:]
    found: list[Source] = []
    problems: list[DataError] = []
    for reader in readers:
        try:
            sources = reader.find(folder, names, dataset)
        except DataError as error:
            problems.append(error)
            continue
        found += [source for source in sources if dataset.format in (None, source.format)]
        names = names.difference(*(source.layout for source in sources))
    return found, problems


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in folder.iterdir() if entry.is_file() and entry.name != FILE)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read as a folder ({error.strerror})", hint="name a folder that holds the data set"
        ) from error
