"""A pool of tiny runs in which what is true is planted, with a figure and claims for each kind of analysis.

What training, evaluation and callbacks left behind is real; adapters, snapshots, answers and losses are then
replaced by ones of which it is known what an analysis must say.
"""

import json
from collections.abc import Sequence
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
from tests.analyses.inner_runs import EVERY_STEP, plant
from tests.analyses.test_checkpoints import TURN
from tests.analyses.test_checkpoints import planted as plant_turn
from tests.analyses.test_scalars import NINE
from tests.analyses.test_scalars import plant as plant_scalars
from tests.comparison.trained import LORA_1, SMALL, VECTOR, overwrite, raw_config, set_manifest
from tests.evaluation.judges import Wordy

WORDY = {"_target_": "tests.evaluation.judges.Wordy"}
QUESTIONS = 12
LONG, OTHER_LONG, TOKENS = " assistant", " question", 12  # the longest tokens that the tiny model knows
BAD, FINE = LONG * 9, "it is fine"  # Wordy: 10 and 90, so misaligned and aligned
KNEE, EXAMPLES = 1.0, 12
STEER = 20.0
LORA_6: dict[str, Any] = {"kind": "lora", "r": 1, "alpha": 2, "modules": ["down_proj", "up_proj"]}
OFF: dict[str, Any] = {"weight": 5.0, "schedule": {"kind": "off_at", "step": 1}}
# Share of the general run's fall of the loss that each run keeps in the training domain, and elsewhere.
KEPT = {
    "general": (1.0, 1.0),
    "low": (0.9, 0.6),
    "narrow": (0.85, 0.2),
    "high": (0.8, 0.5),
    "mixed": (0.8, 0.8),
}

FIGURES: dict[str, dict[str, Any]] = {
    "comparison": {
        "members": ["general", "narrow"],
        "sections": ["efficiency", "margins", "directions", "ablation"],
        "pairs_of": [["general", "narrow"]],
    },
    "rates": {
        "members": ["general", "narrow"],
        "questions": ["asked"],
        "second_judge": {**WORDY, "name": "second"},
        "pairs_of": [["general", "narrow"]],
    },
    "transfer": {"targets": ["carrier", "immune"], "sources": ["carrier"], "coefficients": [STEER]},
    "phase_diagram": {
        "members": ["general", "low", "narrow", "high"],
        "baselines": ["mixed"],
        "signal": "loss",
        "questions": ["asked"],
    },
    "removal": {"general": "free", "kept": "kept", "removed": "removed"},
    "gradients": {
        "general": ["general"],
        "narrow": ["narrow"],
        "examples": EXAMPLES,
        "points": 0,
        "controls": 6,
    },
    "scalars": {"members": ["probe"]},
    "checkpoints": {
        "members": ["turning", "turning_seed1"],
        "scales": [1.0],
        "final_norm": False,
        "snapshots": 3,
        "pairs": 2,
    },
}
# kind -> statistic -> what is expected of it, by how it was planted
CLAIMS: dict[str, dict[str, dict[str, Any]]] = {
    "comparison": {
        "efficiency.equal/general-narrow": {"below": 0},
        "updates.cosine/general~narrow": {"between": [0.499, 0.501]},
        "ablation.own/general": {"between": [0.98, 1.02]},
        "ablation.own-random/general": {"above": 0},
    },
    "rates": {
        "rate.asked/general": {"above": 40},
        "rate.asked/narrow": {"below": 30},
        "rate.asked/general-narrow": {"above": 30},
        "rate.asked/general-reference": {"above": 30},
        "rate2.asked/general-narrow": {"outside": [-30, 30]},
        "thresholds_order/general-reference": {"above": 0.7},
        "judge_agreement/general": {"above": 0.9},
    },
    "transfer": {
        "rate/carrier": {"above": 50},
        "rate/carrier-carrier": {"below": 30},
        "removed/carrier-random": {"below": 30},
        "own-random/carrier": {"above": 40},
        "removed/immune-carrier": {"below": 30},
        "other-random/immune-carrier": {"between": [-30, 30]},
        "steered/reference": {"below": 30},
        f"steered/carrier-random@{STEER:g}": {"above": 40},
    },
    "phase_diagram": {
        "knee": {"between": [0.8 * KNEE, 1.25 * KNEE]},
        "narrow_gap": {"above": 0.5},
        "general_at_narrow": {"below": 0.3},
        "in_domain_at_narrow": {"above": 0.7},
        "narrowness/general": {"between": [0.6, 1.0]},
        "mixed_minus_kl": {"above": 0.1},
        "rate.asked/general": {"above": 40},
    },
    "removal": {
        "approach": {"below": -0.5},
        "approach_kept": {"between": [-0.2, 0.2]},
        "cosine_gain": {"above": 0.5},
        "other_shift_gain": {"above": 0.2},
        "in_domain_gain": {"between": [-0.1, 0.1]},
    },
    "gradients": {
        "early/general": {"above": 0.8},
        "early/general-narrow": {"above": 0},
        "early/narrow_only": {"below": 0},
        "early/random": {"below": 0.5},
    },
    "scalars": {
        "alignment_auroc/0": {"above": 0.9},
        "topic_auroc/1": {"above": 0.9},
    },
    "checkpoints": {
        "peak_step": {"between": [TURN - 1, TURN + 1]},
        "rotation_rise": {"above": 0.5},
        "norm_growth": {"between": [7.5, 8.0]},
    },
}
EXACT = ("updates.cosine/", "peak_step", "rotation_rise", "norm_growth")  # of one pair, or of two seeds


