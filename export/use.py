"""What a model's configuration says about its use, beside the shape of its networks."""

import math
from collections.abc import Mapping
from typing import Any

from flowturbo_trt.models.checkpoints import ConfigError

# Guided by the reference: the first three of four latent channels.
REFERENCE_GUIDED_CHANNELS = 3
DEFAULT_GUIDANCE = 1.5


def guided_channels(given: Mapping[str, Any], latent_channels: int) -> int:
    """Return how many channels classifier-free guidance works on, the first ones; raises ConfigError."""
    channels = given.get("guided_channels", min(REFERENCE_GUIDED_CHANNELS, latent_channels))
    if channels == "all":
        return latent_channels
    if type(channels) is not int or not 1 <= channels <= latent_channels:
        raise ConfigError(f"guided_channels is {channels!r}, expected 'all' or 1 to {latent_channels}")
    return channels


def default_guidance(given: Mapping[str, Any]) -> float:
    """Return the guidance scale of requests that name none; raises ConfigError."""
    scale = given.get("cfg_scale", DEFAULT_GUIDANCE)
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise ConfigError(f"cfg_scale is {scale!r}, expected a number")
    return float(scale)


def preferred_schedules(given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the schedules to build, the default first, or none; raises ConfigError."""
    schedules = given.get("schedules", [])
    if not isinstance(schedules, list) or not all(isinstance(text, str) for text in schedules):
        raise ConfigError(f"schedules are {schedules!r}, expected a list of texts like 'H1P5R3'")
    return tuple(schedules)
