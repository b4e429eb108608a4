"""The checkpoints a bundle is built from, loaded and held against each other."""

import math
from dataclasses import dataclass
from typing import Any

from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.models.autoencoder import Decoder, load_decoder
from flowturbo_trt.models.checkpoints import (
    ConfigError,
    given_config,
    load_checkpoint,
    load_predictor,
    load_refiner,
)
from flowturbo_trt.models.sit import SiT

# Guided by the reference: the first three of four latent channels.
REFERENCE_GUIDED_CHANNELS = 3
DEFAULT_GUIDANCE = 1.5


@dataclass(frozen=True)
class Sources:
    """Networks in float32 with what the configuration says about their use."""

    predictor: SiT
    refiner: SiT | None
    decoder: Decoder | None
    guided_channels: int
    default_guidance: float
    schedules: tuple[str, ...]
    provenance: dict[str, dict[str, str]]


def load_sources(options: BuildOptions) -> Sources:
    """Load and check everything, cheapest mistakes first."""
    given = given_config(options.model, options.config)
    checkpoint = load_checkpoint(options.predictor)
    predictor = load_predictor(checkpoint, given)
    provenance = {"predictor": checkpoint.provenance()}
    refiner = decoder = None
    if options.refiner:
        checkpoint = load_checkpoint(options.refiner)
        refiner = load_refiner(checkpoint, predictor.config)
        provenance["refiner"] = checkpoint.provenance()
        if given.get("refiner_depth", refiner.config.depth) != refiner.config.depth:
            raise ConfigError(
                f"{options.refiner}: its depth is {refiner.config.depth}, the configuration's refiner_depth "
                f"is {given['refiner_depth']}"
            )
    if options.decoder:
        decoder, checkpoint = load_decoder(options.decoder)
        provenance["decoder"] = checkpoint.provenance()
        if decoder.latent_channels != predictor.config.in_channels:
            raise BuildError(
                f"{options.decoder}: decodes {decoder.latent_channels} latent channels, the predictor has "
                f"{predictor.config.in_channels}; give the decoder of this model"
            )
    channels = _guided_channels(given, predictor.config.in_channels)
    guidance, schedules = _default_guidance(given), _schedules(given)
    return Sources(predictor, refiner, decoder, channels, guidance, schedules, provenance)


def _guided_channels(given: dict[str, Any], latent_channels: int) -> int:
    channels = given.get("guided_channels", min(REFERENCE_GUIDED_CHANNELS, latent_channels))
    if channels == "all":
        return latent_channels
    if type(channels) is not int or not 1 <= channels <= latent_channels:
        raise ConfigError(f"guided_channels is {channels!r}, expected 'all' or 1 to {latent_channels}")
    return channels


def _default_guidance(given: dict[str, Any]) -> float:
    scale = given.get("cfg_scale", DEFAULT_GUIDANCE)
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise ConfigError(f"cfg_scale is {scale!r}, expected a number")
    return float(scale)


def _schedules(given: dict[str, Any]) -> tuple[str, ...]:
    schedules = given.get("schedules", [])
    if not isinstance(schedules, list) or not all(isinstance(text, str) for text in schedules):
        raise ConfigError(f"schedules are {schedules!r}, expected a list of texts like 'H1P5R3'")
    return tuple(schedules)
