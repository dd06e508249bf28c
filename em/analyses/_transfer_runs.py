"""What a transfer takes from its runs: how they were asked, and what they answered."""

import hashlib
import json
from pathlib import Path
from typing import Any

from em.errors import RunError
from em.evaluation.answering import REFERENCE
from em.evaluation.plan import Plan
from em.evaluation.stored import JUDGED, latest
from em.files import digest, write_text
from em.runs import RunRecord


def judge_eval(name: str, record: RunRecord) -> dict[str, Any]:
    """The options of a run's evaluation at its end.

    Raises:
        RunError: it has none.
    """
    for key, options in record.config.callbacks.items():
        usual = [] if options.get("every_n_steps") else ["end"]
        at = options.get("at")
        if options.get("kind", key) == "judge_eval" and "end" in (usual if at is None else at):
            schedule = ("kind", "at", "every_n_steps", "on_error", "stop_above", "stop_questions")
            return {option: value for option, value in options.items() if option not in schedule}
    raise RunError(f"{name}: was not asked anything at its end; train it with callbacks.judge_eval")


def asked_at_end(name: str, record: RunRecord) -> Path:
    """The folder of that evaluation.

    Raises:
        RunError: there is none.
    """
    folder = latest(record.directory.path)
    if folder is None:
        raise RunError(f"{name}: was not asked anything at its end, so it has no misaligned answers")
    return folder


def own_answers(judged: Path, own: Path) -> Path:
    """Write a run's judged answers without the reference's, which stand in the same file.

    Raises:
        RunError: they cannot be read.
    """
    try:
        lines = judged.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["model"] != REFERENCE]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{judged}: cannot be read as judged answers ({error}); evaluate again") from error
    write_text(own, "".join(f"{line}\n" for line in kept))
    return own


def identity(
    records: dict[str, RunRecord], plans: dict[str, Plan], asked: dict[str, Path], settings: list[Any]
) -> str:
    """Changes with whatever an answer depends on, so that old answers are not taken for new ones.

    That is a run that was trained again, answers that were judged again (and so another direction), what is
    asked, and where directions act.
    """
    told_of = [[name, one.manifest.get("started"), one.manifest.get("norm")] for name, one in records.items()]
    plans_told = {name: [plan.settings(), plan.config.judge] for name, plan in plans.items()}
    judged = {name: digest(folder / JUDGED) for name, folder in asked.items()}
    text = json.dumps([told_of, plans_told, judged, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
