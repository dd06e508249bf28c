"""LoRA folders in the PEFT format, read as what `Lora` holds exactly; more is refused by its key."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from em.backbone import Backbone
from em.errors import AdapterError
from em.interventions._published import Published, check_layer, check_values, tensors_only
from em.interventions.base import RECORD, read_record, read_tensors
from em.interventions.lora import ALL_MODULES, PEFT_CONFIG, PEFT_WEIGHTS

PICKLED = "adapter_model.bin"
USED = (
    *("r", "lora_alpha", "use_rslora", "lora_dropout", "base_model_name_or_path", "revision"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("peft_type", "task_type", "bias", "init_lora_weights"),
)
# About how the adapter was made, or about something that is refused where it is switched on.
WITHOUT_EFFECT = (
    *("auto_mapping", "inference_mode", "peft_version", "runtime_config", "eva_config", "loftq_config"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
)
# Others of PEFT change the base model's weights too, so their adapters do not fit the published weights.
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")
NAME = re.compile(
    r"base_model\.model\.(?P<module>(?:.*\.)?layers\.(?P<layer>\d+)\.(?:.*\.)?(?P<last>\w+))\."
    r"lora_(?P<side>[AB])\.weight"
)


def read_lora(folder: Path) -> Published:
    """A folder with adapter_config.json and adapter_model.safetensors, or .bin of plain tensors.

    Raises:
        AdapterError: a file is missing or damaged, or the adapter is more than a plain LoRA of one rank;
            names the key.
    """
    path = folder / PEFT_CONFIG
    config = _config(path)
    _refuse_more(config, path)
    weights = next((file for name in (PEFT_WEIGHTS, PICKLED) if (file := folder / name).is_file()), None)
    if weights is None:
        raise AdapterError(f"{folder}: has no {PEFT_WEIGHTS} and no {PICKLED}; is the download complete?")
    loaded = read_tensors(weights) if weights.name == PEFT_WEIGHTS else tensors_only(weights)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise AdapterError(f"{weights}: expected a dict of tensors")
    values, layers, modules = _by_module(loaded, weights)
    check_values(values, weights)
    component = {
        "kind": "lora",
        "r": _positive(config, "r", path, whole=True),
        "alpha": _positive(config, "lora_alpha", path),
        "rslora": bool(config.get("use_rslora")),
        "modules": modules,
        "layers": layers,
        "dropout": _dropout(config, path),
    }
    ours = (folder / RECORD).is_file()
    return Published(
        component,
        values,
        [path, weights],
        config.get("base_model_name_or_path") or None,
        config.get("revision") or None,
        config,
        read_record(folder)["backbone"] if ours else None,
    )


def check_targets(published: Published, backbone: Backbone) -> None:
    """Whether the weights are those of all modules that the adapter's own configuration names in this model.

    Raises:
        AdapterError: some are missing, or are there unasked; names them.
    """
    assert published.targets is not None
    path = published.files[0]
    for layer in published.component["layers"]:
        check_layer(layer, backbone, path)
    config = SimpleNamespace(**{key: published.targets.get(key) for key in USED}, target_parameters=None)
    if config.target_modules == "all-linear":
        config.target_modules = r".*\.layers\..*"
    prefixes = {id(module): name for name, module in backbone.model.named_modules()}
    linear = [
        f"{prefixes[id(layer)]}.{name}"
        for layer in backbone.layers
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        expected = {name for name in linear if check_target_module_exists(config, name)}
    except (re.error, TypeError) as error:
        raise AdapterError(f"{path}: target_modules cannot be understood ({error})") from error
    found = {name.rsplit(".", 1)[0] for name in published.values}
    if expected != found:
        missing, unasked = sorted(expected - found), sorted(found - expected)
        parts = [f"lack {', '.join(missing[:3])}"] if missing else []
        parts += [f"hold {', '.join(unasked[:3])} unasked"] if unasked else []
        raise AdapterError(
            f"{path}: target_modules and layers do not fit the weights, which {' and '.join(parts)} (of "
            f"{backbone.name}); is the download complete, and is this the model it was made for (--model)?"
        )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: does not hold a JSON object")
    return config


def _refuse_more(config: dict[str, Any], path: Path) -> None:
    """Everything but a plain LoRA: what is unknown here is refused too, unless it is off."""
    problems = [
        f"{key}: {value!r}" for key, value in config.items() if key not in (*USED, *WITHOUT_EFFECT) and value
    ]
    expected = {"peft_type": ("LORA",), "task_type": (None, "CAUSAL_LM"), "bias": (None, "none")}
    problems += [
        f"{key}: {config.get(key)!r}" for key, known in expected.items() if config.get(key) not in known
    ]
    start = config.get("init_lora_weights", True)
    if start is not None and start not in INITIALISATIONS:
        problems.append(f"init_lora_weights: {start!r}, which changes the weights of the base model too")
    if not isinstance(config.get("target_modules"), str | list) or not config["target_modules"]:
        problems.append(f"target_modules: {config.get('target_modules')!r}")
    if problems:
        shown = "; ".join(one if len(one) < 120 else f"{one[:117]}…" for one in problems)
        raise AdapterError(
            f"{path}: em holds plain LoRA of one rank and alpha, so it cannot hold {shown}. Merge the "
            "adapter into its model with PEFT and give that folder as backbone.model"
        )


def _by_module(loaded: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[int], list[str]]:
    """Values by the names that `Lora` has, and the layers and modules whose product they are."""
    values: dict[str, Tensor] = {}
    pairs: dict[int, set[str]] = {}
    for name, value in loaded.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise AdapterError(
                f"{path}: holds {name!r}; em holds lora_A and lora_B of linear modules in decoder layers only"
            )
        values[f"{match['module']}.lora_{match['side']}"] = value.detach()
        pairs.setdefault(int(match["layer"]), set()).add(match["last"])
    if not values:
        raise AdapterError(f"{path}: holds no tensors")
    modules = set().union(*pairs.values())
    uneven = [
        f"layer {layer} lacks {', '.join(sorted(modules - has))}"
        for layer, has in pairs.items()
        if has != modules
    ]
    if uneven:
        raise AdapterError(
            f"{path}: em changes the same modules in every layer, but here {'; '.join(sorted(uneven)[:3])}"
        )
    known = [name for name in ALL_MODULES if name in modules]
    return values, sorted(pairs), known + sorted(modules - set(known))


def _positive(config: dict[str, Any], key: str, path: Path, whole: bool = False) -> Any:
    value: Any = config.get(key)
    fits = isinstance(value, int) if whole else isinstance(value, int | float) and math.isfinite(value)
    if isinstance(value, bool) or not fits or not value > 0:
        raise AdapterError(
            f"{path}: {key}: expected a {'whole ' if whole else ''}number above 0, got {value!r}"
        )
    return value


def _dropout(config: dict[str, Any], path: Path) -> float:
    value: Any = config.get("lora_dropout") or 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise AdapterError(f"{path}: lora_dropout: expected at least 0 and below 1, got {value!r}")
    return float(value)
