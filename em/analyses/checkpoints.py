"""Experiment 7: rank-1 training by checkpoint: rotation, norm, and behaviour of the scaled adapter."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from em.analyses._checkpoints_page import figures, notes, tables
from em.analyses._checkpoints_read import statistics
from em.analyses._inner import arms_of, clusters, opened, prefix
from em.analyses.base import Analysis, Context, Found, Raw
from em.comparison.measured import Panels
from em.comparison.study import Study, study_key
from em.datamodules.pairs import Pair
from em.errors import ConfigError
from em.files import write_json
from em.interventions.base import Intervention
from em.measurements.checkpoints import evenly, scaled_shifts
from em.measurements.margins import PairPanel
from em.measurements.trajectory import read_solution, read_trajectory, rotation
from em.progress import Task
from em.stats import Floats

FINAL = "final norm"  # the name of the scale at which every snapshot is as long as the last


class Checkpoints(Analysis):
    """The phase transition of rank-1 training (arXiv 2506.11613): where the path turns, and what that does.

    Rotation is cos(B[t−k] − B[t], B[t+k] − B[t]) over all snapshots. Behaviour is the margin shift of
    held-out pairs, nats per token, with the adapter of a snapshot rebuilt and scaled by one factor; at `final
    norm` every snapshot is as long as the last, so that its direction alone is seen.

    Statistics; with runs of several configurations as ARM/NAME:
        peak_step: where the rotation peaks beyond its noise; None where the path turns nowhere more than
            elsewhere. An interval over seeds only.
        rotation_rise: the peak minus the median of the rotation. The interval of one run is that of the
            noise of its curve (see `sharpest_turn`), of several runs over seeds.
        behaviour_after-before: shift at the first snapshot after the peak minus that at the last one before
            it, mean over all paired domains, at the largest scale. Also /training and /other.
        behaviour_end-start: the same, of the last and the first snapshot. Also /training and /other.
        behaviour_half_step: first step with half of the last shift, all paired domains, largest scale.
        norm_growth: norm of the last snapshot over that of the first one that is not zero.

    Args:
        members: runs with callbacks.trajectory.everything; those of one configuration are its seeds.
        scales: factors.
        final_norm: also at the norm of the last snapshot.
        k: distance of the rotation, in snapshots.
        snapshots: whose behaviour is measured, evenly; the rotation is always of all.
        pairs: held-out pairs of each domain; default: compare.steered_pairs.
    """

    def __init__(
        self,
        members: list[str],
        scales: list[float] | None = None,
        final_norm: bool = True,
        k: int = 1,
        snapshots: int = 12,
        pairs: int | None = None,
    ):
        super().__init__(members)
        self.scales = sorted(set(scales or [1.0, 2.0, 4.0]))
        self.final_norm, self.k, self.snapshots, self.pairs = final_norm, k, snapshots, pairs
        if self.scales[0] <= 0 or k < 1 or snapshots < 2 or (pairs or 2) < 2:
            raise ConfigError(
                f"scales: {self.scales}, k: {k}, snapshots: {snapshots}, pairs: {pairs}; scales must be "
                "above 0, k at least 1, snapshots and pairs at least 2"
            )

    def measure(self, context: Context) -> Raw:
        study = opened(context, self.members)
        panels, count = Panels(study), self.pairs or study.config.steered_pairs
        domains = [study.training, *(name for name in study.pairs if name != study.training)]
        chosen = {domain: study.pairs[domain][:count] for domain in domains}
        options = {key: value for key, value in vars(self).items() if key != "members"}
        members = {}
        for name, record in study.records.items():  # each takes minutes: an interrupted analysis goes on
            kept = _Kept(context.folder, name, [study_key([record], study.config, study.data), options])
            measured = kept.read() or kept.write(self._member(study, name, panels, chosen))
            members[name] = {"arm": study.solutions[name].arm, **measured}
        return {
            "training": study.training,
            "domains": domains,
            "clusters": {
                domain: clusters([one.prompt for one in listed]) for domain, listed in chosen.items()
            },
            "scales": [*self.scales, *([FINAL] if self.final_norm else [])],
            "k": self.k,
            "resamples": study.config.resamples,
            "seed": study.config.seed,
            "members": members,
        }

    def _member(self, study: Study, name: str, panels: Panels, pairs: dict[str, list[Pair]]) -> Raw:
        record = study.records[name]
        folder = record.directory.path / "trajectory"
        path = read_trajectory(folder, name)
        turns, cosines = rotation(path, self.k)
        chosen = evenly(path.steps, self.snapshots)
        found: Raw = {
            "seed": record.config.seed,
            "rotation_steps": turns,
            "rotation": cosines,
            "steps": chosen,
            "norms": [],
            "shifts": {domain: [] for domain in pairs},
        }
        lowest = study.lowest[name]
        paired = {domain: panels.pairs(domain, lowest, len(some)) for domain, some in pairs.items()}
        with (
            record.adapted(study.backbone) as intervention,
            Task(f"{name}: checkpoints", len(chosen)) as task,
        ):
            final = _norm_at(intervention, read_solution(folder, path.steps[-1]))
            references = _references(intervention, paired)
            for step in chosen:
                norm = _norm_at(intervention, read_solution(folder, step))
                factors: list[float | None] = [*self.scales] if norm > 0 else [0.0 for _ in self.scales]
                if self.final_norm:
                    factors.append(final / norm if norm > 0 else None)
                found["norms"].append(norm)
                for domain, values in scaled_shifts(intervention, paired, references, factors).items():
                    found["shifts"][domain].append(values)
                task.advance()
        return found

    def read(self, raw: Raw) -> Found:
        arms = arms_of(raw["members"])
        found = Found(notes=notes(raw))
        for arm, members in arms.items():
            made = statistics(raw, members)
            found.statistics |= {prefix(arm, arms) + name: value for name, value in made.items()}
        found.figures = figures(raw)
        found.tables = tables(raw)
        return found


class _Kept:
    """The measurements of one run, in a file that is used again for the same runs and options."""

    def __init__(self, folder: Path, name: str, key: list[Any]):
        told = json.dumps([name, *key], sort_keys=True)
        self.path = folder / f"checkpoints-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"

    def read(self) -> Raw | None:
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def write(self, found: Raw) -> Raw:
        write_json(self.path, found)
        return found


def _norm_at(intervention: Intervention, values: dict[str, Any]) -> float:
    """Put a snapshot into the intervention; its norm."""
    intervention.put(values, "snapshot")
    return intervention.norm()


def _references(intervention: Intervention, panels: dict[str, PairPanel]) -> dict[str, Floats]:
    with intervention.disabled():
        return {domain: np.asarray(panel.losses().margin_P) for domain, panel in panels.items()}
