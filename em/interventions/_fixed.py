"""Interventions that are given instead of trained: a known direction, used at chosen sites."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from em import hooks
from em.backbone import Backbone
from em.errors import AdapterError
from em.hooks import Point, Site
from em.interventions._rows import Rows
from em.interventions.base import WEIGHTS, Intervention, answer_positions, check_record, read_record
from em.interventions.direction import Direction
from em.interventions.update import Update


class FixedIntervention(Intervention):
    """Edits the residual stream along a direction that is read from a file or given in code.

    Nothing of it is in the module tree, so no optimizer, checkpoint or DDP sees it. Several can be attached
    to one backbone, beside a trained intervention; they act in the order in which they were attached.

    Args:
        direction: a file that `Direction.save` wrote, or a folder that `save` here wrote.
        layers: `own`: each layer that the direction has, with its own vector; `all`: every decoder layer;
            or an index or list of indices.
        source: use the vector of this layer at all chosen layers; needed where the direction lacks one.
        point: which output of the layer; also which vectors of the direction are meant.
        positions: `all`, or `answer`: the positions from which an answer token is predicted.
    """

    fixed: ClassVar[bool] = True
    normalised: bool = True  # whether vectors are brought to length 1 before use
    strength: float = 1.0  # steering calls it coefficient

    def __init__(
        self,
        *,
        direction: str,
        layers: Literal["own", "all"] | int | list[int] = "own",
        source: int | None = None,
        point: Point = "block",
        positions: Literal["all", "answer"] = "all",
    ):
        super().__init__()
        self.path, self.layers, self.source = direction, layers, source
        self.point, self.positions = point, positions
        self.on = True
        self._given: Direction | None = None
        self._direction: Direction | None = None
        self._sources: dict[Site, Site] = {}
        self._vectors: dict[Site, Tensor] = {}
        self._moved: dict[tuple[Site, torch.device], Tensor] = {}
        self._rows: Rows | None = None
        self._factor = 1.0
        self._handles: list[RemovableHandle] = []

    @classmethod
    def given(cls, direction: Direction, **options: Any) -> Self:
        """With a direction from memory instead of a file; `options` are the constructor's others."""
        made = cls(direction=direction.name, **options)
        made._given = direction
        return made

    @abstractmethod
    def edited(self, hidden_BTD: Tensor, vector: Tensor, strength: float | Tensor) -> Tensor:
        """The new hidden states, in their own dtype.

        Args:
            hidden_BTD: as they are.
            vector: fp32, shape (D,), or (B, 1, D) where rows differ.
            strength: a number, or shape (B, 1, 1).
        """

    def options(self) -> dict[str, Any]:
        names = ("layers", "source", "point", "positions")
        return {"direction": self.path, **{name: getattr(self, name) for name in names}}

    @property
    def direction(self) -> Direction:
        """The direction in use.

        Raises:
            AdapterError: it is not attached yet.
        """
        if self._direction is None:
            raise AdapterError(f"the {self.kind} is not attached to a backbone; call attach(backbone) first")
        return self._direction

    @property
    def sites(self) -> list[Site]:
        """Where it acts, lowest first."""
        return list(self._vectors)

    def attach(self, backbone: Backbone, seed: int = 0) -> None:
        if self._backbone is not None:
            raise AdapterError(f"this {self.kind} is attached already; detach it first")
        direction = self._given or Direction.load(_file(self.path), backbone)
        direction.check(backbone)
        sources = self._placed(direction, backbone)
        modules = {site: backbone.module_at(site) for site in sources}
        self._backbone, self._sources = backbone, sources
        self._use(direction)
        self._handles = [
            hooks.add_edit(module, partial(self._edit, site)) for site, module in modules.items()
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._sources, self._vectors, self._moved = [], {}, {}, {}
        self._backbone, self._direction = None, None

    def _placed(self, direction: Direction, backbone: Backbone) -> dict[Site, Site]:
        """Each site where it acts, lowest first -> the site whose vector is used there."""
        layers = _layers(self.layers, direction, self.point, backbone.num_layers)
        sites = [Site(layer, self.point) for layer in layers]
        has = ", ".join(map(str, direction.vectors))
        if not sites:
            raise AdapterError(
                f"layers: {self.layers} with point: {self.point} chooses none; {self.path} has {has}"
            )
        for site in sites:
            backbone.module_at(site)  # a layer that does not exist is said to be that
        if self.source is not None:
            source = Site(self.source, self.point)
            direction.at(source)
            return dict.fromkeys(sites, source)
        missing = ", ".join(str(site) for site in sites if site not in direction.vectors)
        if missing:
            raise AdapterError(
                f"layers: {self.path} has no vector at {missing}, only at {has}; choose among these, or set "
                "source to the layer whose vector shall be used at all of them"
            )
        return {site: site for site in sites}

    def _use(self, direction: Direction) -> None:
        ready = direction.unit() if self.normalised else direction
        self._direction, self._moved = direction, {}
        self._vectors = {site: ready.at(source) for site, source in self._sources.items()}

    def _edit(self, site: Site, hidden_BTD: Tensor) -> Tensor:
        if not self.on:
            return hidden_BTD
        vector, strength = self._values(site, hidden_BTD)
        edited_BTD = self.edited(hidden_BTD, vector, strength)
        if self.positions == "all":
            return edited_BTD
        return torch.where(answer_positions(self.backbone)[..., None], edited_BTD, hidden_BTD)

    def _values(self, site: Site, hidden_BTD: Tensor) -> tuple[Tensor, float | Tensor]:
        """The vector and strength of this pass, on the device of the hidden states."""
        key = (site, hidden_BTD.device)
        if key not in self._moved:
            with torch.inference_mode(False):  # a later pass may need gradients through it
                self._moved[key] = self._vectors[site].to(hidden_BTD.device)
        vector, strength = self._moved[key], self.strength * self._factor
        if self._rows is None:
            return vector, strength
        self._rows.fit(hidden_BTD)
        given, strength_B11 = self._rows.vector(site, hidden_BTD.device), self._rows.strength_B11
        vector = vector if given is None else given
        return vector, strength if strength_B11 is None else strength_B11.to(vector.device) * self._factor

    @contextmanager
    def rows(
        self, strength_B: Tensor | None = None, vectors: dict[Site, Tensor] | None = None
    ) -> Iterator[None]:
        """Context: every batch row gets its own strength or vector, so that a sweep costs one pass.

        `update` and `norm` know nothing of it.

        Args:
            strength_B: in place of the coefficient (steering) or strength (ablation); `rescaled` still
                multiplies it.
            vectors: site -> (B, D), in place of the direction there; other sites keep theirs.

        Raises:
            AdapterError: a site where this does not act, a shape that does not fit, or a row of length 0
                where length 1 is needed. A pass whose batch has another number of rows raises it too.
        """
        made = Rows.of(strength_B, vectors or {}, self._acting(), self.normalised)
        before, self._rows = self._rows, made
        try:
            yield
        finally:
            self._rows = before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def update(self) -> Update:
        """Strength times vector, at each site."""
        strength = self.strength * self._factor
        return Update({str(site): (vector * strength, None) for site, vector in self._acting().items()})

    @contextmanager
    def rescaled(self, factor: float) -> Iterator[None]:
        before, self._factor = self._factor, self._factor * factor
        try:
            yield
        finally:
            self._factor = before

    @contextmanager
    def perturbed(self, epsilon: float, generator: torch.Generator) -> Iterator[None]:
        """Turns the direction, site by site; sites that share a vector (`source`) share its noise."""
        if epsilon == 0:
            yield
            return
        before = self.direction, self._vectors, self._moved
        try:
            used = sorted(set(self._sources.values()))
            self._use(self.direction.only(used).perturbed(epsilon, generator))
            yield
        finally:
            self._direction, self._vectors, self._moved = before

    def lowest_layer(self) -> int:
        return min(site.layer for site in self._acting())

    def save(self, folder: Path, write: bool = True) -> None:
        direction = self.direction
        if write:
            direction.save(Path(folder) / WEIGHTS)
            self.save_record(folder)

    def load(self, folder: Path) -> None:
        check_record(read_record(folder), self.kind, self.backbone, Path(folder))
        direction = Direction.load(Path(folder) / WEIGHTS, self.backbone)
        if self._placed(direction, self.backbone) != self._sources:
            raise AdapterError(f"{folder}: has other sites than this {self.kind} was attached with")
        self._use(direction)

    def _acting(self) -> dict[Site, Tensor]:
        """The vectors in use, as they are applied."""
        _ = self.direction  # says so when it is not attached
        return self._vectors


def _layers(chosen: str | int | list[int], direction: Direction, point: Point, count: int) -> list[int]:
    if isinstance(chosen, int):
        return [chosen]
    if isinstance(chosen, list):
        return sorted(set(chosen))
    return list(range(count)) if chosen == "all" else [s.layer for s in direction.vectors if s.point == point]


def _file(path: str) -> Path:
    """The file of a direction, which may be given as the folder that holds it."""
    return Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
