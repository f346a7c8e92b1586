"""M-Former of Laser (arXiv 2409.01605): what a frozen ID recommender knows of a history, as rows before a language model's text.

K query experts of n queries each read the recommender's outputs by cross-attention in every second block of a Q-Former (BLIP-2). A router
chooses one expert for each history; the chosen expert's rows are not multiplied by its probability, so that the router learns from the
balancing loss alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import Blip2QFormerConfig, Blip2QFormerModel


class MFormerConfig(BaseModel):
    """`experts` of `queries` rows; `layers` blocks of `hidden` with `heads`; `width` is that of the recommender's outputs.

    The paper's size is 12 layers of 768 with 12 heads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: int = Field(default=8, ge=1)
    queries: int = Field(default=32, ge=1)
    layers: int = Field(default=4, ge=1)
    hidden: int = Field(default=192, ge=1)
    heads: int = Field(default=3, ge=1)
    width: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> MFormerConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not divisible by heads={self.heads}")
        return self


@dataclass(frozen=True)
class Routing:
    """`probabilities` [histories, experts] of the router, and the `chosen` expert of each history."""

    probabilities: Tensor
    chosen: Tensor

    def balance(self) -> Tensor:
        """Switch Transformer's load-balancing loss (arXiv 2101.03961, equation 4), K · Σ_j f_j P_j.

        f_j is the share of histories that expert j has, P_j its mean probability: 1 when P is uniform, K when one expert has all.
        """
        experts = self.probabilities.shape[1]
        shares = F.one_hot(self.chosen, experts).to(self.probabilities.dtype).mean(dim=0)
        return experts * (shares * self.probabilities.mean(dim=0)).sum()


class MFormer(nn.Module):
    """From a recommender's outputs to `queries` rows of the language model's width, `out`, and how they were routed."""

    def __init__(self, config: MFormerConfig, out: int, scale: float) -> None:
        """`scale` is the standard deviation of the language model's own embeddings, which the rows begin with."""
        super().__init__()
        self.config = config
        self.experts = nn.Parameter(torch.randn(config.experts, config.queries, config.hidden))
        self.router = nn.Linear(config.width, config.experts)
        self.blocks = Blip2QFormerModel(_blip2(config))
        self.out = nn.Linear(config.hidden, out)
        nn.init.normal_(self.out.weight, std=scale / config.hidden**0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Routing]:
        """[histories, queries, out]. `states` [histories, places, width]; `mask` [histories, places] is False at padding."""
        routing = self._routed(states, mask)
        found = self.blocks(
            query_embeds=self.experts[routing.chosen],
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
        )
        return self.out(found.last_hidden_state), routing

    def _routed(self, states: Tensor, mask: Tensor) -> Routing:
        """A softmax per item, its mean over the items of a history, and the most probable expert."""
        of_items = F.softmax(self.router(states), dim=-1) * mask[..., None]
        probabilities = of_items.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return Routing(probabilities, probabilities.argmax(dim=-1))


def _blip2(config: MFormerConfig) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden,
        encoder_hidden_size=config.width,
        cross_attention_frequency=2,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        initializer_range=0.02
        * (768 / config.hidden) ** 0.5,  # as BERT's at its width, and as much of the input in a narrower one
        use_qformer_text_input=False,
    )
