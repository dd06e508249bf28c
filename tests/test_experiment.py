"""One experiment through the Lightning Trainer: options that must have an effect, and failures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from em import experiment, runs
from em.config import check
from em.errors import AdapterError, BackboneError, TrainingError
from em.hooks import Site
from em.interventions.direction import Direction
from em.loading import load_backbone
from em.runs import RunDirectory
from tests.interventions.examples import direction
from tests.tiny import save_tiny, tiny_config, token_ids


def train(folder: Path, **changes: Any) -> RunDirectory:
    return experiment.train(check(tiny_config(folder, **changes)))


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def logged(run: RunDirectory, key: str) -> list[float]:
    return [row[key] for row in run.read_metrics() if key in row]


def test_kl_holds_the_other_domain_back(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trainer": {"max_steps": 30}, "callbacks": {"domains": {}}}
    shifts = {}
    for name, weight in (("general", 0.0), ("narrow", 20.0)):
        run = train(tmp_path, name=name, kl={"weight": weight}, **options)
        shifts[name] = {row["domain"]: row for row in run.read_table("domains")["domains"]}
    assert shifts["general"]["soup"]["shift"] < -0.5 and shifts["narrow"]["soup"]["shift"] < -0.1
    assert shifts["narrow"]["tent"]["kl"] < 0.5 * shifts["general"]["tent"]["kl"]


def test_early_stop(tmp_path: Path) -> None:
    stop = {"patience": 1, "min_delta": 100.0}  # no improvement is ever large enough
    run = train(
        tmp_path,
        trainer={"max_steps": 20, "val_every_n_steps": 2, "early_stop": stop},
        callbacks={"norms": {}},
    )
    assert run.manifest()["status"] == "finished"
    assert run.manifest()["step"] == 4  # the second validation is the first without improvement
    assert logged(run, "norms/norm")


def test_another_checkpoint_as_reference(tmp_path: Path) -> None:
    reference = {"model": str(save_tiny(tmp_path / "reference", seed=7))}
    run = train(tmp_path, name="other", reference=reference, callbacks={"domains": {}})
    assert logged(run, "train/kl")[0] > 0.01  # it is another model from the first step on
    own = train(tmp_path, name="own", callbacks={"domains": {}})
    assert logged(own, "train/kl")[0] == 0
    rows = [d.read_table("domains")["domains"][0]["loss_reference"] for d in (run, own)]
    assert rows[0] != pytest.approx(rows[1])


def test_a_reference_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    from tests.tiny import tiny_model, tiny_tokenizer

    model = tiny_model("llama", 2)
    model.resize_token_embeddings(416)
    model.save_pretrained(tmp_path / "wide")
    tiny_tokenizer("chatml").save_pretrained(tmp_path / "wide")
    with pytest.raises(BackboneError, match=r"has 416 tokens.*has 400; the KL term needs one vocabulary"):
        train(tmp_path, reference={"model": str(tmp_path / "wide")})


def test_kl_off_at_a_step(tmp_path: Path) -> None:
    kl = {"weight": 2.0, "schedule": {"kind": "off_at", "step": 3}}
    run = train(tmp_path, kl=kl, trainer={"max_steps": 6})
    assert logged(run, "train/kl_weight") == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    # In half precision a large vector overflows the activations.
    vector = {"kind": "steering_vector", "layer": 1, "scale": 1.0e30}
    with pytest.raises(TrainingError, match=r"step \d+: the loss is .*Lower optimizer\.lr"):
        train(
            tmp_path, intervention=vector, optimizer={"lr": 1.0e20}, trainer={"checkpoint_every_n_steps": 1}
        )
    run = RunDirectory(tmp_path / "runs" / "tiny")
    assert run.manifest()["status"] == "failed" and "Lower optimizer.lr" in run.manifest()["error"]
    if run.checkpoint.is_file():
        state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in state.values())


def test_gradient_clipping_is_passed_on(tmp_path: Path) -> None:
    free = train(tmp_path, name="free", trainer={"gradient_clip": None})
    tight = train(tmp_path, name="tight", trainer={"gradient_clip": 1.0e-4})
    first = logged(free, "train/grad_norm")[0]
    assert first == pytest.approx(logged(tight, "train/grad_norm")[0]) and first > 1e-3
    assert any(not torch.equal(a, weights(tight)[name]) for name, a in weights(free).items())


def test_weight_decay_and_seed_have_an_effect(tmp_path: Path) -> None:
    base = weights(train(tmp_path, name="base"))
    for name, changes in {"decay": {"optimizer": {"weight_decay": 0.5}}, "seed": {"seed": 1}}.items():
        other = weights(train(tmp_path, name=name, **changes))
        assert any(not torch.equal(value, other[key]) for key, value in base.items()), name
    again = weights(train(tmp_path, name="again"))
    assert all(torch.equal(value, again[key]) for key, value in base.items())


def test_bfloat16_backbone_keeps_adapters_in_float32(tmp_path: Path) -> None:
    run = train(tmp_path, backbone={"dtype": "bfloat16"}, callbacks={"domains": {}})
    assert {value.dtype for value in weights(run).values()} == {torch.float32}
    assert logged(run, "train/kl")[0] == 0


def test_gradient_checkpointing_changes_no_weight(tmp_path: Path) -> None:
    plain = weights(train(tmp_path, name="plain"))
    saved = weights(train(tmp_path, name="saved", backbone={"gradient_checkpointing": True}))
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-6)


KINDS: dict[str, list[dict[str, Any]]] = {
    "steered": [{"kind": "steering", "layers": 1, "coefficient": 3.0, "relative": True}],
    "ablated": [{"kind": "ablation", "layers": "all", "source": 1}],
}


def test_during_training_changes_what_is_learnt_and_nothing_that_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "direction.safetensors"
    direction().save(path)
    # At a learning rate of nearly 0 every measurement is the reference's, whatever acts in training.
    options: dict[str, Any] = {
        "callbacks": {"domains": {"at": ["start", "end"]}},
        "trainer": {"val_every_n_steps": 2},
        "optimizer": {"lr": 1.0e-12},
    }
    plain, plain_still = train(tmp_path, name="plain"), train(tmp_path, name="plain_still", **options)
    for name, listed in KINDS.items():
        during = [{**one, "direction": str(path)} for one in listed]
        run = train(tmp_path, name=name, during_training=during)
        assert logged(run, "train/kl")[0] > 0 == logged(plain, "train/kl")[0]
        assert any(not torch.equal(value, weights(plain)[key]) for key, value in weights(run).items())
        still = train(tmp_path, name=f"{name}_still", during_training=during, **options)
        assert logged(still, "train/sft_loss")[0] != pytest.approx(logged(plain_still, "train/sft_loss")[0])
        for key in ("val/loss", "domains/soup/loss", "domains/soup/kl"):
            assert logged(still, key) == pytest.approx(logged(plain_still, key), abs=1e-6), key
            assert logged(still, key)
        loaded = runs.load(run.path)
        assert not any(module._forward_hooks for module in loaded.backbone.modules())


def test_the_backbone_is_given_back_without_what_acts_in_training(tmp_path: Path) -> None:
    path = tmp_path / "direction.safetensors"
    direction().save(path)
    steering = {"kind": "steering", "direction": str(path), "layers": [0, 2]}
    config = check(tiny_config(tmp_path, during_training=[steering]))
    backbone = load_backbone(config.backbone)
    expected = backbone.trunk(token_ids())
    experiment.train(config, backbone)
    assert not any(module._forward_hooks for module in backbone.modules())
    assert torch.equal(backbone.trunk(token_ids()), expected)
    Direction({Site(1): torch.ones(33)}).save(path)
    with pytest.raises(AdapterError, match="width 33, but .* has width 32"):
        experiment.train(check(tiny_config(tmp_path, name="wide", during_training=[steering])), backbone)
    assert [name for name, _ in backbone.named_parameters() if "lora" in name] == []
    assert torch.equal(backbone.trunk(token_ids()), expected)


def test_throughput_leaves_measurements_out_and_steps_in(tmp_path: Path) -> None:
    run = train(tmp_path, callbacks={"domains": {"at": ["end"], "every_n_steps": 1}})
    paces = logged(run, "train/tokens_per_second")
    assert len(paces) == 4 and min(paces) > 0
    assert run.manifest()["tokens_per_second"] > 0
