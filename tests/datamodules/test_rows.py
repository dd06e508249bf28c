"""Padding, masks and targets, exact on rows made by hand."""

import torch

from em.datamodules.rows import MicroBatch, Rows, batched, collate, joined
from em.datamodules.sources import Example

PAD = 9
EXAMPLES = [
    Example([1, 2, 3, 4, 5], [False, False, True, True, False], "f:1", "a"),
    Example([6, 7], [False, True], "f:2", "b"),
    Example([1, 8, 8], [True, True, True], "f:3", "c"),
]


def exact(tensor: torch.Tensor, expected: list) -> None:
    assert tensor.tolist() == expected


def test_collate_pads_on_the_right() -> None:
    rows = collate(EXAMPLES, [2, 0], PAD)
    exact(rows.input_ids_BT, [[1, 8, 8, PAD, PAD], [1, 2, 3, 4, 5]])
    exact(rows.answer_BT, [[True, True, True, False, False], [False, False, True, True, False]])
    exact(rows.length_B, [3, 5])
    exact(rows.index_B, [2, 0])
    assert len(rows) == 2 and rows.input_ids_BT.dtype == torch.int64


def test_positions_that_predict_answers_and_their_targets() -> None:
    rows = collate(EXAMPLES, [0, 1, 2], PAD)
    exact(
        rows.predicts_BT,
        [
            [False, True, True, False, False],
            [True, False, False, False, False],
            [True, True, False, False, False],
        ],
    )
    # Row by row, the token after each of these positions; a first token is never predicted.
    exact(rows.targets_N, [3, 4, 7, 8, 8])
    assert [example.targets for example in EXAMPLES] == rows.predicts_BT.sum(1).tolist() == [2, 1, 2]


def test_an_answer_at_the_last_position_does_not_wrap_round() -> None:
    rows = collate([Example([1, 2], [True, True], "f:1", "")], [0], PAD)
    exact(rows.predicts_BT, [[True, False]])
    exact(rows.targets_N, [2])


def test_real_tokens_are_neither_padding_nor_blank() -> None:
    rows = collate(EXAMPLES, [1, 2], PAD)
    exact(rows.real_BT, [[True, True, False], [True, True, True]])
    # A token that happens to be the padding id is real where the row has it.
    own = collate([Example([PAD, 1], [False, True], "f:1", ""), EXAMPLES[2]], [0, 1], PAD)
    exact(own.real_BT, [[True, True, False], [True, True, True]])


def test_no_examples_give_one_blank_row_that_counts_nowhere() -> None:
    rows = collate(EXAMPLES, [], PAD)
    exact(rows.input_ids_BT, [[PAD, PAD]])
    exact(rows.index_B, [-1])
    assert not rows.answer_BT.any() and not rows.predicts_BT.any() and not rows.real_BT.any()
    assert rows.targets_N.shape == (0,)
    assert len(rows) == 1


def test_joined_widens_to_the_longer_in_both_orders() -> None:
    short, long = collate(EXAMPLES, [1], PAD), collate(EXAMPLES, [0, 2], PAD)
    together = joined(short, long, PAD)
    exact(together.input_ids_BT, [[6, 7, PAD, PAD, PAD], [1, 2, 3, 4, 5], [1, 8, 8, PAD, PAD]])
    exact(together.answer_BT[0], [False, True, False, False, False])
    exact(together.length_B, [2, 5, 3])
    exact(together.index_B, [1, 0, 2])
    exact(together.targets_N, [7, 3, 4, 8, 8])
    swapped = joined(long, short, PAD)
    exact(swapped.index_B, [0, 2, 1])
    exact(swapped.input_ids_BT[2], [6, 7, PAD, PAD, PAD])


def test_joined_keeps_blank_rows_blank() -> None:
    together = joined(collate(EXAMPLES, [], PAD), collate(EXAMPLES, [2], PAD), PAD)
    exact(together.real_BT, [[False, False, False], [True, True, True]])
    exact(together.targets_N, [8, 8])


def test_batched_sorts_by_length_and_leads_back_to_the_examples() -> None:
    first, second = batched(EXAMPLES, 2, PAD, range(3))
    exact(first.index_B, [1, 2])
    exact(second.index_B, [0])
    exact(first.input_ids_BT, [[6, 7, PAD], [1, 8, 8]])
    assert batched(EXAMPLES, 2, PAD, []) == []
    (only,) = batched(EXAMPLES, 8, PAD, [2, 0])
    exact(only.index_B, [2, 0])


def devices(rows: Rows) -> set[str]:
    return {tensor.device.type for tensor in vars(rows).values()}


def test_a_micro_batch_moves_all_its_tensors() -> None:
    sft, kl = collate(EXAMPLES, [0], PAD), collate(EXAMPLES, [1, 2], PAD)
    moved = MicroBatch(sft, kl, 5, 7, 3, 1).to("meta")
    assert devices(moved.sft) == {"meta"} and moved.kl is not None and devices(moved.kl) == {"meta"}
    assert (moved.sft_tokens, moved.kl_tokens, moved.step, moved.micro) == (5, 7, 3, 1)
    assert devices(sft) == {"cpu"}  # the original is untouched
    alone = MicroBatch(sft, None, 5, 0, 3, 1).to("meta")
    assert alone.kl is None and devices(alone.sft) == {"meta"}
