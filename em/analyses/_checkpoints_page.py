"""Curves and tables of training by checkpoint."""

import numpy as np

from em.analyses._checkpoints_read import Member, groups
from em.analyses._inner import SEEDS, arms_of, fewest, mean_draws
from em.analyses.base import Raw
from em.figures.model import Cell, Curves, Figure, Mark, Series, Table
from em.stats import Estimate

STEP = "optimizer step"
ONE_PATH = "No interval: each run is one path."


def figures(raw: Raw) -> list[Figure]:
    """Rotation and norm of each run; behaviour of each scale, the mean over seeds."""
    members = [Member(raw, name) for name in raw["members"]]
    made: list[Figure] = []
    turning = [one for one in members if one.stored["rotation"]]
    if turning:
        made.append(_rotation(raw, turning))
    made.append(
        Curves(
            "checkpoint-norms",
            "Norm of the adapter",
            "Frobenius norm of the effective update at each snapshot.",
            ONE_PATH,
            STEP,
            "norm",
            [_line(one.name, one.stored["steps"], one.stored["norms"], one.stored["arm"]) for one in members],
        )
    )
    titles = {"/training": "the training domain", "/other": "the other domains"}
    return made + [_behaviour(raw, group, title) for group, title in titles.items() if groups(raw)[group]]


def _rotation(raw: Raw, members: list[Member]) -> Figure:
    peaks = [(one.name, one.turn.step) for one in members if one.turn.step is not None]
    return Curves(
        "checkpoint-rotation",
        "Rotation of the solution",
        f"cos(B[t−k] − B[t], B[t+k] − B[t]) over training steps t, k = {raw['k']} snapshots. −1: straight. "
        "Marked is the peak of a run that turns there beyond the noise of its curve.",
        ONE_PATH,
        STEP,
        "cosine",
        [
            _line(one.name, one.stored["rotation_steps"], one.stored["rotation"], one.stored["arm"])
            for one in members
        ],
        [Mark("x", float(step), f"peak, {name}") for name, step in peaks],
    )


def _line(name: str, steps: list[int], values: list[float], arm: str) -> Series:
    return Series(name, [float(step) for step in steps], [*values], group=arm)


def _behaviour(raw: Raw, group: str, title: str) -> Figure:
    series = []
    for name, members in _together(raw).items():
        for at, scale in enumerate(raw["scales"]):
            told = scale if isinstance(scale, str) else f"{scale:g} ×"
            series.append(_scaled(f"{name}, {told}" if len(_together(raw)) > 1 else told, members, at, group))
    return Curves(
        f"checkpoint-behaviour-{group[1:]}",
        f"Behaviour of the scaled adapter, {title}",
        "Margin shift of held-out pairs, adapted minus reference: how much likelier careless answers became. "
        "Each snapshot times one factor; final norm: as long as the last one.",
        "Bands are 95% bootstrap intervals over held-out prompts.",
        STEP,
        "margin shift, nats per token",
        series,
    )


def _together(raw: Raw) -> dict[str, list[Member]]:
    """Runs whose mean is drawn: the seeds of an arm where they have the same snapshots."""
    found: dict[str, list[Member]] = {}
    for arm, names in arms_of(raw["members"]).items():
        members = [Member(raw, name) for name in names]
        if all(one.stored["steps"] == members[0].stored["steps"] for one in members):
            found[arm] = members
        else:
            found |= {one.name: [one] for one in members}
    return found


def _scaled(name: str, members: list[Member], at: int, group: str) -> Series:
    domains = groups(members[0].raw)[group]
    curve_RS = mean_draws([one.curve(at, domains) for one in members])
    draws = fewest([members[0].draws[domain] for domain in domains])
    points: list[Estimate] = [draws.estimate(values_R) for values_R in curve_RS.T]
    return Series(
        name,
        [float(step) for step in members[0].stored["steps"]],
        [one.value for one in points],
        [one.low for one in points],
        [one.high for one in points],
    )


def tables(raw: Raw) -> list[Table]:
    """One row for each run."""
    rows: list[list[Cell]] = []
    for name in raw["members"]:
        one = Member(raw, name)
        curve = one.stored["rotation"]
        median = float(np.median(curve)) if curve else None
        rise = one.turn.rise
        rows.append(
            [
                name,
                one.stored["seed"],
                one.turn.step,
                rise.value,
                rise.low,
                rise.high,
                median,
                one.stored["norms"][-1],
            ]
        )
    columns = ["run", "seed", "peak step", "rise", "low", "high", "median rotation", "final norm"]
    definition = "Rise: largest rotation minus the median, with an interval for the noise of the curve."
    return [Table("checkpoints", "Where each path turns most", columns, rows, definition)]


def notes(raw: Raw) -> list[str]:
    """What a reader must know."""
    made = []
    if any(len(members) > 1 for members in arms_of(raw["members"]).values()):
        made.append(SEEDS)
    for name in raw["members"]:
        turn = Member(raw, name).turn
        if turn.step is None:
            made.append(f"{name}: no transition was found: {turn.why}.")
    if len(raw["domains"]) == 1:
        made.append(f"No domain besides {raw['training']} has paired answers.")
    return made
