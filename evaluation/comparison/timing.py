"""Latency like for like: all schedules on the same engines, in turn, in one run."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from flowturbo_trt.evaluation.comparison.findings import Figure
from flowturbo_trt.evaluation.speed.latency import (
    Stability,
    Timing,
    block_medians,
    measure,
    median_interval,
)
from flowturbo_trt.runtime.pipeline import Pipeline
from flowturbo_trt.runtime.request import Request


def time_schedules(
    pipeline: Pipeline, request: Request, schedules: Sequence[str], stability: Stability
) -> dict[str, Timing]:
    """Time one request along each schedule, from noise to images in host memory."""
    noise = np.empty((len(request), *pipeline.manifest.model.latent), dtype=np.float32)
    request.fill_noise(slice(0, len(request)), noise)
    # As noise: drawing it is the same work for every schedule, and of none of them.
    drawn = replace(request, noise=noise)
    return measure({name: partial(pipeline.generate, drawn, name) for name in schedules}, stability)


def ms_per_image(timing: Timing, batch: int) -> Figure:
    """Return the median milliseconds of one image of a batch."""
    low, high = timing.interval
    scale = 1000 / batch
    return Figure.bounded(scale * timing.median, (scale * low, scale * high))


def acceleration(timing: Timing, baseline: Timing) -> Figure:
    """Return the acceleration ratio 1 − t / t_baseline, FlowTurbo's measure against Heun.

    Taken turn by turn, of which this is the median: a machine that slows down for a while slows both.
    """
    if timing is baseline:
        return Figure(0.0)
    ratios = [1 - t / other for t, other in zip(timing.samples, baseline.samples, strict=True)]
    return Figure.bounded(float(np.median(ratios)), median_interval(block_medians(ratios)))
