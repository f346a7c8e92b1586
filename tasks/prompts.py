"""How a question is put to a language model: templates with a digest, and the questions made with them."""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .candidates import candidates
from .data import DomainData
from .errors import TaskError
from .splits import Example, Split, examples, sample

SHIPPED = Path(__file__).parent  # template_NAME.yaml
DEFAULT_TEMPLATE = "next-title"
NEEDED, ALLOWED = {"history"}, {"history", "candidates"}


class Template(BaseModel):
    """The wording of a question: `user` has the placeholder {history} and may have {candidates}; the answer is a title.

    Without {candidates} the model is asked what comes next in so many words; ranking by likelihood compares the titles
    all the same, and prompts are shorter by all of them.

    An empty `system` means no system message. At most the `history_limit` newest items are shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    system: str = ""
    user: str
    separator: str = Field(" || ", min_length=1)
    history_limit: int = Field(10, ge=1)

    @field_validator("user")
    @classmethod
    def _has_its_placeholders(cls, user: str) -> str:
        found = []
        for _, name, spec, conversion in string.Formatter().parse(user):
            if name is not None:
                found.append(name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else ""))
        if not NEEDED <= set(found) <= ALLOWED:
            raise ValueError(
                f"placeholders are {{history}} and, if wanted, {{candidates}}; found {sorted(found) or 'none'}"
            )
        return user

    @property
    def digest(self) -> str:
        """SHA-256 of what the model gets to see, so of everything but the name."""
        return _digest(self.model_dump(exclude={"name"}))

    def title(self, title: str) -> str:
        """The title as shown: a separator inside it becomes a blank, so that it cannot pass for two titles."""
        mark = self.separator.strip()
        while mark and mark in title:
            title = " ".join(title.replace(mark, " ").split())
        return title


@dataclass(frozen=True, slots=True)
class Question:
    """An example put into words. `titles` are the candidates' as shown; `answer` is the one at `target_index`."""

    example: Example
    candidates: tuple[str, ...]
    titles: tuple[str, ...]
    messages: list[dict[str, str]]
    target_index: int

    @property
    def answer(self) -> str:
        return self.titles[self.target_index]


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


def load_template(name_or_path: str | Path) -> Template:
    """A template that ships with the package by its name, or any other by the path of its YAML file."""
    path = SHIPPED / f"template_{name_or_path}.yaml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        shipped = sorted(file.stem.removeprefix("template_") for file in SHIPPED.glob("template_*.yaml"))
        raise TaskError(
            f"no template is called {str(name_or_path)!r} and no such file exists",
            hint=f"templates that ship: {', '.join(shipped)}",
        )
    try:
        return Template.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'template'}: {e['msg']}" for e in error.errors())
        raise TaskError(f"{path}: {wrong}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} is not a YAML file: {error}") from error


def question(data: DomainData, example: Example, template: Template, n_negatives: int, seed: int) -> Question:
    offered = candidates(data, example, n_negatives, seed)
    titles = tuple(template.title(data.items[item_id].title) for item_id in offered)
    shown = [template.title(data.items[item_id].title) for item_id in example.history[-template.history_limit :]]
    user = template.user.format(history=template.separator.join(shown), candidates=template.separator.join(titles))
    system = [{"role": "system", "content": template.system}] if template.system else []
    return Question(
        example, offered, titles, [*system, {"role": "user", "content": user}], offered.index(example.target)
    )


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


def _digest(content: object) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}"
