"""What a mix becomes as one adapter: its targets with their ranks, and the tensors that it holds whole.

Nothing of the adapters is left over; what one adapter cannot hold is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...registry.artifacts.lora import PREFIX, LoraModule, SavedTensor, TokenRows
from ..errors import MergeError
from .adapter_mix import AS_CHECKPOINT, AdapterMix
from .peft_names import rank_patterns, target_modules
from .plan import Change, changes, expect_agreement


@dataclass(frozen=True)
class Pair:
    """One target of the written adapter: B and A, and the modules of the parts that go into them."""

    uses: tuple[Change, ...]
    key: str
    rank: int
    exact_rank: int | None
    is_parameter: bool

    @property
    def module(self) -> LoraModule:
        assert isinstance(self.uses[0].what, LoraModule)
        return self.uses[0].what

    @property
    def matched(self) -> str:
        """The name that PEFT looks up in its patterns."""
        return self.module.weight if self.is_parameter else self.module.name

    @property
    def is_embedding(self) -> bool:
        return self.module.embeds

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the delta B A."""
        return self.module.b.shape[0], self.module.a.shape[1]


class AdapterPlan:
    """Every parameter that a part changes, and what it becomes. Nothing of the parts is left over."""

    def __init__(self, mix: AdapterMix) -> None:
        self.mix = mix
        by_parameter = _by_parameter(mix)
        self.pairs: list[Pair] = []
        self.wholes: list[tuple[str, tuple[Change, ...]]] = []
        self.biases: dict[str, tuple[Change, ...]] = {}
        self.rows: list[tuple[str, tuple[Change, ...]]] = []
        low_rank: dict[str, tuple[Change, ...]] = {}
        for name, used in sorted(by_parameter.items()):
            if any(isinstance(use.what, SavedTensor) for use in used):
                self.wholes.append((name, used))
            elif all(isinstance(use.what, TokenRows) for use in used):
                self.rows.append((name, used))
            elif any(isinstance(use.what, TokenRows) for use in used):
                raise MergeError(
                    f"{name} has single tokens trained and a LoRA beside them, and no adapter can hold both",
                    hint=AS_CHECKPOINT,
                )
            elif used[0].is_bias:
                self.biases[name] = used
            else:
                low_rank[name] = used
        self.keeps_dora = self._keeps_dora(low_rank)
        nested = _nested(low_rank, mix)
        self.pairs = [self._pair(name, used, nested.get(name)) for name, used in low_rank.items()]
        if not self.pairs:
            raise MergeError(
                "every tensor that the adapters change is saved whole by one of them, so no LoRA is left to write",
                hint=AS_CHECKPOINT,
            )
        self._check_biases()

    def _keeps_dora(self, low_rank: Mapping[str, tuple[Change, ...]]) -> bool:
        """One adapter as it is keeps its magnitudes; any mix of DoRA is of full rank."""
        modules = [use.what for used in low_rank.values() for use in used if isinstance(use.what, LoraModule)]
        return (
            self.mix.is_one_alone
            and any(module.magnitude for module in modules)
            and (self.mix.rank is None or max(module.rank for module in modules) <= self.mix.rank)
        )

    def _pair(self, name: str, used: tuple[Change, ...], nested: str | None) -> Pair:
        mix = self.mix
        modules = [use.what for use in used if isinstance(use.what, LoraModule)]
        first = modules[0]
        layouts = [(m.b.shape[0], m.a.shape[1], m.transposed, m.experts) for m in modules]
        owners = [mix.called(use) for use in used]
        expect_agreement(name, [*zip(owners, layouts, strict=True)], fields="out, in, fan_in_fan_out, experts")
        most = min(first.b.shape[0], first.a.shape[1])
        key = nested or f"{PREFIX}{first.name}" + first.a.name[first.a.name.rindex(".lora_") :]
        dora = next((use for use in used if isinstance(use.what, LoraModule) and use.what.magnitude), None)
        if mix.method.kind == "deltas" or (dora and not self.keeps_dora):
            why = f"holds DoRA in {mix.called(dora)}" if dora else f"is mixed by {mix.method.name!r}"
            return Pair(used, key, min(self._given_rank(name, used, why), most), None, nested is not None)
        if dora:
            mix.needs_base(used[0], name, "is a DoRA")
        exact = first.rank if mix.method.name == "factor" else sum(module.rank for module in modules)
        # a rank beyond what the matrix can have would be padding
        rank = exact if mix.rank is None or exact <= mix.rank else min(mix.rank, most)
        return Pair(used, key, rank, exact, nested is not None)

    def _given_rank(self, name: str, used: tuple[Change, ...], why: str) -> int:
        """The rank to which a dense delta is cut. Raises MergeError where there is none, or no delta of one stored tensor."""
        mix = self.mix
        if mix.rank is None:
            raise MergeError(
                f"{name} {why}, whose delta has full rank", hint=f"give a rank to cut it to, or {AS_CHECKPOINT}"
            )
        assert isinstance(used[0].what, LoraModule)
        if used[0].what.experts > 1:
            raise MergeError(f"{name} {why}, which an adapter cannot hold for experts", hint=AS_CHECKPOINT)
        mix.needs_base(used[0], name, why)
        mix.place(name, used)
        return mix.rank

    def _check_biases(self) -> None:
        """`lora_bias` is one switch for the whole adapter: where a part has it, each module needs a bias to add to."""
        if not self.biases:
            return
        for pair in self.pairs:
            bias = f"{pair.module.name}.bias"
            if (
                pair.is_parameter
                or pair.is_embedding
                or (bias not in self.biases and bias not in self.mix.base.tensors)
            ):
                use = next(iter(self.biases.values()))[0]
                raise MergeError(
                    f"{self.mix.called(use)} has lora_bias, which would apply to {pair.module.weight} too, and that has no bias",
                    hint=AS_CHECKPOINT,
                )

    def config(self) -> dict[str, object]:
        """`adapter_config.json`: the fields of PEFT 0.21's LoraConfig that say something here; others have their defaults."""
        ranks = {pair.matched: pair.rank for pair in self.pairs}
        # ties go to the larger, so that the order of modules does not decide
        common = max(Counter(ranks.values()).items(), key=lambda item: item[::-1], default=(1, 0))[0]
        patterns = rank_patterns(ranks, common)
        targets = {pair.module.name for pair in self.pairs if not pair.is_parameter}
        biases = [name for name, used in self.wholes if all(trains_only_bias(use) for use in used)]
        of_others = [name for name in biases if name.rpartition(".")[0] not in targets]
        rows = {name.rpartition(".")[0]: list(token_indices(used)) for name, used in self.rows}
        return {
            "peft_type": "LORA",
            "task_type": self._agreed("task_type"),
            "base_model_name_or_path": self._agreed("base_model_name_or_path"),
            "revision": self._agreed("revision"),
            "inference_mode": True,
            "r": common,
            "lora_alpha": common,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "use_rslora": False,
            "use_dora": self.keeps_dora,
            "lora_bias": bool(self.biases),
            "bias": "none" if not biases else "all" if of_others else "lora_only",
            "lora_dropout": 0.0,
            "init_lora_weights": True,
            "fan_in_fan_out": any(p.module.transposed for p in self.pairs if not p.is_embedding and not p.is_parameter),
            "modules_to_save": self._modules_to_save() or None,
            "target_modules": target_modules(targets, self.mix.base.tensors) if targets else [],
            "target_parameters": sorted(p.module.weight for p in self.pairs if p.is_parameter) or None,
            "trainable_token_indices": rows or None,
        }

    def _agreed(self, field: str) -> object:
        """What all parts say; where they differ nothing is said."""
        values = [config.get(field) for config in self.mix.configs]
        return values[0] if all(value == values[0] for value in values) else None

    def _modules_to_save(self) -> list[str]:
        modules = {n.rpartition(".")[0] for n, used in self.wholes if not all(trains_only_bias(use) for use in used)}
        given = {name for config in self.mix.configs for name in config.get("modules_to_save") or ()}
        # a part may have saved a module with others inside it, which PEFT wants named as it was
        around = {name for name in given if any(m.endswith(name) or f"{name}." in f"{m}." for m in modules)}
        return sorted(around | {m for m in modules if not any(m.endswith(n) or f"{n}." in f"{m}." for n in around)})


