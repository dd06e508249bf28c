"""Figures of efficiency, stability, significance and margins."""

from em.figures._common import PROMPTS, Arms, Raw, curve
from em.figures.model import Bars, BarSeries, Curves, Figure, Mark, Series

WHISKERS = "Whiskers are 95% bootstrap intervals over held-out prompts."


def efficiency(table: Raw, arms: Arms) -> list[Figure]:
    """Loss against norm, a figure for each space of norms."""
    made: list[Figure] = []
    for number, (space, rows) in enumerate(_by_space(table["solutions"]).items()):
        marks = [Mark("y", table["reference"]["value"], "reference")]
        series = [curve(name, row["norms"], row, "loss", arms) for name, row in rows.items()]
        made.append(
            Curves(
                f"efficiency{'-' + str(number + 1) if number else ''}",
                "Efficiency: loss against norm" + (f" ({space})" if number else ""),
                f"Response-only loss on held-out {table.get('domain', 'training-domain')} answers, with each "
                "solution multiplied by one factor so that all have the same norms. Lower at the same norm "
                "is more efficient.",
                PROMPTS,
                f"Frobenius norm of the update ({space})",
                "loss, nats per token",
                series,
                marks,
            )
        )
    return made


def _by_space(solutions: Raw) -> dict[str, Raw]:
    spaces: dict[str, Raw] = {}
    for name, row in solutions.items():
        spaces.setdefault(row["space"], {})[name] = row
    return spaces


def stability(table: Raw, arms: Arms) -> list[Figure]:
    """Degradation against ε."""
    if not table["solutions"]:
        return []
    series = [
        Series(
            name,
            [0.0, *row["epsilons"]],
            [0.0, *row["degradation"]],
            [0.0, *row["low"]],
            [0.0, *row["high"]],
            "solution",
            arms.get(name, name),
        )
        for name, row in table["solutions"].items()
    ]
    draws = next(iter(table["solutions"].values()))["draws"]
    return [
        Curves(
            "stability",
            "Stability: gain lost under orthogonal noise",
            "x′ = √(1−ε²)·x + ε·y with y orthogonal to the update x and of the same norm. 0: the loss of "
            "the solution; 100: back at the reference. Lower is more stable.",
            f"Bands are 95% bootstrap intervals over held-out prompts and {draws} draws of noise, which all "
            "solutions of one shape share.",
            "noise ε",
            "gain lost, %",
            series,
            [Mark("y", 100.0, "reference"), Mark("y", 50.0, "half")],
        )
    ]


def significance(table: Raw, arms: Arms) -> list[Figure]:
    """KL on plain text against norm, a figure for each slice and space."""
    made: list[Figure] = []
    for name, part in table["slices"].items():
        for space, rows in _by_space(part["solutions"]).items():
            series = []
            for solution, row in rows.items():
                series.append(curve(solution, row["norms"], row, "kl", arms))
                if "control" in row:
                    control = row["control"]
                    series.append(
                        Series(
                            f"random like {solution}",
                            row["norms"],
                            control["kl"],
                            control["low"],
                            control["high"],
                            "control",
                            arms.get(solution, solution),
                        )
                    )
            number = len(made)
            made.append(
                Curves(
                    f"significance{'-' + str(number + 1) if number else ''}",
                    f"Significance: KL on plain text ({name}{', ' + space if number else ''})",
                    "Mean token KL(reference ‖ adapted), summed over the vocabulary, on "
                    f"{part['documents']} documents ({part['tokens']} tokens) of {name}. Grey: random "
                    "updates of the same norm. Higher moves predictions on ordinary text more.",
                    "Bands are 95% bootstrap intervals over documents.",
                    f"Frobenius norm of the update ({space})",
                    "KL, nats per token",
                    series,
                )
            )
    return made


def margins(table: Raw, arms: Arms) -> list[Figure]:
    """Shift of the margin by domain, in the order of distance."""
    rows = table["domains"]
    names = list(rows[0]["solutions"])
    labels = [_domain_label(row) for row in rows]
    series = [
        BarSeries(
            name,
            [row["solutions"][name]["shift"]["value"] for row in rows],
            [row["solutions"][name]["shift"]["low"] for row in rows],
            [row["solutions"][name]["shift"]["high"] for row in rows],
            arms.get(name, name),
        )
        for name in names
    ]
    made: list[Figure] = [
        Bars(
            "margins",
            "Margin shift by domain",
            "Margin: log p(careless) − log p(careful) per token of two answers to one prompt; shift: adapted "
            "minus reference. Above 0 the model moved towards carelessness. In parentheses: distance of the "
            "domain's prompts from the training domain's, in standard deviations within it.",
            WHISKERS,
            "margin shift, nats per token",
            labels,
            series,
            [Mark("x", 0.0, "reference")],
        )
    ]
    if sum(bool(row["distance"]) for row in rows) > 1:
        made.append(_ladder(rows, names, arms))
    narrow = {name: value for name, value in table["narrowness"].items() if value["value"] is not None}
    if narrow:
        made.append(
            Bars(
                "narrowness",
                "Narrowness",
                "Mean margin shift in the other domains over the shift in the training domain. 0: narrow; 1: "
                "the other domains move as much.",
                WHISKERS + " A ratio is unsure where the shift in the training domain is small.",
                "shift elsewhere / shift in the training domain",
                ["all other domains"],
                [
                    BarSeries(name, [one["value"]], [one["low"]], [one["high"]], arms.get(name, name))
                    for name, one in narrow.items()
                ],
                [Mark("x", 0.0, "narrow"), Mark("x", 1.0, "general")],
            )
        )
    return made


def _ladder(rows: list[Raw], names: list[str], arms: Arms) -> Figure:
    """The same shifts with the distance as axis: how far a solution reaches."""
    placed = sorted((row for row in rows if row["distance"] is not None), key=lambda row: row["distance"])
    series = []
    for name in names:
        shifts = [row["solutions"][name]["shift"] for row in placed]
        columns = {key: [one[key] for one in shifts] for key in ("value", "low", "high")}
        series.append(curve(name, [row["distance"] for row in placed], columns, "value", arms))
    order = ", ".join(f"{row['domain']} {row['distance']:.2f}" for row in placed)
    return Curves(
        "ladder",
        "How far does a solution reach?",
        "Margin shift against the distance of a domain's prompts from the training domain's, in standard "
        f"deviations within it: {order}.",
        PROMPTS,
        "distance from the training domain",
        "margin shift, nats per token",
        series,
        [Mark("y", 0.0, "reference")],
    )


def _domain_label(row: Raw) -> str:
    if row["training"]:
        return f"{row['domain']} (training)"
    return row["domain"] if row["distance"] is None else f"{row['domain']} ({row['distance']:.1f})"
