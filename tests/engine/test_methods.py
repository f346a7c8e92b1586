"""Oracles: numpy in float64, PEFT's own functions, and mergekit's results as benchmarks/mergekit_oracle.py recorded them."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from pydantic import ValidationError
from reccocktail.engine import methods
from reccocktail.engine.dense_methods import TASK_ARITHMETIC, weighted_sum
from reccocktail.engine.errors import RecipeError
from reccocktail.engine.methods import METHODS, Factors, factor, generator_for, linear
from safetensors import safe_open
from torch import Tensor

SIZES = st.integers(1, 24)
WEIGHTS = st.floats(-3, 3, width=32)
SCALES = st.floats(0.03125, 8, width=32)


def random_factors(seed: int, rows: int, columns: int, ranks: list[int], scales: list[float]) -> list[Factors]:
    random = torch.Generator().manual_seed(seed)
    return [
        Factors(torch.randn(r, columns, generator=random), torch.randn(rows, r, generator=random), scale)
        for r, scale in zip(ranks, scales, strict=True)
    ]


def product(pair: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    b, a = pair
    assert b.dtype == a.dtype == torch.float32
    return b.double().numpy() @ a.double().numpy()


@st.composite
def mixes(draw: st.DrawFn, *, alike: bool) -> tuple[list[Factors], list[float]]:
    count = draw(st.integers(1, 4))
    rank, scale = draw(SIZES), draw(SCALES)
    ranks = [rank if alike else draw(SIZES) for _ in range(count)]
    scales = [scale if alike else draw(SCALES) for _ in range(count)]
    factors = random_factors(draw(st.integers(0, 999)), draw(SIZES), draw(SIZES), ranks, scales)
    return factors, draw(st.lists(WEIGHTS, min_size=count, max_size=count))


@given(mixes(alike=False))
@settings(deadline=None)
def test_linear_is_the_weighted_sum_of_the_deltas(mixed):
    factors, weights = mixed
    terms = [w * f.scale * (f.b.double() @ f.a.double()).numpy() for f, w in zip(factors, weights, strict=True)]
    bound = sum(
        abs(w) * f.scale * (f.b.double().abs() @ f.a.double().abs()).numpy() for f, w in zip(*mixed, strict=True)
    )
    assert (np.abs(product(linear(factors, weights)) - sum(terms)) <= 1e-6 * bound + 1e-12).all()


@given(mixes(alike=True))
@settings(deadline=None)
def test_factor_mixes_a_and_b_apart_and_keeps_the_cross_terms(mixed):
    factors, weights = mixed
    pairs = list(zip(factors, weights, strict=True))
    b = sum(w * f.b.double().numpy() for f, w in pairs)
    a = sum(w * f.a.double().numpy() for f, w in pairs)
    bound = sum(abs(w) * f.b.abs().numpy() for f, w in pairs) @ sum(abs(w) * f.a.abs().numpy() for f, w in pairs)
    scale = factors[0].scale
    assert (np.abs(product(factor(factors, weights)) - scale * (b @ a)) <= 2e-6 * scale * bound + 1e-12).all()


def test_factor_of_two_equal_adapters_at_a_half_each_is_that_adapter():
    (one,) = random_factors(0, 5, 7, [3], [2.0])
    np.testing.assert_allclose(product(factor([one, one], [0.5, 0.5])), product(linear([one], [1.0])), rtol=1e-6)


def test_factor_of_one_adapter_takes_its_weight_twice():
    (one,) = random_factors(0, 5, 7, [3], [2.0])
    np.testing.assert_allclose(product(factor([one], [0.5])), 0.25 * product(linear([one], [1.0])), rtol=1e-6)


@pytest.mark.parametrize(
    ("ranks", "scales", "named"), [([2, 3], [1.0, 1.0], "rank 3"), ([2, 2], [1.0, 0.5], "scale 0.5")]
)
def test_factor_refuses_adapters_of_different_rank_or_scale_and_names_them(ranks, scales, named):
    with pytest.raises(RecipeError, match=named) as refused:
        factor(random_factors(0, 4, 4, ranks, scales), [0.5, 0.5])
    assert refused.value.hint is not None
    assert "linear" in refused.value.hint


@pytest.mark.parametrize("method", ["linear", "factor"])
def test_no_method_changes_the_factors_it_is_given(method):
    factors = random_factors(0, 4, 6, [2, 2], [1.5, 1.5])
    before = [(f.a.clone(), f.b.clone()) for f in factors]
    METHODS[method](factors, [0.3, 0.7])
    assert all(torch.equal(f.a, a) and torch.equal(f.b, b) for f, (a, b) in zip(factors, before, strict=True))


@pytest.mark.parametrize("method", ["linear", "factor"])
def test_every_adapter_needs_its_weight(method):
    with pytest.raises(ValueError, match="shorter"):
        METHODS[method](random_factors(0, 4, 6, [2, 2], [1.0, 1.0]), [0.5])


# --- methods on dense deltas ----------------------------------------------------------------------------------------

DENSE = [name for name, method in METHODS.items() if method.kind == "deltas"]
DRAWING = [name for name in DENSE if "generators" in METHODS[name].takes]
FREE = [name for name in DENSE if METHODS[name].coefficients == "any"]
SIMPLE = {"density": 0.5}


def options_of(name: str, **given: Any) -> dict[str, Any]:
    """Those of the given options that the method has."""
    return {option: value for option, value in given.items() if option in METHODS[name].options.model_fields}


def allowed_weights(name: str, count: int = 2) -> list[float]:
    return {"any": [0.75, -0.5, 1.25], "sum to 1": [0.75, 0.25], "all 1": [1.0, 1.0, 1.0]}[METHODS[name].coefficients][
        :count
    ]


def random_deltas(seed: int, shape: Sequence[int] = (9, 13), count: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=random) for _ in range(count)]


# mergekit

with safe_open(Path(__file__).parent / "oracles" / "mergekit.safetensors", "pt") as _file:
    ORACLE = {name: _file.get_tensor(name) for name in _file.keys()}  # noqa: SIM118
    CASES = json.loads(_file.metadata()["oracle"])["cases"]


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda n: f"{CASES[n]['method']}-{CASES[n]['inputs']}-{n}".replace(" ", "_")
)
def test_a_method_of_mergekit_gives_what_mergekit_gave(number):
    case = CASES[number]
    base = ORACLE[f"{case['inputs']}/base"]
    deltas = [ORACLE[f"{case['inputs']}/delta/{k}"] for k in range(len(case["weights"]))]
    if case["method"] == "linear":
        ours = weighted_sum(deltas, case["weights"])
    else:
        method = METHODS[case["method"]]
        generator = torch.Generator().manual_seed(case["seed"])  # mergekit draws all masks from one generator
        inputs = {
            "base": base,
            "deltas": deltas,
            "weights": case["weights"],
            "generators": [generator] * len(deltas),
        }
        ours = method.function(*(inputs[name] for name in method.takes), **case["options"])
    assert ours.dtype == torch.float32
    expected = ORACLE[f"case/{number}"].double()
    summands = [base.double() + delta for delta in deltas] if case["method"] == "slerp" else [base.double(), expected]
    scale = torch.stack(summands).abs().amax(dim=0)  # of what the last sum is of, since that may cancel
    assert ((base.double() + ours - expected).abs() <= 1e-6 * scale).all()


def test_every_method_that_is_not_ours_or_pefts_is_held_to_mergekit():
    recorded = {case["method"] for case in CASES}
    assert recorded == {"linear"} | {name for name in DENSE if not name.endswith("_peft")} - {"magnitude_prune"}


# PEFT

PEFTS: dict[str, tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "magnitude_prune": (merge_utils.magnitude_prune, [{}], [{}]),
    "dare_linear_peft": (merge_utils.dare_linear, [{}], [{}]),
    "ties_peft": (
        merge_utils.ties,
        [{"majority_sign": how} for how in ("total", "frequency")],
        [{"majority_sign_method": how} for how in ("total", "frequency")],
    ),
    "dare_ties_peft": (
        merge_utils.dare_ties,
        [{"majority_sign": how} for how in ("total", "frequency")],
        [{"majority_sign_method": how} for how in ("total", "frequency")],
    ),
}


SHAPES = [(9, 13), (31,), (1, 1), (3, 4, 5)]
MIXES = [[0.5, 0.5], [0.75, -1.5], [0.2, 0.3, 0.9], [2.0]]
# every method with every density, and over these every pair of a method or a density with a shape or a mix
GRID = [
    (name, density, MIXES[(row + column) % 4], SHAPES[(row + 3 * column + column // 4) % 4])
    for row, name in enumerate(PEFTS)
    for column, density in enumerate([0.01, 0.3, 0.5, 0.97, 1.0])
]


@pytest.mark.parametrize(("name", "density", "weights", "shape"), GRID, ids=str)
def test_a_method_of_peft_gives_what_peft_gives(name, density, weights, shape):
    original, our_choices, their_choices = PEFTS[name]
    deltas = random_deltas(len(weights), shape, len(weights))
    method = METHODS[name]
    for ours, theirs in zip(our_choices, their_choices, strict=True):
        generator = torch.Generator().manual_seed(7)
        torch.manual_seed(7)  # PEFT draws from the global generator
        with warnings.catch_warnings(action="ignore"):  # of a density of 1
            expected = original(list(deltas), torch.tensor(weights), density, **theirs)
        inputs = {"deltas": deltas, "weights": weights, "generators": [generator] * len(deltas)}
        got = method.function(*(inputs[part] for part in method.takes), density=density, **ours)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


# float64


def kept_largest(delta: np.ndarray, count: int, skip: int = 0) -> np.ndarray:
    """The delta without its `skip` largest values and all beyond the next `count`; magnitudes are distinct."""
    order = np.argsort(-np.abs(delta), axis=None)[skip : skip + count]
    kept = np.zeros(delta.size)
    kept[order] = delta.reshape(-1)[order]
    return kept.reshape(delta.shape)


def elected(votes: Sequence[np.ndarray]) -> np.ndarray:
    return np.where(sum(votes) >= 0, 1, -1)


def numpy_ties_peft(deltas: list[np.ndarray], weights: list[float], density: float, majority_sign: str) -> np.ndarray:
    kept = [kept_largest(d, int(density * d.size)) for d in deltas]
    sign = elected([np.sign(d) if majority_sign == "frequency" else d for d in kept])
    agree = [np.sign(d) == sign for d in kept]
    total = sum(w * d * a for w, d, a in zip(weights, kept, agree, strict=True))
    return total / np.maximum(1, sum(a.astype(float) for a in agree))


def numpy_consensus(deltas: list[np.ndarray], weights: list[float], normalize: bool) -> np.ndarray:
    weighted = [w * d for w, d in zip(weights, deltas, strict=True)]
    sign = elected(weighted)
    total = sum(np.where(np.sign(d) == sign, d, 0) for d in weighted)
    share = sum(np.where(np.sign(d) == sign, w, 0) for w, d in zip(weights, weighted, strict=True))
    return total / np.where(share == 0, 1, share) if normalize else total


def numpy_l1(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return after * (np.abs(before).sum() / np.abs(after).sum()) if np.abs(after).sum() else after


@st.composite
def exact_deltas(draw: st.DrawFn) -> tuple[list[Tensor], list[float]]:
    """Integers of distinct magnitudes and quarters as weights: signs and sums of a few are exact in float32."""
    count = draw(st.integers(1, 4))
    shape = draw(st.one_of(st.tuples(st.integers(1, 8), st.integers(1, 8)), st.tuples(st.integers(1, 40))))
    size = int(np.prod(shape))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    deltas = [random.permutation(np.arange(1, 401))[:size] * random.choice([-1, 1], size) for _ in range(count)]
    weights = draw(st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=count, max_size=count))
    return [torch.tensor(d.reshape(shape), dtype=torch.float32) for d in deltas], weights


DENSITIES = st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0])


def doubles(deltas: Sequence[Tensor]) -> list[np.ndarray]:
    return [d.double().numpy() for d in deltas]


def same(got: Tensor, expected: np.ndarray | float, terms: np.ndarray | float = 0.0) -> None:
    """Equal but for float32's rounding; `terms` is the sum of the sizes of what was added up, for a sum can cancel."""
    got_, noise = got.double().numpy(), 1e-5 + 1e-6 * np.abs(terms)
    assert (np.abs(got_ - expected) <= noise + 1e-5 * np.abs(expected)).all(), (got_, expected)


