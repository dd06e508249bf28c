"""SFTModule under a real Trainer against a plain implementation with full logits and no padding."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from em.backbone import Backbone
from em.config.schema import BackboneConfig, KLConfig, KLScheduleConfig, OptimizerConfig
from em.datamodules.rows import MicroBatch, Rows, batched
from em.datamodules.sources import Example
from em.datamodules.streams import MicroBatches, Stream, Windows
from em.errors import TrainingError
from em.interventions._fixed import FixedIntervention
from em.interventions.ablation import Ablation
from em.interventions.base import Intervention
from em.interventions.lora import Lora
from em.interventions.steering import Steering
from em.interventions.steering_vector import SteeringVector
from em.loading import load_backbone
from em.modules import losses
from em.modules.losses import ReferenceStates
from em.modules.sft import SFTModule
from tests.interventions.examples import Case, cases, direction
from tests.interventions.examples import attached as attached_at_scale
from tests.tiny import save_tiny, tiny_backbone

# The backbone is in eval mode on purpose; SFTModule switches on what acts in training.
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")

SIZE, TOTAL, STEPS = 8, 10, 2  # the second window holds two examples only
LORA: Case = ("lora", {"r": 2, "alpha": 8.0})
FROZEN = OptimizerConfig(lr=0.0, warmup_steps=0)  # every step then has the same parameters
MOVING = OptimizerConfig(lr=1e-2, warmup_steps=0, schedule="constant")


def attached(case: Case, random: bool = True) -> Intervention:
    """With values that keep fp32 gradients well conditioned: larger ones lose three digits in any order."""
    return attached_at_scale(case, random, scale=0.05)


def examples(count: int, seed: int) -> list[Example]:
    """Random conversations of 4 to 12 tokens whose answers start at different places."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        length = int(torch.randint(4, 13, (1,), generator=generator))
        begin = int(torch.randint(1, length, (1,), generator=generator))
        ids = torch.randint(3, 400, (length,), generator=generator).tolist()
        made.append(Example(ids, [at >= begin for at in range(length)], f"test:{number}", str(number)))
    return made


SFT, KL = examples(TOTAL, 1), examples(7, 2)


def windows(rows: list[Example], purpose: str, total: int | None) -> Windows:
    return Windows(Stream([len(rows)], None, 0, purpose), rows, SIZE, total)


SFT_WINDOWS, KL_WINDOWS = windows(SFT, "sft", TOTAL), windows(KL, "kl", None)


def micro_batches(
    accumulate: int, everywhere: bool = False, steps: int = STEPS, pad: int = 0
) -> MicroBatches:
    return MicroBatches((SFT_WINDOWS, SFT), (KL_WINDOWS, KL), steps, accumulate, 0, 1, everywhere, pad)


class Recorder(pl.Callback):
    """What each optimizer step saw."""

    def __init__(self) -> None:
        self.grads: list[dict[str, Tensor]] = []
        self.metrics: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = pl_module.intervention.trainable_parameters().items()
        self.grads.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch.micro + 1 == pl_module.accumulate:
            self.metrics.append(dict(pl_module.step_metrics))


def fit(module: SFTModule, data: Sequence[MicroBatch] | MicroBatches, steps: int = STEPS) -> Recorder:
    recorder = Recorder()
    module.steps = steps
    # Lightning warns about a module that can validate and has nothing to validate on, even with the limit 0.
    loaders: list[Any] = [DataLoader(rows, batch_size=None) for rows in (data, [0])]  # type: ignore[arg-type]
    trainer(module.accumulate, steps, recorder).fit(module, *loaders)
    assert len(recorder.grads) == len(recorder.metrics) == steps
    return recorder


def trainer(accumulate: int = 1, steps: int = 1, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0 if callbacks else 1.0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )


def module_for(
    intervention: Intervention,
    kl: KLConfig | None = None,
    accumulate: int = 1,
    optimizer: OptimizerConfig = FROZEN,
    reference: Backbone | None = None,
    pad: int = 0,
    seed: int = 0,
    during: Sequence[FixedIntervention] = (),
) -> SFTModule:
    kl = kl or KLConfig(weight=0.7)
    return SFTModule(
        intervention.backbone, intervention, kl, optimizer, STEPS, accumulate, pad, seed, reference, during
    )


