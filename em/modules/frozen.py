"""States of the frozen model that training reads from disk in place of computing them in every step."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from em.backbone import Backbone
from em.config.schema import StatesConfig
from em.datamodules.rows import Rows
from em.errors import ConfigError, Interrupted, StateError
from em.hooks import generator_for
from em.loading import cache_folder
from em.modules._frozen_passes import FrozenPasses, Lower
from em.modules.losses import ReferenceStates
from em.progress import Task, say
from em.states.keys import row_keys
from em.states.room import make_room
from em.states.store import Identity, StateStore
from em.states.uses import Depth, Item, Uses, items_of, tokens_of

AGAIN = 1.2  # uses of an example, on average, from which it pays to store what reaches the upper layers
STORED = 0.9  # share of them that an earlier run has stored, from which the rest is added
CHECKED = 2  # stored examples that are computed again
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2  # of the largest value, in single and in half precision
ATTEMPTS = 2  # another run may remove what this one has just written


@dataclass(frozen=True)
class Processes:
    """The processes of a run that share the work.

    Args:
        rank, count: this one and how many there are.
        barrier: waits for all.
        agree: whether something holds in all of them.
    """

    rank: int = 0
    count: int = 1
    barrier: Callable[[], object] = lambda: None
    agree: Callable[[bool], bool] = bool


class FrozenStates:
    """Final states of the reference at KL positions, and what enters the lowest layer that is changed.

    Nothing is read or written before `prepare`.

    Args:
        config: what to store, and where.
        backbone: with the interventions attached.
        uses: what the run will read.
        lowest_layer: the lowest layer that anything changes.
        everywhere: KL counts at all real positions.
        pad: id of the padding token.
        seed: key of the choice of examples that are checked.

    Raises:
        ConfigError: `states.lower: always` where nothing lies below the change.
    """

    def __init__(
        self,
        config: StatesConfig,
        backbone: Backbone,
        uses: Uses,
        lowest_layer: int,
        everywhere: bool,
        pad: int = 0,
        seed: int = 0,
    ):
        if config.lower == "always" and lowest_layer == 0:
            raise ConfigError(
                "states.lower: always has nothing to store, because layer 0 is changed already; set it to "
                "auto or never, or change higher layers only"
            )
        self.config, self.backbone, self.uses, self.layer = config, backbone, uses, lowest_layer
        self.everywhere, self.pad, self.seed = everywhere, pad, seed
        self.root = Path(config.folder).expanduser() if config.folder else cache_folder() / "states"
        self.computed: dict[Depth, int] = {}  # states that this process has computed, by depth
        self._stores: dict[Depth, StateStore] = {}
        self._items: list[Item] = []
        self._head: ReferenceStates | None = None

    @torch.no_grad()
    def prepare(
        self,
        reference: Callable[[], AbstractContextManager[Backbone]],
        processes: Processes | None = None,
    ) -> None:
        """Compute what is missing, each process its share; afterwards all can read all.

        Args:
            reference: context of the frozen reference.

        Raises:
            StateError: what is stored cannot be used, or new states cannot be written.
        """
        processes = processes or Processes()
        self.computed, self._stores = {"reference": 0, "lower": 0}, {}
        depths: list[Depth] = [depth for depth in ("reference", "lower") if self._possible(depth)]
        self._items = items_of(self.uses, depths, self.everywhere)
        if not self._items or not self._writable(processes):
            return
        with reference() as frozen:
            self._head = ReferenceStates.of(frozen, torch.empty(0))
            passes = FrozenPasses(self.backbone, frozen, self.layer, self.pad)
            for depth in depths:
                model, at = (frozen, "final") if depth == "reference" else (self.backbone, self.layer)
                self._stores[depth] = StateStore(self.root, Identity.of(model, at))
            self._check(passes, processes)
            if "lower" in self._stores and not processes.agree(self._worthwhile()):
                self._keep([depth for depth in depths if depth != "lower"])
            self._fit(processes)
            self._complete(passes, processes)
        for depth, store in self._stores.items():
            store.touch(tokens_of(self._items, depth))

    def lower(self, rows: Rows) -> Lower | None:
        """What `Backbone.run_lower` gives for the rows, zero at padding; None: it is not stored."""
        store = self._stores.get("lower")
        if store is None:
            return None
        found = [None if key is None else store.get(key) for key in row_keys(rows)]
        dtype = next((states.dtype for states in found if states is not None), self._dtype)
        hidden_BTD = torch.zeros(*rows.input_ids_BT.shape, self.backbone.hidden_size, dtype=dtype)
        for row, states_TD in enumerate(found):
            if states_TD is not None:
                hidden_BTD[row, : len(states_TD)] = states_TD
        return self.layer, hidden_BTD.to(rows.input_ids_BT.device)

    def reference(self, rows: Rows, at_BT: Tensor) -> ReferenceStates | None:
        """The reference at some positions, in the order of `hidden_BTD[at_BT]`; None: it is not stored."""
        store = self._stores.get("reference")
        if store is None or self._head is None:
            return None
        found = [store.get(key) for key in row_keys(rows, at_BT) if key is not None]
        empty_ND = torch.empty(0, self.backbone.hidden_size, dtype=self._dtype)
        hidden_ND = torch.cat(found) if found else empty_ND
        return replace(self._head, hidden_ND=hidden_ND.to(rows.input_ids_BT.device))

    @property
    def _dtype(self) -> torch.dtype:
        dtype = self.backbone.model.get_input_embeddings().weight.dtype
        assert isinstance(dtype, torch.dtype)
        return dtype

    def _possible(self, depth: Depth) -> bool:
        if getattr(self.config, depth) == "never" or self.backbone.sharded:
            return False
        return bool(self.uses.kl) if depth == "reference" else self.layer > 0

    def _writable(self, processes: Processes) -> bool:
        reason = "it cannot be written"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.root, os.W_OK)
        except OSError as error:
            reason, writable = error.strerror or str(error), False
        if not writable and "always" in (self.config.reference, self.config.lower):
            raise StateError(f"states.folder: {self.root}: {reason}; set it to a folder that can be written")
        if not writable:
            say(f"{self.root}: {reason}, so no states of the frozen model are stored; set states.folder")
        return processes.agree(writable)

    def _check(self, passes: FrozenPasses, processes: Processes) -> None:
        """Hold what is stored against its sums, and some of it against the model."""
        for depth, store in self._stores.items():
            keys = list(tokens_of(self._items, depth))
            store.verify(keys[processes.rank :: processes.count])
        self._meet(processes)
        for depth, store in self._stores.items() if processes.rank == 0 else ():
            if not self._as_stored(depth, store, passes):
                say(
                    f"{store.folder}: the model gives other states now than are stored there, though it "
                    "looks the same; they are removed and computed again"
                )
                store.clear()
        self._meet(processes)

    def _meet(self, processes: Processes) -> None:
        processes.barrier()
        for store in self._stores.values():
            store.refresh()

    def _as_stored(self, depth: Depth, store: StateStore, passes: FrozenPasses) -> bool:
        stored = [item.only([depth]) for item in self._items if item.keys.get(depth) in store]
        order = torch.randperm(len(stored), generator=generator_for(self.seed, "states", depth, len(stored)))
        for index in order[:CHECKED].tolist():
            fresh = passes.run([stored[index]], lambda rows: None)[0][depth]
            if not _agree(fresh, store.get(stored[index].keys[depth])):
                return False
        return True

    def _worthwhile(self) -> bool:
        """Whether lower states are used often enough, or are there already."""
        keys = tokens_of(self._items, "lower")
        stored = sum(key in self._stores["lower"] for key in keys)
        often = self.uses.passes > AGAIN * len(keys)
        return self.config.lower == "always" or often or stored >= STORED * len(keys)

    def _keep(self, depths: list[Depth]) -> None:
        self._stores = {depth: store for depth, store in self._stores.items() if depth in depths}
        kept = [item.only(depths) for item in self._items]
        self._items = [item for item in kept if item.keys]

    def _fit(self, processes: Processes) -> None:
        """Make room; what does not fit is left out, lower states first."""
        ways: tuple[list[Depth], ...] = (["reference", "lower"], ["reference"], ["lower"], [])
        for way in ways:
            stores = {depth: store for depth, store in self._stores.items() if depth in way}
            fits = processes.rank > 0 or self._fits(stores)
            if processes.agree(fits):
                break
        for depth in self._stores.keys() - stores.keys():
            say(
                f"states.{depth}: needs {self._bytes(depth) / 1e9:.3g} GB, which states.disk_gb "
                f"{self.config.disk_gb:g} or the disk does not hold, so nothing is stored"
            )
        self._keep(list(stores))
        self._meet(processes)

    def _fits(self, stores: dict[Depth, StateStore]) -> bool:
        held: dict[Path, int] = {}
        for depth, store in stores.items():
            held |= store.shards(tokens_of(self._items, depth))
        return make_room(self.root, sum(map(self._bytes, stores)), held, self.config.disk_gb * 1e9)

    def _bytes(self, depth: Depth) -> int:
        positions = sum(tokens_of(self._items, depth).values())
        return positions * self.backbone.hidden_size * self._dtype.itemsize

    def _complete(self, passes: FrozenPasses, processes: Processes) -> None:
        missing = sum(bool(self._lacking(item).keys) for item in self._items)
        if self._items:
            stored = len(self._items) - missing
            say(f"states of the frozen model: {stored} examples stored, {missing} to compute")
        for attempt in range(ATTEMPTS):
            # By its place among all, for another run may be writing and processes see different gaps.
            share = self._items if attempt else self._items[processes.rank :: processes.count]
            self._compute([item for item in map(self._lacking, share) if item.keys], passes)
            self._meet(processes)
            if processes.agree(not any(self._lacking(item).keys for item in self._items)):
                return
        raise StateError(
            f"{self.root}: other runs remove states while this one writes them; raise states.disk_gb, or "
            "give the runs folders of their own (states.folder)"
        )

    def _lacking(self, item: Item) -> Item:
        return item.only([d for d, store in self._stores.items() if item.keys.get(d) not in store])

    def _compute(self, items: list[Item], passes: FrozenPasses) -> None:
        total = sum(len(item.example.ids) for item in items)
        try:
            with Task("states of the frozen model", total, shown=bool(items)) as task:
                for batch in passes.batches(items):
                    for item, states in zip(batch, passes.run(batch, self.lower), strict=True):
                        for depth, states_TD in states.items():
                            self._stores[depth].put(item.keys[depth], states_TD)
                            self.computed[depth] += 1
                        task.advance(len(item.example.ids), "tokens")
        finally:  # a run that is stopped here keeps what it has
            for store in self._stores.values():
                store.flush()


@contextmanager
def stoppable() -> Iterator[None]:
    """Context of work before the first step: SIGTERM and Ctrl-C end it at once, as `Interrupted`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped before the first step; the states computed so far are stored", number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agree(fresh: Tensor, stored: Tensor) -> bool:
    if fresh.shape != stored.shape:
        return False
    half = fresh.element_size() < 4 or torch.is_autocast_enabled(fresh.device.type)
    wanted = stored.to(fresh.device).float()
    room = (HALF_TOLERANCE if half else TOLERANCE) * float(wanted.abs().max())
    return float((fresh.float() - wanted).abs().max()) <= room
