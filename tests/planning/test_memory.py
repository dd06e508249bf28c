from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from em.config.schema import Config
from em.modules import losses
from em.modules.losses import ReferenceStates, cross_entropy_term, divergence_term, head_sum
from em.planning.devices import GB, GPUS, Device
from em.planning.kept import Numbers, kept_bytes
from em.planning.memory import CE_CHUNKS, KL_CHUNKS, Setting, peak
from em.planning.rows import Micro
from em.planning.shapes import Shape, shape_of
from em.planning.trained import trained_of
from tests.tiny import tiny_backbone

SHAPE = Shape("llama", 4, 32, 64, 2, 1, 16, 400, tied=True)
HALF = Numbers(2, 4, packed=False, eager=False, checkpointing=False, cpu=False)
SETTING = Setting(HALF, "single", 1, 1, 8.0, "forward")
MICRO = Micro((20, 20), (20, 20), sft_positions=10, kl_positions=8)
BARE = Device("test", GB, runtime=0.0, slack=1.0)
LORA: dict[str, Any] = {"kind": "lora", "r": 4}


def parts(component: dict[str, Any], setting: Setting = SETTING, shape: Shape = SHAPE) -> dict[str, float]:
    return peak(shape, trained_of(Config(intervention=component), shape), MICRO, setting, BARE)


@pytest.mark.parametrize("name", ["ce", "forward", "reverse", "js"])
def test_copies_of_a_chunk_of_logits_are_those_that_the_loss_makes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 400 * 512)
    backbone, count = tiny_backbone(), 2000
    hidden_ND = torch.randn(count, 32).requires_grad_()
    term = cross_entropy_term(torch.zeros(count, dtype=torch.long))
    if name != "ce":
        reference = ReferenceStates.of(backbone, torch.randn(count, 32))
        term = divergence_term(reference, name, 1.0)  # type: ignore[arg-type]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        total = head_sum(backbone, hidden_ND, term)
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    assert total.requires_grad
    copies = CE_CHUNKS if name == "ce" else KL_CHUNKS[name]
    assert most == pytest.approx(copies * 512 * 400 * 4 + hidden_ND.nbytes, rel=0.05)


def test_parts_of_a_lora_are_exact() -> None:
    trained = trained_of(Config(intervention=LORA), SHAPE)
    count = 4 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert trained.parameters == count
    found = parts(LORA)
    assert found["weights"] == 2 * SHAPE.parameters
    assert found["adapter"] == 4 * count
    assert found["optimizer states"] == 8 * count
    assert found["activations kept for backward"] == kept_bytes(SHAPE, trained, HALF, 80, 1600)
    assert found["chunk of logits"] == 7 * 10 * 400 * 4
    assert found["reference states"] == 8 * 32 * 2
    assert "gradients" not in found  # none are alive at the peak of a step with one micro-batch


def test_accumulation_keeps_gradients_during_the_forward_pass() -> None:
    found = parts(LORA, replace(SETTING, accumulate=2))
    assert found["gradients"] == found["adapter"]


def test_fsdp2_splits_what_it_can_and_gathers_a_layer() -> None:
    one, many = parts(LORA), parts(LORA, replace(SETTING, strategy="fsdp2", processes=8))
    for name in ("weights", "adapter", "optimizer states"):
        assert many[name] == one[name] / 8
    assert many["activations kept for backward"] == one["activations kept for backward"]
    assert many["gathered layers (fsdp2)"] == 2 * (2 * SHAPE.layer_parameters + SHAPE.outer_parameters)
    ddp = parts(LORA, replace(SETTING, strategy="ddp", processes=8))
    assert ddp["gradient buckets (ddp)"] == one["adapter"]
    assert ddp["weights"] == one["weights"]


def test_a_full_finetune_keeps_its_original_whole_on_every_device() -> None:
    shape = shape_of("Qwen/Qwen2.5-7B-Instruct")
    setting = replace(SETTING, strategy="fsdp2", processes=8, states=4.0)
    found = parts({"kind": "full_finetune"}, setting, shape)
    assert found["weights"] == 2 * shape.parameters / 8
    assert found["original weights (reference, norm)"] == 2 * shape.parameters
    assert found["optimizer states"] == 4 * shape.parameters / 8


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    trained = trained_of(Config(intervention={"kind": "steering_vector", "layer": 1}), SHAPE)
    how = replace(HALF, checkpointing=True)
    whole, again = (kept_bytes(SHAPE, trained, one, 80, 1600) for one in (HALF, how))
    last = 80 * (32 * 4 + 4)
    inner = (whole - last) // 2  # layers 2 and 3; in layer 1 nothing is kept
    assert again == 3 * 80 * 32 * 2 + inner + last


def test_another_reference_is_a_second_model_and_slack_is_of_what_is_live() -> None:
    found = parts(LORA, replace(SETTING, reference=1000))
    assert found["other reference's weights"] == 2000
    trained = trained_of(Config(intervention=LORA), SHAPE)
    loose = peak(SHAPE, trained, MICRO, SETTING, replace(BARE, runtime=5.0, slack=1.5))
    tight = parts(LORA)
    assert loose["runtime"] == 5
    assert loose["allocator, held but not live"] == (sum(tight.values()) - tight["weights"]) / 2


def test_gpus_have_the_published_memory() -> None:
    assert {name: gpu.memory / GB for name, gpu in GPUS.items()} == {
        "A100-40GB": 40,
        "A100-80GB": 80,
        "H100-80GB": 80,
        "H200": 141,
        "L40S": 48,
        "RTX-4090": 24,
    }
