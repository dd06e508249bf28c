"""Our side of the sweeps: em's own measurements on rows that were read before."""

import time
from pathlib import Path
from typing import Any

from benchmarks.ours.prepare import attached_solution
from benchmarks.ours.setting import build_config, loaded_backbone
from benchmarks.settings import Settings, read_plan
from em.building import attach
from em.comparison.measured import LOSS_ROWS
from em.datamodules.rows import Rows, batched
from em.datamodules.sources import Example
from em.measurements.panel import Panel, mean_loss
from em.measurements.significance import significance
from em.measurements.stability import stability


def stability_sweep(settings: Settings, work: Path) -> dict[str, Any]:
    """Seconds of the whole sweep: one-off work once, and every pass at the mean of those that were run.

    The losses of the solutions and of the reference, which both sides need, are the warm-up.
    """
    plan, sizes = read_plan(work), settings.sizes
    config = build_config(settings, work, plan["model"])
    backbone = loaded_backbone(settings, config)
    examples = [Example(one["ids"], list(map(bool, one["answer"])), "", "") for one in plan["examples"]]
    batches = batched(examples, LOSS_ROWS, plan["pad"], range(len(examples)))
    panel, once, sweeping = None, 0.0, 0.0
    losses: dict[str, list[float]] = {"own": [], "noisy": []}
    for folder in plan["solutions"]:
        intervention, _ = attach(config, backbone)
        intervention.load(Path(folder))
        if panel is None:
            began = time.perf_counter()
            panel = Panel(backbone, batches, intervention.lowest_layer())
            once = time.perf_counter() - began
        known = panel.nll(), panel.nll_reference(intervention)
        began = time.perf_counter()
        found = stability(intervention, panel, sizes["epsilons"], sizes["draws"], 0, known=known)
        sweeping += time.perf_counter() - began
        losses["own"].append(mean_loss(known[0], panel.tokens_E))
        losses["noisy"] += [mean_loss(nll_E, panel.tokens_E) for nll_SE in found.nll_KSE for nll_E in nll_SE]
        intervention.detach()
    if not sizes.get("vector"):  # the peer checks one draw for each solution, see benchmarks/peers/sweeps.py
        losses["noisy"] = losses["noisy"][:: len(losses["noisy"]) // len(plan["solutions"])]
    passes = len(sizes["epsilons"]) * sizes["draws"] * len(plan["solutions"])
    each = sweeping / passes
    return {
        "seconds": once + each * sizes["passes"] * len(plan["solutions"]),
        "once": once,
        "each": each,
        "losses": losses,
    }


def significance_sweep(settings: Settings, work: Path) -> dict[str, Any]:
    """Seconds of the whole sweep; one-off work and time per variant come from sweeps of two sizes."""
    plan, sizes = read_plan(work), settings.sizes
    config = build_config(settings, work, plan["model"])
    intervention = attached_solution(settings, config, Path(plan["solutions"][0]))
    backbone, norm = intervention.backbone, intervention.norm()
    documents = [Example(ids, [False] * len(ids), "", "") for ids in plan["documents"]]
    batches = batched(documents, sizes["batch"], plan["pad"], range(len(documents)))
    norms = [norm * factor for factor in sizes["factors"]]
    significance(backbone, intervention, _shortest(batches), norms[:1], 0)  # warm-up
    began = time.perf_counter()
    significance(backbone, intervention, batches, norms[:1], 0)
    small = time.perf_counter() - began
    began = time.perf_counter()
    found = significance(backbone, intervention, batches, norms, 1)
    large = time.perf_counter() - began
    variants = 2 * len(norms)
    each = (large - small) / (variants - 1)
    once = max(0.0, small - each)
    sums_V = [*found.kl_KE.sum(axis=1), *found.controls_CKE.sum(axis=2).ravel()]
    return {
        "seconds": once + each * sizes["norms"] * sizes["vectors"],
        "once": once,
        "each": each,
        "losses": {"kl": [float(total / found.tokens_E.sum()) for total in sums_V]},
    }


def _shortest(batches: list[Rows]) -> list[Rows]:
    return batches[:1]
