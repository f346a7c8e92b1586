"""Looking at base models and adapters from outside: headers and configuration, no tensor loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from ..errors import BaseMismatchError, InvalidArtifactError
from ..filenames import check_file_name
from ..store.links import check_link
from ..strict_json import read_object, shown
from .allowlist import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS, matches
from .contents import bad_targets, contents
from .facts import AdapterFacts, BaseFacts, BaseTensor
from .lora import Contents, LoraModule, some
from .lora_config import LoraConfig
from .placement import _Placing, _vocabulary
from .safetensors import HEADER_LIMIT, Header, TensorInfo, header_digest, read_header
from .task_heads import brings_head, without_head
from .vocabulary import find_embedding, find_head, is_tied

CONFIG = "config.json"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")


_INDEX_LIMIT = HEADER_LIMIT  # it names as many tensors, with the same cost

# IEEE values whose exponent bits are all set are NaN or infinite. Such a value of either sign is the greatest there can be
# when bits are compared as integers, signed for the positive ones and unsigned for the negative: {dtype: (bytes, exponent)}
_EXPONENTS = {"F64": (8, 0x7FF << 52), "F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}
_SCAN_BYTES = 1 << 20  # stays in a core's cache


def inspect_base(folder: Path | str) -> BaseFacts:
    """Raises InvalidArtifactError."""
    folder = _folder(folder)
    config = read_object(_inside(folder, CONFIG))
    if config.get("quantization_config"):
        raise InvalidArtifactError(
            f"{folder / CONFIG}: has a quantization_config; a quantised base cannot be merged into",
            hint="use the unquantised checkpoint",
        )
    headers = _weight_headers(folder)
    tensors = {
        name: BaseTensor(file, info)
        for file, header in headers.items()
        for name, info in header.tensors.items()
    }  # fmt: skip
    if not tensors:
        raise InvalidArtifactError(f"{folder}: its weights hold no tensors")
    infos = [tensor.info for tensor in tensors.values()]
    architecture, model_type = _architecture(folder / CONFIG, config), _model_type(folder / CONFIG, config)
    shapes = {name: tensor.info.shape for name, tensor in tensors.items()}
    embedding = find_embedding(config, shapes)
    head, has_head = find_head(architecture, model_type, shapes, embedding)
    return BaseFacts(
        architecture=architecture,
        dtype=_main_dtype(infos),
        tensors=tensors,
        parameters=sum(info.elements for info in infos),
        bytes=sum(info.nbytes for info in infos),
        tied_embeddings=has_head and is_tied(config, shapes),
        input_embedding=embedding,
        head=head,
        encoder_decoder=config.get("is_encoder_decoder") is True,
        model_type=model_type,
        layers=_layers(config),
    )


def inspect_adapter(
    folder: Path | str,
    base: BaseFacts | None,
    *,
    base_names: Collection[str] = (),
    allow_base_mismatch: bool = False,
    allow_partial: bool = False,
    scan: bool = True,
) -> AdapterFacts:
    """Everything that can be known before merging: naming, shapes, ranks and, with `scan`, that all values are finite.

    `base_names` are the names under which the base is known; without them the adapter's own word is not questioned. With
    `allow_partial` an adapter that lacks some of what its configuration names is taken, and its facts say what.
    Raises InvalidArtifactError, or UnsupportedAdapterError and BaseMismatchError of that family.
    """
    folder = _folder(folder)
    _refuse_pickled_adapter(folder)
    config_path = _inside(folder, ADAPTER_CONFIG)
    config = LoraConfig.parse(read_object(config_path), config_path)
    if base_names and not allow_base_mismatch:
        _check_base_name(config_path, config.base_name, base_names)
    header = read_header(_inside(folder, ADAPTER_WEIGHTS))
    found, vocabulary = contents(header, config), None
    missing = found.lacking
    if base is not None:
        base = without_head(base) if brings_head(config, found.saved, base) else base
        found = _Placing(header.path, base, config, found).placed()
        vocabulary = _vocabulary(header.path, base, found)
        missing = _missing(config_path, base, config, found)
    if missing and not allow_partial:
        raise InvalidArtifactError(
            f"{header.path}: lacks what {ADAPTER_CONFIG} names: {'; '.join(missing)}",
            hint="save it again with all shards gathered and without wrappers around the model;"
            " --allow-partial, if these are meant to stay as they are in the base",
        )
    notes, zero = found.notes, set[str]()
    if missing:
        notes += (f"the adapter lacks what its configuration names, which stays the base's: {'; '.join(missing)}",)
    if scan:
        zero = check_finite(header)
        notes += _dead(found.modules, zero)
    return AdapterFacts(
        config=config,
        modules=found.modules,
        rank=config.r,
        alpha=config.alpha,
        target_modules=tuple(sorted({_target(module) for module in found.modules})),
        tensors=len(header.tensors),
        bytes=header.nbytes,
        dtype=_main_dtype(header.tensors.values()),
        base_name=config.base_name,
        saved=found.saved,
        tokens=found.tokens,
        copies=found.copies,
        vocabulary=vocabulary,
        missing=missing,
        notes=notes,
        header=header,
        zero=frozenset(zero),
    )


def is_copy(folder: Path, facts: AdapterFacts, *, scan: bool = True) -> bool:
    """Whether the adapter in `folder` is the one that was inspected, in a fraction of the time that inspecting it again takes.

    `facts` must be of the same `scan`. Its configuration, its header and, with `scan`, its values are read again; everything else
    in the facts follows from these. Raises InvalidArtifactError.
    """
    config_path, weights = _inside(folder, ADAPTER_CONFIG), _inside(folder, ADAPTER_WEIGHTS)
    if LoraConfig.parse(read_object(config_path), config_path) != facts.config:
        return False
    if facts.header is None or header_digest(weights) != facts.header.digest:
        return False
    return not scan or check_finite(replace(facts.header, path=weights)) == facts.zero


def _missing(path: Path, base: BaseFacts, config: LoraConfig, found: Contents) -> tuple[str, ...]:
    from .completeness import missing_from

    try:
        return missing_from(base, config, found)
    except ValueError as error:
        raise bad_targets(path, error) from error


def _dead(modules: Collection[LoraModule], zero: Collection[str]) -> tuple[str, ...]:
    """What training never touched: B is zero before the first step."""
    dead = [module.weight for module in modules if module.b.name in zero]
    if not dead:
        return ()
    which = "all of them" if len(dead) == len(modules) else some(dead)
    return (f"lora_B is all zero in {len(dead)} of {len(modules)} modules, which change nothing: {which}",)


def check_finite(header: Header) -> set[str]:
    """The tensors that are zero throughout. Raises InvalidArtifactError naming the first that holds NaN or an infinity."""
    buffer = memoryview(bytearray(_SCAN_BYTES))
    zero = set[str]()
    try:
        with header.path.open("rb") as file:
            for tensor in header.tensors.values():
                file.seek(header.data_start + tensor.start)
                bad, is_zero = _look_through(file, tensor, buffer)
                if bad:
                    raise InvalidArtifactError(
                        f"{header.path}: tensor {tensor.name!r} has {bad} of {tensor.elements} values NaN or infinite"
                    )
                if is_zero:
                    zero.add(tensor.name)
    except (OSError, EOFError) as error:
        raise InvalidArtifactError(f"{header.path}: cannot be read to its end: {error}") from error
    return zero


def _look_through(file: BufferedReader, tensor: TensorInfo, buffer: memoryview) -> tuple[int, bool]:
    """How many values are NaN or infinite, and whether all are zero, of either sign."""
    import numpy as np

    width, exponent = _EXPONENTS[tensor.dtype]
    unsigned, signed, sign = f"<u{width}", f"<i{width}", 1 << (8 * width - 1)
    left, bad, is_zero = tensor.nbytes, 0, True
    while left:
        piece = buffer[: min(left, len(buffer))]
        if file.readinto(piece) < len(piece):
            raise EOFError(f"it ended within {tensor.name!r}")
        left -= len(piece)
        bits = np.frombuffer(piece, unsigned)
        is_zero = is_zero and not (bits & (sign - 1)).any()
        if bits.max() >= sign | exponent or bits.view(signed).max() >= exponent:
            bad += int(np.count_nonzero((bits & exponent) == exponent))
    return bad, is_zero


def _folder(folder: Path | str) -> Path:
    if not os.path.isdir(folder):  # noqa: PTH112 (pathlib raises OSError for a name that is too long)
        raise InvalidArtifactError(f"{folder}: is not a folder")
    return Path(folder)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError as error:
        raise InvalidArtifactError(f"{folder}: cannot be read: {error.strerror}") from error


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not os.path.lexists(path):
        raise InvalidArtifactError(f"{folder}: has no {name}")
    if not path.is_file():
        raise InvalidArtifactError(f"{path}: is not a regular file")
    check_link(folder, path)
    return path


def _weight_headers(folder: Path) -> dict[str, Header]:
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: read_header(_inside(folder, WEIGHTS))}
    if not (folder / INDEX).exists():
        pickles = [name for name in _names(folder) if matches(name, PICKLES)]
        found = f"; {pickles[0]} is a pickle, which can run code when it is opened" if pickles else ""
        raise InvalidArtifactError(
            f"{folder}: has neither {WEIGHTS} nor {INDEX}{found}",
            hint="save the model with save_pretrained(…), which writes safetensors" if pickles else None,
        )
    path = _inside(folder, INDEX)
    listed: dict[str, set[str]] = {}
    for tensor, file in _weight_map(path).items():
        listed.setdefault(file, set()).add(tensor)
    headers = {file: read_header(_inside(folder, file)) for file in sorted(listed)}
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


def _model_type(path: Path, config: dict[str, Any]) -> str:
    name = config.get("model_type") or ""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
        raise InvalidArtifactError(f"{path}: has the model_type {shown(name)}, which is not a model type")
    return name


def _layers(config: dict[str, Any]) -> int | None:
    text = config.get("text_config")
    for part in (text, config):
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if isinstance(part, dict) and type(count := part.get(key)) is int:
                return count
    return None


def _refuse_pickled_adapter(folder: Path) -> None:
    if os.path.lexists(folder / ADAPTER_WEIGHTS):  # PEFT reads that one, and a pickle beside it is not opened
        return
    for name in _names(folder):
        if name.lower().startswith("adapter_model.") and matches(name, PICKLES):
            raise InvalidArtifactError(
                f"{folder / name}: is a pickle, which can run code when it is opened",
                hint=f"save the adapter again with PEFT's save_pretrained(…), or, if you trust its source, convert it:"
                f" save_file(torch.load({name!r}, weights_only=True), {ADAPTER_WEIGHTS!r}), with save_file of safetensors.torch",
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


def _target(module: LoraModule) -> str:
    return module.name.rpartition(".")[2] if module.parameter == "weight" else module.parameter
