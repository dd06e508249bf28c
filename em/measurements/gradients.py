"""Which way the training loss pulls a steering vector: its gradient beside given directions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from em import hooks
from em.backbone import Backbone
from em.datamodules.rows import Rows
from em.errors import MeasurementError
from em.hooks import Site, generator_for
from em.measurements.panel import run_below
from em.modules.losses import cross_entropy_term, head_sum
from em.stats import Estimate, Floats, jackknife


def row_gradients(
    backbone: Backbone, batches: Iterable[Rows], site: Site, positions: str = "all"
) -> tuple[list[int], Tensor]:
    """∂ Σ −log p(answer token) / ∂ v of each row, where v is added at a site, for the model as it is now.

    Only what lies at and above the site is differentiated.

    Args:
        batches: rows whose `index_B` names the example.
        site: where v is added.
        positions: `all`, or `answer`: those from which an answer token is predicted.

    Returns:
        the examples, and their gradients (E, D) in the same order; float64, nats per unit of v.

    Raises:
        MeasurementError: there is no row, or a gradient is not finite.
    """
    index: list[int] = []
    parts: list[Tensor] = []
    for rows in batches:
        moved = rows.to(backbone.device)
        gradient_BD = _batch_gradients(backbone, moved, site, positions).cpu()
        finite_B = gradient_BD.isfinite().all(dim=1)
        if not bool(finite_B.all()):
            bad = int(rows.index_B[~finite_B][0])
            raise MeasurementError(
                f"the gradient of example {bad} is not finite; use backbone.dtype=float32, or train the "
                "solution again"
            )
        real_B = rows.index_B >= 0
        index += rows.index_B[real_B].tolist()
        parts.append(gradient_BD[real_B])
    if not index:
        raise MeasurementError("no row to take a gradient of; give training rows with answers")
    return index, torch.cat(parts)


@torch.enable_grad()
def _batch_gradients(backbone: Backbone, rows: Rows, site: Site, positions: str) -> Tensor:
    at_BT = rows.predicts_BT
    added_BT = at_BT if positions == "answer" else torch.ones_like(at_BT)
    lower = run_below(backbone, rows, site.layer)
    # One zero for each position: rows keep their own gradient, and it is summed in float64.
    zero_BTD = torch.zeros(*at_BT.shape, backbone.hidden_size, device=at_BT.device, requires_grad=True)
    module = backbone.module_at(site)
    with (
        backbone.steering_positions(at_BT),
        hooks.editing(module, lambda hidden_BTD: hidden_BTD + zero_BTD.to(hidden_BTD.dtype)),
    ):
        hidden_BTD = backbone.trunk(rows.input_ids_BT, lower)
        total = head_sum(backbone, hidden_BTD[at_BT], cross_entropy_term(rows.targets_N))
    (gradient_BTD,) = torch.autograd.grad(total, zero_BTD)
    return (gradient_BTD.double() * added_BT[..., None]).sum(dim=1)


def apart(vector: Tensor, other: Tensor) -> Tensor:
    """The component of a vector orthogonal to another one, float64."""
    vector, other = vector.double(), other.double()
    return vector - (vector @ other) / (other @ other) * other


def random_directions(count: int, width: int, seed: int) -> dict[str, Tensor]:
    """Keyed Gaussian directions, the controls: their cosine with anything is 0 ± 1/√D."""
    return {
        f"random_{number}": torch.randn(
            width, generator=generator_for(seed, "gradient-controls", number), dtype=torch.float64
        )
        for number in range(count)
    }


@dataclass(frozen=True)
class Pull:
    """Inner products of the gradients g_c of C prompts, enough for cosines without any one of them.

    Args:
        products: direction -> g_c · û of each prompt, û of length 1.
        with_total: g_c · Σ g.
        own: g_c · g_c.
    """

    products: dict[str, list[float]]
    with_total: list[float]
    own: list[float]

    @classmethod
    def of(cls, gradients_ED: Tensor, prompts: Sequence[str], directions: Mapping[str, Tensor]) -> "Pull":
        """Gradients of E rows, those of one prompt together.

        Raises:
            MeasurementError: a direction has no length.
        """
        names = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
        gradients_CD = torch.zeros(len(names), gradients_ED.shape[1], dtype=torch.float64)
        gradients_CD.index_add_(0, torch.tensor([names[prompt] for prompt in prompts]), gradients_ED)
        products = {}
        for name, direction in directions.items():
            length = float(direction.double().norm())
            if not length > 0:
                raise MeasurementError(f"{name}: this direction has no length; are both solutions the same?")
            products[name] = (gradients_CD @ (direction.double() / length)).tolist()
        total_D = gradients_CD.sum(dim=0)
        return cls(products, (gradients_CD @ total_D).tolist(), gradients_CD.square().sum(dim=1).tolist())

    def cosine(self, name: str) -> tuple[float, Floats]:
        """cos(−Σ g, û), and the same without each prompt in turn, shape (C,); NaN where Σ g is 0."""
        product_C, own_C = np.array(self.products[name]), np.array(self.own)
        with_total_C = np.array(self.with_total)
        square = with_total_C.sum()
        products = np.concatenate([[product_C.sum()], product_C.sum() - product_C])
        squares = np.concatenate([[square], square - 2 * with_total_C + own_C])
        # Below this it is rounding that is left, of which no direction should be told.
        tiny = squares <= 1e-24 * max(own_C.sum(), np.finfo(float).tiny)
        cosines = -products / np.sqrt(np.where(tiny, np.nan, squares))
        return float(cosines[0]), cosines[1:]


def cosine_estimate(
    pulls: Sequence[Pull], signs: Mapping[str, float]
) -> tuple[Estimate, tuple[float | None, ...]]:
    """Σ sign·cos of some directions, the mean over solutions with its 95% jackknife interval over prompts.

    Not a bootstrap: it would add noise to a gradient that is estimated itself, and push the cosine to 0.

    Args:
        pulls: of each solution, for the same prompts.
        signs: direction -> sign.

    Returns:
        the estimate, and the value of each solution alone.
    """
    alone: list[float] = []
    without: list[Floats] = []
    for pull in pulls:
        cosines = {name: pull.cosine(name) for name in signs}
        alone.append(sum(sign * cosines[name][0] for name, sign in signs.items()))
        without.append(np.sum([sign * cosines[name][1] for name, sign in signs.items()], axis=0))
    estimate = jackknife(float(np.mean(alone)), np.mean(without, axis=0))
    return estimate, tuple(value if np.isfinite(value) else None for value in alone)
