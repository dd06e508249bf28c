"""What the figures of several measurements share."""

from collections.abc import Mapping
from typing import Any

from em.figures.model import Role, Series

Raw = dict[str, Any]
Arms = Mapping[str, str]  # solution -> arm; solutions of one arm share a colour
PROMPTS = "Bands are 95% bootstrap intervals over held-out prompts."


def curve(name: str, x: list[float], values: Raw, key: str, arms: Arms, role: Role = "solution") -> Series:
    return Series(name, x, values[key], values.get("low"), values.get("high"), role, arms.get(name, name))
