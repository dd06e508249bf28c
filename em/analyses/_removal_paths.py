"""Paths of the runs of a removal, as inner products with the ends of others."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from em.config import build
from em.errors import RunError
from em.interventions.lora import Lora
from em.interventions.update import Update
from em.measurements.approach import has_everything, inner_by_module, minus, solution_at
from em.measurements.trajectory import snapshot_steps
from em.progress import track
from em.runs import RunRecord

Raw = dict[str, Any]
Group = dict[str, RunRecord]  # general, kept, removed and perhaps narrow
PATHS = ("general", "kept", "removed")
SAME = 1e-3  # of the norm: paths that differ less before the removal are the same run


def folder_of(record: RunRecord) -> Path:
    """Where its snapshots lie."""
    return record.directory.path / "trajectory"


def products(group: Group, names: Mapping[str, str], steps: list[int], last: int, notes: list[str]) -> Raw:
    """Inner products by module of every path with itself and with the ends of `general` and `narrow`."""
    reader = _Reader(group)
    targets = {arm: reader.end(arm) for arm in ("general", "narrow") if arm in group}
    if "narrow" in targets:
        _same_shapes(names["narrow"], targets["narrow"], targets["general"])
    paths: Raw = {arm: {"own": [], **{target: [] for target in targets}} for arm in PATHS}
    for step in track(steps, f"snapshots of {', '.join(names.values())}"):
        found = {arm: reader.at(arm, step) for arm in PATHS}
        for arm, update in found.items():
            _same_shapes(names[arm], update, targets["general"])
            paths[arm]["own"].append(inner_by_module(update, update))
            for target, end in targets.items():
                paths[arm][target].append(inner_by_module(update, end))
        if step == last:
            notes += _apart(found["removed"], found["kept"], names, step)
    if reader.kind == "lora" and not reader.whole:
        notes.append(
            "Snapshots hold B matrices without A, so B is compared instead of the update BA; for the update "
            "train with callbacks.trajectory.everything=true."
        )
    return {
        "space": reader.space,
        "modules": list(targets["general"].parts),
        "targets": {target: inner_by_module(end, end) for target, end in targets.items()},
        "paths": paths,
    }


def _same_shapes(name: str, update: Update, target: Update) -> None:
    shapes = [{key: _shape(part) for key, part in one.parts.items()} for one in (update, target)]
    if shapes[0] != shapes[1]:
        raise RunError(f"{name}: changes other modules than the general run; give runs of one intervention")


def _shape(part: tuple[Any, Any]) -> tuple[int, ...]:
    left, right = part
    return tuple(left.shape) if right is None else (left.shape[0], right.shape[1])


def _apart(removed: Update, kept: Update, names: Mapping[str, str], step: int) -> Iterator[str]:
    square = removed.inner(removed) - 2 * removed.inner(kept) + kept.inner(kept)
    size = max(removed.norm(), kept.norm())
    if size and max(square, 0.0) ** 0.5 > SAME * size:
        yield (
            f"{names['removed']} and {names['kept']} are {max(square, 0.0) ** 0.5 / size:.1%} of their norm "
            f"apart at step {step}, before the removal, so they differ in more (seed, data or machine)."
        )


class _Reader:
    """What the runs of one seed had learnt, all in one space.

    Raises:
        RunError: a run has no snapshots, or a full finetune none at its start.
    """

    def __init__(self, group: Group):
        self.group = group
        ends = {arm: snapshot_steps(folder_of(record)) for arm, record in group.items()}
        if any(not steps for steps in ends.values()):
            without = ", ".join(arm for arm, steps in ends.items() if not steps)
            raise RunError(f"{without}: no snapshots; train with callbacks.trajectory")
        self.ends = {arm: steps[-1] for arm, steps in ends.items()}
        self.whole = all(has_everything(folder_of(record), ends[arm][-1]) for arm, record in group.items())
        self.kind = str(build(group["general"].config.intervention, "interventions").kind)
        self._origin: Update | None = None
        if self.kind == "full_finetune":
            if any(steps[0] != 0 for steps in ends.values()):
                raise RunError("a full finetune needs a snapshot at step 0; train with at: [start, end]")
            self._origin = solution_at(folder_of(group["general"]), 0)

    @property
    def space(self) -> str:
        """What is compared, in words."""
        if self.kind == "lora":
            return "the update ΔW" if self.whole else "the B matrices"
        return {"steering_vector": "the vector"}.get(self.kind, "the difference to the original weights")

    def at(self, arm: str, step: int) -> Update:
        """What a run had learnt at a step."""
        record = self.group[arm]
        intervention = build(record.config.intervention, "interventions")
        scale = float(getattr(intervention, "scale", 1.0))
        if isinstance(intervention, Lora):
            scale = intervention.alpha / (intervention.r**0.5 if intervention.rslora else intervention.r)
        found = solution_at(folder_of(record), step, scale, self.whole)
        return found if self._origin is None else minus(found, self._origin)

    def end(self, arm: str) -> Update:
        return self.at(arm, self.ends[arm])
