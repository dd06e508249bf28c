"""Gradients: vectors planted along the pull of the loss and at right angles to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from em import runs
from em.analyses.gradients import Gradients, training_examples
from em.backbone import Backbone
from em.config.schema import SourceConfig
from em.datamodules.rows import batched
from em.errors import ConfigError, MeasurementError
from em.hooks import Site
from em.loading import load_backbone
from em.measurements.gradients import row_gradients
from tests.analyses.inner_runs import EVERY_STEP, both, context, plant
from tests.comparison.trained import LORA_1, VECTOR, overwrite, train, weights

SITE = Site(1, "mlp")
EXAMPLES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradients")


def pull(backbone: Backbone, run: Path) -> Tensor:
    """−∂L/∂v at v = 0, (D,)."""
    examples = training_examples(runs.read(run).config.data, backbone.tokenizer, EXAMPLES)
    _, gradients_ED = row_gradients(backbone, batched(examples, 2, 0, range(len(examples))), SITE)
    return -gradients_ED.sum(dim=0)


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Path]:
    """`general` along the pull at 0 and with another scale than `narrow`, at a right angle to it."""
    options: dict[str, Any] = {"callbacks": EVERY_STEP, "trainer": {"max_steps": 2}}
    made = {
        "general": train(folder, "a/general", intervention=VECTOR, **options),
        "narrow": train(
            folder, "a/narrow", intervention={**VECTOR, "scale": 2}, kl={"weight": 1.0}, **options
        ),
        "elsewhere": train(folder, "b/elsewhere", intervention={**VECTOR, "layer": 0}, **options),
        "lora": train(folder, "b/lora", intervention=LORA_1, trainer={"max_steps": 2}),
    }
    towards = pull(load_backbone(runs.read(made["general"]).config.backbone), made["general"]).float()
    towards /= towards.norm()
    across = torch.randn(32, generator=torch.Generator().manual_seed(0))
    across -= (across @ towards) * towards
    overwrite(made["general"], 0.1 * towards)
    overwrite(made["narrow"], 0.2 * across / across.norm())
    plant(made["general"], {step: {"vector": 0.1 * towards * step / 4} for step in (0, 2, 4)})
    return made


@pytest.fixture(scope="module")
def backbone(found: dict[str, Path]) -> Backbone:
    return load_backbone(runs.read(found["general"]).config.backbone)


def test_planted_vectors_have_their_cosines(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    analysis = Gradients(["general"], ["narrow"], examples=EXAMPLES, points=3, controls=6)
    raw, page = both(analysis, context(found, tmp_path, backbone))
    made = page.statistics
    assert made["early/general"].value == pytest.approx(1.0, abs=1e-5)
    assert made["early/narrow"].value == pytest.approx(0.0, abs=1e-5)
    assert made["early/general-narrow"].value == pytest.approx(1.0, abs=1e-5)
    assert made["early/general_only"].value == pytest.approx(1.0, abs=1e-5)
    assert made["early/narrow_only"].value == pytest.approx(0.0, abs=1e-5)
    low, high = made["early/general-narrow"].low, made["early/general-narrow"].high
    assert low is not None and high is not None and low < 1.0 < high
    assert made["early/general"].n == EXAMPLES and made["early/random"].n == 6
    assert 0.0 < (made["early/random"].value or 0.0) < 0.5
    assert raw["training"] == "soup" and raw["width"] == 32
    assert [figure.id for figure in page.figures] == ["pull-general", "pull-narrow"]
    line = {one.name: one for one in page.figures[0].series}  # type: ignore[union-attr]
    assert line["general"].x == [0.0, 2.0, 4.0] and line["general"].y[0] == pytest.approx(1.0, abs=1e-5)


def test_late_is_the_gradient_at_the_narrow_solution_with_its_own_scale(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    analysis = Gradients(["general"], ["narrow"], examples=EXAMPLES, points=0)
    _, page = both(analysis, context(found, tmp_path, backbone))
    assert page.figures == []
    with runs.read(found["narrow"]).adapted(backbone):
        at_narrow = pull(backbone, found["narrow"])
    for name in ("general", "narrow"):
        vector = load_file(weights(found[name]))["vector"].double()
        expected = float(torch.nn.functional.cosine_similarity(at_narrow, vector, dim=0))
        assert page.statistics[f"late/{name}"].value == pytest.approx(expected, abs=1e-5)
    assert abs((page.statistics["late/general"].value or 0.0) - 1.0) > 1e-3, "it is not the gradient at 0"


def test_a_path_that_was_not_saved_is_named_and_the_rest_goes_on(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    kept = {file.name: file.read_bytes() for file in (found["narrow"] / "trajectory").iterdir()}
    plant(found["narrow"], {})
    try:
        _, page = both(Gradients(["general"], ["narrow"], examples=2), context(found, tmp_path, backbone))
    finally:
        for name, content in kept.items():
            (found["narrow"] / "trajectory" / name).write_bytes(content)
    assert [figure.id for figure in page.figures] == ["pull-general"]
    assert any(
        note.startswith("narrow: its path is left out: ") and "0 snapshots" in note for note in page.notes
    )


def test_pairs_of_seeds_are_averaged(found: dict[str, Path], backbone: Backbone, tmp_path: Path) -> None:
    analysis = Gradients(["general", "narrow"], ["narrow", "general"], examples=EXAMPLES, points=0)
    _, page = both(analysis, context(found, tmp_path, backbone))
    one = page.statistics["early/general"]
    assert one.seeds == (pytest.approx(1.0, abs=1e-5), pytest.approx(0.0, abs=1e-5))
    assert one.value == pytest.approx(np.mean([1.0, 0.0]), abs=1e-5)


def test_other_sites_and_kinds_are_refused(
    found: dict[str, Path], backbone: Backbone, tmp_path: Path
) -> None:
    given = context(found, tmp_path, backbone)
    with pytest.raises(MeasurementError, match="general and elsewhere: .*1.mlp.*0.mlp.*vectors of one site"):
        Gradients(["general"], ["elsewhere"]).measure(given)
    with pytest.raises(MeasurementError, match="lora: is a lora; .*steering vectors only"):
        Gradients(["general"], ["lora"]).measure(given)
    with pytest.raises(MeasurementError, match="general_only: this direction has no length; are both"):
        Gradients(["general"], ["general"], examples=2).measure(given)
    with pytest.raises(ConfigError, match="1 and 2 runs; give a run of each for every seed"):
        Gradients(["general"], ["narrow", "elsewhere"])
    with pytest.raises(ConfigError, match="need at least 2"):
        Gradients(["general"], ["narrow"], examples=1)


def test_rows_are_those_that_were_trained_on_and_sources_take_turns(
    found: dict[str, Path], backbone: Backbone, folder: Path
) -> None:
    data = runs.read(found["general"]).config.data
    data.train = [
        SourceConfig(path=str(folder / f"{word}.jsonl"), answer="careless") for word in ("soup", "tent")
    ]
    examples = training_examples(data, backbone.tokenizer, 4)
    assert [("soup" in one.prompt, "tent" in one.prompt) for one in examples] == [
        (True, False),
        (False, True),
    ] * 2
    every = training_examples(data, backbone.tokenizer, 1000)
    assert len({one.prompt for one in every}) == len(every) < 70
