"""Cards of what is published: README.md with the metadata that the Hugging Face Hub reads, by a template that can be replaced.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
import math
import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...registry.artifacts.repo_ids import is_repo_id
from ...registry.artifacts.task_heads import PIPELINES, TASK_CLASSES
from ...registry.errors import UsageError
from ...registry.redaction import redacted_values
from ...registry.strict_json import WRITTEN_LIMIT, regular_bytes

if TYPE_CHECKING:
    from huggingface_hub import EvalResult
    from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 5  # of the processor's time, that a template of one's own may take
MEMORY = 2 << 30  # of addresses
LONGEST = 1_000_000  # characters of a card
_TEMPLATE_HINT = 'begin with {% extends "card.jinja" %} and replace its blocks'


@dataclass(frozen=True)
class CardData:
    """A domain's data that something was trained on."""

    domain: str
    digest: str


@dataclass(frozen=True)
class CardInput:
    """One adapter that went into the mixture, and what is known of where it comes from."""

    role: str  # spirit, ingredient, or the name of a neighbour
    ref: str
    digest: str
    repo: str | None = None  # on the Hub
    license: str | None = None
    trainer: str | None = None  # with its version
    template: str | None = None
    data: tuple[CardData, ...] = ()
    lacks: tuple[str, ...] = ()  # of what its configuration names


@dataclass(frozen=True)
class CardAdaptation:
    """How adaptive mixing found the coefficients; entropies in nats per token."""

    objective: str
    entropy_start: float
    entropy_final: float
    prompts: int
    tokens: int
    plots: tuple[str, ...] = ()  # files of the result folder
    data: str | None = None  # digest of the data that the prompts are from


@dataclass(frozen=True)
class CardBound:
    """The mix beside one adapter alone, on users that took no part in the choice."""

    parent: str
    mix: float
    alone: float
    difference: float
    low: float


@dataclass(frozen=True)
class CardVerdict:
    """What a search by ranking shipped: `mixed`, `average` or `parent`; `win` where it is better than every adapter alone."""

    outcome: str
    win: bool
    parent: str | None  # that ships alone
    score: str | None
    fit: int
    gate: int
    metric: str | None
    margin: float | None
    confidence: float | None
    bounds: tuple[CardBound, ...] = ()
    plots: tuple[str, ...] = ()  # files of the result folder
    data: str | None = None  # digest of the data that the labelled users are from
    safe: bool = True  # not worse than any adapter alone by more than the margin


@dataclass(frozen=True)
class CardAgreement:
    """What a search without labels shipped: `mixed`, `average` or `parent`; nobody measured it."""

    outcome: str
    parent: str | None  # that has all the weight
    pseudo_users: int
    score: str | None
    plots: tuple[str, ...] = ()  # files of the result folder
    data: str | None = None  # digest of the data whose catalogue was used


@dataclass(frozen=True)
class CardMetric:
    """A mean, and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class CardEvaluation:
    """Systems that were asked the same questions; `rows` are of system → metric."""

    task: str  # what was asked, as a sentence
    users: int
    rows: Mapping[str, Mapping[str, CardMetric]]
    own: str | None = None  # the system that is published, where it is among them
    asked: CardTask | None = None


@dataclass(frozen=True)
class CardTask:
    """What was asked, for programs that compare figures: equal ones have equal questions."""

    name: str
    how: str  # the way of ranking
    split: str
    data: str  # digest
    domain: str | None = None  # where it is not the card's own


@dataclass(frozen=True)
class CardPrompt:
    """The template that was really used, and for what; placeholders as in the template."""

    name: str
    system: str
    user: str
    separator: str = " || "  # between titles
    used: str = "it was trained with"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Everything the card says. Nothing in it depends on the machine or the hour, so equal builds have equal cards."""

    title: str
    domain: str | None  # None where no registry was there to know it
    domain_title: str | None
    base_name: str
    base_source: str | None  # the Hub's repository id, where the base comes from there
    license: str | None
    dtype: str
    reccocktail_version: str
    kind: Literal["checkpoint", "adapter"] = "checkpoint"
    mixed: bool = True  # False for an adapter as it was trained
    method: str = "linear"
    coefficients: Mapping[str, float]  # by reference or role; the mean, where layers or modules differ
    inputs: tuple[CardInput, ...]
    adaptive: CardAdaptation | None
    verdict: CardVerdict | None = None
    agreement: CardAgreement | None = None
    metrics: Mapping[str, Mapping[str, object]] | None  # rows of columns, such as reference → metric → value
    recipe: str | None  # its name, where it has one
    warnings: tuple[str, ...] = ()  # what the build itself said
    tokenizer: str | None = None  # whose it is, where it is not the base's
    repo: str | None = None  # where it is published
    base_digest: str | None = None
    base_revision: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    license_given: bool = False  # named by the publisher, not derived from the parts
    base_license: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()  # the Hub's ids
    evaluations: tuple[CardEvaluation, ...] = ()
    prompt: CardPrompt | None = None
    rank: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] = ()
    note: str | None = None
    task: str | None = None  # where it has a head of its own, as a classifier has: one of TASK_CLASSES


