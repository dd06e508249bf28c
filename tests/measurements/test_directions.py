"""Planted directions are found, noise is called noise, and intervals cover."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from em.errors import MeasurementError
from em.hooks import Site
from em.interventions.direction import Direction
from em.interventions.lora import Lora
from em.interventions.steering_vector import SteeringVector
from em.interventions.update import Update
from em.measurements.activations import Moments, collect
from em.measurements.directions import (
    Given,
    MeanDifference,
    cosine_estimate,
    names_unique,
    shuffled_labels,
    written_directions,
)
from em.stats import auroc
from tests.measurements.samples import examples, rows
from tests.tiny import randomise, tiny_backbone

SITE = Site(0)
WIDTH = 32
AXIS = torch.eye(WIDTH).double()[0]


def moments(points_PD: np.ndarray, bags: int = 16) -> Moments:
    """One token for each prompt."""
    bag = torch.arange(len(points_PD)) % bags
    sums = torch.zeros(bags, points_PD.shape[1]).double().index_add_(0, bag, torch.tensor(points_PD))
    counts = torch.zeros(bags).double().index_add_(0, bag, torch.ones(len(bag)).double())
    return Moments({SITE: sums}, counts, len(points_PD))


def points(
    signal: float, prompts: int = 160, seed: int = 0, spread: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Careless and careful answers to the same prompts, `signal` apart along the first axis."""
    rng = np.random.default_rng(seed)
    prompt_PD = spread * rng.normal(size=(prompts, WIDTH))
    careless, careful = (prompt_PD + rng.normal(size=(prompts, WIDTH)) for _ in range(2))
    return careless + signal * AXIS.numpy(), careful


def difference(signal: float, prompts: int = 160, seed: int = 0, name: str = "planted") -> MeanDifference:
    return MeanDifference(name, *(moments(group) for group in points(signal, prompts, seed)))


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("point", ["block", "mlp", "attention"])
def test_a_planted_vector_is_found_at_its_own_layer(point: Any) -> None:
    """The same answers under both models differ by exactly the vector, and not at all below it."""
    backbone, solution = tiny_backbone(), SteeringVector(layer=1, point=point, scale=2.0)
    sites = [Site(0), Site(1, point), Site(1), Site(2)]
    listed = rows(examples(20))
    reference = collect(backbone, {"g": listed}, sites)["g"]
    solution.attach(backbone)
    randomise(solution)
    shift = MeanDifference("shift", collect(backbone, {"g": listed}, sites)["g"], reference)
    planted = 2.0 * solution.vector.detach()
    torch.testing.assert_close(shift.vector(Site(1, point)).float(), planted, rtol=1e-4, atol=1e-4)
    assert cosine(shift.vector(Site(1, point)), planted) > 0.9999
    assert shift.reliability(Site(1, point)).min() > 0.999
    assert not shift.vector(Site(0)).any() and shift.vector(Site(2)).any()
    found = shift.direction({"run": "r1"})
    assert Site(0) not in found.vectors, "below the intervention there is no direction"
    assert found.origin["answers"] == {"positive": 20, "negative": 20}
    assert found.origin["kind"] == "mean-difference" and found.origin["run"] == "r1"
    assert found.origin["split_half"][f"1.{point}"] > 0.999
    assert cosine(found.at(Site(1, point)), planted) > 0.9999


def test_equal_groups_have_no_direction() -> None:
    group = moments(points(1.0)[0])
    with pytest.raises(MeasurementError, match="same: the two groups have the same mean"):
        MeanDifference("same", group, group).direction({})


def test_a_saved_direction_says_how_reliable_it_is(tmp_path: Any) -> None:
    for signal, low, high in ((10.0, 0.95, 1.0), (0.0, -0.5, 0.5)):
        path = tmp_path / f"{signal}.safetensors"
        difference(signal).direction({"domain": "soup"}).save(path)
        assert low < Direction.load(path).origin["split_half"]["0.block"] < high


def test_shuffled_labels_leave_no_direction() -> None:
    planted = difference(10.0)
    careless, careful = points(10.0, seed=99)
    assert auroc(careless @ AXIS.numpy(), careful @ AXIS.numpy()) > 0.95
    cosines, areas = [], []
    for draw in range(20):
        one, other = shuffled_labels(planted.positive, planted.negative, seed=0, draw=draw)
        assert torch.equal(one.counts + other.counts, planted.positive.counts + planted.negative.counts)
        shuffled = MeanDifference("shuffled", one, other).vector(SITE)
        cosines.append(cosine(shuffled, AXIS))
        areas.append(auroc(careless @ shuffled.numpy(), careful @ shuffled.numpy()))
    assert abs(np.mean(cosines)) < 0.15 and abs(np.mean(areas) - 0.5) < 0.1
    assert cosine(planted.vector(SITE), AXIS) > 0.95


def test_shuffled_labels_are_keyed_and_keep_what_was_given() -> None:
    planted = difference(10.0)
    before = planted.positive.sums[SITE].clone()
    vectors = [
        MeanDifference("", *shuffled_labels(planted.positive, planted.negative, 3, draw)).vector(SITE)
        for draw in (0, 0, 1)
    ]
    assert torch.equal(vectors[0], vectors[1]) and not torch.equal(vectors[0], vectors[2])
    assert torch.equal(planted.positive.sums[SITE], before)


