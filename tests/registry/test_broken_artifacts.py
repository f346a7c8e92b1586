"""Broken and hostile adapters and bases, made by hand: each is refused with what is wrong and where, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from reccocktail.registry import Base, Registry, Settings
from reccocktail.registry.artifacts.inspect import inspect_adapter
from reccocktail.registry.artifacts.safetensors import HEADER_LIMIT, NAME_LIMIT
from reccocktail.registry.errors import (
    BaseMismatchError,
    InvalidArtifactError,
    RecCocktailError,
    UnsupportedAdapterError,
)
from reccocktail.registry.filenames import check_file_name, check_file_names

SOAK = os.environ.get("RECCOCKTAIL_SOAK") == "1"  # `make soak`

Spoil = Callable[[Path], object]

CONFIG, WEIGHTS, INDEX = "adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json"
Q0 = "model.layers.0.self_attn.q_proj"
A0, B0 = f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight"
MAGNITUDE = f"base_model.model.{Q0}.lora_magnitude_vector"
NORM, HEAD = "base_model.model.model.norm.weight", "base_model.model.lm_head.weight"
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One for all, since what is refused leaves nothing; and on one database, since it never gets there."""
    home = tmp_path_factory.mktemp("registry")
    with Registry.create(Settings.load(home=home / "home", cwd=home, environ={"HOME": str(home)})) as registry:
        yield registry


