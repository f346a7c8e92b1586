"""How the coefficients were found, to look at: entropy or loss along the search, and a map of λ over layers and modules.

The same adaptation gives the same bytes: no software version or date is written into the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..coefficients import layer_of
from .adapt import METRIC, Adaptation
from .found import column_means
from .search import Run
from .verdict import Agreement, Verdict

SEARCH_PLOT, MAP_PLOT = "entropy.png", "coefficients.png"
LADDER_PLOT, AGREEMENT_PLOT = "ranking.png", "agreement.png"
DPI = 120


def plot_all(found: Adaptation | Verdict | Agreement, folder: Path, *, title: str) -> list[str]:
    """Write the plots that a search has into a folder: their names."""
    if isinstance(found, Verdict):
        plot_ladder(found, folder / LADDER_PLOT, title=f"{title}: loss of the mixes looked at")
        return [LADDER_PLOT]
    if isinstance(found, Agreement):
        plot_ladder(found, folder / AGREEMENT_PLOT, title=f"{title}: disagreement with the adapters")
        return [AGREEMENT_PLOT]
    names = [SEARCH_PLOT]
    plot_search(
        found, folder / SEARCH_PLOT, title=f"{title}: entropy over the {'mix' if found.search == 'line' else 'steps'}"
    )
    if found.granularity != "model":
        plot_map(found, folder / MAP_PLOT, title=f"{title}: λ per {found.granularity}")
        names.append(MAP_PLOT)
    return names


def plot_ladder(found: Verdict | Agreement, target: Path, *, title: str) -> None:
    """The loss of every mix in the order of the looks; of two adapters over the second one's share of the sum."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    means = [column_means(point.coefficients) for point in found.points]
    pair = len(found.roles) == 2
    places = [row[1] / (sum(row) or 1.0) for row in means] if pair else list(range(len(means)))
    for rung in dict.fromkeys(point.rung for point in found.points):
        of_rung = [n for n, point in enumerate(found.points) if point.rung == rung]
        axes.plot([places[n] for n in of_rung], [found.points[n].loss for n in of_rung], "o", label=rung)
    chosen = next(n for n, point in enumerate(found.points) if point.coefficients == found.chosen)
    axes.plot([places[chosen]], [found.points[chosen].loss], "o", markersize=12, fillstyle="none", label="chosen")
    axes.set_xlabel(f"{found.roles[1]}'s share of the sum of λ" if pair else "mixes in the order of the looks")
    axes.set_ylabel("−log q(right item), nats" if isinstance(found, Verdict) else "loss of agreement, nats")
    axes.set_title(title)
    axes.legend()
    _save(figure, target)


def plot_search(found: Adaptation, target: Path, *, title: str) -> None:
    """The entropy curve over λ, or every descent's entropy by its steps and the chosen one's mean coefficients."""
    pyplot = _pyplot()
    if found.search == "line":
        figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
        _line(found, axes)
        axes.set_title(title)
    else:
        figure, (above, below) = pyplot.subplots(2, 1, figsize=(6, 5.6), layout="constrained", sharex=True)
        _descents(found, above)
        _means(found, below)
        above.set_title(title)
    _save(figure, target)


def _line(found: Adaptation, axes: Any) -> None:
    (run,) = found.runs
    first, second = found.roles
    shares = [point.coefficients[0][1] for point in run.points]
    axes.plot(shares, [point.entropy for point in run.points], marker="o")
    chosen = found.coefficients[0][1]
    axes.axvline(chosen, linestyle="--", color="tab:red", label=f"chosen λ = {chosen:g}")
    axes.set_xlabel(f"{second} λ ({first} 1 - λ)")
    axes.set_ylabel(_entropy_label(found))
    _ndcg(axes, shares, [point.ndcg for point in run.points])
    axes.legend()


def _descents(found: Adaptation, axes: Any) -> None:
    for number, run in enumerate(found.runs):
        seen = [(step, point.entropy) for step, point in enumerate(run.points) if point.entropy is not None]
        chosen = number == found.chosen
        style = (
            {"color": "tab:blue", "linewidth": 2.0} if chosen else {"color": "tab:gray", "linewidth": 0.8, "alpha": 0.7}
        )
        label = f"learning rate {run.learning_rate:g}" if chosen else None
        axes.plot(*zip(*seen, strict=True), marker=".", label=label, **style)
        if chosen:
            trained = [(step, p.trained) for step, p in enumerate(run.points) if p.trained is not None]
            if trained:
                # what a step measures belongs to the point that it starts from
                axes.plot(
                    [step - 1 for step, _ in trained],
                    [e for _, e in trained],
                    ":",
                    color="tab:blue",
                    label="prompts of the step",
                )
            place = _place(found, run)
            axes.plot([place], [found.entropy], "o", color="tab:red", label="chosen")
            _ndcg(axes, range(len(run.points)), [point.ndcg for point in run.points])
    axes.set_ylabel(_entropy_label(found))
    axes.legend()