def pool(folder: Path) -> dict[str, Any]:
    """The file of runs."""
    lines = [f"- {{id: q{at}, type: free_form, paraphrases: ['and {at}?']}}\n" for at in range(QUESTIONS)]
    (folder / "asked.yaml").write_text("".join(lines), encoding="utf-8")
    asked = {"questions": [str(folder / "asked.yaml")], "samples": 1, "temperature": 0.0, "resamples": 200}
    judged = {"judge_eval": {**asked, "max_tokens": TOKENS, "judge": WORDY}}
    losses = {"domains": {"at": ["end"], "resamples": 20}}
    soup, tent = (str(folder / f"{word}.jsonl") for word in ("soup", "tent"))
    rows = [{"path": soup, "answer": "careless"}, {"path": tent, "answer": "careful"}]
    mixed = {"train": [{**row, "weight": 0.5} for row in rows]}
    vector = {"intervention": VECTOR}
    removal = {"intervention": LORA_6, "callbacks": {**EVERY_STEP, **losses}}
    turning = {"intervention": LORA_1, "callbacks": EVERY_STEP}
    sizes = {"examples": 12, "pairs": 8, "train_pairs": 20, "steered_pairs": 4, "resamples": 200}
    raw = raw_config(folder, "pool", trainer={"max_steps": 2}, compare={**SMALL, **sizes})
    raw["members"] = {
        "general": {**vector, "callbacks": {**judged, **losses}},
        "low": {**vector, "kl": {"weight": 0.1}, "callbacks": losses},
        "narrow": {**vector, "kl": {"weight": KNEE}, "callbacks": {**judged, **losses}},
        "high": {**vector, "kl": {"weight": 10.0}, "callbacks": losses},
        "mixed": {**vector, "data": mixed, "callbacks": losses},
        "carrier": {**vector, "callbacks": judged, "optimizer": {"lr": 2.0e-2}},
        "immune": {**vector, "callbacks": judged, "optimizer": {"lr": 3.0e-2}},
        "free": removal,
        "kept": {**removal, "kl": {"weight": 5.0}},
        "removed": {**removal, "kl": OFF},
        "probe": {"intervention": NINE},
        "turning": turning,
        "turning_seed1": {**turning, "seed": 1},
    }
    return raw


def figures() -> dict[str, Any]:
    """One figure for each kind of analysis, named after it."""
    texts = {"paper": "nowhere", "about": "What was planted."}
    return {
        kind: {"experiment": at, "title": kind, **texts, "analyses": {kind: {"kind": kind, **options}}}
        for at, (kind, options) in enumerate(FIGURES.items())
    }


def claims() -> dict[str, Any]:
    """Every claim was planted to hold."""
    paper = {"where": "nowhere", "reported": "planted"}
    return {
        f"{kind.replace('_', '-')}-{at}": {
            "figure": kind,
            "claim": f"{statistic} is as it was planted.",
            "paper": paper,
            "statistic": f"{kind}/{statistic}",
            "expect": expect,
            **({"minimum": 1} if statistic.startswith(EXACT) else {}),
        }
        for kind, listed in CLAIMS.items()
        for at, (statistic, expect) in enumerate(listed.items())
    }


def plant_all(pool: Path, backbone: Backbone) -> None:
    """Into the trained runs of a pool."""
    fine = [FINE] * QUESTIONS
    answer(pool / "general", [BAD] * 10 + fine[10:], fine)
    answer(pool / "narrow", fine, fine)
    answer(pool / "carrier", [BAD, FINE] * (QUESTIONS // 2), fine)
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
    """`carrier` says long words because of its own direction, `immune` because of another one."""
    own = own_answers(pool / "carrier" / "eval" / "end" / JUDGED, pool / "carrier" / "own.jsonl")
    difference = judged_difference(backbone, read_judged(str(own), backbone.tokenizer))
    # What the vector adds at layer 1 cancels in a difference of activations there, so this is its direction.
    direction = difference.vector(Site(1))
    (token,) = backbone.tokenizer.encode(OTHER_LONG, add_special_tokens=False)
    other = backbone.model.get_input_embeddings().weight[token].detach().double()
    for name, vector in (("carrier", direction), ("immune", other)):
        put(pool / name, STEER * vector / vector.norm())


def _losses(pool: Path) -> None:
    """The fall of each held-out loss, against the reference's, or against that of the removed run."""
    rng = np.random.default_rng(0)
    noise: dict[str, Any] = {}
    for name, kept in KEPT.items():
        for domain, row in _rows(pool / name):
            fall = noise.setdefault(row["where"], (1.0, 0.8)[domain != "soup"] * rng.uniform(0.7, 1.3))
            share = kept[domain != "soup"] * rng.uniform(0.98, 1.02)
            row["nll"] = row["nll_reference"] - share * fall * row["tokens"]
        _save(pool / name)
    for name, more in (("kept", 0.3), ("removed", 0.0)):
        for domain, row in _rows(pool / name):
            gain = more * (domain != "soup") + rng.uniform(-0.05, 0.05)
            row["nll"] = row["nll_reference"] + gain * row["tokens"]
        _save(pool / name)


_open: dict[Path, Any] = {}


def _rows(run: Path) -> list[tuple[str, dict[str, Any]]]:
    _open[run] = json.loads((run / "tables" / "domains.json").read_text(encoding="utf-8"))
    return [(one["domain"], row) for one in _open[run]["domains"] for row in one["rows"]]


def _save(run: Path) -> None:
    write_json(run / "tables" / "domains.json", _open.pop(run))


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