def trains_only_bias(use: Change) -> bool:
    """Whether a part trained a bias and nothing else of the module (`bias`, `lora_bias`)."""
    return use.what.why == "bias" if isinstance(use.what, SavedTensor) else use.is_bias


def token_indices(used: Sequence[Change]) -> list[int]:
    return sorted({index for use in used if isinstance(use.what, TokenRows) for index in use.what.indices})


def _by_parameter(mix: AdapterMix) -> dict[str, tuple[Change, ...]]:
    """What changes which parameter of the model."""
    found: dict[str, list[Change]] = {}
    for change in changes(mix.parts):
        saved = change.what
        if isinstance(saved, SavedTensor) and saved.why == "embedding" and _is_the_bases(mix, change, saved):
            continue
        found.setdefault(change.parameter, []).append(change)
    return {name: tuple(used) for name, used in found.items()}


def _is_the_bases(mix: AdapterMix, use: Change, saved: SavedTensor) -> bool:
    """Whether an embedding that PEFT saved along is the base's own, which need not be written. Refuses what is not."""
    mix.needs_base(use, saved.name, "is saved beside the LoRA")
    place = mix.place(saved.name, [use])
    old = mix.stored(place.tensor)
    if old.shape == saved.info.shape and torch.equal(old, mix.files[use.part].tensor(saved.info)):
        return True
    if old.shape != saved.info.shape or mix.base.tied_embeddings:
        what = "was resized" if old.shape != saved.info.shape else "was changed and is tied to the head"
        raise MergeError(f"{mix.called(use)}: {saved.name} {what}, which an adapter cannot hold", hint=AS_CHECKPOINT)
    return False


def _nested(low_rank: Mapping[str, tuple[Change, ...]], mix: AdapterMix) -> dict[str, str]:
    """{weight: key of its A} for what PEFT targets as parameters rather than modules.

    Several parameters of one module lie in each other in the file, in the order that the module has them; an adapter that has
    all of them determines that order. Raises MergeError if none has.
    """
    targets: dict[str, dict[int, dict[str, str]]] = {}
    for name, used in low_rank.items():
        for use in used:
            module = use.what
            assert isinstance(module, LoraModule)
            if module.parameter != "weight" or module.experts > 1 or _is_named(name, mix.configs[use.part]):
                targets.setdefault(module.name, {}).setdefault(use.part, {})[name] = module.a.name
    keys: dict[str, str] = {}
    for module, by_part in targets.items():
        together = {name for names in by_part.values() for name in names}
        complete = next((names for names in by_part.values() if names.keys() == together), None)
        if complete is None:
            raise MergeError(
                f"the adapters target different parameters of {module} ({', '.join(sorted(together))}), and none has them all",
                hint=AS_CHECKPOINT,
            )
        keys |= complete
    return keys


def _is_named(weight: str, config: Mapping[str, object]) -> bool:
    named = config.get("target_parameters") or ()
    return isinstance(named, list) and any(f".{weight}".endswith(f".{name}") for name in named)
