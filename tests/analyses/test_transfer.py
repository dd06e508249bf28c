"""Transfer: exact numbers of planted answers; directions act while a tiny run answers, and not afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from em import runs
from em.analyses import transfer
from em.analyses.base import Context, Found, Raw
from em.analyses.transfer import Transfer
from em.backbone import Backbone
from em.config.schema import CompareConfig
from em.datamodules.judged import read_judged
from em.errors import ConfigError, DataError, GenerationError, RunError
from em.generation import stored as generation
from em.hooks import generator_for
from em.loading import load_backbone
from em.proportions import wilson
from tests.analyses.inner_runs import both, drawn
from tests.comparison.trained import VECTOR, overwrite, set_manifest, train
from tests.evaluation.judges import Wordy
from tests.reproduce.planting import BAD, FINE, answer

QUESTIONS = 6
SOME, HALF = [2, 1, 2, 1, 2, 1], [1, 0, 1, 0, 1, 0]  # misaligned answers, of two to each question
NONE, EVERY = [0] * QUESTIONS, [2] * QUESTIONS


def rows(misaligned: list[int], prefix: str = "q") -> list[Raw]:
    return [
        {"question": f"{prefix}{at}", "label": "misaligned" if sample < count else "aligned"}
        for at, count in enumerate(misaligned)
        for sample in range(2)
    ]


def ablated(target: str, prefix: str = "q", **counts: list[int]) -> list[Raw]:
    return [
        {"kind": "ablation", "target": target, "direction": label, "rows": rows(given, prefix)}
        for label, given in counts.items()
    ]


def steered(c: float, **counts: list[int]) -> list[Raw]:
    about = {"kind": "steering", "target": "reference"}
    return [
        {**about, "direction": label, "c": 0.0 if label == "plain" else c, "rows": rows(given)}
        for label, given in counts.items()
    ]


def told(cells: list[Raw], **options: Any) -> Found:
    raw = {"layer": 1, "where": "all", "counts": {"a": "9 misaligned"}, "norms": {}, "cells": cells}
    made = Transfer(**{"targets": ["a"], "sources": ["a"], "coefficients": [], **options})
    return made.read({**raw, "resamples": 200, "seed": 0})


def test_shares_that_go_with_directions() -> None:
    cells = [
        *ablated("a", plain=SOME, a=HALF, b=NONE, random=SOME),
        *ablated("c", "other", plain=SOME, a=SOME, b=HALF, random=SOME),
    ]
    found = told(cells, targets=["a", "c"], sources=["a", "b"])
    one = found.statistics
    for name, value in (
        ("rate/a", 75.0),
        ("rate/a-a", 25.0),
        ("rate/a-b", 0.0),
        ("rate/a-random", 75.0),
        ("removed/a-a", 200 / 3),
        ("removed/a-b", 100.0),
        ("removed/a-random", 0.0),
        ("own-random/a", 200 / 3),
        ("other-random/a-b", 100.0),
        ("removed/c-a", 0.0),
        ("other-random/c-b", 200 / 3),
    ):
        assert one[name].value == pytest.approx(value), name
        assert one[name].n == QUESTIONS and one[name].unit == "%", "questions that the target was asked"
    assert "own-random/c" not in one and "other-random/a-a" not in one
    low, high = one["own-random/a"].low, one["own-random/a"].high
    assert low is not None and high is not None and 50.0 <= low < 200 / 3 < high <= 100.0
    assert [figure.id for figure in found.figures] == drawn(found) == ["ablation"]
    table = [dict(zip(found.tables[0].columns, row, strict=True)) for row in found.tables[0].rows]
    assert (table[0]["answers"], table[0]["misaligned"], table[0]["%"]) == (12, 9, 75.0)


def test_what_has_no_spread_over_questions_is_no_certainty() -> None:
    cells = ablated("a", plain=EVERY, a=NONE, random=EVERY)
    one = told([*cells, *steered(0.5, plain=NONE, a=EVERY, random=NONE)], coefficients=[0.5]).statistics
    up, down = wilson(0, 12).high, wilson(12, 12).low
    assert up is not None and down is not None
    assert (one["rate/a-a"].low, one["rate/a-a"].high) == (0.0, pytest.approx(100 * up))
    assert (one["rate/a"].low, one["rate/a"].high) == (pytest.approx(100 * down), 100.0)
    assert (one["removed/a-a"].low, one["removed/a-a"].high) == (pytest.approx(100 - 100 * up), 100.0)
    assert (one["removed/a-random"].low, one["removed/a-random"].high) == (
        0.0,
        pytest.approx(100 - 100 * down),
    )
    both_sides = one["own-random/a"]
    assert (both_sides.value, both_sides.high) == (100.0, 100.0) and "at least 95%" in both_sides.what
    assert both_sides.low == pytest.approx(100 * (1 - up) - 100 * (1 - down))
    gain = one["steered/a-random@0.5"]
    assert gain.value == 100.0 and "Newcombe" in gain.what
    assert gain.low == pytest.approx(100 * (1 - ((1 - down) ** 2 + up**2) ** 0.5))
    assert (one["steered/reference"].value, one["steered/a@0.5"].value) == (0.0, 100.0)


def test_a_share_of_next_to_nothing_has_no_interval() -> None:
    few = told(ablated("a", plain=[2, *NONE[1:]], a=NONE, random=NONE)).statistics
    for name in ("removed/a-a", "own-random/a"):
        assert few[name].value is not None and few[name].low is None, "most resamples have nothing to remove"
        assert "too few questions have a misaligned answer" in few[name].what
    none = told(ablated("a", plain=NONE, a=NONE, random=NONE)).statistics
    assert none["removed/a-a"].value is None and none["own-random/a"].value is None
    assert "gives no misaligned answer" in none["removed/a-a"].what
    assert none["rate/a"].value == 0.0
    single = told(ablated("a", plain=[1], a=[0], random=[1])).statistics
    assert single["rate/a"].value == 50.0 and single["rate/a"].low is None and single["rate/a"].n == 1


def test_an_unscored_answer_stays_in_the_denominator() -> None:
    cells = ablated("a", plain=SOME, a=HALF, random=SOME)
    cells[0]["rows"] = [{**row, "label": "unscored"} for row in cells[0]["rows"][:6]] + cells[0]["rows"][6:]
    found = told(cells)
    assert found.statistics["rate/a"].value == pytest.approx(100 * 4 / 12)
    assert found.tables[0].rows[0][4:7] == [12, 4, 6]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"targets": []}, "targets: expected one or more, each once"),
        ({"sources": ["a", "a"]}, "sources: expected one or more, each once"),
        ({"targets": ["random"]}, "targets: random stands for something else here; rename the run"),
        ({"where": "some"}, "where: expected all or layer, got 'some'"),
        ({"coefficients": [0.2, 0.2]}, "coefficients: expected each once"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        Transfer(**{"targets": ["a"], "sources": ["a"], **changes})
    assert line in str(error.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector whose judged answers were planted; the reference's stand beside them."""
    folder = tmp_path_factory.mktemp("transfer")
    lines = [f"- {{id: q{at}, type: free_form, paraphrases: ['and {at}?']}}\n" for at in range(QUESTIONS)]
    (folder / "asked.yaml").write_text("".join(lines), encoding="utf-8")
    options = {"questions": [str(folder / "asked.yaml")], "samples": 1, "max_tokens": 3, "temperature": 0.0}
    options |= {"judge": {"_target_": "tests.evaluation.judges.Wordy"}, "resamples": 100}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EM_CACHE", str(folder / "cache"))
        callbacks = {"judge_eval": options}
        made = train(folder, "run", intervention=VECTOR, callbacks=callbacks, trainer={"max_steps": 1})
    overwrite(made, torch.randn(32, generator=generator_for(0, "vector")))
    answer(made, [BAD, FINE] * (QUESTIONS // 2), [BAD] * QUESTIONS)
    return made


@pytest.fixture(scope="module")
def backbone(run: Path) -> Backbone:
    return load_backbone(runs.read(run).config.backbone)


def context(run: Path, folder: Path, backbone: Backbone, **changes: Any) -> Context:
    sizes = CompareConfig(resamples=100, **changes)
    return Context({"run": runs.read(run)}, {"lost": "it failed"}, folder, sizes, backbone)


def made(**changes: Any) -> Transfer:
    return Transfer(**{"targets": ["run"], "sources": ["run"], "coefficients": [0.5], **changes})


def hooks(backbone: Backbone) -> int:
    return sum(len(module._forward_hooks) for module in backbone.modules())


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was asked anew."""
    asked: list[str] = []
    real = generation.generate

    def counted(backbone: Any, requests: Any, sampling: Any, model: str, *more: Any) -> Any:
        asked.append(model)
        return real(backbone, requests, sampling, model, *more)

    monkeypatch.setattr(generation, "generate", counted)
    return asked


def watched(monkeypatch: pytest.MonkeyPatch, name: str, note: Callable[[], None]) -> None:
    real = getattr(transfer, name)

    def call(*given: Any, **options: Any) -> Any:
        note()
        return real(*given, **options)

    monkeypatch.setattr(transfer, name, call)


def test_directions_act_while_it_answers_and_not_while_it_is_judged(
    run: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, answering, judging = hooks(backbone), [], []
    watched(monkeypatch, "gather_answers", lambda: answering.append(hooks(backbone) - bare))
    watched(monkeypatch, "judge_only", lambda: judging.append(hooks(backbone) - bare))
    Wordy.asked = []
    raw, found = both(made(), context(run, tmp_path, backbone))
    # The vector alone; with an ablation of all three layers, twice; the reference; steered at one layer.
    assert answering == [1, 1 + 3, 1 + 3, 0, 1, 1] and judging == [0] * 6
    assert hooks(backbone) == bare and Wordy.asked
    assert [(cell["kind"], cell["direction"]) for cell in raw["cells"]] == [
        *(("ablation", "plain"), ("ablation", "run"), ("ablation", "random")),
        *(("steering", "plain"), ("steering", "run"), ("steering", "random")),
    ]
    assert all(len(cell["rows"]) == QUESTIONS for cell in raw["cells"])
    assert raw["norms"]["random"] == pytest.approx(raw["norms"]["run"]) and raw["layer"] == 1
    assert found.statistics["rate/run"].n == QUESTIONS
    answering.clear()
    made(where="layer", coefficients=[]).measure(context(run, tmp_path, backbone))
    assert answering == [1, 2, 2], "at one layer, and nothing is steered"


def test_the_reference_s_own_answers_make_no_direction(run: Path, backbone: Backbone, tmp_path: Path) -> None:
    raw = made(coefficients=[]).measure(context(run, tmp_path, backbone))
    assert raw["counts"]["run"].startswith("3 misaligned, 3 aligned, ")
    every = read_judged(str(run / "eval" / "end" / "judged.jsonl"), backbone.tokenizer)
    assert len(every.misaligned) == 3 + QUESTIONS, "they stand in the same file"


def test_nothing_stays_attached_after_a_failure(
    run: Path, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = hooks(backbone)

    def fails(*given: Any) -> Any:
        if hooks(backbone) > bare + 1:
            raise GenerationError("no memory")
        return real(*given)

    real = transfer.gather_answers
    monkeypatch.setattr(transfer, "gather_answers", fails)
    with pytest.raises(GenerationError, match="no memory"):
        made().measure(context(run, tmp_path, backbone))
    assert hooks(backbone) == bare


def test_answers_are_used_again_only_where_they_are_the_same(
    run: Path, backbone: Backbone, tmp_path: Path, answered: list[str]
) -> None:
    first = made().measure(context(run, tmp_path, backbone))
    assert len(answered) == 6
    assert made().measure(context(run, tmp_path, backbone)) == first and len(answered) == 6
    made(coefficients=[0.5, 2.0]).measure(context(run, tmp_path, backbone))
    assert len(answered) == 6 + 2
    count = len(answered)
    for changes, sizes in (
        ({"where": "layer"}, {}),
        ({"layer": 0}, {}),
        ({}, {"layer": 2}),
        ({}, {"seed": 3}),
    ):
        made(**changes, coefficients=[]).measure(context(run, tmp_path, backbone, **sizes))
        count += 3
        assert len(answered) == count, (changes, sizes)
    set_manifest(run, started="later")
    made(coefficients=[]).measure(context(run, tmp_path, backbone))
    assert len(answered) == count + 3, "it was trained again"
    answer(run, [FINE, BAD] * (QUESTIONS // 2), [BAD] * QUESTIONS)
    made(coefficients=[]).measure(context(run, tmp_path, backbone))
    assert len(answered) == count + 6, "its direction is another one"


def test_what_cannot_be_measured_says_why(run: Path, backbone: Backbone, tmp_path: Path) -> None:
    given = context(run, tmp_path, backbone)
    with pytest.raises(RunError, match="lost: it failed"):
        made(targets=["lost"]).measure(given)
    with pytest.raises(ConfigError, match="with temperature 0 all answers are the same"):
        made(samples=2).measure(given)
    with pytest.raises(DataError, match="no question set opne; did you mean open"):
        made(questions="opne").measure(given)
    given.records["run"].config.callbacks["judge_eval"]["at"] = ["start"]
    with pytest.raises(RunError, match="run: was not asked anything at its end; train it with"):
        made().measure(given)
