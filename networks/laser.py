"""Laser (arXiv 2409.01605): a frozen language model embeds users and items, with trained rows around their text.

The model reads [prefix p_1 … p_n] + text + [suffix s] as embeddings, and its output at the one suffix row is the embedding. A prefix is
the same rows for all (`static`), rows that M-Former makes of what a frozen ID recommender says of the history (`m-former`), or absent (`none`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ..tasks import HistoryText, HistoryWriter, Item, TaskError
from ..tasks.ranking import CHANGING_ROPES, packs_answers
from .m_former import MFormer, MFormerConfig, Routing
from .text_packs import SUFFIX, PackedBatch, TextPack, text_packs

Prefix = Literal["none", "static", "m-former"]
Dtype = Literal["float32", "bfloat16"]
Readout = Literal["suffix", "eos", "mean"]
History = Sequence[Item]
NO_ID = ""  # which no recommender knows
TEMPERATURE = 0.05  # of InfoNCE
BATCH_TOKENS = 2048  # of an inference batch on a CPU, with padding


class LaserConfig(BaseModel):
    """What stands around the text, and where the embedding is read: at the suffix, or, to compare with, at the frozen end-of-text token
    or as the mean over the text's tokens. `width` is that of the language model, `rows` how many a static prefix has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(ge=1)
    prefix: Prefix = "static"
    rows: int = Field(default=32, ge=1)
    readout: Readout = "suffix"
    m_former: MFormerConfig | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> LaserConfig:
        if (self.m_former is not None) != (self.prefix == "m-former"):
            raise ValueError("m_former is given with prefix=m-former and with no other")
        if self.prefix == "none" and self.readout != "suffix":
            raise ValueError(f"with prefix=none and readout={self.readout} there is nothing to train")
        return self


class ItemStates(Protocol):
    """`values` [histories, places, width] in float32, `mask` [histories, places], where an item is."""

    @property
    def values(self) -> Tensor: ...

    @property
    def mask(self) -> Tensor: ...


class Recommender(Protocol):
    """A frozen ID recommender as M-Former reads it. Items that it has no id for are all read as one that training has seen."""

    @property
    def width(self) -> int: ...

    def states(self, histories: Sequence[Sequence[str]]) -> ItemStates:
        """Its last hidden states over histories of item ids, oldest first; none is empty."""
        ...


class LaserNet(nn.Module):
    """All that is trained: the suffix's row, and the prefix's rows or M-Former. The language model is no part of it."""

    def __init__(self, config: LaserConfig, scale: float = 0.02) -> None:
        """`scale` is the standard deviation of the language model's own embeddings, which trained rows begin with."""
        super().__init__()
        self.config = config
        self.suffix = nn.Parameter(torch.randn(1, config.width) * scale) if config.readout == "suffix" else None
        self.prefix = (
            nn.Parameter(torch.randn(config.rows, config.width) * scale) if config.prefix == "static" else None
        )
        self.m_former = MFormer(config.m_former, config.width, scale) if config.m_former else None

    @classmethod
    def beside(cls, model: PreTrainedModel, config: LaserConfig) -> LaserNet:
        return cls(config, float(_embeddings(model).weight.detach().float().std()))


@dataclass(frozen=True)
class Embedded:
    """`vectors` [histories, width] in float32, of length 1; `routing` where M-Former made the prefix."""

    vectors: Tensor
    routing: Routing | None = None


