"""What is compared: runs of one backbone, and the rows on which all of them are measured."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from em import runs
from em.backbone import Backbone
from em.config import to_dict
from em.config.data_files import kind as kind_of
from em.config.schema import CompareConfig, DataConfig, PairConfig
from em.datamodules.chat import held_out_examples, training_domains
from em.datamodules.pairs import Pair, pair_sources, read_pairs
from em.datamodules.plain_text import Corpus, read_corpus
from em.datamodules.sources import Example
from em.errors import MeasurementError, RunError
from em.evaluation.stored import evaluation_digest
from em.interventions.base import read_record
from em.loading import load_backbone, load_tokenizer
from em.measurements.arms import VECTOR, WEIGHTS, Solution
from em.progress import say
from em.runs import RunRecord

PAIRED = {"margins", "directions", "steering", "ablation"}  # sections that need pairs
APART = ("name", "seed", "overwrite", "runs_dir", "wandb", "compare", "callbacks")  # not what an arm is


@dataclass
class Study:
    """Runs and rows, read and checked.

    Args:
        config: what is measured.
        data: where the rows come from.
        backbone: frozen, with nothing attached.
        records: solution -> its run.
        solutions: solution -> what it is; in the order given.
        lowest: solution -> the lowest layer that it changes.
        training: the training domain.
        examples: its held-out rows, for losses.
        pairs: domain -> held-out pairs.
        train_pairs: pairs of the training domain from the training part, for directions.
        corpus: plain text; None when no significance is wanted.
        notes: what the reader of the results should know.
        key: of the runs and settings; equal keys give equal results.
    """

    config: CompareConfig
    data: DataConfig
    backbone: Backbone
    records: dict[str, RunRecord]
    solutions: dict[str, Solution]
    lowest: dict[str, int]
    training: str
    examples: list[Example]
    pairs: dict[str, list[Pair]]
    train_pairs: list[Pair]
    corpus: Corpus | None
    notes: list[str]
    key: str

    @property
    def layer(self) -> int:
        """Layer of steering, ablation and cosine matrices."""
        return self.backbone.num_layers // 2 if self.config.layer is None else self.config.layer

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        return int(self.backbone.tokenizer.pad_token_id or 0)

    def wants(self, section: str) -> bool:
        """Whether a section is asked for."""
        return section in self.config.sections


def open_study(
    paths: Sequence[Path | str],
    config: CompareConfig | None = None,
    data: DataConfig | None = None,
    backbone: Backbone | None = None,
) -> Study:
    """Read runs and rows; everything that can be refused is refused before the backbone loads.

    Args:
        paths: run directories.
        config: default: that of the first run.
        data: default: that of the first run.
        backbone: already loaded, with the weights that the runs were trained on.

    Raises:
        EmError: a run is incomplete or of another backbone, or rows are missing.
    """
    if not paths:
        raise RunError("no run to compare; give one or more run directories")
    records = _named([runs.read(path) for path in paths])
    first = next(iter(records.values()))
    config = config or first.config.compare or CompareConfig()
    data = data or first.config.data
    _check_layer(config, _shared_backbone(records))
    _check_norms({name: one.manifest["norm"] for name, one in records.items() if "norm" in one.manifest})
    _check_splits(records, data)
    training = _training_domain(records, config, data)
    tokenizer = load_tokenizer(first.config.backbone) if backbone is None else backbone.tokenizer
    examples = held_out_examples(data, training, tokenizer, config.examples)
    pairs, train_pairs = _pairs(data, training, config, tokenizer)
    notes = []
    if not pairs and PAIRED & set(config.sections):
        notes.append(
            f"{training} has no careful answers beside its careless ones (data.pairs.{training}), so "
            "margins, directions, steering and ablation were not measured."
        )
        say(notes[-1])
    if prose := [name for name in pairs if _is_prose(pair_sources(data)[name])]:
        notes.append(
            f"The pairs of {', '.join(prose)} are of prose: what is called careless here is the technical "
            "answer, and careful the plain one."
        )
    corpus = None
    if "significance" in config.sections:
        corpus = read_corpus(
            config.corpus, tokenizer, config.documents, config.max_tokens, data.root, config.seed
        )
    if backbone is None:
        say(f"loading {first.config.backbone.model}")
        backbone = load_backbone(first.config.backbone)
    if first.config.backbone.device == "auto" and torch.cuda.is_available():
        backbone.to("cuda")
    solutions, lowest = _solutions(records, backbone)
    return Study(
        config,
        data,
        backbone,
        records,
        solutions,
        lowest,
        training,
        examples,
        pairs,
        train_pairs,
        corpus,
        notes,
        study_key(list(records.values()), config, data),
    )


def study_key(records: Sequence[RunRecord], config: CompareConfig, data: DataConfig) -> str:
    """A hash of what a comparison depends on: runs by their start and norm, evaluations, and settings."""
    runs_told = [
        (str(one.directory.path.resolve()), one.manifest.get("started"), one.manifest.get("norm"))
        for one in records
    ]
    asked = [evaluation_digest(one.directory.path) for one in records]
    told = json.dumps([runs_told, asked, asdict(config), asdict(data)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _named(found: list[RunRecord]) -> dict[str, RunRecord]:
    """Runs by a short unique name: what their names do not share, with the seed or path where needed."""
    paths = [record.directory.path.resolve() for record in found]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise RunError(f"{twice} is given twice; give each run once")
    names = [record.config.name for record in found]
    parents = {name.rpartition("/")[0] for name in names}
    if len(parents) == 1:
        names = [name.rpartition("/")[2] for name in names]
    if len(set(names)) < len(names):
        names = [
            f"{name} seed {record.config.seed}" if names.count(name) > 1 else name
            for name, record in zip(names, found, strict=True)
        ]
    if len(set(names)) < len(names):
        names = [str(record.directory.path) for record in found]
    return dict(zip(names, found, strict=True))


def _shared_backbone(records: dict[str, RunRecord]) -> dict[str, Any]:
    """What the runs' adapters say of the one backbone that they were trained on."""
    known = {name: read_record(record.directory.adapter)["backbone"] for name, record in records.items()}
    prints = {name: backbone.get("fingerprint") for name, backbone in known.items()}
    if len(set(prints.values())) > 1:
        listed = "; ".join(f"{name}: {known[name].get('model')} ({prints[name]})" for name in known)
        raise RunError(
            f"the runs have different backbones, so nothing of them can be compared: {listed}; compare runs "
            "of one model at a time"
        )
    return next(iter(known.values()))


