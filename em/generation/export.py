"""Trained runs as folders that vLLM can serve, for many answers on a GPU machine of its own.

vLLM needs another torch than this project, so it lives in another environment; nothing here imports it.
"""

import json
import shlex
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from em.backbone import Backbone
from em.config import build
from em.errors import GenerationError, RunError
from em.files import expect_free, write_folder, write_json
from em.interventions.full_finetune import FullFinetune
from em.interventions.lora import PEFT_CONFIG, PEFT_WEIGHTS, Lora
from em.interventions.steering_vector import SteeringVector
from em.loading import converted, smollm2_file
from em.runs import LoadedRun, RunRecord, load, read

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as --max-lora-rank
# Layouts that a Llama checkpoint can hold exactly.
LLAMA_LIKE = ("llama", "mistral", "qwen2")
SHARED = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
]


def export_vllm(run_dir: Path | str, out: Path | str) -> str:
    """Write what vLLM can load of a trained run.

    A LoRA becomes a PEFT adapter folder; a full finetune a checkpoint; a steering vector a checkpoint of the
    Llama layout whose biases are all zero except `down_proj` of its layer, which is scale · v.

    Args:
        run_dir: a trained run.
        out: folder to make; must not exist or be empty.

    Returns:
        The command line that serves it.

    Raises:
        RunError: the directory is no trained run, or `out` is in use or cannot be written.
        GenerationError: vLLM cannot do what this intervention does; says what can be done instead.
    """
    record, out = read(run_dir), Path(out).absolute()
    expect_free(out)
    intervention = build(record.config.intervention, "interventions")
    if isinstance(intervention, Lora):
        base = _base(record)
        rank = write_folder(out, lambda folder: _adapter(record, folder, base))
        adapter = shlex.quote(f"{record.directory.path.name}={out}")
        flags = f"--enable-lora --lora-modules {adapter} --max-lora-rank {rank}"
        return f"vllm serve {shlex.quote(base)} {flags}{_further(record, base)}"
    if isinstance(intervention, SteeringVector):
        _check_vector(intervention)
        write_folder(out, lambda folder: _steered(load(run_dir), folder))
    elif isinstance(intervention, FullFinetune):
        write_folder(out, lambda folder: _finetuned(load(run_dir), folder))
    else:
        raise GenerationError(
            f"{run_dir}: vLLM has nothing like the intervention {intervention.kind}; generate in this "
            "process instead, with the run's backbone as the source of the answers"
        )
    name = shlex.quote(record.directory.path.name)
    return f"vllm serve {shlex.quote(str(out))} --served-model-name {name}{_further(record, str(out))}"


def _base(record: RunRecord) -> str:
    """The base model as vLLM can find it."""
    name = record.config.backbone.model
    if name == "smollm2" or name.endswith(".gguf"):
        return str(converted(smollm2_file() if name == "smollm2" else Path(name)))
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _further(record: RunRecord, served: str) -> str:
    config = record.config.backbone
    # vLLM's own choice for float32 is half precision.
    dtype = "" if config.dtype == "auto" else f" --dtype {config.dtype}"
    revision = (
        f" --revision {shlex.quote(config.revision)}" if config.revision and config.model == served else ""
    )
    return dtype + revision


def _adapter(record: RunRecord, folder: Path, base: str) -> int:
    """Copy the adapter in the PEFT format; returns the rank that vLLM must reserve."""
    source = record.directory.adapter
    try:
        config = json.loads((source / PEFT_CONFIG).read_text(encoding="utf-8"))
        rank = int(config["r"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{source / PEFT_CONFIG}: cannot be read ({error}); train the run again") from error
    unknown = [
        name
        for name, is_used in {
            "DoRA": config.get("use_dora"),
            "LoRA biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
            "modules_to_save": config.get("modules_to_save"),
            "ranks that differ between modules": config.get("rank_pattern") or config.get("alpha_pattern"),
            f"ranks above {RANKS[-1]}": rank > RANKS[-1],
        }.items()
        if is_used
    ]
    if unknown:
        raise GenerationError(
            f"{source}: vLLM loads no {', no '.join(unknown)}; generate in this process, or train without"
        )
    shutil.copyfile(source / PEFT_WEIGHTS, folder / PEFT_WEIGHTS)
    write_json(folder / PEFT_CONFIG, {**config, "base_model_name_or_path": base})
    return next(known for known in RANKS if known >= rank)


def _finetuned(run: LoadedRun, folder: Path) -> None:
    run.backbone.model.save_pretrained(folder)
    run.backbone.tokenizer.save_pretrained(folder)


def _check_vector(vector: SteeringVector) -> None:
    if vector.positions != "all":
        raise GenerationError(
            "positions: answer cannot be exported, because a bias acts at every position, of the prompt too; "
            "generate in this process, or train with positions: all"
        )
    if vector.site.point == "attention":
        raise GenerationError(
            "point: attention cannot be exported, only mlp and block, for which a bias of down_proj can "
            "stand; generate in this process"
        )


def _steered(run: LoadedRun, folder: Path) -> None:
    backbone, vector = run.backbone, run.intervention
    assert isinstance(vector, SteeringVector)
    config = _llama_config(backbone)
    added_D = (vector.vector.detach() * vector.scale).to(backbone.model.dtype)
    vector.detach()
    state = {name: tensor.detach() for name, tensor in backbone.model.state_dict().items()}
    state |= _biases(config, state, vector.layer, added_D)
    with torch.device("meta"):  # the weights of the backbone are used as they are
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)
    model.generation_config = backbone.model.generation_config
    model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)


def _llama_config(backbone: Backbone) -> LlamaConfig:
    own = backbone.model.config
    windows = set(getattr(own, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if own.model_type == "mistral" and own.sliding_window is not None:
        windows.add(f"sliding window of {own.sliding_window}")
    if own.model_type not in LLAMA_LIKE or windows:
        what = ", ".join([own.model_type, *sorted(windows)])
        raise GenerationError(
            f"{backbone.name}: a vector can be exported for {', '.join(LLAMA_LIKE)} with full attention, "
            f"which fit the Llama layout, not for {what}; generate in this process"
        )
    # Qwen 2 has biases at q, k and v; Llama has them there and at o, or nowhere.
    attention_bias = own.model_type == "qwen2" or getattr(own, "attention_bias", False)
    shared = {name: getattr(own, name) for name in SHARED if hasattr(own, name)}
    return LlamaConfig(
        **shared,
        attention_bias=attention_bias,
        mlp_bias=True,
        dtype=backbone.model.dtype,
        architectures=["LlamaForCausalLM"],
    )


def _biases(config: LlamaConfig, state: dict[str, Tensor], layer: int, added_D: Tensor) -> dict[str, Tensor]:
    """Biases that the layout has and the model does not: zero, and the vector at its layer."""
    names = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    names += ["self_attn.o_proj"] if config.attention_bias else []
    found = {}
    for index in range(config.num_hidden_layers):
        for name in names:
            bias = f"model.layers.{index}.{name}.bias"
            weight = state[f"model.layers.{index}.{name}.weight"]
            found[bias] = state.get(bias, weight.new_zeros(weight.shape[0]))
    steered = f"model.layers.{layer}.mlp.down_proj.bias"
    found[steered] = found[steered] + added_D
    return found
