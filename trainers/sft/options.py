"""The options of the trainer `sft`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ...tasks import (
    DEFAULT_TEMPLATE,
)


def _by_domain(value: object) -> object:
    """`movies=2,books=0.5`, as it comes from `-o weights=…`."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",")]
    if len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise ValueError("a domain is named twice")
    return {name.strip(): weight for name, _, weight in pairs}


class SftOptions(BaseModel):
    """Options of `sft`; defaults follow the hyper-parameters of RecCocktail's paper, with the learning rate small models like."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: Annotated[int | None, Field(ge=1, description="training examples drawn per domain; all when unset")] = (
        None
    )
    weights: Annotated[
        dict[str, Annotated[float, Field(gt=0)]],
        BeforeValidator(_by_domain),
        Field(
            description="how many times as many examples a domain gives, as movies=2,books=0.5;"
            " 1 for the others, and examples repeat where a domain has fewer"
        ),
    ] = {}
    epochs: Annotated[int, Field(ge=1, description="passes over the examples")] = 2
    learning_rate: Annotated[float, Field(gt=0, description="peak, reached after warm-up, then cosine to zero")] = 5e-4
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps that warm up")] = 0.05
    batch_size: Annotated[int, Field(ge=1, description="examples per optimiser step, over all processes")] = 8
    micro_batch: Annotated[
        int | None,
        Field(ge=1, description="examples per forward pass of a process; as many as batch_size gives it when unset"),
    ] = None
    rank: Annotated[int, Field(ge=1, description="LoRA rank r")] = 16
    alpha: Annotated[float, Field(gt=0, description="LoRA alpha; the delta is scaled by alpha / rank")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="LoRA dropout")] = 0.05
    target_modules: Annotated[str, Field(description="`all-linear`, or module names joined by commas")] = "all-linear"
    max_tokens: Annotated[
        int, Field(ge=16, description="longest prompt plus answer; an example that is still longer is refused")
    ] = 1400
    template: Annotated[str, Field(description="prompt template: a name or a file")] = DEFAULT_TEMPLATE
    negatives: Annotated[int, Field(ge=1, description="candidates beside the target in a prompt")] = 9
    validation_examples: Annotated[
        int,
        Field(ge=0, description="validation examples drawn per domain, to choose the best checkpoint; 0: the last one"),
    ] = 32
    validate_every: Annotated[
        int | None,
        Field(ge=1, description="steps between checkpoints, each validated; a tenth of all steps when unset"),
    ] = None
    patience: Annotated[
        int, Field(ge=0, description="validations without a better loss after which training stops; 0: it never does")
    ] = 3
    gradient_checkpointing: Annotated[
        bool | None, Field(description="compute activations twice to save memory; on CUDA when unset")
    ] = None
    seed: Annotated[int, Field(description="of examples, order, dropout and initialisation")] = 42
