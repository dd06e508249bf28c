"""Checks of the options of a remote judge, all problems at once."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from em.errors import ConfigError
from em.judges._client import address
from em.judges._reply import is_number
from em.judges.base import METRICS

METHODS = ("auto", "logprobs", "sampled")
OWN = frozenset(
    ("model", "messages", "temperature", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs")
    + ("seed", "n", "stream", "stream_options", "stop", "tools", "functions", "response_format", "modalities")
)
# name: (least, most, whole)
RANGES: dict[str, tuple[float, float, bool]] = {
    "samples": (5, 1000, True),
    "temperature": (0, 2, False),
    "reply_tokens": (1, 100_000, True),
    "concurrency": (1, 1000, True),
    "timeout": (0, 86_400, False),
    "max_retries": (0, 100, True),
    "attempts": (1, 100, True),
    "max_spend_tokens": (1, math.inf, True),
    "max_spend": (0, math.inf, False),
    "confirm_above_tokens": (0, math.inf, True),
    "min_mass": (0, 1, False),
}
ABOVE_ZERO = ("temperature", "timeout", "max_spend")
OPTIONAL = ("max_spend_tokens", "max_spend")


def check(options: Mapping[str, Any]) -> None:
    """Refuse options of a remote judge that cannot work.

    Raises:
        ConfigError: every problem, each naming its option.
    """
    problems = [*_texts(options), *(p for name in RANGES for p in _range(name, options[name]))]
    problems += [*_price(options["price"], options["max_spend"]), *_request(options["request"])]
    unknown = [metric for metric in options["prompts"] or {} if metric not in METRICS]
    if unknown:
        problems.append(f"prompts: unknown metric {unknown[0]!r}; there is {', '.join(METRICS)}")
    if problems:
        raise ConfigError(problems)


def _texts(options: Mapping[str, Any]) -> list[str]:
    found = []
    for name in ("model", "key_env"):
        if not isinstance(options[name], str) or not options[name].strip():
            found.append(f"{name}: expected a name, got {options[name]!r}")
    url = options["base_url"]
    # The value is not repeated: a URL may hold a password.
    if not isinstance(url, str) or address(url) is None:
        found.append(
            "base_url: expected http(s)://HOST/PATH without a user, a password and a query, for example "
            "http://localhost:8000/v1; a key comes from the environment (key_env)"
        )
    if options["method"] not in METHODS:
        found.append(f"method: expected one of {', '.join(METHODS)}, got {options['method']!r}")
    if not isinstance(options["yes"], bool):
        found.append(f"yes: expected true or false, got {options['yes']!r}")
    if options["cache"] is not None and not (isinstance(options["cache"], str) and options["cache"].strip()):
        found.append(f"cache: expected the path of a file, got {options['cache']!r}")
    return found


def _range(name: str, value: Any) -> list[str]:
    least, most, whole = RANGES[name]
    if value is None and name in OPTIONAL:
        return []
    fits = is_number(value) and least <= value <= most and not (value == 0 and name in ABOVE_ZERO)
    if fits and value != math.inf and (isinstance(value, int) or not whole):
        return []
    kind = "a whole number" if whole else "a number"
    bounds = f"above {least:g}" if name in ABOVE_ZERO else f"from {least:g}"
    upper = "" if most == math.inf else f" to {most:g}"
    return [f"{name}: expected {kind} {bounds}{upper}, got {value!r}"]


def _price(price: Any, max_spend: Any) -> list[str]:
    if price is None:
        missing = "max_spend: needs price: [input, output], the cost of a million tokens of each"
        return [] if max_spend is None else [missing]
    pair = isinstance(price, Sequence) and not isinstance(price, str) and len(price) == 2
    if pair and all(is_number(value) and 0 <= value < math.inf for value in price):
        return []
    return [f"price: expected [input, output] for a million tokens, got {price!r}"]


def _request(request: Any) -> list[str]:
    if request is None:
        return []
    if not isinstance(request, Mapping):
        return [f"request: expected further parameters of the request, got {request!r}"]
    return [f"request: {name} is set by the judge itself" for name in request if name in OWN]
