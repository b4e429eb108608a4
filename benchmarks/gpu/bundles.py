"""The bundles that are checked and timed: the committed digits, and SiT with random weights."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL

from flowturbo_trt.benchmarks.gpu.cases import TINY
from flowturbo_trt.benchmarks.random_weights import write_checkpoints, write_random
from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.examples.digits.loop import WEIGHTS
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions
from flowturbo_trt.models.autoencoder import STABLE_DIFFUSION_CONFIG
from flowturbo_trt.models.published import NAMED_MODELS

TINY_SHAPE = {
    "input_size": 4,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 32,
    "depth": 1,
    "num_heads": 2,
    "num_classes": 10,
}
TINY_DECODER = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Weights:
    """Checkpoints to build from, and the configuration that they do not tell themselves."""

    predictor: Path
    refiner: Path
    decoder: Path
    config: Path


@dataclass(frozen=True)
class Wanted:
    """What to build from weights, for one backend in one precision."""

    backend: str
    precision: str
    batches: tuple[int, ...]
    schedules: tuple[str, ...]
    variants: tuple[str, ...] = ("guided",)
    conditioning: str = "hoisted"
    targets: tuple[str, ...] = ()


def digits_weights() -> Weights:
    """Return the committed weights of the digits example."""
    return Weights(
        WEIGHTS / "predictor.safetensors",
        WEIGHTS / "refiner.safetensors",
        WEIGHTS / "autoencoder",
        WEIGHTS / "config.json",
    )


def random_weights(folder: Path, model: str) -> Weights:
    """Write random checkpoints of a published size, with the Stable Diffusion decoder, unless they are there.

    Of TINY both are tiny.
    """
    names = ("predictor.pt", "refiner.pt", "autoencoder", "config.json")
    weights = Weights(*(folder / name for name in names))
    if not weights.config.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if model == TINY:
            write_random(folder, TINY_SHAPE)
        else:
            write_checkpoints(folder, model)
        decoder = TINY_DECODER if model == TINY else STABLE_DIFFUSION_CONFIG
        AutoencoderKL(**decoder).save_pretrained(weights.decoder)
        shape = TINY_SHAPE if model == TINY else NAMED_MODELS[model]
        # Last of all: its presence says that the rest is whole.
        weights.config.write_text(json.dumps(shape), encoding="utf-8")
    return weights


def build_bundle(
    weights: Weights,
    out: Path,
    wanted: Wanted,
    sibling: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Build what is wanted at `out`, from graphs of a bundle of the same weights where there is one.

    What is finished at `out` is taken from there. Raises FlowTurboError subclasses, as builds do.
    """
    if sibling is not None and sibling.exists() and not out.exists():
        # Links: builds never write over a file.
        shutil.copytree(sibling, out, copy_function=os.link)
    options = BuildOptions(
        predictor=weights.predictor,
        refiner=weights.refiner,
        decoder=weights.decoder,
        config=weights.config,
        batches=wanted.batches,
        backends=(wanted.backend,),
        precisions=(wanted.precision,),
        variants=wanted.variants,
        schedules=wanted.schedules,
        targets=wanted.targets,
        conditioning=wanted.conditioning,
    )
    return build(options, out, say=say)
