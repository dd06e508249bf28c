"""A uniform sample of answer tokens, the same whatever the order of batches and the number of processes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from em.datamodules.rows import Rows
from em.hooks import Site, generator_for


@dataclass(frozen=True)
class Samples:
    """Activations of the answer tokens with the lowest keyed random numbers.

    Args:
        limit: most tokens that are kept, so that memory does not grow with examples.
        keys_N: the random number of each token that is kept, ascending.
        hidden: site -> (N, D), fp32, in the same order.
    """

    limit: int
    keys_N: Tensor
    hidden: dict[Site, Tensor]

    @classmethod
    def empty(cls, limit: int, sites: list[Site], width: int) -> "Samples":
        """No token yet."""
        return cls(
            limit, torch.zeros(0, dtype=torch.float64), {site: torch.zeros(0, width) for site in sites}
        )

    def merged(self, other: "Samples") -> "Samples":
        """The sample of both together."""
        keys_N = torch.cat([self.keys_N, other.keys_N])
        keep_n = torch.argsort(keys_N, stable=True)[: self.limit]
        hidden = {site: torch.cat([value, other.hidden[site]])[keep_n] for site, value in self.hidden.items()}
        return Samples(self.limit, keys_N[keep_n], hidden)

    def with_rows(self, rows: Rows, captured: dict[Site, Tensor], seed: int) -> "Samples":
        """This sample and the answer tokens of some rows.

        Args:
            captured: site -> hidden_BTD of these rows.
        """
        keys, chosen = [], []
        for row, index in enumerate(rows.index_B.tolist()):
            positions = rows.answer_BT[row].nonzero()[:, 0].tolist() if index >= 0 else []
            # Keyed by example and position in it, so that neither batches nor processes matter.
            drawn = torch.rand(
                len(positions), generator=generator_for(seed, "samples", index), dtype=torch.float64
            )
            keys.append(drawn)
            chosen += [(row, position) for position in positions]
        keys_N = torch.cat(keys)
        keep_n = torch.argsort(keys_N, stable=True)[: self.limit].tolist()
        where = torch.tensor([chosen[at] for at in keep_n], dtype=torch.long).reshape(-1, 2)
        hidden = {
            site: value[where[:, 0].to(value.device), where[:, 1].to(value.device)].float().cpu()
            for site, value in captured.items()
        }
        return self.merged(Samples(self.limit, keys_N[keep_n], hidden))
