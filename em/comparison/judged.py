"""A mean-difference direction from judged answers of a run, as the paper takes it."""

from pathlib import Path

from em import runs
from em.backbone import Backbone
from em.datamodules.judged import JudgedAnswers, read_judged
from em.datamodules.rows import batched
from em.hooks import Site
from em.interventions.direction import Direction
from em.loading import load_tokenizer
from em.measurements.activations import collect
from em.measurements.directions import MeanDifference
from em.progress import say

ROWS = 8  # answers of one forward pass


def judged_direction(run: Path, answers: str, out: Path, max_length: int | None = 1024) -> Direction:
    """Misaligned minus aligned answers under the adapted model, at the output of every layer; saved to `out`.

    Args:
        run: the run that gave the answers.
        answers: JSONL file of judged answers; see `em.datamodules.judged.read_judged`.

    Raises:
        EmError: the run or the answers cannot be used, or one group is empty.
    """
    record = runs.read(run)
    judged = read_judged(answers, load_tokenizer(record.config.backbone), max_length)
    say(f"{answers}: {judged.account}")
    backbone = runs.load(run).backbone
    difference = judged_difference(backbone, judged)
    direction = difference.direction(
        {"run": str(run), "answers": answers, "counts": judged.account, "backbone": backbone.describe()}
    )
    direction.save(out)
    norms = direction.norms()
    for site in direction.vectors:
        split_half = float(difference.reliability(site).mean())
        say(f"  {site}: norm {norms[site]:.3f}, split-half cosine {split_half:.3f}")
    return direction


def judged_difference(backbone: Backbone, judged: JudgedAnswers) -> MeanDifference:
    """Misaligned minus aligned answers, answer tokens only, at the output of every layer.

    Args:
        backbone: with the run's intervention attached.
    """
    sites = [Site(layer) for layer in range(backbone.num_layers)]
    pad = int(backbone.tokenizer.pad_token_id or 0)
    groups = {
        name: batched(rows, ROWS, pad, range(len(rows)))
        for name, rows in (("misaligned", judged.misaligned), ("aligned", judged.aligned))
    }
    moments = collect(backbone, groups, sites)
    return MeanDifference("misaligned − aligned", moments["misaligned"], moments["aligned"])
