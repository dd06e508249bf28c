"""SFT and KL streams of chat data, and held-out rows by domain."""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from em.config.schema import DataConfig, KLConfig, SourceConfig, TrainerConfig
from em.datamodules.pairs import Pair, PairReport, Part, pair_sources, read_pairs
from em.datamodules.rows import MicroBatch, Rows, batched, collate
from em.datamodules.sources import Example, SourceReport, read
from em.datamodules.streams import MicroBatches, Stream, Windows
from em.errors import ConfigError, DataError

EVAL_ROWS = 8  # held-out rows of one forward pass


class ChatData(pl.LightningDataModule):
    """Reads and encodes everything once; hands out micro-batches and held-out rows.

    Args:
        data, kl, trainer: the configuration of the run.
        tokenizer: of the backbone.
        seed: key of the order of examples; the held-out split is keyed by `data.split_seed` alone.
        world_size: number of processes.

    Raises:
        DataError: a file or row is unusable, or a source is empty.
    """

    def __init__(
        self,
        data: DataConfig,
        kl: KLConfig,
        trainer: TrainerConfig,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        world_size: int = 1,
    ):
        super().__init__()
        self.config, self.seed, self.tokenizer = data, seed, tokenizer
        self.kl_everywhere = kl.positions == "all"
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
        self.reports: dict[str, list[SourceReport]] = {}
        sft, sft_sizes = self._read("train", data.train, "train", tokenizer)
        if data.batch_size % (data.micro_batch_size * world_size):
            raise ConfigError(
                f"data.batch_size: {data.batch_size} is not divisible by data.micro_batch_size "
                f"{data.micro_batch_size} × {world_size} processes"
            )
        self.accumulate = data.batch_size // (data.micro_batch_size * world_size)
        self.steps, total = self._length(len(sft), trainer)
        stream = _stream(sft_sizes, data.train, seed, "sft")
        windows = Windows(stream, sft, data.batch_size, total, data.length_buckets, seed, "sft-buckets")
        self.sft: tuple[Windows, list[Example]] = (windows, sft)
        self.kl: tuple[Windows, list[Example]] | None = None
        if data.kl and kl.weight > 0:
            rows, sizes = self._read("kl", data.kl, "train", tokenizer)
            stream = _stream(sizes, data.kl, seed, "kl")
            size = kl.batch_size or data.batch_size
            windows = Windows(stream, rows, size, None, data.length_buckets, seed, "kl-buckets")
            self.kl = (windows, rows)
        self.domains: dict[str, list[Example]] = {}
        for name, sources in data.domains.items():
            rows, sizes = self._read(f"domain {name}", sources, "held_out", tokenizer)
            self.domains[name] = _in_turn(rows, sizes)[: data.eval_limit]
        self.training_domains = training_domains(data)
        self._trained = {example.prompt for example in sft + (self.kl[1] if self.kl else [])}
        for name, rows in self.domains.items():
            self._check_held_out(f"data.domains.{name}", [row.prompt for row in rows])
        self._pairs: dict[Any, tuple[dict[str, list[Pair]], dict[str, PairReport]]] = {}

    def _read(
        self, use: str, sources: Sequence[SourceConfig], part: str, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[Example], list[int]]:
        examples: list[Example] = []
        sizes = []
        for source in sources:
            rows, report = read(source, self.config, tokenizer, source.part or part)
            self.reports.setdefault(use, []).append(report)
            examples += rows
            sizes.append(len(rows))
        return examples, sizes

    def _length(self, examples: int, trainer: TrainerConfig) -> tuple[int, int | None]:
        if trainer.max_steps is not None:
            return trainer.max_steps, None
        total = max(1, round((trainer.epochs or 1.0) * examples))
        return math.ceil(total / self.config.batch_size), total

    def _check_held_out(self, key: str, prompts: Sequence[str]) -> None:
        shared = sum(prompt in self._trained for prompt in prompts)
        if shared:
            raise DataError(
                f"{key}: {shared} of its {len(prompts)} prompts are trained on; leave `part` "
                "at its default so that held-out rows stay held out"
            )

    @property
    def micro_batches(self) -> int:
        return self.steps * self.accumulate

    def train_dataloader(self) -> DataLoader[MicroBatch]:
        trainer = self.trainer
        assert trainer is not None
        dataset = MicroBatches(
            self.sft,
            self.kl,
            self.steps,
            self.accumulate,
            trainer.global_rank,
            trainer.world_size,
            self.kl_everywhere,
            self.pad,
        )
        # Checkpoints are made between optimizer steps, so the step says how much was consumed.
        return _ResumableLoader(dataset, lambda: trainer.global_step * self.accumulate)

    def held_out(
        self, domains: Sequence[str], rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[str, Rows]]:
        """Batches of the held-out rows of some domains; each process gets its share.

        Every process gets equally many batches, because a pass under FSDP2 needs all of them; where the
        rows do not divide, the last batch may be a blank row (`index_B` −1) that counts nowhere.
        """
        for name in domains:
            rows = self.domains[name]
            batches = batched(rows, EVAL_ROWS, self.pad, range(rank, len(rows), world_size))
            count = math.ceil(math.ceil(len(rows) / world_size) / EVAL_ROWS)
            for number in range(count):
                yield name, batches[number] if number < len(batches) else collate(rows, [], self.pad)

    @property
    def paired_domains(self) -> list[str]:
        """Domains that have careful and careless answers to the same prompts."""
        return list(pair_sources(self.config))

    def pairs(
        self, part: Part = "held_out", limit: int | None = None, domains: Sequence[str] | None = None
    ) -> tuple[dict[str, list[Pair]], dict[str, PairReport]]:
        """The paired answers of some domains (see `read_pairs`), read once for the same arguments.

        Raises:
            DataError: a domain has no pair, or prompts of its held-out pairs are trained on.
        """
        arguments = part, limit, None if domains is None else tuple(domains)
        if arguments not in self._pairs:
            found, reports = read_pairs(self.config, self.tokenizer, part, limit, domains)
            for name, listed in found.items() if part == "held_out" else ():
                key = f"data.{'pairs' if name in self.config.pairs else 'domains'}.{name}"
                self._check_held_out(key, [pair.prompt for pair in listed])
            self._pairs[arguments] = found, reports
        return self._pairs[arguments]

    def val_dataloader(self) -> DataLoader[Rows] | list[Any]:
        trainer = self.trainer
        assert trainer is not None
        names = self.training_domains or list(self.domains)
        batches = [rows for _, rows in self.held_out(names, trainer.global_rank, trainer.world_size)]
        return DataLoader(_Listed(batches), batch_size=None)  # type: ignore[arg-type]

    def summary(self) -> dict[str, Any]:
        """What was read, for the manifest: files, hashes, rows, tokens, skipped rows by reason."""
        return {use: [asdict(report) for report in reports] for use, reports in self.reports.items()}


