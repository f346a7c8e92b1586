"""Charts as shapes that templates draw as SVG: figures with intervals, a curve, a map of layers and modules.

Sizes are in units of the drawing; what a chart says stands in a table or a title beside it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...engine.coefficients import layer_of

LEFT, PLOT, ROW = 130, 430, 26
CURVE_WIDTH, CURVE_HEIGHT, MARGIN, SIDE = 580, 240, 48, 70
CELL_WIDTH, CELL_HEIGHT, NAMES = 22, 20, 150
MOST_ROWS = 20
APART = 50  # of two labels along an axis, so that neither lies on the other


@dataclass(frozen=True)
class Bar:
    """A mean with its interval: places across, and how far down."""

    label: str
    text: str
    mean: float
    low: float
    high: float
    y: int


@dataclass(frozen=True)
class Intervals:
    """`marks` are (place across, label) along the axis; `zero` is the place of 0, where it is drawn."""

    metric: str
    bars: Sequence[Bar]
    marks: Sequence[tuple[float, str]]
    width: int
    height: int
    zero: float | None = None


@dataclass(frozen=True)
class Curve:
    """`points` are (across, down, title, whether chosen); `marks` the ends of both axes as (across, down, text)."""

    points: Sequence[tuple[float, float, str, bool]]
    marks: Sequence[tuple[float, float, str]]
    across: str
    down: str
    width: int = CURVE_WIDTH
    height: int = CURVE_HEIGHT


@dataclass(frozen=True)
class HeatMap:
    """`cells` are (across, down, strength from 0 to 1, title)."""

    title: str
    cells: Sequence[tuple[int, int, float, str]]
    rows: Sequence[tuple[int, str]]
    columns: Sequence[tuple[int, str]]
    low: float
    high: float
    width: int
    height: int


def intervals(
    metric: str, figures: Sequence[tuple[str, Mapping[str, float]]], *, with_zero: bool = False
) -> Intervals | None:
    """Of (label, {mean, low, high}); None for nothing. At most MOST_ROWS are drawn, the first ones. Differences are drawn `with_zero`."""
    figures = figures[:MOST_ROWS]
    if not figures:
        return None
    shown = [0.0] if with_zero else []
    low, high = min(shown + [each["low"] for _, each in figures]), max(shown + [each["high"] for _, each in figures])
    spread = (high - low) or max(abs(high), 0.1)
    low, high = low - 0.05 * spread, high + 0.05 * spread

    def place(value: float) -> float:
        return round(LEFT + PLOT * (value - low) / (high - low), 1)

    bars = [
        Bar(label, f"{f['mean']:.3f} [{f['low']:.3f}, {f['high']:.3f}]", place(f["mean"]), place(f["low"]),
            place(f["high"]), ROW * n + ROW // 2)
        for n, (label, f) in enumerate(figures)
    ]  # fmt: skip
    marks = [(place(value), f"{value:.3f}") for value in (low, (low + high) / 2, high)]
    zero = place(0.0) if with_zero else None
    if zero is not None:
        marks = [(zero, "0"), *(mark for mark in marks if abs(mark[0] - zero) > APART)]
    return Intervals(metric, bars, marks, LEFT + PLOT + 30, ROW * len(bars) + 24, zero)


def curve(points: Sequence[tuple[float, float, bool]], across: str, down: str) -> Curve | None:
    """Of (x, y, whether chosen), in the order of x; None for fewer than two."""
    if len(points) < 2:
        return None
    points = sorted(points)
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    wide, tall = CURVE_WIDTH - SIDE - MARGIN, CURVE_HEIGHT - 2 * MARGIN

    def at(x: float, y: float) -> tuple[float, float]:
        spread = (xs[-1] - xs[0]) or 1.0, (max(ys) - min(ys)) or 1.0
        right, up = (x - xs[0]) / spread[0], (y - min(ys)) / spread[1]
        return round(SIDE + wide * right, 1), round(MARGIN + tall * (1 - up), 1)

    drawn = [(*at(x, y), f"{across} {x:.3g}: {down} {y:.4g}", chosen) for x, y, chosen in points]
    base = CURVE_HEIGHT - MARGIN + 18.0
    marks = [(SIDE, base, f"{xs[0]:.3g}"), (CURVE_WIDTH - MARGIN, base, f"{xs[-1]:.3g}")]
    marks += [(6, at(xs[0], value)[1] + 4, f"{value:.3f}") for value in (min(ys), max(ys))]
    return Curve(drawn, marks, across, down)


def search_curve(found: Mapping[str, Any]) -> Curve | None:
    """Of an adaptation's report: the loss, or the entropy, of every mix of two adapters over the second one's share."""
    roles = found.get("roles") or ()
    if len(roles) != 2:
        return None
    if found.get("points"):
        seen = [(point["means"], point["loss"], point["means"] == found.get("chosen")) for point in found["points"]]
        down = "loss (nats)"
    elif found.get("search") == "line":
        run = found["runs"][found["chosen"]]
        seen = [(point["means"], point["entropy"], False) for point in run["points"] if point["entropy"] is not None]
        down = "entropy (nats)"
    else:
        return None
    places = [(means[1] / (sum(means) or 1.0), value, chosen) for means, value, chosen in seen]
    return curve(places, f"share of the {roles[1]}", down)


def heat_map(title: str, values: Mapping[str, float], *, span: float = 0.05) -> HeatMap | None:
    """Of values by module or layer: layers across, modules down. Colours span at least `span`, so that what is even looks even."""
    if len(values) < 2:
        return None
    layers = _in_order(dict.fromkeys(_layer(name) for name in values))
    kinds = list(dict.fromkeys(_kind(name) for name in values))
    low, high = min(values.values()), max(values.values())
    spare = max(0.0, span - (high - low)) / 2
    low, high = low - spare, high + spare
    cells = [
        (NAMES + CELL_WIDTH * layers.index(_layer(name)), CELL_HEIGHT * kinds.index(_kind(name)),
         round((value - low) / (high - low), 3), f"{name}: {value:.4g}")
        for name, value in values.items()
    ]  # fmt: skip
    every = max(1, len(layers) // 12)
    columns = [(NAMES + CELL_WIDTH * n + CELL_WIDTH // 2, _number(layers[n])) for n in range(0, len(layers), every)]
    rows = [(CELL_HEIGHT * n + CELL_HEIGHT // 2 + 4, kind) for n, kind in enumerate(kinds)]
    size = NAMES + CELL_WIDTH * len(layers) + 10, CELL_HEIGHT * len(kinds) + 22
    return HeatMap(title, cells, rows, columns, low, high, *size)


def coefficient_maps(coefficients: Mapping[str, Any] | None) -> list[HeatMap]:
    """One for each adapter whose λ differs by layer or module."""
    found = []
    for role, given in (coefficients or {}).items():
        if isinstance(given, Mapping):
            values = {str(name): float(value) for name, value in given.items()}
        elif isinstance(given, Sequence):
            values = {f"layers.{n}": float(value) for n, value in enumerate(given)}
        else:
            continue
        if (drawn := heat_map(f"λ of the {role}", values)) is not None:
            found.append(drawn)
    return found


def _in_order(layers: Iterable[str]) -> list[str]:
    """By their numbers in each stack, the stacks as they came."""
    split = [(stack, int(number or -1), layer) for layer in layers for stack, _, number in [layer.rpartition(".")]]
    stacks = list(dict.fromkeys(stack for stack, _, _ in split))
    return [layer for _, _, layer in sorted(split, key=lambda each: (stacks.index(each[0]), each[1]))]


def _layer(name: str) -> str:
    return layer_of(name) or ""


def _kind(name: str) -> str:
    layer = layer_of(name)
    return name if layer is None else name.removeprefix(layer).lstrip(".").removesuffix(".weight") or "all modules"


def _number(layer: str) -> str:
    return layer.rpartition(".")[2] or "–"
