"""Claims of the paper: conf/reproduce/claims.yaml, and verdicts on them by intervals, never by eye."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml

from em.analyses.base import Statistic
from em.config.values import Problems, section, show
from em.errors import ConfigError
from em.figures.model import Table
from em.figures.words import number

CLAIMS = Path("conf/reproduce/claims.yaml")
FEWEST = 5  # clusters at which a verdict is given, unless a claim says otherwise
ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
FORMS = ("below", "above", "between", "outside")
TEXTS = ("figure", "claim", "statistic")
Outcome = Literal["holds", "does not hold", "not decidable"]


@dataclass(frozen=True)
class Expectation:
    """Where the paper puts a statistic; exactly one of the four.

    A bound of `below` and `above` belongs to neither side; the bounds of `between` belong to it, and those of
    `outside` do not.
    """

    below: float | None = None
    above: float | None = None
    between: tuple[float, float] | None = None
    outside: tuple[float, float] | None = None

    def contains(self, low: float, high: float) -> bool:
        """Whether the whole interval lies where it is expected."""
        if self.below is not None:
            return high < self.below
        if self.above is not None:
            return low > self.above
        if self.between is not None:
            return self.between[0] <= low and high <= self.between[1]
        assert self.outside is not None
        return high < self.outside[0] or low > self.outside[1]

    def negated(self) -> "Expectation":
        """The opposite: an interval is within at most one of the two."""
        return Expectation(self.above, self.below, self.outside, self.between)

    def __str__(self) -> str:
        if self.below is not None:
            return f"below {number(self.below)}"
        if self.above is not None:
            return f"above {number(self.above)}"
        word, bounds = ("between", self.between) if self.between else ("outside", self.outside)
        assert bounds is not None
        return f"{word} {number(bounds[0])} and {number(bounds[1])}"


@dataclass(frozen=True)
class Paper:
    """Where the paper says it, and the number or direction that it reports."""

    where: str = ""
    reported: str = ""


@dataclass(frozen=True)
class Claim:
    """One thing that the paper says.

    Args:
        figure: whose analyses give the statistic.
        claim: in one sentence.
        statistic: ANALYSIS/KEY, as `Found.statistics` has it.
        minimum: fewest clusters at which a verdict is given.
    """

    id: str = ""
    figure: str = ""
    claim: str = ""
    paper: Paper = field(default_factory=Paper)
    statistic: str = ""
    expect: Expectation = field(default_factory=Expectation)
    minimum: int = FEWEST


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds here, and why in one sentence."""

    outcome: Outcome
    text: str


def decide(claim: Claim, statistic: Statistic | None, reason: str = "it was not measured") -> Verdict:
    """By the 95% interval alone: it holds, or does not, where all of the interval says so.

    Args:
        statistic: None: there is none.
        reason: why there is none.
    """
    if statistic is None:
        return Verdict("not decidable", f"{claim.statistic} does not exist here: {reason}")
    value, low, high = statistic.value, statistic.low, statistic.high
    if value is None or not isfinite(value):
        return Verdict("not decidable", f"{claim.statistic} has no value: {statistic.what}")
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        return Verdict("not decidable", f"{number(value)} has no interval, so chance cannot be told apart")
    if statistic.n < claim.minimum:
        few = f"n = {statistic.n} is below the minimum of {claim.minimum}"
        return Verdict("not decidable", f"not at this sample size: {few}")
    found = f"the interval [{number(low)}, {number(high)}]"
    if claim.expect.contains(low, high):
        return Verdict("holds", f"all of {found} is {claim.expect}")
    if claim.expect.negated().contains(low, high):
        return Verdict("does not hold", f"all of {found} is {claim.expect.negated()}")
    return Verdict(
        "not decidable", f"not at this sample size: {found} is not on one side of {_bounds(claim)}"
    )


def _bounds(claim: Claim) -> str:
    one = claim.expect
    given = [one.below, one.above, *(one.between or ()), *(one.outside or ())]
    return " and ".join(number(bound) for bound in given if bound is not None)


def negated(claim: Claim) -> Claim:
    """A claim of the opposite."""
    told = f"It is not so that: {claim.claim}"
    return replace(claim, id=f"not-{claim.id}", claim=told, expect=claim.expect.negated())


def claims_table(ident: str, title: str, rows: Sequence[tuple[Claim, Statistic | None, Verdict]]) -> Table:
    """Claim, what the paper says, what was found here, and the verdict."""
    return Table(
        ident,
        title,
        ["claim", "verdict", "in the paper", "ours", "n", "expected", "why", "statistic", "where"],
        [
            [
                claim.claim,
                verdict.outcome,
                claim.paper.reported,
                written(statistic),
                None if statistic is None else statistic.n,
                str(claim.expect),
                verdict.text,
                claim.statistic,
                claim.paper.where,
            ]
            for claim, statistic, verdict in rows
        ],
        "Ours: value [95% interval] unit. A claim holds where all of the interval lies where it is expected, "
        "does not hold where all of it lies elsewhere, and is not decidable otherwise. n: independent "
        "clusters (prompts, questions, documents or runs).",
    )


