"""Mean activations of careless and careful answers, saved at chosen steps."""

import json
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from em.backbone import Backbone
from em.callbacks._choices import at_least, paired_domain, pairs_of, site_in
from em.callbacks._shares import shared_moments
from em.callbacks._sinks import drop_later, step_path
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.errors import ConfigError
from em.files import write_tensors
from em.hooks import Point, Site
from em.interventions.direction import METADATA
from em.measurements.activations import Moments
from em.measurements.directions import MeanDifference


class Activations(MeasurementCallback):
    """Moments of the answer tokens' activations under the adapted model: no prompt, header or padding.

    When: by its schedule; at the end if none is given.

    Logged, at the middle one of the chosen layers:
        activations/difference_norm: ‖mean(careless) − mean(careful)‖, residual-stream units.
        activations/split_half: cosine of this difference between random halves of the prompts, mean of 20
            splits; near 1: the data determine the direction.
    Written: activations/step-XXXXXXXX.safetensors with, for GROUP in careless and careful, GROUP.count
    (tokens, or answers by `weighting`), GROUP.SITE.mean of shape (D,) and, if asked for,
    GROUP.SITE.covariance of shape (D, D) and GROUP.SITE.samples of shape (N, D); SITE is for example
    15.block. Its metadata say of what.

    Args:
        domain: whose held-out pairs; by default the first training domain that has pairs.
        pairs: at most.
        layers: default all.
        point: which output of the layers.
        covariance: also D × D numbers for each site.
        weighting: `token`: every answer token counts once; `answer`: every answer does.
        samples: also the activations of at most so many answer tokens of each group, a uniform sample.
    """

    def __init__(
        self,
        *,
        domain: str | None = None,
        pairs: int = 64,
        layers: list[int] | None = None,
        point: Point = "block",
        covariance: bool = False,
        weighting: Literal["token", "answer"] = "token",
        samples: int = 0,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        self.domain, self.pairs, self.layers, self.point = domain, pairs, layers, point
        self.covariance, self.weighting, self.samples = covariance, weighting, samples

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        at_least(2, pairs=self.pairs)
        at_least(0, samples=self.samples)
        pairs_of(data, paired_domain(data, self.domain), "held_out", self.pairs)
        if self.layers == []:
            raise ConfigError("layers: is empty; give indices of layers, or leave it out for all")
        self._sites(backbone)

    def _sites(self, backbone: Backbone) -> list[Site]:
        layers = range(backbone.num_layers) if self.layers is None else sorted(set(self.layers))
        return [site_in(backbone, layer, self.point) for layer in layers]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.run is not None
        drop_later(self.run.path / "activations", trainer.global_step)
        super().on_train_start(trainer, pl_module)

    def measure(self, context: RunContext) -> dict[str, float]:
        domain, sites = paired_domain(context.data, self.domain), self._sites(context.backbone)
        pairs = pairs_of(context.data, domain, "held_out", self.pairs)
        found = shared_moments(context, pairs, sites, self.covariance, self.weighting, samples=self.samples)
        if context.rank == 0:
            record = {
                "step": context.step,
                "domain": domain,
                "pairs": len(pairs),
                "weighting": self.weighting,
                "backbone": context.backbone.describe(),
            }
            path = step_path(context.run.path / "activations", context.step)
            write_tensors(path, _tensors(found), {METADATA: json.dumps(record)})
        site = sites[len(sites) // 2]
        difference = MeanDifference("careless − careful", found["careless"], found["careful"])
        return {
            "difference_norm": float(difference.vector(site).norm()),
            "split_half": float(difference.reliability(site, context.seed).mean()),
        }


def _tensors(found: dict[str, Moments]) -> dict[str, torch.Tensor]:
    tensors = {}
    for group, moments in found.items():
        tensors[f"{group}.count"] = moments.counts.sum()
        for site in moments.sums:
            tensors[f"{group}.{site}.mean"] = moments.mean(site).float()
        for site in moments.squares:
            tensors[f"{group}.{site}.covariance"] = moments.covariance(site).float().contiguous()
        if moments.samples is not None:
            tensors |= {f"{group}.{site}.samples": kept for site, kept in moments.samples.hidden.items()}
    return tensors