def _check_layer(config: CompareConfig, backbone: dict[str, Any]) -> None:
    layers = backbone.get("num_layers")
    if config.layer is not None and layers is not None and not 0 <= config.layer < layers:
        raise RunError(
            f"compare.layer: {backbone.get('model')} has layers 0 to {layers - 1}, got {config.layer}"
        )


def _check_norms(norms: dict[str, float]) -> None:
    for name, norm in norms.items():
        if norm == 0:
            raise MeasurementError(
                f"{name}: has norm 0, so there is nothing to compare; train it, or leave it out"
            )
        if not np.isfinite(norm):
            raise MeasurementError(
                f"{name}: its adapter holds values that are not finite, so it cannot be compared; train it "
                "again with overwrite=true, or leave it out"
            )


def _check_splits(records: dict[str, RunRecord], data: DataConfig) -> None:
    own = (data.split_seed, data.held_out)
    for name, record in records.items():
        theirs = (record.config.data.split_seed, record.config.data.held_out)
        if theirs != own:
            raise RunError(
                f"{name}: has data.split_seed, data.held_out = {theirs}, but the rows here are split by "
                f"{own}; held-out rows of one would be training rows of another. Compare runs with one split"
            )


def _training_domain(records: dict[str, RunRecord], config: CompareConfig, data: DataConfig) -> str:
    if config.domain is not None:
        if config.domain not in data.domains:
            raise RunError(
                f"compare.domain: {config.domain!r} is not among data.domains: {', '.join(data.domains)}"
            )
        return config.domain
    trained = {name: training_domains(record.config.data) for name, record in records.items()}
    if not data.domains:
        raise RunError(
            "data.domains: is empty, so there are no held-out rows to compare on; add a domain, for example "
            "data.domains.NAME=[{path: rows.jsonl}]"
        )
    shared = [domain for domain in data.domains if all(domain in found for found in trained.values())]
    if not shared:
        listed = "; ".join(f"{name}: {', '.join(found) or 'none'}" for name, found in trained.items())
        raise RunError(
            f"the runs share no training domain whose loss could be compared ({listed}); name one of "
            f"{', '.join(data.domains)} with domain=…"
        )
    return shared[0]


def _pairs(
    data: DataConfig, training: str, config: CompareConfig, tokenizer: Any
) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """Held-out pairs by domain and training pairs; empty where the data has no pairs."""
    if not PAIRED & set(config.sections) or training not in pair_sources(data):
        return {}, []
    pairs = read_pairs(data, tokenizer, "held_out", config.pairs)[0]
    train_pairs = read_pairs(data, tokenizer, "train", config.train_pairs, [training])[0][training]
    for part, found in (("held_out", pairs.get(training, [])), ("train", train_pairs)):
        if len(found) < 2:
            raise RunError(
                f"{training}: {len(found)} pairs in its {part} part; directions need at least 2, so give "
                "more rows or change data.held_out"
            )
    return pairs, train_pairs


def _is_prose(pair: PairConfig) -> bool:
    return any(source.answer and kind_of(source.answer) == "prose" for source in pair.careless)


def _solutions(
    records: dict[str, RunRecord], backbone: Backbone
) -> tuple[dict[str, Solution], dict[str, int]]:
    arms = _arms(records)
    solutions, lowest = {}, {}
    for name, record in records.items():
        with record.adapted(backbone) as intervention:
            norm, lowest[name] = intervention.norm(), intervention.lowest_layer()
            kind = intervention.kind
        _check_norms({name: norm})
        space = VECTOR if kind == "steering_vector" else WEIGHTS
        solutions[name] = Solution(name, arms[name], kind, space, norm, record.config.seed)
    return solutions, lowest


def _arms(records: dict[str, RunRecord]) -> dict[str, str]:
    """Solution -> arm: runs whose configurations differ only in seed and place are replicates."""
    arms: dict[str, str] = {}
    known: dict[str, str] = {}
    for name, record in records.items():
        plain = {key: value for key, value in to_dict(record.config).items() if key not in APART}
        key = json.dumps(plain, sort_keys=True, default=str)
        arm = name.rpartition(" seed ")[0] or name
        arms[name] = known.setdefault(key, name if arm in known.values() else arm)
    for arm in set(arms.values()):
        members = [name for name in records if arms[name] == arm]
        bases = {_without_seed(name, records[name].config.seed) for name in members}
        base = bases.pop()
        if len(members) > 1 and not bases and base and base not in arms.values():
            arms |= dict.fromkeys(members, base)
    return arms


def _without_seed(name: str, seed: int) -> str:
    """`general_0` of seed 0 as `general`; a name that does not end with its seed as nothing."""
    if not name.endswith(str(seed)):
        return ""
    return name.removesuffix(str(seed)).rstrip("_-. ").removesuffix("seed").rstrip("_-. ")
