from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.registry.catalog.references import Reference, check_name
from reccocktail.registry.errors import InvalidReferenceError, UsageError

slugs = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
aliases = slugs.filter(lambda text: not (text[0] == "v" and text[1:].isdigit()))
references = st.one_of(
    st.builds(Reference, slugs),
    st.builds(Reference, slugs, version=st.integers(1, 999_999_999)),
    st.builds(Reference, slugs, alias=aliases),
)


@given(references)
def test_a_reference_reads_back_as_it_was_written(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@given(st.text())
def test_any_text_is_a_reference_or_refused_by_our_error(text: str) -> None:
    with contextlib.suppress(InvalidReferenceError):
        assert str(Reference.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "@v1", "beauty@", "beauty@v0", "beauty@v01", "Beauty", "-a", "a@b@c", "a b", "a\n", "beauty@v1\n", "a" * 64],
)
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        Reference.parse(text)


def test_a_domain_cannot_be_called_spirit() -> None:
    with pytest.raises(UsageError, match="reserved"):
        check_name("domain", "spirit")


@pytest.mark.parametrize(
    ("kind", "text"),
    [("domain", "Beauty"), ("domain", "a.b"), ("base", "a/b"), ("base", ".a"), ("alias", "v3"), ("alias", "")],
)
def test_names_outside_the_grammar_are_refused(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        check_name(kind, text)  # type: ignore[arg-type]


UNUSUAL = [
    "🍸", "caf\u00e9", "b\u0435auty", "beauty\u200b", "\u202eytuaeb", "beau ty", "beauty\t", "beauty\x00", "beauty\x1b[31m",
    "beauty\u00a0", "beauty\udcff", "a" * 64, "a/b", "..", "a\\b", "a:b",
]  # fmt: skip


@pytest.mark.parametrize("text", UNUSUAL, ids=ascii)
@pytest.mark.parametrize("kind", ["domain", "base", "alias"])
def test_look_alikes_emoji_and_what_nobody_sees_are_refused_in_names(kind: Any, text: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name") as caught:
        check_name(kind, text)
    assert kind in (caught.value.hint or "")


@pytest.mark.parametrize("text", UNUSUAL, ids=ascii)
def test_look_alikes_emoji_and_what_nobody_sees_are_refused_in_references(text: str) -> None:
    for reference in (text, f"{text}@v1", f"beauty@{text}"):
        with pytest.raises(InvalidReferenceError, match="is not a reference"):
            Reference.parse(reference)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("domain", "con"), ("domain", "nul"), ("domain", "aux"), ("domain", "prn"), ("domain", "com0"), ("domain", "lpt9"),
        ("base", "CON"), ("base", "Nul.tar.gz"), ("base", "com1"), ("base", "LPT1.v2"), ("base", "model."),
    ],
)  # fmt: skip
def test_names_that_windows_reserves_are_refused_because_they_become_folders(kind: Any, text: str) -> None:
    with pytest.raises(UsageError, match=f"{text!r} cannot be .* folder's name, and Windows reserves it"):
        check_name(kind, text)


@pytest.mark.parametrize(
    ("kind", "text"), [("domain", "console"), ("domain", "com10"), ("base", "v1.con"), ("alias", "con")]
)
def test_names_that_only_resemble_reserved_ones_are_allowed(kind: Any, text: str) -> None:
    assert check_name(kind, text) == text


def test_base_names_may_look_like_model_names() -> None:
    assert check_name("base", "SmolLM2-135M_v1.5") == "SmolLM2-135M_v1.5"
