"""What is measured for a phase diagram: margins of held-out pairs and losses of held-out answers."""

from dataclasses import replace
from typing import Any

from em.analyses._held_out import end_scores
from em.comparison.behaviour import measure_behaviour
from em.comparison.kept import Kept
from em.comparison.measured import LOSS_ROWS, Measured, Panels, measure
from em.comparison.study import Study
from em.datamodules.chat import held_out_examples
from em.datamodules.rows import batched
from em.datamodules.sources import Example, select
from em.errors import DataError, JudgeError, MeasurementError, RunError
from em.measurements.held_out import score
from em.progress import say

Raw = dict[str, Any]
RATE = ("method", "model", "set", "rate", "low", "high", "questions", "answers", "misaligned")


def renamed(study: Study, names: list[str]) -> Study:
    """The study with other names for its solutions, in the same order."""
    given = dict(zip(study.solutions, names, strict=True))
    return replace(
        study,
        records={given[name]: one for name, one in study.records.items()},
        solutions={given[n]: replace(one, name=given[n], arm=given[n]) for n, one in study.solutions.items()},
        lowest={given[name]: one for name, one in study.lowest.items()},
    )


def refuse_leaks(study: Study, examples: dict[str, list[Example]]) -> None:
    """Held-out rows of one run must not be training rows of another.

    Raises:
        RunError: they are.
    """
    asked = {name: {one.prompt for one in listed} for name, listed in examples.items()}
    for name, pairs in study.pairs.items():
        asked.setdefault(name, set()).update(pair.prompt for pair in pairs)
    for run, record in study.records.items():
        data = record.config.data
        sources = [*data.train, *(data.kl if record.config.kl.weight > 0 else [])]
        rows = [row for source in sources for row in select(source, data, source.part or "train")[0]]
        seen = {row.prompt for row in rows if not isinstance(row.messages, DataError)}
        for domain, prompts in asked.items():
            if prompts & seen:
                raise RunError(
                    f"{run}: was trained on {len(prompts & seen)} of the {len(prompts)} held-out prompts "
                    f"of {domain}; leave `part` of data.domains.{domain} at its default and train again"
                )


def held_out(study: Study) -> dict[str, list[Example]]:
    """The held-out rows of each domain, as the first run has them."""
    data, tokenizer = study.data, study.backbone.tokenizer
    return {name: held_out_examples(data, name, tokenizer, data.eval_limit) for name in data.domains}


def margins(study: Study, kept: Kept) -> Raw:
    """domain -> prompts, and the margin of every prompt under the reference and every run.

    Raises:
        MeasurementError: there are no pairs, or a run's margins cannot be taken.
    """
    if not study.pairs:
        raise MeasurementError(
            f"{study.training} has no careful answers beside its careless ones, so there are no margins; add "
            f"data.pairs.{study.training}, or use signal: loss"
        )
    panels = Panels(study)
    lowest = next(iter(study.lowest.values()))
    found: Raw = {
        domain: {
            "prompts": [pair.prompt for pair in pairs],
            "reference": panels.pairs(domain, lowest).losses().margin_P.tolist(),
            "runs": {},
        }
        for domain, pairs in study.pairs.items()
    }
    for name in study.solutions:
        measured = kept.read(name) or _measured(study, name, panels, kept)
        if "margins" in measured.missing:
            raise MeasurementError(f"{name}: {measured.missing['margins']}")
        for domain, losses in measured.margins.items():
            found[domain]["runs"][name] = losses.margin_P.tolist()
    return found


def _measured(study: Study, name: str, panels: Panels, kept: Kept) -> Measured:
    found = measure(study, name, panels)
    kept.write(name, found)
    return found


def losses(study: Study, examples: dict[str, list[Example]]) -> Raw:
    """domain -> prompts, answer tokens, and by how many nats the loss of every example fell in every run.

    From the runs' own tables where they hold these examples, else by new passes.
    """
    found: Raw = {
        domain: {
            "prompts": [one.prompt for one in listed],
            "tokens": [one.targets for one in listed],
            "runs": {},
        }
        for domain, listed in examples.items()
    }
    for name in study.solutions:
        for domain, drop in _drops(study, name, examples).items():
            found[domain]["runs"][name] = drop
    return found


def _drops(study: Study, name: str, examples: dict[str, list[Example]]) -> dict[str, list[float]]:
    record = study.records[name]
    # Against another reference model the stored losses of the reference would not be comparable.
    stored = end_scores(record) if record.config.reference is None else {}
    drops: dict[str, list[float]] = {}
    for domain, listed in examples.items():
        rows = [stored.get(domain, {}).get((at, one.where)) for at, one in enumerate(listed)]
        known = [row for row in rows if row is not None]
        if len(known) == len(listed) and [r["tokens"] for r in known] == [one.targets for one in listed]:
            drops[domain] = [row["nll_reference"] - row["nll"] for row in known]
    missing = [domain for domain in examples if domain not in drops]
    if missing:
        say(f"{name}: has no stored losses of these rows of {', '.join(missing)}; scoring them")
        with record.adapted(study.backbone) as intervention:
            for domain in missing:
                batches = batched(examples[domain], LOSS_ROWS, study.pad, range(len(examples[domain])))
                scores = sorted(score(study.backbone, intervention, batches), key=lambda one: one.index)
                drops[domain] = [one.nll_reference - one.nll for one in scores]
    return drops


def rates(study: Study, questions: list[str] | None) -> tuple[list[Raw], list[str]]:
    """Stored rates of misaligned answers by run and question set, and what to know of them.

    Args:
        questions: sets; None: all that were asked.
    """
    if questions == []:
        return [], []
    try:
        said = measure_behaviour(study)
    except (RunError, DataError, MeasurementError, JudgeError) as error:
        return [], [f"Judged rates are left out: {error}"]
    if said is None:
        asked = f" about {', '.join(questions)}" if questions else ""
        return [], [f"No run was asked{asked}, so there are no judged rates."]
    table = said[0]
    judge = table["judges"][0]
    rows = [
        {key: row[key] for key in RATE}
        for row in table["rates"]
        if row["judge"] == judge["judge"] and (questions is None or row["set"] in questions)
    ]
    notes = list(table["notes"]) if rows else []
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if len(methods) > 1:
        answers = {one: sum(row["answers"] for row in rows if row["method"] == one) for one in methods}
        chosen = max(answers, key=lambda one: answers[one])
        notes.append(f"Rates are of answers judged by {chosen}; left out, by method: {answers}.")
        rows = [row for row in rows if row["method"] == chosen]
    if rows:
        notes.append(f"Rates are those of the judge {judge['judge']}.")
    absent = [one for one in questions or [] if one not in {row["set"] for row in rows}]
    notes += [f"No run was asked {one}, so it has no rate." for one in absent]
    return rows, notes
