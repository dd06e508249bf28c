"""What the compared runs say: their latest evaluations side by side, paired by question."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from em.comparison.study import Study
from em.evaluation.stored import Evaluated, latest, read_evaluation, readable_answers
from em.measurements.behaviour import Judged, behaviour_table, combined_seeds

Table = dict[str, Any]
REFERENCE = "reference"
# Keys of an evaluation's settings that differ between runs that can still be compared.
FREE = ("domain",)


def measure_behaviour(study: Study) -> tuple[Table, list[dict[str, Any]]] | None:
    """The behaviour table of all solutions and their readable answers; None where nobody was asked.

    A solution without an evaluation that fits the others' is named in the notes.
    """
    folders = {name: latest(study.records[name].directory.path) for name in study.solutions}
    missing = [name for name, folder in folders.items() if folder is None]
    found = {name: read_evaluation(folder) for name, folder in folders.items() if folder is not None}
    chosen, notes = _alike(found)
    if not chosen:
        return None
    if missing:
        notes.append(f"Not asked: {', '.join(missing)}; run `python -m em eval RUN` for them.")
    first = next(iter(chosen.values()))
    judged, more = _together(chosen)
    table = behaviour_table(judged, first.thresholds, study.config.resamples, study.config.seed)
    seeds = _by_seed(study, chosen)
    if any(len(of) > 1 for arm, of in seeds.items() if arm != REFERENCE):
        table["seeds"] = combined_seeds(seeds, first.thresholds, study.config.resamples, study.config.seed)
    table["judge"] = first.record["judge"]
    table["notes"] = [*notes, *more, *table["notes"]]
    return table, readable_answers(judged, first.thresholds)


def _alike(found: dict[str, Evaluated]) -> tuple[dict[str, Evaluated], list[str]]:
    """Those with the questions, sampling and judge of the first; the others are named."""
    chosen: dict[str, Evaluated] = {}
    notes = []
    for name, one in found.items():
        first = next(iter(chosen.values()), one)
        different = _different(first.record, one.record)
        if different:
            notes.append(
                f"{name}: its evaluation {one.folder.name} differs in {', '.join(different)} and is left out."
            )
        else:
            chosen[name] = one
    return chosen, notes


def _different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    keys = sorted((a["settings"].keys() | b["settings"].keys()) - set(FREE))
    different = [key for key in keys if a["settings"].get(key) != b["settings"].get(key)]
    return different if a["judge"] == b["judge"] else [*different, "judge"]


def _together(chosen: dict[str, Evaluated]) -> tuple[list[Judged], list[str]]:
    """The answers of all solutions under their names here, and the reference's once."""
    judged: list[Judged] = []
    said: dict[tuple[str, str, int], str] | None = None
    notes = []
    for name, one in chosen.items():
        own = [each for each in one.judged if each.answer.model != REFERENCE]
        judged += [Judged(replace(each.answer, model=name), each.verdict) for each in own]
        theirs = one.of(REFERENCE)
        texts = {(e.answer.questions, e.answer.prompt, e.answer.sample): e.answer.text for e in theirs}
        if theirs and said is None:
            said = texts
            judged = [*theirs, *judged]
        elif theirs and texts != said:
            notes.append(
                f"{name}: was compared with other answers of the reference (another machine or batch size); "
                "those of the first run are shown."
            )
    return judged, notes


def _by_seed(study: Study, chosen: dict[str, Evaluated]) -> dict[str, dict[int, Sequence[Judged]]]:
    arms: dict[str, dict[int, Sequence[Judged]]] = {}
    theirs = next((one.of(REFERENCE) for one in chosen.values() if one.of(REFERENCE)), None)
    if theirs is not None:
        arms[REFERENCE] = {0: theirs}
    for name, one in chosen.items():
        solution = study.solutions[name]
        own = [each for each in one.judged if each.answer.model != REFERENCE]
        arms.setdefault(solution.arm, {})[solution.seed] = own
    return arms
