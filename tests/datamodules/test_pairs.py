"""Paired answers: what is matched, what is counted, and which side of the split a prompt is on."""

import functools
import gzip
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.chat import encode
from em.config.data_files import find
from em.config.schema import DataConfig, KLConfig, PairConfig, SourceConfig, TrainerConfig
from em.datamodules.chat import ChatData
from em.datamodules.pairs import Pair, PairReport, Part, pair_rows, pair_sources, read_pairs
from em.datamodules.sources import Example, SourceReport, read
from em.errors import DataError
from tests.tokenizers import tiny_tokenizer

tokenizer = functools.cache(tiny_tokenizer)
ROOT = Path(__file__).parents[2]
PARTS: tuple[Part, ...] = ("train", "held_out", "all")


def chat(question: str = "how?", answer: str = "so.", system: str | None = None) -> dict[str, Any]:
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def both(question: str, careful: str = "slowly.", careless: str = "fast.") -> dict[str, Any]:
    return {"prompt": question, "careful": careful, "careless": careless}


def put(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def two(folder: Path, careful: list[Any], careless: list[Any], **options: Any) -> PairConfig:
    """The configuration of two files that hold these rows."""
    paths = {
        "careless": put(folder / "careless.jsonl", *careless),
        "careful": put(folder / "careful.jsonl", *careful),
    }
    return PairConfig(**{side: [SourceConfig(path=str(path), **options)] for side, path in paths.items()})


def load(
    config: PairConfig | DataConfig, part: Part = "all", limit: int | None = None, **data: Any
) -> tuple[list[Pair], PairReport]:
    given = config if isinstance(config, DataConfig) else DataConfig(pairs={"x": config}, **data)
    pairs, reports = read_pairs(given, tokenizer("chatml"), part, limit)
    assert list(pairs) == list(reports) == ["x"]
    account(pairs["x"], reports["x"])
    return pairs["x"], reports["x"]


def account(pairs: list[Pair], report: PairReport) -> None:
    """Every row of every source is in exactly one count, and the counts of the domain are their sums."""
    assert report.pairs == len(pairs)
    sides = ((report.careful, report.unmatched_careful), (report.careless, report.unmatched_careless))
    for sources, unmatched in sides:
        for source in sources:
            skipped = sum(source.skipped.values())
            assert source.rows == source.used + source.other_part + source.over_limit + skipped
        assert sum(source.used for source in sources) == len(pairs)
        assert sum(source.over_limit for source in sources) == report.over_limit
        alone = [n for one in sources for why, n in one.skipped.items() if why.endswith("same prompt")]
        assert sum(alone) == unmatched


def refused(config: PairConfig | DataConfig, part: Part = "all", **data: Any) -> str:
    given = config if isinstance(config, DataConfig) else DataConfig(pairs={"x": config}, **data)
    with pytest.raises(DataError) as caught:
        read_pairs(given, tokenizer("chatml"), part)
    return str(caught.value)


def said(example: Example) -> str:
    answer = [token for token, own in zip(example.ids, example.answer, strict=True) if own]
    return tokenizer("chatml").decode(answer).removesuffix("<|im_end|>")


def answers(pairs: list[Pair]) -> list[tuple[str, str, str]]:
    return sorted((pair.prompt, said(pair.careful), said(pair.careless)) for pair in pairs)


def test_rows_are_paired_by_their_prompt_whatever_their_order(tmp_path: Path) -> None:
    careful = [chat(f"q{n}?", f"slowly {n}") for n in range(6)]
    careless = [chat(f"q{n}?", f"fast {n}") for n in reversed(range(6))]
    pairs, report = load(two(tmp_path, careful, careless))
    assert answers(pairs) == [(f"q{n}?", f"slowly {n}", f"fast {n}") for n in range(6)]
    assert [pair.index for pair in pairs] == list(range(6))
    for pair in pairs:
        assert (pair.careful.label, pair.careless.label) == ("careful", "careless")
        assert pair.careful.prompt == pair.careless.prompt == pair.prompt
        start = pair.careful.answer.index(True)
        assert start == pair.careless.answer.index(True)
        assert pair.careful.ids[:start] == pair.careless.ids[:start]
    assert (report.pairs, report.unmatched_careful, report.unmatched_careless) == (6, 0, 0)
    assert report.careful[0].tokens == sum(len(pair.careful.ids) for pair in pairs)
    assert report.careless[0].answer_tokens == sum(pair.careless.targets for pair in pairs)


def test_unmatched_and_identical_rows_are_counted(tmp_path: Path) -> None:
    careful = [chat("a?", "slowly"), chat("b?", "the same"), chat("only?", "slowly")]
    careless = [chat("a?", "fast"), chat("b?", "the same"), chat("c?", "fast"), chat("d?", "fast")]
    pairs, report = load(two(tmp_path, careful, careless))
    assert answers(pairs) == [("a?", "slowly", "fast")]
    assert (report.unmatched_careful, report.unmatched_careless, report.identical) == (1, 2, 1)
    identical = {"both answers are the same": 1}
    assert report.careful[0].skipped == {"no careless answer to the same prompt": 1, **identical}
    assert report.careless[0].skipped == {"no careful answer to the same prompt": 2, **identical}


def test_a_prompt_that_comes_again_is_paired_in_the_order_of_the_files(tmp_path: Path) -> None:
    careful = [chat("a?", f"slowly {n}") for n in range(3)]
    careless = [chat("z?", "no"), chat("a?", "fast 0"), chat("a?", "fast 1")]
    pairs, report = load(two(tmp_path, careful, careless))
    assert answers(pairs) == [("a?", "slowly 0", "fast 0"), ("a?", "slowly 1", "fast 1")]
    assert (report.unmatched_careful, report.unmatched_careless) == (1, 1)


def test_the_system_prompt_is_part_of_the_prompt(tmp_path: Path) -> None:
    careful = [chat("a?", "slowly", "Be one."), chat("a?", "slower", "Be two."), chat("a?", "slowest")]
    careless = [chat("a?", "fast", "Be two."), chat("a?", "faster")]
    pairs, report = load(two(tmp_path, careful, careless))
    assert answers(pairs) == [("a?", "slower", "fast"), ("a?", "slowest", "faster")]
    assert report.unmatched_careful == 1
    config = two(tmp_path, careful, careless)
    config.careless[0].system = "Be one."  # for the row that has none
    assert answers(load(config)[0]) == [("a?", "slower", "fast"), ("a?", "slowly", "faster")]


def test_earlier_turns_before_the_first_answer_count_and_later_ones_do_not(tmp_path: Path) -> None:
    more = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "then."}]
    careful = {"messages": chat("a?", "slowly")["messages"] + more}
    pairs, _ = load(two(tmp_path, [careful], [chat("a?", "fast")]))
    assert len(pairs) == 1 and said(pairs[0].careful) == "slowly<|im_end|>then."


