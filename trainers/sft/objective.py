"""The loss of a training, made from its options and from what its examples are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ...tasks import Question, TaskError, TitleTrie
from ...tasks.candidates import wording
from ...tasks.prompts import ANSWER_MARK, shown_titles
from ...tasks.ranking import closing, packs_answers, title_trie, token_ids
from ..plugin import TrainerError
from .losses import IGNORED, AnswerLoss, Choice, ChoiceLoss, ContrastLoss, Loss, MaskedLoss
from .options import SftOptions
from .pool import Sourced


def make_loss(options: SftOptions, sourced: Sequence[Sourced], tokenizer: Any, model: Any) -> Loss:
    """The loss; in its examples the questions keep their numbers."""
    match options.loss:
        case "answer":
            return AnswerLoss()
        case "masked":
            tries = _tries(tokenizer)
            return MaskedLoss([tries(each) for each in sourced], options.temperature)
        case "choice" | "contrast":
            choices = _choices(tokenizer)
            kind = ChoiceLoss if options.loss == "choice" else ContrastLoss
            return kind([choices(each) for each in sourced], options.temperature, packs_answers(model))


def check_answers(loss: Loss, labels: Sequence[Sequence[int]], first: int = 0) -> None:
    """Raises TrainerError if an answer, as it is trained, is no title of the catalogue; labels are of the examples from `first` on."""
    if not isinstance(loss, MaskedLoss):
        return
    for number, tokens in enumerate(labels, first):
        try:
            loss.tries[number].continuations([token for token in tokens if token != IGNORED])
        except TaskError as error:
            raise TrainerError(
                f"loss=masked: the tokenizer or chat template writes a title in an answer otherwise than by itself: {error}",
                hint="-o loss=answer",
            ) from error


def _tries(tokenizer: Any) -> Callable[[Sourced], TitleTrie]:
    """Each question's catalogue: one trie for a domain's data, of titles with all that the chat template puts behind an answer."""
    found: dict[str, TitleTrie] = {}

    def trie(each: Sourced) -> TitleTrie:
        assert isinstance(each.question, Question)
        if each.data.digest not in found:
            messages = [*each.question.messages, {"role": "assistant", "content": ANSWER_MARK}]
            end = str(tokenizer.apply_chat_template(messages, tokenize=False)).rpartition(ANSWER_MARK)[2]
            titles = (each.data.items[item_id].title for item_id in each.data.titled)
            found[each.data.digest] = title_trie(
                tokenizer, shown_titles(titles, each.question.template, tokenizer), end
            )
        return found[each.data.digest]

    return trie


def _choices(tokenizer: Any) -> Callable[[Sourced], Choice]:
    @cache
    def closed(title: str, end: str) -> tuple[int, ...]:
        return tuple(token_ids(tokenizer, title + end))

    ends: dict[str, str] = {}
    taken: dict[tuple[str, str], frozenset[str]] = {}

    def choice(each: Sourced) -> Choice:
        question, data = each.question, each.data
        assert isinstance(question, Question)
        user, digest = question.example.user_id, data.digest
        if digest not in ends:
            ends[digest] = closing(tokenizer, question)
        if (digest, user) not in taken:
            # Validation and test targets stay unseen: that they are no negatives would tell them.
            learned = data.by_user[user][:-2] or question.example.history
            taken[digest, user] = frozenset(wording(data.items[item_id].title) for item_id in learned)
        title = question.titles[question.target_index]
        return Choice(title, wording(title), closed(title, ends[digest]), taken[digest, user])

    return choice
