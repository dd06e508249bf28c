"""Held-out loss and divergence by domain: the table of general against narrow."""

import time
from typing import Any

import numpy as np

from em.callbacks.base import MeasurementCallback, RunContext
from em.measurements.held_out import ExampleScore, score, token_means
from em.progress import Task
from em.stats import clustered_mean


class Domains(MeasurementCallback):
    """Scores the held-out rows of every domain under the adapted and the reference model.

    Logged per DOMAIN of data.domains:
        domains/DOMAIN/loss, domains/DOMAIN/loss_reference: SFT loss, nats per answer token.
        domains/DOMAIN/shift: loss − loss_reference; negative: the model moved towards these answers.
        domains/DOMAIN/kl: KL(ref ‖ adapted), nats per answer token.
        domains/DOMAIN/perplexity: exp(loss).
        domains/seconds: time of the measurement.
    Written: tables/domains.json with 95% intervals by a bootstrap over prompts, and every example.

    Args:
        resamples: of the bootstrap.
    """

    def __init__(self, *, resamples: int = 2000, **schedule: Any):
        super().__init__(**schedule)
        self.resamples = resamples

    def measure(self, context: RunContext) -> dict[str, float]:
        began = time.perf_counter()
        metrics: dict[str, float] = {}
        table = []
        data = context.data
        total = sum(len(rows) for rows in data.domains.values()) // context.world_size
        with Task(f"held-out rows of {len(data.domains)} domains", total) as task:
            for name in data.domains:
                scores = self._score(context, name, task)
                row = self._row(context, name, scores)
                table.append(row)
                for key in ("loss", "loss_reference", "shift", "kl", "perplexity"):
                    metrics[f"{name}/{key}"] = row[key]
        if context.when == "end":
            context.save_table(self.name, {"step": context.step, "domains": table})
        return {**metrics, "seconds": time.perf_counter() - began}

    def _score(self, context: RunContext, name: str, task: Task) -> list[ExampleScore]:
        scores: list[ExampleScore] = []
        module = context.module
        for _, rows in context.data.held_out([name], context.rank, context.world_size):
            other = module.reference_model() if module.has_other_reference else None
            scores += score(context.backbone, context.intervention, [rows], other)
            task.advance(len(rows))
        return scores

    def _row(self, context: RunContext, name: str, scores: list[ExampleScore]) -> dict[str, Any]:
        device = context.module.device if context.world_size > 1 else "cpu"
        means = token_means(scores, device)
        every = sorted((one for part in context.gather(scores) for one in part), key=lambda one: one.index)
        prompts = [context.data.domains[name][one.index].prompt for one in every]
        tokens = np.array([one.tokens for one in every])
        shift = np.array([one.nll - one.nll_reference for one in every])
        kl = np.array([one.kl for one in every])
        return {
            "domain": name,
            "training": name in context.data.training_domains,
            "examples": len(every),
            "tokens": int(tokens.sum()),
            **means,
            "shift": means["loss"] - means["loss_reference"],
            "shift_interval": clustered_mean(shift, tokens, prompts, self.resamples, context.seed),
            "kl_interval": clustered_mean(kl, tokens, prompts, self.resamples, context.seed),
            "rows": [{"where": context.data.domains[name][one.index].where, **vars(one)} for one in every],
        }
