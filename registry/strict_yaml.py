"""YAML from outside, read as plain values: what JSON could say, and nothing that grows or runs while it is read.

Every package may import this module: it has no state and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import yaml

DEPTH = 32
LONGEST_NUMBER = 100  # characters
_TAG = "tag:yaml.org,2002:"

_T = TypeVar("_T")


def parse_yaml(data: bytes, *, foreign: bool = False) -> Any:
    """The one document in `data`, which is UTF-8; None if it is empty. Raises ValueError, which says where.

    Refused are tags, merge keys, keys that are there twice, halves of characters, and depths and numbers out of all
    proportion; also anchors, aliases and keys that are no text, unless the file is `foreign`: of a program that writes them.
    """
    return _read(data, foreign, lambda loader: loader.get_single_data())


def parse_with_lines(data: bytes) -> tuple[Any, dict[tuple[Any, ...], int]]:
    """As `parse_yaml`, and the line (from 1) of each key and each entry of a list, by the keys and numbers that lead to it."""

    def read(loader: _Loader) -> tuple[Any, dict[tuple[Any, ...], int]]:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        # constructed first: that is where keys are checked
        return loader.construct_document(node), dict(_lines(node, (), node.start_mark.line))

    return _read(data.removeprefix(b"\xef\xbb\xbf"), False, read)


def _lines(node: yaml.Node, path: tuple[Any, ...], line: int) -> Iterator[tuple[tuple[Any, ...], int]]:
    yield path, line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _lines(value, (*path, key.value), key.start_mark.line)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _lines(value, (*path, number), value.start_mark.line)


def _read(data: bytes, foreign: bool, read: Callable[[_Loader], _T]) -> _T:
    """What `read` makes of the text. Raises ValueError, which says where."""
    try:
        loader = _Loader(data.decode("utf-8"), foreign)
        try:
            return read(loader)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    # PyYAML lets the errors of bad numbers and dates through beside its own
    except (yaml.YAMLError, LookupError, AttributeError, ArithmeticError, TypeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str, foreign: bool) -> None:
        super().__init__(text)
        self._foreign = foreign
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        tag, anchor = getattr(event, "tag", None), getattr(event, "anchor", None)  # an alias has the name as its anchor
        if tag is not None and tag.endswith(":merge"):
            raise _refused("it has a YAML merge key; write the values out", event)
        if tag is not None:
            raise _refused("it has a YAML tag; write the value alone", event)
        if anchor is not None and not self._foreign:
            raise _refused("it has a YAML anchor or alias; write the value out", event)
        self._depth += 1
        if self._depth > DEPTH:
            raise _refused(f"it is nested deeper than {DEPTH} levels", event)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if key.tag == f"{_TAG}merge":
                raise _refused("it has a YAML merge key; write the values out", key)
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key is a list or a mapping", key)
            if key.tag != f"{_TAG}str" and not self._foreign:
                raise _refused(f"a key is no text; put {key.value[:40]!r} in quotes", key)
            if (key.tag, key.value) in keys:
                raise _refused(f"key {key.value[:80]!r} appears twice", key)
            keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if node.tag in (f"{_TAG}int", f"{_TAG}float") and len(value) > LONGEST_NUMBER:
            raise _refused(f"a number has more than {LONGEST_NUMBER} characters", node)
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _refused("a text has half of a character (a lone surrogate)", node)
        return value


def _refused(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)
