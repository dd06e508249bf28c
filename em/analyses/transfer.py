"""Does a direction undo or induce what several finetunes say? Judged answers under ablation and steering."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from em.analyses._answers import condition_rows
from em.analyses._transfer import PLAIN, RANDOM, told
from em.analyses._transfer_runs import asked_at_end, identity, judge_eval, own_answers
from em.analyses.base import Analysis, Context, Found, Raw
from em.backbone import Backbone
from em.comparison.judged import judged_difference
from em.config.evaluation import evaluation
from em.config.values import Problems
from em.datamodules.judged import read_judged
from em.errors import ConfigError
from em.evaluation.answering import REFERENCE, gather_answers
from em.evaluation.evaluate import claim, judge_only
from em.evaluation.plan import Plan, make_plan
from em.evaluation.processes import Processes
from em.evaluation.stored import JUDGED, read_evaluation
from em.hooks import Site, generator_for
from em.interventions._fixed import FixedIntervention
from em.interventions.ablation import Ablation
from em.interventions.direction import Direction
from em.interventions.steering import Steering
from em.progress import say
from em.runs import RunRecord

METRICS: list[Any] = ["aligned", "coherent"]
LONGEST = 1024  # tokens of a judged answer with its question


class Transfer(Analysis):
    """Mean-difference directions of runs, projected out of others and added to the reference (2506.11618).

    The direction of a source is the mean over its misaligned answers' activations minus that over its
    aligned ones, as judged at the end of its training, at one layer. Ablation takes it out of the output of
    every layer (`where: all`) or of that layer alone (`where: layer`). Steering adds c·‖h‖·v̂ at that layer.
    A random direction of the same length is the control of both.

    Statistics, in percent, intervals over questions:
        rate/TARGET, rate/TARGET-SOURCE: misaligned answers without and with the source's direction ablated.
        removed/TARGET-SOURCE: 100·(1 − rate with / rate without); removed/TARGET-random: the control.
        own-random/TARGET, other-random/TARGET-SOURCE: how much more is removed than by the random direction.
        steered/SOURCE@C, steered/random@C: the reference's rate under steering; steered/SOURCE-random@C.

    Args:
        targets: runs that are treated; sources: runs that give a direction.
        layer: of the direction; default `compare.layer` of the runs, or the middle.
        where: `all` layers or that `layer` alone.
        coefficients: c of steering, in units of ‖h‖; none: nothing is steered.
        questions: the set; default the first one that the target was asked at its end.
        samples: answers to each question; default as at the end of training.

    Raises:
        ConfigError: no target or source, one listed twice or of a name that stands for something else here, a
            coefficient listed twice, or fewer than one answer to each question.
    """

    def __init__(
        self,
        targets: list[str],
        sources: list[str],
        layer: int | None = None,
        where: Literal["all", "layer"] = "all",
        coefficients: list[float] | None = None,
        questions: str | None = None,
        samples: int | None = None,
    ):
        super().__init__(list(dict.fromkeys([*targets, *sources])))
        self.targets, self.sources, self.layer, self.where = targets, sources, layer, where
        self.coefficients = [0.2, 0.4] if coefficients is None else coefficients
        self.questions, self.samples = questions, samples
        problems = Problems()
        for key, names in (("targets", targets), ("sources", sources)):
            if not names or len(set(names)) < len(names):
                problems.add(key, "expected one or more, each once")
            for name in {RANDOM, PLAIN, REFERENCE} & set(names):
                problems.add(key, f"{name} stands for something else here; rename the run")
        if where not in ("all", "layer"):
            problems.add("where", f"expected all or layer, got {where!r}")
        if len({f"{c:g}" for c in self.coefficients}) < len(self.coefficients):
            problems.add("coefficients", f"expected each once, got {self.coefficients}")
        if samples is not None and samples < 1:
            problems.add("samples", f"expected at least 1, got {samples}")
        if problems.lines:
            raise ConfigError(problems.lines)

    def measure(self, context: Context) -> Raw:
        records = context.chosen(self.members)
        backbone = context.loaded()
        layer = self.layer if self.layer is not None else context.compare.layer
        layer = backbone.num_layers // 2 if layer is None else layer
        plans = {name: self._plan(name, records[name]) for name in self.members}
        asked = {name: asked_at_end(name, records[name]) for name in self.sources}
        found = {
            name: self._direction(name, records[name], backbone, layer, folder, context.folder)
            for name, folder in asked.items()
        }
        directions = {name: direction for name, (direction, _) in found.items()}
        first = next(iter(directions.values()))
        directions[RANDOM] = first.random_like(generator_for(context.compare.seed, "transfer-control", 0))
        settings = [layer, self.where, context.compare.seed]
        folder = context.folder / f"answers-{identity(records, plans, asked, settings)}"
        cells = [
            *self._ablated(records, plans, directions, backbone, layer, folder),
            *self._steered(plans, directions, backbone, layer, folder),
        ]
        return {
            "layer": layer,
            "where": self.where,
            "counts": {name: account for name, (_, account) in found.items()},
            "norms": {name: float(one.norms()[Site(layer)]) for name, one in directions.items()},
            "cells": cells,
            "resamples": context.compare.resamples,
            "seed": context.compare.seed,
        }

    def _plan(self, name: str, record: RunRecord) -> Plan:
        """What a run was asked at its end, with the first set alone."""
        options = judge_eval(name, record)
        sets = list(options.get("questions") or ["open"])
        mine: dict[str, Any] = {"questions": [self.questions or sets[0]], "reference": False}
        mine |= {"direction": None, "any_of": None, "metrics": METRICS}
        mine |= {} if self.samples is None else {"samples": self.samples}
        config = evaluation({**options, **mine})
        return make_plan(config, record.config.data.root, next(iter(record.config.data.domains), None))

    def _direction(
        self, name: str, record: RunRecord, backbone: Backbone, layer: int, asked: Path, out: Path
    ) -> tuple[Direction, str]:
        own = own_answers(asked / JUDGED, out / f"judged-{name}.jsonl")
        judged = read_judged(str(own.resolve()), backbone.tokenizer, LONGEST)
        say(f"direction of {name}: {judged.account}")
        with record.adapted(backbone) as intervention, intervention.merged():
            difference = judged_difference(backbone, judged)
        origin = {
            "run": str(record.directory.path),
            "counts": judged.account,
            "backbone": backbone.describe(),
        }
        return difference.direction(origin).only([Site(layer)]), judged.account

    def _ablated(
        self,
        records: dict[str, RunRecord],
        plans: dict[str, Plan],
        directions: dict[str, Direction],
        backbone: Backbone,
        layer: int,
        folder: Path,
    ) -> Iterator[Raw]:
        layers: Any = "all" if self.where == "all" else layer
        for target in self.targets:
            for label in (PLAIN, *directions):
                own = folder / f"{target}-{label}"
                with records[target].adapted(backbone) as intervention, intervention.merged():
                    given = directions.get(label)
                    made = None if given is None else Ablation.given(given, layers=layers, source=layer)
                    rows = _asked(plans[target], backbone, made, own, f"{target}, {label}")
                yield {"kind": "ablation", "target": target, "direction": label, "rows": rows()}

    def _steered(
        self,
        plans: dict[str, Plan],
        directions: dict[str, Direction],
        backbone: Backbone,
        layer: int,
        folder: Path,
    ) -> Iterator[Raw]:
        if not self.coefficients:
            return
        plan = plans[self.sources[0]]
        rows = _asked(plan, backbone, None, folder / "reference", "reference")
        yield {"kind": "steering", "target": "reference", "direction": PLAIN, "c": 0.0, "rows": rows()}
        for label, given in directions.items():
            for c in self.coefficients:
                made = Steering.given(given, layers=layer, coefficient=c, relative=True)
                own = folder / f"reference-{label}-{c:g}"
                rows = _asked(plan, backbone, made, own, f"reference + {c:g} × {label}")
                yield {"kind": "steering", "target": "reference", "direction": label, "c": c, "rows": rows()}

    def read(self, raw: Raw) -> Found:
        return told(raw, self.targets, self.sources, self.coefficients)


@contextmanager
def _on(backbone: Backbone, made: FixedIntervention | None) -> Iterator[None]:
    if made is None:
        yield
        return
    made.attach(backbone)
    try:
        yield
    finally:
        made.detach()


def _asked(
    plan: Plan, backbone: Backbone, made: FixedIntervention | None, folder: Path, name: str
) -> Callable[[], list[Raw]]:
    """Answers now, and a function that judges them once nothing is attached any more."""
    settings = {**plan.settings(), "treatment": name}
    claim(folder, settings)
    with _on(backbone, made):
        answers = gather_answers(plan, backbone, None, name, folder, Processes())

    def judged() -> list[Raw]:
        judge_only(plan, answers, folder / "judged", backbone)
        done = read_evaluation(folder / "judged")
        return condition_rows(done)

    return judged
