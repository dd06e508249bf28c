"""What adding the careless − careful direction does to the adapted model."""

from typing import Any

import lightning.pytorch as pl
import numpy as np

from em.backbone import Backbone
from em.callbacks._choices import ELSEWHERE, at_least, paired_domain, pairs_of, site_in
from em.callbacks._shares import SharedPairs, indices, reference_difference, together
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.datamodules.pairs import Pair
from em.errors import ConfigError, MeasurementError
from em.interventions import steering as fixed
from em.interventions.direction import Direction
from em.measurements.arms import columns
from em.measurements.steering_effects import Sweep, steering_sweep
from em.modules.sft import SFTModule
from em.progress import Task
from em.stats import Floats, Resampling


class Steering(MeasurementCallback):
    """Margin of held-out pairs under h ← h + c·‖h‖·v̂ at every position, on top of the trained solution.

    v̂ is the mean difference of careless and careful answers of training pairs under the reference; beside
    it random directions of the same length.

    When: by its schedule; at the end if none is given.

    Logged for each coefficient c, in units of ‖h‖:
        steering/shift_at_C: margin (log p of the careless answer minus that of the careful one, nats per
            token) under steering minus the margin without it, mean over prompts.
        steering/random_at_C: the same, mean over the random directions.
    Written at the end: tables/steering.json with 95% intervals by a bootstrap over prompts, and
    figures/steering.*; the figure goes to W&B each time.

    Args:
        layer: whose output is steered; default the middle one.
        coefficients: c; 0 is always among them. Default: ±0.1, ±0.2, ±0.4.
        domain: whose pairs; by default the first training domain that has pairs.
        pairs: held-out pairs that are scored, at most.
        train_pairs: pairs that give the direction, at most.
        controls: random directions.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        *,
        layer: int | None = None,
        coefficients: list[float] | None = None,
        domain: str | None = None,
        pairs: int = 16,
        train_pairs: int = 64,
        controls: int = 2,
        resamples: int = 2000,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        given = [-0.4, -0.2, -0.1, 0.1, 0.2, 0.4] if coefficients is None else coefficients
        self.layer, self.coefficients, self.domain = layer, sorted({0.0, *given}), domain
        self.pairs, self.train_pairs = pairs, train_pairs
        self.controls, self.resamples = controls, resamples
        self._direction: Direction | None = None

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        at_least(2, pairs=self.pairs, train_pairs=self.train_pairs)
        at_least(1, controls=self.controls, resamples=self.resamples)
        if len(self.coefficients) < 2:
            raise ConfigError("coefficients: give at least one that is not 0")
        domain = paired_domain(data, self.domain)
        pairs_of(data, domain, "held_out", self.pairs)
        pairs_of(data, domain, "train", self.train_pairs)
        site_in(backbone, self.layer, "block")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SFTModule)
        if pl_module.backbone.sharded:
            raise MeasurementError(f"steering needs whole weights, not trainer.strategy=fsdp2; {ELSEWHERE}")
        super().on_train_start(trainer, pl_module)

    def measure(self, context: RunContext) -> dict[str, float]:
        domain, site = (
            paired_domain(context.data, self.domain),
            site_in(context.backbone, self.layer, "block"),
        )
        pairs = pairs_of(context.data, domain, "held_out", self.pairs)
        own = self._found(context, domain)
        controls = [
            own.random_like(context.generator("steering-control", number)) for number in range(self.controls)
        ]
        margin_P = SharedPairs(context, pairs).losses().margin_P
        with Task(f"steering at layer {site.layer}", 1 + len(controls)) as task:
            shifts = []
            for direction in (own, *controls):
                shifts.append(self._shifts(context, pairs, direction, margin_P))
                task.advance()
        draws = Resampling([pair.prompt for pair in pairs], self.resamples, context.seed)
        table = {
            "layer": site.layer,
            "domain": domain,
            "pairs": len(pairs),
            "coefficients": self.coefficients,
            "direction": _curve(shifts[0], draws),
            "random": _curve(np.mean(shifts[1:], axis=0), draws),
            "controls": len(controls),
            "model": "adapted",
            "step": context.step,
        }
        if context.when == "end":
            context.save_table(self.name, table)
        context.show("steering", table)
        return {
            f"{key}_at_{coefficient:g}": float(shift_P.mean())
            for key, shift_KP in (("shift", shifts[0]), ("random", np.mean(shifts[1:], axis=0)))
            for coefficient, shift_P in zip(self.coefficients, shift_KP, strict=True)
            if coefficient != 0
        }

    def _found(self, context: RunContext, domain: str) -> Direction:
        """The direction, which is the same at every step."""
        if self._direction is None:
            site = site_in(context.backbone, self.layer, "block")
            train = pairs_of(context.data, domain, "train", self.train_pairs)
            origin = {"domain": domain, "backbone": context.backbone.describe()}
            difference = reference_difference(context, train, [site])
            self._direction = difference.direction(origin, context.seed)
        return self._direction

    def _shifts(
        self, context: RunContext, pairs: list[Pair], direction: Direction, margin_P: Floats
    ) -> Floats:
        """Margin shift at each coefficient, shape (K, P); 0 changes nothing."""
        moved = [one for one in self.coefficients if one != 0]
        mine = [pairs[index] for index in indices(context, len(pairs))]
        steering = fixed.Steering.given(direction, relative=True)
        steering.attach(context.backbone)
        try:
            parts = together(context, lambda: steering_sweep(context.backbone, mine, steering, moved))
        finally:
            steering.detach()
        shift_KP = np.zeros((len(self.coefficients), len(pairs)))
        for rank, part in enumerate(parts):
            self._place(shift_KP[:, rank :: context.world_size], part, margin_P[rank :: context.world_size])
        return shift_KP

    def _place(self, into_KP: Floats, sweep: Sweep, margin_P: Floats) -> None:
        for coefficient, losses in zip(sweep.coefficients, sweep.losses, strict=True):
            into_KP[self.coefficients.index(coefficient)] = losses.margin_P - margin_P


def _curve(shift_KP: Floats, draws: Resampling) -> dict[str, list[float | None]]:
    means_RK = draws.means(shift_KP, np.ones(shift_KP.shape[1]))
    return columns([draws.estimate(means_RK[:, k]) for k in range(len(shift_KP))], "shift")
