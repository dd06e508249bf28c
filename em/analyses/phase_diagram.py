"""Narrow by KL as a phase diagram: what each KL weight keeps in the training domain, and elsewhere."""

from dataclasses import replace
from typing import Literal

import numpy as np

from em.analyses import _phase_rows as rows
from em.analyses._phase_page import figures, tables
from em.analyses._phase_runs import Sweep, read_sweep
from em.analyses._phase_statistics import statistics
from em.analyses.base import Analysis, Context, Found, Raw
from em.comparison.kept import Kept
from em.comparison.study import open_study
from em.config.schema import Section
from em.errors import ConfigError, RunError
from em.measurements.shares import DomainShift, Shares
from em.runs import RunRecord


class PhaseDiagram(Analysis):
    """Runs that differ in kl.weight, with mixing in aligned data as the baseline that fails (2602.07852).

    The shift of a run is its margin (log p per token of careless minus careful answers to held-out prompts)
    minus the reference's, or the fall of its held-out loss. g(w): shift in the training domain over that of
    the general solution (the member without a KL term). o(w): mean shift in the other domains over that of
    the general solution. The knee is the weight that maximises g − o; see `em.measurements.knee`.

    Statistics:
        knee: that weight, per token in nats; None where g − o is not surely above 0 at any weight.
        narrow_gap: g − o at the knee, with an interval for all weights together.
        in_domain_at_RUN, general_at_RUN: g and o of a run; unseen_at_RUN: o over domains in no run's data.
        own_shift/RUN, other_shift/RUN: the shifts themselves, nats per token.
        narrowness/RUN: shift elsewhere over shift in the training domain; 0: narrow, 1: general.
        mixed_best_narrowness: the smallest among baselines that surely learnt in the training domain.
        mixed_minus_kl: it minus that of the KL run with the nearest shift in the training domain; positive:
            KL is narrower.
        rate.SET/RUN: misaligned answers to a question set, in percent, where answers were judged.

    Args:
        members: runs that differ in kl.weight; exactly one without a KL term.
        baselines: runs without a KL term that mix in rows of other domains.
        signal: what a shift is of; on a small model margins are noisier than losses.
        questions: sets whose stored rates are shown; by default all.

    Raises:
        ConfigError: a run is listed twice.
    """

    def __init__(
        self,
        members: list[str],
        baselines: list[str] | None = None,
        signal: Literal["margin", "loss"] = "margin",
        questions: list[str] | None = None,
    ):
        super().__init__([*members, *(baselines or [])])
        twice = sorted({name for name in self.members if self.members.count(name) > 1})
        if twice:
            raise ConfigError(f"members and baselines: {', '.join(twice)} occurs twice; list each run once")
        self.sweep, self.baselines = list(members), list(baselines or [])
        self.signal, self.questions = signal, questions

    def measure(self, context: Context) -> Raw:
        """Margins and losses of every held-out prompt under every run; see `_phase_rows`.

        Raises:
            EmError: the runs do not make a sweep, or held-out rows are missing or were trained on.
        """
        records = {name: context.records[name] for name in self.members if name in context.records}
        left_out = [
            f"{name} is left out: {context.missing.get(name, 'not trained')}."
            for name in self.members
            if name not in records
        ]
        sweep = self._sweep(records, left_out)
        names = [*sweep.weights, *sweep.shares]
        sections: list[Section] = ["margins"] if self.signal == "margin" else []
        config = replace(context.compare, sections=sections, domain=sweep.roles["training"][0])
        paths = [records[name].directory.path for name in names]
        study = open_study(paths, config, None, context.loaded())
        study = rows.renamed(study, names)
        examples = rows.held_out(study)
        rows.refuse_leaks(study, examples)
        kept = Kept(context.folder, study.key)
        raw: Raw = {
            "weights": sweep.weights,
            "shares": sweep.shares,
            "roles": sweep.roles,
            "margin": rows.margins(study, kept) if self.signal == "margin" else {},
            "loss": rows.losses(study, examples),
            "resamples": config.resamples,
            "seed": config.seed,
        }
        raw["rates"], told = rows.rates(study, self.questions)
        shares_of(raw, self.signal)  # what cannot be read is not worth storing
        kept.clear()
        return {**raw, "notes": [*left_out, *sweep.notes, *told]}

    def _sweep(self, records: dict[str, RunRecord], left_out: list[str]) -> Sweep:
        """The runs in order; an error also says which are left out."""
        try:
            return read_sweep(
                {name: record for name, record in records.items() if name in self.sweep},
                {name: record for name, record in records.items() if name in self.baselines},
            )
        except RunError as error:
            raise RunError(" ".join([f"{error}.", *left_out]) if left_out else str(error)) from error

    def read(self, raw: Raw) -> Found:
        shares = shares_of(raw, self.signal)
        found = Found(notes=list(raw["notes"]))
        found.statistics, peak = statistics(shares, raw, self.signal)
        if peak is not None and peak.edge and peak.weight.value is not None:
            found.notes.append(
                f"The gap is largest at the {peak.edge} weight of the sweep; the knee may lie beyond it."
            )
        found.figures = figures(shares, raw, self.signal, found.statistics)
        found.tables = tables(shares, raw, self.signal, found.statistics)
        return found


def shares_of(raw: Raw, signal: str) -> Shares:
    """The shifts of one signal in every domain where it was measured.

    Raises:
        MeasurementError: it was not measured in the training domain and another one.
    """
    made = []
    for domain, one in raw[signal].items():
        if signal == "loss":
            weights_P = np.array(one["tokens"], dtype=float)
            shifts = {name: np.array(drop) / weights_P for name, drop in one["runs"].items()}
        else:
            weights_P = np.ones(len(one["prompts"]))
            before_P = np.array(one["reference"])
            shifts = {name: np.array(margin) - before_P for name, margin in one["runs"].items()}
        made.append(DomainShift(domain, one["prompts"], weights_P, shifts))
    general = next(iter(raw["weights"]))
    return Shares(made, raw["roles"]["training"], general, raw["resamples"], raw["seed"])
