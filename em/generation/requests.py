"""What is to be answered: one request for each sample of each prompt, with random numbers of its own."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from em.datamodules.answers import Answer
from em.datamodules.questions import Prompt
from em.errors import GenerationError
from em.hooks import keyed_seed

Done = Callable[[Answer], None]


def ignore(answer: Answer) -> None:
    """Of `generate`: nobody wants to know what is done."""


@dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    Args:
        prompt: what is asked.
        sample: number of the answer to this prompt, from 0.
    """

    prompt: Prompt
    sample: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Question set, prompt and sample: no other request of one model has the same."""
        return self.prompt.questions, self.prompt.prompt, self.sample

    @property
    def name(self) -> str:
        """For messages to the user."""
        return f"{self.prompt.questions}/{self.prompt.prompt}, sample {self.sample}"

    def seed(self, seed: int) -> int:
        """Key of this answer's random numbers: the turns of the prompt and the sample, nothing else.

        So an answer can be made again alone, in any batch, order or question set; and all models get the same
        random numbers for it, which takes noise out of their comparison.
        """
        turns = json.dumps([dict(turn) for turn in self.prompt.messages], sort_keys=True)
        return keyed_seed(seed, "generate", hashlib.sha256(turns.encode()).hexdigest(), self.sample)

    def answered(self, text: str, finish: str, tokens: int, model: str) -> Answer:
        """The finished answer."""
        prompt = self.prompt
        return Answer(
            tuple(dict(turn) for turn in prompt.messages),
            text,
            prompt.question,
            prompt.prompt,
            prompt.questions,
            self.sample,
            model,
            finish,
            tokens,
        )


def requests_for(prompts: Iterable[Prompt], samples: int) -> list[Request]:
    """`samples` requests for each prompt, prompt by prompt.

    Raises:
        GenerationError: no samples are wanted, or two prompts of a set have one id.
    """
    if samples < 1:
        raise GenerationError(f"samples: {samples} answers to each prompt are wanted; ask for at least 1")
    requests = [Request(prompt, sample) for prompt in prompts for sample in range(samples)]
    check_distinct(requests)
    return requests


def check_distinct(requests: Sequence[Request]) -> None:
    """Refuse requests whose answers could not be told apart.

    Raises:
        GenerationError: names the first.
    """
    seen = set()
    for request in requests:
        if request.key in seen:
            raise GenerationError(f"{request.name}: is asked for twice; give every prompt an id of its own")
        seen.add(request.key)


def share(requests: Sequence[Request], rank: int, world_size: int) -> list[Request]:
    """The part of one of several processes, balanced by the length of the prompts, in the given order.

    Longest first, dealt out there and back (0 1 2 2 1 0 …); the parts are disjoint and leave nothing out.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not within 0 to {world_size - 1}")
    longest = sorted(range(len(requests)), key=lambda at: (-_length(requests[at]), at))
    there_and_back = [*range(world_size), *reversed(range(world_size))]
    mine = [at for turn, at in enumerate(longest) if there_and_back[turn % (2 * world_size)] == rank]
    return [requests[at] for at in sorted(mine)]


def _length(request: Request) -> int:
    return sum(len(turn["content"]) for turn in request.prompt.messages)
