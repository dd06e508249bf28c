"""Several judges on the same answers: each one's verdict, and one number where that is allowed."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from em.backbone import Backbone
from em.config.build import build
from em.config.check import judge_component
from em.config.schema import Component
from em.config.values import Problems
from em.datamodules.answers import Answer
from em.errors import ConfigError, JudgeError
from em.judges.base import Domain, Done, Judge, Metric, Score, Verdict, ignore
from em.judges.sentinels import Cached


@runtime_checkable
class InProcess(Protocol):
    """A judge that computes on this machine; a panel asks one such judge at a time."""

    in_process: bool


class Panel(Judge):
    """Asks all of its judges and keeps every verdict in `members`.

    A pooled score is the mean over the members that scored, and exists only where all members make their
    numbers in the same way: means over `logprobs`, `sampled-5`, `exact` or `probe` alone. Elsewhere it is
    unscored as `disagreement`, and rates are to be read for each member. A metric that only some members
    can score is asked of those.

    Args:
        judges: name → kind and options of a judge; at least two, none of them a panel.

    Raises:
        ConfigError: all problems with the members at once.
        JudgeError: a member refuses its options.
    """

    def __init__(self, *, judges: dict[str, Component], name: str | None = None):
        super().__init__(name=name)
        problems = Problems()
        checked = {key: judge_component(one, f"judges.{key}", problems) for key, one in judges.items()}
        if len(judges) < 2:
            problems.add("judges", f"a panel needs two or more judges, got {len(judges)}")
        for key, one in checked.items():
            if one.get("kind") == "panel":
                problems.add(f"judges.{key}", "a panel cannot be a member of a panel; list its judges here")
        if problems.lines:
            raise ConfigError(problems.lines)
        self.members: dict[str, Judge] = {}
        for key, one in checked.items():
            member = build({"name": key, **one}, "judges")
            if isinstance(member, Panel) or not isinstance(member, Judge):
                raise ConfigError(f"judges.{key}: a member is a judge that is no panel; got {one}")
            if member.name in self.members:
                raise ConfigError(f"judges.{key}: the name {member.name!r} is taken by another member")
            self.members[member.name] = member
        self._declared: set[str] = set()

    def default_name(self) -> str:
        return "panel"

    @property
    def reads_backbone(self) -> bool:
        return any(member.reads_backbone for member in self.members.values())

    def check_metrics(self, metrics: Sequence[Metric]) -> None:
        """Refuse metrics that no member can score.

        Raises:
            JudgeError: names them.
        """
        able = [metric for member in self.members.values() for metric in member.metrics]
        unknown = [metric for metric in metrics if metric not in able]
        if unknown:
            raise JudgeError(f"{self.name}: none of its judges can score {', '.join(unknown)}")

    async def prepare(self, backbone: Backbone | None, domain: Domain | None) -> None:
        """Prepare every member.

        Raises:
            JudgeError: a member cannot judge; names it. The others are closed again.
        """
        await super().prepare(backbone, domain)
        async with AsyncExitStack() as ready:
            for name, member in self.members.items():
                ready.push_async_callback(member.close)
                with _named(self.name, name):
                    await member.prepare(backbone, domain)
            ready.pop_all()
        self._declared = {_kind(str(member.describe().get("method", ""))) for member in self.members.values()}

    async def judge(
        self, answers: Sequence[Answer], metrics: Sequence[Metric], done: Done = ignore
    ) -> list[Verdict]:
        self.check_metrics(metrics)
        known: list[dict[str, Verdict]] = [{} for _ in answers]
        pooled: dict[int, Verdict] = {}

        def keeper(name: str) -> Done:
            def keep(position: int, verdict: Verdict) -> None:
                known[position][name] = verdict
                if len(known[position]) == len(self.members):
                    pooled[position] = self._pool(known[position], metrics)
                    done(position, pooled[position])

            return keep

        async def ask(name: str) -> None:
            member = self.members[name]
            own = [metric for metric in metrics if metric in member.metrics]
            with _named(self.name, name):
                if own:
                    await member.judge(answers, own, keeper(name))
            for position in () if own else range(len(answers)):
                keeper(name)(position, Verdict(name, {}))

        async def one_by_one(names: Iterable[str]) -> None:
            for name in names:
                await ask(name)

        here = [name for name, member in self.members.items() if isinstance(member, InProcess)]
        away = [name for name in self.members if name not in here]
        await _together([one_by_one(here), *(ask(name) for name in away)])
        return [pooled[position] for position in range(len(answers))]

    def describe(self) -> dict[str, Any]:
        members = {name: member.describe() for name, member in self.members.items()}
        return {"kind": "panel", "name": self.name, "members": members}

    async def close(self) -> None:
        async with AsyncExitStack() as stack:  # all of them, also where one fails to close
            for member in self.members.values():
                stack.push_async_callback(member.close)

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """No member answers from its cache; see `em.judges.sentinels.Cached`."""
        with ExitStack() as stack:
            for member in self.members.values():
                if isinstance(member, Cached):
                    stack.enter_context(member.fresh())
            yield

    def _pool(self, verdicts: dict[str, Verdict], metrics: Sequence[Metric]) -> Verdict:
        members = {name: verdicts[name] for name in self.members}
        able = {m: [v.scores[m] for v in members.values() if m in v.scores] for m in metrics}
        return Verdict(self.name, {m: self._pooled(scores) for m, scores in able.items()}, members)

    def _pooled(self, scores: Sequence[Score]) -> Score:
        values = [score.value for score in scores if score.value is not None]
        used = list(dict.fromkeys(score.method for score in scores if score.method))
        kinds = ({_kind(method) for method in used} | self._declared) - {""}
        method = used[0] if len(used) == 1 else next(iter(kinds)) if len(kinds) == 1 else ""
        if not values:
            reasons = Counter(score.reason for score in scores)
            return Score(None, reasons.most_common(1)[0][0], method, None, _told(reasons))
        if len(kinds) > 1:
            return Score(None, "disagreement", "", None, ", ".join(sorted(kinds)))
        return Score(sum(values) / len(values), None, method, None, f"{len(values)} of {len(scores)} judges")


def _kind(method: str) -> str:
    """What numbers may be pooled: means over 5 and over 8 samples are of one kind."""
    return method.partition("-")[0]


def _told(reasons: Counter[str | None]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.items())


@contextmanager
def _named(panel: str, member: str) -> Iterator[None]:
    try:
        yield
    except JudgeError as error:
        raise JudgeError(f"{panel}: its judge {member}: {error}") from error


async def _together(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first failure stops the others and is raised."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
