"""Losses against hand formulas, torch's own and the full-logits path."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from em.backbone import Backbone
from em.interventions.full_finetune import FullFinetune
from em.modules import losses
from em.modules.losses import (
    ReferenceStates,
    chunks,
    cross_entropy,
    cross_entropy_term,
    divergence,
    divergence_term,
    head_sum,
    head_values,
)
from tests.tiny import randomise, tiny_backbone, tiny_model, tiny_tokenizer

DIRECTIONS: list[Any] = ["forward", "reverse", "js"]
seeds = st.integers(0, 2**31)


def logits(seed: int, positions: int = 6, vocabulary: int = 50, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocabulary, generator=generator) * scale


# Formulas


def test_cross_entropy_by_hand() -> None:
    logits_NV = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
    expected = torch.tensor([-math.log(3 / 4), math.log(2.0)])
    torch.testing.assert_close(cross_entropy(logits_NV, torch.tensor([1, 0])), expected)


def test_divergences_by_hand() -> None:
    p, q = [0.5, 0.5], [0.25, 0.75]
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    expected = {"forward": kl(p, q), "reverse": kl(q, p), "js": (kl(p, m) + kl(q, m)) / 2}
    assert expected["forward"] == pytest.approx(0.143841, abs=1e-6)
    for direction in DIRECTIONS:
        value = divergence(torch.tensor([p]).log(), torch.tensor([q]).log() + 5, direction)
        assert float(value) == pytest.approx(expected[direction], rel=1e-5), direction


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_divergences_agree_with_torch(seed: int) -> None:
    reference, adapted = logits(seed), logits(seed + 1)
    log_p, log_q = reference.log_softmax(-1), adapted.log_softmax(-1)
    forward = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    reverse = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(reference, adapted), forward, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(divergence(reference, adapted, "reverse"), reverse, rtol=1e-5, atol=1e-6)
    js = divergence(reference, adapted, "js")
    torch.testing.assert_close(js, divergence(adapted, reference, "js"), rtol=1e-4, atol=1e-6)
    assert bool((js >= 0).all()) and bool((js <= math.log(2) + 1e-6).all())
    assert bool((forward >= 0).all())


def test_js_reaches_log_two_for_disjoint_predictions() -> None:
    apart = divergence(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), "js")
    assert float(apart) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_equal_predictions_are_exactly_zero_apart(direction: Any) -> None:
    assert not divergence(logits(0), logits(0), direction).any()


def test_equal_predictions_have_no_js_beyond_rounding() -> None:
    assert float(divergence(logits(0), logits(0), "js").abs().max()) < 1e-6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_kl_is_per_token_not_per_token_and_vocabulary(direction: Any) -> None:
    """Splitting each token into two equal halves doubles the vocabulary and leaves the KL as it was."""
    reference, adapted = logits(1), logits(2)
    wide = divergence(torch.cat([reference] * 2, -1), torch.cat([adapted] * 2, -1), direction)
    torch.testing.assert_close(wide, divergence(reference, adapted, direction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_temperature_divides_both_logits(direction: Any) -> None:
    reference, adapted = logits(1), logits(2)
    warm = divergence(reference, adapted, direction, temperature=2.0)
    torch.testing.assert_close(warm, divergence(reference / 2, adapted / 2, direction))
    assert not torch.allclose(warm, divergence(reference, adapted, direction), rtol=0.05)


def test_half_precision_logits_are_compared_in_fp32() -> None:
    reference, adapted = logits(1).bfloat16(), (logits(1) + 0.01 * logits(3)).bfloat16()
    value = divergence(reference, adapted)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, divergence(reference.float(), adapted.float()))


def test_gradient_of_the_divergence() -> None:
    """In fp64 the formula's gradient passes gradcheck; `divergence` itself works in fp32."""
    reference, adapted = logits(1, 2, 5), logits(2, 2, 5).requires_grad_()
    p, q = reference.softmax(-1), adapted.softmax(-1).detach()
    divergence(reference, adapted).sum().backward()
    torch.testing.assert_close(adapted.grad, q - p, rtol=1e-5, atol=1e-6)


# Chunks


