"""Which files of a model or adapter are kept, merged, fetched and published. Whatever is not listed here stays where it is.

A list of what is allowed, because nobody can list all that is harmful: programs (`handler.py`, `modeling_*.py`), libraries, pickles,
weights in other formats. Names count without their case, as some file systems and loaders do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import InvalidArtifactError
from ..store.links import check_link

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BUNDLE = "bundle.json"  # of a bundle, which lists its other files; of a personalised LoRA:
GATED_LORA = "gated_lora.safetensors"
RECOMMENDER = ("din.json", "din.safetensors")
ITEMS = ("items.json", "items.safetensors")
ITEM_SIDE, USER_SIDE = "item_side.safetensors", "user_side.safetensors"  # of a bi-tuning
ITEM_INDEX = "index.safetensors"
ID_RECOMMENDER = ("bert4rec.json", "bert4rec.safetensors")
TEMPLATES = "additional_chat_templates"
"""The one folder that is entered: https://huggingface.co/docs/transformers/chat_templating_writing, templates by name."""

TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer*.txt", "tokenizer.model.v*", "*.model", "*.tiktoken", "tekken.json", "*.spm",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "normalizer.json",
    "chat_template*.json", "chat_template*.jinja", "chat_template*.txt", f"{TEMPLATES}/*.jinja",
)  # fmt: skip

_CONFIGS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "image_processor_config.json",
)  # fmt: skip
_CARD = ("readme.md",)
# what RecCocktail writes beside weights; plots go to the Hub with a build
_PAPERS = ("recipe.json", "provenance.json")
# what its SFT trainer writes beside an adapter
_OF_TRAINING = ("training_log.jsonl", "loss.png")
_SIGNATURE = ("model.sig",)
_PLOTS = ("entropy.png", "coefficients.png")
_LEGAL = re.compile(
    r"(licen[cs]e|notices?|copying|(acceptable[-_ ])?use[-_ ]policy)([-_ ][\w -]*(\.\d+)*)?(\.(txt|md|rst|html))?",
    re.ASCII | re.IGNORECASE,
)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns means the name, whatever its case. A `*` does not match a slash."""
    parts = name.lower().split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def is_tokenizer(name: str) -> bool:
    """Of a tokenizer or a chat template."""
    return matches(name, TOKENIZER_FILES)


def is_card(name: str) -> bool:
    return matches(name, _CARD)


def is_paper(name: str) -> bool:
    """What RecCocktail writes of how a checkpoint was made."""
    return matches(name, _PAPERS)


def is_of_base(name: str) -> bool:
    """Kept with a base model beside its weights, and with what is merged from it."""
    return matches(name, (*_CONFIGS, *_CARD, *TOKENIZER_FILES)) or is_legal(name)


def is_of_adapter(name: str) -> bool:
    """Kept with an adapter."""
    return is_of_base(name) or matches(name, (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *_PAPERS, *_OF_TRAINING))


def is_bundle(folder: Path) -> bool:
    """Whether the folder has the manifest of a bundle."""
    return (folder / BUNDLE).is_file()


def is_of_bundle(name: str) -> bool:
    """What the manifest of a personalised LoRA or a bi-tuning lists, and itself."""
    of_bi_tuning = ITEM_SIDE, USER_SIDE, ITEM_INDEX, *ID_RECOMMENDER
    return matches(name, (BUNDLE, GATED_LORA, *RECOMMENDER, *ITEMS, *of_bi_tuning))


def is_beside_bundle(name: str) -> bool:
    """May lie in a bundle's folder beside what its manifest lists."""
    return matches(name, (*_CARD, *_PAPERS, *_OF_TRAINING, *_SIGNATURE)) or is_legal(name)


def is_published(name: str) -> bool:
    """May go to the Hub with a build or an adapter, or be found there."""
    return is_of_adapter(name) or is_of_bundle(name) or matches(name, ("*.safetensors", INDEX, *_SIGNATURE, *_PLOTS))


def is_legal(name: str) -> bool:
    """A license, notice or use policy."""
    return "/" not in name and _LEGAL.fullmatch(name) is not None


def base_files(folder: Path, weights: Collection[str]) -> tuple[list[str], tuple[str, ...]]:
    """The files of a base model that are kept, its weight files and their index among them, and the names of all else.

    Raises InvalidArtifactError for a folder that cannot be read, and for a kept file that is a link to elsewhere.
    """
    weights = {*weights} | ({INDEX} if len(weights) > 1 or WEIGHTS not in weights else set())
    return _divided(folder, lambda name: name in weights or is_of_base(name))


def adapter_files(folder: Path, *, with_tokenizer: bool) -> tuple[list[str], tuple[str, ...]]:
    """As `base_files`, of an adapter."""
    return _divided(folder, lambda name: is_of_adapter(name) and (with_tokenizer or not is_tokenizer(name)))


def files_of_bundle(folder: Path, listed: Collection[str]) -> tuple[list[str], tuple[str, ...]]:
    """As `base_files`, of a bundle whose manifest lists these files, the manifest among them."""
    return _divided(folder, lambda name: name in listed or is_beside_bundle(name))


def published_files(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """As `base_files`, of whatever may go to the Hub."""
    return _divided(folder, is_published)


def tokenizer_files(folder: Path) -> list[str]:
    """Raises as `base_files` does."""
    return _divided(folder, is_tokenizer)[0]


def _divided(folder: Path, wanted: Callable[[str], bool]) -> tuple[list[str], tuple[str, ...]]:
    """No folder is entered but that of the chat templates."""
    kept, left = [], []
    for name in _names(folder):
        path = folder / name
        if path.is_dir() or not wanted(name):
            left.append(name)
        else:
            check_link(folder, path)
            kept.append(name)
    return kept, tuple(left)


def _names(folder: Path) -> list[str]:
    try:
        names = [path.name for path in folder.iterdir()]
        inner = folder / TEMPLATES
        if TEMPLATES in names and inner.is_dir() and not inner.is_symlink():
            names.remove(TEMPLATES)
            names += [f"{TEMPLATES}/{path.name}" for path in inner.iterdir()]
    except OSError as error:
        raise InvalidArtifactError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return sorted(names)
