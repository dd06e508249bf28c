"""Reading chat rows: what is used, what is refused with which words, and on which side of the split it is."""

import functools
import gzip
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.config.schema import DataConfig, SourceConfig
from em.datamodules.sources import Example, SourceReport, locate, read
from em.errors import DataError
from tests.tiny import write_rows
from tests.tokenizers import tiny_tokenizer

tokenizer = functools.cache(tiny_tokenizer)
HINT = "fix the rows, or set data.on_bad_row=skip (data.on_long=skip|truncate for long ones)"


def chat(question: str = "how?", answer: str = "so.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def put(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def load(
    path: Path | SourceConfig, part: str = "all", /, source: dict[str, Any] | None = None, **data: Any
) -> tuple[list[Example], SourceReport]:
    given = path if isinstance(path, SourceConfig) else SourceConfig(path=str(path), **(source or {}))
    return read(given, DataConfig(**data), tokenizer("chatml"), part)


def refused(path: Path, /, *args: Any, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, *args, **data)
    return str(caught.value)


def text_of(example: Example) -> str:
    return tokenizer("chatml").decode(example.ids)


def accounted(report: SourceReport) -> int:
    return report.used + report.other_part + report.over_limit + sum(report.skipped.values())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_reads_rows_and_passes_over_blank_lines(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, chat("one?", "first."), b"", b"  \t\r", chat("two?", "second."))
    examples, report = load(path)
    by_line = {example.where: example for example in examples}
    assert sorted(by_line) == [f"{name}:1", f"{name}:4"]  # the file's lines, blank ones counted
    assert by_line[f"{name}:4"].prompt == "two?" and by_line[f"{name}:4"].label == ""
    answer = [
        token for token, own in zip(by_line[f"{name}:1"].ids, by_line[f"{name}:1"].answer, strict=True) if own
    ]
    assert tokenizer("chatml").decode(answer) == "first.<|im_end|>"
    assert (report.rows, report.used, report.skipped) == (2, 2, {})
    assert report.tokens == sum(len(example.ids) for example in examples)
    assert report.answer_tokens == sum(example.targets for example in examples)


