"""A direction in the residual stream: one vector for each site, and where it came from."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from em.backbone import Backbone
from em.errors import AdapterError
from em.files import write_tensors
from em.hooks import Point, Site
from em.interventions.base import check_origin
from em.interventions.update import orthogonal_mix

METADATA = "em"
POINTS = get_args(Point)
SITE = re.compile(rf"(0|[1-9]\d*)\.({'|'.join(POINTS)})")


def parse_site(text: str) -> Site:
    """The site that `str` writes as `15.block`.

    Raises:
        AdapterError: it is not written like that.
    """
    found = SITE.fullmatch(text)
    if found is None:
        raise AdapterError(
            f"{text!r} is no site; expected LAYER.POINT such as 15.block, with a point of {', '.join(POINTS)}"
        )
    return Site(int(found[1]), cast(Point, found[2]))


@dataclass(frozen=True, eq=False)
class Direction:
    """Vectors in the residual stream, with their provenance.

    Args:
        vectors: site -> shape (D,), of any length above 0; kept as fp32 copies on the CPU, in site order.
        origin: what JSON can hold: kind, runs, groups with counts, seed, and under `backbone` what
            `Backbone.describe` says, which keeps the direction from being used with other weights.
        name: for tables and figures.

    Raises:
        AdapterError: no vector, another shape, a value that is not finite, or a vector of length 0.
    """

    vectors: dict[Site, Tensor]
    origin: dict[str, Any] = field(default_factory=dict)
    name: str = "direction"

    def __post_init__(self) -> None:
        with torch.inference_mode(False):  # else autograd refuses what was measured in inference mode
            kept = {
                site: self.vectors[site].detach().to("cpu", torch.float32).clone().contiguous()
                for site in sorted(self.vectors)
            }
        if not kept:
            raise AdapterError("holds no vectors; a direction needs at least one")
        width = next(iter(kept.values())).numel()
        for site, vector in kept.items():
            if vector.shape != (width,):
                raise AdapterError(f"{site} has shape {tuple(vector.shape)}, but expected is ({width},)")
            if not bool(vector.isfinite().all()):
                raise AdapterError(f"{site} holds values that are not finite")
            if not bool(vector.any()):
                raise AdapterError(f"{site} has length 0, which is no direction")
        object.__setattr__(self, "vectors", kept)

    def at(self, site: Site) -> Tensor:
        """The vector of a site, shape (D,).

        Raises:
            AdapterError: there is none; names the sites that there are.
        """
        if site not in self.vectors:
            has = ", ".join(map(str, self.vectors))
            raise AdapterError(f"the direction {self.name!r} has no vector at {site}; it has {has}")
        return self.vectors[site]

    def norms(self) -> dict[Site, float]:
        """Length of each vector."""
        return {site: float(vector.double().norm()) for site, vector in self.vectors.items()}

    def unit(self) -> "Direction":
        """The same directions at length 1."""
        return self._each(lambda site, vector: vector / vector.norm())

    def only(self, sites: Iterable[Site]) -> "Direction":
        """Some of the sites.

        Raises:
            AdapterError: one has no vector here.
        """
        return replace(self, vectors={site: self.at(site) for site in sites})

    def scaled_like(self, other: "Direction") -> "Direction":
        """The same directions with the lengths of another, site by site.

        Raises:
            AdapterError: the other one lacks a site.
        """
        return self._each(lambda site, vector: vector * (other.at(site).double().norm() / vector.norm()))

    def random_like(self, generator: torch.Generator) -> "Direction":
        """Isotropic random directions with exactly these lengths, the control of arXiv 2602.07852.

        `randn · ‖v‖`, as in published code, would be √D times too long.
        """

        def drawn(site: Site, vector: Tensor) -> Tensor:
            noise = torch.randn(vector.shape, generator=generator, dtype=torch.float64)
            return noise * (vector.norm() / noise.norm())

        known = {"backbone": self.origin["backbone"]} if "backbone" in self.origin else {}
        made = self._each(drawn)
        return replace(made, origin={"kind": "random", "like": self.name, **known}, name="random")

    def perturbed(self, epsilon: float, generator: torch.Generator) -> "Direction":
        """√(1−ε²)·v + ε·y with y ⟂ v and ‖y‖ = ‖v‖, site by site."""

        def turned(site: Site, x: Tensor) -> Tensor:
            y = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            p, q = orthogonal_mix(epsilon, float(x @ x), float(y @ y), float(x @ y))
            return p * x + q * y

        return self._each(turned)

    def _each(self, change: Callable[[Site, Tensor], Tensor]) -> "Direction":
        """Every vector changed, in float64."""
        return replace(self, vectors={site: change(site, v.double()) for site, v in self.vectors.items()})

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone with other weights, another width, or without one of the sites.

        Raises:
            AdapterError: one of these.
        """
        known = self.origin.get("backbone")
        if isinstance(known, dict):
            check_origin(known, backbone, f"the direction {self.name!r} was taken from")
        for site, vector in self.vectors.items():
            if len(vector) != backbone.hidden_size:
                raise AdapterError(
                    f"{site} has width {len(vector)}, but {backbone.name} has width {backbone.hidden_size}"
                )
            if site.layer >= backbone.num_layers:
                raise AdapterError(f"{site}: {backbone.name} has layers 0 to {backbone.num_layers - 1}")

    def save(self, path: Path | str) -> None:
        """One safetensors file: a tensor for each site, provenance and name in its metadata.

        Raises:
            RunError: it cannot be written.
        """
        record = json.dumps({"name": self.name, "origin": self.origin}, ensure_ascii=False, allow_nan=False)
        write_tensors(Path(path), {str(site): v for site, v in self.vectors.items()}, {METADATA: record})

    @classmethod
    def load(cls, path: Path | str, backbone: Backbone | None = None) -> "Direction":
        """Read what `save` wrote, or any safetensors file with a tensor for each site.

        Args:
            backbone: also check that the direction fits it.

        Raises:
            AdapterError: it cannot be read, is no direction, or does not fit; names the file.
        """
        path = Path(path)
        try:
            tensors, name, origin = _read(path)
            direction = cls({parse_site(site): tensor for site, tensor in tensors.items()}, origin, name)
            if backbone is not None:
                direction.check(backbone)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error}") from error
        return direction


def _read(path: Path) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            record = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"cannot be read as safetensors ({error})") from error
    except ValueError as error:
        raise AdapterError(f"its metadata is not JSON ({error})") from error
    record = record if isinstance(record, dict) else {}
    origin = record.get("origin", {})
    if not isinstance(origin, dict):
        raise AdapterError(f"its origin is {origin!r}, not a mapping")
    return tensors, str(record.get("name", path.stem)), origin
