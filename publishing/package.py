"""What is published: the files, card and metadata of a build or an adapter version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..engine.building.planning import card_facts, result_folder
from ..engine.merging.card import (
    CardAdaptation,
    CardAgreement,
    CardBound,
    CardFacts,
    CardInput,
    CardVerdict,
    render_card,
)
from ..engine.recipes import SHIPPED
from ..registry import Adapter, Base, Build, Registry
from ..registry.artifacts.allowlist import is_published
from ..registry.artifacts.repo_ids import is_repo_id
from ..registry.artifacts.task_heads import task_in
from ..registry.catalog.evaluations import Weights, weights_of_build
from ..registry.catalog.publications import SIGNATURE
from ..registry.catalog.references import LORA
from ..registry.digests import file_digest
from ..registry.errors import InvalidArtifactError, StoreError
from ..registry.store.room import room_in
from ..registry.strict_json import OWN_LIMIT, read_object
from .bundle_package import bundle_package
from .licenses import License, known_license, metadata, texts
from .measurements import evaluations_of
from .packing import CARD, PROVENANCE, Package, PublishOptions, data_of, hub_base_of, license_of, linked, stated
from .wording import prompt_of_adapters, prompt_of_build

CONFIG = "adapter_config.json"


@contextmanager
def publishable(
    registry: Registry, subject: Build | Adapter, options: PublishOptions | None = None
) -> Iterator[Package]:
    """The build's or adapter's folder as it goes to the Hub: the bytes that are kept, and a card with all that is known.

    An adapter's config names its base as the Hub knows it, never a folder of this machine.
    Raises ConflictError when the build has not succeeded or licenses do not go together, UsageError for template and key, and
    StoreError or OSError where its folder cannot be written.
    """
    options = options or PublishOptions()
    with registry.store.staging("publish") as staged:
        with room_in(staged):
            package = _packed(registry, subject, staged, options)
        yield package


def _packed(registry: Registry, subject: Build | Adapter, staged: Path, options: PublishOptions) -> Package:
    # signatures name the folder that was signed
    folder = staged / (options.repo.rpartition("/")[2] if options.repo else "model")
    folder.mkdir()
    if isinstance(subject, Build):
        package = _build_package(registry, subject, folder, options)
    elif subject.kind != LORA:
        package = bundle_package(registry, subject, folder, options)
    else:
        package = _adapter_package(registry, subject, folder, options)
    if options.key is not None:
        from .signing import sign

        sign(folder, folder / SIGNATURE, options.key)
    return package


def _build_package(registry: Registry, build: Build, folder: Path, options: PublishOptions) -> Package:
    result_folder(registry, build)  # refuses what has not succeeded
    assert build.digest is not None
    known = linked(registry, build.digest, result_folder(registry, build), folder)
    left = _left_out(registry, build.digest)
    base = registry.bases.get(build.base)
    adapters = [registry.adapters.resolve(entry["ref"], base=base.name) for entry in build.inputs["adapters"]]
    renamed = (folder / CONFIG).exists() and _rename_base(folder, base, hub_base_of(registry, base))
    if renamed or left:
        _correct_subjects(folder, CONFIG if renamed else None)
        known = {name: value for name, value in known.items() if name not in (CONFIG, PROVENANCE)}
    terms, parts, notes = license_of(registry, base, adapters, options)
    card = replace(
        card_facts(registry, build, build.coefficients or {}, recipe=_recipe_name(build), adaptive=_adaptation(registry, build, folder)),
        kind="adapter" if (folder / CONFIG).exists() else "checkpoint",
        verdict=_verdict(registry, build, folder),
        agreement=_agreement(registry, build, folder),
        base_source=hub_base_of(registry, base),
        warnings=tuple((build.report or {}).get("warnings", ())),
        tokenizer=((build.report or {}).get("merge") or {}).get("tokenizer"),
        prompt=prompt_of_build(registry, build, adapters),
        evaluations=evaluations_of(registry, {Weights(base.digest): base.name}
                                 | {Weights(a.digest, base.digest): a.ref for a in adapters}
                                 | {weights_of_build(build, base.digest): "this model"}, weights_of_build(build, base.digest)),
        **_common(registry, base, adapters, [entry["role"] for entry in build.inputs["adapters"]], terms, options),
    )  # fmt: skip
    (folder / CARD).write_text(render_card(replace(card, task=_task(folder)), options.template), encoding="utf-8")
    return Package(
        folder,
        f"RecCocktail-Build: {build.id}",
        f"RecCocktail build {build.id} of {build.domain}",
        known,
        terms,
        parts,
        (*notes, *left),
    )


def _adapter_package(registry: Registry, adapter: Adapter, folder: Path, options: PublishOptions) -> Package:
    known = linked(registry, adapter.digest, registry.adapters.folder(adapter), folder, (PROVENANCE, SIGNATURE))
    left = _left_out(registry, adapter.digest)
    base = registry.bases.get(adapter.base)
    if _rename_base(folder, base, hub_base_of(registry, base)):
        known.pop(CONFIG, None)
    terms, parts, notes = license_of(registry, base, [adapter], options)
    name = adapter.domain or "spirit"
    title = registry.domains.get(adapter.domain).title if adapter.domain else "all domains"
    card = CardFacts(
        kind="adapter",
        mixed=False,
        title=f"{adapter.ref}: a {'base spirit' if adapter.role == 'spirit' else 'RecCocktail ingredient'} for {base.name}",
        domain=name,
        domain_title=title,
        base_name=base.name,
        base_source=hub_base_of(registry, base),
        dtype=base.dtype,
        coefficients={},
        adaptive=None,
        recipe=None,
        reccocktail_version=version("reccocktail"),
        rank=adapter.rank,
        alpha=adapter.alpha,
        target_modules=adapter.target_modules,
        note=adapter.note,
        prompt=prompt_of_adapters(registry, [adapter]),
        evaluations=evaluations_of(
            registry,
            {Weights(base.digest): base.name, Weights(adapter.digest, base.digest): "this adapter"},
            Weights(adapter.digest, base.digest),
        ),
        **_common(registry, base, [adapter], [adapter.role], terms, options),
    )
    (folder / CARD).write_text(render_card(replace(card, task=_task(folder)), options.template), encoding="utf-8")
    return stated(adapter, base, Package(folder, "", "", known, terms, parts, (*notes, *left)))


def _left_out(registry: Registry, digest: str) -> tuple[str, ...]:
    """A note of what older versions have stored and nobody may publish, if there is anything."""
    left = [name for name in sorted(registry.store.tree(digest).files) if not is_published(name)]
    return (f"not published, because no model needs it: {', '.join(left)}",) if left else ()


def _task(folder: Path) -> str | None:
    """The task that the files say. Raises StoreError for a configuration that was damaged in the store."""
    try:
        return task_in(folder)
    except InvalidArtifactError as error:
        raise StoreError(str(error), hint="`reccocktail store verify` lists what is damaged") from error


def _rename_base(folder: Path, base: Base, repo: str | None) -> bool:
    """Whether the adapter's config had to be written anew: it may name a folder of this machine, or a name of this registry."""
    path = folder / CONFIG
    content = read_object(path, limit=OWN_LIMIT)
    name = repo or base.name
    if content.get("base_model_name_or_path") == name:
        return False
    content["base_model_name_or_path"] = name
    path.unlink()  # a link to what the store keeps
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return True


