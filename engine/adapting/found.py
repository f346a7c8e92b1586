"""Coefficients as a search finds them, whatever its objective was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..coefficients import Weight

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class FoundCoefficients:
    """`coefficients` [groups][adapters] belong to `groups` (the whole model, layers or modules) and `roles`."""

    roles: tuple[str, ...]
    groups: tuple[str, ...]
    modules: Mapping[str, tuple[str, ...]]
    coefficients: Matrix
    granularity: str

    def means(self) -> dict[str, float]:
        """Each adapter's coefficient, averaged over the modules."""
        counts = [len(self.modules.get(group, ())) or 1 for group in self.groups]
        return {
            role: round(sum(row[k] * n for row, n in zip(self.coefficients, counts, strict=True)) / sum(counts), 6)
            for k, role in enumerate(self.roles)
        }

    def weights(self) -> dict[str, Weight]:
        """What a recipe says of each adapter: a number, or one per module."""
        if self.granularity == "model":
            return dict(zip(self.roles, self.coefficients[0], strict=True))
        return {
            role: {
                module: row[k]
                for group, row in zip(self.groups, self.coefficients, strict=True)
                for module in self.modules[group]
            }
            for k, role in enumerate(self.roles)
        }


def column_means(rows: Matrix) -> list[float]:
    """Each adapter's coefficient, averaged over the groups."""
    return [round(sum(column) / len(rows), 6) for column in zip(*rows, strict=True)]
