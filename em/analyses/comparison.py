"""Trained runs side by side, on common rows, norms and noise: what `python -m em compare` measures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from em.analyses._comparison_statistics import Reader
from em.analyses.base import Analysis, Context, Found, Raw, Statistic
from em.comparison.compare import compare, up_to_date
from em.config.schema import CompareConfig, Section
from em.config.values import Problems, convert, section
from em.datamodules.chat import training_domains
from em.errors import ConfigError, RunError
from em.figures.model import Cell, Table
from em.figures.sections import figures
from em.report.summary import headline
from em.runs import RunDirectory, RunRecord

OWN = {"sections": "the option sections"}  # keys of CompareConfig that have an option of their own


class Comparison(Analysis):
    """A comparison of members, with its own page report.html in the folder.

    Statistics, with members A and B (B an arm's first member where it has several seeds):
        efficiency.equal/A, /A-B: loss at equal norm, nats per token; efficiency.own/A: at its own norm
        stability.area/A, /A-B: gain lost to noise, mean over ε, %
        stability.half_life/A, /A-B: ε at which half of the gain is lost
        significance.slope.SLICE/A, /A-B, /A-random: KL on plain text per unit of norm; significance.slope/…
            is that of the first slice
        margins.shift.DOMAIN/A, /A-B: nats per token; margins.shift.training/… is the training domain's
        narrowness/A, /A-B: shift elsewhere over the shift in the training domain
        directions.cosine/A~B: of shifts of activations, at the study's layer; directions.layers/A~B: share of
            layers with a cosine above 0.8; both also with `difference` (careless − careful) as B
        directions.separation: AUROC of the mean difference at the study's layer
        directions.written/A: cosine of what A writes with the mean difference (no interval)
        directions.vector/A: the same for a steering vector, with its interval, at the study's layer
        updates.cosine/A~B, updates.written/A~B: of the updates, and of what is written (B matrices); exact
        steering.at_C, steering.random_at_C, steering.at_C-random: margin shift at coefficient C
        ablation.own/A, ablation.other/A<-B, ablation.difference/A, ablation.random/A, ablation.own-random/A:
            share of the margin shift that goes with a direction

    Losses and directions are of the training domain that all members share; where they share none, of
    compare.domain, or that of the first member.

    Args:
        members: what is compared; solutions whose configurations differ in the seed alone are one arm.
        sections: what is measured.
        pairs_of: members A and B whose differences A − B are wanted.
        overrides: further keys of CompareConfig, such as draws or layer.

    Raises:
        ConfigError: a pair of other members, or an unknown override.
    """

    def __init__(
        self,
        members: list[str],
        sections: list[Section],
        pairs_of: list[tuple[str, str]] | None = None,
        overrides: dict[str, Any] | None = None,
    ):
        super().__init__(members)
        self.pairs = [(str(pair[0]), str(pair[1])) for pair in pairs_of or [] if len(pair) == 2]
        problems = Problems()
        self.sections = _sections(sections, problems)
        self.overrides = _overrides(overrides or {}, problems)
        if not members or len(set(members)) < len(members):
            problems.add("members", "expected one or more, each once")
        for pair in pairs_of or []:
            if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(members):
                problems.add("pairs_of", f"expected two of members, got {list(pair)}")
        if problems.lines:
            raise ConfigError(problems.lines)

    def measure(self, context: Context) -> Raw:
        """The tables of the comparison; members without a run are left out and named.

        Raises:
            EmError: no member has a run, or the runs cannot be compared.
        """
        present = [name for name in self.members if name in context.records]
        records = context.chosen(present or self.members)
        data = next(iter(records.values())).config.data
        asked = {"sections": self.sections, "domain": _domain(records, context.compare.domain)}
        config = replace(context.compare, **{**asked, **self.overrides})
        paths = [record.directory.path for record in records.values()]
        if not up_to_date(paths, context.folder, config, data):
            compare(paths, context.folder, config, data, context.loaded())
        folder = RunDirectory(context.folder)
        # Not the texts of answers, which stay in the folder.
        wanted = [one for one in ("solutions", *self.sections) if folder.table(one).is_file()]
        tables = {one: folder.read_table(one) for one in wanted}
        member_of = {str(path): name for name, path in zip(records, paths, strict=True)}
        rows = tables["solutions"]["solutions"]
        if any(row["run"] not in member_of for row in rows):
            raise RunError(f"{context.folder}: holds other runs than were compared; delete it")
        return {
            "tables": tables,
            "members": {row["name"]: member_of[row["run"]] for row in rows},
            "absent": {
                name: context.missing.get(name, "not trained") for name in self.members if name not in records
            },
        }

    def read(self, raw: Raw) -> Found:
        """Statistics of every table, its figures, and the differences that are asked for."""
        tables, members = raw["tables"], raw["members"]
        solutions = tables["solutions"]
        arms = {row["name"]: row["arm"] for row in solutions["solutions"]}
        statistics = Reader(tables, members, arms, self.pairs, raw["absent"]).statistics(self.sections)
        notes = [f"{name} is left out: {why}" for name, why in raw["absent"].items()]
        notes += [f"{name}: the run of {of}" for name, of in members.items() if name != of]
        notes += [str(note) for note in solutions["notes"]]
        for name, table in tables.items():
            if isinstance(table.get("missing"), dict):
                notes += [f"{name}: {one}: {why}" for one, why in table["missing"].items()]
        differences = _differences(statistics, self.pairs)
        return Found(
            statistics,
            [each for one in self.sections if one in tables for each in figures(one, tables[one], arms)],
            [headline(tables), *([differences] if differences.rows else [])],
            notes,
        )


def _domain(records: Mapping[str, RunRecord], usual: str | None) -> str | None:
    """The training domain that all share; else the usual one, or that of the first.

    The usual one is that of other runs too, such as all of a pool, so it may be none of these runs'.
    """
    data = next(iter(records.values())).config.data
    trained = [training_domains(record.config.data) for record in records.values()]
    shared = [domain for domain in data.domains if all(domain in found for found in trained)]
    if usual in data.domains and (usual in shared or not shared):
        return usual
    return next(iter([*shared, *trained[0]]), None)


def _sections(given: Sequence[str], problems: Problems) -> list[Section]:
    made: list[Section] = convert(list(given), list[Section], "sections", problems)
    if not given or len(set(given)) < len(given):
        problems.add("sections", "expected one or more, each once")
    return made


def _overrides(given: dict[str, Any], problems: Problems) -> dict[str, Any]:
    """Typed values of the keys that are given."""
    for key in OWN:
        if key in given:
            problems.add(f"overrides.{key}", f"use {OWN[key]} instead")
    kept = {key: value for key, value in given.items() if key not in OWN}
    checked = section(kept, CompareConfig, "overrides", problems)
    return {key: getattr(checked, key) for key in kept if hasattr(checked, key)}


def _differences(statistics: dict[str, Statistic], pairs: Sequence[tuple[str, str]]) -> Table:
    """The differences that were asked for."""
    rows: list[list[Cell]] = []
    for a, b in pairs:
        for key, one in statistics.items():
            quantity, _, about = key.partition("/")
            if about == f"{a}-{b}":
                seeds = ", ".join("–" if value is None else f"{value:.3g}" for value in one.seeds)
                rows.append([quantity, a, b, one.value, one.low, one.high, one.n, one.unit, seeds, one.what])
    return Table(
        "differences",
        "Paired differences",
        ["quantity", "a", "b", "a − b", "low", "high", "n", "unit", "by seed", "what"],
        rows,
        "Means over seeds; 95% intervals from prompts, documents and draws of noise that both sides share. "
        "They do not cover the choice of seed, so seeds are listed.",
    )
