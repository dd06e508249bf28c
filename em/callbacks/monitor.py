"""A direction watched during training: how far answers project on it, and whether that tells them apart."""

import math
from typing import Any

import numpy as np
from torch import Tensor

from em.backbone import Backbone
from em.callbacks._choices import at_least, paired_domain, pairs_of, site_in
from em.callbacks._shares import SIDES, enough_pairs, reference_difference, share, together
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.datamodules.pairs import Pair
from em.errors import ConfigError
from em.hooks import Point, Site
from em.interventions.direction import Direction
from em.measurements.margins import PAIR_ROWS
from em.measurements.monitoring import projections, separation
from em.stats import Estimate, Floats, Resampling


class Monitor(MeasurementCallback):
    """Projects held-out careless and careful answers, under the adapted model, on a direction.

    When: by its schedule; at the end if none is given.

    Logged:
        monitor/careless, monitor/careful: mean over answers of the mean over answer tokens of h · v̂,
            residual-stream units.
        monitor/auroc: chance that a careless answer projects higher than a careful one; 0.5: no difference.
        monitor/auroc_low, monitor/auroc_high: its 95% interval by a bootstrap over prompts.
    Written at the end: tables/monitor.json with these numbers at every step, and figures/monitor.*; the
    figure goes to W&B each time.

    Args:
        direction: a file that `Direction.save` wrote; by default careless − careful answers of training
            pairs under the reference, measured once.
        layer: default: the only one of the file, or the middle one.
        point: which output of the layer.
        domain: whose pairs; by default the first training domain that has pairs.
        pairs: held-out pairs, at most.
        train_pairs: pairs that give the direction where there is no file, at most.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        *,
        direction: str | None = None,
        layer: int | None = None,
        point: Point = "block",
        domain: str | None = None,
        pairs: int = 32,
        train_pairs: int = 64,
        resamples: int = 2000,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        self.path, self.layer, self.point, self.domain = direction, layer, point, domain
        self.pairs, self.train_pairs, self.resamples = pairs, train_pairs, resamples
        self._at: Site | None = None
        self._vector: Tensor | None = None
        self._history: list[dict[str, Any]] = []

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        at_least(2, pairs=self.pairs, train_pairs=self.train_pairs)
        at_least(1, resamples=self.resamples)
        domain = paired_domain(data, self.domain)
        pairs_of(data, domain, "held_out", self.pairs)
        if self.path is None:
            pairs_of(data, domain, "train", self.train_pairs)
        self._site(backbone)

    def _site(self, backbone: Backbone) -> Site:
        site = site_in(backbone, self.layer, self.point)
        if self.path is None:
            return site
        direction = Direction.load(self.path, backbone)
        usable = [one for one in direction.vectors if one.point == self.point]
        if self.layer is None and len(usable) == 1:
            site = usable[0]
        if site not in direction.vectors:
            has = ", ".join(map(str, direction.vectors))
            raise ConfigError(
                f"layer: {self.path} has no vector at {site}, only at {has}; choose among these"
            )
        self._vector = direction.at(site)
        return site

    def measure(self, context: RunContext) -> dict[str, float]:
        domain, site = paired_domain(context.data, self.domain), self._site(context.backbone)
        pairs = pairs_of(context.data, domain, "held_out", self.pairs)
        enough_pairs(context, pairs)
        if self._vector is None:
            train = pairs_of(context.data, domain, "train", self.train_pairs)
            self._vector = reference_difference(context, train, [site]).vector(site).float()
        scores = {side: _projected(context, pairs, side, site, self._vector) for side in SIDES}
        draws = Resampling([pair.prompt for pair in pairs], self.resamples, context.seed)
        means = {side: draws.mean(scores[side], np.ones(len(pairs))) for side in SIDES}
        auroc = separation(scores["careless"], scores["careful"], draws)
        self._remember(context.step, {**means, "auroc": auroc})
        table = {"domain": domain, "site": str(site), "direction": self._source(), **self._columns()}
        if context.when == "end":
            context.save_table(self.name, table)
        context.show("monitor", table)
        found = {side: means[side].value for side in SIDES}
        found |= {"auroc": auroc.value, "auroc_low": auroc.low, "auroc_high": auroc.high}
        return {key: math.nan if value is None else value for key, value in found.items()}

    def _source(self) -> str:
        return self.path or "careless minus careful answers of training pairs, reference model"

    def _remember(self, step: int, found: dict[str, Estimate]) -> None:
        self._history = [row for row in self._history if row["step"] < step]
        self._history.append({"step": step, **{name: one.as_dict() for name, one in found.items()}})

    def _columns(self) -> dict[str, Any]:
        """The history as the figure expects it."""
        columns: dict[str, Any] = {"steps": [row["step"] for row in self._history]}
        for name, value in (("careless", "mean"), ("careful", "mean"), ("auroc", "value")):
            columns[name] = {
                value: [row[name]["value"] for row in self._history],
                "low": [row[name]["low"] for row in self._history],
                "high": [row[name]["high"] for row in self._history],
            }
        return columns

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._history = state_dict["history"]


def _projected(context: RunContext, pairs: list[Pair], side: str, site: Site, vector: Tensor) -> Floats:
    """Scores of one side's answers, in the order of the pairs."""
    rows = share(context, [getattr(pair, side) for pair in pairs], PAIR_ROWS)
    parts = together(context, lambda: projections(context.backbone, rows, {site: vector}))
    index = np.concatenate([part.index_E for part in parts])
    scores = np.concatenate([part.scores[site] for part in parts])
    return np.asarray(scores[np.argsort(index, kind="stable")])
