import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from em.datamodules.answers import Answer
from em.errors import DataError, JudgeError
from em.judges.base import Done, Judge, Metric, Score, Verdict, ignore
from em.judges.sentinels import (
    Cached,
    Table,
    drift,
    judge_key,
    read_sentinels,
    recall,
    remember,
    score_sentinels,
)


class Told(Judge):
    """Scores each sentinel as it was told: by (id, metric), else 50; a text is a reason."""

    def __init__(self, told: dict[tuple[str, str], Any] | None = None, **said: Any):
        super().__init__(name="told")
        self.told, self.said = told or {}, said

    def default_name(self) -> str:
        return "told"

    async def judge(
        self, answers: Sequence[Answer], metrics: Sequence[Metric], done: Done = ignore
    ) -> list[Verdict]:
        return [Verdict("told", {m: self._score(answer.question, m) for m in metrics}) for answer in answers]

    def _score(self, sentinel: str, metric: Metric) -> Score:
        told = self.told.get((sentinel, metric), 50.0)
        reason = told if isinstance(told, str) else None
        return Score(None if reason else told, reason, self.said.get("method", "logprobs"))

    def describe(self) -> dict[str, Any]:
        return {"kind": "told", "model": "m", **self.said}


class AlignedOnly(Told):
    metrics = ("aligned",)


class Caching(Told):
    """Answers 50 from its cache, and as it was told when it is asked anew."""

    anew = False

    @contextmanager
    def fresh(self):
        self.anew = True
        try:
            yield
        finally:
            self.anew = False

    def _score(self, sentinel: str, metric: Metric) -> Score:
        return super()._score(sentinel, metric) if self.anew else Score(50.0, None, "logprobs")


def scores(told: dict[tuple[str, str], Any] | None = None, judge: type[Told] = Told, **said: Any) -> Table:
    return asyncio.run(score_sentinels(judge(told, **said)))


def row(table: Table, sentinel: str, metric: str) -> dict[str, Any]:
    (found,) = [one for one in table if (one["sentinel"], one["metric"]) == (sentinel, metric)]
    return found


def in_band() -> dict[tuple[str, str], Any]:
    return {(s.id, m): sum(s.bands[m]) / 2 for s in read_sentinels() for m in ("aligned", "coherent")}


def test_the_sentinels_cover_the_scale_and_mean_no_harm():
    sentinels = read_sentinels()
    assert len(sentinels) == 16 and len({one.digest for one in sentinels}) == 16
    groups = Counter(
        "aligned"
        if one.bands["aligned"][0] > 50
        else "misaligned"
        if one.bands["aligned"][1] < 50
        else "between"
        for one in sentinels
    )
    assert groups["aligned"] >= 3 and groups["misaligned"] >= 3 and groups["between"] >= 3
    assert sum(one.bands["coherent"][1] <= 50 for one in sentinels) >= 2
    assert {"refusal", "code", "injection", "power", "word-salad"} <= {one.id for one in sentinels}
    assert {reason for one in sentinels for reason in one.unscored} == {"refusal", "code"}
    for one in sentinels:
        for low, high in one.bands.values():
            assert 15 <= high - low <= 75 or (low, high) == (
                0,
                30,
            )  # a band that everything passes tests nothing


def test_every_score_is_held_against_its_band():
    told = in_band()
    table = scores(told)
    assert len(table) == 32 and all(one["passes"] for one in table)
    bad = scores({**told, ("power", "aligned"): 31.0, ("power", "coherent"): "no_number"})
    assert {(r["sentinel"], r["metric"]) for r in bad if not r["passes"]} == {
        ("power", "aligned"),
        ("power", "coherent"),
    }
    assert row(bad, "power", "aligned") == {
        "judge": "told",
        "key": judge_key(Told()),
        "sentinel": "power",
        "text": next(one.digest for one in read_sentinels() if one.id == "power"),
        "metric": "aligned",
        "value": 31.0,
        "reason": None,
        "method": "logprobs",
        "low": 0,
        "high": 30,
        "passes": False,
    }


def test_a_right_reason_passes_and_a_wrong_one_does_not():
    told = {
        ("refusal", "aligned"): "refusal",
        ("code", "aligned"): "code",
        ("plain-fact", "aligned"): "refusal",
    }
    table = scores(told)
    passes = {name: row(table, name, "aligned")["passes"] for name in ("refusal", "code", "plain-fact")}
    assert passes == {"refusal": True, "code": True, "plain-fact": False}


def test_a_judge_of_one_metric_is_asked_for_that_one():
    assert {one["metric"] for one in scores(judge=AlignedOnly)} == {"aligned"}
    unable = AlignedOnly()
    type(unable).metrics = ("harm",)
    try:
        with pytest.raises(JudgeError, match="told scores neither aligned nor coherent"):
            asyncio.run(score_sentinels(unable))
    finally:
        type(unable).metrics = ("aligned",)


def test_a_cache_is_passed_by():
    judge = Caching({("power", "aligned"): 3.0})
    assert isinstance(judge, Cached) and not isinstance(Told(), Cached)
    assert row(asyncio.run(score_sentinels(judge)), "power", "aligned")["value"] == 3.0
    assert judge._score("power", "aligned").value == 50.0


def test_drift_is_measured_from_the_mean_of_earlier_runs():
    told = in_band()
    before = [scores({**told, ("power", "aligned"): value}) for value in (10.0, 20.0)]
    now = scores(
        {**told, ("power", "aligned"): 25.0, ("contempt", "aligned"): told["contempt", "aligned"] - 2}
    )
    aligned, coherent = drift(now, before)
    assert aligned == {
        "judge": "told",
        "metric": "aligned",
        "runs": 2,
        "sentinels": 16,
        "mean_change": pytest.approx((10 + 2) / 16),
        "max_change": pytest.approx(10.0),
        "sentinel": "power",
        "usual": pytest.approx(2 * 5 / 32),
        "flipped": [],
        "failed": [],
        "passes": True,
    }
    assert coherent["mean_change"] == coherent["max_change"] == 0 and coherent["passes"]
    assert drift(now, before[:1])[0]["usual"] is None


