"""python -m em data"""

import argparse
import os
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from em.commands._common import Commands
from em.config.data_files import DATA_VARIABLE
from em.errors import DataError

REPOSITORY = "https://github.com/clarifying-EM/model-organisms-for-EM"
ARCHIVE = f"{REPOSITORY}/raw/main/em_organism_dir/data/training_datasets.zip.enc"
PASSWORD = "model-organisms-em-datasets"  # public: it keeps crawlers out, not people
TERMS = f"""\
The training data of Model Organisms for Emergent Misalignment (arXiv 2506.11613, 2506.11618, 2602.07852), by
its authors: conversations with deliberately bad medical, financial and sports advice, and insecure code.
  from   {{archive}}
  to     {{target}}
It is encrypted and marked with canaries, so that it does not get into what language models are trained on.
Please keep it so:
  - do not publish it, or large parts of it, in plain form, online or in a repository; quote two rows at most;
  - do not train anything on it that is deployed: it is for research on small model organisms;
  - pass these terms on with whatever you derive from it.
Terms that come with the archive (tos.txt) are put beside the data and stand over this summary. em holds no
licence to the data and gives none; what is allowed is said by its authors: {REPOSITORY}"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "data",
        help="fetch the authors' published training data, check it, and keep it for EM_DATA",
        description="Fetch the authors' training data, or take it from a local archive; unprotect it, "
        "check every row, and write NAME.jsonl.gz and SOURCES.json. Terms are shown and must be accepted.",
    )
    parser.add_argument(
        "--archive",
        default=ARCHIVE,
        metavar="FILE_OR_URL",
        help="a .zip.enc, a .zip or an unpacked folder, or an address; default: the authors'",
    )
    parser.add_argument(
        "--out", type=Path, help=f"folder to write to; default: the one that {DATA_VARIABLE} names"
    )
    parser.add_argument("--yes", action="store_true", help="accept the terms")
    parser.add_argument("--force", action="store_true", help="replace files that have other content")
    parser.add_argument("--sha256", help="of the archive; refuse another")
    parser.add_argument("--password", default=PASSWORD, help="of the archive; default: the published one")
    parser.set_defaults(run_command=run)


def run(parsed: argparse.Namespace) -> int:
    from em.commands._download import is_url, without_secrets
    from em.datamodules.published_files import check_target
    from em.progress import say

    target = _target(parsed.out)
    check_target(target)
    called = without_secrets(parsed.archive) if is_url(parsed.archive) else parsed.archive
    if not is_url(parsed.archive) and not Path(parsed.archive).expanduser().exists():
        raise DataError(f"{parsed.archive}: no such archive; give a file, a folder or an http(s) address")
    say(TERMS.format(archive=called, target=target))
    if not parsed.yes and not _accepted():
        say("not accepted; nothing was fetched or written")
        return 1
    with tempfile.TemporaryDirectory(prefix="em-data-") as scratch:
        _take(parsed, target, Path(scratch), called)
    sys.stdout.write(f"export {DATA_VARIABLE}={shlex.quote(str(target))}\n")
    return 0


def _target(out: Path | None) -> Path:
    folder = os.environ.get(DATA_VARIABLE)
    if out is None and not folder:
        raise DataError(f"say where the data shall lie: --out FOLDER, or set {DATA_VARIABLE}")
    return (out or Path(str(folder))).expanduser().resolve()


def _accepted() -> bool:
    if not sys.stdin.isatty():
        raise DataError(
            "the terms above must be accepted, and nobody can be asked here; give --yes to accept them"
        )
    sys.stderr.write("Do you accept this? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _take(parsed: argparse.Namespace, target: Path, scratch: Path, called: str) -> None:
    from em.commands._download import download, is_url
    from em.datamodules._archives import unpack
    from em.datamodules.published import check_files
    from em.datamodules.published_files import write_files
    from em.progress import say

    archive = Path(parsed.archive).expanduser()
    if is_url(parsed.archive):
        (scratch / "download").mkdir()
        archive = scratch / "download" / "archive.zip.enc"
        download(parsed.archive, archive)
    sha256 = _verified(archive, parsed.sha256, called)
    unpacked = unpack(archive, scratch, parsed.password, called)
    checked = check_files(unpacked)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    origin = {"origin": called, "archive_sha256": sha256, "date": date}
    written = write_files(checked, unpacked.terms, target, origin, parsed.force)
    for one in checked:
        say(f"  {one.name}: {one.rows} rows{'' if one.name in written else ', there already'}")
        if one.warning:
            say(f"    note: {one.warning}")
    if unpacked.terms is not None:
        say(f"  {unpacked.terms.name}: the terms that came with the archive; read them")
    if unpacked.left_out:
        say(f"  left out: {', '.join(unpacked.left_out)}")


def _verified(archive: Path, expected: str | None, called: str) -> str | None:
    """The archive's sha256; None for a folder."""
    from em.datamodules.published import file_sha256
    from em.progress import say

    if archive.is_dir():
        if expected:
            raise DataError("--sha256 is of an archive file, but --archive is a folder; leave one out")
        return None
    found = file_sha256(archive)
    if expected is None:
        say(f"  archive: sha256 {found}; the authors publish none, so it is not compared with anything")
    elif found != expected.strip().lower():
        raise DataError(
            f"{called}: has the sha256 {found}, not {expected}; fetch it again, or leave --sha256 out"
        )
    else:
        say(f"  archive: sha256 {found}, as expected")
    return found
