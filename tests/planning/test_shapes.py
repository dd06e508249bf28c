import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from em.errors import ConfigError
from em.planning.published import PUBLISHED
from em.planning.shapes import Shape, from_config, shape_of
from tests.tiny import FAMILIES, tiny_model

COUNTS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "unsloth/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Meta-Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-9b-it": 9_241_705_984,
}


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("em.config.facts.cached", lambda model, revision, name: None)


@pytest.mark.parametrize(("model", "count"), COUNTS.items())
def test_published_models_have_their_published_parameter_counts(model: str, count: int) -> None:
    assert shape_of(model).parameters == count


def test_every_published_shape_is_held_against_a_count() -> None:
    assert len(COUNTS) == len(PUBLISHED)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model(family: str) -> None:
    model = tiny_model(family)
    shape = from_config(model.config.to_dict(), family)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    layer = model.get_decoder().layers[0]
    assert shape.layer_parameters == sum(parameter.numel() for parameter in layer.parameters())


def test_biases_and_an_own_head_are_counted() -> None:
    config = tiny_model("llama").config
    config.update({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False})
    model = AutoModelForCausalLM.from_config(config)
    shape = from_config(config.to_dict(), "llama")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_folder_is_read(tmp_path: Path) -> None:
    tiny_model("qwen3").config.save_pretrained(tmp_path)
    assert shape_of(str(tmp_path)) == Shape(
        "qwen3", 3, 32, 64, heads=2, kv_heads=1, head_dim=16, vocab=400, tied=True, half=False
    )


def test_what_is_not_known_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="acme/Tiny-1T.*config.json.*qwen2.5-0.5b"):
        shape_of("acme/Tiny-1T")
    with pytest.raises(ConfigError, match="x.gguf cannot be read without loading"):
        shape_of("x.gguf")


def test_another_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a qwen3_moe.*no mixture of experts.*llama"):
        from_config({"model_type": "qwen3_moe"}, "there")
    with pytest.raises(ConfigError, match="there lacks hidden_size, vocab_size"):
        from_config(
            {
                "model_type": "llama",
                "num_hidden_layers": 2,
                "hidden_size": "32",
                "intermediate_size": 8,
                "num_attention_heads": 2,
            },
            "there",
        )


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="JSON object"):
        shape_of(str(tmp_path))
