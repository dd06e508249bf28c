import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from em.cli import main
from em.config.schema import BackboneConfig, Config, DataConfig, KLConfig, TrainerConfig
from em.errors import ConfigError
from em.planning import devices
from em.planning.configuration import configurations
from em.planning.devices import GPUS, measured_rate, named
from em.planning.plan import make_plan, processes_of, setting_of
from em.planning.rows import assumed, measured
from em.planning.shapes import shape_of
from em.planning.trained import trained_of
from tests.tiny import tiny_config

H100 = GPUS["H100-80GB"]
QWEN = "Qwen/Qwen2.5-7B-Instruct"


def config(**changes: Any) -> Config:
    made = Config(
        backbone=BackboneConfig(model=QWEN, dtype="bfloat16"),
        intervention={"kind": "lora", "r": 32},
        data=DataConfig(batch_size=16, micro_batch_size=2),
        kl=KLConfig(weight=1.0),
    )
    return replace(made, **changes)


def test_time_is_arithmetic_over_rate_and_utilisation() -> None:
    given = config()
    plan = make_plan(given, assumed(given, 1), H100, 0.5)
    assert plan.rate == 989e12
    assert plan.seconds == plan.flops.total / (989e12 * 0.5)
    assert plan.work.steps == 7000 / 16
    assert plan.epoch_hours == pytest.approx(plan.seconds * 7000 / 16 / 3600)
    # Six times the parameters for each token, less what a LoRA does not need, more for attention and head.
    per_token = plan.flops.total / (plan.work.accumulate * 4 * 300)
    assert 4 * 7.07e9 < per_token < 6 * 7.62e9


def test_eight_devices_do_an_eighth_of_the_arithmetic() -> None:
    one, many = config(), config(trainer=TrainerConfig(devices=8))
    alone, shared = (make_plan(c, assumed(c, processes_of(c)), H100) for c in (one, many))
    assert shared.flops.total == pytest.approx(alone.flops.total / 8)
    assert (shared.setting.strategy, alone.setting.strategy) == ("ddp", "single")
    assert (shared.setting.accumulate, alone.setting.accumulate) == (1, 8)


def test_precision_decides_the_bytes() -> None:
    shape = shape_of(QWEN)
    loaded = setting_of(config(), shape, H100)
    assert (loaded.how.width, loaded.how.adapter, loaded.states) == (2, 4, 8.0)
    forced = setting_of(config(trainer=TrainerConfig(precision="bf16-true")), shape, H100)
    assert (forced.how.width, forced.how.adapter, forced.states) == (2, 2, 4.0)
    with pytest.raises(ConfigError, match="trainer.precision: the memory of bf16-mixed is not known"):
        setting_of(config(trainer=TrainerConfig(precision="bf16-mixed")), shape, H100)


def test_rows_are_packed_on_a_cpu_only() -> None:
    shape = shape_of(QWEN)
    assert setting_of(config(), shape, named("cpu")).how.packed
    assert not setting_of(config(), shape, H100).how.packed


