"""Names of the members of a sweep: short, stable, and of characters that need no quoting anywhere."""

import hashlib
import json
import re
from typing import Any

LONGEST_VALUE, LONGEST_NAME = 32, 120
# What a folder, a shell and a W&B artifact all take as it is.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def name_of(values: dict[str, Any], labels: dict[str, str]) -> str:
    """Such as `weight-0.3_seed-1`; what is very long ends in a hash of the whole.

    Args:
        values: dotted key -> value.
        labels: of the keys.
    """
    name = "_".join(f"{labels[key]}-{_text(value)}" for key, value in values.items())
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{_digest(_json(values))}"


def labels_of(keys: list[str]) -> dict[str, str]:
    """For every key as many of its last parts as tell it from all others."""
    labels = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            tail = parts[-count:]
            if sum(other.split(".")[-count:] == tail for other in keys) == 1:
                break
        labels[key] = _plain(".".join(tail)) or _digest(key)
    return labels


def _text(value: Any) -> str:
    """A value in characters that need no quoting; what is long ends in a hash of the whole."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return str(value).removesuffix(".0").replace("+", "")
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        text = "-".join(map(_text, inner)) or "empty"
    else:
        text = _plain(str(value))
    if len(text) > LONGEST_VALUE:
        return f"{text[: LONGEST_VALUE - 9]}-{_digest(_json(value))}"
    return text or _digest(_json(value))


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
