"""Scalars: an A that reads what tells careless from careful answers, and one that reads the topic."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from em import runs
from em.analyses._scalars_probe import _round_limits
from em.analyses.scalars import Scalars
from em.backbone import Backbone
from em.datamodules.pairs import Pair, pair_rows, read_pairs
from em.errors import MeasurementError
from em.hooks import reading_inputs
from em.loading import load_backbone
from em.measurements.activations import answer_weights, weighted_sums
from em.measurements.scalars import hidden_scalars, readers
from tests.analyses.inner_runs import both, context
from tests.comparison.trained import LORA_2, train, weights

NINE: dict[str, Any] = {"kind": "lora", "r": 1, "alpha": 2, "modules": ["down_proj"], "layers": [0, 1]}
A = "base_model.model.model.layers.{}.mlp.down_proj.lora_A.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scalars")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Path]:
    """A run whose A of layer 0 reads alignment and of layer 1 topic; a second seed; one of rank 2."""
    options: dict[str, Any] = {"trainer": {"max_steps": 2}}
    made = {
        "rank1": train(folder, "a/rank1", intervention=NINE, **options),
        "again": train(folder, "a/again", intervention=NINE, seed=1, **options),
        "rank2": train(folder, "a/rank2", intervention=LORA_2, **options),
    }
    plant(made["rank1"])
    return made


def plant(run: Path) -> None:
    record = runs.read(run)
    backbone = load_backbone(record.config.backbone)
    pairs = read_pairs(record.config.data, backbone.tokenizer, "train")[0]
    means = {
        (domain, side): inputs(backbone, listed, side).mean(dim=0)
        for domain, listed in pairs.items()
        for side in ("careful", "careless")
    }
    alignment = means["soup", "careful"] - means["soup", "careless"]  # points the wrong way
    topic = means["soup", "careless"] - means["tent", "careless"]
    values = load_file(weights(run))
    values[A.format(0)] = alignment[0][None].float()
    values[A.format(1)] = topic[1][None].float()
    for name in values:
        if "lora_B" in name:
            values[name] = (
                torch.zeros_like(values[name]) + 1e-6
            )  # so that no layer changes what another reads
    save_file(values, weights(run))


def inputs(backbone: Backbone, pairs: list[Pair], side: str) -> Tensor:
    """Mean input of both layers' down_proj on each answer, (P, 2, I), in any order."""
    found = []
    modules = {str(layer): backbone.layers[layer].mlp.down_proj for layer in (0, 1)}
    for rows in pair_rows(pairs, 4, 0, side, range(len(pairs))):  # type: ignore[arg-type]
        with torch.no_grad(), reading_inputs(modules, lambda name, x: x.clone()) as read:
            backbone.trunk(rows.input_ids_BT)
        means = [weighted_sums(read[name], answer_weights(rows, "answer")) for name in modules]
        found.append(torch.stack(means, dim=1))
    return torch.cat(found)


@pytest.fixture(scope="module")
def backbone(found: dict[str, Path]) -> Backbone:
    return load_backbone(runs.read(found["rank1"]).config.backbone)


