"""What each domain was to the runs: trained on, in the KL data, mixed in, or in none of them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from em.config.schema import Config, DataConfig, SourceConfig
from em.datamodules.chat import training_domains


def domains_of(sources: Sequence[SourceConfig], data: DataConfig) -> list[str]:
    """The domains of `data`, its paired ones too, that some of the sources belong to."""
    listed = {name: [*pair.careless, *pair.careful] for name, pair in data.pairs.items()}
    listed |= {name: [*rows, *listed.get(name, [])] for name, rows in data.domains.items()}
    return training_domains(replace(data, train=list(sources), domains=listed))


def trained_by_all(configs: Iterable[Config], data: DataConfig) -> list[str]:
    """The domains that all of the runs were trained on, in the order of `data`."""
    found = [domains_of(config.data.train, data) for config in configs]
    return [name for name in found[0] if all(name in one for one in found[1:])]


def role(domain: str, roles: dict[str, list[str]]) -> str:
    """In words, for tables.

    Args:
        roles: `training`, `kl`, `mixed` -> domains.
    """
    if domain in roles["training"]:
        return "training"
    told = {"kl": "in the KL data", "mixed": "mixed in"}
    return " and ".join(words for key, words in told.items() if domain in roles.get(key, [])) or "in neither"


def unseen(domains: Iterable[str], roles: dict[str, list[str]]) -> list[str]:
    """The domains that no run saw any row of."""
    seen = {name for listed in roles.values() for name in listed}
    return [name for name in domains if name not in seen]
