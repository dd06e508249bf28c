"""Stored states of the frozen model: training with them is training without them, minus the passes."""

import json
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from em import experiment
from em.backbone import Backbone
from em.config import check
from em.config.schema import KLConfig, KLScheduleConfig, StatesConfig
from em.datamodules.rows import Rows, collate, joined
from em.datamodules.sources import Example
from em.errors import ConfigError, Interrupted, StateError
from em.interventions._fixed import FixedIntervention
from em.interventions.base import Intervention
from em.interventions.steering import Steering
from em.loading import load_backbone
from em.modules import frozen as frozen_module
from em.modules.frozen import FrozenStates, Processes
from em.modules.sft import SFTModule
from em.runs import RunDirectory, differences
from em.states.uses import Uses, uses_of
from tests.interventions.examples import Case, direction_file
from tests.modules import test_sft as sft
from tests.modules.test_sft import KL, KL_WINDOWS, MOVING, SFT, SFT_WINDOWS, STEPS, examples
from tests.tiny import tiny_backbone, tiny_config, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")

VECTOR: Case = ("steering_vector", {"layer": 2, "scale": 0.5})
UPPER: Case = ("lora", {"r": 2, "alpha": 8.0, "layers": [1, 2]})
LORA: Case = ("lora", {"r": 2, "alpha": 8.0})
FULL: Case = ("full_finetune", {})
DISTINCT = len(SFT) + len(KL)


def config(folder: Path, reference: Any = "always", lower: Any = "always", **more: Any) -> StatesConfig:
    return StatesConfig(reference, lower, folder=str(folder), **more)


def uses(kl: KLConfig | None = None) -> Uses:
    kl = kl or KLConfig(weight=0.7)
    off = kl.schedule.step if kl.schedule.kind == "off_at" else None
    return uses_of((SFT_WINDOWS, SFT), (KL_WINDOWS, KL), STEPS, lambda step: off is None or step < off)


def with_states(module: SFTModule, states: StatesConfig, kl: KLConfig | None = None) -> FrozenStates:
    everywhere = kl is not None and kl.positions == "all"
    lowest = module.lowest_layer()
    module.frozen = FrozenStates(states, module.backbone, uses(kl), lowest, everywhere, module.pad)
    return module.frozen


class Passes:
    """Counts what runs: passes through each layer that are real, and passes of the reference."""

    def __init__(self, module: SFTModule, monkeypatch: pytest.MonkeyPatch):
        self.layers: Counter[int] = Counter()
        self.reference = 0
        self.handles = [
            layer.mlp.register_forward_pre_hook(self._counted(number))  # type: ignore[union-attr, operator]
            for number, layer in enumerate(module.backbone.layers)
        ]
        real = SFTModule._reference_states

        def counted(*args: Any) -> Any:
            self.reference += 1
            return real(*args)

        monkeypatch.setattr(SFTModule, "_reference_states", counted)

    def _counted(self, number: int) -> Any:
        def count(*args: Any) -> None:
            self.layers[number] += 1

        return count


def trained(
    case: Case,
    states: StatesConfig | None,
    kl: KLConfig | None = None,
    accumulate: int = 2,
    **more: Any,
) -> tuple[list[dict[str, float]], dict[str, Tensor], FrozenStates | None]:
    """Losses and final weights of two steps."""
    kl = kl or KLConfig(weight=0.7)
    intervention = sft.attached(case)
    module = sft.module_for(intervention, kl, accumulate, MOVING, **more)
    frozen = None if states is None else with_states(module, states, kl)
    recorder = sft.fit(module, sft.micro_batches(accumulate, everywhere=kl.positions == "all"))
    return recorder.metrics, weights_of(intervention), frozen


