"""Users of a domain, and the plain LoRA or checkpoint that each of them has of a personalised LoRA.

A user's coefficients follow from the recommender of the bundle, which reads the user's history in the domain's data. Where they depend on
the target as well there is no one LoRA of a user, and nothing can be written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry import Adapter, Registry
from ..registry.catalog.references import PERSONALISED_LORA, SPIRIT, Reference
from ..registry.errors import NotFoundError
from ..registry.filenames import is_reserved
from ..registry.store.files import whole_folder
from .domain_data import domain_data
from .errors import TargetDependentError
from .merging.standalone import MergeOptions

if TYPE_CHECKING:  # torch is slow to import
    import torch

    from ..networks.bundle import PersonalisedBundle
    from ..tasks import ClickUser, DomainData

COEFFICIENTS = "coefficients.json"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class PersonalRequest:
    """Which users of which bundle, and how each is written. `spirit` is the weight of the base spirit that is mixed in, from 0 to 1."""

    ref: str
    users: tuple[str, ...]
    base: str | None = None
    options: MergeOptions = field(default_factory=MergeOptions)
    spirit: float | None = None


@dataclass(frozen=True)
class Person:
    """A user as the bundle sees them. `known`: by id, to the recommender; `history`: how many rated items; without any, a `fallback`.

    The fallback's coefficients are those of the user alone if known, else of the unknown user, for whom training prepares.
    """

    user: str
    known: bool
    history: int

    @classmethod
    def of(cls, user: ClickUser, bundle: PersonalisedBundle) -> Person:
        return cls(user.user_id, bundle.recommender.knows(user.user_id), len(user.rated))

    @property
    def fallback(self) -> bool:
        return self.history == 0


@dataclass(frozen=True)
class Written:
    """A user's folder."""

    person: Person
    folder: Path


@dataclass(frozen=True)
class Personalised:
    """What was written, and of which version."""

    adapter: Adapter
    written: tuple[Written, ...]


def personalise_users(
    registry: Registry,
    request: PersonalRequest,
    out: Path,
    *,
    notify: Callable[[Person], None] = lambda person: None,
) -> Personalised:
    """Write each user's LoRA or checkpoint into the new folder `out`: into itself for one, into a folder of its own for each of several.

    `out` appears complete or not at all. `notify` gets each user before the first is written.
    Raises WrongKindError, UsageError without data, TargetDependentError, and what `personalise` raises.
    """
    users = tuple(dict.fromkeys(request.users))
    row = _bundle(registry, request)
    refuse_target_dependent(row)
    data = data_of(registry, row)
    from ..networks.bundle import open_bundle

    bundle = open_bundle(registry.adapters.folder(row), base_digest=registry.bases.get(row.base).digest)
    people, alphas = of_users(bundle, data, users)
    for person in people:
        notify(person)
    names = folder_names(users)
    with whole_folder(out) as staged:
        staged.mkdir()
        for person, alpha in zip(people, alphas, strict=True):
            _write(registry, request, (row, bundle), (person, alpha), staged / names[person.user])
        if len(people) == 1:
            _lift(staged / names[people[0].user])
    return Personalised(
        row, tuple(Written(each, out / names[each.user] if len(people) > 1 else out) for each in people)
    )


def _bundle(registry: Registry, request: PersonalRequest) -> Adapter:
    """Raises NotFoundError, which says so where none can be trained because there are no ratings, WrongKindError."""
    try:
        return registry.adapters.resolve(request.ref, base=request.base, kind=PERSONALISED_LORA)
    except NotFoundError as error:
        domain = registry.domains.get(Reference.parse(request.ref).name)
        if domain.data is None or _has_ratings(registry, domain.name):
            raise
        raise type(error)(
            f"{error}; and the data of {domain.name} have no ratings, from which it is learned",
            hint="name the column of ratings in dataset.yaml and add the domain again, or choose a domain with ratings;"
            " `reccocktail train DOMAIN --trainer laser` needs none",
        ) from error


def _has_ratings(registry: Registry, domain: str) -> bool:
    from ..tasks import click_user

    data = domain_data(registry, domain)
    return any(click_user(data, history).rated for history in data.sequences)


