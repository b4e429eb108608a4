"""The digits model as a bundle: what the demo shows and the proof measures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flowturbo_trt.bundle.store import Bundle
from flowturbo_trt.export.build import build
from flowturbo_trt.export.options import BuildOptions

from .loop import WEIGHTS

BATCHES = (1, 10)
GUIDANCE = 1.5


def build_digits(
    out: Path,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    *,
    backends: tuple[str, ...] = ("onnxruntime",),
    refiner: Path = WEIGHTS / "refiner.safetensors",
    config: Path = WEIGHTS / "config.json",
) -> Bundle:
    """Build the bundle of the committed weights; `refiner` and `config` may be others."""
    options = replace(digits_options(), refiner=refiner, config=config, backends=backends)
    return build(options, out, progress)


def digits_options() -> BuildOptions:
    """Return what the bundle of the committed weights is built with."""
    return BuildOptions(
        predictor=WEIGHTS / "predictor.safetensors",
        refiner=WEIGHTS / "refiner.safetensors",
        decoder=WEIGHTS / "autoencoder",
        config=WEIGHTS / "config.json",
        batches=BATCHES,
        schedules=("H1P5R3", "H8", "H25"),
    )
