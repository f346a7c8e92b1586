"""Licenses of what a mixture is made of: where they are known from, and which one the mixture has to carry.

Names are those of the Hub (https://huggingface.co/docs/hub/repositories-licenses). This is arithmetic on names, no legal advice:
where two licenses cannot be ordered, nothing is guessed, and a person has to say which one it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

from ..registry.errors import ConflictError, UsageError
from ..registry.strict_yaml import parse_yaml

FREE = (  # from the freest to the one with the most conditions; each may go into a work under any later one
    "cc0-1.0", "unlicense", "pddl", "wtfpl", "mit-0", "zlib", "isc", "mit", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "ncsa", "postgresql", "bsl-1.0", "afl-3.0", "artistic-2.0", "ms-pl", "apache-2.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
)  # fmt: skip
SHARED = (  # the result needs the same license
    "cc-by-sa-3.0", "cc-by-sa-4.0", "mpl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "osl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "lgpl-lr", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "odbl", "cdla-sharing-1.0", "gfdl",
)  # fmt: skip
BOUND = (  # conditions on what it is used for, or a company's own
    "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "deepfloyd-if-license",
    "apple-ascl", "c-uda", "ecl-2.0", "etalab-2.0", "ofl-1.1", "lppl-1.3c", "fair-noncommercial-research-license",
    "apple-amlr", "intel-research", "h-research", "grok2-community", "open-mdw", "other",
)  # fmt: skip
NON_COMMERCIAL = (
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
)  # fmt: skip
NO_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0")
RESEARCH = ("fair-noncommercial-research-license", "apple-amlr", "intel-research", "h-research")
VAGUE = ("cc", "unknown")  # the exact license is unknown
KNOWN = frozenset((*FREE, *SHARED, *BOUND, *NON_COMMERCIAL, *NO_DERIVATIVES, *VAGUE))
STRICTER = {  # pairs that are in order although neither is free
    ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"), ("cc-by-nc-3.0", "cc-by-nc-sa-3.0"), ("gpl-3.0", "agpl-3.0"), ("lgpl-3.0", "gpl-3.0"),
    ("lgpl-3.0", "agpl-3.0"), ("lgpl-2.1", "gpl-2.0"), ("mpl-2.0", "gpl-3.0"), ("mpl-2.0", "agpl-3.0"),
}  # fmt: skip
APART = {("apache-2.0", "gpl-2.0")}  # free, and still not compatible

_HEAD = 64 << 10  # bytes of a README that are looked at for its metadata
_TEXTS = (  # how well-known licenses begin, or what only they say
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"Attribution[- ]?NonCommercial[- ]?NoDerivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"Attribution[- ]?NonCommercial[- ]?ShareAlike 4\.0", "cc-by-nc-sa-4.0"),
    (r"Attribution[- ]?NonCommercial 4\.0", "cc-by-nc-4.0"),
    (r"Attribution[- ]?NoDerivatives 4\.0", "cc-by-nd-4.0"),
    (r"Attribution[- ]?ShareAlike 4\.0", "cc-by-sa-4.0"),
    (r"Creative Commons Attribution 4\.0|Attribution 4\.0 International", "cc-by-4.0"),
    (r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3", "agpl-3.0"),
    (r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3", "lgpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
    (r"GNU GENERAL PUBLIC LICENSE\s+Version 2", "gpl-2.0"),
    (r"Mozilla Public License Version 2\.0", "mpl-2.0"),
    (r"META LLAMA 3 COMMUNITY LICENSE", "llama3"),
    (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
    (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
    (r"LLAMA 3\.3 COMMUNITY LICENSE", "llama3.3"),
    (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
    (r"Gemma Terms of Use", "gemma"),
    (r"Permission is hereby granted, free of charge, to any person obtaining a copy", "mit"),
    (r"Redistribution and use in source and binary forms(?=[\s\S]*Neither the name)", "bsd-3-clause"),
    (r"Redistribution and use in source and binary forms(?![\s\S]*Neither the name)", "bsd-2-clause"),
)
_BEGINS = 500  # characters within which a text says which license it is; further down it speaks of others
_LIMITED = (
    r"Commons Clause|non-?commercial|research (use|purposes) only"  # in a free license's text, it is not that any more
)


@dataclass(frozen=True)
class License:
    """A license by the Hub's name; `other` has a name of its own, and a link."""

    id: str
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        return f"{self.id} ({self.name})" if self.name else self.id


def parse(text: str) -> License:
    """A license that a person names. Raises UsageError for what the Hub does not know."""
    if text.lower() not in KNOWN:
        raise UsageError(
            f"{text!r} is not a license id of the Hub",
            hint="such as apache-2.0, mit, cc-by-nc-4.0, llama3.1, or other",
        )
    return License(text.lower())


