"""A personalised LoRA as a folder: written, opened again bit by bit, and refused with any file damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from reccocktail.networks.bundle import BundleOrigin, Retrieval, open_bundle, write_bundle
from reccocktail.networks.din import Din, DinOptions, FrozenDin
from reccocktail.networks.gated_lora import GatedLora, GatedLoraConfig
from reccocktail.registry.artifacts.allowlist import is_tokenizer
from reccocktail.registry.artifacts.bundles import read_manifest
from reccocktail.registry.errors import BaseMismatchError, InvalidArtifactError
from reccocktail.tasks import (
    ClickOptions,
    ClickRow,
    ClickUser,
    Item,
    ItemEmbeddings,
    RatedItem,
    TaskError,
    load_click_template,
)

ITEMS = {f"i{number}": Item(f"i{number}", f"Film {number}") for number in range(6)}
USERS = [ClickUser(f"user-{name}", {}, tuple(RatedItem(item, 5.0) for item in ITEMS)) for name in "ab"]
ROWS = [ClickRow.candidate(user, "i0") for user in USERS]
BASE, OTHER = (f"sha256:{digit * 64}" for digit in "12")
FILES = ("bundle.json", "din.json", "din.safetensors", "gated_lora.safetensors", "items.json", "items.safetensors")


@pytest.fixture
def parts() -> tuple[GatedLora, FrozenDin, ItemEmbeddings]:
    from reccocktail.networks.click_fields import ClickVocabulary

    torch.manual_seed(5)
    vocabulary = ClickVocabulary.of(ROWS, ITEMS)
    recommender = FrozenDin(Din(vocabulary, DinOptions(target=False, embedding=4, hidden=8)), vocabulary, "sha256:rows")
    config = GatedLoraConfig(metas=3, rank=2, width=8, form="factor", temperature=0.7, square_root=True)
    net = GatedLora(config, {"z.q_proj": (6, 4), "a.v_proj": (2, 4)}).eval()  # in the model's order, not by name
    for b in net.b:
        b.data.normal_()
    vectors = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    return net, recommender, ItemEmbeddings(tuple(ITEMS), vectors)


@pytest.fixture
def origin() -> BundleOrigin:
    template = load_click_template("yes-no")
    return BundleOrigin(BASE, template, ClickOptions(by="user"), Retrieval(by="similar", count=3), 7, ("sha256:data",))


def test_a_bundle_comes_back_bit_by_bit_and_is_written_the_same_again(parts, origin, tmp_path):
    net, recommender, embeddings = parts
    manifest = write_bundle(tmp_path / "one", origin, *parts)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {*FILES}
    assert not any(map(is_tokenizer, FILES))
    opened = open_bundle(tmp_path / "one", base_digest=BASE)
    assert opened.manifest == manifest == read_manifest(tmp_path / "one")
    assert (manifest.target_dependent, manifest.users, manifest.trained_on) == (False, 2, "sha256:rows")
    assert opened.net.config == net.config
    assert opened.net.modules_gated == net.modules_gated == ("z.q_proj", "a.v_proj")
    again, before = opened.net.tensors(), net.tensors()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert torch.equal(opened.coefficients(ROWS), net.coefficients(recommender.user_vectors(ROWS)))
    assert opened.embeddings is not None
    assert np.array_equal(opened.embeddings.vectors, embeddings.vectors)
    assert (opened.template, opened.clicks) == (origin.template, origin.clicks)
    assert len(opened.shown(ROWS[0])) == 3
    write_bundle(tmp_path / "two", origin, opened.net, opened.recommender, opened.embeddings)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in FILES)
    (tmp_path / "two" / "LICENSE").touch()
    open_bundle(tmp_path / "two")
    with pytest.raises(FileExistsError):
        write_bundle(tmp_path / "two", origin, *parts)


def test_each_file_that_is_cut_changed_missing_or_foreign_is_named(parts, origin, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(folder, origin, *parts)
    rng = random.Random(0)
    for name in FILES:
        path, whole = folder / name, (folder / name).read_bytes()
        place = rng.randrange(len(whole))
        for damaged in (whole[: len(whole) // 2], whole[:-1] + b"\0", whole[:place] + b"\0" + whole[place + 1 :], None):
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            with pytest.raises(InvalidArtifactError, match=name) as refused:
                open_bundle(folder)
            assert damaged is not None or refused.value.hint
            path.write_bytes(whole)
    (folder / "model.py").write_text("")
    with pytest.raises(InvalidArtifactError, match=r"model\.py"):
        open_bundle(folder)
    (folder / "model.py").unlink()
    with pytest.raises(BaseMismatchError):
        open_bundle(folder, base_digest=OTHER)
    open_bundle(folder, base_digest=BASE)


@pytest.mark.parametrize(
    "change",
    [{"kind": "lora"}, {"format": 2}, {"more": 1}, {"users": 0}, {"target_dependent": True}, {"trained_on": "x"},
     {"template": {"name": "x"}}, {"base": "SmolLM2"}, {"files": {}}],
)  # fmt: skip
def test_a_manifest_that_says_what_the_files_do_not_is_refused(parts, origin, tmp_path, change):
    folder: Path = tmp_path / "bundle"
    write_bundle(folder, origin, *parts)
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidArtifactError):
        open_bundle(folder)


def test_parts_that_do_not_fit_each_other_are_not_written(parts, origin, tmp_path):
    net, recommender, embeddings = parts
    with pytest.raises(TaskError):
        write_bundle(tmp_path / "bundle", origin, net, recommender)
    narrow = GatedLora(GatedLoraConfig(width=4), {"q_proj": (4, 4)})
    with pytest.raises(TaskError):
        write_bundle(tmp_path / "bundle", origin, narrow, recommender, embeddings)
    assert not (tmp_path / "bundle").exists()
