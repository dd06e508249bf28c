"""What cannot be compared is refused with one message that names the fix, and nothing is written."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest

from em import runs as run_directories
from em.comparison.compare import compare
from em.comparison.study import open_study
from em.config.schema import CompareConfig, CorpusConfig
from em.errors import AdapterError, DataError, EmError, MeasurementError, RunError
from em.loading import load_backbone
from em.runs import RunDirectory
from tests.comparison.conftest import Runs
from tests.comparison.trained import LORA_1, SMALL, files, overwrite, set_manifest, train
from tests.tiny import save_tiny

Copied = Callable[[str], Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with an earlier page in it, which a refusal leaves alone."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "report.html").write_text("earlier")
    return path


def config(**changes: object) -> CompareConfig:
    given = {**SMALL, **changes}
    return CompareConfig(**given)


def refusal(error: type[EmError], paths: list[Path], out: Path, *args: object) -> str:
    """The message of the one error of a comparison, which wrote nothing."""
    with pytest.raises(EmError) as caught:
        compare(paths, out, *args)  # type: ignore[arg-type]
    assert type(caught.value) is error
    assert files(out) == {"report.html": b"earlier"}, "something was written"
    return str(caught.value)


def test_no_run(out: Path) -> None:
    assert refusal(RunError, [], out) == "no run to compare; give one or more run directories"


def test_a_folder_that_is_no_run(out: Path, tmp_path: Path, no_backbone: list[str]) -> None:
    message = refusal(RunError, [tmp_path], out)
    assert message.startswith(f"{tmp_path}: no readable config.yaml; give the directory of a trained run")
    assert "no readable config.yaml" in refusal(RunError, [tmp_path / "absent"], out)
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\n")
    assert "no readable config.yaml" in refusal(RunError, [tmp_path], out)
    assert no_backbone == []


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_a_run_that_is_not_done(out: Path, copied: Copied, status: str, no_backbone: list[str]) -> None:
    run = copied("rank1")
    set_manifest(run, status=status)
    message = refusal(RunError, [run], out)
    assert message == f"{run}: its status is {status!r}; run its training command to the end"
    assert no_backbone == []


def test_a_run_without_its_adapter(out: Path, copied: Copied, no_backbone: list[str]) -> None:
    run = copied("rank1")
    rmtree(run / "adapter")
    assert refusal(RunError, [run], out).endswith("has no adapter/; train it again with overwrite=true")
    (run / "adapter").mkdir()
    assert "no em.json; this is not a folder that an intervention wrote" in refusal(AdapterError, [run], out)
    assert no_backbone == []


def test_a_damaged_configuration(out: Path, copied: Copied, no_backbone: list[str]) -> None:
    run = copied("rank1")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("kl:\n  weight: 0.0", "kl:\n  weight: heavy"))
    assert "kl.weight: expected a number, got 'heavy'" in refusal(RunError, [run], out)
    (run / "config.yaml").write_text("")
    assert "the configuration must be a mapping" in refusal(RunError, [run], out)
    assert no_backbone == []


def test_a_run_given_twice(out: Path, runs: Runs, no_backbone: list[str]) -> None:
    roundabout = runs["rank1"].parent / "narrow" / ".." / "rank1"
    message = refusal(RunError, [runs["rank1"], runs["narrow"], roundabout], out)
    assert message == f"{runs['rank1'].resolve()} is given twice; give each run once"
    assert no_backbone == []


def test_runs_of_different_backbones(
    out: Path, runs: Runs, folder: Path, tmp_path: Path, no_backbone: list[str]
) -> None:
    model = save_tiny(tmp_path / "model", seed=5)
    other = train(folder, "arms/foreign", intervention=LORA_1, backbone={"model": str(model)})
    message = refusal(RunError, [runs["rank1"], other], out)
    assert "the runs have different backbones" in message and "compare runs of one model at a time" in message
    assert f"rank1: {folder / 'model'} (" in message and f"foreign: {model} (" in message
    assert no_backbone == []


@pytest.mark.parametrize(("key", "before", "after"), [("split_seed", "0", "3"), ("held_out", "0.3", "0.2")])
def test_runs_of_different_splits(
    out: Path, runs: Runs, copied: Copied, key: str, before: str, after: str, no_backbone: list[str]
) -> None:
    run = copied("narrow")
    text = (run / "config.yaml").read_text()
    assert f"\n  {key}: {before}\n" in text
    (run / "config.yaml").write_text(text.replace(f"\n  {key}: {before}\n", f"\n  {key}: {after}\n"))
    message = refusal(RunError, [runs["rank1"], run], out)
    assert message.startswith("narrow: has data.split_seed, data.held_out = ")
    assert message.endswith("Compare runs with one split") and no_backbone == []


def test_no_domains(out: Path, runs: Runs, no_backbone: list[str]) -> None:
    data = run_directories.read(runs["rank1"]).config.data
    data.domains = {}
    message = refusal(RunError, [runs["rank1"]], out, None, data)
    assert message.startswith("data.domains: is empty") and "data.domains.NAME=" in message
    assert no_backbone == []


def test_a_file_of_rows_that_is_gone(out: Path, runs: Runs, no_backbone: list[str]) -> None:
    data = run_directories.read(runs["rank1"]).config.data
    data.domains["soup"][0].path = "nowhere.jsonl"
    data.train[0].path = "nowhere.jsonl"
    assert "nowhere.jsonl" in refusal(DataError, [runs["rank1"]], out, config(domain="soup"), data)
    assert no_backbone == []


def test_too_few_pairs_for_a_direction(out: Path, runs: Runs, no_backbone: list[str]) -> None:
    message = refusal(RunError, [runs["rank1"]], out, config(pairs=1))
    assert message.startswith("soup: 1 pairs in its held_out part; directions need at least 2")
    assert no_backbone == []


def test_a_corpus_of_empty_documents(out: Path, runs: Runs, tmp_path: Path, no_backbone: list[str]) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "  "}) + "\n")
    message = refusal(DataError, [runs["rank1"]], out, config(corpus=[CorpusConfig(path=str(text))]))
    assert "all 1 documents read are empty" in message and "change `field`" in message
    assert no_backbone == []


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_that_the_model_does_not_have(
    out: Path, runs: Runs, layer: int, no_backbone: list[str]
) -> None:
    message = refusal(RunError, [runs["rank1"]], out, config(layer=layer))
    assert message.startswith("compare.layer: ") and message.endswith(f"has layers 0 to 2, got {layer}")
    assert no_backbone == []


@pytest.mark.parametrize("name", ["rank1", "vector"])
def test_a_solution_of_norm_0(
    out: Path, runs: Runs, copied: Copied, name: str, no_backbone: list[str]
) -> None:
    run = copied(name)
    set_manifest(run, norm=0.0)
    message = refusal(MeasurementError, [runs["narrow"], run], out)
    assert message == f"{name}: has norm 0, so there is nothing to compare; train it, or leave it out"
    assert no_backbone == []


@pytest.mark.parametrize("name", ["rank1", "vector"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "has norm 0, so there is nothing to compare"),
        (float("nan"), "its adapter holds values that are not finite"),
        (float("inf"), "its adapter holds values that are not finite"),
    ],
)
def test_an_adapter_that_is_zero_or_not_finite(
    out: Path, runs: Runs, copied: Copied, name: str, value: float, said: str
) -> None:
    run = copied(name)
    overwrite(run, value)
    message = refusal(MeasurementError, [runs["narrow"], run], out)
    assert message.startswith(f"{name}: {said}") and message.endswith("or leave it out")


@pytest.mark.parametrize("name", ["rank1", "vector"])
def test_nothing_of_a_refused_solution_stays_attached(copied: Copied, name: str) -> None:
    run = copied(name)
    overwrite(run, float("nan"))
    given = run_directories.read(run).config
    backbone = load_backbone(given.backbone)
    before = [module for module, _ in backbone.named_modules()]
    with pytest.raises(MeasurementError):
        open_study([run], config(), given.data, backbone)
    assert [module for module, _ in backbone.named_modules()] == before
    assert not any(module._forward_hooks for module in backbone.modules())


def test_an_adapter_that_is_damaged(out: Path, copied: Copied) -> None:
    run = copied("rank1")
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"no tensors")
    assert f"{run}/adapter/adapter_model.safetensors: cannot be read" in refusal(AdapterError, [run], out)


def test_a_folder_that_is_a_run(runs: Runs, no_backbone: list[str]) -> None:
    before = files(runs["rank1"])
    with pytest.raises(RunError, match="is a run directory, whose tables would be mixed up"):
        compare([runs["rank1"]], runs["rank1"])
    assert files(runs["rank1"]) == before and no_backbone == []


def test_a_folder_that_cannot_be_written(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        compare([runs["rank1"]], tmp_path / "file", config(sections=["efficiency"]))
    assert RunDirectory(runs["rank1"]).manifest()["status"] == "finished"
