"""How a question is put to a language model: templates with a digest, and the questions made with them."""

from __future__ import annotations

import difflib
import hashlib
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .candidates import candidates
from .chat_templates import expect_bounded
from .data import DomainData, Item
from .documents import read_yaml
from .errors import TaskError
from .splits import Example, Split, examples, sample
from .validation import problems, with_placeholders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED = Path(__file__).parent  # template_NAME.yaml
DEFAULT_TEMPLATE = "next-title"
ANSWER_MARK = "ANSWER-ENDS-HERE"  # replaces an answer where only the text after it matters
SHOWN = ("candidates", "history", "titles")  # of a question, what is kept in a file


class Template(BaseModel):
    """The wording of a question: `user` has the placeholder {history} and may have {candidates}; the answer is a title.

    Without {candidates} the model is asked what comes next in so many words; ranking by likelihood compares the titles
    all the same, and prompts are shorter by all of them.

    An empty `system` means no system message. At most the `history_limit` newest items are shown, and of those only the
    newest that together have at most `history_tokens` tokens. With `answers` above 1 the answer is that many of the
    candidates: the right one, then others in the order in which they are listed. (The authors of RecCocktail train on
    others at random, which nothing can learn.)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    system: str = ""
    user: str
    separator: str = Field(" || ", min_length=1)
    history_limit: int = Field(10, ge=1)
    history_tokens: int = Field(512, ge=1)
    answers: int = Field(1, ge=1)

    @field_validator("user")
    @classmethod
    def _has_its_placeholders(cls, user: str) -> str:
        return with_placeholders(user, {"history"}, {"candidates"})

    @property
    def lists_candidates(self) -> bool:
        return any(name == "candidates" for _, name, _, _ in string.Formatter().parse(self.user))

    @model_validator(mode="after")
    def _lists_what_it_asks_for(self) -> Template:
        if self.answers > 1 and not self.lists_candidates:
            raise ValueError("answers above 1 are picked from a list: user needs the placeholder {candidates}")
        return self

    @property
    def mark(self) -> str:
        """The separator without the blanks around it, unless it is blank itself: what separates two titles."""
        return self.separator.strip() or self.separator

    @property
    def digest(self) -> str:
        """SHA-256 of what the model gets to see, so of everything but the name."""
        return _digest(self.model_dump(exclude={"name"}))

    def title(self, title: str) -> str:
        """The title as shown: a separator inside it becomes a blank, so that it cannot pass for two titles."""
        while self.mark.strip() and self.mark in title:
            title = " ".join(title.replace(self.mark, " ").split())
        return title


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """Which of the candidates comes next, put into words; nobody knows the answer. `history` and `titles` are what is shown.

    `likeness`, per candidate, is the cosine of its words with those of the history, where a score needs it.
    """

    template: Template
    candidates: tuple[str, ...]
    history: tuple[str, ...]
    titles: tuple[str, ...]
    likeness: tuple[float, ...] | None = field(default=None, kw_only=True)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the answer."""
        join = self.template.separator.join
        user = self.template.user.format(history=join(self.history), candidates=join(self.titles))
        system = [{"role": "system", "content": self.template.system}] if self.template.system else []
        return [*system, {"role": "user", "content": user}]

    @property
    def answer(self) -> str:
        """What the assistant could say: the first candidates, as many as the template asks for."""
        return self.template.separator.join(self.titles[: self.template.answers])

    @property
    def asker(self) -> str:
        """Whose question it is, for messages."""
        return "a history"


@dataclass(frozen=True, slots=True)
class Question(OpenQuestion):
    """An example put into words: a question whose right answer is known, the candidate at `target_index`."""

    example: Example
    target_index: int

    @property
    def answer(self) -> str:
        """What the assistant should say."""
        others = [title for index, title in enumerate(self.titles) if index != self.target_index]
        return self.template.separator.join([self.titles[self.target_index], *others[: self.template.answers - 1]])

    @property
    def asker(self) -> str:
        return f"user {self.example.user_id!r}"


