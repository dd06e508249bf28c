"""Rules across keys: what the types allow but training cannot do. Each yields problem lines."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any

from em.config import data_files
from em.config.build import NAMING, resolve
from em.config.evaluation_rules import evaluation_problems
from em.config.facts import ModelFacts
from em.config.schema import Component, Config, EvaluateConfig, SourceConfig
from em.config.signature import attribute
from em.errors import ConfigError

Rule = Callable[[Config, ModelFacts | None], Iterator[str]]

AT_LEAST_0 = ("at least 0", lambda value: value >= 0)
AT_LEAST_1 = ("at least 1", lambda value: value >= 1)
ABOVE_0 = ("above 0", lambda value: value > 0)
BOUNDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "data.max_length": ("at least 8", lambda value: value >= 8),
    "data.held_out": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "data.batch_size": AT_LEAST_1,
    "data.micro_batch_size": AT_LEAST_1,
    "data.length_buckets": AT_LEAST_1,
    "data.eval_limit": AT_LEAST_1,
    "kl.weight": AT_LEAST_0,
    "kl.batch_size": AT_LEAST_1,
    "kl.temperature": ABOVE_0,
    "kl.schedule.step": AT_LEAST_0,
    "kl.schedule.start": AT_LEAST_0,
    "kl.schedule.end": AT_LEAST_0,
    "optimizer.lr": ABOVE_0,
    "optimizer.weight_decay": AT_LEAST_0,
    "optimizer.betas": (
        "two numbers, each at least 0 and below 1",
        lambda value: len(value) == 2 and all(0 <= beta < 1 for beta in value),
    ),
    "optimizer.eps": ABOVE_0,
    "optimizer.warmup_steps": AT_LEAST_0,
    "trainer.num_nodes": AT_LEAST_1,
    "trainer.gradient_clip": ABOVE_0,
    "trainer.val_every_n_steps": AT_LEAST_1,
    "trainer.log_every_n_steps": AT_LEAST_1,
    "trainer.checkpoint_every_n_steps": AT_LEAST_1,
    "trainer.threads": AT_LEAST_1,
    "states.disk_gb": ABOVE_0,
}

# One pair has no direction: its reliability is that of one half of the pairs with the other.
COMPARE_LEAST = {
    **{"examples": 1, "draws": 1, "documents": 1, "controls": 1, "pairs": 2, "train_pairs": 2},
    **{"steered_pairs": 1, "max_tokens": 2, "resamples": 100},
}


def bounds(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for key, (words, holds) in BOUNDS.items():
        value = attrgetter(key)(config)
        if value is not None and not holds(value):
            yield f"{key}: expected {words}, got {value}"


def comparison(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    """Grids and counts of the section `compare`."""
    compare = config.compare
    if compare is None:
        return
    if 1.0 not in compare.factors or min(compare.factors) < 0:
        yield f"compare.factors: expected numbers at least 0 with 1.0 among them, got {compare.factors}"
    if not compare.epsilons or not all(0 < epsilon <= 1 for epsilon in compare.epsilons):
        yield f"compare.epsilons: expected numbers above 0 and at most 1, got {compare.epsilons}"
    if not any(compare.coefficients):
        yield f"compare.coefficients: expected a number other than 0 among them, got {compare.coefficients}"
    for key, least in COMPARE_LEAST.items():
        if getattr(compare, key) < least:
            yield f"compare.{key}: expected at least {least}, got {getattr(compare, key)}"
    if facts is not None and compare.layer is not None and not 0 <= compare.layer < facts.num_layers:
        yield f"compare.layer: expected 0 to {facts.num_layers - 1}, got {compare.layer}"


def run_name(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    parts = config.name.split("/")
    plain = not any(part in ("", ".", "..") for part in parts) and "\\" not in config.name
    if not plain or PurePosixPath(config.name).is_absolute() or config.name.startswith("~"):
        yield f"name: expected a plain folder name below runs_dir, got {config.name!r}"


def training_rows(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    if not config.data.train:
        yield "data.train: is empty; add a source, for example {path: rows.jsonl}"
    for name, sources in config.data.domains.items():
        if not sources:
            yield f"data.domains.{name}: is empty; add a source or remove the domain"


def sources(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for key, listed in data_files.source_lists(config):
        for index, source in enumerate(listed):
            if (source.path is None) == (source.hub is None):
                both = "both" if source.path is not None else "neither"
                yield f"{key}[{index}]: give exactly one of path and hub, not {both}"
            if source.weight is not None and source.weight <= 0:
                yield f"{key}[{index}].weight: expected above 0, got {source.weight}"
            if source.limit is not None and source.limit < 1:
                yield f"{key}[{index}].limit: expected at least 1, got {source.limit}"
        weighted = [
            f"{key}[{index}].weight" for index, source in enumerate(listed) if source.weight is not None
        ]
        if weighted and len(weighted) < len(listed):
            yield f"{weighted[0]}: give a weight to all {len(listed)} sources of {key}, or to none"


def pairs(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for name, pair in config.data.pairs.items():
        sides: tuple[data_files.Side, ...] = ("careless", "careful")
        for side in sides:
            key, listed = f"data.pairs.{name}.{side}", getattr(pair, side)
            if not listed:
                yield f"{key}: is empty; add a source of {side} answers or remove the pair"
            for index, source in enumerate(listed):
                expected = source.answer and data_files.counterpart(source.answer, side)
                if source.answer != expected:
                    found = f"{key}[{index}].answer: is {source.answer}"
                    yield f"{found}; expected {expected}, or none for rows of messages"
        yield from _mixed(f"data.pairs.{name}", [*pair.careless, *pair.careful])
    for name, listed in config.data.domains.items():
        yield from _mixed(f"data.domains.{name}", listed)


def _mixed(key: str, listed: Sequence[SourceConfig]) -> Iterator[str]:
    """Answers of several kinds in one domain: their margins would be those of two traits at once."""
    kinds: dict[str, str] = {}
    for source in listed:
        if source.answer:
            kinds.setdefault(data_files.kind(source.answer), source.answer)
    if len(kinds) > 1:
        named = " and ".join(f"{kind} ({answer})" for kind, answer in kinds.items())
        yield f"{key}: mixes answers of {named}; give each kind a domain of its own"


def corpora(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for key, corpus in data_files.corpora(config):
        if corpus.path is not None and corpus.hub is not None:
            yield f"{key}: give one of path and hub, not both"
        if corpus.limit is not None and corpus.limit < 1:
            yield f"{key}.limit: expected at least 1, got {corpus.limit}"


def kl_rows(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    if config.kl.weight > 0 and not config.data.kl:
        weight = config.kl.weight
        yield f"kl.weight: {weight} needs KL rows, but data.kl is empty; add a source or set kl.weight: 0"


def kl_schedule(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    schedule = config.kl.schedule
    if schedule.kind == "off_at" and schedule.step is None:
        yield "kl.schedule.step: missing; kl.schedule.kind off_at needs it"
    if schedule.kind != "off_at" and schedule.step is not None:
        yield f"kl.schedule.step: is for kl.schedule.kind off_at, but that is {schedule.kind}; remove one"


def batches(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    """Every optimizer step is whole micro batches of SFT rows, and as many equal ones of KL rows."""
    data, trainer = config.data, config.trainer
    if trainer.devices == 0:
        yield "trainer.devices: expected at least 1, -1 or auto, got 0"
    if not isinstance(trainer.devices, int) or min(trainer.devices, trainer.num_nodes) < 1:
        return  # how many processes there are is known on the machine only
    if min(data.batch_size, data.micro_batch_size) < 1:
        return
    world = trainer.devices * trainer.num_nodes
    unit = data.micro_batch_size * world
    if data.batch_size % unit:
        yield (
            f"data.batch_size: {data.batch_size} is not divisible by {unit} = data.micro_batch_size "
            f"{data.micro_batch_size} * trainer.devices {trainer.devices} * trainer.num_nodes "
            f"{trainer.num_nodes}; nearest: {_nearest(data.batch_size, unit)}"
        )
        return
    accumulate = data.batch_size // unit
    wanted = config.kl.batch_size
    if wanted is not None and wanted >= 1 and wanted % (accumulate * world):
        yield (
            f"kl.batch_size: {wanted} is not divisible by {accumulate * world}, the number of micro batches "
            f"that data.batch_size {data.batch_size} / data.micro_batch_size {data.micro_batch_size} gives; "
            f"nearest: {_nearest(wanted, accumulate * world)}"
        )


def _nearest(value: int, unit: int) -> int:
    return max(unit, (value + unit // 2) // unit * unit)


def duration(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    epochs, steps = config.trainer.epochs, config.trainer.max_steps
    if (epochs is None or epochs <= 0) and (steps is None or steps <= 0):
        yield (
            f"trainer.epochs: is {'null' if epochs is None else epochs} and trainer.max_steps is "
            f"{'null' if steps is None else steps}; set one of them above 0"
        )


def early_stop(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    stop = config.trainer.early_stop
    if stop is None:
        return
    if config.trainer.val_every_n_steps is None:
        yield "trainer.early_stop: needs validation; set trainer.val_every_n_steps, which is null"
    if stop.patience < 1:
        yield f"trainer.early_stop.patience: expected at least 1, got {stop.patience}"


def reference(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    kind = config.intervention.get("kind")
    sharded = config.trainer.strategy == "fsdp2" and kind == "full_finetune"
    if sharded and config.kl.weight > 0 and config.reference is None:
        yield (
            "trainer.strategy: fsdp2 shards the only copy of the weights, which intervention.kind "
            f"full_finetune changes, so kl.weight {config.kl.weight} has no reference; set reference.model"
        )


def stored_states(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    states = config.states
    for key, value in (("reference", states.reference), ("lower", states.lower)):
        if value == "always" and config.trainer.strategy == "fsdp2":
            yield (
                f"states.{key}: always is not possible under trainer.strategy=fsdp2, which runs whole passes "
                "only; set it to auto or never"
            )
    if states.reference == "always" and config.kl.weight == 0:
        yield "states.reference: always needs a KL term, but kl.weight is 0; set it to auto or never"


def during_training(config: Config) -> Iterator[tuple[str, Component]]:
    """The interventions of training only, with their keys."""
    for index, component in enumerate(config.during_training):
        yield f"during_training[{index}]", component


def trained_or_fixed(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    """What is trained stands under `intervention`, what is given under `during_training`."""
    for key, component in (("intervention", config.intervention), *during_training(config)):
        naming = next((name for name in NAMING if component.get(name)), None)
        if naming is None:
            continue
        try:
            fixed = bool(attribute(resolve(component, "interventions"), "fixed"))
        except ConfigError:
            continue  # reported with the component
        where = f"{key}.{naming}: {component[naming]}"
        if key == "intervention" and fixed:
            yield f"{where} has nothing to train; put it under during_training"
        if key != "intervention" and not fixed:
            yield f"{where} is not fixed, as steering and ablation are; put it under intervention"


def components(config: Config) -> Iterator[tuple[str, Component]]:
    """All components with their keys."""
    yield "intervention", config.intervention
    yield from during_training(config)
    for name, component in config.callbacks.items():
        yield f"callbacks.{name}", component


def layers(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    if facts is None:
        return
    for key, component in components(config):
        many = component.get("layers")
        given = [(f"{key}.{name}", component.get(name)) for name in ("layer", "layers")]
        if not key.startswith("callbacks."):  # where `source` may mean something else
            given.append((f"{key}.source", component.get("source")))
        given += [
            (f"{key}.layers[{i}]", value) for i, value in enumerate(many if isinstance(many, list) else [])
        ]
        for where, value in given:
            if isinstance(value, int) and not 0 <= value < facts.num_layers:
                yield (
                    f"{where}: backbone.model {config.backbone.model} has layers 0 to "
                    f"{facts.num_layers - 1}, got {value}"
                )


def intervals(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for name, component in config.callbacks.items():
        every = component.get("every_n_steps")
        if isinstance(every, int) and every < 1:
            yield f"callbacks.{name}.every_n_steps: expected at least 1, got {every}"


def evaluations(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    """Settings of the callbacks that ask the model and have its answers judged."""
    for name, component in config.callbacks.items():
        if component.get("kind") != "judge_eval":
            continue
        known = {one.name for one in fields(EvaluateConfig)}
        given = {key: value for key, value in component.items() if key in known and value is not None}
        yield from evaluation_problems(replace(EvaluateConfig(), **given), f"callbacks.{name}.")
        if config.trainer.strategy == "fsdp2":
            run = f"{config.runs_dir}/{config.name}"
            yield (
                f"callbacks.{name}: a model that trainer.strategy=fsdp2 has split over processes cannot "
                f"generate answers; leave it out, and run `python -m em eval {run}` afterwards"
            )


RULES: tuple[Rule, ...] = (
    comparison,
    run_name,
    bounds,
    training_rows,
    sources,
    pairs,
    corpora,
    kl_rows,
    kl_schedule,
    batches,
    duration,
    early_stop,
    reference,
    stored_states,
    trained_or_fixed,
    layers,
    intervals,
    evaluations,
)
