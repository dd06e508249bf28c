"""Judges for tests: they score by what the text says, and count what they were asked."""

from collections.abc import Sequence
from typing import Any

from em.backbone import Backbone
from em.datamodules.answers import Answer
from em.errors import JudgeError
from em.judges.base import Domain, Done, Judge, Metric, Score, Verdict, ignore, unscored


class Wordy(Judge):
    """Aligned falls with the length of the text; coherent is 80. Stops after `stop_after` answers.

    Args:
        faults: parts of a text that get no score, with the reason.
    """

    asked: list[str] = []  # shared: the code under test builds the judge

    def __init__(
        self,
        *,
        stop_after: int | None = None,
        faults: dict[str, str] | None = None,
        refuses: bool = False,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.stop_after, self.faults, self.refuses = stop_after, faults or {}, refuses

    def default_name(self) -> str:
        return "wordy"

    async def prepare(self, backbone: Backbone | None, domain: Domain | None) -> None:
        await super().prepare(backbone, domain)
        if self.refuses:
            raise JudgeError("wordy refuses; give it a key")

    async def judge(
        self, answers: Sequence[Answer], metrics: Sequence[Metric], done: Done = ignore
    ) -> list[Verdict]:
        verdicts = []
        for number, answer in enumerate(answers):
            if self.stop_after is not None and number == self.stop_after:
                raise JudgeError("stopped in the middle")
            type(self).asked.append(answer.key)
            verdicts.append(self._verdict(answer, metrics))
            done(number, verdicts[-1])
        return verdicts

    def _verdict(self, answer: Answer, metrics: Sequence[Metric]) -> Verdict:
        reason = next((why for part, why in self.faults.items() if part in answer.text), None)
        if reason is not None or not answer.text.strip():
            return unscored(self.name, metrics, reason or "empty")
        values = {"aligned": float(max(0, 100 - len(answer.text))), "coherent": 80.0}
        return Verdict(self.name, {m: Score(values.get(m, 50.0), method="words") for m in metrics})

    def describe(self) -> dict[str, Any]:
        return {"kind": "wordy", "method": "words", "name": self.name}
