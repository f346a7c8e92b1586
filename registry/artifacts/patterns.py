"""Patterns of module names in a PEFT configuration, matched in bounded time."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..strict_json import shown
from .keys import PREFIX as PREFIX

Number = TypeVar("Number", int, float)


# what a pattern may be made of: plain names, or single characters with quantifiers, in groups that never repeat
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-]|\\?\.)*")


_CHARACTER = re.compile(
    r"\\[dDwWsS]|\\[!-/:-@\[-`{-~]|[^\\^$*+?{}\[\]|()]"
    r"|\[\^?-?(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[A-Za-z0-9_.]|\\[dDwWsS.\-\[\]\\^])+-?\]"
)


_QUANTIFIER = re.compile(r"(?:[*+?]|\{([0-9]{1,2})(?:,([0-9]{1,2}))?\})\??")  # what is lazy matches just as much


_DEEPEST = 10


_LONGEST = 500


_MOST_STEPS = 50_000


@dataclass(frozen=True)
class NamePatterns(Generic[Number]):
    """Numbers for some modules: keys are regular expressions for the end of a dotted name, and the first that fits decides.

    The rule is that of `peft.utils.other.get_pattern_key`. The keys come from outside and could keep Python's engine busy
    for ever, so plain names are looked up, and others are followed through a name for all positions at once.
    Names must be printable. Raises ValueError for a key that is no expression, or one of another kind.
    """

    values: Mapping[str, Number]
    cost: int = field(init=False, repr=False, compare=False)  # steps that one name takes at most
    _keys: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _plain: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], int]]] = field(init=False, repr=False, compare=False)
    _others: list[tuple[int, _Step]] = field(init=False, repr=False, compare=False)
    _known: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], int]]] = {}
        others: list[tuple[int, _Step]] = []
        cost = 0
        for order, key in enumerate(self.values):
            if _PLAIN.fullmatch(key):
                # a dot that is not escaped means any character, so what lies between the dots is looked up
                pieces = tuple(piece.replace("\\.", ".") for piece in re.split(r"(?<!\\)\.", key))
                lengths = tuple(map(len, pieces))
                alike = plain.setdefault(sum(lengths) + len(lengths) - 1, {})
                cost += 0 if lengths in alike else len(lengths)
                alike.setdefault(lengths, {})[pieces] = order
            else:
                step, steps = _parsed(key)
                others.append((order, step))
                cost += steps
            if cost > _MOST_STEPS:
                raise ValueError("has more patterns than can be matched in reasonable time")
        given = {"cost": cost, "_keys": tuple(self.values), "_plain": plain, "_others": others, "_known": {}}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def value_of(self, module: str, default: Number) -> Number:
        keys = self.keys_of(module)
        return self.values[keys[0]] if keys else default

    def keys_of(self, module: str) -> tuple[str, ...]:
        """All keys that fit, in their order."""
        if module not in self._known:
            found = sorted({*self._plain_keys(module), *self._other_keys(module)})
            self._known[module] = tuple(self._keys[order] for order in found)
        return self._known[module]

    def _plain_keys(self, module: str) -> Iterator[int]:
        if not self._plain:
            return
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", module))):
            for lengths, keys in self._plain.get(len(module) - start, {}).items():
                pieces, at = [], start
                for length in lengths:
                    pieces.append(module[at : at + length])
                    at += length + 1
                if (order := keys.get(tuple(pieces))) is not None:
                    yield order

    def _other_keys(self, module: str) -> Iterator[int]:
        if not self._others:
            return
        text = _Text(module)
        starts = 1 | text.where(r"\.") << 1
        for order, step in self._others:
            if step(text, starts) & text.end:
                yield order


class _Text:
    """A name, and where in it a character of some kind stands: bit i for the i-th character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 1 << len(text)
        self._masks: dict[str, int] = {}

    def where(self, character: str) -> int:
        if character not in self._masks:
            # one character at a time leaves the engine no backtracking
            self._masks[character] = sum(1 << found.start() for found in re.finditer(character, self.text))
        return self._masks[character]


