"""The rows of the table: what is measured, against what, and what is to be reached. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.errors import BenchmarkError
from benchmarks.sizes import (
    KL,
    KL_SMALL,
    SFT,
    SFT_SMALL,
    SWEEP,
    SWEEP_SMALL,
    TEXT,
    TEXT_SMALL,
    VECTOR,
    VECTOR_SMALL,
    VECTOR_SWEEP,
)

Measure = Literal["speed", "memory", "seconds", "share"]
OURS, PEERS = "benchmarks.ours", "benchmarks.peers"


@dataclass(frozen=True)
class Target:
    """One thing to reach.

    Args:
        measure: speed: seconds of the peer / ours; memory: peak of ours / the peer's; seconds: of ours;
            share: of the machine's limit.
        bound: `at least` for speed and share, `at most` for memory and seconds; None: only shown.
    """

    measure: Measure
    bound: float | None

    @property
    def upward(self) -> bool:
        return self.measure in ("speed", "share")

    def reached(self, value: float) -> bool | None:
        if self.bound is None:
            return None
        return value >= self.bound if self.upward else value <= self.bound

    def text(self) -> str:
        if self.bound is None:
            return "none"
        if self.measure == "share":
            return f"≥ {self.bound:.0%}"
        if self.measure == "seconds":
            return f"< {self.bound:g} s"
        return f"≥ {self.bound:g}×" if self.upward else f"≤ {self.bound:g}×"


@dataclass(frozen=True)
class Row:
    """One row: functions `module:name(settings, work) -> dict`, each run in its own process.

    Args:
        group: several rows that are asked for by one name.
        work, against: for the reader of the table.
        prepare: run once, for what both sides need; None: nothing.
        peer: None: measured against a number instead.
        sizes: by scale; `small` is for trying out.
        needs: packages of the peer that em does without.
        cost: seconds of one alternation at full scale on two cores, for the estimate only.
        accelerator: whether it can run with --device cuda.
        smollm2_only: whether it has no sense with a random model.
    """

    name: str
    group: str
    work: str
    against: str
    ours: str
    targets: tuple[Target, ...]
    prepare: str | None = None
    peer: str | None = None
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    cost: dict[str, float] = field(default_factory=lambda: {"full": 120.0, "small": 40.0})
    accelerator: bool = False
    smollm2_only: bool = False

    @property
    def sides(self) -> dict[str, str]:
        return {"ours": self.ours} | ({"peer": self.peer} if self.peer else {})


def _speed(bound: float | None) -> Target:
    return Target("speed", bound)


def _memory(bound: float | None) -> Target:
    return Target("memory", bound)


PAPER = "the paper's method on the HF Trainer: full logits, a KL batch, reference with the adapter off"


def _generation(name: str, work: str, bound: float, sizes: dict[str, Any], cost: dict[str, float]) -> Row:
    return Row(
        name=name,
        group="generation",
        work=work,
        against="a loop over questions with generate(num_return_sequences=…)",
        prepare=f"{OURS}.generation:prepare",
        ours=f"{OURS}.generation:ours",
        peer=f"{OURS}.generation:peer",
        targets=(_speed(bound), _memory(None)),
        sizes={"full": sizes, "small": {**sizes, "samples": 3, "tokens": 16}},
        cost=cost,
        smollm2_only=True,
    )


def _training(name: str, work: str, against: str, **rest: Any) -> Row:
    return Row(
        name=name,
        group=rest.pop("group", name),
        work=work,
        against=against,
        prepare=f"{OURS}.prepare:training",
        ours=f"{OURS}.training:run",
        accelerator=True,
        **rest,
    )


def _sweep(kind: str, bound: float, more: dict[str, Any], cost: float) -> Row:
    return Row(
        name=f"stability-{kind}",
        group="stability",
        work=f"stability sweep, 12 ε × 10 draws × 2 solutions, {kind}",
        against="one full HF forward for each draw, noise put into the adapter in place, model kept loaded",
        prepare=f"{OURS}.prepare:sweep",
        ours=f"{OURS}.sweeps:stability_sweep",
        peer=f"{PEERS}.sweeps:stability_sweep",
        targets=(_speed(bound), _memory(None)),
        sizes={"full": {**SWEEP, **more}, "small": {**SWEEP_SMALL, **more}},
        cost={"full": cost, "small": cost / 4},
    )


ROWS = [
    _training(
        "sft",
        "SFT, LoRA r32, batch 8",
        "TRL SFTTrainer, response-only loss, without gradient checkpointing, padded batches",
        peer=f"{PEERS}.trl_sft:fast",
        targets=(_speed(2.0), _memory(0.6)),
        sizes={"full": SFT, "small": SFT_SMALL},
        needs=("trl",),
        cost={"full": 240, "small": 130},
    ),
    _training(
        "sft-padding-free",
        "SFT, LoRA r32, batch 8",
        "TRL SFTTrainer, response-only loss, without gradient checkpointing, padding_free",
        group="sft",
        peer=f"{PEERS}.trl_sft:padding_free",
        targets=(_speed(2.0), _memory(0.6)),
        sizes={"full": SFT, "small": SFT_SMALL},
        needs=("trl",),
        cost={"full": 240, "small": 130},
    ),
    _training(
        "sft-defaults",
        "SFT, LoRA r32, batch 8",
        "TRL SFTTrainer with its defaults: gradient checkpointing, padded batches",
        group="sft",
        peer=f"{PEERS}.trl_sft:defaults",
        targets=(_speed(None), _memory(None)),
        sizes={"full": SFT, "small": SFT_SMALL},
        needs=("trl",),
        cost={"full": 280, "small": 150},
    ),
    _training(
        "kl",
        "SFT + KL, LoRA r32, batch 8 + 8",
        PAPER,
        peer=f"{PEERS}.kl:run",
        targets=(_speed(2.5), _memory(None)),
        sizes={"full": KL, "small": KL_SMALL},
        cost={"full": 520, "small": 130},
    ),
    _training(
        "vector",
        "SFT + KL, steering vector at the middle layer, 2 epochs",
        PAPER,
        peer=f"{PEERS}.kl:run",
        targets=(_speed(4.0), _memory(None)),
        sizes={"full": VECTOR, "small": VECTOR_SMALL},
        cost={"full": 420, "small": 110},
    ),
    _sweep("vector", 2.5, VECTOR_SWEEP, 400),
    _sweep("lora", 1.5, {}, 560),
    Row(
        name="significance",
        group="significance",
        work="significance sweep, 26 norms × 8 vectors, documents ≤ 512 tokens",
        against="one full HF forward for each, full-vocabulary KL to the reference's kept log-probabilities",
        prepare=f"{OURS}.prepare:text",
        ours=f"{OURS}.sweeps:significance_sweep",
        peer=f"{PEERS}.sweeps:significance_sweep",
        targets=(_speed(2.5), _memory(None)),
        sizes={"full": TEXT, "small": TEXT_SMALL},
        cost={"full": 400, "small": 50},
    ),
    _generation(
        "generation",
        "generation, 8 questions × 20 samples × 100 tokens, LoRA",
        1.3,
        {"questions": 8, "samples": 20, "tokens": 100},
        {"full": 240, "small": 40},
    ),
    _generation(
        "generation-quickstart",
        "generation, 8 questions × 3 samples × 48 tokens, LoRA",
        1.5,
        {"questions": 8, "samples": 3, "tokens": 48},
        {"full": 60, "small": 40},
    ),
    Row(
        name="loss-memory",
        group="loss-memory",
        work="cross-entropy and KL at 152 064 tokens of vocabulary, 4 096 positions, width 1 024",
        against="full fp32 logits with autograd, one loss after the other",
        ours=f"{OURS}.head:run",
        peer=f"{PEERS}.head:run",
        targets=(_memory(0.1), _speed(None)),
        sizes={
            "full": {"vocabulary": 152_064, "positions": 4096, "width": 1024},
            "small": {"vocabulary": 152_064, "positions": 512, "width": 1024},
        },
        cost={"full": 150, "small": 30},
    ),
    Row(
        name="start",
        group="start",
        work="train.py conf/quickstart.yaml, start to the end of the first step, model cached",
        against="",
        ours=f"{OURS}.start:run",
        targets=(Target("seconds", 12.0),),
        cost={"full": 20, "small": 20},
        smollm2_only=True,
    ),
    _training(
        "limit",
        "share of the machine's matmul limit in an SFT step, LoRA r32, batch 8",
        "arithmetic that the step needs, at the rate of the model's own products",
        targets=(Target("share", 0.6),),
        sizes={"full": {**SFT, "measure_limit": True}, "small": {**SFT_SMALL, "measure_limit": True}},
        cost={"full": 130, "small": 80},
    ),
]


def chosen(names: list[str]) -> list[Row]:
    """Rows by name or group, in the order of the table; all without a name.

    Raises:
        BenchmarkError: a name is neither.
    """
    known = {row.name for row in ROWS} | {row.group for row in ROWS}
    unknown = [name for name in names if name not in known]
    if unknown:
        listed = ", ".join(row.name for row in ROWS)
        raise BenchmarkError(f"no row {', '.join(unknown)}; the rows are {listed}")
    return [row for row in ROWS if not names or row.name in names or row.group in names]
