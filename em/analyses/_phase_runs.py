"""The runs of a phase diagram: their KL weights, what baselines mix in, and how else they differ."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from em.analyses._roles import domains_of, trained_by_all
from em.config import to_dict
from em.config.schema import DataConfig, SourceConfig
from em.errors import RunError
from em.interventions.base import read_record
from em.runs import RunRecord, differences

# What is the weight itself, or is no part of what a run computes.
OWN = ("name", "kl.weight", "kl.reduction", "kl.schedule", "kl.batch_size", "data.kl", "callbacks")


@dataclass(frozen=True)
class Sweep:
    """Members by ascending weight, the first of them without a KL term, and baselines by share.

    Args:
        weights: member -> KL weight per token in nats.
        shares: baseline -> share of its training rows that are mixed in.
        roles: `training`, `kl`, `mixed` -> domains.
    """

    weights: dict[str, float]
    shares: dict[str, float]
    roles: dict[str, list[str]]
    notes: list[str]


def read_sweep(members: Mapping[str, RunRecord], baselines: Mapping[str, RunRecord]) -> Sweep:
    """Check and order the runs.

    Raises:
        RunError: fewer than two runs, none or several have no KL term, a weight occurs twice, a KL term ends
            in mid-training, or a baseline mixes in nothing or has a KL term.
    """
    weights = {name: weight_of(record) for name, record in members.items()}
    weights = dict(sorted(weights.items(), key=lambda item: item[1]))
    _check_weights(members, weights)
    data = members[next(iter(weights))].config.data
    own = trained_by_all((record.config for record in members.values()), data)
    if not own:
        raise RunError("members: they share no training domain; name it in data.domains")
    shares = {name: _mixed(name, record, own, data) for name, record in baselines.items()}
    roles = {
        "training": own,
        "kl": _listed((r.config.data.kl for name, r in members.items() if weights[name]), data),
        "mixed": [
            d for d in _listed((r.config.data.train for r in baselines.values()), data) if d not in own
        ],
    }
    notes = list(_notes(members, baselines, weights))
    ordered = dict(sorted(shares.items(), key=lambda item: item[1]))
    return Sweep(weights, ordered, roles, notes)


def _check_weights(members: Mapping[str, RunRecord], weights: dict[str, float]) -> None:
    """Weights must ascend from one run without a KL term, each of them to the end of training."""
    if len(members) < 2:
        raise RunError(f"members: {len(members)} trained run; give two or more that differ in kl.weight")
    without = [name for name, weight in weights.items() if weight == 0]
    if len(without) != 1:
        told = f" ({', '.join(without)})" if without else ""
        raise RunError(
            f"members: {len(without)} of {len(weights)} runs have no KL term{told}; give exactly one, the "
            "general solution (kl.weight 0)"
        )
    twice = [name for name, weight in weights.items() if list(weights.values()).count(weight) > 1]
    if twice:
        raise RunError(f"members: {', '.join(twice)} have the same KL weight; give one run of each weight")
    for name, record in members.items():
        if weights[name] and record.config.kl.schedule.kind == "off_at":
            raise RunError(f"{name}: its KL term is removed in mid-training; that is the analysis `removal`")


def weight_of(record: RunRecord) -> float:
    """KL weight per token in nats at full strength; 0 without KL rows.

    Raises:
        RunError: it is of `reduction: vocab_mean` and the adapter does not say how large the vocabulary is.
    """
    kl = record.config.kl
    if not record.config.data.kl or not kl.weight:
        return 0.0
    return kl.weight / (_vocabulary(record) if kl.reduction == "vocab_mean" else 1)


def _vocabulary(record: RunRecord) -> int:
    known = read_record(record.directory.adapter)["backbone"].get("vocab_size")
    if not isinstance(known, int) or known < 1:
        raise RunError(
            f"{record.directory.path}: its adapter does not say how large the vocabulary is, so its "
            "kl.weight cannot be compared; train it with kl.reduction=token_mean"
        )
    return known


def _listed(parts: Iterable[list[SourceConfig]], data: DataConfig) -> list[str]:
    return domains_of([source for part in parts for source in part], data)


def _mixed(name: str, record: RunRecord, own: list[str], data: DataConfig) -> float:
    """Share of a baseline's training rows that come from other domains.

    By the weights of its sources if all have one, else by the rows that were used.
    """
    config = record.config
    if weight_of(record) > 0:
        raise RunError(f"{name}: has a KL term, so it is no baseline of mixing alone; list it in members")
    sources = config.data.train
    weights = [source.weight for source in sources]
    if None in weights:
        rows = (record.manifest.get("data") or {}).get("train") or []
        weights = [row.get("used") for row in rows]
    if len(weights) != len(sources) or not all(weights):
        raise RunError(f"{name}: its manifest does not say how many rows of each source it used")
    others = [not set(domains_of([source], data)) & set(own) for source in sources]
    sums = [float(weight or 0.0) for weight in weights]
    mixed = sum(weight for weight, other in zip(sums, others, strict=True) if other)
    if not 0 < mixed < sum(sums):
        raise RunError(
            f"{name}: {mixed / sum(sums):.0%} of its training rows come from domains other than "
            f"{', '.join(own)}; a baseline mixes some in (data.train)"
        )
    return mixed / sum(sums)


def _notes(
    members: Mapping[str, RunRecord],
    baselines: Mapping[str, RunRecord],
    weights: dict[str, float],
) -> Iterator[str]:
    general = next(members[name] for name, weight in weights.items() if weight == 0)
    reference = to_dict(general.config)
    for name, record in [*members.items(), *baselines.items()]:
        kl = record.config.kl
        if weights.get(name) and kl.reduction == "vocab_mean":
            yield (
                f"{name}: kl.weight {kl.weight:g} is of a KL averaged over tokens and vocabulary, so it "
                f"counts as {weights[name]:.3g} per token."
            )
        if weights.get(name) and kl.schedule.kind == "linear":
            yield (
                f"{name}: its KL weight goes from {kl.schedule.start:g} to {kl.schedule.end:g} times "
                f"{kl.weight:g} over training; it stands at {weights[name]:.3g}."
            )
        free = OWN if name in members else (*OWN, "data.train")
        changed = [
            line
            for line in differences(reference, to_dict(record.config))
            if not line.startswith(tuple(f"{key}{end}" for key in free for end in (":", ".")))
        ]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            yield f"{name} differs from the general run in more: {'; '.join(changed[:3])}{more}."
