"""The refiner before its first step: its shape, and what it takes over from the predictor."""

from dataclasses import replace

import torch

from flowturbo_trt.models.sit import SiT, SiTConfig
from flowturbo_trt.training.config import TrainingConfig, TrainingError


def refiner_shape(predictor: SiTConfig, config: TrainingConfig) -> SiTConfig:
    """Return the refiner's shape: the predictor's but for what the training's config sets."""
    width = config.width or predictor.hidden_size
    head = predictor.hidden_size // predictor.num_heads
    if not config.heads and width % head:
        raise TrainingError(
            f"width {width} is no multiple of {head}, the size of the predictor's attention heads; give heads"
        )
    heads = config.heads or width // head
    # The position takes a quarter of the width each for sine and cosine of row and column.
    if width % heads or width % 4:
        raise TrainingError(f"width is {width}, expected a multiple of 4 and of the {heads} heads")
    if config.init == "predictor":
        if (width, heads) != (predictor.hidden_size, predictor.num_heads):
            raise TrainingError(
                f"init is 'predictor', but the refiner is of width {width} with {heads} heads and the "
                f"predictor of width {predictor.hidden_size} with {predictor.num_heads}; use init 'random'"
            )
        if config.depth > predictor.depth:
            raise TrainingError(
                f"init is 'predictor', but depth is {config.depth} and the predictor has "
                f"{predictor.depth} blocks to start from; use init 'random' or fewer"
            )
    return replace(predictor, depth=config.depth, hidden_size=width, num_heads=heads)


def initial_refiner(predictor: SiT, config: TrainingConfig, start: SiT | None = None) -> SiT:
    """Build the refiner `start` again where `init` says so, else one whose output is zero.

    It is from the seed alone, or with the predictor's first layers.

    From the predictor (`init`) it takes the embeddings of state, time and label and the first blocks;
    the velocity's half of the input embedding is zero. The final layer is as without it: the
    predictor's would put out a velocity, not an offset. Torch's global generator stays as it was.
    """
    if (config.init == "refiner") != (start is not None):
        raise TrainingError(f"init is {config.init!r}; a refiner to start from goes with 'refiner' alone")
    shape = refiner_shape(predictor.config, config) if start is None else start.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        refiner = SiT(shape, refines=True)
    if config.init == "predictor":
        _take_over(refiner, predictor)
    if start is not None:
        refiner.load_state_dict(start.state_dict())
    return refiner


@torch.no_grad()
def _take_over(refiner: SiT, predictor: SiT) -> None:
    for name in ("t_embedder", "y_embedder"):
        refiner.get_submodule(name).load_state_dict(predictor.get_submodule(name).state_dict())
    for block, first in zip(refiner.blocks, predictor.blocks, strict=False):
        block.load_state_dict(first.state_dict())
    refiner.pos_embed.copy_(predictor.pos_embed)
    embedding = predictor.x_embedder.proj.state_dict()
    of_state = embedding["weight"]
    refiner.x_embedder.proj.load_state_dict(
        embedding | {"weight": torch.cat([of_state, torch.zeros_like(of_state)], dim=1)}
    )
