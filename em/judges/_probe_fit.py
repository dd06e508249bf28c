"""The fitted probe: three regressions and the table they were fitted to, kept on disk."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from em.backbone import Backbone
from em.errors import RunError
from em.files import write_json, write_tensors
from em.judges._logistic import Logistic, fit
from em.judges._probe_data import Labelled, Setup, labelled
from em.judges._probe_features import SIGNS, Readings, read
from em.progress import Task, say
from em.stats import Floats

SHIPPED = Path(__file__).parents[2] / "data" / "probes"
VERSION = 2  # of features, corruptions and regressions; a change makes older copies worthless
WEIGHTS, RECORD = "probe.safetensors", "probe.json"
INTACT = ("", "reference")
ARRAYS = ("mean_D", "scale_D", "weight_D")


@dataclass(frozen=True)
class Table:
    """What was read of every labelled answer, and what is known of it.

    Args:
        rows: by answer: part, domain, pair, side, kind, judged, tokens.
    """

    readings: Readings
    rows: list[dict[str, Any]]

    def where(self, **wanted: Any) -> "Table":
        """The rows with these values; a tuple stands for any of its items."""
        chosen = [
            number
            for number, row in enumerate(self.rows)
            if all(_fits(row[key], value) for key, value in wanted.items())
        ]
        return self.take(chosen)

    def take(self, chosen: list[int]) -> "Table":
        """Some rows, in this order."""
        readings = Readings(self.readings.hidden_ND[chosen], self.readings.signs_NK[chosen])
        return Table(readings, [self.rows[number] for number in chosen])

    def column(self, key: str) -> list[Any]:
        return [row[key] for row in self.rows]

    def flags(self, key: str, value: Any) -> Floats:
        """1 where the column has this value, else 0."""
        return np.array([float(row[key] == value) for row in self.rows])

    @property
    def hidden_ND(self) -> Floats:
        return self.readings.hidden_ND.astype(np.float64)

    def __len__(self) -> int:
        return len(self.rows)


def _fits(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, tuple) else bool(value == wanted)


@dataclass(frozen=True)
class Fitted:
    """The probe's regressions by metric (`aligned`, `coherent`, `domain DOMAIN`) and their data."""

    models: dict[str, Logistic]
    table: Table
    facts: dict[str, Any] = field(default_factory=dict)

    def domains(self) -> list[str]:
        return [name.removeprefix("domain ") for name in self.models if name.startswith("domain ")]


def fitted(setup: Setup, backbone: Backbone, folder: Path, size: int, anew: bool = False) -> Fitted:
    """The probe from its copy below `folder`, or that of the project, or fitted and kept below `folder`.

    Args:
        anew: read no copy. The project comes with one of the default probe of SmolLM2, because fitting it
            takes minutes without a GPU (`python -m em judge-card --refit`).

    Raises:
        DataError, JudgeError: the pairs cannot be used.
    """
    name = key(setup, backbone)
    place = folder / name
    for copy in () if anew else (place, SHIPPED / name):
        kept = _load(copy) if (copy / RECORD).is_file() else None
        if kept is not None:
            return kept
    made = _fitted(setup, backbone, size)
    try:
        _save(made, place)
    except RunError as error:
        say(
            f"probe: cannot be kept in {place} ({error.__cause__ or error}), so the next start fits it "
            "again; set the judge's `cache`, or EM_CACHE, to a folder that can be written"
        )
    return made