def test_layers_that_read_alignment_and_topic_are_told_apart(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    raw, page = both(Scalars(["rank1"]), context(found, tmp_path, backbone, pairs=8, train_pairs=20))
    made = page.statistics
    assert made["alignment_auroc/0"].value == 1.0, "the sign has to be found"
    assert made["alignment_auroc/0"].low == 1.0
    assert made["topic_auroc/1"].value == 1.0
    assert made["topic_auroc"].value == made["topic_auroc/1"].value and "layer 1" in made["topic_auroc"].what
    best = made["alignment_auroc"]
    assert best.value == made["alignment_auroc/0"].value and "layer 0" in best.what
    assert made["alignment_auroc_other"].value == made["alignment_auroc_other/0"].value
    assert made["alignment_auroc_reference/0"].value == made["alignment_auroc/0"].value
    assert best.n == 8 and made["topic_auroc"].n == 8 + 6 and best.seeds == ()
    assert [figure.id for figure in page.figures] == ["scalars", "scalars-prompts"]
    assert page.notes == [] and "prompt" not in json.dumps(raw)


def test_what_is_stored_is_what_the_measurement_says(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    raw, _ = both(Scalars(["rank1"]), context(found, tmp_path, backbone, pairs=3))
    record = runs.read(found["rank1"])
    for part, where in (("held_out", "held_out"), ("train", "train"), ("reference", "held_out")):
        pairs = read_pairs(record.config.data, backbone.tokenizer, where, 3)[0]["tent"]  # type: ignore[arg-type]
        with record.adapted(backbone) as intervention:
            rows = pair_rows(pairs, 2, 0, "careless", range(3))
            modules = readers(intervention)
            if part == "reference":
                with intervention.disabled():
                    expected = hidden_scalars(backbone, rows, modules)
            else:
                expected = hidden_scalars(backbone, rows, modules)
        for layer in ("0", "1"):
            stored = raw["members"]["rank1"][part]["tent"][layer]["careless"]
            assert stored[:3] == pytest.approx(expected[layer], rel=1e-4, abs=1e-6)


def hand_made(careful: float, careless: float, **changes: Any) -> Any:
    """Stored scalars of one layer: careless answers lie higher or lower than careful ones."""
    spread = [0.0, 0.1, 0.2, 0.3]
    sides = {"careful": [careful + x for x in spread], "careless": [careless + x for x in spread]}
    every = {domain: {"5": sides} for domain in ("soup", "tent")}
    member = {"arm": "a", "seed": 0, "held_out": every, "train": every, "reference": every}
    made = {
        "training": "soup", "domains": ["soup", "tent"],
        "clusters": {"soup": [0, 1, 2, 3], "tent": [0, 1, 2, 3]},
        "resamples": 50, "seed": 0, "members": {"a": {**member, **changes}},
    }  # fmt: skip
    return json.loads(json.dumps(made))


def test_the_sign_is_not_chosen_on_the_rows_that_are_scored() -> None:
    turned = hand_made(1.0, 0.0)["members"]["a"]["held_out"]
    raw = hand_made(0.0, 1.0, held_out=turned)
    assert Scalars(["a"]).read(hand_made(1.0, 0.0)).statistics["alignment_auroc"].value == 1.0
    assert Scalars(["a"]).read(raw).statistics["alignment_auroc"].value == 0.0, "the sign did not hold"
    assert Scalars(["a"]).read(raw).statistics["topic_auroc/5"].value == 0.5


def test_without_other_domains_topic_says_why_it_has_no_number() -> None:
    raw = hand_made(0.0, 1.0)
    raw["domains"] = ["soup"]
    page = Scalars(["a"]).read(raw)
    assert page.statistics["alignment_auroc"].value == 1.0
    for name in ("topic_auroc", "alignment_auroc_other/5"):
        assert page.statistics[name].value is None and "no other paired domain" in page.statistics[name].what
    assert any("topic is not told apart" in note for note in page.notes)

    raw = hand_made(0.0, 1.0)
    del raw["members"]["a"]["train"]["tent"]
    page = Scalars(["a"]).read(raw)
    assert page.statistics["topic_auroc"].value is None
    assert page.statistics["alignment_auroc_other"].value == 1.0
    assert any(note.startswith("tent: no pairs in the training part") for note in page.notes)


def test_seeds_are_averaged_and_arms_stand_apart() -> None:
    raw = hand_made(0.0, 1.0)
    raw["members"]["b"] = hand_made(0.0, 1.0, held_out=hand_made(0.0, 0.05)["members"]["a"]["held_out"])[
        "members"
    ]["a"]
    page = Scalars(["a", "b"]).read(raw)
    one = page.statistics["alignment_auroc"]
    assert one.seeds == (1.0, pytest.approx(10 / 16)) and one.value == pytest.approx(np.mean(one.seeds))
    raw["members"]["b"]["arm"] = "other"
    page = Scalars(["a", "b"]).read(raw)
    assert page.statistics["other/alignment_auroc/5"].value == pytest.approx(10 / 16)
    assert page.statistics["a/alignment_auroc/5"].value == 1.0
    assert [figure.id for figure in page.figures] == [
        "scalars",
        "scalars-prompts",
        "scalars-2",
        "scalars-prompts-2",
    ]


def test_other_ranks_are_refused(found: dict[str, Path], backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="this is a LoRA of rank 2; name runs of rank 1"):
        Scalars(["rank1", "rank2"]).measure(context(found, tmp_path, backbone))


@pytest.mark.parametrize(
    ("values", "limits"),
    [((0.3887, 0.7116), (0.3, 0.8)), ((-13.0, 41.0), (-20.0, 50.0)), ((0.5, 0.5), (-0.5, 1.5)),
     ((0.2, 0.3), (0.2, 0.3)), ((-3e-7, 5e-7), (-3e-7, 5e-7))],
)  # fmt: skip
def test_limits_have_few_digits_and_hold_all_values(
    values: tuple[float, float], limits: tuple[float, float]
) -> None:
    low, high = _round_limits(*values)
    assert (low, high) == pytest.approx(limits, abs=abs(values[1] - values[0]) * 0.11 + 1e-12)
    assert low <= values[0] and high >= values[1]