@given(exact_deltas())
@settings(deadline=None)
def test_weighted_sum_is_the_sum_in_any_order(mix):
    deltas, weights = mix
    expected = sum(w * d for w, d in zip(weights, doubles(deltas), strict=True))
    same(weighted_sum(deltas, weights), expected)
    same(weighted_sum(deltas[::-1], weights[::-1]), expected)


@given(exact_deltas(), DENSITIES)
@settings(deadline=None)
def test_magnitude_prune_is_the_sum_of_the_largest_values(mix, density):
    deltas, weights = mix
    kept = [kept_largest(d, int(density * d.size)) for d in doubles(deltas)]
    same(
        methods.magnitude_prune(deltas, weights, density=density),
        sum(w * d for w, d in zip(weights, kept, strict=True)),
    )


@given(exact_deltas(), DENSITIES, st.sampled_from(["total", "frequency"]))
@settings(deadline=None)
def test_ties_of_peft_elects_without_weights_and_divides_by_the_number(mix, density, how):
    deltas, weights = mix
    same(
        methods.ties_peft(deltas, weights, density=density, majority_sign=how),
        numpy_ties_peft(doubles(deltas), weights, density, how),
    )


@given(exact_deltas(), DENSITIES, st.booleans())
@settings(deadline=None)
def test_ties_of_mergekit_elects_by_weight_and_divides_by_weight(mix, density, normalize):
    deltas, weights = mix
    kept = [kept_largest(d, max(1, int(density * d.size))) for d in doubles(deltas)]
    same(
        TASK_ARITHMETIC["ties_mergekit"](deltas, weights, density=density, normalize=normalize, scale=0.5),
        0.5 * numpy_consensus(kept, weights, normalize),
    )