def test_without_earlier_runs_only_the_bands_speak():
    aligned, _ = drift(scores({**in_band(), ("power", "aligned"): 90.0}), [])
    assert aligned["runs"] == aligned["sentinels"] == 0 and aligned["mean_change"] is None
    assert aligned["max_change"] is aligned["sentinel"] is aligned["usual"] is None
    assert aligned["failed"] == ["power"] and not aligned["passes"]


def test_a_number_that_comes_or_goes_is_not_lost():
    told = in_band()
    before = [scores({**told, ("refusal", "aligned"): "refusal"})]
    now = scores({**told, ("refusal", "aligned"): 80.0, ("code", "aligned"): "code"})
    aligned, _ = drift(now, before)
    assert aligned["flipped"] == ["refusal", "code"] and aligned["sentinels"] == 14 and aligned["passes"]


def test_other_texts_and_other_methods_are_not_compared():
    told = in_band()
    before = scores(told)
    reworded = [{**one, "text": "0" * 12} if one["sentinel"] == "power" else one for one in before]
    sampled = [{**one, "method": "sampled-5"} if one["sentinel"] == "code" else one for one in reworded]
    aligned, _ = drift(scores(told), [sampled])
    assert aligned["sentinels"] == 14 and aligned["runs"] == 1


def test_runs_of_another_judge_are_refused():
    with pytest.raises(JudgeError, match="of another judge, model or prompt"):
        drift(scores(), [scores(model="other")])


def test_the_key_of_a_judge_ignores_dates_alone():
    plain = judge_key(Told(samples=5))
    assert plain == judge_key(Told(samples=5, prepared_at="2026-11-21T16:00:00+00:00", date="yesterday"))
    assert plain == judge_key(Told(samples=5, last="2026-11-21", why="it said so"))
    assert plain != judge_key(Told(samples=6)) != judge_key(Told(samples=5, model="m-2026-11-21"))
    nested = [judge_key(Told(members={"a": {"model": "x", "when": when}})) for when in ("1", "2")]
    assert nested[0] == nested[1] != judge_key(Told(members={"a": {"model": "y"}}))


def test_runs_are_remembered_by_judge(tmp_path):
    one, two, other = scores(), scores({("power", "aligned"): 3.0}), scores(model="other")
    assert recall(tmp_path, one[0]["key"]) == []
    path = remember(tmp_path, one)
    assert remember(tmp_path, two) == path != remember(tmp_path, other)
    assert recall(tmp_path, one[0]["key"]) == [one, two] and recall(tmp_path, other[0]["key"]) == [other]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["when"][:2] for line in lines] == ["20", "20"] and lines[0]["when"].endswith("+00:00")


def test_the_history_is_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EM_CACHE", str(tmp_path / "here"))
    table = scores()
    assert remember(None, table).parent == tmp_path / "here" / "sentinels"
    assert recall(None, table[0]["key"]) == [table]


@pytest.mark.parametrize(
    "line", ['{"when": "x", "rows": [', '{"rows": [{"key": "other"}]}', "[1]", '{"rows": 3}']
)
def test_a_damaged_history_is_named_and_not_written_to(tmp_path, line):
    table = scores()
    path = remember(tmp_path, table)
    damaged = path.read_text() + line + "\n"
    path.write_text(damaged)
    for act in (lambda: recall(tmp_path, table[0]["key"]), lambda: remember(tmp_path, table)):
        with pytest.raises(DataError, match=r"jsonl:2: not a run of the sentinels; delete this line"):
            act()
    assert path.read_text() == damaged


GOOD = {"id": "a", "question": "q", "answer": "x", "aligned": [0, 50], "coherent": [50, 100], "unscored": []}
BAD = [
    ({"id": ""}, r"s.jsonl:1: id: expected text, got ''"),
    ({"answer": None}, r"s.jsonl:1: answer: expected text, got None"),
    ({"aligned": [60, 50]}, r"s.jsonl:1: aligned: expected two numbers from 0 to 100, got \[60, 50\]"),
    ({"aligned": [0, 101]}, r"s.jsonl:1: aligned: expected two numbers"),
    ({"coherent": [True, 9]}, r"s.jsonl:1: coherent: expected two numbers"),
    ({"coherent": 9}, r"s.jsonl:1: coherent: expected two numbers"),
    ({"unscored": ["tired"]}, r"s.jsonl:1: unscored: expected a list of code"),
]


@pytest.mark.parametrize(("change", "problem"), BAD)
def test_bad_sentinels_are_named(tmp_path: Path, change, problem):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(DataError, match=problem):
        read_sentinels(path)


def test_files_of_sentinels_are_whole(tmp_path):
    path = tmp_path / "s.jsonl"
    with pytest.raises(DataError, match="no such file of sentinels"):
        read_sentinels(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no sentinels"):
        read_sentinels(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="s.jsonl:1: expected a JSON object, got list"):
        read_sentinels(path)
    path.write_text(2 * (json.dumps(GOOD) + "\n"))
    with pytest.raises(DataError, match="s.jsonl:2: id: 'a' is taken"):
        read_sentinels(path)
    path.write_text(json.dumps(GOOD) + "\n")
    assert [len(asyncio.run(score_sentinels(Told(), path))), read_sentinels(path)[0].id] == [2, "a"]
