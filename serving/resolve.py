"""Adapters and merged checkpoints for serving engines: which version a name means, and whether it fits what is served.

An engine that leaves parts of an adapter out answers with something between the adapter and the base model, and one that is
given another base answers with nonsense, both without a word. So whatever is not shown to fit is refused here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..registry import Adapter, AdapterFacts, Base, Build, Registry, inspect_adapter
from ..registry.artifacts.inspect import ADAPTER_CONFIG, CONFIG, INDEX
from ..registry.artifacts.lora import is_vocabulary
from ..registry.catalog.references import SPIRIT, Reference
from ..registry.digests import DigestMemory
from ..registry.errors import (
    BaseMismatchError,
    ConflictError,
    GateError,
    InvalidArtifactError,
    InvalidReferenceError,
    NotFoundError,
    StoreError,
    UnsupportedAdapterError,
    UsageError,
)
from ..registry.store.files import copy_folder, whole_folder
from ..registry.strict_json import read_object

SERVED_BASE = "RECCOCKTAIL_SERVE_BASE"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be."""


@dataclass(frozen=True)
class Origin:
    """What a name means: an adapter version, or the adapter that a build made. `label` tells it from others of that name."""

    ref: str
    base: str
    digest: str
    label: str
    build: str | None = None

    @classmethod
    def of_adapter(cls, adapter: Adapter) -> Origin:
        return cls(adapter.ref, adapter.base, adapter.digest, f"v{adapter.version}")

    @classmethod
    def of_build(cls, build: Build) -> Origin:
        return cls(f"build {build.id}", build.base, build.stored_digest(), build.id, build.id)


@dataclass(frozen=True)
class Servable:
    """An adapter, and the folder on this machine where it lies, whose files are read-only."""

    origin: Origin
    folder: Path
    facts: AdapterFacts

    @property
    def rank(self) -> int:
        """The highest rank that its configuration names, which is what vLLM goes by."""
        return max(self.facts.config.r, *self.facts.config.rank_pattern.values.values(), 1)

    @property
    def is_uneven(self) -> bool:
        """Whether modules have ranks or alphas of their own, which an older vLLM passes over without a word."""
        return bool(self.facts.config.rank_pattern.values or self.facts.config.alpha_pattern.values)

    def refuse_unless_plain(self, resizing: Resizing | None = None) -> None:
        """Raises UnsupportedAdapterError for what vLLM refuses, and for what it would leave out without a word."""
        more = [str(resizing)] if resizing else []
        if reasons := "; ".join([*_beyond_vllm(self), *more]):
            raise UnsupportedAdapterError(
                f"{self.origin.ref} cannot be served as a LoRA by vLLM: {reasons}",
                hint="serve a merged checkpoint of it: `reccocktail build request DOMAIN --wait`, then `reccocktail resolve DOMAIN --merged`",
            )


@dataclass(frozen=True)
class Resizing:
    """The number of tokens of a base model, and that of an adapter which changes it."""

    before: int
    after: int

    def __str__(self) -> str:
        return f"the adapter has a vocabulary of {self.after} tokens, and its base model one of {self.before}"

    @property
    def way(self) -> str:
        return f"call model.resize_token_embeddings({self.after}) on the base model before PeftModel.from_pretrained"


def resizing(registry: Registry, found: Servable) -> Resizing | None:
    """What has to be done to the base model before the adapter fits; None if it fits as it is. Raises StoreError."""
    if not any(is_vocabulary(tensor.name) for tensor in found.facts.saved):
        return None  # so its base need not be fetched
    base = registry.bases.facts(registry.bases.get(found.origin.base))
    facts = inspect_adapter(found.folder, base, allow_base_mismatch=True, allow_partial=True, scan=False)
    if facts.vocabulary is None or base.input_embedding is None:
        return None
    return Resizing(base.tensors[base.input_embedding].info.shape[0], facts.vocabulary)


def find(
    registry: Registry, ref: str | Reference, *, base: str | None = None, until: ExitStack | None = None
) -> Servable:
    """What a reference means now, fetched where it is not on this machine; it stays there as `Store.folder` says.

    Raises as `meant`, and StoreError.
    """
    origin = meant(registry, ref, base=base)
    folder = registry.store.folder(origin.digest, until=until)
    try:
        facts = inspect_adapter(folder, None, allow_partial=True, scan=False)
    except InvalidArtifactError as error:  # it was sound when it was registered: this is no matter of the adapter's
        raise StoreError(f"{origin.ref} cannot be read as it was registered: {error}", hint=error.hint) from error
    return Servable(origin, folder, facts)


