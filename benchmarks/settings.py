"""What one row is run with, as plain data that both sides read."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RANDOM = ("tiny", "qwen2.5-0.5b", "qwen2.5-7b")  # of benchmarks.architectures
SETTINGS, PLAN = "settings.json", "plan.json"


@dataclass(frozen=True)
class Settings:
    """Settings of one run of one row.

    Args:
        row: its name.
        scale: full or small; `sizes` are those of the row at this scale.
        arch: smollm2, or a random model of `benchmarks.architectures`.
        data: medical (published, below EM_DATA) or advice (bundled).
        bf16: also measure what a bfloat16 matrix product takes.
    """

    row: str
    scale: str = "full"
    arch: str = "smollm2"
    data: str = "advice"
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    bf16: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)

    def write(self, work: Path) -> None:
        (work / SETTINGS).write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def read(cls, work: Path) -> "Settings":
        return cls(**json.loads((work / SETTINGS).read_text(encoding="utf-8")))


def write_plan(work: Path, plan: dict[str, Any]) -> None:
    """What `prepare` found out for both sides: model folder, rows in tokens, order."""
    (work / PLAN).write_text(json.dumps(plan), encoding="utf-8")


def read_plan(work: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((work / PLAN).read_text(encoding="utf-8"))
    return plan