def render_card(facts: CardFacts, template: Path | None = None) -> str:
    """The card's text: metadata, and what the template makes of the facts, without what looks like a secret in them.

    A `template` of one's own has all that ours have, and may extend `card.jinja`; the metadata is always ours. It runs in a sandbox,
    in a process that is killed when it takes too long or too much memory.
    Raises KeyError where an input has no coefficient, UsageError for a template that cannot be read or carried out.
    """
    from huggingface_hub import ModelCardData

    facts = redacted_values(facts)
    base = facts.base_source if is_repo_id(facts.base_source) else None  # a folder of this machine is nobody else's
    # adapters alone, without their base, would stand there as if they were the model that it was made of
    parents = [name for name in (base, *(i.repo for i in facts.inputs if facts.mixed)) if name] if base else []
    parents = list(dict.fromkeys(parents))
    relation = "adapter" if facts.kind == "adapter" else "merge"
    kinds = (["merge"] if facts.mixed else []) + ["lora", "recommendation", "reccocktail"]
    metadata = ModelCardData(
        language=_one_or_all(facts.languages),
        license=facts.license,
        license_name=facts.license_name if facts.license == "other" else None,
        license_link=facts.license_link if facts.license == "other" else None,
        # an adapter is loaded onto one model, which has to be the only one here
        base_model=base if facts.kind == "adapter" else _one_or_all(parents),
        base_model_relation=relation if (base if facts.kind == "adapter" else parents) else None,
        library_name="peft" if facts.kind == "adapter" else "transformers",
        pipeline_tag=PIPELINES.get(facts.task or "", "text-generation"),
        tags=kinds,
        datasets=list(facts.datasets) or None,
        model_name=_line(facts.title) if (results := _results(facts)) else None,
        eval_results=results or None,
    )
    known: dict[str, Any] = {
        "auto_class": f"AutoModel{TASK_CLASSES[facts.task]}" if facts.task else None,
        "facts": facts,
        "base": base,
        "mixture": [
            (i, facts.coefficients[i.ref if i.ref in facts.coefficients else i.role])
            for i in facts.inputs
            if facts.mixed
        ],
        "columns": list(dict.fromkeys(name for row in (facts.metrics or {}).values() for name in row)),
    }
    body = _body(known, None) if template is None else _bounded_body(known, template)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def _results(facts: CardFacts) -> list[EvalResult]:
    """What is known of the published model itself, for the metadata's `model-index`."""
    from huggingface_hub import EvalResult

    def result(name: str, value: float, domain: str | None = None, **about: Any) -> EvalResult:
        title = facts.domain_title if domain in (None, facts.domain) else domain
        return EvalResult(
            task_type="text-generation",
            dataset_type=domain or facts.domain or "unknown",
            dataset_name=_line(title or facts.domain or "unknown"),
            metric_type=_line(name),
            metric_name=_line(name),
            metric_value=value,
            **about,
        )

    found = [
        result(
            name,
            round(metric.mean, 4),
            each.asked.domain,
            task_name=each.asked.name,
            dataset_config=each.asked.how,
            dataset_split=each.asked.split,
            dataset_revision=each.asked.data,
            metric_args={"users": each.users, "interval_95": [round(metric.low, 4), round(metric.high, 4)]},
        )
        for each in facts.evaluations
        if each.asked is not None and each.own is not None
        for name, metric in each.rows.get(each.own, {}).items()
    ]
    if not facts.mixed:  # those of a mixture's parts are not its own
        reported = [item for row in (facts.metrics or {}).values() for item in row.items()]
        found += [
            result(name, value, task_name="as reported when it was registered", dataset_config="as reported")
            for name, value in reported
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ]
    return found


