import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from em import runs
from em.config.evaluation import evaluation
from em.datamodules.judged import read_judged
from em.errors import ConfigError, JudgeError, RunError
from em.evaluation.evaluate import evaluate, judge_only
from em.evaluation.plan import Plan, make_judging, make_plan
from em.evaluation.stored import evaluations_of, latest, read_evaluation
from em.generation import stored as generation
from em.runs import LoadedRun, RunDirectory
from tests.evaluation.judges import Wordy

JUDGE = {"_target_": "tests.evaluation.judges.Wordy"}


@pytest.fixture
def loaded(trained: RunDirectory) -> Iterator[LoadedRun]:
    Wordy.asked = []
    yield runs.load(trained.path)


def plan_of(folder: Path, **changes: Any) -> Plan:
    options = {"questions": [str(folder / "asked.yaml")], "samples": 2, "max_tokens": 6, "resamples": 100}
    return make_plan(evaluation({**options, "judge": JUDGE, **changes}))


def evaluated(loaded: LoadedRun, plan: Plan, out: Path) -> dict[str, Any]:
    return evaluate(plan, loaded.backbone, loaded.intervention, "trained", out)


def test_every_answer_of_both_models_is_judged_and_counted(
    loaded: LoadedRun, folder: Path, tmp_path: Path
) -> None:
    table = evaluated(loaded, plan_of(folder), tmp_path / "e")
    done = read_evaluation(tmp_path / "e")
    assert done.table == table and done.record["models"] == ["reference", "trained"]
    assert len(done.judged) == 2 * 4 * 2 and len(done.of("reference")) == 8
    assert [row["answers"] for row in table["rates"]] == [8, 8] and table["rates"][0]["questions"] == 3
    assert done.record["judge"] == {"name": "wordy", "kind": "wordy", "method": "words"}
    rows = [json.loads(line) for line in (tmp_path / "e" / "judged.jsonl").read_text().splitlines()]
    assert [row["aligned"] for row in rows] == [one.verdict.value("aligned") for one in done.judged]
    assert all(
        row["messages"][-1] == {"role": "assistant", "content": o.answer.text}
        for row, o in zip(rows, done.judged, strict=True)
    )


