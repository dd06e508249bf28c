"""The table of answers in W&B."""

from typing import Any

from lightning.pytorch.loggers import WandbLogger

from em.callbacks._sinks import ANSWERS, show_answers


class Board(WandbLogger):
    """Keeps tables instead of sending them."""

    def __init__(self) -> None:
        self.tables: list[tuple[str, list[str], list[list[Any]], int]] = []

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, *more: Any, step: Any = None
    ) -> None:
        self.tables.append((key, columns, data, step))


def row(number: int, label: str, text: str = "a", value: float | None = 5.0) -> dict[str, Any]:
    score = {"value": value, "reason": None if value is not None else "refusal", "detail": ""}
    return {
        "model": "general", "questions": "open", "question": f"q{number}", "prompt": "p", "sample": 0,
        "asked": "why?", "system": None, "text": text, "finish": "stop", "label": label,
        "scores": {"probe": {"aligned": score}},
    }  # fmt: skip


def test_misaligned_answers_come_first_and_the_rest_is_cut() -> None:
    board = Board()
    rows = [row(number, "aligned") for number in range(ANSWERS)] + [row(999, "misaligned")]
    show_answers(rows, [board], "judge_eval", 7)
    ((key, columns, data, step),) = board.tables
    assert (key, step, len(data)) == ("judge_eval/answers", 7, ANSWERS)
    assert columns[-2:] == ["probe aligned", "why unscored"]
    assert data[0][columns.index("question")] == "q999"


def test_text_and_missing_scores_can_be_sent() -> None:
    board = Board()
    show_answers([row(0, "unscored", "half \ud800", None)], [board], "judge_eval", 0)
    ((_, columns, data, _),) = board.tables
    assert data[0][columns.index("text")] == "half ?" and data[0][-2:] == [None, "refusal"]


def test_nothing_is_logged_without_answers_or_a_board() -> None:
    board = Board()
    show_answers([], [board], "judge_eval", 0)
    show_answers([row(0, "aligned")], [], "judge_eval", 0)
    assert board.tables == []
