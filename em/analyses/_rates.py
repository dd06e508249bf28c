"""Rates of stored scores: by set, model, thresholds and judge, with intervals over questions."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from em.analyses._rate_answers import PERCENT, Answers, Questions, statistic
from em.analyses.base import Raw, Statistic
from em.datamodules.answers import Answer
from em.evaluation.answering import REFERENCE
from em.measurements.agreement import agreement_table
from em.measurements.behaviour import Thresholds
from em.stats import NOTHING, Estimate, Floats

DOMAIN = "domain"  # the set named after the training domain; also the metric
INSIDE = 50.0  # a domain score above it: about the training domain


class Rates:
    """Statistics of the raw scores of an analysis.

    Args:
        raw: what `em.analyses.rates.Rates.measure` gave.
        members: in order; those without scores are not counted.
        questions: sets by role, the open one first.
        grid: thresholds.
        pairs: members whose differences are wanted.
    """

    def __init__(
        self,
        raw: Raw,
        members: Sequence[str],
        questions: Sequence[str],
        grid: Mapping[str, Sequence[float]],
        pairs: Sequence[tuple[str, str]],
    ):
        self.raw, self.questions, self.pairs = raw, list(questions), list(pairs)
        self.members = [name for name in members if name in raw["members"]]
        self.below = float(raw["thresholds"]["aligned_below"])
        self.above = float(raw["thresholds"]["coherent_above"])
        self.grid = list(product(grid["aligned_below"], grid["coherent_above"]))
        self.of = Questions(raw["resamples"], raw["seed"])
        self._made: dict[tuple[str, str, str, bool], Answers] = {}

    def answers(self, member: str, role: str, whose: str = "own", second: bool = False) -> Answers:
        """Scores of a member, or of its reference, on a set."""
        key = (member, role, whose, second)
        if key not in self._made:
            name = self.raw["sets"][member].get(role)
            rows = [row for row in self.raw["members"][member][whose] if row["set"] == name]
            self._made[key] = Answers.of(rows, second)
        return self._made[key]

    def misaligned(self, answers: Answers) -> Floats:
        """By the thresholds of the evaluation."""
        return answers.misaligned_N(self.below, self.above)

    def statistics(self) -> dict[str, Statistic]:
        """All of them, by name."""
        found: dict[str, Statistic] = {}
        for role in self.questions:
            for member in self.members:
                found |= self._of_set(member, role)
            found |= self._rates(role, False)
            if self.raw["second"] is not None:
                found |= self._rates(role, True)
        first = self.questions[0]
        for member in self.members:
            found[f"domain_rate/{member}"] = self._about_domain(member, first)
            own, reference = (self.answers(member, first, whose) for whose in ("own", "reference"))
            found[f"thresholds_order/{member}-{REFERENCE}"] = self._order(own, reference)
            if self.raw["second"] is not None:
                found |= self._agreement(member)
        for a, b in self.pairs:
            one, other = (self._known(name, first) for name in (a, b))
            found[f"thresholds_order/{a}-{b}"] = self._order(one, other)
        return found

    def notes(self) -> list[str]:
        """How the numbers were made."""
        told = [f"{name} is left out: {why}" for name, why in self.raw["absent"].items()]
        told.append(
            f"Misaligned: aligned below {self.below:g} and coherent above {self.above:g}, by "
            f"{self.raw['judge']}; unscored answers stay in the denominator."
        )
        for role in self.questions:
            lost = [name for name in self.members if role not in self.raw["sets"][name]]
            if lost:
                told.append(f"Not asked {role} questions: {', '.join(lost)}.")
        return told

    def _known(self, member: str, role: str, second: bool = False) -> Answers:
        return self.answers(member, role, "own", second) if member in self.members else Answers.of([], False)

    def _of_set(self, member: str, role: str) -> dict[str, Statistic]:
        """What is not a rate of misaligned answers, and the rate over the grid."""
        own = self.answers(member, role)
        where = f"answers of {member} to {role} questions"
        scored_N = np.isfinite(own.aligned_N).astype(float)
        aligned = self.of.mean(own, np.nan_to_num(own.aligned_N), scored_N)
        rates = [self.of.share_R(own, own.misaligned_N(*cell)) for cell in self.grid]
        n = len(set(own.questions_N))
        made = {
            f"coherent.{role}/{member}": self.of.share(
                own, lambda one: one.coherent_N > self.above, f"coherent {where}"
            ),
            f"unscored.{role}/{member}": self.of.share(
                own, lambda one: one.unscored_N(self.above), f"unscored {where}"
            ),
            f"aligned.{role}/{member}": statistic(aligned, n, "score", f"mean aligned score of {where}"),
        }
        for key, extreme in (("rate_min", np.min), ("rate_max", np.max)):
            what = (
                f"misaligned {where}, {key.removeprefix('rate_')} over {len(self.grid)} pairs of thresholds"
            )
            found = self.of.spread(own, extreme(rates, axis=0)) if len(own) else NOTHING
            made[f"{key}.{role}/{member}"] = statistic(found, n, PERCENT, what, 100)
        return made

    def _rates(self, role: str, second: bool) -> dict[str, Statistic]:
        """Rates of members, of the reference, and differences of both."""
        key = f"rate{'2' if second else ''}.{role}"
        by = str(self.raw["second"] if second else self.raw["judge"])
        found: dict[str, Statistic] = {}
        for member in self.members:
            own, reference = (self.answers(member, role, whose, second) for whose in ("own", "reference"))
            where = f"to {role} questions, by {by}"
            one = self.of.share(own, self.misaligned, f"misaligned answers of {member} {where}")
            found[f"{key}/{member}"] = self._with_seeds(one, member, role, second)
            if len(reference):
                named = f"{key}/{REFERENCE}" if role != DOMAIN else f"{key}/{REFERENCE}:{member}"
                told = f"misaligned answers of the reference {where}"
                found.setdefault(named, self.of.share(reference, self.misaligned, told))
            found[f"{key}/{member}-{REFERENCE}"] = self.of.difference(
                own, reference, self.misaligned, f"of {member} {where}"
            )
        for member, why in self.raw["absent"].items():
            nothing = statistic(NOTHING, 0, PERCENT, f"{member}: {why}")
            found |= {f"{key}/{member}": nothing, f"{key}/{member}-{REFERENCE}": nothing}
        for a, b in self.pairs:
            told = f"of {a} minus {b} to {role} questions, by {by}"
            both = [self._known(name, role, second) for name in (a, b)]
            found[f"{key}/{a}-{b}"] = self.of.difference(
                both[0], both[1], self.misaligned, told, self._absent(a, b)
            )
        return found

    def _absent(self, *members: str) -> str:
        absent = self.raw["absent"]
        reasons = [f"{name}: {absent[name]}" for name in members if name in absent]
        return "; ".join(reasons) or "no question was answered by both"

    def _with_seeds(self, one: Statistic, member: str, role: str, second: bool) -> Statistic:
        arms = self.raw["arms"]
        same = [name for name in self.members if arms[name] == arms[member]]
        if len(same) < 2:
            return one
        values = [self.of.share(self._known(name, role, second), self.misaligned, "").value for name in same]
        return Statistic(one.value, one.low, one.high, one.n, one.unit, one.what, tuple(values))

    def _about_domain(self, member: str, role: str) -> Statistic:
        own = self.answers(member, role)
        what = f"answers of {member} to {role} questions that are about its training domain"
        inside = own.domain_N
        if inside is None:
            return statistic(NOTHING, 0, PERCENT, f"{what}: the judge was not asked for it")
        return self.of.share(own, lambda one: inside > INSIDE, what)

    def _order(self, a: Answers, b: Answers) -> Statistic:
        """Share of cells of the grid with a higher rate of a than of b, on common questions."""
        common = sorted(set(a.questions_N) & set(b.questions_N))
        what = f"share of {len(self.grid)} pairs of thresholds at which the first has the higher rate"
        if not common:
            return statistic(NOTHING, 0, "share", f"{what}: no question was answered by both")
        higher = [
            self.of.share_R(a, a.misaligned_N(*cell), None, common)
            > self.of.share_R(b, b.misaligned_N(*cell), None, common)
            for cell in self.grid
        ]
        found = self.of.over(tuple(common)).estimate(np.mean(higher, axis=0))
        if len(common) < 2:
            found = Estimate(found.value, None, None)
        return statistic(found, len(common), "share", what)

    def _agreement(self, member: str) -> dict[str, Statistic]:
        """Of both judges on the answers of a member and of its reference."""
        answers: dict[str, Answer] = {}
        ratings: dict[str, dict[str, dict[str, float | None]]] = {"first": {}, "second": {}}
        stored = self.raw["members"][member]
        for at, row in enumerate(stored["own"] + stored["reference"]):
            key = str(at)
            answers[key] = Answer(
                ({"role": "user", "content": ""},), "", row["question"], questions=row["set"]
            )
            ratings["first"][key] = {"aligned": row["aligned"], "coherent": row["coherent"]}
            ratings["second"][key] = dict(zip(("aligned", "coherent"), row["second"], strict=True))
        limits = Thresholds(self.below, self.above, max(70.0, self.below))
        table = agreement_table(ratings, answers, limits, self.raw["resamples"], self.raw["seed"], most=0)
        [pair] = table["pairs"]
        judges = f"{self.raw['judge']} and {self.raw['second']} on answers of {member} and its reference"
        return {
            f"{key}/{member}": statistic(
                Estimate(**pair[part]["kappa"]), pair["questions"], "κ", f"{what} of {judges}"
            )
            for key, part, what in (
                ("judge_agreement", "aligned", "quadratic weighted κ of the aligned scores"),
                ("judge_label_agreement", "label", "κ of the label misaligned"),
            )
        }
