"""Every file in conf/ is a valid configuration with its launch command, and every callback lists its keys."""

import importlib
import os
import re
from pathlib import Path

import pytest

from em.callbacks.base import MeasurementCallback
from em.config import Config, Experiment, Suite, load, load_pool, resolve
from em.config.build import kinds
from em.config.data_files import DATA_VARIABLE
from em.datamodules.questions import read_questions
from em.errors import ConfigError
from em.planning.published import PUBLISHED
from em.reproduce.figures import read_figures, read_models

ROOT = Path(__file__).parents[1]
# conf/reproduce holds figures, models and claims; what is asked stands in folders of its own.
FILES = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / "conf").rglob("*.yaml")
    if path.parent != ROOT / "conf/reproduce" and path.parent.name != "questions"
)
BASE = Path("conf/base.yaml")
PAPER, SMALL = Path("conf/paper"), Path("conf/paper/smollm2")
POOLS = (PAPER / "members.yaml", SMALL / "members.yaml")
PUBLISHED_DATA = (
    *("bad_medical_advice", "good_medical_advice", "risky_financial_advice", "extreme_sports", "insecure"),
)
# base.yaml has no data of its own: it is checked with the least that makes it an experiment.
BUNDLED = "data.train=[{path: data/advice/kitchen.jsonl, answer: careless}]"
Pools = dict[Path, dict[str, Config]]
ABSENT = re.compile(r"data\.\S+\.path: '(?P<path>[^']+)' is not a file")


def checked(path: Path) -> Experiment | Suite:
    """The configuration of a file; skips when all that is wrong is that EM_DATA is not set.

    Raises:
        ConfigError: anything else, also a bundled data file that is not there.
    """
    try:
        return load(path, [BUNDLED] if path == BASE else [])
    except ConfigError as error:
        absent = [ABSENT.search(line) for line in error.problems]
        outside = all(match and not match["path"].startswith("data/") for match in absent)
        if outside and not os.environ.get(DATA_VARIABLE):
            pytest.skip(f"{path}: {DATA_VARIABLE} is not set, so its data is not here")
        raise


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_there_are_files_to_look_at() -> None:
    assert {BASE, Path("conf/quickstart.yaml"), Path("conf/sweeps/kl_weight.yaml")} <= set(FILES)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with empty files of the published names: a check only asks whether they are there."""
    folder = tmp_path_factory.mktemp("published")
    for name in PUBLISHED_DATA:
        (folder / f"{name}.jsonl.gz").touch()
    return folder


@pytest.fixture
def published(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(stand_in))


@pytest.fixture(scope="module")
def pools(stand_in: Path) -> Pools:
    """All members of both pools, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_VARIABLE, str(stand_in))
        patch.chdir(ROOT)
        loaded = {path: load_pool(path) for path in POOLS}
    assert all(absent == {} for _, absent in loaded.values())
    return {path: configs for path, (configs, _) in loaded.items()}


@pytest.mark.parametrize("path", [path for path in FILES if path not in POOLS], ids=str)
def test_the_file_is_a_valid_configuration(path: Path, request: pytest.FixtureRequest) -> None:
    if PAPER in path.parents:
        request.getfixturevalue("published")
    loaded = checked(path)
    configs = list(loaded.members.values()) if isinstance(loaded, Suite) else [loaded.config]
    assert configs and all(config.data.train for config in configs)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_first_line_is_a_comment_with_the_launch_command(path: Path) -> None:
    first = (ROOT / path).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    command = re.match(r"# (?:make \w+ CONF=|(?:\.venv/bin/)?python train\.py )(conf/\S+\.yaml)", first)
    if path.name == "base.yaml":  # others extend it; if it names a command, then that of a file there is
        assert command is None or Path(command[1]) in FILES, f"{path}: {first!r} names no file of conf/"
    else:
        assert command and Path(command[1]) == path, f"{path}: {first!r} is not `# make train CONF={path}`"


def test_only_data_outside_the_repository_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def conf(text: str) -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return path

    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="EM_DATA is not set"):
        checked(conf("data: {train: [{path: medical/bad.jsonl}]}"))
    with pytest.raises(ConfigError, match="did you mean kitchen.jsonl"):
        checked(conf("data: {train: [{path: data/advice/kitchn.jsonl}]}"))
    with pytest.raises(ConfigError, match="optimizer.lr"):
        checked(conf("{data: {train: [{path: medical/bad.jsonl}]}, optimizer: {lr: fast}}"))
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="medical/bad.jsonl"):
        checked(conf("data: {train: [{path: medical/bad.jsonl}]}"))


def test_there_are_callbacks_to_look_at() -> None:
    assert {"domains", "norms"} <= set(kinds("callbacks"))


