"""Compare trained runs: measure all of them on common rows and a common grid, and write one page."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from em import runs
from em.backbone import Backbone
from em.comparison import pairwise, tables
from em.comparison.behaviour import measure_behaviour
from em.comparison.kept import Kept
from em.comparison.measured import Measured, Panels, measure, with_update
from em.comparison.reference import Reference, measure_reference
from em.comparison.study import Study, open_study, study_key
from em.comparison.trajectories import trajectories
from em.config.schema import CompareConfig, DataConfig
from em.config.schema import Section as SectionName
from em.errors import RunError
from em.files import write_json
from em.progress import say
from em.report.comparison import erase_report, write_report

Table = dict[str, Any]


def compare(
    paths: Sequence[Path | str],
    out: Path,
    config: CompareConfig | None = None,
    data: DataConfig | None = None,
    backbone: Backbone | None = None,
) -> Path:
    """Measure runs side by side and write tables, directions, figures and report.html into `out`.

    Nothing is written before everything is measured, except a hidden folder from which the same command goes
    on after an interruption.

    Args:
        paths: run directories, of any kinds and seeds, on one backbone.
        out: a folder; files of an earlier comparison are replaced.
        config, data: by default those of the first run.
        backbone: already loaded.

    Returns:
        the page.

    Raises:
        EmError: a run, a row or the folder cannot be used.
    """
    if (out / "manifest.json").exists():
        raise RunError(f"{out}: is a run directory, whose tables would be mixed up; choose another folder")
    study = open_study(paths, config, data, backbone)
    say(
        f"comparing {', '.join(study.solutions)}: {', '.join(study.config.sections)}; "
        f"{len(study.examples)} answers, {sum(map(len, study.pairs.values()))} pairs, training domain "
        f"{study.training}"
    )
    kept = Kept(out, study.key)
    found = measure_tables(study, kept)
    erase(out)
    for name, direction in found["directions"].items():
        direction.save(out / name)
    for name, table in found["tables"].items():
        write_json(out / "tables" / f"{name}.json", table)
    page = write_report(out)
    kept.clear()
    say(f"report: {page}")
    return page


def up_to_date(paths: Sequence[Path | str], out: Path, config: CompareConfig, data: DataConfig) -> bool:
    """Whether `out` holds the page of exactly these runs and settings."""
    page, table = out / "report.html", out / "tables" / "solutions.json"
    try:
        made = json.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return page.is_file() and made.get("key") == study_key([runs.read(path) for path in paths], config, data)


def measure_tables(study: Study, kept: Kept | None = None) -> dict[str, Any]:
    """All tables by name, and all directions by file.

    Args:
        kept: where the measurements of each solution are kept while others are taken.
    """
    panels = Panels(study)
    reference = measure_reference(study, panels)
    found = {name: _measured(study, name, panels, kept) for name in study.solutions}
    made: dict[str, Table] = {}
    for section in ("efficiency", "stability", "significance"):
        if study.wants(section) and _measurable(study, found, section):
            made[section] = getattr(tables, section)(study, found)
    if study.pairs:
        made |= _paired(study, found, reference, panels)
    directions = pairwise.found_directions(study, found, reference) if study.pairs else {}
    directions |= pairwise.written_directions(study, found)
    if study.wants("trajectory"):
        made["trajectory"], paths = trajectories(study)
        directions |= paths
    if study.wants("behaviour"):
        said = measure_behaviour(study)
        if said is not None:
            made["behaviour"], answers = said
            made["behaviour_answers"] = {"answers": answers}
    files = file_names(directions)
    made["solutions"] = {**solutions_table(study), "directions": list(files.values())}
    return {"tables": made, "directions": {files[name]: one for name, one in directions.items()}}


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file below the comparison's folder for each direction: short, plain and unique."""
    files: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:]
        taken = sum(file == plain or file.startswith(f"{plain}~") for file in files.values())
        files[name] = f"{plain}~{taken + 1}" if taken else plain
    return {name: f"directions/{file}.safetensors" for name, file in files.items()}


def erase(out: Path) -> None:
    """Remove what an earlier comparison wrote, its page first: half of it would look like this one's."""
    try:
        listed = json.loads((out / "tables" / "solutions.json").read_text(encoding="utf-8"))["directions"]
    except (OSError, ValueError, KeyError, TypeError):
        listed = []
    erase_report(out)
    for name in listed:
        (out / "directions" / Path(str(name)).name).unlink(missing_ok=True)
    for section in ("solutions", "behaviour_answers", *get_args(SectionName)):
        (out / "tables" / f"{section}.json").unlink(missing_ok=True)


def _measurable(study: Study, found: dict[str, Measured], section: str) -> bool:
    """Whether any solution has a section's measurement; a stability table says why there is none."""
    if section == "stability" or any(section not in one.missing for one in found.values()):
        return True
    reasons = "; ".join(f"{name}: {one.missing[section]}" for name, one in found.items())
    study.notes.append(f"{section} could not be measured. {reasons}")
    return False


def _measured(study: Study, name: str, panels: Panels, kept: Kept | None) -> Measured:
    before = None if kept is None else kept.read(name)
    if before is not None:
        say(f"{name}: measured before the interruption")
        return with_update(study, name, before)
    measured = measure(study, name, panels)
    if kept is not None:
        kept.write(name, measured)
    return measured


def _paired(
    study: Study, found: dict[str, Measured], reference: Reference, panels: Panels
) -> dict[str, Table]:
    made: dict[str, Table] = {}
    if study.wants("margins") and _measurable(study, found, "margins"):
        made["margins"] = tables.margins(study, found, reference.losses, reference.distances)
    if study.wants("directions"):
        made["directions"] = pairwise.directions(study, found, reference)
    if study.wants("steering") and reference.steering is not None:
        made["steering"] = reference.steering
    if study.wants("ablation"):
        made["ablation"] = pairwise.ablation(study, found, reference, panels)
    return made


def solutions_table(study: Study) -> Table:
    """What is compared, and on what."""
    rows = []
    for name, one in study.solutions.items():
        record = study.records[name]
        rows.append(
            {
                **vars(one),
                "run": str(record.directory.path),
                "steps": record.manifest.get("steps"),
                "kl_weight": record.config.kl.weight,
                "lowest_layer": study.lowest[name],
            }
        )
    return {
        "solutions": rows,
        "backbone": study.backbone.describe(),
        "training": study.training,
        "domains": list(study.pairs),
        "notes": study.notes,
        "key": study.key,
        "config": {key: value for key, value in vars(study.config).items() if key != "corpus"},
    }
