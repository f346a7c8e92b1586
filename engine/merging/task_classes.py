"""Of which class a result is whose adapters bring a head for another task than the base's, and what config.json says of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...registry.artifacts.facts import AdapterFacts, BaseFacts
from ...registry.artifacts.inspect import CONFIG
from ...registry.artifacts.task_heads import TASK_CLASSES
from ...registry.strict_json import read_object, shown
from ..errors import MergeError

_ONE_TASK = "mix adapters of one task; what is of another goes into a build of its own"


class Tasked(Protocol):
    """An adapter of a mix: what it holds, and what it is called."""

    @property
    def facts(self) -> AdapterFacts: ...

    @property
    def called(self) -> str: ...


def task_of(parts: Sequence[Tasked]) -> str | None:
    """The task whose head the adapters bring; None where they bring none. Raises MergeError where their tasks are different."""
    stated = {part.facts.config.task: part.called for part in parts if part.facts.config.task}
    if len(stated) > 1 and stated.keys() & TASK_CLASSES:
        listed = ", ".join(f"{called}: {task}" for task, called in stated.items())
        raise MergeError(
            f"the adapters were trained for different tasks ({listed}), which have different heads", hint=_ONE_TASK
        )
    return next((part.facts.config.task for part in parts if part.facts.task_head), None)


def refuse_use(name: str, base: BaseFacts, task: str, folder: Path) -> MergeError:
    return MergeError(
        f"{folder}: changes {name}, which a model of {base.model_type} for {task} does not have", hint=_ONE_TASK
    )


def different_heads(name: str, shapes: Mapping[tuple[int, ...], str]) -> MergeError:
    listed = ", ".join(f"{called}: {list(shape)}" for shape, called in shapes.items())
    return MergeError(
        f"the adapters have a {name} of different shapes ({listed})", hint="mix adapters of the same labels"
    )


def class_for_task(base: BaseFacts, task: str, heads: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
    """What config.json says of the class that transformers has for the base's model type and the task. Raises MergeError.

    `heads` are the head's tensors by name, whose last layer has a row for each label.
    """
    name = _class_names(task).get(base.model_type)
    if not isinstance(name, str):
        raise MergeError(
            f"an adapter brings a head for {task}, and transformers has no class {TASK_CLASSES[task]} for the model type"
            f" {shown(base.model_type)}",
            hint="save the base with such a head, by the class that the adapter was trained with, and merge into that",
        )
    count = min((shape[0] for shape in heads.values() if len(shape) == 2), default=1)
    labels = {str(number): f"LABEL_{number}" for number in range(count)}
    return {
        "architectures": [name],
        "id2label": labels,
        "label2id": {label: int(number) for number, label in labels.items()},
    }


def _class_names(task: str) -> Mapping[str, Any]:
    from transformers.models.auto import modeling_auto

    return {
        "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    }[task]


def notes_of(base_folder: Path, config: Mapping[str, object]) -> Collection[str]:
    """What a user who loads the result should know."""
    (name,) = config["architectures"]  # pyright: ignore[reportGeneralTypeIssues]
    count = len(config["id2label"])  # pyright: ignore[reportArgumentType]
    notes = [
        f"the result is a {name} of {count} labels, with the head that the adapters bring and without the language model's;"
        " adapters do not name labels, so config.json has LABEL_0 and so on"
    ]
    content = read_object(base_folder / CONFIG)
    text = content.get("text_config")
    inner = text if isinstance(text, dict) else {}
    if name.endswith(TASK_CLASSES["SEQ_CLS"]) and content.get("pad_token_id", inner.get("pad_token_id")) is None:
        notes.append(
            "config.json has no pad_token_id, without which a classifier made of a language model takes one text at a time:"
            " set model.config.pad_token_id to what it was in training"
        )
    return notes