def metadata(folder: Path) -> dict[str, Any]:
    """The metadata at the top of a folder's README.md; nothing where there is none that can be read."""
    readme = next((path for path in sorted(folder.iterdir()) if path.name.lower() == "readme.md"), None)
    if readme is None:
        return {}
    with readme.open("rb") as file:
        text = file.read(_HEAD).decode("utf-8", "replace").lstrip("\ufeff")
    block = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if block is None:
        return {}
    try:
        found = parse_yaml(block[1].encode())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def texts(found: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A text or a list of texts of a README's metadata, without anything that is neither."""
    value = found.get(key)
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(v for v in values if isinstance(v, str) and v.isprintable() and 0 < len(v) <= 200))


def known_license(folder: Path) -> License | None:
    """What a base model's or an adapter's folder says of its license: the README's metadata, else the texts of its LICENSE files.

    Of several, the strictest.
    """
    about = metadata(folder)
    if named := texts(about, "license"):
        name, link = texts(about, "license_name"), texts(about, "license_link")
        own, there = name[0] if name else None, link[0] if link else None
        ids = {each: _id(each) for each in named}
        return _together(
            [License(id_, own, there) if id_ else License("other", own or each, there) for each, id_ in ids.items()]
        )
    found = []
    for path in sorted(folder.iterdir()):
        if re.match(r"licen[cs]e", path.name, re.IGNORECASE) and path.is_file():
            with path.open("rb") as file:
                text = " ".join(file.read(_HEAD).decode("utf-8", "replace").split())
            id_ = _id_of_text(text)
            found.append(License(id_) if id_ else License("other", f"see {path.name}"))
    return _together(found) if found else None


def _id(name: str) -> str | None:
    """The Hub's name for what somebody has written: `CC BY-NC 4.0` is `cc-by-nc-4.0`."""
    id_ = re.sub(r"[\s_-]+", "-", name.strip().lower())
    return next((each for each in (id_, id_.removesuffix("-license")) if each in KNOWN), None)


def _id_of_text(text: str) -> str | None:
    found = set()
    for pattern, id_ in _TEXTS:
        match = re.search(pattern, text, re.IGNORECASE)
        if match and match.start() < _BEGINS:
            found.add(id_)
    if len(found) != 1:
        return None
    (id_,) = found
    return None if id_ in FREE and re.search(_LIMITED, text, re.IGNORECASE) else id_


def _together(licenses: list[License]) -> License:
    """The strictest of those that one folder names, `other` where none is. What forbids most is never lost in that."""
    for group in (VAGUE, NO_DERIVATIVES, (*NON_COMMERCIAL, *RESEARCH)):
        if its := [each for each in licenses if each.id in group]:
            return max(its, key=lambda each: group.index(each.id))
    try:
        found = strictest({f"{number}": each for number, each in enumerate(licenses)})
    except ConflictError:
        return License("other", ", ".join(dict.fromkeys(each.name or each.id for each in licenses)))
    assert found is not None
    return found


def strictest(known: Mapping[str, License | None]) -> License | None:
    """The license that a mixture has to carry, of what its parts (by name) have; a part without one adds no condition.

    Raises ConflictError where the parts' licenses do not go together, or cannot be put in order.
    """
    parts = [(what, terms) for what, terms in known.items() if terms is not None]
    for what, terms in parts:
        if terms.id in NO_DERIVATIVES:
            raise _conflict(f"{what} is under {terms}, which does not allow publishing derived works")
        if terms.id in VAGUE:
            raise _conflict(f"{what} gives its license as {terms.id!r} only, so it is unclear what it allows")
    # Every two of them: what one carried so far would hide a conflict with what it took the place of.
    for one, other in combinations(parts, 2):
        _stricter(one, other)
    return reduce(_stricter, parts)[1] if parts else None


def _stricter(one: tuple[str, License], other: tuple[str, License]) -> tuple[str, License]:
    (first, a), (second, b) = one, other
    if a == b or a.id == b.id != "other":
        return one
    both = f"{first} is under {a}, {second} under {b}"
    if (a.id, b.id) in STRICTER or (b.id, a.id) in STRICTER:
        return other if (a.id, b.id) in STRICTER else one
    closed = [pair for pair in (one, other) if pair[1].id in (*NON_COMMERCIAL, *RESEARCH)]
    if closed:
        raise _conflict(
            f"{both}: {closed[0][0]} may not be used commercially, the other may, so it is unclear what the mixture allows"
        )
    if (a.id, b.id) in APART or (b.id, a.id) in APART:
        raise _conflict(f"{both}, and the two are not compatible")
    free = [pair for pair in (one, other) if pair[1].id in FREE]
    if len(free) == 2:
        return max(free, key=lambda pair: FREE.index(pair[1].id))
    if len(free) == 1:
        return other if free[0] is one else one
    raise _conflict(f"{both}; each requires to be the license of the whole")


def _conflict(message: str) -> ConflictError:
    return ConflictError(
        message, hint="check the licenses; if you may publish the mixture, name its license: --license ID"
    )
