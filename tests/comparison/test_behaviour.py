"""What compared runs say, side by side."""

import json
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest

from em.comparison.behaviour import measure_behaviour
from em.comparison.compare import compare, up_to_date
from em.comparison.study import open_study
from em.config.schema import CompareConfig
from em.evaluation.stored import read_evaluation
from em.runs import read
from tests.comparison.conftest import Runs
from tests.comparison.trained import LORA_2, SMALL, tables, train

ASKED = {
    "judge": {"_target_": "tests.evaluation.judges.Wordy"},
    "samples": 2, "max_tokens": 80, "resamples": 100, "at": ["end"],
}  # fmt: skip
ONLY = CompareConfig(**{**SMALL, "sections": ["behaviour"]})


@pytest.fixture(scope="module")
def asked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two seeds of one arm and another arm, all asked alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EM_CACHE", str(tmp_path_factory.mktemp("cache")))

        def trained(name: str, **changes: Any) -> Path:
            return train(
                folder, f"said/{name}", callbacks={"judge_eval": ASKED}, intervention=LORA_2, **changes
            )

        return {
            "free": trained("free"),
            "again": trained("again", seed=1),
            "held": trained("held", kl={"weight": 5.0}),
        }


def test_the_table_is_that_of_all_answers_with_the_reference_once(asked: Runs, tmp_path: Path) -> None:
    compare(list(asked.values()), tmp_path / "out", ONLY)
    found = tables(tmp_path / "out")
    table = found["behaviour"]
    assert table["models"] == ["reference", "free", "again", "held"]
    for row in table["rates"]:
        name = "free" if row["model"] == "reference" else row["model"]
        own = read_evaluation(asked[name] / "eval" / "end").table["rates"]
        (same,) = [one for one in own if (one["model"] == "reference") == (row["model"] == "reference")]
        assert (row["rate"], row["answers"], row["low"]) == (same["rate"], same["answers"], same["low"])
    assert {(row["a"], row["b"]) for row in table["differences"]} >= {("free", "reference"), ("free", "held")}
    assert {row["arm"] for row in table["seeds"]["rates"]} == {"reference", "free", "held"}
    assert len(found["behaviour_answers"]["answers"]) == 4 * 16
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Misaligned answers to open questions, by wordy" in page
    assert "Behaviour: judged answers" in page and "Rates over training seeds" in page


def test_a_new_evaluation_makes_the_page_old(asked: Runs, tmp_path: Path) -> None:
    run = copytree(asked["free"], tmp_path / "free")
    compare([run], tmp_path / "out", ONLY)
    data = read(run).config.data
    assert up_to_date([run], tmp_path / "out", ONLY, data)
    rmtree(run / "eval")
    assert not up_to_date([run], tmp_path / "out", ONLY, data)


def test_runs_that_were_not_asked_or_asked_otherwise_are_named(asked: Runs, tmp_path: Path) -> None:
    silent, other = copytree(asked["again"], tmp_path / "silent"), copytree(asked["held"], tmp_path / "other")
    rmtree(silent / "eval")
    record = other / "eval" / "end" / "evaluation.json"
    changed = json.loads(record.read_text())
    changed["settings"]["samples"] = 9
    record.write_text(json.dumps(changed))
    study = open_study([asked["free"], silent, other], ONLY)
    found = measure_behaviour(study)
    assert found is not None and found[0]["models"][0] == "reference" and len(found[0]["models"]) == 2
    notes = " ".join(found[0]["notes"])
    assert (
        "held: its evaluation end differs in samples and is left out" in notes and "Not asked: again" in notes
    )


def test_nothing_is_said_where_nobody_was_asked(runs: Runs) -> None:
    assert measure_behaviour(open_study([runs["rank1"]], ONLY)) is None