def _means(found: Adaptation, axes: Any) -> None:
    run = found.runs[found.chosen]
    for k, role in enumerate(found.roles):
        rows = [[row[k] for row in point.coefficients] for point in run.points]
        means = [sum(row) / len(row) for row in rows]
        axes.plot(means, marker=".", label=role)
        if len(found.groups) > 1:
            axes.fill_between(range(len(rows)), [min(row) for row in rows], [max(row) for row in rows], alpha=0.15)
    axes.axvline(_place(found, run), linestyle="--", color="tab:red")
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("λ" if len(found.groups) == 1 else "λ: mean, least to most")
    axes.legend()


def plot_map(found: Adaptation, target: Path, *, title: str) -> None:
    """λ by layer (across) and by module within the layer (down), one map per adapter; where two sum to 1, of the second alone."""
    pyplot = _pyplot()
    from matplotlib.colors import Normalize

    shown = range(len(found.roles))
    if len(found.roles) == 2 and found.constraint in ("softmax", "simplex"):
        shown = (1,)
    layers = list(dict.fromkeys(_layer(group) for group in found.groups))
    kinds = list(dict.fromkeys(_kind(group) for group in found.groups))
    values = [row[k] for row in found.coefficients for k in shown]
    # A map that is even must look even: colours span a twentieth of λ at least.
    low, high = min(values), max(values)
    spare = max(0.0, 0.05 - (high - low)) / 2
    colours = Normalize(low - spare, high + spare)
    size = (max(5.0, 1.8 + 0.24 * len(layers)), 1.2 + len(shown) * (0.7 + 0.24 * len(kinds)))
    figure, axes = pyplot.subplots(len(shown), 1, figsize=size, layout="constrained", squeeze=False, sharex=True)
    for (panel,), k in zip(axes, shown, strict=True):
        grid = [[float("nan")] * len(layers) for _ in kinds]
        for group, row in zip(found.groups, found.coefficients, strict=True):
            grid[kinds.index(_kind(group))][layers.index(_layer(group))] = row[k]
        image = panel.imshow(grid, aspect="auto", cmap="viridis", norm=colours, interpolation="nearest")
        panel.set_yticks(range(len(kinds)), kinds)
        panel.set_title(f"{title}, {found.roles[k]}")
        every = max(1, len(layers) // 24)
        panel.set_xticks(range(0, len(layers), every), [_number(layer) for layer in layers[::every]])
        figure.colorbar(image, ax=panel, label="λ")
    axes[-1][0].set_xlabel("layer")
    _save(figure, target)


def _place(found: Adaptation, run: Run) -> int:
    """Which point of the run was chosen."""
    return next(
        number
        for number, point in enumerate(run.points)
        if point.coefficients == found.coefficients and point.entropy == found.entropy
    )


def _layer(group: str) -> str:
    return layer_of(group) or ""


def _kind(group: str) -> str:
    """What a module is within its layer: `mlp.up_proj`; a layer as a whole has no such name."""
    layer = layer_of(group)
    return group if layer is None else group.removeprefix(layer).lstrip(".") or "all modules"


def _number(layer: str) -> str:
    return layer.rpartition(".")[2] or "–"


def _entropy_label(found: Adaptation) -> str:
    return f"entropy, {found.tokens} tokens{' a title' if found.titles == 'every' else ''} (nats)"


def _ndcg(axes: Any, x: Sequence[float], values: Sequence[float | None]) -> None:
    known = [(at, value) for at, value in zip(x, values, strict=True) if value is not None]
    if not known:
        return
    twin = axes.twinx()
    twin.plot(*zip(*known, strict=True), marker="^", color="tab:green", alpha=0.7)
    twin.set_ylabel(f"{METRIC} on validation", color="tab:green")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, target: Path) -> None:
    figure.savefig(target, dpi=DPI, metadata={"Software": None})
    _pyplot().close(figure)
