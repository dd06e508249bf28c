"""Experiment 6: which way the training loss pulls, at the start, along paths and at the narrow solution."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from em.analyses._inner import SEEDS, opened, stated
from em.analyses.base import Analysis, Context, Found, Raw, Statistic
from em.comparison.measured import LOSS_ROWS
from em.comparison.study import Study
from em.config.schema import DataConfig
from em.datamodules.rows import Rows, batched
from em.datamodules.sources import Example, read
from em.errors import ConfigError, MeasurementError, RunError
from em.figures.model import Curves, Figure, Mark, Series, Table
from em.interventions.steering_vector import NAME, SteeringVector
from em.measurements.checkpoints import evenly, over_seeds
from em.measurements.gradients import Pull, apart, cosine_estimate, random_directions, row_gradients
from em.measurements.trajectory import read_solution, snapshot_steps
from em.progress import Task
from em.stats import NOTHING

DIRECTIONS = {
    "general": "the general solution",
    "narrow": "the narrow solution",
    "general_only": "the part of the general solution orthogonal to the narrow one",
    "narrow_only": "the part of the narrow solution orthogonal to the general one",
}
WHERE = {"early": "where training starts (v = 0)", "late": "at the narrow solution"}


class Gradients(Analysis):
    """Cosine of −∂L/∂v with the general and the narrow steering vector (arXiv 2602.07852, geometry).

    L is the SFT loss of rows that the general run was trained on, not of held-out ones: the first `examples`
    in keyed order, its sources taking turns. It is taken at v = 0, at both solutions, and at the snapshots of
    both paths. The intervals are over prompts (jackknife).

    Statistics, for WHERE in early (v = 0) and late (v = narrow): WHERE/general, WHERE/narrow,
    WHERE/general-narrow, WHERE/general_only, WHERE/narrow_only, and WHERE/random: the mean |cos| with random
    directions of the same width.

    Args:
        general, narrow: runs of steering vectors at one site, a pair for each seed.
        examples: rows that the gradient is of.
        points: snapshots of each path that it is taken at, evenly; 0: the paths are left out.
        controls: random directions.
    """

    def __init__(
        self,
        general: list[str],
        narrow: list[str],
        examples: int = 32,
        points: int = 6,
        controls: int = 20,
    ):
        if not general or len(general) != len(narrow):
            raise ConfigError(
                f"general, narrow: {len(general)} and {len(narrow)} runs; give a run of each for every seed"
            )
        if examples < 2 or controls < 2 or points < 0 or points == 1:
            raise ConfigError(
                f"examples: {examples}, controls: {controls}, points: {points}; need at least 2 of each, or "
                "no points"
            )
        super().__init__(list(dict.fromkeys([*general, *narrow])))
        self.general, self.narrow = general, narrow
        self.examples, self.points, self.controls = examples, points, controls

    def measure(self, context: Context) -> Raw:
        study = opened(context, self.members, paired=False)
        data = study.records[self.general[0]].config.data
        examples = training_examples(data, study.backbone.tokenizer, self.examples)
        taker = _Taker(study, examples)
        notes: list[str] = []
        pairs = []
        total = len(self.general) * (2 + 2 * self.points)
        with Task("gradients", total) as task:
            for general, narrow in zip(self.general, self.narrow, strict=True):
                pairs.append(self._pair(taker, general, narrow, notes, task))
        if any(study.records[name].config.data.train != data.train for name in self.members):
            notes.append(
                f"The runs have different training rows; the gradient is of those of {self.general[0]}."
            )
        return {
            "training": study.training,
            "examples": len(examples),
            "prompts": len({example.prompt for example in examples}),
            "width": study.backbone.hidden_size,
            "controls": self.controls,
            "pairs": pairs,
            "notes": notes,
        }

    def _pair(self, taker: "_Taker", general: str, narrow: str, notes: list[str], task: Task) -> Raw:
        (one, *place), (other, *elsewhere) = (taker.solution(name) for name in (general, narrow))
        if place != elsewhere:
            raise MeasurementError(
                f"{general} and {narrow}: their vectors stand at {' with positions: '.join(place)} and "
                f"{' with positions: '.join(elsewhere)}; compare vectors of one site"
            )
        directions = {
            "general": one,
            "narrow": other,
            "general_only": apart(one, other),
            "narrow_only": apart(other, one),
        }
        chance = random_directions(self.controls, len(one), taker.study.config.seed)
        found: Raw = {"general": general, "narrow": narrow, "paths": {}}
        with taker.attached(general) as intervention:
            for where, vector in (("early", torch.zeros_like(one)), ("late", other)):
                found[where] = taker.pull(intervention, vector, directions | chance)
                task.advance()
            for name in (general, narrow) if self.points else ():
                try:
                    steps, vectors = taker.path(name, self.points)
                except RunError as error:
                    notes.append(f"{name}: its path is left out: {error}")
                    continue
                pulls = []
                for vector in vectors:
                    pulls.append(taker.pull(intervention, vector, directions))
                    task.advance()
                found["paths"][name] = {"steps": steps, "pulls": pulls}
        return found

    def read(self, raw: Raw) -> Found:
        found = Found(notes=[*raw["notes"], *_notes(raw)])
        for where in WHERE:
            pulls = [Pull(**pair[where]) for pair in raw["pairs"]]
            found.statistics |= _statistics(raw, where, pulls)
        for number, pair in enumerate(raw["pairs"]):
            for name, path in pair["paths"].items():
                found.figures.append(_figure(raw, number, name, path))
        rows: list[list[Any]] = [
            [name, s.value, s.low, s.high, s.what] for name, s in found.statistics.items()
        ]
        columns = ["statistic", "cosine", "low", "high", "what"]
        found.tables.append(Table("gradients", "Cosines of the pull of the training loss", columns, rows))
        return found


class _Taker:
    """Gradients of one set of rows with one backbone."""

    def __init__(self, study: Study, examples: Sequence[Example]):
        self.study = study
        self.prompts = [example.prompt for example in examples]
        self.batches: list[Rows] = batched(examples, LOSS_ROWS, study.pad, range(len(examples)))

    @contextmanager
    def attached(self, name: str) -> Iterator[SteeringVector]:
        """The vector of a run, on the backbone."""
        with self.study.records[name].adapted(self.study.backbone) as intervention:
            if not isinstance(intervention, SteeringVector):
                raise MeasurementError(
                    f"{name}: is a {intervention.kind}; this gradient is taken of steering vectors only, "
                    "where both solutions and the gradient are vectors of one space; name runs of those"
                )
            yield intervention

    def solution(self, name: str) -> tuple[Tensor, str, str]:
        """The vector of a run as it is added, (D,) with its scale, its site and its positions."""
        with self.attached(name) as intervention:
            vector = intervention.vector.detach().double().cpu() * intervention.scale
            return vector, str(intervention.site), intervention.positions

    def path(self, name: str, count: int) -> tuple[list[int], list[Tensor]]:
        """Steps and vectors, scale included, of some snapshots of a run.

        Raises:
            RunError: there are fewer than two.
        """
        folder = self.study.records[name].directory.path / "trajectory"
        steps = snapshot_steps(folder)
        if len(steps) < 2:
            raise RunError(f"{folder}: {len(steps)} snapshots; train with callbacks.trajectory to have more")
        chosen = evenly(steps, count)
        scale = float(self.study.records[name].config.intervention.get("scale", 1.0))
        return chosen, [read_solution(folder, step)[NAME].double() * scale for step in chosen]

    def pull(self, intervention: SteeringVector, vector: Tensor, directions: dict[str, Tensor]) -> Raw:
        """The gradient with respect to what is added, where `vector` is added."""
        value = (vector / intervention.scale).float().to(self.study.backbone.device)
        with intervention.swapped({NAME: value}):
            index, gradients_ED = row_gradients(
                self.study.backbone, self.batches, intervention.site, intervention.positions
            )
        return asdict(Pull.of(gradients_ED, [self.prompts[at] for at in index], directions))


def training_examples(data: DataConfig, tokenizer: Any, limit: int) -> list[Example]:
    """The first `limit` rows that a run was trained on, in keyed order, its sources taking turns.

    Raises:
        DataError: a file or row is unusable, or nothing is left.
    """
    parts = [read(source, data, tokenizer, source.part or "train")[0] for source in data.train]
    turns = chain.from_iterable(zip_longest(*parts))
    return [row for row in turns if row is not None][:limit]


def _statistics(raw: Raw, where: str, pulls: list[Pull]) -> dict[str, Statistic]:
    wanted = {name: ({name: 1.0}, f"with {what}") for name, what in DIRECTIONS.items()}
    wanted["general-narrow"] = (
        {"general": 1.0, "narrow": -1.0},
        "with the general solution minus that with the narrow one",
    )
    made = {}
    for name, (signs, what) in wanted.items():
        estimate, seeds = cosine_estimate(pulls, signs)
        told = f"cosine of the pull of the training loss {WHERE[where]} {what}"
        made[f"{where}/{name}"] = stated(estimate, raw["prompts"], "cosine", told, seeds)
    made[f"{where}/random"] = _chance(raw, where, pulls)
    return made


def _chance(raw: Raw, where: str, pulls: list[Pull]) -> Statistic:
    sizes = [
        float(np.mean([abs(pull.cosine(f"random_{number}")[0]) for pull in pulls]))
        for number in range(raw["controls"])
    ]
    estimate = over_seeds(sizes) if np.isfinite(sizes).all() else NOTHING
    what = f"mean |cosine| of the pull {WHERE[where]} with random directions; chance gives 0.8/√width"
    return stated(estimate, raw["controls"], "cosine", what)


def _figure(raw: Raw, number: int, name: str, path: Raw) -> Figure:
    pair = raw["pairs"][number]
    which = "general" if name == pair["general"] else "narrow"
    pulls = [Pull(**one) for one in path["pulls"]]
    series = []
    for direction in DIRECTIONS:
        found = [cosine_estimate([pull], {direction: 1.0})[0] for pull in pulls]
        series.append(
            Series(
                direction.replace("_", " "),
                [float(step) for step in path["steps"]],
                [one.value for one in found],
                [one.low for one in found],
                [one.high for one in found],
            )
        )
    chance = _chance(raw, "early", [Pull(**pair["early"])]).value
    marks = [] if chance is None else [Mark("y", chance, "random direction, mean |cosine|")]
    return Curves(
        f"pull-{which}{f'-{number + 1}' if number else ''}",
        f"Pull of the training loss along the path of {name}",
        "cos(−∂L/∂v, direction) at the snapshots of the run, L the SFT loss of rows that were trained on. "
        + " ".join(f"{key.replace('_', ' ').capitalize()}: {what}." for key, what in DIRECTIONS.items()),
        "Bands are 95% jackknife intervals over prompts.",
        "optimizer step",
        "cosine",
        series,
        marks,
    )


def _notes(raw: Raw) -> list[str]:
    notes = [
        f"The gradient is of {raw['examples']} training rows of {raw['training']}, with respect to what is "
        f"added, {raw['width']} numbers wide. Few rows make every cosine smaller, because their noise is a "
        "part of the gradient.",
    ]
    return notes + ([SEEDS] if len(raw["pairs"]) > 1 else [])
