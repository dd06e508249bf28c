"""What an evaluation asks, how answers are drawn and who judges them: read and checked before any work."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from em.config import build
from em.config.schema import Component, EvaluateConfig
from em.datamodules.questions import QuestionSet, read_question_sets
from em.errors import ConfigError
from em.generation.requests import Request, requests_for
from em.generation.sampling import Sampling
from em.judges.base import Domain, Judge
from em.measurements.behaviour import Thresholds

ABOUT = ("domain", "harm")  # metrics that need the training domain
FOLLOW_PROMPTS = ("openai", "local")
WORDS = {
    "kitchen": "cooking and kitchen advice",
    "fitness": "sport and fitness advice",
    "money": "advice on household money",
    "travel": "travel advice",
    "medical": "medicine and health advice",
    "insecure": "programming and source code",
}


@dataclass(frozen=True)
class Judging:
    """How answers are judged and counted.

    Args:
        config: the settings of the whole evaluation.
        domain: what the metrics `domain` and `harm` are about; None where neither is asked for.
        judge: built, but not prepared.
    """

    config: EvaluateConfig
    domain: Domain | None
    judge: Judge

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.config.aligned_below, self.config.coherent_above)

    def settings(self) -> dict[str, Any]:
        """What two evaluations in one folder must share."""
        domain = None if self.domain is None else asdict(self.domain)
        names = ("metrics", "aligned_below", "coherent_above", "any_of", "resamples", "seed")
        return {**{name: getattr(self.config, name) for name in names}, "domain": domain}


@dataclass(frozen=True)
class Plan(Judging):
    """An evaluation that can begin.

    Args:
        sets: the questions.
        sampling: how answers are drawn.
    """

    sets: list[QuestionSet]
    sampling: Sampling

    @property
    def requests(self) -> list[Request]:
        """Every answer that is wanted of each model."""
        prompts = [prompt for one in self.sets for prompt in one.prompts]
        return requests_for(prompts, self.config.samples)

    @property
    def reads_model(self) -> bool:
        """Whether the model must be in memory: an endpoint may answer, and most judges do not read it."""
        config, served = self.config, self.config.endpoint
        reference = config.reference and (served is None or served.reference_model is None)
        return served is None or reference or config.direction is not None or self.judge.reads_backbone

    def settings(self) -> dict[str, Any]:
        prompts = [
            [one.name, p.prompt, [dict(m) for m in p.messages]] for one in self.sets for p in one.prompts
        ]
        names = ("questions", "samples")
        more = {name: getattr(self.config, name) for name in names}
        return {**super().settings(), **more, "sampling": asdict(self.sampling), "prompts": prompts}


def make_judging(config: EvaluateConfig, training: str | None = None) -> Judging:
    """Build the judge alone, for answers that are there already.

    Raises:
        EmError: the settings do not fit the judge.
    """
    judge: Judge = build(config.judge, "judges")
    judge.check_metrics(config.metrics)
    return Judging(config, domain_of(config, training), judge)


def make_plan(config: EvaluateConfig, root: str | None = None, training: str | None = None) -> Plan:
    """Read the questions and build the judge.

    Args:
        root: folder of data files.
        training: the training domain, used where the settings name none.

    Raises:
        EmError: a question file cannot be used, or the settings do not fit the judge.
    """
    sets = read_question_sets(config.questions, root)
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens, tuple(config.stop), config.seed)
    if config.judge_prompts == "questions":
        config = replace(config, judge=_prompted(config, sets, training))
    judging = make_judging(config, training)
    return Plan(config, judging.domain, judging.judge, sets, sampling)


def _prompted(config: EvaluateConfig, sets: list[QuestionSet], training: str | None) -> Component:
    """The judge with the prompts that the question files carry.

    Raises:
        ConfigError: a set has none for a metric that is asked for, two sets differ, or the judge follows no
            prompts.
    """
    domain = config.domain or training
    texts: dict[str, str] = {}
    for one in sets:
        for metric in config.metrics:
            text = one.judge_prompts.get(metric)
            if text is None and metric == "domain" and domain is not None:
                text = one.judge_prompts.get(domain)  # published files name this prompt after the domain
            if text is None:
                raise ConfigError(
                    f"judge_prompts: {one.path} has none for {metric}, only for "
                    f"{', '.join(one.judge_prompts) or 'no metric'}; leave it at bundled"
                )
            if texts.setdefault(metric, text) != text:
                raise ConfigError(
                    f"judge_prompts: the sets have different ones for {metric}; evaluate them apart"
                )
    if config.judge.get("kind") not in FOLLOW_PROMPTS:
        kinds = " or ".join(FOLLOW_PROMPTS)
        raise ConfigError(f"judge_prompts: needs judge.kind {kinds}, got {config.judge.get('kind')}")
    return {**config.judge, "prompts": texts}


def domain_of(config: EvaluateConfig, training: str | None) -> Domain | None:
    """The domain that the metrics ask about.

    Raises:
        ConfigError: one is needed and not known.
    """
    asked = [metric for metric in config.metrics if metric in ABOUT]
    if not asked:
        return None
    name = config.domain or training
    if name is None:
        raise ConfigError(f"domain: missing, but metrics has {', '.join(asked)}; set domain: to a short name")
    return Domain(name, config.domain_words or WORDS.get(name) or name.replace("_", " "))
