"""What an analysis gets, and what it gives: numbers with intervals that claims are decided by."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from em.backbone import Backbone
from em.config.schema import CompareConfig
from em.errors import RunError
from em.figures.model import Figure, Table
from em.loading import load_backbone
from em.progress import say
from em.runs import RunRecord

Raw = dict[str, Any]


@dataclass(frozen=True)
class Statistic:
    """A number with its 95% interval; value None: it does not exist, and `what` says why.

    Args:
        n: independent clusters (prompts, questions, documents, runs) that the interval is of.
        unit: for example nats per token, or % of answers.
        what: in words, for a reader who has not seen the code.
        seeds: the same number for each seed alone, where there are several.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    what: str
    seeds: tuple[float | None, ...] = ()


@dataclass
class Found:
    """What an analysis says, all of it from its stored numbers.

    Args:
        statistics: name -> number; claims name them.
        figures, tables: for the page.
        notes: what a reader must know to read the numbers right.
    """

    statistics: dict[str, Statistic] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Context:
    """What an analysis may use.

    Args:
        records: member -> its trained run; only members that were trained.
        missing: member -> why there is no run of it.
        folder: of this analysis alone; it may write files there.
        compare: sizes: rows, grids, resamples, seed.
        backbone: loaded at the first call of `loaded` unless given.
    """

    records: dict[str, RunRecord]
    missing: dict[str, str]
    folder: Path
    compare: CompareConfig
    backbone: Backbone | None = None

    def chosen(self, members: Sequence[str]) -> dict[str, RunRecord]:
        """The runs of some members, in their order.

        Raises:
            RunError: a member has no run; says why.
        """
        lost = [
            f"{name}: {self.missing.get(name, 'not trained')}" for name in members if name not in self.records
        ]
        if lost:
            raise RunError("; ".join(lost))
        return {name: self.records[name] for name in members}

    def loaded(self) -> Backbone:
        """The backbone that all runs were trained on, with nothing attached.

        Raises:
            RunError: there is no run.
        """
        if self.backbone is None:
            if not self.records:
                raise RunError("no member was trained, so there is no backbone to measure")
            config = next(iter(self.records.values())).config.backbone
            say(f"loading {config.model}")
            self.backbone = load_backbone(config)
            if config.device == "auto" and torch.cuda.is_available():
                self.backbone.to("cuda")
        return self.backbone


class Analysis(ABC):
    """One measurement across runs: `measure` takes it once, `read` draws and counts it from what was stored.

    A kind is a file of em/analyses with a class named after it; its options are those of its constructor.

    Args:
        members: the runs that it needs, by their names in the pool.
    """

    def __init__(self, members: list[str]):
        self.members = members

    @abstractmethod
    def measure(self, context: Context) -> Raw:
        """Plain data that JSON can hold, without NaN.

        Raises:
            EmError: it cannot be measured; the figure's page then says why, and its claims are not decided.
        """

    @abstractmethod
    def read(self, raw: Raw) -> Found:
        """Statistics, figures and tables; needs no model, no run and no other file."""
