"""The item index: searched as by brute force, added to without encoding again, and refused when damaged."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reccocktail.networks import item_index
from reccocktail.networks.item_index import ItemIndex
from reccocktail.registry.errors import InvalidArtifactError
from reccocktail.tasks import HistoryTemplate, Item, TaskError, UntitledItemError
from torch.nn import functional as F  # noqa: N812

TEMPLATE = HistoryTemplate(name="x", instruction="x")
ITEMS = {f"i{number:02d}": Item(f"i{number:02d}", f"Title {number % 5}") for number in range(12)}


class Encoder:
    """An embedding follows from the title, so that some items tie; counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, items: Sequence[Item]) -> torch.Tensor:
        self.asked += [item.item_id for item in items]
        seeds = [sum(map(ord, item.title)) for item in items]
        rows = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=1) if rows else torch.empty(0, 6)


@pytest.fixture
def index() -> ItemIndex:
    return ItemIndex.of(ITEMS, TEMPLATE, "made by a", Encoder())


def test_a_search_is_the_best_k_by_cosine_with_ties_by_id(index: ItemIndex):
    query = F.normalize(torch.randn(6, generator=torch.Generator().manual_seed(1)), dim=0)
    scores = {item_id: float(row @ query) for item_id, row in zip(index.item_ids, index.matrix, strict=True)}
    order = sorted(scores, key=lambda item_id: (-round(scores[item_id], 6), item_id))
    assert len({round(score, 6) for score in scores.values()}) == 5
    for k in (1, 3, 7, 12, 50):
        found = index.search(query, k)
        assert [each.item_id for each in found] == order[:k]
        assert [each.score for each in found] == pytest.approx([scores[each.item_id] for each in found])
    seen = order[:3]
    assert [each.item_id for each in index.search(query, 2, without=[*seen, "unheard of"])] == order[3:5]
    assert index.search(query, 3, without=ITEMS) == []


def test_a_search_by_halved_rows_first_is_as_exact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(item_index, "MANY", 1)
    generator = torch.Generator().manual_seed(1)
    near = F.normalize(torch.randn(1, 32, generator=generator), dim=1)
    rows = near + torch.randn(6000, 32, generator=generator) * 1e-4  # float16 cannot tell these apart
    rows[1000:1010], rows[2000:4000] = near, torch.randn(2000, 32, generator=generator)
    ids = tuple(f"i{number:04d}" for number in range(6000))
    index = ItemIndex(ids, ids, F.normalize(rows, dim=1), "made up")
    query, seen = F.normalize(near[0] + 0.1, dim=0), ids[::7]
    exact = index.matrix.double() @ query.double()
    order = sorted(ids, key=lambda item_id: (-float(exact[int(item_id[1:])].float()), item_id))
    left = [item_id for item_id in order if item_id not in {*seen}]

    def all_are_right() -> None:
        for k in (1, 10, 2500, 7000):
            assert [each.item_id for each in index.search(query, k)] == order[:k]
        assert [each.item_id for each in index.search(query, 20, without=(*seen, *seen))] == left[:20]
        assert index.search(query, 3, without=ids) == []

    all_are_right()
    places, _ = index._near(query, 10, [])
    assert len(places) < 6000, "not all rows were read as they are"
    monkeypatch.setitem(index.__dict__, "_halves", index._halves + 0.01)  # a machine that adds up with larger errors
    read = ItemIndex(ids, ids, index.matrix, "made up").search(query, 10)
    assert [each.score for each in index.search(query, 10)] == pytest.approx([each.score for each in read], abs=1e-6)


def test_only_new_and_changed_items_are_encoded_and_the_rest_stays_bit_by_bit(index: ItemIndex):
    encode = Encoder()
    items = ITEMS | {"a": Item("a", "New"), "i03": Item("i03", "Another title")}
    del items["i07"]
    later = ItemIndex.of(items, TEMPLATE, "made by a", encode, index)
    assert encode.asked == ["a", "i03"]
    assert later.item_ids == tuple(sorted(items))
    whole = ItemIndex.of(items, TEMPLATE, "made by a", Encoder())
    assert torch.equal(later.matrix, whole.matrix)
    for item_id in set(ITEMS) - {"i03", "i07"}:
        rows = [each.matrix[each.item_ids.index(item_id)] for each in (index, later)]
        assert torch.equal(*rows)
    dearer = {key: Item(key, item.title, {"price": 3}) for key, item in ITEMS.items()}
    same = ItemIndex.of(dearer, TEMPLATE, "made by a", encode, index)  # what is not shown does not count
    assert len(encode.asked) == 2
    assert (same.digest, same.matrix.shape) == (index.digest, index.matrix.shape)
    assert later.digest not in (index.digest, whole.digest[:-1])
    with pytest.raises(TaskError):
        ItemIndex.of(items, TEMPLATE, "made by b", encode, index)
    with pytest.raises(UntitledItemError):
        ItemIndex.of({"x": Item("x", "")}, TEMPLATE, "made by a", encode)


def test_an_index_comes_back_bit_by_bit_and_is_refused_when_damaged_or_foreign(index: ItemIndex, tmp_path: Path):
    path = tmp_path / "index.safetensors"
    index.write(path)
    again = ItemIndex.read(path, encoder="made by a")
    assert torch.equal(again.matrix, index.matrix)
    assert replace(again, matrix=index.matrix) == index
    again.write(tmp_path / "again")
    whole = path.read_bytes()
    assert (tmp_path / "again").read_bytes() == whole
    with pytest.raises(InvalidArtifactError):
        ItemIndex.read(path, encoder="made by b")
    rng = random.Random(0)
    flipped = [bytearray(whole) for _ in range(20)]
    for damaged in flipped:
        damaged[rng.randrange(len(whole))] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], whole[:3], b"", *flipped):
        path.write_bytes(damaged)
        with pytest.raises(InvalidArtifactError) as refused:
            ItemIndex.read(path)
        assert refused.value.hint
    with pytest.raises(InvalidArtifactError):
        ItemIndex.read(tmp_path / "nowhere")


def test_parts_that_do_not_fit_are_no_index():
    with pytest.raises(TaskError):
        ItemIndex(("b", "a"), ("x", "y"), torch.eye(2), "made by a")
    with pytest.raises(TaskError):
        ItemIndex(("a", "b"), ("x", "y"), torch.eye(3), "made by a")
