"""From a configuration to everything that training needs."""

from contextlib import ExitStack
from dataclasses import dataclass

import lightning.pytorch as pl
import torch

from em.backbone import Backbone
from em.callbacks.base import MeasurementCallback
from em.config import Config, build
from em.datamodules.chat import ChatData
from em.errors import BackboneError, ConfigError, EmError
from em.hooks import keyed_seed
from em.interventions._fixed import FixedIntervention
from em.interventions.base import Intervention
from em.loading import load_backbone, load_tokenizer
from em.modules.frozen import FrozenStates
from em.modules.schedules import kl_factor
from em.modules.sft import SFTModule
from em.progress import say
from em.runs import RunDirectory
from em.states.uses import uses_of


@dataclass
class Experiment:
    """What a configuration builds: everything that training needs, attached and ready.

    Args:
        config: the checked configuration.
        run: its run directory.
        backbone: with `intervention` and `during_training` attached.
        during_training: fixed interventions that act in training passes only.
        data: read and encoded.
        module: the LightningModule.
        callbacks: measurements, by the order of the config.
    """

    config: Config
    run: RunDirectory
    backbone: Backbone
    intervention: Intervention
    during_training: list[FixedIntervention]
    data: ChatData
    module: SFTModule
    callbacks: list[MeasurementCallback]

    def detach(self) -> None:
        """Give the backbone back as it was."""
        for intervention in (*self.during_training, self.intervention):
            intervention.detach()


def run_directory(config: Config) -> RunDirectory:
    return RunDirectory(f"{config.runs_dir}/{config.name}")


def seed_everything(config: Config) -> None:
    """Seed the global streams (everything of ours is keyed) and set threads."""
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    pl.seed_everything(keyed_seed(config.seed, "global") % 2**32, verbose=False)


def build_experiment(config: Config, run: RunDirectory, backbone: Backbone | None = None) -> Experiment:
    """Load the backbone, read the data, attach the intervention.

    Args:
        backbone: already loaded with `config.backbone`, shared by the members of a suite.

    Raises:
        EmError: whatever of model, data or adapter cannot be used.
    """
    # Data first: a bad row is found before a large model is loaded.
    tokenizer = load_tokenizer(config.backbone) if backbone is None else backbone.tokenizer
    data = ChatData(config.data, config.kl, config.trainer, tokenizer, config.seed, world_size(config))
    if backbone is None:
        say(f"{config.name}: loading {config.backbone.model}")
        backbone = load_backbone(config.backbone)
    reference = None if config.reference is None else load_backbone(config.reference)
    if reference is not None and reference.vocab_size != backbone.vocab_size:
        raise BackboneError(
            f"reference.model {reference.name} has {reference.vocab_size} tokens, backbone.model "
            f"{backbone.name} has {backbone.vocab_size}; the KL term needs one vocabulary"
        )
    intervention, during_training = attach(config, backbone)
    module = SFTModule(
        backbone,
        intervention,
        config.kl,
        config.optimizer,
        data.steps,
        data.accumulate,
        data.pad,
        config.seed,
        reference,
        during_training,
    )
    made = Experiment(config, run, backbone, intervention, during_training, data, module, [])
    with ExitStack() as undo:
        undo.callback(made.detach)
        module.frozen = frozen_states(made)
        made.callbacks += prepared_callbacks(config, run, backbone, data)
        undo.pop_all()
    return made


def frozen_states(made: Experiment) -> FrozenStates | None:
    """What of the frozen model a run stores; nothing of it is computed yet.

    Raises:
        ConfigError: something that it shall store does not exist.
    """
    config, data = made.config, made.data
    if config.states.reference == config.states.lower == "never":
        return None
    schedule = config.kl.schedule
    uses = uses_of(data.sft, data.kl, data.steps, lambda step: kl_factor(schedule, step, data.steps) > 0)
    lowest, everywhere = made.module.lowest_layer(), config.kl.positions == "all"
    return FrozenStates(config.states, made.backbone, uses, lowest, everywhere, data.pad, config.seed)


def prepared_callbacks(
    config: Config, run: RunDirectory, backbone: Backbone, data: ChatData
) -> list[MeasurementCallback]:
    """The callbacks of a configuration, each of which found what it needs.

    Raises:
        ConfigError: some did not; one line for each.
    """
    callbacks, problems = [], []
    for name, component in config.callbacks.items():
        callback: MeasurementCallback = build(component, "callbacks")
        callback.name, callback.run = name, run
        callbacks.append(callback)
        try:
            callback.prepare(backbone, data)
        except ConfigError as error:
            problems += [f"callbacks.{name}.{line}" for line in error.problems]
        except EmError as error:
            problems.append(f"callbacks.{name}: {error}")
    if problems:
        raise ConfigError(problems)
    return callbacks


def attach(config: Config, backbone: Backbone) -> tuple[Intervention, list[FixedIntervention]]:
    """What is trained, and after it what acts in training only; all of them or, after an error, none."""
    with ExitStack() as undo:
        intervention: Intervention = build(config.intervention, "interventions")
        intervention.attach(backbone, config.seed)
        undo.callback(intervention.detach)
        during_training: list[FixedIntervention] = []
        for component in config.during_training:
            fixed: FixedIntervention = build(component, "interventions")
            fixed.attach(backbone, config.seed)
            undo.callback(fixed.detach)
            during_training.append(fixed)
        undo.pop_all()
    return intervention, during_training


def world_size(config: Config) -> int:
    """Processes of a run: `auto` and −1 count accelerators, `"0,2"` names two of them."""
    devices = config.trainer.devices
    if isinstance(devices, str) and "," in devices:
        count = len([part for part in devices.split(",") if part.strip()])
    elif str(devices) in ("auto", "-1"):
        count = max(1, torch.cuda.device_count())
    else:
        count = int(devices)
    return count * config.trainer.num_nodes