def refuse_target_dependent(row: Adapter) -> None:
    """Raises TargetDependentError."""
    if row.context.get("bundle", {}).get("target_dependent"):
        raise TargetDependentError(
            f"{row.ref} gives a user another LoRA for each item that is asked about, so there is none to write for a user",
            hint=f"`reccocktail recommend {row.domain} --user USER --adapter {row.ref}` asks it as it is; to write LoRAs, train with"
            " `-o target_dependent=false`",
        )


def of_users(
    bundle: PersonalisedBundle, data: DomainData, users: Sequence[str]
) -> tuple[list[Person], Sequence[torch.Tensor]]:
    """Each user, and alpha [modules, metas] of each; of a bundle that does not depend on the target."""
    from ..tasks import ClickRow

    found = [rated_by(data, user) for user in users]
    people = [Person.of(each, bundle) for each in found]
    return people, [*bundle.coefficients([ClickRow.candidate(each, "") for each in found])]


def write_without_users(source: Path, folder: Path) -> None:
    """The bundle of `source` in the new folder, without the ids and embeddings of users. Raises InvalidArtifactError."""
    from ..networks import bundle  # torch is slow to import

    bundle.write_without_users(source, folder)


def folder_names(users: Sequence[str]) -> dict[str, str]:
    """A folder's name for each user: the id itself where that is plain, else one that follows from it."""
    plain = {user: bool(_PLAIN.fullmatch(user)) and not is_reserved(user) and user[-1] != "." for user in users}
    folded = [user.casefold() for user in users]
    return {
        user: user
        if plain[user] and folded.count(user.casefold()) == 1
        else f"user-{sha256(user.encode()).hexdigest()[:16]}"
        for user in users
    }


def data_of(registry: Registry, row: Adapter) -> DomainData:
    """Raises UsageError where the adapter's domain has none."""
    assert row.domain is not None
    return domain_data(registry, row.domain, needed=", from which the histories of users are read")


def rated_by(data: DomainData, user_id: str) -> ClickUser:
    """The user with all that they rated, which is nothing where the data does not have them."""
    from ..tasks import ClickUser, click_user

    history = next((each for each in data.sequences if each.user_id == user_id), None)
    return ClickUser(user_id) if history is None else click_user(data, history)


def _write(
    registry: Registry,
    request: PersonalRequest,
    source: tuple[Adapter, PersonalisedBundle],
    target: tuple[Person, torch.Tensor],
    folder: Path,
) -> None:
    from .personalising import personalise

    (row, bundle), (person, alpha) = source, target
    base = registry.bases.get(row.base)
    options = replace(request.options, base_names=(base.name, base.source))
    personalise(
        registry.bases.folder(base),
        bundle.net,
        alpha,
        folder,
        options,
        spirit=_spirit(registry, row, request.spirit),
        workplace=folder.parent,  # which goes if this process is killed
    )
    (folder / COEFFICIENTS).write_text(
        json.dumps(_coefficients(row, bundle, person, alpha), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _spirit(registry: Registry, row: Adapter, weight: float | None) -> Any:
    from .personalising import SpiritShare

    if weight is None:
        return None
    spirit = registry.adapters.resolve(SPIRIT, base=row.base)
    return SpiritShare(registry.adapters.folder(spirit), weight)


def _coefficients(row: Adapter, bundle: PersonalisedBundle, person: Person, alpha: torch.Tensor) -> dict[str, Any]:
    """What `coefficients.json` has: alpha of each module, in the order of the meta-LoRAs, and whose they are."""
    return {
        "adapter": row.ref,
        "digest": row.digest,
        "user": person.user,
        "known_user": person.known,
        "history": person.history,
        "fallback": person.fallback,
        "form": bundle.manifest.gates.form,
        "modules": dict(zip(bundle.net.modules_gated, alpha.tolist(), strict=True)),
    }


def _lift(folder: Path) -> None:
    """The content of the folder into the one that it is in."""
    moved = folder.rename(folder.with_name(".one"))  # a file of it may have its name
    for path in moved.iterdir():
        path.rename(moved.parent / path.name)
    moved.rmdir()