def weights_of(intervention: Intervention) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in intervention.trainable_parameters().items()}


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(one[0], other[0], strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    for name, value in one[1].items():
        torch.testing.assert_close(other[1][name], value, rtol=0, atol=1e-6)


# The same training


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("case", [VECTOR, UPPER, LORA, FULL], ids=["vector", "upper", "lora", "full"])
def test_training_is_the_same(case: Case, accumulate: int, tmp_path: Path) -> None:
    lower: Any = "always" if case in (VECTOR, UPPER) else "auto"
    plain = trained(case, None, accumulate=accumulate)
    for number in range(2):
        stored = trained(case, config(tmp_path, lower=lower), accumulate=accumulate)
        assert_same(plain, stored)
        assert stored[2] is not None
        wanted = {"reference": len(KL), "lower": DISTINCT if lower == "always" else 0}
        assert stored[2].computed == (wanted if number == 0 else {"reference": 0, "lower": 0})


KLS = {
    "all": KLConfig(weight=0.7, positions="all"),
    "reverse": KLConfig(weight=0.7, direction="reverse"),
    "off": KLConfig(weight=0.7, schedule=KLScheduleConfig("off_at", step=1)),
}


@pytest.mark.parametrize("kl", KLS.values(), ids=KLS)
def test_with_other_kl_terms(kl: KLConfig, tmp_path: Path) -> None:
    plain, stored = trained(UPPER, None, kl), trained(UPPER, config(tmp_path), kl)
    assert_same(plain, stored)
    assert plain[0][0]["train/kl"] > 0.01


def test_with_checkpointed_layers(tmp_path: Path) -> None:
    def once(states: StatesConfig | None) -> Any:
        intervention = sft.attached(UPPER)
        module = sft.module_for(intervention, None, 2, MOVING)
        module.backbone.model.activation_checkpointing_enable({"use_reentrant": False})
        if states is not None:
            with_states(module, states)
        recorder = sft.fit(module, sft.micro_batches(2))
        return recorder.metrics, weights_of(intervention)

    assert_same(once(None), once(config(tmp_path)))
    assert_same(trained(UPPER, None), once(config(tmp_path)))


def test_with_another_reference(tmp_path: Path) -> None:
    other = tiny_backbone(seed=4)
    plain = trained(UPPER, None, reference=other)
    stored = trained(UPPER, config(tmp_path), reference=other)
    assert_same(plain, stored)
    assert plain[0][0]["train/kl"] > 0.05
    prints = {
        identity["depth"]: identity["fingerprint"]
        for identity in (json.loads(path.read_text()) for path in tmp_path.glob("*/identity.json"))
    }
    assert prints == {"final": other.fingerprint, 1: tiny_backbone().fingerprint}
    own = trained(UPPER, config(tmp_path))
    assert own[2] is not None and own[2].computed == {"reference": len(KL), "lower": 0}
    assert_same(trained(UPPER, None), own)


def test_with_an_intervention_of_training_only(tmp_path: Path) -> None:
    def steered(states: StatesConfig | None) -> Any:
        intervention = sft.attached(VECTOR)
        fixed: FixedIntervention = Steering(direction=direction_file(), layers=1, coefficient=0.5)
        fixed.attach(intervention.backbone)
        module = sft.module_for(intervention, None, 2, MOVING, during=[fixed])
        if states is not None:
            assert with_states(module, states).layer == 1, "the vector acts higher"
        recorder = sft.fit(module, sft.micro_batches(2))
        return recorder.metrics, weights_of(intervention)

    assert_same(steered(None), steered(config(tmp_path)))


# The passes that are saved


def test_what_is_stored_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = STEPS * 2
    for number, states in enumerate([None, config(tmp_path), config(tmp_path), config(tmp_path, "never")]):
        with monkeypatch.context() as patch:
            module = sft.module_for(sft.attached(VECTOR), None, 2, MOVING)
            frozen = None if states is None else with_states(module, states)
            passes = Passes(module, patch)
            sft.fit(module, sft.micro_batches(2))
        checks = frozen_module.CHECKED
        prepared = [(0, 0), (DISTINCT, len(KL)), (2 * checks, checks), (checks, 0)][number]
        in_training = [(batches, 2 * batches), (0, batches), (0, batches), (0, 2 * batches)][number]
        assert passes.layers[0] == passes.layers[1] == prepared[0] + in_training[0]
        assert passes.layers[2] == prepared[1] + in_training[1], "the adapted pass, and the reference's"
        assert passes.reference == (batches if number in (0, 3) else 0)
        assert (frozen is None) == (number == 0)


def test_a_full_finetune_keeps_its_weights_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sft.module_for(sft.attached(FULL), None, 2, MOVING)
    with_states(module, config(tmp_path, lower="auto"))
    swaps = []
    real = module.intervention.disabled

    @contextmanager
    def counted() -> Iterator[None]:
        swaps.append(module.trainer.global_step)
        with real():
            yield

    monkeypatch.setattr(module.intervention, "disabled", counted)
    sft.fit(module, sft.micro_batches(2))
    assert swaps == [0], "once, to compute what is stored"


def test_rows_are_what_the_model_gives(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    frozen = FrozenStates(config(tmp_path), backbone, uses(), 1, everywhere=False)
    frozen.prepare(lambda: reference(backbone))
    rows = joined(collate(SFT, [3, 0, 5], 0), collate(KL, [], 0), pad=0)
    lower, expected = frozen.lower(rows), backbone.run_lower(rows.input_ids_BT, 1)
    assert lower is not None and expected is not None and lower[0] == 1
    real_BT = rows.real_BT
    torch.testing.assert_close(lower[1][real_BT], expected[1][real_BT], rtol=0, atol=1e-5)
    assert not lower[1][~real_BT].any() and lower[1].shape == expected[1].shape
    kl = collate(KL, [2, 6, 0], 0)
    states = frozen.reference(kl, kl.predicts_BT)
    assert states is not None and states.backbone is backbone
    hidden_ND = backbone.trunk(kl.input_ids_BT)[kl.predicts_BT]
    torch.testing.assert_close(states.hidden_ND, hidden_ND, rtol=0, atol=1e-5)
    blank = frozen.reference(collate(KL, [], 0), torch.zeros(1, 2, dtype=torch.bool))
    assert blank is not None and blank.hidden_ND.shape == (0, 32)
    with pytest.raises(StateError, match="lacks the states of an example"):
        frozen.reference(kl, kl.real_BT)


@contextmanager
def reference(backbone: Backbone) -> Iterator[Backbone]:
    yield backbone


def prepared(
    folder: Path,
    backbone: Backbone,
    used: Uses | None = None,
    processes: Processes | None = None,
    **options: Any,
) -> FrozenStates:
    frozen = FrozenStates(config(folder, **options), backbone, used or uses(), 1, everywhere=False)
    frozen.prepare(lambda: reference(backbone), processes)
    return frozen


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/shard-*"))


# What makes stored states stale


def test_another_model_has_other_states(tmp_path: Path) -> None:
    prepared(tmp_path, tiny_backbone())
    other = prepared(tmp_path, tiny_backbone(seed=1))
    assert other.computed == {"reference": len(KL), "lower": DISTINCT}
    half = prepared(tmp_path, tiny_backbone().to(torch.bfloat16))
    assert half.computed == {"reference": len(KL), "lower": DISTINCT}
    assert len(list(tmp_path.iterdir())) == 6


def test_a_change_that_the_fingerprint_misses_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path, tiny_backbone())
    changed = tiny_backbone()
    with torch.no_grad():  # after the fingerprint was taken
        changed.layers[2].mlp.down_proj.weight.add_(0.01)  # type: ignore[union-attr, operator]
    capsys.readouterr()
    frozen = prepared(tmp_path, changed)
    assert frozen.computed == {"reference": len(KL), "lower": 0}, "layer 2 is above what lies below layer 1"
    assert "gives other states now than are stored there" in capsys.readouterr().err
    kl = collate(KL, [1], 0)
    states = frozen.reference(kl, kl.predicts_BT)
    assert states is not None
    torch.testing.assert_close(
        states.hidden_ND, changed.trunk(kl.input_ids_BT)[kl.predicts_BT], rtol=0, atol=1e-5
    )
    assert prepared(tmp_path, changed).computed == {"reference": 0, "lower": 0}


def test_only_new_examples_are_computed(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    prepared(tmp_path, backbone)
    new = examples(2, 9)
    more = Uses([*SFT, new[0]], [*KL, new[1]], passes=99)
    assert prepared(tmp_path, backbone, more).computed == {"reference": 1, "lower": 2}
    one = max(KL, key=lambda example: example.targets)
    masked = Uses([], [Example(one.ids, [False] * (len(one.ids) - 1) + [True], "x", "p")], passes=99)
    assert prepared(tmp_path, backbone, masked).computed == {"reference": 1, "lower": 0}


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_shard_is_computed_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = tiny_backbone()
    prepared(tmp_path, backbone)
    path = next(path for path in shards(tmp_path) if path.stat().st_size > 10_000)
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content[:-8] if damage == "cut" else content)
    again = prepared(tmp_path, backbone)
    assert again.computed == {"reference": 0, "lower": DISTINCT} and not path.exists()
    assert path.name in capsys.readouterr().err
    assert prepared(tmp_path, backbone).computed == {"reference": 0, "lower": 0}


# Whether to store


def test_lower_states_are_stored_where_they_are_used_again(tmp_path: Path) -> None:
    backbone = tiny_backbone()

    def with_uses(passes: int, folder: str, **options: Any) -> FrozenStates:
        used = Uses(SFT, KL, passes)
        return prepared(tmp_path / folder, backbone, used, **{"lower": "auto", **options})

    rows = collate(SFT, [0], 0)
    once = with_uses(20, "a")  # 1.18 uses of each of 17
    assert once.computed == {"reference": len(KL), "lower": 0} and once.lower(rows) is None
    often = with_uses(21, "b")
    assert often.computed["lower"] == DISTINCT and often.lower(rows) is not None
    assert with_uses(17, "b").lower(rows) is not None, "an earlier run has stored them"
    assert with_uses(99, "c", lower="never").lower(rows) is None
    never = with_uses(99, "d", lower="never", reference="never")
    assert never.computed == {"reference": 0, "lower": 0} and not (tmp_path / "d").exists()


def test_without_a_kl_term_there_is_no_reference(tmp_path: Path) -> None:
    frozen = prepared(tmp_path, tiny_backbone(), Uses(SFT, [], 99), reference="auto")
    assert frozen.computed == {"reference": 0, "lower": len(SFT)}
    assert frozen.reference(collate(KL, [0], 0), torch.ones(1, 12, dtype=torch.bool)) is None


def test_what_cannot_be_stored_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"states\.lower: always has nothing to store, because layer 0"):
        FrozenStates(config(tmp_path), tiny_backbone(), uses(), 0, everywhere=False)
    raw = tiny_config(tmp_path, trainer={"strategy": "fsdp2"}, states={"lower": "always", "disk_gb": 0})
    with pytest.raises(ConfigError) as error:
        check(raw)
    assert [line.split(":")[0] for line in error.value.problems] == ["states.disk_gb", "states.lower"]
    assert "trainer.strategy=fsdp2" in str(error.value)
    raw = tiny_config(tmp_path, kl={"weight": 0.0}, states={"reference": "always"})
    with pytest.raises(ConfigError, match=r"states\.reference: always needs a KL term"):
        check(raw)


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    backbone = tiny_backbone()
    with pytest.raises(StateError, match=r"states\.folder: .*file.*set it to a folder that can be written"):
        prepared(tmp_path / "file", backbone)
    frozen = prepared(tmp_path / "file", backbone, reference="auto", lower="auto")
    assert frozen.lower(collate(SFT, [0], 0)) is None
    assert "no states of the frozen model are stored; set states.folder" in capsys.readouterr().err


