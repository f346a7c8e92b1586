"""Tokenizers and chat templates beside models and adapters: whether two are the same, and which tokens they have.

By their files alone: https://huggingface.co/docs/transformers/main_classes/tokenizer lists what `save_pretrained` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InvalidArtifactError
from ..strict_json import read_bytes, read_object
from .allowlist import TEMPLATES, matches, tokenizer_files

_LIMIT = 256 << 20  # of the largest vocabularies, with their merges, a tenth
_WORDS = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "*.model", "*.tiktoken", "*.spm")
_TEMPLATES = ("chat_template*", f"{TEMPLATES}/*")
_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Tokenizer:
    """The files of one tokenizer, by name."""

    folder: Path
    files: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path) -> Tokenizer:
        """Raises InvalidArtifactError as `tokenizer_files` does."""
        return cls(folder, tuple(tokenizer_files(folder)))

    @property
    def templates(self) -> tuple[str, ...]:
        """Those of its files that hold nothing but chat templates."""
        return tuple(name for name in self.files if matches(name, _TEMPLATES))

    @property
    def has_words(self) -> bool:
        """Whether it brings a vocabulary, without which no tokenizer can be made of it."""
        return any(matches(name, _WORDS) for name in self.files)

    @cached_property
    def has_template(self) -> bool:
        return bool(self.templates) or bool(self._object(_CONFIG).get("chat_template"))

    def differs_from(self, other: Tokenizer) -> bool:
        """Whether one of its files is not among the other's, or says something else there."""
        return any(name not in other.files or not self._same(name, other) for name in self.files)

    @cached_property
    def tokens(self) -> dict[int, str] | None:
        """The tokens by id, special and added ones among them; None where the vocabulary is of a kind that is not read here."""
        try:
            words = dict(self._words())
            if not words:
                return None
            return words | dict(self._added())
        except (TypeError, ValueError, AttributeError, LookupError):  # a file of another form
            return None

    def _words(self) -> Iterator[tuple[int, str]]:
        whole = self._object("tokenizer.json")
        if whole:
            vocabulary = whole["model"]["vocab"]
            if isinstance(vocabulary, dict):
                yield from ((int(number), word) for word, number in vocabulary.items())
            else:  # of a unigram model, [word, score]
                yield from enumerate(word for word, *_ in vocabulary)
            yield from ((int(added["id"]), added["content"]) for added in whole.get("added_tokens") or ())
        elif words := self._object("vocab.json"):
            yield from ((int(number), word) for word, number in words.items())
        elif "vocab.txt" in self.files:
            yield from enumerate(self._bytes("vocab.txt").decode("utf-8").splitlines())

    def _added(self) -> Iterator[tuple[int, str]]:
        yield from ((int(number), word) for word, number in self._object("added_tokens.json").items())
        for number, added in (self._object(_CONFIG).get("added_tokens_decoder") or {}).items():
            yield int(number), added["content"]

    def _object(self, name: str) -> dict[str, Any]:
        """What a JSON file says; nothing where it is not there or is no JSON object."""
        if name not in self.files:
            return {}
        try:
            return read_object(self.folder / name, limit=_LIMIT)
        except InvalidArtifactError:
            return {}

    def _bytes(self, name: str) -> bytes:
        return read_bytes(self.folder / name, limit=_LIMIT)

    def _same(self, name: str, other: Tokenizer) -> bool:
        if self._bytes(name) == other._bytes(name):
            return True
        mine = self._object(name) if name.endswith(".json") else {}
        return bool(mine) and mine == other._object(name)


def brings_own(adapter: Path, base: Path) -> bool:
    """Whether an adapter's folder has a tokenizer or a chat template that differs from its base model's.

    Raises InvalidArtifactError as `tokenizer_files` does.
    """
    own = Tokenizer.of(adapter)
    return bool(own.files) and own.differs_from(Tokenizer.of(base))
