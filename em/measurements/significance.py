"""Significance: how much a solution moves predictions on plain text (arXiv 2602.07852)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import Rows
from em.errors import MeasurementError
from em.hooks import generator_for
from em.interventions.base import Intervention
from em.measurements.arms import Solution, columns, differences
from em.measurements.panel import run_below
from em.modules.losses import ReferenceStates, chunks
from em.stats import Estimate, Floats, Resampling

HELD_ELEMENTS = 2**26  # hidden states of several factors held at a time; 256 MB in fp32


@dataclass(frozen=True)
class Significance:
    """KL(ref ‖ adapted) of documents on a grid of norms, for the solution and for random ones.

    Args:
        norm: of the solution as it was trained.
        norms: the grid, K norms.
        kl_KE: Σ KL over the tokens of each of E documents, in nats, summed over the vocabulary.
        controls_CKE: the same for C random updates *of the same norm*.
        tokens_E: real tokens (padding never counts).
        index_E: position of each document in its corpus.
    """

    norm: float
    norms: list[float]
    kl_KE: Floats
    controls_CKE: Floats
    tokens_E: Floats
    index_E: Floats

    def curve(self, resampling: Resampling) -> list[Estimate]:
        """Mean token KL at each norm, nats per token."""
        means_RK = resampling.means(self.kl_KE, self.tokens_E)
        return [resampling.estimate(means_RK[:, k]) for k in range(len(self.norms))]

    def control_curve(self, resampling: Resampling) -> list[Estimate]:
        """The same, averaged over the random updates; the interval is over documents."""
        means_RK = resampling.means(self.controls_CKE.mean(axis=0), self.tokens_E)
        return [resampling.estimate(means_RK[:, k]) for k in range(len(self.norms))]

    def slope(self, resampling: Resampling) -> Floats:
        """KL per unit of norm: Σ n·KL(n) / Σ n², the least-squares line through the origin; shape (R,)."""
        grid = np.array(self.norms)
        return np.asarray(resampling.means(self.kl_KE, self.tokens_E) @ grid / (grid @ grid))

    def control_slope(self, resampling: Resampling) -> Floats:
        """The same for the random updates, averaged."""
        grid = np.array(self.norms)
        means_RK = resampling.means(self.controls_CKE.mean(axis=0), self.tokens_E)
        return np.asarray(means_RK @ grid / (grid @ grid))

    def only(self, keep_E: Floats) -> "Significance":
        """The documents of one slice, as a boolean mask."""
        return Significance(
            self.norm,
            self.norms,
            self.kl_KE[:, keep_E],
            self.controls_CKE[:, :, keep_E],
            self.tokens_E[keep_E],
            self.index_E[keep_E],
        )


@torch.no_grad()
def significance(
    backbone: Backbone,
    intervention: Intervention,
    batches: Iterable[Rows],
    norms: Sequence[float],
    controls: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda amount: None,
) -> Significance:
    """Mean token KL to the reference with the solution rescaled to each norm, beside random controls.

    A control is the orthogonal noise of the stability measurement at ε = 1: a random update of exactly the
    same norm (for a LoRA, in every module), keyed by its number and shared by all solutions of one shape.

    Args:
        batches: plain text; every real token counts.
        norms: Frobenius norms of the effective update.
        progress: called with the number of rows of each batch done.

    Raises:
        MeasurementError: the solution has norm 0, or there is no text.
    """
    own = intervention.norm()
    if own <= 0:
        raise MeasurementError(f"the {intervention.kind} has norm 0 and cannot be rescaled; train it first")
    factors = [norm / own for norm in norms]
    sums, tokens, index = [], [], []
    for rows in batches:
        moved = rows.to(backbone.device)
        real_BT = moved.real_BT
        with backbone.steering_positions(real_BT):
            values_VN = _divergences(backbone, intervention, moved, real_BT, factors, controls, seed)
        counts_B = real_BT.sum(dim=1).tolist()
        per_row_VB = torch.stack([part.sum(dim=1) for part in values_VN.split(counts_B, dim=1)], dim=1)
        wanted = (moved.index_B >= 0).cpu()
        sums.append(per_row_VB.cpu()[:, wanted])
        tokens += [count for count, keep in zip(counts_B, wanted.tolist(), strict=True) if keep]
        index += moved.index_B.cpu()[wanted].tolist()
        progress(int(wanted.sum()))
    if not sums:
        raise MeasurementError("no plain text to measure on")
    kl_VE = torch.cat(sums, dim=1).numpy().reshape(1 + controls, len(factors), -1)
    if not np.isfinite(kl_VE).all():
        raise MeasurementError(
            "a KL on plain text is not finite; use backbone.dtype=float32 or smaller norms"
        )
    return Significance(own, list(norms), kl_VE[0], kl_VE[1:], np.array(tokens, float), np.array(index))


def _divergences(
    backbone: Backbone,
    intervention: Intervention,
    rows: Rows,
    real_BT: Tensor,
    factors: Sequence[float],
    controls: int,
    seed: int,
) -> Tensor:
    """KL at every real token for every variant (solution, then controls, each at every factor): (V, N)."""
    lower = run_below(backbone, rows, intervention.lowest_layer())
    with intervention.disabled():
        reference = ReferenceStates.of(backbone, _hidden(backbone, rows, lower, real_BT))
    nothing = torch.zeros_like(real_BT[real_BT], dtype=torch.float64)  # the reference itself, at factor 0
    together = max(1, HELD_ELEMENTS // max(1, reference.hidden_ND.numel()))
    moving = [factor for factor in factors if factor]
    values = []
    for number in range(1 + controls):
        found: dict[float, Tensor] = {0.0: nothing}
        with _variant(intervention, number, seed):
            for at in range(0, len(moving), together):
                hidden = {}
                for factor in moving[at : at + together]:
                    with intervention.rescaled(factor), intervention.merged():
                        hidden[factor] = _hidden(backbone, rows, lower, real_BT)
                found |= _kl(backbone, reference, hidden)
        values += [found[factor] for factor in factors]
    return torch.stack(values)


def _hidden(backbone: Backbone, rows: Rows, lower: tuple[int, Tensor] | None, real_BT: Tensor) -> Tensor:
    return backbone.trunk(rows.input_ids_BT, lower, rows.length_B)[real_BT]


@contextmanager
def _variant(intervention: Intervention, number: int, seed: int) -> Iterator[None]:
    with ExitStack() as stack:
        if number:
            generator = generator_for(seed, "significance-control", number)
            stack.enter_context(intervention.perturbed(1.0, generator))
        yield


def _kl(
    backbone: Backbone, reference: ReferenceStates, hidden_ND: dict[float, Tensor]
) -> dict[float, Tensor]:
    """KL(ref ‖ adapted) of each position in nats, by factor; one pass of the reference's head serves all."""
    parts: dict[float, list[Tensor]] = {factor: [] for factor in hidden_ND}
    for part in chunks(len(reference.hidden_ND), backbone.vocab_size):
        log_nV = reference.logits(part).log_softmax(dim=-1)
        probability_nV = log_nV.exp()
        for factor, states_ND in hidden_ND.items():
            adapted_nV = backbone.logits(states_ND[part]).log_softmax(dim=-1)
            parts[factor].append((probability_nV * (log_nV - adapted_nV)).sum(dim=-1).double())
    none = torch.zeros(0, dtype=torch.float64, device=reference.hidden_ND.device)
    return {factor: torch.cat([none, *values]) for factor, values in parts.items()}


