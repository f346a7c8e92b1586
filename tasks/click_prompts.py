"""How a click is put to a language model: a yes-or-no template, and which of the rated items it shows."""

from __future__ import annotations

import difflib
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .chat_templates import expect_bounded
from .clicks import ClickRow, RatedItem, digest_of
from .data import Item
from .documents import read_yaml
from .errors import AnswerTokenError, TaskError
from .prompts import ANSWER_MARK, broken_up, special_tokens
from .validation import problems, with_placeholders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED = Path(__file__).parent  # clicks_NAME.yaml
DEFAULT_CLICK_TEMPLATE = "yes-no"
UNKNOWN_PROFILE = "nothing is known"
Shown = Callable[[ClickRow], Sequence[RatedItem]]


class ClickTemplate(BaseModel):
    """The wording of a yes-or-no question: `user` has {history} and {target} and may have {profile}.

    `entry` is how one rated item is written, with {title} and {rating}; `separator` stands between two. At most `history_limit` items are
    shown, and of those only the newest that together have at most `history_tokens` tokens. The model answers `positive` or `negative`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    system: str = ""
    user: str
    entry: str = "{title} (rated {rating})"
    separator: str = Field("\n", min_length=1)
    positive: str = Field("Yes.", min_length=1)
    negative: str = Field("No.", min_length=1)
    history_limit: int = Field(10, ge=1)
    history_tokens: int = Field(512, ge=1)

    @field_validator("user")
    @classmethod
    def _asks(cls, user: str) -> str:
        return with_placeholders(user, {"history", "target"}, {"profile"})

    @field_validator("entry")
    @classmethod
    def _names_an_item(cls, entry: str) -> str:
        return with_placeholders(entry, {"title"}, {"rating"})

    @property
    def digest(self) -> str:
        """SHA-256 of what the model gets to see, so of everything but the name."""
        return digest_of(self.model_dump(exclude={"name"}))


@dataclass(frozen=True, slots=True)
class ClickQuestion:
    """A row put into words: what is shown of the user's profile and history (title and rating), and the target's title."""

    template: ClickTemplate
    row: ClickRow
    profile: tuple[tuple[str, str], ...]
    history: tuple[tuple[str, float], ...]
    target: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the answer."""
        template = self.template
        entries = [template.entry.format(title=title, rating=f"{rating:g}") for title, rating in self.history]
        profile = ", ".join(f"{name} {value}" for name, value in self.profile) or UNKNOWN_PROFILE
        user = template.user.format(profile=profile, history=template.separator.join(entries), target=self.target)
        system = [{"role": "system", "content": template.system}] if template.system else []
        return [*system, {"role": "user", "content": user}]

    @property
    def answer(self) -> str:
        """What the assistant should say. Raises TaskError where nobody knows."""
        if self.row.label is None:
            raise TaskError(f"nobody knows whether user {self.row.user_id!r} likes item {self.row.item_id!r}")
        return self.template.positive if self.row.label else self.template.negative


@dataclass(frozen=True)
class ItemEmbeddings:
    """A vector per item, [items, width], in the order of the ids; cosine is what counts."""

    item_ids: tuple[str, ...]
    vectors: NDArray[np.float32] = field(repr=False)
    _units: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _places: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.vectors.shape[:1] != (len(self.item_ids),) or self.vectors.ndim != 2:
            raise TaskError(f"{len(self.item_ids)} items need as many vectors; got {self.vectors.shape}")
        lengths = np.linalg.norm(self.vectors.astype(np.float64), axis=1, keepdims=True)
        object.__setattr__(self, "_units", self.vectors / np.where(lengths > 0, lengths, 1))
        object.__setattr__(self, "_places", {item_id: place for place, item_id in enumerate(self.item_ids)})

    def cosines(self, target: str, others: Sequence[str]) -> NDArray[np.float64]:
        """[others], between the target and each; -inf where one of the two has no vector."""
        if target not in self._places:
            return np.full(len(others), -np.inf)
        places = np.array([self._places.get(item_id, -1) for item_id in others], dtype=np.int64)
        found = self._units[places] @ self._units[self._places[target]] if len(others) else np.empty(0)
        return np.where(places < 0, -np.inf, found)


def recent(count: int) -> Shown:
    """Shows the `count` newest items of the history."""
    return lambda row: row.history[-count:]


def most_similar(embeddings: ItemEmbeddings, count: int) -> Shown:
    """Shows the `count` items of the past that are most similar to the target, in the order of time; of equal ones the newest."""

    def shown(row: ClickRow) -> Sequence[RatedItem]:
        past = row.history
        cosines = embeddings.cosines(row.item_id, [rated.item_id for rated in past])
        nearest = np.lexsort((-np.arange(len(past)), -cosines))[:count]
        return tuple(past[place] for place in sorted(nearest.tolist()))

    return shown


