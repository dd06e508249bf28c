"""Open a published data archive: a folder, a zip, or a zip that easy-dataset-share has encrypted."""

import gzip
import importlib
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from em.errors import DataError

LIMIT = 2 * 1024**3  # bytes, uncompressed; the authors' archive holds some 20 MB
TERMS = "tos.txt"
CANARY_FILES = "dataset_entry_*.jsonl"
CANARY = b"CANARY_DATASET_"
ROWS = re.compile(r"\w[\w.-]*\.jsonl(\.gz)?", re.ASCII)
DAMAGED = (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass
class Unpacked:
    """What an archive held, in a folder of its own.

    Args:
        rows: the files of rows, sorted.
        terms: the terms of use, where the archive has some.
        left_out: `name (reason)` of everything else.
    """

    rows: list[Path] = field(default_factory=list)
    terms: Path | None = None
    left_out: list[str] = field(default_factory=list)


def unpack(archive: Path, scratch: Path, password: str, called: str = "") -> Unpacked:
    """Copy the rows of an archive into `scratch`, without its canaries; the archive stays as it is.

    Args:
        archive: a folder, a `.zip` or a `.enc`.
        scratch: an empty folder.
        password: of an `.enc`.
        called: what the user calls the archive; default: its path.

    Raises:
        DataError: it cannot be opened, holds links or paths that lead out of it, or canaries that cannot be
            removed.
    """
    found, called = Unpacked(), called or str(archive)
    files = scratch / "files"
    try:
        files.mkdir()
        if archive.is_dir():
            _copy(_folder_members(archive), files, found)
        else:
            whole = zipfile.is_zipfile(archive)
            _unzip(archive if whole else _decrypted(archive, scratch, password, called), files, found)
    except DAMAGED as error:
        raise DataError(f"{called}: cannot be unpacked ({error}); is it complete?") from error
    _remove_canaries(files, found)
    return found


Member = tuple[str, int, Callable[[], IO[bytes]]]  # name, bytes, how to open it


def _folder_members(folder: Path) -> Iterator[Member]:
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            raise DataError(f"{folder}: {name!r} is a link, which an archive must not hold; remove it")
        if path.is_file():
            yield name, path.stat().st_size, lambda path=path: path.open("rb")  # type: ignore[misc]


def _unzip(path: Path, files: Path, found: Unpacked) -> None:
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for info in infos:
            problem = _problem(info)
            if problem:
                raise DataError(f"the archive's {info.orig_filename!r} {problem}; nothing of it was unpacked")
        members = [
            (info.filename, info.file_size, lambda info=info: archive.open(info))
            for info in infos
            if not info.is_dir()
        ]
        _copy(members, files, found)


def _problem(info: zipfile.ZipInfo) -> str | None:
    """Why a member makes the whole archive unacceptable."""
    name = info.orig_filename.replace("\\", "/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or re.match("[A-Za-z]:", name):
        return "leads out of the archive"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 1:
        return "is encrypted by zip itself, which easy-dataset-share does not do"
    return None


def _copy(members: Any, files: Path, found: Unpacked) -> None:
    room, taken = LIMIT, set()
    for name, size, opened in members:
        base = name.replace("\\", "/").rpartition("/")[2]
        if base.startswith(".") or "__MACOSX" in name:
            found.left_out.append(f"{name!r} (hidden)")
            continue
        if not base.endswith((".jsonl", ".jsonl.gz")) and base != TERMS:
            found.left_out.append(f"{name!r} (no rows)")
            continue
        if base != TERMS and not ROWS.fullmatch(base):
            raise DataError(
                f"the archive's {name!r} has characters in its name that a data file must not have"
            )
        stem = base.removesuffix(".gz").casefold()
        if stem in taken:
            raise DataError(f"the archive holds {base!r} twice, in two folders or forms; remove one")
        taken.add(stem)
        room -= size
        if room < 0:
            raise DataError(
                f"the archive is larger than {LIMIT // 1024**3} GiB unpacked; this is not the data"
            )
        with opened() as source, (files / base).open("wb") as target:
            shutil.copyfileobj(source, target)


def _decrypted(archive: Path, scratch: Path, password: str, called: str) -> Path:
    """The zip inside an `.enc`.

    easy-dataset-share: 16 bytes of salt, then Fernet with a PBKDF2-SHA256 key of the password.
    """
    with archive.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{called}: is only a Git LFS pointer; fetch the file itself with `git lfs pull`")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{called}: is a web page, not the archive; download the raw file")
    if archive.suffix != ".enc":
        raise DataError(
            f"{called}: is no whole zip and does not end in .enc; give a .zip.enc, .zip or folder"
        )
    decrypt = _easy_dataset_share("zipping").decrypt_file
    copy = scratch / "archive.zip.enc"  # what is decrypted is written beside it
    shutil.copyfile(archive, copy)
    try:
        decrypt(str(copy), password)
    except ValueError as error:
        raise DataError(
            f"{called}: cannot be decrypted; the password is wrong, or the file is incomplete or "
            "no archive of easy-dataset-share"
        ) from error
    return Path(f"{copy}.dec")


def _easy_dataset_share(module: str) -> Any:
    try:
        return importlib.import_module(f"easy_dataset_share.{module}")
    except ImportError as error:
        raise DataError(
            "this needs the package easy-dataset-share: use `make data`, or `pip install -c constraints.txt "
            "-r requirements-data.txt`; or unprotect the archive elsewhere and give its folder with --archive"
        ) from error


def _remove_canaries(files: Path, found: Unpacked) -> None:
    """Take out canary files and canaries inside rows, and only those: other files stay byte for byte."""
    canaries = sorted(files.glob(CANARY_FILES))
    found.left_out += [f"{path.name!r} (canary)" for path in canaries]
    rows = [path for path in sorted(files.iterdir()) if path.name != TERMS and path not in canaries]
    marked = [path for path in rows if _holds_canary(path)]
    if marked:
        tool = _easy_dataset_share("canary")
        known = [text for text in map(tool.extract_canary_string_from_content, canaries) if text]
        for path in marked:
            for text in known:
                tool.remove_canary_from_file(path, text, False)
            if _holds_canary(path):
                raise DataError(
                    f"{path.name}: holds canaries that cannot be removed, because the file that names them "
                    "is missing or another's; unprotect the archive again with --remove-canaries"
                )
    for path in canaries:
        path.unlink()
    found.rows = rows
    terms = files / TERMS
    found.terms = terms if terms.is_file() else None


def _holds_canary(path: Path) -> bool:
    """Reads the rows once; those of a gzip file are more than the archive said."""
    found, room = False, LIMIT
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for line in stream:
                found = found or CANARY in line
                room -= len(line)
                if room < 0:
                    raise DataError(
                        f"{path.name}: is larger than {LIMIT // 1024**3} GiB; this is not the data"
                    )
    except DAMAGED as error:
        raise DataError(f"{path.name}: cannot be read ({error}); is it complete?") from error
    return found