def _correct_subjects(folder: Path, renamed: str | None) -> None:
    """The statement without files that are not published, and with the digest of the one that was written anew, if any."""
    path = folder / PROVENANCE
    content = read_object(path, limit=OWN_LIMIT)
    content["subject"] = [subject for subject in content["subject"] if (folder / subject["name"]).is_file()]
    for subject in content["subject"]:
        if renamed is not None and subject["name"] == renamed:
            subject["digest"] = {"sha256": file_digest(folder / renamed).removeprefix("sha256:")}
    path.unlink()
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _recipe_name(build: Build) -> str | None:
    return next((name for name, (_, shipped) in SHIPPED.items() if shipped.to_json() == build.recipe), None)


def _adaptation(registry: Registry, build: Build, folder: Path) -> CardAdaptation | None:
    """How the coefficients were found; the plots of it are put into the folder."""
    report = build.report or {}
    found = report.get("adaptation")
    if not found or found.get("search", "line") == "none" or "outcome" in found:
        return None
    plots = _plots(registry, report["artifact"], folder)
    start = found["start"] if "start" in found else max(point["entropy"] for point in found["curve"])
    data = (build.inputs.get("data") or {}).get("digest")
    return CardAdaptation("entropy", start, found["entropy"], found["prompts"], found["tokens"], plots, data)