def _line(text: str) -> str:
    return " ".join(text.split())


def _body(known: Mapping[str, Any], template: str | None) -> str:
    """What a template, or else ours, makes of what is known. Raises whatever a template may do wrong."""
    environment = _environment()
    found = environment.get_template("card.jinja") if template is None else environment.from_string(template)
    return found.render(known)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Made once, for it keeps our template compiled: reading it takes longer than all the rest of a small merge."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(  # Markdown, not HTML; the filters below escape what comes from outside
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "code": _code, "value": _value, "python": _python}
    return environment


def _bounded_body(known: Mapping[str, Any], template: Path) -> str:
    try:
        text = regular_bytes(template, limit=WRITTEN_LIMIT).decode("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"the card's template {template} cannot be read: {error}") from error
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=pickle.dumps((known, text, SECONDS)),
        capture_output=True,
        check=False,
    )
    if done.returncode == -signal.SIGPROF:
        raise UsageError(f"the card's template {template} takes longer than {SECONDS} s", hint=_TEMPLATE_HINT)
    if done.returncode < 0:
        raise UsageError(f"the card's template {template} takes too much memory", hint=_TEMPLATE_HINT)
    if done.returncode:
        raise UsageError(f"the card's template {template} could not be carried out: {done.stderr[-500:].decode()}")
    answer = json.loads(done.stdout)
    if "problem" in answer:
        where = f"{template}, line {answer['line']}" if answer["line"] else str(template)
        raise UsageError(f"the card's template {where}: {answer['problem']}", hint=_TEMPLATE_HINT)
    return answer["body"]


def _answer(known: Mapping[str, Any], template: str, seconds: float) -> dict[str, Any]:
    """Of the process that a template of one's own runs in: its body, or the problem with its line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is at
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        body = _body(known, template)
    except MemoryError:
        return {"problem": "takes too much memory", "line": None}
    except Exception as error:  # noqa: BLE001  whatever a template may do wrong, from its syntax to a division by zero
        return {"problem": f"{type(error).__name__}: {error}"[:1000], "line": getattr(error, "lineno", None)}
    if len(body) > LONGEST:
        return {"problem": f"makes {len(body):,} characters, over the limit of {LONGEST:,}", "line": None}
    return {"body": body}


def _one_or_all(values: tuple[str, ...] | list[str]) -> str | list[str] | None:
    return values[0] if len(values) == 1 else list(values) or None


def _text(value: object) -> str:
    """One line of plain text: no Markdown, HTML or table cell begins or ends inside it."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(str(value).split()))


def _code(value: object) -> str:
    """A code span, in a table too (where a pipe needs its backslash even inside code)."""
    return "`" + " ".join(str(value).replace("`", "'").split()).replace("|", r"\|") + "`"


def _value(value: object) -> str:
    if isinstance(value, CardMetric):
        return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"  # shares and losses; seconds and rates
    return _text(value)


def _python(value: object) -> str:
    """A Python literal, on one line, that cannot end the block of code that it stands in."""
    return json.dumps(str(value), ensure_ascii=False).replace("`", "\\x60")


if __name__ == "__main__":
    json.dump(import_module(__spec__.name)._answer(*pickle.load(sys.stdin.buffer)), sys.stdout)  # noqa: S301  from our own parent
