"""The generation rows: `benchmarks.generation` with an adapter that both sides share."""

from pathlib import Path
from typing import Any

from benchmarks import generation
from benchmarks.settings import Settings
from em.config.schema import BackboneConfig
from em.loading import load_backbone


def prepare(settings: Settings, work: Path) -> dict[str, Any]:
    """The LoRA under which both sides write."""
    generation.save_adapter(work / "adapter", load_backbone(BackboneConfig(model="smollm2")))
    return {}


def ours(settings: Settings, work: Path) -> dict[str, Any]:
    sizes = settings.sizes
    questions = generation.questions_of(sizes["questions"])
    return generation.ours(questions, sizes["samples"], sizes["tokens"], work / "adapter")


def peer(settings: Settings, work: Path) -> dict[str, Any]:
    sizes = settings.sizes
    questions = generation.questions_of(sizes["questions"])
    return generation.peer(questions, sizes["samples"], sizes["tokens"], work / "adapter")
