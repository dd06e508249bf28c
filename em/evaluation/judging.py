"""Judge answers, each once: what an earlier attempt judged is read back."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em.backbone import Backbone
from em.datamodules.answers import Answer
from em.evaluation.verdicts import VerdictFile
from em.judges.base import Domain, Judge, Metric, Verdict
from em.judges.panel import Panel
from em.judges.sentinels import Cached, drift, judge_key, recall, remember, score_sentinels
from em.progress import say


def judge_answers(
    judge: Judge,
    answers: Sequence[Answer],
    metrics: Sequence[Metric],
    path: Path,
    backbone: Backbone | None = None,
    domain: Domain | None = None,
) -> tuple[list[Verdict], dict[str, Any], list[dict[str, Any]]]:
    """A verdict for every answer, in order, what the judge says of itself, and its drift.

    A hosted judge may change from one day to the next: each one first scores the sentinels anew, which is
    compared with earlier runs. When nothing is left to judge, nothing is asked.

    Args:
        path: where verdicts are written one by one; those that are there are not asked for again, but for
            those that a fault of the endpoint left without a score.
        backbone: for judges that read the model under study; with its interventions off.

    Raises:
        EmError: the judge cannot be used, or the file belongs to another one.
    """
    return asyncio.run(_judge(judge, answers, metrics, path, backbone, domain))


def check_judge(judge: Judge, domain: Domain | None) -> None:
    """Prepare what needs no model in memory, and close it again: a missing key is found before hours of work.

    Raises:
        JudgeError: no key, an endpoint that cannot be reached …
    """
    members = list(judge.members.values()) if isinstance(judge, Panel) else [judge]
    for one in members:
        if not one.reads_backbone:
            asyncio.run(_prepared_once(one, domain))


async def _prepared_once(judge: Judge, domain: Domain | None) -> None:
    try:
        await judge.prepare(None, domain)
    finally:
        await judge.close()


async def _judge(
    judge: Judge,
    answers: Sequence[Answer],
    metrics: Sequence[Metric],
    path: Path,
    backbone: Backbone | None,
    domain: Domain | None,
) -> tuple[list[Verdict], dict[str, Any], list[dict[str, Any]]]:
    judge.check_metrics(metrics)
    try:
        await judge.prepare(backbone, domain)
        judge.check_metrics(metrics)  # again: some judges know only now what they can score
        described = plain(judge)
        asked = {"metrics": list(metrics), "domain": None if domain is None else domain.words}
        file = VerdictFile(path, {**_lasting(described), **asked})
        known = {key: verdict for key, verdict in file.read().items() if not passing(verdict)}
        # Equal answers have one key and one verdict.
        left = list({one.key: one for one in answers if one.key not in known}.values())
        if known and left:
            say(f"{len(answers) - len(left)} of {len(answers)} answers are judged already")

        def keep(number: int, verdict: Verdict) -> None:
            known[left[number].key] = verdict
            file.append(left[number].key, verdict)

        drifted: list[dict[str, Any]] = []
        if left:
            for hosted in _hosted(judge):
                drifted += await _drift(hosted)
            await judge.judge(left, metrics, keep)
        return [known[one.key] for one in answers], described, drifted
    finally:
        await judge.close()


def _hosted(judge: Judge) -> list[Judge]:
    members = list(judge.members.values()) if isinstance(judge, Panel) else [judge]
    return [one for one in members if isinstance(one, Cached)]


async def _drift(judge: Judge) -> list[dict[str, Any]]:
    """How far a hosted judge's scores of the sentinels are from those of earlier runs."""
    now = await score_sentinels(judge)
    found = drift(now, recall(None, judge_key(judge)))
    remember(None, now)
    for row in found:
        if row["failed"]:
            names = ", ".join(row["failed"])
            say(f"judge {judge.name}: sentinels outside of their {row['metric']} band: {names}")
    return found


def _lasting(described: dict[str, Any]) -> dict[str, Any]:
    """Without what a judge may say in other words the next time."""
    return {
        key: _lasting(value) if isinstance(value, dict) else value
        for key, value in described.items()
        if key != "why"
    }


PASSING = {
    *("timeout", "connection", "rate_limit", "server_error", "spend_limit", "bad_response", "no_logprobs"),
}


def passing(verdict: Verdict) -> bool:
    """Whether a score is missing for a reason that another try may remove."""
    return any(reason in PASSING for reason in verdict.reasons()) or any(
        map(passing, verdict.members.values())
    )


def plain(judge: Judge) -> dict[str, Any]:
    """What a judge says of itself, as JSON gives it back, with its name."""
    made: dict[str, Any] = json.loads(json.dumps({"name": judge.name, **judge.describe()}))
    return made
