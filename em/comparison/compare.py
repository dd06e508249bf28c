"""Compare trained runs: measure all of them on common rows and a common grid, and write one page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em import runs
from em.backbone import Backbone
from em.comparison import pairwise, tables
from em.comparison.kept import Kept
from em.comparison.measured import Measured, Panels, measure, with_update
from em.comparison.reference import Reference, measure_reference
from em.comparison.study import Study, open_study, study_key
from em.comparison.trajectories import trajectories
from em.config.schema import CompareConfig, DataConfig
from em.files import write_json
from em.progress import say
from em.report.comparison import write_report

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
    study = open_study(paths, config, data, backbone)
    say(
        f"comparing {', '.join(study.solutions)}: {', '.join(study.config.sections)}; "
        f"{len(study.examples)} answers, {sum(map(len, study.pairs.values()))} pairs, training domain "
        f"{study.training}"
    )
    kept = Kept(out, study.key)
    found = measure_tables(study, kept)
    for name, table in found["tables"].items():
        write_json(out / "tables" / f"{name}.json", table)
    for name, direction in found["directions"].items():
        direction.save(out / "directions" / f"{name.replace('/', '-').replace(' ', '-')}.safetensors")
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
    """All tables and directions of a study.

    Args:
        kept: where the measurements of each solution are kept while others are taken.
    """
    panels = Panels(study)
    reference = measure_reference(study, panels)
    found = {name: _measured(study, name, panels, kept) for name in study.solutions}
    made: dict[str, Table] = {"solutions": solutions_table(study)}
    for section in ("efficiency", "stability", "significance"):
        if study.wants(section):
            made[section] = getattr(tables, section)(study, found)
    if study.pairs:
        made |= _paired(study, found, reference, panels)
    directions = pairwise.found_directions(study, found, reference) if study.pairs else {}
    directions |= pairwise.written_directions(study, found)
    if study.wants("trajectory"):
        made["trajectory"], paths = trajectories(study)
        directions |= paths
    return {"tables": made, "directions": directions}


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
    if study.wants("margins"):
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
