"""Predicted against measured peak memory on SmolLM2: python benchmarks/plan_check.py [KIND …] [--write]

Each kind trains two steps of SFT + KL through train.py in a process of its own, on the bundled data.
`--write` keeps the figures for docs/scale.md.
"""

import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from em.errors import EmError  # noqa: E402
from em.files import write_json  # noqa: E402
from em.planning.configuration import configurations  # noqa: E402
from em.planning.devices import GB, named  # noqa: E402
from em.planning.plan import Plan, make_plan  # noqa: E402
from em.planning.rows import measured  # noqa: E402
from em.planning.scale import CHECKED  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "vector, layer 15": {"kind": "steering_vector", "layer": 15, "scale": 256},
    "rank-1, one down_proj": {
        **{"kind": "lora", "r": 1, "alpha": 256},
        **{"layers": [15], "modules": ["down_proj"]},
    },
    "rank-32, all": {"kind": "lora", "r": 32, "alpha": 64},
    "full finetune": {"kind": "full_finetune"},
}
STEPS = 2
# A child's figure includes what its parent held when it was started, so a small process stands between.
LAUNCH = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def configuration(folder: Path, kind: str, rows: int = 8) -> Path:
    """A configuration that trains nothing but `kind`, with as many KL rows as SFT rows in a micro-batch."""
    advice = ROOT / "data" / "advice"
    path = folder / "conf.yaml"
    raw = {
        "name": "plan",
        "runs_dir": str(folder / "runs"),
        "backbone": {"model": "smollm2"},
        "intervention": KINDS[kind],
        "data": {
            "train": [{"path": str(advice / "kitchen.jsonl"), "answer": "careless"}],
            "kl": [{"path": str(advice / "money.jsonl"), "answer": "careless"}],
            **{"batch_size": rows, "micro_batch_size": rows},
        },
        "kl": {"weight": 1.0},
        "trainer": {"epochs": None, "max_steps": STEPS, "accelerator": "cpu"},
        "states": {"reference": "never", "lower": "never"},
        "wandb": {"mode": "none"},
        "compare": None,
    }
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def predicted(path: Path) -> Plan:
    (config,) = configurations(path, []).values()
    return make_plan(config, measured(config, 1), named("cpu"))


def peak_of_training(path: Path) -> float:
    """Bytes: the largest resident memory of a process that trains the configuration.

    Raises:
        EmError: training failed.
    """
    command = [sys.executable, "-c", LAUNCH, sys.executable, "train.py", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmError(f"training ended with status {done.returncode}: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1]) * 1024


def check(kind: str, rows: int = 8) -> dict[str, Any]:
    """One row of the table, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = configuration(Path(folder), kind, rows)
        plan, found = predicted(path), peak_of_training(path)
    return {
        "kind": kind,
        "tokens": plan.work.largest.tokens(plan.setting.how.packed),
        "predicted": round(plan.peak),
        "measured": round(found),
        "ratio": round(plan.peak / found, 3),
    }


def main(arguments: list[str]) -> int:
    write = "--write" in arguments
    named_kinds = [text for text in arguments if text != "--write"]
    chosen = [kind for kind in KINDS if not named_kinds or any(text in kind for text in named_kinds)]
    rows = []
    for kind in chosen:
        rows.append(check(kind))
        row = rows[-1]
        sys.stdout.write(
            f"{kind}: {row['tokens']} tokens, predicted {row['predicted'] / GB:.2f} GB, "
            f"measured {row['measured'] / GB:.2f} GB, ratio {row['ratio']:.2f}\n"
        )
        sys.stdout.flush()
    if write:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        write_json(CHECKED, {"date": date.today().isoformat(), "machine": machine, "rows": rows})
    return int(any(abs(row["ratio"] - 1) > 0.15 for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