@given(exact_deltas(), DENSITIES, st.sampled_from([0, 0.01, 0.2, 0.6]), st.booleans())
@settings(deadline=None)
def test_breadcrumbs_drop_the_outliers_and_the_small(mix, density, gamma, rescale):
    deltas, weights = mix
    kept = []
    for d in doubles(deltas):
        count = int(density * d.size)
        outliers = min(int(gamma * d.size), d.size - count)
        part = d if density == 1 else kept_largest(d, count, skip=outliers)
        kept.append(numpy_l1(d, part) if rescale else part)
    chosen: dict[str, Any] = {"density": density, "gamma": gamma, "rescale": rescale}
    same(
        TASK_ARITHMETIC["breadcrumbs"](deltas, weights, **chosen),
        sum(w * d for w, d in zip(weights, kept, strict=True)),
        sum(np.abs(w * d) for w, d in zip(weights, kept, strict=True)),
    )
    if not rescale:  # exact only then: rescaled values can cancel in float64 and not in float32
        same(
            TASK_ARITHMETIC["breadcrumbs_ties"](deltas, weights, **chosen),
            numpy_consensus(kept, weights, normalize=False),
        )


@given(exact_deltas())
@settings(deadline=None)
def test_sce_weighs_deltas_by_their_energy_and_erases_the_minority(mix):
    deltas, _ = mix
    wide = doubles(deltas)
    energy = np.array([np.square(d).mean() for d in wide])
    shares = energy / energy.sum()
    sign = elected(wide)
    top = sum(s * np.where(np.sign(d) == sign, d, 0) for s, d in zip(shares, wide, strict=True))
    bottom = sum(s * (np.sign(d) == sign) for s, d in zip(shares, wide, strict=True))
    same(methods.sce(deltas), top / np.maximum(bottom, 1e-6))


