"""Tables of a comparison made by hand, for any number of solutions."""

from itertools import combinations
from typing import Any

Raw = dict[str, Any]
NONE: Raw = {"value": None, "low": None, "high": None}


def estimate(value: float, half: float = 0.1) -> Raw:
    return {"value": value, "low": value - half, "high": value + half}


def difference(a: str, b: str, value: float | None = -0.5, half: float = 0.1, seeds: int = 1) -> Raw:
    found = NONE if value is None else estimate(value, half)
    return {"a": a, "b": b, **found, "seeds": seeds, "by_seed": [value] * seeds}


def differences(names: list[str]) -> list[Raw]:
    return [difference(a, b) for a, b in combinations(names, 2)]


def curve(key: str, values: list[float | None]) -> Raw:
    bounds: Raw = {"low": [None if one is None else one - 0.1 for one in values]}
    return {key: values, **bounds, "high": [None if one is None else one + 0.1 for one in values]}


def solutions(names: list[str], notes: list[str] | None = None) -> Raw:
    row = {"kind": "lora", "space": "weights", "norm": 1.5, "seed": 0, "steps": 10, "kl_weight": 0.0}
    return {
        "solutions": [{**row, "name": name, "arm": name, "run": f"runs/{name}"} for name in names],
        "backbone": {"model": "tiny", "fingerprint": "0123456789abcdef"},
        "training": "soup",
        "domains": ["soup", "tent"],
        "notes": notes or [],
    }


def efficiency(names: list[str]) -> Raw:
    row = {"space": "weights", "norm": 1.5, "norms": [0.0, 1.5, 3.0], **curve("loss", [2.0, 1.5, None])}
    row |= {"own": {"norm": 1.5, **estimate(1.5)}, "equal_norm": {"norm": 1.5, **estimate(1.4)}}
    every = {
        "examples": 9,
        "tokens": 90,
        "reference": estimate(2.0),
        "solutions": dict.fromkeys(names, row),
    }
    return {"domain": "soup", **every, "differences": differences(names), "missing": {}}


def stability(names: list[str], missing: dict[str, str] | None = None) -> Raw:
    row = {"epsilons": [0.5, 1.0], "draws": 4, **curve("degradation", [20.0, None])}
    row |= {"area": estimate(30.0), "half_life": NONE}
    made = {"solutions": dict.fromkeys(names, row), "missing": missing or {}}
    both = {
        "area": differences(names),
        "half_life": [difference(a, b, None) for a, b in combinations(names, 2)],
    }
    return {"domain": "soup", "examples": 9, **made, "differences": both}


def significance(names: list[str], slices: tuple[str, ...] = ("prose",)) -> Raw:
    row = {"space": "weights", "norm": 1.5, "norms": [0.0, 1.5], **curve("kl", [0.0, 0.3])}
    row |= {"slope": estimate(0.002, 0.001), "control": curve("kl", [0.0, 0.1]), "controls": 2}
    part = {"documents": 3, "tokens": 30, "solutions": dict.fromkeys(names, row)}
    corpus = [{"slice": name, "description": f"texts of {name}", "used": 3} for name in slices]
    found = {name: {**part, "differences": differences(names)} for name in slices}
    return {"corpus": corpus, "slices": found, "missing": {}}


def margins(names: list[str]) -> Raw:
    def domain(name: str, training: bool, distance: float | None) -> Raw:
        rows = {one: {"margin": estimate(0.1), "shift": estimate(0.4)} for one in names}
        row = {"domain": name, "training": training, "distance": distance, "pairs": 8}
        return {**row, "reference": estimate(0.0), "solutions": rows, "differences": differences(names)}

    found = [domain("soup", True, 0.0), domain("tent", False, 1.5), domain("bare", False, None)]
    narrow = {"narrowness": {name: estimate(0.6) for name in names}, "differences": differences(names)}
    return {"training": "soup", "domains": found, **narrow, "missing": {}}


def directions(names: list[str]) -> Raw:
    layers, every = [0, 1, 2], ["careless − careful", *(f"shift of {name}" for name in names), "random"]
    cells = [[1.0 if a == b else 0.2 for b in every] for a in every]
    pairs = list(combinations(names, 2))
    cosines = curve("cosine", [None, 0.5, 0.6])
    return {
        "layers": layers,
        "separation": None,
        "between": [{"a": a, "b": b, "arms": [a, b], "replicates": False, **cosines} for a, b in pairs],
        "with_difference": dict.fromkeys(names, cosines),
        "matrix": {"layer": 1, "names": every, "values": cells, "low": cells, "high": cells},
        "updates": [{"a": a, "b": b, "update": 0.3, "written": None} for a, b in pairs],
        "written": [{"solution": name, "part": "1.mlp", "layer": 1, "cosine": None} for name in names],
        "missing": {},
    }


def steering() -> Raw:
    curves = {"direction": curve("shift", [-0.3, 0.0, 0.4]), "random": curve("shift", [0.0, 0.0, None])}
    return {
        "layer": 1,
        "domain": "soup",
        "pairs": 4,
        "coefficients": [-0.2, 0.0, 0.2],
        "controls": 1,
        **curves,
    }


def ablation(names: list[str]) -> Raw:
    labels = ["mean-difference", *(f"shift-{name}" for name in names), "random"]
    cells = {
        name: {label: estimate(0.5) if label != "random" else NONE for label in labels} for name in names
    }
    return {
        "layer": 1,
        "layers": [1, 2],
        "domain": "soup",
        "pairs": 4,
        "directions": labels,
        "solutions": cells,
    }


def trajectory(names: list[str], missing: dict[str, str] | None = None) -> Raw:
    row = {"steps": [0, 2, 4], "norms": [0.0, 0.5, 1.0], "rotation_steps": [2], "rotation": [-0.9]}
    row |= {"peak_step": 2, "loss_steps": [1, 2, 3], "loss": [3.0, 2.5, 2.0]}
    paths = {name: {"steps": [0, 2], "points": [[0.0, 0.1], [0.5, 0.2]]} for name in names}
    frames = [{"explained": [0.8, 0.2], "paths": paths}] if names else []
    return {"runs": dict.fromkeys(names, row), "missing": missing or {}, "frames": frames}


def everything(names: list[str]) -> dict[str, Raw]:
    made = {"solutions": solutions(names), "steering": steering()}
    for build in (efficiency, stability, significance, margins, directions, ablation, trajectory):
        made[build.__name__] = build(names)
    return made
