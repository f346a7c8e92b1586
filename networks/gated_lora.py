"""A LoRA per user: meta-LoRAs on a frozen language model, mixed at each layer and module by a gate that reads the user.

RecLoRA (arXiv 2408.03533). With c the last hidden layer of a conventional recommender, the gate of a module is

    alpha = softmax(Linear(ReLU(Linear(LayerNorm(c)))) / T)

and its delta is, with scale s = alpha / rank of LoRA, either `sum` (the paper's equation) or `factor` (the authors' code, with cross terms):

    sum:     s · Σ_k alpha_k B_k A_k            factor:  s · (Σ_k alpha_k B_k) (Σ_k alpha_k A_k)

Shapes: `users` rows of c, `modules` gated modules, `metas` meta-LoRAs, LoRA rank `r`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..tasks.errors import TaskError

Form = Literal["sum", "factor"]


class GatedLoraError(TaskError):
    """Meta-LoRAs do not fit the model, their tensors, or the batch that they are applied to."""

    code = "gated_lora"


class GatedLoraConfig(BaseModel):
    """`width` is that of c; a larger `temperature` makes all users more alike; `square_root` takes the root of what the softmax gives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metas: int = Field(default=8, ge=1)
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0, allow_inf_nan=False)
    targets: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1)
    form: Form = "sum"
    temperature: float = Field(default=1, gt=0, allow_inf_nan=False)
    square_root: bool = False
    width: int = Field(default=256, ge=1)
    hidden: int = Field(default=60, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class LoraFactors:
    """A plain LoRA of one module: its delta is scale · b @ a, a [rank, in], b [out, rank]."""

    a: Tensor
    b: Tensor
    scale: float


class GatedLora(nn.Module):
    """The meta-LoRAs and gates of `modules`, in this order everywhere; the language model itself is no part of it."""

    def __init__(self, config: GatedLoraConfig, shapes: Mapping[str, tuple[int, int]]) -> None:
        """`shapes`: (out, in) of each gated module by its name in the model. A's and gates are random, B's zero, as in PEFT."""
        super().__init__()
        self.config, self.modules_gated, count = config, tuple(shapes), len(shapes)
        self.a = nn.ParameterList(
            torch.empty(config.metas, config.rank, inner).uniform_(-1, 1) / math.sqrt(inner)
            for _, inner in shapes.values()
        )
        self.b = nn.ParameterList(torch.zeros(config.metas, outer, config.rank) for outer, _ in shapes.values())
        self.norm_weight = nn.Parameter(torch.ones(count, config.width))
        self.norm_bias = nn.Parameter(torch.zeros(count, config.width))
        self.hidden_weight = _uniform(config.width, count, config.hidden, config.width)
        self.hidden_bias = _uniform(config.width, count, config.hidden)
        self.out_weight = _uniform(config.hidden, count, config.metas, config.hidden)
        self.out_bias = _uniform(config.hidden, count, config.metas)

    @classmethod
    def beside(cls, model: nn.Module, config: GatedLoraConfig) -> Self:
        """For the linear layers of a model whose last names are the configuration's targets. Raises GatedLoraError if there are none."""
        shapes = {
            name: (module.out_features, module.in_features)
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in config.targets and isinstance(module, nn.Linear)
        }
        lacking = [target for target in config.targets if not any(name.rpartition(".")[2] == target for name in shapes)]
        if lacking:
            raise GatedLoraError(
                f"the model has no linear layer named {', '.join(lacking)}",
                hint="name others, such as -o targets=q_proj",
            )
        return cls(config, shapes)

    def coefficients(self, c: Tensor) -> Tensor:
        """c [users, width] → alpha [users, modules, metas]."""
        # the norms' own weights go into the next layer's, so that all gates are one product
        weight = (self.hidden_weight * self.norm_weight[:, None]).flatten(0, 1)
        bias = self.hidden_bias + torch.einsum("mhw,mw->mh", self.hidden_weight, self.norm_bias)
        plain = F.layer_norm(c, (self.config.width,))
        hidden = F.relu((plain @ weight.T).unflatten(1, bias.shape) + bias)
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        logits = torch.einsum("umh,mkh->umk", hidden, self.out_weight) + self.out_bias
        alpha = F.softmax(logits / self.config.temperature, dim=-1)
        return alpha.sqrt() if self.config.square_root else alpha

    def delta(self, number: int, x: Tensor, alpha: Tensor) -> Tensor:
        """What the module adds to its output: x [users, tokens, in], alpha [users, metas] → [users, tokens, out].

        One row of alpha counts for all rows of x.
        """
        a, b = self.a[number], self.b[number]
        if len(alpha) not in (1, len(x)):
            raise GatedLoraError(f"a batch of {len(x)} has coefficients of {len(alpha)} users")
        if self.config.form == "factor":
            mine_a, mine_b = (torch.einsum("uk,kio->uio", alpha, each) for each in (a, b))
            return (x @ mine_a.transpose(1, 2)) @ mine_b.transpose(1, 2) * self.config.scale
        inner = (x @ a.flatten(0, 1).T) * alpha.repeat_interleave(self.config.rank, dim=1)[:, None]
        return inner @ b.transpose(0, 1).flatten(1).T * self.config.scale

    @contextmanager
    def applied(self, model: nn.Module, alpha: Tensor) -> Iterator[None]:
        """Meanwhile row i of a batch is read with the LoRA of alpha[i] [modules, metas]; then the model is as before.

        Nothing of the model is changed. With gradient checkpointing, call backward inside.
        """
        if alpha.shape[1:] != (len(self.modules_gated), self.config.metas):
            raise GatedLoraError(f"coefficients have the shape {list(alpha.shape)}, and there are"
                                 f" {len(self.modules_gated)} gated modules with {self.config.metas} meta-LoRAs")  # fmt: skip
        with ExitStack() as hooks:
            for number, name in enumerate(self.modules_gated):
                hook = model.get_submodule(name).register_forward_hook(self._hook(number, alpha[:, number]))
                hooks.callback(hook.remove)
            yield

    def _hook(self, number: int, alpha: Tensor):
        def add(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + self.delta(number, given[0].to(alpha.dtype), alpha).to(output.dtype)

        return add

    @torch.no_grad()
    def factors(self, alpha: Tensor) -> dict[str, LoraFactors]:
        """One user's LoRA, alpha [modules, metas], in float64: of rank metas · r in the form `sum`, of rank r in `factor`. Exact."""
        return {name: self._factors(number, alpha[number].double()) for number, name in enumerate(self.modules_gated)}

    def _factors(self, number: int, alpha: Tensor) -> LoraFactors:
        a, b = self.a[number].double(), self.b[number].double()
        if self.config.form == "factor":
            return LoraFactors(torch.einsum("k,kri->ri", alpha, a), torch.einsum("k,kor->or", alpha, b), self.config.scale)  # fmt: skip
        return LoraFactors(a.flatten(0, 1), (alpha[:, None, None] * b).transpose(0, 1).flatten(1), self.config.scale)

    def tensors(self) -> dict[str, Tensor]:
        """All parameters as a file has them: `MODULE.lora_A` [metas, r, in], `MODULE.gate.hidden.weight` [hidden, width] and so on."""
        return {
            f"{name}.{part}": values[number].detach().contiguous()
            for part, values in self._parts().items()
            for number, name in enumerate(self.modules_gated)
        }

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the parameters over. Raises GatedLoraError for tensors of other names or shapes."""
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or [name for name in own if own[name].shape != tensors[name].shape]
        if wrong:
            raise GatedLoraError(f"{len(wrong)} tensors are not what the configuration says, {wrong[0]} first")
        for part, values in self._parts().items():
            for number, name in enumerate(self.modules_gated):
                values[number].copy_(tensors[f"{name}.{part}"])

    def _parts(self) -> dict[str, nn.ParameterList | nn.Parameter]:
        return {
            "lora_A": self.a,
            "lora_B": self.b,
            "gate.norm.weight": self.norm_weight,
            "gate.norm.bias": self.norm_bias,
            "gate.hidden.weight": self.hidden_weight,
            "gate.hidden.bias": self.hidden_bias,
            "gate.out.weight": self.out_weight,
            "gate.out.bias": self.out_bias,
        }


def _uniform(fan_in: int, *shape: int) -> nn.Parameter:
    """As nn.Linear begins."""
    return nn.Parameter(torch.empty(*shape).uniform_(-1, 1) / math.sqrt(fan_in))
