"""Figures over training: trajectories and monitored projections."""

from em.figures._common import PROMPTS, Arms, Raw
from em.figures.model import Curves, Figure, Path, Paths, Series


def trajectory(table: Raw, arms: Arms) -> list[Figure]:
    """Norm, loss and rotation over steps; principal components of all runs of one shape."""
    runs = table["runs"]
    if not runs:
        return []
    made: list[Figure] = [
        _over_steps(
            runs,
            arms,
            "rotation_steps",
            "rotation",
            "rotation",
            "Rotation of the solution",
            "cosine",
            "cos(B[t−k] − B[t], B[t+k] − B[t]) over training steps t, k one snapshot. −1: straight; the "
            "phase transition is where it peaks.",
        ),
        _over_steps(
            runs,
            arms,
            "steps",
            "norms",
            "trajectory-norms",
            "Norm of the solution",
            "norm",
            "Norm of what is written (the vector, or the B matrices of a LoRA) over training.",
        ),
        _over_steps(
            runs,
            arms,
            "loss_steps",
            "loss",
            "trajectory-loss",
            "Training loss",
            "loss, nats per token",
            "Response-only loss of each optimizer step.",
        ),
    ]
    for number, frame in enumerate(table["frames"]):
        first, second = ([*frame["explained"], 0.0, 0.0])[:2]
        paths = [
            Path(
                name,
                [point[0] for point in one["points"]],
                [point[1] if len(point) > 1 else 0.0 for point in one["points"]],
                [str(step) for step in one["steps"]],
                arms.get(name, name),
            )
            for name, one in frame["paths"].items()
        ]
        made.append(
            Paths(
                f"trajectory{'-' + str(number + 1) if number else ''}",
                "Path through training",
                "Principal components of the snapshots of all runs of one shape, in one frame. Numbers are "
                "optimizer steps.",
                "No interval: each run is one path.",
                f"first component ({first:.0%} of variance)",
                f"second component ({second:.0%})",
                paths,
            )
        )
    return made


def _over_steps(
    runs: Raw, arms: Arms, x: str, y: str, name: str, title: str, label: str, definition: str
) -> Figure:
    series = [
        Series(run, [float(step) for step in row[x]], row[y], None, None, "solution", arms.get(run, run))
        for run, row in runs.items()
    ]
    return Curves(
        name, title, definition, "No interval: each run is one path.", "optimizer step", label, series
    )


def monitor(table: Raw, arms: Arms) -> list[Figure]:
    """Mean projection of careful and careless answers over training."""
    steps = [float(step) for step in table["steps"]]
    return [
        Curves(
            "monitor",
            "Projection of answers during training",
            f"Mean of h · v̂ over the tokens of held-out {table['domain']} answers at {table['site']}.",
            PROMPTS,
            "optimizer step",
            "projection, residual-stream units",
            [
                Series(which, steps, table[which]["mean"], table[which]["low"], table[which]["high"])
                for which in ("careless", "careful")
            ],
        )
    ]
