"""A whole comparison: files, numbers that must agree with each other, and what is left of it behind."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from em import runs as run_directories
from em.backbone import Backbone
from em.comparison import compare as comparing
from em.comparison import study as studies
from em.comparison.compare import compare, file_names, measure_tables, up_to_date
from em.comparison.study import open_study
from em.config.schema import CompareConfig, Section
from em.interventions.direction import Direction
from em.loading import load_backbone
from tests.comparison.conftest import Runs
from tests.comparison.trained import SMALL, files, set_manifest, tables

SECTIONS = set(get_args(Section)) - {"behaviour"}  # these runs were not asked; see test_behaviour.py


def config(**changes: Any) -> CompareConfig:
    return CompareConfig(**{**SMALL, **changes})


@pytest.fixture(scope="module")
def loaded() -> list[Backbone]:
    """Every backbone that the comparison of `out` loaded."""
    return []


@pytest.fixture(scope="module")
def out(runs: Runs, tmp_path_factory: pytest.TempPathFactory, loaded: list[Backbone]) -> Path:
    """All runs compared."""

    def load(config: Any) -> Backbone:
        loaded.append(load_backbone(config))
        return loaded[-1]

    folder = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "load_backbone", load)
        assert compare(list(runs.values()), folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def backbone(out: Path, loaded: list[Backbone]) -> Backbone:
    """The one that was loaded, after the comparison."""
    (one,) = loaded
    return one


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out, which takes most of the time."""

    def stub(folder: Path) -> Path:
        (folder / "report.html").write_text("page")
        return folder / "report.html"

    monkeypatch.setattr(comparing, "write_report", stub)


def test_every_section_has_a_table_and_the_page_its_figures(out: Path) -> None:
    assert set(tables(out)) == SECTIONS | {"solutions"}
    text = (out / "report.html").read_text(encoding="utf-8")
    linked = re.findall(r'href="((?:figures|tables)/[^"]+)"', text)
    assert {f"figures/{name}.svg" for name in ("efficiency", "stability", "margins", "ablation")} <= set(
        linked
    )
    assert all((out / name).is_file() for name in linked)
    written = {name for name in files(out) if name.endswith((".svg", ".png", ".csv"))}
    assert written == set(linked)
    assert not (out / ".measured").exists()


def test_directions_fit_the_backbone(out: Path, backbone: Backbone) -> None:
    listed = tables(out)["solutions"]["directions"]
    assert sorted(listed) == [f"directions/{path.name}" for path in sorted((out / "directions").iterdir())]
    found = {Path(name).stem: Direction.load(out / name, backbone) for name in listed}
    names = ["vector", "rank1", "rank2", "rank2-again", "narrow"]
    assert set(found) == {
        "mean-difference",
        *(f"{what}-{name}" for name in names for what in ("shift", "written")),
    }
    assert [site.layer for site in found["mean-difference"].vectors] == [0, 1, 2]
    assert [site.layer for site in found["shift-vector"].vectors] == [1, 2], "nothing moves below layer 1"


