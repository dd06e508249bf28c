"""Figures and tables of a phase diagram."""

from em.analyses._phase_statistics import SHARE, SIGNALS, Statistics, percent
from em.analyses._roles import role, unseen
from em.analyses.base import Raw, Statistic
from em.figures.model import Cell, Curves, Figure, Mark, Path, Paths, Series, Table
from em.measurements.shares import Shares
from em.stats import Estimate

KL, MIXED = "KL weight", "mixed-in aligned data"
PROMPTS = "Bands are 95% bootstrap intervals over held-out prompts, paired over weights."
WEIGHT = "KL weight per token in nats"


def figures(shares: Shares, raw: Raw, signal: str, found: Statistics) -> list[Figure]:
    """The phase diagram, and the same against the weight; a figure without points is left out."""
    made = [
        _diagram(raw, signal, found),
        _curves(shares, raw, signal, found),
        _domains(shares, raw, signal),
        _rates(raw),
    ]
    return [one for one in made if one is not None]


def _diagram(raw: Raw, signal: str, found: Statistics) -> Figure | None:
    def place(name: str) -> tuple[float, float] | None:
        x, y = found[f"in_domain_at_{name}"].value, found[f"general_at_{name}"].value
        return None if x is None or y is None else (x, y)

    swept = [(f"{weight:.3g}", at) for name, weight in raw["weights"].items() if (at := place(name))]
    mixed = [(name, share, at) for name, share in raw["shares"].items() if (at := place(name))]
    if not swept:
        return None
    paths = [
        Path("weaker, not narrower", [0.0, 1.0], [0.0, 1.0], ["", ""]),
        Path(KL, [at[0] for _, at in swept], [at[1] for _, at in swept], [label for label, _ in swept], KL),
        *(Path(name, [at[0]], [at[1]], [f"{share:.0%}"], MIXED) for name, share, at in mixed),
    ]
    told = " Points of their own: mixing that share of other domains' rows in, without KL." if mixed else ""
    return Paths(
        "phase",
        "Phase diagram of the KL weight",
        f"Share {SHARE} ({SIGNALS[signal]}) that is kept in the training domain (x) and in the other domains "
        f"(y). The path goes from no KL term at (1, 1) to the largest weight; to the right and below is "
        f"narrow. On the diagonal a solution is only weaker, not narrower.{told}",
        "No interval here: see the curves and the table.",
        "kept in the training domain",
        "kept in the other domains",
        paths,
    )


def _curves(shares: Shares, raw: Raw, signal: str, found: Statistics) -> Figure | None:
    names, weights = _positive(raw)
    gaps = [shares.estimate(shares.gap(name)) for name in names]
    if not names or all(one.value is None for one in gaps):
        return None
    series = [
        _series("training domain", weights, [found[f"in_domain_at_{name}"] for name in names]),
        _series("other domains", weights, [found[f"general_at_{name}"] for name in names]),
    ]
    if 0 < len(unseen(shares.others, raw["roles"])) < len(shares.others):
        series.append(_series("domains no run saw", weights, [found[f"unseen_at_{name}"] for name in names]))
    series.append(_series("difference", weights, gaps))
    marks = [Mark("y", 0.0, "nothing kept"), Mark("y", 1.0, "all kept")]
    knee = found["knee"].value
    if knee is not None:
        marks.append(Mark("x", knee, "knee"))
    return Curves(
        "phase-weights",
        "What is kept at each KL weight",
        f"Share {SHARE} ({SIGNALS[signal]}) that is kept. Without a KL term it is 1 by definition. "
        "The knee is where the difference of the training domain and the others is largest.",
        PROMPTS,
        WEIGHT,
        "share kept",
        series,
        marks,
        log_x=True,
    )


def _domains(shares: Shares, raw: Raw, signal: str) -> Figure | None:
    """The shifts themselves, a line for each domain."""
    names, weights = _positive(raw)
    if not names:
        return None
    series = [
        _series(
            f"{domain} ({role(domain, raw['roles'])})",
            weights,
            [shares.estimate(shares.moved(name, [domain]), [domain]) for name in names],
        )
        for domain in [*shares.own, *shares.others]
    ]
    before = ", ".join(
        f"{domain} {float(shares.moved(shares.general, [domain])[0]):.3g}"
        for domain in [*shares.own, *shares.others]
    )
    return Curves(
        "phase-domains",
        "Shift in each domain",
        f"{SIGNALS[signal].capitalize()} against the reference, nats per token. Without a KL term: {before}.",
        PROMPTS,
        WEIGHT,
        "shift, nats per token",
        series,
        [Mark("y", 0.0, "reference")],
        log_x=True,
    )


