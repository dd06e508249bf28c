import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from em import runs
from em.config import build, check
from em.errors import GenerationError, RunError
from em.generation import export
from em.generation.export import export_vllm
from em.interventions.ablation import Ablation
from em.interventions.base import Intervention
from tests.interventions.examples import direction_file
from tests.tiny import merge, randomise, tiny_config, tiny_model, tiny_tokenizer, token_ids


def trained(folder: Path, intervention: dict[str, Any], **changes: Any) -> Path:
    """A finished run whose intervention has random values."""
    raw = merge(tiny_config(folder), {"intervention": {"kind": intervention["kind"]}})
    config = check(merge({**raw, "intervention": intervention}, changes))
    directory = runs.RunDirectory(folder / "runs" / config.name)
    directory.claim(config)
    made: Intervention = build(config.intervention, "interventions")
    made.attach(runs.load_backbone(config.backbone), config.seed)
    randomise(made)
    made.save(directory.adapter)
    directory.update_manifest(status="finished")
    return directory.path


def logits_of(run: Path) -> torch.Tensor:
    with torch.no_grad():
        return runs.load(run).backbone.model(input_ids=token_ids()).logits


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_a_lora_becomes_an_adapter_folder_that_peft_loads(tmp_path: Path) -> None:
    run = trained(tmp_path, {"kind": "lora", "r": 9, "alpha": 4})
    out = tmp_path / "for serving"
    command = shlex.split(export_vllm(run, out))
    base = str(tmp_path / "model")
    assert command == (
        ["vllm", "serve", base, "--enable-lora", "--lora-modules", f"tiny={out}", "--max-lora-rank", "16"]
        + ["--dtype", "float32"]
    )
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["r"], config["base_model_name_or_path"]) == (True, 9, base)
    model = PeftModel.from_pretrained(loaded(tmp_path / "model"), out).eval()
    with torch.no_grad():
        assert torch.allclose(model(input_ids=token_ids()).logits, logits_of(run), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"use_dora": True}, "no DoRA"),
        ({"bias": "lora_only"}, "no LoRA biases"),
        ({"lora_bias": True, "use_dora": True}, "no DoRA, no LoRA biases"),
        ({"modules_to_save": ["lm_head"]}, "no modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "no ranks that differ"),
        ({"r": 1024}, "no ranks above 512"),
    ],
)
def test_adapters_that_vllm_does_not_load_are_refused(
    change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    run = trained(tmp_path, {"kind": "lora", "r": 2})
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(GenerationError, match=what):
        export_vllm(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def save_family(folder: Path, family: str, **options: Any) -> None:
    """Another model than the default in place of the run's own."""
    tiny_config(folder)
    tiny_model(family, **options).save_pretrained(folder / "model")
    tiny_tokenizer("chatml").save_pretrained(folder / "model")


FAMILIES: list[Any] = [
    ("llama", {}),
    ("llama", {"mlp_bias": True, "attention_bias": True}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {}),
]


@pytest.mark.parametrize(("family", "options"), FAMILIES)
@pytest.mark.parametrize("point", ["mlp", "block"])
def test_a_steering_vector_becomes_the_bias_of_one_layer(
    family: str, options: dict[str, Any], point: str, tmp_path: Path
) -> None:
    save_family(tmp_path, family, **options)
    run = trained(tmp_path, {"kind": "steering_vector", "layer": 1, "point": point, "scale": 8.0})
    command = export_vllm(run, tmp_path / "out")
    assert command == f"vllm serve {tmp_path / 'out'} --served-model-name tiny --dtype float32"
    model = loaded(tmp_path / "out")
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.mlp_bias
    with torch.no_grad():
        steered = model(input_ids=token_ids()).logits
        plain = loaded(tmp_path / "model")(input_ids=token_ids()).logits
    assert torch.allclose(steered, logits_of(run), atol=1e-4)
    assert not torch.allclose(steered, plain, atol=0.1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_chat_template() == tiny_tokenizer("chatml").get_chat_template()


def test_all_other_biases_are_zero(tmp_path: Path) -> None:
    run = trained(tmp_path, {"kind": "steering_vector", "layer": 2, "scale": 4.0})
    export_vllm(run, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    biases = {name: tensor for name, tensor in state.items() if name.endswith(".bias")}
    assert len(biases) == 9
    vector = load_file(run / "adapter" / "intervention.safetensors")["vector"]
    assert torch.equal(biases.pop("model.layers.2.mlp.down_proj.bias"), vector * 4)
    assert not any(bias.any() for bias in biases.values())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"positions": "answer"}, "positions: answer cannot be exported"),
        ({"point": "attention"}, "point: attention cannot be exported"),
    ],
)
def test_vectors_that_no_bias_can_stand_for_are_refused(
    options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    run = trained(tmp_path, {"kind": "steering_vector", "layer": 1, **options})
    with pytest.raises(GenerationError, match=what):
        export_vllm(run, tmp_path / "out")


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral"])
def test_layouts_that_are_not_llamas_are_refused(family: str, tmp_path: Path) -> None:
    save_family(tmp_path, family)
    run = trained(
        tmp_path, {"kind": "steering_vector", "layer": 1}, backbone={"model": str(tmp_path / "model")}
    )
    with pytest.raises(GenerationError, match=f"not for {family}.*generate in this process"):
        export_vllm(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_full_finetune_becomes_a_checkpoint(tmp_path: Path) -> None:
    run = trained(tmp_path, {"kind": "full_finetune"}, backbone={"dtype": "float32"})
    assert "--served-model-name tiny" in export_vllm(run, tmp_path / "out")
    with torch.no_grad():
        found = loaded(tmp_path / "out")(input_ids=token_ids()).logits
    assert torch.equal(found, logits_of(run))
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_other_interventions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example one of the user's own, given as _target_."""
    run = trained(tmp_path, {"kind": "lora", "r": 2})
    monkeypatch.setattr(export, "build", lambda *_: Ablation(direction=direction_file()))
    with pytest.raises(
        GenerationError, match="vLLM has nothing like the intervention ablation; generate in this"
    ):
        export_vllm(run, tmp_path / "out")


def test_folders_that_are_no_runs_or_in_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no readable config\.yaml"):
        export_vllm(tmp_path, tmp_path / "out")
    run = trained(tmp_path, {"kind": "lora", "r": 2})
    with pytest.raises(RunError, match="exists already"):
        export_vllm(run, tmp_path / "model")
    (tmp_path / "empty").mkdir()
    export_vllm(run, tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        export_vllm(run, tmp_path / "file" / "out")
