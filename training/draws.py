"""Everything random in a step, drawn for the whole batch whoever takes part of it."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from flowturbo_trt.training.config import TrainingConfig
from flowturbo_trt.training.source import LatentSource, step_generator


@dataclass(frozen=True)
class Draws:
    """The inputs of `refiner_objective`: x0, x1 (B,C,H,W), y, t, drop, guidance (B), delta a scalar."""

    x0: Tensor
    x1: Tensor
    y: Tensor
    t: Tensor
    delta: Tensor
    drop: Tensor
    guidance: Tensor | None

    def to(self, device: torch.device) -> "Draws":
        """Copy to a device; towards a GPU without waiting for it."""
        return replace(self, **{name: _moved(tensor, device) for name, tensor in self._tensors().items()})

    def parts(self, count: int) -> list["Draws"]:
        """Split into parts of equal size."""
        rows = {name: tensor.chunk(count) for name, tensor in self._tensors().items() if tensor.ndim}
        return [replace(self, **{name: of[part] for name, of in rows.items()}) for part in range(count)]

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}


def draw(source: LatentSource, config: TrainingConfig, step: int, rows: slice = slice(None)) -> Draws:
    """Return the given rows of the batch of a step, counted from 0.

    A pure function of its arguments: data and noise of a step are the same whether the run was
    interrupted before it or not, and whether the batch is one part or many.
    """
    x1, y = source.batch(step, config.batch, config.seed, rows)
    random = step_generator(config.seed, step, stream=2)
    B = config.batch
    x0 = torch.randn((B, *source.shape), generator=random)
    t = torch.rand(B, generator=random)
    # (0, max]: a step of length zero teaches nothing.
    delta = config.max_delta * (1 - torch.rand((), generator=random))
    drop = torch.rand(B, generator=random) < config.label_drop
    guidance = None
    if config.guided:
        low, high = config.guidance_low, config.guidance_high
        guidance = (low + (high - low) * torch.rand(B, generator=random))[rows]
    return Draws(x0[rows], x1, y, t[rows], delta, drop[rows], guidance)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return tensor.to(device)
    # Only from pinned memory does a copy not wait.
    return tensor.pin_memory().to(device, non_blocking=True)