def significance_table(
    results: dict[str, Significance],
    solutions: dict[str, Solution],
    slices: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Curves and summaries by slice of the corpus, as plain data.

    Args:
        results: solution -> its divergences; all on the same documents.
        slices: the slice of each document of the corpus.
    """
    found = {}
    for one in dict.fromkeys(slices):
        parts = {}
        for name, result in results.items():
            keep_E = np.array([slices[int(index)] == one for index in result.index_E])
            parts[name] = result.only(keep_E)
        first = next(iter(parts.values()))
        if not len(first.tokens_E):
            continue
        resampling = Resampling([str(int(index)) for index in first.index_E], resamples, seed)
        slopes = {name: part.slope(resampling) for name, part in parts.items()}
        found[one] = {
            "documents": len(first.tokens_E),
            "tokens": int(first.tokens_E.sum()),
            "solutions": {
                name: _significance_row(part, solutions[name].space, slopes[name], resampling)
                for name, part in parts.items()
            },
            "differences": differences(slopes, solutions, resampling, same_space=True),
        }
    return {"slices": found}


def _significance_row(
    part: Significance, space: str, slope_R: Floats, resampling: Resampling
) -> dict[str, Any]:
    row = {
        "space": space,
        "norm": part.norm,
        "norms": part.norms,
        **columns(part.curve(resampling), "kl"),
        "slope": resampling.estimate(slope_R).as_dict(),
    }
    if len(part.controls_CKE):
        row["control"] = columns(part.control_curve(resampling), "kl")
        row["control_slope"] = resampling.estimate(part.control_slope(resampling)).as_dict()
        row["controls"] = len(part.controls_CKE)
    return row
