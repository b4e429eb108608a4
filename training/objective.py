"""The velocity refiner's training objective (FlowTurbo, arXiv:2409.18128, §3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowturbo_trt.models.sit import SiT


@dataclass(frozen=True)
class RefinerObjective:
    """One evaluation: the regression target, what the refiner made of it, and the loss per sample (B)."""

    x_t: Tensor
    v_t: Tensor
    student: Tensor
    teacher: Tensor
    loss: Tensor


def refiner_objective(
    predictor: SiT, refiner: SiT, x0: Tensor, x1: Tensor, y: Tensor, t: Tensor, delta: Tensor, drop: Tensor
) -> RefinerObjective:
    """Compare the refined velocity after one Euler step with the predictor's own.

    x0 noise and x1 latents (B,C,H,W), y labels (B), t (B) in [0,1), delta a scalar step, drop (B) bool.
    The first velocity always sees the true label; the same drop mask then hides it from the student
    and from the second teacher call. t + delta may pass 1, where the path is extrapolated as in the
    reference: clamping would teach a step of another length.
    """
    x_t = torch.lerp(x0, x1, t[:, None, None, None])
    y_dropped = torch.where(drop, predictor.config.null_label, y)
    s = t + delta
    with torch.no_grad():
        v_t = predictor(x_t, t, y)
        x_s = x_t + delta * v_t
        teacher = predictor(x_s, s, y_dropped)
    student = refiner(x_s, s, y_dropped, v_t) + v_t
    loss = (student.float() - teacher.float()).square().flatten(1).mean(1)
    return RefinerObjective(x_t, v_t, student, teacher, loss)
