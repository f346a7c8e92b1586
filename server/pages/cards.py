"""A model card as a page shows it: its metadata as text, and its Markdown as HTML that can do no harm.

Raw HTML of a card is shown as text, pictures by their names, and of links only those to http(s) lead anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

FENCE = "---\n"  # before and after the metadata
DEEPER = 2  # a page has headings of its own above those of a card


@dataclass(frozen=True)
class ShownCard:
    """`metadata` is YAML as text; `body` is HTML."""

    metadata: str
    body: Markup


def shown_card(text: str) -> ShownCard:
    """The card of a README.md."""
    metadata, body = "", text
    if text.startswith(FENCE):
        metadata, _, body = text.removeprefix(FENCE).partition(f"\n{FENCE}")
    tokens = _markdown().parse(body)
    for token in tokens:
        _confine(token)
    return ShownCard(metadata, Markup(_markdown().renderer.render(tokens, _markdown().options, {})))  # noqa: S704  raw HTML is off


@cache
def _markdown() -> MarkdownIt:
    """Without raw HTML: https://markdown-it-py.readthedocs.io/en/latest/security.html"""
    found = MarkdownIt("commonmark", {"html": False}).enable("table")
    found.add_render_rule("image", _picture)
    return found


def _picture(renderer: Any, tokens: Sequence[Token], place: int, options: Any, env: Mapping[str, Any]) -> str:
    return f"<em>picture {escape(str(tokens[place].attrs.get('src', '')))}</em>"


def _confine(token: Token) -> None:
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(6, int(token.tag[1:]) + DEEPER)}"
    if token.type == "link_open" and not str(token.attrs.get("href", "")).startswith(("https://", "http://")):
        token.attrs.pop("href", None)
    if token.type == "link_open":
        token.attrs["rel"] = "noreferrer nofollow"
    if (style := str(token.attrs.pop("style", ""))).startswith(
        "text-align:"
    ):  # the policy of pages refuses styles in elements
        token.attrs["class"] = style.removeprefix("text-align:")
    for child in token.children or ():
        _confine(child)
