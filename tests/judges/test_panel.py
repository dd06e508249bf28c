import asyncio
import json
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from em.config import build
from em.datamodules.answers import Answer
from em.errors import ConfigError, JudgeError
from em.judges.base import Done, Judge, Metric, Score, Verdict, ignore
from em.judges.panel import InProcess, Panel
from em.judges.sentinels import Cached

BOTH: tuple[Metric, ...] = ("aligned", "coherent")
LOG: list[str] = []


class Fixed(Judge):
    """Says what it was told, number by number; an unscored one is given as its reason."""

    def __init__(
        self,
        *,
        says: list[Any],
        method: str = "logprobs",
        declared: str | None = None,
        broken: str = "",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.says, self.method, self.declared, self.broken = says, method, declared, broken

    def default_name(self) -> str:
        return "fixed"

    async def prepare(self, backbone: Any, domain: Any) -> None:
        await super().prepare(backbone, domain)
        LOG.append(f"prepare {self.name}")
        if self.broken == "prepare":
            raise JudgeError("no key")

    async def judge(
        self, answers: Sequence[Answer], metrics: Sequence[Metric], done: Done = ignore
    ) -> list[Verdict]:
        if self.broken == "judge":
            raise JudgeError("the key was refused")
        verdicts = []
        for number, _ in enumerate(answers):
            said = self.says[number % len(self.says)]
            reason = said if isinstance(said, str) else None
            score = Score(None if reason else said, reason, "" if reason == "connection" else self.method)
            verdicts.append(Verdict(self.name, dict.fromkeys(metrics, score)))
        for number in reversed(range(len(answers))):  # in any order
            await asyncio.sleep(0)
            LOG.append(f"{self.name} {number}")
            done(number, verdicts[number])
        return verdicts

    def describe(self) -> dict[str, Any]:
        return {"kind": "fixed", "name": self.name, **({"method": self.declared} if self.declared else {})}

    async def close(self) -> None:
        LOG.append(f"close {self.name}")


class AlignedOnly(Fixed):
    metrics = ("aligned",)


class Here(Fixed):
    in_process: ClassVar[bool] = True


class Remembering(Fixed):
    @contextmanager
    def fresh(self):
        LOG.append(f"fresh {self.name}")
        yield
        LOG.append(f"as before {self.name}")


@pytest.fixture(autouse=True)
def log():
    LOG.clear()
    return LOG


def member(*says: Any, kind: str = "Fixed", **options: Any) -> dict[str, Any]:
    return {"_target_": f"tests.judges.test_panel.{kind}", "says": list(says), **options}


def panel(**judges: Any) -> Panel:
    return build({"kind": "panel", "judges": judges}, "judges")


def judged(made: Panel, count: int = 1, metrics: Sequence[Metric] = ("aligned",), done: Done = ignore) -> Any:
    answers = [Answer(({"role": "user", "content": "q"},), f"text {n}") for n in range(count)]

    async def run() -> list[Verdict]:
        await made.prepare(None, None)
        return await made.judge(answers, metrics, done)

    return asyncio.run(run())


def test_numbers_of_one_method_are_averaged_and_every_verdict_is_kept():
    (verdict,) = judged(panel(a=member(20), b=member(80), c=member(50)), metrics=BOTH)
    assert verdict.judge == "panel" and verdict.value("aligned") == verdict.value("coherent") == 50
    assert verdict.scores["aligned"].method == "logprobs"
    assert verdict.scores["aligned"].detail == "3 of 3 judges"
    assert {name: one.value("aligned") for name, one in verdict.members.items()} == {
        "a": 20,
        "b": 80,
        "c": 50,
    }
    assert list(verdict.members) == ["a", "b", "c"] and verdict.members["b"].judge == "b"


METHODS = [
    (("logprobs", "sampled-5"), None, ""),
    (("exact", "logprobs"), None, ""),
    (("probe", "probe"), 30, "probe"),
    (("exact", "exact"), 30, "exact"),
    (("sampled-5", "sampled-8"), 30, "sampled"),
    (("sampled-5", "sampled-5"), 30, "sampled-5"),
]


@pytest.mark.parametrize(("methods", "value", "method"), METHODS)
def test_numbers_of_unlike_methods_are_never_pooled(methods, value, method):
    made = panel(a=member(20, method=methods[0]), b=member(40, method=methods[1]))
    score = judged(made)[0].scores["aligned"]
    assert (score.value, score.method) == (value, method)
    assert score.reason == (None if value else "disagreement")
    assert score.detail == ("2 of 2 judges" if value else ", ".join(sorted(m.split("-")[0] for m in methods)))


def test_a_judge_that_fails_once_does_not_make_the_others_poolable():
    """Else the pooled numbers of one arm would be partly of one method and partly of the other."""
    judges = {
        "a": member(20, "connection", method="logprobs", declared="logprobs"),
        "b": member(40, 40, method="sampled-5", declared="sampled"),
    }
    assert [v.scores["aligned"].reason for v in judged(panel(**judges), 2)] == ["disagreement"] * 2


def test_judges_that_did_not_score_are_left_out_and_counted():
    verdicts = judged(
        panel(a=member(20, "refusal", "refusal"), b=member(80, 80, "code"), c=member(50, 60, "code")), 3
    )
    scores = [verdict.scores["aligned"] for verdict in verdicts]
    assert [score.value for score in scores] == [50, 70, None]
    assert scores[1].detail == "2 of 3 judges"
    assert scores[2].reason == "code" and scores[2].detail == "refusal: 1, code: 2"


def test_a_metric_is_asked_of_those_that_can_score_it():
    made = panel(a=member(20, kind="AlignedOnly"), b=member(80), c=member(60, kind="AlignedOnly"))
    (verdict,) = judged(made, metrics=BOTH)
    assert verdict.value("aligned") == pytest.approx(160 / 3) and verdict.value("coherent") == 80
    assert set(verdict.members["a"].scores) == {"aligned"}
    (only,) = judged(made, metrics=("coherent",))
    assert only.members["a"].scores == {} and only.value("coherent") == 80
    narrow = panel(a=member(20, kind="AlignedOnly"), b=member(60, kind="AlignedOnly"))
    with pytest.raises(JudgeError, match="none of its judges can score coherent"):
        judged(narrow, metrics=BOTH)


def test_done_comes_once_for_each_answer_when_all_judges_have_spoken():
    seen: list[tuple[int, Verdict]] = []
    verdicts = judged(
        panel(a=member(1, 2, 3), b=member(4, 5, 6)), 5, done=lambda at, verdict: seen.append((at, verdict))
    )
    assert sorted(at for at, _ in seen) == list(range(5))
    assert all(verdict is verdicts[at] and len(verdict.members) == 2 for at, verdict in seen)


def test_judges_elsewhere_run_together_and_judges_here_one_by_one(log):
    judged(panel(a=member(1), b=member(2)), 2)
    assert log[2:] == ["a 1", "b 1", "a 0", "b 0"]
    log.clear()
    made = panel(a=member(1, kind="Here"), b=member(2, kind="Here"), c=member(3))
    assert isinstance(made.members["a"], InProcess) and not isinstance(made.members["c"], InProcess)
    judged(made, 2)
    asked = [line for line in log if line[:2] in ("a ", "b ")]
    assert asked == ["a 1", "a 0", "b 1", "b 0"] and log.index("c 0") < log.index("b 1")


def test_a_member_that_cannot_be_prepared_is_named_and_the_others_closed(log):
    with pytest.raises(JudgeError, match="panel: its judge b: no key"):
        judged(panel(a=member(1), b=member(2, broken="prepare"), c=member(3)))
    assert log == ["prepare a", "prepare b", "close b", "close a"]


def test_a_member_that_fails_stops_the_others(log):
    with pytest.raises(JudgeError, match="panel: its judge b: the key was refused"):
        judged(panel(a=member(1), b=member(2, broken="judge")), 50)
    assert sum(line.startswith("a ") for line in log) < 5


REFUSED = [
    ({}, "judges: a panel needs two or more judges, got 0"),
    ({"a": {"kind": "local", "model": "m"}}, "judges: a panel needs two or more judges, got 1"),
    (
        {"a": {"kind": "panel", "judges": {}}, "b": {"kind": "local", "model": "m"}},
        "judges.a: a panel cannot be a member",
    ),
    (
        {"a": {"kind": "locall"}, "b": {"kind": "local", "model": "m"}},
        "judges.a.kind: unknown kind 'locall'.*did you mean local",
    ),
    (
        {"a": {"kind": "local", "model": "m", "modell": "x"}, "b": {"kind": "local", "model": "m"}},
        "judges.a.modell: unknown key.*judges.a.model",
    ),
    (
        {"a": {"kind": "local", "model": "m", "batch_size": "x"}, "b": {"kind": "local", "model": "m"}},
        "judges.a.batch_size: expected a whole",
    ),
    (
        {"a": {"kind": "local", "model": "m", "name": "b"}, "b": {"kind": "local", "model": "m"}},
        "judges.b: the name 'b' is taken",
    ),
    ({"a": "local", "b": {"kind": "local", "model": "m"}}, "judges.a: expected a mapping"),
    (
        {
            "a": {
                "_target_": "em.judges.panel.Panel",
                "judges": {"x": {"kind": "local", "model": "m"}, "y": {"kind": "local", "model": "m"}},
            },
            "b": {"kind": "local", "model": "m"},
        },
        "judges.a: a member is a judge that is no panel",
    ),
]


@pytest.mark.parametrize(("judges", "problem"), REFUSED)
def test_members_that_make_no_panel_are_refused(judges, problem):
    with pytest.raises(ConfigError, match=problem):
        Panel(judges=judges)


def test_members_are_named_by_their_key_or_their_own_name_and_described():
    made = panel(first=member(1), second=member(2, name="mine"))
    assert list(made.members) == ["first", "mine"]
    said = made.describe()
    assert said == {
        "kind": "panel",
        "name": "panel",
        "members": {"first": {"kind": "fixed", "name": "first"}, "mine": {"kind": "fixed", "name": "mine"}},
    }
    assert json.loads(json.dumps(said)) == said


def test_fresh_reaches_the_members_that_keep_replies(log):
    made = panel(a=member(1), b=member(2, kind="Remembering"))
    assert isinstance(made, Cached) and not isinstance(made.members["a"], Cached)
    with made.fresh():
        assert log == ["fresh b"]
    assert log == ["fresh b", "as before b"]


def test_close_closes_all(log):
    asyncio.run(panel(a=member(1), b=member(2)).close())
    assert sorted(log) == ["close a", "close b"]
