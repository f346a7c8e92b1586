"""Domains that plugins bring: their data are made under the home or read where they are, and then they are registered."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..registry import Domain, Registry
from ..registry.errors import ConflictError, NotFoundError, RecCocktailError
from ..registry.store.files import own_folder
from ..registry.store.room import NO_ROOM, lacks_room, room_in
from ..tasks import DataFacts, DomainData, TaskError, describe, read_domain
from .plugin import PluginDomain, Trainer, TrainerError, domains_of, load, stdout_kept

State = Literal["added", "changed", "unchanged"]


@dataclass(frozen=True)
class Registered:
    """What became of a domain that a plugin brings."""

    domain: Domain
    state: State
    facts: DataFacts


def find_domain(trainer: Trainer, name: str) -> PluginDomain:
    """The domain of that name that the trainer brings. Raises TrainerError, which names those that there are."""
    brought = {domain.name: domain for domain in domains_of(trainer)}
    if name not in brought:
        known = ", ".join(brought) or "none"
        raise TrainerError(
            f"trainer {trainer.name!r} brings no domain {name!r}; it brings: {known}",
            hint=f"`reccocktail trainers show {trainer.name}`",
        )
    return brought[name]


def register(
    registry: Registry,
    trainer: Trainer,
    brought: PluginDomain,
    *,
    settle_recipe: Callable[[str], str],
    title: str | None = None,
    recipe: str | None = None,
    take_over: bool = False,
) -> Registered:
    """Add the domain, or bring title, data, trainer and recipe of one that is there up to date. Doing it again changes nothing.

    `title` and `recipe` stand in for the plugin's. Raises ConflictError for a domain of that name with another trainer
    or data, unless `take_over` is set; TrainerError for data that cannot be made or read; what `settle_recipe` raises, which gives what
    the domain keeps of a recipe's name or file.
    """
    before = _known(registry, brought.name)
    if before is not None and before.trainer != trainer.name and not take_over:
        whose = f"with trainer {before.trainer}" if before.trainer else "and was not brought by a plugin"
        raise ConflictError(
            f"domain {brought.name!r} is there already {whose}",
            hint=f"`reccocktail domain add {brought.name} --from-plugin {trainer.name}` makes it the plugin's",
        )
    recipe = recipe or recipe_of(brought)
    if recipe is not None:
        recipe = settle_recipe(recipe)
    folder, data = _data(registry.settings.own_folder("data") / "plugins" / trainer.name, trainer, brought)
    row = registry.domains.add(
        brought.name, title=title or brought.title, data=str(folder), trainer=trainer.name, recipe=recipe
    )
    state = "added" if before is None else "unchanged" if row == before else "changed"
    return Registered(row, state, describe(data))


def recipe_of(brought: PluginDomain) -> str | None:
    """The recipe by its name, or by the path of its file from the root."""
    if brought.recipe is None:
        return None
    path = Path(brought.recipe)
    return str(path.absolute()) if path.suffix else str(brought.recipe)


def read_brought(trainer: Trainer, brought: PluginDomain, folder: Path) -> DomainData:
    """Make the data in the empty folder if they are to be made, and read them. Raises TrainerError."""
    where = f"trainer {trainer.name!r}, domain {brought.name!r}"
    try:
        if isinstance(brought.data, Path):
            return read_domain(brought.data, brought.name)
        with stdout_kept():
            brought.data(folder)
        return read_domain(folder, brought.name)
    except RecCocktailError as error:
        raise TrainerError(f"{where}: {error}", hint=error.hint) from error
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        raise TrainerError(
            f"{where}: its data could not be made: {type(error).__name__}: {error}",
            hint=NO_ROOM if lacks_room(error) else None,
        ) from error


def _data(place: Path, trainer: Trainer, brought: PluginDomain) -> tuple[Path, DomainData]:
    """Where the data are, and what they say. Made data lie in a folder named by their digest, which never changes again.

    A training that still reads older data is not disturbed by newer ones beside them.
    """
    if isinstance(brought.data, Path):
        return brought.data.absolute(), read_brought(trainer, brought, brought.data)
    above = place / brought.name
    above.mkdir(parents=True, exist_ok=True)
    with room_in(above), own_folder(above) as staging:
        staged = staging / "data"
        staged.mkdir()
        data = read_brought(trainer, brought, staged)
        folder = above / data.digest.removeprefix("sha256:")[:16]
        if folder.exists() and not _says(folder, data.digest):
            shutil.rmtree(folder)  # somebody was at it
        if not folder.exists():
            try:
                staged.rename(folder)
            except OSError:
                if not _says(folder, data.digest):  # unless another process was quicker
                    raise
    return folder, data


def _says(folder: Path, digest: str) -> bool:
    try:
        return read_domain(folder).digest == digest
    except TaskError:
        return False


def _known(registry: Registry, name: str) -> Domain | None:
    try:
        return registry.domains.get(name)
    except NotFoundError:
        return None


class DomainCheck:
    """What is looked at before a domain is written: that its trainer is installed, and that its data can be read, once for all that share them."""

    def __init__(self, folder: Callable[[str], Path] = Path) -> None:
        """`folder` says where data lie: `Registry.data_folder` also reads those that were uploaded."""
        self._folder = folder
        self._readable: set[str] = set()

    def __call__(self, name: str, fields: Mapping[str, str]) -> None:
        """Raises TrainerError, TaskError, StoreError."""
        if "trainer" in fields:
            load(fields["trainer"])
        if "data" in fields and fields["data"] not in self._readable:
            read_domain(self._folder(fields["data"]), name)
            self._readable.add(fields["data"])