def meant(registry: Registry, ref: str | Reference, *, base: str | None = None) -> Origin:
    """What a reference means now, if it may be served: an adapter version, else the adapter of the build that has the alias.

    An alias of adapters comes before one of builds. Raises NotFoundError, UsageError where it means versions for several bases,
    ConflictError for one that is archived and for a build that made no adapter, BaseMismatchError where there is none for
    `base` and there is one for another.
    """
    ref = Reference.parse(ref) if isinstance(ref, str) else ref
    try:
        adapter = registry.adapters.resolve(ref, base=base)
    except NotFoundError:
        if (build := _build_called(registry, ref, base)) is not None:
            return _made_adapter(build, ref)
        if base is None or not (other := _for_other_bases(registry, ref, base)):
            raise
        raise BaseMismatchError(f"{ref} was made for the base model {other}, not for {base!r}") from None
    if adapter.archived_at is not None:
        raise ConflictError(
            f"{adapter.ref} is archived",
            hint=f"make it active again: `reccocktail adapter archive {adapter.ref} --base {adapter.base} --undo`",
        )
    return Origin.of_adapter(adapter)


def _build_called(registry: Registry, ref: Reference, base: str | None) -> Build | None:
    """The build that has the alias, if one has. Raises UsageError where it is on builds for several bases."""
    if ref.alias is None:
        return None
    try:
        return registry.builds.get(registry.serving.resolve(str(ref), base=base).build)
    except NotFoundError:
        return None


def _made_adapter(build: Build, ref: Reference) -> Origin:
    """Raises ConflictError for a build whose result is no adapter; clients of a server get the message without the hint."""
    if build.recipe.get("output", {}).get("format") != "adapter":
        raise ConflictError(
            f"{ref} is build {build.id}, a whole checkpoint, which cannot be served beside its base model:"
            f" start a server with the folder that `reccocktail resolve {ref} --merged` prints",
            hint="a build by a recipe with `output: {format: adapter}` can be served beside its base model",
        )
    return Origin.of_build(build)


def digests(registry: Registry, refs: Iterable[Reference], *, base: str) -> dict[Reference, str]:
    """The digests of what references mean now for one base, as `meant` decides it, in at most two queries.

    What means nothing, an archived version or a whole checkpoint may be left out.
    """
    refs = {*refs}
    found = registry.adapters.digests(refs, base=base)
    return found | registry.serving.digests({ref for ref in refs - {*found} if ref.alias is not None}, base=base)


def served_base(registry: Registry, model: str, revision: str | None, named: str | None = None) -> Base:
    """The base model that a server which loaded `model` (a folder, or a Hub repo at a revision) serves.

    A folder is shown to be a base by its own bytes: configuration and weights. A Hub repo is shown to be one by the commit,
    or is taken for the one `named` by the user. Raises NotFoundError, BaseMismatchError, UsageError.
    """
    candidates = [registry.bases.get(named)] if named else registry.bases.list()
    if not candidates:
        raise NotFoundError("there is no base model yet", hint="run `reccocktail base add NAME SOURCE`")
    if os.path.isdir(model):  # noqa: PTH112  unlike a Path it answers for a name of any length
        memory = DigestMemory(registry.settings.own_folder("cache") / "digests")
        differences = {base.name: _difference(registry, base, Path(model), memory) for base in candidates}
        same = [base for base in candidates if differences[base.name] is None]
        if not same:
            raise BaseMismatchError(
                f"{model} is not a base model of the registry: "
                + "; ".join(f"it differs from {name} in {what}" for name, what in differences.items()),
                hint="serve the registry's own copy; `reccocktail resolve REF --format vllm` prints the command",
            )
    else:
        same = [base for base in candidates if base.revision and (base.source, base.revision) == (model, revision)]
        if not same and named:
            return candidates[0]
        if not same:
            raise BaseMismatchError(
                f"{model} could not be identified as a base model of the registry", hint=_how(model, candidates)
            )
    if len(same) > 1:
        names = ", ".join(base.name for base in same)
        raise UsageError(f"{model} is several base models: {names}", hint=f"say which: {SERVED_BASE}=NAME")
    return same[0]


def refuse_taken_names(registry: Registry, names: Iterable[str]) -> None:
    """Raises ConflictError if the base model is served under a name that means adapters: the base would answer for them."""
    for name in names:
        try:
            ref = Reference.parse(name)
        except InvalidReferenceError:
            continue
        if is_known(registry, ref):
            raise ConflictError(
                f"the base model is served as {name!r}, which is the name of adapters",
                hint="give it another --served-model-name",
            )


def is_known(registry: Registry, ref: Reference) -> bool:
    """Whether the name is `spirit` or a domain's; there may be no adapter of it."""
    if ref.name == SPIRIT:
        return True
    try:
        registry.domains.get(ref.name)
    except NotFoundError:
        return False
    return True


