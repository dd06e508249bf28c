"""What is compared: names, arms, spaces, the training domain and the rows."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from em import runs as run_directories
from em.backbone import Backbone
from em.comparison.compare import measure_tables
from em.comparison.study import VECTOR, WEIGHTS, Study, _without_seed, open_study, study_key
from em.config.schema import CompareConfig, DataConfig, SourceConfig
from em.errors import RunError
from em.loading import load_backbone
from tests.comparison.conftest import Runs
from tests.comparison.trained import LORA_1, SMALL, train


@pytest.fixture(scope="module")
def backbone(runs: Runs) -> Iterator[Backbone]:
    yield load_backbone(run_directories.read(runs["narrow"]).config.backbone)


@pytest.fixture(scope="module")
def study(runs: Runs, backbone: Backbone) -> Study:
    return open_study(list(runs.values()), backbone=backbone)


def config_of(run: Path) -> tuple[CompareConfig, DataConfig]:
    config = run_directories.read(run).config
    assert config.compare is not None
    return config.compare, config.data


def test_names_leave_out_what_all_share(study: Study) -> None:
    assert list(study.solutions) == ["vector", "rank1", "rank2", "rank2-again", "narrow"]
    assert [one.name for one in study.solutions.values()] == list(study.records)


def test_seeds_of_one_configuration_are_one_arm(study: Study) -> None:
    arms = {name: one.arm for name, one in study.solutions.items()}
    own = {"vector": "vector", "rank1": "rank1", "rank2": "rank2", "narrow": "narrow"}
    assert arms == own | {"rank2-again": "rank2"}
    assert [one.seed for one in study.solutions.values()] == [0, 0, 0, 1, 0]


def test_vectors_and_loras_have_spaces_of_their_own(study: Study) -> None:
    spaces = {name: (one.kind, one.space) for name, one in study.solutions.items()}
    assert spaces.pop("vector") == ("steering_vector", VECTOR)
    assert set(spaces.values()) == {("lora", WEIGHTS)}


def test_norms_are_those_of_the_runs(study: Study) -> None:
    for name, one in study.solutions.items():
        assert one.norm == pytest.approx(study.records[name].manifest["norm"], rel=1e-6)
    assert set(study.lowest.values()) == {1}


def test_rows_are_those_asked_for(study: Study) -> None:
    assert study.training == "soup"
    assert (len(study.examples), len(study.train_pairs)) == (4, 6)
    assert {name: len(pairs) for name, pairs in study.pairs.items()} == {"soup": 4, "tent": 4}
    assert study.corpus is not None and len(study.corpus.documents) == 2
    assert (study.layer, study.notes) == (1, [])
    trained = {pair.prompt for pair in study.train_pairs}
    held_out = {pair.prompt for pair in study.pairs["soup"]} | {one.prompt for one in study.examples}
    assert trained.isdisjoint(held_out)


def moved(run: Path, to: Path, name: str | None = None, seed: int | None = None) -> Path:
    """A copy of a run elsewhere, with another name or seed in its configuration."""
    copytree(run, to)
    text = (to / "config.yaml").read_text()
    if name is not None:
        text = text.replace(f"name: {run_directories.read(run).config.name}\n", f"name: {name}\n", 1)
    if seed is not None:
        text = text.replace("\nseed: 0\n", f"\nseed: {seed}\n", 1)
    (to / "config.yaml").write_text(text)
    return to


def names(backbone: Backbone, *paths: Path) -> dict[str, str]:
    """Solution -> arm."""
    found = open_study(paths, CompareConfig(**{**SMALL, "sections": ["efficiency"]}), backbone=backbone)
    return {name: one.arm for name, one in found.solutions.items()}


def test_one_name_in_two_places_is_told_apart_by_its_seed(
    runs: Runs, backbone: Backbone, tmp_path: Path
) -> None:
    again = moved(runs["rank1"], tmp_path / "elsewhere" / "rank1", seed=7)
    found = names(backbone, runs["rank1"], again, runs["vector"])
    assert found == {"rank1 seed 0": "rank1", "rank1 seed 7": "rank1", "vector": "vector"}


def test_one_name_and_seed_is_told_apart_by_its_path(runs: Runs, backbone: Backbone, tmp_path: Path) -> None:
    again = moved(runs["rank1"], tmp_path / "elsewhere" / "rank1")
    found = names(backbone, runs["rank1"], again)
    assert found == {str(runs["rank1"]): str(runs["rank1"]), str(again): str(runs["rank1"])}


def test_names_of_different_suites_keep_them(runs: Runs, backbone: Backbone, tmp_path: Path) -> None:
    other = moved(runs["rank1"], tmp_path / "rank1", name="other/rank1")
    assert list(names(backbone, runs["rank1"], other)) == ["arms/rank1", "other/rank1"]


def test_different_configurations_of_one_name_are_different_arms(
    runs: Runs, backbone: Backbone, tmp_path: Path
) -> None:
    other = moved(runs["rank2"], tmp_path / "rank1", name="arms/rank1", seed=7)
    found = names(backbone, runs["rank1"], other)
    assert found == {"rank1 seed 0": "rank1", "rank1 seed 7": "rank1 seed 7"}


def test_the_domain_may_be_asked_for(runs: Runs, backbone: Backbone, no_backbone: list[str]) -> None:
    config, _ = config_of(runs["narrow"])
    study = open_study([runs["narrow"]], replace(config, domain="tent"), backbone=backbone)
    assert study.training == "tent" and {example.prompt.split()[2] for example in study.examples} == {"tent"}
    with pytest.raises(RunError, match=r"compare\.domain: 'tnt' is not among data\.domains: soup, tent"):
        open_study([runs["narrow"]], replace(config, domain="tnt"))
    assert no_backbone == []


def test_a_domain_without_pairs_is_noted_and_the_rest_is_measured(runs: Runs, backbone: Backbone) -> None:
    config, data = config_of(runs["narrow"])
    plain = str(Path(data.domains["soup"][0].path or "").parent / "train.jsonl")
    source = replace(data.domains["soup"][0], path=plain, answer=None)
    unpaired = replace(data, domains={**data.domains, "rows": [source]})
    config = replace(config, domain="rows")
    study = open_study([runs["rank1"], runs["narrow"]], config, unpaired, backbone)
    assert study.pairs == {} and study.train_pairs == []
    (note,) = study.notes
    assert note.startswith("rows has no careful answers beside its careless ones (data.pairs.rows)")
    made = measure_tables(study)["tables"]
    assert set(made) == {"solutions", "efficiency", "stability", "significance", "trajectory"}
    assert made["solutions"]["notes"] == [note] and made["efficiency"]["domain"] == "rows"


def test_pairs_of_prose_are_explained(runs: Runs, backbone: Backbone, tmp_path: Path) -> None:
    config, data = config_of(runs["narrow"])
    rows = [{"prompt": f"q{n}?", "plain": f"wet {n}", "technical": f"moist {n}"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prose = [SourceConfig(path=str(tmp_path / "rows.jsonl"), answer="technical")]
    asked = replace(config, domain="prose")
    study = open_study([runs["narrow"]], asked, replace(data, domains={"prose": prose}), backbone)
    assert study.notes == [
        "The pairs of prose are of prose: what is called careless here is the technical answer, and careful "
        "the plain one."
    ]
    assert open_study([runs["narrow"]], config, data, backbone).notes == []


def test_the_key_changes_with_runs_and_settings(runs: Runs, copied: Callable[[str], Path]) -> None:
    config, data = config_of(runs["rank1"])
    records = [run_directories.read(runs["rank1"])]
    key = study_key(records, config, data)
    assert key == study_key([run_directories.read(runs["rank1"])], *config_of(runs["rank1"]))
    again = copied("rank1")
    run_directories.RunDirectory(again).update_manifest(started="2031-01-01T00:00:00+00:00")
    others = [
        study_key(records, replace(config, draws=2), data),
        study_key(records, config, replace(data, max_length=99)),
        study_key([run_directories.read(again)], config, data),
        study_key([], config, data),
    ]
    assert len({key, *others}) == 5


def test_no_training_domain_in_common(folder: Path, runs: Runs, no_backbone: list[str]) -> None:
    train_on = [{"path": str(folder / "tent.jsonl"), "answer": "careless"}]
    other = train(folder, "arms/tents", intervention=LORA_1, data={"train": train_on, "kl": []})
    with pytest.raises(RunError, match=r"share no training domain .*rank1: soup; tents: tent.*domain=…"):
        open_study([runs["rank1"], other])
    assert no_backbone == []


def test_replicates_named_after_their_seed_share_a_name_without_it() -> None:
    assert _without_seed("general_lora_2", 2) == "general_lora"
    assert _without_seed("general-seed12", 12) == "general"
    assert _without_seed("rank2-again", 2) == "" and _without_seed("3", 3) == ""
