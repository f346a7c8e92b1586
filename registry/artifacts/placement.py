"""Where an adapter module lies in the tensors of a base model: layout, transposition, experts, vocabulary."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ..errors import BaseMismatchError, InvalidArtifactError, UnsupportedAdapterError
from ..strict_json import shown
from .allowlist import ADAPTER_CONFIG
from .facts import MERGED_DTYPES, BaseFacts
from .lora import Contents, LoraModule, SavedTensor, TokenRows, is_head, is_vocabulary
from .lora_config import LoraConfig
from .task_heads import TASK_CLASSES, is_new_head
from .tensor_names import AmbiguousNameError, Place, TensorNameResolver

# Models whose layers of these names are Conv1D, which keeps its weight transposed. PEFT changes fan_in_fan_out by what it
# meets last, so that the configuration only says what all layers are where nothing else is known.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")


_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


# models whose experts are [experts, in, out] (`is_transposed` of transformers' experts), and those stored transposed
_TRANSPOSED_EXPERTS = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")


_TURNED_EXPERTS = ("qwen3_vl_moe", "qwen3_vl_moe_text")


class _Placing:
    """Finds the parameters of an adapter in a base, and checks that they fit there."""

    def __init__(self, path: Path, base: BaseFacts, config: LoraConfig, found: Contents) -> None:
        self._path, self._base, self._config, self._found = path, base, config, found
        self._naming = TensorNameResolver({name: tensor.info.shape for name, tensor in base.tensors.items()})
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
            raise self._for_another_base(str(self._missing(module.a.name, module.weight)))
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
        if transposed and matrix == out_by_in:  # square: only the model itself decides
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
            raise self._for_another_base(
                f"{self._path}: {tensor!r} is for a weight of shape {list(given)},"
                f" but the base model's {parameter!r} is {list(stored)}"
            )

    def _for_another_base(self, evidence: str) -> BaseMismatchError:
        """Leads with the probable cause: what does not fit in one place mostly fits nowhere in this base."""
        name = self._config.base_name
        made_for = f" ({ADAPTER_CONFIG} names {shown(public_name(name))})" if name else ""
        detail = evidence.removeprefix(f"{self._path}: ")
        return BaseMismatchError(
            f"{self._path}: the adapter seems to be made for another base model{made_for}: {detail}",
            hint="use the base model that the adapter was trained on (in a registry: `reccocktail base add NAME SOURCE`, then"
            " --base NAME); if it was this one, save the adapter again",
        )

    def _refuse_shared(self, used: list[tuple[str, Place]]) -> None:
        owners: dict[str, str] = {}
        for parameter, place in used:
            if (owner := owners.setdefault(place.tensor, parameter)) != parameter:
                raise UnsupportedAdapterError(
                    f"{self._path}: {owner!r} and {parameter!r} are the same tensor {place.tensor!r} in the base model"
                )


def public_name(base: str) -> str:
    """A base model's name as an adapter's configuration has it, without a path of the machine that trained: a Hub id stays."""
    parts = [part for part in re.split(r"[/\\]", base) if part]
    cached = [part for part in parts if part.startswith("models--")]
    if cached:  # a snapshot in the Hub's cache
        return cached[-1].removeprefix("models--").replace("--", "/", 1)
    is_id = len(parts) <= 2 and "\\" not in base and not base.startswith(("/", "~", "."))
    return base if is_id else parts[-1] if parts else ""


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
