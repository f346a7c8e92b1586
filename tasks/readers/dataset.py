"""`dataset.yaml`: what a data folder says about itself where its files leave it open."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..documents import read_yaml
from ..errors import DataError
from ..validation import problems
from .times import DateOrder, Unit

FILE = "dataset.yaml"


def _in_the_folder(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"must be the name of a file in the same folder, found {name!r}")
    return name


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)  # refuses codecs that are no encodings of text
        codecs.getincrementaldecoder(name)
    except LookupError as error:
        raise ValueError(f"no encoding of text is called {name!r}; usual ones are utf-8, latin-1 and cp1252") from error
    return codecs.lookup(name).name


FileName = Annotated[str, AfterValidator(_in_the_folder)]
Encoding = Annotated[str, AfterValidator(_known_encoding)]


class _Table(BaseModel):
    """Columns may also be called as they usually are: `user_id` for `user`, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _usual_names(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        names = {f"{name}_id": name for name in ("user", "item")}
        if twice := [name for name, short in names.items() if name in content and short in content]:
            raise ValueError(f"names the column of {twice[0]} twice")
        return {names.get(name, name) if isinstance(name, str) else name: value for name, value in content.items()}


class InteractionTable(_Table):
    """Tables with one interaction a row, and their columns; those left out are found by their usual names.

    Of several files, rows that have equal times or none are in the order in which the files are named.
    """

    file: FileName | Annotated[list[FileName], Field(min_length=1)] | None = None
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None


class ItemTable(_Table):
    """A table with one item a row; it may be the file of the interactions."""

    file: FileName | None = None
    item: str | None = None
    title: str | None = None
    brand: str | None = None
    genres: str | None = None
    category: str | None = None
    year: str | None = None


class Dataset(BaseModel):
    """What a folder says of its files.

    `encoding`, `quotes`, `dates` and `time_unit` say how texts and times are written; `benchmark_filename`, as in RecBole, in which
    order the files NAME.PART.inter are read. `min_rating` leaves out interactions that are rated lower; `core` then leaves users and items
    with so many or more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: str | None = None
    interactions: InteractionTable = InteractionTable()
    items: ItemTable = ItemTable()
    benchmark_filename: list[str] | None = Field(default=None, min_length=1)
    encoding: Encoding | None = None
    quotes: Literal["doubled", "escaped"] | None = None
    dates: DateOrder = "iso"
    time_unit: Unit | None = None
    core: int | None = Field(default=None, ge=1)
    min_rating: float | None = Field(default=None, allow_inf_nan=False)

    @property
    def names_tables(self) -> bool:
        return self.interactions != InteractionTable() or self.items != ItemTable()


def read_dataset(folder: Path) -> Dataset:
    """The folder's `dataset.yaml`, or one that says nothing. Raises DataError for what it must not say."""
    path = folder / FILE
    try:
        content = read_yaml(path)
    except (FileNotFoundError, NotADirectoryError):
        return Dataset()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as YAML: {error}", hint="see docs/data.md for its keys") from error
    try:
        return Dataset.model_validate({} if content is None else content)
    except ValidationError as error:
        wrong = problems(error, Dataset, whole=FILE)
        raise DataError(
            f"{path}: {wrong}", hint=f"its keys are {', '.join(Dataset.model_fields)}; see docs/data.md"
        ) from error
