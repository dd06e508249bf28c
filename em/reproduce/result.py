"""What came out of a figure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from em.analyses.base import Found, Statistic
from em.figures.model import Table
from em.reproduce.claims import Claim, Outcome, Verdict, claims_table, decide
from em.reproduce.figures import FigurePlan, Model

POOL = "members"  # folder of the runs that all figures share
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass
class Result:
    """A figure of one model.

    Args:
        folder: of its page and of what its analyses stored.
        found: analysis -> what it says.
        failed: analysis or member -> why it has nothing to say.
        verdicts: in the order of the claims file.
        runs: member -> wall seconds of its training, evaluation included.
        seconds: analysis -> wall seconds of its measurement.
        page: where its page is.
    """

    plan: FigurePlan
    model: Model
    folder: Path
    found: dict[str, Found] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    verdicts: list[tuple[Claim, Verdict]] = field(default_factory=list)
    runs: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    page: Path | None = None

    def run_of(self, member: str) -> Path:
        """Where the run of a member lies."""
        return self.folder.parent / POOL / member

    @property
    def statistics(self) -> dict[str, Statistic]:
        """Every number by its full name, ANALYSIS/key."""
        return {f"{name}/{key}": one for name, f in self.found.items() for key, one in f.statistics.items()}

    def claims(self) -> Table:
        """Each claim with the paper's number or direction, ours, and the verdict."""
        numbers = self.statistics
        rows = [(claim, numbers.get(claim.statistic), verdict) for claim, verdict in self.verdicts]
        return claims_table("claims", "The paper's claims", rows)

    def counts(self) -> dict[str, int]:
        """Outcome -> claims."""
        found = Counter(verdict.outcome for _, verdict in self.verdicts)
        return {outcome: found[outcome] for outcome in OUTCOMES}


def decided(result: Result, claims: Sequence[Claim]) -> list[tuple[Claim, Verdict]]:
    """The claims of this figure with their verdicts; one without a number says why."""
    statistics = result.statistics
    verdicts = []
    for claim in claims:
        if claim.figure == result.plan.name:
            reason = result.failed.get(claim.statistic.partition("/")[0], "there is no such number")
            verdicts.append((claim, decide(claim, statistics.get(claim.statistic), reason)))
    return verdicts