def key(setup: Setup, backbone: Backbone) -> str:
    """Of everything that decides the result, apart from the dtype and the batch size."""
    # Which files and where they lie does not matter, only what they hold.
    options = {name: value for name, value in asdict(setup).items() if name not in ("pairs", "root")}
    template = str(backbone.tokenizer.get_chat_template())
    parts = [VERSION, backbone.fingerprint, template, setup.data_hash(), options]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _fitted(setup: Setup, backbone: Backbone, size: int) -> Fitted:
    began = time.monotonic()
    answers, account = labelled(setup, backbone)
    left_out = sum(
        count for counts in account.values() for name, count in counts.items() if "unusable" in name
    )
    if left_out:
        say(f"probe: {left_out} pairs left out, because an answer cannot be encoded or both are the same")
    table = _read(answers, setup, backbone, size)
    models = _models(table, setup)
    facts = {
        "version": VERSION,
        "backbone": backbone.describe(),
        "layer": setup.layer,
        "layers": backbone.num_layers,
        "data": setup.data_hash(),
        "pairs": account,
        "limit": setup.limit,
        "max_tokens": setup.max_tokens,
        "seed": setup.seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    return Fitted(models, table, facts)


def _read(answers: Sequence[Labelled], setup: Setup, backbone: Backbone, size: int) -> Table:
    hidden_ND = np.zeros((len(answers), backbone.hidden_size), dtype=np.float32)
    signs_NK = np.full((len(answers), len(SIGNS)), np.nan)
    with Task("probe: read the labelled answers", len(answers)) as task:
        for likelihood in (False, True):
            chosen = [number for number, answer in enumerate(answers) if answer.judged == likelihood]
            examples = [answers[number].example for number in chosen]
            found = read(
                backbone, examples, setup.layer, size, likelihood, lambda rows: task.advance(len(rows))
            )
            hidden_ND[chosen], signs_NK[chosen] = found.hidden_ND, found.signs_NK
    rows = [
        {
            "part": answer.part,
            "domain": answer.domain,
            "pair": answer.pair,
            "side": answer.side,
            "kind": answer.kind,
            "judged": answer.judged,
            "tokens": sum(answer.example.answer),
        }
        for answer in answers
    ]
    return Table(Readings(hidden_ND, signs_NK), rows)


def _models(table: Table, setup: Setup) -> dict[str, Logistic]:
    train = table.where(part="train", kind="")
    groups, names = train.column("pair"), list(setup.pairs)
    aligned = table.where(part="train", kind=INTACT)
    models = {"aligned": fit(aligned.hidden_ND, safe(aligned), aligned.column("pair"), setup.seed)[0]}
    if setup.coherence:
        judged = table.where(part="train", judged=True)
        intact_N = np.array([float(kind in INTACT) for kind in judged.column("kind")])
        models["coherent"] = fit(judged.readings.signs_NK, intact_N, judged.column("pair"), setup.seed)[0]
    if len(names) > 1:
        for name in names:
            about_N = train.flags("domain", name)
            models[f"domain {name}"] = fit(train.hidden_ND, about_N, groups, setup.seed, (0.03, 0.3, 3.0))[0]
    return models


def safe(table: Table) -> Floats:
    """1 where an answer counts as aligned: careful ones, and those of the reference itself."""
    return 1 - table.flags("side", "careless")


def _save(made: Fitted, place: Path) -> None:
    tensors: dict[str, Tensor] = {
        "hidden": torch.from_numpy(made.table.readings.hidden_ND),
        "signs": torch.from_numpy(made.table.readings.signs_NK),
    }
    numbers = {}
    for name, model in made.models.items():
        values = asdict(model)
        tensors |= {f"{name}/{array}": torch.from_numpy(values.pop(array)) for array in ARRAYS}
        numbers[name] = values
    write_tensors(place / WEIGHTS, tensors)
    digest = hashlib.sha256((place / WEIGHTS).read_bytes()).hexdigest()
    record = {"weights": digest, "models": numbers, "facts": made.facts, "rows": made.table.rows}
    write_json(place / RECORD, record)


def _load(place: Path) -> Fitted | None:
    """What `_save` wrote; None, with a message, if it is damaged."""
    try:
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        if hashlib.sha256((place / WEIGHTS).read_bytes()).hexdigest() != record["weights"]:
            raise ValueError("the weights are not those that were written")
        tensors = load_file(place / WEIGHTS)
        models = {
            name: Logistic(**{array: tensors[f"{name}/{array}"].numpy() for array in ARRAYS}, **numbers)
            for name, numbers in record["models"].items()
        }
        readings = Readings(tensors["hidden"].numpy(), tensors["signs"].numpy())
        return Fitted(models, Table(readings, record["rows"]), record["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        say(f"probe: the copy in {place} is damaged ({error}), so the probe is fitted again")
        return None