def test_sce_keeps_the_values_that_vary_most_between_adapters():
    one, other = torch.tensor([[1.0, 5.0, 2.0, 8.0]]), torch.tensor([[1.5, -5.0, 2.5, 8.0]])
    kept = methods.sce([one, other], select_topk=0.34)  # one of the three that vary at all
    assert kept.nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [1.0, 0.05, 0.01, 1e-4])
def test_slerp_goes_along_the_arc_between_the_two_full_weights(size, t):
    base, first, second = random_deltas(3, (12, 9), 3)
    first, second = first * size, second * size
    w, u, v = doubles([base, base.double() + first, base.double() + second])
    cosine = (u * v).sum() / np.linalg.norm(u) / np.linalg.norm(v)
    angle = np.arccos(cosine)
    a, b = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    if cosine > 0.9995:  # mergekit takes the chord there
        a, b = 1 - t, t
    got = methods.slerp(base, [first, second], [1 - t, t]).double().numpy()
    np.testing.assert_allclose(got, a * u + b * v - w, rtol=0, atol=1e-6 * size)
    back = methods.slerp(base, [second, first], [t, 1 - t]).double().numpy()
    np.testing.assert_allclose(back, got, rtol=0, atol=1e-6 * size)


# Random masks


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_that_share_and_each_says_how_it_makes_up_for_the_rest(density):
    (delta,) = random_deltas(1, (200, 100), 1)
    peft = METHODS["dare_linear_peft"].combine("w", delta, [delta], [1.0], {"density": density})
    kept = peft != 0
    assert abs(float(kept.float().mean()) - density) < 0.02
    torch.testing.assert_close(peft[kept], delta[kept] / density)
    mergekit = METHODS["dare_linear_mergekit"].combine("w", delta, [delta], [1.0], {"density": density})
    assert torch.equal(mergekit != 0, kept)  # the same seed draws the same mask
    torch.testing.assert_close(mergekit.abs().sum(), delta.abs().sum())
    plain = METHODS["dare_linear_mergekit"].combine("w", delta, [delta], [1.0], {"density": density, "rescale": False})
    assert torch.equal(plain, delta * kept)