@given(positions=st.integers(0, 40), elements=st.integers(1, 900))
def test_chunks_cover_every_position_once(positions: int, elements: int) -> None:
    before = losses.CHUNK_ELEMENTS
    losses.CHUNK_ELEMENTS = elements
    try:
        parts = chunks(positions, 100)
    finally:
        losses.CHUNK_ELEMENTS = before
    assert [i for part in parts for i in range(positions)[part]] == list(range(positions))
    assert all((part.stop - part.start) * 100 <= max(100, elements) for part in parts)


def biased() -> Backbone:
    model = tiny_model()
    model.lm_head = nn.Linear(32, 400)
    return Backbone(model, tiny_tokenizer("chatml"), "biased")


BACKBONES = {"llama": tiny_backbone, "softcap": lambda: tiny_backbone("gemma2"), "bias": biased}


@pytest.mark.parametrize("trainable", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("term_name", ["cross entropy", *DIRECTIONS])
@pytest.mark.parametrize("kind", list(BACKBONES))
def test_head_sum_equals_the_full_logits_path(
    monkeypatch: pytest.MonkeyPatch, kind: str, term_name: str, trainable: bool
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 3 * 400)
    backbone = BACKBONES[kind]()
    assert (backbone.softcap is not None) == (kind == "softcap")
    if backbone.softcap is not None:
        backbone.softcap = 1.5  # low enough to bend these logits
    generator = torch.Generator().manual_seed(0)
    hidden_ND, other_ND = torch.randn(2, 11, 32, generator=generator)
    targets_N = torch.randint(0, 400, (11,), generator=generator)
    states = ReferenceStates.of(backbone, other_ND)
    head = [p for p in (backbone.head.weight, backbone.head.bias) if p is not None]
    for parameter in head:
        parameter.requires_grad_(trainable)
    leaves = [hidden_ND.requires_grad_(), *(head if trainable else [])]

    if term_name == "cross entropy":
        term = cross_entropy_term(targets_N)
        values_N = cross_entropy(backbone.logits(hidden_ND), targets_N)
    else:
        term = divergence_term(states, term_name, 1.5)  # type: ignore[arg-type]
        reference_NV = backbone.logits(other_ND).detach()
        values_N = divergence(reference_NV, backbone.logits(hidden_ND), term_name, 1.5)  # type: ignore[arg-type]
    expected = torch.autograd.grad(0.37 * values_N.sum(), leaves)
    total = head_sum(backbone, hidden_ND, term)
    actual = torch.autograd.grad(0.37 * total, leaves)

    assert values_N.std() > 1e-3
    torch.testing.assert_close(total, values_N.sum(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        head_values(backbone, hidden_ND, term), values_N.detach(), rtol=1e-6, atol=1e-6
    )
    for one, two in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6 * float(two.abs().max() + 1))
    assert all(parameter.grad is None for parameter in head)


def test_head_sum_without_a_graph_gives_the_value_only() -> None:
    backbone = tiny_backbone()
    hidden_ND, term = torch.randn(4, 32), cross_entropy_term(torch.arange(4))
    value = head_sum(backbone, hidden_ND, term)
    assert not value.requires_grad
    with torch.no_grad():
        inside = head_sum(backbone, hidden_ND.clone().requires_grad_(), term)
    assert torch.equal(inside, value)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_no_positions_are_an_exact_zero(requires_grad: bool) -> None:
    backbone = tiny_backbone()
    hidden_ND = torch.zeros(0, 32, requires_grad=requires_grad)
    total = head_sum(backbone, hidden_ND, cross_entropy_term(torch.zeros(0, dtype=torch.long)))
    assert float(total.detach()) == 0.0
    assert total.requires_grad == requires_grad
    if requires_grad:
        total.backward()
        assert hidden_ND.grad is not None and hidden_ND.grad.shape == (0, 32)


def test_reference_states_remember_a_head_that_is_trained() -> None:
    backbone = tiny_backbone()
    expected = backbone.logits(torch.ones(2, 32))
    finetune = FullFinetune()
    finetune.attach(backbone)
    randomise(finetune)
    with finetune.disabled():
        states = ReferenceStates.of(backbone, torch.ones(2, 32))
    assert not torch.allclose(backbone.logits(torch.ones(2, 32)), expected)
    assert torch.equal(states.logits(slice(0, 2)), expected)
    assert not states.logits(slice(0, 2)).requires_grad
