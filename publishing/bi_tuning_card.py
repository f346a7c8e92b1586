"""The card of a bi-tuning: what it is and was made of, and a program that recommends by it with transformers, torch and safetensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from ..engine.merging.card import CardEvaluation
from ..registry import Adapter, Base
from .bundle_card import card_header
from .licenses import License

SCRIPTS = Path(__file__).parent  # bi_tuning_*.txt


@dataclass(frozen=True)
class BiTuningCard:
    """What the card tells. `hub_base` is the repository of the checkpoint that it was trained on, None where it is on no Hub.

    `build` is the build that the checkpoint is of, None for the base model itself.
    """

    adapter: Adapter
    base: Base
    hub_base: str | None
    license: License | None
    build: str | None = None
    evaluations: tuple[CardEvaluation, ...] = field(default=())


def render_bi_tuning_card(card: BiTuningCard) -> str:
    """Markdown after YAML; every value in it is a name, a digest or a number."""
    adapter = card.adapter
    head = card_header(adapter.kind, "sequential-recommendation", card.hub_base, card.license)
    title = f"# {adapter.domain}: a bi-tuning for {card.base.name}"
    parts = [f"---\n{head}---", title, _what(card), _facts(card), *_measured(card), _use(card)]
    return "\n\n".join(parts) + f"\n\nMade with RecCocktail {version('reccocktail')}.\n"


def script(about: Mapping[str, object]) -> str:
    """A program `recommend.py FOLDER BASE HISTORY.json` that prints the ten best items; `about` has `prefix` and `readout` of the bi-tuning."""
    prefix, readout = str(about["prefix"]), str(about["readout"])
    text = (SCRIPTS / "bi_tuning_script.txt").read_text(encoding="utf-8")
    made = (SCRIPTS / "bi_tuning_m_former.txt").read_text(encoding="utf-8") if prefix == "m-former" else ""
    before = {"none": "", "static": 'side["prefix"], ', "m-former": "prefix, "}[prefix]
    behind = {"suffix": ', side["suffix"]', "eos": ", table(torch.tensor([tokenizer.eos_token_id]))", "mean": ""}[readout]  # fmt: skip
    read = {"mean": "states[-len(lines) :].float().mean(dim=0)"}.get(readout, "states[-1].float()")
    for place, its in {"M_FORMER": made, "BEFORE": before, "BEHIND": behind, "READ": read}.items():
        text = text.replace(f"<{place}>", its)
    return text


def _what(card: BiTuningCard) -> str:
    return (
        f"Trained rows before and behind the text that the frozen {card.base.name} reads (Laser, arXiv 2409.01605): the output at the last row"
        f" embeds a history of the domain `{card.adapter.domain}`, and what is recommended are the items whose embeddings in"
        " `index.safetensors` have the highest cosine. It is no PEFT adapter, and cannot be merged or served as one.\n\n"
        "It holds no user's id, history or embedding: the index has item ids with their embeddings and digests of their texts,"
        " and BERT4Rec, where there is one, item ids and weights. Titles of items are not in it."
    )


def _facts(card: BiTuningCard) -> str:
    about, adapter = card.adapter.context["bundle"], card.adapter
    rows = {
        "kind": adapter.kind,
        "base model": card.hub_base or card.base.name,
        "base's digest": about["base"],
        "trained on": f"the merged checkpoint of build {card.build}" if card.build else "the base model",
        "prefix, read at": f"{about['prefix']} ({about['rows']} rows), {about['readout']}",
        "computes in": about["dtype"],
        "items": about["items"],
        "recommender was trained on": about["trained_on"] or "there is none",
        "data": ", ".join(about["data"]) or "not recorded",
        "seed": about["seed"],
    }
    return _table(("", ""), rows.items())


def _measured(card: BiTuningCard) -> list[str]:
    """What it was registered with, and what was measured."""
    found = []
    if card.adapter.metrics:
        told = {name: f"{value:g}" for name, value in card.adapter.metrics.items()}
        found += ["## Measured in training", _table(("metric", "value"), told.items())]
    for each in card.evaluations:
        figures = each.rows[str(each.own)].items()
        rows = ((name, f"{metric.mean:.4f} [{metric.low:.4f}, {metric.high:.4f}]") for name, metric in figures)
        found += [f"## {each.task}", f"{each.users} users.", _table(("metric", "mean and 95 % interval"), rows)]
    return found


def _use(card: BiTuningCard) -> str:
    base = card.hub_base or "BASE"
    asked = f"python recommend.py . {base} history.json"
    return (
        "## Use\n\nWithout RecCocktail, as `recommend.py`. `history.json` is a list of items, oldest first, each with `title`, and with"
        " `brand` and `category` where they are known"
        + (", and with `item_id`" if card.adapter.context["bundle"]["prefix"] == "m-former" else "")
        + f". BASE is {_checkpoint(card)}. A title that spells a special token of the tokenizer is to be broken up with a blank first.\n\n"
        f"```python\n{script(card.adapter.context['bundle'])}```\n\n```sh\n{asked}\n```"
    )


def _checkpoint(card: BiTuningCard) -> str:
    what = f"the checkpoint of build {card.build}" if card.build else "the base model"
    return (
        f"{what}, `{card.hub_base}` or a folder of it" if card.hub_base else f"a folder of {what}, which is on no Hub"
    )


def _table(names: tuple[str, str], rows: object) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows]  # pyright: ignore[reportGeneralTypeIssues]
    return "\n".join([f"| {names[0]} | {names[1]} |", "|---|---|", *lines])
