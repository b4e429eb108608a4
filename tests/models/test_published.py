"""Published models' sizes, against the counts of the checkpoints and of the networks."""

import pytest
import torch
from diffusers import AutoencoderKL

from flowturbo_trt.models.published import (
    CLASSES,
    DECODER_PARAMETERS,
    LATENT,
    NAMED_MODELS,
    parameter_count,
)
from flowturbo_trt.models.sit import SiT, SiTConfig


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("SiT-S/2", 32_963_360),
        ("SiT-B/2", 130_512_416),
        ("SiT-L/2", 458_102_816),
        ("SiT-XL/2", 675_129_632),
    ],
)
def test_parameters_of_published_predictors(name: str, count: int) -> None:
    assert parameter_count(name) == count


def test_parameters_of_the_published_refiner() -> None:
    assert parameter_count("SiT-XL/2", refines=True) == 29_708_960


@pytest.mark.parametrize("refines", [False, True])
@pytest.mark.parametrize("name", NAMED_MODELS)
def test_formula_counts_what_the_network_holds(name: str, refines: bool) -> None:
    C, H, _ = LATENT
    shape = NAMED_MODELS[name] | ({"depth": 1} if refines else {})
    with torch.device("meta"):
        network = SiT(SiTConfig(input_size=H, in_channels=C, num_classes=CLASSES, **shape), refines=refines)
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == parameter_count(
        name, refines=refines
    )


def test_parameters_of_the_decoder() -> None:
    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=4,
        )
    parts = (autoencoder.decoder, autoencoder.post_quant_conv)
    assert sum(p.numel() for part in parts for p in part.parameters()) == DECODER_PARAMETERS
