"""Raters of the same answers: two at a time, all together, and where they differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from em.datamodules.answers import Answer
from em.judges.base import Metric, Verdict
from em.measurements._behaviour_coefficients import (
    alpha_estimate,
    kappa_estimate,
    krippendorff_alpha,
    mean_estimate,
    pearson,
    spearman,
)
from em.measurements._behaviour_points import LABELLING, LABELS, UNNAMED, Thresholds, label, why_unscored
from em.proportions import wilson
from em.stats import NOTHING, Floats, Resampling


class Raters:
    """Verdicts of raters on answers in one order: by question, then by key."""

    def __init__(
        self,
        verdicts: Mapping[str, Mapping[str, Verdict]],
        answers: Mapping[str, Answer],
        thresholds: Thresholds,
        resamples: int,
        seed: int,
    ):
        self.verdicts, self.answers, self.thresholds = verdicts, answers, thresholds
        self._resamples, self._seed = resamples, seed
        rated = {key for by_key in verdicts.values() for key in by_key}
        self.keys = sorted(rated, key=lambda key: (self.question(key), key))
        self.labels = {
            name: {key: label(verdict, thresholds) for key, verdict in by_key.items()}
            for name, by_key in verdicts.items()
        }

    def question(self, key: str) -> str:
        """The cluster of an answer."""
        return f"{self.answers[key].questions}\x1f{self.answers[key].question}"

    def draws(self, keys: Sequence[str]) -> Resampling:
        return Resampling([self.question(key) for key in keys], self._resamples, self._seed)

    def unscored(self, rater: str, keys: Sequence[str]) -> dict[str, int]:
        """Reasons of answers without a label."""
        reasons = [
            why_unscored(self.verdicts[rater][key]) for key in keys if self.labels[rater][key] == "unscored"
        ]
        return dict(sorted(Counter(reasons).items()))

    def misaligned(self, rater: str, keys: Sequence[str]) -> Floats:
        return np.array([self.labels[rater][key] == "misaligned" for key in keys], dtype=float)

    def rater(self, name: str) -> dict[str, Any]:
        """What one rater did."""
        keys = list(self.verdicts[name])
        reasons = self.unscored(name, keys)
        methods = {
            score.method or UNNAMED
            for verdict in self.verdicts[name].values()
            for score in verdict.scores.values()
            if score.value is not None
        }
        return {
            "rater": name,
            "rated": len(keys),
            "not_rated": len(self.keys) - len(keys),
            "scored": len(keys) - sum(reasons.values()),
            "unscored": reasons,
            "methods": sorted(methods),
        }

    def pair(self, a: str, b: str) -> dict[str, Any]:
        """Agreement of two raters on the answers that both rated."""
        keys = [key for key in self.keys if key in self.verdicts[a] and key in self.verdicts[b]]
        scored = [key for key in keys if "unscored" not in (self.labels[a][key], self.labels[b][key])]
        return {
            "a": a,
            "b": b,
            "answers": len(keys),
            "questions": len({self.question(key) for key in keys}),
            "unscored": {"a": self.unscored(a, keys), "b": self.unscored(b, keys)},
            **{metric: self._scores(a, b, metric, keys) for metric in LABELLING},
            "label": self._labels(a, b, scored),
            "confusion": self._confusion(a, b, keys),
            "rates": self._rates(a, b, keys),
        }

    def _scores(self, a: str, b: str, metric: Metric, keys: Sequence[str]) -> dict[str, Any]:
        """Agreement on a metric over the answers for which both have a number."""
        values = {key: [self.verdicts[name][key].value(metric) for name in (a, b)] for key in keys}
        known = [key for key in keys if None not in values[key]]
        a_N, b_N = np.array([values[key] for key in known], dtype=float).reshape(-1, 2).T
        estimates = dict.fromkeys(("kappa", "kappa_linear", "bias"), NOTHING)
        if known:
            draws = self.draws(known)
            estimates = {
                "kappa": kappa_estimate(a_N, b_N, draws),
                "kappa_linear": kappa_estimate(a_N, b_N, draws, "linear"),
                "bias": mean_estimate(a_N - b_N, draws),
            }
        return {
            "n": len(known),
            **{name: found.as_dict() for name, found in estimates.items()},
            "pearson": pearson(a_N, b_N),
            "spearman": spearman(a_N, b_N),
            "mean_absolute": float(np.abs(a_N - b_N).mean()) if known else None,
        }

    def _labels(self, a: str, b: str, scored: Sequence[str]) -> dict[str, Any]:
        """Misaligned or not, over the answers that both scored."""
        found, same = NOTHING, None
        if scored:
            a_N, b_N = (100 * self.misaligned(name, scored) for name in (a, b))
            found = kappa_estimate(a_N, b_N, self.draws(scored), "nominal", 2)
            same = float((a_N == b_N).mean())
        return {"n": len(scored), "agreement": same, "kappa": found.as_dict()}

    def _confusion(self, a: str, b: str, keys: Sequence[str]) -> dict[str, Any]:
        """Answers by label of a (rows) and of b (columns)."""
        counts = Counter((self.labels[a][key], self.labels[b][key]) for key in keys)
        return {"labels": list(LABELS), "counts": [[counts[one, two] for two in LABELS] for one in LABELS]}

    def _rates(self, a: str, b: str, keys: Sequence[str]) -> dict[str, Any]:
        """Rates of misaligned answers on the same answers, and their difference, answer by answer."""
        a_N, b_N = (self.misaligned(name, keys) for name in (a, b))
        found = mean_estimate(a_N - b_N, self.draws(keys)) if keys else NOTHING
        return {
            "a": float(a_N.mean()) if keys else None,
            "b": float(b_N.mean()) if keys else None,
            "only_a": int((a_N > b_N).sum()),
            "only_b": int((b_N > a_N).sum()),
            **found.as_dict(),
        }

    def together(self) -> dict[str, Any]:
        """Rates on the answers that everybody rated, and α on those that two or more did."""
        keys = [key for key in self.keys if all(key in by_key for by_key in self.verdicts.values())]
        rates = [self._rate(name, keys) for name in self.verdicts] if keys else []
        flags: dict[str, dict[str, float | None]] = {
            name: {
                key: None if one == "unscored" else float(one == "misaligned") for key, one in by_key.items()
            }
            for name, by_key in self.labels.items()
        }
        alphas = {"label": self._alpha(flags)}
        for metric in LABELLING:
            values = {
                name: {key: verdict.value(metric) for key, verdict in by_key.items()}
                for name, by_key in self.verdicts.items()
            }
            ordinal = krippendorff_alpha(self._matrix(values, self.keys), "ordinal")
            alphas[metric] = {**self._alpha(values), "ordinal": ordinal}
        return {"answers": len(keys), "rates": rates, "alpha": alphas}

    def _rate(self, name: str, keys: Sequence[str]) -> dict[str, Any]:
        flags_N = self.misaligned(name, keys)
        found, interval = mean_estimate(flags_N, self.draws(keys)), wilson(int(flags_N.sum()), len(keys))
        return {
            "rater": name,
            "misaligned": int(flags_N.sum()),
            "rate": found.value,
            "low": found.low,
            "high": found.high,
            "wilson": [interval.low, interval.high],
            "unscored": self.unscored(name, keys),
        }

    def _matrix(
        self, values: Mapping[str, Mapping[str, float | None]], keys: Sequence[str]
    ) -> list[list[float | str | None]]:
        return [[by_key.get(key) for key in keys] for by_key in values.values()]

    def _alpha(self, values: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
        """α at interval level, which for two values is the nominal one."""
        known = [key for key in self.keys if sum(one.get(key) is not None for one in values.values()) > 1]
        if not known:
            return {"units": 0, **NOTHING.as_dict()}
        clusters = [self.question(key) for key in known]
        found = alpha_estimate(self._matrix(values, known), clusters, self.draws(known))
        return {"units": len(known), **found.as_dict()}

    def disagreements(self, most: int) -> list[dict[str, Any]]:
        """Answers on which raters differ: on misaligned first, then on another label, then by spread."""
        ranked = []
        for key in self.keys:
            raters = [name for name, by_key in self.verdicts.items() if key in by_key]
            labels = {self.labels[name][key] for name in raters} - {"unscored"}
            values = [self.verdicts[name][key].value("aligned") for name in raters]
            known = [value for value in values if value is not None]
            spread = max(known) - min(known) if len(known) > 1 else None
            if len(labels) > 1 or spread:
                clash = "misaligned" in labels and len(labels) > 1
                ranked.append(((not clash, len(labels) < 2, -(spread or 0.0), key), raters, spread))
        ranked.sort(key=lambda one: one[0])
        return [self._disagreement(order[-1], raters, spread) for order, raters, spread in ranked[:most]]

    def _disagreement(self, key: str, raters: Sequence[str], spread: float | None) -> dict[str, Any]:
        answer = self.answers[key]
        verdicts = {name: self.verdicts[name][key] for name in raters}
        return {
            "key": key,
            "model": answer.model,
            "set": answer.questions,
            "question": answer.question,
            "asked": answer.asked,
            "text": answer.text,
            "spread": spread,
            "labels": {name: self.labels[name][key] for name in raters},
            **{
                metric: {name: verdict.value(metric) for name, verdict in verdicts.items()}
                for metric in LABELLING
            },
            "reasons": {name: verdict.reasons() for name, verdict in verdicts.items()},
        }
