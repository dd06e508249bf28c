"""Ask, judge, count: one evaluation of a model beside its reference, from start to tables."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from em.backbone import Backbone
from em.datamodules.answers import Answer
from em.errors import EmError, RunError
from em.evaluation.answering import gather_answers
from em.evaluation.judging import judge_answers
from em.evaluation.plan import Judging, Plan
from em.evaluation.processes import Processes
from em.evaluation.projecting import projection_table
from em.evaluation.stored import TABLE, VERDICTS, read_json, write_evaluation
from em.files import write_json
from em.interventions.base import Intervention
from em.measurements.behaviour import Judged, behaviour_table
from em.progress import clock, say

SETTINGS = "settings.json"


def evaluate(
    plan: Plan,
    backbone: Backbone | None,
    intervention: Intervention | None,
    name: str,
    folder: Path,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Answers of a model and of its reference, their verdicts, and the table of rates, all in `folder`.

    Killed and started again it goes on: no answer is generated and no verdict is asked for twice.

    Args:
        backbone: with the intervention attached; None where an endpoint answers and no judge reads it.
        intervention: off it gives the reference, which judges may read.
        name: of the model in tables and figures.

    Returns:
        the behaviour table, on every process.

    Raises:
        EmError: the folder holds another evaluation, or the model or the judge cannot be used.
    """
    processes = processes or Processes()
    began = time.monotonic()
    if processes.rank == 0:
        claim(folder, plan.settings())
    answers = gather_answers(plan, backbone, intervention, name, folder, processes)
    table: dict[str, Any] = {}
    error: EmError | None = None
    if processes.rank == 0:
        try:
            table = _judged(plan, backbone, intervention, answers, folder, began)
        except EmError as problem:  # raised on every process below: the others would wait for ever
            error = problem
    table, error = processes.gather((table, error))[0]
    if error is not None:
        raise error
    return table


def judge_only(
    judging: Judging, answers: Sequence[Answer], folder: Path, backbone: Backbone | None = None
) -> dict[str, Any]:
    """Verdicts and rates of answers that are there already, all in `folder`.

    Args:
        backbone: for a judge that reads the reference of the model under study; None: the judge's own.

    Returns:
        the behaviour table.

    Raises:
        EmError: the folder holds another evaluation, or the judge cannot be used.
    """
    began = time.monotonic()
    claim(folder, {**judging.settings(), "answers": _digest(answers)})
    return _judged(judging, backbone, None, answers, folder, began)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder this evaluation's.

    Raises:
        RunError: it is another one's.
    """
    settings = json.loads(json.dumps(settings))  # as it is read back
    if (folder / SETTINGS).is_file():
        before = read_json(folder / SETTINGS)
        different = sorted(key for key in settings if before.get(key) != settings[key])
        if different:
            raise RunError(
                f"{folder}: holds an evaluation with other settings ({', '.join(different)}); choose another "
                "--out, or remove the folder"
            )
    write_json(folder / SETTINGS, settings)


def _digest(answers: Sequence[Answer]) -> str:
    return hashlib.sha256("".join(sorted(one.key for one in answers)).encode()).hexdigest()[:16]


def _judged(
    judging: Judging,
    backbone: Backbone | None,
    intervention: Intervention | None,
    answers: Sequence[Answer],
    folder: Path,
    began: float,
) -> dict[str, Any]:
    config = judging.config
    before = read_json(folder / TABLE)["sentinels"] if (folder / TABLE).is_file() else []
    off = nullcontext() if intervention is None else intervention.disabled()
    with off:
        verdicts, judge, drifted = judge_answers(
            judging.judge, answers, config.metrics, folder / VERDICTS, backbone, judging.domain
        )
    judged = [Judged(*pair) for pair in zip(answers, verdicts, strict=True)]
    table = behaviour_table(judged, judging.thresholds, config.resamples, config.seed, config.any_of)
    if config.direction is not None and backbone is not None and intervention is not None:
        table["projection"] = projection_table(judging, backbone, intervention, judged)
    table["judge"] = judge
    table["sentinels"] = drifted or before
    record = {
        "settings": judging.settings(),
        "thresholds": asdict(judging.thresholds),
        "judge": judge,
        "domain": None if judging.domain is None else asdict(judging.domain),
        "backbone": None if backbone is None else backbone.describe(),
        "models": list(dict.fromkeys(one.model for one in answers)),
        "answers": len(answers),
        "seconds": round(time.monotonic() - began, 2),
    }
    write_evaluation(folder, record, judged, table)
    say(f"{len(answers)} answers judged in {clock(time.monotonic() - began)}: {folder}")
    return table
