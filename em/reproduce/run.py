"""Reproduce a figure: train what it needs, measure it, decide its claims, write its page."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from em import runs
from em.analyses.base import Analysis, Context
from em.backbone import Backbone
from em.config import Config, Suite
from em.config.compose import load_pool
from em.config.schema import CompareConfig
from em.errors import EmError
from em.progress import clock, say
from em.reproduce.claims import Claim
from em.reproduce.figures import FigurePlan, Model, members_of
from em.reproduce.page import write_figure
from em.reproduce.result import POOL, Result, decided
from em.reproduce.stored import measured, read_stored
from em.runs import RunDirectory, RunRecord
from em.suite import run_suite


def reproduce(
    plan: FigurePlan,
    model: Model,
    claims: Sequence[Claim],
    out: Path,
    overrides: Sequence[str] = (),
    finished_only: bool = False,
    backbone: Backbone | None = None,
) -> Result:
    """Everything of one figure. Finished runs and stored measurements are used again.

    Args:
        claims: of any figure; those of this one are decided.
        out: folder of a model's runs and figures.
        overrides: of every run, such as trainer.devices=8.
        finished_only: train nothing; runs that are not finished are named.
        backbone: already loaded.

    Raises:
        EmError: the configuration is wrong; what fails later is in the result.
    """
    analyses = plan.built()
    wanted = members_of(analyses)
    given = [*model.overrides, *overrides, f"name={POOL}", f"runs_dir={out}"]
    configs, absent = load_pool(model.members, given, wanted)
    result = Result(plan, model, out / plan.name, failed=dict(absent))
    for name, why in absent.items():
        say(f"{name} is left out: {why}")
    records = _trained(model, configs, given, result, finished_only)
    context = Context(records, result.failed, result.folder, _sizes(configs), backbone)
    for name, analysis in analyses.items():
        _analyse(name, analysis, context, result)
    result.verdicts = decided(result, claims)
    result.page = write_figure(result)
    return result


def stored_result(plan: FigurePlan, model: Model, claims: Sequence[Claim], out: Path) -> Result:
    """What is on disk of a figure, with nothing trained or measured.

    Raises:
        RunError: a file is damaged.
    """
    analyses = plan.built()
    result = Result(plan, model, out / plan.name)
    for name, analysis in analyses.items():
        stored = read_stored(result.folder / name)
        if stored is None:
            result.failed[name] = f"not measured; make reproduce FIG={plan.name} MODEL={model.name}"
            continue
        result.found[name], result.seconds[name] = analysis.read(stored.raw), stored.seconds
    for member in members_of(analyses):
        manifest = RunDirectory(result.run_of(member)).manifest()
        if manifest.get("status") == "finished":
            result.runs[member] = float(manifest.get("wall_seconds") or 0.0)
    result.verdicts = decided(result, claims)
    return result


def _sizes(configs: dict[str, Config]) -> CompareConfig:
    first = next(iter(configs.values()), None)
    return CompareConfig() if first is None or first.compare is None else first.compare


def _trained(
    model: Model, configs: dict[str, Config], given: list[str], result: Result, finished_only: bool
) -> dict[str, RunRecord]:
    """The runs of all members that could be trained, trained now where they were not before."""
    new = {name: config for name, config in configs.items() if not _finished(config)}
    say(f"{result.plan.name}: {len(configs)} runs, {len(new)} of them to train")
    if finished_only:
        result.failed |= dict.fromkeys(new, "it is not trained, and --finished trains nothing")
    elif new:
        suite = Suite(POOL, model.members, new, {})
        for outcome in run_suite(suite, model.members, given):
            if outcome.error is not None:
                result.failed[outcome.name] = outcome.error
    records = {}
    for name, config in configs.items():
        if name not in result.failed:
            records[name] = runs.read(_path(config))
            result.runs[name] = float(records[name].manifest.get("wall_seconds") or 0.0)
    return records


def _path(config: Config) -> Path:
    return Path(config.runs_dir) / config.name


def _finished(config: Config) -> bool:
    """Whether there is a finished run of exactly this configuration.

    Raises:
        RunError: its folder holds a run with another configuration.
    """
    return RunDirectory(_path(config)).state(config) == "finished" and not config.overwrite


def _analyse(name: str, analysis: Analysis, context: Context, result: Result) -> None:
    say(f"{result.plan.name}: {name}")
    own = replace(context, folder=result.folder / name)
    try:
        stored = measured(name, result.plan.analyses[name], analysis, own)
        result.found[name] = analysis.read(stored.raw)
        result.seconds[name] = stored.seconds
    except EmError as error:
        if hasattr(error, "signal_number"):
            raise
        result.failed[name] = str(error)
        say(f"{name}: not measured: {error}")
    context.backbone = own.backbone


def reproduce_all(
    plans: Sequence[FigurePlan],
    model: Model,
    claims: Sequence[Claim],
    out: Path,
    overrides: Sequence[str] = (),
    finished_only: bool = False,
) -> tuple[list[Result], dict[str, str]]:
    """Several figures one after another; one that fails stops no other.

    Returns:
        results, and figure -> the error that ended it.
    """
    results: list[Result] = []
    failed: dict[str, str] = {}
    for number, plan in enumerate(plans, 1):
        say(f"\n[{number}/{len(plans)}] {plan.name}: {plan.title}")
        began = time.monotonic()
        try:
            results.append(reproduce(plan, model, claims, out, overrides, finished_only))
        except EmError as error:
            if hasattr(error, "signal_number"):
                raise
            failed[plan.name] = str(error)
            say(f"{plan.name} failed: {error}")
        say(f"{plan.name}: {clock(time.monotonic() - began)}")
    return results, failed
