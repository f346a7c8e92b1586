"""A bi-tuning as a folder: two sets of trained rows, for items and for users, the recommender that M-Former reads, and the item index.

What the manifest says, and that files are whole, is `registry.artifacts.bi_tunings`; the tensors are read and written here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..registry.artifacts.bi_tunings import (
    ID_RECOMMENDER,
    INDEX,
    ITEM_SIDE,
    USER_SIDE,
    BiTuningManifest,
    MFormerSizes,
    check_bi_tuning_files,
    encoder_digest,
    read_bi_tuning_manifest,
)
from ..registry.artifacts.bundles import AGAIN, BUNDLE, bundle_files, check_base, manifest_text
from ..registry.errors import InvalidArtifactError
from ..tasks import HistoryTemplate, HistoryWriter, Item, TaskError
from .bert4rec import FrozenBert4Rec
from .item_index import ItemIndex
from .laser import Dtype, Laser, LaserConfig, LaserNet
from .m_former import MFormerConfig

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class BiTuningOrigin:
    """What a bi-tuning says beside its tensors: the digest of its base, how histories are written and read, and what it was made from.

    `data` are the digests of the domains' data.
    """

    base: str
    template: HistoryTemplate
    dtype: Dtype
    temperature: float
    seed: int
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sides:
    """The weights that made the item matrix, and those that embed users."""

    config: LaserConfig
    item_side: Weights
    user_side: Weights


@dataclass(frozen=True)
class BiTuning:
    """An opened bi-tuning; its nets are in evaluation mode and float32."""

    manifest: BiTuningManifest
    item_side: LaserNet
    user_side: LaserNet
    recommender: FrozenBert4Rec | None
    index: ItemIndex

    @property
    def template(self) -> HistoryTemplate:
        return HistoryTemplate.model_validate(self.manifest.template)

    def users(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Laser:
        """Embeds users beside the base that the manifest names, whose hidden states the model gives."""
        return self._beside(model, tokenizer, self.user_side)

    def items(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Laser:
        """Embeds items."""
        return self._beside(model, tokenizer, self.item_side)

    def indexed(
        self,
        laser: Laser,
        items: Mapping[str, Item],
        *,
        known: ItemIndex | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> ItemIndex:
        """The index of this catalogue; only items that the `known` one, or else its own, lacks or has with another text are embedded, by `items(…)`."""

        def encode(new: Sequence[Item]) -> Tensor:
            return laser.encode([[item] for item in new], progress=progress)

        return ItemIndex.of(items, self.template, self.manifest.encoder, encode, known or self.index)

    def _beside(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, net: LaserNet) -> Laser:
        writer = HistoryWriter(self.template, tokenizer)
        eos: Any = tokenizer.eos_token_id
        return Laser(model, writer, net.to(model.device), self.recommender, eos=eos)


def write_bi_tuning(
    folder: Path,
    origin: BiTuningOrigin,
    sides: Sides,
    recommender: FrozenBert4Rec | None,
    catalogue: Sequence[Item],
    matrix: Tensor,
) -> BiTuningManifest:
    """Write a bi-tuning into a new folder, the manifest last; equal parts give equal bytes.

    `matrix` [items, width] has the catalogue as the item side embeds it. Raises TaskError where a recommender is missing or too much;
    FileExistsError.
    """
    config = sides.config
    if (recommender is not None) != (config.m_former is not None):
        raise TaskError("a recommender is there with M-Former, which reads it, and with no other prefix")
    folder.mkdir(parents=True)
    save_file(dict(sides.item_side), folder / ITEM_SIDE)
    save_file(dict(sides.user_side), folder / USER_SIDE)
    if recommender is not None:
        recommender.save(folder)
    names = (ITEM_SIDE, USER_SIDE, *(ID_RECOMMENDER if recommender else ()))
    files, template = bundle_files(folder, names), origin.template.model_dump(mode="json")
    encoder = encoder_digest(origin.base, files, template, origin.dtype, config.readout)
    index = _index(origin.template, encoder, catalogue, matrix)
    index.write(folder / INDEX)
    manifest = BiTuningManifest(
        base=origin.base,
        files=files | bundle_files(folder, (INDEX,)),
        prefix=config.prefix,
        readout=config.readout,
        width=config.width,
        rows=0 if config.prefix == "none" else config.rows,
        m_former=None if config.m_former is None else MFormerSizes(**config.m_former.model_dump()),
        dtype=origin.dtype,
        temperature=origin.temperature,
        template=template,
        trained_on=None if recommender is None else recommender.trained_on,
        items=index.digest,
        seed=origin.seed,
        data=origin.data,
    )
    (folder / BUNDLE).write_text(manifest_text(manifest), encoding="utf-8")
    return manifest


def _index(template: HistoryTemplate, encoder: str, catalogue: Sequence[Item], matrix: Tensor) -> ItemIndex:
    rows = {item.item_id: row for item, row in zip(catalogue, matrix, strict=True)}
    items = {item.item_id: item for item in catalogue}
    return ItemIndex.of(items, template, encoder, lambda some: torch.stack([rows[item.item_id] for item in some]))


def open_bi_tuning(folder: Path, *, base_digest: str | None = None) -> BiTuning:
    """The bi-tuning in a folder, every file checked against the manifest; `base_digest` is that of the base it is wanted for.

    Raises InvalidArtifactError for a file that is cut, changed, missing or not of the bundle, and BaseMismatchError for another base.
    """
    manifest = read_bi_tuning_manifest(folder)
    if base_digest is not None:
        check_base(folder, manifest, base_digest)
    check_bi_tuning_files(folder, manifest)
    try:
        recommender = FrozenBert4Rec.load(folder) if manifest.prefix == "m-former" else None
        index = ItemIndex.read(folder / INDEX, encoder=manifest.encoder)
        sides = [_net(folder / name, manifest) for name in (ITEM_SIDE, USER_SIDE)]
        found = BiTuning(manifest, sides[0], sides[1], recommender, index)
        _check_agreement(found)
    except (OSError, TaskError, SafetensorError, ValidationError, RuntimeError, ValueError) as error:
        raise InvalidArtifactError(f"{folder}: is no bi-tuning that can be used: {error}", hint=AGAIN) from error
    return found


def _net(path: Path, manifest: BiTuningManifest) -> LaserNet:
    sizes = manifest.m_former
    config = LaserConfig(
        width=manifest.width,
        prefix=manifest.prefix,
        rows=manifest.rows or 1,
        readout=manifest.readout,
        m_former=None if sizes is None else MFormerConfig(**sizes.model_dump()),
    )
    net = LaserNet(config)
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


def _check_agreement(found: BiTuning) -> None:
    """Raises ValueError where the manifest says other than the files."""
    manifest, recommender = found.manifest, found.recommender
    said = (manifest.trained_on, manifest.m_former and manifest.m_former.width, manifest.items, manifest.width)
    read = recommender and recommender.trained_on, recommender and recommender.width
    if said != (*read, found.index.digest, found.index.matrix.shape[1]):
        raise ValueError("its manifest says other than its files of the recommender or the items")
    _ = found.template
