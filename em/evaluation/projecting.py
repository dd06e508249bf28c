"""A watched direction against verdicts: does the projection tell misaligned answers from the others?"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from em.backbone import Backbone
from em.chat import encode
from em.datamodules.rows import batched
from em.datamodules.sources import Example
from em.errors import DataError
from em.evaluation.plan import Judging
from em.interventions.base import Intervention
from em.interventions.direction import Direction
from em.measurements.behaviour import Judged, projection_auroc
from em.measurements.monitoring import projections

ROWS = 8  # answers of one forward pass


def projection_table(
    judging: Judging, backbone: Backbone, intervention: Intervention, judged: Sequence[Judged]
) -> dict[str, Any]:
    """AUROC of the projection of answers on a direction, misaligned against all other scored ones.

    Each answer is read by the model that gave it: adapted, or with the intervention off. Answers without a
    token are counted, not projected.

    Raises:
        AdapterError: the direction does not fit the backbone.
    """
    assert judging.config.direction is not None
    direction = Direction.load(judging.config.direction, backbone)
    scores: dict[str, dict[str, float]] = {str(site): {} for site in direction.vectors}
    left_out = 0
    for model in dict.fromkeys(one.answer.model for one in judged):
        examples, keys = _examples(backbone, [one for one in judged if one.answer.model == model])
        left_out += sum(one.answer.model == model for one in judged) - len(keys)
        if not examples:
            continue
        pad = int(backbone.tokenizer.pad_token_id or 0)
        context = intervention.disabled() if model == "reference" else nullcontext()
        with context:
            found = projections(
                backbone, batched(examples, ROWS, pad, range(len(examples))), direction.vectors
            )
        for site, values in found.scores.items():
            scores[str(site)] |= dict(zip(keys, values.tolist(), strict=True))
    config = judging.config
    rows = [
        {"site": site, **row}
        for site, values in scores.items()
        for row in projection_auroc(judged, values, judging.thresholds, config.resamples, config.seed)
    ]
    return {
        "direction": direction.name,
        "path": judging.config.direction,
        "sites": rows,
        "left_out": left_out,
    }


def _examples(backbone: Backbone, judged: Sequence[Judged]) -> tuple[list[Example], list[str]]:
    examples, keys = [], []
    for one in judged:
        said = {"role": "assistant", "content": one.answer.text}
        try:
            encoded = encode(backbone.tokenizer, [*one.answer.messages, said])
        except DataError:  # for example an empty answer; the caller counts it
            continue
        examples.append(Example(encoded.ids, encoded.answer, one.answer.key, one.answer.question))
        keys.append(one.answer.key)
    return examples, keys
