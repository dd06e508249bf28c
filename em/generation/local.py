"""Answers of a backbone in this process, with whatever interventions are attached to it and on.

Guaranteed: an answer is a function of the model, the prompt's turns, the sample number and the sampling
settings. Batch size, order and the other requests change nothing but the rounding of the logits (about 3e-5
in float32, 1e-2 in bfloat16), because matrix products of other shapes add up in another order. A token
changes only when a random number falls into such a gap, and then what follows it differs too: with SmolLM2 in
float32 about one answer of 600 tokens in 700, more in bfloat16. Another device or number of threads rounds
differently as well.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from em.backbone import Backbone
from em.chat import prompt_ids
from em.datamodules.answers import Answer
from em.errors import GenerationError
from em.generation.decode import Ending, Row, decode, end_tokens
from em.generation.requests import Done, Request, ignore
from em.generation.sampling import Sampling
from em.progress import Task, say


def generate(
    backbone: Backbone,
    requests: Sequence[Request],
    sampling: Sampling,
    model: str,
    batch_size: int = 128,
    done: Done = ignore,
    progress: bool = True,
) -> list[Answer]:
    """Answer every request.

    Gradients, the modes of all modules and the global random state are left as they are.

    Args:
        model: name of who answers.
        batch_size: answers written at once; halved as often as the device runs out of memory.
        done: called with each answer as soon as it ends.
        progress: show how far it is.

    Returns:
        The answers in the order of the requests.

    Raises:
        GenerationError: a prompt is too long for the model, the backbone is sharded, the output is not
            finite, or the memory does not suffice for one answer.
        DataError: the chat template refuses a prompt.
    """
    if batch_size < 1:
        raise GenerationError(f"batch_size is {batch_size}; it must be at least 1")
    if backbone.sharded:
        raise GenerationError(
            "trainer.strategy=fsdp2 has split the model over processes, but only a whole one can answer; "
            "leave them out of training and evaluate from the run directory afterwards"
        )
    rows = _rows(backbone, requests, sampling)
    writer = _Writer(backbone, sampling, model, done)
    with Task(f"answers of {model}", len(rows), shown=progress) as task, _evaluating(backbone):
        writer.write(rows, batch_size, task)
    return [writer.answers[at] for at in range(len(requests))]


class _Writer:
    """Writes batches and collects their answers."""

    def __init__(self, backbone: Backbone, sampling: Sampling, model: str, done: Done):
        self.backbone, self.sampling, self.model, self.done = backbone, sampling, model, done
        self.ending = Ending(backbone.tokenizer, end_tokens(backbone), sampling)
        self.answers: dict[int, Answer] = {}
        self._tokens, self._began = 0, time.monotonic()

    def write(self, rows: list[Row], size: int, task: Task) -> None:
        """Longest prompts first, so that memory runs out at the beginning or never."""
        first = {row.prompt_ids: row.at for row in reversed(rows)}  # rows with the same prompt go together
        pending = sorted(rows, key=lambda row: (-len(row.prompt_ids), first[row.prompt_ids], row.at))
        while pending and not self._fits(pending, size, task):
            count = min(size, len(pending))
            if count == 1:
                raise GenerationError(
                    f"{pending[0].request.name}: the device has too little memory for a single answer; lower "
                    "max_tokens, load the model in bfloat16, or use a smaller one"
                )
            pending = [row for row in pending if not row.finish]
            for row in pending:
                row.written.clear()
            size = count // 2
            say(f"answers of {self.model}: out of memory with {count} at once; going on with {size}")

    def _fits(self, rows: list[Row], size: int, task: Task) -> bool:
        """Write answers; false when memory ran out, with some of them perhaps finished."""
        step = partial(self._step, task)
        try:
            decode(self.backbone, rows, size, self.sampling, self.ending, step)
            return True
        except torch.OutOfMemoryError:
            pass  # leave the clause first: the error holds the batch's tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False

    def _step(self, task: Task, ended: list[Row], tokens: int) -> None:
        self._tokens += tokens
        for row in ended:
            answer = row.request.answered(row.text, row.finish, len(row.written), self.model)
            self.answers[row.at] = answer
            self.done(answer)
        pace = self._tokens / max(1e-9, time.monotonic() - self._began)
        task.advance(len(ended), f"{pace:.0f} tokens/s")


def _rows(backbone: Backbone, requests: Sequence[Request], sampling: Sampling) -> list[Row]:
    """The tokenised requests, all checked before anything is written."""
    limit = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    known: dict[str, tuple[int, ...]] = {}
    rows = []
    for at, request in enumerate(requests):
        text = json.dumps([dict(turn) for turn in request.prompt.messages])
        if text not in known:
            known[text] = tuple(prompt_ids(backbone.tokenizer, request.prompt.messages, request.name))
        row = Row(at, request, known[text])
        if limit is not None and len(row.prompt_ids) + sampling.max_tokens > limit:
            raise GenerationError(
                f"{request.name}: the prompt has {len(row.prompt_ids)} tokens, which with max_tokens = "
                f"{sampling.max_tokens} is more than the {limit} that {backbone.name} can read; lower "
                "max_tokens or shorten the prompt"
            )
        rows.append(row)
    return rows


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Context: every module in evaluation mode, which switches dropout and checkpointing off."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