_Step = Callable[[_Text, int], int]  # from the set of positions where it may begin to the set where it may end


def _parsed(key: str) -> tuple[_Step, int]:
    """The expression as one step, and of how many it is made. Raises ValueError."""
    if len(key) > _LONGEST:
        raise ValueError(f"key {shown(key)} is longer than {_LONGEST} characters")
    steps, at = 0, 0

    def refuse() -> ValueError:
        return ValueError(
            f"key {shown(key)} cannot be matched safely, from {shown(key[at:])} on: a pattern may have characters,"
            " classes like [0-9] and \\d, groups with |, and *, +, ? or {m,n} after a single character"
        )

    def choice(depth: int) -> _Step:
        nonlocal at
        options = [sequence(depth)]
        while key[at : at + 1] == "|":
            at += 1
            options.append(sequence(depth))
        return (
            options[0]
            if len(options) == 1
            else lambda text, starts: _united(option(text, starts) for option in options)
        )

    def sequence(depth: int) -> _Step:
        nonlocal at, steps
        parts: list[_Step] = []
        while at < len(key) and key[at] not in "|)":
            steps += 1
            if key[at] in "^$":
                parts.append(_at_start if key[at] == "^" else _at_end)
                at += 1
            elif key[at] == "(":
                parts.append(group(depth + 1))
            else:
                parts += quantified()
        return lambda text, starts: _in_turn(parts, text, starts)

    def group(depth: int) -> _Step:
        nonlocal at
        at += 3 if key.startswith("(?:", at) else 1
        if depth > _DEEPEST:
            raise refuse()
        inner = choice(depth)
        if key[at : at + 1] != ")":
            raise refuse()
        at += 1
        quantifier = _QUANTIFIER.match(key, at)
        if not quantifier:
            return inner
        if not quantifier[0].startswith("?"):
            raise refuse()
        at = quantifier.end()
        return lambda text, starts: starts | inner(text, starts)

    def quantified() -> list[_Step]:
        nonlocal at, steps
        character = _CHARACTER.match(key, at)
        if not character:
            raise refuse()
        try:
            re.compile(character[0])
        except re.error as error:
            raise ValueError(f"key {shown(key)} is not a regular expression: {error}") from error
        once, perhaps, often = _once(character[0]), _perhaps(character[0]), _often(character[0])
        at = character.end()
        quantifier = _QUANTIFIER.match(key, at)
        if not quantifier:
            return [once]
        at = quantifier.end()
        if quantifier[1] is None:
            return {"*": [often], "+": [once, often], "?": [perhaps]}[quantifier[0][0]]
        least, most = int(quantifier[1]), int(quantifier[2] or quantifier[1])
        if least > most:
            raise refuse()
        steps += most
        return [once] * least + [perhaps] * (most - least)

    whole = choice(0)
    if at < len(key):  # a bracket that was never opened
        raise refuse()
    return whole, steps


def _once(character: str) -> _Step:
    return lambda text, starts: (starts & text.where(character)) << 1


def _perhaps(character: str) -> _Step:
    return lambda text, starts: starts | (starts & text.where(character)) << 1


def _often(character: str) -> _Step:
    def step(text: _Text, starts: int) -> int:
        # the carry of an addition runs from each start to the end of its row of fitting characters
        fits = text.where(character)
        return starts | (((starts & fits) + fits) ^ fits) | starts & fits

    return step


def _at_start(text: _Text, starts: int) -> int:
    return starts & 1


def _at_end(text: _Text, starts: int) -> int:
    return starts & text.end


def _united(ends: Iterator[int]) -> int:
    return functools.reduce(operator.or_, ends)


def _in_turn(parts: list[_Step], text: _Text, positions: int) -> int:
    for part in parts:
        if not positions:
            break
        positions = part(text, positions)
    return positions
