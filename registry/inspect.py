"""Looking at base models and adapters from outside: headers and configuration, no tensor loaded."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .documents import read_object
from .errors import BaseMismatchError, InvalidArtifactError, UnsupportedAdapterError
from .headers import Header, TensorInfo, read_header
from .lora import LoraConfig, LoraModule, lora_modules

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "*.tiktoken", "chat_template*",
)  # fmt: skip

_HEADS = ("lm_head", "embed_out")
_INDEX_LIMIT = 100 << 20  # a mixture of experts with hundreds of thousands of tensors needs more than a config


@dataclass(frozen=True)
class BaseTensor:
    """A tensor of a base model and the file it is in."""

    file: str
    info: TensorInfo


@dataclass(frozen=True)
class BaseFacts:
    """A base model as its files tell. `dtype` is the one most bytes have; `bytes` counts tensors only."""

    architecture: str
    dtype: str
    tensors: dict[str, BaseTensor]
    parameters: int
    bytes: int
    tied_embeddings: bool


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter as its files tell. `rank` and `alpha` are the defaults that patterns may override per module."""

    config: LoraConfig
    modules: tuple[LoraModule, ...]
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    tensors: int
    bytes: int
    dtype: str
    base_name: str | None


def inspect_base(folder: Path | str, *, allow_links: bool = False) -> BaseFacts:
    """`allow_links` lets top-level files be links to elsewhere, as in the Hub's cache. Raises InvalidArtifactError."""
    folder = Path(folder)
    config = read_object(_inside(folder, CONFIG, allow_links))
    if config.get("quantization_config"):
        raise InvalidArtifactError(
            f"{folder / CONFIG}: has a quantization_config; a quantised base cannot be merged into",
            hint="use the unquantised checkpoint",
        )
    headers = _weight_headers(folder, allow_links)
    tensors = {
        name: BaseTensor(file, info)
        for file, header in headers.items()
        for name, info in header.tensors.items()
    }  # fmt: skip
    if not tensors:
        raise InvalidArtifactError(f"{folder}: its weights hold no tensors")
    infos = [tensor.info for tensor in tensors.values()]
    return BaseFacts(
        architecture=_architecture(config),
        dtype=_main_dtype(infos),
        tensors=tensors,
        parameters=sum(info.elements for info in infos),
        bytes=sum(info.nbytes for info in infos),
        tied_embeddings=_is_tied(config, tensors),
    )


def inspect_adapter(
    folder: Path | str,
    base: BaseFacts | None,
    *,
    base_names: Collection[str] = (),
    allow_base_mismatch: bool = False,
    allow_links: bool = False,
    scan: bool = True,
) -> AdapterFacts:
    """Everything that can be known before merging: naming, shapes, ranks and, with `scan`, that all values are finite.

    `base_names` are the names under which the base is known; without them the adapter's own word is not questioned.
    Raises InvalidArtifactError, or UnsupportedAdapterError and BaseMismatchError of that family.
    """
    folder = Path(folder)
    _refuse_pickled_adapter(folder)
    config_path = _inside(folder, ADAPTER_CONFIG, allow_links)
    config = LoraConfig.parse(read_object(config_path), config_path)
    if base_names and not allow_base_mismatch:
        _check_base_name(config_path, config.base_name, base_names)
    header = read_header(_inside(folder, ADAPTER_WEIGHTS, allow_links))
    modules = lora_modules(header, config)
    if base is not None:
        for module in modules:
            _check_fit(header.path, module, base)
    if scan:
        check_finite(header)
    return AdapterFacts(
        config=config,
        modules=modules,
        rank=config.r,
        alpha=config.alpha,
        target_modules=tuple(sorted({module.name.rpartition(".")[2] for module in modules})),
        tensors=len(header.tensors),
        bytes=header.nbytes,
        dtype=_main_dtype(header.tensors.values()),
        base_name=config.base_name,
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)


def check_finite(header: Header) -> None:
    """Raises InvalidArtifactError naming the first tensor that holds NaN or an infinity."""
    import numpy as np

    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    with header.path.open("rb") as file:
        for tensor in header.tensors.values():
            kind = np.dtype(kinds[tensor.dtype])
            file.seek(header.data_start + tensor.start)
            left, bad = tensor.elements, 0
            while left:
                values = np.fromfile(file, kind, min(left, 1 << 22))  # pieces, so that memory stays small
                if not values.size:
                    raise InvalidArtifactError(f"{header.path}: ended while {tensor.name!r} was read")
                left -= values.size
                # numpy has no bfloat16; like any IEEE value it is NaN or infinite when all exponent bits are set
                finite = (values & 0x7F80) != 0x7F80 if tensor.dtype == "BF16" else np.isfinite(values)
                bad += values.size - int(np.count_nonzero(finite))
            if bad:
                raise InvalidArtifactError(
                    f"{header.path}: tensor {tensor.name!r} has {bad} of {tensor.elements} values NaN or infinite"
                )


