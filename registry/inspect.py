"""Looking at base models and adapters from outside: headers and configuration, no tensor loaded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from .allowlist import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, WEIGHTS, matches
from .documents import read_object, shown
from .errors import BaseMismatchError, InvalidArtifactError, UnsupportedAdapterError
from .filenames import check_file_name
from .headers import HEADER_LIMIT, Header, TensorInfo, read_header
from .links import check_link
from .lora import (
    Contents,
    LoraConfig,
    LoraModule,
    SavedTensor,
    TokenRows,
    bad_targets,
    contents,
    is_head,
    is_vocabulary,
    some,
)
from .naming import AmbiguousNameError, Naming, Place
from .task_heads import TASK_CLASSES, brings_head, is_new_head, without_head
from .vocabulary import find_embedding, find_head, is_tied

CONFIG = "config.json"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")

MERGED_DTYPES = ("F32", "F16", "BF16")

# Models whose layers of these names are Conv1D, which keeps its weight transposed. PEFT changes fan_in_fan_out by what it
# meets last, so that the configuration only says what all layers are where nothing else is known.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")
# models whose experts are [experts, in, out] (`is_transposed` of transformers' experts), and those stored transposed
_TRANSPOSED_EXPERTS = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")
_TURNED_EXPERTS = ("qwen3_vl_moe", "qwen3_vl_moe_text")
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
    """A base model as its files tell. `dtype` is the one most bytes have; `bytes` counts tensors only.

    `input_embedding` and `head` are names of stored tensors, None where they are not known; a head that is tied to the
    embedding has the name that it would be stored under. A model without a head for tokens is not tied; one that is tied and
    whose head is not known cannot be untied.
    """

    architecture: str
    dtype: str
    tensors: dict[str, BaseTensor]
    parameters: int
    bytes: int
    tied_embeddings: bool
    input_embedding: str | None = None
    head: str | None = None
    encoder_decoder: bool = False
    model_type: str = ""
    layers: int | None = None  # how many the text model counts; a checkpoint may hold more that it does not use

    @property
    def files(self) -> set[str]:
        """The names of the weight files."""
        return {tensor.file for tensor in self.tensors.values()}

    @property
    def embedding(self) -> str | None:
        """The name of the tensor that embedding and head share, where they do."""
        return self.input_embedding if self.tied_embeddings else None


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter as its files tell. `rank` and `alpha` are the defaults that patterns may override per module.

    Every tensor of its file is in one of `modules`, `saved`, `tokens` and `copies`, the last being those that PEFT writes
    twice and reads once. `vocabulary` is the number of tokens if the adapter changes that of the base, otherwise None.
    `missing` is what the configuration names and the file lacks, and `notes` what a reader should know, both in words.
    """

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
    copies: tuple[TensorInfo, ...] = ()
    vocabulary: int | None = None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def task_head(self) -> tuple[SavedTensor, ...]:
        """The head for the adapter's task that its base does not have, as of a classifier made of a language model."""
        return tuple(tensor for tensor in self.saved if tensor.why == "task_head")


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
    notes = found.notes
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
    )


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
        raise InvalidArtifactError(f"{path}: has the model_type {shown(name)}, which is none")
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
                hint=f"save the adapter again with PEFT's save_pretrained(…), or, if you trust whoever made it, convert it:"
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


