"""KL on plain text against full logits, with controls of exactly the solution's norm."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.plain_text import Corpus, Document, corpus_rows
from em.datamodules.rows import Rows, collate
from em.errors import MeasurementError
from em.interventions.base import Intervention
from em.interventions.steering import Steering
from em.interventions.steering_vector import SteeringVector
from em.measurements import significance as module
from em.measurements.significance import Significance, significance, significance_table
from em.modules import losses
from em.stats import Resampling
from tests.interventions.examples import direction
from tests.measurements.samples import SOLUTIONS, changed, part_norms, solutions, tokens, vector
from tests.tiny import randomise, tiny_backbone

Kind = Callable[..., Intervention]


def corpus(count: int = 5) -> Corpus:
    generator = torch.Generator().manual_seed(2)
    lengths = [2 + (3 * number) % 7 for number in range(count)]
    return Corpus([Document(tokens(n, generator), "s", str(i), i) for i, n in enumerate(lengths)])


CORPUS = corpus()


def batches(size: int = 2) -> list[Rows]:
    return list(corpus_rows(CORPUS, size, 0))


def by_document(found: Significance) -> np.ndarray:
    """KL of the solution and its controls in the order of the corpus: (1 + C, K, E)."""
    every = np.concatenate([found.kl_KE[None], found.controls_CKE])
    return np.asarray(every[:, :, np.argsort(found.index_E)])


@torch.no_grad()
def log_probs(backbone: Backbone, ids: list[int]) -> Tensor:
    with backbone.steering_positions(torch.ones(1, len(ids), dtype=torch.bool)):
        logits = backbone.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits.double().log_softmax(-1)


def naive(backbone: Backbone, reference: list[Tensor]) -> list[float]:
    """Σ over tokens and vocabulary of p·(log p − log q) of each document."""
    found = []
    for one, log_p in zip(CORPUS.documents, reference, strict=True):
        found.append(float((log_p.exp() * (log_p - log_probs(backbone, one.ids))).sum()))
    return found


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_kl_is_summed_over_the_vocabulary_and_over_real_tokens(kind: Kind) -> None:
    solution = kind()
    backbone, own, kept = solution.backbone, solution.norm(), solution.gathered()
    found = significance(backbone, solution, batches(), [0.0, 0.5 * own, own], controls=1)
    assert found.norm == own and not changed(kept, solution)
    with solution.disabled():
        reference = [log_probs(backbone, one.ids) for one in CORPUS.documents]
    with solution.rescaled(0.5):
        half = naive(backbone, reference)
    kl = by_document(found)
    assert kl[0, 1] == pytest.approx(half, rel=1e-3)
    assert kl[0, 2] == pytest.approx(naive(backbone, reference), rel=1e-3)
    assert np.all(kl[:, 0] == 0), "at norm 0 it is the reference"
    assert np.all(kl[:, 1:] > 1e-4)
    lengths = [len(one.ids) for one in CORPUS.documents]
    assert found.tokens_E[np.argsort(found.index_E)].tolist() == lengths


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_controls_have_exactly_the_norm_of_the_solution(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published code drew `randn · ‖v‖`, √D times too long."""
    solution, seen = kind(), []
    x, norms, inner = solution.update(), part_norms(solution), module._hidden

    def watching(*args: Any) -> Tensor:
        seen.append((part_norms(solution), x.cosine(solution.update())))
        return inner(*args)

    monkeypatch.setattr(module, "_hidden", watching)
    grid = [0.5, 3.0]
    significance(solution.backbone, solution, batches(8), grid, controls=3)
    seen = seen[1:]  # the first pass is the reference's
    assert len(seen) == 2 * (1 + 3)
    for number, (parts, cosine) in enumerate(seen):
        norm = grid[number % 2]
        assert np.linalg.norm(list(parts.values())) == pytest.approx(norm, rel=1e-5)
        for name, own in norms.items():
            assert parts[name] == pytest.approx(own * norm / solution.norm(), rel=1e-5)
        assert cosine == pytest.approx(1.0 if number < 2 else 0.0, abs=1e-6)


def test_controls_are_keyed_and_shared_by_solutions_of_one_shape() -> None:
    one, other = vector(seed=1), vector(seed=2)
    grid = [2.0]
    a, again, b, c = (
        by_document(significance(each.backbone, each, batches(), grid, 2, seed))
        for each, seed in ((one, 0), (one, 0), (other, 0), (one, 1))
    )
    assert np.array_equal(a, again)
    assert np.array_equal(a[0], c[0]) and np.abs(a[1:] - c[1:]).min() > 1e-6
    assert np.abs(a[1] - a[2]).min() > 1e-6
    # The same noise less its component along each solution, so alike but not equal.
    noise = [np.corrcoef(a[k, 0], b[k, 0])[0, 1] for k in (1, 2)]
    assert min(noise) > 0.9


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_padding_never_counts(positions: Any) -> None:
    solution = SteeringVector(layer=1, positions=positions, scale=2.0)
    solution.attach(tiny_backbone())
    randomise(solution)
    narrow = batches(1)
    wide = [
        Rows(
            torch.nn.functional.pad(row.input_ids_BT, (0, 9), value=7),
            torch.nn.functional.pad(row.answer_BT, (0, 9)),
            row.length_B,
            row.index_B,
        )
        for row in narrow
    ]
    found = [
        significance(solution.backbone, solution, given, [1.0, 4.0], controls=2)
        for given in (narrow, wide, batches(5), [*narrow, collate([], [], 0)])
    ]
    for one in found[1:]:
        assert by_document(one) == pytest.approx(by_document(found[0]), rel=1e-4)
        assert sorted(one.tokens_E) == sorted(found[0].tokens_E)


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    solution = vector()
    whole = significance(solution.backbone, solution, batches(), [1.0], controls=1)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 3 * 400)
    parts = significance(solution.backbone, solution, batches(), [1.0], controls=1)
    assert by_document(parts) == pytest.approx(by_document(whole), rel=1e-5)


