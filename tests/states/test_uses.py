"""Which examples a run uses, and the keys of their states."""

from dataclasses import replace

import torch

from em.datamodules.rows import collate
from em.datamodules.sources import Example
from em.datamodules.streams import Stream, Windows
from em.states.keys import kept_positions, key_of, row_keys
from em.states.uses import Uses, items_of, tokens_of, uses_of


def example(*ids: int, begin: int = 1) -> Example:
    return Example(list(ids), [at >= begin for at in range(len(ids))], "test:1", "p")


SFT = [example(5, 6, 7 + number) for number in range(6)]
KL = [example(8, 9 + number, 3, 4, begin=2) for number in range(5)]


def stream(rows: list[Example], size: int, buckets: int = 1) -> tuple[Windows, list[Example]]:
    return Windows(Stream([len(rows)], None, 0, "x"), rows, size, None, buckets), rows


def test_only_what_the_steps_read_is_used() -> None:
    sft, kl = stream(SFT, 2), stream(KL, 1)
    uses = uses_of(sft, kl, 2, lambda step: True)
    assert uses.sft == [SFT[index] for index in sorted([*sft[0].indices(0), *sft[0].indices(1)])]
    assert (len(uses.sft), len(uses.kl), uses.passes) == (4, 2, 6)
    assert uses_of(sft, kl, 6, lambda step: step < 3).passes == 12 + 3
    assert uses_of(sft, None, 6, lambda step: True) == Uses(SFT, [], 12)
    bucketed = stream(SFT, 2, buckets=3)
    assert uses_of(bucketed, None, 1, lambda step: True).sft == [
        SFT[index] for index in sorted(bucketed[0].indices(0))
    ]


def test_keys_follow_tokens_and_positions() -> None:
    one = SFT[0]
    assert key_of(one.ids) == key_of(list(one.ids)) != key_of([*one.ids[:-1], 99])
    answer, every = kept_positions(one, False), kept_positions(one, True)
    assert (answer, every) == ([True, True, False], [True, True, True])
    assert len({key_of(one.ids), key_of(one.ids, answer), key_of(one.ids, every)}) == 3


def test_rows_of_a_batch_have_the_keys_of_their_examples() -> None:
    mixed = [KL[0], SFT[0], example(7, 7, begin=2)]  # the last has no answer token
    rows = collate(mixed, [0, 1, 2], pad=0)
    assert row_keys(rows) == [key_of(one.ids) for one in mixed]
    expected = [key_of(one.ids, kept_positions(one, False)) for one in mixed[:2]]
    assert row_keys(rows, rows.predicts_BT) == [*expected, None]
    assert row_keys(rows, rows.real_BT) == [key_of(one.ids, kept_positions(one, True)) for one in mixed]
    wide = replace(rows, input_ids_BT=torch.nn.functional.pad(rows.input_ids_BT, (0, 3), value=57))
    assert row_keys(wide) == row_keys(rows)
    assert row_keys(collate(mixed, [], pad=0)) == [None]


def test_every_state_is_needed_once() -> None:
    uses = Uses([*SFT, KL[0]], [*KL, KL[0]], passes=20)
    items = items_of(uses, ["reference", "lower"], everywhere=False)
    assert len(items) == len(SFT) + len(KL) + 1, "KL[0] stands there for both, and for its lower states"
    assert tokens_of(items, "lower") == {key_of(one.ids): len(one.ids) for one in [*KL, *SFT]}
    assert list(tokens_of(items, "reference").values()) == [2] * 5
    assert list(tokens_of(items_of(uses, ["reference"], everywhere=True), "reference").values()) == [4] * 5
    assert [item.keys.keys() for item in items_of(uses, ["lower"], False)] == [{"lower"}] * 11
    assert items_of(uses, [], False) == []
