"""Efficiency during training: held-out loss against the norm of the solution."""

from typing import Any

from em.backbone import Backbone
from em.callbacks._choices import at_least, loss_domain
from em.callbacks._shares import SharedPanel, solution
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.errors import ConfigError
from em.measurements.efficiency import common_norms, efficiency, efficiency_table
from em.measurements.panel import mean_loss
from em.stats import Resampling

NAN = float("nan")


class Efficiency(MeasurementCallback):
    """Loss with the solution rescaled to multiples of its own norm (arXiv 2602.07852).

    When: by its schedule; at the end if none is given. Before the solution has moved it has no norm to
    rescale, and what depends on one is not a number.

    Logged:
        efficiency/norm: Frobenius norm of the effective update (vector: ‖v‖·scale).
        efficiency/loss, efficiency/loss_reference: held-out loss of the solution and of the model without
            it, nats per answer token.
        efficiency/loss_at_FACTOR: the same at each factor times the norm.
        efficiency/gain_per_norm: (loss_reference − loss) / norm, nats per token and unit of norm.
    Written at the end: tables/efficiency.json with 95% intervals by a bootstrap over prompts, and
    figures/efficiency.*; the figure goes to W&B each time.

    Args:
        domain: whose held-out rows; by default the first training domain.
        examples: held-out rows, at most.
        factors: of the solution's norm; 1 is always among them. Default: 0, 0.5, 1, 1.5, 2.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        *,
        domain: str | None = None,
        examples: int = 32,
        factors: list[float] | None = None,
        resamples: int = 2000,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        self.domain, self.examples, self.resamples = domain, examples, resamples
        self.factors = sorted({1.0, *([0.0, 0.5, 1.5, 2.0] if factors is None else factors)})

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        loss_domain(data, self.domain)
        at_least(1, examples=self.examples, resamples=self.resamples)
        if self.factors[0] < 0:
            raise ConfigError(f"factors: expected numbers at least 0, got {self.factors[0]}")

    def measure(self, context: RunContext) -> dict[str, float]:
        domain = loss_domain(context.data, self.domain)
        rows = context.data.domains[domain][: self.examples]
        panel, norm = SharedPanel(context, rows), context.intervention.norm()
        if norm == 0 and context.when != "end":
            loss = mean_loss(panel.nll_reference(context.intervention), panel.tokens_E)
            scaled = {f"loss_at_{factor:g}": NAN for factor in self.factors}
            return {"norm": 0.0, "loss": loss, "loss_reference": loss, "gain_per_norm": NAN, **scaled}
        found = efficiency(context.intervention, panel, common_norms([norm], self.factors))
        (own,) = solution(context, norm).values()
        draws = Resampling([row.prompt for row in rows], self.resamples, context.seed)
        made = efficiency_table({own.name: found}, {own.name: own}, {own.space: norm}, draws)
        table = {"domain": domain, "step": context.step, **made}
        if context.when == "end":
            context.save_table(self.name, table)
        context.show("efficiency", table)
        loss, reference = mean_loss(found.nll_E, found.tokens_E), mean_loss(found.reference_E, found.tokens_E)
        return {
            "norm": norm,
            "loss": loss,
            "loss_reference": reference,
            "gain_per_norm": (reference - loss) / norm,
            **{
                f"loss_at_{factor:g}": mean_loss(nll_E, found.tokens_E)
                for factor, nll_E in zip(self.factors, found.nll_KE, strict=True)
            },
        }