def vllm_command(registry: Registry, found: Servable, name: str) -> tuple[dict[str, str], list[str]]:
    """The LoRA module as vLLM's `--lora-modules` takes it, and the words of the command that serves it as `name`.

    Raises UnsupportedAdapterError, StoreError.
    """
    found.refuse_unless_plain(resizing(registry, found))
    base = registry.bases.get(found.origin.base)
    folder = str(registry.bases.folder(base))
    try:
        refuse_taken_names(registry, [base.name])
    except ConflictError:
        served, named = folder, []  # vLLM's own name for it
    else:
        served, named = base.name, ["--served-model-name", base.name]
    module = {"name": name, "path": str(found.folder), "base_model_name": served}
    rank = next(rank for rank in VLLM_RANKS if rank >= found.rank)
    command = ["vllm", "serve", folder, *named, "--enable-lora", "--max-lora-rank", str(rank)]
    return module, [*command, "--lora-modules", json.dumps(module)]


def write_for_peft(registry: Registry, found: Servable, target: Path) -> Path:
    """A copy of the adapter that PEFT loads as it is: its configuration names the base's folder on this machine.

    `target` must not exist, and does not afterwards if this fails. Answers with the base's folder.
    Raises StoreError, ConflictError if `target` was created meanwhile, OSError.
    """
    base = registry.bases.folder(registry.bases.get(found.origin.base))
    with whole_folder(target) as staged:
        copy_folder(found.folder, staged)
        path = staged / ADAPTER_CONFIG
        config = read_object(path)
        config |= {"base_model_name_or_path": str(base), "revision": None}  # of a Hub repo, which a folder is not
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")  # in ASCII: a path may not be UTF-8
    return base


def _for_other_bases(registry: Registry, ref: Reference, base: str) -> str | None:
    registry.bases.get(base)  # a base that does not exist is the error to report
    having = []
    for other in registry.bases.list():
        try:
            registry.adapters.resolve(ref, base=other.name)
        except GateError:
            pass
        except NotFoundError:
            if _build_called(registry, ref, other.name) is None:
                continue
        having.append(repr(other.name))
    return " and ".join(having) or None


def _beyond_vllm(found: Servable) -> Iterator[str]:
    facts, config = found.facts, found.facts.config
    if config.use_dora or any(module.magnitude for module in facts.modules):
        yield "it is DoRA"
    if config.lora_bias or config.bias != "none" or any(module.bias for module in facts.modules):
        yield "it has biases"
    if whole := [tensor.name for tensor in (*facts.saved, *facts.tokens)]:
        yield f"it holds {_some(whole)} as trained, whole or in rows, beside its low-rank factors"
    if rows := [module.weight for module in facts.modules if module.embeds or is_vocabulary(module.weight)]:
        yield f"it adapts {_some(rows)}, an embedding or head"
    if config.target_parameters or any(module.experts > 1 for module in facts.modules):
        yield "it adapts parameters of mixtures of experts"
    if found.rank > VLLM_RANKS[-1]:
        yield f"its rank is {found.rank}, and vLLM takes {VLLM_RANKS[-1]} at most"


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _difference(registry: Registry, base: Base, folder: Path, memory: DigestMemory) -> str | None:
    """The first of the base's configuration and weights that the folder does not have, or has otherwise."""
    stored = registry.store.local(base.digest)
    if stored is not None and os.path.realpath(stored) == os.path.realpath(folder):
        return None
    files = registry.store.tree(base.digest).files
    wanted = {name: entry for name, entry in files.items() if name in (CONFIG, INDEX) or name.endswith(".safetensors")}
    for name, entry in wanted.items():  # cheap first
        path = folder / name
        if not path.is_file():
            return f"{name}, which is not there"
        if path.stat().st_size != entry.bytes:
            return f"{name}, which has {path.stat().st_size} bytes and not {entry.bytes}"
    if INDEX not in wanted:  # an index says which files count; without one the engine loads them all
        for path in sorted(folder.glob("*.safetensors")):
            if path.name not in wanted:
                return f"{path.name}, which the base does not have"
        if (folder / INDEX).is_file():
            return f"{INDEX}, which the base does not have"
    for name, entry in wanted.items():
        if memory.file_digest(folder / name) != f"sha256:{entry.sha256}":
            return f"the content of {name}"
    return None


def _how(model: str, candidates: Sequence[Base]) -> str:
    ways = ["serve the registry's own copy (`reccocktail resolve REF --format vllm` prints the command)"]
    ways += [
        f"serve it with --revision {base.revision}" for base in candidates if base.revision and base.source == model
    ]
    return " or ".join([*ways, f"set {SERVED_BASE} to the name of the base model that it is"])
