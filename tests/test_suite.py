"""Suites: side by side, failures apart, finished members skipped."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

import train
from em import experiment, suite
from em.callbacks.base import RunContext
from em.comparison import compare as comparing
from em.config import Suite, load
from em.errors import EmError, Interrupted, RunError
from tests.callbacks.stopping import Stopping
from tests.comparison.trained import LORA_2, SMALL, raw_config, tables
from tests.tiny import tiny_config


def suite_of(raw: dict[str, Any], folder: Path) -> Path:
    members = {"general": {"kl": {"weight": 0}}, "narrow": {"kl": {"weight": 5}}}
    path = folder / "pair.yaml"
    path.write_text(yaml.safe_dump({**raw, "name": "pair", "members": members}))
    return path


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """Without a report, which has tests of its own."""
    changes = {"callbacks": {"domains": {"resamples": 50}}, "compare": {"sections": []}}
    return suite_of(tiny_config(tmp_path, **changes), tmp_path)


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """Two members that are trained on pairs and compared by the least that a page needs."""
    compare = {**SMALL, "sections": ["efficiency", "margins"]}
    raw = raw_config(tmp_path, "pair", intervention=LORA_2, compare=compare, trainer={"max_steps": 3})
    return suite_of(raw, tmp_path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The solutions that a comparison measures."""
    names: list[str] = []
    measure = comparing.measure

    def counted(study: Any, name: str, panels: Any) -> Any:
        names.append(name)
        return measure(study, name, panels)

    monkeypatch.setattr(comparing, "measure", counted)
    return names


