"""Figures as data that JSON can hold."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """Return dicts and lists of a value's parts, with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
