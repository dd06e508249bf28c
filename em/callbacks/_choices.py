"""What the options of callbacks mean for the data and the backbone; what does not fit is refused."""

from em.backbone import Backbone
from em.datamodules.chat import ChatData
from em.datamodules.pairs import Pair, Part
from em.errors import ConfigError, MeasurementError
from em.hooks import Point, Site
from em.interventions.base import Intervention

ELSEWHERE = "measure from the run directory with `python -m em compare` instead"


def at_least(least: int, **options: int) -> None:
    """Refuse counts that are too small.

    Raises:
        ConfigError: names the first.
    """
    for name, value in options.items():
        if value < least:
            raise ConfigError(f"{name}: expected at least {least}, got {value}")


def loss_domain(data: ChatData, domain: str | None) -> str:
    """The domain whose held-out loss is measured; by default the first training domain.

    Raises:
        ConfigError: there is none.
    """
    known = ", ".join(data.domains) or "data.domains, which is empty"
    if domain is None:
        if not data.training_domains:
            raise ConfigError(f"domain: missing, and no domain holds rows that are trained on; give {known}")
        return data.training_domains[0]
    if domain not in data.domains:
        raise ConfigError(f"domain: {domain!r} is not among data.domains: {known}")
    return domain


def paired_domain(data: ChatData, domain: str | None) -> str:
    """The domain whose pairs are used; by default the first training domain that has pairs.

    Raises:
        ConfigError: there is none.
    """
    known = data.paired_domains
    wanted = domain or next(iter(data.training_domains), "DOMAIN")
    if domain is None:
        trained = [name for name in data.training_domains if name in known]
        if trained:
            return trained[0]
    elif domain in known:
        return domain
    fix = f"add careful and careless sources under data.pairs.{wanted}"
    have = f", or set domain to one that has them: {', '.join(known)}" if known else ""
    raise ConfigError(
        f"domain: {wanted} has no careful and careless answers to the same prompts; {fix}{have}"
    )


def pairs_of(data: ChatData, domain: str, part: Part, limit: int) -> list[Pair]:
    """The first pairs of a domain in keyed order, at least two.

    Raises:
        DataError: there is none.
        MeasurementError: there is one, of which no interval and no split half exists.
    """
    found = data.pairs(part, limit, [domain])[0][domain]
    if len(found) < 2:
        raise MeasurementError(
            f"data.pairs.{domain}: {len(found)} pair in its {part} part, but at least 2 are needed; add rows"
        )
    return found


def site_in(backbone: Backbone, layer: int | None, point: Point) -> Site:
    """The site of a layer, by default the middle one.

    Raises:
        ConfigError: the backbone has no such layer.
    """
    site = Site(backbone.num_layers // 2 if layer is None else layer, point)
    if not 0 <= site.layer < backbone.num_layers:
        raise ConfigError(
            f"layer: {backbone.name} has layers 0 to {backbone.num_layers - 1}, got {site.layer}"
        )
    backbone.module_at(site)
    return site


def refuse_sharded_noise(backbone: Backbone, intervention: Intervention, what: str) -> None:
    """Refuse perturbed copies of a LoRA under FSDP2, because their rank is double.

    Raises:
        MeasurementError: it is one.
    """
    if backbone.sharded and intervention.kind == "lora":
        raise MeasurementError(f"under trainer.strategy=fsdp2 a LoRA cannot be perturbed; {what}")
