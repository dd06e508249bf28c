"""Figures of directions, steering and ablation."""

from em.figures._common import PROMPTS, Arms, Raw
from em.figures.model import Curves, Figure, Mark, Matrix, Role, Series


def directions(table: Raw, arms: Arms) -> list[Figure]:
    """Separation and cosines by layer, and the matrix at one layer."""
    made: list[Figure] = []
    if table.get("separation"):
        made.append(_separation(table["separation"]))
    if table["between"]:
        made.append(_between(table))
    if table.get("with_difference"):
        made.append(_with_difference(table, arms))
    if table.get("reliability"):
        made.append(_reliability(table, arms))
    matrix = table["matrix"]
    made.append(
        Matrix(
            "cosines",
            f"Cosines between directions at layer {matrix['layer']}",
            "careless − careful: mean difference of answers under the reference. Shift: adapted minus "
            "reference activations on the same careless answers. Controls: shuffled labels, "
            "and a random direction of the same norm.",
            "95% jackknife intervals over blocks of prompts are in the table.",
            matrix["names"],
            matrix["names"],
            matrix["values"],
            matrix["low"],
            matrix["high"],
            "cosine",
            (-1.0, 1.0),
        )
    )
    return made


def _separation(found: Raw) -> Figure:
    layers = [float(layer) for layer in found["layers"]]
    return Curves(
        "separation",
        "How well the mean difference tells answers apart",
        f"AUROC of the projection of {found['held_out_pairs']} held-out pairs of answers on careless − "
        f"careful from {found['train_pairs']} training pairs, in the reference. Grey: directions from "
        "shuffled labels.",
        f"{PROMPTS} The grey band is the range of {found['shuffles']} shuffles.",
        "layer",
        "AUROC",
        [
            Series("careless − careful", layers, found["auroc"], found["low"], found["high"]),
            Series(
                "shuffled labels",
                layers,
                found["shuffled"],
                found["shuffled_low"],
                found["shuffled_high"],
                "control",
            ),
        ],
        [Mark("y", 0.5, "chance")],
    )


def _between(table: Raw) -> Figure:
    layers = [float(layer) for layer in table["layers"]]
    series = []
    for row in table["between"]:
        series.append(
            Series(
                f"{row['a']} · {row['b']}",
                layers,
                row["cosine"],
                row["low"],
                row["high"],
                "solution",
                " · ".join(row["arms"]),
            )
        )
    return Curves(
        "shift-cosines",
        "Do solutions move activations the same way?",
        "Cosine of the mean activation shifts (adapted minus reference, same careless answers) of two "
        "solutions, by layer. Nothing moves below the lowest layer that is changed.",
        "Bands are 95% jackknife intervals over blocks of prompts.",
        "layer",
        "cosine",
        series,
        [Mark("y", 0.0, "orthogonal")],
    )


def _with_difference(table: Raw, arms: Arms) -> Figure:
    layers = [float(layer) for layer in table["layers"]]
    series = [
        Series(name, layers, row["cosine"], row["low"], row["high"], "solution", arms.get(name, name))
        for name, row in table["with_difference"].items()
    ]
    return Curves(
        "difference-cosines",
        "Does a solution move activations along careless − careful?",
        "Cosine of a solution's mean activation shift with the mean difference of careless and careful "
        "answers under the reference, by layer.",
        "Bands are 95% jackknife intervals over blocks of prompts.",
        "layer",
        "cosine",
        series,
        [Mark("y", 0.0, "orthogonal")],
    )


def _reliability(table: Raw, arms: Arms) -> Figure:
    layers = [float(layer) for layer in table["layers"]]
    series = []
    for name, values in table["reliability"].items():
        solution = name.removeprefix("shift of ")
        series.append(Series(name, layers, values, None, None, "solution", arms.get(solution, solution)))
    return Curves(
        "reliability",
        "How well are the directions determined?",
        "Split-half reliability: cosine of a mean difference from one random half of the prompts with that "
        "from the other half, mean of 20 splits. Near 1: the data determine the direction; near 0: noise.",
        "No interval: a mean over splits of the same prompts.",
        "layer",
        "cosine",
        series,
        [Mark("y", 0.0, "noise")],
    )


def steering(table: Raw, arms: Arms) -> list[Figure]:
    """Margin shift against the coefficient."""
    x = [float(one) for one in table["coefficients"]]
    series = [
        _steered("careless − careful", x, table["direction"], "solution"),
        _steered("random direction", x, table["random"], "control"),
    ]
    return [
        Curves(
            "steering",
            f"Steering the {table.get('model', 'reference')} model at layer {table['layer']}",
            "h ← h + c·‖h‖·v̂ at the output of the layer, at every position; margin shift of "
            f"{table['pairs']} held-out {table['domain']} pairs. Grey: mean over {table['controls']} random "
            "directions.",
            PROMPTS,
            "coefficient c, in units of ‖h‖",
            "margin shift, nats per token",
            series,
            [Mark("y", 0.0, "not steered")],
        )
    ]


def ablation(table: Raw, arms: Arms) -> list[Figure]:
    """Share of the margin shift removed: solutions by directions."""
    names = list(table["solutions"])
    if not names:
        return []
    labels = list(table["solutions"][names[0]])

    def grid(key: str) -> list[list[float | None]]:
        return [[table["solutions"][name][label][key] for label in labels] for name in names]

    return [
        Matrix(
            "ablation",
            "Ablation: share of the margin shift that goes",
            f"Rows: the adapted model; columns: the direction, taken at layer {table['layer']} and projected "
            f"out at layers {table['layers'][0]} to {table['layers'][1]} of both the adapted and the "
            f"reference model. 1: the shift on {table['pairs']} held-out {table['domain']} pairs is gone; 0: "
            "nothing went; above 1: it is reversed.",
            "95% bootstrap intervals over prompts are in the table; they are wide where the shift is small.",
            names,
            labels,
            grid("value"),
            grid("low"),
            grid("high"),
            "share removed",
            (-1.0, 1.0),
        )
    ]


def _steered(name: str, x: list[float], values: Raw, role: Role) -> Series:
    return Series(name, x, values["shift"], values["low"], values["high"], role)
