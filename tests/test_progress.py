"""Progress: plain lines with an estimate where there is no terminal, one live display where there is."""

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from rich.console import Console

from em import progress
from em.progress import Task, clock, is_main_process, say, track

ODD = "[red]soup[/red] [bold :smile: \\[x] {task.total}"


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock that the display reads, in seconds."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))

    def set_clock(seconds: float) -> None:
        now.seconds = seconds

    return set_clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=200, color_system=None, highlight=False, emoji=False
    )
    monkeypatch.setattr(progress, "console", console)
    yield stream
    assert progress._bars._progress is None, "a live display was left open"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""  # stdout is for results
    return captured.err.splitlines()


def test_lines_come_every_few_seconds_with_an_estimate(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Task("steps", 10) as task:
        at(14)
        task.advance()
        assert lines(capsys) == []
        at(20)
        task.advance(status="loss 1.25")
        assert lines(capsys) == ["steps: 2/10, 1:20 left  loss 1.25"]  # 10 s each, 8 to go
        at(34)
        task.advance()
        assert lines(capsys) == []
        at(40)
        task.advance()
        assert [line.rstrip() for line in lines(capsys)] == ["steps: 4/10, 1:00 left"]
    assert lines(capsys) == ["steps: done in 0:40"]


def test_work_of_an_earlier_process_does_not_make_the_estimate_shorter(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with Task("steps", 100, done=90) as task:
        at(60)
        task.advance(2)
        assert task.remaining() == 30 * 8
        assert [line.rstrip() for line in lines(capsys)] == ["steps: 92/100, 4:00 left"]


def test_nothing_done_yet_and_more_than_all_done_have_estimates(at: Callable[[float], None]) -> None:
    with Task("steps", 3) as task:
        at(5)
        assert task.remaining() == 15
        task.advance(4)
        assert task.remaining() == 0


def test_text_is_shown_as_it_is(at: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    with Task(ODD, 2) as task:
        at(20)
        task.advance(status="[/] [link=x]")
    say(ODD)
    assert lines(capsys) == [f"{ODD}: 1/2, 0:20 left  [/] [link=x]", f"{ODD}: done in 0:20", ODD]


def test_long_lines_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    say("word " * 100)
    assert len(lines(capsys)) == 1


def test_a_task_that_fails_does_not_say_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Task("steps", 2):
        raise KeyError
    assert lines(capsys) == []


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "LOCAL_RANK"])
def test_other_processes_are_silent(
    at: Callable[[float], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "1")
    assert not is_main_process()
    with Task("steps", 2) as task:
        at(30)
        task.advance()
    say("hello")
    assert lines(capsys) == [] and task.done == 1


@pytest.mark.parametrize("value", ["0", ""])
def test_rank_zero_is_the_main_process(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RANK", value)
    assert is_main_process()


def test_track_yields_everything_and_counts(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for item in track(["a", "b", "c"], "letters"):
        at(20 * (len(seen) + 1))
        seen.append(item)
    assert seen == ["a", "b", "c"]
    said = [line.rstrip() for line in lines(capsys)]
    assert said[:3] == ["letters: 1/3, 0:40 left", "letters: 2/3, 0:20 left", "letters: 3/3, 0:00 left"]
    assert said[3:] == ["letters: done in 1:00"]


def test_track_takes_a_total_for_what_has_no_length(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(iter("ab"), "letters", total=2):
        at(30)
    assert lines(capsys)[0].rstrip() == "letters: 1/2, 0:30 left"


def test_track_without_a_total_promises_none(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(iter("a"), "letters"):
        at(30)
    assert lines(capsys)[0].rstrip() == "letters: 1"


def test_a_terminal_gets_a_bar_with_the_text_as_it_is(terminal: io.StringIO) -> None:
    with Task(ODD, 4) as task:
        task.advance(3, status="loss [1.25] :tada:")
    shown = terminal.getvalue()
    assert ODD in shown and "3/4" in shown and "loss [1.25] :tada:" in shown


def test_nested_tasks_share_one_display(terminal: io.StringIO) -> None:
    with Task("outer", 2) as outer:
        display = progress._bars._progress
        with Task("inner", 5) as inner:
            assert display is not None and progress._bars._progress is display
            inner.advance(5)
            shown = [(task.description, task.completed) for task in display.tasks]
            assert shown == [("outer", 0), ("inner", 5)]
        outer.advance()
        assert progress._bars._progress is display
        # A finished part leaves the display, or a long run would fill the screen with bars.
        assert [(task.description, task.completed) for task in display.tasks] == [("outer", 1)]
    assert "outer" in terminal.getvalue()


def test_a_bar_without_a_total_promises_none(terminal: io.StringIO) -> None:
    assert list(track(iter("ab"), "letters")) == ["a", "b"]
    assert "2/?" in terminal.getvalue() and "2/0" not in terminal.getvalue()


def test_a_failed_task_closes_its_bar(terminal: io.StringIO) -> None:
    with pytest.raises(KeyError), Task("outer", 2), Task("inner", 2):
        raise KeyError
    with Task("next", 1) as task:
        task.advance()
    assert "next" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
