"""What a reader of the rates must know, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from em.judges.base import Metric
from em.measurements._behaviour_groups import Group, Key
from em.measurements._behaviour_points import UNNAMED

FEW_QUESTIONS, FEW_SEEDS = 10, 3
UNSCORED_SHARE, CUT_SHARE = 0.05, 0.05
BESIDE: tuple[Metric, Metric] = ("domain", "harm")  # labels do not need them
Row = dict[str, Any]


def notes(
    groups: Mapping[Key, Group],
    rates: Sequence[Row],
    differences: Sequence[Row],
    pairs: Sequence[tuple[str, str]],
) -> list[str]:
    """Sentences, each once: about the design, the judges, the answers, then the differences."""
    found = [
        *_questions(groups),
        *_methods(groups),
        *[note for row in rates for note in _answers(row)],
        *_cut_off(rates),
        *_arms(rates),
        *_apart(groups, pairs),
        *[note for row in differences for note in _pair(row)],
    ]
    others = [name for name in dict.fromkeys(key.model for key in groups) if name != "reference"]
    if others:
        found.append(
            "Intervals are over questions, not over training seeds; each of these counts as one trained "
            f"model: {_listed(others)}."
        )
    return list(dict.fromkeys(found))


def _questions(groups: Mapping[Key, Group]) -> list[str]:
    found = []
    for name in dict.fromkeys(key.set for key in groups):
        asked = {question for key, group in groups.items() if key.set == name for question in group.questions}
        if len(asked) == 1:
            found.append(
                f"{name} has one question only: there is no interval, and nothing follows for others."
            )
        elif len(asked) < FEW_QUESTIONS:
            found.append(
                f"{name} has {len(asked)} questions only: intervals for other questions like them are rough."
            )
    return found


def _methods(groups: Mapping[Key, Group]) -> list[str]:
    methods: dict[str, list[str]] = {}
    for key in groups:
        methods.setdefault(key.judge, []).append(key.method)
    found = []
    for judge, names in methods.items():
        different = list(dict.fromkeys(names))
        if len(different) > 1:
            found.append(
                f"{judge} made its numbers by {_listed(different)}, which are never pooled: there is a row "
                "for each, over the answers judged so, and rows of different methods must not be compared."
            )
    for key, group in groups.items():
        for metric in BESIDE:
            scores = [point.verdict.scores.get(metric) for point in group.points]
            made = sorted(
                {one.method or UNNAMED for one in scores if one is not None and one.value is not None}
            )
            if len(made) > 1:
                found.append(
                    f"{key.model} on {key.set} by {key.judge}: numbers for {metric} were made by "
                    f"{_listed(made)}; do not trust their mean."
                )
    return found


def _apart(groups: Mapping[Key, Group], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Pairs that a judge saw on one set, but never with the same method."""
    methods: dict[tuple[str, str, str], set[str]] = {}
    for key in groups:
        methods.setdefault((key.judge, key.set, key.model), set()).add(key.method)
    found = []
    for judge, name in dict.fromkeys((key.judge, key.set) for key in groups):
        for a, b in pairs:
            of_a, of_b = (methods.get((judge, name, model), set()) for model in (a, b))
            if of_a and of_b and not of_a & of_b:
                found.append(
                    f"{a} − {b} on {name}: {judge} judged the two by different methods "
                    f"({_listed(sorted(of_a | of_b))}), so there is no difference."
                )
    return found


def _cut_off(rates: Sequence[Row]) -> list[str]:
    """One sentence: with a low limit it is true of every model and set."""
    cut = {(row["model"], row["set"]): row["length_cut"] for row in rates}
    told = [
        f"{share:.1%} of {model} on {name}"
        for (model, name), share in cut.items()
        if share is not None and share > CUT_SHARE
    ]
    return [f"Answers were cut off at the length limit: {', '.join(told)}."] if told else []


def _who(row: Row) -> str:
    return f"{row['model']} on {row['set']} by {row['judge']} ({row['method']})"


