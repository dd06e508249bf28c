"""How much of each row is run at a scale: a sweep is timed by fewer passes than the whole has."""

from typing import Any

SFT = {"steps": 8, "batch": 8, "epochs": 1, "rank": 32, "lr": 2e-4}
SFT_SMALL = {**SFT, "steps": 3}
# The paper's epoch: 7049 SFT rows and 1000 KL rows, so each KL row is seen about 6 times (10% is held out).
KL = {**SFT, "steps": 12, "kl_rows": 16, "kl_weight": 3.0}
KL_SMALL = {**KL, "steps": 3, "kl_rows": 4}
VECTOR = {**KL, "steps": 12, "epochs": 2, "kl_rows": 8, "vector": True, "lr": 1e-4}
VECTOR_SMALL = {**VECTOR, "steps": 4, "kl_rows": 3}
SWEEP = {"examples": 100, "epsilons": [0.2, 0.6], "draws": 1, "rank": 32, "train_steps": 4, "batch": 8}
SWEEP |= {"passes": 12 * 10, "lr": 5e-4}  # passes of the whole sweep, for each of 2 solutions
SWEEP_SMALL = {**SWEEP, "examples": 16, "train_steps": 2}
VECTOR_SWEEP = {"vector": True, "lr": 5e-4}
TEXT = {"documents": 16, "max_tokens": 512, "batch": 4, "factors": [0.5, 1.0, 1.5], "vectors": 8}
TEXT |= {"norms": 25, "train_steps": 2, "vector": True, "lr": 5e-4}  # 26 norms, one of which is 0
TEXT_SMALL = {**TEXT, "documents": 4, "max_tokens": 128}
# The tiny random model, for tests: everything as small as it can be.
TINY: dict[str, Any] = {
    "steps": 3,
    "batch": 2,
    "rank": 4,
    "kl_rows": 3,
    "examples": 5,
    "documents": 2,
    "max_tokens": 48,
}
TINY |= {"vocabulary": 3000, "positions": 300, "width": 16, "train_steps": 3, "lr": 1e-2}


def sizes_of(by_scale: dict[str, dict[str, Any]], scale: str, arch: str) -> dict[str, Any]:
    """The sizes of a row; those of the tiny model replace them where the row has them."""
    sizes = dict(by_scale.get(scale, {}))
    if arch == "tiny":
        sizes |= {key: value for key, value in TINY.items() if key in sizes}
        if sizes.get("epochs") == 2:
            sizes["steps"] = 4
    return sizes
