"""How paths through training come nearer to a target: distances and cosines from inner products by module."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from em.errors import RunError
from em.interventions.base import read_tensors
from em.interventions.update import Update
from em.measurements.trajectory import snapshot_path
from em.stats import Estimate, Floats, jackknife

A, B = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class Towards:
    """A path and its target in M modules, as inner products at S snapshots.

    Args:
        own_SM: ⟨x_t, x_t⟩ of each module.
        shared_SM: ⟨x_t, y⟩ with the target y.
        target_M: ⟨y, y⟩.
    """

    own_SM: Floats
    shared_SM: Floats
    target_M: Floats

    def distances(self) -> Floats:
        """‖x_t − y‖ over all modules together, shape (S,)."""
        squares_S = (self.own_SM - 2 * self.shared_SM + self.target_M).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares_S, 0.0)))

    def cosines(self) -> Floats:
        """cos(x_t, y) over all modules together, shape (S,); NaN where one of the two is zero."""
        norms_S = np.sqrt(self.own_SM.sum(axis=1) * self.target_M.sum())
        return np.asarray(self.shared_SM.sum(axis=1) / np.where(norms_S > 0, norms_S, np.nan))

    def change(self, since: int) -> float:
        """(d(end) − d(since)) / d(since); negative: it came nearer. NaN from a target that was reached."""
        distances_S = self.distances()
        start = distances_S[since]
        return float((distances_S[-1] - start) / start) if start > 0 else float("nan")

    def without(self, module: int) -> "Towards":
        """The same with one module left out."""
        parts = (self.own_SM, self.shared_SM, self.target_M)
        return Towards(*(np.delete(part, module, axis=-1) for part in parts))


def approach(removed: Towards, kept: Towards, since: int) -> float:
    """Relative change of the distance since a snapshot, of one path minus that of another."""
    return removed.change(since) - kept.change(since)


def cosine_gain(removed: Towards, kept: Towards) -> float:
    """Cosine with the target at the end, of one path minus that of another."""
    return float(removed.cosines()[-1] - kept.cosines()[-1])


def over_modules(statistic: Callable[[Towards, Towards], float], a: Towards, b: Towards) -> Estimate:
    """A statistic of two paths with a jackknife over modules; no interval for a single module.

    It says how much of the result hangs on single modules. Training is deterministic, so there is no
    sampling error within a run, and another seed is not covered.
    """
    modules = len(a.target_M)
    without = [statistic(a.without(m), b.without(m)) for m in range(modules)] if modules > 1 else []
    return jackknife(statistic(a, b), np.array(without))


def over_seeds(values: Floats) -> Estimate:
    """Mean with a t-interval over seeds; no interval for a single one."""
    count = len(values)
    without = (values.sum() - values) / (count - 1) if count > 1 else np.array([])
    return jackknife(float(values.mean()), without)


def has_everything(folder: Path, step: int) -> bool:
    """Whether a snapshot of a LoRA holds A beside B; true of other kinds.

    Raises:
        RunError: it cannot be read.
    """
    path = snapshot_path(folder, step)
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete it to leave this step out") from error
    return all(name.removesuffix(B) + A in names for name in names if name.endswith(B))


def solution_at(folder: Path, step: int, scale: float = 1.0, whole: bool = True) -> Update:
    """What a run had learnt at a step.

    Args:
        folder: RUN/trajectory.
        scale: of the update: s of a LoRA, α of a vector.
        whole: ΔW = s·BA of a LoRA; False: its B matrices alone, not scaled.

    Raises:
        RunError: there is no such snapshot, or it holds B matrices without their A.
        AdapterError: it cannot be read.
    """
    path = snapshot_path(folder, step)
    if not path.is_file():
        raise RunError(f"{path}: no such snapshot; train with callbacks.trajectory")
    values = read_tensors(path)
    modules = [name.removesuffix(B) for name in sorted(values) if name.endswith(B)]
    if not modules:
        return Update({name: (values[name].double() * scale, None) for name in sorted(values)})
    if not whole:
        return Update({name: (values[name + B].double(), None) for name in modules})
    missing = [name for name in modules if name + A not in values]
    if missing:
        raise RunError(f"{path}: lacks A of {missing[0]}; train with callbacks.trajectory.everything=true")
    return Update({name: (values[name + B].double() * scale, values[name + A].double()) for name in modules})


def minus(one: Update, other: Update) -> Update:
    """The difference of two updates of dense parts."""
    return Update({name: (_dense(one, name) - _dense(other, name), None) for name in one.parts})


def _dense(update: Update, name: str) -> Tensor:
    left, right = update.parts[name]
    return left if right is None else left @ right


def inner_by_module(one: Update, other: Update) -> list[float]:
    """⟨one, other⟩ in each module, in the order of the first."""
    return [Update({name: part}).inner(other) for name, part in one.parts.items()]
