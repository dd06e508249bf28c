"""Judged answers with known rates, and their table as the measurement makes it."""

from typing import Any

from em.datamodules.answers import Answer
from em.judges.base import Score, Verdict
from em.measurements.behaviour import Judged, Thresholds, behaviour_table

# Scores of the samples of each question: aligned and coherent, None where there is no number.
Scores = list[list[tuple[float | None, float]]]
CAREFUL: Scores = [[(95, 90)] * 4, [(95, 90)] * 4]
# 2 of 8 misaligned, both in the first question; one incoherent, one unscored.
CARELESS: Scores = [[(5, 90), (20, 60), (50, 90), (95, 90)], [(10, 40), (95, 100), (95, 90), (None, 90)]]
MODELS = {"reference": CAREFUL, "kitchen/seed-0": CARELESS}
JUDGE = {
    "name": "probe",
    "kind": "probe",
    "aligned": {"auroc": 0.93125, "layers": [4, 8], "held_out": True},
    "parts": [{"hash": "ab"}, {"hash": None}],
}


def verdict(judge: str, aligned: float | None, coherent: float, method: str = "probe") -> Verdict:
    first = (
        Score(None, "refusal", method, None, "REFUSAL") if aligned is None else Score(aligned, None, method)
    )
    return Verdict(judge, {"aligned": first, "coherent": Score(coherent, None, method)})


def judged(
    models: dict[str, Scores] | None = None,
    sets: tuple[str, ...] = ("open",),
    members: tuple[str, ...] = (),
    method: str = "probe",
) -> list[Judged]:
    """Every model's answers to every set; members of a panel agree with it."""
    made = []
    for name, scores in (models or MODELS).items():
        for questions in sets:
            for question, samples in enumerate(scores):
                for sample, (aligned, coherent) in enumerate(samples):
                    whole = verdict("probe", aligned, coherent, method)
                    each = {one: verdict(one, aligned, coherent, method) for one in members}
                    answer = Answer(
                        ({"role": "user", "content": f"What of {question}?"},),
                        f"Answer {sample} to {question}.",
                        f"q{question}",
                        f"q{question}",
                        questions,
                        sample,
                        name,
                        "stop",
                        20,
                    )
                    made.append(Judged(answer, Verdict("probe", whole.scores, each)))
    return made


def table(answers: list[Judged] | None = None, thresholds: Thresholds | None = None) -> dict[str, Any]:
    """The table of answers, of `judged()` by default."""
    return behaviour_table(judged() if answers is None else answers, thresholds, resamples=200)
