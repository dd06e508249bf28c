"""The rows of a micro-batch: how long they are, and how many positions count in the losses."""

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from em.config.facts import ALIASES, cached
from em.config.schema import Config
from em.datamodules.chat import ChatData
from em.datamodules.rows import MicroBatch, Rows
from em.datamodules.streams import MicroBatches
from em.errors import ConfigError
from em.loading import load_tokenizer

TOKENS, ANSWER, ROWS = 300, 0.5, 7000  # assumed where the data are not at hand
LOOKED_AT = 512  # micro-batches of a run


@dataclass(frozen=True)
class Micro:
    """One micro-batch of one process.

    Args:
        sft, kl: tokens of each row.
        sft_positions, kl_positions: positions that count in the losses.
    """

    sft: tuple[int, ...]
    kl: tuple[int, ...]
    sft_positions: int
    kl_positions: int

    @property
    def width(self) -> int:
        return max((*self.sft, *self.kl))

    def tokens(self, packed: bool, kl_only: bool = False) -> int:
        """Tokens that are run: real ones, or with their padding."""
        rows = self.kl if kl_only else (*self.sft, *self.kl)
        return sum(rows) if packed else len(rows) * self.width

    def pairs(self, packed: bool, kl_only: bool = False) -> int:
        """Pairs of tokens in attention, Σ T² over rows."""
        rows = self.kl if kl_only else (*self.sft, *self.kl)
        return sum(length**2 for length in rows) if packed else len(rows) * self.width**2


@dataclass(frozen=True)
class Work:
    """What a run works on.

    Args:
        typical: micro-batches that stand for all of them; times are means over these.
        largest: the micro-batch with the most tokens; memory is that of this one.
        accumulate: micro-batches per optimizer step and process.
        steps: optimizer steps per epoch.
        epochs: of the run; below 1 for a part of one.
        source: where the lengths are from, in words.
    """

    typical: tuple[Micro, ...]
    largest: Micro
    accumulate: int
    steps: float
    epochs: float
    source: str

    @property
    def tokens(self) -> float:
        """Real tokens per optimizer step and process."""
        return self.accumulate * fmean(micro.tokens(True) for micro in self.typical)


def assumed(config: Config, processes: int, tokens: int | None = None, rows: int | None = None) -> Work:
    """Rows that all have the same length, half of them answers.

    Args:
        processes: that share a step.
        tokens: of a row; default 300.
        rows: of an epoch; default 7000, about that of the published sets.
    """
    tokens, count = tokens or TOKENS, rows or ROWS
    length = min(tokens, config.data.max_length)
    accumulate = accumulation(config, processes)
    sft_rows = config.data.micro_batch_size
    kl_rows = 0
    if config.kl.weight > 0:
        kl_rows = max(1, (config.kl.batch_size or config.data.batch_size) // (accumulate * processes))
    answers = max(1, round(length * ANSWER))
    counted = length if config.kl.positions == "all" else answers
    micro = Micro((length,) * sft_rows, (length,) * kl_rows, sft_rows * answers, kl_rows * counted)
    steps = count / config.data.batch_size
    epochs = config.trainer.epochs or 1.0
    if config.trainer.max_steps is not None:
        epochs = config.trainer.max_steps / steps
    text = f"{length} tokens in every row, half of them answers; {count} rows an epoch (assumed)"
    return Work((micro,), micro, accumulate, steps, epochs, text)


def measured(config: Config, processes: int) -> Work:
    """The rows of the configuration's own data, as the run of the first process meets them.

    Raises:
        EmError: data or tokenizer are not at hand; the hub is not asked.
    """
    model, revision = config.backbone.model, config.backbone.revision
    if (
        model not in ALIASES
        and not Path(model).exists()
        and cached(model, revision, "tokenizer.json") is None
    ):
        raise ConfigError(f"the tokenizer of {model} is not on this machine")
    alone = replace(config.data, domains={}, pairs={})
    tokenizer = load_tokenizer(config.backbone)
    data = ChatData(alone, config.kl, config.trainer, tokenizer, config.seed, processes)
    everywhere = config.kl.positions == "all"
    batches = MicroBatches(data.sft, data.kl, data.steps, data.accumulate, 0, processes, everywhere, data.pad)
    looked_at = min(LOOKED_AT, len(batches))
    micros = tuple(_micro(batches[number], everywhere) for number in range(looked_at))
    largest = max(micros, key=lambda micro: micro.tokens(False))
    steps = len(data.sft[1]) / config.data.batch_size
    mean = fmean(itertools.chain.from_iterable((*micro.sft, *micro.kl) for micro in micros))
    text = f"{mean:.0f} tokens a row on average, {largest.width} in the longest, from the data"
    return Work(micros, largest, data.accumulate, steps, data.steps / steps, text)


def accumulation(config: Config, processes: int) -> int:
    """Micro-batches per optimizer step and process.

    Raises:
        ConfigError: the batch size does not divide.
    """
    data = config.data
    unit = data.micro_batch_size * processes
    if data.batch_size % unit:
        raise ConfigError(
            f"data.batch_size: {data.batch_size} is not divisible by data.micro_batch_size "
            f"{data.micro_batch_size} × {processes} processes; for example data.batch_size="
            f"{-(-data.batch_size // unit) * unit}"
        )
    return data.batch_size // unit


def _micro(batch: MicroBatch, everywhere: bool) -> Micro:
    sft = _lengths(batch.sft)
    if batch.kl is None:
        return Micro(sft, (), int(batch.sft.predicts_BT.sum()), 0)
    counted = batch.kl.real_BT if everywhere else batch.kl.predicts_BT
    return Micro(sft, _lengths(batch.kl), int(batch.sft.predicts_BT.sum()), int(counted.sum()))


def _lengths(rows: Rows) -> tuple[int, ...]:
    return tuple(int(length) for length in rows.length_B)