def test_the_backbone_is_loaded_once_and_left_as_it_was(backbone: Backbone, runs: Runs) -> None:
    hooked = [module for module in backbone.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooked == []
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    fresh = load_backbone(run_directories.read(runs["narrow"]).config.backbone)
    assert [name for name, _ in backbone.named_modules()] == [name for name, _ in fresh.named_modules()]
    for (name, one), (_, other) in zip(backbone.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_solutions_are_told_with_their_runs(out: Path, runs: Runs) -> None:
    table = tables(out)["solutions"]
    rows = {row["name"]: row for row in table["solutions"]}
    assert {name: row["run"] for name, row in rows.items()} == {
        name: str(path) for name, path in runs.items()
    }
    assert (rows["narrow"]["kl_weight"], rows["rank2"]["kl_weight"]) == (5.0, 0.0)
    assert (table["training"], table["domains"], table["notes"]) == ("soup", ["soup", "tent"], [])
    assert table["config"]["draws"] == 1 and "corpus" not in table["config"]


def test_numbers_of_different_sections_agree(out: Path) -> None:
    found = tables(out)
    loss = found["efficiency"]["solutions"]
    vector = loss["vector"]  # alone in its space, so the common norm is its own
    assert vector["norms"] == [0.0, vector["norm"]]
    assert vector["loss"][1] == vector["own"]["value"] == vector["equal_norm"]["value"]
    reference = found["efficiency"]["reference"]["value"]
    assert [row["loss"][0] for row in loss.values()] == [pytest.approx(reference, abs=1e-6)] * 5
    assert all(row["own"]["value"] < reference for row in loss.values())
    weights = [row for row in loss.values() if row["space"] == "weights"]
    mean = sum(row["norm"] for row in weights) / 4
    assert [row["norms"][1] for row in weights] == [pytest.approx(mean)] * 4
    assert found["stability"]["missing"] == {} and len(found["stability"]["solutions"]) == 5
    (part,) = found["significance"]["slices"].values()
    assert all(row["kl"][0] == 0 and row["kl"][1] > 0 for row in part["solutions"].values())
    assert [row["a"] + row["b"] for row in found["efficiency"]["differences"]] == [
        "rank1rank2",
        "rank1narrow",
        "rank2narrow",
    ], "arms of one space, seeds of one arm together"


def test_cosines_are_cosines(out: Path) -> None:
    table = tables(out)["directions"]
    names, values = table["matrix"]["names"], table["matrix"]["values"]
    assert names[0] == "careless − careful" and names[-2:] == ["shuffled labels", "random"]
    for at, row in enumerate(values):
        assert row[at] == pytest.approx(1.0) and max(map(abs, row)) <= 1 + 1e-9
        assert row == pytest.approx([line[at] for line in values])
    shift, own = names.index("shift of vector"), names.index("vector of vector")
    assert values[shift][own] == pytest.approx(1.0, abs=1e-4), "at its own layer a vector moves by itself"
    between = {(row["a"], row["b"]): row["replicates"] for row in table["between"]}
    assert between["rank2", "rank2-again"] and ("rank1", "rank2-again") not in between
    assert table["missing"] == {}


def test_the_same_command_gives_the_same_bytes(out: Path, runs: Runs, tmp_path: Path, undrawn: None) -> None:
    compare(list(runs.values()), tmp_path)
    for part in ("tables", "directions"):
        kept = {name: content for name, content in files(out / part).items() if not name.endswith(".csv")}
        assert files(tmp_path / part) == kept


def test_the_order_of_runs_changes_no_number(out: Path, runs: Runs, backbone: Backbone) -> None:
    order = ["narrow", "rank2-again", "vector", "rank2", "rank1"]
    made = measure_tables(open_study([runs[name] for name in order], backbone=backbone))["tables"]
    known = tables(out)

    def rows(found: dict[str, Any]) -> Any:
        (part,) = found["significance"]["slices"].values()
        every = [found["efficiency"], found["stability"], part, *found["margins"]["domains"]]
        return [section["solutions"] for section in every], found["ablation"]["solutions"]

    assert list(made["efficiency"]["solutions"]) == order
    _assert_close(json.loads(json.dumps(rows(made))), json.loads(json.dumps(rows(known))))


def _assert_close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            _assert_close(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_close(a, b)
    else:
        assert one == (pytest.approx(other, rel=2e-3, abs=2e-5) if isinstance(other, float) else other)


def test_only_what_is_asked_for(runs: Runs, backbone: Backbone) -> None:
    for sections in (["efficiency"], ["significance", "margins"], ["trajectory"]):
        study = open_study([runs["rank1"], runs["narrow"]], config(sections=sections), backbone=backbone)
        assert set(measure_tables(study)["tables"]) == {"solutions", *sections}
    study = open_study([runs["rank1"]], config(sections=["ablation"]), backbone=backbone)
    made = measure_tables(study)["tables"]
    assert set(made) == {"solutions", "ablation"}
    assert made["ablation"]["directions"] == ["mean-difference", "shift-rank1", "random"]


def test_an_earlier_comparison_is_replaced_and_other_files_are_kept(
    runs: Runs, backbone: Backbone, tmp_path: Path
) -> None:
    own = ["directions/mine.safetensors", "figures/mine.png", "tables/mine.json", "tables/mine.csv"]
    for name in own:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    one = [runs["rank1"]]
    compare(one, tmp_path, config(sections=["efficiency", "margins"]), backbone=backbone)
    assert (tmp_path / "figures" / "margins.png").is_file()
    compare(one, tmp_path, config(sections=["efficiency"]), backbone=backbone)
    rest = set(files(tmp_path)) - set(own)
    assert all((tmp_path / name).read_text() == "[]" for name in own)
    assert {name for name in rest if "margin" in name or "narrowness" in name or "shift" in name} == set()
    assert set(tables(tmp_path)) == {"efficiency", "solutions", "mine"}
    assert "Margin shift by domain" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", ["efficiency", "significance", "margins", "directions"])
def test_what_cannot_be_measured_says_so_and_the_rest_is_there(
    runs: Runs,
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    undrawn: None,
    tmp_path: Path,
) -> None:
    taken = comparing.measure

    def measure(study: Any, name: str, panels: Any) -> Any:
        found = taken(study, name, panels)
        if name in failing:
            found.missing[section] = "not finite"
            empty: Any = {} if section == "margins" else None
            setattr(
                found,
                {"directions": "moments"}.get(section, section),
                {} if section == "directions" else empty,
            )
        return found

    monkeypatch.setattr(comparing, "measure", measure)
    asked = config(sections=["stability", section])
    failing = {"narrow"}
    compare([runs["rank1"], runs["narrow"]], tmp_path / "one", asked, backbone=backbone)
    made = tables(tmp_path / "one")
    assert made[section]["missing"] == {"narrow": "not finite"} and made["solutions"]["notes"] == []
    failing = {"rank1", "narrow"}
    compare([runs["rank1"], runs["narrow"]], tmp_path / "none", asked, backbone=backbone)
    made = tables(tmp_path / "none")
    if section == "directions":  # the reference has one of its own
        assert made[section]["missing"] == {"rank1": "not finite", "narrow": "not finite"}
    else:
        said = f"{section} could not be measured. rank1: not finite; narrow: not finite"
        assert section not in made and made["solutions"]["notes"] == [said]
    assert len(made["stability"]["solutions"]) == 2


def test_files_of_directions_are_plain_and_unique() -> None:
    long = "x" * 300
    names = ["shift-a b", "shift-a/b", "../a", "shift-a-b", long, long + "y", "µ", "/tmp/runs/one"]
    found = file_names(names)
    assert list(found) == names and len(set(found.values())) == len(names)
    assert found["shift-a b"] == "directions/shift-a-b.safetensors"
    assert found["shift-a/b"] == "directions/shift-a-b~2.safetensors"
    assert found["../a"] == "directions/a.safetensors"
    assert all(len(name) < 120 and name.count("/") == 1 for name in found.values())


def test_up_to_date_is_these_runs_with_these_settings(
    runs: Runs, backbone: Backbone, copied: Callable[[str], Path], tmp_path: Path, undrawn: None
) -> None:
    paths = [runs["rank1"], copied("narrow")]
    asked, data = config(sections=["efficiency"]), run_directories.read(runs["rank1"]).config.data
    assert not up_to_date(paths, tmp_path, asked, data)
    compare(paths, tmp_path, asked, data, backbone)
    assert up_to_date(paths, tmp_path, asked, data)
    assert not up_to_date(paths, tmp_path, replace(asked, draws=2), data)
    assert not up_to_date(paths, tmp_path, asked, replace(data, max_length=64))
    assert not up_to_date(paths[:1], tmp_path, asked, data)
    before = _norm(paths[1])
    set_manifest(paths[1], norm=before + 1)
    assert not up_to_date(paths, tmp_path, asked, data), "trained again"
    set_manifest(paths[1], norm=before)
    assert up_to_date(paths, tmp_path, asked, data)
    (tmp_path / "report.html").unlink()
    assert not up_to_date(paths, tmp_path, asked, data)


def _norm(run: Path) -> float:
    return float(run_directories.read(run).manifest["norm"])
