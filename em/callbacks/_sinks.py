"""Where figures go, and files of steps that an interrupted attempt left."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from em.files import write_atomically, write_text
from em.progress import is_main_process


def show(
    section: str,
    table: dict[str, Any],
    solution: str,
    folder: Path | None,
    loggers: Sequence[Logger],
    name: str,
    step: int,
) -> None:
    """Draw the figures of a table, save them, and log them to W&B.

    Args:
        section: what the table is of.
        solution: the one whose numbers it holds.
        folder: where SVG and PNG go; None: nowhere.
        loggers: those of W&B get an image NAME/ID and a table NAME/ID/table.
        name: of the callback; two callbacks of one kind keep their figures apart by it.
        step: optimizer step.
    """
    boards = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if folder is None and not boards:
        return
    from PIL import Image

    from em.figures.draw import draw  # loads matplotlib
    from em.figures.sections import figures

    for figure in figures(section, table, {solution: solution}):
        drawing = draw(figure, {solution: 0})
        if folder is not None:
            stem = figure.id if name == section else f"{name}-{figure.id}"
            write_text(folder / f"{stem}.svg", drawing.file)
            _write(folder / f"{stem}.png", drawing.png)
        rows = figure.table()
        for board in boards:
            board.log_image(f"{name}/{figure.id}", [Image.open(io.BytesIO(drawing.png))], step)
            board.log_table(f"{name}/{figure.id}/table", rows.columns, rows.rows, step=step)


ANSWERS = 400  # in one table of W&B


def show_answers(rows: Sequence[dict[str, Any]], loggers: Sequence[Logger], name: str, step: int) -> None:
    """A table NAME/answers of W&B: who was asked what, the answer, and every score."""
    boards = [logger for logger in loggers if isinstance(logger, WandbLogger)]
    if not boards or not rows:
        return
    keys = ["model", "questions", "question", "sample", "asked", "text", "label"]
    scores = list(dict.fromkeys((j, m) for row in rows for j, of in row["scores"].items() for m in of))
    columns = [*keys, *(f"{judge} {metric}" for judge, metric in scores), "why unscored"]
    data = []
    # The misaligned ones first: they are what a reader looks for, and the table is cut.
    for row in sorted(rows, key=lambda row: row["label"] != "misaligned")[:ANSWERS]:
        values = [row["scores"].get(j, {}).get(m, {}).get("value") for j, m in scores]
        reasons = {one["reason"] for of in row["scores"].values() for one in of.values() if one["reason"]}
        texts = [_readable(row[key]) if isinstance(row[key], str) else row[key] for key in keys]
        data.append([*texts, *values, ", ".join(sorted(reasons))])
    for board in boards:
        board.log_table(f"{name}/answers", columns, data, step=step)


def _readable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _write(path: Path, content: bytes) -> None:
    def write(scratch: Path) -> None:
        scratch.write_bytes(content)

    write_atomically(path, write)


def step_path(folder: Path, step: int) -> Path:
    """The safetensors file of a step."""
    return folder / f"step-{step:08d}.safetensors"


def drop_later(folder: Path, step: int) -> None:
    """Remove files of steps after the one where training goes on; at step 0 all of them."""
    if is_main_process():
        for file in folder.glob("step-*.safetensors"):
            number = file.stem.removeprefix("step-")
            if number.isdigit() and (step == 0 or int(number) > step):
                file.unlink()
