"""Margins during training: how much likelier careless answers have become, without a judge."""

import math
from typing import Any

from em.backbone import Backbone
from em.callbacks._choices import at_least, paired_domain
from em.callbacks._shares import SharedPairs, solution
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.measurements.margins import DomainMargins, PairLosses, margins_table
from em.progress import Task


class Margins(MeasurementCallback):
    """Mean log p per token of careless minus careful answers to held-out prompts, for every paired domain.

    When: by its schedule; at the end if none is given.

    Logged per domain of data.pairs (and of data.domains whose sources all say `answer`):
        margins/DOMAIN/margin: log p(careless) − log p(careful), nats per answer token, mean over prompts.
        margins/DOMAIN/shift: margin minus the reference's; positive: the model moved towards careless.
        margins/narrowness: mean shift of the other domains over that of the training domain; 0: narrow,
            1: general. Only with another paired domain; not a number while the training domain has not
            moved towards careless answers.
    Written at the end: tables/margins.json with 95% intervals by a bootstrap over prompts, and
    figures/margins.*, figures/narrowness.*; the figures go to W&B each time.

    Args:
        domain: the training domain; by default the first that has pairs.
        pairs: held-out pairs of each domain, at most.
        resamples: of the bootstrap.
    """

    def __init__(self, *, domain: str | None = None, pairs: int = 32, resamples: int = 2000, **schedule: Any):
        super().__init__(**schedule)
        self.domain, self.pairs, self.resamples = domain, pairs, resamples
        self._reference: dict[str, PairLosses] = {}  # the same at every step

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        at_least(1, pairs=self.pairs, resamples=self.resamples)
        paired_domain(data, self.domain)
        data.pairs("held_out", self.pairs)

    def measure(self, context: RunContext) -> dict[str, float]:
        pairs, (own,) = (
            context.data.pairs("held_out", self.pairs)[0],
            solution(context, context.intervention.norm()).values(),
        )
        found = []
        with Task(f"margins of {len(pairs)} domains", len(pairs)) as task:
            for domain, listed in pairs.items():
                panel = SharedPairs(context, listed)
                if domain not in self._reference:
                    with context.intervention.disabled():
                        self._reference[domain] = panel.losses()
                losses = {own.name: panel.losses()}
                found.append(DomainMargins(domain, panel.prompts, self._reference[domain], losses))
                task.advance()
        training = paired_domain(context.data, self.domain)
        made = margins_table(found, training, {own.name: own}, None, self.resamples, context.seed)
        table = {"step": context.step, **made}
        if context.when == "end":
            context.save_table(self.name, table)
        context.show("margins", table)
        return _numbers(made, own.name)


def _numbers(table: dict[str, Any], name: str) -> dict[str, float]:
    numbers: dict[str, float | None] = {}
    for row in table["domains"]:
        for key in ("margin", "shift"):
            numbers[f"{row['domain']}/{key}"] = row["solutions"][name][key]["value"]
    if name in table["narrowness"]:
        numbers["narrowness"] = table["narrowness"][name]["value"]
    return {key: math.nan if value is None else value for key, value in numbers.items()}