def written(statistic: Statistic | None) -> str | None:
    """A statistic as `value [low, high] unit`; None where there is none."""
    if statistic is None or statistic.value is None:
        return None
    text = number(statistic.value)
    if statistic.low is not None and statistic.high is not None:
        text += f" [{number(statistic.low)}, {number(statistic.high)}]"
    return f"{text} {statistic.unit}".strip()


def read_claims(path: Path = CLAIMS, analyses: Mapping[str, Collection[str]] | None = None) -> list[Claim]:
    """All claims, in the order of the file.

    Args:
        analyses: figure -> its analyses, to check the names that claims use; None: not checked.

    Raises:
        ConfigError: all problems of the file at once.
    """
    raw, repeated = _read(path)
    problems = Problems()
    for key in repeated:
        problems.add(key, "stands there twice; rename or remove one")
    given = raw.get("claims")
    for key in raw:
        if key != "claims":
            problems.unknown("", str(key), ["claims"])
    if not isinstance(given, dict) or not given:
        problems.add("claims", f"expected a mapping of ids to claims, got {show(given)}")
        given = {}
    claims = [_claim(str(ident), body, problems) for ident, body in given.items()]
    if analyses is not None:
        for claim in claims:
            _check_names(claim, analyses, problems)
    if problems.lines:
        raise ConfigError([f"{path}: {line}" for line in problems.lines])
    return claims


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The file's mapping, and the keys that occur twice, of which YAML itself would keep the last."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    except (ValueError, TypeError) as error:  # a date such as 2026-13-01, or a list as a key
        raise ConfigError(
            f"{path}: holds a value that YAML cannot read ({error}); put it in quotes"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path}: expected the key claims: with a mapping of ids to claims, got {show(raw)}"
        )
    return raw, list(_repeated(node, ""))


def _repeated(node: yaml.Node | None, above: str) -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = f"{above}.{key.value}" if above else str(key.value)
        if name in seen:
            yield name
        seen.add(name)
        yield from _repeated(value, name)


def _claim(ident: str, body: Any, problems: Problems) -> Claim:
    where = f"claims.{ident}"
    if not ID.fullmatch(ident):
        problems.add(where, "an id is small letters and digits in words joined by -")
    if isinstance(body, dict) and "id" in body:
        problems.add(f"{where}.id", "unknown key; the id is the claim's key")
        body = {key: value for key, value in body.items() if key != "id"}
    before = len(problems.lines)
    claim = section(body, Claim, where, problems)
    if not isinstance(claim, Claim):  # no mapping: reported
        return Claim(ident)
    if isinstance(body, dict):
        _check_texts(body, claim, where, problems)
        _check_expected(claim.expect, where, problems, quiet=len(problems.lines) > before)
    if claim.minimum < 1:
        problems.add(f"{where}.minimum", f"expected a whole number from 1 on, got {claim.minimum}")
    return replace(claim, id=ident, claim=" ".join(claim.claim.split()))


def _check_texts(body: dict[str, Any], claim: Claim, where: str, problems: Problems) -> None:
    texts = {name: getattr(claim, name) for name in TEXTS}
    texts |= {f"paper.{name}": getattr(claim.paper, name) for name in ("where", "reported")}
    for name, text in texts.items():
        key = f"{where}.{name}"
        if not text.strip() and not {key, f"{where}.paper"} & problems.keys:
            problems.add(key, "missing; every claim needs it")
    if claim.statistic and not all(claim.statistic.partition("/")):
        problems.add(f"{where}.statistic", f"expected ANALYSIS/KEY, got {show(claim.statistic)}")


def _check_expected(expected: Any, where: str, problems: Problems, quiet: bool) -> None:
    """Exactly one form, with bounds in order.

    Args:
        quiet: the claim has problems already, which may be why nothing is expected.
    """
    key = f"{where}.expect"
    given = [form for form in FORMS if getattr(expected, form) is not None]
    if len(given) > 1 or not given and not quiet:
        problems.add(key, f"expected one of {', '.join(FORMS)}, got {' and '.join(given) or 'none'}")
    for form in ("between", "outside"):
        bounds = getattr(expected, form)
        if bounds is not None and len(bounds) == 2 and not bounds[0] < bounds[1]:
            problems.add(f"{key}.{form}", f"the first bound must be the lower one, got {list(bounds)}")


def _check_names(claim: Claim, analyses: Mapping[str, Collection[str]], problems: Problems) -> None:
    """The figure and its analysis exist."""
    if not claim.figure:
        return
    where = f"claims.{claim.id}"
    if claim.figure not in analyses:
        problems.add(f"{where}.figure", f"no figure {claim.figure!r}; {_near(claim.figure, analyses)}")
        return
    name, known = claim.statistic.partition("/")[0], analyses[claim.figure]
    if name and name not in known:
        problems.add(
            f"{where}.statistic", f"figure {claim.figure} has no analysis {name!r}; {_near(name, known)}"
        )


def _near(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