class Laser:
    """A frozen language model with trained rows around its text. `eos` is the token that the readout `eos` reads at."""

    def __init__(
        self,
        model: PreTrainedModel,
        writer: HistoryWriter,
        net: LaserNet,
        recommender: Recommender | None = None,
        *,
        eos: int | None = None,
    ) -> None:
        """`model` gives hidden states (`load_frozen`) and is frozen here. Raises TaskError for parts that do not fit each other."""
        self.model = model.eval().requires_grad_(False)
        self.writer, self.net, self.recommender = writer, net, recommender
        self._eos = eos
        self._kept: Any = None
        self._check(net.config)

    def _check(self, config: LaserConfig) -> None:
        width = hidden_width(self.model)
        if config.width != width:
            raise TaskError(f"the trained rows have a width of {config.width}, and the language model of {width}")
        if config.readout == "eos" and self._eos is None:
            raise TaskError("the tokenizer has no end-of-text token to read at", hint="readout=suffix")
        if config.m_former is None:
            return
        if self.recommender is None:
            raise TaskError("prefix=m-former reads a recommender, and none is given", hint="prefix=static needs none")
        if self.recommender.width != config.m_former.width:
            raise TaskError(
                f"M-Former reads vectors of {config.m_former.width}, and the recommender gives {self.recommender.width}"
            )

    @property
    def shares_beginning(self) -> bool:
        """Whether texts begin alike for the model, so that their beginning is read once.

        Not with M-Former, whose rows differ and come first, nor in a model whose layers do not attend to all that came before.
        """
        config = self.model.config.get_text_config()
        ropes = json.dumps(getattr(config, "rope_parameters", None), default=str)
        return self.net.m_former is None and packs_answers(self.model) and not CHANGING_ROPES.search(ropes)

    def __call__(self, histories: Sequence[History], *, id_dropout: float = 0.0) -> Embedded:
        """Embed with gradient for what is trained. `id_dropout` is the share of items whose ids the recommender is not told."""
        texts = [self.writer.write(history) for history in histories]
        before, routing = self._prefixes(histories, texts, id_dropout)
        beginning = self._beginning() if self.shares_beginning else None
        return Embedded(self._read(texts, before, beginning), routing)

    @torch.no_grad()
    def encode(
        self,
        histories: Sequence[History],
        *,
        share: bool = True,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """[histories, width] on the CPU. What texts begin with alike is read once where that is exact, unless `share` is off."""
        texts = [self.writer.write(history) for history in histories]
        read = self._packed if share and self.shares_beginning else self._one_by_one
        found, done = torch.empty(len(texts), self.net.config.width), 0
        with _evaluating(self.net):
            for places, vectors in read(histories, texts, batch_tokens):
                found[places] = vectors.cpu()
                done += len(places)
                progress(done)
        return found

    def _one_by_one(
        self, histories: Sequence[History], texts: Sequence[HistoryText], batch_tokens: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Places of texts and their embeddings, each text read whole."""
        for places in _batches([len(text.tokens) + 1 for text in texts], self._before, batch_tokens):
            some = [texts[place] for place in places]
            before, _ = self._prefixes([histories[place] for place in places], some, 0.0)
            yield places, self._read(some, before, None)

    def _packed(
        self, histories: Sequence[History], texts: Sequence[HistoryText], batch_tokens: int
    ) -> Iterator[tuple[list[int], Tensor]]:
        """As `_one_by_one`, behind one reading of what all texts begin with; what some begin with alike is read once as well."""
        packs = text_packs([(*text.tokens, *self._behind) for text in texts])
        beginning = self._kept_beginning() if packs else None
        for places in _batches([len(pack) for pack in packs], 0, batch_tokens):
            some = [packs[place] for place in places]
            states = self._read_packs(some, copy.deepcopy(beginning))
            own = [row[of_text] for row, pack in zip(states, some, strict=True) for of_text in pack.columns]
            vectors = [each.mean(dim=0) if self.net.config.readout == "mean" else each[-1] for each in own]
            yield [place for pack in some for place in pack.places], F.normalize(torch.stack(vectors).float(), dim=-1)

    def _read_packs(self, packs: Sequence[TextPack], beginning: Any) -> Tensor:
        """[rows, places, width], the model's hidden states behind the beginning."""
        batch, device = PackedBatch.of(packs, beginning.get_seq_length()), self.model.device
        beginning.batch_repeat_interleave(len(packs))
        tokens = batch.tokens.to(device)
        rows = _embeddings(self.model)(tokens.clamp(min=0))
        if self.net.suffix is not None:
            rows = torch.where((tokens == SUFFIX)[..., None], self.net.suffix.to(rows), rows)
        hidden = torch.finfo(rows.dtype).min
        mask = torch.zeros(batch.sees.shape, dtype=rows.dtype).masked_fill(~batch.sees, hidden)
        return self.model(
            inputs_embeds=rows,
            position_ids=batch.positions.to(device),
            attention_mask=mask[:, None].to(device),
            past_key_values=beginning,
            use_cache=True,
        ).last_hidden_state

    @property
    def _behind(self) -> tuple[int, ...]:
        """What stands behind a text's tokens."""
        if self.net.suffix is not None:
            return (SUFFIX,)
        return (self._eos,) if self._eos is not None and self.net.config.readout == "eos" else ()

    def _kept_beginning(self) -> Any:
        """What all texts begin with, read once for all calls while nothing is trained. Not to be changed."""
        if any(each.requires_grad for each in self.net.parameters()):
            return self._beginning()
        if self._kept is None:
            self._kept = self._beginning()
        return self._kept

    @property
    def _before(self) -> int:
        """Rows of a text that is read whole before its own."""
        m_former = self.net.config.m_former
        rows = m_former.queries if m_former else self.net.config.rows if self.net.prefix is not None else 0
        return rows + len(self.writer.instruction)

    def _beginning(self) -> Any:
        """The model's keys and values of what all texts begin with: a static prefix, and the instruction."""
        instruction = self._embedded(self.writer.instruction)
        rows = instruction if self.net.prefix is None else torch.cat([self.net.prefix.to(instruction), instruction])
        return self.model(inputs_embeds=rows[None], use_cache=True).past_key_values

    def _prefixes(
        self, histories: Sequence[History], texts: Sequence[HistoryText], id_dropout: float
    ) -> tuple[Tensor | None, Routing | None]:
        """M-Former's rows [histories, queries, width] of what each text shows."""
        if self.net.m_former is None:
            return None, None
        assert self.recommender is not None
        shown = [
            [NO_ID if id_dropout and torch.rand(()) < id_dropout else history[place].item_id for place in text.shown]
            for history, text in zip(histories, texts, strict=True)
        ]
        found, device = self.recommender.states(shown), self.net.m_former.experts.device
        # copies, for what was computed in inference mode has no part in gradients
        return self.net.m_former(found.values.to(device, copy=True), found.mask.to(device, copy=True))

    def _read(self, texts: Sequence[HistoryText], before: Tensor | None, beginning: Any) -> Tensor:
        """[histories, width]. Padding stands behind the last row, where a causal model's rows before it do not see it."""
        rows = [
            self._rows(text, None if before is None else before[place], beginning) for place, text in enumerate(texts)
        ]
        ends = torch.tensor([len(each) for each in rows], device=self.model.device)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        more: dict[str, Any] = {}
        if beginning is not None:
            beginning.batch_repeat_interleave(len(texts))
            more["past_key_values"] = beginning
        states = self.model(inputs_embeds=padded, use_cache=bool(more), **more).last_hidden_state
        return F.normalize(self._read_out(states, ends, texts).float(), dim=-1)

    def _rows(self, text: HistoryText, before: Tensor | None, beginning: Any) -> Tensor:
        """What the model reads of one history behind the shared beginning."""
        own = self._embedded(text.tokens)
        parts = [own]
        if beginning is None:
            parts.insert(0, self._embedded(self.writer.instruction))
            prefix = self.net.prefix if before is None else before
            parts[:0] = [] if prefix is None else [prefix.to(own)]
        if self.net.suffix is not None:
            parts.append(self.net.suffix.to(own))
        elif self._eos is not None and self.net.config.readout == "eos":
            parts.append(self._embedded([self._eos]))
        return torch.cat(parts)

    def _read_out(self, states: Tensor, ends: Tensor, texts: Sequence[HistoryText]) -> Tensor:
        places = torch.arange(len(states), device=states.device)
        if self.net.config.readout != "mean":
            return states[places, ends - 1]
        return torch.stack(
            [row[end - len(text.tokens) : end].mean(dim=0) for row, end, text in zip(states, ends, texts, strict=True)]
        )

    def _embedded(self, tokens: Sequence[int]) -> Tensor:
        return _embeddings(self.model)(torch.tensor(tokens, device=self.model.device))


def load_frozen(folder: Path, device: str, dtype: Dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model of a folder without its head, so that it gives hidden states, and its tokenizer; never with remote code."""
    disable_progress_bar()  # the caller shows its own progress
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **local).base_model
    return model.to(device).eval().requires_grad_(False), tokenizer


def hidden_width(model: PreTrainedModel) -> int:
    """Of what the model reads and gives."""
    return _embeddings(model).weight.shape[1]


def info_nce(users: Tensor, items: Tensor, targets: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Mean over users of −log softmax(cos(u, i) / τ) at the target, over all items.

    `users` [users, width] and `items` [items, width] have length 1; `items` is constant. A catalogue of one gives 0.
    """
    return F.cross_entropy(users @ items.T / temperature, targets)


def _embeddings(model: PreTrainedModel) -> Any:
    return model.get_input_embeddings()


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


def _batches(lengths: Sequence[int], before: int, most: int) -> Iterator[list[int]]:
    """Places of rows of like length, each behind so many others, as many together as have at most that many tokens with padding; or one."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (lengths[place] + before) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
