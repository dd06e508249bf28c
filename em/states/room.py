"""Keep all stored states together below a number of bytes."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from em.states.store import NAMES

SCRATCH_SECONDS = 3600.0  # an unfinished file this old is of a process that was killed


def make_room(root: Path, needed: int, kept: Mapping[Path, int], limit: float) -> bool:
    """Remove shards, the longest unused first, until what a run needs fits beside the rest.

    Shards of which the run needs something go last, those with the least of it first.

    Args:
        root: folder of all stores.
        needed: bytes that the run needs, stored ones included.
        kept: shards that hold some of it, with the bytes that are needed of each.
        limit: bytes for all stores together.

    Returns:
        false, and nothing is removed, where there is no room even without all others.
    """
    sizes = {path: size for path, (size, _) in _files(root).items()}
    free = shutil.disk_usage(root).free
    if needed > min(limit, free + sum(sizes.values())):
        return False
    used, new = sum(sizes.values()), needed - sum(kept.values())
    for path in _order(root, kept):
        if used + new <= limit and new <= free:
            break
        path.unlink(missing_ok=True)
        used, free, new = used - sizes[path], free + sizes[path], new + kept.get(path, 0)
    return True


def _order(root: Path, kept: Mapping[Path, int]) -> list[Path]:
    files = _files(root)
    others = sorted((path for path in files if path not in kept), key=lambda path: files[path][1])
    own = sorted((path for path in files if path in kept), key=lambda path: kept[path] / files[path][0])
    return others + own


def _files(root: Path) -> dict[Path, tuple[int, float]]:
    """Every shard: its size and when it was last used. Unfinished ones of killed processes are removed."""
    found = {}
    for path in root.glob(f"*/{NAMES}"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process removed it
            continue
        found[path] = status.st_size, status.st_mtime
    for path in root.glob(f"*/.{NAMES}.*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > SCRATCH_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue
    return found
