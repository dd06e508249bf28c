"""What the types of the settings of an evaluation allow, but an evaluation cannot do."""

from em.config.schema import EvaluateConfig

LEAST = {"samples": 1, "max_tokens": 1, "batch_size": 1, "any_of": 1, "resamples": 100}


def evaluation_problems(config: EvaluateConfig, prefix: str = "") -> list[str]:
    """Problem lines; `prefix` stands before the keys."""
    lines = [
        f"{prefix}{name}: expected at least {least}, got {getattr(config, name)}"
        for name, least in LEAST.items()
        if getattr(config, name) is not None and getattr(config, name) < least
    ]
    if config.temperature < 0:
        lines.append(f"{prefix}temperature: expected at least 0, got {config.temperature}")
    if not 0 < config.top_p <= 1:
        lines.append(f"{prefix}top_p: expected above 0 and at most 1, got {config.top_p}")
    if not config.questions or len(set(config.questions)) < len(config.questions):
        lines.append(f"{prefix}questions: expected one or more sets, each once, got {config.questions}")
    if not {"aligned", "coherent"} <= set(config.metrics):
        lines.append(f"{prefix}metrics: aligned and coherent are needed for the rates, got {config.metrics}")
    if config.any_of is not None and config.any_of > config.samples:
        lines.append(f"{prefix}any_of: at most samples = {config.samples}, got {config.any_of}")
    if config.temperature == 0 and config.samples > 1:
        lines.append(f"{prefix}samples: with temperature 0 all answers are the same; set samples to 1")
    for name in ("aligned_below", "coherent_above"):
        if not 0 <= getattr(config, name) <= 100:
            lines.append(f"{prefix}{name}: expected 0 to 100, got {getattr(config, name)}")
    if config.endpoint is not None and not (config.endpoint.base_url and config.endpoint.model):
        lines.append(f"{prefix}endpoint: base_url and model are both needed")
    return lines
