"""The torch modules that a manifest describes, without memory for their weights."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flowturbo_trt.bundle.manifest import Model, conditioner_of
from flowturbo_trt.export.networks import conditioner, with_guidance
from flowturbo_trt.models.sit import SiT, SiTConfig

# What making, or running, a network of a shape that there is none of ends in.
UNFIT = (TypeError, ValueError, KeyError, IndexError, RuntimeError)


def configurations(model: Model) -> dict[str, dict[str, Any] | None]:
    """Return the shape of every network by name; None of those that the manifest does not tell."""
    return {
        "predictor": model.config,
        "refiner": model.refiner_config,
        conditioner_of("predictor"): model.config,
        conditioner_of("refiner"): model.refiner_config,
        "decoder": model.decoder_config,
    }


def empty_network(
    model: Model, network: str, variant: str | None, config: dict[str, Any], conditioning: str
) -> nn.Module:
    """Make the module that is exported as a network variant, on torch's meta device; raises UNFIT.

    `config` is its entry in `configurations`; `conditioning` is hoisted or fused.
    """
    if network == "decoder":
        return _decoder(config)
    with torch.device("meta"):
        # Graphs hold the velocity's channels only (export.networks.velocity_outputs_only).
        shape = replace(SiTConfig(**config), learn_sigma=False)
        whole = SiT(shape, refines=network in ("refiner", conditioner_of("refiner")))
    # NumPy computes the positional embedding, wherever torch is told to work.
    whole = whole.to("meta")
    if variant is None:
        return conditioner(whole)
    return with_guidance(whole, variant, model.guidance.channels, conditioning)


def _decoder(config: dict[str, Any]) -> nn.Module:
    # Here, because diffusers takes seconds to import and only decoders need it.
    from diffusers import AutoencoderKL

    from flowturbo_trt.models.autoencoder import Decoder

    with torch.device("meta"):
        return Decoder(AutoencoderKL.from_config(config))