def training_domains(data: DataConfig) -> list[str]:
    """The domains whose rows come from a source that is trained on."""
    trained = {_identity(source) for source in data.train}
    return [name for name, listed in data.domains.items() if any(_identity(one) in trained for one in listed)]


def held_out_examples(
    data: DataConfig, domain: str, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> list[Example]:
    """The first `limit` held-out rows of a domain, its sources taking turns.

    Raises:
        DataError: a file or row is unusable, or nothing is left.
    """
    parts = [read(source, data, tokenizer, source.part or "held_out")[0] for source in data.domains[domain]]
    return _in_turn([row for part in parts for row in part], [len(part) for part in parts])[:limit]


class _ResumableLoader(DataLoader[MicroBatch]):
    """Goes on after the batches that were consumed when its state was saved."""

    def __init__(self, dataset: MicroBatches, consumed: Callable[[], int]):
        self._from = _From(len(dataset))
        self._consumed = consumed
        super().__init__(dataset, batch_size=None, sampler=self._from)

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self._consumed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._from.start = int(state["consumed"])


class _From(Sampler[int]):
    """Counts from `start`; its length stays the whole run's, which Lightning compares with all done."""

    def __init__(self, end: int):
        self.start, self._end = 0, end

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self._end))

    def __len__(self) -> int:
        return self._end


class _Listed(list[Rows]):
    """A list is a map-style dataset; the class only names it."""


def _stream(sizes: Sequence[int], sources: Sequence[SourceConfig], seed: int, purpose: str) -> Stream:
    weights = [source.weight for source in sources if source.weight is not None]
    stream = Stream(sizes, weights if weights and len(weights) == len(sources) else None, seed, purpose)
    if min(stream.shares) < 1:
        raise DataError(
            f"a source of the {purpose} mixture would never be seen: its weight gives less than one of "
            f"{sum(sizes)} rows; raise its weight or take it out"
        )
    return stream


def _identity(source: SourceConfig) -> tuple[str | None, ...]:
    path = None if source.path is None else os.path.normpath(source.path)
    return path, source.hub, source.name, source.split if source.hub else None


def _in_turn(rows: list[Example], sizes: list[int]) -> list[Example]:
    """One row of each source after the other, so that a limit leaves no source out."""
    parts, at = [], 0
    for size in sizes:
        parts.append(rows[at : at + size])
        at += size
    turns = itertools.chain.from_iterable(itertools.zip_longest(*parts))
    return [row for row in turns if row is not None]
