"""A callback that counts what each process does while the callbacks of a run measure."""

import json
from collections import Counter as Counts
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em import files
from em.backbone import Backbone
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.evaluation import answering
from tests.evaluation.judges import Wordy


class Counter(MeasurementCallback):
    """Writes FOLDER/RANK.json: tokens that each callback runs, answers, verdicts and files of a process.

    It must be the last callback of the configuration, because the others are counted until it fires.
    Logged: nothing.

    Args:
        folder: where the counts go.
    """

    def __init__(self, *, folder: str, **schedule: Any):
        super().__init__(**schedule)
        self.folder = Path(folder)
        self.tokens: Counts[str] = Counts()
        self.answers: Counts[str] = Counts()
        self.files: list[str] = []
        self._now = ""
        self._undo: list[Callable[[], None]] = []

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        # Here, because FSDP2 takes `trunk` as it is before training.
        Wordy.asked.clear()
        self._wrap(MeasurementCallback, "run_now", self._enter)
        self._wrap(Backbone, "trunk", lambda backbone, ids_BT, *rest: self._count(ids_BT))
        self._wrap(answering, "answers_for", self._asked)
        self._wrap(files, "write_atomically", lambda path, write: self.files.append(str(path)))

    def _wrap(self, owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def noted(*given: Any, **options: Any) -> Any:
            note(*given)
            try:
                return original(*given, **options)
            finally:
                if name == "run_now":
                    self._now = ""

        setattr(owner, name, noted)
        self._undo.append(lambda: setattr(owner, name, original))

    def _enter(self, callback: MeasurementCallback, *rest: Any) -> None:
        self._now = callback.name

    def _count(self, ids_BT: Any) -> None:
        if self._now:
            self.tokens[self._now] += int((ids_BT != 0).sum())  # the tiny tokenizer pads with 0

    def _asked(self, path: Path, source: Any, requests: list[Any], *rest: Any) -> None:
        self.answers["reference" if "reference" in rest else "own"] += len(requests)

    def measure(self, context: RunContext) -> None:
        for undo in reversed(self._undo):
            undo()
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {
            "tokens": self.tokens,
            "answers": self.answers,
            "verdicts": len(Wordy.asked),
            "files": self.files,
        }
        (self.folder / f"{context.rank}.json").write_text(json.dumps(found))