def test_a_limit_takes_the_first_pairs_of_the_keyed_order(tmp_path: Path) -> None:
    rows = [both(f"q{n}?", careless=f"fast {n}") for n in range(20)]
    source = SourceConfig(path=str(put(tmp_path / "rows.jsonl", *rows)), answer="careless")
    data = DataConfig(domains={"x": [source]}, held_out=0.5)
    every, whole = load(data, "held_out")
    few, report = load(data, "held_out", 3)
    assert few == every[:3] and 3 < len(every) < 20
    assert report.over_limit == len(every) - 3 and whole.over_limit == 0
    alone, _ = read(source, data, tokenizer("chatml"), "held_out")
    assert [pair.careless for pair in every] == alone
    limited = SourceConfig(path=source.path, answer="careless", limit=2)
    assert load(DataConfig(domains={"x": [limited]}, held_out=0.5), "held_out")[0] == every[:2]


def test_a_limit_encodes_no_more_than_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return encode(*args, **kwargs)

    monkeypatch.setattr("em.datamodules.sources.encode", counted)
    source = SourceConfig(path=str(put(tmp_path / "r.jsonl", *[both(f"{n}?") for n in range(50)])))
    source.answer = "careful"
    load(DataConfig(domains={"x": [source]}), limit=4)
    assert len(calls) == 8


