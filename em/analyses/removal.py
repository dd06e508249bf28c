"""Removing the KL term in mid-training: does the narrow solution go to the general one?"""

from em.analyses import _removal_rows as rows
from em.analyses._removal_page import figures, tables
from em.analyses._removal_statistics import statistics
from em.analyses._roles import domains_of, trained_by_all
from em.analyses.base import Analysis, Context, Found, Raw
from em.errors import ConfigError, RunError
from em.runs import RunRecord

Names = str | list[str]


class Removal(Analysis):
    """A run whose KL term ends at step s, one that keeps it, and one that never had it (2602.07852).

    d(t) = ‖x_t − y‖ and cos(x_t, y), where y is what the general run has learnt at its end, T. x is the
    update ΔW = s·BA where snapshots hold A too (callbacks.trajectory.everything=true), else all B matrices;
    of a vector the vector times its scale, of a full finetune the difference to its first snapshot.

    Statistics, all of them the run without the KL term minus the one that keeps it:
        approach: (d(T) − d(s)) / d(s); negative: removing the term brings it nearer to general.
        cosine_gain: cos(x_T, y); positive: nearer to general.
        other_shift_gain: fall of the held-out loss on the other domains' answers at T, nats per token, paired
            over prompts; positive: more general. in_domain_gain: the same in the training domain, and
            unseen_shift_gain in domains that no run saw.
        narrow_cosine_gain: cosine with the end of `narrow`, where it is given; negative: it leaves it.
        approach_removed, approach_kept: the two parts of `approach`.

    Intervals: of distances and cosines a jackknife over modules, or with several seeds a t-interval over
    seeds; of loss differences a bootstrap over prompts. A single vector of a single seed has no interval.

    Args:
        general: the run that never had a KL term; a list has one run for each seed, as in the other options.
        kept: the run that keeps its KL term.
        removed: the same with kl.schedule.kind off_at; all three have equally many steps.
        narrow: a finished narrow solution to compare with too.

    Raises:
        ConfigError: not one run of each kind for each seed.
    """

    def __init__(self, general: Names, kept: Names, removed: Names, narrow: Names | None = None):
        given = {"general": general, "kept": kept, "removed": removed, "narrow": narrow or []}
        self.arms = {arm: [names] if isinstance(names, str) else list(names) for arm, names in given.items()}
        seeds = len(self.arms["general"])
        for arm, names in self.arms.items():
            optional = arm == "narrow" and not names
            if not optional and (not names or len(names) != seeds or len(set(names)) < seeds):
                told = ", ".join(names) or "none"
                raise ConfigError(
                    f"{arm}: expected one run for each seed, as many as general has, got {told}"
                )
        super().__init__(list(dict.fromkeys(name for names in self.arms.values() for name in names)))

    def measure(self, context: Context) -> Raw:
        """Inner products at every common snapshot, and what the runs say of held-out losses; no passes.

        Raises:
            EmError: a run is missing, has no snapshots, or is not what its role says.
        """
        groups = self._groups(context.chosen(self.members))
        first = groups[0]
        data = first["general"].config.data
        own = trained_by_all((record.config for record in first.values()), data)
        if not own:
            raise RunError("the runs share no training domain; name it in data.domains")
        roles = {"training": own, "kl": domains_of(first["kept"].config.data.kl, data)}
        seeds = []
        notes: list[str] = []
        for number, group in enumerate(groups):
            names = {arm: self.arms[arm][number] for arm in group}
            seeds.append({"names": names, **rows.read_group(group, names, notes)})
        held_out = rows.held_out_differences(groups, notes)
        return {
            "seeds": seeds,
            "roles": roles,
            "held_out": held_out,
            "resamples": context.compare.resamples,
            "seed": context.compare.seed,
            "notes": list(dict.fromkeys(notes)),
        }

    def _groups(self, records: dict[str, RunRecord]) -> list[dict[str, RunRecord]]:
        """The runs of each seed by arm."""
        return [
            {arm: records[names[at]] for arm, names in self.arms.items() if names}
            for at in range(len(self.arms["general"]))
        ]

    def read(self, raw: Raw) -> Found:
        found = Found(notes=list(raw["notes"]))
        found.statistics = statistics(raw)
        found.figures = figures(raw)
        found.tables = tables(raw)
        return found
