"""The stored hidden scalars of one run, read as a probe; and how probes are drawn."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from em.analyses._inner import draws_of, mean_draws
from em.analyses.base import Raw, Statistic
from em.figures.model import Bars, BarSeries, Cloud, Figure, Mark, Panel, Points
from em.measurements.scalars import Sides, alignment_auroc, alignment_sign, topic_auroc, topic_sign
from em.stats import Floats, Resampling


@dataclass(frozen=True)
class Probe:
    """One run's scalars, as they were stored."""

    raw: Raw
    name: str

    @property
    def layers(self) -> list[str]:
        return list(self.raw["members"][self.name]["held_out"][self.raw["training"]])

    @property
    def others(self) -> list[str]:
        return [domain for domain in self.raw["domains"] if domain != self.raw["training"]]

    def sides(self, part: str, domain: str, layer: str) -> Sides:
        """Scalars of the pairs of a domain: held_out, train, or held out under the reference."""
        one = self.raw["members"][self.name][part][domain][layer]
        return Sides(np.array(one["careful"]), np.array(one["careless"]))

    @cached_property
    def draws(self) -> dict[str, Resampling]:
        return {domain: draws_of(self.raw, domain) for domain in self.raw["domains"]}

    def sign(self, layer: str) -> tuple[float, float]:
        """Of alignment, with its strength on the training part."""
        return alignment_sign(self.sides("train", self.raw["training"], layer))

    def topic(self, layer: str) -> tuple[float, float] | None:
        """Of topic; None where no other domain has training pairs, on which it could be found."""
        known = [domain for domain in self.others if domain in self.raw["members"][self.name]["train"]]
        if not known:
            return None
        own = self.sides("train", self.raw["training"], layer)
        return topic_sign(own, [self.sides("train", domain, layer) for domain in known])

    def best(self, kind: str) -> str:
        """The layer that tells most apart on the training part."""
        if kind == "topic_auroc":
            return max(self.layers, key=lambda layer: (self.topic(layer) or (1.0, 0.0))[1])
        return max(self.layers, key=lambda layer: self.sign(layer)[1])

    def auroc(self, kind: str, layer: str) -> tuple[Floats, list[Resampling]] | None:
        """A statistic of one layer in each resample, and the draws that it is of; None: it has none."""
        training, draws = self.raw["training"], self.draws
        sign = self.sign(layer)[0]
        if kind in ("alignment_auroc", "alignment_auroc_reference"):
            part = "reference" if kind.endswith("reference") else "held_out"
            own = self.sides(part, training, layer).turned(sign)
            return alignment_auroc(own, draws[training]), [draws[training]]
        if not self.others:
            return None
        used = [draws[domain] for domain in self.others]
        others = [self.sides("held_out", domain, layer) for domain in self.others]
        if kind == "alignment_auroc_other":
            turned = [other.turned(sign) for other in others]
            return mean_draws([alignment_auroc(a, b) for a, b in zip(turned, used, strict=True)]), used
        topic = self.topic(layer)
        if topic is None:
            return None
        own = self.sides("held_out", training, layer).turned(topic[0])
        turned = [other.turned(topic[0]) for other in others]
        return topic_auroc(own, draws[training], turned, used), [draws[training], *used]


def figures(probes: list[Probe], made: dict[str, Statistic], arm: str, number: int) -> list[Figure]:
    last = f"-{number + 1}" if number else ""
    layers = probes[0].layers
    series = []
    for kind, name in (
        ("alignment_auroc", "alignment, training domain"),
        ("alignment_auroc_other", "alignment, other domains"),
        ("alignment_auroc_reference", "alignment, reference model"),
        ("topic_auroc", "topic"),
    ):
        of = [made[f"{kind}/{layer}"] for layer in layers]
        if any(one.value is not None for one in of):
            series.append(BarSeries(name, [s.value for s in of], [s.low for s in of], [s.high for s in of]))
    bars = Bars(
        f"scalars{last}",
        f"What the hidden scalars of {arm} tell apart",
        "AUROC of A·x, its mean over the tokens of held-out answers, by layer. Alignment: careless against "
        "careful answers; topic: the training domain's answers against the other domains'. The sign was "
        "found on training pairs, so a value below 0.5 says that it did not hold.",
        "Whiskers are 95% bootstrap intervals over prompts.",
        "AUROC",
        [f"layer {layer}" for layer in layers],
        series,
        [Mark("x", 0.5, "chance")],
    )
    return [bars, _clouds(probes[0], last)]


def _clouds(probe: Probe, last: str) -> Figure:
    """Each prompt of every domain: the scalar of its careful and of its careless answer."""
    layer = probe.best("alignment_auroc")
    sign, training = probe.sign(layer)[0], probe.raw["training"]
    clouds = []
    for domain in (training, *probe.others):
        sides = probe.sides("held_out", domain, layer).turned(sign)
        kind = "training domain" if domain == training else "other domain"
        clouds.append(Cloud(kind, domain, sides.careful_P.tolist(), sides.careless_P.tolist()))
    every = [value for cloud in clouds for value in (*cloud.x, *cloud.y)]
    return Points(
        f"scalars-prompts{last}",
        f"Hidden scalar of both answers to each prompt, layer {layer} of {probe.name}",
        "A·x under the adapted model, its mean over the tokens of an answer, times the sign found on "
        "training pairs. A point above the diagonal: the careless answer has the higher scalar. Panels that "
        "lie apart: it reads the topic.",
        "No interval: each point is one held-out prompt.",
        "careful answer",
        "careless answer",
        [Panel(domain) for domain in (training, *probe.others)],
        clouds,
        limits=_round_limits(min(every), max(every)),
    )


def _round_limits(low: float, high: float) -> tuple[float, float]:
    """Limits with few digits around all values, because they are written at the axes."""
    if not high > low:
        return low - 1.0, high + 1.0
    digits = -math.floor(math.log10(high - low))
    step = 10.0**-digits
    return round(math.floor(low / step) * step, digits), round(math.ceil(high / step) * step, digits)
