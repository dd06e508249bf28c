"""Answers of the model under study and of its reference, resumable and shared over processes."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path

import torch

from em.backbone import Backbone
from em.datamodules.answers import Answer
from em.errors import GenerationError, RunError
from em.evaluation.plan import Plan
from em.evaluation.processes import Processes
from em.evaluation.stored import ANSWERS
from em.generation.endpoint import Endpoint
from em.generation.requests import Request, share
from em.generation.stored import answers_for, settings_of
from em.interventions.base import Intervention
from em.loading import cache_folder
from em.progress import say

REFERENCE = "reference"


def gather_answers(
    plan: Plan,
    backbone: Backbone | None,
    intervention: Intervention | None,
    name: str,
    folder: Path,
    processes: Processes,
) -> list[Answer]:
    """Every answer, of the reference first, in the order of the requests; on every process.

    Each process keeps its part in a file of its own until all are together.

    Raises:
        EmError: the model cannot answer, or the folder holds other answers.
    """
    requests = share(plan.requests, processes.rank, processes.world_size)
    rank = f".rank{processes.rank}" if processes.rank else ""
    path = (folder / ANSWERS).with_suffix(f"{rank}.jsonl")
    own = _own(plan, backbone, intervention, name, path, requests)
    theirs = _reference(plan, backbone, intervention, path, requests, processes)
    order = {request.key: at for at, request in enumerate(plan.requests)}
    answers = list(chain.from_iterable(processes.gather([*theirs, *own])))
    answers.sort(key=lambda one: (one.model != REFERENCE, order[one.questions, one.prompt, one.sample]))
    return answers


def _own(
    plan: Plan,
    backbone: Backbone | None,
    intervention: Intervention | None,
    name: str,
    path: Path,
    requests: Sequence[Request],
) -> list[Answer]:
    about = {"adapter": "" if intervention is None else state_digest(intervention)}
    source = backbone if plan.config.endpoint is None else _endpoint(plan, plan.config.endpoint.model)
    if source is None:
        raise GenerationError("there is no model to ask; load the run, or set endpoint")
    merged = nullcontext() if intervention is None or source is not backbone else intervention.merged()
    with merged:
        return answers_for(path, source, requests, plan.sampling, name, plan.config.batch_size, about)


def _reference(
    plan: Plan,
    backbone: Backbone | None,
    intervention: Intervention | None,
    path: Path,
    requests: Sequence[Request],
    processes: Processes,
) -> list[Answer]:
    if not plan.config.reference:
        return []
    size, endpoint = plan.config.batch_size, plan.config.endpoint
    if endpoint is not None and endpoint.reference_model is not None:
        served = _endpoint(plan, endpoint.reference_model)
        return answers_for(path, served, requests, plan.sampling, REFERENCE, size)
    if backbone is None or intervention is None:
        raise GenerationError("reference: there is no model to ask; set endpoint.reference_model")
    with intervention.disabled():
        if processes.world_size > 1:
            return answers_for(path, backbone, requests, plan.sampling, REFERENCE, size)
        shared = cache_folder() / "answers" / f"{_asked(plan, backbone)}.jsonl"
        try:
            with _locked(shared):
                return answers_for(shared, backbone, requests, plan.sampling, REFERENCE, size)
        except RunError as error:
            say(f"{error}. The reference is asked again for {path.parent} alone.")
            return answers_for(path, backbone, requests, plan.sampling, REFERENCE, size)


def _endpoint(plan: Plan, model: str) -> Endpoint:
    given = plan.config.endpoint
    assert given is not None
    return Endpoint(given.base_url, model, given.key_env, given.concurrency, given.timeout)


def _asked(plan: Plan, backbone: Backbone) -> str:
    """Equal for evaluations that ask the reference the same in the same way, so that it answers once."""
    prompts = [
        [one.questions, one.prompt, list(one.messages)] for one in chain(*(s.prompts for s in plan.sets))
    ]
    told = json.dumps(
        [settings_of(backbone, plan.sampling), str(backbone.device.type), prompts], sort_keys=True
    )
    return hashlib.sha256(told.encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process asks the same reference the same questions."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@torch.no_grad()
def state_digest(intervention: Intervention) -> str:
    """Identifies what is trained: options, and a sample of every parameter."""
    told = hashlib.sha256(json.dumps(intervention.options(), sort_keys=True, default=str).encode())
    for name, value in sorted(intervention.gathered().items()):
        flat = value.flatten()
        sample = flat[:: max(1, flat.numel() // 256)].float()
        told.update(name.encode() + sample.numpy().tobytes() + str(float(flat.double().sum())).encode())
    return told.hexdigest()[:16]
