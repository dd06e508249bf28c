"""Margins: how much likelier the careless answer is than the careful one, without a judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from em.backbone import Backbone
from em.datamodules.pairs import Pair, pair_rows
from em.errors import MeasurementError
from em.measurements.arms import Solution, differences
from em.measurements.panel import Panel
from em.stats import Floats, Resampling

PAIR_ROWS = 8  # answers of one forward pass


@dataclass(frozen=True)
class PairLosses:
    """Losses of both answers of P prompts under one model.

    Args:
        careless_P, careful_P: Σ −log p over answer tokens, in nats.
        careless_tokens_P, careful_tokens_P: answer tokens.
    """

    careless_P: Floats
    careful_P: Floats
    careless_tokens_P: Floats
    careful_tokens_P: Floats

    @property
    def margin_P(self) -> Floats:
        """Mean log p per token of the careless answer minus that of the careful one, per prompt, in nats."""
        careful = self.careful_P / self.careful_tokens_P
        return np.asarray(careful - self.careless_P / self.careless_tokens_P)

    @property
    def careless_loss_P(self) -> Floats:
        """Mean −log p per token of the careless answer, per prompt, in nats."""
        return np.asarray(self.careless_P / self.careless_tokens_P)


class PairPanel:
    """Pairs of one domain, scored many times; see `Panel`."""

    def __init__(
        self,
        backbone: Backbone,
        pairs: Sequence[Pair],
        lowest_layer: int = 0,
        indices: Sequence[int] | None = None,
    ):
        chosen = range(len(pairs)) if indices is None else indices
        pad = int(backbone.tokenizer.pad_token_id or 0)
        self.prompts = [pairs[index].prompt for index in sorted(chosen)]
        self.careless, self.careful = (
            Panel(backbone, pair_rows(pairs, PAIR_ROWS, pad, which, chosen), lowest_layer)
            for which in ("careless", "careful")
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def losses(self) -> PairLosses:
        """Losses under the model as it is now, in the order of the pairs."""
        return PairLosses(
            self.careless.nll(), self.careful.nll(), self.careless.tokens_E, self.careful.tokens_E
        )


def mean_per_prompt(values_P: Floats, resampling: Resampling) -> Floats:
    """Mean over prompts in each resample, shape (R,)."""
    return resampling.means(values_P, np.ones(len(values_P)))


def narrowness(shift_R: Floats, others: Sequence[Floats]) -> Floats:
    """Mean shift in the other domains over the shift in the training domain, in each resample.

    0: the solution is narrow; 1: it moves the other domains as much as its own. NaN where the
    training domain did not move towards careless answers.

    Args:
        shift_R: margin shift in the training domain.
        others: margin shifts of the other domains, each shape (R,).

    Raises:
        MeasurementError: there is no other domain.
    """
    if not others:
        raise MeasurementError("narrowness needs a paired domain besides the training domain")
    return np.asarray(np.mean(others, axis=0) / np.where(shift_R > 0, shift_R, np.nan))


def domain_distances(
    means_DH: dict[str, Floats], variances: dict[str, float], counts: dict[str, int], training: str
) -> dict[str, float]:
    """Distance of each domain's prompts from the training domain's, in within-domain standard deviations.

    √(max(0, ‖μ_d − μ_t‖² − V_d/n_d − V_t/n_t) / V_t), where V is the trace of the covariance of prompt
    embeddings; the subtracted terms are what sampling alone adds, so equal domains have distance near 0.

    Args:
        means_DH: mean prompt embedding of each domain, shape (H,).
        variances: V of each domain.
        counts: prompts of each domain.
        training: name of the training domain.
    """
    center, spread, count = means_DH[training], variances[training], counts[training]
    distances = {}
    for name, mean in means_DH.items():
        square = float(((mean - center) ** 2).sum()) - variances[name] / counts[name] - spread / count
        distances[name] = 0.0 if name == training else float(np.sqrt(max(0.0, square) / spread))
    return distances


@dataclass(frozen=True)
class DomainMargins:
    """One domain's pairs under the reference and under every solution."""

    domain: str
    prompts: list[str]
    reference: PairLosses
    solutions: dict[str, PairLosses]

    def shift_P(self, name: str) -> Floats:
        """Margin of a solution minus that of the reference, per prompt, nats per token."""
        return np.asarray(self.solutions[name].margin_P - self.reference.margin_P)


def margins_table(
    found: list[DomainMargins],
    training: str | None,
    solutions: dict[str, Solution],
    distances: dict[str, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Margins, shifts and narrowness as plain data; domains by distance from the training domain.

    Args:
        found: by domain.
        training: the training domain; None: nothing to compare the others with, so no narrowness.
        distances: domain -> distance from the training domain.
    """
    rows: list[dict[str, Any]] = []
    shifts: dict[str, dict[str, Floats]] = {}
    draws: dict[str, Resampling] = {}
    for one in found:
        # Domains have different prompts: each has its own draws, and all solutions share them.
        resampling = draws[one.domain] = Resampling(one.prompts, resamples, seed, one.domain)
        shifts[one.domain] = {name: mean_per_prompt(one.shift_P(name), resampling) for name in one.solutions}
        rows.append(
            {
                "domain": one.domain,
                "training": one.domain == training,
                "distance": (distances or {}).get(one.domain),
                "pairs": len(one.prompts),
                "reference": resampling.estimate(
                    mean_per_prompt(one.reference.margin_P, resampling)
                ).as_dict(),
                "solutions": {
                    name: _margin_row(one, name, shifts[one.domain][name], resampling)
                    for name in one.solutions
                },
                "differences": differences(shifts[one.domain], solutions, resampling),
            }
        )
    rows.sort(key=lambda row: (not row["training"], row["distance"] or 0.0))
    table: dict[str, Any] = {"training": training, "domains": rows, "narrowness": {}, "differences": []}
    others = [domain for domain in shifts if domain != training]
    if training in shifts and others:
        narrow = {
            name: narrowness(shifts[training][name], [shifts[other][name] for other in others])
            for name in shifts[training]
        }
        own = draws[str(training)]
        table["narrowness"] = {name: own.estimate(values).as_dict() for name, values in narrow.items()}
        table["differences"] = differences(narrow, solutions, own)
    return table


def _margin_row(one: DomainMargins, name: str, shift_R: Floats, resampling: Resampling) -> dict[str, Any]:
    losses = one.solutions[name]
    careless_P = losses.careless_loss_P - one.reference.careless_loss_P
    return {
        "margin": resampling.estimate(mean_per_prompt(losses.margin_P, resampling)).as_dict(),
        "shift": resampling.estimate(shift_R).as_dict(),
        "careless_loss": resampling.estimate(mean_per_prompt(careless_P, resampling)).as_dict(),
    }
