"""How an adapter came about, as far as its context tells it in the form in which trainers and `adapter add` write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PARTIAL = "partial"
PERSONALISED = "bundle"  # what a personalised LoRA says of itself
ON = "on"  # the build that a bi-tuning was trained on
ORIGINS = ("hub_repo", "hub_commit", "mlflow_registered", "mlflow_model", "mlflow_run")


@dataclass(frozen=True)
class TrainingData:
    """The data of one domain that an adapter was trained on."""

    domain: str | None
    digest: str | None


@dataclass(frozen=True)
class ValidationUsers:
    """The users of one domain whose validation targets chose the checkpoint, by `tasks.user_digest`; no weights were learned from them."""

    domain: str | None
    data: str | None
    users: frozenset[str]


@dataclass(frozen=True)
class TrainedOn:
    """A merged checkpoint: the build, the digest of its tree in the store, and the one that its files have as a base model."""

    build: str
    tree: str
    digest: str


@dataclass(frozen=True)
class TrainingContext:
    """What the context of an adapter says. Other programs may have written something else: what has not the form is left out.

    `template_name` and `template_digest` are those of the prompt template; `template_option` is how the trainer was given it.
    `lacking` is what an adapter that was taken with `allow_partial` lacks, in words. `on` is the build that was frozen in the place of the base.
    """

    trainer: str | None = None
    trainer_version: str | None = None
    template_name: str | None = None
    template_digest: str | None = None
    template_option: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    data: tuple[TrainingData, ...] = ()
    validation: tuple[ValidationUsers, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()
    on: TrainedOn | None = None

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> TrainingContext:
        template, options = _mapping(context.get("template")), _mapping(context.get("options"))
        lacking = context.get(PARTIAL)
        return cls(
            trainer=_text(context.get("trainer")),
            trainer_version=_text(context.get("trainer_version")),
            template_name=_text(template.get("name")),
            template_digest=_text(template.get("digest")),
            template_option=_text(options.get("template")),
            options=options,
            validation=_validation(context.get("validation")),
            data=_data(context.get("data"), "digest") or _data(context.get("tasks"), "data"),
            origin={key: context[key] for key in ORIGINS if key in context},
            lacking=tuple(map(str, lacking)) if isinstance(lacking, list) else (),
            on=_on(context.get(ON)),
        )

    @property
    def trained_by(self) -> str | None:
        """The trainer and its version in one line."""
        return " ".join(filter(None, [self.trainer, self.trainer_version])) or None

    @property
    def hub_repo(self) -> str | None:
        """The repository on the Hub that it was fetched from."""
        return _text(self.origin.get("hub_repo"))


def _data(entries: object, digest: str) -> tuple[TrainingData, ...]:
    """Of what `trainers.runs` writes (`data`), or a trainer of its own tasks (`tasks`), by the key that has the data's digest."""
    return tuple(
        TrainingData(_text(entry.get("domain")), _text(entry.get(digest)))
        for entry in (entries if isinstance(entries, Sequence) else ())
        if isinstance(entry, Mapping)
    )


def _validation(entries: object) -> tuple[ValidationUsers, ...]:
    return tuple(
        ValidationUsers(
            _text(entry.get("domain")),
            _text(entry.get("data")),
            frozenset(user for user in entry["users"] if isinstance(user, str)),
        )
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping) and isinstance(entry.get("users"), list)
    )


def _on(entry: object) -> TrainedOn | None:
    found = [_text(_mapping(entry).get(name)) for name in ("build", "tree", "digest")]
    return TrainedOn(*map(str, found)) if all(found) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
