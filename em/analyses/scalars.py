"""Experiment 8: what the hidden scalars of rank-1 adapters read, by topic and by alignment."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from em.analyses._inner import SEEDS, arms_of, clusters, fewest, mean_draws, opened, prefix, stated
from em.analyses._scalars_probe import Probe, figures
from em.analyses.base import Analysis, Context, Found, Raw, Statistic
from em.datamodules.pairs import Pair, pair_rows, read_pairs
from em.figures.model import Cell, Table
from em.interventions.base import Intervention
from em.measurements.margins import PAIR_ROWS
from em.measurements.scalars import hidden_scalars, readers
from em.progress import Task

SIDES = ("careful", "careless")
WORDS = {
    "alignment_auroc": "chance that a careless answer has a higher scalar than a careful one",
    "alignment_auroc_other": "the same in the other domains, their mean; sign from the training domain",
    "alignment_auroc_reference": "the same under the reference model",
    "topic_auroc": "chance that an answer of the training domain has a higher scalar than one of another",
}


class Scalars(Analysis):
    """Rank-1 adapters as probes: the scalar A·x, its mean over the tokens of an answer (2506.11613).

    AUROCs are of held-out answers, 0.5 is chance. The sign of a scalar, and the layer where there are
    several, are found on pairs of the training part, so a value below 0.5 says that the sign did not hold.
    Intervals are a bootstrap over prompts; they do not cover the choice of sign and layer.

    Statistics, each also as NAME/LAYER; with runs of several configurations as ARM/NAME:
        alignment_auroc: careless against careful answers of the training domain.
        alignment_auroc_other: the same in the other domains.
        alignment_auroc_reference: as the first, with the adapter switched off (a layer's input is then that
            of the reference model).
        topic_auroc: the training domain's answers against the other domains', of the same side.

    Args:
        members: LoRAs of rank 1, in one layer or several.
    """

    def measure(self, context: Context) -> Raw:
        study = opened(context, self.members)
        tokenizer = study.backbone.tokenizer
        train, _ = read_pairs(study.data, tokenizer, "train", study.config.train_pairs)
        domains = [study.training, *(name for name in study.pairs if name != study.training)]
        parts = {"held_out": study.pairs, "train": train}
        members = {}
        with Task("hidden scalars", 3 * len(self.members)) as task:
            for name, record in study.records.items():
                with record.adapted(study.backbone) as intervention:
                    taken = partial(_taken, intervention, study.pad)
                    one: Raw = {"arm": study.solutions[name].arm, "seed": record.config.seed}
                    for part, pairs in parts.items():
                        one[part] = {domain: taken(pairs[domain]) for domain in domains if domain in pairs}
                        task.advance()
                    with intervention.disabled():
                        one["reference"] = {domain: taken(study.pairs[domain]) for domain in domains}
                    task.advance()
                members[name] = one
        return {
            "training": study.training,
            "domains": domains,
            "clusters": {
                domain: clusters([pair.prompt for pair in study.pairs[domain]]) for domain in domains
            },
            "resamples": study.config.resamples,
            "seed": study.config.seed,
            "members": members,
        }

    def read(self, raw: Raw) -> Found:
        arms = arms_of(raw["members"])
        found = Found(notes=_notes(raw))
        rows: list[list[Cell]] = []
        for number, (arm, members) in enumerate(arms.items()):
            probes = [Probe(raw, member) for member in members]
            made = _statistics(probes)
            before = prefix(arm, arms)
            found.statistics |= {before + name: value for name, value in made.items()}
            found.figures += figures(probes, made, arm, number)
            rows += [[before + name, s.value, s.low, s.high, s.n] for name, s in made.items()]
        columns = ["statistic", "AUROC", "low", "high", "prompts"]
        found.tables.append(Table("scalars-numbers", "What hidden scalars tell apart", columns, rows))
        return found


def _taken(intervention: Intervention, pad: int, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Layer -> side -> scalars of the pairs."""
    modules = readers(intervention)
    sides = {
        side: hidden_scalars(
            intervention.backbone,
            pair_rows(pairs, PAIR_ROWS, pad, side, range(len(pairs))),  # type: ignore[arg-type]
            modules,
        )
        for side in SIDES
    }
    return {layer: {side: sides[side][layer] for side in SIDES} for layer in modules}


def _statistics(probes: list[Probe]) -> dict[str, Statistic]:
    """Of the runs of one arm, which have the same layers."""
    made = {}
    for kind, what in WORDS.items():
        best = {probe.name: probe.best(kind) for probe in probes}
        told = ", ".join(sorted(set(best.values())))
        made[kind] = _statistic(probes, kind, best, f"{what}; layer {told}, chosen on training pairs")
    for layer in probes[0].layers:
        same = {probe.name: layer for probe in probes}
        for kind, what in WORDS.items():
            made[f"{kind}/{layer}"] = _statistic(probes, kind, same, f"{what}; layer {layer}")
    return made


def _statistic(probes: list[Probe], kind: str, layers: dict[str, str], what: str) -> Statistic:
    known = [one for probe in probes if (one := probe.auroc(kind, layers[probe.name])) is not None]
    if len(known) < len(probes):
        why = "there is no other paired domain, or none of them has pairs in its training part for the sign"
        return Statistic(None, None, None, 0, "AUROC", f"{what}: {why}")
    draws = known[0][1]
    estimate = fewest(draws).estimate(mean_draws([values_R for values_R, _ in known]))
    seeds = [float(values_R[0]) for values_R, _ in known]
    return stated(estimate, sum(one.count for one in draws), "AUROC", what, seeds)


def _notes(raw: Raw) -> list[str]:
    notes = []
    arms = arms_of(raw["members"])
    if any(len(members) > 1 for members in arms.values()):
        notes.append(SEEDS)
    if len(raw["domains"]) == 1:
        notes.append(f"No domain besides {raw['training']} has paired answers, so topic is not told apart.")
    silent = [
        domain
        for domain in raw["domains"]
        if any(domain not in member["train"] for member in raw["members"].values())
    ]
    if silent:
        notes.append(
            f"{', '.join(silent)}: no pairs in the training part, so these have no part in the sign of topic."
        )
    return notes
