"""What a training step makes smaller: the surprise at the answer's tokens, at its tokens among titles, or at its title among titles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Protocol

import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from ...tasks import TitleTrie

IGNORED = -100  # the label of a token that is not learned from
NUMBER = "example"  # of a batch: [examples], which of the training's examples they are

Batch = Mapping[str, torch.Tensor]
Logits = Callable[[Batch, torch.Tensor], torch.Tensor]
"""(what the model is given, places [n]) → logits [rows, n, vocabulary]."""


class Loss(Protocol):
    """A loss that is a sum over the examples of a batch. `unit` is what its mean is taken over."""

    unit: ClassVar[str]

    def nats(self, batch: Batch, logits: Logits) -> torch.Tensor:
        """[examples], with gradient. `batch` holds `input_ids`, `attention_mask` and `labels` [examples, tokens], padded right."""
        ...


class AnswerLoss:
    """Cross-entropy of the answer's tokens over the whole vocabulary."""

    unit: ClassVar[str] = "token"

    def nats(self, batch: Batch, logits: Logits) -> torch.Tensor:
        following = batch["labels"][:, 1:]
        places = (following != IGNORED).any(dim=0).nonzero()[:, 0]
        wanted = following[:, places]
        found = logits(_read(batch), places).flatten(0, 1).float()
        nats = F.cross_entropy(found, wanted.flatten(), ignore_index=IGNORED, reduction="none")
        return nats.view(wanted.shape).sum(dim=1)


@dataclass(frozen=True)
class MaskedLoss:
    """Cross-entropy of the answer's tokens among those alone that continue some title of the catalogue at their place.

    The masked softmax of MSL (arXiv 2504.04178); logits are divided by `temperature` first. A token without an
    alternative costs nothing. `tries` has each example's catalogue, with titles tokenised and closed as they are trained.
    """

    unit: ClassVar[str] = "token"
    tries: Sequence[TitleTrie]
    temperature: float = 1.0

    def nats(self, batch: Batch, logits: Logits) -> torch.Tensor:
        following = batch["labels"][:, 1:]
        rows, places, wanted, allowed = [], [], [], []
        for row, number in enumerate(batch[NUMBER].tolist()):
            at = (following[row] != IGNORED).nonzero()[:, 0]
            answer = following[row, at].tolist()
            choices = self.tries[number].continuations(answer)
            for place, token, tokens in zip(at.tolist(), answer, choices, strict=True):
                if len(tokens) > 1:
                    rows.append(row)
                    places.append(place)
                    wanted.append(token)
                    allowed.append(torch.from_numpy(tokens).long())
        device = following.device
        columns = torch.tensor(sorted(set(places)) or [0], device=device)
        found = logits(_read(batch), columns)
        if not places:  # every answer is the only title there is
            return found.flatten(1)[:, :0].sum(dim=1).to(_exact(found))
        at_row, at_token = torch.tensor(rows, device=device), torch.tensor(wanted, device=device)
        at_column = torch.searchsorted(columns, torch.tensor(places, device=device))
        counts = torch.tensor([len(tokens) for tokens in allowed], device=device)
        owner = torch.arange(len(allowed), device=device).repeat_interleave(counts)
        tokens = torch.cat(allowed).to(device)
        exact, sharpness = _exact(found), 1 / self.temperature
        offered = found[at_row[owner], at_column[owner], tokens].to(exact) * sharpness
        right = found[at_row, at_column, at_token].to(exact) * sharpness
        nats = _logsumexp_by(owner, offered, len(allowed)) - right
        return nats.new_zeros(len(following)).index_add(0, at_row, nats)


@dataclass(frozen=True)
class Choice:
    """What is known of an example whose title is to be told from those of its batch.

    `words` is the title but for case and punctuation, `closed` the tokens of the title and of what closes it, `taken` the words of
    the titles that are no negatives of the user's.
    """

    title: str
    words: str
    closed: tuple[int, ...]
    taken: AbstractSet[str]


