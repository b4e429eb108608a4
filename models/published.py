"""Published SiT models by name: their shapes and sizes, known without torch."""

from typing import Any

# Head counts are not visible in a checkpoint; these are the published ones by width.
PUBLISHED_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
DEPTH_WIDTH = {"S": (12, 384), "B": (12, 768), "L": (24, 1024), "XL": (28, 1152)}
NAMED_MODELS: dict[str, dict[str, Any]] = {
    f"SiT-{size}/{patch}": {
        "depth": depth,
        "hidden_size": width,
        "num_heads": PUBLISHED_HEADS[width],
        "patch_size": patch,
    }
    for size, (depth, width) in DEPTH_WIDTH.items()
    for patch in (2, 4, 8)
}
# What they were trained on: ImageNet, as latents (C,H,W) of images of 256×256.
CLASSES = 1000
LATENT = (4, 32, 32)
# Of the Stable Diffusion autoencoder that decodes them (sd-vae-ft-ema, sd-vae-ft-mse), its decoding half.
DECODER_PARAMETERS = 49_490_199
# Of the embedding that a time in [0,1] is given by before its two linear layers.
_FREQUENCIES = 256


def parameter_count(name: str, *, refines: bool = False) -> int:
    """Return the number of parameters, pos_embed included, of a published model's predictor or refiner.

    A refiner is one block of the same width that reads a velocity beside the latent. A name that is not
    in NAMED_MODELS is a KeyError.
    """
    config = NAMED_MODELS[name]
    C, H, W = LATENT
    D, p = config["hidden_size"], config["patch_size"]
    depth, channels = (1, 2 * C) if refines else (config["depth"], C)
    outputs = 2 * C * p * p
    embedders = (
        H * W // p**2 * D  # pos_embed
        + D * channels * p * p + D  # x_embedder
        + D * _FREQUENCIES + D + D * D + D  # t_embedder
        + (CLASSES + 1) * D  # y_embedder
    )  # fmt: skip
    # Attention 4D², MLP 8D², modulation 6D², and their biases.
    block = 18 * D * D + 15 * D
    final = outputs * D + outputs + 2 * D * D + 2 * D
    count: int = embedders + depth * block + final
    return count