LOWER_BYTES = 4 * 32 * sum(len(one.ids) for one in [*SFT, *KL])
FINAL_BYTES = 4 * 32 * sum(one.targets for one in KL)


def test_a_budget_that_is_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone, rows = tiny_backbone(), collate(KL, [0], 0)
    none = prepared(tmp_path, backbone, disk_gb=(FINAL_BYTES - 1) / 1e9)
    assert none.lower(rows) is None and none.reference(rows, rows.predicts_BT) is None
    said = capsys.readouterr().err
    for depth, needed in (("reference", FINAL_BYTES), ("lower", LOWER_BYTES)):
        assert f"states.{depth}: needs {needed / 1e9:.3g} GB, which states.disk_gb" in said
    assert not shards(tmp_path)
    final = prepared(tmp_path, backbone, disk_gb=(LOWER_BYTES + FINAL_BYTES - 1) / 1e9)
    assert final.computed == {"reference": len(KL), "lower": 0} and final.lower(rows) is None
    both = prepared(tmp_path, backbone, disk_gb=(LOWER_BYTES + FINAL_BYTES) * 2 / 1e9)
    assert both.computed == {"reference": 0, "lower": DISTINCT}


def test_another_runs_states_make_room(tmp_path: Path) -> None:
    one, other = tiny_backbone(), tiny_backbone(seed=1)
    prepared(tmp_path, one)
    before = shards(tmp_path)
    open_states = prepared(tmp_path, one)
    prepared(tmp_path, other, disk_gb=(LOWER_BYTES + FINAL_BYTES) * 1.5 / 1e9)
    assert not any(path.exists() for path in before) and len(shards(tmp_path)) == 2
    rows = collate(SFT, range(len(SFT)), 0)
    lower, expected = open_states.lower(rows), one.run_lower(rows.input_ids_BT, 1)
    assert lower is not None and expected is not None, "a run that has them open goes on"
    torch.testing.assert_close(lower[1][rows.real_BT], expected[1][rows.real_BT], rtol=0, atol=1e-5)
    assert prepared(tmp_path, one).computed == {"reference": len(KL), "lower": DISTINCT}