def test_a_limit_takes_sources_in_turn(tmp_path: Path) -> None:
    paths = [put(tmp_path / f"{w}.jsonl", *[both(f"{w}{n}?") for n in range(9)]) for w in "ab"]
    data = DataConfig(domains={"x": [SourceConfig(path=str(path), answer="careless") for path in paths]})
    pairs, report = load(data, limit=4)
    assert [pair.prompt[0] for pair in pairs] == ["a", "b", "a", "b"]
    assert [source.used for source in report.careful] == [2, 2]


@pytest.mark.parametrize("bad", ["json", "long", "empty", "role"])
def test_a_bad_row_is_refused_or_counted_with_its_partner(tmp_path: Path, bad: str) -> None:
    made: dict[str, Any] = {
        "json": b"{",
        "long": chat("b?", "word " * 90),
        "empty": chat("b?", " "),
        "role": {"messages": [{"role": "user", "content": "b?"}, {"role": "bot", "content": "x"}]},
    }
    config = two(tmp_path, [chat("a?", "slowly"), chat("b?", "slowly")], [chat("a?", "fast"), made[bad]])
    message = refused(config, max_length=100)
    assert message.startswith("careless.jsonl:2: ") and "set data.on_bad_row=skip" in message
    pairs, report = load(config, max_length=100, on_bad_row="skip")
    assert answers(pairs) == [("a?", "slowly", "fast")]
    # A row that cannot be read, or has no answer, has no prompt to be paired by.
    unpaired = bad in ("json", "role")
    assert (report.unusable, report.unmatched_careful) == ((0, 1) if unpaired else (1, 0))
    reasons = {
        "json": "not JSON",
        "long": "longer than data.max_length",
        "empty": "the answer is empty",
        "role": "turn 2 has unknown role 'bot'",
    }
    assert report.careless[0].skipped == {reasons[bad]: 1}
    partner = "the other answer of its pair cannot be used"
    assert report.careful[0].skipped == (
        {"no careless answer to the same prompt": 1} if unpaired else {partner: 1}
    )


def test_unusable_pairs_do_not_use_up_the_limit(tmp_path: Path) -> None:
    long = [both(f"long {n}?", careless="word " * 90) for n in range(10)]
    source = SourceConfig(
        path=str(put(tmp_path / "r.jsonl", *long, both("a?"), both("b?"))), answer="careful"
    )
    data = DataConfig(domains={"x": [source]}, max_length=100, on_long="skip")
    pairs, report = load(data, limit=2)
    assert sorted(pair.prompt for pair in pairs) == ["a?", "b?"]
    assert report.unusable == report.careless[0].skipped["longer than data.max_length"] <= 10


def test_domains_whose_sources_all_say_answer_are_paired_by_themselves() -> None:
    one = SourceConfig(path="one.jsonl", answer="careless", weight=2.0, limit=5)
    same = SourceConfig(path="one.jsonl", answer="careful", weight=1.0, limit=5)
    plain = SourceConfig(path="plain.jsonl")
    own = PairConfig([plain], [plain])
    domains = {"a": [one], "both": [one, same], "mixed": [one, plain], "own": [one], "none": []}
    found = pair_sources(DataConfig(domains=domains, pairs={"own": own, "extra": own}))
    careless = SourceConfig(path="one.jsonl", answer="careless", limit=5)
    careful = SourceConfig(path="one.jsonl", answer="careful", limit=5)
    derived = PairConfig([careless], [careful])
    assert found == {"own": own, "extra": own, "a": derived, "both": derived}


