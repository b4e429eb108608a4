"""The velocity refiner's training objective (FlowTurbo, arXiv:2409.18128, §3.2).

The paper's refiner learns from unguided velocities and is sampled with guided ones. With guidance of
scale s the first velocity is what the sampler passes on instead: with c = v(x_t, t | y), u = v(x_t, t | ∅),

    w = u + s·(c − u) in the guided channels, in both halves;
    w_c = c in the conditional and w_u = u in the unconditional half in the others.

The state moves by w_c, as the sampler's does. A kept label sees w_c and a dropped one w_u, as the halves
of a guided refiner do. The teacher stays unguided, C = v(x_s, s | y) or U = v(x_s, s | ∅), because the
sampler guides the refiner's own output: a refiner of no loss is r_c = C − w_c and r_u = U − w_u, and where
w_c = w_u = w the refined velocity is

    w + r_u + s·(r_c − r_u) = w + (U − w) + s·(C − U) = U + s·(C − U),

the guided velocity at x_s, for every s. In the channels that are not guided it is w_c + r_c = C and
w_u + r_u = U, again what guidance makes of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowturbo_trt.export.networks import Guided
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
    predictor: SiT,
    refiner: nn.Module,
    x0: Tensor,
    x1: Tensor,
    y: Tensor,
    t: Tensor,
    delta: Tensor,
    drop: Tensor,
    guidance: Tensor | None = None,
    guided_channels: int = 0,
) -> RefinerObjective:
    """Compare the refined velocity after one Euler step with the predictor's own.

    x0 noise and x1 latents (B,C,H,W), y labels (B), t (B) in [0,1), delta a scalar step, drop (B) bool.
    The first velocity always sees the true label; the same drop mask then hides it from the student
    and from the second teacher call. t + delta may pass 1, where the path is extrapolated as in the
    reference: clamping would teach a step of another length.

    With `guidance` (B), scales, the first velocity is guided in the first `guided_channels` channels, as
    the sampler's is (see above); without, it is the label's, as in the paper.
    """
    x_t = torch.lerp(x0, x1, t[:, None, None, None])
    y_dropped = torch.where(drop, predictor.config.null_label, y)
    s = t + delta
    with torch.no_grad():
        if guidance is None:
            v_t = v_state = predictor(x_t, t, y)
        else:
            halves = Guided(predictor, guided_channels)(x_t, t, y, guidance)
            # One half stands for both where they agree.
            v_state, v_null = halves[:, 0], halves[:, -1]
            v_t = torch.where(drop[:, None, None, None], v_null, v_state)
        x_s = x_t + delta * v_state
        teacher = predictor(x_s, s, y_dropped)
    student = refiner(x_s, s, y_dropped, v_t) + v_t
    loss = (student.float() - teacher.float()).square().flatten(1).mean(1)
    return RefinerObjective(x_t, v_t, student, teacher, loss)
