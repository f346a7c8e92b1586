"""Which license a mixture carries, and where a part's own is known from."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from reccocktail.publishing.licenses import KNOWN, License, known_license, metadata, parse, strictest, texts
from reccocktail.registry.errors import ConflictError, UsageError

REPOSITORY = Path(__file__).parents[2]


def of(**parts: str | None) -> str | None:
    found = strictest({name: id_ and License(id_) for name, id_ in parts.items()})
    return found and found.id


@pytest.mark.parametrize(
    ("base", "adapter", "carried"),
    [
        ("apache-2.0", None, "apache-2.0"),
        (None, "mit", "mit"),
        (None, None, None),
        ("mit", "apache-2.0", "apache-2.0"),
        ("apache-2.0", "cc-by-4.0", "cc-by-4.0"),
        ("apache-2.0", "gpl-3.0", "gpl-3.0"),
        ("llama3.1", "apache-2.0", "llama3.1"),
        ("cc-by-4.0", "cc-by-sa-4.0", "cc-by-sa-4.0"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        ("gpl-3.0", "agpl-3.0", "agpl-3.0"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
    ],
)
def test_the_strictest_is_carried_whatever_the_order(base, adapter, carried):
    assert of(base=base, adapter=adapter) == of(adapter=adapter, base=base) == carried


@pytest.mark.parametrize(
    ("base", "adapter", "why"),
    [
        ("apache-2.0", "cc-by-nc-4.0", "adapter may not be used commercially"),
        ("llama3.1", "cc-by-nc-sa-4.0", "adapter may not be used commercially"),
        ("apache-2.0", "gpl-2.0", "not compatible"),
        ("llama3.1", "gemma", "license of the whole"),
        ("gpl-3.0", "cc-by-sa-4.0", "license of the whole"),
        ("other", "llama3.1", "license of the whole"),
        ("mit", "cc-by-nd-4.0", "does not allow"),
    ],
)
def test_what_does_not_go_together_is_said_naming_both(base, adapter, why):
    with pytest.raises(ConflictError, match=why) as caught:
        of(base=base, adapter=adapter)
    assert adapter in str(caught.value)
    assert "--license" in str(caught.value.hint)


def test_three_parts_carry_what_the_strictest_wants():
    assert of(base="mit", spirit="apache-2.0", ingredient="cc-by-sa-4.0") == "cc-by-sa-4.0"


def test_two_other_licenses_are_one_only_under_one_name():
    a, b = License("other", "acme-1"), License("other", "acme-2")
    assert strictest({"base": a, "adapter": License("other", "acme-1")}) == a
    with pytest.raises(ConflictError, match=r"acme-1.*acme-2"):
        strictest({"base": a, "adapter": b})


def test_a_license_is_named_as_the_hub_knows_it():
    assert parse("Apache-2.0") == License("apache-2.0")
    with pytest.raises(UsageError, match="my own"):
        parse("my own")


def test_the_readme_is_asked_first_then_the_license_file(tmp_path):
    (tmp_path / "LICENSE").write_bytes((REPOSITORY / "LICENSE").read_bytes())
    assert known_license(tmp_path) == License("apache-2.0")
    (tmp_path / "README.md").write_text("---\nlicense: MIT\nlanguage: [en, de]\n---\n# x\n")
    assert known_license(tmp_path) == License("mit")
    assert texts(metadata(tmp_path), "language") == ("en", "de")


def test_other_keeps_its_name_and_link_and_a_name_that_the_hub_does_not_know_is_other(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: acme\nlicense_link: LICENSE\n---\n")
    assert known_license(tmp_path) == License("other", "acme", "LICENSE")
    (tmp_path / "README.md").write_text("---\nlicense: Acme 1.0\n---\n")
    assert known_license(tmp_path) == License("other", "Acme 1.0")


@pytest.mark.parametrize("text", ["", "# no metadata", "---\na: [\n---\n", "---\nlicense: [1, {}]\n---\n", "---\n- a\n---\n",
                                  "---\na: &a [x]\nb: [*a, *a]\nlicense: mit\n---\n"])  # fmt: skip
def test_metadata_that_cannot_be_read_says_nothing(tmp_path, text):
    (tmp_path / "readme.md").write_text(text)
    assert known_license(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy", "mit"),
        ("Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
        ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT", "llama3.1"),
        ("All rights reserved.", "other"),
    ],
)
def test_the_text_of_a_license_is_known_by_what_only_it_says(tmp_path, text, id_):
    (tmp_path / "LICENCE.txt").write_text(text)
    found = known_license(tmp_path)
    assert found
    assert found.id == id_


def test_what_is_detected_is_what_the_hub_knows():
    from reccocktail.publishing.licenses import _TEXTS

    assert {id_ for _, id_ in _TEXTS} <= KNOWN


@pytest.mark.parametrize("hidden", ["cc-by-4.0", "lgpl-2.1", "bsd-3-clause"])
def test_a_third_part_hides_no_conflict_whatever_the_order(hidden):
    for names in permutations(("apache-2.0", hidden, "gpl-2.0")):
        with pytest.raises(ConflictError, match="not compatible"):
            of(**dict(zip("abc", names, strict=True)))


@pytest.mark.parametrize("vague", ["unknown", "cc"])
def test_a_license_that_says_nothing_is_refused(vague):
    with pytest.raises(ConflictError, match=f"adapter gives its license as '{vague}'") as caught:
        of(base="mit", adapter=vague)
    assert "--license" in str(caught.value.hint)


MIT = "MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy of it."
APACHE = "Apache License\nVersion 2.0, January 2004"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"LICENSE-CODE": MIT, "LICENSE-MODEL": "Terms of our own."}, License("other", "see LICENSE-MODEL")),
        ({"LICENSE-MIT": MIT, "LICENSE-APACHE": APACHE}, License("apache-2.0")),
        ({"LICENSE": MIT, "LICENSE-DATA": "Attribution-NonCommercial 4.0 International"}, License("cc-by-nc-4.0")),
        ({"LICENSE": '"Commons Clause" License Condition v1.0\n\n' + MIT}, License("other", "see LICENSE")),
        ({"LICENSE": MIT + "\n\nCommons Clause: the right to sell is not granted."}, License("other", "see LICENSE")),
        ({"LICENSE": "For research, non-commercial.\n" + "Terms. " * 100 + "Notices:\n" + APACHE}, License("other", "see LICENSE")),
        ({"LICENSE": "Attribution-NoDerivatives 4.0 International"}, License("cc-by-nd-4.0")),
        ({"LICENSE": "Creative Commons Attribution-NonCommercial-ShareAlike 4.0"}, License("cc-by-nc-sa-4.0")),
        ({"README.md": "---\nlicense: [mit, cc-by-nc-4.0]\n---\n"}, License("cc-by-nc-4.0")),
        ({"README.md": "---\nlicense: [mit, acme]\n---\n"}, License("other", "acme")),
        ({"README.md": "---\nlicense: [mit, cc-by-nd-4.0, unknown]\n---\n"}, License("unknown")),
        ({"README.md": "---\nlicense: CC BY-NC 4.0\n---\n"}, License("cc-by-nc-4.0")),
        ({"README.md": "---\nlicense: Apache 2.0\n---\n"}, License("apache-2.0")),
        ({"README.md": "---\nlicense: MIT License\n---\n"}, License("mit")),
    ],
)  # fmt: skip
def test_no_license_is_read_as_a_freer_one(tmp_path, files, found):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert known_license(tmp_path) == found


def test_the_licenses_that_are_in_full_are_known(tmp_path):
    bsd = "Copyright (c) A\n\nRedistribution and use in source and binary forms, with or without modification, "
    for text, id_ in ((bsd + "x" * 900, "bsd-2-clause"), (bsd + "x" * 900 + " Neither the name of", "bsd-3-clause")):
        (tmp_path / "LICENSE").write_text(text)
        assert known_license(tmp_path) == License(id_)