def test_della_keeps_larger_values_more_often_within_each_row():
    row = torch.tensor([0.1, -0.2, 0.3, -0.4, 0.5])
    delta = torch.stack([row, row.flip(0) * 100]).repeat(3000, 1)
    chosen = {"density": 0.5, "epsilon": 0.2, "rescale": False}
    kept = (METHODS["della_linear"].combine("w", delta, [delta], [1.0], chosen) != 0).float().reshape(3000, 2, 5)
    chances = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.7])
    torch.testing.assert_close(kept.mean(dim=0), torch.stack([chances, chances.flip(0)]), rtol=0, atol=0.04)


def test_della_of_one_column_keeps_by_the_density_less_epsilon():
    delta = torch.ones(4000, 1)
    chosen = {"density": 0.5, "epsilon": 0.2, "rescale": False}
    kept = METHODS["della_linear"].combine("w", delta, [delta], [1.0], chosen)
    assert abs(float(kept.mean()) - 0.3) < 0.04


@pytest.mark.parametrize("name", DRAWING)
def test_a_mask_depends_on_seed_tensor_and_adapter_and_on_nothing_else(name):
    base, *deltas = random_deltas(5, count=3)

    def drawn(tensor: str, seed: int, first: Tensor | None, second: Tensor | None, weights: list[float]) -> Tensor:
        chosen = SIMPLE | options_of(name, seed=seed, normalize=False)
        return METHODS[name].combine(tensor, base, [first, second], weights, chosen)

    once = drawn("a.weight", 1, deltas[0], deltas[1], [0.5, 0.5])
    torch.rand(7)
    drawn("b.weight", 2, deltas[1], None, [0.5, 0.5])
    assert torch.equal(once, drawn("a.weight", 1, deltas[0], deltas[1], [0.5, 0.5]))
    assert not torch.equal(once, drawn("a.weight", 2, deltas[0], deltas[1], [0.5, 0.5]))
    assert not torch.equal(once, drawn("b.weight", 1, deltas[0], deltas[1], [0.5, 0.5]))
    first = drawn("a.weight", 1, deltas[0], None, [1.0, 1.0])
    second = drawn("a.weight", 1, None, deltas[0], [1.0, 1.0])
    assert not torch.equal(first != 0, second != 0)