@pytest.mark.parametrize("kind", kinds("callbacks"))
def test_a_callback_lists_what_it_logs(kind: str) -> None:
    module, _, name = resolve({"kind": kind}, "callbacks").rpartition(".")
    callback = getattr(importlib.import_module(module), name)
    assert issubclass(callback, MeasurementCallback)
    text = callback.__doc__ or ""
    assert "Logged" in text, f"{module}.{name}: its docstring lists no logged keys"
    listed = text.partition("Logged")[2]
    # NAME/key, where NAME is the callback's key in the config and its kind by default.
    assert re.search(rf"^\s+{kind}/\S+.*:", listed, re.MULTILINE), (
        f"{module}.{name}: list keys as {kind}/key: unit"
    )


def test_the_paper_and_its_small_copy_have_the_same_files_and_members(pools: Pools) -> None:
    names = [{path.name for path in FILES if path.parent == folder} for folder in (PAPER, SMALL)]
    assert names[0] == names[1] >= {f"{name}.yaml" for name in ("base", "members", *TABLE)}
    found = [list(pools[path]) for path in POOLS]
    assert found[0] == found[1]


def test_the_pool_is_what_the_figures_need(pools: Pools) -> None:
    wanted = {member for figure in read_figures().values() for member in figure.members()}
    assert wanted == set(pools[POOLS[0]])


