"""Answers that are kept as they are made: the same command goes on where a killed one stopped."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from em.backbone import Backbone
from em.datamodules.answers import Answer
from em.generation.answer_file import AnswerFile
from em.generation.endpoint import Endpoint, answer_all
from em.generation.local import generate
from em.generation.requests import Done, Request, check_distinct, ignore
from em.generation.sampling import Sampling
from em.progress import say

__all__ = ["AnswerFile", "answers_for", "settings_of"]


def answers_for(
    path: Path | str,
    source: Backbone | Endpoint,
    requests: Sequence[Request],
    sampling: Sampling,
    model: str,
    batch_size: int = 128,
    about: Mapping[str, Any] | None = None,
    done: Done = ignore,
) -> list[Answer]:
    """The answers to all requests: those that the file has, and the others made now and added to it.

    Call it outside of an event loop (inside of one: `AnswerFile` and `Endpoint.generate`).

    Args:
        source: a backbone with the intervention attached and on, or an endpoint.
        model: name of who answers; a file may hold several models.
        about: what else must be the same to go on, above all a fingerprint of the adapter, which the
            backbone's own does not cover.
        done: called with each new answer.

    Returns:
        The answers in the order of the requests.

    Raises:
        RunError: the file has answers of this model that were made otherwise, or cannot be written.
        GenerationError: see `em.generation.local` and `em.generation.endpoint`.
    """
    check_distinct(requests)
    with AnswerFile(path) as file:
        file.claim(model, {**settings_of(source, sampling), **(about or {})})
        missing = file.missing(requests, model)
        if len(missing) < len(requests):
            say(f"{file.path}: has {len(requests) - len(missing)} of {len(requests)} answers of {model}")
        if missing:
            file.lock()
            _make(file, source, missing, sampling, model, batch_size, done)
        stored = file.stored(model)
    return [stored[request.key] for request in requests]


def _make(
    file: AnswerFile,
    source: Backbone | Endpoint,
    requests: Sequence[Request],
    sampling: Sampling,
    model: str,
    batch_size: int,
    done: Done,
) -> None:
    def keep(answer: Answer) -> None:
        file.append(answer)
        done(answer)

    if isinstance(source, Endpoint):
        answer_all(source, requests, sampling, model, keep)
    else:
        generate(source, requests, sampling, model, batch_size, keep)


def settings_of(source: Backbone | Endpoint, sampling: Sampling) -> dict[str, Any]:
    """What must be the same for answers to belong together; prompts are compared one by one."""
    settings = {**asdict(sampling), "stop": list(sampling.stop)}
    if isinstance(source, Endpoint):
        return {**settings, **source.describe()}
    template = source.tokenizer.get_chat_template()
    return {
        **settings,
        "source": "local",
        "fingerprint": source.fingerprint,
        "dtype": str(source.model.dtype).removeprefix("torch."),
        "template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
    }
