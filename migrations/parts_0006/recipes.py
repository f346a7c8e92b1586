"""Recipes and prompt templates as versions in the registry; a domain's recipe is a version and no longer a path.

What domains named as a file is read in where the file still is. Where it is not, or is no recipe, the domain keeps its path,
which is reported, and refused with what to do when the domain is built.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from ...registry.database.tables import login_name
from ...registry.digests import digest_of_json
from ...registry.strict_json import WRITTEN_LIMIT, parse_written, regular_bytes

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
SUFFIXES = (".yaml", ".yml", ".toml", ".json")
SHIPPED = ("default", "reccocktail", "molorec", "average", "spirit-only", "ingredient-only")
NAME_LENGTH = 63

DOMAINS = sa.table("domains", sa.column("id", ID), sa.column("name", sa.String()), sa.column("recipe", sa.String()))
RECIPES = sa.table(
    "recipes",
    sa.column("id", ID),
    sa.column("kind", sa.String()),
    sa.column("name", sa.String()),
    sa.column("created_at", TIME),
    sa.column("created_by", sa.String()),
)
VERSIONS = sa.table(
    "recipe_versions",
    sa.column("recipe_id", ID),
    sa.column("version", sa.BigInteger()),
    sa.column("digest", sa.String()),
    sa.column("content", sa.JSON()),
    sa.column("note", sa.String()),
    sa.column("created_at", TIME),
    sa.column("created_by", sa.String()),
)
EVENTS = sa.table(
    "events",
    sa.column("kind", sa.String()),
    sa.column("subject", sa.String()),
    sa.column("domain_id", ID),
    sa.column("detail", sa.JSON()),
    sa.column("created_at", TIME),
    sa.column("created_by", sa.String()),
)


def create() -> None:
    op.create_table(
        "recipes",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.CheckConstraint("kind IN ('recipe', 'template')", name=op.f("ck_recipes_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipes")),
        sa.UniqueConstraint("kind", "name", name=op.f("uq_recipes_kind_name")),
    )
    op.create_table(
        "recipe_versions",
        sa.Column("id", ID, nullable=False),
        sa.Column("recipe_id", ID, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.CheckConstraint("version > 0", name=op.f("ck_recipe_versions_version")),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.id"], name=op.f("fk_recipe_versions_recipe_id_recipes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipe_versions")),
        sa.UniqueConstraint("recipe_id", "version", name=op.f("uq_recipe_versions_recipe_id_version")),
        sa.UniqueConstraint("recipe_id", "digest", name=op.f("uq_recipe_versions_recipe_id_digest")),
    )
    _read_in()


def _read_in() -> None:
    """Each file that a domain names becomes a recipe of its own; what cannot be read is reported."""
    notes: list[str] = context.config.attributes.get("notes", [])
    bind = op.get_bind()
    kept: dict[tuple[str, str], str] = {}
    refs: dict[str, str | None] = {}
    named = bind.execute(
        sa.select(DOMAINS.c.id, DOMAINS.c.name, DOMAINS.c.recipe)
        .where(DOMAINS.c.recipe.is_not(None), DOMAINS.c.recipe.not_in(SHIPPED))
        .order_by(DOMAINS.c.name)
    )
    for domain_id, domain, path in named.all():
        if path not in refs:
            refs[path] = _recipe_of(Path(path), kept, notes)
        if (ref := refs[path]) is None:
            notes.append(
                f"domain {domain}: its recipe {path} is not a recipe file that can be read here; until it has another one it"
                f" cannot be built: `reccocktail domain add {domain} --recipe NAME_OR_FILE`"
            )
            continue
        _tell("domain.changed", domain, {"recipe": ref, "read_from": path}, domain_id)
        bind.execute(sa.update(DOMAINS).where(DOMAINS.c.id == domain_id).values(recipe=ref))
        notes.append(f"domain {domain}: its recipe {path} was read in as {ref}")


def _recipe_of(path: Path, kept: dict[tuple[str, str], str], notes: list[str]) -> str | None:
    if path.suffix not in SUFFIXES or (content := _content(path)) is None:
        return None
    adaptive = content.get("adaptive")
    adaptive = adaptive if isinstance(adaptive, dict) else {}
    named = adaptive.get("template")
    if isinstance(named, str) and Path(named).suffix:
        found = next((each for each in (Path(named), path.parent / named) if each.is_file()), None)
        template = None if found is None else _content(found)
        if found is None or template is None:
            notes.append(f"recipe {path}: its template {named} cannot be read here")
        else:
            ref = _keep("template", found, template, kept)
            content = content | {"adaptive": adaptive | {"template": ref}}
    return _keep("recipe", path, content, kept)


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content = parse_written(regular_bytes(path, limit=WRITTEN_LIMIT), path.suffix)
        digest_of_json(content)
    except (OSError, ValueError, TypeError):
        return None
    return content if isinstance(content, dict) else None


def _keep(kind: str, path: Path, content: dict[str, Any], kept: dict[tuple[str, str], str]) -> str:
    """Store it as version 1 under the file's name, or that with a number if another file has taken it."""
    if (kind, str(path)) in kept:
        return kept[kind, str(path)]
    plain = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[: NAME_LENGTH - 4] or kind
    taken = {(of, ref) for (of, _), ref in kept.items()} | {("recipe", f"{name}@v1") for name in SHIPPED}
    names = (plain if number == 1 else f"{plain}-{number}" for number in range(1, len(kept) + len(SHIPPED) + 3))
    name = next(each for each in names if (kind, f"{each}@v1") not in taken)
    bind, who = op.get_bind(), {"created_at": datetime.now(UTC), "created_by": login_name()}
    recipe_id = bind.scalar(sa.insert(RECIPES).values(kind=kind, name=name, **who).returning(RECIPES.c.id))
    digest = digest_of_json(content)
    _tell(f"{kind}.added", f"{name}@v1", {"digest": digest, "read_from": str(path)}, None)
    bind.execute(
        sa.insert(VERSIONS).values(recipe_id=recipe_id, version=1, digest=digest, content=content, note=None, **who)
    )
    kept[kind, str(path)] = f"{name}@v1"
    return f"{name}@v1"


def _tell(kind: str, subject: str, detail: dict[str, Any], domain_id: int | None) -> None:
    row = {"kind": kind, "subject": subject, "domain_id": domain_id, "detail": detail}
    op.get_bind().execute(sa.insert(EVENTS).values(**row, created_at=datetime.now(UTC), created_by=login_name()))


def drop() -> None:
    op.drop_table("recipe_versions")
    op.drop_table("recipes")
