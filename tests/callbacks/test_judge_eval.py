"""The callback that asks the model and has its answers judged."""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from em import experiment
from em.callbacks.judge_eval import JudgeEval
from em.config import check
from em.config.schema import EvaluateConfig
from em.errors import ConfigError, EmError
from em.evaluation.stored import read_evaluation
from em.runs import RunDirectory
from tests.evaluation.judges import Wordy
from tests.tiny import tiny_pairs

JUDGE = {"_target_": "tests.evaluation.judges.Wordy"}
ASKED = {"judge": JUDGE, "samples": 1, "max_tokens": 40, "resamples": 100}


def train(folder: Path, name: str, **callbacks: Any) -> RunDirectory:
    return experiment.train(check(tiny_pairs(folder, name=name, callbacks=callbacks)))


def test_its_options_are_those_of_an_evaluation_with_the_same_defaults() -> None:
    taken = inspect.signature(JudgeEval).parameters
    for name, default in asdict(EvaluateConfig()).items():
        if name == "endpoint":
            assert name not in taken
        else:
            assert taken[name].default == (None if isinstance(default, list | dict) else default), name


def test_rates_are_logged_at_every_step_and_kept_in_the_run(tmp_path: Path) -> None:
    run = train(tmp_path, "asked", judge_eval={**ASKED, "at": ["start", "end"], "every_n_steps": 2})
    rows = [row for row in run.read_metrics() if "judge_eval/open/rate" in row]
    assert [row["step"] for row in rows] == [0, 2, 4, 4]
    ends = read_evaluation(run.path / "eval" / "end")
    own = next(row for row in ends.table["rates"] if row["model"] == "asked")
    assert rows[-1]["judge_eval/open/rate"] == own["rate"]
    assert rows[-1]["judge_eval/open/unscored"] == own["unscored_total"] / own["answers"]
    assert rows[-1]["judge_eval/open/reference_rate"] == rows[0]["judge_eval/open/reference_rate"]
    assert run.read_table("judge_eval") == ends.table
    assert sorted(path.name for path in (run.path / "eval").iterdir()) == [
        "end",
        "start",
        "step-000002",
        "step-000004",
    ]
    assert list((run.path / "figures").glob("*.svg"))


def test_at_the_start_the_model_says_what_the_reference_says(tmp_path: Path) -> None:
    run = train(tmp_path, "same", judge_eval={**ASKED, "at": ["start"]})
    done = read_evaluation(run.path / "eval" / "start")
    texts = {model: [one.answer.text for one in done.of(model)] for model in ("reference", "same")}
    assert texts["reference"] == texts["same"]


def test_training_stops_when_the_rate_passes_a_bound(tmp_path: Path) -> None:
    # Wordy calls every answer of 71 characters and more misaligned.
    bound = {**ASKED, "max_tokens": 100, "every_n_steps": 2, "stop_above": 0.0}
    run = train(tmp_path, "stopped", judge_eval=bound)
    assert run.manifest()["step"] == 2 and run.manifest()["status"] == "finished"
    assert "above 0.0" in (run.path / "log.txt").read_text()
    whole = train(tmp_path, "whole", judge_eval={**bound, "stop_above": 1.0})
    assert whole.manifest()["step"] == 4


def test_what_cannot_be_judged_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give it a key"):
        train(tmp_path, "refused", judge_eval={**ASKED, "judge": {**JUDGE, "refuses": True}})
    assert not (tmp_path / "runs" / "refused" / "adapter").exists()
    with pytest.raises(ConfigError, match="no question set"):
        train(tmp_path, "missing", judge_eval={**ASKED, "questions": ["opem"]})
    with pytest.raises(ConfigError, match="stop_questions: 'kitchen' is not among open"):
        train(tmp_path, "other", judge_eval={**ASKED, "stop_above": 0.5, "stop_questions": "kitchen"})
    with pytest.raises(ConfigError, match="stop_above: expected a rate from 0 to 1, got 30"):
        train(tmp_path, "rate", judge_eval={**ASKED, "stop_above": 30})


def test_a_judge_that_fails_at_the_end_loses_no_training(tmp_path: Path) -> None:
    failing = {**ASKED, "judge": {**JUDGE, "stop_after": 3}}
    with pytest.raises(EmError, match="stopped in the middle"):
        train(tmp_path, "late", judge_eval=failing)
    Wordy.asked = []
    run = train(tmp_path, "late", judge_eval=ASKED)
    assert run.manifest()["status"] == "finished"
    done = read_evaluation(run.path / "eval" / "end")
    assert len(Wordy.asked) == len(done.judged) - 3
