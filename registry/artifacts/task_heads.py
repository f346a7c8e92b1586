"""Heads that an adapter was trained with and that its base model does not have, such as the `score` of a classifier.

PEFT saves such a head whole, among modules_to_save. A checkpoint that keeps it is one of another class of the same model type:
the language model's head is left out, and the new one takes its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..strict_json import read_object
from .allowlist import ADAPTER_CONFIG
from .lora import SavedTensor, is_head
from .lora_config import LoraConfig, is_to_save

if TYPE_CHECKING:
    from .facts import BaseFacts

CONFIG = "config.json"
TASK_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""PEFT's tasks that have a head of their own, and how transformers' classes for them end."""

PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}
"""The same tasks by the Hub's names."""

# what only the head of a language model has; BERT's and its kin's are more than one matrix
_HEADS_OF_LANGUAGE_MODELS = (
    "cls.",
    "lm_head.",
    "embed_out.",
    "predictions.",
    "generator_predictions.",
    "vocab_projector.",
)


def task_in(folder: Path) -> str | None:
    """The task of a checkpoint's class, or of an adapter, where it is one of those with a head of their own."""
    for file, key in ((CONFIG, "architectures"), (ADAPTER_CONFIG, "task_type")):
        if not (folder / file).is_file():
            continue
        named = read_object(folder / file).get(key)
        for name in named if isinstance(named, list) else [named]:
            for task, ending in TASK_CLASSES.items():
                if isinstance(name, str) and (name == task or name.endswith(ending)):
                    return task
    return None


def brings_head(config: LoraConfig, saved: Iterable[SavedTensor], base: BaseFacts) -> bool:
    """Whether the adapter saved a head for its task that the base does not have."""
    roots = {name.partition(".")[0] for name in base.tensors}
    return any(is_new_head(tensor, config, roots) for tensor in saved)


def is_new_head(tensor: SavedTensor, config: LoraConfig, roots: Collection[str]) -> bool:
    """Whether a saved tensor is of a module beside the trunk that no tensor of the base is of; `roots` begin the base's names."""
    return (
        config.task in TASK_CLASSES
        and is_to_save(tensor.name, config)
        and not is_head(tensor.name)
        and tensor.name.partition(".")[0] not in roots
    )


def without_head(base: BaseFacts) -> BaseFacts:
    """The base as a model for another task has it: the same trunk, and no head for tokens."""
    return replace(
        base,
        tensors={name: tensor for name, tensor in base.tensors.items() if not is_of_head(name, base)},
        tied_embeddings=False,
        head=None,
    )


def is_of_head(name: str, base: BaseFacts) -> bool:
    """Whether a tensor of the base belongs to the head of a language model."""
    return name == base.head or name.startswith(_HEADS_OF_LANGUAGE_MODELS) or is_head(name)
