"""What a configuration check needs to know of a model, without loading it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em.errors import ConfigError


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model."""

    num_layers: int
    hidden_size: int
    vocab_size: int


ALIASES = {"smollm2": ModelFacts(num_layers=30, hidden_size=576, vocab_size=49152)}
NAMES = (  # of the three sizes; the second spelling is GPT-2's
    ("num_hidden_layers", "n_layer"),
    ("hidden_size", "n_embd"),
    ("vocab_size",),
)


def model_facts(model: str, revision: str | None = None) -> ModelFacts | None:
    """The sizes of a model by alias, local folder or hub id; None where they are not known offline.

    Raises:
        ConfigError: a config.json that is there cannot be read.
    """
    if model in ALIASES:
        return ALIASES[model]
    if model.endswith(".gguf"):
        return None
    found = own_config(model, revision)
    if found is None:
        return None
    config, _ = found
    nested = config.get("text_config")  # a vision-language model
    sizes = _sizes(config) or (_sizes(nested) if isinstance(nested, dict) else None)
    return ModelFacts(*sizes) if sizes else None


def own_config(model: str, revision: str | None) -> tuple[dict[str, Any], Path] | None:
    """The config.json of a local folder or of a hub model that was downloaded before, and where it is.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    folder = Path(model).expanduser()
    path = folder / "config.json" if folder.is_dir() else cached(model, revision, "config.json")
    if path is None or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"backbone.model: {path} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"backbone.model: {path} does not hold a JSON object")
    return config, path


def cached(model: str, revision: str | None, name: str) -> Path | None:
    """A file of a hub model, where it has been downloaded before."""
    # Lazy: the import takes 0.2 s, which an alias or a local folder should not pay.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, name, revision=revision)
    except HFValidationError:  # not a hub id; a missing local path is reported by the rules
        return None
    return Path(found) if isinstance(found, str) else None


def _sizes(config: dict[str, Any]) -> list[int] | None:
    found = [next((config[name] for name in names if name in config), None) for names in NAMES]
    sizes = [value for value in found if isinstance(value, int)]
    return sizes if len(sizes) == len(NAMES) else None