def test_a_suite_ends_with_a_page(
    reported: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = reported.parent / "runs" / "pair"
    assert train.main([str(reported)]) == 0
    assert capsys.readouterr().err.endswith(f"report: {folder / 'report.html'}\n")
    assert "general against narrow" in (folder / "report.html").read_text(encoding="utf-8")
    made = tables(folder)
    assert set(made) == {"efficiency", "margins", "solutions"} and measured == ["general", "narrow"]
    assert [row["run"] for row in made["solutions"]["solutions"]] == [
        str(folder / "general"),
        str(folder / "narrow"),
    ]
    # The same command again: nothing is trained, nothing is measured.
    measured.clear()
    assert train.main([str(reported)]) == 0
    assert capsys.readouterr().err.endswith(f"report: {folder / 'report.html'} is up to date\n")
    assert measured == []
    # Another setting of the comparison alone: the runs stay, the page is made again.
    assert train.main([str(reported), "compare.seed=1", "compare.sections=[efficiency]"]) == 0
    assert measured == ["general", "narrow"] and set(tables(folder)) == {"efficiency", "solutions"}
    # A member that is trained again is measured again.
    measured.clear()
    more = ["compare.seed=1", "compare.sections=[efficiency]"]
    assert train.main([str(reported), *more, "overwrite=true", "optimizer.lr=0.02"]) == 0
    assert measured == ["general", "narrow"]


def test_members_beside_a_failed_one_are_compared(
    reported: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    failing = "members.general.intervention.modules=[nonsense]"
    assert train.main([str(reported), failing, "compare.sections=[efficiency]"]) == 1
    folder = reported.parent / "runs" / "pair"
    assert measured == ["narrow"] and f"report: {folder / 'report.html'}" in capsys.readouterr().err
    assert [row["name"] for row in tables(folder)["solutions"]["solutions"]] == ["narrow"]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "One solution: nothing to compare with" in text


def test_there_is_no_page_when_none_is_wanted(reported: Path, measured: list[str]) -> None:
    folder = reported.parent / "runs" / "pair"
    for setting in ("compare.sections=[]", "compare=null"):
        assert train.main([str(reported), setting]) == 0
        assert not (folder / "report.html").exists() and measured == []


def test_a_page_that_fails_leaves_the_runs_finished(
    reported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RunError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(suite, "compare", fail)
        assert train.main([str(reported)]) == 1
    output = capsys.readouterr()
    assert output.err.endswith("\nThe runs are finished, but their report is not: the disk is full\n")
    assert "general" in output.out and "Traceback" not in output.err
    folder = reported.parent / "runs" / "pair"
    states = [
        json.loads((folder / name / "manifest.json").read_text())["status"] for name in ("general", "narrow")
    ]
    assert states == ["finished", "finished"] and not (folder / "report.html").exists()
    # What was wrong may be a setting of the comparison: the next one counts, not that of the finished runs.
    assert train.main([str(reported), "compare.sections=[efficiency]"]) == 0
    assert set(tables(folder)) == {"efficiency", "solutions"}


def test_a_suite_trains_both_and_prints_them_side_by_side(
    conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(conf), "trainer.max_steps=3"]) == 0
    printed = capsys.readouterr().out
    assert "general" in printed and "narrow" in printed and "soup *" in printed and "tokens/s" in printed
    compared = json.loads((conf.parent / "runs" / "pair" / "comparison.json").read_text())
    members = compared["members"]
    assert list(members) == ["general", "narrow"]
    soup, tent = members["narrow"]["domains"]
    assert (soup["domain"], soup["training"], tent["training"]) == ("soup", True, False)
    low, high = soup["shift_interval"]
    assert low <= soup["shift"] <= high and soup["shift"] == soup["loss"] - soup["loss_reference"]
    before = (conf.parent / "runs" / "pair" / "general" / "adapter" / "em.json").stat().st_mtime_ns
    assert train.main([str(conf), "trainer.max_steps=3"]) == 0
    assert (conf.parent / "runs" / "pair" / "general" / "adapter" / "em.json").stat().st_mtime_ns == before


def test_a_failed_member_does_not_stop_the_others(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(conf), "members.general.intervention.modules=[nonsense]", "trainer.max_steps=2"]
    assert train.main(arguments) == 1
    output = capsys.readouterr()
    assert "has no nonsense; its linear modules are" in output.err
    assert "general: failed" in output.out
    assert (conf.parent / "runs" / "pair" / "narrow" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.fixture
def fits() -> list[str]:
    """The members whose training was begun, with `broken`."""
    return []


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, fits: list[str]) -> dict[str, BaseException]:
    """Member -> what its training raises, when all is built; the others are trained."""
    errors: dict[str, BaseException] = {}
    fit = experiment.fit

    def failing(made: Any, *arguments: Any) -> None:
        fits.append(made.config.name.rpartition("/")[2])
        if fits[-1] in errors:
            raise errors[fits[-1]]
        fit(made, *arguments)

    monkeypatch.setattr(experiment, "fit", failing)
    return errors


def members(conf: Path) -> dict[str, Any]:
    return dict(json.loads((conf.parent / "runs" / "pair" / "comparison.json").read_text())["members"])


def test_an_error_of_torch_stops_no_other_member(
    conf: Path, broken: dict[str, BaseException], fits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken["general"] = RuntimeError("CUDA out of memory")
    assert train.main([str(conf), "trainer.max_steps=2"]) == 1
    assert members(conf)["general"]["error"] == "RuntimeError: CUDA out of memory"
    assert "error" not in members(conf)["narrow"]
    output = capsys.readouterr()
    assert "general: failed: RuntimeError: CUDA out of memory" in output.out
    assert output.err.endswith("\n1 of 2 failed: general; the same command tries them again\n")
    manifest = json.loads((conf.parent / "runs" / "pair" / "general" / "manifest.json").read_text())
    assert (manifest["status"], manifest["error"]) == ("failed", "RuntimeError: CUDA out of memory")
    # The same command: the finished one is left alone, the failed one is tried again.
    broken.clear()
    fits.clear()
    assert train.main([str(conf), "trainer.max_steps=2"]) == 0
    assert fits == ["general"] and "error" not in members(conf)["general"]


def test_the_member_after_an_error_in_mid_training_is_trained_as_if_alone(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Stopping, context: RunContext) -> None:
        raise RuntimeError("expected all tensors to be on the same device")

    monkeypatch.setattr(Stopping, "measure", fail)
    stop = "members.general.callbacks.stop={_target_: tests.callbacks.stopping.Stopping, step: 1}"
    assert train.main([str(conf), "trainer.max_steps=2", stop]) == 1
    assert members(conf)["general"]["error"] == "RuntimeError: expected all tensors to be on the same device"
    alone = ["trainer.max_steps=2", "name=alone", "--member=narrow"]
    assert train.main([str(conf), *alone]) == 0
    after, before = (
        load_file(conf.parent / "runs" / name / "narrow" / "adapter" / "adapter_model.safetensors")
        for name in ("pair", "alone")
    )
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_an_unexpected_error_leaves_its_traceback(
    conf: Path, broken: dict[str, BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    broken["narrow"] = KeyError("weights")
    assert train.main([str(conf), "trainer.max_steps=2"]) == 1
    assert members(conf)["narrow"]["error"] == "KeyError: 'weights'"
    (record,) = [one for one in caplog.records if one.exc_info]
    assert record.getMessage() == "pair/narrow failed" and "weights" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (Interrupted("stopped after step 1; its state is saved", 15), 143)],
)
def test_who_is_asked_to_stop_stops_at_once(
    conf: Path, broken: dict[str, BaseException], error: BaseException, status: int
) -> None:
    broken["general"] = error
    assert train.main([str(conf), "trainer.max_steps=2"]) == status
    assert not (conf.parent / "runs" / "pair" / "narrow").exists()


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (143, Interrupted, "general: its process was stopped and has saved itself"),
        (130, Interrupted, "general: its process was stopped and has saved itself"),
        (-9, None, "its process was killed by signal 9"),
        (1, None, "its process ended with status 1; its own messages are above"),
    ],
)
def test_members_in_processes_of_their_own(
    conf: Path, monkeypatch: pytest.MonkeyPatch, status: int, error: type[EmError] | None, message: str
) -> None:
    commands = []

    def started(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(suite.subprocess, "run", started)
    loaded = load(conf, ["trainer.devices=2"])
    assert isinstance(loaded, Suite)
    if error is not None:
        with pytest.raises(error, match=message):
            suite.run_suite(loaded, conf, ["trainer.devices=2"])
        assert len(commands) == 1
    else:
        outcomes = suite.run_suite(loaded, conf, ["trainer.devices=2"])
        assert [outcome.error for outcome in outcomes] == [message, message]
        script = str(Path(train.__file__))
        assert commands[1] == [sys.executable, script, str(conf), "trainer.devices=2", "--member=narrow"]


def test_a_suite_does_not_settle_in_a_run(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = conf.parent / "runs" / "pair"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"status": "finished"}')
    assert train.main([str(conf)]) == 1
    message = f"RunError: {folder} is the run of one experiment; give its members another folder: name=…"
    assert message in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_with_many_members_each_has_a_row() -> None:
    domain = {"training": True, "loss_reference": 2.0, "loss": 1.0, "shift": -1.0}
    rows = [
        {**domain, "domain": "tent", "training": False, "shift_interval": [-1.2, -0.8], "kl": 0.5},
        {**domain, "domain": "soup", "shift_interval": [-1.4, -0.6], "kl": 0.7},
    ]
    said = [
        {"of": of, "set": "open", "answers": 8, "rate": rate, "low": 0.0, "high": 0.5}
        for of, rate in (("reference", 0.1), ("run", 0.25))
    ]
    member = {"run": "runs/a", "norm": 1.0, "tokens_per_second": 9.0, "domains": rows, "behaviour": said}
    stream = io.StringIO()
    suite.show({"members": {f"weight-{n}": member for n in range(5)}}, Console(file=stream, width=80))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["member", "shift", "KL", "shift", "KL"] in lines and ["soup", "*", "tent"] in lines
    for number in range(5):
        assert [f"weight-{number}", "-1.00", "±0.40", "0.700", "-1.00", "±0.20", "0.500"] in lines
        assert [f"weight-{number}", "25%", "[0,", "50]"] in lines
    assert ["reference", "10%", "[0,", "50]"] in lines


def test_names_with_markup_are_shown_as_they_are() -> None:
    row = {
        "domain": "[red]x[/red]",
        "training": True,
        "loss_reference": 2.0,
        "loss": 1.0,
        "shift": -1.0,
        "shift_interval": [-1.2, -0.8],
        "kl": 0.5,
    }
    member = {"run": "runs/a", "norm": 1.0, "tokens_per_second": 9.0, "domains": [row]}
    stream = io.StringIO()
    suite.show({"members": {"[b]a": member}}, Console(file=stream, width=80))
    assert "[red]x[/red] *" in stream.getvalue() and "[b]a" in stream.getvalue()
    assert "-1.00 ±0.20" in stream.getvalue()


def test_one_member_alone(conf: Path) -> None:
    assert train.main([str(conf), "--member=narrow", "trainer.max_steps=2"]) == 0
    assert not (conf.parent / "runs" / "pair" / "general").exists()
    assert train.main([str(conf), "--member=nobody"]) == 1


def test_errors_are_lines_and_not_tracebacks(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([str(conf), "kl.wieght=3"]) == 1
    error = capsys.readouterr().err
    assert "did you mean kl.weight?" in error and "Traceback" not in error
    assert train.main([]) == 2
    loaded = load(conf)
    assert isinstance(loaded, Suite) and list(loaded.members) == ["general", "narrow"]
