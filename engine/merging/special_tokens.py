"""Ids of special tokens in a result's configuration, where the vocabulary has become smaller than they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...registry.artifacts.inspect import CONFIG
from ...registry.strict_json import read_object

_GENERATION = "generation_config.json"


def beyond(base_folder: Path, rows: int) -> tuple[dict[str, object], list[str]]:
    """Changes to config.json for `rows` tokens, and notes.

    No embedding can be built whose padding is beyond its rows, so such a pad_token_id is left out. Ids of the beginning and the end stay,
    since they stop no model from loading, and are named.
    """
    changes, notes = dict[str, object](), list[str]()
    content = read_object(base_folder / CONFIG)
    text = content.get("text_config")
    parts = [content, *([text] if isinstance(text, dict) else [])]
    if found := _ids(parts, "pad_token_id", rows):
        changes["pad_token_id"] = None
        notes.append(
            f"pad_token_id {found[0]} of config.json is beyond the {rows} tokens of the result, and is left out:"
            " set it to that of the tokenizer before texts are padded"
        )
    generation = base_folder / _GENERATION
    named = [(CONFIG, parts, ("bos_token_id", "eos_token_id", "decoder_start_token_id"))]
    if generation.is_file():
        named.append((_GENERATION, [read_object(generation)], ("bos_token_id", "eos_token_id", "pad_token_id")))
    for file, documents, keys in named:
        for key in keys:
            if found := _ids(documents, key, rows):
                ids = ", ".join(map(str, found))
                notes.append(
                    f"{key} {ids} of {file} is beyond the {rows} tokens of the result: set it before generating"
                )
    return changes, notes


def _ids(documents: list[Mapping[str, Any]], key: str, rows: int) -> list[int]:
    """The ids under a key, which may have several, that are beyond the rows."""
    values = [document.get(key) for document in documents]
    every = [number for value in values for number in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(number for number in every if type(number) is int and number >= rows))
