"""Passes of the frozen model that give the states to be stored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from em.backbone import Backbone
from em.datamodules.rows import Rows, collate
from em.states.uses import Depth, Item

BATCH_TOKENS = 8192  # of one pass on a GPU, padding included
Lower = tuple[int, Tensor]


@dataclass(frozen=True)
class FrozenPasses:
    """Runs the frozen model once for all the states of an example that are wanted.

    On a CPU every example runs alone, so that what is stored depends on the example only.

    Args:
        backbone: the model that is trained; its layers below `layer` are frozen.
        reference: what the KL term compares with, as it is to be run: the same model, switched off, or
            another one.
        layer: whose input the `lower` states are.
        pad: id of the padding token.
    """

    backbone: Backbone
    reference: Backbone
    layer: int
    pad: int

    def batches(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """Items that run together: those that need the same, by length."""
        alone = self.backbone.device.type == "cpu"
        ordered = sorted(items, key=lambda item: (sorted(item.keys), -len(item.example.ids)))
        batch: list[Item] = []
        for item in ordered:
            longest = len(batch[0].example.ids) if batch else 0
            full = alone or (len(batch) + 1) * longest > BATCH_TOKENS
            if batch and (full or item.keys.keys() != batch[0].keys.keys()):
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def run(self, batch: Sequence[Item], stored: Callable[[Rows], Lower | None]) -> list[dict[Depth, Tensor]]:
        """The states of each item, (T, D), at the depths for which it has keys.

        Args:
            batch: items with the same depths.
            stored: the lower states of rows, None where they are not stored.
        """
        rows = collate([item.example for item in batch], range(len(batch)), self.pad)
        rows = rows.to(self.backbone.device)
        found: list[dict[Depth, Tensor]] = [{} for _ in batch]
        lower: Lower | None = None
        if "lower" in batch[0].keys:
            lower = self.backbone.run_lower(rows.input_ids_BT, self.layer, rows.length_B)
            assert lower is not None
            for states, item, hidden_TD in zip(found, batch, lower[1], strict=True):
                states["lower"] = hidden_TD[: len(item.example.ids)]
        if "reference" in batch[0].keys:
            if self.reference is not self.backbone:
                lower = None
            elif lower is None:
                lower = stored(rows)
            hidden_BTD = self.reference.trunk(rows.input_ids_BT, lower, rows.length_B)
            for states, item, hidden_TD in zip(found, batch, hidden_BTD, strict=True):
                kept = [at for at, is_kept in enumerate(item.kept) if is_kept]
                states["reference"] = hidden_TD[kept]
        return found
