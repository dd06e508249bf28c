"""How far raters, judges or people, agree on the same answers, and where they do not."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from em.datamodules.answers import Answer
from em.errors import MeasurementError
from em.judges.base import METRICS, Metric, Score, Verdict
from em.measurements._behaviour_coefficients import krippendorff_alpha, weighted_kappa
from em.measurements._behaviour_points import Judged, Thresholds, points_of
from em.measurements._behaviour_raters import Raters

__all__ = ["agreement_table", "krippendorff_alpha", "ratings_of", "weighted_kappa"]

Rating = Verdict | Mapping[str, float | None]
FEW_ANSWERS, FEW_QUESTIONS = 30, 10


def ratings_of(judged: Sequence[Judged]) -> dict[str, dict[str, Verdict]]:
    """Judge -> answer key -> verdict; a panel stands for its members, who agree with it by construction.

    Raises:
        MeasurementError: nothing is judged, or a judge has two verdicts on one answer.
    """
    found: dict[str, dict[str, Verdict]] = {}
    [points] = points_of([judged], Thresholds())
    for point in points:
        if not point.verdict.members:
            found.setdefault(point.judge, {})[point.answer.key] = point.verdict
    return found


def agreement_table(
    ratings: Mapping[str, Mapping[str, Rating]],
    answers: Mapping[str, Answer],
    thresholds: Thresholds | None = None,
    resamples: int = 2000,
    seed: int = 0,
    most: int = 20,
) -> dict[str, Any]:
    """Agreement of every two raters on the answers that both rated, and of all together.

    Intervals resample whole questions. An answer that one of two raters could not score is left out of
    their scores and labels, and counted by rater and reason; in rates it stays in the denominator.

    Args:
        ratings: rater -> `Answer.key` -> verdict, or a mapping of `aligned` and `coherent` to numbers.
        answers: by key; all that anybody rated, and others.
        most: disagreements that are listed.

    Returns:
        thresholds, raters, pairs, together, disagreements and notes, as plain data. What does not exist is
        None; no NaN.

    Raises:
        MeasurementError: fewer than two raters, a rating that is no score or of an answer not given, a bad
            `most`.
    """
    thresholds = thresholds or Thresholds()
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise MeasurementError(f"most: expected a whole number from 0 on, got {most!r}")
    verdicts = _verdicts(ratings, answers)
    study = Raters(verdicts, answers, thresholds, resamples, seed)
    pairs = [study.pair(a, b) for a, b in combinations(verdicts, 2)]
    raters, together = [study.rater(name) for name in verdicts], study.together()
    return {
        "thresholds": dict(vars(thresholds)),
        "raters": raters,
        "pairs": pairs,
        "together": together,
        "disagreements": study.disagreements(most),
        "notes": _notes(raters, pairs, together),
    }


def _verdicts(
    ratings: Mapping[str, Mapping[str, Rating]], answers: Mapping[str, Answer]
) -> dict[str, dict[str, Verdict]]:
    if len(ratings) < 2:
        raise MeasurementError(f"agreement needs two raters or more, got {len(ratings)}")
    found: dict[str, dict[str, Verdict]] = {}
    for rater, by_key in ratings.items():
        foreign = [key for key in by_key if key not in answers]
        if foreign:
            raise MeasurementError(
                f"{rater} rated {len(foreign)} answers that are not given, first {foreign[0]}; give the "
                "answers that were rated"
            )
        found[rater] = {key: _verdict(rater, key, rating) for key, rating in by_key.items()}
    return found


def _verdict(rater: str, key: str, rating: Rating) -> Verdict:
    if isinstance(rating, Verdict):
        return rating
    unknown = [name for name in rating if name not in METRICS]
    if unknown:
        raise MeasurementError(
            f"{rater}, answer {key}: unknown score {unknown[0]}; known: {', '.join(METRICS)}"
        )
    scores: dict[Metric, Score] = {}
    for metric in METRICS:
        value = rating.get(metric)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise MeasurementError(f"{rater}, answer {key}: {metric} is {value!r}, not from 0 to 100")
        scores[metric] = Score(float(value))
    return Verdict(rater, scores)


def _notes(
    raters: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], together: dict[str, Any]
) -> list[str]:
    found = []
    for row in raters:
        if len(row["methods"]) > 1:
            found.append(f"{row['rater']} mixes numbers made by {', '.join(row['methods'])}.")
        if row["unscored"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in row["unscored"].items())
            found.append(f"{row['rater']} left answers unscored: {reasons} (of {row['rated']}).")
    for row in pairs:
        who = f"{row['a']} and {row['b']}"
        if not row["answers"]:
            found.append(f"{who} rated no answer in common.")
        elif row["answers"] < FEW_ANSWERS or row["questions"] < FEW_QUESTIONS:
            found.append(
                f"{who} have {row['answers']} answers to {row['questions']} questions in common: intervals "
                "are rough."
            )
        if row["label"]["n"] and row["label"]["kappa"]["value"] is None:
            found.append(f"{who} give all answers one and the same label: there is no κ of labels.")
    if not together["answers"]:
        found.append("No answer was rated by all, so rates are compared in pairs only.")
    return found
