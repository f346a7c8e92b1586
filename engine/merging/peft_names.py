"""Names in a PEFT configuration: target modules, and the rank and alpha patterns of a written adapter."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def rank_patterns(ranks: Mapping[str, int], common: int) -> dict[str, int]:
    """PEFT's `rank_pattern` for what has another rank than `common`: {regular expression for the end of a name: rank}.

    PEFT takes the first key that fits `(.*\\.)?(key)$`. Each key here is the shortest dotted end that only names of one
    rank have, so at most one rank fits a name; a name that is the end of another is marked by `^`. Short keys
    also keep PEFT quick, which tries every key on every module.
    """
    by_end: dict[str, set[int]] = {}
    for name, rank in ranks.items():
        for end in _ends(name):
            by_end.setdefault(end, set()).add(rank)
    patterns: dict[str, int] = {}
    for name, rank in sorted(ranks.items()):
        if rank != common:
            end = next((end for end in _ends(name) if by_end[end] == {rank}), f"^{name}")
            patterns[end.replace(".", "\\.")] = rank
    return patterns


def target_modules(adapted: Collection[str], tensors: Collection[str]) -> list[str]:
    """PEFT's `target_modules`: last names (`q_proj`) if those name no other module of the base, else whole names."""
    known = {module for tensor in tensors for module in _around(tensor)}
    last = {name.rpartition(".")[2] for name in adapted}
    others = {name for name in known - set(adapted) if name.rpartition(".")[2] in last}
    # a name that is not the checkpoint's shows that the model's modules may have yet other names
    plain = all(name in known for name in adapted)
    return sorted(last) if plain and not others else sorted(adapted)


def _ends(name: str) -> list[str]:
    """`a.b.c` -> `c`, `b.c`, `a.b.c`."""
    pieces = name.split(".")
    return [".".join(pieces[start:]) for start in reversed(range(len(pieces)))]


def _around(tensor: str) -> list[str]:
    """The modules around a tensor: `a.b.weight` -> `a`, `a.b`."""
    pieces = tensor.split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces))]