def test_generators_stay_what_they_were():
    """The bytes of every sampled merge follow from these."""
    assert generator_for(42, "model.layers.0.mlp.up_proj.weight", 1).initial_seed() == 3035990952195511616
    seeds = {generator_for(s, t, k).initial_seed() for s in (0, 1) for t in ("a", "b") for k in range(2)}
    assert len(seeds) == 8


# What holds for all


@pytest.mark.parametrize("shape", [(9, 13), (31,), (1, 1), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_the_combined_delta_is_float32_of_the_bases_shape_and_inputs_stay(name, shape):
    base, *deltas = random_deltas(0, shape, 3)
    before = [tensor.clone() for tensor in (base, *deltas)]
    weights = allowed_weights(name) if name in DENSE else [0.3, 0.7]
    for stored in (base, base.bfloat16()):
        got = METHODS[name].combine("w", stored, deltas, weights, options_of(name, **SIMPLE))
        assert (got.shape, got.dtype) == (base.shape, torch.float32)
        assert bool(got.isfinite().all())
    assert all(torch.equal(now, was) for now, was in zip((base, *deltas), before, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_that_leaves_the_tensor_alone_counts_as_a_delta_of_zeros(name):
    base, delta = random_deltas(1)
    weights = allowed_weights(name) if name in DENSE else [0.3, 0.7]
    chosen = options_of(name, **SIMPLE)
    absent = METHODS[name].combine("w", base, [delta, None], weights, chosen)
    assert torch.equal(absent, METHODS[name].combine("w", base, [delta, torch.zeros_like(delta)], weights, chosen))


@pytest.mark.parametrize("name", METHODS)
def test_deltas_of_nothing_make_nothing(name):
    base = torch.ones(4, 6)
    weights = allowed_weights(name) if name in DENSE else [0.3, 0.7]
    got = METHODS[name].combine("w", base, [None, torch.zeros(4, 6)], weights, options_of(name, **SIMPLE))
    assert not got.abs().max() > 1e-6


@pytest.mark.parametrize("name", sorted(set(FREE) - {"della", "ties_mergekit", "ties_peft", "dare_ties_peft"}))
def test_with_all_values_kept_and_no_election_the_method_is_linear(name):
    base, *deltas = random_deltas(2, count=4)
    weights = [0.5, 1.25, 0.0]
    if name.endswith("ties") or "_ties_" in name:
        deltas = [delta.abs() for delta in deltas]  # nobody to outvote
    got = METHODS[name].combine("w", base, deltas, weights, {"density": 1.0})
    torch.testing.assert_close(got, weighted_sum(deltas, weights))


@pytest.mark.parametrize("name", FREE)
def test_one_adapter_with_all_values_kept_is_itself(name):
    base, delta = random_deltas(3)
    got = METHODS[name].combine("w", base, [delta], [1.0], {"density": 1.0})
    torch.testing.assert_close(got, delta)


@pytest.mark.parametrize("name", sorted(set(FREE) - {"ties_peft", "dare_ties_peft"}))
def test_an_adapter_of_weight_zero_drops_out(name):
    base, *deltas = random_deltas(4, count=3)
    both = METHODS[name].combine("w", base, deltas, [0.5, 0.0], SIMPLE)
    torch.testing.assert_close(both, METHODS[name].combine("w", base, deltas[:1], [0.5], SIMPLE))


@pytest.mark.parametrize("name", ["ties_peft", "dare_ties_peft"])
def test_in_peft_an_adapter_of_weight_zero_still_votes(name):
    loud, quiet = torch.full((4, 4), -3.0), torch.full((4, 4), 1.0)
    got = METHODS[name].combine("w", quiet, [quiet, loud], [1.0, 0.0], {"density": 1.0})
    assert not got.any()


@pytest.mark.parametrize("name", ["ties_peft", "ties_mergekit", "magnitude_prune", "breadcrumbs", "breadcrumbs_ties"])
def test_the_order_of_adapters_does_not_matter_where_nothing_is_drawn(name):
    base, *deltas = random_deltas(6, count=4)
    weights = [0.5, -0.25, 0.75]
    turned = METHODS[name].combine("w", base, deltas[::-1], weights[::-1], SIMPLE)
    torch.testing.assert_close(turned, METHODS[name].combine("w", base, deltas, weights, SIMPLE))


@pytest.mark.parametrize("kept", [1, 2, 5, 6])
def test_of_equal_values_the_first_are_kept(kept):
    delta = torch.tensor([2.0, -2.0, 2.0, 1.0, 2.0, -2.0, 2.0])
    got = methods.magnitude_prune([delta], [1.0], density=(kept + 0.5) / 7)
    assert got.nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6][:kept]


# Descriptions


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_options_are_its_keyword_parameters_and_a_seed_where_it_draws(name):
    method = METHODS[name]
    assert method.name == name
    assert method.summary.endswith(".")
    row = TASK_ARITHMETIC.get(name)
    parameters = inspect.signature(row.prune if row else method.function).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    if row:
        keywords |= {"normalize": row.normalize, "rescale": row.rescale, "scale": 1.0}
    fields = dict(method.options.model_fields)
    seed = fields.pop("seed", None)
    assert (seed is not None) == (name in DRAWING)
    assert keywords == {n: p.empty if f.is_required() else f.default for n, f in fields.items() for p in parameters}
    assert all(field.description for field in fields.values())


OUT_OF_RANGE = {
    "density": [0, -0.1, 1.01, float("nan"), None, "half"],
    "majority_sign": ["loudest", None, 1],
    "normalize": ["perhaps", 2],
    "rescale": [None, 2],
    "scale": [float("inf"), float("nan"), "twice"],
    "gamma": [-0.01, 1],
    "epsilon": [-0.01, 0.5],
    "select_topk": [0, 1.5],
    "seed": [-1, 0.5],
    "colour": ["red"],
}


def test_every_option_has_values_that_are_out_of_range():
    assert {name for method in METHODS.values() for name in method.options.model_fields} < OUT_OF_RANGE.keys()


@pytest.mark.parametrize("name", METHODS)
def test_an_option_out_of_range_or_unknown_is_refused(name):
    needed = options_of(name, **SIMPLE)
    METHODS[name].options(**needed)
    for option in [*METHODS[name].options.model_fields, "colour"]:
        for value in OUT_OF_RANGE[option]:
            with pytest.raises(ValidationError, match=option):
                METHODS[name].options(**needed | {option: value})


@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_refuses_chances_below_none_and_above_all(name):
    for density, epsilon in ((0.9, 0.15), (0.1, 0.15), (0.25, 0.25)):
        with pytest.raises(ValidationError, match="density ± epsilon"):
            METHODS[name].options(density=density, epsilon=epsilon)
    assert METHODS[name].options(density=0.5, epsilon=0.4999)
    assert METHODS[name].options(density=1.0)


def test_coefficients_that_a_method_cannot_take_are_refused_where_it_is_used():
    base, *deltas = random_deltas(0, count=4)
    with pytest.raises(RecipeError, match="exactly 2 adapters, there are 3"):
        METHODS["slerp"].combine("w", base, deltas, [0.3, 0.3, 0.4])
    with pytest.raises(RecipeError, match=r"sum to 1, these are 0\.5, 0\.6"):
        METHODS["slerp"].combine("w", base, deltas[:2], [0.5, 0.6])
    with pytest.raises(RecipeError, match=r"every coefficient to be 1, these are 1, 0\.5"):
        METHODS["sce"].combine("w", base, deltas[:2], [1.0, 0.5])
    with pytest.raises(RecipeError, match="at least 1 adapters, there are 0"):
        METHODS["linear"].check([])


def test_a_method_on_dense_deltas_refuses_factors_and_says_which_methods_take_them():
    with pytest.raises(RecipeError, match="'ties_peft' combines dense deltas") as refused:
        METHODS["ties_peft"](random_factors(0, 4, 6, [2, 2], [1.0, 1.0]), [0.5, 0.5])
    assert refused.value.hint is not None
    assert "'linear', 'factor'" in refused.value.hint


@pytest.mark.parametrize("name", METHODS)
def test_every_delta_needs_its_weight(name):
    base, *deltas = random_deltas(0, count=4)
    with pytest.raises(ValueError, match="shorter"):
        METHODS[name].combine("w", base, deltas, allowed_weights(name), options_of(name, **SIMPLE))