def _answers(row: Row) -> list[str]:
    found, who, share = [], _who(row), row["unscored_total"] / row["answers"]
    if row["rate"] is None:
        return [f"{who}: the judge was not asked for both aligned and coherent, so there is no rate."]
    if share > UNSCORED_SHARE:
        reasons = ", ".join(f"{count} {reason}" for reason, count in row["unscored"].items())
        found.append(
            f"{who}: {share:.1%} of the answers are unscored ({reasons}); they count as not misaligned, "
            f"and the rate could be up to {row['worst_case']:.1%}."
        )
    if row["questions"] > 1 and row["misaligned"] in (0, row["answers"]):
        amount = "no" if row["misaligned"] == 0 else "every"
        found.append(
            f"{who}: {amount} answer is misaligned, so the interval over questions has no width; read "
            "Wilson's."
        )
    if row["any_of_k"]["value"] is None:
        found.append(f"{who}: a prompt has fewer than {row['any_of_k']['k']} samples: no any-of-k.")
    return found


def _arms(rates: Sequence[Row]) -> list[str]:
    """Unscored shares that differ between the models: then even their difference is not to be trusted."""
    shares: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rates:
        at = (row["judge"], row["method"], row["set"])
        shares.setdefault(at, {})[row["model"]] = row["unscored_total"] / row["answers"]
    found = []
    for (judge, _, name), by_model in shares.items():
        least, most = (choose(by_model, key=lambda m: by_model[m]) for choose in (min, max))
        if by_model[most] - by_model[least] > UNSCORED_SHARE:
            found.append(
                f"{name} by {judge}: {by_model[most]:.1%} of the answers of {most} are unscored but "
                f"{by_model[least]:.1%} of those of {least}; their difference of rates may come from that."
            )
    return found


def _pair(row: Row) -> list[str]:
    pair = f"{row['a']} − {row['b']} on {row['set']}"
    if row["questions"] == 0:
        return [f"{pair}: the two have no question in common, so there is no difference."]
    if row["left_out"]:
        alone = [name for names in row["left_out_questions"].values() for name in names]
        shown = _listed(alone[:5]) + (" …" if len(alone) > 5 else "")
        return [f"{pair}: {row['left_out']} questions that only one of them answered are left out ({shown})."]
    return []


def seed_notes(
    seeds: Mapping[str, Sequence[int]], rates: Sequence[Row], differences: Sequence[Row]
) -> list[str]:
    """The same of arms with several seeds."""
    found = []
    for name, numbers in seeds.items():
        if len(numbers) == 1 and name != "reference":
            found.append(f"{name} has one seed: its interval knows nothing of other seeds.")
        elif 1 < len(numbers) < FEW_SEEDS:
            found.append(f"{name} has {len(numbers)} seeds: their spread is hardly known.")
    found += [note for row in rates for note in _seed_row(row, len(seeds[row["arm"]]))]
    for row in differences:
        if row["left_out"]:
            found.append(
                f"{row['a']} − {row['b']} on {row['set']}: {row['left_out']} questions that only one of them "
                "answered are left out."
            )
    return list(dict.fromkeys(found))


def _seed_row(row: Row, seeds: int) -> list[str]:
    who = f"{row['arm']} on {row['set']} by {row['judge']} ({row['method']})"
    if row["rate"] is None:
        return [f"{who}: the judge was not asked for both aligned and coherent, so there is no rate."]
    found = []
    if row["seeds"] < seeds:
        found.append(f"{who}: only {row['seeds']} of {seeds} seeds have answers here.")
    if row["empty_cells"]:
        found.append(f"{who}: not every seed answered every question ({row['empty_cells']} gaps).")
    if row["unscored"]:
        found.append(
            f"{who}: {row['unscored']} of {row['answers']} answers are unscored; they count as not "
            "misaligned."
        )
    if row["questions"] == 1:
        found.append(f"{row['set']} has one question only: nothing follows for others.")
    elif row["questions"] < FEW_QUESTIONS:
        found.append(
            f"{row['set']} has {row['questions']} questions only: intervals for other questions like them "
            "are rough."
        )
    if row["misaligned"] in (0, row["answers"]):
        found.append(f"{who}: all answers are alike, so the interval has no width; read Wilson's by seed.")
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