@pytest.mark.parametrize(
    ("given", "count"), [(1, 1), ("4", 4), ("0,2", 2), ("auto", 1), (-1, 1)], ids=lambda value: str(value)
)
def test_processes_are_counted_as_the_trainer_does(
    given: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert processes_of(config(trainer=TrainerConfig(devices=given, num_nodes=2))) == 2 * count


def test_rows_of_the_data_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "conf.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path)))
    (made,) = configurations(path, ["trainer.max_steps=3"]).values()
    work = measured(made, 1)
    assert (work.accumulate, len(work.typical)) == (2, 6)
    assert all(len(micro.sft) == len(micro.kl) == 2 for micro in work.typical)
    assert work.largest.tokens(False) == max(micro.tokens(False) for micro in work.typical)
    assert work.epochs * work.steps == pytest.approx(3)


def test_what_cannot_be_planned_says_what_to_change() -> None:
    given = config()
    with pytest.raises(ConfigError, match="--utilisation: expected above 0 and at most 1, got 1.5"):
        make_plan(given, assumed(given, 1), H100, 1.5)
    with pytest.raises(ConfigError, match="layers 0 to 27, got 28"):
        outside = config(intervention={"kind": "steering_vector", "layer": 28})
        make_plan(outside, assumed(outside, 1), H100)
    with pytest.raises(ConfigError, match="c_proj is not known here; a layer has q_proj"):
        trained_of(config(intervention={"kind": "lora", "modules": ["c_proj"]}), shape_of(QWEN))
    with pytest.raises(ConfigError, match="the memory of acme.Adapter is not known"):
        trained_of(config(intervention={"_target_": "acme.Adapter"}), shape_of(QWEN))
    with pytest.raises(ConfigError, match="16 is not divisible by .* 2 × 3 processes.*batch_size=18"):
        assumed(given, 3)
    with pytest.raises(ConfigError, match="--device: 'B900' is not known; use cpu, A100-40GB"):
        named("B900")


def test_the_rate_of_this_machine_is_measured() -> None:
    import torch

    assert measured_rate(torch.float32, 0.05) > 1e8


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(devices, "measured_rate", lambda dtype: 1e11)
    path = tmp_path / "conf.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path)))
    return path


def test_the_command_prints_every_part(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(conf), "kl.weight=2"]) == 0
    said = capsys.readouterr().out
    for text in ("activations kept for backward", "chunk of logits", "peak", "fits on 1 × H100-80GB: yes"):
        assert text in said
    assert "from the data" in said and "0.1 TFLOP/s (measured here) × 0.4 (assumed utilisation)" in said


def test_the_command_speaks_json(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--tokens", "100", "--rows", "800", "--device", "h100-80gb", "--utilisation", "0.3"]
    assert main(["plan", str(conf), *options, "trainer.devices=2"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["peak_bytes"] == pytest.approx(sum(found["parts_bytes"].values()), abs=20)
    assert (found["processes"], found["strategy"], found["steps_per_epoch"]) == (2, "ddp", 200)
    assert found["step_seconds"] == pytest.approx(
        sum(found["step_flops"].values()) / (found["flops_per_second"] * 0.3)
    )
    assert found["fits"]["RTX-4090"]["fits"] is True


def test_data_need_not_be_here(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(conf), "data.train=[{path: nowhere.jsonl}]", "--json"]) == 0
    found = capsys.readouterr()
    assert "300 tokens in every row" in json.loads(found.out)[0]["rows"]
    assert "nowhere.jsonl" in found.err


def test_every_member_of_a_suite_is_planned(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(conf.read_text())
    raw["members"] = {"a": {"intervention": {"r": 1}}, "b": {"intervention": {"r": 8}}, "c": None}
    conf.write_text(yaml.safe_dump(raw))
    assert main(["plan", str(conf), "members.a.intervention.r=2", "--tokens", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [plan["name"] for plan in found] == ["tiny/a", "tiny/b"]
    assert found[1]["trained_parameters"] == 4 * found[0]["trained_parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a configuration"),
        (["nowhere.yaml"], "no such configuration"),
        (["CONF", "--rows", "5"], "--rows: needs --tokens"),
        (["CONF", "kl.wieght=1"], "kl.wieght"),
        (["CONF", "members.a.seed=1"], "is not a suite"),
        (["CONF", "--device", "tpu"], "--device: 'tpu' is not known"),
        (["CONF", "intervention={kind: steering_vector, layer: 3}"], "layers 0 to 2, got 3"),
        (["CONF", "trainer.devices=0"], "trainer.devices: expected"),
        (["CONF", "--table"], "leave the configuration out"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], message: str, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(conf) if text == "CONF" else text for text in arguments]
    assert main(["plan", *given]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-3", "many"])
def test_a_count_is_above_0(text: str, conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", str(conf), "--tokens", text])
    assert "expected a number above 0" in capsys.readouterr().err
