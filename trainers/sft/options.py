"""The options of the trainer `sft`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ...tasks import DEFAULT_CLICK_TEMPLATE, DEFAULT_TEMPLATE, ClickOptions, SplitBy


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

    task: Annotated[
        Literal["rank", "clicks"],
        Field(
            description="rank: name the item that comes next; clicks: say whether the user likes an item, of the ratings in the data"
        ),
    ] = "rank"
    split: Annotated[
        SplitBy | None,
        Field(description="of clicks, what is training: the oldest rows by time (when unset), or those of each user"),
    ] = None
    threshold: Annotated[
        float | None,
        Field(allow_inf_nan=False, description="of clicks, the least rating of an item that is liked; 4 when unset"),
    ] = None
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
    loss: Annotated[
        Literal["answer", "masked", "choice", "contrast"],
        Field(
            description="answer: every token of the right title, among all tokens; masked: among those alone that continue"
            " some title of the domain's catalogue; choice: the right title among those of the forward pass; contrast: the right"
            " history among those of the forward pass, which is what the score pmi asks"
        ),
    ] = "answer"
    temperature: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="of masked, choice and contrast: logits, or titles' scores, are divided by it",
        ),
    ] = 1.0
    epochs: Annotated[int, Field(ge=1, description="passes over the examples")] = 2
    learning_rate: Annotated[float, Field(gt=0, description="peak, reached after warm-up, then cosine to zero")] = 5e-4
    warmup: Annotated[
        float, Field(ge=0, lt=1, description="share of the steps that warm up; the last step never does")
    ] = 0.05
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
    template: Annotated[
        str, Field(description=f"prompt template: a name or a file; for clicks {DEFAULT_CLICK_TEMPLATE} when unset")
    ] = DEFAULT_TEMPLATE
    negatives: Annotated[int, Field(ge=1, description="candidates beside the target in a prompt")] = 9
    validation_examples: Annotated[
        int,
        Field(ge=0, description="validation examples drawn per domain, to choose the best checkpoint; 0: the last one"),
    ] = 32
    validate_by: Annotated[
        Literal["ranking", "loss"] | None,
        Field(
            description="what the best checkpoint has least of: ranking, how improbable the right title is among its question's"
            " candidates, or loss; when unset, ranking where it takes less than about a fifth of the time, else loss"
        ),
    ] = None
    validate_every: Annotated[
        int | None,
        Field(ge=1, description="steps between checkpoints, each validated; a tenth of all steps when unset"),
    ] = None
    patience: Annotated[
        int, Field(ge=0, description="validations without a better figure after which training stops; 0: it never does")
    ] = 3
    gradient_checkpointing: Annotated[
        bool | None, Field(description="compute activations twice to save memory; on CUDA when unset")
    ] = None
    seed: Annotated[int, Field(description="of examples, order, dropout and initialisation")] = 42

    @property
    def clicks(self) -> ClickOptions:
        """How ratings become clicks."""
        given = {"by": self.split, "threshold": self.threshold}
        return ClickOptions.model_validate({name: value for name, value in given.items() if value is not None})

    @model_validator(mode="before")
    @classmethod
    def _asks_in_words_of_the_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task") == "clicks":
            return {"template": DEFAULT_CLICK_TEMPLATE, **values}
        return values

    @model_validator(mode="after")
    def _is_of_its_task(self) -> SftOptions:
        if self.task == "rank" and (self.split or self.threshold is not None):
            raise ValueError("split and threshold are for task=clicks")
        if self.task == "clicks" and (self.loss != "answer" or self.validate_by == "ranking"):
            raise ValueError("task=clicks learns by loss=answer and validates by loss: there are no titles to rank")
        return self

    @model_validator(mode="after")
    def _validates_on_something(self) -> SftOptions:
        if self.validate_by and not self.validation_examples:
            raise ValueError(f"validate_by={self.validate_by} needs validation_examples above 0")
        return self

    @model_validator(mode="after")
    def _temperature_has_a_use(self) -> SftOptions:
        if self.loss == "answer" and self.temperature != 1:
            raise ValueError("temperature is for the losses masked, choice and contrast; loss=answer has none")
        return self