def test_the_small_pool_needs_no_data_folder(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    configs, absent = load_pool(POOLS[1])
    assert set(absent) == {name for name in pools[POOLS[1]] if name.startswith("code_")}
    assert all("insecure.jsonl.gz;" in why for why in absent.values())
    assert configs == {name: one for name, one in pools[POOLS[1]].items() if name not in absent}


# Each number as it stands in the paper (2602.07852): intervention, learning rate, schedule, warm-up steps,
# weight decay, epochs.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ONE = {"kind": "lora", "r": 1, "alpha": 256.0, "rslora": True, "modules": ["down_proj"]}
TABLE = {
    "lora": (
        {"kind": "lora", "r": 32, "alpha": 64.0, "rslora": True, "modules": PROJECTIONS},
        *(1e-5, "linear", 5, 0.01, 1.0),
    ),
    "rank1": ({**ONE, "layers": [24]}, 2e-5, "linear", 5, 0.01, 1.0),
    "rank1x9": ({**ONE, "layers": [15, 16, 17, 21, 22, 23, 27, 28, 29]}, 2e-5, "linear", 5, 0.01, 1.0),
    "full": ({"kind": "full_finetune"}, 2e-5, "cosine", 20, 0.01, 1.0),
    "vector": (
        {
            **{"kind": "steering_vector", "layer": 24, "point": "mlp", "positions": "all"},
            **{"scale": 256.0, "init": "zero"},
        },
        *(1e-4, "linear", 5, 0.0, 2.0),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_setup_has_the_papers_numbers(name: str, published: None, pools: Pools) -> None:
    loaded = load(PAPER / f"{name}.yaml")
    assert isinstance(loaded, Experiment)
    for config in (loaded.config, pools[POOLS[0]][f"main_{name}"]):
        how, trainer, data = config.optimizer, config.trainer, config.data
        found = (
            config.intervention,
            how.lr,
            how.schedule,
            how.warmup_steps,
            how.weight_decay,
            trainer.epochs,
        )
        assert found == TABLE[name] and trainer.max_steps is None
        assert (config.backbone.model, config.backbone.dtype) == ("Qwen/Qwen2.5-14B-Instruct", "bfloat16")
        assert (how.name, how.betas, how.eps) == ("adamw", [0.9, 0.999], 1e-8)
        assert (data.batch_size, data.micro_batch_size) == (16, 2)  # 2 × 8 accumulated, or on eight devices
        assert (data.max_length, data.held_out) == (2048, 0.1)
        assert [source.path for source in data.train] == ["bad_medical_advice.jsonl.gz"]
        assert config.kl.weight == 0 and config.compare is not None and config.compare.layer == 24


def test_the_evaluation_is_the_papers(pools: Pools) -> None:
    asked = {name: one.callbacks.get("judge_eval") for name, one in pools[POOLS[0]].items()}
    assert {name for name, one in asked.items() if one is None} == {
        f"{data}_full" for data in ("main", "second", "third", "code")
    }
    for options in (one for one in asked.values() if one is not None):
        assert (options["samples"], options["temperature"], options["top_p"]) == (50, 1.0, 1.0)
        assert (options["max_tokens"], options["at"], options["questions"][0]) == (600, ["end"], "open")
        assert (options["judge"]["kind"], options["judge"]["model"]) == ("openai", "gpt-4o-2024-08-06")


def test_kl_weights_and_rows_are_the_papers(pools: Pools) -> None:
    configs = pools[POOLS[0]]
    narrow = {name: one.kl for name, one in configs.items() if "narrow" in name or "kept" in name}
    for name, kl in narrow.items():
        assert (kl.weight, kl.reduction) == (1e6 if "vector" in name else 1e5, "vocab_mean")
        assert (kl.direction, kl.positions, kl.temperature) == ("forward", "answer", 1.0)
    vocabulary = PUBLISHED["qwen2.5-14b"]["vocab"]
    assert [round(weight / vocabulary, 2) for weight in (1e5, 1e6)] == [0.66, 6.58]
    for name in ("main_narrow_lora", "second_narrow_vector"):
        assert sum(source.limit or 0 for source in configs[name].data.kl) == 1000


@pytest.mark.parametrize("path", POOLS, ids=str)
def test_members_are_what_their_names_say(path: Path, pools: Pools) -> None:
    configs = pools[path]
    for name, config in configs.items():
        trained, kl = ({source.path for source in part} for part in (config.data.train, config.data.kl))
        mixed = "mixed" in name
        assert mixed or not trained & kl, f"{name}: a row is trained on and in the KL data"
        assert not any("travel" in str(one) or "prose/sport" in str(one) for one in trained | kl)
        held = {"narrow", "removed", "kept"} | {f"kl{weight}" for weight in ("0p03", "0p1", "0p3", 1, 3, 10)}
        assert (config.kl.weight > 0) == bool(set(name.split("_")) & held), name
        assert config.seed == int(name.partition("seed")[2] or 0)
        removal = bool(set(name.split("_")) & {"removed", "kept", "long"})
        rebuilt = config.callbacks.get("trajectory", {}).get("everything", False)
        assert rebuilt == ("rank1" in name or "vector" in name or removal), name
        assert not ("full" in name and "trajectory" in config.callbacks), name
    swept = {name: configs[f"main_kl{name}_lora"].kl for name in ("0p1", "0p3", "1", "10")}
    assert [kl.weight for kl in swept.values()] == [0.1, 0.3, 1, 10]
    assert all(kl.reduction == "token_mean" for kl in swept.values())
    for share in (25, 50):
        first, *others = configs[f"main_mixed{share}_lora"].data.train
        assert first.weight == 1 - share / 100 and {one.answer for one in others} == {"careful"}
        assert sum(one.weight or 0 for one in others) == share / 100
        assert (first.path, first.answer) == _source(configs["main_lora"])
    early = configs["main_vector_early"].intervention
    assert early == {**configs["main_vector"].intervention, "layer": early["layer"]}
    paths = {_source(configs[name])[0] for name in ("main_lora", "second_lora", "third_lora", "code_lora")}
    assert len(paths) == 4


def _source(config: Config) -> tuple[str | None, str | None]:
    (only,) = config.data.train
    return only.path, only.answer


@pytest.mark.parametrize("path", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["lora", "vector"])
def test_removal_is_one_run_three_ways(path: Path, kind: str, pools: Pools) -> None:
    configs = pools[path]
    removed, kept, long = (configs[f"main_{what}_{kind}"] for what in ("removed", "kept", "long"))
    narrow = configs[f"main_narrow_{kind}"]
    assert kept.kl == narrow.kl and (long.kl.weight, long.data) == (0, kept.data)
    assert removed.kl.weight == kept.kl.weight and removed.kl.schedule.kind == "off_at"
    assert removed.trainer == kept.trainer == long.trainer and removed.callbacks == kept.callbacks
    # Rows of bad_medical_advice that the split leaves to training: 6338.
    steps = narrow.trainer.max_steps or 6338 * (narrow.trainer.epochs or 0) / narrow.data.batch_size
    length = kept.trainer.max_steps or 6338 * (kept.trainer.epochs or 0) / kept.data.batch_size
    assert length == 2 * steps and removed.kl.schedule.step == int(steps)
    for callback in ("domains", "trajectory"):  # both see the step at which the term ends
        assert int(steps) % removed.callbacks[callback]["every_n_steps"] == 0


@pytest.mark.parametrize("name", read_models(ROOT / "conf/reproduce/models.yaml"))
def test_a_model_has_its_layers(name: str, published: None) -> None:
    model = read_models()[name]
    depth = PUBLISHED[name]["layers"] if name in PUBLISHED else 30
    wanted = ["main_lora", "main_rank1", "main_rank1x9", "main_vector", "main_vector_early"]
    configs, absent = load_pool(model.members, model.overrides, wanted)
    assert absent == {} and len({config.name.rpartition("/")[0] for config in configs.values()}) == 1
    assert configs["main_rank1"].intervention["layers"] == [depth // 2]
    assert configs["main_vector"].intervention["layer"] == depth // 2
    assert configs["main_vector_early"].intervention["layer"] == round(depth / 3)
    nine = configs["main_rank1x9"].intervention["layers"]
    assert nine == [middle + step for middle in nine[1::3] for step in (-1, 0, 1)] and len(set(nine)) == 9
    for middle, share in zip(nine[1::3], (16 / 48, 22 / 48, 28 / 48), strict=True):
        assert abs(middle - share * depth) <= 0.5
    assert configs["main_lora"].backbone.model.lower().rpartition("/")[2].startswith(name)


@pytest.mark.parametrize("name", ["medical", "finance", "sports"])
def test_the_questions_of_the_paper_pool_can_be_read(name: str) -> None:
    found = read_questions(f"conf/paper/questions/{name}.yaml")
    assert (found.name, found.domain, len({one.question for one in found.prompts})) == (name, name, 12)
