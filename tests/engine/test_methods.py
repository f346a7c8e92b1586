"""The oracle is numpy in float64, over random shapes, ranks, weights and scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reccocktail.engine.errors import RecipeError
from reccocktail.engine.methods import METHODS, Factors, factor, linear

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