AnyQuestion = TypeVar("AnyQuestion", bound=OpenQuestion)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What a metric was measured on. Equal specs have equal questions."""

    data_digest: str
    split: Split
    template_digest: str
    n_negatives: int
    seed: int
    limit: int | None

    @property
    def digest(self) -> str:
        return _digest(asdict(self))


def shipped_templates() -> tuple[str, ...]:
    """The names of the templates that ship."""
    return tuple(sorted(file.stem.removeprefix("template_") for file in SHIPPED.glob("template_*.yaml")))


def load_template(name_or_path: str | Path, *, name: str | None = None) -> Template:
    """A template that ships with the package by its name, or any other by the path of its YAML file.

    One that says no `name` gets the one that is given here.
    """
    path = SHIPPED / f"template_{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        shipped = shipped_templates()
        near = difflib.get_close_matches(str(name_or_path)[:100], shipped, n=1)
        raise TaskError(
            f"no template is called {str(name_or_path)!r} and no such file exists"
            + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"templates that ship: {', '.join(shipped)}",
        )
    try:
        content = read_yaml(path)
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TaskError(f"{path} is not a YAML file: {error}") from error
    return parse_template(content, where=str(path), name=name)


def parse_template(content: object, *, where: str, name: str | None = None) -> Template:
    """Validate a template's content; `where` names its origin in the error, `name` is for one that says none. Raises TaskError."""
    if name is not None and isinstance(content, Mapping):
        content = {"name": name, **content}
    try:
        return Template.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{where}: {problems(error, Template, whole='template')}") from error


def question(data: DomainData, example: Example, template: Template, n_negatives: int, seed: int) -> Question:
    """Raises TaskError when fewer candidates are asked for than the template's answer lists."""
    if n_negatives + 1 < template.answers:
        raise TaskError(
            f"template {template.name!r} answers with {template.answers} titles, which {n_negatives} negatives cannot fill",
            hint=f"{template.answers - 1} negatives or more",
        )
    offered = candidates(data, example, n_negatives, seed)
    taken = [data.items[item_id] for item_id in example.history]
    asked = open_question(template, taken, [data.items[item_id] for item_id in offered])
    return Question(template, offered, asked.history, asked.titles, example, offered.index(example.target))


def open_question(template: Template, history: Sequence[Item], offered: Sequence[Item]) -> OpenQuestion:
    """Which of the offered items comes after the history, whose newest item is the last.

    Raises TaskError when fewer are offered than the template's answer lists.
    """
    if len(offered) < template.answers:
        raise TaskError(
            f"template {template.name!r} answers with {template.answers} titles, and {len(offered)} are offered",
            hint=f"{template.answers} candidates or more",
        )

    def shown(items: Sequence[Item]) -> tuple[str, ...]:
        return tuple(template.title(item.title) for item in items)

    ids = tuple(item.item_id for item in offered)
    return OpenQuestion(template, ids, shown(history[-template.history_limit :]), shown(offered))


def questions(
    data: DomainData,
    split: Split,
    template: Template,
    *,
    n_negatives: int = 9,
    seed: int = 42,
    limit: int | None = None,
) -> tuple[TaskSpec, list[Question]]:
    """The split's questions, or a seeded sample of `limit` of them, and the spec that metrics on them are recorded with."""
    spec = TaskSpec(data.digest, split, template.digest, n_negatives, seed, limit)
    chosen = examples(data, split)
    if limit is not None:
        chosen = sample(chosen, limit, seed)
    return spec, [question(data, example, template, n_negatives, seed) for example in chosen]


