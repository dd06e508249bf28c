"""Significance during training: how much the solution moves predictions on plain text."""

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np

from em.backbone import Backbone
from em.callbacks._choices import ELSEWHERE, at_least, refuse_sharded_noise
from em.callbacks._shares import solution, together
from em.callbacks.base import MeasurementCallback, RunContext
from em.config.schema import CorpusConfig
from em.datamodules.chat import ChatData
from em.datamodules.plain_text import Corpus, corpus_rows, read_corpus
from em.errors import ConfigError
from em.measurements import significance as measured
from em.measurements.efficiency import common_norms
from em.modules.sft import SFTModule
from em.progress import Task

TEXT_ROWS = 4  # documents of one forward pass


class Significance(MeasurementCallback):
    """Mean token KL(ref ‖ adapted) on plain text against the norm, beside random updates (arXiv 2602.07852).

    When: by its schedule; at the end if none is given. Before the solution has moved there is nothing to
    rescale: its KL is 0 and the slopes are not numbers.

    Logged per SLICE of the corpus:
        significance/SLICE/kl: at the solution's own norm, nats per token, summed over the vocabulary.
        significance/SLICE/slope: KL per unit of norm, a line through the origin.
        significance/SLICE/control_slope: the same for random updates of the same norms, averaged.
    Written at the end: tables/significance.json with 95% intervals by a bootstrap over documents, and
    figures/significance.*; the figures go to W&B each time.

    Args:
        corpus: slices of plain text; default the prose that Python carries.
        documents: of each slice, at most.
        max_tokens: of each document.
        factors: of the solution's norm; 1 is always among them. Default: 0, 0.5, 1, 1.5, 2.
        controls: random updates of the same norm; 0 for none.
        resamples: of the bootstrap.
    """

    def __init__(
        self,
        *,
        corpus: list[CorpusConfig] | None = None,
        documents: int = 16,
        max_tokens: int = 256,
        factors: list[float] | None = None,
        controls: int = 2,
        resamples: int = 2000,
        **schedule: Any,
    ):
        super().__init__(**schedule)
        self.sources, self.documents, self.max_tokens = corpus or [], documents, max_tokens
        self.factors = sorted({1.0, *([0.0, 0.5, 1.5, 2.0] if factors is None else factors)})
        self.controls, self.resamples = controls, resamples
        self._corpus: Corpus | None = None

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        at_least(0, controls=self.controls)
        at_least(1, documents=self.documents, resamples=self.resamples)
        at_least(2, max_tokens=self.max_tokens)
        if self.factors[0] < 0:
            raise ConfigError(f"factors: expected numbers at least 0, got {self.factors[0]}")
        self._texts(data)

    def _texts(self, data: ChatData) -> Corpus:
        if self._corpus is None:
            self._corpus = read_corpus(
                self.sources, data.tokenizer, self.documents, self.max_tokens, data.config.root, data.seed
            )
        return self._corpus

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SFTModule)
        if self.controls:
            refuse_sharded_noise(
                pl_module.backbone, pl_module.intervention, f"set controls: 0, or {ELSEWHERE}"
            )
        super().on_train_start(trainer, pl_module)

    def measure(self, context: RunContext) -> dict[str, float]:
        corpus, norm = self._texts(context.data), context.intervention.norm()
        slices = [document.slice for document in corpus.documents]
        if norm == 0 and context.when != "end":
            return self._unmoved(slices)
        found = self._merged(context, corpus, common_norms([norm], self.factors))
        ((name, own),) = solution(context, norm).items()
        made = measured.significance_table({name: found}, {name: own}, slices, self.resamples, context.seed)
        table = {"corpus": [vars(report) for report in corpus.reports], "step": context.step, **made}
        if context.when == "end":
            context.save_table(self.name, table)
        context.show("significance", table)
        return _numbers(made, name, self.factors.index(1.0))

    def _merged(self, context: RunContext, corpus: Corpus, norms: Sequence[float]) -> measured.Significance:
        """Each process measures its documents; the result is of all of them, in their order."""
        batches = list(corpus_rows(corpus, TEXT_ROWS, context.data.pad, context.rank, context.world_size))
        total = sum(int((rows.index_B >= 0).sum()) for rows in batches)
        with Task(f"significance at step {context.step}", total) as task:
            parts = together(
                context,
                lambda: measured.significance(
                    context.backbone,
                    context.intervention,
                    batches,
                    norms,
                    self.controls,
                    context.seed,
                    task.advance,
                ),
            )
        order = np.argsort(np.concatenate([part.index_E for part in parts]), kind="stable")
        return measured.Significance(
            parts[0].norm,
            parts[0].norms,
            np.concatenate([part.kl_KE for part in parts], axis=1)[:, order],
            np.concatenate([part.controls_CKE for part in parts], axis=2)[:, :, order],
            np.concatenate([part.tokens_E for part in parts])[order],
            np.concatenate([part.index_E for part in parts])[order],
        )

    def _unmoved(self, slices: Sequence[str]) -> dict[str, float]:
        keys = {"kl": 0.0, "slope": math.nan, **({"control_slope": math.nan} if self.controls else {})}
        return {f"{name}/{key}": value for name in dict.fromkeys(slices) for key, value in keys.items()}


def _numbers(table: dict[str, Any], name: str, own: int) -> dict[str, float]:
    numbers: dict[str, float | None] = {}
    for part, found in table["slices"].items():
        row = found["solutions"][name]
        numbers[f"{part}/kl"] = row["kl"][own]
        for key in ("slope", "control_slope"):
            if key in row:
                numbers[f"{part}/{key}"] = row[key]["value"]
    return {key: math.nan if value is None else value for key, value in numbers.items()}
