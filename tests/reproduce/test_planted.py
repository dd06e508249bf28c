"""Tiny runs in which it was planted what is true: every claim of it holds, and its negation does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from em.analyses.base import Analysis
from em.backbone import Backbone
from em.config import build
from em.config.build import kinds
from em.config.schema import BackboneConfig
from em.loading import load_backbone
from em.reproduce.claims import Claim, negated, read_claims
from em.reproduce.figures import FigurePlan, Model, read_figures
from em.reproduce.run import POOL, reproduce, stored_result
from tests.reproduce import planted
from tests.reproduce.conftest import GIVEN, write
from tests.reproduce.planting import plant_all


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With pool.yaml, figures.yaml and claims.yaml."""
    home = tmp_path_factory.mktemp("planted")
    write(home / "pool.yaml", planted.pool(home))
    write(home / "figures.yaml", {"figures": planted.figures()})
    write(home / "claims.yaml", {"claims": planted.claims()})
    return home


@pytest.fixture(scope="module")
def plans(home: Path) -> dict[str, FigurePlan]:
    return read_figures(home / "figures.yaml")


@pytest.fixture(scope="module")
def claims(home: Path, plans: dict[str, FigurePlan]) -> list[Claim]:
    return read_claims(home / "claims.yaml", {name: plan.analyses for name, plan in plans.items()})


@pytest.fixture(scope="module")
def model(home: Path) -> Model:
    return Model("tiny", home / "pool.yaml", (), "nothing")


@pytest.fixture(scope="module")
def backbone(home: Path) -> Backbone:
    return load_backbone(BackboneConfig(model=str(home / "model")))


@pytest.fixture(scope="module")
def out(home: Path, plans: dict[str, FigurePlan], model: Model, backbone: Backbone) -> Iterator[Path]:
    """All runs are trained by a figure that needs them, and then planted."""
    members = list(dict.fromkeys(name for plan in plans.values() for name in plan.members()))
    first = FigurePlan("runs", 0, "Runs", "", "", {"runs": {"_target_": GIVEN, "members": members}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EM_CACHE", str(home / "cache"))
        trained = reproduce(first, model, [], home / "out", backbone=backbone)
        assert set(trained.runs) == set(members) and not trained.failed
        plant_all(home / "out" / POOL, backbone)
        yield home / "out"


def test_every_kind_of_analysis_has_planted_claims(plans: dict[str, FigurePlan], claims: list[Claim]) -> None:
    every = set(kinds("analyses"))
    assert {one["kind"] for plan in plans.values() for one in plan.analyses.values()} == every
    assert {one.figure for one in claims} == every


@pytest.mark.parametrize("kind", planted.FIGURES)
def test_what_was_planted_holds_and_its_negation_does_not(
    kind: str,
    plans: dict[str, FigurePlan],
    claims: list[Claim],
    model: Model,
    backbone: Backbone,
    out: Path,
) -> None:
    own = [one for one in claims if one.figure == kind]
    asked = [*own, *map(negated, own)]
    result = reproduce(plans[kind], model, asked, out, backbone=backbone)
    assert not result.failed
    told = {claim.id: f"{claim.statistic}: {verdict.text}" for claim, verdict in result.verdicts}
    outcomes = {claim.id: verdict.outcome for claim, verdict in result.verdicts}
    for one in own:
        assert outcomes[one.id] == "holds", told[one.id]
        assert outcomes[f"not-{one.id}"] == "does not hold", told[f"not-{one.id}"]
    again = stored_result(plans[kind], model, asked, out)
    assert {claim.id: verdict.outcome for claim, verdict in again.verdicts} == outcomes


def test_a_kind_is_an_analysis() -> None:
    for kind, options in planted.FIGURES.items():
        assert isinstance(build({"kind": kind, **options}, "analyses"), Analysis)
