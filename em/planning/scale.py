"""docs/scale.md: memory and time of the paper's setups on H100s."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from em.config.schema import BackboneConfig, Config, DataConfig, KLConfig, TrainerConfig
from em.errors import ConfigError
from em.planning.devices import GB, GPUS
from em.planning.pages import duration, gigabytes
from em.planning.plan import UTILISATION, Plan, make_plan
from em.planning.rows import ROWS, TOKENS, assumed
from em.planning.shapes import shape_of

CHECKED = Path(__file__).with_name("checked.json")
DEVICE = GPUS["H100-80GB"]
SIZES = ("0.5B", "7B", "14B", "32B")
DEVICES = (1, 8)
BATCH, MICRO = 16, 2

HEAD = """\
# Memory and time at scale

Written by `make scale` (`python -m em plan --table`). **The figures for GPUs are calculated, not measured**:
no GPU took part. What was measured is peak memory on a CPU, at the end of this page.

Any configuration, on any of the devices in `em/planning/devices.py`:

    python -m em plan conf/medical/narrow_lora.yaml --device H100-80GB \\
        backbone.model=Qwen/Qwen2.5-14B-Instruct backbone.dtype=bfloat16 trainer.devices=8 \\
        data.micro_batch_size=1

The command loads no model: sizes come from its `config.json`, or from a table of published shapes where that
is not at hand. Rows are those of the configuration's data where they are at hand, or `--tokens` each.

## Qwen2.5-Instruct on H100-80GB, SFT + KL

"""

ASSUMED = """\
bfloat16, AdamW, {batch} SFT and {batch} KL rows per optimizer step, {micro} + {micro} per pass and device,
{tokens} tokens a row of which half are answers, {rows} SFT rows an epoch. Time is arithmetic divided by
{rate:.0f} TFLOP/s (NVIDIA's figure for dense bf16) × {share:g}, an assumed utilisation that a small model on
many GPUs will not reach; neither communication between GPUs is counted, nor the one pass over the KL rows
that stores the reference's states before the first step. Memory includes 1 GB for the CUDA context and 10%
that the allocator holds but does not use, both assumed. The way to run is the first that fits: plain (`ddp`
on 8), with gradient checkpointing, `fsdp2`, `fsdp2` with checkpointing. A steering vector and a rank-1
LoRA are at the middle layer, the others everywhere.

"""

READING = """
Vector and rank-1 LoRA need the weights, half of the activations and next to nothing else; what lies below the
middle layer is run once for both models. A full finetune keeps a copy of the original weights on every
device, under `fsdp2` too, and with a KL term under `fsdp2` a reference of its own (`reference.model`), also
whole on every device: that is why more devices do not make the largest fit. GB are 10⁹ bytes, and an
H100 counts as 80 of them.

## What memory consists of

| part | bytes |
|---|---|
| weights | parameters × 2 (bf16) or 4 |
| original weights | the same again, in a full finetune only |
| adapter, its gradients, AdamW's states | 4 + 4 + 8 for each trained parameter of an adapter |
| activations, each token and layer from the intervention up, fp32 | 4 · (2d + 2q + 2k + 3i + heads + 2) |
| … of adapted modules | 4 · (the module's input, kept once for q/k/v and gate/up, + r for each module) |
| chunk of logits | 3 (SFT) or 7 (KL) copies of 64 MB, whatever the vocabulary |
| reference | hidden states at KL positions, d numbers each; no second model |

d is the hidden width, i the MLP's, q that of all query heads, k of all key heads, r the rank. In bf16 the
inputs of norms stay in fp32. The formulas are in `em/planning/kept.py`; `tests/planning/` holds them against
what autograd saves and against torch's own FLOP counter.

## The check on SmolLM2-135M

`python benchmarks/plan_check.py --write`: two steps of SFT + KL through `train.py` in fp32, 8 + 8 rows of the
bundled data per pass, each kind in a process of its own; measured is the largest resident memory of that
process.

"""


def page() -> str:
    """The page as Markdown.

    Raises:
        ConfigError: the figures of the check are missing.
    """
    text = ASSUMED.format(
        **{"batch": BATCH, "micro": MICRO, "tokens": TOKENS, "rows": ROWS},
        **{"rate": DEVICE.half / 1e12, "share": UTILISATION},
    )
    rows = [_row(*cell) for cell in _cells()]
    titles = ("model", "trained", "GPUs", "run as", "fits", "GB per GPU", "per step", "per epoch")
    return HEAD + text + table(titles, rows) + READING + _check()


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    listed = [titles, ("---",) * len(titles), *rows]
    return "".join("| " + " | ".join(row) + " |\n" for row in listed)


def interventions(size: str) -> dict[str, dict[str, Any]]:
    """The paper's setups for a model."""
    middle = shape_of(f"Qwen/Qwen2.5-{size}-Instruct").layers // 2
    return {
        "vector": {"kind": "steering_vector", "layer": middle},
        "rank-1": {"kind": "lora", "r": 1, "layers": [middle], "modules": ["down_proj"]},
        "rank-32": {"kind": "lora", "r": 32},
        "full": {"kind": "full_finetune"},
    }


def _cells() -> Iterator[tuple[str, str, int]]:
    for size in SIZES:
        for kind in interventions(size):
            for devices in DEVICES:
                yield size, kind, devices


def _row(size: str, kind: str, devices: int) -> tuple[str, ...]:
    plans = [_planned(size, kind, devices, *way) for way in _ways(devices)]
    plan = next((one for one in plans if one.peak <= DEVICE.memory), plans[-1])
    fits = plan.peak <= DEVICE.memory
    run_as = [plan.setting.strategy] + ["checkpointing"] * plan.setting.how.checkpointing
    times = (duration(plan.seconds), duration(plan.epoch_hours * 3600)) if fits else ("", "")
    found = ("yes" if fits else "no", gigabytes(plan.peak), *times)
    return (f"Qwen2.5-{size}", kind, str(devices), " + ".join(run_as), *found)


def _ways(devices: int) -> list[tuple[str, bool]]:
    strategies = ["auto"] if devices == 1 else ["ddp", "fsdp2"]
    return [(strategy, again) for strategy in strategies for again in (False, True)]


def _planned(size: str, kind: str, devices: int, strategy: Any, checkpointing: bool) -> Plan:
    model = f"Qwen/Qwen2.5-{size}-Instruct"
    backbone = BackboneConfig(model=model, dtype="bfloat16", gradient_checkpointing=checkpointing)
    own = strategy == "fsdp2" and kind == "full"
    config = Config(
        backbone=backbone,
        reference=BackboneConfig(model=model, dtype="bfloat16") if own else None,
        intervention=interventions(size)[kind],
        data=DataConfig(batch_size=BATCH, micro_batch_size=MICRO),
        kl=KLConfig(weight=1.0),
        trainer=TrainerConfig(devices=devices, strategy=strategy),
    )
    return make_plan(config, assumed(config, devices), DEVICE)


def _check() -> str:
    try:
        found = json.loads(CHECKED.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{CHECKED} is missing; run python benchmarks/plan_check.py --write") from error
    rows = [
        (
            row["kind"],
            str(row["tokens"]),
            *(f"{row[name] / GB:.2f}" for name in ("predicted", "measured")),
            f"{row['ratio']:.2f}",
        )
        for row in found["rows"]
    ]
    titles = ("trained", "tokens per pass", "predicted GB", "measured GB", "predicted / measured")
    return table(titles, rows) + f"\n{found['date']}, {found['machine']}.\n"