@dataclass(frozen=True)
class ChoiceLoss:
    """Cross-entropy of the right title among the titles of a batch, by log P of a whole title, divided by `temperature`.

    A title that says the same as the right one, or that the user has taken, is left out. Each prompt is read once, with
    all titles behind it, if the model `packs`, and else once per title.
    """

    unit: ClassVar[str] = "example"
    choices: Sequence[Choice]
    temperature: float = 1.0
    packs: bool = True

    def nats(self, batch: Batch, logits: Logits) -> torch.Tensor:
        scores, right, other = self._compared(batch, logits)
        return scores.masked_fill(~(right | other), -torch.inf).logsumexp(dim=1) - scores[right]

    def _compared(self, batch: Batch, logits: Logits) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each prompt with each title, [examples, titles]: the score, whether it is the right one, and whether it is a negative."""
        own = [self.choices[number] for number in batch[NUMBER].tolist()]
        titles = list({choice.title: choice for choice in own}.values())
        device = batch["labels"].device
        answers = [torch.tensor(choice.closed, device=device) for choice in titles]
        scores = title_scores(_prompts(batch), [answers] * len(own), logits, packs=self.packs) / self.temperature
        right = torch.tensor([[title.title == choice.title for title in titles] for choice in own], device=device)
        other = torch.tensor(
            [[title.words not in {choice.words, *choice.taken} for title in titles] for choice in own], device=device
        )
        return scores, right, other


class ContrastLoss(ChoiceLoss):
    """Cross-entropy of the right history among the histories of a batch, by log P of its title, divided by `temperature`.

    What a title is worth without a history cancels out, as it does in the score `pmi`: the optimum is log P(title | history) less
    log P(title), up to what depends on the title alone (InfoNCE, arXiv 1807.03748). Histories whose title says the same, or whose
    user has taken it, are left out.
    """

    def nats(self, batch: Batch, logits: Logits) -> torch.Tensor:
        scores, right, other = self._compared(batch, logits)
        column = right.int().argmax(dim=1)  # of each example's own title
        compared = scores[:, column].T  # [examples, histories]
        allowed = other[:, column].T | torch.eye(len(column), dtype=torch.bool, device=scores.device)
        return compared.masked_fill(~allowed, -torch.inf).logsumexp(dim=1) - compared.diagonal()


def title_scores(
    prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[torch.Tensor]], logits: Logits, *, packs: bool
) -> torch.Tensor:
    """[prompts, answers of each]: sum of log P over an answer's tokens after its prompt, with gradient.

    Prompts have equally many answers. With `packs` a row is a prompt and all of its answers, of which a mask lets each see the
    prompt and itself; prompts are padded left, so that answers begin at one place in all rows.
    """
    if packs:
        return _scores(prompts, answers, logits)
    return torch.cat(
        [_scores(prompts, [[answer] for answer in some], logits) for some in zip(*answers, strict=True)], 1
    )


def _scores(prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[torch.Tensor]], logits: Logits) -> torch.Tensor:
    rows, each, device = len(prompts), len(answers[0]), prompts[0].device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = int(lengths.max())
    follow = [[len(answer) - 1 for answer in some] for some in answers]  # the last token of an answer predicts nothing
    behind = pad_sequence([torch.cat([answer[:-1] for answer in some]) for some in answers], batch_first=True)
    owner = pad_sequence([_counted(range(each), some, device) for some in follow], batch_first=True, padding_value=-2)
    steps = pad_sequence([torch.cat([torch.arange(n) for n in some]) for some in follow], batch_first=True).to(device)
    there = torch.arange(longest, device=device) >= longest - lengths[:, None]
    given = {
        "input_ids": torch.cat([pad_sequence(list(prompts), batch_first=True, padding_side="left"), behind], dim=1),
        "attention_mask": torch.cat([there, owner >= 0], dim=1),
        "position_ids": torch.cat([(there.cumsum(1) - 1).clamp(min=0), lengths[:, None] + steps], dim=1),
    }
    if each > 1:
        given["attention_mask"] = _own_and_prompt(given["attention_mask"], owner)
    found = logits(given, torch.arange(longest - 1, longest + behind.shape[1], device=device))
    exact = _exact(found)
    # A few places at a time: a vocabulary is wide, and logsumexp copies it.
    total = torch.cat([some.to(exact).logsumexp(dim=2) for some in found.split(64, dim=1)], dim=1)
    columns = [_columns(some) for some in follow]
    at_row = _counted(range(rows), [len(some) for some in columns], device)
    at_column = torch.tensor([column for some in columns for column in some], device=device)
    tokens = torch.cat([answer for some in answers for answer in some])
    picked = found[at_row, at_column, tokens].to(exact) - total[at_row, at_column]
    number = _counted(range(rows * each), [n + 1 for some in follow for n in some], device)
    return picked.new_zeros(rows * each).index_add(0, number, picked).view(rows, each)


def _columns(follow: Sequence[int]) -> list[int]:
    """Where a row's answers are predicted, of the place before them and theirs: their first tokens all at the end of the prompt."""
    starts = accumulate(follow, initial=1)
    return [column for start, n in zip(starts, follow, strict=False) for column in (0, *range(start, start + n))]


def _counted(numbers: Sequence[int], counts: Sequence[int], device: torch.device) -> torch.Tensor:
    """Each number as often as its count says."""
    return torch.tensor(numbers, device=device).repeat_interleave(torch.tensor(counts, device=device))


def _own_and_prompt(there: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """[rows, 1, tokens, tokens]: what each token of a packed row may attend to; padding to itself at least."""
    prompt = there.shape[1] - owner.shape[1]
    whose = torch.cat([owner.new_full((len(owner), prompt), -1), owner], dim=1)
    own = (whose[:, :, None] == whose[:, None, :]) | (whose == -1)[:, None, :]
    itself = torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
    return ((own.tril() & there[:, None, :]) | itself)[:, None]


def _prompts(batch: Batch) -> list[torch.Tensor]:
    """Each example's tokens in front of its answer."""
    begins = (batch["labels"] != IGNORED).int().argmax(dim=1)
    return [ids[:begin] for ids, begin in zip(batch["input_ids"], begins.tolist(), strict=True)]


def _logsumexp_by(owner: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """[count]: log of the sum of exp of the values of each owner, each of which has some."""
    top = values.new_full((count,), -torch.inf).scatter_reduce(0, owner, values.detach(), "amax")
    return values.new_zeros(count).index_add(0, owner, (values - top[owner]).exp()).log() + top


def _exact(values: torch.Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _read(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
