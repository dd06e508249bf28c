"""Suites: side by side, failures apart, finished members skipped."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import train
from em import suite
from em.config import Suite, load
from tests.tiny import tiny_config


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    raw: dict[str, Any] = tiny_config(tmp_path, callbacks={"domains": {"resamples": 50}})
    raw["name"] = "pair"
    raw["members"] = {"general": {"kl": {"weight": 0}}, "narrow": {"kl": {"weight": 5}}}
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


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
