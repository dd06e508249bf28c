"""The order of examples: pure functions of position, exact shares, and nothing lost or repeated."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.datamodules.rows import MicroBatch
from em.datamodules.sources import Example
from em.datamodules.streams import MicroBatches, Stream, Windows

PAD = 0
quick = settings(max_examples=60, deadline=None)
sizes_of_sources = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def examples_of(count: int, seed: int = 0) -> list[Example]:
    """Examples of varied length; the number of answer tokens varies apart from it."""
    made = []
    for number in range(count):
        length = 3 + (number * 7 + seed) % 11
        answers = 1 + (number * 5 + seed) % (length - 1)
        mask = [False] * (length - answers) + [True] * answers
        made.append(Example([number + 1] * length, mask, f"f:{number}", str(number)))
    return made


def first(stream: Stream, count: int, start: int = 0) -> list[int]:
    return [stream[position] for position in range(start, start + count)]


@quick
@given(sizes=sizes_of_sources, weighted=st.booleans(), positions=st.lists(st.integers(0, 200), max_size=20))
def test_a_stream_is_a_pure_function_of_position(
    sizes: list[int], weighted: bool, positions: list[int]
) -> None:
    weights = [float(index + 1) for index in range(len(sizes))] if weighted else None
    in_order = first(Stream(sizes, weights, 3, "sft"), 201)
    jumping = Stream(sizes, weights, 3, "sft")
    assert [jumping[position] for position in positions] == [in_order[position] for position in positions]


@quick
@given(sizes=sizes_of_sources, epoch=st.integers(0, 5), seed=st.integers(0, 99))
def test_every_epoch_is_a_permutation(sizes: list[int], epoch: int, seed: int) -> None:
    total = sum(sizes)
    assert sorted(first(Stream(sizes, None, seed, "sft"), total, epoch * total)) == list(range(total))


def test_seeds_purposes_and_epochs_have_orders_of_their_own() -> None:
    orders = [
        first(Stream([30], None, 0, "sft"), 30),
        first(Stream([30], None, 0, "sft"), 30, 30),
        first(Stream([30], None, 1, "sft"), 30),
        first(Stream([30], None, 0, "kl"), 30),
        list(range(30)),
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def sources_of(indices: list[int], sizes: list[int]) -> list[int]:
    owner = [source for source, size in enumerate(sizes) for _ in range(size)]
    return [owner[index] for index in indices]


@quick
@given(
    sources=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=4),
    block=st.integers(0, 4),
)
def test_weights_give_every_block_the_same_exact_shares(sources: list[tuple[int, int]], block: int) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    total = sum(sizes)
    stream = Stream(sizes, [float(weight) for weight in weights], 5, "kl")
    counts = Counter(sources_of(first(stream, total, block * total), sizes))
    assert sum(counts.values()) == total
    for source, weight in enumerate(weights):
        assert abs(counts[source] - Fraction(weight, sum(weights)) * total) < 1
    assert counts == Counter(sources_of(first(stream, total), sizes))


def test_the_largest_remainders_get_the_rest() -> None:
    # 10 positions at 1 : 1 : 4 are 1.67, 1.67 and 6.67: three rests of 2/3, of which two are given out.
    counts = Counter(sources_of(first(Stream([4, 4, 2], [1.0, 1.0, 4.0], 0, "sft"), 10), [4, 4, 2]))
    assert counts == {0: 2, 1: 2, 2: 6}
    # 1.25 and 3.75
    assert Counter(sources_of(first(Stream([1, 4], [1.0, 3.0], 0, "sft"), 5), [1, 4])) == {0: 1, 1: 4}


@quick
@given(
    sources=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=2, max_size=4),
    blocks=st.integers(1, 6),
)
def test_no_row_of_a_weighted_source_repeats_before_all_were_used(
    sources: list[tuple[int, int]], blocks: int
) -> None:
    sizes = [size for size, _ in sources]
    stream = Stream(sizes, [float(weight) for _, weight in sources], 2, "kl")
    seen = Counter(first(stream, blocks * sum(sizes)))
    begin = 0
    for size in sizes:
        uses = [seen[index] for index in range(begin, begin + size)]
        assert max(uses) - min(uses) <= 1
        begin += size


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """(examples, epochs, micro batch, accumulate, world size, buckets)."""
    return (
        draw(st.integers(1, 40)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
    )


def windows_of(count: int, size: int, total: int | None, buckets: int = 1, seed: int = 0) -> Windows:
    stream = Stream([count], None, seed, "sft")
    return Windows(stream, examples_of(count), size, total, buckets, seed, "sft-buckets")


@quick
@given(layout=layouts())
def test_every_example_comes_once_an_epoch(layout: tuple[int, int, int, int, int, int]) -> None:
    count, epochs, micro, accumulate, world, buckets = layout
    size, total = micro * accumulate * world, count * epochs
    windows = windows_of(count, size, total, buckets)
    steps = math.ceil(total / size)
    seen: Counter[int] = Counter()
    for step in range(steps):
        groups = [windows.group(step, index, accumulate * world) for index in range(accumulate * world)]
        flat = [index for group in groups for index in group]
        assert flat == windows.indices(step)
        assert len(flat) == (
            size if step < steps - 1 else total - size * (steps - 1)
        )  # only the last is short
        lengths = [len(group) for group in groups]
        assert max(lengths) - min(lengths) <= 1 and max(lengths) <= micro
        seen.update(flat)
    assert seen == dict.fromkeys(range(count), epochs)


@quick
@given(layout=layouts())
def test_buckets_only_regroup(layout: tuple[int, int, int, int, int, int]) -> None:
    count, epochs, micro, accumulate, world, buckets = layout
    size, total = micro * accumulate * world, count * epochs
    plain, bucketed = windows_of(count, size, total), windows_of(count, size, total, buckets)
    steps = math.ceil(total / size)
    for begin in range(0, steps, buckets):
        span = range(begin, min(begin + buckets, steps))
        assert Counter(i for step in span for i in bucketed.indices(step)) == Counter(
            i for step in span for i in plain.indices(step)
        )


def test_without_buckets_a_window_is_its_part_of_the_stream_shortest_first() -> None:
    windows, stream = windows_of(20, 6, None), Stream([20], None, 0, "sft")
    examples = examples_of(20)
    for step in (0, 3, 7):
        indices = windows.indices(step)
        assert sorted(indices) == sorted(first(stream, 6, step * 6))
        lengths = [len(examples[index].ids) for index in indices]
        assert lengths == sorted(lengths)


def test_buckets_bring_like_lengths_together_in_shuffled_order() -> None:
    examples = examples_of(60)
    windows = windows_of(60, 5, None, buckets=12)
    spans = []
    for step in range(12):
        lengths = [len(examples[index].ids) for index in windows.indices(step)]
        spans.append((min(lengths), max(lengths)))
    assert spans != sorted(spans)  # steps do not go from short to long
    in_order = sorted(spans)
    assert all(one[1] <= other[0] for one, other in zip(in_order, in_order[1:], strict=False))


def test_the_short_window_stays_last_in_its_bucket() -> None:
    for seed in range(10):
        windows = windows_of(22, 5, 22, buckets=5, seed=seed)
        assert [len(windows.indices(step)) for step in range(5)] == [5, 5, 5, 5, 2]


def all_batches(
    world: int, steps: int, accumulate: int, sft: Windows, kl: Windows | None, everywhere: bool, count: int
) -> list[list[MicroBatch]]:
    """The micro-batches of every rank."""
    rows = examples_of(count)
    other = None if kl is None else (kl, rows)
    ranks = [
        MicroBatches((sft, rows), other, steps, accumulate, rank, world, everywhere, PAD)
        for rank in range(world)
    ]
    assert {len(batches) for batches in ranks} == {steps * accumulate}
    return [[batches[number] for number in range(len(batches))] for batches in ranks]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_micro_batches_of_all_ranks_make_up_the_window_and_its_token_counts(
    world: int, everywhere: bool
) -> None:
    count, accumulate, total = 31, 2, 31
    size = 2 * accumulate * world
    steps = math.ceil(total / size)
    sft, kl = windows_of(count, size, total), windows_of(count, 3 * accumulate * world, None, 2, seed=1)
    ranks = all_batches(world, steps, accumulate, sft, kl, everywhere, count)
    for step in range(steps):
        batches = [batch for rank in ranks for batch in rank if batch.step == step]
        assert sorted(batch.micro for batch in batches) == sorted(list(range(accumulate)) * world)
        rows = [int(i) for batch in batches for i in batch.sft.index_B if i >= 0]
        assert sorted(rows) == sorted(sft.indices(step))
        (sft_tokens,) = {batch.sft_tokens for batch in batches}
        assert sft_tokens == sum(int(batch.sft.predicts_BT.sum()) for batch in batches)
        kl_rows = [batch.kl for batch in batches if batch.kl is not None]
        assert len(kl_rows) == len(batches)
        assert sorted(int(i) for rows in kl_rows for i in rows.index_B) == sorted(kl.indices(step))
        (kl_tokens,) = {batch.kl_tokens for batch in batches}
        masks = [rows.real_BT if everywhere else rows.predicts_BT for rows in kl_rows]
        assert kl_tokens == sum(int(mask.sum()) for mask in masks)


def test_a_short_window_gives_blank_rows_where_a_group_is_empty() -> None:
    windows = windows_of(9, 8, 9)  # the second step has one example for four groups
    ranks = all_batches(2, 2, 2, windows, None, False, 9)
    last = [batch for rank in ranks for batch in rank if batch.step == 1]
    assert sorted(batch.sft.index_B.tolist() for batch in last)[:3] == [[-1], [-1], [-1]]
    assert sum(int(batch.sft.predicts_BT.sum()) for batch in last) == last[0].sft_tokens > 0
    assert all(batch.kl is None and batch.kl_tokens == 0 for batch in last)


def test_ranks_that_run_together_get_neighbouring_groups() -> None:
    windows = windows_of(36, 12, None)  # shortest first
    ranks = all_batches(2, 3, 3, windows, None, False, 36)
    for step in range(3):
        together = [batch for pair in zip(*ranks, strict=True) for batch in pair if batch.step == step]
        assert [int(i) for batch in together for i in batch.sft.index_B] == windows.indices(step)