def _inside(folder: Path, name: str, allow_links: bool) -> Path:
    path = folder / name
    if not folder.is_dir():
        raise InvalidArtifactError(f"{folder}: is not a folder")
    if not path.is_file():
        raise InvalidArtifactError(f"{folder}: has no {name}")
    if not allow_links and not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArtifactError(f"{path}: is a link that leads out of the folder, to {path.resolve()}")
    return path


def _weight_headers(folder: Path, allow_links: bool) -> dict[str, Header]:
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: read_header(_inside(folder, WEIGHTS, allow_links))}
    if not (folder / INDEX).exists():
        pickles = sorted(path.name for path in folder.iterdir() if matches(path.name, PICKLES))
        found = f"; {pickles[0]} is a pickle, which can run code when it is opened" if pickles else ""
        raise InvalidArtifactError(
            f"{folder}: has neither {WEIGHTS} nor {INDEX}{found}",
            hint="save the model with save_pretrained(…), which writes safetensors" if pickles else None,
        )
    path = _inside(folder, INDEX, allow_links)
    listed: dict[str, set[str]] = {}
    for tensor, file in _weight_map(path).items():
        listed.setdefault(file, set()).add(tensor)
    headers = {file: read_header(_inside(folder, file, allow_links)) for file in sorted(listed)}
    for file, header in headers.items():
        for tensor in sorted(listed[file] - header.tensors.keys()):
            raise InvalidArtifactError(f"{path}: places tensor {tensor!r} in {file}, which does not hold it")
        for tensor in sorted(header.tensors.keys() - listed[file]):
            raise InvalidArtifactError(f"{folder / file}: holds tensor {tensor!r}, which {INDEX} does not place there")
    return headers


def _weight_map(path: Path) -> dict[str, str]:
    files = read_object(path, limit=_INDEX_LIMIT).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InvalidArtifactError(f"{path}: has no weight_map")
    for file in files.values():
        # one plain name: nothing that could lead elsewhere
        if not isinstance(file, str) or not file.endswith(".safetensors") or file != Path(file).name or "\\" in file:
            raise InvalidArtifactError(f"{path}: {file!r} is not the name of a safetensors file beside it")
    return files


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names:
        return str(names[0])
    return str(config.get("model_type") or "unknown")


def _main_dtype(infos: Iterable[TensorInfo]) -> str:
    sizes: Counter[str] = Counter()
    for info in infos:
        sizes[info.dtype] += info.nbytes
    return sizes.most_common(1)[0][0]


def _is_tied(config: dict[str, Any], tensors: Collection[str]) -> bool:
    # configs omit their class's default, so silence is decided by whether a head of its own was saved
    tied = config.get("tie_word_embeddings")
    return tied if isinstance(tied, bool) else not any(f"{head}.weight" in tensors for head in _HEADS)


def _refuse_pickled_adapter(folder: Path) -> None:
    for path in sorted(folder.glob("adapter_model.*")):
        if matches(path.name, PICKLES):
            raise InvalidArtifactError(
                f"{path}: is a pickle, which can run code when it is opened",
                hint=f"save the adapter with PEFT's save_pretrained(…), which writes {ADAPTER_WEIGHTS}",
            )


def _check_base_name(path: Path, name: str | None, base_names: Collection[str]) -> None:
    if name is None or name in base_names:
        return
    if Path(name).exists() and any(os.path.realpath(name) == os.path.realpath(other) for other in base_names):
        return
    raise BaseMismatchError(
        f"{path}: the adapter was made for {name!r}, not for {' = '.join(repr(other) for other in base_names)}",
        hint="--allow-base-mismatch, if they are the same model under two names",
    )


def _check_fit(path: Path, module: LoraModule, base: BaseFacts) -> None:
    if base.tied_embeddings and module.name.rpartition(".")[2] in _HEADS:
        raise UnsupportedAdapterError(
            f"{path}: {module.a.name!r} adapts a head that shares its weight with the embeddings;"
            " merging would change both"
        )
    tensor = base.tensors.get(module.weight)
    if tensor is None:
        raise InvalidArtifactError(f"{path}: {module.a.name!r} has no tensor {module.weight!r} in the base model")
    out_by_in = (module.b.shape[0], module.a.shape[1])
    expected = out_by_in[::-1] if module.transposed else out_by_in
    if tensor.info.shape != expected:
        raise InvalidArtifactError(
            f"{path}: {module.a.name!r} is for a weight of shape {list(expected)},"
            f" but the base model's {module.weight!r} is {list(tensor.info.shape)}"
        )
