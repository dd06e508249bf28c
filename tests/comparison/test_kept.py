"""A comparison that was interrupted goes on, with the numbers of one that was not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from em import runs as run_directories
from em.backbone import Backbone
from em.comparison import compare as comparing
from em.comparison.compare import compare
from em.comparison.kept import Kept
from em.config.schema import CompareConfig
from em.loading import load_backbone
from tests.comparison.conftest import Runs
from tests.comparison.trained import SMALL, files

NAMES = ["vector", "rank1", "narrow"]


@pytest.fixture(scope="module")
def backbone(runs: Runs) -> Backbone:
    return load_backbone(run_directories.read(runs["narrow"]).config.backbone)


@pytest.fixture
def config() -> CompareConfig:
    return CompareConfig(**SMALL)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "write_report", lambda folder: folder / "report.html")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Solutions that were measured, in order; the one named after `stop:` is interrupted."""
    names: list[str] = []
    measure = comparing.measure

    def counted(study: Any, name: str, panels: Any) -> Any:
        if f"stop:{name}" in names:
            raise KeyboardInterrupt
        names.append(name)
        return measure(study, name, panels)

    monkeypatch.setattr(comparing, "measure", counted)
    return names


def interrupted(runs: Runs, out: Path, config: CompareConfig, backbone: Backbone, taken: list[str]) -> None:
    """Stop when the third solution begins."""
    taken.append("stop:narrow")
    with pytest.raises(KeyboardInterrupt):
        compare([runs[name] for name in NAMES], out, config, backbone=backbone)
    assert taken == ["stop:narrow", "vector", "rank1"]
    assert [name.split("/")[0] for name in files(out)] == [".measured"] * 2, "only the hidden folder is there"
    taken.clear()


def test_what_was_measured_is_not_measured_again(
    runs: Runs, backbone: Backbone, config: CompareConfig, taken: list[str], tmp_path: Path
) -> None:
    paths = [runs[name] for name in NAMES]
    compare(paths, tmp_path / "whole", config, backbone=backbone)
    taken.clear()
    interrupted(runs, tmp_path / "out", config, backbone, taken)
    compare(paths, tmp_path / "out", config, backbone=backbone)
    assert taken == ["narrow"]
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert not (tmp_path / "out" / ".measured").exists()


def test_other_settings_start_again(
    runs: Runs, backbone: Backbone, config: CompareConfig, taken: list[str], tmp_path: Path
) -> None:
    interrupted(runs, tmp_path, config, backbone, taken)
    compare([runs[name] for name in NAMES], tmp_path, replace(config, seed=1), backbone=backbone)
    assert taken == NAMES


def test_a_damaged_file_is_measured_again(
    runs: Runs, backbone: Backbone, config: CompareConfig, taken: list[str], tmp_path: Path
) -> None:
    interrupted(runs, tmp_path, config, backbone, taken)
    for path in (tmp_path / ".measured").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    compare([runs[name] for name in NAMES], tmp_path, config, backbone=backbone)
    assert taken == NAMES


def test_an_earlier_page_stays_until_all_is_measured(
    runs: Runs, backbone: Backbone, config: CompareConfig, taken: list[str], tmp_path: Path
) -> None:
    config = replace(config, sections=["efficiency"])
    compare([runs["rank1"]], tmp_path, config, backbone=backbone)
    before = files(tmp_path)
    taken[:] = ["stop:rank2"]
    with pytest.raises(KeyboardInterrupt):
        compare([runs["rank1"], runs["rank2"]], tmp_path, config, backbone=backbone)
    after = files(tmp_path)
    assert {name: content for name, content in after.items() if ".measured" not in name} == before


def test_names_that_look_alike_have_files_of_their_own(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "key")
    for name, reason in (("a/b", "first"), ("a-b", "second"), ("x" * 300, "third")):
        kept.write(name, comparing.Measured(missing={"efficiency": reason}))
    found = [kept.read(name) for name in ("a/b", "a-b", "x" * 300)]
    assert [one and one.missing["efficiency"] for one in found] == ["first", "second", "third"]
    assert kept.read("other") is None and Kept(tmp_path, "another key").read("a/b") is None
