"""The model card of a merged checkpoint: its README.md, with the metadata that the Hugging Face Hub reads.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CardInput:
    """One adapter that went into the mixture."""

    role: str  # spirit or ingredient
    ref: str
    digest: str


@dataclass(frozen=True)
class CardAdaptation:
    """How adaptive mixing found the coefficients; entropies in nats per token."""

    objective: str
    entropy_start: float
    entropy_final: float
    prompts: int
    tokens: int
    plots: tuple[str, ...] = ()  # files of the result folder


@dataclass(frozen=True)
class CardFacts:
    """Everything the card says. Nothing in it depends on the machine or the hour, so equal builds have equal cards."""

    title: str
    domain: str
    domain_title: str
    base_name: str
    base_source: str | None  # the Hub's repository id, where the base comes from there
    license: str | None
    method: str
    coefficients: Mapping[str, float]  # by reference or role; the mean, where layers or modules differ
    inputs: tuple[CardInput, ...]
    adaptive: CardAdaptation | None
    metrics: Mapping[str, Mapping[str, object]] | None  # rows of columns, such as system → metric → value
    dtype: str
    recipe: str | None  # its name, where it has one
    reccocktail_version: str


def render_card(facts: CardFacts) -> str:
    """The card's text. Raises KeyError where an input has no coefficient."""
    import jinja2
    from huggingface_hub import ModelCardData

    base = _hub_id(facts.base_source)
    metadata = ModelCardData(
        license=facts.license,
        base_model=base,
        base_model_relation="merge" if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["merge", "lora", "recommendation", "reccocktail"],
    )
    environment = jinja2.Environment(  # noqa: S701 - Markdown, not HTML; the filters below escape what comes from outside
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "code": _code, "value": _value}
    body = environment.get_template("card.jinja").render(
        facts=facts,
        base=base,
        mixture=[(i, facts.coefficients[i.ref if i.ref in facts.coefficients else i.role]) for i in facts.inputs],
        columns=list(dict.fromkeys(name for row in (facts.metrics or {}).values() for name in row)),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def _hub_id(source: str | None) -> str | None:
    """The source if it can be a repository of the Hub. A folder of this machine has no place on a card."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def _text(value: object) -> str:
    """One line of plain text: no Markdown, HTML or table cell begins or ends inside it."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(str(value).split()))


def _code(value: object) -> str:
    """A code span, in a table too (where a pipe needs its backslash even inside code)."""
    return "`" + " ".join(str(value).replace("`", "'").split()).replace("|", r"\|") + "`"


def _value(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else _text(value)
