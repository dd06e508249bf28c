"""Samples of activations: uniform, bounded, and independent of batches and processes."""

import torch

from em.datamodules.rows import collate
from em.datamodules.sources import Example
from em.hooks import Site
from em.measurements.activations import activations, collect, merged
from tests.tiny import tiny_backbone

SITES = [Site(0), Site(2)]
EXAMPLES = [
    Example(
        [5 + i, 6, 7 + i, 8, 9 + i, 10 + i][: 4 + i % 3],
        [False, False, True, True, True, True][: 4 + i % 3],
        "",
        "",
    )
    for i in range(6)
]
TOKENS = sum(sum(example.answer) for example in EXAMPLES)


def batches(*groups: list[int]) -> list:  # type: ignore[type-arg]
    return [collate(EXAMPLES, group, 0) for group in groups]


def sample(rows: list, count: int, seed: int = 0):  # type: ignore[no-untyped-def,type-arg]
    return collect(tiny_backbone(), {"all": rows}, SITES, samples=count, seed=seed)["all"].samples


def test_all_tokens_when_there_are_few_enough() -> None:
    found = sample(batches([0, 1, 2], [3, 4, 5], []), 100)
    assert found.keys_N.shape == (TOKENS,) and found.hidden[SITES[0]].shape == (TOKENS, 32)
    backbone, row = tiny_backbone(), collate(EXAMPLES, [4], 0)
    hidden = activations(backbone, row, SITES)[SITES[1]][row.answer_BT]
    distances = torch.cdist(hidden, found.hidden[SITES[1]])
    assert float(distances.min(dim=1).values.max()) < 1e-4


def test_the_limit_holds_and_batches_do_not_matter() -> None:
    one = sample(batches([0, 1, 2, 3, 4, 5]), 7)
    other = sample(batches([5, 3], [1], [0, 2, 4]), 7)
    assert one.keys_N.shape == (7,) and torch.equal(one.keys_N, other.keys_N)
    for site in SITES:
        assert torch.allclose(one.hidden[site], other.hidden[site], atol=1e-5)
    assert not torch.equal(one.keys_N, sample(batches([0, 1, 2, 3, 4, 5]), 7, seed=1).keys_N)


def test_processes_merge_to_the_sample_of_one() -> None:
    backbone = tiny_backbone()
    parts = [collect(backbone, {"all": batches(group)}, SITES, samples=5) for group in ([0, 2, 4], [1, 3, 5])]
    together = merged(parts)["all"].samples
    assert together is not None
    assert torch.equal(together.keys_N, sample(batches([0, 1, 2, 3, 4, 5]), 5).keys_N)


def test_every_token_is_as_likely_as_every_other() -> None:
    rows, counts = batches([0, 1, 2, 3, 4, 5]), torch.zeros(TOKENS)
    every = sample(rows, 1000).hidden[SITES[0]]
    repeats = 200
    backbone = tiny_backbone()
    for seed in range(repeats):
        found = collect(backbone, {"all": rows}, [SITES[0]], samples=4, seed=seed)["all"].samples
        assert found is not None
        counts[torch.cdist(found.hidden[SITES[0]], every).argmin(dim=1)] += 1
    assert counts.sum() == 4 * repeats
    expected = 4 * repeats / TOKENS
    assert float(((counts - expected) ** 2 / expected).sum()) < 3 * TOKENS  # χ², generously


def test_none_unless_asked_for() -> None:
    assert collect(tiny_backbone(), {"all": batches([0])}, SITES)["all"].samples is None
