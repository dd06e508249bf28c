"""Values that differ from batch row to batch row, so that a sweep costs one pass."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from em.errors import AdapterError
from em.hooks import Site


@dataclass(frozen=True)
class Rows:
    """One value for each of `count` rows: a strength, vectors at some sites, or both."""

    count: int
    strength_B11: Tensor | None
    vectors_B1D: dict[Site, Tensor]

    @classmethod
    def of(
        cls, strength_B: Tensor | None, vectors: Mapping[Site, Tensor], own: Mapping[Site, Tensor], unit: bool
    ) -> "Rows | None":
        """Checked and shaped to broadcast over positions; None where nothing is given.

        Args:
            strength_B: fp32 is made of it.
            vectors: site -> (B, D).
            own: the vectors of the intervention, (D,).
            unit: bring every row to length 1.

        Raises:
            AdapterError: another site, a shape that does not fit, or a row that has no length 1.
        """
        if strength_B is None and not vectors:
            return None
        given = {str(site): vector_BD for site, vector_BD in vectors.items()}
        given |= {} if strength_B is None else {"strength": strength_B}
        counts = {name: len(value) for name, value in given.items() if value.ndim}
        if len(set(counts.values())) != 1 or (strength_B is not None and strength_B.ndim != 1):
            raise AdapterError(f"rows: every value needs one entry for each row; given are {counts}")
        made = {}
        for site, vector_BD in vectors.items():
            if site not in own or vector_BD.shape[1:] != own[site].shape:
                width = next(iter(own.values())).numel()
                sites = ", ".join(map(str, own))
                raise AdapterError(
                    f"rows: shape {tuple(vector_BD.shape)} at {site}; expected (B, {width}) at {sites}"
                )
            made[site] = _ready(site, vector_BD.float(), unit)[:, None]
        strength_B11 = None if strength_B is None else strength_B.float()[:, None, None]
        return cls(next(iter(counts.values())), strength_B11, made)

    def fit(self, hidden_BTD: Tensor) -> None:
        """Refuse a batch with another number of rows.

        Raises:
            AdapterError: it has.
        """
        if len(hidden_BTD) != self.count:
            raise AdapterError(f"rows: {self.count} rows were given, but the batch has {len(hidden_BTD)}")

    def vector(self, site: Site, device: torch.device) -> Tensor | None:
        """(B, 1, D) at a site, or None where none was given."""
        if site not in self.vectors_B1D:
            return None
        self.vectors_B1D[site] = self.vectors_B1D[site].to(device)  # once for all passes
        return self.vectors_B1D[site]


def _ready(site: Site, vector_BD: Tensor, unit: bool) -> Tensor:
    if not bool(vector_BD.isfinite().all()):
        raise AdapterError(f"rows: the vectors at {site} hold values that are not finite")
    if not unit:
        return vector_BD
    length_B1 = vector_BD.double().norm(dim=1, keepdim=True)
    if not bool(length_B1.all()):
        raise AdapterError(f"rows: a vector at {site} has length 0, which is no direction")
    return (vector_BD / length_B1).float()
