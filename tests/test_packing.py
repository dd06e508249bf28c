"""Rows without padding give what padded rows and single rows give, in every family."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from em.backbone import Backbone
from em.errors import BackboneError
from em.interventions.base import Intervention
from em.interventions.lora import Lora
from em.packing import Layout, shared_prefix
from tests.interventions.examples import Case, attached, cases
from tests.tiny import FAMILIES, tiny_backbone, tiny_model, tiny_tokenizer, token_ids

LENGTHS = torch.tensor([5, 9, 1, 7])
LONGER = torch.tensor([5, 9, 6, 7])
PACKED = [family for family in FAMILIES if family != "gemma2"]  # its soft cap needs the eager attention
shared = functools.cache(tiny_backbone)


def real(lengths_B: Tensor = LENGTHS, width: int = 9) -> Tensor:
    return torch.arange(width) < lengths_B[:, None]


def seen_rows(backbone: Backbone) -> tuple[list[tuple[int, ...]], Any]:
    """Shapes of what enters the second layer, and the hook that notes them."""
    shapes: list[tuple[int, ...]] = []

    def note(_module: Any, args: Any, kwargs: Any) -> None:
        shapes.append(tuple((args[0] if args else kwargs["hidden_states"]).shape[:2]))

    return shapes, backbone.layers[1].register_forward_pre_hook(note, with_kwargs=True)


def test_layout_packs_and_unpacks() -> None:
    layout = Layout(torch.tensor([2, 0, 3]), 3)
    values = torch.arange(9.0).view(3, 3)
    assert layout.pack(values).tolist() == [[0, 1, 6, 7, 8]]
    assert layout.position_1N.tolist() == [[0, 1, 0, 1, 2]]
    assert layout.lengths == [2, 3]
    back = layout.unpack(layout.pack(values[..., None]))
    assert back[..., 0].tolist() == [[0, 1, 0], [0, 0, 0], [6, 7, 8]]


def test_layout_with_a_shared_beginning() -> None:
    layout = Layout(torch.tensor([3, 4, 3]), 4, prefix=2)
    values = torch.arange(12.0).view(3, 4)
    assert layout.pack(values).tolist() == [[0, 1, 2, 6, 7, 10]]
    assert layout.position_1N.tolist() == [[0, 1, 2, 2, 3, 2]]
    assert layout.lengths == [3, 2, 1]
    back = layout.unpack(layout.pack(values[..., None]))
    assert back[..., 0].tolist() == [[0, 1, 2, 0], [0, 1, 6, 7], [0, 1, 10, 0]]


def test_what_rows_share() -> None:
    ids_BT = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 4, 8]])
    full_B = torch.tensor([4, 4, 4])
    assert shared_prefix(ids_BT, full_B, None) == 2
    assert shared_prefix(ids_BT[:2], full_B[:2], None) == 3
    assert shared_prefix(ids_BT, torch.tensor([4, 4, 2]), None) == 1, "every row keeps a token of its own"
    steer_BT = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert shared_prefix(ids_BT, full_B, steer_BT) == 1, "rows that are steered differently differ"
    assert shared_prefix(ids_BT[:1], full_B[:1], None) == 0


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_equal_each_row_alone(family: str) -> None:
    backbone, ids_BT = shared(family), token_ids()
    shapes, handle = seen_rows(backbone)
    with torch.no_grad():
        together = backbone.trunk(ids_BT, None, LENGTHS)
        handle.remove()
        for row, length in enumerate(LENGTHS.tolist()):
            alone = backbone.trunk(ids_BT[row : row + 1, :length])
            torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-5, atol=1e-5)
    assert shapes == [(1, 22)], "22 real tokens in one row, no padding"
    assert not together[~real()].any()


def test_one_row_does_not_see_another() -> None:
    backbone, ids_BT = shared("llama"), token_ids()
    other_BT = ids_BT.clone()
    other_BT[0] = (ids_BT[0] + 7) % 390 + 3
    with torch.no_grad():
        one, other = (backbone.trunk(ids, None, LENGTHS) for ids in (ids_BT, other_BT))
    assert torch.equal(one[1:], other[1:])
    assert not torch.allclose(one[0], other[0])


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_sliding_window_holds_within_rows(family: str) -> None:
    window = {"sliding_window": 4}
    model = tiny_model(family, 3, **window)
    backbone, ids_BT = Backbone(model, tiny_tokenizer("chatml")), token_ids()
    wide = tiny_backbone(family, sliding_window=64)
    with torch.no_grad():
        packed, padded = backbone.trunk(ids_BT, None, LENGTHS), backbone.trunk(ids_BT)
        without = wide.trunk(ids_BT)
    torch.testing.assert_close(packed[real()], padded[real()], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(without[real()], padded[real()], atol=1e-3), "the window must matter here"


def test_a_soft_cap_in_attention_is_not_packed() -> None:
    backbone, ids_BT = shared("gemma2"), token_ids()
    shapes, handle = seen_rows(backbone)
    with torch.no_grad():
        assert torch.equal(backbone.trunk(ids_BT, None, LENGTHS), backbone.trunk(ids_BT))
    handle.remove()
    assert shapes == [(4, 9)] * 2


def test_always_is_refused_where_it_is_impossible() -> None:
    with pytest.raises(BackboneError, match="backbone.packing: always is not possible .* set it to auto"):
        Backbone(tiny_model("gemma2"), tiny_tokenizer("chatml"), "tiny", "always")


def test_under_dropout_rows_share_nothing() -> None:
    """Each row has a mask of its own, so equal tokens differ."""
    lora = Lora(r=2, dropout=0.5)
    backbone, ids_BT = tiny_backbone(), token_ids()
    lora.attach(backbone)
    ids_BT[:, :4] = ids_BT[0, :4]
    shapes, handle = seen_rows(backbone)
    for training in (True, False):
        for module in lora.training_modules():
            module.training = training
        backbone.trunk(ids_BT, None, LONGER)
    handle.remove()
    assert shapes == [(1, 27), (1, 27 - 3 * 4)]


def test_never_means_never() -> None:
    backbone = Backbone(tiny_model(), tiny_tokenizer("chatml"), "tiny", "never")
    shapes, handle = seen_rows(backbone)
    backbone.trunk(token_ids(), None, LENGTHS)
    handle.remove()
    assert shapes == [(4, 9)]
    for model, shape in ((backbone, (4, 9)), (shared("llama"), (1, 22))):
        with model.steering_positions(real()):
            steer = model.packed_steer(token_ids(), LENGTHS)
        assert steer is not None and steer.shape == shape


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("start", [1, 2])
def test_from_stored_lower_layers(family: str, start: int) -> None:
    backbone, ids_BT = shared(family), token_ids()
    with torch.no_grad():
        whole = backbone.trunk(ids_BT, None, LENGTHS)
        packed, padded = backbone.run_lower(ids_BT, start, LENGTHS), backbone.run_lower(ids_BT, start)
        assert packed is not None and padded is not None
        torch.testing.assert_close(packed[1][real()], padded[1][real()], rtol=1e-5, atol=1e-5)
        for lower in (packed, padded):
            upper = backbone.trunk(ids_BT, lower, LENGTHS)
            torch.testing.assert_close(upper, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", [0, 4])
@pytest.mark.parametrize("case", cases())
def test_every_intervention_acts_alike_on_packed_rows(case: Case, prefix: int) -> None:
    """Outputs and gradients, also of those that act at answer positions only, also where rows begin alike."""
    live = attached(case)
    backbone, ids_BT = live.backbone, token_ids()
    ids_BT[:, :prefix] = ids_BT[0, :prefix]
    answer_BT = real() & (torch.arange(9) > 2)
    if prefix:
        answer_BT[:, 2] = True
    lengths_B = LONGER if prefix else LENGTHS
    shapes, handle = seen_rows(backbone)
    found = []
    for lengths in (None, lengths_B):
        for parameter in live.trainable_parameters().values():
            parameter.grad = None
        with backbone.steering_positions(answer_BT):
            hidden_BTD = backbone.trunk(ids_BT, None, lengths)
        values = hidden_BTD[real(lengths_B)]
        if values.requires_grad:
            backbone.logits(values).logsumexp(-1).sum().backward()
        found.append((values.detach(), [p.grad for p in live.trainable_parameters().values()]))
    handle.remove()
    assert shapes == [(4, 9), (1, 27 - 3 * 3 if prefix else 22)]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    for padded, packed in zip(found[0][1], found[1][1], strict=True):
        if padded is not None or packed is not None:
            assert padded is not None and packed is not None
            scale = float(padded.abs().max())
            torch.testing.assert_close(padded, packed, rtol=1e-4, atol=1e-4 * scale)


def test_steering_positions_are_restored() -> None:
    backbone: Backbone = shared("llama")
    with backbone.steering_positions(real()):
        backbone.trunk(token_ids(), None, LENGTHS)
        assert backbone.steer_BT is not None and backbone.steer_BT.shape == (4, 9)
    assert backbone.steer_BT is None


def test_attention_without_a_layout_is_the_models_own() -> None:
    ids_BT = token_ids()
    mask_BT = real().long()
    plain = tiny_model()
    with torch.no_grad():
        theirs = plain(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        ours = shared("llama").model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("case", cases())
def test_merged_gives_the_same_and_leaves_no_trace(case: Case) -> None:
    live: Intervention = attached(case)
    backbone, ids_BT = live.backbone, token_ids()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}

    def out() -> Tensor:
        with torch.no_grad(), backbone.steering_positions(real()):
            return backbone.logits(backbone.trunk(ids_BT))

    plain = out()
    with live.disabled():
        reference = out()
    with live.rescaled(0.5):
        half = out()
    with live.perturbed(0.5, torch.Generator().manual_seed(1)):
        noisy = out()
    with live.merged():
        same = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(out(), plain, **same)
        with live.rescaled(0.5):
            torch.testing.assert_close(out(), half, **same)
        with live.perturbed(0.5, torch.Generator().manual_seed(1)):
            torch.testing.assert_close(out(), noisy, **same)
        with live.disabled():
            assert torch.equal(out(), reference)
        torch.testing.assert_close(out(), plain, **same)
    assert torch.equal(out(), plain)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
