"""Every file in conf/ is a valid configuration with its launch command, and every callback lists its keys."""

import importlib
import os
import re
from pathlib import Path

import pytest

from em.callbacks.base import MeasurementCallback
from em.config import Experiment, Suite, load, resolve
from em.config.build import kinds
from em.config.data_files import DATA_VARIABLE
from em.errors import ConfigError

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml"))
BASE = Path("conf/base.yaml")
# base.yaml has no data of its own: it is checked with the least that makes it an experiment.
BUNDLED = "data.train=[{path: data/advice/kitchen.jsonl, answer: careless}]"
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


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_file_is_a_valid_configuration(path: Path) -> None:
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
