"""A pool of tiny runs in which what is true is planted, with a figure and claims for each kind of analysis.

What training, evaluation and callbacks left behind is real; adapters, snapshots, answers and losses are then
replaced by ones of which it is known what an analysis must say.
"""

from pathlib import Path
from typing import Any

from tests.analyses.inner_runs import EVERY_STEP
from tests.analyses.test_checkpoints import TURN
from tests.analyses.test_scalars import NINE
from tests.comparison.trained import LORA_1, SMALL, VECTOR, raw_config

WORDY = {"_target_": "tests.evaluation.judges.Wordy"}
QUESTIONS = 12
TOKENS = 12  # of an answer
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
    "transfer": {"targets": ["low", "high"], "sources": ["low"], "coefficients": [STEER]},
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
        "rate/low": {"above": 50},
        "rate/low-low": {"below": 30},
        "removed/low-random": {"below": 30},
        "own-random/low": {"above": 40},
        "removed/high-low": {"below": 30},
        "other-random/high-low": {"between": [-30, 30]},
        "steered/reference": {"below": 30},
        f"steered/low-random@{STEER:g}": {"above": 40},
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
        "early/general_only": {"above": 0.5},
        "early/narrow_only": {"between": [-0.2, 0.2]},
        "early/random": {"below": 0.5},
    },
    "scalars": {
        "alignment_auroc/0": {"above": 0.9},
        "topic_auroc/1": {"above": 0.9},
    },
    "checkpoints": {
        "peak_step": {"between": [TURN - 1, TURN + 1]},
        "rotation_rise": {"above": 0.5},
        "norm_growth": {"between": [1.25, 1.35]},
    },
}
EXACT = ("updates.cosine/", "peak_step", "rotation_rise", "norm_growth")  # of one pair, or of two seeds


def pool(folder: Path) -> dict[str, Any]:
    """The file of runs.

    `low` and `high` stand in the phase diagram with their losses, and in the transfer with their adapters.
    """
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
    sizes = {"examples": 12, "pairs": 6, "train_pairs": 20, "steered_pairs": 6, "resamples": 200}
    raw = raw_config(folder, "pool", trainer={"max_steps": 2}, compare={**SMALL, **sizes})
    raw["members"] = {
        "general": {**vector, "callbacks": {**judged, **losses}},
        "low": {**vector, "kl": {"weight": 0.1}, "callbacks": {**judged, **losses}},
        "narrow": {**vector, "kl": {"weight": KNEE}, "callbacks": {**judged, **losses}},
        "high": {**vector, "kl": {"weight": 10.0}, "callbacks": {**judged, **losses}},
        "mixed": {**vector, "data": mixed, "callbacks": losses},
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
