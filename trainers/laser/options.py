"""The options of the trainer `laser`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ...networks.options import Bert4RecOptions
from ...tasks import DEFAULT_HISTORY_TEMPLATE
from ..option_pairs import pairs, wrong_inside

if TYPE_CHECKING:  # imports torch, which listing options needs not
    from ...networks.laser import LaserConfig

RATES = {"none": 1e-2, "static": 1e-2, "m-former": 1e-4}  # 33 rows need larger steps than a network


class LaserOptions(BaseModel):
    """Options of `laser`; defaults follow the paper, but for M-Former's size, whose smaller one a CPU can train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefix: Annotated[
        Literal["none", "static", "m-former"],
        Field(
            description="what stands before the text: m-former: rows made of what a recommender by ids says of the history; static:"
            " the same trained rows for all; none: nothing"
        ),
    ] = "m-former"
    rows: Annotated[int, Field(ge=1, description="how many rows the prefix has")] = 32
    readout: Annotated[
        Literal["suffix", "eos", "mean"],
        Field(
            description="where the embedding is read: suffix: at a trained row behind the text; to compare with, eos: at the"
            " end-of-text token, mean: over the text's tokens"
        ),
    ] = "suffix"
    experts: Annotated[
        int, Field(ge=1, description="of M-Former: sets of query rows, of which the router picks one")
    ] = 8
    layers: Annotated[int, Field(ge=1, description="of M-Former: blocks; the paper has 12")] = 4
    hidden: Annotated[int, Field(ge=1, description="of M-Former: width of its blocks; the paper has 768")] = 192
    heads: Annotated[int, Field(ge=1, description="of M-Former: attention heads; the paper has 12")] = 3
    dropout: Annotated[float, Field(ge=0, lt=1, description="of M-Former")] = 0.1
    balance: Annotated[float, Field(ge=0, description="weight of the loss that balances M-Former's experts")] = 0.01
    id_dropout: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="of M-Former: share of items read as if the recommender did not know them, so that new items can be read",
        ),
    ] = 0.1
    recommender: Annotated[
        dict[str, int | float],
        BeforeValidator(pairs),
        Field(
            description="sizes and training of BERT4Rec, the recommender that M-Former reads, as epochs=5,width=64; also batch_size,"
            " blocks, dropout, heads, id_dropout, learning_rate, length, mask, mask_last, patience, weight_decay"
        ),
    ] = {}
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False, description="cosines are divided by it")] = 0.05
    examples: Annotated[
        int | None, Field(ge=1, description="training examples drawn, the same in every epoch; all when unset")
    ] = None
    stage1_epochs: Annotated[
        int, Field(ge=0, description="passes over the examples, each with the items embedded anew before it")
    ] = 15
    stage2_epochs: Annotated[
        int, Field(ge=0, description="passes after those, with the items as the best epoch had them")
    ] = 5
    learning_rate: Annotated[
        float | None, Field(gt=0, description="of Adam; when unset, 0.0001 with m-former and 0.01 without")
    ] = None
    batch_size: Annotated[int, Field(ge=1, description="examples per optimiser step")] = 4
    validation_examples: Annotated[
        int,
        Field(
            ge=0, description="validation examples drawn, by whose NDCG@10 the best epoch is chosen; 0: the last epoch"
        ),
    ] = 256
    checkpoint_every: Annotated[int, Field(ge=1, description="steps between checkpoints within an epoch")] = 50
    batch_tokens: Annotated[
        int,
        Field(
            ge=1, description="most tokens of a batch with padding where items and users are embedded without learning"
        ),
    ] = 2048
    template: Annotated[str, Field(description="history template: a name or a file")] = DEFAULT_HISTORY_TEMPLATE
    dtype: Annotated[
        Literal["float32", "bfloat16"], Field(description="in which the language model computes, then and later")
    ] = "float32"
    seed: Annotated[int, Field(description="of examples, order, dropout and initialisation, the recommender's too")] = (
        42
    )

    @model_validator(mode="after")
    def _trains_something(self) -> LaserOptions:
        if not self.stage1_epochs + self.stage2_epochs:
            raise ValueError("stage1_epochs=0 and stage2_epochs=0 leave nothing to train")
        if self.prefix == "none" and self.readout != "suffix":
            raise ValueError(f"prefix=none and readout={self.readout} leave nothing to train")
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not divisible by heads={self.heads}")
        return self

    @model_validator(mode="after")
    def _has_a_recommender(self) -> LaserOptions:
        if "seed" in self.recommender:
            raise ValueError("recommender=seed=… is set by the option seed")
        try:
            _ = self.recommender and self.bert4rec
        except ValidationError as error:
            raise wrong_inside("recommender", error, Bert4RecOptions) from None
        return self

    @property
    def bert4rec(self) -> Bert4RecOptions:
        own: dict[str, Any] = dict(self.recommender)
        return Bert4RecOptions(**own, seed=self.seed)

    @property
    def rate(self) -> float:
        return self.learning_rate or RATES[self.prefix]

    def config(self, width: int) -> LaserConfig:
        """Beside a language model of this width."""
        from ...networks.laser import LaserConfig
        from ...networks.m_former import MFormerConfig

        if self.prefix != "m-former":
            return LaserConfig(width=width, prefix=self.prefix, rows=self.rows, readout=self.readout)
        m_former = MFormerConfig(
            experts=self.experts, queries=self.rows, layers=self.layers, hidden=self.hidden, heads=self.heads,
            width=self.bert4rec.width, dropout=self.dropout,
        )  # fmt: skip
        return LaserConfig(width=width, prefix="m-former", rows=self.rows, readout=self.readout, m_former=m_former)