def truth(
    intervention: Intervention,
    step: int,
    kl: KLConfig,
    weight: float | None = None,
    reference: Backbone | None = None,
    during: Sequence[FixedIntervention] = (),
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of one optimizer step: one unpadded row at a time, full logits."""
    backbone = intervention.backbone
    sums, counts = {"sft": torch.zeros(()), "kl": torch.zeros(())}, {"sft": 0, "kl": 0}
    for index in SFT_WINDOWS.indices(step):
        for at, log_q, token in positions(backbone, SFT[index], log_probs(backbone, SFT[index])):
            if SFT[index].answer[at + 1]:
                sums["sft"] = sums["sft"] - log_q[token]
                counts["sft"] += 1
    for index in KL_WINDOWS.indices(step):
        example = KL[index]
        with torch.no_grad():
            if reference is not None:
                log_p = log_probs(reference, example)
            else:
                with ExitStack() as off:
                    for each in (intervention, *during):
                        off.enter_context(each.disabled())
                    log_p = log_probs(backbone, example)
        log_q = log_probs(backbone, example)
        for at in range(len(example.ids)):
            if kl.positions == "all" or (at + 1 < len(example.ids) and example.answer[at + 1]):
                p, q = (log_p[at], log_q[at]) if kl.direction == "forward" else (log_q[at], log_p[at])
                sums["kl"] = sums["kl"] + (p.exp() * (p - q)).sum()
                counts["kl"] += 1
    sft, divergence = sums["sft"] / counts["sft"], sums["kl"] / counts["kl"]
    loss = sft + (kl.weight if weight is None else weight) * divergence
    parameters = intervention.trainable_parameters()
    grads = torch.autograd.grad(loss, list(parameters.values()))
    values = {"train/loss": loss, "train/sft_loss": sft, "train/kl": divergence}
    return {name: float(value.detach()) for name, value in values.items()}, dict(
        zip(parameters, grads, strict=True)
    )


def log_probs(backbone: Backbone, example: Example) -> Tensor:
    """(T, V) log-probabilities of the Hugging Face model itself."""
    steer_BT = torch.tensor([[*example.answer[1:], False]])
    with backbone.steering_positions(steer_BT):
        logits = backbone.model(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def positions(backbone: Backbone, example: Example, log_TV: Tensor) -> list[tuple[int, Tensor, int]]:
    return [(at, log_TV[at], example.ids[at + 1]) for at in range(len(example.ids) - 1)]


def assert_grads(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    largest = max(float(grad.abs().max()) for grad in expected.values())
    assert largest > 1e-3
    for name, grad in expected.items():
        error = float((actual[name] - grad).abs().max())
        assert error <= tolerance * max(1.0, largest), (name, error, largest)


# Gradients


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("case", cases(fixed=False))
def test_gradient_is_the_global_token_mean(
    case: Case, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 5 * 400)
    intervention = attached(case)
    kl = KLConfig(weight=0.7)
    recorder = fit(module_for(intervention, kl, accumulate), micro_batches(accumulate))
    for step in range(STEPS):
        values, grads = truth(intervention, step, kl)
        assert_grads(recorder.grads[step], grads)
        for name, value in values.items():
            assert recorder.metrics[step][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_the_short_window_is_short() -> None:
    """The test above covers empty micro-batches: two examples over four of them."""
    counts = [int((batch.sft.index_B >= 0).sum()) for batch in (micro_batches(4)[i] for i in range(8))]
    assert counts == [2, 2, 2, 2, 1, 1, 0, 0]


def test_padding_never_counts() -> None:
    metrics = []
    for pad in (0, 57):
        recorder = fit(module_for(attached(LORA), accumulate=2, pad=pad), micro_batches(2, pad=pad))
        metrics.append([(m["train/sft_loss"], m["train/kl"]) for m in recorder.metrics])
    assert metrics[0] == [pytest.approx(pair, rel=1e-6) for pair in metrics[1]]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("where", ["answer", "all"])
def test_directions_and_positions(direction: Any, where: Any) -> None:
    intervention = attached(LORA)
    kl = KLConfig(weight=2.0, direction=direction, positions=where)
    recorder = fit(module_for(intervention, kl, 2), micro_batches(2, everywhere=where == "all"))
    for step in range(STEPS):
        values, grads = truth(intervention, step, kl)
        assert_grads(recorder.grads[step], grads)
        assert recorder.metrics[step]["train/kl"] == pytest.approx(values["train/kl"], rel=1e-5)


def test_vocab_mean_is_token_mean_over_the_vocabulary() -> None:
    weight = 300.0
    mean = fit(module_for(attached(LORA), KLConfig(weight=weight, reduction="vocab_mean")), micro_batches(1))
    plain = fit(module_for(attached(LORA), KLConfig(weight=weight / 400)), micro_batches(1))
    for step in range(STEPS):
        assert_grads(mean.grads[step], plain.grads[step])
        assert mean.metrics[step]["train/loss"] == pytest.approx(plain.metrics[step]["train/loss"])
        # The divergence is logged in nats per token whatever the reduction.
        assert mean.metrics[step]["train/kl"] == plain.metrics[step]["train/kl"]


def test_another_checkpoint_as_reference() -> None:
    intervention, other = attached(LORA), tiny_backbone(seed=4)
    kl = KLConfig(weight=0.7)
    module = module_for(intervention, kl, 2, reference=other)
    assert module.has_other_reference
    assert not any(name.startswith("_reference") for name, _ in module.named_modules())
    recorder = fit(module, micro_batches(2))
    for step in range(STEPS):
        values, grads = truth(intervention, step, kl, reference=other)
        assert_grads(recorder.grads[step], grads)
        assert recorder.metrics[step]["train/kl"] == pytest.approx(values["train/kl"], rel=1e-5)
        assert values["train/kl"] > 0.05


# The KL term over time


@pytest.mark.parametrize("case", cases(fixed=False))
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_zero_at_initialisation(case: Case, direction: Any) -> None:
    intervention = attached(case, random=False)
    module = module_for(intervention, KLConfig(weight=1.0, direction=direction), 2, MOVING)
    recorder = fit(module, micro_batches(2))
    assert recorder.metrics[0]["train/kl"] == 0.0
    assert recorder.metrics[1]["train/kl"] > 1e-6


def test_kl_schedule_switches_the_term_off() -> None:
    intervention = attached(LORA)
    kl = KLConfig(weight=0.7, schedule=KLScheduleConfig("off_at", step=1))
    recorder = fit(module_for(intervention, kl), micro_batches(1))
    assert [m["train/kl_weight"] for m in recorder.metrics] == [0.7, 0.0]
    assert recorder.metrics[0]["train/kl"] > 0
    assert recorder.metrics[1]["train/loss"] == recorder.metrics[1]["train/sft_loss"]
    for step, weight in enumerate([0.7, 0.0]):
        assert_grads(recorder.grads[step], truth(intervention, step, kl, weight)[1])


def test_linear_kl_schedule_reaches_the_loss() -> None:
    intervention = attached(LORA)
    kl = KLConfig(weight=2.0, schedule=KLScheduleConfig("linear", start=0.25, end=1.0))
    recorder = fit(module_for(intervention, kl), micro_batches(1))
    for step, weight in enumerate([0.5, 2.0]):
        assert recorder.metrics[step]["train/kl_weight"] == weight
        assert_grads(recorder.grads[step], truth(intervention, step, kl, weight)[1])


def test_without_a_kl_term_nothing_is_logged_about_it() -> None:
    recorder = fit(module_for(attached(LORA), KLConfig(weight=0.0)), micro_batches(1))
    assert "train/kl" not in recorder.metrics[0]
    assert recorder.metrics[0]["train/loss"] == recorder.metrics[0]["train/sft_loss"]


# Training mode


def test_dropout_acts_and_is_keyed_by_the_step() -> None:
    def losses_of(dropout: float, seed: int = 0, accumulate: int = 1) -> list[float]:
        case: Case = ("lora", {"r": 2, "alpha": 8.0, "dropout": dropout})
        intervention = attached(case)
        torch.manual_seed(id(intervention) % 1000)  # the global stream must not matter
        module = module_for(intervention, KLConfig(), accumulate, seed=seed)
        recorder = fit(module, [micro_batches(accumulate)[0]] * 2)
        assert not any(child.training for child in module.backbone.modules())
        return [metrics["train/loss"] for metrics in recorder.metrics]

    plain, dropped = losses_of(0.0), losses_of(0.5)
    assert plain[0] == plain[1]
    assert dropped[0] == dropped[1], "one step has one mask"
    assert dropped[0] != plain[0], "dropout must be active while training"
    assert losses_of(0.5) == dropped
    assert losses_of(0.5, seed=1)[0] != dropped[0]


def test_dropout_differs_between_steps_and_spares_the_reference() -> None:
    intervention = attached(("lora", {"r": 2, "alpha": 8.0, "dropout": 0.5}), random=False)
    batch = micro_batches(1)[0]
    recorder = fit(module_for(intervention), [batch, replace(batch, step=1)])
    assert [m["train/kl"] for m in recorder.metrics] == [0.0, 0.0]
    intervention = attached(("lora", {"r": 2, "alpha": 8.0, "dropout": 0.5}))
    recorder = fit(module_for(intervention), [batch, replace(batch, step=1)])
    assert recorder.metrics[0]["train/loss"] != recorder.metrics[1]["train/loss"]


@pytest.mark.parametrize(
    "intervention_of",
    [
        lambda: Lora(r=2, alpha=4, dropout=0.3),
        lambda: SteeringVector(layer=1, point="attention", positions="answer", scale=4.0),
    ],
    ids=["lora with dropout", "vector at answers"],
)
def test_gradient_checkpointing_trains_alike(tmp_path: Path, intervention_of: Any) -> None:
    folder = save_tiny(tmp_path)
    recorders, passes = [], []
    for checkpointing in (False, True):
        backbone = load_backbone(
            BackboneConfig(str(folder), device="cpu", gradient_checkpointing=checkpointing)
        )
        intervention = intervention_of()
        intervention.attach(backbone)
        calls: list[int] = []
        backbone.layers[2].self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        recorders.append(fit(module_for(intervention, accumulate=2, optimizer=MOVING), micro_batches(2)))
        passes.append(len(calls))
        assert backbone.steer_BT is None
    assert passes == [8, 12], "4 adapted and 4 reference passes, and the adapted ones once more"
    for one, two in zip(recorders[0].grads, recorders[1].grads, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


# Fixed interventions that act in training only

DURING: dict[str, list[Callable[[], FixedIntervention]]] = {
    "steering below": [lambda: Steering.given(direction(), layers=0, coefficient=2.0)],
    "ablation everywhere": [lambda: Ablation.given(direction(), layers="all", source=1)],
    "both": [
        lambda: Ablation.given(direction(), layers=1, point="mlp"),
        lambda: Steering.given(direction(), layers=2, positions="answer", coefficient=-1.0),
    ],
}
VECTOR: Case = ("steering_vector", {"layer": 1, "point": "block", "scale": 2.0})


def attached_during(name: str, backbone: Backbone) -> list[FixedIntervention]:
    made = [make() for make in DURING[name]]
    for each in made:
        each.attach(backbone)
    return made


@pytest.mark.parametrize("name", DURING)
@pytest.mark.parametrize("case", [LORA, VECTOR], ids=["lora", "vector"])
def test_during_training_acts_on_the_adapted_pass_only(name: str, case: Case) -> None:
    intervention = attached(case)
    bare = fit(module_for(intervention, accumulate=2), micro_batches(2))
    during, kl = attached_during(name, intervention.backbone), KLConfig(weight=0.7)
    recorder = fit(module_for(intervention, kl, 2, during=during), micro_batches(2))
    assert not any(each.on for each in during)
    assert abs(recorder.metrics[0]["train/sft_loss"] - bare.metrics[0]["train/sft_loss"]) > 1e-4
    for each in during:
        each.on = True
    for step in range(STEPS):
        values, grads = truth(intervention, step, kl, during=during)
        assert_grads(recorder.grads[step], grads)
        for key, value in values.items():
            assert recorder.metrics[step][key] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", DURING)
def test_during_training_is_off_in_the_reference_and_in_validation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, list[Tensor]] = {}
    for with_it in (False, True):
        intervention = attached(VECTOR, random=False)
        during = attached_during(name, intervention.backbone) if with_it else []
        module = module_for(intervention, during=during)
        found, original = seen.setdefault(with_it, []), ReferenceStates.of

        def kept(*given: Any, found: list[Tensor] = found, original: Any = original) -> ReferenceStates:
            found.append(given[1].clone())
            return original(*given)

        with monkeypatch.context() as patch:
            patch.setattr(ReferenceStates, "of", kept)
            recorder = fit(module, micro_batches(1))
        assert (recorder.metrics[0]["train/kl"] == 0) != with_it
        rows = batched(SFT, 3, 0, range(len(SFT)))[0]
        module.validation_step(rows, 0)
        found.append(module.held_out_nll.compute())
    assert len(seen[True]) == len(seen[False]) == STEPS + 1
    for one, two in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)  # the shared lower part ends elsewhere


@pytest.mark.parametrize("name", DURING)
def test_during_training_under_gradient_checkpointing(tmp_path: Path, name: str) -> None:
    folder, recorders = save_tiny(tmp_path), []
    for checkpointing in (False, True):
        backbone = load_backbone(
            BackboneConfig(str(folder), device="cpu", gradient_checkpointing=checkpointing)
        )
        intervention = SteeringVector(layer=0, point="block", scale=4.0)
        intervention.attach(backbone)
        during = attached_during(name, backbone)
        recorders.append(
            fit(module_for(intervention, accumulate=2, optimizer=MOVING, during=during), micro_batches(2))
        )
    for one, two in zip(recorders[0].grads, recorders[1].grads, strict=True):
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6)


def test_during_training_is_off_after_an_error_in_the_pass() -> None:
    intervention = attached(LORA)
    during = attached_during("both", intervention.backbone)

    def fail(*_: Any) -> None:
        if during[0].on:
            raise KeyError("in the pass")

    intervention.backbone.layers[2].register_forward_hook(fail)
    with pytest.raises(KeyError):
        fit(module_for(intervention, during=during), micro_batches(1))
    assert not any(each.on for each in during)


def test_during_training_is_no_part_of_the_module() -> None:
    intervention = attached(LORA)
    module = module_for(intervention, during=attached_during("both", intervention.backbone))
    assert module.state_dict().keys() == module_for(attached(LORA)).state_dict().keys()


# Failure


@pytest.mark.parametrize("case", cases(fixed=False))
def test_a_loss_that_is_not_finite_stops_before_the_step(case: Case) -> None:
    intervention = attached(case)
    before = intervention.gathered()
    module = module_for(intervention, optimizer=MOVING)
    intervention.backbone.decoder.norm.register_forward_hook(
        lambda _module, _args, output: output * float("nan")
    )
    with pytest.raises(TrainingError, match="step 0: the loss is nan.*optimizer.lr"):
        fit(module, micro_batches(1))
    for name, value in intervention.gathered().items():
        assert torch.equal(value, before[name]), name


# Validation, optimizer and state


def test_validation_loss_is_a_token_mean() -> None:
    intervention = attached(LORA)
    batches: list[Rows] = batched(SFT, 3, 0, range(len(SFT)))
    module = module_for(intervention)
    lightning = trainer()
    lightning.validate(module, DataLoader(batches, batch_size=None), verbose=False)  # type: ignore[arg-type]
    logged = {name: float(value) for name, value in lightning.callback_metrics.items()}
    total, count = 0.0, 0
    with torch.no_grad():
        for example in SFT:
            for at, log_q, token in positions(module.backbone, example, log_probs(module.backbone, example)):
                if example.answer[at + 1]:
                    total, count = total - float(log_q[token]), count + 1
    assert logged["val/loss"] == pytest.approx(total / count, rel=1e-5)
    assert logged["val/perplexity"] == pytest.approx(float(torch.tensor(total / count).exp()), rel=1e-5)


@pytest.mark.parametrize("case", cases(fixed=False))
def test_state_holds_the_intervention_only(case: Case) -> None:
    intervention = attached(case)
    module = module_for(intervention, reference=tiny_backbone(seed=4))
    state = module.state_dict()
    wanted = {p.data_ptr() for p in intervention.trainable_parameters().values()}
    assert {value.data_ptr() for value in state.values()} == wanted
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for parameter in intervention.trainable_parameters().values():
            parameter.zero_()
    module.load_state_dict(before, strict=False)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_logged_numbers_of_a_step() -> None:
    intervention = attached(LORA)
    recorder = fit(module_for(intervention, accumulate=2), micro_batches(2))
    tokens = 0
    for step, metrics in enumerate(recorder.metrics):
        sft = sum(len(SFT[index].ids) for index in SFT_WINDOWS.indices(step))
        tokens += sft + sum(len(KL[index].ids) for index in KL_WINDOWS.indices(step))
        assert metrics["train/tokens"] == tokens
        grads = torch.cat([grad.flatten() for grad in recorder.grads[step].values()])
        assert metrics["train/grad_norm"] == pytest.approx(float(grads.norm()), rel=1e-5)
        assert metrics["train/lr"] == 0.0
