import json
from pathlib import Path

import huggingface_hub
import pytest

from em.config import ModelFacts, model_facts
from em.errors import ConfigError

SIZES = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 64}


def folder_with(tmp_path: Path, text: str) -> str:
    (tmp_path / "config.json").write_text(text)
    return str(tmp_path)


def test_alias() -> None:
    assert model_facts("smollm2") == ModelFacts(30, 576, 49152)


@pytest.mark.parametrize(
    "config", [SIZES, {"text_config": SIZES}, {"n_layer": 2, "n_embd": 8, "vocab_size": 64}]
)
def test_local_folder(tmp_path: Path, config: dict) -> None:
    assert model_facts(folder_with(tmp_path, json.dumps(config))) == ModelFacts(2, 8, 64)


@pytest.mark.parametrize(
    "model", ["x.gguf", "no/such/local/folder", "../up", "", "someone/never-downloaded-this"]
)
def test_unknown(model: str) -> None:
    assert model_facts(model) is None


def test_incomplete_config_is_unknown_and_a_broken_one_an_error(tmp_path: Path) -> None:
    assert model_facts(folder_with(tmp_path, "{}")) is None
    for text in ("{", "[]"):
        with pytest.raises(ConfigError, match=r"^backbone.model: .*config\.json"):
            model_facts(folder_with(tmp_path, text))


def test_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_with(tmp_path, json.dumps(SIZES))

    def cached(model: str, name: str, revision: str | None) -> str:
        assert (model, name, revision) == ("a/b", "config.json", "v1")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert model_facts("a/b", "v1") == ModelFacts(2, 8, 64)
