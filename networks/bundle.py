"""A personalised LoRA as a folder: meta-LoRAs and gates, the recommender that they read, item embeddings, and how to ask.

What the manifest says, and that files are whole, is `registry.artifacts.bundles`; the tensors are read and written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..registry.artifacts.bundles import (
    AGAIN,
    BUNDLE,
    GATED_LORA,
    ITEMS,
    RECOMMENDER,
    BundleManifest,
    Gates,
    Retrieval,
    bundle_files,
    check_base,
    check_files,
    manifest_text,
    read_manifest,
)
from ..registry.errors import InvalidArtifactError
from ..registry.strict_json import OWN_LIMIT, read_object
from ..tasks import ClickOptions, ClickRow, ClickTemplate, ItemEmbeddings, TaskError, most_similar, recent
from ..tasks.click_prompts import Shown
from .din import FrozenDin
from .gated_lora import GatedLora, GatedLoraConfig


@dataclass(frozen=True)
class BundleOrigin:
    """What a bundle says beside its tensors: the digest of its base, how rows become labels and questions, and what it was made from.

    `data` are the digests of the domains' data.
    """

    base: str
    template: ClickTemplate
    clicks: ClickOptions
    retrieval: Retrieval
    seed: int
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class PersonalisedBundle:
    """An opened bundle; its gated LoRA is in evaluation mode and float32."""

    manifest: BundleManifest
    net: GatedLora
    recommender: FrozenDin
    embeddings: ItemEmbeddings | None

    @property
    def template(self) -> ClickTemplate:
        return click_template_of(self.manifest)

    @property
    def clicks(self) -> ClickOptions:
        return click_options_of(self.manifest)

    @property
    def shown(self) -> Shown:
        """Which of a row's history its question shows."""
        return shown_by(self.manifest.retrieval, self.embeddings)

    @torch.no_grad()
    def coefficients(self, rows: Sequence[ClickRow]) -> Tensor:
        """alpha [rows, modules, metas]; the same for every target of a user unless the manifest says `target_dependent`."""
        return self.net.coefficients(self.recommender.user_vectors(rows))


def click_template_of(manifest: BundleManifest) -> ClickTemplate:
    """The wording that the bundle was trained with."""
    return ClickTemplate.model_validate_json(json.dumps(manifest.template))


def click_options_of(manifest: BundleManifest) -> ClickOptions:
    """How the rows that the bundle learned from were made."""
    return ClickOptions.model_validate(manifest.clicks)


def shown_by(retrieval: Retrieval, embeddings: ItemEmbeddings | None) -> Shown:
    """Raises TaskError for similar items without embeddings to tell them by."""
    if retrieval.by == "recent":
        return recent(retrieval.count)
    if embeddings is None:
        raise TaskError("the most similar items are to be shown, and there are no embeddings of items to tell them by")
    return most_similar(embeddings, retrieval.count)


def write_bundle(
    folder: Path,
    origin: BundleOrigin,
    net: GatedLora,
    recommender: FrozenDin,
    embeddings: ItemEmbeddings | None = None,
) -> BundleManifest:
    """Write a bundle into a new folder, the manifest last; equal parts give equal bytes.

    Raises TaskError where the gates do not read what the recommender gives, or embeddings are missing; FileExistsError.
    """
    if net.config.width != recommender.width:
        raise TaskError(f"the gates read vectors of {net.config.width}, and the recommender gives {recommender.width}")
    shown_by(origin.retrieval, embeddings)
    folder.mkdir(parents=True)
    names = (GATED_LORA, *RECOMMENDER, *(ITEMS if embeddings else ()))
    save_file({name: value.float().cpu() for name, value in net.tensors().items()}, folder / GATED_LORA)
    recommender.save(folder)
    if embeddings is not None:
        _save_items(folder, embeddings)
    manifest = BundleManifest(
        base=origin.base,
        files=bundle_files(folder, names),
        target_dependent=recommender.options.target,
        gates=Gates(modules=net.modules_gated, **net.config.model_dump()),
        template=origin.template.model_dump(mode="json"),
        clicks=origin.clicks.model_dump(mode="json"),
        retrieval=origin.retrieval,
        users=len(recommender.vocabulary.users),
        trained_on=recommender.trained_on,
        seed=origin.seed,
        data=origin.data,
    )
    (folder / BUNDLE).write_text(manifest_text(manifest), encoding="utf-8")
    return manifest


def open_bundle(folder: Path, *, base_digest: str | None = None) -> PersonalisedBundle:
    """The bundle in a folder, every file checked against the manifest; `base_digest` is that of the base it is wanted for.

    Raises InvalidArtifactError for a file that is cut, changed, missing or not of the bundle, and BaseMismatchError for another base.
    """
    manifest = read_manifest(folder)
    if base_digest is not None:
        check_base(folder, manifest, base_digest)
    check_files(folder, manifest)
    try:
        embeddings = _load_items(folder) if ITEMS[0] in manifest.files else None
        bundle = PersonalisedBundle(manifest, _load_net(folder, manifest.gates), FrozenDin.load(folder), embeddings)
        _check_agreement(bundle)
    except (OSError, TaskError, SafetensorError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise InvalidArtifactError(f"{folder}: is no bundle that can be used: {error}", hint=AGAIN) from error
    return bundle


def write_without_users(source: Path, folder: Path) -> BundleManifest:
    """Write the bundle of `source` into the new folder, without the ids and embeddings of users: it answers all as it does unknown ones.

    Raises what `open_bundle` and `write_bundle` do.
    """
    bundle = open_bundle(source)
    told = bundle.manifest
    origin = BundleOrigin(told.base, bundle.template, bundle.clicks, told.retrieval, told.seed, told.data)
    return write_bundle(folder, origin, bundle.net, bundle.recommender.without_users(), bundle.embeddings)


def _check_agreement(bundle: PersonalisedBundle) -> None:
    """Raises ValueError where the manifest says other than the files, TaskError for a template that is none."""
    manifest, recommender = bundle.manifest, bundle.recommender
    said = (manifest.target_dependent, manifest.users, manifest.trained_on, manifest.gates.width)
    found = (
        recommender.options.target,
        len(recommender.vocabulary.users),
        recommender.trained_on,
        recommender.width,
    )
    if said != found:
        raise ValueError(f"its manifest says {said} of the recommender, which says {found} of itself")
    _ = bundle.template, bundle.clicks, bundle.shown


def _load_net(folder: Path, gates: Gates) -> GatedLora:
    tensors = load_file(folder / GATED_LORA)
    net = GatedLora(GatedLoraConfig(**gates.model_dump(exclude={"modules"})), _shapes(gates, tensors))
    net.fill(tensors)
    return net.eval().requires_grad_(False)


def _shapes(gates: Gates, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """(out, in) of each module."""
    return {name: (tensors[f"{name}.lora_B"].shape[1], tensors[f"{name}.lora_A"].shape[2]) for name in gates.modules}


def _save_items(folder: Path, embeddings: ItemEmbeddings) -> None:
    ids, vectors = ITEMS
    (folder / ids).write_text(json.dumps({"item_ids": embeddings.item_ids}, ensure_ascii=False), encoding="utf-8")
    save_arrays({"vectors": embeddings.vectors}, folder / vectors)


def _load_items(folder: Path) -> ItemEmbeddings:
    ids, vectors = ITEMS
    content = read_object(folder / ids, limit=OWN_LIMIT)
    return ItemEmbeddings(tuple(map(str, content["item_ids"])), load_arrays(folder / vectors)["vectors"])
