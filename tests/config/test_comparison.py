"""The section `compare`: its bounds, and the configuration of `python -m em compare`."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from em.config import Config, ModelFacts, check, load_comparison, to_yaml
from em.config.schema import CompareConfig, CorpusConfig, Section
from em.errors import ConfigError

FACTS = ModelFacts(num_layers=4, hidden_size=8, vocab_size=64)
LORA = {"kind": "lora", "r": 1}


def problems(compare: Any) -> list[str]:
    raw = {"intervention": LORA, "data": {"train": [{"path": "gone.jsonl"}]}, "compare": compare}
    try:
        check(raw, FACTS, files=False)
    except ConfigError as error:
        return error.problems
    return []


def test_the_defaults_are_the_papers_and_pass() -> None:
    config = CompareConfig()
    assert problems(vars(config)) == [] and list(get_args(Section)) == config.sections
    assert config.factors == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0]
    assert (config.draws, config.train_pairs, len(config.epsilons)) == (10, 300, 12)


def test_no_comparison_has_no_bounds() -> None:
    assert problems(None) == [] and problems({"sections": []}) == []


FACTORS = "expected numbers at least 0 with 1.0 among them"
EPSILONS = "expected numbers above 0 and at most 1"
BAD: list[tuple[str, Any, str]] = [
    ("factors", [], f"{FACTORS}, got []"),
    ("factors", [0, 2], f"{FACTORS}, got [0.0, 2.0]"),
    ("factors", [-1, 1], f"{FACTORS}, got [-1.0, 1.0]"),
    ("epsilons", [], f"{EPSILONS}, got []"),
    ("epsilons", [0, 0.5], f"{EPSILONS}, got [0.0, 0.5]"),
    ("epsilons", [0.5, 1.1], f"{EPSILONS}, got [0.5, 1.1]"),
    ("coefficients", [], "expected a number other than 0 among them, got []"),
    ("coefficients", [0], "expected a number other than 0 among them, got [0.0]"),
    ("layer", 4, "expected 0 to 3, got 4"),
    ("layer", -1, "expected 0 to 3, got -1"),
]


@pytest.mark.parametrize(("key", "value", "said"), BAD)
def test_grids_and_the_layer(key: str, value: Any, said: str) -> None:
    assert problems({key: value}) == [f"compare.{key}: {said}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("factors", [1]), ("factors", [1.0, 0.0]), ("epsilons", [1]), ("coefficients", [0, -0.1])]
    + [("layer", 0), ("layer", 3), ("layer", None)],
)
def test_the_least_of_grids(key: str, value: Any) -> None:
    assert problems({key: value}) == []


LEAST = {"examples": 1, "draws": 1, "documents": 1, "controls": 1, "pairs": 2, "train_pairs": 2}
LEAST |= {"steered_pairs": 1, "max_tokens": 2, "resamples": 100}


@pytest.mark.parametrize(("key", "least"), LEAST.items())
def test_counts(key: str, least: int) -> None:
    assert problems({key: least}) == []
    assert problems({key: least - 1}) == [f"compare.{key}: expected at least {least}, got {least - 1}"]


def test_unknown_keys_and_sections() -> None:
    assert problems({"drws": 3}) == ["compare.drws: unknown key; did you mean compare.draws?"]
    (line,) = problems({"sections": ["efficency"]})
    assert line.startswith("compare.sections[0]: ") and "efficiency" in line
    assert problems({"draws": 2.5}) == ["compare.draws: expected a whole number, got 2.5"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory's configuration; its data is not there any more."""
    raw = {
        "name": "pair/narrow",
        "intervention": LORA,
        "data": {"train": [{"path": "gone.jsonl"}], "domains": {"soup": [{"path": "gone.jsonl"}]}},
        "compare": {"draws": 7, "corpus": [{"path": "text.jsonl", "slice": "web"}]},
    }
    (tmp_path / "config.yaml").write_text(to_yaml(check(raw, files=False)), encoding="utf-8")
    return tmp_path


def compared(config: Config) -> CompareConfig:
    assert config.compare is not None
    return config.compare


def test_the_runs_own_settings(run: Path) -> None:
    config = load_comparison(run, None, [])
    assert config.name == "pair/narrow" and config.data.domains["soup"][0].path == "gone.jsonl"
    assert compared(config) == CompareConfig(draws=7, corpus=[CorpusConfig(path="text.jsonl", slice="web")])


def test_overrides_are_of_compare_or_of_data(run: Path) -> None:
    overrides = ["draws=20", "compare.pairs=9", "sections=[margins, ablation]", "layer=null", "seed=4"]
    config = load_comparison(run, None, [*overrides, "data.root=/elsewhere", "data.eval_limit=3"])
    assert (compared(config).draws, compared(config).pairs, compared(config).seed) == (20, 9, 4)
    assert compared(config).sections == ["margins", "ablation"] and compared(config).layer is None
    assert (config.data.root, config.data.eval_limit, config.seed) == ("/elsewhere", 3, 0)
    assert config.data.domains["soup"][0].path == "gone.jsonl"


def test_a_corpus_is_replaced_as_a_whole(run: Path) -> None:
    config = load_comparison(run, None, ["corpus=[{path: other.txt}]"])
    assert compared(config).corpus == [CorpusConfig(path="other.txt")]
    assert compared(load_comparison(run, None, ["corpus=[]"])).corpus == []


def test_a_file_comes_between_the_run_and_the_overrides(run: Path, tmp_path: Path) -> None:
    raw = {"seed": 8, "name": "other", "compare": {"draws": 3, "examples": "${compare.draws}", "pairs": 5}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(raw | {"data": {"max_length": 99}}))
    (tmp_path / "more.yaml").write_text("extends: base.yaml\ncompare: {pairs: 6}\n")
    config = load_comparison(run, tmp_path / "more.yaml", ["draws=4"])
    found = compared(config)
    assert (found.draws, found.examples, found.pairs) == (4, 4, 6), "references follow the overrides"
    assert (config.data.max_length, config.seed, config.name) == (99, 0, "pair/narrow")
    assert found.corpus[0].slice == "web"


def test_a_run_that_was_not_to_be_compared(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"compare": None}))
    assert load_comparison(run, None, []).compare is None
    assert compared(load_comparison(run, None, ["draws=2"])) == CompareConfig(draws=2)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["drws=20"], ["compare.drws: unknown key; did you mean compare.draws?"]),
        (
            ["draws=0", "resamples=9"],
            ["compare.draws: expected at least 1", "compare.resamples: expected at"],
        ),
        (["kl.weight=3"], ["compare.kl: unknown key"]),
        (["data.rot=x"], ["data.rot: unknown key; did you mean data.root?"]),
        (["=3"], ["=3: expected an override such as kl.weight=0.1"]),
        (["examples=${nothing}"], ["compare.examples: Interpolation key 'nothing' not found"]),
    ],
)
def test_wrong_overrides_are_named(run: Path, overrides: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_comparison(run, None, overrides)
    assert len(caught.value.problems) == len(said)
    for line, start in zip(caught.value.problems, said, strict=True):
        assert line.startswith(start)


def test_files_that_are_not_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: no config\.yaml; give the directory of a trained run"):
        load_comparison(tmp_path / "absent", None, [])
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such configuration"):
        load_comparison(run, tmp_path / "absent.yaml", [])
