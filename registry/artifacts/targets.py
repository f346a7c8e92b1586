"""Which modules of a model an adapter's configuration names, by PEFT's rules and by the modules' names alone.

The rules are those of `peft.tuners.tuners_utils.check_target_module_exists` and `peft.utils.other._set_trainable` (0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArtifactError
from ..strict_json import shown
from .safe_regex import any_matched, matched

ALL_LINEAR = "all-linear"

_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Targets:
    """The keys of `adapter_config.json` that say where the adapter is. `modules` is None where they do not say it.

    `modules` and `exclude` are a regular expression for whole names, or the ends of names at their dots.
    """

    modules: str | tuple[str, ...] | None = None
    exclude: str | tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    to_save: tuple[str, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any], path: Path, to_save: tuple[str, ...]) -> Targets:
        """Raises InvalidArtifactError for what is of another type."""
        modules = _names(raw, "target_modules", path)
        # without modules a configuration with parameters is complete
        named = raw.get("target_modules") is not None or bool(raw.get("target_parameters"))
        patterns = _names(raw, "layers_pattern", path)
        return cls(
            modules=modules if named else None,
            exclude=_names(raw, "exclude_modules", path),
            layers=_numbers(raw, "layers_to_transform", path),
            layers_pattern=(patterns,) if isinstance(patterns, str) else patterns,
            to_save=to_save,
        )

    @property
    def all_linear(self) -> bool:
        return isinstance(self.modules, str) and self.modules.lower() == ALL_LINEAR

    def of(self, names: Iterable[str]) -> set[str]:
        """Those of the modules that get a LoRA; with `all-linear` all, since only a model knows which are linear.

        Raises ValueError for an expression that is none or takes too long.
        """
        if self.modules is None:
            return set()
        every = tuple(sorted(set(names)))
        left = set(every) - self._excluded(every)
        if self.all_linear:
            return left
        if isinstance(self.modules, str):
            return left & any_matched([self.modules], "fullmatch", every)
        ends = frozenset(self.modules)
        whole = left & ends
        ended = {name for name in left - whole if _ends(name, ends)}
        return whole | (self._in_layers(ended) if self.layers else ended)

    def _excluded(self, names: tuple[str, ...]) -> set[str]:
        if isinstance(self.exclude, str):
            found = any_matched([self.exclude], "fullmatch", names) if self.exclude else set[str]()
        else:
            ends = frozenset(self.exclude)
            found = {name for name in names if name in ends or _ends(name, ends)}
        return found | self._saved_whole(names)

    def _saved_whole(self, names: tuple[str, ...]) -> set[str]:
        """PEFT gives no LoRA to what it saves whole; it takes those names for expressions here."""
        found = set[str]()
        for saved in self.to_save:
            if _PLAIN.fullmatch(saved):
                inside = re.compile(rf"(?:^|.*\.){saved}(?:$|\..*)")
                found.update(name for name in names if inside.match(name))
            else:
                found |= any_matched([rf"(^|.*\.){saved}($|\..*)"], "match", names)
        return found

    def _in_layers(self, names: set[str]) -> set[str]:
        """The first number after a name is that of the layer; a later one may be an expert's."""
        every = tuple(sorted(names))
        left, found = set(every), set[str]()
        for pattern in self.layers_pattern or ("",):
            expression = rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." if pattern else r".*?\.[^.]*\.(?P<idx>\d+)\."
            for name, number in zip(every, _numbered(expression, every), strict=True):
                if number is not None and name in left:
                    left.discard(name)
                    found.update([name] if int(number) in self.layers else [])
        return found


def _numbered(expression: str, names: tuple[str, ...]) -> Iterable[str | None]:
    if expression.startswith(r".*?\.[^.]*"):
        return (found["idx"] if (found := re.match(expression, name)) else None for name in names)
    return matched(expression, "match", names)


def _ends(name: str, ends: frozenset[str]) -> bool:
    """Whether the name ends in one of them after a dot."""
    return bool(ends) and any(name[dot.end() :] in ends for dot in re.finditer(r"\.", name))


def _names(raw: Mapping[str, Any], field: str, path: Path) -> str | tuple[str, ...]:
    value = raw.get(field) or ()
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise InvalidArtifactError(f"{path}: {field} must be a string or a list of names, not {shown(value)}")
    return tuple(dict.fromkeys(value))


def _numbers(raw: Mapping[str, Any], field: str, path: Path) -> tuple[int, ...]:
    value = raw.get(field)
    numbers = [value] if type(value) is int else value or []
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise InvalidArtifactError(f"{path}: {field} must be whole numbers, not {shown(value)}")
    return tuple(dict.fromkeys(numbers))