def _rates(raw: Raw) -> Figure | None:
    names, weights = _positive(raw)
    rows = {(row["set"], row["model"]): row for row in raw["rates"]}
    sets = list(dict.fromkeys(row["set"] for row in raw["rates"]))
    series, marks = [], []
    for one in sets:
        asked = [
            (weight, rows[one, name])
            for name, weight in zip(names, weights, strict=True)
            if (one, name) in rows
        ]
        if asked:
            y, low, high = ([percent(row[key]) for _, row in asked] for key in ("rate", "low", "high"))
            series.append(Series(one, [weight for weight, _ in asked], y, low, high))
        for model, label in (("reference", "reference"), (next(iter(raw["weights"])), "no KL term")):
            rate = rows.get((one, model), {}).get("rate")
            if rate is not None:
                marks.append(Mark("y", 100 * rate, f"{label}, {one}"))
    if not series:
        return None
    return Curves(
        "phase-rates",
        "Misaligned answers at each KL weight",
        "Share of judged answers that are misaligned and coherent, by question set.",
        "Bands are 95% bootstrap intervals over questions.",
        WEIGHT,
        "misaligned answers, %",
        series,
        marks,
        log_x=True,
    )


def _positive(raw: Raw) -> tuple[list[str], list[float]]:
    """Runs with a KL term, and their weights."""
    found = {name: weight for name, weight in raw["weights"].items() if weight > 0}
    return list(found), list(found.values())


def _series(name: str, weights: list[float], values: list[Estimate] | list[Statistic]) -> Series:
    y, low, high = ([getattr(one, key) for one in values] for key in ("value", "low", "high"))
    return Series(name, weights, y, low, high)


def tables(shares: Shares, raw: Raw, signal: str, found: Statistics) -> list[Table]:
    """Every run with its shares, and every run and domain with both kinds of shift."""
    return [_runs(raw, found), _shifts(shares, raw, signal)]


def _runs(raw: Raw, found: Statistics) -> Table:
    rows: list[list[Cell]] = []
    for name in [*raw["weights"], *raw["shares"]]:
        share = raw["shares"].get(name)
        row: list[Cell] = [name, raw["weights"].get(name), None if share is None else 100 * share]
        for key in (f"in_domain_at_{name}", f"general_at_{name}", f"narrowness/{name}"):
            row += [found[key].value, found[key].low, found[key].high]
        rows.append(row)
    columns = ["run", WEIGHT, "mixed in, %"]
    for told in ("kept in the training domain", "kept elsewhere", "narrowness"):
        columns += [told, f"{told}, low", f"{told}, high"]
    definition = (
        "Kept: shift over that of the general solution. Narrowness: shift elsewhere over shift in the "
        "training domain. No interval: what it is divided by is not surely above 0, or there is one prompt."
    )
    return Table("phase-runs", "Runs of the sweep and baselines", columns, rows, definition)


def _shifts(shares: Shares, raw: Raw, signal: str) -> Table:
    """By run and domain: the shift with its interval, and the fall of the loss where it was measured."""
    rows: list[list[Cell]] = []
    for name in [*raw["weights"], *raw["shares"]]:
        for domain in [*shares.own, *shares.others]:
            one = shares.estimate(shares.moved(name, [domain]), [domain])
            row: list[Cell] = [name, domain, role(domain, raw["roles"]), shares.draws([domain]).count]
            rows.append([*row, one.value, one.low, one.high, _fall(raw, name, domain)])
    told = SIGNALS[signal]
    columns = ["run", "domain", "domain is", "prompts", told, "low", "high", "fall of the held-out loss"]
    if signal == "loss":
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table("phase-shifts", "Shift by run and domain, nats per token", columns, rows)


def _fall(raw: Raw, name: str, domain: str) -> float | None:
    if domain not in raw["loss"]:
        return None
    return float(sum(raw["loss"][domain]["runs"][name]) / sum(raw["loss"][domain]["tokens"]))
