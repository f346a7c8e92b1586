"""The options of the trainer `reclora`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ...networks.options import DinOptions
from ...tasks import DEFAULT_CLICK_TEMPLATE, ClickOptions
from ..option_pairs import pairs, wrong_inside

if TYPE_CHECKING:  # imports torch, which listing options needs not
    from ...networks.gated_lora import GatedLoraConfig

OWN = {"target": "target_dependent", "seed": "seed"}  # of DIN's options, those that are options of the trainer


class RecloraOptions(BaseModel):
    """Options of `reclora`; defaults follow the paper's code, with validation in place of its test file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metas: Annotated[int, Field(ge=1, description="how many meta-LoRAs the gates mix; 1 is one LoRA for all users")] = 8
    rank: Annotated[int, Field(ge=1, description="rank r of each meta-LoRA")] = 8
    alpha: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="LoRA alpha; a delta is scaled by alpha / rank")
    ] = 16
    target_modules: Annotated[
        str, Field(description="the linear layers with a LoRA, by the last part of their names, joined by commas")
    ] = "q_proj,v_proj"
    form: Annotated[
        Literal["sum", "factor"],
        Field(
            description="sum: a user's delta is the weighted sum of B·A, as in the paper; factor: the product of the weighted sums"
            " of B and of A, as in the authors' code"
        ),
    ] = "sum"
    square_root: Annotated[
        bool, Field(description="weigh by the square roots of what the softmax gives, so that factor does not shrink")
    ] = False
    temperature: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="of the gates' softmax; the larger, the more alike are all users"),
    ] = 1.0
    target_dependent: Annotated[
        bool,
        Field(
            description="a user's LoRA depends on the item asked about; false: on the user and the history alone, so that it can be"
            " written as a file"
        ),
    ] = True
    retrieval: Annotated[
        Literal["similar", "recent"],
        Field(
            description="which of the rated items a prompt shows: those most similar to the item asked about, or the newest"
        ),
    ] = "similar"
    history: Annotated[int, Field(ge=1, description="how many rated items a prompt shows")] = 10
    split: Annotated[
        Literal["time", "user"],
        Field(
            description="time: the oldest eight tenths of all rows are learned from, as in the paper; user: of each user's"
        ),
    ] = "time"
    threshold: Annotated[float, Field(allow_inf_nan=False, description="a rating of this or more is a like")] = 4
    min_history: Annotated[int, Field(ge=1, description="rows with fewer rated items before them are left out")] = 5
    samples: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="training rows that the LoRAs learn from, drawn once: below 1 a share of all, else their number; the"
            " recommender learns from all",
        ),
    ] = 0.1
    epochs: Annotated[int, Field(ge=1, description="passes over the drawn rows")] = 1
    learning_rate: Annotated[float, Field(gt=0, description="peak of AdamW's, after warm-up, then linear to zero")] = (
        1e-3
    )
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps that warm up")] = 0.05
    batch_size: Annotated[int, Field(ge=1, description="rows per optimiser step")] = 32
    micro_batch: Annotated[
        int, Field(ge=1, description="rows per forward pass, each with its user's own LoRA; never more than batch_size")
    ] = 8
    max_tokens: Annotated[
        int, Field(ge=16, description="longest prompt plus answer; a row that is still longer is refused")
    ] = 1400
    validation_rows: Annotated[
        int, Field(ge=0, description="validation rows drawn to choose the best checkpoint; 0: the last one is kept")
    ] = 200
    validate_every: Annotated[
        int | None,
        Field(ge=1, description="steps between checkpoints, each validated; a tenth of all steps when unset"),
    ] = None
    patience: Annotated[
        int,
        Field(ge=0, description="validations without a better log loss after which training stops; 0: it never does"),
    ] = 3
    recommender: Annotated[
        dict[str, int | float],
        BeforeValidator(pairs),
        Field(
            description="sizes and training of DIN, the recommender that the gates read, as epochs=5,hidden=64; also attention,"
            " batch_size, dropout, embedding, id_dropout, layers, learning_rate, length, patience, weight_decay"
        ),
    ] = {}
    template: Annotated[str, Field(description="click template: a name or a file")] = DEFAULT_CLICK_TEMPLATE
    seed: Annotated[int, Field(description="of rows, order, dropout and initialisation, the recommender's too")] = 42

    @model_validator(mode="after")
    def _counts_whole_rows(self) -> RecloraOptions:
        if self.samples >= 1 and not self.samples.is_integer():
            raise ValueError(f"samples={self.samples:g} is neither a share below 1 nor a whole number of rows")
        return self

    @model_validator(mode="after")
    def _has_a_recommender(self) -> RecloraOptions:
        for name in OWN.keys() & self.recommender.keys():
            raise ValueError(f"recommender={name}=… is set by the option {OWN[name]}")
        try:
            _ = self.recommender and self.din
        except ValidationError as error:
            raise wrong_inside("recommender", error, DinOptions) from None
        return self

    @property
    def din(self) -> DinOptions:
        own: dict[str, Any] = dict(self.recommender)
        return DinOptions(**own, target=self.target_dependent, seed=self.seed)

    @property
    def clicks(self) -> ClickOptions:
        return ClickOptions(threshold=self.threshold, by=self.split, min_history=self.min_history)

    @property
    def gates(self) -> GatedLoraConfig:
        from ...networks.gated_lora import GatedLoraConfig

        return GatedLoraConfig(
            metas=self.metas,
            rank=self.rank,
            alpha=self.alpha,
            targets=tuple(name.strip() for name in self.target_modules.split(",")),
            form=self.form,
            temperature=self.temperature,
            square_root=self.square_root,
            width=self.din.hidden,
        )

    def count(self, rows: int) -> int:
        """How many of so many training rows are drawn."""
        return min(rows, max(1, round(self.samples * rows)) if self.samples < 1 else int(self.samples))
