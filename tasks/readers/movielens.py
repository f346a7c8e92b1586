"""MovieLens as GroupLens publishes it: 100K, 1M, 10M, and the sets in CSV (20M, 25M, 32M, latest). https://grouplens.org/datasets/movielens"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..data import DomainData, Item, clean_title, unescaped
from ..errors import DataError
from .dataset import Dataset
from .interactions import Columns, Interactions, Table, collect, domain
from .lines import is_utf8, split_rows
from .source import Source
from .tables import header, rows

FORMATS = {
    "movielens 100k": "u.data and u.item",
    "movielens 1m": "ratings.dat, movies.dat and users.dat",
    "movielens 10m": "ratings.dat and movies.dat",
    "movielens csv": "ratings.csv and movies.csv with the columns userId and movieId",
}
RATING = Columns(user=0, item=1, time=3, rating=2)
CSV_COLUMNS = ["userId", "movieId", "rating", "timestamp"]
CSV_LAYOUT = {"ratings.csv", "movies.csv", "tags.csv", "links.csv", "genome-scores.csv", "genome-tags.csv"}
NO_GENRES = "(no genres listed)"
GENRES = (  # the last columns of u.item, in their order
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def find(folder: Path, names: frozenset[str], dataset: Dataset) -> list[Source]:
    found = []
    if "u.data" in names:
        if "u.item" not in names:
            raise DataError(f"{folder} holds u.data, but no u.item with the titles", hint="put both files there")
        found.append(_source("movielens 100k", folder / "u.data", {"u.data", "u.item", "u.user"}, _100k))
    if "ratings.dat" in names:
        if "movies.dat" not in names:
            raise DataError(
                f"{folder} holds ratings.dat, but no movies.dat with the titles", hint="put both files there"
            )
        layout = {"ratings.dat", "movies.dat", "users.dat", "tags.dat"}
        if "users.dat" in names:
            found.append(_source("movielens 1m", folder / "ratings.dat", layout, _1m))
        else:
            found.append(_source("movielens 10m", folder / "ratings.dat", layout, _10m))
    if {"ratings.csv", "movies.csv"} <= names and header(folder / "ratings.csv", dataset) == CSV_COLUMNS:
        found.append(_source("movielens csv", folder / "ratings.csv", CSV_LAYOUT, _csv))
    return found


def _source(
    format_: str, file: Path, layout: set[str], read: Callable[[str, Path, str, Dataset], DomainData]
) -> Source:
    return Source(format_, file, frozenset(layout), partial(read, format_, file.parent))


def _100k(format_: str, folder: Path, name: str, dataset: Dataset) -> DomainData:
    users: dict[str, dict[str, str]] = {}
    if (folder / "u.user").is_file():
        for _, (user_id, age, gender, occupation, code) in _rows(folder / "u.user", "|", 5, dataset):
            users[user_id] = {"age": age, "gender": gender, "occupation": occupation, "zip_code": code}
    found = _ratings(folder / "u.data", "\t", dataset)
    return domain(name, format_, found, _items_100k(folder / "u.item", dataset), dataset, users=users)


def _rows(path: Path, separator: str, columns: int, dataset: Dataset) -> Iterator[tuple[int, list[str]]]:
    """Rows in the encoding that is set, else in UTF-8 if all of the file is, as newer copies are, else in Latin-1."""
    encoding = dataset.encoding or ("utf-8" if is_utf8(path) else "latin-1")
    return split_rows(path, separator, columns, encoding)


def _ratings(path: Path, separator: str, dataset: Dataset) -> Interactions:
    rows = partial(split_rows, path, separator, 4, dataset.encoding)  # digits, in any encoding
    return collect([Table(path, RATING, rows)], dataset)


def _items_100k(path: Path, dataset: Dataset) -> Iterator[Item]:
    """Films whose title is not known are called "unknown"."""
    for _, row in _rows(path, "|", 24, dataset):
        genres = [genre for genre, flag in zip(GENRES, row[5:], strict=True) if flag == "1"]
        yield Item(row[0], "" if row[1] == "unknown" else _title(row[1]), {"genres": genres})


def _1m(format_: str, folder: Path, name: str, dataset: Dataset) -> DomainData:
    users = {
        user_id: {"gender": gender, "age": age, "occupation": occupation, "zip_code": code}
        for _, (user_id, gender, age, occupation, code) in _rows(folder / "users.dat", "::", 5, dataset)
    }
    found = _ratings(folder / "ratings.dat", "::", dataset)
    films = _items_dat(_rows(folder / "movies.dat", "::", 3, dataset))
    return domain(name, format_, found, films, dataset, users=users)


def _10m(format_: str, folder: Path, name: str, dataset: Dataset) -> DomainData:
    found = _ratings(folder / "ratings.dat", "::", dataset)
    films = _items_dat(split_rows(folder / "movies.dat", "::", 3, dataset.encoding))
    return domain(name, format_, found, films, dataset)


def _items_dat(rows: Iterator[tuple[int, list[str]]]) -> Iterator[Item]:
    for _, (movie_id, title, genres) in rows:
        yield _item(movie_id, title, genres)


def _csv(format_: str, folder: Path, name: str, dataset: Dataset) -> DomainData:
    ratings = folder / "ratings.csv"
    found = collect([Table(ratings, RATING, partial(rows, ratings, CSV_COLUMNS, dataset))], dataset)
    movies = (_item(*row) for _, row in rows(folder / "movies.csv", ["movieId", "title", "genres"], dataset))
    return domain(name, format_, found, movies, dataset)


def _item(movie_id: str, title: str, genres: str) -> Item:
    named = [] if genres == NO_GENRES else [unescaped(genre) for genre in genres.split("|")]
    return Item(movie_id, _title(title), {"genres": named})


def _title(text: str) -> str:
    return clean_title(unescaped(text))