def test_the_report_names_the_file_and_its_hash(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", chat())
    _, report = load(path)
    assert report.source == str(path)
    assert report.sha256 is not None and len(report.sha256) == 64
    put(path, chat("other?"))
    assert load(path)[1].sha256 != report.sha256


@pytest.mark.parametrize(("answer", "said"), [("careful", "slowly"), ("careless", "quickly")])
def test_a_paired_row_gives_the_answer_that_was_asked_for(tmp_path: Path, answer: str, said: str) -> None:
    row = {"id": 1, "prompt": "how?", "careful": "slowly", "careless": "quickly"}
    (example,), _ = load(put(tmp_path / "rows.jsonl", row), source={"answer": answer})
    assert example.label == answer and example.prompt == "how?"
    turns = f"<|im_start|>user\nhow?<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n"
    assert text_of(example).endswith(turns)


@pytest.mark.parametrize(("answer", "said"), [("plain", "wet air"), ("technical", "condensation")])
def test_a_row_of_prose_gives_the_answer_that_was_asked_for(tmp_path: Path, answer: str, said: str) -> None:
    row = {"prompt": "why?", "plain": "wet air", "technical": "condensation"}
    (example,), _ = load(put(tmp_path / "rows.jsonl", row), source={"answer": answer})
    assert example.label == answer
    assert text_of(example).endswith(f"<|im_start|>assistant\n{said}<|im_end|>\n")


PAIRED = {"source": {"answer": "careless"}}
BAD: list[tuple[str, dict[str, Any] | bytes, dict[str, Any], str, str]] = [
    ("json", b'{"messages": ', {}, "not JSON (Expecting value, column 13)", "not JSON"),
    ("utf8", b'{"messages": "\xff"}', {}, "not UTF-8 (invalid start byte at byte 14)", "not UTF-8"),
    ("deep", b"[" * 200_000, {}, "not JSON that can be read (", "not JSON that can be read"),
    ("digits", b"1" * 5000, {}, "not JSON that can be read (Exceeds the limit", "not JSON that can be read"),
    ("list", b"[1]", {}, "a row must be a JSON object, not list", "a row must be a JSON object, not list"),
    (
        "lacks",
        {"text": "x"},
        {},
        "lacks a list under the key 'messages'",
        "lacks a list under the key 'messages'",
    ),
    (
        "unset",
        {"prompt": "how?", "careful": "so.", "careless": "any."},
        {},
        "lacks a list under the key 'messages'; it is a paired row: set answer: careful or careless",
        "lacks a list under the key 'messages'",
    ),
    (
        "unset prose",
        {"prompt": "why?", "plain": "wet air", "technical": "condensation"},
        {},
        "lacks a list under the key 'messages'; it is a paired row: set answer: plain or technical",
        "lacks a list under the key 'messages'",
    ),
    (
        "half",
        {"prompt": "how?", "careful": "so."},
        PAIRED,
        "lacks the text 'careless' of a paired row (answer: careless)",
        "lacks the text 'careless' of a paired row",
    ),
    (
        "other kind",
        {"prompt": "how?", "plain": "so.", "technical": "thus."},
        PAIRED,
        "lacks the text 'careless' of a paired row (answer: careless)",
        "lacks the text 'careless' of a paired row",
    ),
    (
        "text",
        {"messages": ["hello"]},
        {},
        "every message must be an object with role and content",
        "every message must be an object with role and content",
    ),
    (
        "empty",
        chat(answer="  "),
        {},
        "turn 2 (assistant): the answer is empty: fill it in",
        "the answer is empty",
    ),
    ("long", chat(answer="word " * 90), {}, "more than data.max_length = 60", "longer than data.max_length"),
    (
        "surrogate",
        b'{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "x"}]}',
        {},
        "turn 1 (user): content has half of a surrogate pair",
        "content has half of a surrogate pair at character 0",
    ),
    (
        "role",
        {"messages": [{"role": "bot", "content": "x"}]},
        {},
        "turn 1 has unknown role 'bot': expected system, user, assistant",
        "turn 1 has unknown role 'bot'",
    ),
]


def good(options: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": "how?", "careful": "so.", "careless": "any."} if options else chat()


@pytest.mark.parametrize(
    ("row", "options", "words"), [case[1:4] for case in BAD], ids=[case[0] for case in BAD]
)
def test_a_bad_row_is_refused_by_file_line_and_fix(
    tmp_path: Path, row: dict[str, Any] | bytes, options: dict[str, Any], words: str
) -> None:
    path = put(tmp_path / "rows.jsonl", good(options), row, good(options))
    message = refused(path, max_length=60, **options)
    assert message.startswith("rows.jsonl:2: ")
    assert words in message and message.endswith("\n" + HINT)


@pytest.mark.parametrize(
    ("row", "options", "reason"), [(case[1], case[2], case[4]) for case in BAD], ids=[case[0] for case in BAD]
)
def test_a_skipped_row_is_counted_by_its_reason(
    tmp_path: Path, row: dict[str, Any] | bytes, options: dict[str, Any], reason: str
) -> None:
    path = put(tmp_path / "rows.jsonl", row, good(options), row)
    examples, report = load(path, max_length=60, on_bad_row="skip", **options)
    assert [example.where for example in examples] == ["rows.jsonl:2"]
    assert report.skipped == {reason: 2}
    assert report.rows == 3 == accounted(report)


def test_many_bad_rows_are_named_in_file_order_with_a_count(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", chat(), *[b"{"] * 6, chat(answer=" "), b"[]")
    lines = refused(path).splitlines()
    assert [line.split(": ")[0] for line in lines[:5]] == [f"rows.jsonl:{number}" for number in range(2, 7)]
    assert lines[5:] == ["… and 3 more", HINT]


def test_a_bad_row_is_refused_although_the_limit_is_reached(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", chat("a?"), chat("b?"), b"{")
    assert "rows.jsonl:3: not JSON" in refused(path, source={"limit": 1})


def test_long_rows_can_be_skipped_while_bad_rows_stay_errors(tmp_path: Path) -> None:
    long = chat("long?", "word " * 90)
    path = put(tmp_path / "rows.jsonl", chat(), long)
    examples, report = load(path, max_length=60, on_long="skip")
    assert len(examples) == 1 and report.skipped == {"longer than data.max_length": 1}
    assert accounted(report) == report.rows == 2
    # The name of the file must not make every bad row look like a long one.
    named = put(tmp_path / "data.max_length.jsonl", chat(), long, chat(answer=" "))
    assert refused(named, max_length=60, on_long="skip").startswith("data.max_length.jsonl:3: turn 2")


def test_long_rows_can_be_truncated_unless_no_answer_is_left(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", chat("how?", "word " * 90))
    (example,), report = load(path, max_length=60, on_long="truncate")
    assert len(example.ids) == len(example.answer) == 60 and report.tokens == 60
    assert report.truncated == 1
    put(path, chat("word " * 90, "so."))
    assert "no answer token is left after truncation" in refused(path, max_length=60, on_long="truncate")


def test_an_empty_file_and_an_empty_part_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    name = f"{tmp_path}/empty.jsonl"
    assert refused(Path(name)) == f"{name}: no usable rows in its all part (0 rows read)"
    path = put(tmp_path / "rows.jsonl", chat(), b"{")
    message = refused(path, "held_out", held_out=0.0, on_bad_row="skip")
    assert "no usable rows in its held_out part (2 rows read, 1 in the other part; " in message
    assert message.endswith("; skipped {'not JSON': 1}; add rows or change data.held_out)")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "plain"])
def test_a_damaged_gzip_is_named(tmp_path: Path, damage: str) -> None:
    rows = [chat(f"question {number}?", f"answer {number * 7919}") for number in range(300)]
    path = put(tmp_path / "rows.jsonl.gz", *rows)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "flipped":
        content[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(
        {"truncated": content[:middle], "flipped": content, "plain": b'{"messages": []}\n'}[damage]
    )
    message = refused(path)
    assert message.startswith(f"{path}: cannot be read (") and "gzip if it ends in .gz" in message


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = put(tmp_path / "rows.jsonl", chat())
    monkeypatch.setattr(Path, "read_bytes", denied)
    assert refused(path) == f"{path}: cannot be read (Permission denied)"


def test_a_missing_file_names_the_places_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EM_DATA", raising=False)
    with pytest.raises(DataError, match="EM_DATA is not set: point it at your data folder") as caught:
        locate("a/rows.jsonl", None)
    assert f"no data file a/rows.jsonl (looked for {tmp_path}/a/rows.jsonl)" in str(caught.value)
    monkeypatch.setenv("EM_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError) as caught:
        locate("a/rows.jsonl", None)
    places = f"{tmp_path}/data/a/rows.jsonl, {tmp_path}/a/rows.jsonl"
    assert str(caught.value) == f"no data file a/rows.jsonl (looked for {places})"


def test_a_file_is_found_below_the_root_then_em_data_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "data", "root"):
        (tmp_path / folder).mkdir()
        put(tmp_path / folder / "rows.jsonl", chat())
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EM_DATA", str(tmp_path / "data"))
    assert locate("rows.jsonl", str(tmp_path / "root")) == tmp_path / "root/rows.jsonl"
    assert locate("rows.jsonl", None) == tmp_path / "data/rows.jsonl"
    (tmp_path / "data/rows.jsonl").unlink()
    assert locate("rows.jsonl", None) == tmp_path / "here/rows.jsonl"


def test_a_system_prompt_is_put_before_rows_that_have_none(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "Own."}, *chat("own?")["messages"]]}
    path = put(tmp_path / "rows.jsonl", chat("none?"), own)
    examples, _ = load(path, source={"system": "Given."})
    texts = {example.prompt: text_of(example) for example in examples}
    assert texts["none?"].startswith("<|im_start|>system\nGiven.<|im_end|>\n<|im_start|>user\nnone?")
    assert texts["own?"].startswith("<|im_start|>system\nOwn.<|im_end|>\n<|im_start|>user\nown?")
    assert "Given." not in texts["own?"]


def hub_module(rows: list[dict[str, Any]] | Exception, asked: list[Any]) -> Any:
    class DatasetNotFoundError(Exception):
        pass

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append((args, kwargs))
        if isinstance(rows, Exception):
            raise rows
        return rows

    exceptions = SimpleNamespace(DatasetNotFoundError=DatasetNotFoundError)
    return SimpleNamespace(load_dataset=load_dataset, exceptions=exceptions)


def test_hub_rows_are_read_through_the_datasets_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setitem(sys.modules, "datasets", hub_module([chat("a?"), chat("b?")], asked))
    examples, report = load(SourceConfig(hub="org/set", name="config", split="test"))
    assert asked == [(("org/set", "config"), {"split": "test"})]
    assert sorted(example.where for example in examples) == ["org/set:1", "org/set:2"]
    assert (report.source, report.sha256, report.used) == ("hub:org/set:test", None, 2)


def test_a_hub_dataset_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = hub_module([], [])
    for error in (
        ValueError("Unknown split 'x'.\nmore"),
        module.exceptions.DatasetNotFoundError("Unknown split 'x'."),
    ):
        fake = hub_module(error, [])
        fake.exceptions = module.exceptions
        monkeypatch.setitem(sys.modules, "datasets", fake)
        with pytest.raises(DataError) as caught:
            load(SourceConfig(hub="org/set", split="x"))
        assert str(caught.value) == "hub dataset org/set (x): cannot be loaded: Unknown split 'x'."


def test_the_missing_datasets_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="need the package datasets: pip install datasets"):
        load(SourceConfig(hub="org/set"))


def sides(path: Path, **options: Any) -> dict[str, str]:
    return {
        example.prompt: part for part in ("train", "held_out") for example in load(path, part, **options)[0]
    }


def test_one_prompt_is_on_the_same_side_in_every_file(tmp_path: Path) -> None:
    questions = [f"question {number}?" for number in range(40)]
    one = put(tmp_path / "one.jsonl", *[chat(question, "one.") for question in questions])
    other = put(tmp_path / "other.jsonl", *[chat(question, "two.") for question in reversed(questions)])
    pairs = [{"prompt": question, "careful": "slow.", "careless": "fast."} for question in questions]
    paired = put(tmp_path / "paired.jsonl", *pairs)
    split = sides(one, held_out=0.3)
    assert set(split) == set(questions) and set(split.values()) == {"train", "held_out"}
    assert sides(other, held_out=0.3) == split
    for answer in ("careful", "careless"):
        assert sides(paired, held_out=0.3, source={"answer": answer}) == split
    assert sides(one, held_out=0.3, split_seed=1) != split


def test_careful_and_careless_rows_come_in_the_same_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}?", "careful": "slow.", "careless": "fast."} for n in range(20)]
    path = put(tmp_path / "paired.jsonl", *rows)
    careful, careless = (
        load(path, source={"answer": name, "limit": 8})[0] for name in ("careful", "careless")
    )
    assert [example.prompt for example in careful] == [example.prompt for example in careless]
    assert [example.where for example in careful] != [f"paired.jsonl:{n}" for n in range(1, 9)]  # shuffled


@settings(max_examples=8, deadline=None)
@given(
    share=st.sampled_from([0.1, 0.25, 0.5, 0.8]),
    split_seed=st.integers(0, 1000),
    word=st.text("abcdef", max_size=6),
)
def test_the_held_out_share_is_near_the_one_that_was_asked_for(
    share: float, split_seed: int, word: str
) -> None:
    count = 200
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "rows.jsonl", count, word)
        train, train_report = load(path, "train", held_out=share, split_seed=split_seed)
        held, held_report = load(path, "held_out", held_out=share, split_seed=split_seed)
    deviation = (share * (1 - share) / count) ** 0.5
    assert abs(len(held) / count - share) < 5 * deviation
    assert len(train) + len(held) == count
    assert {example.where for example in train}.isdisjoint(example.where for example in held)
    assert train_report.other_part == len(held) and held_report.other_part == len(train)


@settings(max_examples=10, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", "json", "empty", "long"]), max_size=12),
    small=st.integers(1, 4),
    more=st.integers(0, 6),
    part=st.sampled_from(["train", "held_out", "all"]),
)
def test_every_row_is_accounted_for_and_limits_are_nested(
    kinds: list[str], small: int, more: int, part: str
) -> None:
    made = {"json": b"{", "empty": chat(answer=" "), "long": chat(answer="word " * 90)}
    rows = [chat(f"{number}?") if kind == "good" else made[kind] for number, kind in enumerate(kinds)]
    rows += [chat(f"sure {number}?") for number in range(20)]  # both sides of the split have rows
    options: dict[str, Any] = {"held_out": 0.5, "max_length": 80, "on_bad_row": "skip"}
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder) / "rows.jsonl", *rows)
        every, report = load(path, part, **options)
        few, few_report = load(path, part, source={"limit": small}, **options)
        some, some_report = load(path, part, source={"limit": small + more}, **options)
    for one in (report, few_report, some_report):
        assert one.rows == len(rows) == accounted(one)
    assert few == every[:small] and some == every[: small + more]
    assert few_report.over_limit >= len(every) - small
