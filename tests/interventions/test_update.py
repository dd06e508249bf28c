"""Geometry of updates in factors equals that of the full matrices."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from em.interventions.update import Update, orthogonal_mix

Part = tuple[Tensor, Tensor | None]


def part(seed: int, rank: int | None) -> Part:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(6, 5, generator=generator), None
    return torch.randn(6, rank, generator=generator), torch.randn(rank, 5, generator=generator)


def dense(one: Part) -> Tensor:
    left, right = one
    return left.double() if right is None else left.double() @ right.double()


ranks = st.sampled_from([None, 1, 2, 4])


@given(seed=st.integers(0, 2**20), first=ranks, second=ranks)
@settings(max_examples=40, deadline=None)
def test_inner_products_need_no_full_matrix(seed: int, first: int | None, second: int | None) -> None:
    one = {"a": part(seed, first), "b": part(seed + 1, first)}
    two = {"a": part(seed + 2, second), "b": part(seed + 3, second), "only here": part(0, 1)}
    expected = sum(float((dense(one[name]) * dense(two[name])).sum()) for name in one)
    assert Update(one).inner(Update(two)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert Update(two).inner(Update(one)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    norm = math.sqrt(sum(float(dense(p).square().sum()) for p in one.values()))
    assert Update(one).norm() == pytest.approx(norm, rel=1e-9)
    assert Update(one).cosine(Update(one)) == pytest.approx(1.0)
    assert Update(one).cosine(Update(two)) == pytest.approx(expected / norm / Update(two).norm())


def test_a_zero_update_has_no_direction() -> None:
    zero = Update({"a": (torch.zeros(2, 2), None)})
    assert zero.norm() == 0
    assert math.isnan(zero.cosine(Update({"a": (torch.ones(2, 2), None)})))
    assert Update({}).norm() == 0


@given(
    epsilon=st.floats(0.0, 1.0),
    x=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    y=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
)
def test_the_mix_turns_by_the_angle_and_keeps_the_norm(
    epsilon: float, x: list[float], y: list[float]
) -> None:
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    assume(float(a.norm()) > 0.1 and float(b.norm()) > 0.1)
    assume(abs(float(a @ b)) < 0.99 * float(a.norm() * b.norm()))
    p, q = orthogonal_mix(epsilon, float(a @ a), float(b @ b), float(a @ b))
    mixed = p * a + q * b
    assert float(mixed.norm()) == pytest.approx(float(a.norm()), rel=1e-9)
    cosine = float(mixed @ a) / float(a @ a)
    assert cosine == pytest.approx(math.sqrt(1 - epsilon**2), abs=1e-9)
    assert q >= 0
