"""The folder of a bi-tuning, what Laser trains around a frozen language model: its manifest, and that its files are what that says.

Flat, as other bundles: `bundle.json` and beside it safetensors and JSON. Read here without a tensor; `networks.bi_tuning` writes the
folder and opens it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ..digests import digest_of_json
from ..errors import InvalidArtifactError
from .allowlist import ID_RECOMMENDER, ITEM_SIDE, USER_SIDE
from .allowlist import ITEM_INDEX as INDEX
from .bundles import AGAIN, BUNDLE, DIGEST, Manifest, Part, check_listed, read_manifest_of

BI_TUNING = "bi-tuning"


class MFormerSizes(Part):
    """As `networks.m_former.MFormerConfig` has them."""

    experts: int = Field(ge=1)
    queries: int = Field(ge=1)
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    width: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)


class BiTuningManifest(Manifest):
    """What a bi-tuning says of itself.

    `width` is that of the language model, which computes in `dtype`; `rows` how many the prefix has, 0 for none. `template` is a history
    template, whole. `trained_on` is the digest of what the recommender that M-Former reads was trained on. `items` is the digest of the
    catalogue that the index has, `data` those of the domains' data.
    """

    kind: Literal["bi-tuning"] = BI_TUNING  # pyright: ignore[reportIncompatibleVariableOverride]
    prefix: Literal["none", "static", "m-former"]
    readout: Literal["suffix", "eos", "mean"]
    width: int = Field(ge=1)
    rows: int = Field(ge=0)
    m_former: MFormerSizes | None = None
    dtype: Literal["float32", "bfloat16"]
    temperature: float = Field(gt=0, allow_inf_nan=False)
    template: dict[str, Any]
    trained_on: str | None = None
    items: str = Field(pattern=DIGEST)
    seed: int
    data: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _m_former_is_with_its_recommender(self) -> BiTuningManifest:
        if len({self.prefix == "m-former", self.m_former is not None, self.trained_on is not None}) > 1:
            raise ValueError("m_former and trained_on are there with the prefix m-former and with no other")
        return self

    @property
    def recommender(self) -> str | None:
        """The SHA-256 of the recommender's weights."""
        return self.files.get(ID_RECOMMENDER[1])

    @property
    def encoder(self) -> str:
        """The digest of all that an item's embedding depends on beside the item."""
        return encoder_digest(self.base, self.files, self.template, self.dtype, self.readout)


def encoder_digest(base: str, files: dict[str, str], template: dict[str, Any], dtype: str, readout: str) -> str:
    """`files` has the digests of the item side and, where there is one, of the recommender."""
    read = {name: files[name] for name in (ITEM_SIDE, *ID_RECOMMENDER) if name in files}
    shown = {name: value for name, value in template.items() if name != "name"}
    return digest_of_json({"base": base, "files": read, "template": shown, "dtype": dtype, "readout": readout})


def read_bi_tuning_manifest(folder: Path) -> BiTuningManifest:
    """The manifest alone; no other file is looked at. Raises InvalidArtifactError."""
    return read_manifest_of(folder, BiTuningManifest)


def check_bi_tuning_files(folder: Path, manifest: BiTuningManifest) -> None:
    """That the folder has the manifest's files, each whole, and no other but papers. Raises InvalidArtifactError naming the file."""
    expected = {ITEM_SIDE, USER_SIDE, INDEX, *(ID_RECOMMENDER if manifest.prefix == "m-former" else ())}
    if manifest.files.keys() != expected:
        raise InvalidArtifactError(
            f"{folder / BUNDLE}: lists {sorted(manifest.files)} where a bi-tuning with the prefix {manifest.prefix} has {sorted(expected)}",
            hint=AGAIN,
        )
    check_listed(folder, manifest)
