"""Looking at base models and adapters from outside: headers and configuration, no tensor loaded."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from .documents import read_object, shown
from .errors import BaseMismatchError, InvalidArtifactError, UnsupportedAdapterError
from .filenames import check_file_name
from .headers import HEADER_LIMIT, Header, TensorInfo, read_header
from .lora import LoraConfig, LoraModule, SavedTensor, TokenRows, lora_modules
from .naming import Place

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

MERGED_DTYPES = ("F32", "F16", "BF16")
_HEADS = ("lm_head", "embed_out")
_INDEX_LIMIT = HEADER_LIMIT  # it names as many tensors, with the same cost

# IEEE values whose exponent bits are all set are NaN or infinite. Such a value of either sign is the greatest there can be
# when bits are compared as integers, signed for the positive ones and unsigned for the negative: {dtype: (bytes, exponent)}
_EXPONENTS = {"F64": (8, 0x7FF << 52), "F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
_SCAN_BYTES = 1 << 20  # stays in a core's cache


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
    saved: tuple[SavedTensor, ...] = ()
    tokens: tuple[TokenRows, ...] = ()


def inspect_base(folder: Path | str, *, allow_links: bool = False) -> BaseFacts:
    """`allow_links` lets top-level files be links to elsewhere, as in the Hub's cache. Raises InvalidArtifactError."""
    folder = _folder(folder)
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
        architecture=_architecture(folder / CONFIG, config),
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
    folder = _folder(folder)
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
        modules = tuple(replace(module, places=(Place(module.weight),)) for module in modules)
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
    buffer = memoryview(bytearray(_SCAN_BYTES))
    try:
        with header.path.open("rb") as file:
            for tensor in header.tensors.values():
                file.seek(header.data_start + tensor.start)
                if bad := _count_not_finite(file, tensor, buffer):
                    raise InvalidArtifactError(
                        f"{header.path}: tensor {tensor.name!r} has {bad} of {tensor.elements} values NaN or infinite"
                    )
    except (OSError, EOFError) as error:
        raise InvalidArtifactError(f"{header.path}: cannot be read to its end: {error}") from error


def _count_not_finite(file: BufferedReader, tensor: TensorInfo, buffer: memoryview) -> int:
    import numpy as np

    width, exponent = _EXPONENTS[tensor.dtype]
    unsigned, signed, sign = f"<u{width}", f"<i{width}", 1 << (8 * width - 1)
    left, bad = tensor.nbytes, 0
    while left:
        piece = buffer[: min(left, len(buffer))]
        if file.readinto(piece) < len(piece):
            raise EOFError(f"it ended within {tensor.name!r}")
        left -= len(piece)
        bits = np.frombuffer(piece, unsigned)
        if bits.max() >= sign | exponent or bits.view(signed).max() >= exponent:
            bad += int(np.count_nonzero((bits & exponent) == exponent))
    return bad


def _folder(folder: Path | str) -> Path:
    if not os.path.isdir(folder):  # noqa: PTH112 (pathlib raises OSError for a name that is too long)
        raise InvalidArtifactError(f"{folder}: is not a folder")
    return Path(folder)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise InvalidArtifactError(f"{folder}: cannot be read: {error.strerror}") from error


def _inside(folder: Path, name: str, allow_links: bool) -> Path:
    path = folder / name
    if not os.path.lexists(path):
        raise InvalidArtifactError(f"{folder}: has no {name}")
    if not path.is_file():
        raise InvalidArtifactError(f"{path}: is not a regular file")
    if not allow_links and not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidArtifactError(f"{path}: is a link that leads out of the folder, to {path.resolve()}")
    return path


def _weight_headers(folder: Path, allow_links: bool) -> dict[str, Header]:
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: read_header(_inside(folder, WEIGHTS, allow_links))}
    if not (folder / INDEX).exists():
        pickles = [name for name in _names(folder) if matches(name, PICKLES)]
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
            raise InvalidArtifactError(f"{path}: places tensor {shown(tensor)} in {file}, which does not hold it")
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
            raise InvalidArtifactError(f"{path}: {shown(file)} is not the name of a safetensors file beside it")
    for file in set(files.values()):
        check_file_name(path.parent, file)
    return files


def _architecture(path: Path, config: dict[str, Any]) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else config.get("model_type") or "unknown"
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 200:
        raise InvalidArtifactError(f"{path}: names the architecture {shown(name)}, which is not a class name")
    return name


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
    for name in _names(folder):
        if name.lower().startswith("adapter_model.") and matches(name, PICKLES):
            raise InvalidArtifactError(
                f"{folder / name}: is a pickle, which can run code when it is opened",
                hint=f"save the adapter with PEFT's save_pretrained(…), which writes {ADAPTER_WEIGHTS}",
            )


def _check_base_name(path: Path, name: str | None, base_names: Collection[str]) -> None:
    if name is None or name in base_names:
        return
    exists = os.path.exists(name)  # noqa: PTH110 (pathlib raises OSError for a name that is too long)
    if exists and any(os.path.realpath(name) == os.path.realpath(other) for other in base_names):
        return
    raise BaseMismatchError(
        f"{path}: the adapter was made for {shown(name)}, not for {' = '.join(repr(other) for other in base_names)}",
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
    if tensor.info.dtype not in MERGED_DTYPES:
        raise UnsupportedAdapterError(
            f"{path}: {module.a.name!r} adapts {module.weight!r}, which the base model stores as {tensor.info.dtype};"
            f" only {', '.join(MERGED_DTYPES)} can be merged into"
        )
    out_by_in = (module.b.shape[0], module.a.shape[1])
    expected = out_by_in[::-1] if module.transposed else out_by_in
    if tensor.info.shape != expected:
        raise InvalidArtifactError(
            f"{path}: {module.a.name!r} is for a weight of shape {list(expected)},"
            f" but the base model's {module.weight!r} is {list(tensor.info.shape)}"
        )
