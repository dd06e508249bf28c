"""Rules across keys: what the types allow but training cannot do. Each yields problem lines."""

from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import PurePosixPath
from typing import Any

from em.config.data_files import source_lists
from em.config.facts import ModelFacts
from em.config.schema import Component, Config

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
}


def bounds(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    for key, (words, holds) in BOUNDS.items():
        value = attrgetter(key)(config)
        if value is not None and not holds(value):
            yield f"{key}: expected {words}, got {value}"


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
    for key, listed in source_lists(config):
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


def components(config: Config) -> Iterator[tuple[str, Component]]:
    """All components with their keys."""
    yield "intervention", config.intervention
    for name, component in config.callbacks.items():
        yield f"callbacks.{name}", component


def layers(config: Config, facts: ModelFacts | None) -> Iterator[str]:
    if facts is None:
        return
    for key, component in components(config):
        one, many = component.get("layer"), component.get("layers")
        given = [(f"{key}.layer", one)]
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


RULES: tuple[Rule, ...] = (
    run_name,
    bounds,
    training_rows,
    sources,
    kl_rows,
    kl_schedule,
    batches,
    duration,
    early_stop,
    reference,
    layers,
    intervals,
)
