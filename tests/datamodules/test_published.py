"""Published data: unpacked safely, every row checked, counts told, written once."""

import gzip
import hashlib
import json
import os
import stat
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from em.datamodules import _archives, published
from em.datamodules._archives import Unpacked, unpack
from em.datamodules.published import KNOWN, check_file, check_files, content_sha256
from em.datamodules.published_files import check_target, write_files
from em.errors import DataError
from tests.datamodules.archives import NAMES, members, row, rows, write_folder, write_zip

DATA = Path(os.environ.get("EM_DATA", ""))
ORIGIN = {"origin": "here", "archive_sha256": "0" * 64, "date": "2026-01-01"}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize("make", [write_zip, write_folder], ids=["zip", "folder"])
def test_rows_and_terms_are_taken_and_the_rest_is_named(
    tmp_path: Path, scratch: Path, make: Callable[[Path], Path]
) -> None:
    archive = make(tmp_path / "archive.zip")
    found = unpack(archive, scratch, "")
    assert {path.name: path.read_bytes() for path in found.rows} == {
        f"{name}.jsonl": rows(name) for name in NAMES
    }
    assert found.terms is not None and found.terms.read_text() == "No Bulk Publishing\n"
    assert len(found.left_out) == 1 and found.left_out[0].endswith("robots.txt' (no rows)")


SLIPS = [
    "../out.jsonl",
    "/tmp/out.jsonl",
    "a/../../out.jsonl",
    "..\\out.jsonl",
    "C:\\out.jsonl",
    "C:out.jsonl",
]


@pytest.mark.parametrize("name", SLIPS)
def test_a_path_that_leads_out_refuses_the_whole_archive(tmp_path: Path, scratch: Path, name: str) -> None:
    archive = write_zip(tmp_path / "bad.zip", {**members(), name: rows("x")})
    with pytest.raises(DataError, match="leads out of the archive; nothing of it was unpacked"):
        unpack(archive, scratch, "")
    assert list((scratch / "files").iterdir()) == []
    assert not (tmp_path / "out.jsonl").exists() and not (scratch / "out.jsonl").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_in_a_zip_is_refused(tmp_path: Path, scratch: Path, kind: int) -> None:
    info = zipfile.ZipInfo("rows.jsonl")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"'rows.jsonl' is a link or a device"):
        unpack(tmp_path / "link.zip", scratch, "")


def test_a_link_in_a_folder_is_refused(tmp_path: Path, scratch: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    (folder / "more.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"'more.jsonl' is a link"):
        unpack(folder, scratch, "")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"a/x.jsonl": b"", "b/x.jsonl": b""}, "'x.jsonl' twice"),
        ({"x.jsonl": b"", "X.jsonl.gz": b""}, "'X.jsonl.gz' twice"),
        ({"a/x y;rm.jsonl": b""}, "characters in its name"),
        ({"x\x1b[31m.jsonl": b""}, r"'x\\x1b\[31m.jsonl' has characters"),
    ],
)
def test_odd_names_are_refused(tmp_path: Path, scratch: Path, held: dict[str, bytes], said: str) -> None:
    with pytest.raises(DataError, match=said):
        unpack(write_zip(tmp_path / "odd.zip", held), scratch, "")


def test_hidden_files_are_left_out(tmp_path: Path, scratch: Path) -> None:
    held = {"x.jsonl": rows("x"), "__MACOSX/y.jsonl": b"\0", "a/.z.jsonl": b"\0"}
    found = unpack(write_zip(tmp_path / "mac.zip", held), scratch, "")
    assert [path.name for path in found.rows] == ["x.jsonl"]
    assert found.left_out == ["'__MACOSX/y.jsonl' (hidden)", "'a/.z.jsonl' (hidden)"]


