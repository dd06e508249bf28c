"""What every kind of intervention promises. Kinds are found by their files; see examples.py."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from em.backbone import Backbone
from em.errors import AdapterError
from em.hooks import generator_for
from em.interventions.base import RECORD, Intervention
from tests.interventions.examples import Case, attached, cases, made, output
from tests.tiny import tiny_backbone, tiny_model

slow = settings(
    max_examples=8,
    deadline=None,
    # A context that does not restore everything fails these tests itself, so cases can be shared.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
epsilons = st.floats(0.01, 1.0)


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(params=cases(fixed=False))
def trained(request: pytest.FixtureRequest) -> Case:
    """A kind that is trained; the others are given."""
    return request.param


@pytest.fixture
def live(case: Case) -> Intervention:
    """Attached, with random values."""
    return attached(case)


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return output(tiny_backbone())


def generator(seed: int = 0) -> torch.Generator:
    return generator_for(seed, "noise")  # never the stream that `randomise` drew the values from


def snapshot(backbone: Backbone) -> dict[str, Any]:
    """Everything that a context must leave as it was."""
    parameters = dict(backbone.named_parameters())
    return {
        "values": {name: p.detach().clone() for name, p in parameters.items()},
        "flags": {name: p.requires_grad for name, p in parameters.items()},
        "grads": {name: None if p.grad is None else id(p.grad) for name, p in parameters.items()},
        "objects": {name: id(p) for name, p in parameters.items()},
        "modes": {name: module.training for name, module in backbone.named_modules()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("flags", "grads", "objects", "modes"):
        assert before[key] == after[key], key
    assert before["values"].keys() == after["values"].keys()
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name


CONTEXTS: dict[str, Callable[[Intervention], AbstractContextManager[None]]] = {
    "disabled": lambda intervention: intervention.disabled(),
    "rescaled": lambda intervention: intervention.rescaled(1.7),
    "perturbed": lambda intervention: intervention.perturbed(0.4, generator()),
}


# Attach and detach


def test_attach_starts_at_the_reference(trained: Case, reference: Tensor) -> None:
    intervention = attached(trained, random=False)
    assert intervention.norm() == 0
    assert torch.equal(output(intervention.backbone), reference)


def test_random_values_change_the_output(live: Intervention, reference: Tensor) -> None:
    assert live.norm() > 0
    assert not torch.allclose(output(live.backbone), reference, atol=1e-3)


def test_only_its_parameters_require_grad(live: Intervention) -> None:
    own = {id(parameter) for parameter in live.trainable_parameters().values()}
    assert bool(own) != live.fixed
    for name, parameter in live.backbone.named_parameters():
        assert parameter.requires_grad == (id(parameter) in own), name
        own.discard(id(parameter))
    assert not own, "a trainable parameter is not in the backbone's module tree"


def test_gradient_reaches_every_parameter(trained: Case) -> None:
    live = attached(trained)
    output(live.backbone).logsumexp(-1).sum().backward()
    for name, parameter in live.trainable_parameters().items():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_names_and_values_are_the_same_in_another_process(case: Case) -> None:
    one, two = attached(case, random=False), attached(case, random=False)
    assert one.gathered().keys() == two.gathered().keys()
    for name, value in one.gathered().items():
        assert torch.equal(value, two.gathered()[name]), name


def test_detach_restores_the_bare_backbone(case: Case, reference: Tensor) -> None:
    backbone = tiny_backbone()
    names = [name for name, _ in backbone.named_modules()]
    before, attributes = snapshot(backbone), set(vars(backbone.model))
    for _ in range(2):
        intervention = attached(case, backbone=backbone)
        total = output(backbone).sum()
        if not intervention.fixed:
            total.backward()
        intervention.detach()
        assert [name for name, _ in backbone.named_modules()] == names
        assert_same(before, snapshot(backbone))
        assert not any(module._forward_hooks for module in backbone.modules())
        assert torch.equal(output(backbone), reference)
        assert type(backbone.model) is type(tiny_model()) and set(vars(backbone.model)) == attributes


def test_using_it_unattached_says_so(case: Case) -> None:
    with pytest.raises(AdapterError, match="attach"):
        _ = made(case).backbone


def test_options_rebuild_it(case: Case) -> None:
    intervention = made(case)
    assert json.loads(json.dumps(intervention.options())) == intervention.options()
    assert type(intervention)(**intervention.options()).options() == intervention.options()


# Contexts


@pytest.mark.parametrize("context", list(CONTEXTS))
@pytest.mark.parametrize("fails", [False, True], ids=["normal", "exception"])
def test_contexts_leave_no_trace(live: Intervention, context: str, fails: bool) -> None:
    backbone = live.backbone
    # Unlike any default: a frozen trainable parameter, gradients present, some modules in train mode.
    for parameter in list(live.trainable_parameters().values())[:1]:
        parameter.requires_grad_(False)
    for parameter in live.trainable_parameters().values():
        parameter.grad = torch.ones_like(parameter)
    backbone.layers[1].train()
    before, expected, norm = snapshot(backbone), output(backbone).detach(), live.norm()
    with raising(fails), CONTEXTS[context](live):
        assert not torch.equal(output(backbone), expected)
        if fails:
            raise KeyError
    assert_same(before, snapshot(backbone))
    assert torch.equal(output(backbone), expected)
    assert live.norm() == norm


@contextmanager
def raising(fails: bool) -> Iterator[None]:
    if fails:
        with pytest.raises(KeyError):
            yield
    else:
        yield


def test_disabled_is_exactly_the_reference(live: Intervention, reference: Tensor) -> None:
    with live.disabled():
        assert torch.equal(output(live.backbone), reference)
        with live.disabled():
            assert torch.equal(output(live.backbone), reference)
        assert torch.equal(output(live.backbone), reference)
    with live.rescaled(2.0), live.disabled():
        assert torch.equal(output(live.backbone), reference)


def test_disabled_before_the_pass_leaves_its_gradients_alone(trained: Case) -> None:
    def gradients(with_reference: bool) -> dict[str, Tensor]:
        intervention = attached(trained)
        if with_reference:
            with torch.no_grad(), intervention.disabled():
                output(intervention.backbone)
        output(intervention.backbone).logsumexp(-1).sum().backward()
        return {name: p.grad for name, p in intervention.trainable_parameters().items() if p.grad is not None}

    plain, after = gradients(False), gradients(True)
    assert plain.keys() == after.keys() and plain
    for name, gradient in plain.items():
        assert torch.equal(gradient, after[name]), name


@slow
@given(factor=st.floats(0.05, 4.0))
def test_norm_is_linear_in_the_factor(live: Intervention, factor: float) -> None:
    norm = live.norm()
    with live.rescaled(factor):
        assert live.norm() == pytest.approx(factor * norm, rel=1e-5)
        with live.rescaled(0.5):
            assert live.norm() == pytest.approx(0.5 * factor * norm, rel=1e-5)
    assert live.norm() == norm


def test_rescaled_by_one_is_the_original_and_by_zero_the_reference(
    live: Intervention, reference: Tensor
) -> None:
    expected = output(live.backbone)
    with live.rescaled(1.0):
        assert torch.equal(output(live.backbone), expected)
    with live.rescaled(0.0):
        assert live.norm() == 0
        assert torch.equal(output(live.backbone), reference)


def test_rescaling_keeps_the_direction(live: Intervention) -> None:
    before = live.update()
    with live.rescaled(2.5):
        assert live.update().cosine(before) == pytest.approx(1.0, abs=1e-6)
    with live.rescaled(-1.0):
        assert live.update().cosine(before) == pytest.approx(-1.0, abs=1e-6)


@slow
@given(epsilon=epsilons, seed=st.integers(0, 2**31))
def test_perturbation_has_the_right_angle_and_norm(live: Intervention, epsilon: float, seed: int) -> None:
    before = live.update()
    with live.perturbed(epsilon, generator(seed)):
        after = live.update()
    assert after.cosine(before) == pytest.approx(math.sqrt(1 - epsilon**2), abs=1e-4)
    assert after.norm() == pytest.approx(before.norm(), rel=1e-4)


@slow
@given(first=epsilons, second=epsilons)
def test_perturbations_of_one_seed_share_their_noise(live: Intervention, first: float, second: float) -> None:
    updates = []
    for epsilon in (first, second):
        with live.perturbed(epsilon, generator(7)):
            updates.append(live.update())
    angle = math.sqrt((1 - first**2) * (1 - second**2)) + first * second
    assert updates[0].cosine(updates[1]) == pytest.approx(angle, abs=1e-4)


def test_perturbation_depends_on_the_seed_only(live: Intervention) -> None:
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(outputs))
        with live.perturbed(0.5, generator(seed)):
            outputs.append(output(live.backbone))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_perturbation_by_zero_is_the_original(live: Intervention) -> None:
    expected = output(live.backbone)
    with live.perturbed(0.0, generator()):
        assert torch.equal(output(live.backbone), expected)


def test_perturbing_nothing_gives_nothing(trained: Case, reference: Tensor) -> None:
    intervention = attached(trained, random=False)
    with intervention.perturbed(0.5, generator()):
        assert intervention.norm() == 0
        assert torch.equal(output(intervention.backbone), reference)


def test_rescaled_and_perturbed_combine(live: Intervention) -> None:
    before = live.update()
    with live.rescaled(2.0), live.perturbed(0.6, generator()):
        assert live.update().norm() == pytest.approx(2 * before.norm(), rel=1e-4)
        assert live.update().cosine(before) == pytest.approx(0.8, abs=1e-4)


def test_update_is_a_copy(live: Intervention) -> None:
    update, expected = live.update(), output(live.backbone)
    norm = update.norm()
    with torch.no_grad():
        for left, _ in live.update().parts.values():
            left.mul_(5)
        assert torch.equal(output(live.backbone), expected)
        for parameter in live.trainable_parameters().values():
            parameter.mul_(3)
    assert update.norm() == norm


def test_nothing_changes_below_the_lowest_layer(live: Intervention) -> None:
    backbone, start = live.backbone, live.lowest_layer()
    assert 0 <= start < backbone.num_layers
    ids_BT = torch.arange(3, 27).reshape(3, 8)
    mask_BT = torch.ones(ids_BT.shape, dtype=torch.bool)
    with torch.no_grad(), backbone.steering_positions(mask_BT):
        with live.disabled():
            lower = backbone.run_lower(ids_BT, start)
        adapted = backbone.run_lower(ids_BT, start)
        assert (lower is None) == (start == 0)
        if lower is not None and adapted is not None:
            assert torch.equal(lower[1], adapted[1])
        assert torch.equal(backbone.trunk(ids_BT, lower), backbone.trunk(ids_BT))


# Files


def test_save_and_load_give_the_same_model(live: Intervention, case: Case, tmp_path: Path) -> None:
    live.save(tmp_path / "adapter")
    other = made(case)
    other.attach(tiny_backbone(), seed=99)
    other.load(tmp_path / "adapter")
    assert torch.equal(output(other.backbone), output(live.backbone))
    assert other.norm() == live.norm()
    record = json.loads((tmp_path / "adapter" / RECORD).read_text())
    assert record["kind"] == live.kind and record["options"] == live.options()
    assert record["backbone"]["fingerprint"] == live.backbone.fingerprint


def test_a_rank_that_does_not_write_leaves_no_files(live: Intervention, tmp_path: Path) -> None:
    live.save(tmp_path / "adapter", write=False)
    assert not (tmp_path / "adapter").exists()


def test_load_refuses_another_backbone(live: Intervention, case: Case, tmp_path: Path) -> None:
    live.save(tmp_path)
    other = made(case)
    backbone = Backbone(tiny_model(seed=5), tiny_backbone().tokenizer, "other-llama")
    other.attach(backbone)
    before = other.gathered()
    with pytest.raises(AdapterError, match="tiny-llama.*other-llama"):
        other.load(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in other.gathered().items())


def test_load_refuses_missing_and_damaged_files(live: Intervention, tmp_path: Path) -> None:
    live.save(tmp_path)
    live.load(tmp_path)
    needed = [tmp_path / RECORD, *tmp_path.glob("*.safetensors")]
    assert len(needed) == 2
    for path in needed:
        content = path.read_bytes()
        for damaged in (None, b"", content[: len(content) // 2], b"\xff\xfe" + content, b"[]"):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(AdapterError, match=str(tmp_path)):
                live.load(tmp_path)
            path.write_bytes(content)
    live.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"kind": "something_else"}, {"backbone": None}, {"backbone": {}}, {"kind": None}],
    ids=["kind", "no backbone", "empty backbone", "no kind"],
)
def test_load_refuses_a_wrong_record(live: Intervention, tmp_path: Path, change: dict[str, Any]) -> None:
    live.save(tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | change))
    with pytest.raises(AdapterError, match=str(tmp_path)):
        live.load(tmp_path)


def test_put_checks_everything_before_it_copies(trained: Case) -> None:
    live = attached(trained)
    before = live.gathered()
    names = list(before)
    wrong_shape = {name: value + 1 for name, value in before.items()} | {names[-1]: torch.zeros(1, 2, 3)}
    missing = {name: before[name] for name in names[1:]}
    for values in (wrong_shape, missing, before | {"unknown": torch.zeros(1)}):
        with pytest.raises(AdapterError):
            live.put(values, "the test")
        assert all(torch.equal(value, before[name]) for name, value in live.gathered().items())


def test_moves_with_the_backbone_dtype(case: Case) -> None:
    """A bf16 backbone keeps its exact reference and a finite norm."""
    model: nn.Module = tiny_model().to(torch.bfloat16)
    backbone = Backbone(model, tiny_backbone().tokenizer, "half")
    expected = output(backbone)
    intervention = attached(case, backbone=backbone)
    assert output(backbone).dtype == torch.float32
    assert math.isfinite(intervention.norm()) and intervention.norm() > 0
    with intervention.disabled():
        assert torch.equal(output(backbone), expected)
