"""Plain text: what becomes a document, what is counted or refused, and how processes share it."""

import functools
import gzip
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em.config.schema import CorpusConfig
from em.datamodules import prose
from em.datamodules.plain_text import Corpus, Document, corpus_rows, read_corpus, slice_name
from em.errors import DataError
from tests.tokenizers import tiny_tokenizer

tokenizer = functools.cache(tiny_tokenizer)


def put(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def load(*corpora: CorpusConfig | Path, **options: Any) -> Corpus:
    configs = [one if isinstance(one, CorpusConfig) else CorpusConfig(path=str(one)) for one in corpora]
    return read_corpus(configs, tokenizer("chatml"), **options)


def refused(*corpora: CorpusConfig | Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*corpora, **options)
    return str(caught.value)


def texts(corpus: Corpus) -> list[str]:
    return [tokenizer("chatml").decode(document.ids) for document in corpus.documents]


@pytest.mark.parametrize("name", ["web.txt", "web.md"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("The first line.\n\nThe second, of the same text.\n")
    corpus = load(tmp_path / name)
    ids = tokenizer("chatml")("The first line.\n\nThe second, of the same text.\n")["input_ids"]
    assert corpus.documents == [Document(ids, "web", name, 0)]
    (report,) = corpus.reports
    assert (report.documents, report.used, report.tokens, report.empty) == (1, 1, len(ids), 0)
    assert (report.source, report.slice) == (str(tmp_path / name), "web")
    assert report.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_folder_is_all_its_txt_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "c4" / "b").mkdir(parents=True)
    for name in ("z.txt", "b/late.txt", "a.txt", "skipped.md"):
        (tmp_path / "c4" / name).write_text(f"text of {name}")
    corpus = load(tmp_path / "c4")
    assert [document.where for document in corpus.documents] == ["a.txt", "b/late.txt", "z.txt"]
    assert texts(corpus) == ["text of a.txt", "text of b/late.txt", "text of z.txt"]
    assert {document.slice for document in corpus.documents} == {"c4"}
    before = corpus.reports[0].sha256
    (tmp_path / "c4/z.txt").rename(tmp_path / "c4/y.txt")
    assert load(tmp_path / "c4").reports[0].sha256 != before
    (tmp_path / "c4/x.txt").write_text("not read")
    few = load(tmp_path / "c4", documents=2)
    assert [document.where for document in few.documents] == ["a.txt", "b/late.txt"]
    assert few.reports[0].documents == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_jsonl_file_is_one_document_a_line(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, {"text": "the first"}, b"", {"text": "the second", "id": 3})
    corpus = load(path)
    assert texts(corpus) == ["the first", "the second"]
    assert [document.where for document in corpus.documents] == [f"{name}:1", f"{name}:3"]
    assert corpus.documents[0].slice == "rows"
    assert corpus.reports[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_slices_take_their_number_each_and_positions_run_on(tmp_path: Path) -> None:
    one = put(tmp_path / "one.jsonl", *[{"text": f"one number {n}"} for n in range(5)])
    other = put(tmp_path / "other.jsonl", *[{"body": f"other number {n}"} for n in range(5)])
    corpus = load(
        CorpusConfig(path=str(one), slice="news"),
        CorpusConfig(path=str(other), field="body", limit=2),
        documents=3,
    )
    assert [document.slice for document in corpus.documents] == ["news"] * 3 + ["other"] * 2
    assert [document.index for document in corpus.documents] == [0, 1, 2, 3, 4]
    assert [(r.slice, r.documents, r.used) for r in corpus.reports] == [("news", 3, 3), ("other", 2, 2)]


def test_empty_and_long_documents_are_counted(tmp_path: Path) -> None:
    rows = ["", "a", "  \n ", "word " * 50, "two words"]
    path = put(tmp_path / "rows.jsonl", *[{"text": text} for text in rows])
    corpus = load(path, max_tokens=10)
    assert [len(document.ids) for document in corpus.documents[:1]] == [10]
    assert [document.where for document in corpus.documents] == ["rows.jsonl:4", "rows.jsonl:5"]
    (report,) = corpus.reports
    assert (report.documents, report.used, report.empty, report.truncated) == (5, 2, 3, 1)
    assert report.tokens == sum(len(document.ids) for document in corpus.documents)
    # An empty document does not use up the number that was asked for.
    assert load(path, documents=1, max_tokens=10).documents == corpus.documents[:1]
    assert load(CorpusConfig(path=str(path), limit=2), max_tokens=10).documents == corpus.documents


def test_bos_is_there_exactly_if_the_tokenizer_adds_it(tmp_path: Path) -> None:
    from tokenizers import processors

    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "b.txt").write_text("b")
    plain = load(tmp_path / "a.txt").documents[0].ids
    adding = tiny_tokenizer("llama3")
    bos = int(adding.bos_token_id)
    configs = [CorpusConfig(path=str(tmp_path / name)) for name in ("a.txt", "b.txt")]
    with pytest.raises(DataError, match="b.txt: all 1 documents read are empty"):
        read_corpus(configs, adding)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{adding.bos_token} $A", special_tokens=[(adding.bos_token, bos)]
    )
    documents = read_corpus(configs, adding).documents
    assert [document.ids[0] for document in documents] == [bos, bos]
    assert adding.decode(documents[0].ids[1:]) == tokenizer("chatml").decode(plain) == "a text"
    assert len(documents[1].ids) == 2  # one token is predicted from BOS


BAD: list[tuple[dict[str, Any] | bytes, str]] = [
    (b'{"text": ', "rows.jsonl:2: not JSON (Expecting value, column 9)"),
    (b'{"text": "\xff"}', "rows.jsonl:2: not UTF-8 (invalid start byte at byte 10)"),
    (b"[1]", "rows.jsonl:2: a row must be a JSON object, not list"),
    (
        {"body": "x", "id": 1},
        "rows.jsonl:2: has no text under 'text'; set `field` to one of its keys (body, id)",
    ),
    ({"text": 3}, "rows.jsonl:2: has no text under 'text'; set `field` to one of its keys (text)"),
    ({}, "rows.jsonl:2: has no text under 'text'; set `field` to one of its keys (none)"),
    (b'{"text": "ab\\ud83d"}', "rows.jsonl:2: half of a surrogate pair at character 2; repair the text"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_is_refused_by_file_and_line(
    tmp_path: Path, row: dict[str, Any] | bytes, message: str
) -> None:
    path = put(tmp_path / "rows.jsonl", {"text": "fine text"}, row)
    assert refused(path) == message
    assert load(path, documents=1).reports[0].documents == 1  # what is not read is not judged


def test_a_source_without_documents_is_refused_with_the_fix(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", {"text": ""}, {"text": " "})
    empty = "documents read are empty (fewer than two tokens)"
    assert refused(path) == f"{path}: all 2 {empty}; change `field` (now 'text') or the source"
    (tmp_path / "a.txt").write_text("\n")
    assert refused(tmp_path / "a.txt") == f"{tmp_path}/a.txt: all 1 {empty}; change the source"
    (tmp_path / "none").mkdir()
    nothing = "has no documents; give a folder with .txt files, or a file that is not empty"
    assert refused(tmp_path / "none") == f"{tmp_path}/none: {nothing}"
    assert refused(put(tmp_path / "b.jsonl", b"")) == f"{tmp_path}/b.jsonl: {nothing}"


def test_what_is_no_plain_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    kinds = "give .txt, .md, .jsonl, .jsonl.gz or a folder of .txt files"
    assert refused(tmp_path / "a.pdf") == f"{tmp_path}/a.pdf: is not plain text; {kinds}"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert refused(tmp_path / "latin.txt").startswith(f"{tmp_path}/latin.txt: not UTF-8 (unexpected end")
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "not gzip"}\n')
    assert "gzip if it ends in .gz" in refused(tmp_path / "plain.jsonl.gz")

    def denied(*_args: Any, **_kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert refused(tmp_path / "latin.txt") == f"{tmp_path}/latin.txt: cannot be read (Permission denied)"
    path = put(tmp_path / "rows.jsonl", {"text": "x"})
    monkeypatch.setattr(Path, "open", denied)
    assert refused(path) == f"{path}: cannot be read (Permission denied)"


def test_a_missing_file_names_the_places_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EM_DATA", raising=False)
    message = refused(CorpusConfig(path="web"))
    assert message == (
        f"no data file web (looked for {tmp_path}/web); EM_DATA is not set: point it at your data folder"
    )
    (tmp_path / "data/web").mkdir(parents=True)
    (tmp_path / "data/web/a.txt").write_text("found here")
    assert texts(load(CorpusConfig(path="web"), root=str(tmp_path / "data"))) == ["found here"]
    monkeypatch.setenv("EM_DATA", str(tmp_path / "data"))
    assert texts(load(CorpusConfig(path="web"))) == ["found here"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (CorpusConfig(), "python-docs"),
        (CorpusConfig(path="a/web.v2.jsonl.gz"), "web.v2"),
        (CorpusConfig(path="a/c4.en/"), "c4.en"),
        (CorpusConfig(hub="org/wikitext", name="raw"), "wikitext-raw"),
        (CorpusConfig(hub="fineweb"), "fineweb"),
        (CorpusConfig(hub="org/set", slice="own"), "own"),
    ],
)
def test_slices_are_named_after_their_source(config: CorpusConfig, name: str) -> None:
    assert slice_name(config) == name


def test_two_corpora_of_one_slice_and_useless_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    twice = "two plain-text corpora have the slice 'a'; give each its own `slice`"
    assert refused(tmp_path / "a.txt", tmp_path / "a.txt") == twice
    sizes = "plain text needs documents >= 1 and max_tokens >= 2, got"
    assert refused(documents=0) == f"{sizes} 0, 512"
    assert refused(max_tokens=1) == f"{sizes} 100, 1"


def hub_module(rows: Any, asked: list[Any]) -> Any:
    class DatasetNotFoundError(Exception):
        pass

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return rows()

    return SimpleNamespace(
        load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetNotFoundError=DatasetNotFoundError)
    )


def test_hub_rows_are_streamed_and_no_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    drawn = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            drawn.append(number)
            yield {"content": f"web text {number}"}

    monkeypatch.setitem(sys.modules, "datasets", hub_module(rows, asked))
    source = CorpusConfig(hub="org/web", name="en", split="validation", field="content")
    corpus = load(source, documents=3)
    assert asked == [(("org/web", "en"), {"split": "validation", "streaming": True})]
    assert texts(corpus) == ["web text 0", "web text 1", "web text 2"] and drawn == [0, 1, 2]
    assert [document.where for document in corpus.documents] == ["org/web:1", "org/web:2", "org/web:3"]
    (report,) = corpus.reports
    assert (report.source, report.sha256, report.slice) == ("hub:org/web:en:validation", None, "web-en")
    load(CorpusConfig(hub="org/web", streaming=False, field="content"), documents=1)
    assert asked[1] == (("org/web", None), {"split": "train", "streaming": False})
    assert refused(CorpusConfig(hub="org/web")) == (
        "org/web:1: has no text under 'text'; set `field` to one of its keys (content)"
    )


def test_a_hub_dataset_that_fails_early_or_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def early() -> Any:
        raise ConnectionError("cannot reach the hub\nmore")

    def late() -> Iterator[dict[str, Any]]:
        yield {"text": "one text"}
        raise OSError("connection lost")

    for rows, words in ((early, "cannot reach the hub"), (late, "connection lost")):
        monkeypatch.setitem(sys.modules, "datasets", hub_module(rows, []))
        message = f"hub dataset org/web (train): cannot be loaded: {words}"
        assert refused(CorpusConfig(hub="org/web")) == message
    monkeypatch.setitem(sys.modules, "datasets", None)
    missing = "hub datasets need the package datasets: pip install datasets"
    assert refused(CorpusConfig(hub="org/web")) == missing


def test_the_built_in_corpus_is_prose_in_keyed_order() -> None:
    corpus = load()
    (report,) = corpus.reports
    assert report.slice == "python-docs" and report.sha256 is not None
    assert report.description == "English prose of the Python language reference (pydoc_data.topics)"
    assert report.source.startswith("pydoc_data.topics of Python 3.")
    assert report.documents == report.used == len(corpus.documents) >= 50 and report.empty == 0
    topics = [document.where for document in corpus.documents]
    assert topics != sorted(topics) and len(set(topics)) == len(topics)
    assert load() == corpus
    few = load(documents=5)
    assert few.documents == corpus.documents[:5] and few.reports[0].sha256 == report.sha256
    other = load(seed=1)
    assert [document.where for document in other.documents] != topics
    assert other.reports[0].sha256 == report.sha256  # the same texts in another order


def test_built_in_documents_are_long_enough_and_have_no_code() -> None:
    documents = dict(prose.python_docs(0))
    assert all(len(text.split()) >= prose.MIN_WORDS for text in documents.values())
    paragraphs = [paragraph for text in documents.values() for paragraph in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))
    assert not any(mark in text for text in documents.values() for mark in ("::=", ">>>", "\n   ", "***"))
    assert "Assignment statements are used to (re)bind names to values" in documents["assignment"]


def test_code_headings_and_grammar_are_left_out() -> None:
    text = (
        'The "with" statement\n********************\n\n'
        "The statement is used to wrap the execution of a\nblock with methods of a manager.\n\n"
        '   with_stmt ::= "with" with_item ("," with_item)* ":" suite and so on here\n\n'
        "   manager = (EXPRESSION)\n   enter = type(manager).__enter__\n   value = enter(manager)\n\n"
        "   for i in range(10):  # this is a comment in the loop\n       go on and on\n\n"
        "   * An indented item of a list is prose as well.\n\n"
        "Short line.\n"
    )
    assert prose.prose(text) == [
        "The statement is used to wrap the execution of a block with methods of a manager.",
        "* An indented item of a list is prose as well.",
    ]


def test_a_python_without_its_topics_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert refused().endswith(" lacks pydoc_data.topics; give a corpus by path or hub")


def corpus_of(lengths: list[int]) -> Corpus:
    return Corpus([Document([5] * n, "s", f"f:{i}", i) for i, n in enumerate(lengths)])


def test_rows_are_padded_sorted_and_without_answers() -> None:
    first, second = corpus_rows(corpus_of([4, 2, 3]), 2, 9)
    assert first.input_ids_BT.tolist() == [[5, 5, 9], [5, 5, 5]]
    assert (first.index_B.tolist(), second.index_B.tolist()) == ([1, 2], [0])
    assert first.length_B.tolist() == [2, 3]
    assert not first.answer_BT.any() and first.real_BT.tolist() == [[True, True, False], [True, True, True]]
    assert list(corpus_rows(corpus_of([]), 2, 9)) == []


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=20),
    size=st.integers(1, 5),
    world=st.integers(1, 4),
)
def test_processes_share_every_document_in_equally_many_batches(
    lengths: list[int], size: int, world: int
) -> None:
    shares = [list(corpus_rows(corpus_of(lengths), size, 0, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    rows = [one for share in shares for one in share]
    found = [
        (int(i), int(n))
        for one in rows
        for i, n in zip(one.index_B, one.length_B, strict=True)
        if int(i) >= 0
    ]
    assert sorted(found) == list(enumerate(lengths))
    assert all(len(one) <= size for one in rows)
