"""What pydantic found wrong with options or keys that somebody wrote, in words for that person."""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def is_unknown(problem: Any) -> bool:
    """Whether the entry of `ValidationError.errors()` is about a name that the model does not have."""
    return problem["type"] == "extra_forbidden"


def unknown(problem: Any, model: type[BaseModel], what: str) -> str:
    """`unknown WHAT 'a.b'`, with the name beside it that is much like it."""
    *around, name = map(str, problem["loc"])
    near = difflib.get_close_matches(name[:100], list(_fields(model, around)), n=1, cutoff=0.6)
    return f"unknown {what} {'.'.join((*around, name))!r:.200}" + (f"; did you mean {near[0]!r}?" if near else "")


def amiss(problem: Any) -> str:
    """What is wrong with a value, as it follows the value: `is no whole number`. What has no words here keeps pydantic's."""
    kind, bounds = problem["type"], problem.get("ctx", {})
    if kind in _AMISS:
        return _AMISS[kind].format(**bounds)
    return f"is refused: {problem['msg']}"


_AMISS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "is no whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "is no number"),
    "finite_number": "is no finite number",
    **dict.fromkeys(("bool_parsing", "bool_type"), "is neither true nor false"),
    "greater_than_equal": "is below {ge}",
    "greater_than": "is not above {gt}",
    "less_than_equal": "is above {le}",
    "less_than": "is not below {lt}",
    "literal_error": "is none of {expected}",
    "string_type": "is no text",
}


def problems(error: ValidationError, model: type[BaseModel], *, whole: str) -> str:
    """All that is wrong with a file's keys; `whole` names what concerns no key alone."""
    return "; ".join(
        unknown(each, model, "key")
        if is_unknown(each)
        else f"{'.'.join(map(str, each['loc'])) or whole}: {each['msg']}"
        for each in error.errors()
    )


def with_placeholders(text: str, needed: set[str], optional: set[str]) -> str:
    """The text, whose placeholders are plain names: all that are needed and no other but the optional. Raises ValueError."""
    found = set()
    for _, name, spec, conversion in string.Formatter().parse(text):
        if name is not None:
            found.add(name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else ""))
    if not needed <= found <= needed | optional:
        wanted, more = (" and ".join(f"{{{name}}}" for name in sorted(names)) for names in (needed, optional))
        raise ValueError(f"placeholders are {wanted} and, if wanted, {more}; found {sorted(found) or 'none'}")
    return text


def _fields(model: type[BaseModel], around: list[str]) -> dict[str, Any]:
    """The fields of the model that the keys `around` lead to; none where that is no model."""
    for key in around:
        field = model.model_fields.get(key)
        inside = next(_models(field.annotation), None) if field else None
        if inside is None:
            return {}
        model = inside
    return model.model_fields


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