def _verdict(registry: Registry, build: Build, folder: Path) -> CardVerdict | None:
    """What a search by ranking shipped, and why; the plots of it are put into the folder."""
    report = build.report or {}
    found = report.get("adaptation")
    if not found or found.get("objective") != "ranking":
        return None
    compared = found["comparison"] or {}
    return CardVerdict(
        found["outcome"],
        found["win"],
        found["parent"],
        found["score"],
        found["fit"],
        found["gate"],
        compared.get("metric"),
        compared.get("margin"),
        1 - compared["alpha"] if compared else None,
        tuple(
            CardBound(each["parent"], each["mix_mean"], each["parent_mean"], each["difference"], each["low"])
            for each in compared.get("bounds", ())
        ),
        _plots(registry, report["artifact"], folder),
        (build.inputs.get("data") or {}).get("digest"),
        compared.get("safe", True),
    )


def _agreement(registry: Registry, build: Build, folder: Path) -> CardAgreement | None:
    """What a search without labels shipped; the plot of it is put into the folder."""
    report = build.report or {}
    found = report.get("adaptation")
    if not found or found.get("objective") != "agreement":
        return None
    return CardAgreement(
        found["outcome"],
        found["parent"],
        found["pseudo_users"],
        found["score"],
        _plots(registry, report["artifact"], folder),
        (build.inputs.get("data") or {}).get("digest"),
    )


def _plots(registry: Registry, artifact: str, folder: Path) -> tuple[str, ...]:
    kept = registry.store.folder(artifact)
    plots = tuple(sorted(path.name for path in kept.glob("*.png")))
    for plot in plots:
        shutil.copyfile(kept / plot, folder / plot)
    return plots


def _common(
    registry: Registry,
    base: Base,
    adapters: list[Adapter],
    roles: list[str],
    terms: License | None,
    options: PublishOptions,
) -> dict[str, Any]:
    """What cards of builds and adapters say in the same way."""
    folders = {adapter.ref: registry.adapters.folder(adapter) for adapter in adapters}
    about = {ref: metadata(folder) for ref, folder in folders.items()}
    published = _still_there(registry, adapters, options.repo)
    base_folder = registry.bases.folder(base)
    own, of_base = [texts(each, "language") for each in about.values()], texts(metadata(base_folder), "language")
    base_license = known_license(base_folder)
    inputs = []
    for adapter, role in zip(adapters, roles, strict=True):
        there = published.get(adapter.digest)
        its = known_license(folders[adapter.ref])
        training = adapter.training
        inputs.append(
            CardInput(
                role,
                adapter.ref,
                adapter.digest,
                repo=there or _repo(adapter, options.repo),
                license=str(its) if its else None,
                trainer=training.trained_by,
                template=training.template_name,
                data=data_of(adapter),
                lacks=training.lacking,
            )
        )
    metrics = {adapter.ref: dict(adapter.metrics) for adapter in adapters if adapter.metrics}
    return {
        "repo": options.repo,
        "license": terms.id if terms else None,
        "license_name": terms.name if terms else None,
        "license_link": terms.link if terms else None,
        "license_given": options.license is not None,
        "base_license": str(base_license) if base_license else None,
        "base_digest": base.digest,
        "base_revision": base.revision,
        "languages": tuple(dict.fromkeys(name for each in (own if any(own) else [of_base]) for name in each)),
        "datasets": tuple(dict.fromkeys(name for each in about.values() for name in texts(each, "datasets"))),
        "inputs": tuple(inputs),
        "metrics": metrics or None,
    }


def _still_there(registry: Registry, adapters: list[Adapter], own: str | None) -> dict[str, str]:
    """By digest, the repository that has this adapter; none where something else was published since, or is published now."""
    found = registry.publications.newest_by_adapter([adapter.digest for adapter in adapters])
    return {
        digest: last.repo
        for digest, last in found.items()
        if last.repo != own and registry.publications.of_repo(last.repo)[0].adapter == last.adapter
    }


def _repo(adapter: Adapter, own: str | None) -> str | None:
    """Where it came from on the Hub."""
    repo = adapter.training.hub_repo
    return repo if repo and repo != own and is_repo_id(repo) else None
