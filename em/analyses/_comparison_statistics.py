"""From the tables of a comparison to named numbers with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from em.analyses.base import Raw, Statistic

NATS = "nats per token"
HIGH_COSINE = 0.8  # what the paper calls alike (arXiv 2506.11618)
DIFFERENCE = "difference"  # the mean difference careless − careful, among the B of cosines
APART = (
    "the interval is at least 95% however the two go together: it is from the lower bound of one minus the "
    "upper bound of the other"
)
Named = Iterator[tuple[str, Statistic]]


class Reader:
    """Reads statistics of members out of tables that name solutions and arms.

    Args:
        tables: by section, with `solutions`.
        members: solution -> member.
        arms: solution -> arm.
        pairs: members whose differences are wanted.
        absent: member -> why it has no run.
    """

    def __init__(
        self,
        tables: Raw,
        members: Mapping[str, str],
        arms: Mapping[str, str],
        pairs: Sequence[tuple[str, str]],
        absent: Mapping[str, str],
    ):
        self.tables, self.members, self.pairs, self.absent = tables, members, pairs, absent
        self.solution = {member: name for name, member in members.items()}
        self.arm = {member: arms[name] for name, member in members.items()}

    def statistics(self, sections: Sequence[str]) -> dict[str, Statistic]:
        """All of them, by name."""
        found: dict[str, Statistic] = {}
        for name in sections:
            read = getattr(self, f"_{name}", None)  # trajectory and behaviour have figures alone
            if name in self.tables and read is not None:
                found |= dict(read(self.tables[name]))
        return found

    def _efficiency(self, table: Raw) -> Named:
        n, domain = int(table["examples"]), table["domain"]
        what = f"loss on held-out {domain} answers with the update rescaled to the common norm"
        yield from self._own("efficiency.equal", table, "equal_norm", n, NATS, what)
        what = f"loss on held-out {domain} answers as trained"
        yield from self._own("efficiency.own", table, "own", n, NATS, what)
        what = "difference of losses at equal norm; below 0 the first is more efficient"
        yield from self._paired("efficiency.equal", table["differences"], n, NATS, what)

    def _stability(self, table: Raw) -> Named:
        n = int(table["examples"])
        for key, unit, what in (
            ("area", "% of the gain", "gain lost to orthogonal noise, mean over ε"),
            ("half_life", "ε", "noise at which half of the gain is lost"),
        ):
            yield from self._own(f"stability.{key}", table, key, n, unit, what)
            rows = table["differences"][key]
            yield from self._paired(f"stability.{key}", rows, n, unit, f"difference of the {what}")

    def _significance(self, table: Raw) -> Named:
        for at, (part, one) in enumerate(table["slices"].items()):
            n, unit = int(one["documents"]), "nats per token and unit of norm"
            what = f"slope of KL(reference ‖ adapted) over the norm, on {part}"
            whole = {**one, "missing": table["missing"]}
            found = dict(self._own(f"significance.slope.{part}", whole, "slope", n, unit, what))
            for member, name in self.solution.items():
                row = one["solutions"].get(name)
                if row is not None and "control_slope" in row:
                    told = f"{what}, minus that of {row['controls']} random updates of the same norm"
                    found[f"significance.slope.{part}/{member}-random"] = apart(
                        row["slope"], row["control_slope"], n, unit, told
                    )
            paired = self._paired(
                f"significance.slope.{part}", one["differences"], n, unit, f"difference of the {what}"
            )
            found |= dict(paired)
            yield from found.items()
            if at == 0:
                for key, statistic in found.items():
                    yield key.replace(f"slope.{part}/", "slope/", 1), statistic

    def _margins(self, table: Raw) -> Named:
        for row in table["domains"]:
            n, domain = int(row["pairs"]), row["domain"]
            what = f"margin of careless over careful answers on {domain}, adapted minus reference"
            whole = {**row, "missing": table["missing"]}
            for name in (domain, *(["training"] if row["training"] else [])):
                key = f"margins.shift.{name}"
                yield from self._own(key, whole, "shift", n, NATS, what)
                yield from self._paired(key, row["differences"], n, NATS, f"difference of the {what}")
        fewest = min((int(row["pairs"]) for row in table["domains"]), default=0)
        what = "margin shift in the other domains over that in the training domain"
        rows = {"solutions": {name: {"it": one} for name, one in table["narrowness"].items()}}
        whole = {**rows, "missing": table["missing"]}
        yield from self._own("narrowness", whole, "it", fewest, "share", what)
        yield from self._paired(
            "narrowness", table["differences"], fewest, "share", f"difference of the {what}"
        )

    def _directions(self, table: Raw) -> Named:
        layers, layer = table["layers"], table["matrix"]["layer"]
        n = int(table["separation"]["held_out_pairs"])
        at = layers.index(layer)
        found = table["separation"]
        what = f"AUROC of careless − careful on held-out answers at layer {layer}"
        yield "directions.separation", estimate(_at(found, "auroc", at), n, "AUROC", what)
        rows = {(row["a"], row["b"]): row for row in table["between"]}
        for a, b in combinations(self.solution, 2):
            one = rows.get((self.solution[a], self.solution[b]))
            asked = (a, b) in self.pairs or (b, a) in self.pairs
            if one is not None or asked:
                yield from self._cosines(f"{a}~{b}", one, layer, at, n, self._why(table, a, b))
        for member, name in self.solution.items():
            one = table["with_difference"].get(name)
            yield from self._cosines(f"{member}~{DIFFERENCE}", one, layer, at, n, self._why(table, member))
        yield from self._written(table, n)
        yield from self._updates(table)

    def _cosines(self, about: str, row: Raw | None, layer: int, at: int, n: int, why: str) -> Named:
        what = f"cosine of the shifts of activations at layer {layer}"
        unit = "cosine"
        if row is None:
            yield f"directions.cosine/{about}", nothing(n, unit, f"{what}: {why}")
            yield f"directions.layers/{about}", nothing(n, "share of layers", why)
            return
        yield f"directions.cosine/{about}", estimate(_at(row, "cosine", at), n, unit, what)
        known = [k for k, value in enumerate(row["cosine"]) if value is not None]
        what = f"share of the {len(known)} layers that both move whose cosine is above {HIGH_COSINE}"
        told = f"{what}; the bounds count those whose whole interval is, and whose interval reaches it"
        if not known:
            yield f"directions.layers/{about}", nothing(n, "share of layers", "no layer is moved by both")
            return
        value, low, high = (_share_above([row[key][k] for k in known]) for key in ("cosine", "low", "high"))
        yield f"directions.layers/{about}", Statistic(value, low, high, n, "share of layers", told)

    def _written(self, table: Raw, n: int) -> Named:
        for row in table["written"]:
            what = f"cosine of what {row['part']} writes with careless − careful; no interval is known"
            yield (
                f"directions.written/{self.members[row['solution']]}",
                Statistic(row["cosine"], None, None, n, "cosine", what),
            )
        matrix = table["matrix"]
        for member, name in self.solution.items():
            if f"vector of {name}" in matrix["names"]:
                at = matrix["names"].index(f"vector of {name}")
                cell = {key: matrix[source][at][0] for key, source in zip(KEYS, SOURCES, strict=True)}
                what = f"cosine of the vector with careless − careful at layer {matrix['layer']}"
                yield f"directions.vector/{member}", estimate(cell, n, "cosine", what)

    def _updates(self, table: Raw) -> Named:
        for row in table["updates"]:
            about = f"{self.members[row['a']]}~{self.members[row['b']]}"
            for key, what in (("update", "whole updates"), ("written", "B matrices")):
                name = "cosine" if key == "update" else "written"
                told = f"cosine of the {what}; exact for these two runs, so it has no sampling error"
                value = row[key]
                yield f"updates.{name}/{about}", Statistic(value, value, value, 1, "cosine", told)

    def _steering(self, table: Raw) -> Named:
        n, layer = int(table["pairs"]), table["layer"]
        for at, coefficient in enumerate(table["coefficients"]):
            if coefficient == 0:
                continue
            what = f"margin shift with {coefficient:g}·‖h‖ of {{}} added at layer {layer} of the reference"
            own, control = (_at(table[key], "shift", at) for key in ("direction", "random"))
            told = what.format("careless − careful")
            yield f"steering.at_{coefficient:g}", estimate(own, n, NATS, told)
            random = what.format("random directions")
            yield f"steering.random_at_{coefficient:g}", estimate(control, n, NATS, random)
            minus = f"{told}, minus that with random directions"
            yield f"steering.at_{coefficient:g}-random", apart(own, control, n, NATS, minus)

    def _ablation(self, table: Raw) -> Named:
        n, unit = int(table["pairs"]), "share"
        where = f"projected out at layers {table['layers'][0]} to {table['layers'][1]}"
        for a, name in self.solution.items():
            cells = table["solutions"][name]
            random = cells["random"]
            named = {"difference": "mean-difference", "random": "random", "own": f"shift-{name}"}
            for key, label in named.items():
                what = f"share of the margin shift of {a} that goes with {label} {where}"
                yield f"ablation.{key}/{a}", self._removed(cells.get(label), n, what, label)
            own = cells.get(f"shift-{name}")
            what = (
                f"share of the margin shift of {a} that goes with its own direction minus with a random one"
            )
            if own is not None:
                yield f"ablation.own-random/{a}", apart(own, random, n, unit, what)
            for b, other in self.solution.items():
                if b != a:
                    what = f"share of the margin shift of {a} that goes with the direction of {b} {where}"
                    label = f"shift-{other}"
                    yield f"ablation.other/{a}<-{b}", self._removed(cells.get(label), n, what, label)

    def _removed(self, cell: Raw | None, n: int, what: str, label: str) -> Statistic:
        if cell is None:
            return nothing(n, "share", f"there is no direction {label}")
        return estimate(cell, n, "share", what)

    def _own(self, key: str, table: Raw, column: str, n: int, unit: str, what: str) -> Named:
        """One number of each member, with those of all seeds of its arm."""
        rows = table["solutions"]
        for member, why in self.absent.items():
            yield f"{key}/{member}", nothing(n, unit, f"{member}: {why}")
        for member, name in self.solution.items():
            same = [self.solution[one] for one in self.solution if self.arm[one] == self.arm[member]]
            seeds = [rows[one][column]["value"] for one in same if one in rows]
            if name not in rows:
                why = table.get("missing", {}).get(name, "it was not measured")
                yield f"{key}/{member}", nothing(n, unit, str(why))
            else:
                yield (
                    f"{key}/{member}",
                    estimate(rows[name][column], n, unit, what, seeds if len(same) > 1 else ()),
                )

    def _paired(self, key: str, rows: Sequence[Raw], n: int, unit: str, what: str) -> Named:
        """The differences that are wanted."""
        known = {(row["a"], row["b"]): row for row in rows}
        for a, b in self.pairs:
            one = self._between(known, a, b)
            name = f"{key}/{a}-{b}"
            yield (
                name,
                nothing(n, unit, self._unpaired(a, b))
                if one is None
                else estimate(one, n, unit, what, one["by_seed"] if len(one["by_seed"]) > 1 else ()),
            )

    def _between(self, known: Mapping[tuple[str, str], Raw], a: str, b: str) -> Raw | None:
        """The row of two members' arms, turned round where the table has it the other way."""
        if a not in self.arm or b not in self.arm:
            return None
        arms = self.arm[a], self.arm[b]
        if arms in known:
            return known[arms]
        return None if arms[::-1] not in known else turned(known[arms[::-1]])

    def _unpaired(self, a: str, b: str) -> str:
        absent = [f"{one}: {self.absent[one]}" for one in (a, b) if one in self.absent]
        if absent:
            return "; ".join(absent)
        if self.arm[a] == self.arm[b]:
            return f"{a} and {b} are seeds of one arm"
        return f"{a} and {b} cannot be compared: one was not measured, or their norms are of different spaces"

    def _why(self, table: Raw, *members: str) -> str:
        missing = table["missing"]
        reasons = [
            f"{one}: {missing[self.solution[one]]}" for one in members if self.solution[one] in missing
        ]
        return "; ".join(reasons) or "they are of different seeds"


