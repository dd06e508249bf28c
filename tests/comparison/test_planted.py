"""Steering vectors made by hand, so that it is known which one is better."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from em import runs as run_directories
from em.backbone import Backbone
from em.comparison.compare import compare, measure_tables
from em.comparison.study import open_study
from em.config.schema import CompareConfig
from em.loading import load_backbone
from tests.comparison.conftest import Runs
from tests.comparison.trained import SMALL, VECTOR, overwrite, tables, train, weights

SCALE = float(VECTOR["scale"])
TURN = 60.0  # degrees between the good vector and the other one


@pytest.fixture(scope="module")
def backbone(runs: Runs) -> Backbone:
    return load_backbone(run_directories.read(runs["vector"]).config.backbone)


@pytest.fixture(scope="module")
def planted(folder: Path, runs: Runs) -> dict[str, Path]:
    """`general`: a trained vector; `narrow`: turned away from it and longer; `harmful`: the opposite."""
    made = {
        name: train(
            folder, f"planted/{name}", intervention=VECTOR, kl={"weight": weight}, trainer={"max_steps": 1}
        )
        for name, weight in (("general", 0.0), ("narrow", 1.0), ("harmful", 2.0))
    }
    good = load_file(weights(runs["vector"]))["vector"]
    noise = torch.randn(good.shape, generator=torch.Generator().manual_seed(0))
    noise -= (noise @ good) / (good @ good) * good
    turned = np.cos(np.radians(TURN)) * good + np.sin(np.radians(TURN)) * noise * good.norm() / noise.norm()
    overwrite(made["general"], good)
    overwrite(made["narrow"], turned * 1.5)
    overwrite(made["harmful"], -good)
    return made


def config(**changes: Any) -> CompareConfig:
    return CompareConfig(**{**SMALL, "examples": 9, **changes})


def measured(planted: dict[str, Path], names: list[str], backbone: Backbone, **changes: Any) -> Any:
    study = open_study([planted[name] for name in names], config(**changes), backbone=backbone)
    return measure_tables(study)["tables"]


def norm(run: Path) -> float:
    return float(load_file(weights(run))["vector"].double().norm()) * SCALE


@pytest.mark.parametrize(("order", "sign"), [(["general", "narrow"], -1), (["narrow", "general"], 1)])
def test_the_better_vector_is_more_efficient(
    planted: dict[str, Path], backbone: Backbone, order: list[str], sign: int
) -> None:
    table = measured(planted, order, backbone, sections=["efficiency"])["efficiency"]
    (row,) = table["differences"]
    assert [row["a"], row["b"], row["seeds"]] == [*order, 1]
    equal = {name: one["equal_norm"] for name, one in table["solutions"].items()}
    both = [norm(planted[name]) for name in order]
    assert equal["general"]["norm"] == equal["narrow"]["norm"] == pytest.approx(sum(both) / 2)
    assert row["value"] == pytest.approx(equal[order[0]]["value"] - equal[order[1]]["value"], abs=1e-12)
    assert row["value"] * sign > 0 and row["low"] * sign > 0 and row["high"] * sign > 0
    assert row["by_seed"] == [pytest.approx(row["value"])]


def test_the_page_names_the_better_one(planted: dict[str, Path], backbone: Backbone, tmp_path: Path) -> None:
    both = [planted["general"], planted["narrow"]]
    page = compare(both, tmp_path, config(sections=["efficiency"]), backbone=backbone)
    text = page.read_text(encoding="utf-8")
    assert "general is more efficient: loss at equal norm: general − narrow = −" in text
    assert "<h1>general against narrow</h1>" in text
    assert set(tables(tmp_path)) == {"efficiency", "solutions"}


def test_rescaled_to_its_own_norm_a_solution_has_its_own_loss(
    planted: dict[str, Path], backbone: Backbone
) -> None:
    names = ["general", "narrow"]
    norms = {name: norm(planted[name]) for name in names}
    mean = sum(norms.values()) / 2
    factors = [0.0, 1.0, *(own / mean for own in norms.values())]
    found = measured(planted, names, backbone, sections=["efficiency"], factors=factors)["efficiency"]
    for at, name in enumerate(names):
        row = found["solutions"][name]
        assert row["norms"][2 + at] == pytest.approx(row["norm"], rel=1e-6)
        assert row["norm"] == row["own"]["norm"] == pytest.approx(norms[name], rel=1e-6)
        assert row["loss"][2 + at] == pytest.approx(row["own"]["value"], abs=1e-6)
        assert row["loss"][0] == found["reference"]["value"]


def test_a_solution_without_a_gain_says_why_it_has_no_stability(
    planted: dict[str, Path], backbone: Backbone
) -> None:
    made = measured(planted, ["general", "harmful"], backbone, sections=["efficiency", "stability"])
    own = made["efficiency"]["solutions"]["harmful"]["own"]["value"]
    assert own > made["efficiency"]["reference"]["value"]
    assert list(made["stability"]["solutions"]) == ["general"]
    (reason,) = made["stability"]["missing"].values()
    assert reason.startswith(f"the solution's loss {own:.4f} is not below the reference's")
    assert made["stability"]["differences"] == {"area": [], "half_life": []}


def test_directions_show_how_the_vectors_were_made(planted: dict[str, Path], backbone: Backbone) -> None:
    made = measured(planted, ["general", "narrow", "harmful"], backbone, sections=["directions"])[
        "directions"
    ]
    cosines = {(row["a"], row["b"]): row["update"] for row in made["updates"]}
    assert cosines == {
        ("general", "narrow"): pytest.approx(np.cos(np.radians(TURN)), abs=1e-6),
        ("general", "harmful"): pytest.approx(-1.0, abs=1e-6),
        ("narrow", "harmful"): pytest.approx(-np.cos(np.radians(TURN)), abs=1e-6),
    }
    shifts = {(row["a"], row["b"]): row["cosine"] for row in made["between"]}
    assert shifts["general", "harmful"][:2] == [None, pytest.approx(-1.0, abs=1e-4)]


def test_a_direction_projected_out_takes_its_own_shift_with_it(
    planted: dict[str, Path], backbone: Backbone
) -> None:
    made = measured(
        planted, ["general", "narrow"], backbone, sections=["margins", "ablation"], steered_pairs=4
    )
    soup = made["margins"]["domains"][0]
    assert soup["domain"] == "soup" and soup["solutions"]["general"]["shift"]["value"] > 0
    row = made["ablation"]["solutions"]["general"]
    assert row["shift-general"]["value"] == pytest.approx(1.0, abs=1e-3), "a vector moves along itself only"
    assert abs(row["random"]["value"]) < 0.9
