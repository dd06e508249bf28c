"""Where the solution moves activations, and whether that is the way from careful to careless answers."""

from typing import Any

from em.backbone import Backbone
from em.callbacks._choices import at_least, paired_domain, pairs_of, site_in
from em.callbacks._shares import shared_moments
from em.callbacks.base import MeasurementCallback, RunContext
from em.datamodules.chat import ChatData
from em.hooks import Site
from em.measurements.directions import Given, MeanDifference, cosine_estimate
from em.stats import Estimate

NAN = float("nan")
Found = MeanDifference | Given


class Directions(MeasurementCallback):
    """Mean differences over the answer tokens of held-out pairs, at the output of every layer.

    The difference is careless minus careful answers under the adapted model; the shift is the adapted minus
    the reference model on the same careless answers.

    When: by its schedule; at the end if none is given. Before the solution has moved there is no shift, and
    what depends on it is not a number.

    Logged, at one layer:
        directions/difference_norm, directions/shift_norm: their lengths, residual-stream units.
        directions/split_half: cosine of the difference between random halves of the prompts, mean of 20.
        directions/shift_cosine: of the shift with the difference.
        directions/vector_cosine: of a learned steering vector with the difference; for that kind only.
        directions/reference_cosine: of the difference with the one under the reference.
    Written at the end: directions/mean-difference.safetensors and directions/shift.safetensors, which
    steering, ablation and `monitor` take; tables/directions.json and figures/cosines.*,
    figures/difference-cosines.*, where careless − careful is that of the reference, as in a comparison of
    runs. The figures go to W&B each time.

    Args:
        domain: whose pairs; by default the first training domain that has pairs.
        pairs: held-out pairs, at most.
        layer: of what is logged and of the matrix of cosines; default the middle one.
    """

    def __init__(
        self, *, domain: str | None = None, pairs: int = 64, layer: int | None = None, **schedule: Any
    ):
        super().__init__(**schedule)
        self.domain, self.pairs, self.layer = domain, pairs, layer

    def prepare(self, backbone: Backbone, data: ChatData) -> None:
        at_least(2, pairs=self.pairs)
        pairs_of(data, paired_domain(data, self.domain), "held_out", self.pairs)
        site_in(backbone, self.layer, "block")

    def measure(self, context: RunContext) -> dict[str, float]:
        domain, site = (
            paired_domain(context.data, self.domain),
            site_in(context.backbone, self.layer, "block"),
        )
        pairs = pairs_of(context.data, domain, "held_out", self.pairs)
        sites = [Site(layer) for layer in range(context.backbone.num_layers)]
        adapted = shared_moments(context, pairs, sites)
        with context.intervention.disabled():
            reference = shared_moments(context, pairs, sites)
        name = "careless − careful"
        difference = MeanDifference(name, adapted["careless"], adapted["careful"])
        before = MeanDifference(name, reference["careless"], reference["careful"])
        shift = MeanDifference(f"shift of {context.solution}", adapted["careless"], reference["careless"])
        learned = _learned(context, site)
        table = {"step": context.step, "domain": domain, **_table(context, site, before, shift, learned)}
        if context.when == "end":
            self._save(context, domain, difference, shift)
            context.save_table(self.name, table)
        context.show("directions", table)
        numbers = {
            "difference_norm": float(difference.vector(site).norm()),
            "shift_norm": float(shift.vector(site).norm()),
            "split_half": float(difference.reliability(site, context.seed).mean()),
            "shift_cosine": _value(cosine_estimate(shift, difference, site)),
            "reference_cosine": _value(cosine_estimate(before, difference, site)),
        }
        if learned is not None:
            numbers["vector_cosine"] = _value(cosine_estimate(learned, difference, site))
        return numbers

    def _save(
        self, context: RunContext, domain: str, difference: MeanDifference, shift: MeanDifference
    ) -> None:
        origin = {
            "run": str(context.run.path),
            "step": context.step,
            "domain": domain,
            "seed": context.seed,
            "backbone": context.backbone.describe(),
        }
        what = {
            "mean-difference": (difference, "careless minus careful held-out answers, adapted model"),
            "shift": (shift, "adapted minus reference activations on held-out careless answers"),
        }
        made = {
            file: one.direction({"what": words, **origin}, context.seed)
            for file, (one, words) in what.items()
        }
        for file, direction in made.items():
            if context.rank == 0:
                direction.save(context.run.path / "directions" / f"{file}.safetensors")


def _learned(context: RunContext, site: Site) -> Given | None:
    """The learned vector of a steering vector, read as if it were at the site."""
    if context.intervention.kind != "steering_vector":
        return None
    ((vector, _),) = context.intervention.update().parts.values()
    return Given(f"vector of {context.solution}", {site: vector.double().cpu()})


def _table(
    context: RunContext, site: Site, before: MeanDifference, shift: MeanDifference, learned: Given | None
) -> dict[str, Any]:
    """As a comparison of runs writes it, with one solution."""
    sites, name = before.sites, context.solution
    along = [cosine_estimate(shift, before, one) for one in sites]
    moved = [float(shift.vector(one).norm()) > 0 for one in sites]
    control = before.direction({}, context.seed).only([site])
    random = control.random_like(context.generator("cosine-control"))
    listed: list[Found] = [before, *([shift] if moved[sites.index(site)] else [])]
    listed += [*([learned] if learned is not None else []), Given("random", {site: random.at(site)})]
    cells = [[cosine_estimate(a, b, site) for b in listed] for a in listed]
    return {
        "layers": [one.layer for one in sites],
        "separation": None,
        "reliability": {
            name: [
                float(shift.reliability(one, context.seed).mean()) if has else None
                for one, has in zip(sites, moved, strict=True)
            ]
        },
        "between": [],
        "with_difference": {
            name: {
                "cosine": [one.value for one in along],
                "low": [one.low for one in along],
                "high": [one.high for one in along],
            }
        },
        "matrix": {
            "layer": site.layer,
            "names": [one.name for one in listed],
            "values": [[cell.value for cell in row] for row in cells],
            "low": [[cell.low for cell in row] for row in cells],
            "high": [[cell.high for cell in row] for row in cells],
        },
        "updates": [],
        "written": [],
    }


def _value(estimate: Estimate) -> float:
    return NAN if estimate.value is None else estimate.value
