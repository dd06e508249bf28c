from pathlib import Path
from shutil import copytree

import pytest
import yaml

from em import cli
from tests.reproduce.conftest import write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a conf/reproduce of its own, about the tiny pool."""
    files = tmp_path / "conf" / "reproduce"
    files.mkdir(parents=True)
    for name in ("figures.yaml", "claims.yaml"):
        (files / name).write_text((folder / name).read_text())
    write(
        files / "models.yaml", {"models": {"tiny": {"members": str(folder / "pool.yaml"), "needs": "little"}}}
    )
    write(files / "discussion.yaml", {"remarks": []})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_figure_and_the_page_of_results(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "first", "--model", "tiny"]) == 0
    told = capsys.readouterr().err
    assert "does not hold" in told and "page: runs/reproduce/tiny/first/report.html" in told
    assert cli.main(["results", "--model", "tiny"]) == 0
    page = (place / "docs" / "results.md").read_text(encoding="utf-8")
    assert "Of 4 claims 1 hold, 1 do not hold and 2 are not decidable." in page
    assert "make reproduce FIG=second MODEL=tiny" in page  # not measured, and says how


def test_what_could_not_be_measured_is_a_failure(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "second", "--model", "tiny"]) == 1
    assert "broken has nothing to say: no such thing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frist"], "FIG=frist: not known; did you mean first?"),
        (["first", "--model", "tinny"], "MODEL=tinny: not known; did you mean tiny?"),
        (["first", "--model", "tiny", "sed=1"], "sed"),
        (["first", "--model", "tiny", "--claims", "no.yaml"], "no.yaml: cannot be read"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = [] if "--model" in arguments else ["--model", "tiny"]
    assert cli.main(["reproduce", *arguments, *model]) == 1
    assert message in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_a_claim_about_a_figure_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "conf" / "reproduce" / "claims.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["claims"]["lost"]["figure"] = "third"
    write(path, raw)
    assert cli.main(["reproduce", "first", "--model", "tiny"]) == 1
    assert "third" in capsys.readouterr().err


def test_the_list_names_all_figures_and_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copytree(ROOT / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "list"]) == 0
    told = capsys.readouterr().err
    for name in ("stability", "scalars", "robustness", "smollm2", "qwen2.5-14b"):
        assert name in told
