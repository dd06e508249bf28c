import json
from pathlib import Path

import pytest

from em.backbone import Backbone
from em.config.schema import BackboneConfig
from em.errors import ConfigError, RunError
from em.loading import load_backbone
from em.reproduce.claims import read_claims
from em.reproduce.figures import FigurePlan, Model
from em.reproduce.result import Result
from em.reproduce.run import reproduce, reproduce_all, stored_result
from em.runs import RunDirectory
from tests.reproduce.given import Given


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(BackboneConfig(model=str(folder / "model")))


@pytest.fixture
def out(folder: Path) -> Path:
    return folder / "out"


def run(plans: dict[str, FigurePlan], model: Model, out: Path, name: str = "first") -> Result:
    return reproduce(plans[name], model, read_claims(out.parent / "claims.yaml"), out)


def outcomes(result: Result) -> dict[str, str]:
    return {claim.id: verdict.outcome for claim, verdict in result.verdicts}


def test_runs_are_trained_measured_and_judged(plans: dict[str, FigurePlan], model: Model, out: Path) -> None:
    result = run(plans, model, out)
    assert outcomes(result) == {"above": "holds", "below": "does not hold", "unclear": "not decidable"}
    assert set(result.runs) == {"vector", "lora"} and min(result.runs.values()) > 0
    assert {path.name for path in (out / "members").iterdir()} >= {"vector", "lora"}
    page = (out / "first" / "report.html").read_text(encoding="utf-8")
    assert "It is above." in page and "does not hold" in page and "It &lt;b&gt;" in page
    assert (out / "first" / "figures" / "here-it.svg").is_file()


def test_nothing_is_done_twice(plans: dict[str, FigurePlan], model: Model, out: Path) -> None:
    run(plans, model, out)
    started = RunDirectory(out / "members" / "vector").manifest()["started"]
    before = Given.asked
    again = run(plans, model, out)
    assert Given.asked == before
    assert RunDirectory(out / "members" / "vector").manifest()["started"] == started
    assert outcomes(again)["above"] == "holds"


def test_other_options_or_another_run_are_measured_anew(
    plans: dict[str, FigurePlan], model: Model, out: Path
) -> None:
    run(plans, model, out)
    before = Given.asked
    plans["first"].analyses["there"]["low"] = 0.5
    assert outcomes(run(plans, model, out))["unclear"] == "holds"
    assert Given.asked == before + 1
    RunDirectory(out / "members" / "lora").update_manifest(started="later")
    run(plans, model, out)
    assert Given.asked == before + 2  # `here`, which has the LoRA; not `there`


def test_a_measurement_that_fails_says_why(plans: dict[str, FigurePlan], model: Model, out: Path) -> None:
    result = run(plans, model, out, "second")
    ((claim, verdict),) = result.verdicts
    assert verdict.outcome == "not decidable" and "no such thing" in verdict.text
    assert "no such thing" in (out / "second" / "report.html").read_text(encoding="utf-8")
    assert not (out / "second" / "broken" / "record.json").exists()  # so that it is tried again


def test_a_member_without_data_stops_no_other(plans: dict[str, FigurePlan], model: Model, out: Path) -> None:
    plans["first"].analyses["here"]["members"] = ["vector", "absent"]
    result = reproduce(plans["first"], model, read_claims(out.parent / "claims.yaml"), out / "absent")
    assert "nowhere.jsonl" in result.failed["absent"]
    assert "absent: " in result.failed["here"]
    assert outcomes(result) == dict.fromkeys(("above", "below", "unclear"), "not decidable")


def test_a_member_that_is_not_in_the_pool_is_refused(
    plans: dict[str, FigurePlan], model: Model, out: Path
) -> None:
    plans["first"].analyses["here"]["members"] = ["vectr"]
    with pytest.raises(ConfigError, match="vectr"):
        run(plans, model, out)


def test_another_configuration_of_a_finished_run_is_refused(
    plans: dict[str, FigurePlan], model: Model, out: Path
) -> None:
    run(plans, model, out)
    with pytest.raises(RunError, match="another configuration"):
        reproduce(plans["first"], model, [], out, ["seed=7"])


def test_one_figure_that_fails_stops_no_other(plans: dict[str, FigurePlan], model: Model, out: Path) -> None:
    claims = read_claims(out.parent / "claims.yaml")
    run(plans, model, out)
    damaged = out / "first" / "here" / "raw.json"
    kept = damaged.read_text()
    damaged.write_text("{")
    results, failed = reproduce_all([plans["first"], plans["second"]], model, claims, out, [])
    damaged.write_text(kept)
    assert [one.plan.name for one in results] == ["first", "second"] and not failed
    assert "cannot be read" in results[0].failed["here"]


def test_what_is_stored_is_read_without_a_model(
    plans: dict[str, FigurePlan], model: Model, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(plans, model, out)
    before = Given.asked
    monkeypatch.setattr("em.analyses.base.load_backbone", None)
    read = stored_result(plans["first"], model, read_claims(out.parent / "claims.yaml"), out)
    assert Given.asked == before
    assert outcomes(read) == outcomes(made) and read.runs == made.runs
    elsewhere = stored_result(plans["first"], model, [], out / "nothing")
    assert elsewhere.failed["here"] == "not measured; make reproduce FIG=first MODEL=tiny"


def test_the_record_says_what_was_measured(plans: dict[str, FigurePlan], model: Model, out: Path) -> None:
    run(plans, model, out)
    record = json.loads((out / "first" / "here" / "record.json").read_text())
    assert record["options"]["members"] == ["vector", "lora"] and record["seconds"] >= 0


def test_finished_runs_alone_are_measured_if_asked(
    plans: dict[str, FigurePlan], model: Model, out: Path
) -> None:
    elsewhere = out / "finished"
    reproduce(plans["second"], model, [], elsewhere)  # trains the LoRA alone
    result = reproduce(plans["first"], model, [], elsewhere, finished_only=True)
    assert result.failed["vector"] == "it is not trained, and --finished trains nothing"
    assert list(result.runs) == ["lora"] and not (elsewhere / "members" / "vector").exists()