@pytest.fixture(scope="module")
def base(registry: Registry, make_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Base:
    return registry.bases.add("tiny", make_base(tmp_path_factory.mktemp("base") / "tiny"), source="org/tiny")


@pytest.fixture
def adapter(make_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """A sound adapter, to be spoiled."""
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def model(make_base: Callable[..., Path], tmp_path: Path) -> Path:
    """A sound base model, to be spoiled; not the one that is registered."""
    return make_base(tmp_path / "model", seed=1)


@pytest.fixture
def refused(registry: Registry, base: Base) -> Callable[..., str]:
    """(folder, kind of error, of a base or not): the message with which the folder is refused; nothing was added."""

    def refuse(folder: Path, error: type[InvalidArtifactError] = InvalidArtifactError, *, as_base: bool = False) -> str:
        def there() -> tuple[Any, ...]:
            trees = sorted((registry.settings.home / "store" / "trees").iterdir())
            return registry.adapters.list(), registry.bases.list(), registry.events.list(), trees

        def add(folder: Path) -> object:
            if as_base:
                return registry.bases.add("other", folder, source="org/other")
            return registry.adapters.add(folder, base=base, role="spirit")

        before = there()
        with pytest.raises(error) as caught:
            add(folder)
        assert there() == before
        message = str(caught.value)
        assert str(folder) in message
        assert len(message) < 1_000 + message.count(str(folder)) * len(str(folder))
        assert message.isprintable()
        return message

    return refuse


# --- how things are broken


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def unpacked(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:end]), content[end:]


def config(**changes: object) -> Spoil:
    """Other values in the configuration."""

    def spoil(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def content(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def header(change: Callable[[dict[str, Any]], object], name: str = WEIGHTS) -> Spoil:
    """Another header before the same data."""

    def spoil(folder: Path) -> None:
        entries, data = unpacked(folder / name)
        change(entries)
        (folder / name).write_bytes(packed(entries, data))

    return spoil


def entry(**fields: object) -> Spoil:
    """Other fields for the first tensor in the file."""
    return header(lambda entries: entries[A0].update(fields))


def tensors(change: Callable[[dict[str, np.ndarray]], object], **dtypes: str) -> Spoil:
    """Other tensors, soundly packed; `dtypes` says what the file calls numpy's."""
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "F8_E4M3", "int8": "I8"} | dtypes

    def spoil(folder: Path) -> None:
        entries, data = unpacked(folder / WEIGHTS)
        arrays = {}
        for name, about in entries.items():
            if name != "__metadata__":
                arrays[name] = np.frombuffer(data[slice(*about["data_offsets"])], "<f4").reshape(about["shape"]).copy()
        change(arrays)
        entries, data = {}, b""
        for name, array in arrays.items():
            offsets = [len(data), len(data) + array.nbytes]
            entries[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
            data += array.tobytes()
        (folder / WEIGHTS).write_bytes(packed(entries, data))

    return spoil


def both(*spoils: Spoil) -> Spoil:
    return lambda folder: [spoil(folder) for spoil in spoils]


def magnitudes(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name.replace("lora_A.weight", "lora_magnitude_vector") for name in arrays if name.endswith("lora_A.weight")]


def replaced(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return tensors(lambda arrays: arrays.update({name: change(arrays[name])}))


def with_value(value: int | float, kind: str) -> Spoil:
    """One value of one tensor is the given one, all of them in another dtype; bfloat16 is given by its bits."""

    def change(arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            arrays[name] = (array.view("<u4") >> 16).astype("<u2") if kind == "uint16" else array.astype(kind)
        arrays[B0][3, 1] = value

    return tensors(change)


def moved_out(name: str) -> Spoil:
    """The file lies outside of the folder, and a link leads there."""

    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return spoil


def linked(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def piped(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def instead(name: str) -> Spoil:
    """A folder where the file should be."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def renamed(name: str, other: str) -> Spoil:
    return lambda folder: (folder / name).rename(folder / other)


def extra(*names: str | bytes) -> Spoil:
    """More files in the folder."""

    def spoil(folder: Path) -> None:
        for name in names:
            path = os.path.join(os.fsencode(folder), os.fsencode(name))  # noqa: PTH118
            with open(path, "wb") as file:  # noqa: PTH123
                file.write(b"x")

    return spoil


def templates(*names: str | bytes) -> Spoil:
    """Named chat templates: the only files whose names anybody chooses."""

    def spoil(folder: Path) -> None:
        (folder / "additional_chat_templates").mkdir()
        extra(*(b"additional_chat_templates/" + os.fsencode(name) + b".jinja" for name in names))(folder)

    return spoil


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def cut(name: str, end: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


# --- adapters

NOT_NUMBERS = "has 1 of 12 values NaN or infinite"
CATASTROPHE = "(([a-z])+.)+!"

BROKEN: dict[str, tuple[Spoil, str]] = {
    # the folder
    "an empty folder": (emptied, "has no adapter_config.json"),
    "a file instead of the folder": (a_file_instead, "is not a folder"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), f"has no {CONFIG}"),
    "pickled weights": (renamed(WEIGHTS, "adapter_model.bin"), "adapter_model.bin: is a pickle, which can run code"),
    "pickled weights in capitals": (renamed(WEIGHTS, "ADAPTER_MODEL.BIN"), "ADAPTER_MODEL.BIN: is a pickle"),
    "weights that are a pickle under the wrong name": (content(WEIGHTS, b"PK\3\4" + b"\1" * 99), "this is a pickle"),
    "weights that are a Git LFS pointer": (
        content(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), "is a Git LFS pointer",
    ),
    "a folder as weights": (instead(WEIGHTS), "is not a regular file"),
    "a folder as configuration": (instead(CONFIG), "is not a regular file"),
    "a pipe as weights": (piped(WEIGHTS), "is not a regular file"),
    "a pipe as configuration": (piped(CONFIG), "is not a regular file"),
    "a pipe beside the weights": (piped("README.md"), "is not a regular file"),
    "a device as weights": (linked(WEIGHTS, "/dev/zero"), "is not a regular file"),
    "weights linked to themselves": (linked(WEIGHTS, WEIGHTS), "is not a regular file"),
    "weights linked to nowhere": (linked(WEIGHTS, "absent"), "is not a regular file"),
    "weights linked to outside": (moved_out(WEIGHTS), "is a link that leads out of the folder"),
    "configuration linked to outside": (moved_out(CONFIG), "is a link that leads out of the folder"),
    "a file linked to outside": (lambda folder: (folder / "LICENSE").symlink_to("/etc/hosts"), "LICENSE: is a link"),
    # names of files
    "two files' names that differ in case": (extra("NOTICE.md", "notice.md"), "differ only in case"),
    # the configuration as JSON
    "an empty configuration": (content(CONFIG, b""), "is not sound JSON"),
    "half a configuration": (cut(CONFIG, 30), "is not sound JSON"),
    "configuration in Latin-1": (content(CONFIG, b'{"peft_type": "LORA", "r": "\xe9"}'), "is not sound JSON: 'utf-8' codec"),
    "configuration with a byte order mark": (content(CONFIG, b"\xef\xbb\xbf{}"), "is not sound JSON"),
    "configuration as a list": (content(CONFIG, b"[]"), "must hold a JSON object, not list"),
    "configuration with a key twice": (content(CONFIG, b'{"r": 2, "r": 64}'), "key 'r' appears twice"),
    "configuration with half a character": (content(CONFIG, rb'{"r": "\ud83c"}'), "has a lone surrogate"),
    "configuration nested too deeply": (content(CONFIG, b'{"r": ' + b"[" * 100_000), "is not sound JSON"),
    "configuration with a number of a million digits": (content(CONFIG, b'{"r": ' + b"9" * 1_000_000 + b"}"), "is not sound JSON"),
    # the configuration's values
    "rank 0": (config(r=0), "r must be a positive whole number"),
    "a negative rank": (config(r=-2), "r must be a positive whole number below 2^31, not -2"),
    "a rank that is true": (config(r=True), "r must be a positive whole number below 2^31, not True"),
    "a rank that is a fraction": (config(r=2.5), "r must be a positive whole number below 2^31, not 2.5"),
    "a rank beyond every number": (config(r=10**30), "r must be a positive whole number below 2^31"),
    "a rank that disagrees with the tensors": (config(r=64), "has rank 2, but adapter_config.json says 64"),
    "an alpha that is text": (config(lora_alpha="16"), "lora_alpha must be a finite number, not '16'"),
    "an alpha that is true": (config(lora_alpha=True), "lora_alpha must be a finite number, not True"),
    "an alpha that is NaN": (config(lora_alpha=float("nan")), "lora_alpha must be a finite number, not nan"),
    "an alpha that is infinite": (config(lora_alpha=float("inf")), "lora_alpha must be a finite number, not inf"),
    "an alpha beyond every float": (config(lora_alpha=10**400), "lora_alpha must be a finite number"),
    "rank_pattern that disagrees with the tensors": (config(rank_pattern={"q_proj": 8}), "adapter_config.json says 8"),
    "rank_pattern that is a list": (config(rank_pattern=["q_proj"]), "rank_pattern must map names to numbers"),
    "rank_pattern to a fraction": (config(rank_pattern={"q_proj": 2.5}), "rank_pattern['q_proj'] must be a positive whole"),
    "alpha_pattern to NaN": (config(alpha_pattern={"q_proj": float("nan")}), "alpha_pattern['q_proj'] must be a finite"),
    "alpha_pattern that is no expression": (config(alpha_pattern={"(q_proj": 2}), "alpha_pattern key '(q_proj' cannot be matched"),
    "alpha_pattern that takes for ever": (config(alpha_pattern={CATASTROPHE: 2}), f"key {CATASTROPHE!r} cannot be matched safely"),
    "rank_pattern that refers back": (config(rank_pattern={r"(q)\1_proj": 2}), "cannot be matched safely"),
    "rank_pattern that looks ahead": (config(rank_pattern={"(?=q)q_proj": 2}), "cannot be matched safely"),
    "rank_pattern that changes the rule around it": (config(rank_pattern={"q_proj)|(.*": 2}), "cannot be matched safely"),
    "a base that is a number": (config(base_model_name_or_path=7), "base_model_name_or_path must be text"),
    "use_dora without magnitudes": (config(use_dora=True), "has no lora_magnitude_vector beside it, but use_dora is true"),
    "a magnitude without use_dora": (
        tensors(lambda t: t.update({MAGNITUDE: t[B0][:, 0]})), "has a lora_magnitude_vector beside it, but use_dora is false",
    ),
    "a magnitude of another size": (
        both(config(use_dora=True), tensors(lambda t: t.update({name: np.ones(3, "f4") for name in magnitudes(t)}))),
        "is [3], but the layer has 6 outputs",
    ),
    "lora_bias without biases": (config(lora_bias=True), "has no lora_B.bias beside it, but lora_bias is true"),
    "half an embedding": (
        tensors(lambda t: t.update({A0.replace("lora_A.weight", "lora_embedding_A"): t[A0]})), "has no lora_embedding_B",
    ),
    "factors within no factors": (
        tensors(lambda t: [t.update({n.replace(".lora", ".base_layer.lora"): t.pop(n)}) for n in (A0, B0)]),
        "has factors within factors, but not those around them",
    ),
    "an empty factor": (replaced(A0, lambda a: a[:0]), "is empty"),
    "target_parameters that name nothing": (config(target_parameters=["experts"]), "'experts' names no parameter of the adapter"),
    "target_parameters that are text": (config(target_parameters="experts"), "target_parameters must be a list of names"),
    "tokens without rows": (config(trainable_token_indices=[7]), "rows for the trainable_token_indices [7]"),
    "tokens before the first": (config(trainable_token_indices=[-7]), "trainable_token_indices must be different whole numbers"),
    "tokens twice": (config(trainable_token_indices={"a": [7, 7]}), "trainable_token_indices must be different whole numbers"),
    "rows without tokens": (tensors(lambda t: t.update({ROWS: t[A0]})), "does not say which tokens"),
    "more rows than tokens": (
        both(config(trainable_token_indices=[7]), tensors(lambda t: t.update({ROWS: t[A0]}))), "has 1 tokens for it",
    ),
    "rows of a token beyond the last": (
        both(config(trainable_token_indices=[7, 10]), tensors(lambda t: t.update({ROWS: t[A0]}))), "is for token 10, but",
    ),
    "modules_to_save that are not there": (config(modules_to_save=["lm_head"]), "any tensor of the modules_to_save ['lm_head']"),
    "a saved tensor that the base lacks": (
        both(config(modules_to_save=["norm"]), tensors(lambda t: t.update({NORM: t[A0][0]}))),
        "has no tensor 'model.norm.weight' in the base model",
    ),
    "a saved head with more tokens than the embedding": (
        both(config(modules_to_save=["lm_head"]), tensors(lambda t: t.update({HEAD: np.ones((12, 8), "f4")}))),
        "has a vocabulary of 12 tokens, but not all of the result would",
    ),
    "a parameter twice": (
        both(
            config(bias="all"),
            tensors(lambda t: t.update({A0.replace("lora_A.weight", n): t[A0][0] for n in ("bias", "base_layer.bias")})),
        ),
        "are the same parameter",
    ),
    # the header
    "an empty file": (content(WEIGHTS, b""), "0 bytes are too few"),
    "a header without end": (content(WEIGHTS, b"\xff" * 8 + b"{}"), "is over the limit"),
    "a header beyond the file": (content(WEIGHTS, struct.pack("<Q", 10_000) + b"{}"), "goes beyond the file of 10"),
    "a header that is not JSON": (content(WEIGHTS, packed(b"{lora}")), "is not sound JSON"),
    "a header that is a list": (content(WEIGHTS, packed(b"[1]")), "its header begins with b'['"),
    "a header behind white space": (content(WEIGHTS, packed(b" {}")), "its header begins with b' '"),
    "a header behind a byte order mark": (content(WEIGHTS, packed(b"\xef\xbb\xbf{}")), r"its header begins with b'\xef'"),
    "a header with something behind it": (content(WEIGHTS, packed(b"{} {}")), "Extra data"),
    "a header nested too deeply": (content(WEIGHTS, packed(b'{"a":' * 50_000)), "is not sound JSON"),
    "a tensor twice": (content(WEIGHTS, packed(b'{"x":{},"x":{}}')), "key 'x' appears twice"),
    "a tensor's dtype twice": (content(WEIGHTS, packed(b'{"x":{"dtype":"F32","dtype":"F64"}}')), "key 'dtype' appears twice"),
    "half a character in a tensor's name": (content(WEIGHTS, packed(rb'{"\udfff":{}}')), "has a lone surrogate"),
    "a line break in a tensor's name": (
        header(lambda entries: entries.update({"a\nb": entries.pop(A0)})), r"tensor 'a\nb' has control or invisible",
    ),
    "a tensor's name without end": (
        header(lambda entries: entries.update({"a" * 5_000: entries.pop(A0)})), f"over the limit of {NAME_LIMIT}",
    ),
    "metadata that is a list": (header(lambda entries: entries.update(__metadata__=[])), "__metadata__ must map text to text"),
    "metadata with numbers": (header(lambda entries: entries.update(__metadata__={"a": 1})), "__metadata__ must map text to text"),
    "a tensor with NaN for a shape": (entry(shape=[2, float("nan")]), "has the impossible shape [2, nan]"),
    "a tensor with a fraction for a shape": (entry(shape=[2.0, 8]), "has the impossible shape [2.0, 8]"),
    "a negative shape": (entry(shape=[-2, -8]), "has the impossible shape [-2, -8]"),
    "a shape beyond every number": (entry(shape=[2**64, 8]), f"has the impossible shape [{2**64}, 8]"),
    "a shape whose product runs over": (entry(shape=[2**62, 2, 2, 2, 2]), f"has the impossible shape [{2**62}, 2, 2, 2, 2]"),
    "a shape of a million zeros": (entry(shape=[0] * 1_000_000), "has the impossible shape [0, 0, 0, 0, 0, 0, ...]"),
    "an unknown dtype": (entry(dtype="F33"), f"tensor {A0!r} has the unknown dtype 'F33'"),
    "a dtype that is a list": (entry(dtype=["F32"]), "has the unknown dtype ['F32']"),
    "a dtype of another size": (entry(dtype="F16"), "of F16 and shape [2, 8] does not take the 64 bytes"),
    "offsets the wrong way round": (entry(data_offsets=[64, 0]), "has the impossible data_offsets [64, 0]"),
    "negative offsets": (entry(data_offsets=[-64, 0]), "has the impossible data_offsets [-64, 0]"),
    "offsets that overlap": (header(lambda entries: entries[B0].update(data_offsets=[48, 96])), "overlaps the one before it"),
    "offsets with a hole": (header(lambda entries: entries.pop(A0)), "leaves a hole before it"),
    "offsets past the end": (entry(data_offsets=[10**6, 10**6 + 64]), "leaves a hole before it"),
    "a file cut short": (cut(WEIGHTS, -1), "truncated"),
    "a file with more behind it": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"x"), "bytes that no tensor owns",
    ),
    # the tensors
    "no tensors": (tensors(dict.clear), "holds no LoRA tensors"),
    "an A for a narrower layer": (replaced(A0, lambda a: a[:, :5]), "is for a weight of shape [6, 5], but the base model's"),
    "a B for a taller layer": (replaced(B0, lambda b: np.tile(b, (2, 1))), "is for a weight of shape [12, 8]"),
    "an A and a B of other ranks": (replaced(A0, lambda a: a[:1]), "do not multiply"),
    "an A without B": (tensors(lambda arrays: arrays.pop(B0)), f"{A0!r} has no lora_B beside it"),
    "a B without A": (tensors(lambda arrays: arrays.pop(A0)), f"{B0!r} has no lora_A beside it"),
    "a layer the base does not have": (
        tensors(lambda t: t.update({n.replace("q_proj", "x_proj"): t.pop(n) for n in (A0, B0)})), "in the base model",
    ),
    "a value that is NaN in float32": (with_value(np.nan, "float32"), NOT_NUMBERS),
    "a value that is infinite in float32": (with_value(np.inf, "float32"), NOT_NUMBERS),
    "a value that is NaN in float16": (with_value(-np.nan, "float16"), NOT_NUMBERS),
    "a value that is infinite in float16": (with_value(-np.inf, "float16"), NOT_NUMBERS),
    "a value that is NaN in bfloat16": (with_value(0xFFC1, "uint16"), NOT_NUMBERS),
    "a value that is infinite in bfloat16": (with_value(0xFF80, "uint16"), NOT_NUMBERS),
}  # fmt: skip

UNSUPPORTED: dict[str, tuple[Spoil, str]] = {
    "a matrix of three dimensions": (replaced(A0, lambda a: a[..., None]), "is a convolution; only linear layers and embeddings merge"),
    "a vector": (replaced(A0, lambda a: a.reshape(-1)), "is not a matrix; only linear layers and embeddings merge"),
    "a tensor that is no LoRA": (tensors(lambda t: t.update(more=t[A0])), "tensor 'more' is not a lora_A or lora_B weight"),
    "float8": (replaced(A0, lambda a: a.astype("uint8")), "is F8_E4M3, which has no exact delta here"),
    "whole numbers": (replaced(A0, lambda a: a.astype("int8")), "is I8, which has no exact delta here"),
    "an adapter that is no LoRA": (config(peft_type="VERA"), "peft_type is 'VERA'; only LORA can be merged"),
    "biases of a new kind": (config(bias="some"), "bias is 'some', not none, all or lora_only"),
    "an activated LoRA": (config(alora_invocation_tokens=[5]), "alora_invocation_tokens is [5], which merging cannot honour"),
    "a tensor of nobody": (tensors(lambda t: t.update({NORM: t[A0][0]})), "is not a lora_A or lora_B weight"),
    "a copy of a base weight": (
        tensors(lambda t: t.update({A0.replace("lora_A", "base_layer"): t[A0]})), "is a copy of a base weight",
    ),
    "a bias that the configuration does not know": (
        tensors(lambda t: t.update({A0.replace("lora_A.weight", "bias"): t[A0][0]})), "is a bias, but adapter_config.json says",
    ),
    "a part of some variant": (
        tensors(lambda t: t.update({A0.replace("lora_A.weight", "lora_diag"): t[A0][0]})), "is a part of a LoRA variant",
    ),
    "a copy of nothing": (
        tensors(lambda t: t.update({A0.replace("lora_A", "modules_to_save"): t[A0]})), "neither a copy of one of the modules_to_save",
    ),
    "a parameter that is ambiguous": (
        lambda folder: (config(target_parameters=["q_proj.a", "q_proj.b"])(folder)), "it is ambiguous for which parameters",
    ),
    "PiSSA": (config(init_lora_weights="pissa"), "init_lora_weights is 'pissa', which trained on an altered base"),
    "an option of tomorrow": (config(**{"\x1b[31m": {"deep": [[[[1]]]]}}), r"'\x1b[31m' is {'deep': [[[...]]]}, which merging"),
    "an option with a value without end": (config(novel="x" * 1_000_000), "novel is 'xxx"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_refused_and_leaves_nothing(case: str, adapter: Path, refused: Callable[..., str]) -> None:
    spoil, reason = BROKEN[case]
    spoil(adapter)
    assert reason in refused(adapter)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_be_merged_is_refused_by_name_and_leaves_nothing(
    case: str, adapter: Path, refused: Callable[..., str]
) -> None:
    spoil, reason = UNSUPPORTED[case]
    spoil(adapter)
    assert reason in refused(adapter, UnsupportedAdapterError)


@pytest.mark.parametrize(
    "name", ["org/other", "x" * 5_000, "a\x00b", "a\x1b[31m"], ids=["other", "long", "null", "escape"]
)
def test_an_adapter_for_another_base_is_refused_with_both_names(
    name: str, adapter: Path, refused: Callable[..., str]
) -> None:
    config(base_model_name_or_path=name)(adapter)
    message = refused(adapter, BaseMismatchError)
    assert f"was made for {name!r}"[:40] in message
    assert "not for 'tiny' = 'org/tiny'" in message


def test_links_to_folders_are_left_out_and_never_followed(registry: Registry, base: Base, adapter: Path) -> None:
    (adapter / "more").symlink_to(adapter.parent)
    added = registry.adapters.add(adapter, base=base, role="spirit")
    assert added.skipped == ("more",)
    assert sorted(registry.store.tree(added.digest).files) == [CONFIG, WEIGHTS]


def test_an_adapter_is_added_through_a_link_that_the_user_names(registry: Registry, base: Base, adapter: Path) -> None:
    (adapter.parent / "latest").symlink_to(adapter)
    assert registry.adapters.add(adapter.parent / "latest", base=base, role="spirit").rank == 2


# --- base models


def index(**places: object) -> Spoil:
    """The weights in one shard with tensors `a` and `b`, and an index that places what it likes."""

    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        about = {"dtype": "F32", "shape": [1]}
        entries = {"a": about | {"data_offsets": [0, 4]}, "b": about | {"data_offsets": [4, 8]}}
        (folder / "one.safetensors").write_bytes(packed(entries, b"\0" * 8))
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))

    return spoil


ONE = "one.safetensors"
BASES: dict[str, tuple[Spoil, str]] = {
    "an empty folder": (emptied, "has no config.json"),
    "a file instead of the folder": (a_file_instead, "is not a folder"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    # names of files
    "an escape sequence in a file's name": (templates("a\x1b[31m"), r"a\x1b[31m.jinja' has control characters"),
    "a line break in a file's name": (templates("a\nb"), r"a\nb.jinja' has control characters"),
    "a file's name that is not UTF-8": (templates(b"a\xff"), r"a\udcff.jinja' has control characters, invisible characters, or is not"),
    "a file's name that is written backwards": (templates("a\u202etxt.exe"), r"a\u202etxt.exe.jinja' has control characters"),
    "a file's name with an invisible letter": (templates("a\u3164"), "has the invisible character U+3164"),
    "a file's name that Windows reserves": (templates("NUL"), "'NUL.jinja', which is reserved on Windows"),
    "a file's name with a stream": (templates("notes.md:hidden"), "has ':', which no file name on Windows may have"),
    "two files' names that differ in normalisation": (templates("\u00e9", "e\u0301"), "or Unicode normalisation"),
    "pickled weights": (renamed("model.safetensors", "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
    "a pipe as weights": (piped("model.safetensors"), "is not a regular file"),
    "weights linked to outside": (moved_out("model.safetensors"), "is a link that leads out of the folder"),
    "weights without tensors": (content("model.safetensors", packed({})), "its weights hold no tensors"),
    "weights cut short": (cut("model.safetensors", -4), "truncated"),
    "a quantised base": (content("config.json", b'{"quantization_config": {"bits": 4}}'), "a quantised base cannot be merged"),
    "configuration as a list": (content("config.json", b"[]"), "must hold a JSON object, not list"),
    "an architecture that is a list": (content("config.json", b'{"architectures": [[1]]}'), "names the architecture [1]"),
    "an architecture with control characters": (
        content("config.json", rb'{"architectures": ["Llama\u0000\u001b[31m"]}'), r"names the architecture 'Llama\x00\x1b[31m'",
    ),
    "an index of nothing": (index(), "has no weight_map"),
    "an index that leads out by dots": (index(a="../one.safetensors", b=ONE), "'../one.safetensors' is not the name of a"),
    "an index that leads to an absolute path": (index(a="/etc/x.safetensors", b=ONE), "is not the name of a safetensors file"),
    "an index that leads out by backslashes": (index(a="..\\x.safetensors", b=ONE), "is not the name of a safetensors file"),
    "an index to a pickle": (index(a="one.bin", b=ONE), "'one.bin' is not the name of a safetensors file"),
    "an index to a number": (index(a=1, b=ONE), "1 is not the name of a safetensors file"),
    "an index to a device": (index(a="con.safetensors", b=ONE), "reserved on Windows"),
    "an index to a name with control characters": (index(a="\x1b.safetensors", b=ONE), "has control characters"),
    "an index to a name without end": (index(a="x" * 5_000 + ".safetensors", b=ONE), "over the limit of 255"),
    "an index to a shard that is not there": (index(a=ONE, b="two.safetensors"), "has no two.safetensors"),
    "an index to a tensor that is not there": (index(a=ONE, b=ONE, c=ONE), "places tensor 'c' in one.safetensors, which"),
    "an index that forgets a tensor": (index(a=ONE), "holds tensor 'b', which model.safetensors.index.json does not place"),
    "an index with a tensor twice": (
        lambda folder: (index(a=ONE)(folder), (folder / INDEX).write_text('{"weight_map": {"a": "x", "a": "y"}}')),
        "key 'a' appears twice",
    ),
    "a tokenizer's file with an invisible name": (extra("tokenizer\u200b.json"), "invisible characters"),
    "two tokenizers that differ in case": (extra("Tokenizer.json"), "differ only in case"),
}  # fmt: skip


@pytest.mark.parametrize("case", BASES)
def test_a_broken_base_is_refused_and_leaves_nothing(case: str, model: Path, refused: Callable[..., str]) -> None:
    spoil, reason = BASES[case]
    spoil(model)
    assert reason in refused(model, as_base=True)


# --- names of files


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/a", "a/", "a//b", "a/../b", "a\\b", "a\x00", "a\x7f", "a\udcff", "a\u200d", "a\u2066", "a\ufeff",
     "a\u00a0", "con", "Con.txt", "x/nul", "aux.tar.gz", "COM1", "lpt9.md", "COM\u00b9", "con .txt", "a.", "a ", "a./b",
     "a<", "a>", "a:b", 'a"', "a|", "a?", "a*", "x" * 256, "\u00e9" * 128, "\u2764\ufe0f"],
    ids=ascii,
)  # fmt: skip
def test_a_file_name_that_is_not_one_thing_everywhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArtifactError) as caught:
        check_file_name(tmp_path, name)
    assert str(tmp_path) in str(caught.value)
    assert ascii(name)[:50] in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    ["a", ".gitattributes", "a b.md", "sub/folder/file.json", "console.log", "com", "com10", "README.md", "\u00e9" * 127,
     "x" * 255, "\U0001f378.txt", "レシピ.md", "model-00001-of-00002.safetensors"],
    ids=ascii,
)  # fmt: skip
def test_ordinary_file_names_are_allowed_and_so_are_emoji(tmp_path: Path, name: str) -> None:
    check_file_names(tmp_path, [name, "other.txt", name])


@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("straße", "STRASSE"), ("\u00e9", "e\u0301"), ("\u00c9", "e\u0301"), ("a/x", "A/y"), ("b", "B/x")],
    ids=ascii,
)
def test_file_names_that_are_one_on_another_file_system_are_refused_together(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in names:
        check_file_name(tmp_path, name)
    with pytest.raises(InvalidArtifactError, match="differ only in case or Unicode normalisation"):
        check_file_names(tmp_path, names)


# --- what would take long


@pytest.fixture
def soon() -> Iterator[None]:
    """Fails a test that took as long as a hostile file would like."""
    start = time.process_time()
    yield
    assert time.process_time() - start < 20


def test_a_configuration_of_ten_million_keys_is_refused_by_its_size(
    adapter: Path, refused: Callable[..., str], soon: None
) -> None:
    with (adapter / CONFIG).open("wb") as file:
        file.write(b"{")
        for start in range(0, 10_000_000, 100_000):
            file.write(b"".join(b'"%d":0,' % key for key in range(start, start + 100_000)))
        file.write(b'"":0}')
    assert "is larger than the 10485760 bytes that are allowed here" in refused(adapter)


def test_a_header_of_a_million_tensors_is_refused_by_its_size(
    adapter: Path, refused: Callable[..., str], soon: None
) -> None:
    one = b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(one % number for number in range(1_000_000)) + b"}"
    (adapter / WEIGHTS).write_bytes(packed(text))
    assert f"header of {len(text)} bytes is over the limit of {HEADER_LIMIT}" in refused(adapter)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_key_that_appears_twice_among_many_is_found_soon(
    name: str, adapter: Path, refused: Callable[..., str], soon: None
) -> None:
    text = b"{" + b",".join(b'"%d":0' % key for key in range(500_000)) + b',"499999":0}'
    (adapter / name).write_bytes(text if name == CONFIG else packed(text))
    assert "key '499999' appears twice" in refused(adapter)


@pytest.mark.parametrize(
    "patterns",
    [
        {f".*.*.*{'.' * dots}!": 2 for dots in range(300)},
        {".*" * 249 + "!": 2},
        {f"{'a' * left}.{'b' * (60 - left)}.{'c' * 60}": 2 for left in range(60)},
    ],
    ids=["many", "long", "plain"],
)
def test_patterns_that_match_nothing_take_no_time_to_say_so(
    patterns: dict[str, int], adapter: Path, registry: Registry, base: Base, soon: None
) -> None:
    config(rank_pattern=patterns)(adapter)
    notes = registry.adapters.add(adapter, base=base, role="spirit").notes
    assert any(note.startswith("rank_pattern has keys that fit no module") for note in notes)


def test_a_configuration_full_of_patterns_is_refused_before_all_are_read(
    adapter: Path, refused: Callable[..., str], soon: None
) -> None:
    config(rank_pattern={f".*{number}": 2 for number in range(500_000)})(adapter)
    assert "rank_pattern has more patterns than can be matched" in refused(adapter)


def test_patterns_that_would_take_long_with_many_modules_are_refused(
    make_adapter: Callable[..., Path], tmp_path: Path, soon: None
) -> None:
    one = np.ones((1, 1), "float16")
    many = {f"base_model.model.m{i}.lora_{side}.weight": one for i in range(2_000) for side in "AB"}
    patterns = {f".*.*m{'.?' * n}": 1 for n in range(240)}
    folder = make_adapter(tmp_path / "a", rank=1, tensors=many, config={"rank_pattern": patterns})
    with pytest.raises(
        InvalidArtifactError, match="patterns in rank_pattern are too many or too long for 2000 modules"
    ):
        inspect_adapter(folder, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "members",
    [
        lambda n: b",".join(b'"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(850_000 // n)),
        lambda n: b'"a":[' + b"[]," * (16_000_000 // n) + b"[]]",
        lambda n: b'"a":[' + b"{}," * (16_000_000 // n) + b"{}]",
        lambda n: b",".join(b'"%x":0' % i for i in range(4_000_000 // n)),
    ],
    ids=["tensors", "lists", "objects", "keys"],
)
def test_the_largest_header_that_is_read_takes_bounded_time_and_memory(
    tmp_path: Path, members: Callable[[int], bytes]
) -> None:
    """`make soak` reads the largest; else an eighth of it, in an eighth of the time and memory."""
    share = 1 if SOAK else 8
    text = b"{" + members(share) + b"}"
    assert HEADER_LIMIT * (0.8 if SOAK else 0.75) < len(text) * share <= HEADER_LIMIT
    path = tmp_path / "large.safetensors"
    path.write_bytes(packed(text))
    script = (
        "import re, resource, sys\n"
        "from pathlib import Path\n"
        "from reccocktail.registry.errors import InvalidArtifactError\n"
        "from reccocktail.registry.artifacts.safetensors import read_header\n"
        "def spent():\n    used = resource.getrusage(resource.RUSAGE_SELF)\n    return used.ru_utime + used.ru_stime\n"
        "before = spent()\n"
        "try:\n    read_header(sys.argv[1])\n"
        "except InvalidArtifactError:\n    pass\n"
        # ru_maxrss would begin with that of the process which started this one
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]\n"
        "print(peak, spent() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    kibibytes, seconds = done.stdout.split()
    assert int(kibibytes) < (2 << 20) // share
    assert float(seconds) < 20 / share


# --- whatever the bytes


@pytest.fixture(scope="module")
def sound(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("fuzz") / "adapter")


places = st.floats(0, 1, exclude_max=True)
mutations = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("cut"), places, places),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("copy"), places, places),
    st.tuples(st.just("overwrite"), places, st.sampled_from([b"0", b"9", b"-", b'"', b"{", b"null", b"1e9", b"\xff", b"\\u0000"])),
)  # fmt: skip


def mutated(data: bytes, changes: list[tuple[str, float, Any]], within: int) -> bytes:
    """Most changes fall into the first bytes, where the header is: that is where most can go wrong."""
    for kind, place, what in changes:
        at = int(place * min(len(data), within))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ 1 << what]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + int(what * 32) :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "copy":
            other = int(what * len(data))
            data = data[:at] + data[other : other + 64] + data[at + 64 :]
        elif kind == "overwrite":
            data = data[:at] + what + data[at + len(what) :]
    return data


quickly = hypothesis_settings(
    max_examples=400 if SOAK else 100, deadline=2_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quickly
@given(changes=st.lists(mutations, min_size=1, max_size=4), within=st.sampled_from([8, 64, 1_200, 10_000]))
def test_mutated_weights_are_sound_or_refused_by_our_error(
    sound: Path, changes: list[tuple[str, float, Any]], within: int
) -> None:
    before = (sound / WEIGHTS).read_bytes()
    try:
        (sound / WEIGHTS).write_bytes(mutated(before, changes, within))
        inspect_adapter(sound, None, scan=True)
    except InvalidArtifactError as error:
        str(error).encode()
    finally:
        (sound / WEIGHTS).write_bytes(before)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["LORA", "q_proj", "("]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("q_proj"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
CONFIG_KEYS = (
    "r", "lora_alpha", "bias", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "base_model_name_or_path",
    "init_lora_weights", "peft_type", "target_modules", "use_dora", "lora_bias", "modules_to_save", "target_parameters",
    "trainable_token_indices", "novel",
)  # fmt: skip


@quickly
@given(
    changes=st.dictionaries(st.sampled_from(CONFIG_KEYS), json_values, max_size=3) | json_values,
    start=st.sampled_from([{"peft_type": "LORA", "r": 2, "lora_alpha": 4}, {}]),
)
def test_any_json_as_configuration_is_understood_or_refused_by_our_error(
    sound: Path, changes: object, start: dict[str, object]
) -> None:
    before = (sound / CONFIG).read_bytes()
    try:
        (sound / CONFIG).write_text(json.dumps(start | changes if isinstance(changes, dict) else changes))
        inspect_adapter(sound, None, base_names=("tiny",), scan=False)
    except RecCocktailError as error:
        str(error).encode()
    finally:
        (sound / CONFIG).write_bytes(before)


@quickly
@given(changes=st.lists(mutations, min_size=1, max_size=4))
def test_mutated_configuration_is_understood_or_refused_by_our_error(
    sound: Path, changes: list[tuple[str, float, Any]]
) -> None:
    before = (sound / CONFIG).read_bytes()
    try:
        (sound / CONFIG).write_bytes(mutated(before, changes, 1_000))
        inspect_adapter(sound, None, base_names=("tiny",), scan=False)
    except InvalidArtifactError as error:
        str(error).encode()
    finally:
        (sound / CONFIG).write_bytes(before)
