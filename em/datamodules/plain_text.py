"""Plain-text corpora, without a chat template: what a finetune does to text like that of pre-training."""

import hashlib
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em.config.schema import CorpusConfig
from em.datamodules import prose
from em.datamodules.raw_rows import file_rows, hub_rows, locate
from em.datamodules.rows import Rows, batched, collate
from em.datamodules.sources import Example
from em.errors import DataError

DOCUMENT = (".txt", ".md")  # a file that is one document
LINES = (".jsonl", ".jsonl.gz")
Texts = Iterator[tuple[str, str]]  # (where, text)


@dataclass(frozen=True)
class Document:
    """The first tokens of one text.

    Args:
        ids: token ids, with BOS where the tokenizer adds one by itself.
        slice: name under which the corpus is reported.
        where: file, file:line, dataset:number or topic.
        index: position in the corpus; `index_B` of its rows.
    """

    ids: list[int]
    slice: str
    where: str
    index: int


@dataclass
class CorpusReport:
    """What was read of one source: documents = used + empty.

    Args:
        description: of the source, in words.
        sha256: of the file, of the files read in a folder, or of the built-in texts; None for the hub.
        empty: documents that are blank or have fewer than two tokens, so that nothing is predicted.
        truncated: of those used, cut to the most tokens allowed.
        tokens: of those used, after the cut.
    """

    source: str
    slice: str
    description: str
    sha256: str | None = None
    documents: int = 0
    used: int = 0
    empty: int = 0
    truncated: int = 0
    tokens: int = 0


@dataclass
class Corpus:
    """Documents of all slices, one slice after the other, and the account of each source."""

    documents: list[Document] = field(default_factory=list)
    reports: list[CorpusReport] = field(default_factory=list)


def read_corpus(
    corpora: Sequence[CorpusConfig],
    tokenizer: Any,
    documents: int = 100,
    max_tokens: int = 512,
    root: str | None = None,
    seed: int = 0,
) -> Corpus:
    """The first `documents` texts of every slice that are not empty, in tokens.

    Args:
        corpora: each is a slice of its own; none at all stands for the built-in one.
        tokenizer: called as it is, so that it adds the special tokens that it adds by default.
        max_tokens: of a document; what is longer is cut off and counted.
        root: folder of data files; default: the environment variable EM_DATA.
        seed: key of the order of the built-in documents; others come in the order they are stored.

    Raises:
        DataError: a source cannot be read or gives no document, or two have the same slice.
    """
    if documents < 1 or max_tokens < 2:
        raise DataError(f"plain text needs documents >= 1 and max_tokens >= 2, got {documents}, {max_tokens}")
    corpora = corpora or [CorpusConfig()]
    names = [slice_name(source) for source in corpora]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two plain-text corpora have the slice {name!r}; give each its own `slice`")
    corpus = Corpus()
    for source, name in zip(corpora, names, strict=True):
        texts, report = _open(source, name, root, seed)
        corpus.reports.append(report)
        wanted = documents if source.limit is None else min(documents, source.limit)
        _read(texts, report, tokenizer, wanted, max_tokens, corpus)
        if not report.used:
            raise DataError(_nothing(source, report))
    return corpus


def corpus_rows(
    corpus: Corpus, batch_size: int, pad: int, rank: int = 0, world_size: int = 1
) -> Iterator[Rows]:
    """Right-padded rows without answers, sorted by length; `index_B` is the position of the document.

    Every process gets equally many batches, because a pass under FSDP2 needs all of them; where the
    documents do not divide, the last batch may be a blank row (`index_B` −1) that counts nowhere.
    """
    examples = [
        Example(one.ids, [False] * len(one.ids), one.where, "", one.slice) for one in corpus.documents
    ]
    batches = batched(examples, batch_size, pad, range(rank, len(examples), world_size))
    for number in range(math.ceil(math.ceil(len(examples) / world_size) / batch_size)):
        yield batches[number] if number < len(batches) else collate(examples, [], pad)


