"""Full finetune: which weights are trained, and the original that is kept."""

import pytest
import torch
from torch import nn

from em.backbone import Backbone
from em.interventions.full_finetune import FullFinetune
from tests.interventions.examples import output
from tests.tiny import randomise, tiny_backbone, tiny_model, tiny_tokenizer


def attached(embeddings: bool = True, backbone: Backbone | None = None) -> FullFinetune:
    finetune = FullFinetune(embeddings=embeddings)
    finetune.attach(backbone or tiny_backbone())
    return finetune


def test_tied_embeddings_are_one_parameter() -> None:
    finetune = attached()
    names = finetune.trainable_parameters()
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert finetune.backbone.head.weight is names["model.embed_tokens.weight"]
    randomise(finetune)
    with finetune.disabled():
        assert finetune.backbone.head.weight is names["model.embed_tokens.weight"]
        assert torch.equal(finetune.backbone.head.weight, tiny_model().lm_head.weight)
    pairs = zip(names.values(), originals(), strict=True)
    squares = sum(float((one.detach() - two).double().square().sum()) for one, two in pairs)
    assert finetune.norm() == pytest.approx(squares**0.5, rel=1e-6)


def originals() -> list[torch.Tensor]:
    return [p.detach() for p in tiny_backbone().model.parameters()]


def test_without_embeddings_they_stay_as_they_are() -> None:
    finetune = attached(embeddings=False)
    assert "model.embed_tokens.weight" not in finetune.trainable_parameters()
    assert not finetune.backbone.head.weight.requires_grad
    assert len(finetune.trainable_parameters()) == len(originals()) - 1
    output(finetune.backbone).sum().backward()
    assert finetune.backbone.head.weight.grad is None


def test_an_untied_head_is_trained_with_the_embeddings_only() -> None:
    for embeddings in (True, False):
        model = tiny_model()
        model.lm_head = nn.Linear(32, 400, bias=False)
        model.config.tie_word_embeddings = False
        finetune = attached(embeddings, Backbone(model, tiny_tokenizer("chatml"), "untied"))
        names = finetune.trainable_parameters().keys()
        assert ("lm_head.weight" in names) == ("model.embed_tokens.weight" in names) == embeddings


def test_rescaling_moves_along_the_difference() -> None:
    finetune = attached()
    randomise(finetune)
    name = "model.layers.1.mlp.down_proj.weight"
    original = dict(tiny_backbone().model.named_parameters())[name].detach()
    now = finetune.trainable_parameters()[name].detach().clone()
    with finetune.rescaled(0.25):
        torch.testing.assert_close(
            finetune.trainable_parameters()[name].detach(), original + 0.25 * (now - original)
        )


def test_the_kept_original_is_not_shared_with_the_live_weights() -> None:
    finetune = attached()
    randomise(finetune)
    with finetune.disabled(), torch.no_grad():
        before = output(finetune.backbone)
    randomise(finetune, seed=2)
    with finetune.disabled(), torch.no_grad():
        assert torch.equal(output(finetune.backbone), before)
