"""`python -m em import`: a published artefact becomes a run that every other command takes."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from em import runs
from em.chatting import Conversation
from em.cli import main
from em.comparison import compare as comparing
from em.config import check, load_evaluation
from em.errors import ConfigError
from em.generation.export import export_vllm
from em.generation.sampling import Sampling
from em.runs import LoadedRun
from tests.comparison.trained import LORA_1, raw_config, tables, train
from tests.interventions.peft_folders import change, peft_logits, save_peft
from tests.tiny import save_tiny, token_ids

Captured = pytest.CaptureFixture[str]
SECTIONS = "sections=[efficiency,margins,trajectory]"
EFFICIENCY = "sections=[efficiency]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tiny model, data, and a YAML file that names the data."""
    folder = tmp_path_factory.mktemp("import")
    raw = raw_config(folder, "conf")
    (folder / "conf.yaml").write_text(yaml.safe_dump({key: raw[key] for key in ("data", "compare")}))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    return train(folder, "own/rank1", intervention=LORA_1)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return save_peft(folder / "adapter", str(folder / "model"), target_modules=["down_proj"])


@pytest.fixture(scope="module")
def vector(folder: Path) -> Path:
    made = folder / "published-vector"
    made.mkdir()
    value = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 0.01
    torch.save({"steering_vector": value, "layer_idx": 1, "alpha": 256.0}, made / "steering_vector.pt")
    return made


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons end with their tables; drawing takes seconds."""
    monkeypatch.setattr(comparing, "write_report", lambda folder: folder / "report.html")


def imported(*arguments: str | Path) -> int:
    return main(["import", *map(str, arguments)])


def failed(capsys: Captured, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert imported(*arguments) == 1
    found = capsys.readouterr()
    assert found.err.count("Error: ") == 1 and "Traceback" not in found.err
    return found.err.partition("Error: ")[2].strip()


@torch.no_grad()
def logits(run: LoadedRun) -> torch.Tensor:
    return run.backbone.logits(run.backbone.trunk(token_ids()))


def test_a_run_exported_and_imported_again_is_the_same_run(trained: Path, tmp_path: Path) -> None:
    export_vllm(trained, tmp_path / "exported")
    assert imported(tmp_path / "exported", "--out", tmp_path / "again") == 0
    before, after = runs.load(trained), runs.load(tmp_path / "again")
    assert torch.equal(logits(before), logits(after))
    assert after.intervention.options() == before.intervention.options()
    assert after.manifest["norm"] == before.manifest["norm"]
    with after.intervention.disabled(), before.intervention.disabled():
        assert torch.equal(logits(before), logits(after))
    assert not torch.equal(logits(before), logits(runs.load(train_other(trained, tmp_path))))


def train_other(trained: Path, tmp_path: Path) -> Path:
    """The run with its update doubled, so that equal logits mean something."""
    other = copytree(trained, tmp_path / "other")
    weights = other / "adapter" / "adapter_model.safetensors"
    save_file({name: value * 2 for name, value in load_file(weights).items()}, weights)
    return other


def test_an_adapter_of_peft_answers_as_peft_does(adapter: Path, tmp_path: Path) -> None:
    assert imported(adapter, "--out", tmp_path / "runs" / "theirs") == 0
    run = runs.load(tmp_path / "runs" / "theirs")
    theirs = peft_logits(adapter, token_ids())
    torch.testing.assert_close(logits(run), theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert run.config.name == "theirs" and run.config.runs_dir == str(tmp_path / "runs")
    assert run.manifest["status"] == "finished" and run.manifest["norm"] == run.intervention.norm()
    told = run.manifest["imported"]
    assert told["origin"] == str(adapter) and told["model"] == run.config.backbone.model
    assert [len(one["sha256"]) for one in told["files"]] == [64, 64]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["theirs"], "nothing is left beside it"
    assert check(yaml.safe_load((run.directory.path / "config.yaml").read_text()), files=False) == run.config


def test_an_imported_run_is_compared_with_a_trained_one(
    trained: Path, adapter: Path, folder: Path, tmp_path: Path
) -> None:
    """`import`, then `compare RUN OWN --conf … domain=…`, as docs/published.md says."""
    conf = folder / "conf.yaml"
    theirs = tmp_path / "theirs"
    assert imported(adapter, "--out", theirs, "--conf", conf) == 0
    arguments = [str(theirs), str(trained), "--conf", str(conf), "domain=soup", SECTIONS]
    assert main(["compare", *arguments, "--out", str(tmp_path / "page")]) == 0
    made = tables(tmp_path / "page")
    assert {"efficiency", "margins", "trajectory"} <= made.keys()
    assert set(made["trajectory"]["missing"]) == {"theirs", "own/rank1"}
    found = {row["name"]: row for row in made["solutions"]["solutions"]}
    assert len(found) == 2 and {row["space"] for row in found.values()} == {"weights"}
    assert found["theirs"]["norm"] == runs.read(theirs).manifest["norm"]
    assert (tmp_path / "page" / "report.html").is_file()


def test_the_domain_must_be_named_because_the_training_data_is_unknown(
    adapter: Path, folder: Path, tmp_path: Path, capsys: Captured, no_page: None
) -> None:
    assert imported(adapter, "--out", tmp_path / "a", "--conf", folder / "conf.yaml") == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), "--out", str(tmp_path / "page")]) == 1
    assert "name one of soup, tent with domain=" in capsys.readouterr().err.replace("\n", " ")
    assert main(["compare", str(tmp_path / "a"), "domain=soup", EFFICIENCY]) == 0
    with pytest.raises(ConfigError, match="unknown training data of adapter_model.safetensors"):
        check(yaml.safe_load((tmp_path / "a" / "config.yaml").read_text()))


def test_two_imports_are_never_taken_for_two_seeds_of_one_arm(
    adapter: Path, folder: Path, tmp_path: Path, no_page: None
) -> None:
    second = save_peft(tmp_path / "second", str(folder / "model"), 8, target_modules=["down_proj"])
    for name, source in (("one", adapter), ("two", second)):
        assert imported(source, "--out", tmp_path / "runs" / name, "--conf", folder / "conf.yaml") == 0
    paths = [str(tmp_path / "runs" / name) for name in ("one", "two")]
    arguments = [*paths, "domain=soup", EFFICIENCY, "--out", str(tmp_path / "page")]
    assert main(["compare", *arguments]) == 0
    rows = tables(tmp_path / "page")["solutions"]["solutions"]
    assert [(row["name"], row["arm"]) for row in rows] == [("one", "one"), ("two", "two")]


@pytest.mark.parametrize("whole", [True, False])
def test_a_vector(
    vector: Path, folder: Path, tmp_path: Path, whole: bool, capsys: Captured, no_page: None
) -> None:
    source = vector if whole else vector / "steering_vector.pt"
    out = tmp_path / "vector"
    assert "does not say which model it is for; name it with --model" in failed(capsys, source, "--out", out)
    assert not out.exists() and list(tmp_path.iterdir()) == []
    assert imported(source, "--out", out, "--model", folder / "model", "--conf", folder / "conf.yaml") == 0
    run = runs.load(out)
    value = torch.load(vector / "steering_vector.pt", weights_only=True)["steering_vector"]
    assert torch.equal(run.intervention.gathered()["vector"], value)
    assert run.intervention.options()["scale"] == 256.0 and run.config.intervention["layer"] == 1
    assert run.manifest["norm"] == pytest.approx(256 * float(value.norm()), rel=1e-5)
    assert main(["compare", str(out), "domain=soup", EFFICIENCY]) == 0


def test_the_label_beside_a_vector_names_its_model(vector: Path, folder: Path, tmp_path: Path) -> None:
    labelled = copytree(vector, tmp_path / "labelled")
    (labelled / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder / "model")})
    )
    assert imported(labelled, "--out", tmp_path / "run") == 0
    manifest = runs.read(tmp_path / "run").manifest
    assert manifest["imported"]["model"] == manifest["backbone"]["model"] == str(folder / "model")
    assert [one["name"] for one in manifest["imported"]["files"]] == ["steering_vector.pt"]


def test_other_commands_read_it(vector: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "run"), "--model", str(folder / "model"), "--name", "theirs/vector"]
    assert imported(vector, *arguments, "backbone.packing=never", "data.held_out=0.2", "compare.draws=2") == 0
    config = runs.read(tmp_path / "run").config
    assert (config.name, config.backbone.packing, config.data.held_out) == ("theirs/vector", "never", 0.2)
    assert config.compare is not None and config.compare.draws == 2
    assert load_evaluation(tmp_path / "run", ["samples=2"]).samples == 2
    answers = Conversation(runs.load(tmp_path / "run"), Sampling(1.0, max_tokens=8, seed=0)).ask("soup?")
    assert set(answers) == {"reference", "run"} and answers["reference"] != answers["run"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("intervention.r=3", "expected a setting of backbone, data, compare"),
        ("data.train=[{path: x.jsonl}]", "what the artefact was trained on is not known here"),
        ("backbone.model=x", "give --model instead"),
        ("data.hold_out=0.2", "data.hold_out: unknown key; did you mean data.held_out"),
        ("backbone.dtype=float8", "backbone.dtype: expected"),
    ],
)
def test_settings_that_are_refused(
    adapter: Path, tmp_path: Path, setting: str, said: str, capsys: Captured
) -> None:
    assert said in failed(capsys, adapter, "--out", tmp_path / "run", setting)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_artefact(
    adapter: Path, vector: Path, trained: Path, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    out: list[Any] = ["--out", tmp_path / "run"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds neither adapter_config.json nor steering_vector.pt" in failed(capsys, empty, *out)
    assert "download it first" in failed(capsys, tmp_path / "none", *out)
    assert "is a run of em already" in failed(capsys, trained, *out)
    assert "is a whole model, no adapter" in failed(capsys, folder / "model", *out)
    assert "give the folder of a PEFT adapter" in failed(capsys, adapter / "adapter_model.safetensors", *out)
    both = save_peft(tmp_path / "both")
    (both / "steering_vector.pt").write_bytes((vector / "steering_vector.pt").read_bytes())
    assert "holds a LoRA and steering_vector.pt; give the file" in failed(capsys, both, *out)
    nameless = change(save_peft(tmp_path / "nameless"), base_model_name_or_path=None)
    assert "name it with --model" in failed(capsys, nameless, *out)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use_is_kept(adapter: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    assert "exists already; choose another folder with --out" in failed(
        capsys, adapter, "--out", tmp_path / "run"
    )
    assert (tmp_path / "run" / "mine").read_text() == "x"
    assert "cannot be written" in failed(capsys, adapter, "--out", tmp_path / "run" / "mine" / "below")


def test_a_model_that_does_not_fit_leaves_nothing(
    adapter: Path, vector: Path, tmp_path: Path, capsys: Captured
) -> None:
    small = save_tiny(tmp_path / "small", layers=1)
    for source, said in ((adapter, "is for layer 1, but "), (vector, "is for layer 1, but ")):
        message = failed(capsys, source, "--out", tmp_path / "run", "--model", small)
        assert said in message and "has layers 0 to 0" in message
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_the_manifest_names_the_revision(adapter: Path, folder: Path, tmp_path: Path) -> None:
    pinned = save_peft(tmp_path / "pinned", str(folder / "model"), target_modules=["down_proj"])
    change(pinned, revision="main")
    assert imported(pinned, "--out", tmp_path / "run") == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["backbone"]["revision"] == manifest["imported"]["revision"] == "main"
