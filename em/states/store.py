"""Hidden states of a frozen model on disk, found by the token ids that they belong to."""

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from em.backbone import Backbone
from em.errors import RunError, StateError
from em.files import write_json, write_tensors
from em.progress import say

FORMAT = 1
SHARD_BYTES = 2**25  # what an interrupted run loses at most
NAMES = "shard-*.safetensors"
SUMS = "crc32"  # of every tensor, in the shard's metadata


@dataclass(frozen=True)
class Identity:
    """What states depend on besides the token ids.

    Args:
        fingerprint: of the weights.
        config: hash of the model's configuration, which holds what the weights do not, such as rotary angles.
        dtype: of the weights, and of autocast where that is on.
        depth: `final`, after the last norm, or the index of the layer that they enter.
        hidden_size: D.
        attention: implementation of the attention.
        device: cpu or cuda.
    """

    fingerprint: str
    config: str
    dtype: str
    depth: int | str
    hidden_size: int
    attention: str
    device: str
    format: int = FORMAT

    @classmethod
    def of(cls, backbone: Backbone, depth: int | str) -> "Identity":
        """Of a backbone as it would run now."""
        device = backbone.device.type
        dtype = str(backbone.model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        if torch.is_autocast_enabled(device):
            dtype += f" under autocast to {torch.get_autocast_dtype(device)}"
        config = backbone.model.config
        fields = config.get_text_config().to_dict()
        for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"):
            fields.pop(name, None)
        text = json.dumps(fields, sort_keys=True, default=str)
        return cls(
            backbone.fingerprint,
            hashlib.sha256(text.encode()).hexdigest()[:16],
            dtype,
            depth,
            backbone.hidden_size,
            str(config._attn_implementation).removeprefix("em_"),  # ours are the same numbers without padding
            device,
        )

    @property
    def name(self) -> str:
        """The folder's name."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class StateStore:
    """Tensors (T, D) of one frozen model at one depth, in shards that are only ever added or removed.

    Several processes may read and write one folder: a shard has a name of its own, is moved to its place
    when it is complete, and one that holds what another holds does no harm. A shard that was opened stays
    readable after another process has removed it.

    Args:
        root: folder of all stores.
        identity: of the model, its numbers and the depth.

    Raises:
        StateError: the folder cannot be written, or holds the states of another model.
    """

    def __init__(self, root: Path, identity: Identity):
        self.identity = identity
        self.folder = Path(root) / identity.name
        self._open: dict[Path, Any] = {}
        self._shard: dict[str, Path] = {}
        self._waiting: dict[str, Tensor] = {}
        self._bytes = 0  # of what waits
        self._claim()
        self.refresh()

    def _claim(self) -> None:
        path, wanted = self.folder / "identity.json", asdict(self.identity)
        try:
            if not path.is_file():
                own = self.folder / f".identity-{uuid.uuid4().hex}.json"
                write_json(own, wanted)
                own.replace(path)  # whoever is last, the content is the same
            found = json.loads(path.read_text(encoding="utf-8"))
        except RunError as error:
            raise StateError(
                f"{path}: states cannot be stored ({error.__cause__}); set states.folder to one that can "
                "be written, or states.reference=never and states.lower=never"
            ) from error
        except (OSError, ValueError) as error:
            raise StateError(
                f"{path}: cannot be read ({error}); remove the folder {self.folder}, what it holds is "
                "computed again"
            ) from error
        if found != wanted:
            raise StateError(
                f"{self.folder}: holds the states of another model than its name says; remove the folder, "
                "what it holds is computed again"
            )

    def refresh(self) -> None:
        """See what other processes have added or removed since. A damaged shard is removed and named."""
        on_disk = set(self.folder.glob(NAMES))
        for path in sorted(on_disk - self._open.keys()):
            self._add(path)
        for path in self._open.keys() - on_disk:
            self._forget(path)

    def _add(self, path: Path) -> None:
        try:
            shard = safe_open(path, framework="pt", device="cpu")
            names = list(shard.keys())
            if names:  # the file is mapped with the first read, and may be gone by a later one
                shard.get_tensor(names[0])
            if json.loads((shard.metadata() or {})[SUMS]).keys() != set(names):
                raise KeyError(SUMS)
        except FileNotFoundError:  # another process needed the room
            return
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            self._remove(path, f"cannot be read ({error})")
            return
        self._open[path] = shard
        self._shard |= dict.fromkeys(names, path)

    def _remove(self, path: Path, reason: str) -> None:
        path.unlink(missing_ok=True)
        self._forget(path)
        say(f"{path}: {reason}; it is removed, and the states in it are computed again")

    def _forget(self, path: Path) -> None:
        self._open.pop(path, None)
        self._shard = {key: shard for key, shard in self._shard.items() if shard != path}

    def __contains__(self, key: object) -> bool:
        return key in self._shard

    def get(self, key: str) -> Tensor:
        """The states (T, D) of a key, memory-mapped: to be copied, not written to.

        Raises:
            StateError: there are none.
        """
        if key not in self._shard:
            raise StateError(
                f"{self.folder}: lacks the states of an example; run the same command again, or set "
                "states.reference=never and states.lower=never"
            )
        tensor: Tensor = self._open[self._shard[key]].get_tensor(key)
        return tensor

    def put(self, key: str, states_TD: Tensor) -> None:
        """Add states; they are on disk, and found, after a shard is full or after `flush`."""
        if key in self._shard or key in self._waiting:
            return
        self._waiting[key] = states_TD.detach().to("cpu", copy=True).contiguous()
        self._bytes += states_TD.nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a shard.

        Raises:
            StateError: the disk is full or cannot be written.
        """
        if not self._waiting:
            return
        path = self.folder / f"shard-{uuid.uuid4().hex}.safetensors"
        sums = {key: _sum(tensor) for key, tensor in self._waiting.items()}
        try:
            write_tensors(path, self._waiting, {SUMS: json.dumps(sums)})
        except RunError as error:
            raise StateError(
                f"{path}: states cannot be stored ({error.__cause__}); free some space, set states.folder to "
                "another disk, or states.reference=never and states.lower=never"
            ) from error
        self._waiting, self._bytes = {}, 0
        self._add(path)

    def verify(self, keys: Iterable[str]) -> None:
        """Compare stored states with their check sums; a damaged shard is removed and named."""
        for path, held in self._held(keys).items():
            sums = json.loads(self._open[path].metadata()[SUMS])
            if any(_sum(self.get(key)) != sums[key] for key in held):
                self._remove(path, "is damaged")

    def touch(self, keys: Iterable[str]) -> None:
        """Note that the shards of these keys were used now; the longest unused are removed first."""
        for path in self.shards(keys):
            if path.exists():
                os.utime(path)

    def shards(self, keys: Iterable[str]) -> dict[Path, int]:
        """The shards that hold these keys, with the bytes of these keys in each."""
        return {path: sum(self.get(k).nbytes for k in held) for path, held in self._held(keys).items()}

    def _held(self, keys: Iterable[str]) -> dict[Path, list[str]]:
        held: dict[Path, list[str]] = {}
        for key in dict.fromkeys(keys):
            if key in self._shard:
                held.setdefault(self._shard[key], []).append(key)
        return held

    def remove(self, paths: Collection[Path]) -> None:
        """Remove shards from disk."""
        for path in paths:
            path.unlink(missing_ok=True)
            self._forget(path)

    def clear(self) -> None:
        """Remove every shard."""
        self.remove(list(self._open))


def _sum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)
