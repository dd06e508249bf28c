"""Keys of stored states: hashes of token ids, so that changed data or templates never meet an old state."""

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from em.datamodules.rows import Rows
from em.datamodules.sources import Example


def key_of(ids: Sequence[int], kept: Sequence[bool] | None = None) -> str:
    """The key of an example's states: a hash of its token ids and of the positions that are kept.

    Args:
        kept: which positions are stored; None where all are and the depth says so.
    """
    digest = hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes())
    if kept is not None:
        digest.update(b"|" + np.asarray(kept, dtype=np.bool_).tobytes())
    return digest.hexdigest()


def kept_positions(example: Example, everywhere: bool) -> list[bool]:
    """Where the KL term counts: at all tokens, or where an answer token is predicted."""
    return [True] * len(example.ids) if everywhere else [*example.answer[1:], False]


def row_keys(rows: Rows, at_BT: Tensor | None = None) -> list[str | None]:
    """`key_of` of each row; None for a row of which nothing is kept, as a blank one.

    Args:
        at_BT: the positions that are kept, by default all real ones.
    """
    ids_BT, at_BT = rows.input_ids_BT.cpu(), None if at_BT is None else at_BT.cpu()
    keys: list[str | None] = []
    for row, (length, index) in enumerate(zip(rows.length_B.tolist(), rows.index_B.tolist(), strict=True)):
        kept = None if at_BT is None else at_BT[row, :length].tolist()
        blank = index < 0 or (kept is not None and not any(kept))
        keys.append(None if blank else key_of(ids_BT[row, :length].tolist(), kept))
    return keys
