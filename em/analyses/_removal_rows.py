"""What is read of the runs of a removal: their roles, their paths and their held-out losses."""

from collections.abc import Mapping, Sequence

from em.analyses._held_out import Scores, end_scores, prompts_of
from em.analyses._removal_paths import PATHS, Group, Raw, folder_of, products
from em.errors import RunError
from em.measurements.trajectory import snapshot_steps
from em.runs import RunRecord


def read_group(group: Group, names: Mapping[str, str], notes: list[str]) -> Raw:
    """Paths and shifts of the runs of one seed; what the reader should know is added to `notes`.

    Raises:
        RunError: a run is not what its role says, or their snapshots do not fit together.
    """
    removed_at = check_roles(group, names)
    steps = _steps(group, names)
    last = max((step for step in steps if step <= removed_at), default=None)
    if last is None or last == steps[-1]:
        raise RunError(
            f"{names['removed']}: no common snapshot between its start and the removal at step {removed_at}, "
            "or none after it; train with callbacks.trajectory.every_n_steps"
        )
    if last != removed_at:
        notes.append(f"{names['removed']}: distances since step {last}, the last before {removed_at}.")
    return {
        "removed_at": removed_at,
        "since": steps.index(last),
        "steps": steps,
        **products(group, names, steps, last, notes),
        "shifts": {arm: _logged(group[arm]) for arm in PATHS},
    }


def check_roles(group: Group, names: Mapping[str, str]) -> int:
    """The step at which the KL term is removed.

    Raises:
        RunError: a run is not what its role says.
    """
    general, kept, removed = (group[arm].config for arm in PATHS)
    if general.data.kl and general.kl.weight > 0:
        raise RunError(f"general: {names['general']} has a KL term; give a run without one")
    if not (kept.data.kl and kept.kl.weight > 0) or kept.kl.schedule.kind == "off_at":
        raise RunError(f"kept: {names['kept']} does not keep a KL term to its end; give a run that does")
    schedule = removed.kl.schedule
    if schedule.kind != "off_at" or not schedule.step or not removed.data.kl or removed.kl.weight <= 0:
        raise RunError(
            f"removed: {names['removed']} has no KL term that ends in mid-training; train it with "
            "kl.schedule={kind: off_at, step: …}"
        )
    if kept.kl.weight != removed.kl.weight:
        raise RunError(
            f"kept and removed: kl.weight is {kept.kl.weight:g} in {names['kept']} and {removed.kl.weight:g} "
            f"in {names['removed']}; they must differ in kl.schedule alone"
        )
    return schedule.step


def _steps(group: Group, names: Mapping[str, str]) -> list[int]:
    """Steps at which the three runs have a snapshot."""
    found = {arm: snapshot_steps(folder_of(group[arm])) for arm in PATHS}
    without = [names[arm] for arm, steps in found.items() if not steps]
    if without:
        raise RunError(f"{', '.join(without)}: no snapshots; train with callbacks.trajectory")
    ends = {names[arm]: steps[-1] for arm, steps in found.items()}
    if len(set(ends.values())) > 1:
        raise RunError(f"the runs end at different steps: {ends}; give all the same trainer.max_steps")
    return sorted(set.intersection(*(set(steps) for steps in found.values())))


def _logged(record: RunRecord) -> Raw:
    """domain -> steps, and the held-out loss minus the reference's at each of them."""
    found: dict[str, dict[int, float]] = {}
    for row in record.directory.read_metrics():
        for key, value in row.items():
            parts = key.split("/")
            if len(parts) == 3 and parts[0] == "domains" and parts[2] == "shift" and value is not None:
                found.setdefault(parts[1], {})[int(row["step"])] = float(value)
    return {
        domain: {"steps": sorted(values), "shift": [values[step] for step in sorted(values)]}
        for domain, values in found.items()
    }


def held_out_differences(groups: Sequence[Group], notes: list[str]) -> Raw:
    """domain -> prompts, answer tokens, and loss of `kept` minus that of `removed` by seed, in nats.

    Empty where a run has no table of its held-out losses.

    Raises:
        RunError: the runs scored different rows.
    """
    scores = [{arm: end_scores(group[arm]) for arm in ("kept", "removed")} for group in groups]
    lost = [
        str(group[arm].directory.path)
        for group, one in zip(groups, scores, strict=True)
        for arm in one
        if not one[arm]
    ]
    if lost:
        notes.append(
            f"{', '.join(lost)}: no tables/domains.json, so losses are not compared; train with "
            "callbacks.domains."
        )
        return {}
    data = groups[0]["kept"].config.data
    found: Raw = {}
    for domain in scores[0]["kept"]:
        known = [one[arm].get(domain, {}) for one in scores for arm in ("kept", "removed")]
        tokens = [{place: row["tokens"] for place, row in rows.items()} for rows in known]
        if any(one != tokens[0] for one in tokens):
            raise RunError(
                f"{domain}: the runs scored different held-out rows, so their losses cannot be paired; train "
                "them with one data section"
            )
        prompts = prompts_of(data, domain)
        found[domain] = {
            "prompts": [prompts.get(where, where) for _, where in tokens[0]],
            "tokens": list(tokens[0].values()),
            "seeds": [_falls(one["kept"][domain], one["removed"][domain]) for one in scores],
        }
    return found


def _falls(kept: Scores, removed: Scores) -> list[float]:
    return [kept[place]["nll"] - removed[place]["nll"] for place in kept]
