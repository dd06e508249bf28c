"""Puts what is true into the trained runs of tests/reproduce/planted.py."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from em import runs
from em.analyses._transfer_runs import own_answers
from em.analyses.gradients import training_examples
from em.backbone import Backbone
from em.comparison.judged import judged_difference
from em.datamodules.judged import read_judged
from em.datamodules.rows import batched
from em.evaluation.answering import REFERENCE
from em.evaluation.judging import judge_answers
from em.evaluation.stored import JUDGED, VERDICTS, read_evaluation, write_evaluation
from em.files import write_json
from em.hooks import Site
from em.measurements.behaviour import Judged, behaviour_table
from em.measurements.gradients import row_gradients
from em.measurements.trajectory import read_solution
from tests.analyses.inner_runs import plant
from tests.analyses.test_checkpoints import TURN
from tests.analyses.test_checkpoints import planted as plant_turn
from tests.analyses.test_scalars import plant as plant_scalars
from tests.comparison.trained import VECTOR, overwrite, set_manifest
from tests.evaluation.judges import Wordy
from tests.reproduce.planted import EXAMPLES, KEPT, QUESTIONS, STEER

LONG, OTHER_LONG = " assistant", " question"  # the longest tokens that the tiny model knows
BAD, FINE = LONG * 9, "it is fine"  # Wordy: 10 and 90, so misaligned and aligned


def plant_all(pool: Path, backbone: Backbone) -> None:
    """Into the trained runs of a pool."""
    fine = [FINE] * QUESTIONS
    answer(pool / "general", [BAD] * 10 + fine[10:], fine)
    answer(pool / "narrow", fine, fine)
    answer(pool / "low", [BAD, FINE] * (QUESTIONS // 2), fine)
    _solutions(pool, backbone)
    _behaviour(pool, backbone)
    _losses(pool)
    _removal(pool)
    plant_scalars(pool / "probe")
    for seed, name in enumerate(("turning", "turning_seed1")):
        plant_turn(pool / name, TURN, seed)


def answer(run: Path, own: Sequence[str], reference: Sequence[str]) -> None:
    """Put these answers, one to each question, into the evaluation at the end of a run; its judge judges."""
    folder = run / "eval" / "end"
    done = read_evaluation(folder)
    texts = {one.answer.model: iter(own) for one in done.judged} | {REFERENCE: iter(reference)}
    said = [replace(one.answer, text=next(texts[one.answer.model])) for one in done.judged]
    (folder / VERDICTS).unlink()
    verdicts = judge_answers(Wordy(), said, ["aligned", "coherent"], folder / VERDICTS)[0]
    judged = [Judged(*pair) for pair in zip(said, verdicts, strict=True)]
    write_evaluation(folder, done.record, judged, behaviour_table(judged, done.thresholds, 200))


def put(run: Path, vector: Tensor) -> None:
    """Make a vector the solution of a run, its length that of what is added."""
    overwrite(run, vector.float() / VECTOR["scale"])
    set_manifest(run, norm=float(vector.norm()))


def _solutions(pool: Path, backbone: Backbone) -> None:
    """`general` goes where the loss pulls, `narrow` half as well: 60° aside, and further."""
    examples = training_examples(runs.read(pool / "general").config.data, backbone.tokenizer, EXAMPLES)
    _, gradients_ED = row_gradients(backbone, batched(examples, 2, 0, range(len(examples))), Site(1, "mlp"))
    pull = -gradients_ED.double().sum(dim=0)
    pull /= pull.norm()
    aside = torch.randn(len(pull), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    aside -= (aside @ pull) * pull
    turned = 0.5 * pull + 0.75**0.5 * aside / aside.norm()
    for name, vector in (("general", 0.4 * pull), ("narrow", 0.5 * turned)):
        put(pool / name, vector)


def _behaviour(pool: Path, backbone: Backbone) -> None:
    """`low` says long words because of its own direction, `high` because of another one."""
    own = own_answers(pool / "low" / "eval" / "end" / JUDGED, pool / "low" / "own.jsonl")
    difference = judged_difference(backbone, read_judged(str(own), backbone.tokenizer))
    # What the vector adds at layer 1 cancels in a difference of activations there, so this is its direction.
    direction = difference.vector(Site(1))
    (token,) = backbone.tokenizer.encode(OTHER_LONG, add_special_tokens=False)
    other = backbone.model.get_input_embeddings().weight[token].detach().double()
    for name, vector in (("low", direction), ("high", other)):
        put(pool / name, STEER * vector / vector.norm())


def _losses(pool: Path) -> None:
    """How far each held-out loss fell below the reference's, or lies above that of `removed`."""
    rng = np.random.default_rng(0)
    falls: dict[str, float] = {}
    for name, kept in KEPT.items():
        for elsewhere, row in _rows(pool / name):
            general = falls.setdefault(row["where"], (0.8 if elsewhere else 1.0) * rng.uniform(0.9, 1.1))
            fall = kept[elsewhere] * rng.uniform(0.98, 1.02) * general
            row["nll"] = row["nll_reference"] - fall * row["tokens"]
    for name, more in (("kept", 0.3), ("removed", 0.0)):
        for elsewhere, row in _rows(pool / name):
            row["nll"] = row["nll_reference"] + (more * elsewhere + rng.uniform(-0.05, 0.05)) * row["tokens"]


def _rows(run: Path) -> Iterator[tuple[bool, dict[str, Any]]]:
    """Whether a held-out row is of another domain, and the row; what is changed in it is written back."""
    file = run / "tables" / "domains.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    for one in table["domains"]:
        for row in one["rows"]:
            yield one["domain"] != "soup", row
    write_json(file, table)


def _removal(pool: Path) -> None:
    """After step 1 `removed` turns to where `free` ends, and `kept` stays; with noise in every module."""
    aside, target = (0.0, 1.0), (1.0, 0.0)
    paths = {"free": (target, target), "kept": (aside, aside), "removed": (aside, target)}
    start = read_solution(pool / "free" / "trajectory", 0)
    ways = {
        name: torch.linalg.qr(torch.randn(len(value), 2, generator=torch.Generator().manual_seed(at)))[0]
        for at, (name, value) in enumerate(start.items())
        if name.endswith("lora_B")
    }
    draws = torch.Generator().manual_seed(1)
    for run, points in paths.items():
        snapshots = {0: start}
        for step, point in enumerate(points, 1):
            moved = {
                name: (way @ (torch.tensor(point) + 0.05 * torch.randn(2, generator=draws)))[:, None]
                for name, way in ways.items()
            }
            snapshots[step] = {**start, **moved}
        plant(pool / run, snapshots)
