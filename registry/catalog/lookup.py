"""What references mean: the row of an adapter version that `NAME`, `NAME@vN` or `NAME@ALIAS` leads to."""

from __future__ import annotations

from functools import cache
from typing import Literal

from sqlalchemy import ColumnElement, ScalarSelect, Select, bindparam, func, select, true, update
from sqlalchemy.orm import Session, aliased, contains_eager, joinedload

from ..database.tables import AdapterRow, AliasRow, BaseModelRow, DomainRow, GateRow
from ..errors import GateError, NotFoundError, UsageError, WrongKindError
from .bases import find_base
from .domains import find_domain
from .references import BI_TUNING, CHAMPION, LORA, PERSONALISED_LORA, SPIRIT, Reference, did_you_mean

CALLED = {"lora": "a plain LoRA", "personalised-lora": "a personalised LoRA", "bi-tuning": "a bi-tuning"}


def find_adapter(session: Session, ref: str | Reference, base: str | None, kind: str | None = None) -> AdapterRow:
    """One query where all is well; without a `kind`, of whatever kind it is.

    Raises NotFoundError, WrongKindError where it means a version of another kind, GateError for a bare name that means nothing before
    a version has passed the gate of its domain, and UsageError for versions of several bases.
    """
    ref = parsed(ref)
    suffix = "version" if ref.version is not None else "alias" if ref.alias is not None else None
    given = {"domain": ref.name, "version": ref.version, "alias": ref.alias, "base": base}
    rows = session.scalars(_finding(suffix, base is not None, kind), given).unique().all()
    rows = [row for row in rows if kind in (None, row.kind)] or rows
    if not rows:
        if suffix is None and kind in (None, LORA):
            _refuse_ungated(session, ref.name, base)
        if kind is not None and suffix is None:
            for other in session.scalars(_finding(None, base is not None, None), given).unique():
                check_kind(other, kind)
        raise _not_found(session, ref, base, kind)
    if len(rows) > 1:
        found = " and ".join(sorted(row.base.name for row in rows))
        raise UsageError(f"{str(ref)!r} means versions for several base models: {found}", hint="say --base NAME")
    check_kind(rows[0], kind)
    return rows[0]


def check_kind(row: AdapterRow, kind: str | None) -> None:
    """Raises WrongKindError where the version is not of the kind that is asked for; None means any."""
    if kind is not None and kind != row.kind:
        raise WrongKindError(
            f"{ref_of(row)} is {CALLED[row.kind]}, and {CALLED[kind]} is needed here", hint=_instead(row, kind)
        )


def _instead(row: AdapterRow, kind: str) -> str:
    """What to do where the version is not of this kind."""
    name, ref = row.domain.name, ref_of(row)
    if row.kind == BI_TUNING:
        return (
            f"it embeds users and items: `reccocktail recommend {name} --user USER --adapter {ref}` asks it, and"
            f" `reccocktail build request {name} --adapter {ref}` builds its index"
        )
    if row.kind != PERSONALISED_LORA:
        return f"`reccocktail adapter list --domain {name} --kind {kind}` shows those that there are"
    return (
        f"it is another LoRA for each user: `reccocktail personalise {ref} USER -o DIR` writes that of one as a plain"
        f" LoRA or a checkpoint, and `reccocktail recommend {name} --user USER --adapter {ref}` asks it"
    )


@cache
def _finding(suffix: Literal["version", "alias"] | None, with_base: bool, kind: str | None) -> Select[AdapterRow]:
    """The query behind a reference, put together once, which takes longer than to run it."""
    domain = DomainRow.name == bindparam("domain")
    query = select(AdapterRow).join(AdapterRow.domain).join(AdapterRow.base).where(domain)
    if suffix == "version":
        query = query.where(AdapterRow.version == bindparam("version"))
    elif suffix == "alias":
        here = (AliasRow.base_id == AdapterRow.base_id) & (AliasRow.domain_id == AdapterRow.domain_id)
        query = query.join(AliasRow, here & (AliasRow.adapter_id == AdapterRow.id))
        query = query.where(AliasRow.name == bindparam("alias"))
    else:
        query = query.where(AdapterRow.id.in_(preferred(kind).where(domain)))
    if with_base:
        query = query.where(BaseModelRow.name == bindparam("base"))
    return query.options(
        contains_eager(AdapterRow.domain), contains_eager(AdapterRow.base), joinedload(AdapterRow.aliases)
    )


def preferred(kind: str | None = LORA) -> Select[int]:
    """The ids that bare names mean: per base and domain the champion, otherwise the newest, of those of the kind that are not archived.

    Where the domain has a gate, a plain LoRA is meant only as champion: nothing else has passed. Without a kind a plain LoRA comes first,
    and only where there is none the newest of whatever kind. The champion is always a plain LoRA.
    """
    newest_lora, no_lora = _newest_active(LORA), _newest_active(LORA).is_(None)
    ungated = select(newest_lora).where(~_is_gated()).correlate(DomainRow, BaseModelRow).scalar_subquery()
    if kind not in (None, LORA):
        return _per_base_and_domain(_newest_active(kind))
    if kind == LORA:
        return _per_base_and_domain(func.coalesce(_champion(), ungated))
    other = select(_newest_active(None)).where(no_lora).correlate(DomainRow, BaseModelRow).scalar_subquery()
    return _per_base_and_domain(func.coalesce(_champion(), ungated, other))


