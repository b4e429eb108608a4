"""The checkpoints a bundle is built from, loaded and held against each other."""

from dataclasses import dataclass

from flowturbo_trt.export.options import BuildError, BuildOptions
from flowturbo_trt.export.use import default_guidance, guided_channels, preferred_schedules
from flowturbo_trt.models.autoencoder import Decoder, load_decoder
from flowturbo_trt.models.checkpoints import (
    ConfigError,
    given_config,
    load_checkpoint,
    load_predictor,
    load_refiner,
)
from flowturbo_trt.models.sit import SiT


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
        refiner = load_refiner(checkpoint, predictor.config, given.get("refiner_heads"))
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
    channels = guided_channels(given, predictor.config.in_channels)
    guidance, schedules = default_guidance(given), preferred_schedules(given)
    return Sources(predictor, refiner, decoder, channels, guidance, schedules, provenance)
