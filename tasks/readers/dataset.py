"""`dataset.yaml`: what a data folder says about itself where its files leave it open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..documents import read_yaml
from ..errors import DataError

FILE = "dataset.yaml"


def _in_the_folder(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"must be the name of a file in the same folder, found {name!r}")
    return name


FileName = Annotated[str, AfterValidator(_in_the_folder)]


class InteractionTable(BaseModel):
    """A CSV or Parquet file with one interaction a row, and its columns; those left out are found by their usual names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: FileName | None = None
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None


class ItemTable(BaseModel):
    """A CSV or Parquet file with one item a row; it may be the file of the interactions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: FileName | None = None
    item: str | None = None
    title: str | None = None


class Dataset(BaseModel):
    """`min_rating` leaves out interactions that are rated lower; `core` then leaves users and items with so many or more."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: str | None = None
    interactions: InteractionTable = InteractionTable()
    items: ItemTable = ItemTable()
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
        raise DataError(f"{path} cannot be read as YAML: {error}") from error
    try:
        return Dataset.model_validate({} if content is None else content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or FILE}: {e['msg']}" for e in error.errors())
        raise DataError(
            f"{path}: {wrong}", hint=f"it may say {', '.join(Dataset.model_fields)}; see docs/data.md"
        ) from error