KEYS = ("value", "low", "high")
SOURCES = ("values", "low", "high")


def estimate(row: Raw, n: int, unit: str, what: str, seeds: Sequence[float | None] = ()) -> Statistic:
    """A row with value, low and high as a statistic."""
    if row["value"] is None:
        return nothing(n, unit, f"{what}: it does not exist on these rows")
    return Statistic(row["value"], row["low"], row["high"], n, unit, what, tuple(seeds))


def nothing(n: int, unit: str, why: str) -> Statistic:
    """A number that does not exist."""
    return Statistic(None, None, None, n, unit, why)


def apart(a: Raw, b: Raw, n: int, unit: str, what: str) -> Statistic:
    """a − b of two estimates that the tables do not pair, with an interval that is never too narrow."""
    if a["value"] is None or b["value"] is None:
        return nothing(n, unit, f"{what}: one of the two does not exist")
    bounds = [a["low"], a["high"], b["low"], b["high"]]
    value, told = a["value"] - b["value"], f"{what}; {APART}"
    if any(bound is None for bound in bounds):
        return Statistic(value, None, None, n, unit, told)
    return Statistic(value, a["low"] - b["high"], a["high"] - b["low"], n, unit, told)


def turned(row: Raw) -> Raw:
    """b − a from a − b."""

    def minus(value: float | None) -> float | None:
        return None if value is None else -value

    bounds = {"value": minus(row["value"]), "low": minus(row["high"]), "high": minus(row["low"])}
    return {**row, "a": row["b"], "b": row["a"], **bounds, "by_seed": [minus(one) for one in row["by_seed"]]}


def _at(columns: Raw, value: str, at: int) -> dict[str, Any]:
    return {key: columns[source][at] for key, source in zip(KEYS, (value, "low", "high"), strict=True)}


def _share_above(values: Sequence[float | None]) -> float | None:
    if any(value is None for value in values):
        return None
    return sum(value > HIGH_COSINE for value in values if value is not None) / len(values)
