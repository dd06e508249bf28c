"""Stability during training: how fast the gain is lost under orthogonal noise."""

import math
from typing import Any

import lightning.pytorch as pl

from em.backbone import Backbone
from em.callbacks._choices import ELSEWHERE, at_least, loss_domain, refuse_sharded_noise
from em.callbacks._shares import SharedPanel, solution
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.errors import ConfigError
from em.measurements.panel import mean_loss
from em.measurements.stability import stability, stability_table
from em.modules.sft import SFTModule
from em.progress import Task
from em.stats import Resampling


class Stability(MeasurementCallback):
    """Loss of x′ = √(1−ε²)·x + ε·y with y ⟂ x, ‖y‖ = ‖x‖ in update space (arXiv 2602.07852).

    When: by its schedule; at the end if none is given. A solution whose held-out loss is not below the
    reference's has no gain to lose: its numbers are then not a number, and the table says why.

    Logged:
        stability/area: mean share of the gain lost over ε from 0 to the largest, percent.
        stability/half_life: ε at which half of the gain is lost; the largest ε where it never is.
        stability/degradation: share of the gain lost at the middle ε of the grid, percent.
    Written at the end: tables/stability.json with 95% intervals by a bootstrap over prompts and draws,
    and figures/stability.*; the figure goes to W&B each time.

    Args:
        domain: whose held-out rows; by default the first training domain.
        examples: held-out rows, at most.
        epsilons: noise levels in (0, 1], ascending. Default: 0.1, 0.2, 0.4, 0.6, 0.8, 1.
        draws: of noise, the same at every step and for every run of one shape and seed.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        *,
        domain: str | None = None,
        examples: int = 16,
        epsilons: list[float] | None = None,
        draws: int = 3,
        resamples: int = 2000,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        self.domain, self.examples, self.draws, self.resamples = domain, examples, draws, resamples
        self.epsilons = [0.1, 0.2, 0.4, 0.6, 0.8, 1.0] if epsilons is None else sorted(set(epsilons))

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        loss_domain(data, self.domain)
        at_least(1, examples=self.examples, draws=self.draws, resamples=self.resamples)
        if not self.epsilons or not all(0 < epsilon <= 1 for epsilon in self.epsilons):
            raise ConfigError(f"epsilons: expected numbers above 0 and at most 1, got {self.epsilons}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SFTModule)
        refuse_sharded_noise(pl_module.backbone, pl_module.intervention, ELSEWHERE)
        super().on_train_start(trainer, pl_module)

    def measure(self, context: RunContext) -> dict[str, float]:
        domain = loss_domain(context.data, self.domain)
        rows = context.data.domains[domain][: self.examples]
        panel, (own,) = SharedPanel(context, rows), solution(context, context.intervention.norm()).values()
        known = panel.nll(), panel.nll_reference(context.intervention)
        loss, reference = (mean_loss(nll_E, panel.tokens_E) for nll_E in known)
        results, missing = {}, {}
        if loss < reference:
            passes = len(self.epsilons) * self.draws
            with Task(f"stability at step {context.step}", passes) as task:
                results[own.name] = stability(
                    context.intervention,
                    panel,
                    self.epsilons,
                    self.draws,
                    context.seed,
                    task.advance,
                    known,
                )
        else:
            missing[own.name] = f"its loss {loss:.4f} is not below the reference's {reference:.4f}"
        draws = Resampling([row.prompt for row in rows], self.resamples, context.seed)
        made = stability_table(results, {own.name: own}, draws, missing)
        table = {"domain": domain, "examples": len(rows), "step": context.step, **made}
        if context.when == "end":
            context.save_table(self.name, table)
        context.show("stability", table)
        return _numbers(made["solutions"].get(own.name))


def _numbers(row: dict[str, Any] | None) -> dict[str, float]:
    if row is None:
        return dict.fromkeys(("area", "half_life", "degradation"), math.nan)
    middle = row["degradation"][len(row["epsilons"]) // 2]
    found = {"area": row["area"]["value"], "half_life": row["half_life"]["value"], "degradation": middle}
    return {key: math.nan if value is None else value for key, value in found.items()}
