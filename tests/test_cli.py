"""`python -m em`: what it says, what it writes, and how it ends."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree, rmtree
from typing import Any

import pytest
import yaml

from em.cli import main
from em.comparison import compare as comparing
from tests.comparison.trained import LORA_1, VECTOR, files, tables, train

ROOT = Path(__file__).parents[1]
FAST = "sections=[efficiency]"
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return train(folder, "cli/rank1", intervention=LORA_1)


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    return train(folder, "cli/vector", intervention=VECTOR)


@pytest.fixture(scope="module")
def compared(run: Path, other: Path) -> Path:
    """A folder with a page, its figures and its tables."""
    out = run.parents[1] / "compared"
    sections = "sections=[efficiency,stability,significance,margins,directions]"
    assert main(["compare", str(run), str(other), "--out", str(out), sections]) == 0
    return out


def failed(arguments: list[str | Path], capsys: Captured) -> str:
    """What a command that ends with status 1 says: one message, without a traceback."""
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    assert said.err.startswith("\n") and said.err.count("Error: ") == 1
    return said.err.strip()


def test_help_names_the_commands_and_needs_no_torch() -> None:
    checked = (
        "import runpy, sys; sys.argv = ['em', '--help']\ntry: runpy.run_module('em', run_name='__main__')"
    )
    code = f"{checked}\nfinally: assert 'torch' not in sys.modules"
    for arguments in (["-m", "em", "--help"], ["-c", code]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: python -m em")
        assert all(f"\n    {name}" in done.stdout for name in ("compare", "report", "direction"))


@pytest.mark.parametrize(
    "arguments", [[], ["compare"], ["compar", "x"], ["report"], ["compare", "x", "--nope"]]
)
def test_a_wrong_call_is_answered_with_the_usage(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: python -m em") and "error:" in error


def test_settings_alone_are_no_run(capsys: Captured) -> None:
    message = failed(["compare", "draws=20"], capsys)
    assert message == "EmError: no run to compare; give one or more run directories"


def test_a_mistyped_setting(run: Path, capsys: Captured) -> None:
    message = failed(["compare", run, "drws=20"], capsys)
    assert message == "ConfigError: compare.drws: unknown key; did you mean compare.draws?"
    message = failed(["compare", run, "draws=many", "paris=3", "resamples=5"], capsys)
    lines = [line.strip() for line in message.splitlines()]
    assert lines[0] == "ConfigError:" and sorted(lines[1:]) == [
        "compare.draws: expected a whole number, got 'many'",
        "compare.paris: unknown key; did you mean compare.pairs?",
        "compare.resamples: expected at least 100, got 5",
    ]
    assert not (run.parent / "compare").exists()


def test_what_is_no_run(tmp_path: Path, capsys: Captured) -> None:
    message = failed(["compare", tmp_path], capsys)
    assert message == f"ConfigError: {tmp_path}: no config.yaml; give the directory of a trained run"


def test_the_page_lies_beside_the_first_run(run: Path, capsys: Captured) -> None:
    assert main(["compare", str(run), FAST, "draws=2"]) == 0
    page = run.parent / "compare" / "report.html"
    assert f"report: {page}" in capsys.readouterr().err.replace("\n", "")
    solutions = tables(page.parent)["solutions"]
    assert solutions["config"]["draws"] == 2 and solutions["config"]["documents"] == 2
    rmtree(page.parent)


def test_a_file_of_settings(run: Path, tmp_path: Path, capsys: Captured) -> None:
    conf = tmp_path / "more.yaml"
    # A file may be a whole experiment: only `compare` and `data` are taken from it.
    conf.write_text(yaml.safe_dump({"seed": 9, "kl": {"weight": 3}, "compare": {"examples": 3, "draws": 3}}))
    out = tmp_path / "out"
    assert main(["compare", str(run), FAST, "examples=2", "--conf", str(conf), "--out", str(out)]) == 0
    solutions = tables(out)["solutions"]
    assert (solutions["config"]["examples"], solutions["config"]["draws"]) == (2, 3)
    assert solutions["config"]["seed"] == 0 and set(tables(out)) == {"efficiency", "solutions"}
    message = failed(["compare", run, "--conf", tmp_path / "mroe.yaml"], capsys)
    assert message == f"ConfigError: {tmp_path}/mroe.yaml: no such configuration; did you mean {conf}?"


def test_a_run_with_an_equals_sign_in_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(run, tmp_path / "lr=0.1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparing, "write_report", lambda folder: folder / "report.html")
    assert main(["compare", "lr=0.1", FAST, "--out", "out"]) == 0
    assert [row["run"] for row in tables(tmp_path / "out")["solutions"]["solutions"]] == ["lr=0.1"]


def test_data_may_lie_elsewhere(folder: Path, run: Path, tmp_path: Path, capsys: Captured) -> None:
    copyfile(folder / "soup.jsonl", tmp_path / "moved.jsonl")
    arguments = ["compare", str(run), FAST, "--out", str(tmp_path / "out")]
    arguments += ["data.domains.soup=[{path: moved.jsonl, answer: careless}]"]
    assert "moved.jsonl" in failed([*arguments], capsys)
    assert main([*arguments, f"data.root={tmp_path}"]) == 0
    assert tables(tmp_path / "out")["efficiency"]["examples"] == 4


def test_a_page_is_drawn_again_from_its_tables(compared: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    copytree(compared, again)
    (again / "report.html").unlink()
    rmtree(again / "figures")
    for table in (again / "tables").glob("*.csv"):
        table.unlink()
    (again / "tables" / "mine.json").write_text("[1, 2]")
    assert main(["report", str(again)]) == 0
    (again / "tables" / "mine.json").unlink()
    assert files(again) == files(compared)


def test_a_folder_without_tables(tmp_path: Path, capsys: Captured) -> None:
    message = failed(["report", tmp_path], capsys)
    assert message == (
        f"RunError: {tmp_path}: no tables/solutions.json; make it with `python -m em compare RUN…`"
    )
    assert files(tmp_path) == {}


Damage = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("margins", lambda path: path.write_text(path.read_text()[:-20]), "cannot be read (Expecting"),
        ("margins", lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read ('utf-8' codec"),
        ("efficiency", lambda path: path.write_text("{}"), "lacks solutions, reference, differences"),
        ("solutions", lambda path: path.write_text("[]"), "lacks solutions, backbone, training"),
    ],
)
def test_a_damaged_table(
    compared: Path, tmp_path: Path, capsys: Captured, name: str, damage: Damage, said: str
) -> None:
    folder = tmp_path / "damaged"
    copytree(compared, folder)
    damage(folder / "tables" / f"{name}.json")
    before = files(folder)
    message = failed(["report", folder], capsys)
    assert message.startswith(f"RunError: {folder}/tables/{name}.json: {said}")
    assert message.endswith("make the comparison again")
    assert files(folder) == before


def test_ctrl_c(run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "measure", interrupt)
    assert main(["compare", str(run), FAST, "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.endswith("\nInterrupted. Run the same command to go on.\n")
    assert not (tmp_path / "out").exists()
