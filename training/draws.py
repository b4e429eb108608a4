"""Everything random in a step, drawn for the whole batch whoever takes part of it.

What is drawn is a pure function of (seed, step): the same whether a run was interrupted before or not, and
whether the batch is one part or many.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from flowturbo_trt.models.sit import SiTConfig
from flowturbo_trt.sampling.program import Program
from flowturbo_trt.training.config import TrainingConfig
from flowturbo_trt.training.source import LatentSource, step_generator


@dataclass(frozen=True)
class Draws:
    """Inputs of an objective by name: noise x0 (B,C,H,W), labels y (B), guidance scales (B) if guided."""

    x0: Tensor
    y: Tensor
    guidance: Tensor | None

    def to(self, device: torch.device) -> Self:
        """Copy to a device; towards a GPU without waiting for it."""
        return replace(self, **{name: _moved(tensor, device) for name, tensor in self._tensors().items()})

    def parts(self, count: int) -> list[Self]:
        """Split into parts of equal size."""
        rows = {name: tensor.chunk(count) for name, tensor in self._tensors().items() if tensor.ndim}
        return [replace(self, **{name: of[part] for name, of in rows.items()}) for part in range(count)]

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class PathDraws(Draws):
    """The inputs of `refiner_objective`: also latents x1 (B,C,H,W), t (B), drop (B), delta a scalar."""

    x1: Tensor
    t: Tensor
    delta: Tensor
    drop: Tensor


@dataclass(frozen=True)
class StartDraws(Draws):
    """The inputs of `on_policy_loss`: also the program to run."""

    program: Program


def draw_path_points(
    source: LatentSource, config: TrainingConfig, step: int, rows: slice = slice(None)
) -> PathDraws:
    """Return the given rows of the batch of a step, counted from 0."""
    x1, y = source.batch(step, config.batch, config.seed, rows)
    random = step_generator(config.seed, step, stream=2)
    B = config.batch
    x0 = torch.randn((B, *source.shape), generator=random)
    t = torch.rand(B, generator=random)
    # (0, max]: a step of length zero teaches nothing.
    delta = config.max_delta * (1 - torch.rand((), generator=random))
    drop = torch.rand(B, generator=random) < config.label_drop
    guidance = _draw_guidance(config, random, rows)
    return PathDraws(x0[rows], y, guidance, x1, t[rows], delta, drop[rows])


def draw_starts(
    program: Program, shape: SiTConfig, config: TrainingConfig, step: int, rows: slice = slice(None)
) -> StartDraws:
    """Return the given rows of the batch of a step, counted from 0: all classes are equally likely."""
    random = step_generator(config.seed, step, stream=2)
    x0 = torch.randn((config.batch, shape.in_channels, shape.input_size, shape.input_size), generator=random)
    y = torch.randint(shape.num_classes, (config.batch,), generator=random)
    return StartDraws(x0[rows], y[rows], _draw_guidance(config, random, rows), program)


def _draw_guidance(config: TrainingConfig, random: torch.Generator, rows: slice) -> Tensor | None:
    if not config.guided:
        return None
    low, high = config.guidance_low, config.guidance_high
    return (low + (high - low) * torch.rand(config.batch, generator=random))[rows]


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    # Only from pinned memory does a copy not wait.
    return tensor.pin_memory().to(device, non_blocking=True)
