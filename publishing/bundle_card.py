"""The card of a personalised LoRA: what kind of thing it is, what it was made of, and how it is used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import yaml

from ..registry import Adapter, Base
from .licenses import License


@dataclass(frozen=True)
class BundleCard:
    """What the card tells. `hub_base` is the base's repository, None where it is on no Hub; `stripped`: users were left out."""

    adapter: Adapter
    base: Base
    hub_base: str | None
    repo: str | None
    license: License | None
    stripped: bool


def render_bundle_card(card: BundleCard) -> str:
    """Markdown after YAML; every value in it is a name, a digest or a number."""
    about, adapter = card.adapter.context["bundle"], card.adapter
    rows = {
        "kind": adapter.kind,
        "base model": card.hub_base or card.base.name,
        "base's digest": about["base"],
        "meta-LoRAs": f"{about['metas']} of rank {adapter.rank}, α {adapter.alpha:g}, on {', '.join(adapter.target_modules)}",
        "form, temperature": f"{about['form']}, {about['temperature']:g}",
        "another LoRA for each item asked about": "yes" if about["target_dependent"] else "no, one for each user",
        "recommender was trained on": about["trained_on"],
        "data": ", ".join(about["data"]) or "not recorded",
        "seed": about["seed"],
    }
    head = card_header(adapter.kind, "click-prediction", card.hub_base, card.license)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"---\n{head}---\n\n# {adapter.domain}: a personalised LoRA for {card.base.name}\n\n{_what(card)}\n\n| | |\n|---|---|\n{table}\n\n{_use(card)}"


def card_header(kind: str, task: str, hub_base: str | None, terms: License | None) -> str:
    """The YAML of a bundle's card."""
    found: dict[str, object] = {"library_name": "reccocktail", "tags": ["reccocktail", "recommendation", task, kind]}
    found |= {"base_model": hub_base} if hub_base else {}
    named = {"license": terms.id, "license_name": terms.name, "license_link": terms.link} if terms else {}
    return yaml.safe_dump(found | {name: value for name, value in named.items() if value}, sort_keys=False)


def _what(card: BundleCard) -> str:
    users = "It holds no user's id and no user's embedding"
    users += ": they were left out, and all users are unknown to it." if card.stripped else "."
    return (
        f"A LoRA for each user (RecLoRA, arXiv 2408.03533): a small recommender reads a user's history, and gates mix meta-LoRAs by it, so that"
        f" {card.base.name} predicts what that user likes in the domain `{card.adapter.domain}`. It is no PEFT adapter, and cannot be merged"
        f" or served as one; it is written for one user, or asked as it is. {users}"
    )


def _use(card: BundleCard) -> str:
    source, domain = card.repo or "ORG/NAME", card.adapter.domain
    asked = [f"reccocktail recommend {domain} --user USER --adapter {domain}"]
    written = [] if card.adapter.context["bundle"]["target_dependent"] else [f"reccocktail personalise {domain} USER -o DIR"]  # fmt: skip
    lines = [f"reccocktail adapter add {source} --base {card.base.name} --domain {domain}", *written, *asked]
    return "## Use\n\n```\n" + "\n".join(lines) + f"\n```\n\nMade with RecCocktail {version('reccocktail')}.\n"