def held_back() -> Select[int]:
    """The ids of the newest plain LoRAs that bare names would mean, had their domain no gate: it has one, and no champion that is in use."""
    return _per_base_and_domain(_newest_active(LORA)).where(_is_gated(), _champion().is_(None))


def _per_base_and_domain(id_: ColumnElement[int] | ScalarSelect[int]) -> Select[int]:
    return select(id_).select_from(DomainRow).join(BaseModelRow, true()).correlate(None)


def _champion() -> ScalarSelect[int]:
    """The version with the alias, if it is not archived; of the base and domain of the query around it, as all of these."""
    version, alias = aliased(AdapterRow), aliased(AliasRow)
    here = (alias.base_id == BaseModelRow.id, alias.domain_id == DomainRow.id, alias.name == CHAMPION)
    query = select(version.id).join(alias, alias.adapter_id == version.id).where(version.archived_at.is_(None), *here)
    return query.correlate(DomainRow, BaseModelRow).scalar_subquery()


def _newest_active(kind: str | None) -> ScalarSelect[int]:
    version = aliased(AdapterRow)
    active = (version.base_id == BaseModelRow.id, version.domain_id == DomainRow.id, version.archived_at.is_(None))
    query = select(version.id).where(*active, *(() if kind is None else [version.kind == kind]))
    return query.order_by(version.version.desc()).limit(1).correlate(DomainRow, BaseModelRow).scalar_subquery()


def _is_gated() -> ColumnElement[bool]:
    return select(GateRow.domain_id).where(GateRow.domain_id == DomainRow.id).correlate(DomainRow).exists()


def _refuse_ungated(session: Session, name: str, base: str | None) -> None:
    """Raises GateError where the domain has versions, and none that has passed its gate."""
    query = select(AdapterRow).where(AdapterRow.id.in_(held_back().where(DomainRow.name == name)))
    if base is not None:
        query = query.join(AdapterRow.base).where(BaseModelRow.name == base)
    if rows := session.scalars(query.order_by(AdapterRow.id)).all():
        raise no_champion(name, ref_of(rows[-1]), rows[-1].base.name if base is not None or len(rows) > 1 else None)


def no_champion(name: str, newest: str, base: str | None = None, *, when: str = "") -> GateError:
    """Of a bare name in a gated domain; `newest` is the version that could pass, for this base model where one has to be named."""
    option = "" if base is None else f" --base {base}"
    return GateError(
        f"{name!r} has a gate and no champion in use{when}, so the name alone means no version",
        hint=f"`reccocktail adapter alias {newest} {CHAMPION}{option}` asks the gate; or name a version, such as {newest}",
    )


def mark_current_spirits(session: Session, domain_id: int) -> None:
    """Keeps the database's word on the current spirits the same as what bare `spirit` means; the id is the domain's of all spirits."""
    session.flush()
    of_spirits = AdapterRow.domain_id == domain_id
    session.execute(update(AdapterRow).where(of_spirits, AdapterRow.is_current).values(is_current=False))
    meant = AdapterRow.id.in_(preferred().where(DomainRow.name == SPIRIT))
    session.execute(update(AdapterRow).where(of_spirits, meant).values(is_current=True))


def _not_found(session: Session, ref: Reference, base: str | None, kind: str | None = None) -> NotFoundError:
    domain = find_domain(session, ref.name)
    query = select(AdapterRow.id).where(AdapterRow.domain_id == domain.id)
    if base is not None:
        query = query.where(AdapterRow.base_id == find_base(session, base).id)
    where = "" if base is None else f" for base model {base!r}"
    if session.scalar(query.limit(1)) is None:
        if kind == PERSONALISED_LORA:
            return NotFoundError(
                f"{domain.name!r} has no adapter yet{where}, and {CALLED[kind]} is needed here",
                hint=f"`reccocktail train {domain.name} --trainer reclora -o target_dependent=false` trains one",
            )
        is_spirit = domain.role == SPIRIT
        option = "--spirit" if is_spirit else f"--domain {domain.name}"
        trained = "--spirit --domains A,B" if is_spirit else domain.name
        return NotFoundError(
            f"{domain.name!r} has no adapter yet{where}",
            hint=f"`reccocktail train {trained}` trains one; `reccocktail adapter add PATH --base {base or 'B'} {option}` registers one",
        )
    return NotFoundError(
        f"there is no {str(ref)!r}{where}{_like(session, ref, query)}",
        hint=f"`reccocktail adapter list --domain {ref.name}`",
    )


def _like(session: Session, ref: Reference, ids: Select[int]) -> str:
    """The reference with a known version or alias in the place of one that is much like it."""
    aliases = session.scalars(select(AliasRow.name).where(AliasRow.adapter_id.in_(ids)).distinct())
    versions = session.scalars(ids.with_only_columns(AdapterRow.version).distinct())
    known = [*aliases, *(f"v{number}" for number in versions)]
    return did_you_mean(str(ref).partition("@")[2], known, before=f"{ref.name}@")


def find_adapter_locked(session: Session, ref: str | Reference, base: str | None) -> AdapterRow:
    """The version that the reference means once no one else can move aliases of its domain or archive its versions."""
    ref = parsed(ref)
    find_domain(session, ref.name, lock=True)
    return find_adapter(session, ref, base)


def parsed(ref: str | Reference) -> Reference:
    return Reference.parse(ref) if isinstance(ref, str) else ref


def ref_of(row: AdapterRow) -> str:
    """Its reference by version."""
    return str(Reference(row.domain.name, version=row.version))
