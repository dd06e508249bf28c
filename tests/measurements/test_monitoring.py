"""Projections against naive ones, and AUROC of planted labels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import collate
from em.errors import MeasurementError
from em.hooks import Site, capturing
from em.interventions.steering_vector import SteeringVector
from em.measurements.monitoring import best, projections, separation
from em.stats import Estimate, Floats, Resampling
from tests.interventions.examples import direction
from tests.measurements.samples import examples, rows
from tests.tiny import tiny_backbone

EXAMPLES = examples(9)
SITES = [Site(0), Site(2)]
VECTORS = {site: direction().at(site) for site in SITES}


@torch.no_grad()
def naive(backbone: Backbone, site: Site, vector: Tensor) -> Floats:
    scores = []
    for one in EXAMPLES:
        with capturing({site: backbone.module_at(site)}) as captured:
            backbone.trunk(torch.tensor([one.ids]))
        mean = captured[site][0][torch.tensor(one.answer)].double().mean(dim=0)
        scores.append(float(mean @ vector.double() / vector.double().norm()))
    return np.array(scores)


@pytest.mark.parametrize("size", [1, 4])
def test_projections_equal_the_naive_ones(size: int) -> None:
    """The unit vector counts, not its length; answer tokens count, neither prompt nor padding."""
    backbone = tiny_backbone()
    found = projections(backbone, rows(EXAMPLES, size), {site: 7 * v for site, v in VECTORS.items()})
    assert found.index_E.tolist() == list(range(len(EXAMPLES)))
    for site, vector in VECTORS.items():
        assert found.scores[site] == pytest.approx(naive(backbone, site, vector), rel=1e-4, abs=1e-4)


def test_several_directions_in_one_pass() -> None:
    backbone = tiny_backbone()
    stacked = {site: torch.stack([vector, -2 * vector, vector.flip(0)]) for site, vector in VECTORS.items()}
    found = projections(backbone, rows(EXAMPLES), stacked)
    for site, vector in VECTORS.items():
        assert found.scores[site].shape == (len(EXAMPLES), 3)
        assert found.scores[site][:, 0] == pytest.approx(naive(backbone, site, vector), rel=1e-4, abs=1e-4)
        assert found.scores[site][:, 1] == pytest.approx(-found.scores[site][:, 0])
        assert found.scores[site][:, 2] == pytest.approx(
            naive(backbone, site, vector.flip(0)), rel=1e-4, abs=1e-4
        )


def test_neither_the_order_of_batches_nor_blank_rows_matter() -> None:
    backbone = tiny_backbone()
    listed = rows(EXAMPLES)
    plain = projections(backbone, listed, VECTORS)
    other = projections(backbone, [collate([], [], 0), *reversed(listed)], VECTORS)
    assert np.array_equal(plain.index_E, other.index_E)
    for site in SITES:
        assert np.array_equal(plain.scores[site], other.scores[site])


def test_nothing_to_project_is_refused() -> None:
    with pytest.raises(MeasurementError, match="no answer to project"):
        projections(tiny_backbone(), [collate([], [], 0)], VECTORS)


def test_planted_labels_are_told_apart_at_and_above_the_planted_layer() -> None:
    backbone, site = tiny_backbone(), Site(1)
    solution = SteeringVector(layer=1, point="block")
    vector = direction().at(site)
    careful = projections(backbone, rows(EXAMPLES), {Site(0): vector, site: vector})
    solution.attach(backbone)
    with torch.no_grad():
        solution.vector.copy_(100.0 * vector / vector.norm())
    careless = projections(backbone, rows(EXAMPLES), {Site(0): vector, site: vector})
    assert careless.scores[site] - careful.scores[site] == pytest.approx(np.full(9, 100.0), rel=1e-4)
    draws = Resampling([one.prompt for one in EXAMPLES], 50)
    assert separation(careless.scores[site], careful.scores[site], draws) == Estimate(1.0, 1.0, 1.0)
    assert separation(careful.scores[site], careless.scores[site], draws).value == 0.0
    below = separation(careless.scores[Site(0)], careful.scores[Site(0)], draws)
    assert below.value == pytest.approx(0.5), "below the vector both are the same"


def test_scores_that_do_not_exist_separate_nothing() -> None:
    draws = Resampling(["a", "b"], 10)
    found = separation(np.array([1.0, np.nan]), np.array([0.0, 0.0]), draws)
    assert found == Estimate(None, None, None)


def test_the_best_is_the_first_of_the_highest() -> None:
    values = [None, 0.5, 0.9, 0.9, None]
    assert best([Estimate(value, None, None) for value in values]) == 2
    assert best([Estimate(None, None, None)] * 2) == 0
