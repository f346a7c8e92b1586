"""Whose tokenizer and chat template a result gets: an adapter's where it differs from the base's and fits, else the base's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...registry.artifacts.tokenizers import Tokenizer
from ..errors import MergeError


@dataclass
class Choice:
    """`files` take the place of all of the base's tokenizer, None where it is kept; `label` says whose they are."""

    files: dict[str, Path] | None = None
    label: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bringer:
    """An adapter of the mix; `grown` where the result has more rows than the base because of it."""

    label: str
    folder: Path
    grown: bool


def choose(base_folder: Path, bringers: Sequence[Bringer], rows: int | None) -> Choice:
    """`bringers` in the order of the mix, the ingredient last; `rows` of the result's embedding, None where it is not known.

    Raises MergeError where two adapters have different tokens under one id.
    """
    choice, base = Choice(), Tokenizer.of(base_folder)
    whole: list[tuple[Bringer, Tokenizer]] = []
    worded: list[tuple[Bringer, Tokenizer]] = []
    for bringer in bringers:
        own = Tokenizer.of(bringer.folder)
        _expect_files(own)
        if not own.has_words and bringer.grown:
            choice.notes.append(
                f"{bringer.label} brings no tokenizer, so the base's is kept, which lacks the new tokens"
            )
        if not own.files or not own.differs_from(base):
            continue
        if not own.has_words:
            if own.templates:
                worded.append((bringer, own))
            else:
                note = f"{bringer.label} brings {', '.join(own.files)} without a vocabulary, so the base's tokenizer is kept"
                choice.notes.append(note)
        elif why := _misfit(own, bringer, rows):
            choice.notes.append(f"{bringer.label} brings a tokenizer of its own, {why}, so the base's is kept")
        else:
            whole.append((bringer, own))
    _take(choice, base, whole, worded)
    return choice


def _expect_files(own: Tokenizer) -> None:
    for name in own.files:
        if not (own.folder / name).is_file():
            raise MergeError(f"{own.folder / name} is not a regular file", hint="put the file itself there")


def _misfit(own: Tokenizer, bringer: Bringer, rows: int | None) -> str | None:
    if bringer.grown:
        return None  # its embedding is of its own making
    if own.tokens is None:
        return "whose vocabulary is of a kind that is not read here"
    if rows is None:
        return "and it is not known how many tokens the result has"
    highest = max(own.tokens)
    return f"whose highest token is {highest} where the result has {rows} rows" if highest >= rows else None


def _take(
    choice: Choice, base: Tokenizer, whole: list[tuple[Bringer, Tokenizer]], worded: list[tuple[Bringer, Tokenizer]]
) -> None:
    _expect_agreement(whole)
    if not whole and not worded:
        return
    kept, labels = base, list[str]()
    if whole:
        # the one with the most tokens; of several, the last, which is the ingredient's
        bringer, kept = max(enumerate(whole), key=lambda numbered: (len(numbered[1][1].tokens or ()), numbered[0]))[1]
        labels.append(bringer.label)
        choice.notes.append(f"the tokenizer is taken from {bringer.label}, which differs from the base's")
        _say_others(choice, bringer, kept, whole)
    files = {name: kept.folder / name for name in kept.files}
    if not (whole and kept.has_template):
        template = worded[-1] if worded else None
        source = template[1] if template else base
        if source.templates:
            files = {name: path for name, path in files.items() if name not in kept.templates}
            files |= {name: source.folder / name for name in source.templates}
        if template:
            labels.append(template[0].label)
            choice.notes.append(f"the chat template is taken from {template[0].label}, which differs from the base's")
            _say_others(choice, *template, worded)
        elif base.has_template:
            where = "is kept" if source.templates else "stands in its tokenizer_config.json, and is not carried over"
            choice.notes.append(f"{labels[0]} brings no chat template; the base's {where}")
    choice.files, choice.label = files, " and ".join(dict.fromkeys(labels))


def _say_others(choice: Choice, taken: Bringer, kept: Tokenizer, among: list[tuple[Bringer, Tokenizer]]) -> None:
    for other, own in among:
        if other is not taken and (own.differs_from(kept) or kept.differs_from(own)):
            choice.notes.append(f"{other.label} has another one, which is not used")


def _expect_agreement(whole: list[tuple[Bringer, Tokenizer]]) -> None:
    """Raises MergeError where two tokenizers that fit mean different tokens by one id: no tokenizer is right for both."""
    known: dict[int, tuple[str, str]] = {}
    for bringer, own in whole:
        for number, token in (own.tokens or {}).items():
            before, label = known.setdefault(number, (token, bringer.label))
            if before != token:
                raise MergeError(
                    f"{label} and {bringer.label} bring tokenizers of which token {number} is {before!r} and {token!r}",
                    hint="mix adapters of one tokenizer, or take the tokenizer's files out of the folder whose tokens do not matter",
                )
