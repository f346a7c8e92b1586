"""A vector per item from the frozen language model, by which a prompt shows the rated items that are most like the one asked about.

As in RecLoRA and ReLLa (arXiv 2308.11131): the item's text in the chat template, the mean of the hidden states that enter the head,
and the first principal components of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...networks.click_fields import CATEGORIES
from ...registry.digests import digest_of_json
from ...registry.store.files import sync_all
from ...tasks import Item, ItemEmbeddings
from ...tasks.click_scores import BATCH_TOKENS, batches_of_like_length
from ...tasks.prompts import broken_up, special_tokens
from ...tasks.ranking import evaluating, token_ids

PART = 64  # items that are embedded, or a few more, until they are kept
COMPONENTS = 512  # of which an item's vector has at most so many
MOST_TOKENS = 256  # of an item's text that are read


@torch.inference_mode()
def embed_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    progress: Callable[[int], None] = lambda done: None,
    parts: Path | None = None,
) -> ItemEmbeddings:
    """Float32 [items, components], in the order of the items. `progress` receives how many are done.

    With the folder `parts`, what was embedded is kept there, and what is there of the same texts is taken. Raises OSError.
    """
    special = special_tokens(tokenizer)
    texts = [_text_ids(tokenizer, broken_up(item_text(item), special)) for item in items]
    found = torch.zeros(len(items), model.config.get_text_config().hidden_size, dtype=torch.float64)
    left, done = [], 0
    for places in _parts([len(text) for text in texts]):
        kept = _kept(_part(parts, [texts[place] for place in places]), len(places))
        if kept is None:
            left.append(places)
        else:
            found[places] = kept
            done += len(places)
    if done:
        progress(done)
    with evaluating(model):
        for places in left:
            some = [texts[place] for place in places]
            for own in batches_of_like_length([len(text) for text in some], BATCH_TOKENS):
                found[[places[place] for place in own]] = _means(model, [some[place] for place in own])
                done += len(own)
                progress(done)
            _keep(_part(parts, some), found[places])
    return ItemEmbeddings(tuple(item.item_id for item in items), principal_components(found).float().numpy())


def _parts(lengths: Sequence[int]) -> list[list[int]]:
    """Whole batches of items, so many together that they have PART items."""
    found: list[list[int]] = []
    for batch in batches_of_like_length(lengths, BATCH_TOKENS):
        if not found or len(found[-1]) >= PART:
            found.append([])
        found[-1] += batch
    return found


def _part(folder: Path | None, texts: Sequence[list[int]]) -> Path | None:
    return None if folder is None else folder / f"{digest_of_json([*texts]).removeprefix('sha256:')[:32]}.safetensors"


def _kept(path: Path | None, count: int) -> torch.Tensor | None:
    """What an earlier attempt has embedded; nothing where its file is not whole."""
    if path is None:
        return None
    try:
        rows = load_file(path)["rows"]
    except (OSError, SafetensorError, KeyError):
        return None
    return rows if len(rows) == count else None


def _keep(path: Path | None, rows: torch.Tensor) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    save_file({"rows": rows.contiguous()}, half)
    sync_all([half])
    half.rename(path)


def item_text(item: Item) -> str:
    """What the model reads of an item: its title, and what kind of thing it is."""
    kinds = [f"{name}: {_joined(item.fields[name])}" for name in CATEGORIES if item.fields.get(name)]
    return f"{item.title} ({'; '.join(kinds)})" if kinds else item.title


def principal_components(vectors: torch.Tensor) -> torch.Tensor:
    """[items, width] → [items, components], in float64: at most COMPONENTS, width, and one fewer than items."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    count = max(1, min(COMPONENTS, len(vectors) - 1, vectors.shape[1]))
    _, directions = torch.linalg.eigh(centred.T @ centred)  # the largest last
    return centred @ directions[:, -count:].flip(1)


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    asked = [{"role": "user", "content": text}]
    return token_ids(tokenizer, str(tokenizer.apply_chat_template(asked, tokenize=False)))[:MOST_TOKENS]


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _means(model: PreTrainedModel, texts: Sequence[list[int]]) -> torch.Tensor:
    """[texts, width]; padding stands to the right, where nothing of the text sees it."""
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=model.device)
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=model.device)
    states = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state.double()
    return ((states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)).cpu()


def titled(items: Mapping[str, Item]) -> list[Item]:
    """The items that a prompt can name, by their ids."""
    return [items[item_id] for item_id in sorted(items) if items[item_id].title]