def write_questions(path: Path, questions: Sequence[OpenQuestion]) -> None:
    """Put into one file what a model is to be asked: titles as they are shown, without users and without what else they took."""
    templates = {question.template.digest: question.template for question in questions}
    if len(templates) > 1:
        raise ValueError("the questions are of several templates")
    content = {
        "template": next(iter(templates.values())).model_dump() if templates else None,
        "questions": [
            {name: getattr(each, name) for name in (*SHOWN, *(["target_index"] if isinstance(each, Question) else []))}
            | ({} if each.likeness is None else {"likeness": each.likeness})
            for each in questions
        ],
    }
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_questions(path: Path) -> list[Question]:
    """What `write_questions` wrote; whose questions they are is not known any more. Raises TaskError."""

    def read(asked: OpenQuestion, each: Mapping[str, Any]) -> Question:
        example = Example("", (), asked.candidates[each["target_index"]])
        shown = asked.template, asked.candidates, asked.history, asked.titles
        return Question(*shown, example, each["target_index"], likeness=asked.likeness)

    return _written(path, read)


def read_open_questions(path: Path) -> list[OpenQuestion]:
    """What `write_questions` wrote, without right answers. Raises TaskError."""
    return _written(path, lambda asked, each: asked)


def _written(path: Path, read: Callable[[OpenQuestion, Mapping[str, Any]], AnyQuestion]) -> list[AnyQuestion]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        template = Template.model_validate(content["template"]) if content["questions"] else None
        return [read(_open(each, template), each) for each in content["questions"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise TaskError(f"{path}: holds no questions: {error}") from error


def _open(each: Mapping[str, Any], template: Template | None) -> OpenQuestion:
    assert template is not None
    candidates, history, titles = (tuple(each[name]) for name in SHOWN)
    likeness = tuple(each["likeness"]) if "likeness" in each else None
    return OpenQuestion(template, candidates, history, titles, likeness=likeness)


def fit(questions: Sequence[AnyQuestion], tokenizer: PreTrainedTokenizerBase) -> list[AnyQuestion]:
    """The questions as a model with this tokenizer is to see them.

    The oldest titles are left out of a history that has more than the template's `history_tokens`; candidates are never cut,
    nor is the newest title. A special token that a title spells, such as `<|im_end|>`, is broken up with a blank: a
    shop's catalogue must not end the conversation. Raises ChatTemplateError where the chat template does not come to an end.
    """
    special = special_tokens(tokenizer)
    asked = [_cut(_harmless(question, special), tokenizer) for question in questions]
    expect_bounded(tokenizer, (conversation for question in asked for conversation in _conversations(question)))
    return asked


def _conversations(question: OpenQuestion) -> Iterator[list[dict[str, str]]]:
    """All that a chat template is given of a question: to be answered, answered, and without its history."""
    yield question.messages
    for answer in (question.answer, ANSWER_MARK):
        yield [*question.messages, {"role": "assistant", "content": answer}]
    yield replace(question, history=()).messages


def shown_titles(titles: Iterable[str], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Titles of a catalogue as a question with this template shows them once `fit` has made it ready for this tokenizer."""
    special = special_tokens(tokenizer)
    return [broken_up(template.title(title), special) for title in titles]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What no title may spell, the longest first."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return sorted({token.strip() for token in (*tokens, *tokenizer.all_special_tokens)} - {""}, key=len, reverse=True)


def broken_up(title: str, special: Sequence[str]) -> str:
    while found := next((token for token in special if token in title), None):
        title = title.replace(found, f"{found[0]} {found[1:]}" if len(found) > 1 else " ")
    return title


def _harmless(question: AnyQuestion, special: Sequence[str]) -> AnyQuestion:
    history = tuple(broken_up(title, special) for title in question.history)
    titles = tuple(broken_up(title, special) for title in question.titles)
    if (history, titles) == (question.history, question.titles):
        return question
    return replace(question, history=history, titles=titles)


def _cut(question: AnyQuestion, tokenizer: PreTrainedTokenizerBase) -> AnyQuestion:
    history, template = question.history, question.template
    while len(history) > 1 and _tokens(template.separator.join(history), tokenizer) > template.history_tokens:
        history = history[1:]
    return question if history is question.history else replace(question, history=history)


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _digest(content: object) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"
