"""Whether transformers will load what a merge is about to write: every tensor wanted, none missing, all of the right shape.

The model is built on the meta device, which holds shapes and no values, and loads tensors of that kind by transformers' own rules
(`from_pretrained(None, config=…, state_dict=…)`), renaming and fusing included. So it is known before a byte is written.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...registry.artifacts.facts import BaseFacts
from ...registry.artifacts.inspect import CONFIG
from ...registry.strict_json import read_object, shown
from ..errors import MergeError
from .checkpoint import changed_config

Shapes = Mapping[str, tuple[int, ...]]

_MOST_NAMED = 6
_loading = threading.Lock()  # transformers keeps its verbosity, and what it does while it loads, for the whole process


@dataclass(frozen=True)
class _Findings:
    """What transformers says of a set of tensors, by the model's names."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: frozenset[str]


def expect_loadable(base_folder: Path, base: BaseFacts, shapes: Shapes, config: Mapping[str, object]) -> str | None:
    """Hold the names and shapes of a result, and its changed keys of config.json, against the model that will load them.

    What is already wrong with the base is not held against the result, and a result of the base's own names and shapes loads as
    the base does. Answers with a note where transformers does not know the model. Raises MergeError naming the tensors.
    """
    before = {name: tensor.info.shape for name, tensor in base.tensors.items()}
    if dict(shapes) == before and not config.keys() - {"dtype"}:
        return None
    content = read_object(base_folder / CONFIG)
    changed = changed_config(content, config)
    try:
        model, own = _model_class(changed), _model_class(content)
    except ImportError as error:
        return f"whether transformers loads the result was not checked: {error}"
    if model is None:
        named = content.get("architectures") or content.get("model_type")
        return f"whether transformers loads the result was not checked, since it has no class for {shown(named)}"
    with _quiet():
        load = _Loader(model)
        try:
            found = load(changed, shapes)
        except Exception as error:  # noqa: BLE001  whatever a model's code raises
            return _not_built(_Loader(own or model), content, before, error)
        known = _Loader(own or model)(content, before) if found != _NOTHING else _NOTHING
        _expect_no_new(model, found, known, _NEW_CLASS if own is not model else _SAME_CLASS)
        _expect_all_wanted(lambda rest: load(changed, rest), shapes, before, found)
    return None


_NOTHING = _Findings(frozenset(), frozenset(), frozenset())


def _model_class(content: Mapping[str, Any]) -> Any:
    """The class that transformers has for the configuration; None if it has none of its own."""
    import transformers

    for name in content.get("architectures") or ():
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return None


class _Loader:
    """Loads tensors without values into a model without values."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, content: Mapping[str, Any], shapes: Shapes) -> _Findings:
        import torch

        with TemporaryDirectory() as folder:
            (Path(folder) / CONFIG).write_text(json.dumps(content), encoding="utf-8")
            config = self._model.config_class.from_pretrained(folder)
        tensors = {name: torch.empty(shape, dtype=torch.float32, device="meta") for name, shape in shapes.items()}
        _, found = self._model.from_pretrained(
            None, config=config, state_dict=tensors, device_map={"": "meta"}, dtype=torch.float32,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
        return _Findings(
            frozenset(map(str, found["missing_keys"])),
            frozenset(map(str, found["unexpected_keys"])),
            frozenset(str(key[0]) if isinstance(key, tuple) else str(key) for key in found["mismatched_keys"]),
        )


def _not_built(load: _Loader, content: Mapping[str, Any], before: Shapes, error: Exception) -> str:
    """A note where the base cannot be built so either. Raises MergeError where it can."""
    cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    try:
        load(content, before)
    except Exception:  # noqa: BLE001  as above
        return f"whether transformers loads the result was not checked, since its model could not be built: {cause}"
    raise MergeError(
        f"transformers would not load the result, while it loads the base: {cause}",
        hint="please report this adapter's layout; nothing was written",
    ) from error


_SAME_CLASS = "the adapter changes embedding or head in a way that this model's checkpoints have no place for"
_NEW_CLASS = "save the base by this class (from_pretrained, then save_pretrained), train on that, and merge into that"


def _expect_no_new(model: Any, found: _Findings, known: _Findings, hint: str) -> None:
    problems = {
        "would be missing": found.missing - known.missing,
        "would not be used": found.unexpected - known.unexpected,
        "would not have the shape that the model wants": found.mismatched - known.mismatched,
    }
    listed = [f"{_some(names)} {what}" for what, names in problems.items() if names]
    if listed:
        raise MergeError(f"transformers would not load the result as {model.__name__}: {'; '.join(listed)}", hint=hint)


def _expect_all_wanted(load: Callable[[Shapes], _Findings], shapes: Shapes, before: Shapes, found: _Findings) -> None:
    """A tensor that the base does not have must be one that is missed without it: a second head is not read, or is read instead of
    the first."""
    for name in sorted(shapes.keys() - before.keys()):
        rest = {other: shape for other, shape in shapes.items() if other != name}
        if load(rest).missing <= found.missing:
            raise MergeError(
                f"the result would hold {name}, which transformers takes for a tensor that is there already, or is tied",
                hint=_SAME_CLASS,
            )


def _some(names: frozenset[str]) -> str:
    named = ", ".join(sorted(names)[:_MOST_NAMED])
    return named if len(names) <= _MOST_NAMED else f"{named} and {len(names) - _MOST_NAMED} more"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and reports of transformers, and one thread at a time."""
    from transformers.utils import logging as theirs

    with _loading:
        level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
        theirs.set_verbosity(logging.CRITICAL)
        theirs.disable_progress_bar()
        try:
            yield
        finally:
            theirs.set_verbosity(level)
            if bars:
                theirs.enable_progress_bar()
