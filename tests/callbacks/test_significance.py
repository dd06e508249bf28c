"""Significance: KL on plain text, slice by slice."""

from pathlib import Path

import pytest
import torch

from em import experiment
from em.config import check
from em.datamodules.chat import ChatData
from em.datamodules.plain_text import read_corpus
from em.errors import ConfigError
from em.runs import LoadedRun, RunDirectory
from tests.callbacks.logged import logged
from tests.tiny import tiny_config


def test_kl_is_that_of_the_documents(measured: RunDirectory, reloaded: LoadedRun, data: ChatData) -> None:
    corpus = read_corpus([], data.tokenizer, 3, 16, None, data.seed)
    backbone, total, tokens = reloaded.backbone, 0.0, 0
    with torch.no_grad():
        for document in corpus.documents:
            ids_BT = torch.tensor([document.ids])
            own = backbone.logits(backbone.trunk(ids_BT)[0]).double().log_softmax(dim=-1)
            with reloaded.intervention.disabled():
                reference = backbone.logits(backbone.trunk(ids_BT)[0]).double().log_softmax(dim=-1)
            total += float((reference.exp() * (reference - own)).sum())
            tokens += len(document.ids)
    last = logged(measured, "significance")[-1]
    assert last["python-docs/kl"] == pytest.approx(total / tokens, rel=1e-4)


def test_table_and_slopes(measured: RunDirectory) -> None:
    first, *_, last = logged(measured, "significance")
    assert first == {
        "step": 0,
        "python-docs/kl": 0.0,
        "python-docs/slope": None,
        "python-docs/control_slope": None,
    }
    row = measured.read_table("significance")["slices"]["python-docs"]["solutions"]["measured"]
    assert row["kl"][0] == 0 and row["control"]["kl"][0] == 0 and row["controls"] == 1
    assert last["python-docs/kl"] == row["kl"][2]
    assert last["python-docs/slope"] == row["slope"]["value"] > 0
    assert last["python-docs/control_slope"] == row["control_slope"]["value"] > 0


def test_each_corpus_is_a_slice(folder: Path) -> None:
    texts = folder / "texts.txt"
    texts.write_text("soup is made of water and a tent is not")
    options = {
        "corpus": [{"path": str(texts), "slice": "mine"}, {"slice": "python"}],
        "documents": 2,
        "max_tokens": 8,
        "factors": [],
        "controls": 0,
        "resamples": 50,
    }
    run = experiment.train(check(tiny_config(folder, name="slices", callbacks={"significance": options})))
    (row,) = logged(run, "significance")
    assert row.keys() == {"step", "mine/kl", "mine/slope", "python/kl", "python/slope"}


def test_a_corpus_without_text_is_refused_before_training(folder: Path) -> None:
    (folder / "empty.jsonl").write_text('{"text": "only"}\n')
    options = {"corpus": [{"path": str(folder / "empty.jsonl"), "field": "body"}]}
    with pytest.raises(ConfigError, match=r"callbacks\.significance.*set `field`"):
        experiment.train(check(tiny_config(folder, name="no-text", callbacks={"significance": options})))
    assert not (folder / "runs" / "no-text" / "metrics.jsonl").exists()