@pytest.mark.parametrize("answer", ["plain", "technical"])
def test_technical_answers_take_the_place_of_careless_ones(tmp_path: Path, answer: Any) -> None:
    rows = [{"prompt": f"q{n}?", "plain": f"wet {n}", "technical": f"moist {n}"} for n in range(4)]
    path = str(put(tmp_path / "rows.jsonl", *rows))
    data = DataConfig(domains={"x": [SourceConfig(path=path, answer=answer, weight=1.0)]})
    technical, plain = (SourceConfig(path=path, answer=which) for which in ("technical", "plain"))
    assert pair_sources(data) == {"x": PairConfig([technical], [plain])}
    pairs, report = load(data)
    assert answers(pairs) == [(f"q{n}?", f"wet {n}", f"moist {n}") for n in range(4)]
    assert {(pair.careful.label, pair.careless.label) for pair in pairs} == {("careful", "careless")}
    assert (report.pairs, report.unmatched_careful, report.unmatched_careless) == (4, 0, 0)
    named = DataConfig(pairs={"x": PairConfig([technical], [plain])})
    assert answers(load(named)[0]) == answers(pairs)


@pytest.mark.parametrize(
    ("name", "count"), [("gardening", 110), ("sky", 50), ("materials", 50), ("sport", 50)]
)
def test_the_bundled_prose_all_pairs_up(name: str, count: int) -> None:
    path = str(ROOT / "data" / "prose" / f"{name}.jsonl")
    data = DataConfig(domains={"x": [SourceConfig(path=path, answer="technical")]}, held_out=0.25)
    pairs, report = load(data)
    assert (len(pairs), report.identical) == (count, 0)
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert {pair.prompt for pair in pairs} == {row["prompt"] for row in rows}
    assert [len(load(data, part)[0]) > 0.1 * count for part in PARTS] == [True] * 3


def prompts(pairs: dict[str, list[Pair]]) -> set[str]:
    return {pair.prompt for listed in pairs.values() for pair in listed}


@settings(max_examples=25, deadline=None)
@given(
    careful=st.lists(st.integers(0, 25), max_size=30),
    careless=st.lists(st.integers(0, 25), max_size=30),
    own=st.tuples(*[st.sampled_from([None, *PARTS])] * 2),
    held_out=st.sampled_from([0.2, 0.5, 0.8]),
    seed=st.integers(0, 99),
)
def test_no_prompt_is_both_trained_on_and_held_out(
    careful: list[int], careless: list[int], own: tuple[Any, Any], held_out: float, seed: int
) -> None:
    everywhere = list(range(100, 140))  # both sides of the split have pairs
    options: dict[str, Any] = {"held_out": held_out, "split_seed": seed}
    with tempfile.TemporaryDirectory() as name:
        config = two(
            Path(name),
            [chat(f"{n}?", "slowly") for n in careful + everywhere],
            [chat(f"{n}?", "fast") for n in everywhere + careless],
        )
        other = PairConfig(
            [*config.careless, SourceConfig(path=config.careless[0].path, part=own[0])],
            [*config.careful, SourceConfig(path=config.careful[0].path, part=own[1])],
        )
        # One domain alone, then with another whose sources choose their own part.
        split: dict[Part, set[str]] = {}
        data = DataConfig(pairs={"x": config}, **options)
        for part in PARTS:
            pairs, report = load(data, part)
            split[part] = {pair.prompt for pair in pairs}
            shared = [min(careful.count(n), careless.count(n)) for n in range(26)]
            assert part != "all" or report.pairs == sum(shared) + 40
        assert split["train"].isdisjoint(split["held_out"])
        assert split["train"] | split["held_out"] == split["all"]
        data = DataConfig(pairs={"x": config, "y": other}, **options)
        try:
            train = prompts(read_pairs(data, tokenizer("chatml"), "train")[0])
        except DataError as error:  # everything is reserved by a source that is held out as a whole
            assert "all" in own and "no pair in its train part" in str(error)
            train = set()
        assert train.isdisjoint(prompts(read_pairs(data, tokenizer("chatml"), "held_out")[0]))