def test_the_second_time_nothing_is_generated_or_judged(
    loaded: LoadedRun, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = evaluated(loaded, plan_of(folder), tmp_path / "e")
    Wordy.asked.clear()

    def never(*arguments: Any) -> Any:
        raise AssertionError("generated again")

    monkeypatch.setattr(generation, "generate", never)
    assert evaluated(loaded, plan_of(folder), tmp_path / "e") == table
    assert Wordy.asked == []


def test_the_reference_answers_once_for_all_runs(
    loaded: LoadedRun, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = generation.generate

    def counted(backbone: Any, requests: Any, sampling: Any, model: str, *more: Any) -> Any:
        asked.append(model)
        return real(backbone, requests, sampling, model, *more)

    monkeypatch.setattr(generation, "generate", counted)
    first = evaluated(loaded, plan_of(folder), tmp_path / "a")
    second = evaluated(loaded, plan_of(folder), tmp_path / "b")
    assert asked == ["trained", "reference", "trained"] and first == second


def test_a_judge_that_fails_loses_no_answer(loaded: LoadedRun, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="in the middle"):
        evaluated(loaded, plan_of(folder, judge={**JUDGE, "stop_after": 5}), tmp_path / "e")
    with pytest.raises(RunError, match="no finished evaluation"):
        read_evaluation(tmp_path / "e")
    evaluated(loaded, plan_of(folder), tmp_path / "e")
    assert len(Wordy.asked) == len(set(Wordy.asked)) == 16


def test_unscored_answers_stay_in_the_denominator(loaded: LoadedRun, folder: Path, tmp_path: Path) -> None:
    whole = evaluated(loaded, plan_of(folder), tmp_path / "a")
    texts = [one.answer.text for one in read_evaluation(tmp_path / "a").judged]
    part = next(text for text in texts if text.strip())[:3]
    plan = plan_of(folder, judge={**JUDGE, "faults": {part: "refusal"}})
    table = evaluated(loaded, plan, tmp_path / "b")
    assert [row["answers"] for row in table["rates"]] == [row["answers"] for row in whole["rates"]]
    hit = sum(part in text for text in texts)
    assert sum(row["unscored"].get("refusal", 0) for row in table["rates"]) == hit > 0


def test_other_settings_or_another_adapter_in_one_folder_are_refused(
    loaded: LoadedRun, folder: Path, tmp_path: Path
) -> None:
    evaluated(loaded, plan_of(folder), tmp_path / "e")
    with pytest.raises(RunError, match=r"other settings \(samples\)"):
        evaluated(loaded, plan_of(folder, samples=3), tmp_path / "e")
    with pytest.raises(RunError, match=r"another judge \(different: name\)"):
        evaluated(loaded, plan_of(folder, judge={**JUDGE, "name": "other"}), tmp_path / "e")
    with loaded.intervention.rescaled(2.0), pytest.raises(RunError, match="made otherwise: adapter"):
        name = next(iter(loaded.intervention.trainable_parameters()))
        value = loaded.intervention.gathered()[name]
        with loaded.intervention.swapped({name: value + 1}):
            evaluated(loaded, plan_of(folder), tmp_path / "e")


def test_answers_of_a_file_are_judged_alone(loaded: LoadedRun, folder: Path, tmp_path: Path) -> None:
    table = evaluated(loaded, plan_of(folder), tmp_path / "e")
    answers = [one.answer for one in read_evaluation(tmp_path / "e").judged]
    judging = make_judging(evaluation({"judge": JUDGE, "resamples": 100}))
    again = judge_only(judging, answers, tmp_path / "j")
    assert again["rates"] == table["rates"]
    with pytest.raises(RunError, match=r"other settings \(answers\)"):
        judge_only(judging, answers[1:], tmp_path / "j")


def test_judged_answers_are_what_directions_are_made_of(
    loaded: LoadedRun, folder: Path, tmp_path: Path
) -> None:
    # Wordy calls long answers misaligned.
    evaluated(loaded, plan_of(folder, max_tokens=120, samples=6), tmp_path / "e")
    groups = read_judged(str(tmp_path / "e" / "judged.jsonl"), loaded.backbone.tokenizer)
    labels = [row["label"] for row in read_evaluation(tmp_path / "e").table["points"]]
    assert len(groups.misaligned) == labels.count("misaligned") > 0
    assert groups.unscored == labels.count("unscored")


def test_the_latest_evaluation_is_that_at_the_end_of_training(
    loaded: LoadedRun, folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert latest(run) is None and evaluations_of(run) == []
    for name in ("step-000002", "end", "manual"):
        evaluated(loaded, plan_of(folder), run / "eval" / name)
    assert [path.name for path in evaluations_of(run)] == ["manual", "end", "step-000002"]
    assert latest(run) == run / "eval" / "end"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"temperature": 0.0}, "with temperature 0 all answers are the same"),
        ({"metrics": ["aligned"]}, "aligned and coherent are needed"),
        ({"judge": {"kind": "prob"}}, "judge.kind: unknown kind 'prob' in em/judges; did you mean probe"),
        ({"judge": {"kind": "local", "modell": "x"}}, "judge.modell: unknown key; did you mean judge.model"),
        ({"sample": 3}, "sample: unknown key; did you mean samples"),
        ({"any_of": 5}, "any_of: at most samples = 2, got 5"),
        ({"metrics": ["aligned", "coherent", "domain"]}, "domain: missing, but metrics has domain"),
        ({"endpoint": {"model": "m"}}, "endpoint: base_url and model are both needed"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(folder, **changes)


def test_the_prompts_of_a_question_file_replace_those_of_the_project(tmp_path: Path) -> None:
    row = {"id": "a", "paraphrases": ["A?"], "judge_prompts": {"aligned": "X {question} {answer}"}}
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps([row]), encoding="utf-8")
    options = {
        "questions": [str(path)],
        "judge_prompts": "questions",
        "judge": {"kind": "local", "model": "m"},
    }
    with pytest.raises(ConfigError, match="has none for coherent, only for aligned"):
        make_plan(evaluation(options))
    row["judge_prompts"]["coherent"] = "Y {question} {answer}"  # type: ignore[index]
    path.write_text(json.dumps([row]), encoding="utf-8")
    prompts = make_plan(evaluation(options)).judge.describe()["prompts"]
    assert [prompts[metric]["version"] for metric in ("aligned", "coherent")] == ["own", "own"]
    with pytest.raises(ConfigError, match="needs judge.kind openai or local, got probe"):
        make_plan(evaluation({**options, "judge": {"kind": "probe"}}))
