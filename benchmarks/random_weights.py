"""Checkpoints of published sizes with random weights, for what does not depend on their values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowturbo_trt.models.published import CLASSES, LATENT, NAMED_MODELS
from flowturbo_trt.models.sit import SiT, SiTConfig


def write_checkpoints(folder: Path, model: str, latent: int = LATENT[1]) -> SiTConfig:
    """Write predictor.pt and refiner.pt for latents of side `latent`; return the predictor's shape."""
    shape = {"input_size": latent, "in_channels": LATENT[0], "num_classes": CLASSES}
    return write_random(folder, NAMED_MODELS[model] | shape)


def write_random(folder: Path, shape: Mapping[str, Any]) -> SiTConfig:
    """Write predictor.pt of a shape (fields of SiTConfig), and refiner.pt of one block; return the shape."""
    torch.manual_seed(0)
    predictor, refiner = SiTConfig(**shape), SiTConfig(**{**shape, "depth": 1})
    for name, config in (("predictor", predictor), ("refiner", refiner)):
        network = SiT(config, refines=name == "refiner")
        with torch.no_grad():
            for parameter in network.parameters():
                # Gates and outputs start as zeros: an untrained network gives nothing but that.
                if not parameter.any():
                    parameter.normal_(std=0.02)
        torch.save(network.state_dict(), folder / f"{name}.pt")
    return predictor