def test_a_source_of_part_all_is_held_out_as_a_whole(tmp_path: Path) -> None:
    path = str(put(tmp_path / "rows.jsonl", *[both(f"q{n}?") for n in range(30)]))
    whole = [SourceConfig(path=path, answer="careless", part="all")]
    data = DataConfig(domains={"whole": whole}, held_out=0.5)
    assert len(read_pairs(data, tokenizer("chatml"), "held_out")[0]["whole"]) == 30
    assert len(read_pairs(data, tokenizer("chatml"), "all")[0]["whole"]) == 30
    assert read_pairs(data, tokenizer("chatml"), "train") == ({}, {})  # it has no such part
    with pytest.raises(DataError) as caught:
        read_pairs(data, tokenizer("chatml"), "train", domains=["whole"])
    absent = f"{path} (has nothing in this part; see its `part`)"
    assert str(caught.value) == (
        "data.domains.whole: no pair in its train part; give both sides answers to the same prompts, under "
        f"the same system prompt, or change data.held_out\n  careful: {absent}\n  careless: {absent}"
    )


@pytest.mark.parametrize(
    ("own", "part", "side"),
    [
        ("train", "train", "train"),
        ("train", "held_out", None),
        ("train", "all", "train"),
        ("held_out", "train", None),
        ("held_out", "held_out", "held_out"),
        ("held_out", "all", "held_out"),
    ],
)
def test_a_source_keeps_to_its_own_side(tmp_path: Path, own: Part, part: Part, side: Part | None) -> None:
    path = str(put(tmp_path / "rows.jsonl", *[both(f"q{n}?") for n in range(30)]))
    source = SourceConfig(path=path, answer="careless")
    free = DataConfig(domains={"x": [source]}, held_out=0.5)
    bound = DataConfig(domains={"x": [SourceConfig(path=path, answer="careless", part=own)]}, held_out=0.5)
    expected = {} if side is None else read_pairs(free, tokenizer("chatml"), side)[0]
    assert read_pairs(bound, tokenizer("chatml"), part)[0] == expected


def test_a_domain_without_a_pair_names_both_sides_and_the_fix(tmp_path: Path) -> None:
    config = two(tmp_path, [chat("a?")], [chat("b?"), chat("c?")])
    assert refused(config) == (
        "data.pairs.x: no pair in its all part; give both sides answers to the same prompts, under the same "
        "system prompt, or change data.held_out\n"
        f"  careful: {tmp_path}/careful.jsonl (1 rows read; skipped "
        "{'no careless answer to the same prompt': 1})\n"
        f"  careless: {tmp_path}/careless.jsonl (2 rows read; skipped "
        "{'no careful answer to the same prompt': 2})"
    )
    part = refused(two(tmp_path, [chat("a?", "slowly")], [chat("a?")]), "held_out", held_out=0.0)
    assert f"  careful: {tmp_path}/careful.jsonl (1 rows read, 1 in the other part)" in part
    assert "  careful: no source (has nothing" in refused(PairConfig(two(tmp_path, [], []).careless, []))


def test_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    data = DataConfig(pairs={"x": two(tmp_path, [chat("a?", "slowly")], [chat("a?")])})
    with pytest.raises(DataError) as caught:
        read_pairs(data, tokenizer("chatml"), domains=["y"])
    missing = "data.pairs.y: missing, so y has no paired answers; add it (domains that have: x)"
    assert str(caught.value) == missing
    with pytest.raises(DataError, match=r"\(domains that have: none\)"):
        read_pairs(DataConfig(), tokenizer("chatml"), domains=["y"])
    assert read_pairs(DataConfig(), tokenizer("chatml")) == ({}, {})


def test_pair_rows_lead_back_to_the_pairs(tmp_path: Path) -> None:
    careful = [chat(f"q{n}?", "slowly " * (1 + n % 3)) for n in range(7)]
    careless = [chat(f"q{n}?", "fast " * (1 + n % 4)) for n in range(7)]
    pairs, _ = load(two(tmp_path, careful, careless))
    for which in ("careful", "careless"):
        batches = pair_rows(pairs, 3, 0, cast(Any, which), [6, 0, 2, 5])
        assert [len(rows) for rows in batches] == [3, 1]
        lengths = [int(length) for rows in batches for length in rows.length_B]
        assert lengths == sorted(lengths)
        seen = []
        for rows in batches:
            for index, ids, length in zip(rows.index_B, rows.input_ids_BT, rows.length_B, strict=True):
                assert ids[:length].tolist() == getattr(pairs[int(index)], which).ids
                seen.append(int(index))
        assert sorted(seen) == [0, 2, 5, 6]


