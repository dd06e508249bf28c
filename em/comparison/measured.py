"""One solution at a time: attach it once, take every measurement, take it off again."""

from dataclasses import dataclass, field

import numpy as np
import torch

from em.comparison.study import Study
from em.datamodules.pairs import pair_rows
from em.datamodules.plain_text import corpus_rows
from em.datamodules.rows import Rows, batched
from em.errors import MeasurementError
from em.hooks import Site
from em.interventions.base import Intervention
from em.interventions.update import Update
from em.measurements.activations import Moments, collect
from em.measurements.directions import written_directions
from em.measurements.efficiency import Efficiency, common_norms, efficiency
from em.measurements.margins import PAIR_ROWS, PairLosses, PairPanel
from em.measurements.panel import Panel
from em.measurements.significance import Significance, significance
from em.measurements.stability import Stability, stability
from em.progress import Task

LOSS_ROWS = 8  # answers of one forward pass
TEXT_ROWS = 4  # documents of one forward pass


@dataclass
class Measured:
    """What was measured of one solution; None or empty: not asked for, or see `missing`."""

    efficiency: Efficiency | None = None
    stability: Stability | None = None
    significance: Significance | None = None
    margins: dict[str, PairLosses] = field(default_factory=dict)  # domain -> losses
    moments: dict[str, Moments] = field(default_factory=dict)  # careless, careful -> activations
    written: dict[str, torch.Tensor] = field(default_factory=dict)  # part -> what it writes
    update: Update | None = None
    missing: dict[str, str] = field(default_factory=dict)  # section -> why


class Panels:
    """The rows of a study with what lies below a layer computed once, shared by solutions.

    Only the panels of one lowest layer are kept: solutions of one kind follow each other.
    """

    def __init__(self, study: Study):
        self.study = study
        self._layer = -1
        self._losses: Panel | None = None
        self._pairs: dict[tuple[str, int], PairPanel] = {}

    def losses(self, lowest: int) -> Panel:
        """Held-out answers of the training domain."""
        self._at(lowest)
        if self._losses is None:
            examples = self.study.examples
            batches = batched(examples, LOSS_ROWS, self.study.pad, range(len(examples)))
            self._losses = Panel(self.study.backbone, batches, lowest)
        return self._losses

    def pairs(self, domain: str, lowest: int, limit: int | None = None) -> PairPanel:
        """Held-out pairs of a domain, all or the first `limit`."""
        self._at(lowest)
        pairs = self.study.pairs[domain]
        count = len(pairs) if limit is None else min(limit, len(pairs))
        if (domain, count) not in self._pairs:
            self._pairs[domain, count] = PairPanel(self.study.backbone, pairs, lowest, range(count))
        return self._pairs[domain, count]

    def _at(self, lowest: int) -> None:
        if lowest != self._layer:
            self._layer, self._losses, self._pairs = lowest, None, {}


def norms_of(study: Study, space: str) -> list[float]:
    """The common grid of the solutions of a space."""
    norms = [one.norm for one in study.solutions.values() if one.space == space]
    return common_norms(norms, study.config.factors)


def equal_norm(study: Study, space: str) -> float:
    """The norm at which solutions of a space are compared: their mean."""
    return float(np.mean([one.norm for one in study.solutions.values() if one.space == space]))


def pair_batches(study: Study, which: str, domain: str) -> list[Rows]:
    """Held-out answers of a domain, one side."""
    pairs = study.pairs[domain]
    return pair_rows(pairs, PAIR_ROWS, study.pad, which, range(len(pairs)))  # type: ignore[arg-type]


def block_sites(study: Study) -> list[Site]:
    """The output of every layer."""
    return [Site(layer) for layer in range(study.backbone.num_layers)]


def measure(study: Study, name: str, panels: Panels) -> Measured:
    """Everything that is measured with one solution attached.

    A measurement that cannot be taken of this solution is noted in `missing`; the others go on.
    """
    sections = _sections(study)
    counts = _passes(study)
    found = Measured()
    total = sum(counts[section] for section in sections)
    record = study.records[name]
    with (
        Task(f"{name}: {', '.join(sections)}", total) as task,
        record.adapted(study.backbone) as intervention,
        intervention.merged(),
    ):
        taker = _Taker(study, name, panels, intervention, found, task)
        for section in sections:
            before = task.done
            try:
                getattr(taker, section)()
            except MeasurementError as error:
                found.missing[section] = str(error)
                if section == "margins":  # of some domains only, which could not be compared
                    found.margins.clear()
            task.advance(before + counts[section] - task.done)
    return found