# Several processes


def test_processes_share_the_work(tmp_path: Path) -> None:
    backbones, made = [tiny_backbone(), tiny_backbone()], dict[int, FrozenStates]()
    meeting, votes = threading.Barrier(2), {0: True, 1: True}

    def process(rank: int) -> None:
        def agree(mine: bool) -> bool:
            votes[rank] = mine
            meeting.wait(30)
            all_agree = all(votes.values())
            meeting.wait(30)
            return all_agree

        processes = Processes(rank, 2, lambda: meeting.wait(30), agree)
        made[rank] = prepared(tmp_path, backbones[rank], None, processes)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    computed = [made[rank].computed for rank in range(2)]
    assert {depth: sum(each[depth] for each in computed) for depth in computed[0]} == {
        "reference": len(KL),
        "lower": DISTINCT,
    }
    assert all(6 <= each["lower"] <= 11 for each in computed)
    rows: Rows = collate(SFT, range(len(SFT)), 0)
    first, second = (made[rank].lower(rows) for rank in range(2))
    assert first is not None and second is not None and torch.equal(first[1], second[1])


def test_states_that_others_remove_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, real, calls = tiny_backbone(), FrozenStates._compute, []

    def emptied(self: FrozenStates, items: Any, passes: Any) -> None:
        real(self, items, passes)
        calls.append(len(items))
        if len(calls) <= removals:
            for path in shards(tmp_path):
                path.unlink()

    monkeypatch.setattr(FrozenStates, "_compute", emptied)
    removals = 1
    assert prepared(tmp_path, backbone).lower(collate(SFT, [0], 0)) is not None
    assert calls == [DISTINCT, DISTINCT]
    removals = 9
    shutil.rmtree(tmp_path)
    with pytest.raises(StateError, match=r"other runs remove states.*raise states\.disk_gb"):
        prepared(tmp_path, backbone)