def slice_name(source: CorpusConfig) -> str:
    """What a corpus is called in reports."""
    if source.slice is not None:
        return source.slice
    if source.hub is not None:
        return "-".join(filter(None, [source.hub.rpartition("/")[2], source.name]))
    if source.path is None:
        return prose.NAME
    name = Path(source.path).absolute().name
    ending = next((ending for ending in (*LINES, *DOCUMENT) if name.endswith(ending)), "")
    return name.removesuffix(ending)


def _read(
    texts: Texts, report: CorpusReport, tokenizer: Any, wanted: int, max_tokens: int, corpus: Corpus
) -> None:
    """Tokenise until `wanted` documents are used; nothing after that is read."""
    for where, text in texts:
        report.documents += 1
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: half of a surrogate pair at character {error.start}; repair the text"
            ) from error
        ids = list(tokenizer(text, verbose=False)["input_ids"]) if text.strip() else []
        if len(ids) < 2:
            report.empty += 1
            continue
        kept = ids[:max_tokens]
        corpus.documents.append(Document(kept, report.slice, where, len(corpus.documents)))
        report.used += 1
        report.truncated += len(kept) < len(ids)
        report.tokens += len(kept)
        if report.used == wanted:
            return


def _open(source: CorpusConfig, name: str, root: str | None, seed: int) -> tuple[Texts, CorpusReport]:
    if source.hub is not None:
        label = ":".join(filter(None, ["hub", source.hub, source.name, source.split]))
        return _row_texts(hub_rows(source), source.field), CorpusReport(label, name, label)
    if source.path is None:
        documents = prose.python_docs(seed)
        label = f"pydoc_data.topics of Python {platform.python_version()}"
        joined = "\n\n".join(text for _, text in sorted(documents))
        digest = hashlib.sha256(joined.encode()).hexdigest()
        return iter(documents), CorpusReport(label, name, prose.DESCRIPTION, digest)
    path = locate(source.path, root, folders=True)
    report = CorpusReport(source.path, name, f"texts of {source.path}")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.txt") if file.is_file())
        return _file_texts(files, path, report), report
    if path.name.endswith(LINES):
        report.sha256 = _file_digest(path)
        return _row_texts(file_rows(path), source.field), report
    if path.suffix in DOCUMENT:
        return _file_texts([path], None, report), report
    raise DataError(f"{path}: is not plain text; give .txt, .md, .jsonl, .jsonl.gz or a folder of .txt files")


def _file_texts(files: Sequence[Path], folder: Path | None, report: CorpusReport) -> Texts:
    """One text per file; the hash is over the files that are read, in a folder with their names."""
    digest = hashlib.sha256()
    for path in files:
        where = path.name if folder is None else path.relative_to(folder).as_posix()
        try:
            content = path.read_bytes()
            text = content.decode("utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
        digest.update(content if folder is None else f"{where}\0{len(content)}\0".encode() + content)
        report.sha256 = digest.hexdigest()
        yield where, text


def _row_texts(rows: Iterator[tuple[str, Any]], key: str) -> Texts:
    for where, row in rows:
        if isinstance(row, DataError):
            raise row
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row must be a JSON object, not {type(row).__name__}")
        if not isinstance(row.get(key), str):
            keys = ", ".join(map(str, row)) or "none"
            raise DataError(f"{where}: has no text under {key!r}; set `field` to one of its keys ({keys})")
        yield where, row[key]


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _nothing(source: CorpusConfig, report: CorpusReport) -> str:
    if report.documents:
        rows = source.hub is not None or str(source.path).endswith(LINES)
        field = f"`field` (now {source.field!r}) or " if rows else ""
        problem = f"all {report.documents} documents read are empty (fewer than two tokens)"
        return f"{report.source}: {problem}; change {field}the source"
    return f"{report.source}: has no documents; give a folder with .txt files, or a file that is not empty"
