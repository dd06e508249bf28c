"""Held-out losses at the end of runs, from tables/domains.json, which has every example."""

from typing import Any

from em.config.schema import DataConfig
from em.datamodules.sources import select
from em.errors import DataError
from em.runs import RunRecord

Place = tuple[int, str]  # position in the domain, file:line
Scores = dict[Place, dict[str, Any]]  # -> tokens, nll, nll_reference


def end_scores(record: RunRecord) -> dict[str, Scores]:
    """Domain -> the score of each held-out example; empty where the run has no such table.

    Raises:
        RunError: there is one, but it cannot be read.
    """
    if not record.directory.table("domains").is_file():
        return {}
    table = record.directory.read_table("domains")
    return {
        row["domain"]: {(one["index"], one["where"]): one for one in row["rows"]} for row in table["domains"]
    }


def prompts_of(data: DataConfig, domain: str) -> dict[str, str]:
    """file:line -> prompt of a domain's held-out rows; files of one name may share lines, then the place.

    Raises:
        DataError: a file cannot be read.
    """
    found: dict[str, str] = {}
    for source in data.domains[domain]:
        for row in select(source, data, source.part or "held_out")[0]:
            if not isinstance(row.messages, DataError):
                same = found.setdefault(row.where, row.prompt) == row.prompt
                found[row.where] = row.prompt if same else row.where
    return found
