"""What both sides of a row need: model folder, rows in tokens and their order, initial adapter, noise."""

import gc
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.architectures import RANDOM_SHAPES, byte_tokenizer, save_shape
from benchmarks.ours.setting import build_config, loaded_backbone, set_up
from benchmarks.settings import Settings, write_plan
from em.building import attach, build_experiment, run_directory
from em.config import Config
from em.config.schema import BackboneConfig
from em.datamodules.chat import ChatData
from em.datamodules.plain_text import read_corpus
from em.datamodules.sources import Example
from em.experiment import fit
from em.hooks import generator_for
from em.interventions.base import Intervention
from em.interventions.steering_vector import SteeringVector
from em.loading import converted, load_tokenizer, smollm2_file
from em.trainer import make_trainer

SOLUTIONS = 2


def model_folder(settings: Settings, work: Path) -> Path:
    """A folder with config and tokenizer, and the weights unless they are random."""
    if settings.arch not in RANDOM_SHAPES:
        return converted(smollm2_file())
    folder = work / "model"
    if not folder.is_dir():
        tiny = settings.arch == "tiny"
        tokenizer = byte_tokenizer() if tiny else load_tokenizer(BackboneConfig(model="smollm2"))
        save_shape(settings.arch, folder, tokenizer)
    return folder


def training(settings: Settings, work: Path) -> dict[str, Any]:
    """Rows of every step and the adapter's initial values."""
    folder = model_folder(settings, work)
    config = build_config(settings, work, str(folder))
    plan = {"model": str(folder), **_steps(config)}
    if not settings.sizes.get("vector"):
        backbone = loaded_backbone(settings, config)
        attached, _ = attach(config, backbone)
        attached.save(work / "adapter")
    write_plan(work, plan | {"layer": config.intervention.get("layer")})
    return {"tokens": sum(plan["tokens"]), "steps": len(plan["steps"])}


def _steps(config: Config) -> dict[str, Any]:
    tokenizer = load_tokenizer(config.backbone)
    data = ChatData(config.data, config.kl, config.trainer, tokenizer, config.seed)
    windows, sft = data.sft
    steps = [{"sft": windows.indices(step), "kl": []} for step in range(data.steps)]
    kl: list[Example] = []
    if data.kl is not None:
        kl_windows, kl = data.kl
        for number, step in enumerate(steps):
            step["kl"] = kl_windows.indices(number)
    counts = [
        sum(len(sft[index].ids) for index in step["sft"]) + sum(len(kl[index].ids) for index in step["kl"])
        for step in steps
    ]
    return {
        "steps": steps,
        "sft": [_plain(one) for one in sft],
        "kl": [_plain(one) for one in kl],
        "kl_weight": config.kl.weight,
        "tokens": counts,
        "pad": data.pad,
    }


def _plain(example: Example) -> dict[str, Any]:
    return {"ids": list(map(int, example.ids)), "answer": list(map(int, example.answer))}


def solutions(settings: Settings, work: Path, folder: Path) -> tuple[Config, list[Path]]:
    """Adapters that a few steps of training have given a gain, one for each seed."""
    set_up(settings)
    made: list[Path] = []
    for seed in range(SOLUTIONS):
        config = build_config(settings, work, str(folder), name=f"solution{seed}", seed=seed)
        backbone = loaded_backbone(settings, config)
        run = run_directory(config)
        run.claim(config)
        experiment = build_experiment(config, run, backbone)
        trainer, _ = make_trainer(experiment)
        fit(experiment, trainer, resume=False)
        experiment.intervention.save(work / f"solution{seed}")
        experiment.detach()
        made.append(work / f"solution{seed}")
        del experiment, trainer, backbone
        gc.collect()
    return config, made


def attached_solution(settings: Settings, config: Config, folder: Path) -> Intervention:
    """A solution on a backbone of its own."""
    intervention, _ = attach(config, loaded_backbone(settings, config))
    intervention.load(folder)
    return intervention


def sweep(settings: Settings, work: Path) -> dict[str, Any]:
    """Solutions and their noise: the same for both sides."""
    folder = model_folder(settings, work)
    config, made = solutions(settings, work, folder)
    for number, path in enumerate(made):
        intervention = attached_solution(settings, config, path)
        save_file(_noise(settings, intervention), work / f"noise{number}.safetensors")
    rows = _steps(build_config(settings, work, str(folder), count=settings.sizes["examples"]))
    scale = float(config.intervention.get("scale", 1.0))
    write_plan(
        work,
        {
            "model": str(folder),
            "solutions": [str(path) for path in made],
            "examples": rows["sft"][: settings.sizes["examples"]],
            "pad": rows["pad"],
            "layer": config.intervention.get("layer"),
            "vector_scale": scale,
        },
    )
    return {}


def _noise(settings: Settings, intervention: Intervention) -> dict[str, torch.Tensor]:
    """Perturbed parameters as `stability` draws them; for a LoRA, whose rank doubles, the first draw only."""
    found = {}
    sizes = settings.sizes
    epsilons, draws = (
        (sizes["epsilons"], sizes["draws"]) if sizes.get("vector") else (sizes["epsilons"][:1], 1)
    )
    for k, epsilon in enumerate(epsilons):
        for draw in range(draws):
            with intervention.perturbed(epsilon, generator_for(0, "stability", draw)):
                for name, value in intervention.gathered().items():
                    found[f"{k} {draw} {name}"] = value
    return found


def text(settings: Settings, work: Path) -> dict[str, Any]:
    """Documents, and every vector of the sweep at every norm."""
    folder = model_folder(settings, work)
    config, made = solutions(settings, work, folder)
    intervention = attached_solution(settings, config, made[0])
    assert isinstance(intervention, SteeringVector)
    sizes = settings.sizes
    vectors = []
    for number in range(2):
        generator = generator_for(0, "significance-control", number)
        with intervention.perturbed(1.0 if number else 0.0, generator):
            (one,) = intervention.gathered().values()
        vectors += [one * intervention.scale * factor for factor in sizes["factors"]]
    save_file({"vectors": torch.stack(vectors)}, work / "vectors.safetensors")
    tokenizer = load_tokenizer(config.backbone)
    corpus = read_corpus([], tokenizer, sizes["documents"], sizes["max_tokens"])
    write_plan(
        work,
        {
            "model": str(folder),
            "solutions": [str(made[0])],
            "documents": [list(map(int, one.ids)) for one in corpus.documents],
            "pad": int(tokenizer.pad_token_id or 0),
            "layer": intervention.layer,
        },
    )
    return {}
