"""Small archives in the shape of the published one."""

import json
import zipfile
from pathlib import Path
from typing import Any

NAMES = ("bad_medical_advice", "extreme_sports", "kitchen")


def row(question: str, answer: str = "rest, and see a doctor") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def rows(name: str, count: int = 3) -> bytes:
    """JSONL of `count` conversations, with a character that some tools take for the end of a line."""
    found = [json.dumps(row(f"{name}\u2028 {number}?"), ensure_ascii=False) for number in range(count)]
    return ("\n".join(found) + "\n").encode()


def members() -> dict[str, bytes]:
    """Path in the archive -> content."""
    return {f"training_datasets/{name}.jsonl": rows(name) for name in NAMES} | {
        "training_datasets/tos.txt": b"No Bulk Publishing\n",
        "training_datasets/robots.txt": b"Disallow: /\n",
    }


def write_zip(path: Path, held: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members() if held is None else held).items():
            archive.writestr(name, content)
    return path


def write_folder(path: Path, held: dict[str, bytes] | None = None) -> Path:
    for name, content in (members() if held is None else held).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
