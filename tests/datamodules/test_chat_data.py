"""The datamodule: lengths of runs, domains kept apart from training, shares of processes, resuming."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from em.config.schema import DataConfig, KLConfig, SourceConfig, TrainerConfig
from em.datamodules.chat import ChatData
from em.datamodules.rows import MicroBatch, Rows
from em.errors import DataError
from tests.tiny import write_rows
from tests.tokenizers import tiny_tokenizer

tokenizer = functools.cache(tiny_tokenizer)
COUNT = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "soup.jsonl", COUNT, "soup")
    write_rows(tmp_path / "tent.jsonl", COUNT, "tent")
    return tmp_path


def source(folder: Path, name: str, **options: Any) -> SourceConfig:
    return SourceConfig(path=str(folder / f"{name}.jsonl"), **options)


def chat_data(
    folder: Path,
    kl_term: KLConfig | None = None,
    trainer: TrainerConfig | None = None,
    seed: int = 0,
    world_size: int = 1,
    **data: Any,
) -> ChatData:
    given: dict[str, Any] = {
        "train": [source(folder, "soup")],
        "domains": {"soup": [source(folder, "soup")], "tent": [source(folder, "tent")]},
        "batch_size": 8,
        "micro_batch_size": 2,
        "held_out": 0.3,
        **data,
    }
    return ChatData(
        DataConfig(**given),
        kl_term or KLConfig(),
        trainer or TrainerConfig(),
        tokenizer("chatml"),
        seed,
        world_size,
    )


def as_rank(data: ChatData, rank: int = 0, world_size: int = 1, global_step: int = 0) -> ChatData:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, global_step=global_step)  # type: ignore[assignment]
    return data


def same(one: Rows | None, other: Rows | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(tensor.equal(vars(other)[name]) for name, tensor in vars(one).items())


def same_batch(one: MicroBatch, other: MicroBatch) -> bool:
    counts = [(b.sft_tokens, b.kl_tokens, b.step, b.micro) for b in (one, other)]
    return counts[0] == counts[1] and same(one.sft, other.sft) and same(one.kl, other.kl)


@pytest.mark.parametrize(
    ("epochs", "limit", "steps"), [(1.0, 16, 2), (1.0, 17, 3), (2.0, 17, 5), (0.5, 17, 1), (0.01, 17, 1)]
)
def test_epochs_give_the_number_of_steps(folder: Path, epochs: float, limit: int, steps: int) -> None:
    train = [source(folder, "soup", limit=limit)]
    data = chat_data(folder, trainer=TrainerConfig(epochs=epochs), train=train)
    assert data.steps == steps
    assert data.accumulate == 4 and data.micro_batches == 4 * steps
    batches = list(as_rank(data).train_dataloader())
    assert len(batches) == 4 * steps
    rows = [int(i) for batch in batches for i in batch.sft.index_B if i >= 0]
    assert len(rows) == max(1, round(epochs * limit))


def test_max_steps_goes_before_epochs_and_fills_every_window(folder: Path) -> None:
    train = [source(folder, "soup", limit=5)]
    data = chat_data(folder, trainer=TrainerConfig(epochs=1.0, max_steps=7), train=train)
    assert data.steps == 7
    sizes = [len(data.sft[0].indices(step)) for step in range(7)]
    assert sizes == [8] * 7  # an epoch of five rows ends within a window, which goes on with the next


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_batch(folder: Path, world_size: int) -> None:
    data = chat_data(folder, world_size=world_size)
    assert data.accumulate == 8 // (2 * world_size)
    rows = []
    for rank in range(world_size):
        batches = list(as_rank(data, rank, world_size).train_dataloader())
        assert len(batches) == data.steps * data.accumulate
        rows += [int(i) for batch in batches for i in batch.sft.index_B if i >= 0]
    assert sorted(rows) == list(range(len(data.sft[1])))  # one epoch, once each


def test_kl_rows_are_read_when_they_have_weight(folder: Path) -> None:
    kl = [source(folder, "tent")]
    data = chat_data(folder, KLConfig(weight=1.0, batch_size=4), kl=kl)
    batch = as_rank(data).train_dataloader().dataset[0]
    assert batch.kl is not None and len(batch.kl) == 1 and batch.kl_tokens > 0
    assert set(data.summary()) == {"train", "kl", "domain soup", "domain tent"}
    everywhere = chat_data(folder, KLConfig(weight=1.0, batch_size=4, positions="all"), kl=kl)
    assert as_rank(everywhere).train_dataloader().dataset[0].kl_tokens > batch.kl_tokens
    without = chat_data(folder, KLConfig(weight=0.0), kl=kl)
    assert without.kl is None and as_rank(without).train_dataloader().dataset[0].kl is None


def test_the_summary_accounts_for_every_row(folder: Path) -> None:
    summary = chat_data(folder, train=[source(folder, "soup", limit=10)]).summary()
    (train,), (held,) = summary["train"], summary["domain soup"]
    assert train["rows"] == train["used"] + train["other_part"] + train["over_limit"] == COUNT
    assert (train["used"], train["other_part"]) == (10, held["used"])
    assert train["answer_tokens"] > 0 and len(train["sha256"]) == 64


def test_a_domain_is_a_training_domain_when_it_shares_a_source(folder: Path) -> None:
    write_rows(folder / "other.jsonl", COUNT, "other")
    domains = {
        "both": [source(folder, "other"), source(folder, "soup")],
        "tent": [source(folder, "tent")],
        "soup": [source(folder, "soup", answer=None)],
    }
    assert chat_data(folder, domains=domains).training_domains == ["both", "soup"]
    assert chat_data(folder, domains={"tent": [source(folder, "tent")]}).training_domains == []


def test_held_out_rows_are_never_trained_on(folder: Path) -> None:
    data = chat_data(folder, KLConfig(weight=1.0), kl=[source(folder, "tent")])
    assert data.kl is not None
    trained = {example.prompt for example in data.sft[1] + data.kl[1]}
    held = {example.prompt for rows in data.domains.values() for example in rows}
    assert trained and held and trained.isdisjoint(held)
    assert len(trained) + len(held) == 2 * COUNT


def test_a_domain_whose_prompts_are_trained_on_is_refused(folder: Path) -> None:
    every = {"soup": [source(folder, "soup", part="all")]}
    with pytest.raises(
        DataError, match=rf"^data\.domains\.soup: \d+ of its {COUNT} prompts are trained on; leave"
    ):
        chat_data(folder, domains=every)
    tent = {"tent": [source(folder, "tent", part="all")]}
    assert chat_data(folder, domains=tent).domains["tent"]  # fine: no tent row is trained on
    with pytest.raises(DataError, match=r"^data\.domains\.tent: \d+ of its 60 prompts are trained on"):
        chat_data(folder, KLConfig(weight=1.0), domains=tent, kl=[source(folder, "tent")])


def test_the_same_prompt_in_another_file_counts_as_trained_on(folder: Path) -> None:
    (folder / "copy.jsonl").write_bytes((folder / "soup.jsonl").read_bytes())
    copied = {"copy": [source(folder, "copy")]}
    assert chat_data(folder, domains=copied).domains["copy"]  # the split is the same in both files
    with pytest.raises(DataError, match="copy: .* prompts are trained on"):
        chat_data(folder, domains={"copy": [source(folder, "copy", part="train")]})


def test_the_held_out_rows_do_not_depend_on_the_seed_but_the_order_does(folder: Path) -> None:
    one, other = chat_data(folder, seed=0), chat_data(folder, seed=1)
    assert one.domains == other.domains and one.sft[1] == other.sft[1]
    assert one.sft[0].indices(0) != other.sft[0].indices(0)
    again = chat_data(folder, seed=0)
    assert [again.sft[0].indices(step) for step in range(3)] == [
        one.sft[0].indices(step) for step in range(3)
    ]


def test_eval_limit_caps_the_rows_of_a_domain(folder: Path) -> None:
    every, few = chat_data(folder), chat_data(folder, eval_limit=3)
    assert few.domains["soup"] == every.domains["soup"][:3]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_measure_every_held_out_row_once(folder: Path, world_size: int) -> None:
    data = chat_data(folder)
    for name in data.domains:
        batches = [rows for rank in range(world_size) for _, rows in data.held_out([name], rank, world_size)]
        indices = sorted(int(index) for rows in batches for index in rows.index_B)
        assert indices == list(range(len(data.domains[name])))
        assert all(len(rows) <= 8 for rows in batches)
    in_order = [name for name, _ in data.held_out(["tent", "soup"])]
    assert in_order == sorted(in_order, reverse=True) and set(in_order) == {"tent", "soup"}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_covers_the_training_domains_once(folder: Path, world_size: int) -> None:
    data = chat_data(folder)
    assert data.training_domains == ["soup"]
    seen = []
    for rank in range(world_size):
        for rows in as_rank(data, rank, world_size).val_dataloader():
            for index, ids, length in zip(rows.index_B, rows.input_ids_BT, rows.length_B, strict=True):
                assert ids[:length].tolist() == data.domains["soup"][int(index)].ids
                seen.append(int(index))
    assert sorted(seen) == list(range(len(data.domains["soup"])))


def test_validation_falls_back_to_all_domains(folder: Path) -> None:
    data = chat_data(folder, domains={"tent": [source(folder, "tent")]})
    rows = [int(i) for batch in as_rank(data).val_dataloader() for i in batch.index_B]
    assert sorted(rows) == list(range(len(data.domains["tent"])))


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_resumed_loader_goes_on_after_the_finished_steps(folder: Path, done: int) -> None:
    options: dict[str, Any] = {"kl": [source(folder, "tent")], "length_buckets": 2}
    whole = list(as_rank(chat_data(folder, KLConfig(weight=1.0), **options)).train_dataloader())
    before = as_rank(chat_data(folder, KLConfig(weight=1.0), **options), global_step=done).train_dataloader()
    state = before.state_dict()
    assert state == {"consumed": done * 4}
    after = as_rank(chat_data(folder, KLConfig(weight=1.0), **options)).train_dataloader()
    after.load_state_dict(state)
    rest = list(after)
    assert len(after) == len(whole) and len(rest) == len(whole) - done * 4
    assert all(same_batch(one, other) for one, other in zip(rest, whole[done * 4 :], strict=True))
    assert not done or not same_batch(rest[0], whole[0])
