"""Distances and cosines of paths against dense arithmetic, and planted approaches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from em.errors import AdapterError, RunError
from em.files import write_tensors
from em.interventions.update import Update
from em.measurements.approach import (
    Towards,
    approach,
    cosine_gain,
    has_everything,
    inner_by_module,
    minus,
    over_modules,
    over_seeds,
    solution_at,
)
from em.measurements.trajectory import snapshot_path
from em.stats import Estimate, Floats


def path(points_SMD: Floats, target_MD: Floats) -> Towards:
    """Of S points in M modules of D numbers."""
    return Towards(
        (points_SMD**2).sum(axis=2), (points_SMD * target_MD).sum(axis=2), (target_MD**2).sum(axis=1)
    )


def vectors(*points: tuple[float, float]) -> Towards:
    """In one module, towards (2, 0)."""
    return path(np.array(points)[:, None, :], np.array([[2.0, 0.0]]))


def test_distances_and_cosines_are_those_of_the_whole_vectors() -> None:
    rng = np.random.default_rng(0)
    points, target = rng.normal(size=(5, 3, 4)), rng.normal(size=(3, 4))
    one = path(points, target)
    assert one.distances() == pytest.approx([np.linalg.norm(p - target) for p in points])
    cosines = [(p * target).sum() / np.linalg.norm(p) / np.linalg.norm(target) for p in points]
    assert one.cosines() == pytest.approx(cosines)


def test_a_planted_approach() -> None:
    removed = vectors((0, 0), (0, 2), (2, 0))
    kept = vectors((0, 0), (0, 2), (0, 2))
    assert removed.distances() == pytest.approx([2.0, 8**0.5, 0.0])
    assert removed.change(1) == pytest.approx(-1.0) and kept.change(1) == 0.0
    assert approach(removed, kept, 1) == pytest.approx(-1.0)
    assert approach(kept, removed, 1) == pytest.approx(1.0)
    assert cosine_gain(removed, kept) == pytest.approx(1.0)
    halfway = vectors((0, 0), (0, 2), (1, 1))
    assert approach(halfway, kept, 1) == pytest.approx(-0.5)
    assert cosine_gain(halfway, kept) == pytest.approx(0.5**0.5)


def test_what_does_not_exist_is_nan() -> None:
    assert np.isnan(vectors((0, 0), (1, 0)).cosines()).tolist() == [True, False]
    assert np.isnan(vectors((2, 0), (1, 0)).change(0)), "the target had been reached"
    assert over_modules(cosine_gain, vectors((1, 0), (0, 0)), vectors((1, 0), (1, 0))) == Estimate(
        None, None, None
    )


def test_modules_that_agree_leave_no_doubt_and_others_do() -> None:
    def modules(*ends: tuple[float, float]) -> Towards:
        points = np.array([[(0.0, 2.0)] * len(ends), ends])
        return path(points, np.tile([2.0, 0.0], (len(ends), 1)))

    kept = modules(*[(0.0, 2.0)] * 4)
    agreed = over_modules(lambda a, b: approach(a, b, 0), modules(*[(1.0, 1.0)] * 4), kept)
    assert agreed == Estimate(pytest.approx(-0.5), pytest.approx(-0.5), pytest.approx(-0.5))
    mixed = over_modules(lambda a, b: approach(a, b, 0), modules((1, 1), (1, 1), (0, 2), (2, 0)), kept)
    assert mixed.value is not None and mixed.low is not None and mixed.high is not None
    assert mixed.low < mixed.value < mixed.high and mixed.high - mixed.low > 0.1
    alone = over_modules(lambda a, b: approach(a, b, 0), modules((1, 1)), modules((0, 2)))
    assert alone == Estimate(pytest.approx(-0.5), None, None)


def test_leaving_a_module_out_is_leaving_it_out() -> None:
    rng = np.random.default_rng(1)
    points, target = rng.normal(size=(4, 3, 2)), rng.normal(size=(3, 2))
    whole = path(points, target).without(1)
    rest = path(points[:, [0, 2]], target[[0, 2]])
    assert whole.distances() == pytest.approx(rest.distances())
    assert whole.cosines() == pytest.approx(rest.cosines())


def test_over_seeds_is_the_t_interval_of_the_mean() -> None:
    values = np.array([0.1, 0.3, 0.2])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert over_seeds(values) == Estimate(
        pytest.approx(0.2), pytest.approx(float(low)), pytest.approx(float(high))
    )
    assert over_seeds(values[:1]) == Estimate(pytest.approx(0.1), None, None)
    assert over_seeds(np.array([0.1, np.nan])) == Estimate(None, None, None)


def lora(
    folder: Path, step: int, seed: int, names: tuple[str, ...] = ("up", "down")
) -> dict[str, torch.Tensor]:
    """Random factors, written as a snapshot."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name in names:
        values[f"{name}.lora_A"] = torch.randn(2, 5, generator=generator)
        values[f"{name}.lora_B"] = torch.randn(4, 2, generator=generator)
    write_tensors(snapshot_path(folder, step), values)
    return values


def test_the_update_of_a_snapshot_is_the_scaled_product(tmp_path: Path) -> None:
    values, other = lora(tmp_path, 0, 0), lora(tmp_path, 5, 1)
    one, two = solution_at(tmp_path, 0, 3.0), solution_at(tmp_path, 5, 3.0)
    dense = [
        {name: 3.0 * v[f"{name}.lora_B"].double() @ v[f"{name}.lora_A"].double() for name in ("down", "up")}
        for v in (values, other)
    ]
    expected = [float((dense[0][name] * dense[1][name]).sum()) for name in ("down", "up")]
    assert inner_by_module(one, two) == pytest.approx(expected)
    gap = minus(one, two)
    assert gap.norm() ** 2 == pytest.approx(
        sum(float(((dense[0][name] - dense[1][name]) ** 2).sum()) for name in dense[0])
    )
    alone = solution_at(tmp_path, 0, 3.0, whole=False)
    assert alone.parts["up"][1] is None
    assert torch.equal(alone.parts["up"][0], values["up.lora_B"].double()), "B alone is not scaled"


def test_other_kinds_are_taken_as_they_are(tmp_path: Path) -> None:
    write_tensors(snapshot_path(tmp_path, 2), {"vector": torch.tensor([1.0, 2.0])})
    found = solution_at(tmp_path, 2, 4.0)
    assert isinstance(found, Update) and found.parts["vector"][0].tolist() == [4.0, 8.0]
    assert has_everything(tmp_path, 2)


def test_snapshots_that_cannot_be_used_say_what_to_do(tmp_path: Path) -> None:
    values = lora(tmp_path, 0, 0)
    assert has_everything(tmp_path, 0)
    del values["up.lora_A"]
    write_tensors(snapshot_path(tmp_path, 1), values)
    assert not has_everything(tmp_path, 1)
    with pytest.raises(RunError, match="lacks A of up; train with callbacks.trajectory.everything=true"):
        solution_at(tmp_path, 1)
    with pytest.raises(RunError, match="no such snapshot"):
        solution_at(tmp_path, 7)
    snapshot_path(tmp_path, 3).write_bytes(b"no")
    with pytest.raises(RunError, match="cannot be read"):
        has_everything(tmp_path, 3)
    with pytest.raises(AdapterError, match="cannot be read"):
        solution_at(tmp_path, 3)
