"""Per-example sums against one unpadded row at a time with full logits."""

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import batched
from em.datamodules.sources import Example
from em.measurements.held_out import ExampleScore, score, token_means
from em.modules import losses
from tests.interventions.examples import Case, attached, cases
from tests.tiny import tiny_backbone


def examples(count: int = 11) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(3, 400, (4 + number % 6,), generator=generator).tolist()
        answer = [at >= 2 and (at + number) % 4 != 0 for at in range(len(ids))]
        made.append(Example(ids, answer, f"test:{number}", str(number)))
    return made


EXAMPLES = examples()


def log_probs(backbone: Backbone, example: Example) -> Tensor:
    with torch.no_grad(), backbone.steering_positions(torch.tensor([[*example.answer[1:], False]])):
        logits = backbone.model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1)


def naive(
    index: int, backbone: Backbone, reference: AbstractContextManager[Any], other: Backbone
) -> ExampleScore:
    example = EXAMPLES[index]
    log_q = log_probs(backbone, example)
    with reference:
        log_p = log_probs(other, example)
    at = [t for t in range(len(example.ids) - 1) if example.answer[t + 1]]
    tokens = [example.ids[t + 1] for t in at]
    kl = (log_p[at].exp() * (log_p[at] - log_q[at])).sum()
    return ExampleScore(
        index, len(at), -float(log_q[at, tokens].sum()), -float(log_p[at, tokens].sum()), float(kl)
    )


def assert_close(actual: list[ExampleScore], expected: list[ExampleScore]) -> None:
    assert sorted(one.index for one in actual) == [one.index for one in expected]
    by_index = {one.index: one for one in actual}
    for one in expected:
        other = by_index[one.index]
        assert other.tokens == one.tokens
        for name in ("nll", "nll_reference", "kl"):
            assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("case", cases())
def test_scores_equal_the_naive_ones(case: Case, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 3 * 400)
    intervention = attached(case, scale=0.1)
    backbone = intervention.backbone
    scores = score(backbone, intervention, batched(EXAMPLES, size, 0, range(len(EXAMPLES))))
    expected = [naive(i, backbone, intervention.disabled(), backbone) for i in range(len(EXAMPLES))]
    assert_close(scores, expected)
    assert all(one.kl > 0 for one in scores)
    assert any(abs(one.nll - one.nll_reference) > 0.01 for one in scores)


@pytest.mark.parametrize("case", cases(fixed=False))
def test_no_update_is_exactly_the_reference(case: Case) -> None:
    intervention = attached(case, random=False)
    scores = score(intervention.backbone, intervention, batched(EXAMPLES, 4, 0, range(len(EXAMPLES))))
    assert len(scores) == len(EXAMPLES)
    for one in scores:
        assert one.kl == 0.0 and one.nll == one.nll_reference > 0


@pytest.mark.parametrize("case", cases())
def test_another_reference_model(case: Case) -> None:
    intervention, other = attached(case, scale=0.1), tiny_backbone(seed=6)
    backbone = intervention.backbone

    class Reference:
        """Reusable, as `SFTModule.reference_model` is for each batch."""

        def __enter__(self) -> Backbone:
            return other

        def __exit__(self, *_: Any) -> None:
            pass

    scores = score(backbone, intervention, batched(EXAMPLES, 4, 0, range(11)), Reference())  # type: ignore[arg-type]
    expected = [naive(i, backbone, Reference(), other) for i in range(len(EXAMPLES))]  # type: ignore[arg-type]
    assert_close(scores, expected)


def test_scoring_leaves_no_graph_and_no_mask() -> None:
    intervention = attached(("steering_vector", {"layer": 1, "positions": "answer"}))
    score(intervention.backbone, intervention, batched(EXAMPLES, 4, 0, [0, 1]))
    assert intervention.backbone.steer_BT is None
    assert all(p.grad is None for p in intervention.trainable_parameters().values())


def test_token_means_weigh_tokens_not_examples() -> None:
    means = token_means([ExampleScore(0, 1, 4.0, 2.0, 1.0), ExampleScore(1, 3, 0.0, 2.0, 0.0)])
    assert means["loss"] == 1.0
    assert means["loss_reference"] == 1.0
    assert means["kl"] == 0.25
    assert means["perplexity"] == pytest.approx(2.718281828)