class _Placing:
    """Finds the parameters of an adapter in a base, and checks that they fit there."""

    def __init__(self, path: Path, base: BaseFacts, config: LoraConfig, found: Contents) -> None:
        self._path, self._base, self._config, self._found = path, base, config, found
        self._naming = Naming({name: tensor.info.shape for name, tensor in base.tensors.items()})
        self._trained = {tensor.name: tensor.info.shape for tensor in found.saved}

    def placed(self) -> Contents:
        found, saved = self._found, self._saved()
        modules = tuple(self._experts(m) if m.experts > 1 else self._module(m) for m in found.modules)
        tokens = tuple(self._rows(rows) for rows in found.tokens)
        self._refuse_shared([*((m.weight, p) for m in modules for p in m.places)])
        self._refuse_shared([(tensor.name, tensor.place) for tensor in saved if tensor.place])
        return replace(found, modules=modules, saved=saved, tokens=tokens)

    def _find(self, parameter: str) -> tuple[Place, tuple[int, ...]] | None:
        """Where the parameter lies and its shape in the base. A tied head has the shape of the embedding, and may lack."""
        try:
            place = self._naming.place(parameter)
        except AmbiguousNameError as error:
            raise InvalidArtifactError(f"{self._path}: in the base model {error}") from error
        if place is not None:
            return place, self._base.tensors[place.tensor].info.shape
        head, embedding = self._base.head, self._base.embedding
        if head is not None and embedding is not None and self._naming.could_be(parameter, head):
            return Place(head), self._base.tensors[embedding].info.shape
        return None

    def _module(self, module: LoraModule) -> LoraModule:
        module = replace(module, transposed=module.embeds or self._is_conv1d(module))
        found = self._find(module.weight)
        if found is None:
            raise self._missing(module.a.name, module.weight)
        place, shape = found
        out_by_in = (module.b.shape[0], module.a.shape[1])
        self._check_dtype(module.a.name, place)
        self._check_shape(
            module.a.name,
            module.weight,
            out_by_in[::-1] if module.transposed else out_by_in,
            self._trained.get(module.weight, shape),
        )
        module = replace(module, places=(place,))
        if module.bias is None:
            return module
        biased = self._find(f"{module.name}.bias")
        if biased is None:
            raise UnsupportedAdapterError(
                f"{self._path}: {module.bias.name!r} is a bias for {module.name!r}, which has none in the base model",
                hint="train without lora_bias: a checkpoint of this architecture has no place for it",
            )
        self._check_dtype(module.bias.name, biased[0])
        self._check_shape(module.bias.name, f"{module.name}.bias", module.bias.shape, biased[1])
        return replace(module, bias_place=biased[0])

    def _is_conv1d(self, module: LoraModule) -> bool:
        if not self._base.model_type or module.parameter != "weight":
            return module.transposed
        return self._base.model_type in _CONV1D_MODELS and module.name.rpartition(".")[2] in _CONV1D

    def _experts(self, module: LoraModule) -> LoraModule:
        try:
            places = self._naming.expert_places(module.weight)
        except AmbiguousNameError as error:
            raise InvalidArtifactError(f"{self._path}: in the base model {error}") from error
        if not places:
            raise self._missing(module.a.name, module.weight)
        fused = places[0].index is not None
        if fused and self._base.model_type in _TURNED_EXPERTS:
            raise UnsupportedAdapterError(
                f"{self._path}: {module.a.name!r} adapts the experts {module.weight!r}, which"
                f" {self._base.model_type} turns while it is loaded",
                hint="train without target_parameters that name experts: factors of attention and of the language model's other"
                " layers merge",
            )
        first = [place for place in places if place.expert == 0]
        for place in places if not fused else first:
            self._check_dtype(module.a.name, place)
        shapes = [self._base.tensors[place.tensor].info.shape for place in first]
        matrix = shapes[0][1:] if fused else (sum(shape[0] for shape in shapes), shapes[0][1])
        out_by_in = (module.b.shape[0], module.a.shape[1])
        transposed = fused and matrix == out_by_in[::-1]
        if transposed and matrix == out_by_in:  # square: only the model's own word tells
            transposed = self._base.model_type in _TRANSPOSED_EXPERTS
        self._check_shape(
            module.a.name,
            module.weight,
            (module.experts, *(out_by_in[::-1] if transposed else out_by_in)),
            (len(places) // len(first), *matrix),
        )
        for place in places if not fused else ():
            like = shapes[(place.rows or (0, 0))[0] > 0]
            if self._base.tensors[place.tensor].info.shape != like:
                raise InvalidArtifactError(
                    f"{self._path}: the base model's {place.tensor!r} is not of the shape of expert 0's"
                )
        return replace(module, places=places, transposed=transposed)

    def _saved(self) -> tuple[SavedTensor, ...]:
        placed, missing = list[SavedTensor](), list[SavedTensor]()
        roots = {name.partition(".")[0] for name in self._base.tensors}
        for tensor in self._found.saved:
            found = self._find(tensor.name)
            if found is None and is_new_head(tensor, self._config, roots):
                placed.append(replace(tensor, why="task_head", place=Place(tensor.name)))
                continue
            if found is None:
                missing.append(tensor)
                continue
            place, shape = found
            self._check_dtype(tensor.info.name, place)
            given = tensor.info.shape
            # a vocabulary may have another size; whether all that depends on it has it is looked at later
            resized = is_vocabulary(tensor.name) and len(given) == len(shape)
            self._check_shape(tensor.info.name, tensor.name, given, (given[0], *shape[1:]) if resized else shape)
            placed.append(replace(tensor, place=place))
        if missing:
            error = self._missing(*(name for tensor in missing for name in (tensor.info.name, tensor.name)))
            error.hint = self._way_out(missing, roots)
            raise error
        return tuple(placed) + self._tied_head(placed)

    def _way_out(self, missing: list[SavedTensor], roots: set[str]) -> str | None:
        """What may help where a saved module is not in the base: many say no task, and have a head for one."""
        for task in TASK_CLASSES if self._config.task is None else ():
            if all(is_new_head(tensor, replace(self._config, task=task), roots) for tensor in missing):
                tasks = " or ".join(TASK_CLASSES)
                return f"if this is the head of a classifier, say so in {ADAPTER_CONFIG}: set task_type to {tasks}"
        return None

    def _tied_head(self, saved: list[SavedTensor]) -> tuple[SavedTensor, ...]:
        """A head that is tied to an embedding has its size, which PEFT writes only once for an adapted one."""
        head, embedding = self._base.head, self._base.embedding
        if head is None or embedding is None or any(is_head(tensor.name) for tensor in saved):
            return ()
        return tuple(
            replace(tensor, name=head, place=Place(head))
            for tensor in saved
            if tensor.why == "embedding"
            and tensor.place
            and tensor.place.tensor == embedding
            and tensor.info.shape != self._base.tensors[embedding].info.shape
        )

    def _rows(self, rows: TokenRows) -> TokenRows:
        found = self._find(rows.name)
        if found is None:
            raise self._missing(rows.info.name, rows.name)
        place, shape = found
        self._check_dtype(rows.info.name, place)
        shape = self._trained.get(rows.name, shape)
        self._check_shape(
            rows.info.name, rows.name, (len(rows.indices), *rows.info.shape[1:]), (len(rows.indices), *shape[1:])
        )
        if rows.indices and max(rows.indices) >= shape[0]:
            raise InvalidArtifactError(
                f"{self._path}: {rows.info.name!r} is for token {max(rows.indices)},"
                f" but {rows.name!r} has {shape[0]} tokens"
            )
        return replace(rows, place=place)

    def _missing(self, tensor: str, parameter: str, *more: str) -> InvalidArtifactError:
        near = self._naming.near(parameter)
        others = f" (nor have {len(more) // 2} more, {', '.join(map(shown, more[:6:2]))})" if more else ""
        return InvalidArtifactError(
            f"{self._path}: {shown(tensor)} has no tensor {shown(parameter)} in the base model{others}"
            + (f"; what is much like it: {', '.join(map(shown, near))}" if near else "")
        )

    def _check_dtype(self, tensor: str, place: Place) -> None:
        stored = self._base.tensors.get(place.tensor)
        if stored is not None and stored.info.dtype not in MERGED_DTYPES:
            raise UnsupportedAdapterError(
                f"{self._path}: {tensor!r} adapts {place.tensor!r}, which the base model stores as {stored.info.dtype};"
                f" only {', '.join(MERGED_DTYPES)} can be merged into"
            )

    def _check_shape(self, tensor: str, parameter: str, given: tuple[int, ...], stored: tuple[int, ...]) -> None:
        if given != stored:
            raise InvalidArtifactError(
                f"{self._path}: {tensor!r} is for a weight of shape {list(given)},"
                f" but the base model's {parameter!r} is {list(stored)}"
            )

    def _refuse_shared(self, used: list[tuple[str, Place]]) -> None:
        owners: dict[str, str] = {}
        for parameter, place in used:
            if (owner := owners.setdefault(place.tensor, parameter)) != parameter:
                raise UnsupportedAdapterError(
                    f"{self._path}: {owner!r} and {parameter!r} are the same tensor {place.tensor!r} in the base model"
                )


def _vocabulary(path: Path, base: BaseFacts, found: Contents) -> int | None:
    """The number of tokens, if the adapter changes it. Raises UnsupportedAdapterError if embedding and head disagree."""
    sizes = {
        name: base.tensors[name].info.shape[0] for name in (base.input_embedding, base.head) if name in base.tensors
    }
    if base.embedding is not None and base.head is not None:
        sizes.setdefault(base.head, sizes[base.embedding])
    before, grown = dict(sizes), None
    for tensor in found.saved:
        if tensor.why == "task_head":
            continue
        name = tensor.place.tensor if tensor.place else base.head
        rows = tensor.info.shape[0]
        if name in sizes:
            sizes[name] = rows
        stored = base.tensors.get(name or "")
        if rows != (stored.info.shape[0] if stored else before.get(name or "")):
            grown = tensor
    if grown is None:
        return None
    after = grown.info.shape[0]
    for name, rows in before.items():  # what a smaller vocabulary keeps of the base's is known: its first rows
        if sizes[name] == rows > after:
            sizes[name] = after
    if base.input_embedding is None or len(set(sizes.values())) > 1:
        raise UnsupportedAdapterError(
            f"{path}: {grown.info.name!r} has a vocabulary of {grown.info.shape[0]} tokens, but not all of the result would: "
            + (", ".join(f"{name!r} has {rows}" for name, rows in sizes.items()) or "its embedding is not known"),
            hint="save the adapter with save_embedding_layers=True",
        )
    return grown.info.shape[0]