def test_something_else_attached_below_acts_once() -> None:
    """Both models have it; its hooks must not fire again on what was kept from below the solution."""
    solution = vector()
    backbone = solution.backbone
    below = Steering.given(direction(), layers=0, coefficient=3.0)
    below.attach(backbone)
    found = significance(backbone, solution, batches(), [solution.norm()], controls=0)
    with solution.disabled():
        reference = [log_probs(backbone, one.ids) for one in CORPUS.documents]
    assert by_document(found)[0, 0] == pytest.approx(naive(backbone, reference), rel=1e-3)


def test_what_cannot_be_measured_is_refused() -> None:
    solution = vector()
    with pytest.raises(MeasurementError, match="no plain text"):
        significance(solution.backbone, solution, [], [1.0])
    with pytest.raises(MeasurementError, match="not finite"):
        significance(solution.backbone, solution, batches(), [1e39], controls=0)
    zero = vector(scale=0.0)
    with pytest.raises(MeasurementError, match="norm 0"):
        significance(zero.backbone, zero, batches(), [1.0])


def by_hand(slope: float, control: float = 0.1, extra: float = 0.0) -> Significance:
    """Six documents with KL = slope · norm per token; `extra` is added for the last two."""
    norms, tokens_E = [0.0, 1.0, 2.0], np.array([4.0, 1.0, 2.0, 3.0, 2.0, 2.0])
    per_token_KE = np.outer(norms, np.full(6, slope) + extra * (np.arange(6) >= 4))
    controls = np.stack([np.outer(norms, np.full(6, control * k)) for k in (1, 3)])
    return Significance(1.5, norms, per_token_KE * tokens_E, controls * tokens_E, tokens_E, np.arange(6.0))


def test_slopes_are_least_squares_through_the_origin() -> None:
    draws = Resampling([str(number) for number in range(6)], 20)
    assert by_hand(2.0).slope(draws) == pytest.approx(np.full(21, 2.0))
    assert by_hand(2.0).control_slope(draws) == pytest.approx(np.full(21, 0.2))
    bent = Significance(
        1.0, [1.0, 2.0], np.array([[1.0], [1.0]]), np.zeros((0, 2, 1)), np.ones(1), np.zeros(1)
    )
    assert bent.slope(Resampling(["a"], 1))[0] == pytest.approx((1 * 1 + 2 * 1) / (1 + 4))


def test_the_table_has_a_row_for_every_slice() -> None:
    results = {"general": by_hand(2.0, extra=1.0), "narrow": by_hand(0.5), "vector": by_hand(9.0)}
    known = solutions(general="weights", narrow="weights", vector="stream")
    slices = ["web"] * 4 + ["code"] * 2
    table: dict[str, Any] = significance_table(results, known, [*slices, "never read"], 40)
    assert list(table["slices"]) == ["web", "code"]
    web, code = table["slices"]["web"], table["slices"]["code"]
    assert (web["documents"], web["tokens"], code["documents"], code["tokens"]) == (4, 10, 2, 4)
    assert web["solutions"]["general"]["kl"] == pytest.approx([0.0, 2.0, 4.0])
    assert code["solutions"]["general"]["kl"] == pytest.approx([0.0, 3.0, 6.0])
    assert web["solutions"]["general"]["control"]["kl"] == pytest.approx([0.0, 0.2, 0.4])
    assert web["solutions"]["narrow"]["control_slope"]["value"] == pytest.approx(0.2)
    assert web["solutions"]["narrow"]["controls"] == 2
    [difference] = code["differences"]
    assert (difference["a"], difference["b"]) == ("general", "narrow"), "norms of other spaces: not compared"
    assert difference["value"] == pytest.approx(3.0 - 0.5)
    assert difference["low"] == pytest.approx(difference["high"])


def test_factors_held_in_groups_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    solution = vector(seed=1)
    grid = [0.0, 0.5, 1.0, 2.0, 3.0]
    found = []
    for held in (1, 2**26):
        monkeypatch.setattr(module, "HELD_ELEMENTS", held)
        found.append(significance(solution.backbone, solution, batches(4), grid, 2))
    assert np.array_equal(found[0].kl_KE, found[1].kl_KE)
    assert np.array_equal(found[0].controls_CKE, found[1].controls_CKE)
    assert not found[0].kl_KE[0].any() and found[0].kl_KE[1:].all()
