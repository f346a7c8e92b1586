"""Looking at base models and adapters from outside: headers and configuration, no tensor loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BaseMismatchError, InvalidArtifactError, WrongKindError
from ..filenames import check_file_name
from ..store.links import check_link
from ..strict_json import read_object, shown
from .allowlist import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS, is_bundle, matches
from .content import content_digest
from .contents import bad_targets, contents
from .facts import AdapterFacts, BaseFacts, BaseTensor
from .lora import Contents, LoraModule, some
from .lora_config import LoraConfig
from .placement import _Placing, _vocabulary
from .safetensors import HEADER_LIMIT, Header, TensorInfo, header_digest, read_header
from .task_heads import brings_head, without_head
from .values import read_values
from .vocabulary import find_embedding, find_head, is_tied

CONFIG = "config.json"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")


_INDEX_LIMIT = HEADER_LIMIT  # it names as many tensors, with the same cost


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
    Raises InvalidArtifactError, or UnsupportedAdapterError and BaseMismatchError of that family, and WrongKindError for a bundle.
    """
    folder = _folder(folder)
    if is_bundle(folder):
        raise WrongKindError(
            f"{folder}: holds a bundle such as a personalised LoRA, and a plain LoRA is needed here",
            hint="register it with `reccocktail adapter add`; `reccocktail personalise DOMAIN USER -o DIR` then writes the plain LoRA of a"
            " user, and `reccocktail recommend DOMAIN --user USER --adapter DOMAIN@vN` asks it",
        )
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
    notes = found.notes
    if missing:
        notes += (f"the adapter lacks what its configuration names, which stays the base's: {'; '.join(missing)}",)
    facts = AdapterFacts(
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
    )
    return _scanned(facts, read_values(header).zero) if scan else facts


def expect_sound(folder: Path, *, allow_partial: bool, scan: bool) -> tuple[str, ...]:
    """The notes on an adapter of whatever kind, as far as it can be judged without its base. Raises InvalidArtifactError."""
    if is_bundle(folder):
        from .bundle_inspect import inspect_bundle  # pydantic is slow to import, and most are no bundles

        return inspect_bundle(folder, scan=scan).notes
    return inspect_adapter(folder, None, allow_partial=allow_partial, scan=scan).notes


def copied(folder: Path, facts: AdapterFacts, *, scan: bool = True) -> tuple[AdapterFacts, str] | None:
    """The facts of a copy of an adapter, and its `content_digest`; None if the copy is not of what was inspected.

    `facts` are the original's, without a scan. The configuration and the header of the copy are read again, and its values for the
    first time; everything else in the facts follows from these. Raises InvalidArtifactError.
    """
    config_path, weights = _inside(folder, ADAPTER_CONFIG), _inside(folder, ADAPTER_WEIGHTS)
    if LoraConfig.parse(read_object(config_path), config_path) != facts.config:
        return None
    if facts.header is None or header_digest(weights) != facts.header.digest:
        return None
    values = read_values(facts.header, weights, scan=scan, digests=True)
    return _scanned(facts, values.zero), content_digest(folder, facts.header, values.digests)


def _scanned(facts: AdapterFacts, zero: Collection[str]) -> AdapterFacts:
    return replace(facts, zero=frozenset(zero), notes=facts.notes + _dead(facts.modules, zero))


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
