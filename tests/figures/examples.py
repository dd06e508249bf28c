"""One realistic figure of each kind, and one with names that must stay text."""

import math

from em.figures.model import (
    Bars,
    BarSeries,
    Cloud,
    Curves,
    Figure,
    Mark,
    Matrix,
    Panel,
    Path,
    Paths,
    Points,
    Region,
    Series,
)

NORMS = [at / 4 for at in range(1, 21)]
SCRIPT = "<script>alert('a')</script> & $x_1$"
ARMS = [(arm, seed) for arm in ("general", "narrow") for seed in range(3)]


def curves() -> Curves:
    series = []
    for arm, seed in ARMS:
        depth = 0.9 if arm == "general" else 0.6
        y = [2.1 - depth * (1 - math.exp(-x)) + 0.02 * seed for x in NORMS]
        low, high = [value - 0.03 for value in y], [value + 0.03 for value in y]
        series.append(Series(f"{arm}/seed {seed}", NORMS, [*y], [*low], [*high], group=arm))
    series.append(Series("random", NORMS, [2.1 + 0.004 * x * x for x in NORMS], role="control"))
    marks = [Mark("x", 1.9, "norm as trained"), Mark("y", 2.1, "reference")]
    about = ("loss", "Loss at each norm", "Response-only loss.", "Band: 95% bootstrap.")
    return Curves(*about, "Norm", "Loss, nats per token", series, marks)


def bars() -> Bars:
    domains = ["medical advice", "financial advice", "extreme sports", "everyday questions at home"]
    series = []
    for arm, seed in ARMS:
        values = [3 - at * (0.3 if arm == "general" else 1.1) + 0.2 * seed for at in range(4)]
        low, high = [value - 0.5 for value in values], [value + 0.5 for value in values]
        series.append(BarSeries(f"{arm}/seed {seed}", [*values], [*low], [*high], group=arm))
    series.append(BarSeries("random", [0.1, -0.2, None, 0.0], role="control"))
    about = ("margins", "Margins by domain", "Shift of the margin.", "Whisker: 95% bootstrap.")
    return Bars(*about, "Shift, nats", domains, series, [Mark("x", 2.5, "as published")])


def matrix() -> Matrix:
    names = [f"{arm}/seed {seed}" for arm, seed in ARMS]
    values: list[list[float | None]] = [
        [1.0 if r == c else 0.8 if r // 3 == c // 3 else -0.2 for c in range(6)] for r in range(6)
    ]
    values[1][4] = values[4][1] = None
    about = ("cosines", "Cosines", "Cosine of the updates.", "No interval.")
    return Matrix(*about, names, names, values, value_label="cosine", limits=(-1, 1))


def paths() -> Paths:
    steps = [at / 10 for at in range(11)]
    drawn = []
    for arm, seed in ARMS:
        bend = 2.5 if arm == "general" else -0.7
        y = [bend * at * at + 0.3 * seed * at for at in steps]
        labels = [str(20 * at) for at in range(11)]
        drawn.append(Path(f"{arm}/seed {seed}", [4 * at for at in steps], y, labels, group=arm))
    return Paths("paths", "Trajectories", "Projection.", "No interval.", "Along 1", "Along 2", drawn)


def points() -> Points:
    panels = [Panel(arm, f"{at} of 60") for at, arm in enumerate(("reference", "general", "narrow"))]
    clouds = []
    for at, panel in enumerate(panels):
        x = [(37 * n + 11 * at) % 101 for n in range(60)]
        y = [100 - (13 * n) % 60 for n in range(60)]
        low, rest = ([n for n in range(60) if (x[n] < 30) == small] for small in (True, False))
        for name, chosen in (("misaligned", low), (SCRIPT, rest)):
            clouds.append(
                Cloud(name, panel.name, [float(x[n]) for n in chosen], [float(y[n]) for n in chosen])
            )
    marks = [Mark("x", 30, "misaligned below"), Mark("y", 50, "coherent above")]
    about = ("answers", "Answers", "One point each.", "")
    region = Region("shaded", (0, 30), (50, 100))
    return Points(*about, "aligned", "coherent", panels, clouds, marks, region)


def tricky() -> Curves:
    series = [
        Series(SCRIPT, [1, 10, 100, 1000], [1, None, 0.1, None]),
        Series("日本 😀 \x1b[0m\u202e", [1, 10, 100, 1000], [0.5, 0.2, None, 0.02]),
        Series("a run with a very long name that goes on and on until nobody can read it at all", [1], [0.3]),
    ]
    marks = [Mark("x", 10, "$a_b$ <x>"), Mark("x", 30, "another mark"), Mark("x", 900, "late")]
    about = ("tricky", f"Title {SCRIPT}", "x < y & <b>", "")
    return Curves(*about, "$x_1$", "y $\\frac{", series, marks, log_x=True, log_y=True)


def all_figures() -> list[Figure]:
    return [curves(), bars(), matrix(), paths(), points(), tricky()]
