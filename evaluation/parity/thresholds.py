"""How far an engine may be from the float32 graph it was compiled from, by its precision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowturbo_trt.bundle.manifest import Engine, Manifest
from flowturbo_trt.export.compile import is_as_is
from flowturbo_trt.export.recipe_notes import read_notes
from flowturbo_trt.sampling.errors import FlowTurboError


class ThresholdError(FlowTurboError):
    """A precision that nobody has measured yet."""


@dataclass(frozen=True)
class Thresholds:
    """Errors are at most, cosines and PSNR (dB) at least these, in every row.

    `call_*` hold for one call on the reference's inputs, `decoder_psnr` for the decoder on the
    reference's latents; `trajectory_relative_l2` and `image_psnr` for an engine's own trajectory.
    What concerns velocities holds without guidance; guidance raises it (comparison.amplification).
    `weight_relative_l2` is what rounding a weight tensor to the precision may change of it.
    """

    call_relative_l2: float
    call_cosine: float
    trajectory_relative_l2: float
    decoder_psnr: float
    image_psnr: float
    weight_relative_l2: float


# Measured on the digits example and the tests' golden and tiny bundles, 4 to 10 rows, worst row, errors
# over the amplification, 1 − cosine over its square. SiT-B/4 with random weights and the Stable Diffusion
# decoder lie within (fp16: call 2.8e-4, decoder 63.6 dB); nothing of SiT-XL's depth has been measured yet.
#
# fp32, graphs against torch: call 9.4e-7 (digits, refiner), 1 − cosine 4e-13, decoder at least 77 dB.
# The trajectory's limit is the README's promise. GPU libraries that compute float32 in TF32 fail, rightly.
#
# fp16, engines on ONNX Runtime's CPU, which rounds weights but computes much in float32: call 5.2e-4
# (tiny), 2e-4 (digits), trajectory 9e-4, decoder 60.6 dB, image 60.5 dB. torch.autocast, which rounds
# more than export/precision.py does (outputs too): call 1.5e-3, 1 − cosine 1.1e-6, decoder 58.0 dB.
# A whole weight matrix times 1.01 gives 1.2e-3 to 1.5e-2, in part below the limit, which is why weights
# are looked at as well: rounding changes a value by at most 2^-11 of it in fp16, 2^-8 in bf16.
#
# bf16, torch.autocast: call 1.4e-2, 1 − cosine 1e-4, decoder 45.3 dB.
# OpenVINO's, which rounds all but the tail of a network, the time embedding included, lies within (also
# SiT-S/2 and SiT-B/4 with random weights): call 1.3e-2, 1 − cosine 9e-5, trajectory 7.1e-3, decoder
# 56.4 dB, image 44.2 dB.
#
# int8 and fp8, all linear layers of all blocks with smoothing and nothing cut off (digits, H1P5R3): call
# 1.8e-2 and 3.1e-2, also of the refiner (3.4e-2), 1 − cosine 2e-4 and 5e-4, trajectory 1.5e-2 and 3.7e-2,
# image 41.6 and 37.6 dB. What a recipe is to keep to is its gate's business; this tells engines that do not
# compute what it says. Quantised weights are those that were rounded (quantized_weights.py), and all others
# of an ONNX file are float32, for which the last number stands.
THRESHOLDS = {
    "fp32": Thresholds(1e-5, 1 - 2e-11, 1e-4, 60, 55, 0),
    "fp16": Thresholds(2.5e-3, 1 - 3e-6, 5e-3, 50, 45, 2**-11),
    "bf16": Thresholds(2.5e-2, 1 - 3e-4, 5e-2, 35, 30, 2**-8),
    "int8": Thresholds(5e-2, 1 - 2e-3, 1e-1, 50, 30, 0),
    "fp8": Thresholds(1e-1, 1 - 5e-3, 2e-1, 50, 25, 0),
}
# Of a gate's mean trajectory error, where scales were made 1 to 16 times as coarse (digits, H1P5R3 and H8, 64
# rows): the worst row of a call 1.3 to 3.2 times as much, of latents 0.7 to 2 times, of images, as RMSE of
# the full range, 0.4 to 1.6 times. One call of H8 with scales of H1P5R3 had 9.2 times as much: too much.
CALL_SPREAD, TRAJECTORY_SPREAD = 4.0, 3.0


def thresholds(precision: str) -> Thresholds:
    """Return the limits of a precision; raises ThresholdError for one without."""
    if precision not in THRESHOLDS:
        raise ThresholdError(
            f"precision {precision!r} has no limits, only {', '.join(THRESHOLDS)} have; measure it and "
            "add its line in evaluation/parity/thresholds.py"
        )
    return THRESHOLDS[precision]


def bundle_thresholds(manifest: Manifest) -> dict[str, Thresholds]:
    """Return the limits of a bundle's precisions; raises ThresholdError for one without.

    A recipe that passed its gate with a budget which these limits were not made for is held to the budget.
    """
    limits = {engine.precision: thresholds(engine.precision) for engine in manifest.engines}
    for kind, budget in kept_budgets(manifest).items():
        if kind in limits:
            limits[kind] = promised(limits[kind], budget)
    return limits


def kept_budgets(manifest: Manifest) -> dict[str, float]:
    """Return the budgets that a bundle's recipes kept to, by kind; none of one that did not pass its gate."""
    notes = filter(None, read_notes(manifest.options))
    return {note.kind: note.budget for note in notes if note.passed and note.budget is not None}


def promised(limits: Thresholds, budget: float) -> Thresholds:
    """Return limits for engines whose mean trajectory error a gate held to a budget; never narrower ones."""
    call = max(limits.call_relative_l2, CALL_SPREAD * budget)
    trajectory = TRAJECTORY_SPREAD * budget
    return replace(
        limits,
        call_relative_l2=call,
        call_cosine=1 - (call / limits.call_relative_l2) ** 2 * (1 - limits.call_cosine),
        trajectory_relative_l2=max(limits.trajectory_relative_l2, trajectory),
        image_psnr=min(limits.image_psnr, -20 * math.log10(trajectory)),
    )


def file_thresholds(engine: Engine, limits: Thresholds) -> Thresholds:
    """Return the limits of what an engine's file holds: float32 where the backend lowers it on loading."""
    return thresholds("fp32") if is_as_is(engine.backend, engine.precision) else limits


def loosest(precisions: set[str], limits: Mapping[str, Thresholds]) -> str:
    """Return the precision that limits what a trajectory through engines of several can reach."""
    return max(precisions, key=lambda precision: limits[precision].trajectory_relative_l2)
