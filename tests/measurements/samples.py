"""What the tests of measurements share: small rows, naive losses, and solutions with a known property."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from em.backbone import Backbone
from em.datamodules.pairs import Pair
from em.datamodules.rows import Rows, batched
from em.datamodules.sources import Example
from em.interventions.base import Intervention
from em.interventions.lora import Lora
from em.interventions.steering_vector import SteeringVector
from em.measurements.arms import Solution
from em.measurements.margins import PairLosses
from em.measurements.panel import Panel
from em.stats import Floats
from tests.tiny import randomise, tiny_backbone


def example(prompt: list[int], answer: list[int], name: str = "p", label: str = "") -> Example:
    """A prompt of tokens that are not learnt, and an answer of tokens that are."""
    flags = [False] * len(prompt) + [True] * len(answer)
    return Example([*prompt, *answer], flags, f"test:{name}", name, label)


def tokens(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(3, 400, (count,), generator=generator).tolist()


def examples(count: int = 7, seed: int = 0) -> list[Example]:
    """Answers of 1 to 6 tokens after prompts of 2 to 5, in no order of length."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        lengths = 2 + (3 * number) % 4, 1 + (5 * number) % 6
        prompt, answer = (tokens(length, generator) for length in lengths)
        made.append(example(prompt, answer, str(number)))
    return made


def pairs(count: int = 6, seed: int = 0, domain: str = "soup") -> list[Pair]:
    """Careful and careless answers of different lengths to random prompts."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        prompt, name = tokens(2 + number % 3, generator), f"{domain} {number}"
        careful = example(prompt, tokens(2 + number % 4, generator), name, "careful")
        careless = example(prompt, tokens(1 + (3 * number) % 5, generator), name, "careless")
        made.append(Pair(name, careful, careless, number))
    return made


def rows(listed: Sequence[Example], size: int = 3) -> list[Rows]:
    return batched(listed, size, 0, range(len(listed)))


def panel(backbone: Backbone, listed: Sequence[Example], lowest_layer: int = 0, size: int = 3) -> Panel:
    return Panel(backbone, rows(listed, size), lowest_layer)


def nll(backbone: Backbone, one: Example) -> Tensor:
    """Σ −log p of the answer's tokens from full logits of one unpadded row."""
    predicts_BT = torch.tensor([[*one.answer[1:], False]])
    with backbone.steering_positions(predicts_BT):
        logits_TV = backbone.model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0]
    log_p = logits_TV.double().log_softmax(-1)
    at = [t for t in range(len(one.ids) - 1) if one.answer[t + 1]]
    return -log_p[at, [one.ids[t + 1] for t in at]].sum()


@torch.no_grad()
def naive(backbone: Backbone, listed: Sequence[Example]) -> Floats:
    return np.array([float(nll(backbone, one)) for one in listed])


def vector(backbone: Backbone | None = None, seed: int = 1, scale: float = 2.0) -> SteeringVector:
    """A random steering vector at layer 1."""
    made = SteeringVector(layer=1, scale=scale)
    made.attach(backbone or tiny_backbone())
    randomise(made, seed, 0.2)
    return made


def lora(backbone: Backbone | None = None, seed: int = 1, rslora: bool = True) -> Lora:
    """A LoRA of four modules, the second with ten times the norm of the first, and so on."""
    made = Lora(r=4, alpha=8.0, rslora=rslora, modules=["o_proj", "down_proj"], layers=[1, 2])
    made.attach(backbone or tiny_backbone(), seed=5)
    randomise(made, seed, 0.02)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(made.trainable_parameters().items())):
            if name.endswith("lora_B"):
                parameter.mul_(2.0**number)
    return made


SOLUTIONS: list[Callable[..., Intervention]] = [vector, lora]


def fit(intervention: Intervention, loss: Callable[[], Tensor], steps: int = 15, lr: float = 0.05) -> None:
    """A few steps of gradient descent."""
    parameters = list(intervention.trainable_parameters().values())
    optimizer = torch.optim.Adam(parameters, lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def fitted(kind: Callable[..., Intervention], listed: Sequence[Example]) -> Intervention:
    """A solution whose loss on some answers is below the reference's."""
    made = kind()
    fit(made, lambda: torch.stack([nll(made.backbone, one) for one in listed]).sum())
    return made


def changed(kept: dict[str, Tensor], intervention: Intervention) -> bool:
    """Whether any parameter is no longer, bit for bit, what `gathered` said."""
    now = intervention.gathered()
    return any(not torch.equal(value, now[name]) for name, value in kept.items())


def part_norms(intervention: Intervention) -> dict[str, float]:
    """Frobenius norm of each module's update, from the dense product."""
    parts = intervention.update().parts
    return {
        name: float((left if right is None else left.double() @ right.double()).norm())
        for name, (left, right) in parts.items()
    }


def solutions(**spaces: str) -> dict[str, Solution]:
    """Solutions `arm_seed` -> space, each of norm 1."""
    found = {}
    for name, space in spaces.items():
        arm, _, seed = name.partition("_")
        found[name] = Solution(name, arm, "lora", space, 1.0, int(seed or 0))
    return found


def losses(margin_P: Floats, careless: float = 3.0, seed: int = 0) -> PairLosses:
    """Losses of answers of various lengths that have these margins."""
    rng = np.random.default_rng(seed)
    careless_tokens, careful_tokens = rng.integers(1, 9, size=(2, len(margin_P))).astype(float)
    return PairLosses(
        careless_tokens * careless, careful_tokens * (careless + margin_P), careless_tokens, careful_tokens
    )