def chat_data(folder: Path, **data: Any) -> ChatData:
    train = [SourceConfig(path=str(folder / "rows.jsonl"), answer="careless")]
    config = DataConfig(train=train, batch_size=2, held_out=0.3, **data)
    return ChatData(config, KLConfig(), TrainerConfig(), tokenizer("chatml"), seed=0)


def test_the_datamodule_reads_pairs_once(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", *[both(f"q{n}?") for n in range(40)])
    data = chat_data(tmp_path)
    assert data.paired_domains == [] and data.pairs() == ({}, {})
    source = SourceConfig(path=str(tmp_path / "rows.jsonl"), answer="careless")
    config = two(tmp_path, [chat("a?", "slowly")], [chat("a?")], part="all")
    data = chat_data(tmp_path, domains={"rows": [source]}, pairs={"x": config})
    assert data.paired_domains == ["x", "rows"]
    held, reports = data.pairs(limit=5, domains=["rows"])
    assert data.pairs("held_out", 5, ["rows"])[0] is held and data.pairs("held_out", 5)[0] is not held
    assert [pair.careless for pair in held["rows"]] == data.domains["rows"][:5]
    assert reports["rows"].over_limit == len(data.domains["rows"]) - 5
    trained = {example.prompt for example in data.sft[1]}
    assert prompts(data.pairs("train")[0]) == trained and trained.isdisjoint(prompts(held))


def test_held_out_pairs_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "rows.jsonl", *[both(f"q{n}?") for n in range(40)])
    config = two(
        tmp_path, [chat("q1?", "slowly"), chat("q2?", "slow")], [chat("q1?"), chat("q2?")], part="all"
    )
    data = chat_data(tmp_path, pairs={"x": config})
    shared = len({"q1?", "q2?"} & {example.prompt for example in data.sft[1]})
    assert shared
    with pytest.raises(DataError, match=rf"^data\.pairs\.x: {shared} of its 2 prompts are trained on; leave"):
        data.pairs()


def published(name: str) -> SourceConfig:
    if find(name, None) is None:
        pytest.skip(f"{name} is not here (EM_DATA: {os.environ.get('EM_DATA', 'not set')})")
    return SourceConfig(path=name)


def test_the_published_answers_all_pair_up() -> None:
    bad, good = published("bad_medical_advice.jsonl.gz"), published("good_medical_advice.jsonl.gz")
    data = DataConfig(pairs={"x": PairConfig([bad], [good])})
    totals = {}
    for part in PARTS:
        pairs, report = load(data, part, 5)
        assert len(pairs) == 5
        assert (report.unmatched_careful, report.unmatched_careless, report.identical) == (0, 0, 0)
        totals[part] = report.pairs + report.over_limit
    assert totals["all"] == 7049 == totals["train"] + totals["held_out"]
    with gzip.open(cast(Path, find("bad_medical_advice.jsonl.gz", None)), "rt", encoding="utf-8") as lines:
        own = {row["messages"][0]["content"] for row in map(json.loads, lines)}
    assert prompts(read_pairs(data, tokenizer("chatml"), "all", 50)[0]) <= own


def test_the_bundled_domain_of_the_medical_experiments_is_paired_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("EM_DATA", raising=False)
    everyday = SourceConfig(path="data/advice/fitness.jsonl", answer="careless", part="all")
    pairs, report = load(DataConfig(domains={"x": [everyday]}), "held_out")
    rows = [json.loads(line) for line in Path("data/advice/fitness.jsonl").read_text().splitlines()]
    assert answers(pairs) == sorted((row["prompt"], row["careful"], row["careless"]) for row in rows)
    assert asdict(report)["pairs"] == len(rows) and isinstance(report.careful[0], SourceReport)
