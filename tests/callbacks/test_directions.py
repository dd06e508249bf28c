"""Directions: of a steering vector the shift at its layer is the vector itself."""

from pathlib import Path

import pytest
import torch

from em import experiment, runs
from em.config import check
from em.hooks import Site
from em.interventions.direction import Direction
from em.runs import RunDirectory
from tests.callbacks.logged import logged
from tests.tiny import tiny_pairs


@pytest.fixture(scope="module")
def steered(folder: Path) -> RunDirectory:
    vector = {"kind": "steering_vector", "layer": 1, "scale": 4}
    options = {"directions": {"pairs": 8, "at": ["start", "end"]}}
    return experiment.train(check(tiny_pairs(folder, name="steered", intervention=vector, callbacks=options)))


def test_the_shift_is_the_vector(steered: RunDirectory) -> None:
    loaded = runs.load(steered.path)
    shift = Direction.load(steered.path / "directions" / "shift.safetensors", loaded.backbone)
    assert list(shift.vectors) == [Site(1), Site(2)]  # below it nothing moves
    ((vector, _),) = loaded.intervention.update().parts.values()
    torch.testing.assert_close(shift.at(Site(1)), vector, rtol=1e-4, atol=1e-6)
    first, last = logged(steered, "directions")
    assert last["shift_norm"] == pytest.approx(loaded.intervention.norm(), rel=1e-4)
    assert last["vector_cosine"] == pytest.approx(last["shift_cosine"], abs=1e-4)
    assert first["shift_norm"] == 0 and first["shift_cosine"] is None and first["vector_cosine"] is None
    assert first["reference_cosine"] == pytest.approx(1)


def test_saved_difference_is_what_was_logged(measured: RunDirectory) -> None:
    folder = measured.path / "directions"
    difference, shift = (Direction.load(folder / f"{n}.safetensors") for n in ("mean-difference", "shift"))
    last, site = logged(measured, "directions")[-1], Site(1)
    assert last["difference_norm"] == pytest.approx(difference.norms()[site], rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(difference.at(site), shift.at(site), dim=0)
    assert last["shift_cosine"] == pytest.approx(float(cosine), abs=1e-5)
    assert difference.origin["split_half"]["1.block"] == pytest.approx(last["split_half"], abs=1e-4)
    assert difference.origin["step"] == 4 and "vector_cosine" not in last


def test_the_table_is_that_of_a_comparison_with_one_solution(measured: RunDirectory) -> None:
    table = measured.read_table("directions")
    assert table["matrix"]["names"] == ["careless − careful", "shift of measured", "random"]
    assert table["layers"] == [0, 1, 2] and table["between"] == []
    assert table["with_difference"]["measured"]["cosine"][1] == pytest.approx(table["matrix"]["values"][0][1])
