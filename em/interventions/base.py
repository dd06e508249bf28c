"""The contract of every change to a frozen backbone."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from em import hooks
from em.backbone import Backbone
from em.errors import AdapterError
from em.files import write_json, write_tensors
from em.interventions.update import Update

RECORD = "em.json"
WEIGHTS = "intervention.safetensors"


class Intervention(ABC):
    """A change to a backbone that can be switched off, rescaled, perturbed, saved and loaded.

    Its parameters live in the backbone's module tree while it is attached, so that Lightning, DDP and
    FSDP2 see them there. A subclass is one file in `em/interventions/`; its constructor takes the
    options of the config as keywords and must not touch a model.
    """

    kind: ClassVar[str]
    fixed: ClassVar[bool] = False  # given instead of trained; see `_fixed.py`

    def __init__(self) -> None:
        self._backbone: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        if self._backbone is None:
            raise AdapterError(f"the {self.kind} is not attached to a backbone; call attach(backbone) first")
        return self._backbone

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The constructor options that rebuild this intervention."""

    @abstractmethod
    def attach(self, backbone: Backbone, seed: int = 0) -> None:
        """Put the intervention into the backbone; random initial values are keyed by `seed`.

        Raises:
            AdapterError: a layer, module or width does not fit the backbone.
        """

    @abstractmethod
    def detach(self) -> None:
        """Take the intervention out; the backbone is again as it was before `attach`."""

    @abstractmethod
    def disabled(self) -> Any:
        """Context: the backbone answers exactly as the reference; grads, modes, flags are untouched."""

    @abstractmethod
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The live parameters by name; names are stable across processes and runs."""

    @abstractmethod
    def update(self) -> Update:
        """The effective update at this moment, detached copies (a collective under FSDP2)."""

    @abstractmethod
    def rescaled(self, factor: float) -> Any:
        """Context: the update times `factor` (one factor for all modules); then restored bit for bit."""

    @abstractmethod
    def perturbed(self, epsilon: float, generator: torch.Generator) -> Any:
        """Context: √(1−ε²)·x + ε·y with y ⟂ x, ‖y‖ = ‖x‖ in update space; then restored bit for bit.

        Everything random comes from `generator`, so equal seeds give nested, comparable draws.
        ε = 0 is the original itself.
        """

    @abstractmethod
    def lowest_layer(self) -> int:
        """The lowest layer this changes; hidden states that enter it are the reference's own."""

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Context for many passes without gradient: the update may be folded into copies of the weights.

        Results are the same to rounding; a change of the update inside is seen. Costs the memory of the
        changed weights once more, and nothing where it does not apply.
        """
        yield

    def _changed(self) -> None:  # noqa: B027  # most kinds keep nothing that could become stale
        """Called when other tensors stand in place of parameters."""

    def training_modules(self) -> list[nn.Module]:
        """Modules that act in training mode only, such as dropout."""
        return []

    def norm(self) -> float:
        """Frobenius norm of the effective update (vector: ‖v‖·scale)."""
        return self.update().norm()

    def gathered(self) -> dict[str, Tensor]:
        """CPU copies of all parameters (a collective under FSDP2, so call it on every rank)."""
        return {
            name: hooks.plain(parameter.detach()).cpu().clone().contiguous()
            for name, parameter in self.trainable_parameters().items()
        }

    @torch.no_grad()
    def put(self, values: dict[str, Tensor], where: str = "given values") -> None:
        """Copy values into the parameters.

        Raises:
            AdapterError: a parameter is missing, unknown or has another shape.
        """
        parameters = self.trainable_parameters()
        if parameters.keys() != values.keys():
            odd = sorted(parameters.keys() ^ values.keys())
            raise AdapterError(f"{where}: does not match this {self.kind}: {', '.join(odd[:3])}")
        for name, parameter in parameters.items():
            if parameter.shape != values[name].shape:
                raise AdapterError(
                    f"{where}: {name} has shape {tuple(values[name].shape)}, but {self.backbone.name} needs "
                    f"{tuple(parameter.shape)}"
                )
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
        self._changed()

    def save(self, folder: Path, write: bool = True) -> None:
        """Write safetensors and a JSON record; every rank calls it, one with `write`.

        Raises:
            RunError: the folder cannot be written (for example a full disk).
        """
        values = self.gathered()
        if write:
            write_tensors(Path(folder) / WEIGHTS, values)
            self.save_record(folder)

    def save_record(self, folder: Path) -> None:
        record = {"kind": self.kind, "options": self.options(), "backbone": self.backbone.describe()}
        write_json(Path(folder) / RECORD, record)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this attached intervention.

        Raises:
            AdapterError: files are missing, damaged, or from another kind or backbone.
        """
        check_record(read_record(folder), self.kind, self.backbone, Path(folder))
        self.put(read_tensors(Path(folder) / WEIGHTS), str(folder))

    @contextmanager
    def swapped(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Context: other values in some parameters; the originals come back bit for bit.

        Raises:
            AdapterError: the values have another shape and FSDP2 has sharded the parameters.
        """
        if self.backbone.sharded:
            with self._swapped_shards(values):
                yield
            return
        parameters = self.trainable_parameters()
        kept = {name: parameters[name].data for name in values}
        try:
            for name, value in values.items():
                parameters[name].data = value.to(kept[name])
            self._changed()
            yield
        finally:
            for name, value in kept.items():
                parameters[name].data = value
            self._changed()

    @contextmanager
    def _swapped_shards(self, values: dict[str, Tensor]) -> Iterator[None]:
        # FSDP2 gathers from the shards' own storage, so they are written in place; what it has gathered
        # for the root stays gathered after a pass, which hides the shards and would be stale.
        root = cast(FSDPModule, self.backbone)
        root.reshard()
        shards = {name: cast(DTensor, self.trainable_parameters()[name].data) for name in values}
        if any(shards[name].shape != value.shape for name, value in values.items()):
            raise AdapterError(
                "under trainer.strategy=fsdp2 a LoRA cannot be perturbed, because its rank doubles; measure "
                "in one process from the run directory instead"
            )
        kept = {name: shard.to_local().clone() for name, shard in shards.items()}
        try:
            for name, value in values.items():
                shard = shards[name]
                new = distribute_tensor(value.to(shard.device), shard.device_mesh, shard.placements)
                shard.to_local().copy_(new.to_local())
            yield
        finally:
            root.reshard()
            for name, shard in shards.items():
                shard.to_local().copy_(kept[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file as CPU tensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: cannot be read as safetensors ({error})") from error


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON record beside an adapter's weights."""
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(
            f"{folder}: no {RECORD}; this is not a folder that an intervention wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read ({error})") from error
    if not isinstance(record, dict) or not {"kind", "options", "backbone"} <= record.keys():
        raise AdapterError(f"{path}: lacks kind, options or backbone")
    if not isinstance(record["backbone"], dict):
        raise AdapterError(f"{path}: backbone is {record['backbone']!r}, not a description of a model")
    return record


def check_record(record: dict[str, Any], kind: str, backbone: Backbone, folder: Path) -> None:
    """Refuse weights of another kind or from another backbone."""
    if record["kind"] != kind:
        raise AdapterError(f"{folder}: holds a {record['kind']}, not a {kind}")
    check_origin(record["backbone"], backbone, f"{folder}: trained on")


def check_origin(theirs: dict[str, Any], backbone: Backbone, made: str) -> None:
    """Refuse what was made with other weights.

    Args:
        theirs: what `Backbone.describe` said when it was made.
        made: how the message begins, for example `FOLDER: trained on`.
    """
    own = backbone.describe()
    if own["fingerprint"] != theirs.get("fingerprint"):
        raise AdapterError(
            f"{made} {theirs.get('model')} (fingerprint {theirs.get('fingerprint')}, width "
            f"{theirs.get('hidden_size')}), but the backbone here is {own['model']} (fingerprint "
            f"{own['fingerprint']}, width {own['hidden_size']}); set backbone.model to the former"
        )


def answer_positions(backbone: Backbone) -> Tensor:
    """The mask (B, T) of `positions: answer`, which the pass was told.

    Raises:
        AdapterError: it was not.
    """
    if backbone.steer_BT is None:
        raise AdapterError(
            "positions: answer needs to know the answer positions; run the pass inside "
            "backbone.steering_positions(mask)"
        )
    return backbone.steer_BT
