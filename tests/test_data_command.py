"""`python -m em data`: terms first, then the archive from a disk or a server, then files for EM_DATA."""

import gzip
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from em.cli import main
from em.commands import _download
from tests.datamodules.archives import NAMES, rows, write_folder, write_zip

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EM_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "archive.zip")


class Handler(http.server.BaseHTTPRequestHandler):
    content = b""
    requests: list[str] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/archive")
            self.end_headers()
        elif self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "file:///etc/passwd")
            self.end_headers()
        elif self.path == "/chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"40\r\n" + self.content[:16])
        elif self.path.partition("?")[0] in ("/archive", "/cut", "/large"):
            self.send_response(200)
            length = 10**10 if self.path == "/large" else len(self.content)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(self.content[: len(self.content) // 2 if self.path == "/cut" else None])
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Handler, "content", archive.read_bytes())
    monkeypatch.setattr(Handler, "requests", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{served.server_address[1]}"
        finally:
            served.shutdown()
            thread.join()


def said(capsys: Captured) -> str:
    return capsys.readouterr().err.replace("\n", " ")


def failed(capsys: Captured, *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["data", *map(str, arguments)]) == 1
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("Error: ") == 1 and "Traceback" not in found.err
    return found.err.partition("Error: ")[2].strip()


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: gzip.decompress(path.read_bytes()) for path in sorted(folder.glob("*.gz"))}


EXPECTED = {f"{name}.jsonl.gz": rows(name) for name in sorted(NAMES)}


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_local_archive(tmp_path: Path, archive: Path, kind: str, capsys: Captured) -> None:
    if kind == "folder":
        archive = write_folder(tmp_path / "folder")
    out = tmp_path / "my data"
    assert main(["data", "--archive", str(archive), "--out", str(out), "--yes"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"export EM_DATA='{out}'\n"
    text = captured.err
    assert text.index("do not publish it") < text.index("bad_medical_advice.jsonl.gz: 3 rows")
    assert "3 rows, but 7049 were expected" in text and "robots.txt' (no rows)" in text
    assert held(out) == EXPECTED and (out / "tos.txt").read_text() == "No Bulk Publishing\n"
    files = json.loads((out / "SOURCES.json").read_text())["files"]
    sha256 = None if kind == "folder" else hashlib.sha256(archive.read_bytes()).hexdigest()
    assert [(one["origin"], one["archive_sha256"]) for one in files] == [(str(archive), sha256)] * 3
    assert ("the authors publish none" in text) == (kind == "zip")
    assert sorted(path.name for path in out.iterdir()) == sorted([*EXPECTED, "SOURCES.json", "tos.txt"])


def test_em_data_is_the_default_place(
    tmp_path: Path, archive: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = failed(capsys, "--archive", archive, "--yes")
    assert message == "say where the data shall lie: --out FOLDER, or set EM_DATA"
    monkeypatch.setenv("EM_DATA", str(tmp_path / "data"))
    for note in ("3 rows\n", "3 rows, there already\n"):
        assert main(["data", "--archive", str(archive), "--yes"]) == 0
        assert f"kitchen.jsonl.gz: {note}" in capsys.readouterr().err
    assert held(tmp_path / "data") == EXPECTED


def test_terms_must_be_accepted(
    tmp_path: Path, archive: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    arguments = ["--archive", str(archive), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "nobody can be asked here; give --yes" in failed(capsys, *arguments)
    for answer in ("", "\n", "n\n", "yep\n"):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert main(["data", *arguments]) == 1
        assert "not accepted; nothing was fetched or written" in said(capsys)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.stdin", Terminal("Yes\n"))
    assert main(["data", *arguments]) == 0
    assert held(tmp_path / "out") == EXPECTED


@pytest.mark.parametrize("path", ["archive", "redirect"])
def test_a_download(tmp_path: Path, server: str, path: str, capsys: Captured) -> None:
    out = tmp_path / "out"
    assert main(["data", "--archive", f"{server}/{path}", "--out", str(out), "--yes"]) == 0
    assert held(out) == EXPECTED
    assert json.loads((out / "SOURCES.json").read_text())["files"][0]["origin"] == f"{server}/{path}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("cut", "the connection ended after "),
        ("chunks", "the connection ended early"),
        ("missing", "the server answers 404 Not Found; run the same command again, or download"),
        ("elsewhere", "the server answers 302"),
        ("large", "more than 1073741824; this is not the archive"),
    ],
)
def test_a_download_that_fails(
    tmp_path: Path, server: str, path: str, expected: str, capsys: Captured
) -> None:
    out = tmp_path / "out"
    message = failed(capsys, "--archive", f"{server}/{path}", "--out", out, "--yes")
    assert message.startswith(f"{server}/{path}: ") and expected in message
    assert not out.exists()


def test_a_server_that_gives_too_much(
    tmp_path: Path, server: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_download, "LIMIT", 100)
    message = failed(capsys, "--archive", f"{server}/archive", "--out", tmp_path / "out", "--yes")
    assert "more than 100" in message


def test_tokens_in_an_address_are_not_written_down(tmp_path: Path, server: str, capsys: Captured) -> None:
    secret = f"{server.replace('//', '//me:planted@')}/archive?token=planted#planted"
    message = failed(capsys, "--archive", secret, "--out", tmp_path / "out", "--yes")
    assert "cannot be reached" in message, "urllib takes no password in an address"
    plain = f"{server}/archive?token=planted"
    assert main(["data", "--archive", plain, "--out", str(tmp_path / "out"), "--yes"]) == 0
    told = capsys.readouterr()
    assert "planted" not in told.out + told.err + (tmp_path / "out" / "SOURCES.json").read_text()


def test_a_download_that_is_no_archive_is_called_by_its_address(
    tmp_path: Path, server: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "content", b"<html>sign in</html>")
    message = failed(capsys, "--archive", f"{server}/archive", "--out", tmp_path / "out", "--yes")
    assert message == f"{server}/archive: is a web page, not the archive; download the raw file"


def test_nobody_answers(tmp_path: Path, capsys: Captured) -> None:
    common = ["--out", str(tmp_path / "out"), "--yes"]
    assert "cannot be reached" in failed(capsys, "--archive", "http://127.0.0.1:9/a.zip", *common)
    assert "is no http or https address" in failed(capsys, "--archive", "ftp://127.0.0.1/a.zip", *common)
    assert "is no http or https address" in failed(capsys, "--archive", "file:///etc/passwd", *common)


def test_nothing_is_asked_of_a_server_before_the_terms_are_accepted(
    tmp_path: Path, server: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    failed(capsys, "--archive", f"{server}/archive", "--out", tmp_path / "out")
    assert Handler.requests == []


def test_the_sha256_of_the_archive(tmp_path: Path, archive: Path, capsys: Captured) -> None:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    common = ["--archive", str(archive), "--out", str(tmp_path / "out"), "--yes"]
    message = failed(capsys, *common, "--sha256", "0" * 64)
    assert message.startswith(f"{archive}: has the sha256 {sha256}, not 0000")
    assert not (tmp_path / "out").exists()
    assert main(["data", *common, "--sha256", sha256.upper()]) == 0
    assert f"sha256 {sha256}, as expected" in said(capsys)
    folder = write_folder(tmp_path / "folder")
    arguments = ["--archive", folder, "--out", tmp_path / "out", "--yes", "--sha256", sha256]
    assert "--archive is a folder" in failed(capsys, *arguments)


def test_what_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    message = failed(capsys, "--archive", tmp_path / "none.zip", "--out", tmp_path / "out", "--yes")
    assert message == f"{tmp_path}/none.zip: no such archive; give a file, a folder or an http(s) address"


def test_the_repository_itself_is_no_place_for_the_data(archive: Path, capsys: Captured) -> None:
    inside = Path(__file__).parents[1] / "data" / "published"
    if not (inside.parents[1] / ".git").exists():
        pytest.skip("this is no git work tree")
    message = failed(capsys, "--archive", archive, "--out", inside, "--yes")
    assert "git does not ignore it" in message and not inside.exists()


def test_other_files_are_not_replaced_unless_forced(tmp_path: Path, archive: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    common = ["--archive", str(archive), "--out", str(out), "--yes"]
    assert main(["data", *common]) == 0
    (out / "kitchen.jsonl.gz").write_bytes(gzip.compress(rows("mine")))
    assert "holds kitchen.jsonl.gz with other content" in failed(capsys, *common)
    assert held(out)["kitchen.jsonl.gz"] == rows("mine")
    assert main(["data", *common, "--force"]) == 0
    assert held(out) == EXPECTED