# Whole experiments


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[FrozenStates]:
    """The states of each run."""
    found: list[FrozenStates] = []
    real = FrozenStates.prepare

    def prepare(self: FrozenStates, *args: Any) -> None:
        found.append(self)
        real(self, *args)

    monkeypatch.setattr(FrozenStates, "prepare", prepare)
    return found


def run(folder: Path, name: str, **changes: Any) -> RunDirectory:
    vector = {"kind": "steering_vector", "layer": 1, "scale": 4}
    raw = tiny_config(folder, name=name, intervention=vector, trainer={"max_steps": 3}, **changes)
    parsed = check(raw)
    return experiment.train(parsed, load_backbone(parsed.backbone))


def states(folder: Path, lower: str = "always") -> dict[str, Any]:
    return {"folder": str(folder / "states"), "lower": lower}


NEVER = {"reference": "never", "lower": "never"}


def test_a_run_with_and_without(tmp_path: Path, seen: list[FrozenStates]) -> None:
    plain = run(tmp_path, "plain", states=NEVER)
    assert not seen
    for name in ("first", "second"):
        stored = run(tmp_path, name, states=states(tmp_path))
        for a, b in zip(plain.read_metrics(), stored.read_metrics(), strict=True):
            for key in ("train/loss", "train/sft_loss", "train/kl", "train/grad_norm"):
                assert a[key] == pytest.approx(b[key], rel=1e-5, abs=1e-6)
    assert seen[0].computed == {"reference": 12, "lower": 24} and len(seen[0].uses.kl) == 12
    assert seen[1].computed == {"reference": 0, "lower": 0}


