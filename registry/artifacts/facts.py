"""What inspection reports: facts about a base model and about an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field

from .lora import LoraModule, SavedTensor, TokenRows
from .lora_config import LoraConfig
from .safetensors import Header, TensorInfo

MERGED_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class BaseTensor:
    """A tensor of a base model and the file it is in."""

    file: str
    info: TensorInfo


@dataclass(frozen=True)
class BaseFacts:
    """A base model as its files describe it. `dtype` is the one most bytes have; `bytes` counts tensors only.

    `input_embedding` and `head` are names of stored tensors, None where they are not known; a head that is tied to the
    embedding has the name that it would be stored under. A model without a head for tokens is not tied; one that is tied and
    whose head is not known cannot be untied.
    """

    architecture: str
    dtype: str
    tensors: dict[str, BaseTensor]
    parameters: int
    bytes: int
    tied_embeddings: bool
    input_embedding: str | None = None
    head: str | None = None
    encoder_decoder: bool = False
    model_type: str = ""
    layers: int | None = None  # how many the text model counts; a checkpoint may hold more that it does not use

    @property
    def files(self) -> set[str]:
        """The names of the weight files."""
        return {tensor.file for tensor in self.tensors.values()}

    @property
    def embedding(self) -> str | None:
        """The name of the tensor that embedding and head share, where they do."""
        return self.input_embedding if self.tied_embeddings else None


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter as its files describe it. `rank` and `alpha` are the defaults that patterns may override per module.

    Every tensor of its file is in one of `modules`, `saved`, `tokens` and `copies`, the last being those that PEFT writes
    twice and reads once. `vocabulary` is the number of tokens if the adapter changes that of the base, otherwise None.
    `missing` is what the configuration names and the file lacks, and `notes` what a reader should know, both in words.
    """

    config: LoraConfig
    modules: tuple[LoraModule, ...]
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    tensors: int
    bytes: int
    dtype: str
    base_name: str | None
    saved: tuple[SavedTensor, ...] = ()
    tokens: tuple[TokenRows, ...] = ()
    copies: tuple[TensorInfo, ...] = ()
    vocabulary: int | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    header: Header | None = field(default=None, compare=False, repr=False)
    zero: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """The header that was read, and which tensors are zero throughout, as far as their values were looked at."""

    @property
    def task_head(self) -> tuple[SavedTensor, ...]:
        """The head for the adapter's task that its base does not have, as of a classifier made of a language model."""
        return tuple(tensor for tensor in self.saved if tensor.why == "task_head")