def click_question(
    row: ClickRow, items: Mapping[str, Item], template: ClickTemplate, shown: Shown | None = None
) -> ClickQuestion:
    """The row in words. `shown` chooses what is shown of the history; by default the template's `history_limit` newest items."""
    history = (shown or recent(template.history_limit))(row)
    profile = tuple((name.replace("_", " "), str(value)) for name, value in row.profile.items())
    rated = tuple((items[each.item_id].title, each.rating) for each in history)
    return ClickQuestion(template, row, profile, rated, items[row.item_id].title)


def shipped_click_templates() -> tuple[str, ...]:
    """The names of the templates that ship."""
    return tuple(sorted(file.stem.removeprefix("clicks_") for file in SHIPPED.glob("clicks_*.yaml")))


def load_click_template(name_or_path: str | Path) -> ClickTemplate:
    """A template that ships with the package by its name, or any other by the path of its YAML file. Raises TaskError."""
    name = str(name_or_path)
    path = SHIPPED / f"clicks_{name}.yaml" if name in shipped_click_templates() else Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(name[:100], shipped_click_templates(), n=1)
        raise TaskError(
            f"no click template is called {name!r} and no such file exists"
            + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"templates that ship: {', '.join(shipped_click_templates())}",
        )
    try:
        return ClickTemplate.model_validate(read_yaml(path))
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise TaskError(f"{path}: {problems(error, ClickTemplate, whole='template')}") from error
    except ValueError as error:
        raise TaskError(f"{path} is not a YAML file: {error}") from error


def fit_clicks(questions: Sequence[ClickQuestion], tokenizer: PreTrainedTokenizerBase) -> list[ClickQuestion]:
    """The questions as a model with this tokenizer is to see them.

    Special tokens that a title or a profile spells are broken up with a blank, and the oldest entries left out of a history with
    more than the template's `history_tokens`. Raises ChatTemplateError where the chat template does not come to an end.
    """
    special = special_tokens(tokenizer)
    fitted = [_cut(_harmless(question, special), tokenizer) for question in questions]
    expect_bounded(tokenizer, (question.messages for question in fitted))
    return fitted


def _harmless(question: ClickQuestion, special: Sequence[str]) -> ClickQuestion:
    return replace(
        question,
        profile=tuple((broken_up(name, special), broken_up(value, special)) for name, value in question.profile),
        history=tuple((broken_up(title, special), rating) for title, rating in question.history),
        target=broken_up(question.target, special),
    )


def _cut(question: ClickQuestion, tokenizer: PreTrainedTokenizerBase) -> ClickQuestion:
    template, history = question.template, question.history
    entries = [template.entry.format(title=title, rating=f"{rating:g}") for title, rating in history]
    while len(entries) > 1 and _tokens(tokenizer, template.separator.join(entries)) > template.history_tokens:
        entries = entries[1:]
    return replace(question, history=history[len(history) - len(entries) :])


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """The tokens that begin a positive and a negative answer."""

    positive: int
    negative: int


def answer_tokens(tokenizer: PreTrainedTokenizerBase, template: ClickTemplate) -> AnswerTokens:
    """Taken from the answers as they stand after the chat template: `Yes` and ` Yes` are different tokens.

    Raises AnswerTokenError where the word of an answer is more than one token, unknown to the tokenizer, or both begin alike.
    """
    positive, negative = (_first_token(tokenizer, answer) for answer in (template.positive, template.negative))
    if positive == negative:
        raise AnswerTokenError(
            f"{template.positive!r} and {template.negative!r} begin with the same token of this tokenizer",
            hint="a template with other answers, or a base whose tokenizer has both words as tokens",
        )
    return AnswerTokens(positive, negative)


def answer_ids(tokenizer: PreTrainedTokenizerBase, template: ClickTemplate) -> tuple[list[int], list[int]]:
    """All tokens of the positive and of the negative answer, as they stand after the chat template, without what closes them.

    Raises AnswerTokenError as `answer_tokens` does.
    """
    answer_tokens(tokenizer, template)
    positive, negative = (_all_tokens(tokenizer, answer) for answer in (template.positive, template.negative))
    return positive, negative


def _all_tokens(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    before, said, _ = _after_prompt(tokenizer, answer).partition(answer)
    return list(tokenizer(before + said, add_special_tokens=False)["input_ids"])


def _first_token(tokenizer: PreTrainedTokenizerBase, answer: str) -> int:
    ids = tokenizer(_after_prompt(tokenizer, answer), add_special_tokens=False)["input_ids"]
    word = answer.rstrip(string.punctuation)
    begins = str(tokenizer.decode(ids[:1])).strip()
    if ids[0] == tokenizer.unk_token_id or begins not in (word, answer):
        raise AnswerTokenError(
            f"the answer {answer!r} does not begin with one token for {word!r}: the tokenizer makes {begins!r} its first",
            hint="a template whose answers are one token each, or another base",
        )
    return ids[0]


def _after_prompt(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """The answer as the chat template writes it behind the prompt, with the blank that may come before it."""
    asked = [{"role": "user", "content": ANSWER_MARK}]
    before = str(tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))
    said = [*asked, {"role": "assistant", "content": answer}]
    whole = str(tokenizer.apply_chat_template(said, tokenize=False))
    return whole[len(before) :] if whole.startswith(before) else answer