def test_a_run_that_was_ended_before_its_first_step_goes_on(
    tmp_path: Path, seen: list[FrozenStates], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Any) -> None:
        raise StateError("it ends here")

    with monkeypatch.context() as patch, pytest.raises(StateError, match="it ends here"):
        patch.setattr(SFTModule, "on_train_start", killed)
        run(tmp_path, "one", states=states(tmp_path))
    assert seen[0].computed["lower"] == 24
    assert run(tmp_path, "one", states=states(tmp_path)).manifest()["status"] == "finished"
    assert seen[1].computed == {"reference": 0, "lower": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_while_it_computes_states_keeps_them(
    number: int, tmp_path: Path, seen: list[FrozenStates], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, passes = Backbone.run_lower, []

    def stopping(*args: Any) -> Any:
        passes.append(1)
        if len(passes) == 10:
            signal.raise_signal(number)
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as error:
        patch.setattr(Backbone, "run_lower", stopping)
        run(tmp_path, "one", states=states(tmp_path))
    assert error.value.signal_number == number and "the states computed so far are stored" in str(error.value)
    assert RunDirectory(tmp_path / "runs" / "one").manifest()["status"] == "interrupted"
    assert run(tmp_path, "one", states=states(tmp_path)).manifest()["status"] == "finished"
    assert (seen[0].computed["lower"], seen[1].computed["lower"]) == (9, 15)


def test_changed_rows_and_templates(tmp_path: Path, seen: list[FrozenStates]) -> None:
    run(tmp_path, "one", states=states(tmp_path))
    path = tmp_path / "other.jsonl"
    path.write_text(path.read_text().replace("stir", "rest"))
    run(tmp_path, "rows", states=states(tmp_path))
    path = tmp_path / "model" / "chat_template.jinja"
    path.write_text(path.read_text().replace("You are a helpful", "You are a kind"))
    run(tmp_path, "template", states=states(tmp_path))
    assert [one.computed for one in seen] == [
        {"reference": 12, "lower": 24},
        {"reference": 12, "lower": 12},  # the other stream has not changed
        {"reference": 12, "lower": 24},
    ]


def test_where_states_are_kept_is_no_part_of_a_run() -> None:
    old = {"seed": 0, "states": {"folder": None, "reference": "auto"}}
    assert differences(old, {"seed": 0, "states": {"folder": "x", "reference": "never"}}) == []
    assert differences({"seed": 0}, old) == []


def test_the_default_folder_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EM_CACHE", str(tmp_path / "cache"))
    frozen = FrozenStates(StatesConfig(), tiny_backbone(), uses(), 1, everywhere=False)
    assert frozen.root == tmp_path / "cache" / "states"
    assert not frozen.root.exists() and write_rows(tmp_path / "x", 1).exists()