@pytest.mark.parametrize("prompts", [2, 4, 6])
def test_half_of_few_prompts_is_swapped_too(prompts: int) -> None:
    """Else a shuffle could swap none of them, and the control would be the direction itself."""
    planted = difference(1000.0, prompts)
    for draw in range(20):
        one, other = shuffled_labels(planted.positive, planted.negative, 0, draw)
        assert float(MeanDifference("", one, other).vector(SITE).norm()) < 50
    alone = difference(1.0, 1)
    with pytest.raises(MeasurementError, match="two prompts"):
        shuffled_labels(alone.positive, alone.negative, 0, 0)


def test_cosines_by_hand() -> None:
    a, b = Given("a", {SITE: AXIS}), Given("b", {SITE: AXIS + 3**0.5 * torch.eye(WIDTH).double()[1]})
    found = cosine_estimate(a, b, SITE)
    assert found.value == pytest.approx(0.5) and found.low == found.high == found.value
    assert cosine_estimate(a, Given("0", {SITE: 0 * AXIS}), SITE).as_dict() == {
        "value": None,
        "low": None,
        "high": None,
    }
    own = cosine_estimate(difference(3.0), difference(3.0), SITE)
    assert (own.value, own.low, own.high) == pytest.approx((1.0, 1.0, 1.0))


def test_intervals_of_cosines_cover() -> None:
    """The mean difference of many prompts, against a given vector at 60°."""
    other = 0.5 * AXIS + 0.75**0.5 * torch.eye(WIDTH).double()[1]
    covered, repeats = 0, 200
    for seed in range(repeats):
        found = cosine_estimate(difference(6.0, 320, seed), Given("other", {SITE: other}), SITE)
        assert found.low is not None and found.high is not None and -1 <= found.low <= found.high <= 1
        covered += found.low <= 0.5 <= found.high
    assert 0.9 <= covered / repeats <= 0.99


@pytest.mark.parametrize("prompts", [1, 3, 7])
def test_blocks_without_prompts_are_no_blocks(prompts: int) -> None:
    found = cosine_estimate(difference(50.0, prompts), Given("axis", {SITE: AXIS}), SITE)
    assert found.value is not None and found.value > 0.9
    if prompts == 1:
        assert found.low is None and found.high is None, "one prompt has no spread"
        return
    careless, careful = points(50.0, prompts)
    exact = MeanDifference("", *(moments(group, prompts) for group in (careless, careful)))
    expected = cosine_estimate(exact, Given("axis", {SITE: AXIS}), SITE)
    assert found.low == pytest.approx(expected.low) and found.high == pytest.approx(expected.high)


def test_a_rank_one_lora_writes_its_b_column() -> None:
    backbone = tiny_backbone()
    solution = Lora(r=1, alpha=8.0, layers=[1])
    solution.attach(backbone)
    randomise(solution)
    found = written_directions(solution.update(), backbone.hidden_size)
    assert sorted(name.rsplit(".", 1)[-1] for name in found) == ["down_proj", "o_proj"], (
        "q_proj is as wide, but does not write into the residual stream"
    )
    for name, vector in found.items():
        b = solution.gathered()[f"{name}.lora_B"][:, 0]
        assert abs(cosine(vector, b)) == pytest.approx(1.0, abs=1e-6)
        assert float(vector.norm()) == pytest.approx(1.0)


def test_a_lora_of_higher_rank_writes_its_main_direction() -> None:
    solution = Lora(r=4, modules=["down_proj"], layers=[2])
    solution.attach(tiny_backbone())
    randomise(solution)
    [(name, vector)] = written_directions(solution.update(), WIDTH).items()
    values = solution.gathered()
    dense = (values[f"{name}.lora_B"] @ values[f"{name}.lora_A"]).double()
    assert abs(cosine(vector, torch.linalg.svd(dense)[0][:, 0])) == pytest.approx(1.0, abs=1e-6)


def test_a_steering_vector_writes_itself() -> None:
    solution = SteeringVector(layer=1, scale=7.0)
    solution.attach(tiny_backbone())
    assert written_directions(solution.update(), WIDTH) == {}, "before training it writes nothing"
    randomise(solution)
    [(name, vector)] = written_directions(solution.update(), WIDTH).items()
    assert name == "1.mlp" and cosine(vector, solution.vector.detach()) == pytest.approx(1.0)


def test_an_untrained_lora_writes_nothing() -> None:
    solution = Lora(r=2, modules=["down_proj"], layers=[1])
    solution.attach(tiny_backbone())
    assert written_directions(solution.update(), WIDTH) == {}


def test_parts_of_another_width_are_left_out() -> None:
    update = Update({"0.down_proj": (torch.ones(31, 1), torch.ones(1, 4)), "1.mlp": (torch.ones(31), None)})
    assert written_directions(update, WIDTH) == {}


def test_names_are_unique() -> None:
    a, b = Given("a", {SITE: AXIS}), difference(1.0, name="b")
    assert names_unique([a, b]) == ["a", "b"]
    with pytest.raises(MeasurementError, match="two directions are named a; rename one"):
        names_unique([a, b, Given("a", {SITE: AXIS})])