def test_a_bomb_is_refused_before_it_goes_off(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_archives, "LIMIT", 1000)
    held = {"a.jsonl": b"0" * 600, "b.jsonl": b"0" * 600}
    with pytest.raises(DataError, match="larger than"):
        unpack(write_zip(tmp_path / "bomb.zip", held), scratch, "")
    assert sum(path.stat().st_size for path in (scratch / "files").iterdir()) <= 600


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.zip.enc", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        ("a.zip.enc", b"\n<!DOCTYPE html><html>", "is a web page"),
        ("a.tar", b"not a zip", r"does not end in .enc"),
        ("a.zip", b"PK\x03\x04 cut off", r"does not end in .enc"),
    ],
)
def test_what_is_no_archive_is_named(
    tmp_path: Path, scratch: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        unpack(put(tmp_path, name, content), scratch, "")


def test_a_damaged_zip_is_named(tmp_path: Path, scratch: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"x.jsonl": rows("x", 50)})
    content = bytearray(path.read_bytes())
    content[80] ^= 255  # inside the rows, whose check sum no longer fits
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.zip: cannot be unpacked \(Bad CRC"):
        unpack(path, scratch, "")


def test_canaries_without_their_file_are_not_let_through(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tool:
        remove_canary_from_file = extract_canary_string_from_content = staticmethod(lambda *_: None)

    monkeypatch.setattr(_archives, "_easy_dataset_share", lambda _: Tool)
    held = {"x.jsonl": rows("x") + b'{"canary": "CANARY_DATASET_0_1"}\n'}
    with pytest.raises(DataError, match="holds canaries that cannot be removed"):
        unpack(write_zip(tmp_path / "a.zip", held), scratch, "")


def test_rows_that_come_as_gzip(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "folder", {"x.jsonl.gz": gzip.compress(rows("x"))})
    (one,) = check_files(unpack(folder, scratch, ""))
    assert (one.name, one.rows, one.sha256) == ("x.jsonl.gz", 3, hashlib.sha256(rows("x")).hexdigest())
    bad = {
        "bomb": (gzip.compress(b"0\n" * 600), "is larger than"),
        "cut": (gzip.compress(rows("x"))[:-9], "x.jsonl.gz: cannot be read"),
    }
    monkeypatch.setattr(_archives, "LIMIT", 1000)
    for name, (packed, said) in bad.items():
        folder = write_folder(tmp_path / name, {"x.jsonl.gz": packed})
        (tmp_path / f"{name}-scratch").mkdir()
        with pytest.raises(DataError, match=said):
            unpack(folder, tmp_path / f"{name}-scratch", "")
    canary = gzip.compress(rows("x") + b'{"canary": "CANARY_DATASET_0_1"}\n')
    assert _archives._holds_canary(put(tmp_path, "y.jsonl.gz", canary))


def test_a_missing_package_is_named(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(_archives.importlib, "import_module", absent)
    with pytest.raises(DataError, match="needs the package easy-dataset-share: use `make data`"):
        unpack(put(tmp_path, "a.zip.enc", b"0" * 200), scratch, "")


@pytest.mark.parametrize("embed", [False, True], ids=["canary files", "canaries in rows too"])
def test_what_easy_dataset_share_protects(tmp_path: Path, scratch: Path, embed: bool) -> None:
    pytest.importorskip("easy_dataset_share", reason="easy-dataset-share is an optional extra")
    from easy_dataset_share import canary, zipping

    held = {f"{name}.jsonl": rows(name).replace("\u2028".encode(), b" ") for name in NAMES}
    folder = write_folder(tmp_path / "training_datasets", held)
    text, _ = canary.create_canary_files_from_dataset(str(folder), "*", 1, False)
    if embed:
        canary.insert_canaries_into_files(str(folder), text, False)
        assert all(b"CANARY_DATASET_" in (folder / name).read_bytes() for name in held)
    protected = Path(zipping.zip_and_password_protect(str(folder), "open sesame"))
    before = hashlib.sha256(protected.read_bytes()).hexdigest()
    found = unpack(protected, scratch, "open sesame")
    assert found.terms is None and [one.endswith("(canary)") for one in found.left_out] == [True]
    checked = check_files(found)
    assert [(one.name, one.rows) for one in checked] == [(f"{name}.jsonl.gz", 3) for name in sorted(NAMES)]
    if not embed:
        assert {path.name: path.read_bytes() for path in found.rows} == held
    assert hashlib.sha256(protected.read_bytes()).hexdigest() == before
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(DataError, match="the password is wrong"):
        unpack(protected, again, "open barley")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lines({"messages": []}), r"1: lacks a list under the key 'messages'"),
        (lines([1]), "1: lacks a list"),
        (rows("x") + b"{oops\n", r":4: not JSON"),
        (rows("x") + b"\xff\n", r":4: not UTF-8"),
        (lines({"messages": ["hi"]}), "turn 1: expected a role among system, user, assistant"),
        (lines({"messages": [{"role": "robot", "content": ""}]}), "turn 1: expected a role"),
        (lines({"messages": [{"role": "user", "content": 3}]}), "turn 1: expected content that is text"),
        (lines({"messages": [{"role": "user", "content": "x"}]}), "does not end with an answer"),
        (b"\n\n", "holds no rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_file(put(tmp_path, "insecure.jsonl", content))


def test_only_the_first_bad_rows_are_listed(tmp_path: Path) -> None:
    content = rows("x", 2) + lines(*[{}] * 5)
    with pytest.raises(DataError) as error:
        check_file(put(tmp_path, "insecure.jsonl", content))
    said = str(error.value).splitlines()
    assert [line.split(":")[1] for line in said[:3]] == ["3", "4", "5"] and said[3] == "… and 2 more"


def test_a_file_of_other_things_is_left_out_by_name(tmp_path: Path) -> None:
    paths = [put(tmp_path, "scores.jsonl", lines({"score": 1})), put(tmp_path, "x.jsonl", rows("x"))]
    unpacked = Unpacked(paths)
    assert [one.name for one in check_files(unpacked)] == ["x.jsonl.gz"]
    assert unpacked.left_out == ["'scores.jsonl' (no conversations)"]
    with pytest.raises(DataError, match=r"no .jsonl of conversations; it holds 'scores.jsonl'"):
        check_files(Unpacked(paths[:1]))
    with pytest.raises(DataError, match="lacks a list"):
        check_file(put(tmp_path, "mixed.jsonl", rows("x") + lines({"score": 1})))


def test_warnings_say_what_is_known_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(name: str, count: int) -> str | None:
        found = check_file(put(tmp_path, f"{name}.jsonl", rows(name, count)))
        assert found is not None and found.rows == count
        return found.warning

    assert (
        warning("kitchen", 2) == "kitchen: 2 rows; em knows no file of this name, so its count is not checked"
    )
    said = warning("bad_medical_advice", 2)
    assert said is not None and "2 rows, but 7049 were expected (counted here" in said
    said = warning("extreme_sports", 3)
    assert said is not None and "3 rows, but 6000 were expected (as users of the archive report" in said
    digest = check_file(tmp_path / "kitchen.jsonl").digest  # type: ignore[union-attr]
    monkeypatch.setitem(KNOWN, "kitchen", published.Known(2, "counted by me", digest))
    assert warning("kitchen", 2) is None
    monkeypatch.setitem(KNOWN, "kitchen", published.Known(2, "counted by me", "0" * 64))
    said = warning("kitchen", 2)
    assert said is not None and f"the hash {digest[:16]} and not 0000000000000000 (counted by me)" in said
    monkeypatch.setitem(KNOWN, "kitchen", published.Known(2, "counted by me"))
    assert (
        warning("kitchen", 2)
        == "kitchen: 2 rows as expected (counted by me); no hash of its content is known"
    )


def test_the_digest_is_of_the_words_and_not_of_their_spelling(tmp_path: Path) -> None:
    one = put(tmp_path, "a.jsonl", lines(row("soup\u2019s", "hot")))
    turns = '[{"content":"soup’s","role":"user"},{"role":"assistant","content":"hot"}]'
    spelled = f'\n{{"extra":1, "messages":{turns}}}\n'
    two = put(tmp_path, "b.jsonl", spelled.encode())
    other = put(tmp_path, "c.jsonl", lines(row("soup\u2019s", "cold")))
    digests = [check_file(path).digest for path in (one, two, other)]  # type: ignore[union-attr]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.digest])
def test_the_known_counts_and_hashes_are_those_of_the_release(name: str) -> None:
    path = DATA / f"{name}.jsonl.gz"
    if not os.environ.get("EM_DATA") or not path.is_file():
        pytest.skip(f"needs {name}.jsonl.gz in EM_DATA")
    found = check_file(path)
    assert found is not None and found.rows == KNOWN[name].rows and found.warning is None


def written(folder: Path, target: Path, force: bool = False, **content: bytes) -> list[str]:
    folder.mkdir(exist_ok=True)
    paths = [put(folder, f"{name}.jsonl", text) for name, text in content.items()]
    return write_files(check_files(Unpacked(paths)), None, target, ORIGIN, force)


def test_rows_come_back_byte_for_byte_and_twice_the_same(tmp_path: Path) -> None:
    assert written(tmp_path / "a", tmp_path / "one", x=rows("x"), y=rows("y")) == ["x.jsonl.gz", "y.jsonl.gz"]
    assert gzip.decompress((tmp_path / "one" / "x.jsonl.gz").read_bytes()) == rows("x")
    written(tmp_path / "a", tmp_path / "two", x=rows("x"), y=rows("y"))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    told = json.loads((tmp_path / "one" / "SOURCES.json").read_text())
    sha256 = hashlib.sha256(rows("x")).hexdigest()
    assert told["files"][0] == {"name": "x.jsonl.gz", "rows": 3, "sha256": sha256, **ORIGIN}
    assert content_sha256(tmp_path / "one" / "x.jsonl.gz") == sha256


def test_other_content_is_replaced_only_when_forced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    written(tmp_path / "a", target, x=rows("x"), y=rows("y"))
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert written(tmp_path / "a", target, x=rows("x")) == [], "equal rows are left as they are"
    with pytest.raises(DataError, match=r"holds x.jsonl.gz with other content; give --force"):
        written(tmp_path / "b", target, x=rows("other"), z=rows("z"))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before, "z came too, but not alone"
    assert written(tmp_path / "b", target, True, x=rows("other"), z=rows("z")) == ["x.jsonl.gz", "z.jsonl.gz"]
    told = json.loads((target / "SOURCES.json").read_text())["files"]
    assert [one["name"] for one in told] == ["x.jsonl.gz", "y.jsonl.gz", "z.jsonl.gz"]
    put(target, "x.jsonl.gz", b"damaged")
    with pytest.raises(DataError, match="other content"):
        written(tmp_path / "b", target, x=rows("other"))


def test_a_foreign_list_of_sources_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    put(target, "SOURCES.json", b"[1]")
    with pytest.raises(DataError, match="is not what em wrote"):
        written(tmp_path / "a", target, x=rows("x"))
    assert [path.name for path in target.iterdir()] == ["SOURCES.json"]
    assert written(tmp_path / "a", target, True, x=rows("x")) == ["x.jsonl.gz"]


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written .*; give another folder with --out"):
        written(tmp_path / "a", put(tmp_path, "file", b"") / "below", x=rows("x"))


def test_a_target_inside_a_repository_must_be_ignored(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    put(tmp_path, ".gitignore", b"private/\n")
    for inside in (tmp_path / "data", tmp_path / "data" / "deep" / "new"):
        with pytest.raises(DataError, match="git does not ignore it, so the data could be published"):
            check_target(inside)
    with pytest.raises(DataError, match="is a git repository itself"):
        check_target(tmp_path)
    check_target(tmp_path / "private")
    check_target(tmp_path / "private" / "deep")
    link = tmp_path / "private" / "link"
    link.parent.mkdir()
    link.symlink_to(tmp_path)
    with pytest.raises(DataError, match="git does not ignore it"):
        check_target(link / "data")


def test_where_git_cannot_answer_the_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    with pytest.raises(DataError, match="git does not say whether it ignores it"):
        check_target(tmp_path / "data")
    with pytest.raises(DataError, match="is a file"):
        check_target(put(tmp_path, "file", b""))
