"""From measurements of single solutions to plain data: a table for each section."""

from typing import Any

from em.comparison.measured import Measured, equal_norm
from em.comparison.study import Study
from em.measurements.efficiency import efficiency_table
from em.measurements.margins import DomainMargins, PairLosses, margins_table
from em.measurements.significance import significance_table
from em.measurements.stability import stability_table
from em.stats import Resampling

Table = dict[str, Any]


def missing(found: dict[str, Measured], section: str) -> dict[str, str]:
    """Solution -> why it has no measurement of a section."""
    return {name: one.missing[section] for name, one in found.items() if section in one.missing}


def efficiency(study: Study, found: dict[str, Measured]) -> Table:
    """Loss on the common grid of norms."""
    results = {name: one.efficiency for name, one in found.items() if one.efficiency is not None}
    spaces = {one.space for one in study.solutions.values()}
    equal = {space: equal_norm(study, space) for space in spaces}
    table = efficiency_table(results, study.solutions, equal, _loss_draws(study))
    return {"domain": study.training, **table, "missing": missing(found, "efficiency")}


def stability(study: Study, found: dict[str, Measured]) -> Table:
    """Degradation under noise."""
    results = {name: one.stability for name, one in found.items() if one.stability is not None}
    table = stability_table(results, study.solutions, _loss_draws(study), missing(found, "stability"))
    return {"domain": study.training, "examples": len(study.examples), **table}


def significance(study: Study, found: dict[str, Measured]) -> Table:
    """KL on plain text by slice."""
    assert study.corpus is not None
    results = {name: one.significance for name, one in found.items() if one.significance is not None}
    slices = [document.slice for document in study.corpus.documents]
    table = significance_table(results, study.solutions, slices, study.config.resamples, study.config.seed)
    corpus = [vars(report) for report in study.corpus.reports]
    return {"corpus": corpus, **table, "missing": missing(found, "significance")}


def _loss_draws(study: Study) -> Resampling:
    prompts = [example.prompt for example in study.examples]
    return Resampling(prompts, study.config.resamples, study.config.seed)


def margins(
    study: Study, found: dict[str, Measured], reference: dict[str, PairLosses], distances: dict[str, float]
) -> Table:
    """Margins, shifts and narrowness by domain."""
    domains = [
        DomainMargins(
            domain,
            [pair.prompt for pair in pairs],
            reference[domain],
            {name: one.margins[domain] for name, one in found.items() if domain in one.margins},
        )
        for domain, pairs in study.pairs.items()
    ]
    config = study.config
    table = margins_table(domains, study.training, study.solutions, distances, config.resamples, config.seed)
    return {**table, "missing": missing(found, "margins")}
