from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reccocktail.registry.errors import InvalidReferenceError, UsageError
from reccocktail.registry.references import Reference, check_name

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


def test_base_names_may_look_like_model_names() -> None:
    assert check_name("base", "SmolLM2-135M_v1.5") == "SmolLM2-135M_v1.5"