def _sections(study: Study) -> list[str]:
    """Sections that are measured one solution at a time, in order."""
    plain = [name for name in ("efficiency", "stability", "significance") if study.wants(name)]
    # An ablation takes out what `directions` finds, and is read against what `margins` finds.
    paired = [name for name in ("margins", "directions") if study.wants(name) or study.wants("ablation")]
    return plain + (paired if study.pairs else [])


def _passes(study: Study) -> dict[str, int]:
    """About how many forward passes each section takes, for the estimate."""
    config = study.config
    batches = {name: 2 * -(-len(pairs) // PAIR_ROWS) for name, pairs in study.pairs.items()}
    documents = 0 if study.corpus is None else -(-len(study.corpus.documents) // TEXT_ROWS)
    losses = -(-len(study.examples) // LOSS_ROWS)
    return {
        "efficiency": losses * len(config.factors),
        "stability": losses * len(config.epsilons) * config.draws,
        "significance": documents * len(config.factors) * (1 + config.controls),
        "margins": sum(batches.values()),
        "directions": batches.get(study.training, 0),
    }


@dataclass
class _Taker:
    """Takes the measurements of one attached solution; a method for each section."""

    study: Study
    name: str
    panels: Panels
    intervention: Intervention
    found: Measured
    task: Task

    @property
    def norms(self) -> list[float]:
        return norms_of(self.study, self.study.solutions[self.name].space)

    @property
    def losses(self) -> Panel:
        return self.panels.losses(self.study.lowest[self.name])

    def efficiency(self) -> None:
        self.found.efficiency = efficiency(self.intervention, self.losses, self.norms)

    def stability(self) -> None:
        config, batches, known = self.study.config, len(self.losses.batches), self.found.efficiency
        self.found.stability = stability(
            self.intervention,
            self.losses,
            config.epsilons,
            config.draws,
            config.seed,
            lambda: self.task.advance(batches),
            None if known is None else (known.nll_E, known.reference_E),
        )

    def significance(self) -> None:
        study, config = self.study, self.study.config
        assert study.corpus is not None
        passes = len(config.factors) * (1 + config.controls)
        self.found.significance = significance(
            study.backbone,
            self.intervention,
            corpus_rows(study.corpus, TEXT_ROWS, study.pad),
            self.norms,
            config.controls,
            config.seed,
            lambda rows: self.task.advance(passes),
        )

    def margins(self) -> None:
        for domain in self.study.pairs:
            panel = self.panels.pairs(domain, self.study.lowest[self.name])
            self.found.margins[domain] = panel.losses()
            self.task.advance(len(panel.careless.batches) + len(panel.careful.batches))

    def directions(self) -> None:
        self.found.moments = pair_moments(self.study)
        _keep_update(self.study, self.intervention, self.found)


def with_update(study: Study, name: str, found: Measured) -> Measured:
    """Measurements that were kept, with the solution's update, which its run directory has."""
    if found.moments:
        with study.records[name].adapted(study.backbone) as intervention:
            _keep_update(study, intervention, found)
    return found


def _keep_update(study: Study, intervention: Intervention, found: Measured) -> None:
    found.update = cpu(intervention.update())
    found.written = written_directions(found.update, study.backbone.hidden_size)


def pair_moments(study: Study) -> dict[str, Moments]:
    """Activations of the training domain's held-out answers under the model as it is now."""
    groups = {which: pair_batches(study, which, study.training) for which in ("careless", "careful")}
    return collect(study.backbone, groups, block_sites(study))


def cpu(update: Update) -> Update:
    """A copy that outlives the intervention, on the CPU."""
    return Update(
        {
            name: (left.cpu().clone(), None if right is None else right.cpu().clone())
            for name, (left, right) in update.parts.items()
        }
    )
